//! passt: a user-mode network stack in a process of its own, with Debian's package.
//!
//! It needs no privileges, speaks IPv4 and IPv6, and shows the guest this machine's own
//! addresses by DHCP, DHCPv6 and NDP. It ends when its socket's other end is closed.

use crate::net::options::{Forward, Protocol};
use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

/// Starts passt on one end of a socket; returns when it is ready, and it stays in the
/// background.
///
/// # Errors
/// One line that says why not, such as a port in use.
pub fn start(socket: OwnedFd, forwards: &[Forward], mtu: u16) -> Result<()> {
    // What a child inherits is what is not closed on exec; ours is closed when it is passed on.
    fcntl_setfd(&socket, FdFlags::empty())?;
    let mut command = Command::new("passt");
    command.args(["--quiet", "--stderr", "--one-off"]);
    command.args(["--fd", &socket.as_raw_fd().to_string()]);
    command.args(["--mtu", &mtu.to_string()]);
    for (option, protocol) in [("--tcp-ports", Protocol::Tcp), ("--udp-ports", Protocol::Udp)] {
        for forward in forwards.iter().filter(|f| f.protocol == protocol) {
            command.args([option, &specification(forward)]);
        }
    }
    let out = command.stdin(Stdio::null()).output().map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            anyhow::anyhow!("passt is missing (package passt)")
        } else {
            error.into()
        }
    });
    let out = out.context("user network")?;
    if !out.status.success() {
        bail!("user network: {}", complaint(&String::from_utf8_lossy(&out.stderr)));
    }
    Ok(())
}

/// A forwarded port as passt's options name it: `[ADDRESS/]PORT:PORT`.
fn specification(forward: &Forward) -> String {
    let address = forward.address.map(|a| format!("{a}/")).unwrap_or_default();
    format!("{address}{}:{}", forward.host_port, forward.guest_port)
}

/// The last thing it said that is about the network.
fn complaint(text: &str) -> String {
    let about = |line: &&str| {
        let line = line.trim();
        !line.is_empty() && !line.contains("syslog") && !line.starts_with("Don't run as root")
    };
    text.lines().rfind(about).unwrap_or("passt gives no reason").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_passt_has_them() {
        let forward: Forward = "tcp:2222-:22".parse().unwrap();
        assert_eq!(specification(&forward), "2222:22");
        let forward: Forward = "udp:127.0.0.1:53-:5353".parse().unwrap();
        assert_eq!(specification(&forward), "127.0.0.1/53:5353");
    }

    #[test]
    fn complaints_are_one_line() {
        let text = "Don't run as root. Changing to nobody...\nFailed to bind port 22, exiting\n\
                    Failed to send 31 bytes to syslog\n\n";
        assert_eq!(complaint(text), "Failed to bind port 22, exiting");
        assert_eq!(complaint(""), "passt gives no reason");
    }
}
