//! ACPI tables, just below 1 MiB: RSDP at 0xe0000, then DSDT, FACS, FADT, MADT, XSDT.
//!
//! The DSDT names `\_S5`, COM1, COM2, the CMOS clock and the VMBus device by
//! which guests know that a Hyper-V bus is there. There is no PIC and no PIT.

use crate::memory::{ACPI_START, IOAPIC_BASE, LAPIC_BASE, VMBUS_WINDOW};
use crate::pm::{PM_TMR, PM1A_CNT, PM1A_EVT, RESET_PORT, RESET_VALUE, S5_SLEEP_TYPE, SCI_IRQ};
use crate::rtc::{CENTURY, PORT_INDEX};
use crate::serial::{COM_IRQ, COM1, COM2};
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use zerocopy::{Immutable, IntoBytes};

const OEM_ID: [u8; 6] = *b"PONTOO";
const OEM_TABLE_ID: [u8; 8] = *b"HVHOST  ";
const OEM_REVISION: u32 = 1;
/// Alignment of each table; FACS wants 64.
const ALIGN: usize = 64;
/// FADT `iapc_boot_arch`: legacy devices on the bus, no VGA.
const BOOT_ARCH: u16 = 1 | 1 << 2;

/// MADT interrupt source override (type 2).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, packed)]
struct InterruptSourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: [u8; 4],
    flags: [u8; 2],
}

impl Aml for InterruptSourceOverride {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.as_bytes());
    }
}

/// All tables as one image.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Where the RSDP and thus the image starts.
    pub rsdp: u64,
    /// Bytes to put there.
    pub image: Vec<u8>,
}

/// Tables for a machine with `cpus` processors.
#[must_use]
pub fn tables(cpus: u32) -> Tables {
    let mut image = vec![0u8; ALIGN];
    let mut place = |table: &dyn Aml| -> u64 {
        image.resize(image.len().next_multiple_of(ALIGN), 0);
        let at = ACPI_START + image.len() as u64;
        image.extend(bytes(table));
        at
    };
    let dsdt = place(&dsdt());
    let facs = place(&FACS::new());
    let fadt = place(&fadt(dsdt as u32, facs as u32));
    let madt = place(&madt(cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt);
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    for (to, from) in image.iter_mut().zip(rsdp) {
        *to = from;
    }
    Tables { rsdp: ACPI_START, image }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn io_gas(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(GasSpace::SystemIo, bits, 0, access, port.into())
}

fn fadt(dsdt: u32, facs: u32) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_32(dsdt)
        .firmware_ctrl_32(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .preferred_pm_profile(PmProfile::EnterpriseServer);
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVT).into();
    fadt.pm1a_cnt_blk = u32::from(PM1A_CNT).into();
    fadt.pm_tmr_blk = u32::from(PM_TMR).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    // No C2 and no C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = io_gas(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.x_pm1a_evt_blk = io_gas(PM1A_EVT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io_gas(PM1A_CNT, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io_gas(PM_TMR, 32, AccessSize::DwordAccess);
    fadt.finalize()
}

fn madt(cpus: u32) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC_BASE);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for id in (0..cpus).map(|id| id as u8) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_BASE as u32, 0));
    // The SCI is level-triggered and, unlike ISA's level interrupts, active high.
    madt.add_structure(InterruptSourceOverride {
        kind: 2,
        length: 10,
        bus: 0,
        source: SCI_IRQ,
        gsi: u32::from(SCI_IRQ).to_le_bytes(),
        flags: 0x000du16.to_le_bytes(),
    });
    madt
}

fn dsdt() -> Sdt {
    let mut aml = Vec::new();
    let (zero, s5) = (0u8, S5_SLEEP_TYPE);
    Name::new(Path::new("\\_S5_"), &Package::new(vec![&s5, &s5, &zero, &zero]))
        .to_aml_bytes(&mut aml);

    let serial = |name: &str, uid: u8, port: u16, irq: usize| {
        let io = IO::new(port, port, 1, 8);
        let irq = Interrupt::new(true, true, false, false, irq as u32);
        bytes(&Device::new(
            Path::new(name),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &uid),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&io, &irq])),
            ],
        ))
    };
    let clock = IO::new(PORT_INDEX, PORT_INDEX, 1, 2);
    let clock = bytes(&Device::new(
        Path::new("RTC_"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&clock])),
        ],
    ));
    let (low, high) = VMBUS_WINDOW;
    let window =
        AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, low, high, None::<u32>);
    let vmbus = bytes(&Device::new(
        Path::new("VMBS"),
        vec![
            &Name::new(Path::new("_HID"), &"VMBus"),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_STA"), &0xfu8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(Vec::new())),
        ],
    ));
    // Guests look for the window at the device's parent, where Hyper-V has it. Linux
    // before 6.3 walks on to the root of the tree when it is not there, and crashes.
    let vmbus = Raw(vmbus);
    let vmbus = bytes(&Device::new(
        Path::new("VMOD"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0004"),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&window])),
            &vmbus,
        ],
    ));
    let [irq1, irq2] = COM_IRQ;
    let com1 = serial("COM1", 1, COM1, irq1);
    let com2 = serial("COM2", 2, COM2, irq2);
    let (com1, com2, clock, vmbus) = (Raw(com1), Raw(com2), Raw(clock), Raw(vmbus));
    Scope::new(Path::new("\\_SB_"), vec![&com1, &com2, &clock, &vmbus]).to_aml_bytes(&mut aml);

    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// AML already in bytes.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HIGH_MEMORY_START;

    fn u32_at(image: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
    }

    fn u64_at(image: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    fn table(image: &[u8], address: u64) -> &[u8] {
        let at = (address - ACPI_START) as usize;
        &image[at..at + u32_at(image, at + 4) as usize]
    }

    #[test]
    fn checksums_and_links() {
        for cpus in [1, 2, 64] {
            let Tables { rsdp, image } = tables(cpus);
            assert_eq!(rsdp, 0xe_0000);
            assert!(rsdp + (image.len() as u64) < HIGH_MEMORY_START);
            assert_eq!(&image[..8], b"RSD PTR ");
            assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
            let xsdt = table(&image, u64_at(&image, 24));
            assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
            let fadt = table(&image, u64_at(xsdt, 36));
            let madt = table(&image, u64_at(xsdt, 44));
            assert_eq!(xsdt.len(), 52);
            assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
            assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
            let dsdt = table(&image, u64_at(fadt, 140));
            assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
            assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
            let facs = u32_at(fadt, 36);
            assert_eq!(facs % 64, 0);
            assert_eq!(&table(&image, facs.into())[..4], b"FACS");
            // 44 header, 8 per processor, 12 IOAPIC, 10 override.
            assert_eq!(madt.len(), 44 + 8 * cpus as usize + 22);
        }
    }

    #[test]
    fn fadt_blocks() {
        let Tables { image, .. } = tables(1);
        let xsdt = table(&image, u64_at(&image, 24));
        let fadt = table(&image, u64_at(xsdt, 36));
        assert_eq!((u32_at(fadt, 56), u32_at(fadt, 64), u32_at(fadt, 76)), (0x600, 0x604, 0x608));
        // Reset register: I/O space, 8 bits, 0xcf9, value 6.
        assert_eq!(&fadt[116..120], &[1, 8, 0, 1]);
        assert_eq!((u64_at(fadt, 120), fadt[128]), (0xcf9, 6));
    }

    #[test]
    fn dsdt_names_what_guests_look_for() {
        let dsdt = bytes(&dsdt());
        let has = |text: &[u8]| dsdt.windows(text.len()).any(|w| w == text);
        assert!(has(b"VMOD") && has(b"ACPI0004\0"));
        assert!(has(b"\\_S5_") && has(b"VMBus\0") && has(b"VMBS") && has(b"COM1") && has(b"COM2"));
        // Package of four: 5, 5, 0, 0.
        assert!(has(&[0x12, 0x08, 0x04, 0x0a, 0x05, 0x0a, 0x05, 0x00, 0x00]));
    }
}
