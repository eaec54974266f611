//! Packs, started by firmware: each form a machine may start from, in plain QEMU.

use anyhow::{Result, ensure};
use pontoon::cleanup::Scratch;
use pontoon::host::{Input, Machine};
use pontoon::outcome::{Outcome, Status};
use pontoon::qemu::{BootDisk, Firmware, Qemu};
use pontoon_tests::dialogue::Dialogue;
use pontoon_tests::packs::{self, ISO, VHD, VHDX};
use pontoon_tests::samples::{Samples, cmdline};
use pontoon_tests::transcript::Transcript;
use pontoon_tests::trials::shown;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// Firmware, boot loader and guest, all emulated, on a busy machine.
const LIMIT: Duration = Duration::from_secs(420);

/// A form, who starts it, and more words for the kernel.
pub type Form = (packs::Form, Firmware, &'static str);

/// Every form there is. GRUB leaves neither quotation marks nor two spaces as they are.
pub const FORMS: [(&str, Form); 4] = [
    ("pack-uefi", (VHDX, Firmware::Uefi, "note=\"two  words\"")),
    ("pack-bios", (VHD, Firmware::Bios, "note=\"two  words\"")),
    ("pack-iso-bios", (ISO, Firmware::Bios, "note=a,b")),
    ("pack-iso-uefi", (ISO, Firmware::Uefi, "note=a,b")),
];

/// The forms of the two generations that start PvGrub2.
pub const LOADERS: [(&str, Form); 2] = [
    ("pack-pvgrub2-uefi", (VHDX, Firmware::Uefi, "")),
    ("pack-pvgrub2-bios", (VHD, Firmware::Bios, "")),
];

/// Makes a pack and boots it: the kernel is there, with its initrd and its words.
pub fn started(spec: &str, form: Form) -> Result<()> {
    let scratch = Scratch::new()?;
    let samples = Samples::new(scratch.path(), spec)?;
    let wanted = format!("{} {}", cmdline(0, 0), form.2);
    let boots = packs::kernel(&samples.kernel, &samples.initrd, &wanted);
    let outcome = boot(scratch.path(), form, &boots, &[])?;
    let transcript = Transcript::of(&outcome);
    let tail = transcript.tail();
    ensure!(outcome.status == Status::POWER_OFF, "ended by {}:\n{tail}", outcome.status.text());
    let is = transcript.mark("cmdline").unwrap_or_default();
    ensure!(is == wanted, "the command line is \"{is}\", not \"{wanted}\":\n{tail}");
    ensure!(transcript.mark("end").is_some(), "no end:\n{tail}");
    Ok(())
}

/// Makes a pack that starts PvGrub2 and boots it. Plain QEMU has none of the disks its menus are on,
/// so it asks, and is told to power off.
pub fn asks(form: Form) -> Result<()> {
    let scratch = Scratch::new()?;
    let disk = scratch.path().join("empty.img");
    File::create(&disk)?.set_len(1 << 20)?;
    let disk = format!("xvda={}", disk.display());
    let boots = ["--bootloader", "pvgrub2", "--disk", &disk].map(OsStr::new);
    let steps = [("grub> ", "echo it-runs-on-$grub_platform"), ("it-runs-on-xen", "halt")];
    let outcome = boot(scratch.path(), form, &boots, &steps)?;
    let ended = outcome.status;
    let text = outcome.console_text();
    ensure!(text.contains("it-runs-on-xen"), "no PvGrub2:\n{text}");
    ensure!(ended == Status::POWER_OFF, "ended by {}:\n{text}", ended.text());
    Ok(())
}

/// Makes a pack of what is to boot, and boots it; what is typed then, and when.
fn boot(
    dir: &Path,
    (form, firmware, _): Form,
    boots: &[&OsStr],
    steps: &[(&str, &str)],
) -> Result<Outcome> {
    let image = packs::image(dir, form, boots)?;
    let qemu = Qemu { boot_disk: Some(BootDisk { image, firmware }), ..Qemu::default() };
    let mut machine = Machine::new(dir, None, "");
    machine.timeout = Some(LIMIT);
    let input = Input::default();
    let mut dialogue = Dialogue::new(&input, steps);
    qemu.run(&machine, &input, &mut shown(|bytes| dialogue.hear(bytes)))
}
