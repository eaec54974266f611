//! What a toolstack writes: the domain's own nodes, and devices.

use xen_abi::Errno;

use super::Store;

/// What the domain's nodes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainConfig<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its UUID.
    pub uuid: [u8; 16],
    /// `memory/static-max`, KiB.
    pub max_kib: u64,
    /// `memory/target`, KiB.
    pub target_kib: u64,
    /// Its vCPUs, all of them available.
    pub nr_vcpus: u32,
    /// The console's page and port.
    pub console: (u64, u32),
    /// The store's page and port.
    pub store: (u64, u32),
}

/// A device, as [`Store::add_device`] writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device<'a> {
    /// `vbd`, `vif`, ...
    pub kind: &'a str,
    /// Its number: for a vbd 51712 + 16 n, for a vif 0, 1, ...
    pub id: u32,
    /// Further nodes of the frontend's directory, beside `backend`, `backend-id` and `state`.
    pub front: &'a [(&'a str, &'a [u8])],
    /// Further nodes of the backend's directory, beside `frontend`, `frontend-id`, `online` and
    /// `state`.
    pub back: &'a [(&'a str, &'a [u8])],
}

impl Store {
    /// Makes the standard nodes of a PV domain (id 1), as Xen's toolstack does.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn add_domain(&mut self, config: &DomainConfig<'_>) -> Result<(), Errno> {
        let _ = config;
        Err(Errno::ENOSYS)
    }

    /// Makes a device: both directories with the toolstack's permissions (frontend `n1 r0`,
    /// backend `n0 r1`), both in state 1. What was there is removed.
    ///
    /// # Errors
    /// `EINVAL` for bad names, `ENOMEM`; nothing is left then.
    pub fn add_device(&mut self, device: &Device<'_>) -> Result<(), Errno> {
        let _ = device;
        Err(Errno::ENOSYS)
    }

    /// Removes both directories of a device.
    ///
    /// # Errors
    /// `EINVAL` for a bad kind.
    pub fn remove_device(&mut self, kind: &str, id: u32) -> Result<(), Errno> {
        let _ = (kind, id);
        Err(Errno::ENOSYS)
    }
}
