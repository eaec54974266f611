//! One disk image, two hypervisors: what runs under the shim runs under real Xen, and
//! back.
//!
//! Images are built on first use, and every test boots real Xen in emulation; so they
//! are ignored unless asked for: `cargo xtask image --xen`. `PONTOON_E2E_SHOW=1` shows
//! the consoles.

use anyhow::{Error, Result, ensure};
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::image;
use pontoon::kernel::Kernel;
use pontoon::outcome::{Outcome, Status};
use pontoon_tests::dialogue::Dialogue;
use pontoon_tests::images::{HOSTNAME, Image, PASSWORD, PATIENCE, Table};
use pontoon_tests::trials::shown;
use pontoon_tests::{domu, log, told};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// On a quiet machine a boot takes a minute, under real Xen or nested.
const LIMIT: Duration = Duration::from_secs(1200);
const MEMORY_MIB: u64 = 768;
/// Lines of a kernel's log that the shim may cause.
const ALLOWED: &str = include_str!("../e2e/dmesg-allow.txt");

/// A place the image can run in.
#[derive(Clone, Copy, Debug)]
enum Place {
    Shim,
    Xen,
}

#[test]
#[ignore = "builds images, boots real Xen"]
fn bookworm_goes_to_xen_and_back() -> Result<()> {
    goes_to_xen_and_back(&Image::new("bookworm", Table::Gpt))
}

#[test]
#[ignore = "builds images, boots real Xen"]
fn trixie_goes_to_xen_and_back() -> Result<()> {
    goes_to_xen_and_back(&Image::new("trixie", Table::Mbr))
}

/// Each boot writes a file and finds those of the boots before it.
fn goes_to_xen_and_back(image: &Image) -> Result<()> {
    let scratch = Scratch::new()?;
    let disk = scratch.path().join("disk.raw");
    image.copy(&disk)?;
    let mut host = None;
    for (number, place) in [Place::Shim, Place::Xen, Place::Shim].into_iter().enumerate() {
        let say = format!(
            "cd /root; md5sum -c *.sum; dd if=/dev/urandom of={number} bs=1M count=8 2>&-; \
             md5sum {number} >{number}.sum; echo state-$(systemctl is-system-running --wait); \
             echo xen-$(cat /sys/hypervisor/version/extra); poweroff"
        );
        let text = boot(&mut host, place, &disk, scratch.path(), &say)?;
        let named = format!("{}, boot {number}, {place:?}", image.suite);
        for earlier in 0..number {
            let line = format!("{earlier}: OK");
            ensure!(text.contains(&line), "{named}: no \"{line}\":\n{}", tail(&text));
        }
        ensure!(text.contains("state-running"), "{named}: units:\n{}", tail(&text));
        check_file_system(&disk)?;
    }
    Ok(())
}

/// Boots the disk's own kernel, types `say` as root, waits for the power-off; what the
/// console said.
fn boot(
    host: &mut Option<Host>,
    place: Place,
    disk: &Path,
    work: &Path,
    say: &str,
) -> Result<String> {
    let files = image::take(disk, None, Some(PATIENCE), work)?;
    let mut machine = Machine::new(&files.kernel, files.initrd.as_deref(), &files.append);
    machine.memory_mib = MEMORY_MIB;
    machine.timeout = Some(LIMIT);
    machine.disks = vec![disk.display().to_string()];
    let login = format!("{HOSTNAME} login: ");
    let prompt = format!("root@{HOSTNAME}:~# ");
    let steps = [(login.as_str(), "root"), ("Password: ", PASSWORD), (prompt.as_str(), say)];
    let input = Input::default();
    let mut dialogue = Dialogue::new(&input, &steps);
    let mut output = shown(|bytes| dialogue.hear(bytes));
    let outcome: Outcome = match place {
        Place::Xen => {
            // Two emulated machines at a time are one too many.
            *host = None;
            domu::run(&machine, &input, &mut output)?.outcome
        }
        Place::Shim => {
            let machine = machine.under_shim(work)?;
            let host = match host {
                Some(host) => host,
                None => host.insert(Host::choose(Under::Auto, MEMORY_MIB)?.0),
            };
            host.run(&machine, &input, &mut output)?
        }
    };
    drop(output);
    let text = outcome.console_text();
    let waits = dialogue.waits_for();
    ensure!(waits.is_none(), "{place:?}: no \"{}\":\n{}", waits.unwrap_or_default(), tail(&text));
    let ended = outcome.status;
    ensure!(ended == Status::POWER_OFF, "{place:?}: {}:\n{}", ended.text(), tail(&text));
    Ok(text)
}

/// The root file system, at 1 MiB of the disk, was left clean and is without fault.
fn check_file_system(disk: &Path) -> Result<()> {
    let at = format!("{}?offset={}", disk.display(), 1 << 20);
    let header = Command::new("/sbin/dumpe2fs").args(["-h", &at]).output()?;
    let header = String::from_utf8_lossy(&header.stdout).into_owned();
    let state = header.lines().find_map(|line| line.strip_prefix("Filesystem state:"));
    ensure!(state.is_some_and(|s| s.trim() == "clean"), "left {}", state.unwrap_or("unreadable"));
    ensure!(!header.contains("needs_recovery"), "the journal has not been played");
    let checked = Command::new("/sbin/e2fsck").args(["-f", "-n", &at]).output()?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(checked.status.success(), "e2fsck, {}:\n{said}", checked.status);
    Ok(())
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
}

/// A guest that asks is told the same by both, save for `tests/e2e/xen-differences.txt`,
/// and its kernel complains of the same.
/// `PONTOON_XEN_KEEP=DIR` keeps both reports, and the store as dom0 sees it.
#[test]
#[ignore = "boots real Xen"]
fn a_guest_is_told_the_same() -> Result<()> {
    let scratch = Scratch::new()?;
    let kernel = Kernel::get("bookworm")?;
    let disk = scratch.path().join("disk.raw");
    File::create(&disk)?.set_len(64 << 20)?;
    let mut told = Vec::new();
    for (place, seconds) in [(Place::Xen, 20), (Place::Shim, 0)] {
        let initrd = scratch.path().join("initrd");
        std::fs::write(&initrd, domu::probe(&kernel, seconds)?)?;
        let mut machine =
            Machine::new(&kernel.vmlinuz()?, Some(&initrd), "console=hvc0 quiet panic=-1");
        machine.timeout = Some(LIMIT);
        machine.disks = vec![disk.display().to_string()];
        let input = Input::default();
        let mut store = String::new();
        let outcome = match place {
            Place::Xen => {
                let domain = domu::run(&machine, &input, &mut |_| {})?;
                store = domain.store;
                domain.outcome
            }
            Place::Shim => {
                let machine = machine.under_shim(scratch.path())?;
                let mut host = Host::choose(Under::Auto, machine.memory_mib)?.0;
                host.run(&machine, &input, &mut |_| {})?
            }
        };
        let text = outcome.console_text();
        if let Some(dir) = std::env::var_os("PONTOON_XEN_KEEP") {
            let dir = Path::new(&dir);
            std::fs::write(dir.join(format!("{place:?}.console")), &text)?;
            std::fs::write(dir.join(format!("{place:?}.store")), store)?;
        }
        ensure!(outcome.status == Status::POWER_OFF, "{place:?}:\n{}", tail(&text));
        told.push(text);
    }
    let [xen, shim] = told.as_slice() else { unreachable!() };
    let found = told::differences(xen, shim)?;
    ensure!(found.is_empty(), "not the same:\n{}", found.join("\n"));
    let warnings = |text: &str| -> Vec<String> {
        let lines = told::section(text, "log").unwrap_or_default().into_iter();
        lines
            .filter(|l| matches!(l.as_bytes(), [b'<', b'0'..=b'4', b'>', ..]))
            .map(str::to_owned)
            .collect()
    };
    let allowed = log::parse_allow_list(ALLOWED).map_err(Error::msg)?;
    let new = log::unexplained(&warnings(shim), &warnings(xen), &allowed);
    ensure!(new.is_empty(), "new in the kernel's log:\n{}", new.join("\n"));
    Ok(())
}
