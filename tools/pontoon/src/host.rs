//! Places a guest can run in, and the choice among them.

use crate::artefact;
use crate::bundle;
use crate::cleanup::{Reaper, Scratch};
use crate::nested::Session;
use crate::outcome::{Outcome, Status};
use crate::qemu::Qemu;
use anyhow::{Context, Result, bail};
use hvhost::net::NetOptions;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Beyond a guest's time limit, before a host program that does not keep it is
/// ended.
pub const OVERTIME: Duration = Duration::from_secs(10);

/// A guest to run: what hvhost's command line says.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Kernel image: the shim, or a kernel booted natively.
    pub kernel: PathBuf,
    /// Initrd: the bundle, or the kernel's own.
    pub initrd: Option<PathBuf>,
    /// Command line.
    pub append: String,
    /// Memory.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// Hyper-V features the host is to withhold.
    pub without: Vec<String>,
    /// Disks, as hvhost's `--disk` takes them: a file of this machine, then words.
    pub disks: Vec<String>,
    /// Network adapters.
    pub nets: Vec<NetOptions>,
    /// Further arguments of hvhost.
    pub more: Vec<String>,
    /// Whether the host's counters are wanted.
    pub stats: bool,
    /// The guest is ended after this time.
    pub timeout: Option<Duration>,
    /// Print the host program's own words to standard error as they come.
    pub show_errors: bool,
}

impl Machine {
    /// A guest of 512 MiB and one processor.
    #[must_use]
    pub fn new(kernel: &Path, initrd: Option<&Path>, append: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            initrd: initrd.map(Path::to_owned),
            append: append.to_owned(),
            memory_mib: 512,
            cpus: 1,
            without: Vec::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            more: Vec::new(),
            stats: false,
            timeout: None,
            show_errors: false,
        }
    }

    /// The same guest under the shim; the bundle, with the command line in it, is
    /// written to `dir`.
    pub fn under_shim(&self, dir: &Path) -> Result<Self> {
        let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
        let kernel = read(&self.kernel)?;
        let initrd = self.initrd.as_deref().map(read).transpose()?;
        let made = bundle::bundle(&kernel, initrd.as_deref(), &self.append)?;
        let file = tempfile::Builder::new().prefix("bundle-").tempfile_in(dir)?;
        std::fs::write(file.path(), made)?;
        let (_, path) = file.keep()?;
        Ok(Self {
            kernel: artefact::SHIM.find()?,
            initrd: Some(path),
            append: String::new(),
            ..self.clone()
        })
    }

    /// hvhost's arguments, with paths as `place` gives them.
    pub fn hvhost_args(
        &self,
        stats: Option<&str>,
        mut place: impl FnMut(Placed<'_>) -> Result<String>,
    ) -> Result<Vec<String>> {
        let mut args = vec!["--kernel".into(), place(Placed::File(&self.kernel))?];
        if let Some(initrd) = &self.initrd {
            args.extend(["--initrd".into(), place(Placed::File(initrd))?]);
        }
        args.extend(["--append".into(), self.append.clone()]);
        args.extend(["--memory".into(), format!("{}M", self.memory_mib)]);
        args.extend(["--cpus".into(), self.cpus.to_string()]);
        if !self.without.is_empty() {
            args.extend(["--hv-without".into(), self.without.join(",")]);
        }
        for disk in &self.disks {
            let (path, words) = disk.split_at(disk.find(',').unwrap_or(disk.len()));
            let disk = place(Placed::Disk { path: Path::new(path), words })?;
            args.extend(["--disk".into(), disk]);
        }
        for (number, net) in self.nets.iter().enumerate() {
            // The same address wherever it runs.
            let mac = Some(net.mac(number));
            let net = place(Placed::Net(&NetOptions { mac, ..net.clone() }))?;
            args.extend(["--net".into(), net]);
        }
        args.extend_from_slice(&self.more);
        if let Some(limit) = self.timeout {
            args.extend(["--timeout".into(), limit.as_secs().max(1).to_string()]);
        }
        if let Some(stats) = stats {
            args.extend(["--stats".into(), stats.into()]);
        }
        Ok(args)
    }
}

/// Something of this machine that hvhost is to find where it runs.
#[derive(Clone, Copy, Debug)]
pub enum Placed<'a> {
    /// A file it reads once.
    File(&'a Path),
    /// A disk: what is written to it is to be in the file.
    Disk {
        /// File or block device.
        path: &'a Path,
        /// hvhost's words, each behind a comma.
        words: &'a str,
    },
    /// A network adapter: its frames are to come out here.
    Net(&'a NetOptions),
}

impl Placed<'_> {
    /// The argument for a hvhost of this machine.
    #[must_use]
    pub fn here(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Disk { path, words } => format!("{}{words}", path.display()),
            Self::Net(options) => options.to_string(),
        }
    }
}

/// Which place to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// KVM where it will do, else nested.
    Auto,
    /// hvhost on this machine's KVM.
    Kvm,
    /// hvhost on the KVM of an emulated machine.
    Nested,
    /// QEMU's emulation, without Hyper-V.
    Qemu,
}

/// A place guests run in, one after the other.
pub enum Host {
    /// hvhost on this machine's KVM.
    Kvm,
    /// hvhost inside an emulated machine.
    Nested(Box<Session>),
    /// QEMU's emulation.
    Qemu(Qemu),
}

impl Host {
    /// Decides and makes ready. The second value says in a line what was chosen
    /// and why. `memory_mib` is the largest guest to come.
    pub fn choose(under: Under, memory_mib: u64) -> Result<(Self, String)> {
        let nested = |why: &str| -> Result<(Self, String)> {
            let session = Session::start(memory_mib)?;
            Ok((
                Self::Nested(Box::new(session)),
                format!("hvhost runs in an emulated machine with nested virtualization: {why}"),
            ))
        };
        match under {
            Under::Auto => match crate::kvm::probe() {
                Ok(()) => Ok((
                    Self::Kvm,
                    "hvhost runs on this machine's KVM, which has Hyper-V's interfaces".into(),
                )),
                Err(why) => nested(&why),
            },
            Under::Kvm => match crate::kvm::probe() {
                Ok(()) => Ok((Self::Kvm, "hvhost runs on this machine's KVM, as asked".into())),
                Err(why) => bail!("--under kvm is not possible: {why}"),
            },
            Under::Nested => nested("as asked"),
            Under::Qemu => Ok((
                Self::Qemu(Qemu::default()),
                "plain QEMU, emulating the processor, without Hyper-V: as asked".into(),
            )),
        }
    }

    /// Runs a guest to its end; its console goes to `output` as it comes, `input`
    /// is connected to it meanwhile.
    pub fn run(
        &mut self,
        machine: &Machine,
        input: &Input,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome> {
        match self {
            Self::Kvm => run_on_kvm(machine, input, output),
            Self::Nested(session) => session.run(machine, input, output),
            Self::Qemu(qemu) => qemu.run(machine, input, output),
        }
    }
}

fn run_on_kvm(machine: &Machine, input: &Input, output: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
    let dir = Scratch::new()?;
    let stats = dir.path().join("stats.json");
    let stats_arg = machine.stats.then(|| stats.display().to_string());
    let mut command = Command::new(artefact::HVHOST.find()?);
    command.args(machine.hvhost_args(stats_arg.as_deref(), |placed| Ok(placed.here()))?);
    // hvhost keeps the time itself; ours is for one that does not.
    let backstop = Machine { timeout: machine.timeout.map(|t| t + OVERTIME), ..machine.clone() };
    let mut outcome = run_child(command, &backstop, input, output)?;
    outcome.stats = std::fs::read_to_string(stats).ok();
    Ok(outcome)
}

/// The writing end of a console: connected while a guest runs; bytes sent
/// before that wait, bytes sent after its end are dropped with it.
#[derive(Clone, Default)]
pub struct Input {
    shared: Arc<(Mutex<Line>, Condvar)>,
}

#[derive(Default)]
enum Line {
    /// No guest yet.
    #[default]
    Waiting,
    Open(Box<dyn Write + Send>),
    Closed,
}

impl Input {
    /// Sends bytes to the guest's console.
    pub fn send(&self, bytes: &[u8]) {
        let (line, opened) = &*self.shared;
        let mut line = lock(line);
        while matches!(*line, Line::Waiting) {
            line = opened.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        if let Line::Open(to) = &mut *line {
            // A guest that is gone needs no input.
            let _ = to.write_all(bytes).and_then(|()| to.flush());
        }
    }

    /// Connects the guest that starts now.
    pub fn open(&self, to: Box<dyn Write + Send>) {
        self.set(Line::Open(to));
    }

    /// The guest is gone.
    pub fn close(&self) {
        self.set(Line::Closed);
    }

    fn set(&self, to: Line) {
        let (line, opened) = &*self.shared;
        *lock(line) = to;
        opened.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Piece {
    Output(Vec<u8>),
    Error(Vec<u8>),
}

fn pump(mut from: impl Read + Send + 'static, to: Sender<Piece>, piece: fn(Vec<u8>) -> Piece) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if to.send(piece(buffer.get(..count).unwrap_or_default().to_vec())).is_err() {
                break;
            }
        }
    });
}

/// Runs a host program whose standard streams are the guest's console.
pub fn run_child(
    mut command: Command,
    machine: &Machine,
    input: &Input,
    output: &mut dyn FnMut(&[u8]),
) -> Result<Outcome> {
    let began = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut reaper = Reaper::spawn(&mut command)?;
    let child = reaper.child();
    let (sender, pieces) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        pump(stdout, sender.clone(), Piece::Output);
    }
    if let Some(stderr) = child.stderr.take() {
        pump(stderr, sender, Piece::Error);
    }
    if let Some(stdin) = child.stdin.take() {
        input.open(Box::new(stdin));
    }
    let mut collected = Collected::new(machine.show_errors);
    let mut timed_out = false;
    loop {
        let wait = match machine.timeout {
            Some(limit) if !timed_out => limit.saturating_sub(began.elapsed()),
            _ => Duration::from_secs(3600),
        };
        match pieces.recv_timeout(wait) {
            Ok(Piece::Output(bytes)) => collected.output(&bytes, output),
            Ok(Piece::Error(bytes)) => collected.error(&bytes),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                timed_out = machine.timeout.is_some_and(|limit| began.elapsed() >= limit);
                if timed_out {
                    child.kill()?;
                }
            }
        }
    }
    input.close();
    let status = child.wait()?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let status = if timed_out { Status::TIMED_OUT } else { Status(code) };
    Ok(collected.outcome(status, began.elapsed()))
}

/// What a guest wrote so far.
#[derive(Default)]
pub struct Collected {
    show_errors: bool,
    console: Vec<u8>,
    errors: Vec<u8>,
}

impl Collected {
    /// Nothing yet; error output is printed as it comes if so asked.
    #[must_use]
    pub fn new(show_errors: bool) -> Self {
        Self { show_errors, ..Self::default() }
    }

    /// Console bytes came.
    pub fn output(&mut self, bytes: &[u8], to: &mut dyn FnMut(&[u8])) {
        self.console.extend_from_slice(bytes);
        to(bytes);
    }

    /// The host program said something.
    pub fn error(&mut self, bytes: &[u8]) {
        self.errors.extend_from_slice(bytes);
        if self.show_errors {
            // The terminal may be raw.
            let text = String::from_utf8_lossy(bytes).replace('\n', "\r\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }

    /// The end.
    #[must_use]
    pub fn outcome(self, status: Status, wall: Duration) -> Outcome {
        let errors = String::from_utf8_lossy(&self.errors).into_owned();
        Outcome { status, console: self.console, errors, stats: None, wall }
    }
}
