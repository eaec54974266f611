//! What a guest does to disks while their power is cut: numbered records, each
//! reported once it is flushed.
//!
//! `diskwork files DIR FIRST` writes files of records on a file system, `diskwork raw
//! DEVICE FIRST SHARE` records at changing places of a disk's SHARE-th part; neither
//! ends by itself.

#[path = "../../../src/records.rs"]
#[allow(dead_code, reason = "the test reads what this program writes")]
mod records;

use records::{BYTES, PER_FILE, PLACES, record};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    match args.as_slice() {
        ["files", dir, first] => files(Path::new(dir), number(first)?),
        ["raw", device, first, share] => raw(Path::new(device), number(first)?, number(share)?),
        _ => Err(io::Error::other("diskwork files DIR FIRST | raw DEVICE FIRST SHARE")),
    }
}

/// One write, so that lines of two programs do not mix.
fn report(what: &str, number: u64) -> io::Result<()> {
    io::stdout().write_all(format!("@@ {what} {number}\n").as_bytes())
}

fn files(dir: &Path, first: u64) -> io::Result<()> {
    let mut open: Option<File> = None;
    for number in first.. {
        // A cut may have left a file that nobody was told of.
        let begin = open.is_none() || number % PER_FILE == 0;
        if begin {
            let options = OpenOptions::new().create(true).truncate(false).write(true).to_owned();
            let file = options.open(dir.join(records::file(number)))?;
            file.set_len(number % PER_FILE * BYTES as u64)?;
            open = Some(file);
        }
        let Some(file) = &open else { continue };
        file.write_all_at(&record(number), number % PER_FILE * BYTES as u64)?;
        file.sync_all()?;
        if begin {
            File::open(dir)?.sync_all()?;
        }
        report("file", number)?;
    }
    Ok(())
}

fn raw(device: &Path, first: u64, share: u64) -> io::Result<()> {
    let device = OpenOptions::new().write(true).open(device)?;
    for number in first.. {
        device.write_all_at(&record(number), (share * PLACES + number % PLACES) * BYTES as u64)?;
        device.sync_data()?;
        report("raw", number)?;
    }
    Ok(())
}
