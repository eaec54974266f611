//! Control and debug registers, XCR0, the time-stamp counter.

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::{Errno, Mfn};

use super::{CR4_DE, Emulation, GP0, UD, cpuid, set_ts};
use crate::platform::Platform;
use crate::{Ctx, debugreg, mmu};

/// CR0 of a 64-bit PV guest: PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
const CR0_TS: u64 = 1 << 3;
const CR4_TSD: u64 = 1 << 2;
const CR4_FSGSBASE: u64 = 1 << 16;
pub(super) const CR4_OSXSAVE: u64 = 1 << 18;
/// What a guest may set (`PV_CR4_GUEST_MASK`).
const CR4_GUEST: u64 = CR4_TSD | CR4_DE | CR4_FSGSBASE | CR4_OSXSAVE;
/// What it sees of the processor's: PAE, OSFXSR, OSXMMEXCPT. MCE stays hidden.
const CR4_FIXED: u64 = 1 << 5 | 1 << 9 | 1 << 10;

/// `mov %crN, reg`.
pub(super) fn read_cr<P: Platform>(cx: &Ctx<'_, P>, cr: u8) -> Result<u64, Emulation> {
    match cr {
        0 => Ok(CR0 | if cx.vcpu.control.ts { CR0_TS } else { 0 }),
        2 => Ok(cx.vcpu.entry.info.arch.cr2.load(Relaxed)),
        3 => Ok(cx.vcpu.mmu.l4 << 12),
        4 => Ok(cx.plat.guest_cr4() & CR4_GUEST | CR4_FIXED),
        _ => Err(GP0),
    }
}

/// `mov reg, %crN`.
pub(super) fn write_cr<P: Platform>(
    cx: &mut Ctx<'_, P>,
    cr: u8,
    value: u64,
) -> Result<(), Emulation> {
    match cr {
        0 if (value ^ CR0) & !CR0_TS == 0 => set_ts(cx, value & CR0_TS != 0),
        2 => cx.vcpu.entry.info.arch.cr2.store(value, Relaxed),
        3 => {
            if !mmu::load_l4(cx, Mfn(value >> 12)) {
                return Err(GP0);
            }
        }
        // Bits that are not the guest's are ignored, as Xen ignores them.
        4 => cx.plat.set_guest_cr4(value & cr4_allowed(cx)),
        _ => return Err(GP0),
    }
    Ok(())
}

/// CR4 bits whose feature the guest has.
pub(crate) fn cr4_allowed<P: Platform>(cx: &Ctx<'_, P>) -> u64 {
    let fsgsbase = cpuid::cpuid(cx, 7, 0, true).ebx & 1 != 0;
    let xsave = cpuid::has_xsave(cx);
    CR4_TSD | CR4_DE | if fsgsbase { CR4_FSGSBASE } else { 0 } | if xsave { CR4_OSXSAVE } else { 0 }
}

const fn debug_error(error: Errno) -> Emulation {
    // The register does not exist, or may not have the value.
    if error.0 == Errno::ENODEV.0 { UD } else { GP0 }
}

/// `mov %drN, reg`.
pub(super) fn read_dr<P: Platform>(cx: &Ctx<'_, P>, dr: u8) -> Result<u64, Emulation> {
    debugreg::read(cx, dr.into()).map_err(debug_error)
}

/// `mov reg, %drN`.
pub(super) fn write_dr<P: Platform>(
    cx: &mut Ctx<'_, P>,
    dr: u8,
    value: u64,
) -> Result<(), Emulation> {
    debugreg::write(cx, dr.into(), value).map_err(debug_error)
}

/// XSETBV.
pub(super) fn xsetbv<P: Platform>(
    cx: &Ctx<'_, P>,
    register: u32,
    value: u64,
) -> Result<(), Emulation> {
    if cx.plat.guest_cr4() & CR4_OSXSAVE == 0 {
        return Err(UD);
    }
    let allowed = cpuid::xcr0_mask(cx);
    let valid = register == 0 && value & !allowed == 0 && xcr0_valid(value);
    if valid && cx.plat.set_xcr0(value) { Ok(()) } else { Err(GP0) }
}

/// The architecture's rules (Intel SDM 1, 13.3): x87 always; AVX needs SSE; the bound registers
/// come in a pair; the three parts of AVX-512 come together and need AVX.
const fn xcr0_valid(value: u64) -> bool {
    const AVX512: u64 = 7 << 5;
    let avx_ok = value & 4 == 0 || value & 2 != 0;
    let mpx_ok = value >> 3 & 1 == value >> 4 & 1;
    let avx512_ok = value & AVX512 == 0 || value & (AVX512 | 4) == AVX512 | 4;
    value & 1 == 1 && avx_ok && mpx_ok && avx512_ok
}

/// The time-stamp counter at this moment, by the conversion in force: RDTSC itself runs natively
/// unless the guest made it trap (CR4.TSD), so this need not be quick.
pub(super) fn tsc<P: Platform>(cx: &Ctx<'_, P>) -> u64 {
    let scale = cx.plat.tsc_scale();
    let ns = cx.plat.now_ns().saturating_sub(scale.system_time_ns);
    if scale.mul == 0 {
        return scale.tsc_timestamp;
    }
    let scaled = (u128::from(ns) << 32) / u128::from(scale.mul);
    let shift = u32::from(scale.shift.unsigned_abs()).min(63);
    let delta = if scale.shift < 0 { scaled << shift } else { scaled >> shift };
    scale.tsc_timestamp.wrapping_add(delta as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Machine;

    #[test]
    fn xcr0_rules() {
        for good in [1, 3, 7, 0xe7, 0x1f, 0xff, 0x19] {
            assert!(xcr0_valid(good), "{good:#x}");
        }
        for bad in [0, 2, 5, 0x27, 0xe3, 0xb, 0x67] {
            assert!(!xcr0_valid(bad), "{bad:#x}");
        }
    }

    #[test]
    fn the_counter_is_the_inverse_of_the_clock() {
        let mut machine = Machine::new();
        for (mul, shift, per_ns) in
            [(0x8000_0000u32, 1i8, 1u64), (0x8000_0000, -1, 4), (1 << 31, 0, 2)]
        {
            {
                let state = &mut *machine.plat.state();
                state.tsc_scale.mul = mul;
                state.tsc_scale.shift = shift;
                state.tsc_scale.tsc_timestamp = 1000;
                state.tsc_scale.system_time_ns = 500;
                state.now_ns = 10_500;
            }
            assert_eq!(tsc(&machine.cx()), 1000 + 10_000 * per_ns);
        }
    }
}
