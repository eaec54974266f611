//! PvGrub2 as the guest: it boots Debian's systems from their own menus, on hvhost.

use anyhow::{Result, ensure};
use pontoon::bootloader::Loader;
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::outcome::Status;
use pontoon_tests::dialogue::Dialogue;
use pontoon_tests::images::{HOSTNAME, Image, PASSWORD, Table};
use pontoon_tests::trials::shown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MEMORY_MIB: u64 = 512;
/// GRUB reads a page at a time, and a whole Debian comes after it.
const LIMIT: Duration = Duration::from_secs(400);
/// The cursor goes down a line; Enter follows.
const DOWN: &str = "\x1b[B";
/// What asks for root's password in recovery mode.
const RESCUE: &str = "Control-D to continue): ";
const END: &str = "cat /proc/cmdline; poweroff -f";

/// The menu's default, which starts by itself.
pub fn default_entry(_: &str) -> Result<()> {
    let prompt = format!("root@{HOSTNAME}:~# ");
    let login = format!("{HOSTNAME} login: ");
    boot(&[(&login, "root"), ("Password: ", PASSWORD), (&prompt, END)], |line| {
        !line.contains("single")
    })
}

/// Another entry, of another menu below.
pub fn chosen_entry(_: &str) -> Result<()> {
    let prompt = format!("root@{HOSTNAME}:~# ");
    let steps = [("Advanced options", DOWN), ("recovery mode", DOWN), (&prompt, END)];
    boot(&steps, |line| line.contains(" single"))
}

/// Types the password until it is taken: what is typed before sulogin has turned the echo off is
/// thrown away, and nothing shows when that is.
fn insist(input: &Input, asked: &Arc<AtomicBool>) {
    let (input, asked) = (input.clone(), Arc::clone(asked));
    std::thread::spawn(move || {
        while asked.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(2));
            input.send(format!("{PASSWORD}\n").as_bytes());
        }
    });
}

/// Boots the system, which ends itself.
fn boot(steps: &[(&str, &str)], is_wanted: fn(&str) -> bool) -> Result<()> {
    let scratch = Scratch::new()?;
    let disk = scratch.path().join("disk");
    Image::new("bookworm", Table::Gpt).copy(&disk)?;
    let mut machine = Machine::new(&Loader::Pvgrub2.image()?, None, "");
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    machine.disks = vec![disk.display().to_string()];
    let machine = machine.under_shim(scratch.path())?;
    let (mut host, _) = Host::choose(Under::Auto, MEMORY_MIB)?;
    let input = Input::default();
    let mut dialogue = Dialogue::new(&input, steps);
    let mut seen = String::new();
    let asked = Arc::new(AtomicBool::new(false));
    let mut output = shown(|bytes: &[u8]| {
        dialogue.hear(bytes);
        seen.push_str(&String::from_utf8_lossy(bytes));
        if dialogue.waits_for().is_none() {
            asked.store(false, Ordering::Relaxed);
        } else if seen.contains(RESCUE) && !asked.swap(true, Ordering::Relaxed) {
            insist(&input, &asked);
        }
    });
    let outcome = host.run(&machine, &input, &mut output)?;
    asked.store(false, Ordering::Relaxed);
    let text = outcome.console_text();
    let tail: String = text.lines().rev().take(25).map(|line| format!("{line}\n")).collect();
    ensure!(
        outcome.status == Status::POWER_OFF,
        "ended by {}, last lines first:\n{tail}",
        outcome.status.text()
    );
    let is_cmdline = |line: &&str| line.contains("root=") && line.contains("console=hvc0");
    let line = text.lines().rfind(is_cmdline);
    ensure!(line.is_some_and(is_wanted), "another entry was started: {line:?}");
    Ok(())
}
