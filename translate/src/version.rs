//! xen_version: who the guest runs on (`xen/common/kernel.c`, `xsm/dummy.h` for what a domU may
//! know).
//!
//! The answer is Xen 4.17, whose behaviour this follows, with "pontoon" in the extra version:
//! a guest sees "4.17.pontoon". The command line and the build id are the hypervisor's secrets:
//! a domU gets `<denied>` and `EPERM`.

use core::sync::atomic::Ordering;

use xen_abi::features::xenfeat;
use xen_abi::hypercall::VMASST_TYPE_PAE_EXTENDED_CR3;
use xen_abi::mm::HYPERVISOR_VIRT_START;
use xen_abi::version::{
    CAPABILITIES_INFO_LEN, CHANGESET_INFO_LEN, EXTRAVERSION_LEN, XenCompileInfo, XenFeatureInfo,
    XenPlatformParameters, XenVer,
};
use xen_abi::{Errno, GuestVa, PAGE_SIZE};

use crate::Ctx;
use crate::outcome::{HcResult, efault, ret};
use crate::platform::Platform;

/// What `XENVER_version` says: 4.17.
pub const VERSION: i64 = 4 << 16 | 17;
/// What a domU gets for a secret (`xen_deny`).
const DENIED: &[u8] = b"<denied>\0";

/// What xen_version tells.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// `XENVER_extraversion`, at most 15 bytes.
    pub extraversion: &'static str,
    /// `XENVER_capabilities`.
    pub capabilities: &'static str,
    /// `XENVER_changeset`.
    pub changeset: &'static str,
    /// `XENVER_compile_info`.
    pub compiler: &'static str,
    /// As above.
    pub compile_by: &'static str,
    /// As above.
    pub compile_domain: &'static str,
    /// As above.
    pub compile_date: &'static str,
    /// `XENVER_guest_handle`: the domain's UUID.
    pub uuid: [u8; 16],
}

impl Default for Identity {
    fn default() -> Self {
        Self::new()
    }
}

impl Identity {
    /// The identity of this build, without a UUID.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            extraversion: ".pontoon",
            capabilities: "xen-3.0-x86_64 ",
            changeset: concat!("pontoon-", env!("CARGO_PKG_VERSION")),
            compiler: "rustc",
            compile_by: "pontoon",
            compile_domain: "",
            compile_date: "",
            uuid: [0; 16],
        }
    }
}

/// A string in a field of `N` bytes, zero-padded and always terminated.
fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let room = field.iter_mut().take(N.saturating_sub(1));
    room.zip(text.bytes()).for_each(|(to, byte)| *to = byte);
    field
}

/// `xen_version(cmd, arg)`.
///
/// # Errors
/// Xen's.
pub fn xen_version<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, arg: u64) -> HcResult {
    let at = GuestVa(arg);
    let plat = cx.plat;
    let identity = &cx.dom.identity;
    match XenVer(cmd as u32) {
        // Also how Linux asks for its pending events: any hypercall will do.
        XenVer::VERSION => return ret(VERSION),
        XenVer::EXTRAVERSION => {
            plat.copy_to_guest(at, &field::<EXTRAVERSION_LEN>(identity.extraversion))
        }
        XenVer::COMPILE_INFO => plat.write_guest(
            at,
            &XenCompileInfo {
                compiler: field(identity.compiler),
                compile_by: field(identity.compile_by),
                compile_domain: field(identity.compile_domain),
                compile_date: field(identity.compile_date),
            },
        ),
        XenVer::CAPABILITIES => {
            plat.copy_to_guest(at, &field::<CAPABILITIES_INFO_LEN>(identity.capabilities))
        }
        XenVer::CHANGESET => {
            plat.copy_to_guest(at, &field::<CHANGESET_INFO_LEN>(identity.changeset))
        }
        XenVer::PLATFORM_PARAMETERS => {
            plat.write_guest(at, &XenPlatformParameters { virt_start: HYPERVISOR_VIRT_START })
        }
        XenVer::GET_FEATURES => {
            let mut info: XenFeatureInfo = plat.read_guest(at).map_err(efault)?;
            if info.submap_idx != 0 {
                return Err(Errno::EINVAL);
            }
            info.submap = features(cx.dom.vm_assist.load(Ordering::Relaxed));
            plat.write_guest(at, &info)
        }
        XenVer::PAGESIZE => {
            return if arg == 0 { ret(PAGE_SIZE as i64) } else { Err(Errno::EINVAL) };
        }
        XenVer::GUEST_HANDLE => plat.copy_to_guest(at, &identity.uuid),
        XenVer::COMMANDLINE => plat.copy_to_guest(at, DENIED),
        XenVer::BUILD_ID => return Err(Errno::EPERM),
        _ => return Err(Errno::ENOSYS),
    }
    .map_err(efault)?;
    ret(0)
}

/// Submap 0 of a PV domU with these VM assists.
fn features(vm_assist: u64) -> u32 {
    let mut submap = 1 << xenfeat::MEMORY_OP_VNODE_SUPPORTED
        | 1 << xenfeat::MMU_PT_UPDATE_PRESERVE_AD
        | 1 << xenfeat::HIGHMEM_ASSIST
        | 1 << xenfeat::GNTTAB_MAP_AVAIL_BITS
        | 1 << xenfeat::DIRECT_MAPPED;
    if vm_assist & 1 << VMASST_TYPE_PAE_EXTENDED_CR3 != 0 {
        submap |= 1 << xenfeat::PAE_PGDIR_ABOVE_4GB;
    }
    submap
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;

    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;
    use crate::fake::{Machine, va};
    use crate::outcome::Outcome;

    fn bytes(machine: &Machine, pfn: u64, len: usize) -> Vec<u8> {
        use crate::platform::GuestMemory;
        let mut bytes = std::vec![0; len];
        machine.plat.copy_from_guest(&mut bytes, va(pfn)).expect("mapped");
        bytes
    }

    #[test]
    fn strings() {
        let mut m = Machine::new();
        assert_eq!(xen_version(&mut m.cx(), 0, 0), ret(0x4_0011));
        // Garbage behind the strings shows that the fields are written whole.
        m.plat.poke(GuestVa(va(3).0 + 8), u64::MAX);
        assert_eq!(xen_version(&mut m.cx(), 1, va(3).0), ret(0));
        assert_eq!(bytes(&m, 3, 16), b".pontoon\0\0\0\0\0\0\0\0");
        assert_eq!(xen_version(&mut m.cx(), 3, va(3).0), ret(0));
        assert_eq!(bytes(&m, 3, 16), b"xen-3.0-x86_64 \0");
        assert_eq!(xen_version(&mut m.cx(), 9, va(3).0), ret(0));
        assert_eq!(bytes(&m, 3, 9), b"<denied>\0");
        assert_eq!(xen_version(&mut m.cx(), 10, va(3).0), Err(Errno::EPERM));
        assert_eq!(xen_version(&mut m.cx(), 7, 0), ret(4096));
        assert_eq!(xen_version(&mut m.cx(), 7, 1), Err(Errno::EINVAL));
        assert_eq!(xen_version(&mut m.cx(), 11, 0), Err(Errno::ENOSYS));
        assert_eq!(xen_version(&mut m.cx(), 1, 0), Err(Errno::EFAULT));
    }

    #[test]
    fn feature_map() {
        let mut m = Machine::new();
        m.plat.poke(va(3), 0);
        assert_eq!(xen_version(&mut m.cx(), 6, va(3).0), ret(0));
        assert_eq!(m.plat.peek(va(3)) >> 32, 0x220e0);
        m.dom.vm_assist.store(1 << 3, Ordering::Relaxed);
        assert_eq!(xen_version(&mut m.cx(), 6, va(3).0), ret(0));
        assert_eq!(m.plat.peek(va(3)) >> 32, 0x220f0);
        m.plat.poke(va(3), 1);
        assert_eq!(xen_version(&mut m.cx(), 6, va(3).0), Err(Errno::EINVAL));
    }

    #[test]
    fn long_strings_are_cut() {
        assert_eq!(field::<4>("abcdef"), *b"abc\0");
        assert_eq!(field::<0>("a"), [0; 0]);
    }

    proptest! {
        #[test]
        fn never_panics(cmd in 0u64..16, arg: u64) {
            let mut m = Machine::new();
            let r = xen_version(&mut m.cx(), cmd, arg);
            prop_assert!(!matches!(r, Ok(Outcome::Continue | Outcome::Block | Outcome::Replaced)));
        }
    }
}
