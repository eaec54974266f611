//! Hypercalls of toolstacks and device models. An unprivileged domain may make none of them; what
//! it is told depends on how far Xen looks at its arguments first (XSM's default policy).

use xen_abi::mm::DomId;
use xen_abi::{Errno, GuestVa};

use crate::Ctx;
use crate::evtchn::{Named, domain_by_any_id};
use crate::outcome::{HcResult, efault};
use crate::platform::Platform;

/// `XENPF_INTERFACE_VERSION` (`platform.h`).
const XENPF_INTERFACE_VERSION: u32 = 0x0300_0001;
/// `XEN_SYSCTL_INTERFACE_VERSION` and `XEN_DOMCTL_INTERFACE_VERSION` of Xen 4.17.
const XENCTL_INTERFACE_VERSION: u32 = 0x15;
/// `XEN_DOMCTL_shadow_op`.
const XEN_DOMCTL_SHADOW_OP: u32 = 10;
/// Buffers a dm_op may have.
const DM_OP_BUFFERS: u32 = 2;
/// `HVMOP_get_param`; with `HVMOP_set_param` below it, the ones that look at a domain.
const HVMOP_GET_PARAM: u64 = 1;
/// `XENOPROF_last_op`.
const XENOPROF_LAST_OP: u32 = 16;

/// `platform_op`: the version is in the second word.
///
/// # Errors
/// `EFAULT`, `EACCES`, `EPERM`.
pub fn platform_op<P: Platform>(cx: &mut Ctx<'_, P>, op: u64) -> HcResult {
    let [_, version]: [u32; 2] = cx.plat.read_guest(GuestVa(op)).map_err(efault)?;
    Err(if version == XENPF_INTERFACE_VERSION { Errno::EPERM } else { Errno::EACCES })
}

/// `sysctl`.
///
/// # Errors
/// `EFAULT`, `EACCES`, `EPERM`.
pub fn sysctl<P: Platform>(cx: &mut Ctx<'_, P>, op: u64) -> HcResult {
    let [_, version]: [u32; 2] = cx.plat.read_guest(GuestVa(op)).map_err(efault)?;
    Err(if version == XENCTL_INTERFACE_VERSION { Errno::EPERM } else { Errno::EACCES })
}

/// `domctl`.
///
/// # Errors
/// `EFAULT`, `EACCES`, `EPERM`.
pub fn domctl<P: Platform>(cx: &mut Ctx<'_, P>, op: u64) -> HcResult {
    sysctl(cx, op)
}

/// `paging_domctl_cont`: a continuation of domctl's shadow operation.
///
/// # Errors
/// `EFAULT`, `EOPNOTSUPP`, `EPERM`.
pub fn paging_domctl_cont<P: Platform>(cx: &mut Ctx<'_, P>, op: u64) -> HcResult {
    let [cmd, version]: [u32; 2] = cx.plat.read_guest(GuestVa(op)).map_err(efault)?;
    let shadow = cmd == XEN_DOMCTL_SHADOW_OP && version == XENCTL_INTERFACE_VERSION;
    Err(if shadow { Errno::EPERM } else { Errno::EOPNOTSUPP })
}

/// `hvm_op`: no PV guest has parameters.
///
/// # Errors
/// `EFAULT`, `ESRCH`, `EINVAL`, `ENOSYS`.
pub fn hvm_op<P: Platform>(cx: &mut Ctx<'_, P>, op: u64, arg: u64) -> HcResult {
    if op > HVMOP_GET_PARAM {
        return Err(Errno::ENOSYS);
    }
    let domid: DomId = cx.plat.read_guest(GuestVa(arg)).map_err(efault)?;
    domain_by_any_id(domid)?;
    Err(Errno::EINVAL)
}

/// `dm_op`: for device models, never on oneself.
///
/// # Errors
/// `E2BIG`, `ESRCH`, `EINVAL`, `EPERM`.
pub fn dm_op<P: Platform>(_cx: &mut Ctx<'_, P>, domid: u64, nr_bufs: u64) -> HcResult {
    if nr_bufs as u32 > DM_OP_BUFFERS {
        return Err(Errno::E2BIG);
    }
    match domain_by_any_id(DomId(domid as u16))? {
        Named::Own => Err(Errno::EPERM),
        Named::Backend => Err(Errno::EINVAL),
    }
}

/// `xenoprof_op`: there is no profiler.
///
/// # Errors
/// `EINVAL`, `EPERM`.
pub fn xenoprof_op<P: Platform>(_cx: &mut Ctx<'_, P>, op: u64) -> HcResult {
    Err(if op as u32 > XENOPROF_LAST_OP { Errno::EINVAL } else { Errno::EPERM })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Machine, va};

    #[test]
    fn versions_come_before_privilege() {
        let mut machine = Machine::new();
        let mut op = |version: u64, expected| {
            machine.plat.poke(va(2), version << 32 | 10);
            let results = [
                platform_op(&mut machine.cx(), va(2).0),
                sysctl(&mut machine.cx(), va(2).0),
                domctl(&mut machine.cx(), va(2).0),
                paging_domctl_cont(&mut machine.cx(), va(2).0),
            ];
            assert_eq!(results.map(|result| result.unwrap_err()), expected);
        };
        use Errno as E;
        op(0x15, [E::EACCES, E::EPERM, E::EPERM, E::EPERM]);
        op(0x0300_0001, [E::EPERM, E::EACCES, E::EACCES, E::EOPNOTSUPP]);
        assert_eq!(sysctl(&mut machine.cx(), 0x1000), Err(E::EFAULT));
    }

    #[test]
    fn others() {
        let mut machine = Machine::new();
        machine.plat.poke(va(2), 0x7ff0);
        let cx = &mut machine.cx();
        assert_eq!(hvm_op(cx, 1, va(2).0), Err(Errno::EINVAL));
        assert_eq!(hvm_op(cx, 1, 0x1000), Err(Errno::EFAULT));
        assert_eq!(hvm_op(cx, 99, 0), Err(Errno::ENOSYS));
        assert_eq!(dm_op(cx, 0x7ff0, 0), Err(Errno::EPERM));
        assert_eq!(dm_op(cx, 0, 3), Err(Errno::E2BIG));
        assert_eq!(dm_op(cx, 77, 0), Err(Errno::ESRCH));
        assert_eq!(xenoprof_op(cx, 5), Err(Errno::EPERM));
        assert_eq!(xenoprof_op(cx, 17), Err(Errno::EINVAL));
    }
}
