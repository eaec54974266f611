//! Memory types: the MTRRs of all processors must be the same (Intel SDM 3A 12.11.8). Firmware sees to
//! that; where nobody has, those of the boot processor are taken over.

use core::arch::asm;

use spin::Once;

use super::{cpuid, msr};

const CAPABILITIES: u32 = 0xfe;
const DEFAULT_TYPE: u32 = 0x2ff;
const FIRST_VARIABLE: u32 = 0x200;
/// MTRRcap: number of variable ranges; fixed ranges.
const VARIABLE: u64 = 0xff;
const FIXED: u64 = 1 << 8;
/// Those for fixed ranges.
const FIXED_RANGES: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// MTRRs are on.
const ENABLED: u64 = 1 << 11;
/// Registers there can be here: 16 variable ranges of two each.
const MOST: usize = FIXED_RANGES.len() + 32;
/// CR0.CD.
const NO_CACHE: u64 = 1 << 30;

/// The values of a processor.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mtrrs {
    default_type: u64,
    /// Number and value.
    ranges: [(u32, u64); MOST],
}

static BOOT: Once<Option<Mtrrs>> = Once::new();

/// The values of this processor; `None` where it has no MTRRs.
fn read() -> Option<Mtrrs> {
    const MTRR: u32 = 1 << 12;
    if cpuid(1, 0).edx & MTRR == 0 {
        return None;
    }
    let capabilities = msr::try_read(CAPABILITIES)?;
    let fixed = FIXED_RANGES.iter().copied().filter(|_| capabilities & FIXED != 0);
    let variable = (capabilities & VARIABLE).min(16) as u32;
    let numbers = fixed.chain(FIRST_VARIABLE..FIRST_VARIABLE + 2 * variable);
    let mut ranges = [(0, 0); MOST];
    for (range, number) in ranges.iter_mut().zip(numbers) {
        *range = (number, msr::try_read(number)?);
    }
    Some(Mtrrs { default_type: msr::try_read(DEFAULT_TYPE)?, ranges })
}

/// The boot processor's are everybody's.
pub fn note() {
    BOOT.call_once(read);
}

/// Gives a started processor the boot processor's. `true`: they were others.
pub fn follow() -> bool {
    let Some(Some(wanted)) = BOOT.get() else { return false };
    match read() {
        Some(own) if own != *wanted => {
            write(wanted);
            true
        }
        _ => false,
    }
}

/// Writes them as the manual says, caches and TLB empty and MTRRs off meanwhile. Global pages there are
/// none.
fn write(wanted: &Mtrrs) {
    let cr0: u64;
    // SAFETY: caches are switched off and written back; memory stays coherent without them.
    unsafe {
        asm!("mov {old}, cr0", "mov {new}, {old}", "or {new}, {bit}", "mov cr0, {new}", "wbinvd",
            "mov {new}, cr3", "mov cr3, {new}",
            old = out(reg) cr0, new = out(reg) _, bit = in(reg) NO_CACHE, options(nostack));
    }
    // SAFETY: without MTRRs all memory is uncached, which is sound.
    unsafe { msr::try_write(DEFAULT_TYPE, wanted.default_type & !ENABLED) };
    for (number, value) in wanted.ranges.iter().filter(|(number, _)| *number != 0) {
        // SAFETY: what the boot processor has, on which everything runs.
        unsafe { msr::try_write(*number, *value) };
    }
    // SAFETY: as above.
    unsafe { msr::try_write(DEFAULT_TYPE, wanted.default_type) };
    // SAFETY: CR0 as it was.
    unsafe {
        asm!("wbinvd", "mov {tmp}, cr3", "mov cr3, {tmp}", "mov cr0, {old}",
            tmp = out(reg) _, old = in(reg) cr0, options(nostack));
    }
}
