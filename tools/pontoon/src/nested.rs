//! hvhost where the machine has no usable KVM: in an emulated machine.
//!
//! ```text
//! this machine        QEMU, emulating a processor with SVM
//!   emulated machine    Debian's kernel with kvm-amd, our agent as init
//!     agent               hvhost on that kernel's KVM
//!       guest               the shim and its guest
//! ```
//!
//! The emulated machine is started once ([`Session::start`]) and runs any
//! number of guests, one after the other. Programs, files, consoles and results
//! travel over one virtio serial port as the frames of [`crate::protocol`].
//! It has no network of its own and no view of this machine's files, and ends when the
//! session does. A guest's disk is plugged in as a disk of the emulated machine for
//! as long as the guest runs ([`crate::plug`]); the frames of its network adapters go
//! through further ports ([`crate::wire`]).

use crate::artefact;
use crate::cleanup::{Reaper, Scratch};
use crate::cpio::Archive;
use crate::host::{Collected, Input, Machine, OVERTIME, Placed};
use crate::kernel::Kernel;
use crate::outcome::{Outcome, Status};
use crate::plug::{Plug, Words};
use crate::protocol::{self, CHUNK_BYTES, Exit, Kind, Run};
use crate::wire::Wire;
use anyhow::{Context, Result, bail};
use hvhost::net::{BackendOptions, NetOptions};
use hvhost::tsc;
use std::collections::HashMap;
use std::fs;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The kernel of the emulated machine: its modules are not compressed and it is
/// known to do nested SVM under emulation.
const KERNEL: &str = "bookworm";
/// Its clock is the TSC, which in emulation is the machine's own and the same on all processors. Left
/// alone the kernel distrusts it, and its KVM then has no reference TSC page to give. A busy machine
/// may let its checks of timers and for stuck processors fail, the first with a panic; and its
/// measurement of the TSC, after which its clock goes up to ten times too fast. The emulated TSC is
/// this machine's, so it is told the rate.
const KERNEL_OPTIONS: &str = "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on \
    tsc=reliable clocksource=tsc no_timer_check nowatchdog";
/// Modules, what they depend on is added.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_blk", "kvm-amd"];
/// Processors of the emulated machine. No guest runs on the first, see the agent.
const CPUS: u32 = 3;
/// Memory of the emulated machine beside its guest's.
const OWN_MIB: u64 = 768;
/// It is up after 2 to 3 s; a busy machine may need longer.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Beyond a guest's own time limit, before the emulated machine counts as stuck.
const GRACE: Duration = Duration::from_secs(30);
const GONE: &str = "the emulated machine is gone";
const STATS: &str = "/tmp/stats.json";

/// A file of ours that is there, too.
struct Sent {
    /// When it was changed last, and its size.
    state: (SystemTime, u64),
    /// Its path there.
    there: String,
    /// The last run that used it.
    used: u64,
}

/// An emulated machine that is up.
pub struct Session {
    writer: Arc<Mutex<UnixStream>>,
    reader: BufReader<UnixStream>,
    sent: HashMap<PathBuf, Sent>,
    /// Files sent so far.
    files: u64,
    /// Programs run so far.
    runs: u64,
    memory_mib: u64,
    plug: Plug,
    /// Networks of the guest that runs.
    wires: Vec<Wire>,
    // Order matters: the machine goes before its directory.
    machine: Reaper,
    dir: Scratch,
}

impl Session {
    /// Starts the emulated machine for guests of up to `guest_mib`.
    pub fn start(guest_mib: u64) -> Result<Self> {
        Self::start_with(guest_mib, &[])
    }

    /// As [`Self::start`], with further arguments for QEMU.
    pub fn start_with(guest_mib: u64, more: &[String]) -> Result<Self> {
        crate::setup::for_running()?;
        let kernel = Kernel::get(KERNEL)?;
        let dir = Scratch::new()?;
        let initrd = dir.path().join("initrd");
        fs::write(&initrd, inner_initramfs(&kernel)?)?;
        let socket = dir.path().join("port");
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        let log = dir.path().join("log");
        let control = dir.path().join("control");
        let mut command = qemu(&kernel.vmlinux()?, &initrd, &socket, &log, guest_mib + OWN_MIB);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", control.display())]);
        command
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("qemu"))?);
        let mut machine = Reaper::spawn(&mut command)?;
        let deadline = Instant::now() + START_LIMIT;
        let stream = loop {
            if let Ok((stream, _)) = listener.accept() {
                break stream;
            }
            if machine.child().try_wait()?.is_some() || Instant::now() > deadline {
                bail!("QEMU does not start: {}", last_words(dir.path()));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(START_LIMIT))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        match protocol::receive(&mut reader) {
            Ok(Some((Kind::HELLO, _))) => {}
            _ => bail!("the emulated machine does not come up: {}", last_words(dir.path())),
        }
        let writer = Arc::new(Mutex::new(stream));
        let plug = Plug::connect(&control).context("QEMU's control socket")?;
        Ok(Self {
            writer,
            reader,
            sent: HashMap::new(),
            files: 0,
            runs: 0,
            memory_mib: guest_mib,
            plug,
            wires: Vec::new(),
            machine,
            dir,
        })
    }

    /// Runs a guest on hvhost.
    pub fn run(
        &mut self,
        machine: &Machine,
        input: &Input,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome> {
        if machine.memory_mib > self.memory_mib {
            bail!(
                "a guest of {} MiB does not fit: this emulated machine was started for {}",
                machine.memory_mib,
                self.memory_mib
            );
        }
        let stats = machine.stats.then_some(STATS);
        let mut argv = ["/hvhost", "--pin", "--lock-memory"].map(str::to_owned).to_vec();
        self.runs += 1;
        let args = machine.hvhost_args(stats, |placed| match placed {
            Placed::File(path) => self.place(path),
            Placed::Disk { path, words } => self.plug_in(path, words),
            Placed::Net(options) => self.wire(options),
        });
        let result = args.and_then(|args| {
            argv.extend(args);
            self.forget_unused()?;
            self.run_program(argv, machine, input, output)
        });
        // Also after a failure, as the next guest may want the same file.
        let unplugged = self.plug.unplug_all();
        self.wires.clear();
        let outcome = result?;
        unplugged.context("a disk or network of the guest could not be taken back")?;
        Ok(outcome)
    }

    /// Runs any program of the emulated machine.
    pub fn run_program(
        &mut self,
        argv: Vec<String>,
        machine: &Machine,
        input: &Input,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome> {
        let limit = machine.timeout.map(|t| t + OVERTIME);
        let timeout_ms = limit.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
        let run = Run { argv, timeout_ms, give_back: machine.stats.then(|| STATS.to_owned()) };
        self.reader.get_ref().set_read_timeout(limit.map(|t| t + GRACE))?;
        self.send(Kind::RUN, &serde_json::to_vec(&run)?)?;
        input.open(Box::new(InputFrames { writer: Arc::clone(&self.writer) }));
        let result = self.follow(machine, output);
        input.close();
        result
    }

    fn follow(&mut self, machine: &Machine, output: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
        let mut collected = Collected::new(machine.show_errors);
        let mut stats = None;
        loop {
            let frame = protocol::receive(&mut self.reader)
                .context("the emulated machine does not answer")?;
            let Some((kind, payload)) = frame else {
                bail!(
                    "the emulated machine went down ({}): {}",
                    self.end(),
                    last_words(self.dir.path())
                )
            };
            match kind {
                Kind::OUTPUT => collected.output(&payload, output),
                Kind::ERROR => collected.error(&payload),
                Kind::FILE_BACK => stats = String::from_utf8(payload).ok(),
                Kind::EXIT => {
                    let exit: Exit = serde_json::from_slice(&payload)?;
                    if let Some(failure) = exit.failure {
                        bail!("the host program does not start: {failure}");
                    }
                    let status = match (exit.timed_out, exit.code, exit.signal) {
                        (true, ..) => Status::TIMED_OUT,
                        (_, Some(code), _) => Status(code),
                        (.., signal) => Status(128 + signal.unwrap_or(0)),
                    };
                    let mut outcome =
                        collected.outcome(status, Duration::from_millis(exit.wall_ms));
                    outcome.stats = stats;
                    return Ok(outcome);
                }
                other => bail!("unknown frame {other:?} from the emulated machine"),
            }
        }
    }

    /// Plugs a disk in; gives its path there, with the words hvhost needs there.
    fn plug_in(&mut self, path: &Path, words: &str) -> Result<String> {
        let words = Words::parse(words);
        let serial = self.plug.plug_in(path, &words)?;
        self.send(Kind::DISK, serial.as_bytes())?;
        match protocol::receive(&mut self.reader)? {
            Some((Kind::DISK_AT, at)) if !at.is_empty() => {
                Ok(String::from_utf8(at)? + &words.there)
            }
            _ => bail!("{} does not appear in the emulated machine", path.display()),
        }
    }

    /// Leads an adapter's frames here; gives hvhost's option there.
    fn wire(&mut self, options: &NetOptions) -> Result<String> {
        let socket = self.dir.path().join(format!("net{}", self.wires.len()));
        let plan = Wire::plan(options, &socket)?;
        let port = self.plug.plug_port(plan.socket())?;
        self.send(Kind::PORT, port.as_bytes())?;
        let there = match protocol::receive(&mut self.reader)? {
            Some((Kind::PORT_AT, at)) if !at.is_empty() => PathBuf::from(String::from_utf8(at)?),
            _ => bail!("a network does not appear in the emulated machine"),
        };
        let (wire, offload) = plan.connect()?;
        self.wires.push(wire);
        let backend = BackendOptions::Socket { path: there, offload };
        Ok(NetOptions { backend, ..options.clone() }.to_string())
    }

    /// Puts a file of ours into the emulated machine, once per state of the
    /// file; gives its path there.
    pub fn place(&mut self, path: &Path) -> Result<String> {
        let meta = fs::metadata(path).with_context(|| path.display().to_string())?;
        let state = (meta.modified()?, meta.len());
        let runs = self.runs;
        if let Some(sent) = self.sent.get_mut(path) {
            if sent.state == state {
                sent.used = runs;
                return Ok(sent.there.clone());
            }
            let there = sent.there.clone();
            self.sent.remove(path);
            self.send(Kind::FORGET, there.as_bytes())?;
        }
        let there = format!("/files/{}", self.files);
        self.files += 1;
        self.upload(path, &there)?;
        self.sent.insert(path.to_owned(), Sent { state, there: there.clone(), used: runs });
        Ok(there)
    }

    /// Makes a file of ours a file there, of this name, for good.
    pub fn upload(&mut self, path: &Path, there: &str) -> Result<()> {
        self.send(Kind::FILE, there.as_bytes())?;
        let mut file = fs::File::open(path).with_context(|| path.display().to_string())?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = file.read(&mut chunk)?;
            if count == 0 {
                break;
            }
            self.send(Kind::DATA, chunk.get(..count).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Removes what this run does not use: files there are in memory.
    fn forget_unused(&mut self) -> Result<()> {
        let runs = self.runs;
        for (_, sent) in self.sent.extract_if(|_, sent| sent.used != runs) {
            send(&self.writer, Kind::FORGET, sent.there.as_bytes()).context(GONE)?;
        }
        Ok(())
    }

    /// How QEMU ended, for an error.
    fn end(&mut self) -> String {
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            match self.machine.child().try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
                _ => return "QEMU is still there".into(),
            }
        }
    }

    fn send(&self, kind: Kind, payload: &[u8]) -> Result<()> {
        send(&self.writer, kind, payload).context(GONE)
    }
}

fn send(writer: &Mutex<UnixStream>, kind: Kind, payload: &[u8]) -> std::io::Result<()> {
    protocol::send(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner), kind, payload)
}

/// Console input on its way in.
struct InputFrames {
    writer: Arc<Mutex<UnixStream>>,
}

impl Write for InputFrames {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        send(&self.writer, Kind::INPUT, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn qemu(kernel: &Path, initrd: &Path, socket: &Path, log: &Path, memory_mib: u64) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,+svm,+npt"])
        .args(["-smp", &CPUS.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-m", &memory_mib.to_string()])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", &format!("{KERNEL_OPTIONS} tsc_early_khz={}", tsc::khz())])
        .args(["-serial", &format!("file:{}", log.display())])
        .args(["-chardev", &format!("socket,id=port,path={}", socket.display())])
        .args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,nr=1"]);
    command
}

/// Agent, hvhost and modules: all the emulated machine has.
fn inner_initramfs(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for dir in ["dev", "proc", "sys", "tmp", "files", "lib"] {
        archive.dir(dir)?;
    }
    archive.device("dev/console", 5, 1)?;
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    archive.file("init", 0o755, &read(&artefact::AGENT.find()?)?)?;
    archive.file("hvhost", 0o755, &read(&artefact::HVHOST.find()?)?)?;
    let mut list = String::new();
    for module in kernel.modules(&MODULES)? {
        let name = format!("lib/{}", module.file_name().unwrap_or_default().to_string_lossy());
        archive.file(&name, 0o644, &read(&module)?)?;
        list.push_str(&format!("/{name}\n"));
    }
    archive.file("modules", 0o644, list.as_bytes())?;
    Ok(archive.finish()?)
}

/// What the emulated machine's console or QEMU itself said last.
fn last_words(dir: &Path) -> String {
    let mut words = String::new();
    for name in ["qemu", "log"] {
        let text = fs::read(dir.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        // A kernel's reason to panic is not the last it says.
        let panic = text.lines().rfind(|l| l.contains("Kernel panic"));
        if let Some(line) = panic.or_else(|| text.lines().rfind(|l| !l.trim().is_empty())) {
            words = line.trim().to_owned();
        }
    }
    if words.is_empty() { "it said nothing".into() } else { words }
}
