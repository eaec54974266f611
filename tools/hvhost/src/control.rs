//! Commands to a running machine: lines on a UNIX socket (`--control`), or one
//! line each when a text appears on COM1 or the screen (`--at`).
//!
//! Each line is answered by `ok`, with the result behind it, or `error` and why;
//! results of several lines end with an empty one.

use crate::keyboard::{self, Keyboard};
use crate::migration::Migration;
use crate::netvsp::Network;
use crate::options::{At, Options};
use crate::screen::Screen;
use crate::stats::Counters;
use crate::storvsp::Storage;
use anyhow::{Context, Result};
use rustix::process;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

/// Longest line taken.
const LINE_MAX: u64 = 64 << 10;

/// What commands are done to.
#[derive(Default)]
pub struct Target {
    /// Disks.
    pub storage: Option<Arc<Storage>>,
    /// Network adapters.
    pub network: Option<Arc<Network>>,
    /// The keyboard.
    pub keyboard: Option<Arc<Keyboard>>,
    /// Moves to another host.
    pub migration: Option<Arc<Migration>>,
    /// The screen.
    pub screen: Option<Screen>,
    /// Counters.
    pub counters: Arc<Counters>,
}

/// Starts what the options ask for.
///
/// # Errors
/// The socket cannot be made.
pub fn start(options: &Options, target: &Arc<Target>) -> Result<()> {
    if let Some(path) = &options.control {
        let listener =
            listen(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let target = target.clone();
        thread::Builder::new().name("control".into()).spawn(move || {
            // One peer at a time.
            for stream in listener.incoming().flatten() {
                let _ = serve(&stream, &target);
            }
        })?;
    }
    if !options.at.is_empty() {
        let (seen, list) = (target.counters.watch_markers(), options.at.clone());
        let target = target.clone();
        thread::Builder::new().name("at".into()).spawn(move || at(&seen, &list, &target))?;
    }
    Ok(())
}

/// Takes the place of a socket nobody serves any more.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && UnixStream::connect(path).is_err()
    {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

fn serve(stream: &UnixStream, target: &Target) -> io::Result<()> {
    let mut writer = stream;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        let mut limited = io::Read::take(&mut reader, LINE_MAX);
        if limited.read_line(&mut line)? == 0 {
            return Ok(());
        }
        writer.write_all(answer(&line, target).as_bytes())?;
    }
}

fn answer(line: &str, target: &Target) -> String {
    match command(line, target) {
        Ok(text) if text.contains('\n') => format!("ok\n{text}\n\n"),
        Ok(text) => format!("ok {text}\n"),
        Err(error) => format!("error {error:#}\n"),
    }
}

fn command(line: &str, target: &Target) -> Result<String> {
    if let Some(text) = line.trim().strip_prefix("power-cut") {
        return power_cut(text.trim());
    }
    if line.trim() == "counters" {
        return Ok(serde_json::to_string(&target.counters.report("running", None))?);
    }
    if line.trim() == "screen" {
        return target.screen.as_ref().context("this machine has no --screen")?.text();
    }
    let verb = line.split_whitespace().next().unwrap_or_default();
    if keyboard::VERBS.contains(&verb) {
        let keyboard = target.keyboard.as_deref().context("this machine has no --keyboard")?;
        return keyboard.command(line);
    }
    if verb == "move" {
        return target.migration.as_deref().context("this machine cannot move")?.command(line);
    }
    let no_bus = "this machine has no VMBus";
    let storage = target.storage.as_deref().context(no_bus);
    let network = target.network.as_deref().context(no_bus);
    match line.trim() {
        "list" => {
            let keyboard = target.keyboard.as_deref().map(Keyboard::list).unwrap_or_default();
            let parts = [storage?.command("list")?, network?.list(), keyboard];
            Ok(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n"))
        }
        line if line.starts_with("net-") => network?.command(line),
        line => storage?.command(line),
    }
}

/// Ends this program as nothing can prepare for, after so many milliseconds.
fn power_cut(text: &str) -> Result<String> {
    let text = if text.is_empty() { "0" } else { text };
    let millis = text.parse().with_context(|| format!("power-cut {text}: milliseconds"))?;
    thread::sleep(Duration::from_millis(millis));
    process::kill_process(process::getpid(), process::Signal::KILL).context("power-cut")?;
    Ok(String::new())
}

fn at(seen: &Receiver<String>, list: &[At], target: &Target) {
    for text in seen {
        for at in list.iter().filter(|at| at.marker == text) {
            let result = answer(&at.command, target);
            eprintln!("hvhost: {}: {}\r", at.command, result.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Report;

    #[test]
    fn lines_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        drop(UnixListener::bind(&path).unwrap());
        let listener = listen(&path).unwrap();
        assert!(listen(&path).is_err(), "served");
        let peer = UnixStream::connect(&path).unwrap();
        (&peer).write_all(b"list\nnonsense\ncounters\npower-cut x\ntype x\n").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        // The connection of the second attempt to listen comes first.
        for stream in listener.incoming().take(2) {
            serve(&stream.unwrap(), &Target::default()).unwrap();
        }
        let mut text = String::new();
        io::Read::read_to_string(&mut &peer, &mut text).unwrap();
        let report = text.strip_prefix(&"error this machine has no VMBus\n".repeat(2)).unwrap();
        let (report, rest) = report.split_once('\n').unwrap();
        let (cut, typed) = rest.split_once('\n').unwrap();
        let report: Report = serde_json::from_str(report.strip_prefix("ok ").unwrap()).unwrap();
        assert!(cut.starts_with("error power-cut x: milliseconds"), "{cut}");
        assert_eq!(typed, "error this machine has no --keyboard\n");
        assert_eq!(report.outcome, "running");
    }
}
