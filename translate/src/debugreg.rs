//! Debug registers: set_debugreg, get_debugreg, and `mov dr` of the guest kernel.

use xen_abi::Errno;
use xen_abi::mm::HYPERVISOR_VIRT_END;

use crate::Ctx;
use crate::outcome::{HcResult, ret};
use crate::platform::Platform;

/// DR6 bits that read as one (Intel SDM 3B 18.2.3), as Xen fixes them.
const DR6_ONES: u64 = 0xffff_0ff0;
/// DR6 bits that may be anything.
const DR6_VALID: u64 = 0xffff_efff;
/// DR7 bits that read as one.
const DR7_ONES: u64 = 0x400;
/// DR7 bits that may be anything, or are checked.
const DR7_VALID: u64 = 0xffff_27ff;
/// DR7 enable bits of the four breakpoints.
const DR7_ACTIVE: u64 = 0xff;
/// DR7.GD: fault on access to the debug registers.
const DR7_GD: u64 = 1 << 13;
/// Breakpoint type "I/O port".
const DR7_RW_IO: u64 = 2;
/// CR4.DE: I/O breakpoints are on, DR4 and DR5 do not exist.
const CR4_DE: u64 = 1 << 3;

/// The guest's debug registers.
#[derive(Debug)]
pub struct DebugRegs {
    /// DR0-DR7 as the guest sees them, I/O breakpoints excepted.
    pub dr: [u64; 8],
    /// Enable bits of I/O breakpoints: the guest sees them, the processor does not.
    dr7_io: u64,
}

impl Default for DebugRegs {
    fn default() -> Self {
        Self { dr: [0, 0, 0, 0, 0, 0, DR6_ONES, DR7_ONES], dr7_io: 0 }
    }
}

impl DebugRegs {
    /// DR7 enable bits of I/O breakpoints, which the emulation of IN and OUT looks at.
    #[inline]
    #[must_use]
    pub const fn io_enables(&self) -> u64 {
        self.dr7_io
    }
}

/// Whether a guest may name this linear address: canonical, below or above the hypervisor's hole
/// (Xen's `__addr_ok`).
#[inline]
#[must_use]
pub const fn address_ok(address: u64) -> bool {
    address < 1 << 47 || address >= HYPERVISOR_VIRT_END
}

/// Folds the DR6 of a #DB into the guest's: what happened is added, and bits that read as one
/// when nothing happened are cleared.
pub fn merge_dr6(regs: &mut DebugRegs, dr6: u64) {
    let was = regs.dr[6];
    regs.dr[6] = (was | dr6 & !DR6_ONES) & (dr6 | !DR6_ONES);
}

/// Which of DR0-3, 6, 7 a number means.
fn register<P: Platform>(cx: &Ctx<'_, P>, reg: u64) -> Result<u8, Errno> {
    let aliases = || cx.plat.guest_cr4() & CR4_DE == 0;
    match reg {
        0..=3 => Ok(reg as u8),
        6 | 7 => Ok(reg as u8),
        4 | 5 if aliases() => Ok(reg as u8 + 2),
        _ => Err(Errno::ENODEV),
    }
}

/// Reads a debug register.
///
/// # Errors
/// `ENODEV`: no such register (#UD for `mov`).
pub fn read<P: Platform>(cx: &Ctx<'_, P>, reg: u64) -> Result<u64, Errno> {
    let reg = register(cx, reg)?;
    let regs = &cx.vcpu.debugreg;
    Ok(regs.dr[usize::from(reg)] | if reg == 7 { regs.dr7_io } else { 0 })
}

/// Writes a debug register.
///
/// # Errors
/// `ENODEV`: no such register (#UD for `mov`). `EINVAL`: a bit that must not be set; `EPERM`: a
/// value the guest may not have (both #GP).
pub fn write<P: Platform>(cx: &mut Ctx<'_, P>, reg: u64, value: u64) -> Result<(), Errno> {
    let reg = register(cx, reg)?;
    let value = match reg {
        0..=3 if address_ok(value) => value,
        0..=3 => return Err(Errno::EPERM),
        _ if value >> 32 != 0 => return Err(Errno::EINVAL),
        6 => value & DR6_VALID | DR6_ONES,
        _ => {
            let value = value & DR7_VALID | DR7_ONES;
            let io = io_breakpoints(value, cx.plat.guest_cr4() & CR4_DE != 0)?;
            cx.vcpu.debugreg.dr7_io = io;
            value & !io
        }
    };
    cx.vcpu.debugreg.dr[usize::from(reg)] = value;
    cx.plat.set_debugreg(reg, value);
    Ok(())
}

/// The enable bits of I/O breakpoints in a DR7 value.
fn io_breakpoints(dr7: u64, de: bool) -> Result<u64, Errno> {
    if dr7 & DR7_GD != 0 {
        return Err(Errno::EPERM);
    }
    if dr7 & DR7_ACTIVE == 0 {
        return Ok(0);
    }
    let io = (0..4).filter(|at| dr7 >> (16 + 4 * at) & 3 == DR7_RW_IO);
    let enables = io.fold(0, |bits, at| bits | 3 << (2 * at) | 1 << 63);
    if enables != 0 && !de {
        return Err(Errno::EPERM);
    }
    Ok(dr7 & DR7_ACTIVE & enables)
}

/// `set_debugreg`.
///
/// # Errors
/// As [`write()`].
pub fn set_debugreg<P: Platform>(cx: &mut Ctx<'_, P>, reg: u64, value: u64) -> HcResult {
    write(cx, reg & 0xffff_ffff, value)?;
    ret(0)
}

/// `get_debugreg`: the value itself is the result.
///
/// # Errors
/// `ENODEV`.
pub fn get_debugreg<P: Platform>(cx: &mut Ctx<'_, P>, reg: u64) -> HcResult {
    ret(read(cx, reg & 0xffff_ffff)?.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Call, Machine};

    #[test]
    fn breakpoints_are_written_and_read() {
        let mut machine = Machine::new();
        assert_eq!(set_debugreg(&mut machine.cx(), 0, 0xffff_ffff_8100_0000), ret(0));
        assert_eq!(set_debugreg(&mut machine.cx(), 7, 0x1), ret(0));
        assert_eq!(get_debugreg(&mut machine.cx(), 0), ret(0xffff_ffff_8100_0000_u64 as i64));
        assert_eq!(get_debugreg(&mut machine.cx(), 7), ret(0x401));
        assert_eq!(get_debugreg(&mut machine.cx(), 6), ret(0xffff_0ff0));
        assert_eq!(
            machine.plat.calls(),
            [Call::SetDebugreg(0, 0xffff_ffff_8100_0000), Call::SetDebugreg(7, 0x401)]
        );
    }

    #[test]
    fn what_may_not_be_set() {
        let mut machine = Machine::new();
        let mut set = |reg, value| set_debugreg(&mut machine.cx(), reg, value);
        assert_eq!(set(1, 0xffff_8000_0000_1000), Err(Errno::EPERM), "the hypervisor's hole");
        assert_eq!(set(1, 0x8000_0000_0000), Err(Errno::EPERM), "not canonical");
        assert_eq!(set(7, 1 << 32), Err(Errno::EINVAL));
        assert_eq!(set(6, 1 << 32), Err(Errno::EINVAL));
        assert_eq!(set(7, 1 << 13), Err(Errno::EPERM), "GD");
        assert_eq!(set(7, 0x2_0001), Err(Errno::EPERM), "an I/O breakpoint without CR4.DE");
        assert_eq!(set(7, 0x2_0000), ret(0), "nothing is enabled");
        assert_eq!(set(8, 0), Err(Errno::ENODEV));
        assert_eq!(set(4, 0), ret(0), "DR4 is DR6");
        machine.plat.state().guest_cr4 = CR4_DE;
        assert_eq!(set_debugreg(&mut machine.cx(), 5, 0), Err(Errno::ENODEV));
        assert_eq!(get_debugreg(&mut machine.cx(), 4), Err(Errno::ENODEV));
    }

    #[test]
    fn io_breakpoints_are_shown_and_not_armed() {
        let mut machine = Machine::new();
        machine.plat.state().guest_cr4 = CR4_DE;
        assert_eq!(set_debugreg(&mut machine.cx(), 7, 0x20_000f), ret(0));
        assert_eq!(machine.plat.calls(), [Call::SetDebugreg(7, 0x20_0403)]);
        assert_eq!(get_debugreg(&mut machine.cx(), 7), ret(0x20_040f));
    }
}
