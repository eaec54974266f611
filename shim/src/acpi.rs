//! What the shim needs of ACPI: power-off, reset, the PM timer, and the MADT. Tables are foreign
//! bytes: every access is checked, and what is malformed is as good as absent.

use arrayvec::ArrayVec;

use crate::mm::fixmap::MAX_IOAPICS;
use crate::mm::layout::MAX_VCPUS;

/// Generic address structure (ACPI 6.5 5.2.3.2).
#[derive(Clone, Copy, Debug)]
pub struct Gas {
    /// Address space; see [`Gas::IO`].
    pub space: u8,
    /// Register width.
    pub bits: u8,
    /// Address.
    pub address: u64,
}

impl Gas {
    /// System I/O.
    pub const IO: u8 = 1;
}

/// Power management registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Power {
    /// PM1a control.
    pub pm1a_control: Option<Gas>,
    /// PM1b control.
    pub pm1b_control: Option<Gas>,
    /// SLP_TYPa and SLP_TYPb of S5.
    pub s5: Option<(u8, u8)>,
    /// Reset register and value.
    pub reset: Option<(Gas, u8)>,
    /// PM timer.
    pub pm_timer: Option<Gas>,
}

/// An IOAPIC.
#[derive(Clone, Copy, Debug)]
pub struct IoApic {
    /// Physical address.
    pub address: u64,
    /// First global interrupt.
    pub gsi_base: u32,
}

/// An ISA interrupt that is not its own number.
#[derive(Clone, Copy, Debug)]
pub struct Override {
    /// ISA interrupt.
    pub irq: u8,
    /// Global interrupt.
    pub gsi: u32,
    /// Polarity and trigger.
    pub flags: u16,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Acpi {
    /// From FADT and DSDT.
    pub power: Power,
    /// From the MADT.
    pub ioapics: ArrayVec<IoApic, { MAX_IOAPICS as usize }>,
    /// From the MADT.
    pub overrides: ArrayVec<Override, 16>,
    /// APIC ids of the processors that are there, the first of them; from the MADT.
    pub processors: ArrayVec<u32, { MAX_VCPUS + 1 }>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Tables longer than this are taken for damaged.
const MAX_TABLE: usize = 1 << 20;

/// How a physical range is read; `None` where it is not memory.
type Reader<'a> = &'a dyn Fn(u64, usize) -> Option<&'static [u8]>;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn table(read: Reader<'_>, address: u64) -> Option<&'static [u8]> {
    let header = read(address, 36)?;
    let len = u32_at(header, 4)? as usize;
    if !(36..=MAX_TABLE).contains(&len) {
        return None;
    }
    read(address, len).filter(|table| sum(table) == 0)
}

/// Looks for the RSDP where BIOS leaves it.
pub fn scan_rsdp(read: Reader<'_>) -> Option<u64> {
    (0xe0000..0x100000).step_by(16).find(|&address| {
        read(address, 20).is_some_and(|b| b.starts_with(b"RSD PTR ") && sum(b) == 0)
    })
}

/// Reads the tables behind an RSDP.
pub fn parse(read: Reader<'_>, rsdp: u64) -> Option<Acpi> {
    let root = read(rsdp, 20).filter(|b| b.starts_with(b"RSD PTR "))?;
    let xsdt = match root[15] {
        0 | 1 => None,
        _ => u64_at(read(rsdp, 36)?, 24).filter(|&a| a != 0),
    };
    let (list, entry_bytes) = match xsdt.and_then(|a| table(read, a)) {
        Some(list) => (list, 8),
        None => (table(read, u64::from(u32_at(root, 16)?))?, 4),
    };
    let mut acpi = Acpi::default();
    for entry in list.get(36..)?.chunks_exact(entry_bytes) {
        let address = match entry_bytes {
            8 => u64_at(entry, 0)?,
            _ => u64::from(u32_at(entry, 0)?),
        };
        let Some(table) = table(read, address) else { continue };
        match table.get(..4) {
            Some(b"FACP") => fadt(read, table, &mut acpi.power),
            Some(b"APIC") => madt(table, &mut acpi),
            _ => {}
        }
    }
    Some(acpi)
}

fn gas(table: &[u8], at: usize) -> Option<Gas> {
    let raw = table.get(at..at + 12)?;
    let gas = Gas { space: raw[0], bits: raw[1], address: u64_at(raw, 4)? };
    (gas.address != 0).then_some(gas)
}

/// The extended field at `extended`, else the 32-bit I/O port at `legacy`.
fn register(table: &[u8], extended: usize, legacy: usize) -> Option<Gas> {
    gas(table, extended).or_else(|| {
        let port = u32_at(table, legacy).filter(|&p| p != 0)?;
        Some(Gas { space: Gas::IO, bits: 16, address: u64::from(port) })
    })
}

fn fadt(read: Reader<'_>, table_bytes: &[u8], power: &mut Power) {
    const RESET_SUPPORTED: u32 = 1 << 10;
    power.pm1a_control = register(table_bytes, 172, 64);
    power.pm1b_control = register(table_bytes, 184, 68);
    power.pm_timer = register(table_bytes, 208, 76);
    if u32_at(table_bytes, 112).is_some_and(|flags| flags & RESET_SUPPORTED != 0) {
        power.reset = gas(table_bytes, 116).zip(table_bytes.get(128).copied());
    }
    let dsdt = u64_at(table_bytes, 140)
        .filter(|&a| a != 0)
        .or_else(|| u32_at(table_bytes, 40).map(u64::from));
    power.s5 = dsdt.and_then(|address| table(read, address)).and_then(s5);
}

/// Finds `Name (_S5, Package (..) {a, b, ..})` in AML; the values are integer constants in every
/// table seen, so no interpreter is needed.
fn s5(aml: &[u8]) -> Option<(u8, u8)> {
    let at = aml.windows(4).position(|w| w == b"_S5_")?;
    let after = aml.get(at + 4..)?;
    let (&0x12, rest) = after.split_first()? else { return None };
    // PkgLength: the top two bits of its first byte count the bytes that follow; then NumElements.
    let skip = 1 + usize::from(*rest.first()? >> 6) + 1;
    let mut elements = rest.get(skip..)?;
    let mut integer = || {
        let (&op, tail) = elements.split_first()?;
        let (value, used) = match op {
            0 | 1 => (op, 0),
            0x0a => (*tail.first()?, 1),
            0x0b => (*tail.first()?, 2),
            0x0c => (*tail.first()?, 4),
            _ => return None,
        };
        elements = tail.get(used..)?;
        Some(value & 7)
    };
    Some((integer()?, integer().unwrap_or(0)))
}

fn add_processor(acpi: &mut Acpi, id: Option<u32>, flags: Option<u32>) {
    if let (Some(id), Some(flags)) = (id, flags)
        && flags & 1 != 0
        && !acpi.processors.contains(&id)
    {
        let _ = acpi.processors.try_push(id);
    }
}

fn madt(table: &[u8], acpi: &mut Acpi) {
    let mut rest = table.get(44..).unwrap_or(&[]);
    while let Some(&len) = rest.get(1) {
        let Some(entry) = rest.get(..usize::from(len)).filter(|e| e.len() >= 2) else { return };
        rest = &rest[usize::from(len)..];
        match entry[0] {
            // Local APIC, local x2APIC (ACPI 6.5 5.2.12.2 and 5.2.12.12): flag 0 is "enabled". An id
            // that has both is there once.
            0 => add_processor(acpi, entry.get(3).copied().map(u32::from), u32_at(entry, 4)),
            9 => add_processor(acpi, u32_at(entry, 4), u32_at(entry, 8)),
            1 => {
                if let (Some(address), Some(gsi_base)) = (u32_at(entry, 4), u32_at(entry, 8)) {
                    let ioapic = IoApic { address: u64::from(address), gsi_base };
                    let _ = acpi.ioapics.try_push(ioapic);
                }
            }
            2 => {
                if let (Some(&irq), Some(gsi), Some(flags)) =
                    (entry.get(3), u32_at(entry, 4), u16_at(entry, 8))
                {
                    let _ = acpi.overrides.try_push(Override { irq, gsi, flags });
                }
            }
            _ => {}
        }
    }
}
