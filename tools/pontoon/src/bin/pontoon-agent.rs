//! The helper inside: first process of the emulated Linux in which hvhost runs
//! where the machine itself has no usable KVM, and prober of `/dev/kvm`.
//!
//! As `init` it loads the modules listed in `/modules`, opens the virtio serial
//! port and does what the frames on it say (see `pontoon::protocol`). When the
//! other end goes away it powers the machine off, so nothing outlives its user.

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use pontoon::protocol::{self, Exit, Kind, Run};
use rustix::mount::{MountFlags, mount};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

const PORT: &str = "/dev/vport0p1";

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("probe-kvm") {
        match pontoon::kvm::probe_here() {
            Ok(()) => println!("usable"),
            Err(why) => {
                println!("{why}");
                std::process::exit(1);
            }
        }
        return;
    }
    if std::process::id() != 1 {
        eprintln!(
            "pontoon-agent: started by pontoon inside its emulated machine; use `pontoon boot`"
        );
        std::process::exit(2);
    }
    if let Err(e) = serve() {
        println!("pontoon-agent: {e:#}");
    }
    power_off();
}

fn power_off() -> ! {
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    loop {
        thread::park();
    }
}

fn serve() -> Result<()> {
    for (kind, at) in
        [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp")]
    {
        fs::create_dir_all(at)?;
        mount(kind, at, kind, MountFlags::empty(), None).with_context(|| format!("mount {at}"))?;
    }
    // Only `hvhost --trace` needs it, and says so itself where it is missing.
    let _ = mount("tracefs", "/sys/kernel/tracing", "tracefs", MountFlags::empty(), None);
    for module in fs::read_to_string("/modules").context("/modules")?.lines() {
        let file = File::open(module).with_context(|| module.to_owned())?;
        rustix::system::finit_module(&file, c"", 0).with_context(|| format!("load {module}"))?;
    }
    leave_memory_alone();
    let _machine = idle_machine();
    start_pulse()?;
    let port = open_port()?;
    let mut agent =
        Agent { out: Arc::new(Mutex::new(port.try_clone()?)), running: None, upload: None };
    agent.tell(Kind::HELLO, b"ready");
    let mut from = port;
    while let Some((kind, payload)) = protocol::receive(&mut from)? {
        agent.handle(kind, &payload)?;
    }
    Ok(())
}

/// Has the kernel leave a guest's memory where it is.
///
/// A mapping that KVM takes back is a nested page fault, and slow.
fn leave_memory_alone() {
    const NEVER: &str = "4294967295";
    let huge = "/sys/kernel/mm/transparent_hugepage/khugepaged";
    for (file, value) in [
        (format!("{huge}/scan_sleep_millisecs"), NEVER),
        (format!("{huge}/alloc_sleep_millisecs"), NEVER),
        ("/proc/sys/vm/compaction_proactiveness".into(), "0"),
        // Guest memory is locked: then it stays where it is, whoever wants large pages.
        ("/proc/sys/vm/compact_unevictable_allowed".into(), "0"),
    ] {
        // A kernel without the file does not do it either.
        let _ = fs::write(file, value);
    }
}

/// A virtual machine with a processor, which never runs, so that KVM has one as long as this lives.
///
/// With its first machine, and after its last, KVM has the scheduler's code changed, and its own with a
/// processor whose local APIC is off. Linux changes code by a breakpoint that all processors may meet
/// meanwhile, and QEMU (7.2) may keep it in a translation it made at that moment: each processor
/// that comes there then takes the breakpoint for ever, for the kernel, which sees that there is none,
/// has it try again.
fn idle_machine() -> Option<(VmFd, VcpuFd)> {
    // Where this fails, hvhost fails too, and says why.
    let vm = Kvm::new().ok()?.create_vm().ok()?;
    vm.create_irq_chip().ok()?;
    let vcpu = vm.create_vcpu(0).ok()?;
    Some((vm, vcpu))
}

/// How often each processor gets an interrupt from another.
const PULSE: Duration = Duration::from_millis(20);

/// Keeps the processors' timers going.
///
/// QEMU's VMRUN (7.2, `helper_vmrun`) notes a virtual interrupt among the processor's pending
/// requests by a plain read, change and write, while another thread may note there that the local
/// APIC's timer has fired. That note can get lost. The interrupt then waits in the APIC until
/// another one comes, and a processor that waits for its timer waits for ever. So each processor
/// has a thread that wakes the next one's, which takes an interrupt between processors.
fn start_pulse() -> Result<()> {
    let cpus = thread::available_parallelism()?.get();
    let mut threads = Vec::new();
    let mut starts = Vec::new();
    for cpu in 0..cpus {
        let (start, started) = mpsc::channel();
        let beat = move || {
            let mut here = CpuSet::new();
            here.set(cpu);
            // Woken, it runs at once: a lower one would wait for a tick that may not come.
            let pinned = sched_setaffinity(None, &here).and(setpriority_process(None, -20));
            if let (Ok(()), Ok(next)) = (pinned, started.recv()) {
                pulse(&next);
            }
        };
        threads.push(thread::Builder::new().name(format!("pulse{cpu}")).spawn(beat)?);
        starts.push(start);
    }
    for (start, next) in starts.iter().zip(threads.iter().cycle().skip(1)) {
        // A thread that could not be pinned is gone, and nobody needs it.
        let _ = start.send(next.thread().clone());
    }
    Ok(())
}

/// Wakes `next` now and then; being woken itself is all an early wake-up is for.
fn pulse(next: &Thread) {
    let mut due = Instant::now() + PULSE;
    loop {
        let now = Instant::now();
        if now < due {
            thread::park_timeout(due - now);
        } else {
            next.unpark();
            due = now + PULSE;
        }
    }
}

/// The port appears a moment after its driver.
fn open_port() -> Result<File> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match OpenOptions::new().read(true).write(true).open(PORT) {
            Ok(port) => return Ok(port),
            Err(e) if Instant::now() > until => return Err(e).context(PORT),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The device of a disk that has just been plugged in.
fn find_disk(serial: &str) -> Option<String> {
    find("/sys/block", "serial", serial)
}

/// The device of a port that has just been plugged in.
fn find_port(name: &str) -> Option<String> {
    find("/sys/class/virtio-ports", "name", name)
}

/// The device below `class` whose `attribute` is `wanted`.
fn find(class: &str, attribute: &str, wanted: &str) -> Option<String> {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        for entry in fs::read_dir(class).ok()?.flatten() {
            let found = fs::read_to_string(entry.path().join(attribute)).unwrap_or_default();
            let device = format!("/dev/{}", entry.file_name().to_string_lossy());
            if found.trim_end_matches(['\0', '\n']) == wanted && fs::metadata(&device).is_ok() {
                return Some(device);
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

type SharedPort = Arc<Mutex<File>>;

struct Agent {
    out: SharedPort,
    running: Option<Running>,
    upload: Option<File>,
}

/// A program under way. Its waiter thread reports the end.
struct Running {
    input: ChildStdin,
    child: Arc<Mutex<Child>>,
}

impl Agent {
    fn handle(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        match kind {
            Kind::FILE => {
                let path = String::from_utf8(payload.to_vec())?;
                if let Some((dir, _)) = path.rsplit_once('/') {
                    fs::create_dir_all(format!("{dir}/"))?;
                }
                use std::os::unix::fs::OpenOptionsExt;
                let file = OpenOptions::new()
                    .create(true)
                    .write(true)
                    .truncate(true)
                    .mode(0o755)
                    .open(&path);
                self.upload = Some(file.with_context(|| path.clone())?);
            }
            Kind::DATA => match &mut self.upload {
                Some(file) => file.write_all(payload)?,
                None => anyhow::bail!("file data without a file"),
            },
            Kind::FORGET => {
                let path = String::from_utf8(payload.to_vec())?;
                fs::remove_file(&path).with_context(|| path)?;
            }
            Kind::RUN => {
                // Closes the last file: a program still open for writing cannot be executed.
                self.upload = None;
                let run: Run = serde_json::from_slice(payload)?;
                self.running = None;
                match start(&run, &self.out) {
                    Ok(running) => self.running = Some(running),
                    Err(e) => report(
                        &self.out,
                        &Exit {
                            code: None,
                            signal: None,
                            timed_out: false,
                            failure: Some(format!("{e:#}")),
                            wall_ms: 0,
                        },
                    ),
                }
            }
            Kind::INPUT => {
                if let Some(running) = &mut self.running {
                    // The program may be gone already: its bytes are lost with it.
                    let _ = running.input.write_all(payload).and_then(|()| running.input.flush());
                }
            }
            Kind::DISK => {
                let serial = String::from_utf8(payload.to_vec())?;
                self.tell(Kind::DISK_AT, find_disk(&serial).unwrap_or_default().as_bytes());
            }
            Kind::PORT => {
                let name = String::from_utf8(payload.to_vec())?;
                self.tell(Kind::PORT_AT, find_port(&name).unwrap_or_default().as_bytes());
            }
            Kind::KILL => {
                if let Some(running) = &self.running {
                    let _ = running.child.lock().unwrap_or_else(|e| e.into_inner()).kill();
                }
            }
            other => anyhow::bail!("unknown frame {other:?}"),
        }
        Ok(())
    }

    fn tell(&self, kind: Kind, payload: &[u8]) {
        tell(&self.out, kind, payload);
    }
}

fn tell(out: &SharedPort, kind: Kind, payload: &[u8]) {
    let mut out = out.lock().unwrap_or_else(|e| e.into_inner());
    if protocol::send(&mut *out, kind, payload).is_err() {
        power_off();
    }
}

fn report(out: &SharedPort, exit: &Exit) {
    tell(out, Kind::EXIT, &serde_json::to_vec(exit).unwrap_or_default());
}

fn pump(mut from: impl Read + Send + 'static, kind: Kind, out: &SharedPort) -> JoinHandle<()> {
    let out = Arc::clone(out);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            tell(&out, kind, buffer.get(..count).unwrap_or_default());
        }
    })
}

/// Does `what`, of which programs started stay away from the first processor.
///
/// QEMU (7.2 and 10.0, `cpu_clear_ignne`) changes a word of the first processor's state, which says
/// among other things whether it is in a guest and takes interrupts, whenever any other processor
/// loads an FPU state, by a plain read, change and write. Where the first enters or leaves a guest
/// meanwhile, the word is wrong afterwards: its page tables are taken for the guest's or the guest's
/// for its own, and one of the two goes down with a triple fault. So no guest runs on it.
fn off_first_processor<T>(what: impl FnOnce() -> T) -> Result<T> {
    let all = sched_getaffinity(None).context("sched_getaffinity")?;
    let mut others = all;
    others.unset(0);
    if others.count() == 0 {
        return Ok(what());
    }
    // Children inherit it from the thread that starts them.
    sched_setaffinity(None, &others).context("sched_setaffinity")?;
    let done = what();
    sched_setaffinity(None, &all).context("sched_setaffinity")?;
    Ok(done)
}

fn start(run: &Run, out: &SharedPort) -> Result<Running> {
    let (program, args) = run.argv.split_first().context("no program named")?;
    if let Some(path) = &run.give_back {
        let _ = fs::remove_file(path);
    }
    let began = Instant::now();
    let mut command = Command::new(program);
    command
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .current_dir("/tmp")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = off_first_processor(|| command.spawn())?.with_context(|| program.clone())?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(input), Some(stdout), Some(stderr)) = pipes else { anyhow::bail!("no pipes") };
    let pumps = [pump(stdout, Kind::OUTPUT, out), pump(stderr, Kind::ERROR, out)];
    let child = Arc::new(Mutex::new(child));
    let waiter = (Arc::clone(&child), Arc::clone(out), run.clone());
    thread::spawn(move || {
        let (child, out, run) = waiter;
        let limit = run.timeout_ms.map(Duration::from_millis);
        let mut timed_out = false;
        let status = loop {
            let waited = {
                let mut child = child.lock().unwrap_or_else(|e| e.into_inner());
                if limit.is_some_and(|limit| began.elapsed() > limit) && !timed_out {
                    timed_out = true;
                    let _ = child.kill();
                }
                child.try_wait()
            };
            match waited {
                Ok(Some(status)) => break Some(status),
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                Err(_) => break None,
            }
        };
        let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        for pump in pumps {
            let _ = pump.join();
        }
        // What a program wrote to a disk and did not wait for.
        rustix::fs::sync();
        if let Some(Ok(file)) = run.give_back.as_ref().map(fs::read) {
            tell(&out, Kind::FILE_BACK, &file);
        }
        let code = status.and_then(|s| s.code());
        let signal = status.and_then(|s| s.signal());
        report(&out, &Exit { code, signal, timed_out, failure: None, wall_ms });
    });
    Ok(Running { input, child })
}
