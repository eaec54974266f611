//! PvGrub2 as the guest: it boots Debian's systems from their own menus, on hvhost.

use anyhow::{Context, Result, ensure};
use pontoon::bootloader::Loader;
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::image::Boot;
use pontoon::outcome::Status;
use pontoon_tests::dialogue::Dialogue;
use pontoon_tests::images::{HOSTNAME, Image, PASSWORD, Table};
use pontoon_tests::trials::shown;
use std::time::Duration;

const MEMORY_MIB: u64 = 512;
/// GRUB reads a page at a time and waits for each, which a busy machine makes long; and a whole
/// Debian comes after it.
const LIMIT: Duration = Duration::from_secs(900);
/// The cursor goes down a line.
const DOWN: &str = "\x1b[B";
/// A kernel that Debian 12 has beside its own.
const SECOND: &str = "linux-image-6.12-amd64";
/// Entries of the menu below, two for each kernel, the newest first.
const NEWER: &str = "1>0";
const OLDER: &str = "1>2";

/// Debian 13 by its menu's default, which starts by itself.
pub fn default_entry(_: &str) -> Result<()> {
    boots(&Image::new("trixie", Table::Mbr), NEWER, &[])
}

/// Debian 12 with two kernels: the newer one, by keys.
pub fn newer_kernel(_: &str) -> Result<()> {
    boots(&two_kernels(), NEWER, &[("Advanced options", DOWN), ("recovery mode", "")])
}

/// The same with the older one.
pub fn older_kernel(_: &str) -> Result<()> {
    let twice = DOWN.repeat(2);
    boots(&two_kernels(), OLDER, &[("Advanced options", DOWN), ("recovery mode", &twice)])
}

fn two_kernels() -> Image {
    Image { packages: vec![SECOND.into()], ..Image::new("bookworm", Table::Gpt) }
}

/// The kernel an entry starts, as its title has it.
fn release(entry: &Boot) -> Result<&str> {
    let named = entry.title.split_once("with Linux ");
    Ok(named.with_context(|| format!("the entry \"{}\"", entry.title))?.1)
}

/// Boots the system with `keys` for its menu; it must be the kernel of `entry` that it then runs,
/// with the words it has there.
fn boots(image: &Image, entry: &str, keys: &[(&str, &str)]) -> Result<()> {
    let scratch = Scratch::new()?;
    let disk = scratch.path().join("disk");
    image.copy(&disk)?;
    let wanted = Boot::from_image(&disk, Some(entry))?;
    let mut machine = Machine::new(&Loader::Pvgrub2.image()?, None, "");
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    machine.disks = vec![disk.display().to_string()];
    let machine = machine.under_shim(scratch.path())?;
    let (mut host, _) = Host::choose(Under::Auto, MEMORY_MIB)?;
    let input = Input::default();
    let login = format!("{HOSTNAME} login: ");
    let prompt = format!("root@{HOSTNAME}:~# ");
    let say = "echo kernel=$(uname -r)=; echo words=$(cat /proc/cmdline)=; poweroff -f";
    let mut steps = keys.to_vec();
    steps.extend([(&*login, "root"), ("Password: ", PASSWORD), (&prompt, say)]);
    let mut dialogue = Dialogue::new(&input, &steps);
    let outcome = host.run(&machine, &input, &mut shown(|bytes| dialogue.hear(bytes)))?;
    let text = outcome.console_text();
    let tail: String = text.lines().rev().take(25).map(|line| format!("{line}\n")).collect();
    let said = |what: &str| {
        ensure!(text.contains(what), "nobody said \"{what}\"; last lines first:\n{tail}");
        Ok(())
    };
    let waits = dialogue.waits_for();
    ensure!(waits.is_none(), "no {waits:?} came; last lines first:\n{tail}");
    said(&format!("kernel={}=", release(&wanted)?))?;
    said(&format!("words={}=", wanted.cmdline.trim()))?;
    let ended = outcome.status;
    ensure!(ended == Status::POWER_OFF, "ended by {}, last lines first:\n{tail}", ended.text());
    Ok(())
}
