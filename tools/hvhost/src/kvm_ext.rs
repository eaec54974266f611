//! KVM requests `kvm-ioctls` has no wrapper for: the Hyper-V CPUID leaves, TSC offsets,
//! and KVM's own statistics.
#![allow(unsafe_code, reason = "raw ioctls on file descriptors of KVM's")]

use anyhow::{Context, Result, bail};
use kvm_bindings::{
    CpuId, KVM_CAP_SYS_HYPERV_CPUID, KVM_HYPERV_EVENTFD_DEASSIGN, KVM_VCPU_TSC_CTRL,
    KVM_VCPU_TSC_OFFSET, KVMIO, kvm_cpuid_entry2, kvm_cpuid2, kvm_device_attr, kvm_hyperv_eventfd,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_ref};

use request::{
    KVM_GET_DEVICE_ATTR, KVM_GET_STATS_FD, KVM_GET_SUPPORTED_HV_CPUID, KVM_HYPERV_EVENTFD,
    KVM_SET_DEVICE_ATTR,
};

/// Request numbers.
mod request {
    #![allow(missing_docs, reason = "the macros make public functions")]
    use super::{KVMIO, kvm_cpuid2, kvm_device_attr, kvm_hyperv_eventfd};
    use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr};

    ioctl_iowr_nr!(KVM_GET_SUPPORTED_HV_CPUID, KVMIO, 0xc1, kvm_cpuid2);
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
    ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
    ioctl_iow_nr!(KVM_HYPERV_EVENTFD, KVMIO, 0xbd, kvm_hyperv_eventfd);
}

/// Room for the leaves KVM returns; it knows about a dozen.
const HV_CPUID_ENTRIES: usize = 64;

/// The Hyper-V leaves KVM supports.
///
/// # Errors
/// KVM is too old or has no Hyper-V support.
pub fn supported_hv_cpuid(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>> {
    if kvm.check_extension_raw(KVM_CAP_SYS_HYPERV_CPUID.into()) <= 0 {
        bail!("this KVM does not tell its Hyper-V features (KVM_CAP_SYS_HYPERV_CPUID)");
    }
    let mut leaves = CpuId::new(HV_CPUID_ENTRIES).context("no room for the Hyper-V leaves")?;
    // SAFETY: the descriptor is /dev/kvm, and the argument a kvm_cpuid2 whose
    // `nent` says how many entries it has room for.
    let ret = unsafe {
        ioctl_with_mut_ptr(kvm, KVM_GET_SUPPORTED_HV_CPUID(), leaves.as_mut_fam_struct_ptr())
    };
    if ret != 0 {
        return Err(io::Error::last_os_error()).context("KVM_GET_SUPPORTED_HV_CPUID");
    }
    Ok(leaves.as_slice().to_vec())
}

/// Has KVM itself write `event` when the guest signals `connection`, or no longer.
/// `false`: KVM does not, and the signals come as exits.
pub fn hyperv_eventfd(vm: &VmFd, connection: u32, event: &EventFd, assign: bool) -> bool {
    let request = kvm_hyperv_eventfd {
        conn_id: connection,
        fd: event.as_raw_fd(),
        flags: if assign { 0 } else { KVM_HYPERV_EVENTFD_DEASSIGN },
        ..Default::default()
    };
    // SAFETY: the descriptor is a VM's, and the argument the structure the request
    // reads.
    unsafe { ioctl_with_ref(vm, KVM_HYPERV_EVENTFD(), &request) == 0 }
}

fn tsc_offset_attribute(value: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: ptr::from_mut(value) as u64,
    }
}

/// What a virtual processor's TSC is ahead of the host's.
///
/// # Errors
/// KVM is older than Linux 5.16.
pub fn tsc_offset(vcpu: &VcpuFd) -> Result<u64> {
    let mut value = 0;
    let attribute = tsc_offset_attribute(&mut value);
    // SAFETY: the descriptor is a virtual processor's; KVM writes 8 bytes to `value`, which lives.
    if unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) } != 0 {
        return Err(io::Error::last_os_error()).context("KVM_VCPU_TSC_OFFSET");
    }
    Ok(value)
}

/// Sets [`tsc_offset`].
///
/// # Errors
/// As there.
pub fn set_tsc_offset(vcpu: &VcpuFd, mut value: u64) -> Result<()> {
    let attribute = tsc_offset_attribute(&mut value);
    // SAFETY: the descriptor is a virtual processor's; KVM reads 8 bytes of `value`, which lives.
    if unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) } != 0 {
        return Err(io::Error::last_os_error()).context("KVM_VCPU_TSC_OFFSET");
    }
    Ok(())
}

/// The statistics file of a VM or virtual processor; `None` where KVM has none.
pub fn stats_file(fd: &impl AsRawFd) -> Option<KvmStats> {
    // SAFETY: the descriptor is a VM's or virtual processor's; the request has no
    // argument and returns a new descriptor or an error.
    let raw = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
    if raw < 0 {
        return None;
    }
    // SAFETY: KVM has just made this descriptor for us; nobody else owns it.
    let file = unsafe { File::from_raw_fd(raw) };
    KvmStats::new(file).ok()
}

/// Statistics KVM keeps about a VM or a virtual processor, read from a file in
/// KVM's self-describing binary format. Reading does not disturb the processor.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// Name, offset in the file, number of values.
    fields: Vec<(String, u64, usize)>,
}

/// Bytes of a descriptor before its name.
const DESC_FIXED: usize = 16;

impl KvmStats {
    fn new(file: File) -> io::Result<Self> {
        let mut header = [0u8; 24];
        file.read_exact_at(&mut header, 0)?;
        let word = |n: usize| u32_at(&header, n * 4);
        let (name_size, count) = (word(1) as usize, word(2) as usize);
        let (desc_offset, data_offset) = (word(4), word(5));
        // KVM has some sixty short names; anything else is not its format.
        if name_size > 4096 || count > 65536 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let size = DESC_FIXED + name_size;
        let mut bytes = vec![0u8; size * count];
        file.read_exact_at(&mut bytes, desc_offset.into())?;
        let fields = bytes
            .chunks_exact(size)
            .map(|desc| {
                let (fixed, name) = desc.split_at(DESC_FIXED);
                let name = name.split(|b| *b == 0).next().unwrap_or_default();
                let values = u32_at(fixed, 4) >> 16;
                let offset = u64::from(data_offset) + u64::from(u32_at(fixed, 8));
                (String::from_utf8_lossy(name).into_owned(), offset, values as usize)
            })
            .collect();
        Ok(Self { file, fields })
    }

    /// All single-valued statistics by name; histograms are left out.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, u64> {
        let mut values = BTreeMap::new();
        for (name, offset, count) in &self.fields {
            let mut bytes = [0u8; 8];
            if *count == 1 && self.file.read_exact_at(&mut bytes, *offset).is_ok() {
                values.insert(name.clone(), u64::from_le_bytes(bytes));
            }
        }
        values
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let word = bytes.get(offset..offset + 4).and_then(|b| b.try_into().ok());
    u32::from_le_bytes(word.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn statistics_format() {
        let mut file = tempfile::tempfile().unwrap();
        let mut bytes = Vec::new();
        for word in [0u32, 16, 2, 24, 40, 104] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.resize(40, 0);
        for (size, offset, name) in [(1u32, 8u32, "exits"), (4, 16, "histogram")] {
            bytes.extend(0u32.to_le_bytes());
            bytes.extend((size << 16).to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes.extend(0u32.to_le_bytes());
            let mut name = name.as_bytes().to_vec();
            name.resize(16, 0);
            bytes.extend(name);
        }
        assert_eq!(bytes.len(), 104);
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(4711u64.to_le_bytes());
        file.write_all(&bytes).unwrap();
        let stats = KvmStats::new(file).unwrap().read();
        assert_eq!(stats.into_iter().collect::<Vec<_>>(), [("exits".to_string(), 4711)]);
    }
}
