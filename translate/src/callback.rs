//! Where the guest wants its events, system calls and NMIs: set_callbacks, callback_op, nmi_op.

use xen_abi::arch::{TrapInfo, ti, vector};
use xen_abi::callback::{
    CALLBACKF_MASK_EVENTS, CALLBACKOP_REGISTER, CALLBACKOP_UNREGISTER, CallbackRegister,
    CallbackType, CallbackUnregister, XENNMI_REGISTER_CALLBACK, XENNMI_UNREGISTER_CALLBACK,
    XennmiCallback,
};
use xen_abi::{Errno, GuestVa};

use crate::Ctx;
use crate::outcome::{HcResult, efault, ret};
use crate::platform::Platform;
use crate::trap_table::is_canonical;
use crate::vcpu::{Entry, Vcpu};

impl Entry {
    /// Sets the system call callback and what the assembly's fast path knows of it.
    pub const fn set_syscall_callback(&mut self, address: u64, masks: bool) {
        self.syscall_callback = address;
        self.syscall_masks = masks as u8;
        self.fast_syscall = if masks { address } else { 0 };
    }
}

/// Registers a callback.
///
/// # Errors
/// `EINVAL`: the address is not canonical; `ENOSYS`: no such type.
pub fn register(
    vcpu: &mut Vcpu,
    type_: CallbackType,
    address: u64,
    masks: bool,
) -> Result<(), Errno> {
    if !is_canonical(address) {
        return Err(Errno::EINVAL);
    }
    let entry = &mut vcpu.entry;
    match type_ {
        CallbackType::EVENT => entry.event_callback = address,
        CallbackType::FAILSAFE => {
            entry.failsafe_callback = address;
            entry.failsafe_masks = masks.into();
        }
        CallbackType::SYSCALL => entry.set_syscall_callback(address, masks),
        CallbackType::SYSCALL32 => {
            entry.syscall32_callback = address;
            entry.syscall32_masks = masks.into();
        }
        CallbackType::SYSENTER => {
            entry.sysenter_callback = address;
            entry.sysenter_masks = masks.into();
        }
        CallbackType::NMI => {
            vcpu.traps.set(&TrapInfo { vector: vector::NMI, flags: ti::IF, cs: 0, pad: 0, address })
        }
        _ => return Err(Errno::ENOSYS),
    }
    Ok(())
}

/// Takes the NMI handler away.
fn unregister_nmi(vcpu: &mut Vcpu) {
    vcpu.traps.set(&TrapInfo { vector: vector::NMI, flags: 0, cs: 0, pad: 0, address: 0 });
}

/// `set_callbacks`: event, failsafe and system call; none masks events but the event callback. A
/// bad address is left out silently, as on Xen.
///
/// # Errors
/// None.
pub fn set_callbacks<P: Platform>(
    cx: &mut Ctx<'_, P>,
    event: u64,
    failsafe: u64,
    syscall: u64,
) -> HcResult {
    let vcpu = &mut *cx.vcpu;
    let _ = register(vcpu, CallbackType::EVENT, event, false);
    let _ = register(vcpu, CallbackType::FAILSAFE, failsafe, false);
    let _ = register(vcpu, CallbackType::SYSCALL, syscall, false);
    ret(0)
}

/// `callback_op`.
///
/// # Errors
/// `EFAULT`, `EINVAL`, `ENOSYS` as Xen.
pub fn callback_op<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, arg: u64) -> HcResult {
    let arg = GuestVa(arg);
    match cmd as u32 {
        CALLBACKOP_REGISTER => {
            let new: CallbackRegister = cx.plat.read_guest(arg).map_err(efault)?;
            register(cx.vcpu, new.type_, new.address, new.flags & CALLBACKF_MASK_EVENTS != 0)?;
        }
        CALLBACKOP_UNREGISTER => {
            let old: CallbackUnregister = cx.plat.read_guest(arg).map_err(efault)?;
            match old.type_ {
                CallbackType::NMI => unregister_nmi(cx.vcpu),
                CallbackType::EVENT
                | CallbackType::FAILSAFE
                | CallbackType::SYSCALL
                | CallbackType::SYSCALL32
                | CallbackType::SYSENTER => return Err(Errno::EINVAL),
                _ => return Err(Errno::ENOSYS),
            }
        }
        _ => return Err(Errno::ENOSYS),
    }
    ret(0)
}

/// `nmi_op`.
///
/// # Errors
/// `EFAULT`, `EINVAL`, `ENOSYS` as Xen.
pub fn nmi_op<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, arg: u64) -> HcResult {
    match cmd as u32 {
        XENNMI_REGISTER_CALLBACK => {
            let new: XennmiCallback = cx.plat.read_guest(GuestVa(arg)).map_err(efault)?;
            register(cx.vcpu, CallbackType::NMI, new.handler_address, false)?;
        }
        XENNMI_UNREGISTER_CALLBACK => unregister_nmi(cx.vcpu),
        _ => return Err(Errno::ENOSYS),
    }
    ret(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Machine, va};
    use crate::platform::GuestMemory;

    const TEXT: u64 = 0xffff_ffff_8100_0000;

    fn op(machine: &mut Machine, cmd: u64, type_: u16, flags: u16, address: u64) -> HcResult {
        let new = CallbackRegister { type_: CallbackType(type_), flags, pad: 0, address };
        machine.plat.write_guest(va(2), &new).unwrap();
        callback_op(&mut machine.cx(), cmd, va(2).0)
    }

    #[test]
    fn every_type_has_its_place() {
        let mut machine = Machine::new();
        for (type_, address) in [(0, 0), (1, 1), (2, 2), (5, 5), (7, 7), (4, 4)] {
            assert_eq!(op(&mut machine, 0, type_, 1, TEXT + address), ret(0));
        }
        let vcpu = &machine.vcpus[0];
        let entry = &vcpu.entry;
        assert_eq!((entry.event_callback, entry.failsafe_callback), (TEXT, TEXT + 1));
        assert_eq!((entry.syscall_callback, entry.fast_syscall), (TEXT + 2, TEXT + 2));
        assert_eq!((entry.sysenter_callback, entry.syscall32_callback), (TEXT + 5, TEXT + 7));
        let masks = [entry.failsafe_masks, entry.syscall_masks, entry.sysenter_masks];
        assert_eq!((masks, entry.syscall32_masks), ([1; 3], 1));
        let nmi = vcpu.traps.handler(2);
        assert_eq!((nmi.address, nmi.masks), (TEXT + 4, 1));
    }

    #[test]
    fn the_fast_system_call_is_one_that_masks() {
        let mut machine = Machine::new();
        assert_eq!(op(&mut machine, 0, 2, 0, TEXT), ret(0));
        let entry = &machine.vcpus[0].entry;
        assert_eq!((entry.syscall_callback, entry.fast_syscall), (TEXT, 0));
    }

    #[test]
    fn bad_requests() {
        let mut machine = Machine::new();
        assert_eq!(op(&mut machine, 0, 3, 0, TEXT), Err(Errno::ENOSYS), "32-bit sysenter");
        assert_eq!(op(&mut machine, 0, 6, 0, TEXT), Err(Errno::ENOSYS));
        assert_eq!(op(&mut machine, 0, 0, 0, 1 << 47), Err(Errno::EINVAL));
        assert_eq!(op(&mut machine, 1, 0, 0, 0), Err(Errno::EINVAL), "cannot be unregistered");
        assert_eq!(op(&mut machine, 1, 3, 0, 0), Err(Errno::ENOSYS));
        assert_eq!(op(&mut machine, 2, 0, 0, 0), Err(Errno::ENOSYS));
        assert_eq!(callback_op(&mut machine.cx(), 0, 0x1000), Err(Errno::EFAULT));
        assert_eq!(op(&mut machine, 0, 4, 0, TEXT), ret(0));
        assert_eq!(op(&mut machine, 1, 4, 0, 0), ret(0));
        assert_eq!(machine.vcpus[0].traps.handler(2).address, 0);
    }

    #[test]
    fn the_old_call_leaves_out_what_is_bad() {
        let mut machine = Machine::new();
        assert_eq!(set_callbacks(&mut machine.cx(), TEXT, 1 << 47, TEXT + 2), ret(0));
        let entry = &machine.vcpus[0].entry;
        assert_eq!((entry.event_callback, entry.failsafe_callback), (TEXT, 0));
        assert_eq!((entry.syscall_callback, entry.syscall_masks), (TEXT + 2, 0));
    }

    #[test]
    fn nmi_handlers() {
        let mut machine = Machine::new();
        machine.plat.poke(va(2), TEXT);
        assert_eq!(nmi_op(&mut machine.cx(), 0, va(2).0), ret(0));
        assert_eq!(machine.vcpus[0].traps.handler(2).address, TEXT);
        assert_eq!(nmi_op(&mut machine.cx(), 1, 0), ret(0));
        assert_eq!(machine.vcpus[0].traps.handler(2).address, 0);
        assert_eq!(nmi_op(&mut machine.cx(), 0, 0x1000), Err(Errno::EFAULT));
        assert_eq!(nmi_op(&mut machine.cx(), 2, 0), Err(Errno::ENOSYS));
    }
}
