//! User-mode networking: libslirp, in a QEMU process that emulates no machine.
//!
//! ```text
//! Stream ── socket ── QEMU: hub ── libslirp ── sockets of this machine
//! ```
//! It needs no privileges. The guest is 10.0.2.15 and fec0::/64, this machine and its
//! networks are behind 10.0.2.2, which gives addresses by DHCP; 10.0.2.3 is a name server.

use crate::net::options::Forward;
use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

const QEMU: &str = "qemu-system-x86_64";

/// A network stack; gone with this.
#[derive(Debug)]
pub struct Slirp(Child);

impl Slirp {
    /// Starts one on an end of a socket with frames on it ([`crate::net::stream`], without
    /// headers); returns when it is ready.
    ///
    /// # Errors
    /// One line that says why not, such as a port in use.
    pub fn start(socket: OwnedFd, forwards: &[Forward]) -> Result<Self> {
        // What a child inherits is what is not closed on exec; ours is closed on return.
        fcntl_setfd(&socket, FdFlags::empty())?;
        // It ends with the thread that starts it, even if that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU]).args(arguments(socket.as_raw_fd(), forwards));
        if rustix::process::geteuid().is_root() {
            command.args(["-runas", "nobody"]);
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!("setpriv is missing (package util-linux)"),
            _ => error.into(),
        });
        let mut me = Self(child.context("user network")?);
        // It greets once all is set up.
        let mut greeting = String::new();
        if let Some(stdout) = me.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut greeting)?;
        }
        // What it says later is lost, and cannot hold it up.
        let stderr = me.0.stderr.take();
        if !greeting.contains("QMP") {
            let mut errors = String::new();
            if let Some(mut stderr) = stderr {
                stderr.read_to_string(&mut errors)?;
            }
            bail!("user network: {}", complaint(&errors));
        }
        Ok(me)
    }
}

impl Drop for Slirp {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn arguments(socket: i32, forwards: &[Forward]) -> Vec<String> {
    let forwards: String = forwards.iter().map(|f| format!(",hostfwd={f}")).collect();
    let words = [
        "-machine none -nodefaults -no-user-config -display none -qmp stdio",
        &format!("-netdev user,id=user{forwards}"),
        "-netdev hubport,id=one,hubid=0,netdev=user",
        &format!("-netdev socket,id=wire,fd={socket}"),
        "-netdev hubport,id=other,hubid=0,netdev=wire",
    ];
    words.join(" ").split(' ').map(str::to_owned).collect()
}

/// The last thing it said, without who said it.
fn complaint(text: &str) -> String {
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    let line = line.unwrap_or("QEMU gives no reason").trim();
    let line = line.strip_prefix(QEMU).map_or(line, |rest| rest.trim_start_matches([':', ' ']));
    match line.rsplit_once(": ") {
        Some((option, reason)) if option.starts_with('-') => reason.to_owned(),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_qemu_has_them() {
        let forwards = ["tcp:2222-:22", "udp:127.0.0.1:53-:5353"].map(|f| f.parse().unwrap());
        let arguments = arguments(7, &forwards);
        let user = "user,id=user,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-:5353";
        assert!(arguments.contains(&user.to_owned()), "{arguments:?}");
        assert!(arguments.contains(&"socket,id=wire,fd=7".to_owned()));
    }

    #[test]
    fn complaints_are_one_line() {
        let text = "qemu-system-x86_64: -netdev user,id=user,hostfwd=tcp:127.0.0.1:22-:22: \
                    Could not set up host forwarding rule 'tcp:127.0.0.1:22-:22'\n\n";
        assert_eq!(complaint(text), "Could not set up host forwarding rule 'tcp:127.0.0.1:22-:22'");
        assert_eq!(complaint("setpriv: failed to execute x"), "setpriv: failed to execute x");
        assert_eq!(complaint(""), "QEMU gives no reason");
    }
}
