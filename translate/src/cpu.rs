//! Small processor hypercalls: stack_switch, set_segment_base, fpu_taskswitch, vm_assist.

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::Errno;
use xen_abi::arch::{SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL};
use xen_abi::hypercall::{
    VMASST_CMD_DISABLE, VMASST_CMD_ENABLE, VMASST_TYPE_4GB_SEGMENTS,
    VMASST_TYPE_4GB_SEGMENTS_NOTIFY, VMASST_TYPE_ARCHITECTURAL_IOPL, VMASST_TYPE_M2P_STRICT,
    VMASST_TYPE_PAE_EXTENDED_CR3, VMASST_TYPE_RUNSTATE_UPDATE_FLAG,
    VMASST_TYPE_WRITABLE_PAGETABLES,
};

use xen_abi::mm::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START};

use crate::Ctx;
use crate::outcome::{HcResult, ret};
use crate::platform::{Platform, SegmentBase};

/// Assists a 64-bit PV guest may switch on (`PV64_VM_ASSIST_MASK`).
const VM_ASSISTS: u64 = 1 << VMASST_TYPE_4GB_SEGMENTS
    | 1 << VMASST_TYPE_4GB_SEGMENTS_NOTIFY
    | 1 << VMASST_TYPE_WRITABLE_PAGETABLES
    | 1 << VMASST_TYPE_PAE_EXTENDED_CR3
    | 1 << VMASST_TYPE_ARCHITECTURAL_IOPL
    | 1 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG
    | 1 << VMASST_TYPE_M2P_STRICT;

/// An address no access to which succeeds: not canonical.
const NOWHERE: u64 = 1 << 63;

/// `stack_switch`. The stack selector is always the guest kernel's own.
///
/// # Errors
/// None.
#[inline]
pub fn stack_switch<P: Platform>(cx: &mut Ctx<'_, P>, _ss: u64, sp: u64) -> HcResult {
    cx.vcpu.entry.kernel_sp = entry_stack(sp);
    ret(0)
}

/// A stack for entries from user mode as the entry path takes it. It pushes there without another
/// look: aligned, and never in the hypervisor's hole, where a stack makes the first system call crash
/// the domain instead.
#[inline]
pub(crate) fn entry_stack(sp: u64) -> u64 {
    let in_hole = (HYPERVISOR_VIRT_START..=HYPERVISOR_VIRT_END).contains(&sp);
    if in_hole { NOWHERE } else { sp & !15 }
}

/// `set_segment_base`.
///
/// # Errors
/// `EINVAL`: no such base, or an address that is not canonical. A bad selector is none: null is
/// loaded instead, as on Xen.
#[inline]
pub fn set_segment_base<P: Platform>(cx: &mut Ctx<'_, P>, which: u64, base: u64) -> HcResult {
    let which = match which as u32 {
        SEGBASE_FS => SegmentBase::Fs,
        SEGBASE_GS_USER => SegmentBase::GsUser,
        SEGBASE_GS_KERNEL => SegmentBase::GsKernel,
        SEGBASE_GS_USER_SEL => {
            let selector = base as u16;
            cx.plat.load_user_gs(if selector > 3 { selector | 3 } else { selector });
            return ret(0);
        }
        _ => return Err(Errno::EINVAL),
    };
    if cx.plat.set_segment_base(which, base) { ret(0) } else { Err(Errno::EINVAL) }
}

/// `fpu_taskswitch`: sets or clears CR0.TS.
///
/// # Errors
/// None.
pub fn fpu_taskswitch<P: Platform>(cx: &mut Ctx<'_, P>, set: u64) -> HcResult {
    crate::emulate::set_ts(cx, set as u32 != 0);
    ret(0)
}

/// `vm_assist`. The assists for page tables and segments are remembered and mean nothing more:
/// page tables are writable anyway.
///
/// # Errors
/// `EINVAL`: no such assist; `ENOSYS`: no such command.
pub fn vm_assist<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, assist: u64) -> HcResult {
    let bit = 1u64.checked_shl(assist as u32).unwrap_or(0) & VM_ASSISTS;
    if bit == 0 {
        return Err(Errno::EINVAL);
    }
    match cmd as u32 {
        VMASST_CMD_ENABLE => cx.dom.vm_assist.fetch_or(bit, Relaxed),
        VMASST_CMD_DISABLE => cx.dom.vm_assist.fetch_and(!bit, Relaxed),
        _ => return Err(Errno::ENOSYS),
    };
    ret(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Call, Machine};

    #[test]
    fn segment_bases() {
        let mut machine = Machine::new();
        let mut set = |which, base| set_segment_base(&mut machine.cx(), which, base);
        assert_eq!(set(0, 0x7f00_0000_0000), ret(0));
        assert_eq!(set(1, 0x7f00_0000_1000), ret(0));
        assert_eq!(set(2, 0xffff_8880_0000_0000), ret(0));
        assert_eq!(set(0, 1 << 47), Err(Errno::EINVAL));
        assert_eq!(set(4, 0), Err(Errno::EINVAL));
        assert_eq!(set(3, 0x28), ret(0));
        assert_eq!(set(3, 0x1234_0002), ret(0));
        assert_eq!(set(3, 0x50), ret(0), "a bad selector is no error");
        let calls = machine.plat.calls();
        assert_eq!(
            calls[..3],
            [
                Call::SetSegmentBase(SegmentBase::Fs, 0x7f00_0000_0000),
                Call::SetSegmentBase(SegmentBase::GsUser, 0x7f00_0000_1000),
                Call::SetSegmentBase(SegmentBase::GsKernel, 0xffff_8880_0000_0000),
            ]
        );
        let selectors = [Call::LoadUserGs(0x2b), Call::LoadUserGs(2), Call::LoadUserGs(0x53)];
        assert_eq!(calls[4..], selectors, "RPL 3, but for null");
    }

    #[test]
    fn assists() {
        let mut machine = Machine::new();
        let mut assist = |cmd, number| vm_assist(&mut machine.cx(), cmd, number);
        for number in [0, 1, 2, 3, 4, 5, 32] {
            assert_eq!(assist(0, number), ret(0));
        }
        assert_eq!(assist(1, 2), ret(0));
        for number in [6, 31, 33, 63, 64, 0xffff_ffff] {
            assert_eq!(assist(0, number), Err(Errno::EINVAL));
        }
        assert_eq!(assist(2, 0), Err(Errno::ENOSYS));
        assert_eq!(machine.dom.vm_assist.load(Relaxed), 0x1_0000_003b);
    }

    #[test]
    fn the_rest() {
        let mut machine = Machine::new();
        assert_eq!(stack_switch(&mut machine.cx(), 0xe02b, 0xffff_c900_0000_4000), ret(0));
        assert_eq!(machine.vcpus[0].entry.kernel_sp, 0xffff_c900_0000_4000);
        assert_eq!(fpu_taskswitch(&mut machine.cx(), 1), ret(0));
        assert_eq!(fpu_taskswitch(&mut machine.cx(), 0), ret(0));
        assert_eq!(machine.plat.calls(), [Call::SetTs(true), Call::SetTs(false)]);
    }
}
