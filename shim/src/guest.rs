//! The one domain.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use translate::domain::Domain;
use xen_abi::MachineAddr;
use xen_abi::shared_info::SharedInfo;

struct Slot(UnsafeCell<MaybeUninit<Domain>>);
// SAFETY: written once at boot, before any guest runs; shared references only afterwards, and
// `Domain` is `Sync`.
unsafe impl Sync for Slot {}

static DOMAIN: Slot = Slot(UnsafeCell::new(MaybeUninit::uninit()));

/// The domain.
///
/// Only reached from the guest's entry paths, which exist after [`init`].
#[inline(always)]
pub fn domain() -> &'static Domain {
    // SAFETY: after `init` there are only shared references to the slot.
    let slot = unsafe { &*DOMAIN.0.get() };
    // SAFETY: `init` ran before the guest was started.
    unsafe { slot.assume_init_ref() }
}

/// Makes the domain in its place.
///
/// # Safety
/// Called once, before [`domain`].
pub unsafe fn init(
    shared_info: &'static SharedInfo,
    shared_info_at: MachineAddr,
    nr_pages: u64,
    nr_vcpus: u32,
    uuid: [u8; 16],
) -> &'static Domain {
    // SAFETY: nothing refers to the slot yet.
    let slot = unsafe { &mut *DOMAIN.0.get() };
    let domain = slot.write(Domain::new(shared_info, shared_info_at, nr_pages, nr_vcpus));
    domain.identity.uuid = uuid;
    domain
}
