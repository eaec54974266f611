//! Guests in plain QEMU, the processor emulated, without Hyper-V.
//!
//! Quick to start, debuggable through QEMU's gdb stub, and with `-icount`
//! deterministic in guest instructions. QEMU's own exit status does not tell a
//! power-off from a reset, so its events are listened to.

use crate::cleanup::Scratch;
use crate::host::{Input, Machine, run_child};
use crate::outcome::{Outcome, Status};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

/// What QEMU is to emulate.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// `-cpu`. QEMU executes IRET outside ring 0 with supervisor accesses, which
    /// SMAP would refuse; PV kernels do without SMAP and SMEP anyway.
    pub cpu: String,
    /// `-icount shift=0`: one instruction is one nanosecond of guest time.
    pub icount: bool,
    /// Wait for a debugger on this TCP port.
    pub gdb: Option<u16>,
    /// A disk to boot from, through firmware, instead of the machine's kernel.
    pub boot_disk: Option<BootDisk>,
    /// OVMF's variables to start with, for its build with Secure Boot.
    pub secure_boot: Option<PathBuf>,
    /// Whether there is COM1; without it there is no console but the screen.
    pub has_serial: bool,
    /// Further arguments.
    pub more: Vec<String>,
}

/// A disk and the firmware that boots from it.
#[derive(Clone, Debug)]
pub struct BootDisk {
    /// Raw image; what is written to it is dropped.
    pub image: PathBuf,
    /// Who boots it.
    pub firmware: Firmware,
}

/// Debian's builds of QEMU's firmwares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, on a PC of the nineties, as Hyper-V's Generation 1 has.
    Bios,
    /// OVMF.
    Uefi,
}

/// OVMF's code and the variables it starts with.
pub const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];
/// The code that has Secure Boot. Its variables are written in system management mode only.
const OVMF_SECURE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";

impl Default for Qemu {
    fn default() -> Self {
        Self {
            cpu: "max,-smap,-smep".into(),
            icount: false,
            gdb: None,
            boot_disk: None,
            secure_boot: None,
            has_serial: true,
            more: Vec::new(),
        }
    }
}

impl Qemu {
    /// Runs a guest to its end.
    pub fn run(
        &self,
        machine: &Machine,
        input: &Input,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome> {
        if !machine.without.is_empty() {
            bail!("--hv-without has no meaning in plain QEMU, which has no Hyper-V features");
        }
        if !machine.disks.is_empty() {
            bail!("--disk needs Hyper-V's storage, which plain QEMU has not: use kvm or nested");
        }
        if !machine.nets.is_empty() {
            bail!("--net needs Hyper-V's network, which plain QEMU has not: use kvm or nested");
        }
        crate::setup::for_running()?;
        let dir = Scratch::new()?;
        let events = Events::listen(&dir.path().join("qmp"))?;
        let log = dir.path().join("log");
        let mut command = self.command(&dir.path().join("qmp"), &log, machine);
        match &self.boot_disk {
            Some(disk) => disk.add_to(&mut command, self.secure_boot.as_deref(), dir.path())?,
            None => boot_kernel(&mut command, machine),
        }
        let mut outcome = run_child(command, machine, input, output)?;
        if outcome.status != Status::TIMED_OUT {
            let fault = std::fs::read_to_string(&log).is_ok_and(|log| log.contains("Triple fault"));
            outcome.status = match events.shutdown_reason().as_deref() {
                _ if fault => Status::TRIPLE_FAULT,
                Some("guest-shutdown") => Status::POWER_OFF,
                Some("guest-reset") => Status::RESET,
                Some("guest-panic") => Status::CRASH,
                // Ended by a signal, say: QEMU's own status is 0 then.
                Some(reason) if reason.starts_with("host-") => Status::FAILED,
                _ => outcome.status,
            };
        }
        Ok(outcome)
    }

    fn command(&self, events: &Path, log: &Path, machine: &Machine) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-accel", "tcg", "-cpu", &self.cpu])
            .args(["-m", &format!("{}M", machine.memory_mib), "-smp", &machine.cpus.to_string()])
            .args(["-chardev", "stdio,id=con,signal=off"])
            .args([
                "-chardev",
                &format!("socket,id=qmp,path={}", events.display()),
                "-mon",
                "chardev=qmp,mode=control",
            ])
            // A guest that reports a crash writes (status - 1) / 2 here.
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .args(["-d", "cpu_reset", "-D"])
            .arg(log);
        if self.has_serial {
            command.args(["-serial", "chardev:con"]);
        }
        if self.icount {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        if let Some(port) = self.gdb {
            command.args(["-S", "-gdb", &format!("tcp:127.0.0.1:{port}")]);
        }
        command.args(&self.more);
        command
    }
}

fn boot_kernel(command: &mut Command, machine: &Machine) {
    command.arg("-kernel").arg(&machine.kernel).args(["-append", &machine.append]);
    if let Some(initrd) = &machine.initrd {
        command.arg("-initrd").arg(initrd);
    }
}

impl BootDisk {
    /// The disk, a screen, and the firmware; its variables go to `scratch`.
    fn add_to(&self, command: &mut Command, secure: Option<&Path>, scratch: &Path) -> Result<()> {
        if self.firmware == Firmware::Uefi {
            let [code, variables] = match secure {
                None => OVMF.map(Path::new),
                Some(variables) => [Path::new(OVMF_SECURE), variables],
            };
            let copy = scratch.join("variables");
            std::fs::copy(variables, &copy).with_context(|| {
                format!("{} (package ovmf) cannot be read", variables.display())
            })?;
            let code = format!("if=pflash,unit=0,format=raw,readonly=on,file={}", code.display());
            let variables = format!("if=pflash,unit=1,format=raw,file={}", copy.display());
            command.args(["-machine", "q35", "-drive", &code, "-drive", &variables]);
            if secure.is_some() {
                command.args(["-machine", "smm=on", "-global"]);
                command.arg("driver=cfi.pflash01,property=secure,value=on");
            }
        }
        let disk = format!("if=ide,format=raw,snapshot=on,file={}", self.image.display());
        command.args(["-vga", "std", "-drive", &disk]);
        Ok(())
    }
}

/// QEMU's event channel, read by a thread.
struct Events {
    reason: Arc<Mutex<Option<String>>>,
    thread: std::thread::JoinHandle<()>,
    path: PathBuf,
}

impl Events {
    fn listen(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
        let reason = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&reason);
        let thread = std::thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                let _ = follow(&stream, &shared);
            }
        });
        Ok(Self { reason, thread, path: path.to_owned() })
    }

    /// Why QEMU ended; call after its end.
    fn shutdown_reason(self) -> Option<String> {
        // If QEMU never came, this lets the thread go.
        let _ = UnixStream::connect(&self.path);
        let _ = self.thread.join();
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn follow(stream: &UnixStream, reason: &Mutex<Option<String>>) -> Result<()> {
    let mut writer = stream;
    writer.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    for line in BufReader::new(stream).lines() {
        let message: serde_json::Value = serde_json::from_str(&line?)?;
        if message["event"] == "SHUTDOWN" {
            let why = message["data"]["reason"].as_str().map(str::to_owned);
            *reason.lock().unwrap_or_else(PoisonError::into_inner) = why;
        }
    }
    Ok(())
}
