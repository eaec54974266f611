//! Whether this machine's KVM has what this program needs.

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{
    KVM_CAP_BINARY_STATS_FD, KVM_CAP_HYPERV_ENFORCE_CPUID, KVM_CAP_SYS_HYPERV_CPUID,
};
use kvm_ioctls::{Cap, Kvm};
use std::os::raw::c_ulong;

/// What KVM must have, by name.
const REQUIRED: [(&str, Cap); 8] = [
    ("KVM_CAP_HYPERV", Cap::Hyperv),
    ("KVM_CAP_HYPERV_SYNIC2", Cap::HypervSynic2),
    ("KVM_CAP_HYPERV_TIME", Cap::HypervTime),
    ("KVM_CAP_SPLIT_IRQCHIP", Cap::SplitIrqchip),
    ("KVM_CAP_USER_MEMORY", Cap::UserMemory),
    ("KVM_CAP_EXT_CPUID", Cap::ExtCpuid),
    ("KVM_CAP_X86_USER_SPACE_MSR", Cap::X86UserSpaceMsr),
    ("KVM_CAP_X86_MSR_FILTER", Cap::X86MsrFilter),
];

/// The same for capabilities kvm-ioctls has no name for.
const REQUIRED_RAW: [(&str, u32); 2] = [
    ("KVM_CAP_SYS_HYPERV_CPUID", KVM_CAP_SYS_HYPERV_CPUID),
    ("KVM_CAP_HYPERV_ENFORCE_CPUID", KVM_CAP_HYPERV_ENFORCE_CPUID),
];

/// Opens KVM and checks its capabilities.
///
/// # Errors
/// One line that says what is missing.
pub fn open() -> Result<Kvm> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    ensure!(kvm.get_api_version() == 12, "/dev/kvm has an unknown API version");
    for (name, cap) in REQUIRED {
        if !kvm.check_extension(cap) {
            bail!("/dev/kvm lacks {name}");
        }
    }
    for (name, cap) in REQUIRED_RAW {
        if kvm.check_extension_raw(c_ulong::from(cap)) <= 0 {
            bail!("/dev/kvm lacks {name}");
        }
    }
    Ok(kvm)
}

/// Whether KVM keeps statistics this program can read.
#[must_use]
pub fn has_statistics(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(c_ulong::from(KVM_CAP_BINARY_STATS_FD)) > 0
}
