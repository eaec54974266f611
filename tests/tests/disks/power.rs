//! Power cuts: what a guest was told is on the disk is there afterwards.
//!
//! A guest writes numbered records to a file system and to a disk, flushes each, and
//! says so; at some moment hvhost is killed, and with it a random part of what was not
//! flushed (`cache=volatile`). The next guest goes on where this one was.

use crate::small::guest;
use anyhow::{Context, Result, ensure};
use pontoon::outcome::Status;
use pontoon_tests::lab::{Lab, number};
use pontoon_tests::parts::{self, run};
use pontoon_tests::records::{self, BYTES, PER_FILE, PLACES};
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::process::Command;

/// SIGKILL.
const KILLED: Status = Status(128 + 9);
const CUTS: u64 = 3;

/// The records written so far that are known to be on the disk: numbers below.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    files: u64,
    raw: u64,
}

fn random(below: u64) -> u64 {
    RandomState::new().build_hasher().finish() % below
}

/// One cut after the other, on the same disks.
pub fn cuts(lab: &mut Lab, spec: &str) -> Result<()> {
    let cuts = number("PONTOON_DISKS_CUTS", CUTS)?;
    let (files, raw) = (lab.file("files.img")?, lab.file("raw.img")?);
    parts::ext4(&files, 64, None)?;
    fs::File::create(&raw)?.set_len(PLACES * BYTES as u64)?;
    let mut written = Written::default();
    for round in 1..=cuts {
        let (at, delay) = (written.files + 3 + random(3 * PER_FILE), random(100));
        let mut machine = guest(lab, spec, &format!("cut:{}:{}", written.files, written.raw))?;
        machine.disks = [&files, &raw].map(|f| format!("{},cache=volatile", f.display())).into();
        machine.more = vec!["--at".into(), format!("@@ file {at}=power-cut {delay}")];
        let outcome = lab.run(&machine, &mut |_| {})?;
        let console = outcome.console_text();
        let context = || format!("cut {round} of {cuts}, {delay} ms after record {at}");
        ensure!(outcome.status == KILLED, "{}: {}:\n{console}", context(), outcome.status.text());
        let told = told(&console, written);
        // The cut may come before that line's end.
        ensure!(told.files >= at, "{}: not even told of it:\n{console}", context());
        ensure!(told.raw > written.raw, "{}: nothing on the raw disk:\n{console}", context());
        let before = written;
        written.raw = raw_is_whole(&raw, told.raw).with_context(context)?;
        let copy = lab.file("files-copy.img")?;
        files_are_whole(&files, &copy, told.files).with_context(context)?;
        eprintln!(
            "{}: {} new records in files and {} on the raw disk were told of; all {} in files and \
             the last {} on the raw disk are whole",
            context(),
            told.files - written.files,
            told.raw - before.raw,
            told.files,
            written.raw.min(PLACES)
        );
        written.files = told.files;
    }
    Ok(())
}

/// What the guest said is written. The last line may be cut off.
fn told(console: &str, before: Written) -> Written {
    let lines = console.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.fold(before, |mut told, line| {
        let next = |text: &str| text.trim().parse().map(|number: u64| number + 1).ok();
        if let Some(number) = line.strip_prefix("@@ file ").and_then(next) {
            told.files = told.files.max(number);
        } else if let Some(number) = line.strip_prefix("@@ raw ").and_then(next) {
            told.raw = told.raw.max(number);
        }
        told
    })
}

/// The last records are in their places; but for the one that was being written. The
/// number of records that were.
fn raw_is_whole(disk: &Path, told: u64) -> Result<u64> {
    let data = fs::read(disk)?;
    let found: Vec<Option<u64>> = data.chunks(BYTES).map(records::number).collect();
    let written = found.iter().flatten().max().map_or(0, |last| last + 1);
    ensure!(written >= told, "record {} is lost, {written} are not", told - 1);
    for number in written.saturating_sub(PLACES)..written {
        let place = usize::try_from(number % PLACES)?;
        let under_way = number + PLACES == written;
        ensure!(
            under_way || found.get(place) == Some(&Some(number)),
            "record {number} of {told} is lost, the place has {:?}",
            found.get(place)
        );
    }
    Ok(written)
}

/// The file system is one after its journal was replayed, and the files have all their
/// records.
fn files_are_whole(image: &Path, copy: &Path, told: u64) -> Result<()> {
    fs::copy(image, copy)?;
    let status = Command::new("/sbin/e2fsck").arg("-p").arg(copy).output()?;
    // 1: something was corrected, such as the count of free blocks.
    ensure!(
        matches!(status.status.code(), Some(0 | 1)),
        "e2fsck -p: {}{}",
        String::from_utf8_lossy(&status.stdout),
        String::from_utf8_lossy(&status.stderr)
    );
    run(Command::new("/sbin/e2fsck").arg("-fn").arg(copy))?;
    let to = tempfile::tempdir()?;
    let dump = format!("rdump / {}", to.path().display());
    run(Command::new("/sbin/debugfs").args(["-R", &dump]).arg(copy))?;
    for number in 0..told {
        let path = to.path().join(records::file(number));
        let data = fs::read(&path).with_context(|| format!("record {number} of {told}"))?;
        let at = usize::try_from(number % PER_FILE)? * BYTES;
        let record = data.get(at..at + BYTES).and_then(records::number);
        ensure!(record == Some(number), "record {number} of {told} is lost");
    }
    Ok(())
}
