//! The doors where QEMU shows Hyper-V's interfaces, which it can on KVM only: on this machine's where
//! it will do, else on that of the emulated machine, where QEMU is sent to.

use anyhow::{Context, Result, ensure};
use pontoon::host::{Input, Machine, run_child};
use pontoon::nested::Session;
use pontoon::outcome::Outcome;
use pontoon::qemu::{Firmware, OVMF};
use std::path::{Path, PathBuf};
use std::process::Command;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// What the processor is to say of Hyper-V: all that QEMU has and the shim uses.
const CPU: &str = "host,kvm=off,hv-relaxed,hv-vapic,hv-vpindex,hv-time,hv-synic,hv-stimer,\
    hv-stimer-direct,hv-runtime,hv-reset,hv-frequencies,hv-tlbflush,hv-ipi";
/// Files QEMU reads by itself, of the packages qemu-system-data and seabios.
const DATA: [&str; 3] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/vgabios-stdvga.bin",
    "/usr/share/qemu/kvmvapic.bin",
];
/// Memory QEMU itself and its files take beside the guest's.
const MORE_MIB: u64 = 384;

/// Arguments for QEMU; `place` says where a file is for it.
fn arguments(
    image: &Path,
    firmware: Firmware,
    machine: &Machine,
    mut place: impl FnMut(&Path) -> Result<String>,
) -> Result<Vec<String>> {
    let memory = format!("{}M", machine.memory_mib);
    let mut args: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
            .into_iter()
            .chain(["-accel", "kvm", "-cpu", CPU, "-m", &memory, "-vga", "std"])
            .chain(["-chardev", "stdio,id=con,signal=off", "-serial", "chardev:con"])
            .map(str::to_owned)
            .collect();
    if firmware == Firmware::Uefi {
        args.extend(["-machine", "q35"].map(str::to_owned));
        let units = ["unit=0,readonly=on", "unit=1"];
        for (unit, file) in units.into_iter().zip(OVMF) {
            let file = place(Path::new(file))?;
            args.extend(["-drive".into(), format!("if=pflash,format=raw,{unit},file={file}")]);
        }
    }
    let disk = place(image)?;
    args.extend(["-drive".into(), format!("if=ide,format=raw,file={disk}")]);
    Ok(args)
}

/// Boots from a disk.
pub fn run(
    image: &Path,
    firmware: Firmware,
    machine: &Machine,
    input: &Input,
    output: &mut dyn FnMut(&[u8]),
) -> Result<Outcome> {
    if pontoon::kvm::probe().is_ok() {
        // The variables are copied where they can be written.
        let dir = image.parent().context("a directory")?.to_owned();
        let here = |file: &Path| {
            let copy = dir.join(format!("qemu-{}", file.file_name().unwrap_or_default().display()));
            std::fs::copy(file, &copy)?;
            Ok(copy.display().to_string())
        };
        let mut command = Command::new(QEMU);
        command.args(arguments(image, firmware, machine, here)?);
        return run_child(command, machine, input, output);
    }
    let mut session = Session::start(machine.memory_mib + MORE_MIB)?;
    if firmware == Firmware::Uefi {
        slow_ticks(&mut session, image)?;
    }
    let mut argv = send_qemu(&mut session)?;
    let mut files = 0;
    argv.extend(arguments(image, firmware, machine, |file| {
        files += 1;
        let there = format!("/q/file{files}");
        session.upload(file, &there)?;
        Ok(there)
    })?);
    session.run_program(argv, machine, input, output)
}

/// Has the firmware's timer, a periodic one of the local APIC every 10 ms, tick once a second.
///
/// OVMF's interrupt handlers end by writing CR8. The QEMU that emulates its processor (7.2,
/// `helper_write_crN`) looks there whether a virtual interrupt waits, and if one does, notes it without
/// the lock that this takes, which ends it by an assertion. One waits if a tick comes while the last
/// one is handled, as it does in emulation.
fn slow_ticks(session: &mut Session, image: &Path) -> Result<()> {
    let file = image.with_file_name("period");
    std::fs::write(&file, "1000000")?;
    // KVM's least period of such timers, in microseconds.
    session.upload(&file, "/sys/module/kvm/parameters/min_timer_period_us")
}

/// QEMU and what it is linked with; the words that start it there.
fn send_qemu(session: &mut Session) -> Result<Vec<String>> {
    let out = Command::new("ldd").arg(QEMU).output().context("ldd cannot be run")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut loader = None;
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [name, "=>", path, _] => session.upload(Path::new(path), &format!("/q/lib/{name}"))?,
            [path, _] if path.starts_with('/') => loader = Some(PathBuf::from(path)),
            _ => {}
        }
    }
    let loader = loader.context("ldd names no loader")?;
    session.upload(&loader, "/q/ld.so")?;
    session.upload(Path::new(QEMU), "/q/qemu")?;
    for file in DATA.map(Path::new) {
        ensure!(file.exists(), "{} is missing", file.display());
        let name = file.file_name().unwrap_or_default().display();
        session.upload(file, &format!("/q/data/{name}"))?;
    }
    Ok(["/q/ld.so", "--library-path", "/q/lib", "/q/qemu", "-L", "/q/data"]
        .map(str::to_owned)
        .to_vec())
}
