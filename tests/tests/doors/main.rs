//! Boots through firmware and boot loaders, to the guest's shell: GRUB as Debian has it, on SeaBIOS
//! and on OVMF, and the EFI application; and Debian's systems by PvGrub2 inside the guest.
//!
//! Chosen by environment variables, which `cargo xtask doors` sets from its options:
//! - `PONTOON_E2E_KERNELS`: Debian suites whose kernels the guests run; default: bookworm.
//! - `PONTOON_E2E_SHOW=1`: print the guests' consoles as they come.
//!
//! Without `PONTOON_E2E=1` the tests are ignored.

mod hyperv;
mod pvgrub;
mod screen;
mod secure;
mod window;

use anyhow::{Result, ensure};
use pontoon::cleanup::Scratch;
use pontoon::host::{Input, Machine};
use pontoon::kernel::Kernel;
use pontoon::outcome::{Outcome, Status};
use pontoon::qemu::{BootDisk, Firmware, Qemu};
use pontoon_tests::guests;
use pontoon_tests::media::{Efi, Files};
use pontoon_tests::packs;
use pontoon_tests::trials::{Trials, kernels, shown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const MEMORY_MIB: u64 = 512;
/// Firmware, boot loader and guest, all emulated, some twice, on a busy machine.
const LIMIT: Duration = Duration::from_secs(400);

type Test = fn(&str) -> Result<()>;

const TESTS: [(&str, Test); 14] = [
    ("grub-bios", grub_bios),
    ("grub-uefi", grub_uefi),
    ("uefi", uefi),
    ("uefi-refuses", uefi_refuses),
    ("uefi-secure-boot", secure::boot),
    ("hyperv-grub-bios", hyperv_grub_bios),
    ("hyperv-grub-uefi", hyperv_grub_uefi),
    ("hyperv-uefi", hyperv_uefi),
    ("screen-bios", screen_bios),
    ("screen-uefi", screen_uefi),
    ("window", window::shell),
    ("pvgrub2", pvgrub::default_entry),
    ("pvgrub2-newer", pvgrub::newer_kernel),
    ("pvgrub2-older", pvgrub::older_kernel),
];

fn main() -> ExitCode {
    let mut trials = Trials::<()>::beside_each_other();
    for kernel in kernels() {
        for (name, test) in TESTS {
            let spec = kernel.clone();
            trials.add(format!("{kernel}/{name}"), move |()| test(&spec), |()| true);
        }
    }
    trials.run()
}

/// A guest whose shell is asked something; words of both command lines.
fn guest(spec: &str, words: &str) -> Result<Files> {
    guest_that(spec, words, "shell")
}

/// A guest and what it does.
fn guest_that(spec: &str, words: &str, test: &str) -> Result<Files> {
    let kernel = Kernel::get(spec)?.vmlinuz()?;
    Files::of_guest(&kernel, guests::initramfs(&[])?, &cmdline(test), words)
}

fn cmdline(test: &str) -> String {
    format!("console=hvc0 quiet panic=-1 pontoon_test={test}")
}

/// Boots from a disk; answers a shell that asks.
fn boot(files: &Files, efi: Efi, firmware: Firmware) -> Result<Outcome> {
    boot_in(files, efi, |image, machine, input, output| {
        let qemu = Qemu { boot_disk: Some(BootDisk { image, firmware }), ..Qemu::default() };
        qemu.run(machine, input, output)
    })
}

/// The same in any place.
fn boot_in(
    files: &Files,
    efi: Efi,
    place: impl FnOnce(PathBuf, &Machine, &Input, &mut dyn FnMut(&[u8])) -> Result<Outcome>,
) -> Result<Outcome> {
    let scratch = Scratch::new()?;
    let image = files.disk(scratch.path(), efi)?;
    at_shell(scratch.path(), |machine, input, output| place(image, machine, input, output))
}

/// Runs a machine; answers a shell that asks.
fn at_shell(
    dir: &Path,
    place: impl FnOnce(&Machine, &Input, &mut dyn FnMut(&[u8])) -> Result<Outcome>,
) -> Result<Outcome> {
    let mut machine = Machine::new(dir, None, "");
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    let input = Input::default();
    let (mut seen, mut asked) = (String::new(), false);
    let mut output = shown(|bytes: &[u8]| {
        seen.push_str(&String::from_utf8_lossy(bytes));
        if !asked && seen.contains("/ # ") {
            asked = true;
            input.send(b"cat /proc/cmdline; echo answer $((6*7))\nexit\n");
        }
    });
    place(&machine, &input, &mut output)
}

/// The guest's shell answered, on the command line it was to have, by the door it was to come by.
fn answered(outcome: &Outcome, door: &str) -> Result<()> {
    let text = outcome.console_text();
    let said = |what: &str| ensure_said(&text, what);
    said(&format!("by {door}"))?;
    said("answer 42")?;
    said(&format!("\n{}", cmdline("shell")))?;
    ensure!(outcome.status == Status::POWER_OFF, "ended by {}:\n{text}", outcome.status.text());
    Ok(())
}

fn ensure_said(text: &str, what: &str) -> Result<()> {
    ensure!(text.contains(what), "nobody said \"{what}\":\n{text}");
    Ok(())
}

fn grub_bios(spec: &str) -> Result<()> {
    let files = guest(spec, "pontoon.log=info dom0_mem=512M")?;
    answered(&boot(&files, Efi::Grub, Firmware::Bios)?, "Multiboot2")
}

fn grub_uefi(spec: &str) -> Result<()> {
    let files = guest(spec, "pontoon.log=info dom0_mem=512M")?;
    answered(&boot(&files, Efi::Grub, Firmware::Uefi)?, "Multiboot2")
}

fn uefi(spec: &str) -> Result<()> {
    let files = guest(spec, "pontoon.log=info")?;
    answered(&boot(&files, Efi::Pontoon, Firmware::Uefi)?, "Multiboot2")
}

fn hyperv_grub_bios(spec: &str) -> Result<()> {
    on_hyperv(spec, packs::VHD, Firmware::Bios)
}

fn hyperv_grub_uefi(spec: &str) -> Result<()> {
    on_hyperv(spec, packs::ISO, Firmware::Uefi)
}

fn hyperv_uefi(spec: &str) -> Result<()> {
    on_hyperv(spec, packs::VHDX, Firmware::Uefi)
}

/// A pack as the command makes it.
fn on_hyperv(spec: &str, form: packs::Form, firmware: Firmware) -> Result<()> {
    let scratch = Scratch::new()?;
    let (kernel, initrd) = (Kernel::get(spec)?.vmlinuz()?, scratch.path().join("initrd"));
    std::fs::write(&initrd, guests::initramfs(&[])?)?;
    let words = format!("{} pontoon.log=info", cmdline("shell"));
    let boots = packs::kernel(&kernel, &initrd, &words);
    let image = packs::image(scratch.path(), form, &boots)?;
    let outcome = at_shell(scratch.path(), |machine, input, output| {
        hyperv::run(&image, firmware, machine, input, output)
    })?;
    ensure_said(&outcome.console_text(), "on Hyper-V: ")?;
    answered(&outcome, "Multiboot2")
}

/// Whatever is missing or wrong is said in a line.
fn uefi_refuses(spec: &str) -> Result<()> {
    let files = guest(spec, "")?;
    let says = |files: &Files, what: &str| {
        let mut files = files.clone();
        // What the firmware turns to next.
        files = files.with("startup.nsh", "reset -s\r\n");
        let outcome = boot(&files, Efi::Pontoon, Firmware::Uefi)?;
        ensure_said(&outcome.console_text(), what)
    };
    says(&files.clone().without("pontoon/kernel"), "\\pontoon\\kernel is not on this volume")?;
    says(&files.with("pontoon/kernel", "no kernel"), "\\pontoon\\kernel: ")
}

fn screen_bios(spec: &str) -> Result<()> {
    on_screen(spec, Efi::Grub, Firmware::Bios)
}

fn screen_uefi(spec: &str) -> Result<()> {
    on_screen(spec, Efi::Pontoon, Firmware::Uefi)
}

/// Without a serial port the screen is the console, of the shim and of the guest.
fn on_screen(spec: &str, efi: Efi, firmware: Firmware) -> Result<()> {
    let scratch = Scratch::new()?;
    let files = guest_that(spec, "pontoon.log=info", "idle:8")?;
    let image = files.disk(scratch.path(), efi)?;
    let socket = scratch.path().join("camera");
    let more = ["-qmp", &format!("unix:{},server=on,wait=off", socket.display())];
    let qemu = Qemu {
        boot_disk: Some(BootDisk { image, firmware }),
        has_serial: false,
        more: more.map(str::to_owned).to_vec(),
        ..Qemu::default()
    };
    let mut machine = Machine::new(scratch.path(), None, "");
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    let camera = screen::Camera::new(&socket, scratch.path());
    let outcome = qemu.run(&machine, &Input::default(), &mut |_| {})?;
    let text = camera.stop();
    for what in ["pontoon: Pontoon ", "by Multiboot2", "@@ hypervisor xen PV"] {
        ensure_said(&text, what)?;
    }
    ensure!(outcome.status == Status::POWER_OFF, "ended by {}", outcome.status.text());
    Ok(())
}
