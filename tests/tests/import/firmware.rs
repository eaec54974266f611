//! Packs, started by firmware: each form a machine may start from, in plain QEMU.

use crate::sources::PONTOON;
use anyhow::{Result, ensure};
use pontoon::cleanup::Scratch;
use pontoon::host::{Input, Machine};
use pontoon::outcome::Status;
use pontoon::qemu::{BootDisk, Firmware, Qemu};
use pontoon::qemu_img::{self, Disk, Format};
use pontoon_tests::parts::run;
use pontoon_tests::samples::{Samples, cmdline};
use pontoon_tests::transcript::Transcript;
use pontoon_tests::trials::shown;
use std::process::Command;
use std::time::Duration;

/// Firmware, boot loader and guest, all emulated, on a busy machine.
const LIMIT: Duration = Duration::from_secs(420);

/// A form, how qemu-img calls it, who starts it, and more words for the kernel.
pub type Form = (&'static str, Format, Firmware, &'static str);

/// Every form there is. GRUB leaves neither quotation marks nor two spaces as they are.
pub const FORMS: [(&str, Form); 4] = [
    ("pack-uefi", ("vhdx", Format::Vhdx, Firmware::Uefi, "note=\"two  words\"")),
    ("pack-bios", ("vhd", Format::Vhd, Firmware::Bios, "note=\"two  words\"")),
    ("pack-iso-bios", ("iso", Format::Raw, Firmware::Bios, "note=a,b")),
    ("pack-iso-uefi", ("iso", Format::Raw, Firmware::Uefi, "note=a,b")),
];

/// Makes a pack and boots it: the kernel is there, with its initrd and its words.
pub fn started(spec: &str, (form, format, firmware, words): Form) -> Result<()> {
    let scratch = Scratch::new()?;
    let samples = Samples::new(scratch.path(), spec)?;
    let wanted = format!("{} {words}", cmdline(0, 0));
    let pack = samples.path("pack");
    let mut command = Command::new(PONTOON.find()?);
    command.args(["pack", "--format", form, "--name", "packed", "--append", &wanted, "--kernel"]);
    command.arg(&samples.kernel).arg("--initrd").arg(&samples.initrd).arg("-o").arg(&pack);
    run(&mut command)?;
    let from = Disk { path: pack.join(format!("packed.{form}")), format };
    let raw = Disk { path: samples.path("boot.raw"), format: Format::Raw };
    qemu_img::convert(&from, &raw, &[], "the pack")?;
    let image = raw.path;
    let qemu = Qemu { boot_disk: Some(BootDisk { image, firmware }), ..Qemu::default() };
    let mut machine = Machine::new(scratch.path(), None, "");
    machine.timeout = Some(LIMIT);
    let outcome = qemu.run(&machine, &Input::default(), &mut shown(|_| {}))?;
    let transcript = Transcript::of(&outcome);
    let tail = transcript.tail();
    ensure!(outcome.status == Status::POWER_OFF, "ended by {}:\n{tail}", outcome.status.text());
    let is = transcript.mark("cmdline").unwrap_or_default();
    ensure!(is == wanted, "the command line is \"{is}\", not \"{wanted}\":\n{tail}");
    ensure!(transcript.mark("end").is_some(), "no end:\n{tail}");
    Ok(())
}
