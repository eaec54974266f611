//! TAP interfaces of this machine (`linux/Documentation/networking/tuntap.rst`).
//!
//! The kernel gives and takes virtio-net headers, so that what the guest leaves to be done
//! is left to the kernel, which mostly leaves it to nobody.
#![allow(unsafe_code, reason = "the ioctls of /dev/net/tun")]

use crate::net::checksum::Takes;
use crate::net::frame::{FRAME_BYTES_MAX, Frame};
use crate::net::vnet::{self, VNET_BYTES};
use crate::net::wait::{For, Stop, Wake};
use crate::net::{Backend, Sent};
use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};

/// A TAP.
#[derive(Debug)]
pub struct Tap {
    file: File,
    offload: bool,
    stop: Stop,
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Tap {
    /// Attaches to an interface, or makes one. Without `offload` frames go to the kernel as
    /// they are on the wire.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn open(ifname: &str, offload: bool) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .context("/dev/net/tun")?;
        // SAFETY: all of it is numbers and arrays of them.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if ifname.is_empty() || ifname.len() >= libc::IFNAMSIZ {
            bail!("ifname={ifname}: names have 1 to {} bytes", libc::IFNAMSIZ - 1);
        }
        for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the request is a whole `ifreq`, which the call only reads and writes.
        let made =
            check(unsafe { ioctl_with_ref(&file, libc::TUNSETIFF as libc::c_ulong, &request) });
        made.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => {
                anyhow::anyhow!("no permission to use it (root, or `ip tuntap … user`)")
            }
            Some(libc::EBUSY) => anyhow::anyhow!("in use"),
            Some(libc::EINVAL) => {
                anyhow::anyhow!("there is another sort of interface of that name")
            }
            _ => error.into(),
        })
        .with_context(|| format!("TAP {ifname}"))?;
        let size = VNET_BYTES as libc::c_int;
        let little = 1 as libc::c_int;
        // SAFETY: it is given a whole int.
        check(unsafe { ioctl_with_ref(&file, libc::TUNSETVNETHDRSZ as libc::c_ulong, &size) })
            .context("TUNSETVNETHDRSZ")?;
        // SAFETY: it is given a whole int.
        check(unsafe { ioctl_with_ref(&file, libc::TUNSETVNETLE as libc::c_ulong, &little) })
            .context("TUNSETVNETLE")?;
        let take = if offload {
            libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN
        } else {
            0
        };
        // SAFETY: it takes a number.
        check(unsafe { ioctl_with_val(&file, libc::TUNSETOFFLOAD as libc::c_ulong, take.into()) })
            .context("TUNSETOFFLOAD")?;
        Ok(Self { file, offload, stop: Stop::new()? })
    }
}

impl Backend for Tap {
    fn takes(&self) -> Takes {
        if self.offload { Takes::ALL } else { Takes::NOTHING }
    }

    fn send(&self, frame: &Frame) -> io::Result<Sent> {
        let mut bytes = Vec::with_capacity(VNET_BYTES + frame.bytes.len());
        bytes.extend(vnet::encode(frame));
        bytes.extend_from_slice(&frame.bytes);
        loop {
            // A TAP takes a frame whole or not at all.
            match rustix::io::write(&self.file, &bytes).map_err(io::Error::from) {
                Ok(_) => return Ok(Sent::Yes),
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::Interrupted, _) => {}
                    (io::ErrorKind::WouldBlock, _) => {
                        let limit = Some(Duration::from_millis(100));
                        if self.stop.wait(self.file.as_fd(), For::Writing, limit)? != Wake::Ready {
                            return Ok(Sent::Dropped);
                        }
                    }
                    // Deleted.
                    (_, Some(libc::EBADFD | libc::ENODEV)) => return Err(error),
                    // It is down, or the frame is none of a kind the kernel takes.
                    _ => return Ok(Sent::Dropped),
                },
            }
        }
    }

    fn receive(&self, frame: &mut Frame) -> io::Result<bool> {
        let mut bytes = std::mem::take(&mut frame.bytes);
        loop {
            bytes.resize(VNET_BYTES + FRAME_BYTES_MAX, 0);
            match (&self.file).read(&mut bytes) {
                Ok(count) => {
                    bytes.truncate(count);
                    let Some((header, data)) = bytes.split_first_chunk::<VNET_BYTES>() else {
                        continue;
                    };
                    let Some(offload) = vnet::decode(header, data) else { continue };
                    *frame = Frame { offload, bytes: data.to_vec() };
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stop.wait(self.file.as_fd(), For::Reading, None)? == Wake::Stopped {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It is down; the kernel says so again and again.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    let limit = Some(Duration::from_millis(100));
                    let wake = self.stop.wait(self.file.as_fd(), For::Reading, limit)?;
                    if wake == Wake::Stopped {
                        return Ok(false);
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn stop(&self) {
        self.stop.stop();
    }
}
