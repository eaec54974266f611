//! What a toolstack writes: the domain's own nodes, and devices.
//!
//! Nodes, values and permissions are libxl's (`libxl_create.c`, `libxl_dom.c`, `libxl_device.c`,
//! `libxl_console.c`), for a domain whose toolstack and backends are all in domain 0.

use core::fmt::Write;

use arrayvec::ArrayString;
use xen_abi::Errno;
use xen_abi::io::xenbus::XenbusState;

use super::node::{DOM0, GUEST};
use super::store::Store;

/// Bytes of the paths made here.
const PATH: usize = 192;
/// `LIBXL_XENCONSOLE_LIMIT`.
const CONSOLE_LIMIT: u32 = 1_048_576;
/// Nodes the guest may only read.
const READ_ONLY: &[&[u8]] = &[b"n0", b"r1"];
/// Nodes of the guest that the backend may read.
const FRONTEND: &[&[u8]] = &[b"n1", b"r0"];
/// Nodes of the guest alone.
const OWN: &[&[u8]] = &[b"n1"];
/// Directories, then nodes the guest owns, as `libxl__domain_make` makes them.
const DIRECTORIES: &[&str] = &["cpu", "memory", "device", "control"];
const OWN_NODES: &[&str] = &[
    "device/suspend/event-channel",
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
];

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
    /// Machine frame of the console's ring, and its port.
    pub console: (u64, u32),
    /// Machine frame of the store's ring, and its port.
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

/// A path or a value that is put together.
type Line = ArrayString<PATH>;

macro_rules! line {
    ($($arg:tt)*) => {{
        let mut line = Line::new();
        write!(line, $($arg)*).map(|()| line).map_err(|_| Errno::EINVAL)
    }};
}

/// The frontend's and the backend's directories of a device, and the toolstack's own.
///
/// # Errors
/// `EINVAL` for a kind no path can have.
fn directories(kind: &str, id: u32) -> Result<[Line; 3], Errno> {
    if kind.is_empty() || !kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(Errno::EINVAL);
    }
    Ok([
        line!("/local/domain/{GUEST}/device/{kind}/{id}")?,
        line!("/local/domain/{DOM0}/backend/{kind}/{GUEST}/{id}")?,
        line!("/libxl/{GUEST}/device/{kind}/{id}")?,
    ])
}

impl Store {
    /// Makes a node with permissions (`libxl__xs_mknod`).
    fn make(&mut self, path: &str, perms: &[&[u8]]) -> Result<(), Errno> {
        self.write(path.as_bytes(), b"")?;
        self.set_perms(path.as_bytes(), perms)
    }

    fn put(&mut self, dir: &str, node: &str, value: &[u8]) -> Result<(), Errno> {
        self.write(line!("{dir}/{node}")?.as_bytes(), value)
    }

    /// Removes what may be there.
    fn clear(&mut self, path: &str) -> Result<(), Errno> {
        match self.rm(path.as_bytes()) {
            Err(Errno::ENOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes the standard nodes of a PV domain (id 1), as Xen's toolstack does.
    ///
    /// # Errors
    /// `ENOMEM`, `E2BIG` for a name longer than a message.
    pub fn add_domain(&mut self, config: &DomainConfig<'_>) -> Result<(), Errno> {
        let uuid = u128::from_be_bytes(config.uuid);
        let part = |shift: u32, digits: u32| (uuid >> shift) & ((1u128 << (digits * 4)) - 1);
        let uuid = line!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            part(96, 8),
            part(80, 4),
            part(64, 4),
            part(48, 4),
            part(0, 12)
        )?;
        let (dom, vm) = (line!("/local/domain/{GUEST}")?, line!("/vm/{uuid}")?);
        for dir in [&dom, &vm] {
            self.clear(dir)?;
            self.make(dir, READ_ONLY)?;
        }
        self.clear(&line!("/libxl/{GUEST}")?)?;
        self.write(line!("/libxl/{GUEST}/device")?.as_bytes(), b"")?;
        self.put(&line!("/libxl/{GUEST}")?, "type", b"pv")?;
        self.put(&dom, "vm", vm.as_bytes())?;
        self.put(&dom, "name", config.name)?;
        for dir in DIRECTORIES {
            self.make(&line!("{dom}/{dir}")?, READ_ONLY)?;
        }
        for node in OWN_NODES {
            self.make(&line!("{dom}/{node}")?, OWN)?;
        }
        self.put(&vm, "uuid", uuid.as_bytes())?;
        self.put(&vm, "name", config.name)?;
        self.put(&vm, "image/ostype", b"linux")?;
        self.put(&dom, "control/platform-feature-multiprocessor-suspend", b"1")?;
        self.put(&dom, "control/platform-feature-xs_reset_watches", b"1")?;
        self.add_start_values(config, &dom)?;
        self.add_console(config, &dom)?;
        // Where backends of domain 0 put theirs.
        self.mkdir(line!("/local/domain/{DOM0}/backend")?.as_bytes())
    }

    /// What `libxl__build_post` writes.
    fn add_start_values(&mut self, config: &DomainConfig<'_>, dom: &str) -> Result<(), Errno> {
        self.put(dom, "memory/static-max", line!("{}", config.max_kib)?.as_bytes())?;
        self.put(dom, "memory/target", line!("{}", config.target_kib)?.as_bytes())?;
        self.put(dom, "memory/videoram", b"0")?;
        self.put(dom, "domid", line!("{GUEST}")?.as_bytes())?;
        let (frame, port) = config.store;
        self.put(dom, "store/port", line!("{port}")?.as_bytes())?;
        self.put(dom, "store/ring-ref", line!("{frame}")?.as_bytes())?;
        for vcpu in 0..config.nr_vcpus {
            self.put(dom, &line!("cpu/{vcpu}/availability")?, b"online")?;
        }
        Ok(())
    }

    /// Whether the toolstack wants a vCPU online (`libxl_set_vcpuonline`): the guest watches this, and
    /// takes its vCPU up or down itself.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn set_availability(&mut self, vcpu: u32, online: bool) -> Result<(), Errno> {
        let value: &[u8] = if online { b"online" } else { b"offline" };
        let dom = line!("/local/domain/{GUEST}")?;
        self.put(&dom, &line!("cpu/{vcpu}/availability")?, value)
    }

    /// The first console, whose directories are not those of other devices
    /// (`libxl__device_console_add`).
    fn add_console(&mut self, config: &DomainConfig<'_>, dom: &str) -> Result<(), Errno> {
        let front = line!("{dom}/console")?;
        let back = line!("/local/domain/{DOM0}/backend/console/{GUEST}/0")?;
        let (frame, port) = config.console;
        self.make(&front, READ_ONLY)?;
        self.put(&front, "backend", back.as_bytes())?;
        self.put(&front, "backend-id", line!("{DOM0}")?.as_bytes())?;
        self.set_perms(line!("{front}/backend-id")?.as_bytes(), FRONTEND)?;
        self.put(&front, "limit", line!("{CONSOLE_LIMIT}")?.as_bytes())?;
        self.put(&front, "type", b"xenconsoled")?;
        self.put(&front, "output", b"pty")?;
        self.put(&front, "tty", b"")?;
        self.put(&front, "port", line!("{port}")?.as_bytes())?;
        self.put(&front, "ring-ref", line!("{frame}")?.as_bytes())?;
        self.make(&back, READ_ONLY)?;
        self.put(&back, "frontend", front.as_bytes())?;
        self.put(&back, "frontend-id", line!("{GUEST}")?.as_bytes())?;
        self.put(&back, "online", b"1")?;
        self.put(&back, "state", XenbusState::INITIALISING.text())?;
        self.put(&back, "protocol", b"vt100")
    }

    /// Makes a device: both directories with the toolstack's permissions (frontend `n1 r0`,
    /// backend `n0 r1`), both in state 1. What was there is removed. As it is done under one
    /// lock, nobody sees half a device.
    ///
    /// # Errors
    /// `EINVAL` for bad names, `ENOMEM`; nothing is left then.
    pub fn add_device(&mut self, device: &Device<'_>) -> Result<(), Errno> {
        let dirs = directories(device.kind, device.id)?;
        let made = self.write_device(device, &dirs);
        if made.is_err() {
            // Removing takes no memory.
            let _ = dirs.iter().try_for_each(|dir| self.clear(dir));
        }
        made
    }

    fn write_device(&mut self, device: &Device<'_>, dirs: &[Line; 3]) -> Result<(), Errno> {
        let [front, back, tools] = dirs;
        dirs.iter().try_for_each(|dir| self.clear(dir))?;
        self.put(tools, "frontend", front.as_bytes())?;
        self.put(tools, "backend", back.as_bytes())?;
        // The backend first: the frontend's driver looks there as soon as it sees its own.
        self.make(back, READ_ONLY)?;
        self.put(back, "frontend", front.as_bytes())?;
        self.put(back, "frontend-id", line!("{GUEST}")?.as_bytes())?;
        self.put(back, "online", b"1")?;
        for (node, value) in device.back {
            self.put(back, node, value)?;
        }
        self.put(back, "state", XenbusState::INITIALISING.text())?;
        self.make(front, FRONTEND)?;
        self.put(front, "backend", back.as_bytes())?;
        self.put(front, "backend-id", line!("{DOM0}")?.as_bytes())?;
        for (node, value) in device.front {
            self.put(front, node, value)?;
        }
        self.put(front, "state", XenbusState::INITIALISING.text())
    }

    /// Removes both directories of a device.
    ///
    /// # Errors
    /// `EINVAL` for a bad kind.
    pub fn remove_device(&mut self, kind: &str, id: u32) -> Result<(), Errno> {
        let dirs = directories(kind, id)?;
        dirs.iter().try_for_each(|dir| self.clear(dir))
    }
}

#[cfg(test)]
#[path = "tests/device.rs"]
mod tests;
