//! Wrong inputs: each is answered in one clear line and a status that is not zero, nothing is left
//! behind, and nothing that was there is changed.

mod files;
mod table;

use files::Files;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

/// Everything below a directory: sizes, and when it was written.
fn contents(dir: &Path) -> BTreeMap<String, (u64, i64, i64, u64)> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).unwrap();
            // A directory's time changes with files that come and go.
            let told = match meta.is_dir() {
                true => (0, 0, 0, meta.ino()),
                false => (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()),
            };
            all.insert(path.display().to_string(), told);
            if meta.is_dir() {
                open.push(path);
            }
        }
    }
    all
}

fn pontoon(dir: &Path, args: &str) -> Output {
    command(dir, args).output().unwrap()
}

fn command(dir: &Path, args: &str) -> Command {
    let args = args.split(' ').map(|word| word.replace("{SPACE}", " "));
    let mut command = Command::new(env!("CARGO_BIN_EXE_pontoon"));
    // The application of the EFI system partition: what it is does not matter here.
    command.env("PONTOON_EFI", dir.join("application")).env("TMPDIR", dir.join("tmp"));
    command.current_dir(dir).args(args);
    command
}

/// The error of a command that has to fail.
fn error(out: &Output) -> Result<String, String> {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() {
        return Err("it did not fail".into());
    }
    // A panic or a signal has another status.
    if out.status.code() != Some(1) {
        return Err(format!("it ended with {}: {text}", out.status));
    }
    match text.lines().collect::<Vec<_>>().as_slice() {
        [line] if line.starts_with("pontoon: ") => Ok((*line).to_owned()),
        _ => Err(format!("it said: {text}")),
    }
}

#[test]
fn every_wrong_input_is_answered_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    Files::make(dir.path());
    let before = contents(dir.path());
    assert!(table::CASES.len() >= 40);
    let mut failed = Vec::new();
    for (args, said) in table::CASES {
        let out = pontoon(dir.path(), args);
        let verdict = error(&out).and_then(|line| {
            if line.contains(said) { Ok(()) } else { Err(format!("not \"{said}\", but: {line}")) }
        });
        let after = contents(dir.path());
        let changed: Vec<_> = before
            .iter()
            .filter(|(path, sum)| after.get(*path) != Some(sum))
            .map(|(path, _)| path)
            .chain(after.keys().filter(|path| !before.contains_key(*path)))
            .collect();
        if let Err(why) = verdict {
            failed.push(format!("{args}: {why}"));
        }
        if !changed.is_empty() {
            failed.push(format!("{args}: left or changed {changed:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What is wrong in the same way as the inputs above is not wrong in all of them.
#[test]
fn right_inputs_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    Files::make(dir.path());
    for args in table::RIGHT {
        let out = pontoon(dir.path(), args);
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{args}: {text}");
    }
}

/// What is printed for a reader who has gone, as `head` does, ends the command by SIGPIPE, quietly,
/// and what it had begun is gone; so it is where the output cannot be written, but that is said.
#[test]
fn output_that_nobody_reads_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    Files::make(dir.path());
    let before = contents(dir.path());
    for args in ["doctor pv.elf root.img", "import good.cfg --dry-run -o out", table::RIGHT[0]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = command(dir.path(), args).stdout(writer).output().unwrap();
        assert_eq!(out.status.signal(), Some(Signal::PIPE.as_raw()), "{args}: {out:?}");
        assert!(out.stderr.is_empty(), "{args}: {out:?}");
        let full = fs::File::create("/dev/full").unwrap();
        let out = command(dir.path(), args).stdout(full).output().unwrap();
        let line = error(&out).unwrap();
        assert_eq!(line, "pontoon: standard output: No space left on device (os error 28)");
        assert!(contents(dir.path()) == before, "{args}: left or changed something");
    }
    // Nor does it matter who reads what is said beside.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = command(dir.path(), "doctor nothing").stderr(writer).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
}

/// On a file system that is full, in a mount name space of its own.
#[test]
fn a_full_disk_is_said_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    Files::make(dir.path());
    let before = contents(dir.path());
    fs::create_dir(dir.path().join("small")).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4m tmpfs small && {} pack --kernel pv.elf --disk xvda=noise.img -o small/out; \
         status=$?; ls -A small; exit $status",
        env!("CARGO_BIN_EXE_pontoon")
    );
    let mut command = Command::new("unshare");
    command.env("PONTOON_EFI", dir.path().join("application"));
    let out = command.args(["-rm", "sh", "-c", &script]).current_dir(dir.path()).output().unwrap();
    let line = error(&out).unwrap();
    assert!(line.contains("No space left on device"), "{line}");
    let listed = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!listed.contains("out\n") && !listed.contains(".pontoon"), "{listed}");
    fs::remove_dir(dir.path().join("small")).unwrap();
    assert!(contents(dir.path()) == before);
}

/// A signal in the middle leaves nothing, either.
#[test]
fn an_interrupt_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    Files::make(dir.path());
    // Large enough to be in the middle of it for a while.
    let large = dir.path().join("large.img");
    let noise = fs::read(dir.path().join("noise.img")).unwrap();
    fs::write(&large, noise.repeat(32)).unwrap();
    let before = contents(dir.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_pontoon"));
    command.env("PONTOON_EFI", dir.path().join("application")).current_dir(dir.path());
    let mut child = command.args("pack --kernel pv.elf --disk xvda=large.img -o out".split(' '));
    child = child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = child.spawn().unwrap();
    let began = |path: &Path| {
        let names = fs::read_dir(path).unwrap().flatten();
        names.into_iter().any(|e| e.file_name().to_string_lossy().starts_with(".pontoon-"))
    };
    while !began(dir.path()) && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(contents(dir.path()) == before);
}
