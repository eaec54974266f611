//! Boots: every kernel under the shim on hvhost, with host features withheld.
//!
//! Chosen by environment variables, which `cargo xtask` sets from its options:
//! - `PONTOON_E2E_KERNELS`: Debian suites, separated by commas; default: all.
//! - `PONTOON_E2E_WITHOUT`: sets of withheld features, sets separated by `;`,
//!   features by commas; `none` for the full host, `each` for every single
//!   feature, with the tests it can matter to, and all together, with all tests.
//! - `PONTOON_E2E_SHOW=1`: print the guests' consoles as they come.
//! - `PONTOON_E2E_UNDER`: `auto`, `kvm`, `nested` or `qemu`.
//!
//! Without `PONTOON_E2E=1` the tests are ignored: they fetch kernels and take
//! minutes, which a plain `cargo test` should not.
//!
//! They run beside each other, each on a host that runs the guests of other tests before and after.

use anyhow::{Context, Result, bail, ensure};
use hvhost::features::{HvFeatures, NAMES};
use pontoon::cleanup::Scratch;
use pontoon::host::{Host, Input, Machine, Under};
use pontoon::kernel::Kernel;
use pontoon::outcome::{Outcome, Status};
use pontoon_tests::transcript::Transcript;
use pontoon_tests::trials::{Trials, choose_host, shown};
use pontoon_tests::{KERNELS, guests, log, reference};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[path = "e2e/clock.rs"]
mod clock;
#[path = "e2e/disk.rs"]
mod disk;
#[path = "e2e/ide.rs"]
mod ide;
#[path = "e2e/keyboard.rs"]
mod keyboard;
#[path = "e2e/smp.rs"]
mod smp;

const MEMORY_MIB: u64 = 512;
/// The whole stress program takes a minute and a half on a quiet two-core machine, emulated twice.
const LIMIT: Duration = Duration::from_secs(400);
/// Whatever does nothing of it takes ten seconds, and up to a minute on a busy machine. An emulated
/// machine that stands still (docs/hvhost.md) costs so much.
const SHORT_LIMIT: Duration = Duration::from_secs(150);

fn main() -> ExitCode {
    let chosen = list("PONTOON_E2E_KERNELS", ",");
    let takes_all = chosen.is_some();
    let kernels = chosen.unwrap_or_else(|| KERNELS.map(str::to_owned).to_vec());
    let mut trials = Trials::<Lab>::beside_each_other();
    let mut add = |name: String, test: Test, kernel: &str, without: &[String]| {
        let (kernel, without) = (kernel.to_owned(), without.to_vec());
        trials.add(name, move |lab| test(lab, &kernel, &without), Lab::on_a_new_host);
    };
    for kernel in &kernels {
        for set in feature_sets() {
            for (name, test) in TESTS.into_iter().filter(|(name, _)| set.wants(name)) {
                if !takes_all
                    && (kernel != ONE_KERNEL && OF_ONE_KERNEL.contains(&name)
                        || OF_CHOSEN_KERNELS.contains(&name))
                {
                    continue;
                }
                add(format!("{kernel}{}/{name}", set.label), test, kernel, &set.without);
            }
        }
        for (name, test) in NATIVE {
            // An older kernel adds nothing there.
            if name.starts_with("disk") && !KERNELS.contains(&kernel.as_str())
                || !takes_all && kernel != ONE_KERNEL && OF_ONE_KERNEL.contains(&name)
            {
                continue;
            }
            add(format!("{kernel}/native/{name}"), test, kernel, &[]);
        }
    }
    for (name, test) in TINY {
        add(format!("tiny/{name}"), test, name, &[]);
    }
    if trials.will_run() {
        // Before the first test, so that what is said stays out of its line.
        if let Err(e) = trials.shared().host() {
            eprintln!("no place to run guests in: {e:#}");
            return ExitCode::FAILURE;
        }
    }
    trials.run()
}

type Test = fn(&mut Lab, &str, &[String]) -> Result<()>;

const TESTS: [(&str, Test); 19] = [
    ("stress", stress),
    ("timers", timers),
    ("reboot", reboot),
    ("crash", crash),
    ("shell", shell),
    ("moves", clock::moves),
    ("keyboard", keyboard::under_shim),
    ("ide", ide::under_shim),
    ("smp-2", smp::two),
    ("smp-4", smp::four),
    ("smp-8", smp::eight),
    ("smp-16", smp::sixteen),
    ("smp-64", smp::sixty_four),
    ("smp-ends", smp::ends),
    ("smp-fewer", smp::fewer),
    ("smp-missing", smp::missing),
    ("smp-offline", smp::offline),
    ("smp-tsc", smp::other_tsc),
    ("smp-ids", smp::other_ids),
];
/// Tests of what the shim does whatever the kernel: with one, unless kernels were chosen.
const OF_ONE_KERNEL: [&str; 10] = [
    "moves",
    "ide",
    "keyboard",
    "smp-2",
    "smp-ends",
    "smp-fewer",
    "smp-missing",
    "smp-offline",
    "smp-tsc",
    "smp-ids",
];
const ONE_KERNEL: &str = "bookworm";
/// Those that take minutes where there are two processors: of the kernels chosen, if some were.
const OF_CHOSEN_KERNELS: [&str; 3] = ["smp-8", "smp-16", "smp-64"];
const NATIVE: [(&str, Test); 7] = [
    ("detect", native_detect),
    ("withheld", native_withheld),
    ("reboot", native_reboot),
    ("disk", disk::native),
    ("disk-like-openvmm", disk::like_openvmm),
    ("ide", ide::native),
    ("keyboard", keyboard::native),
];

/// Kernels of `tests/guests/tiny`, each its own judge.
const TINY: [(&str, Test); 4] =
    [("traps", tiny), ("user", tiny), ("lazy", lazy), ("hcfuzz", hcfuzz)];

/// Whether guests run where hvhost, and what only it has, is not.
fn in_plain_qemu() -> bool {
    std::env::var("PONTOON_E2E_UNDER").is_ok_and(|under| under == "qemu")
}

fn list(variable: &str, separator: &str) -> Option<Vec<String>> {
    let value = std::env::var(variable).ok().filter(|v| !v.is_empty())?;
    Some(value.split(separator).map(|s| s.trim().to_owned()).collect())
}

/// Features that matter to guests of several processors.
const OF_PROCESSORS: HvFeatures = HvFeatures::HYPERCALL
    .union(HvFeatures::VP_INDEX)
    .union(HvFeatures::SYNIC)
    .union(HvFeatures::APIC_ASSIST)
    .union(HvFeatures::TLB_FLUSH)
    .union(HvFeatures::IPI)
    .union(HvFeatures::EX_MASKS);

/// Host features withheld together.
struct Set {
    label: String,
    without: Vec<String>,
    /// One of [`each`](feature_sets): only the tests the feature can matter to.
    single: Option<HvFeatures>,
}

impl Set {
    fn of(label: &str, without: impl Iterator<Item = &'static str>) -> Self {
        Self {
            label: label.to_owned(),
            without: without.map(str::to_owned).collect(),
            single: None,
        }
    }

    fn all() -> Self {
        Self::of("/without-all", NAMES.iter().map(|(name, _)| *name))
    }

    fn each() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|&(name, feature)| Self {
            single: Some(feature),
            ..Self::of(&format!("/without-{name}"), std::iter::once(name))
        })
    }

    fn wants(&self, test: &str) -> bool {
        match (test, self.single) {
            // They boot, keep time and power off. The full host runs them as part of the stress
            // program.
            ("timers", _) => !self.without.is_empty(),
            // Without crash registers it ends otherwise, which "crash" looks at; the others need VMBus or withhold
            // themselves.
            ("ide" | "keyboard" | "moves" | "smp-ends" | "smp-tsc" | "smp-ids", None) => {
                self.without.is_empty()
            }
            (name, None) => self.without.is_empty() || !OF_CHOSEN_KERNELS.contains(&name),
            ("reboot", Some(feature)) => feature == HvFeatures::RESET,
            ("crash", Some(feature)) => feature == HvFeatures::CRASH,
            ("smp-2", Some(feature)) => OF_PROCESSORS.contains(feature),
            _ => false,
        }
    }
}

/// What `PONTOON_E2E_WITHOUT` asks for.
fn feature_sets() -> Vec<Set> {
    let mut sets = Vec::new();
    for set in list("PONTOON_E2E_WITHOUT", ";").unwrap_or_else(|| vec!["none".into()]) {
        match set.as_str() {
            "none" => sets.push(Set::of("", std::iter::empty())),
            "each" => sets.extend(Set::each().chain(std::iter::once(Set::all()))),
            "all" => sets.push(Set::all()),
            set => sets.push(Set {
                without: set.split(',').map(str::to_owned).collect(),
                ..Set::of(&format!("/without-{set}"), std::iter::empty())
            }),
        }
    }
    sets
}

/// What the tests share; made when first needed.
#[derive(Default)]
struct Lab {
    host: Option<Host>,
    scratch: Option<Scratch>,
    kernels: HashMap<String, Kernel>,
    initrd: Option<PathBuf>,
    /// Machines made ready, by kernel, command line and whether under the shim.
    machines: HashMap<(String, String, bool), Machine>,
}

impl Lab {
    fn kernel(&mut self, spec: &str) -> Result<Kernel> {
        if let Some(kernel) = self.kernels.get(spec) {
            return Ok(kernel.clone());
        }
        let kernel = Kernel::get(spec)?;
        self.kernels.insert(spec.to_owned(), kernel.clone());
        Ok(kernel)
    }

    fn scratch(&mut self) -> Result<PathBuf> {
        if self.scratch.is_none() {
            self.scratch = Some(Scratch::new()?);
        }
        Ok(self.scratch.as_ref().context("scratch")?.path().to_owned())
    }

    fn machine(&mut self, spec: &str, append: &str, shim: bool) -> Result<Machine> {
        let key = (spec.to_owned(), append.to_owned(), shim);
        if let Some(machine) = self.machines.get(&key) {
            return Ok(machine.clone());
        }
        let scratch = self.scratch()?;
        let initrd = match &self.initrd {
            Some(initrd) => initrd.clone(),
            None => {
                let path = scratch.join("initrd");
                std::fs::write(&path, guests::initramfs(&["stress"])?)?;
                self.initrd.insert(path).clone()
            }
        };
        let kernel = self.kernel(spec)?.vmlinuz()?;
        let mut machine = Machine::new(&kernel, Some(&initrd), append);
        machine.memory_mib = MEMORY_MIB;
        machine.timeout = Some(if append.contains("stress") { LIMIT } else { SHORT_LIMIT });
        if shim {
            machine = machine.under_shim(&scratch)?;
        }
        self.machines.insert(key, machine.clone());
        Ok(machine)
    }

    /// A kernel of `tests/guests/tiny` under the shim.
    fn tiny(&mut self, name: &str, append: &str) -> Result<Machine> {
        let name = TINY.into_iter().map(|tiny| tiny.0).find(|&tiny| tiny == name);
        let mut machine = Machine::new(&guests::tiny(name.context("a tiny guest")?)?, None, append);
        machine.memory_mib = MEMORY_MIB;
        machine.timeout = Some(LIMIT);
        machine.under_shim(&self.scratch()?)
    }

    /// The place guests run in.
    fn host(&mut self) -> Result<&mut Host> {
        if self.host.is_none() {
            self.host = Some(choose_host(2 * MEMORY_MIB, true)?);
        }
        self.host.as_mut().context("a host")
    }

    fn run(
        &mut self,
        machine: &Machine,
        input: &Input,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome> {
        let mut output = shown(output);
        let mut run = |lab: &mut Self| lab.host()?.run(machine, input, &mut output);
        // A host that failed is no verdict on its guest: one more chance, on a
        // new host.
        run(self).or_else(|e| {
            eprintln!("once more: {e:#}");
            self.host = None;
            run(self)
        })
    }

    /// A test that failed has a second chance.
    fn on_a_new_host(&mut self) -> bool {
        self.host = None;
        true
    }

    /// Boots `spec` under the shim with a test of the init script.
    fn guest(
        &mut self,
        spec: &str,
        without: &[String],
        test: &str,
    ) -> Result<(Outcome, Transcript)> {
        self.guest_on(spec, without, test, 1)
    }

    /// The same with several processors.
    fn guest_on(
        &mut self,
        spec: &str,
        without: &[String],
        test: &str,
        cpus: u32,
    ) -> Result<(Outcome, Transcript)> {
        let append = format!("console=hvc0 quiet panic=-1 pontoon_test={test}");
        let mut machine = self.machine(spec, &append, true)?;
        machine.without = without.to_vec();
        machine.cpus = cpus;
        let outcome = self.run(&machine, &Input::default(), &mut |_| {})?;
        let transcript = Transcript::of(&outcome);
        Ok((outcome, transcript))
    }
}

fn ended(outcome: &Outcome, transcript: &Transcript, wanted: Status) -> Result<()> {
    if outcome.status != wanted {
        let errors: Vec<_> = outcome.errors.lines().collect();
        let errors = errors.get(errors.len().saturating_sub(25)..).unwrap_or_default().join("\n");
        let (is, should) = (outcome.status.text(), wanted.text());
        bail!("ended by {is}, not by {should}; console:\n{}\nhost:\n{errors}", transcript.tail());
    }
    Ok(())
}

fn is_pv(transcript: &Transcript) -> Result<()> {
    let says = transcript
        .mark("hypervisor")
        .with_context(|| format!("no init; console:\n{}", transcript.tail()))?;
    ensure!(says == "xen PV", "/sys/hypervisor says \"{says}\"");
    Ok(())
}

/// Init, user space, the whole stress program, a clean log, power-off.
fn stress(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    stressed(lab, spec, without, "stress")
}

/// The part of the stress program that waits for the clock and for others.
fn timers(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let part = "stress:nanosleep,timerfd,poll_timeout,sleepers,threads_ping,eventfd";
    stressed(lab, spec, without, part)
}

fn stressed(lab: &mut Lab, spec: &str, without: &[String], test: &str) -> Result<()> {
    let (outcome, transcript) = lab.guest(spec, without, test)?;
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    is_pv(&transcript)?;
    complaints(lab, spec, &transcript)
}

/// Nothing failed, and the kernel says nothing that it does not say under Xen.
fn complaints(lab: &mut Lab, spec: &str, transcript: &Transcript) -> Result<()> {
    let complaints: Vec<_> = transcript.text.lines().filter(|l| !l.starts_with("ok ")).collect();
    ensure!(
        transcript.mark("stress") == Some("0"),
        "the stress program failed:\n{}",
        complaints.join("\n")
    );
    log_is_clean(lab, spec, transcript)
}

fn log_is_clean(lab: &mut Lab, spec: &str, transcript: &Transcript) -> Result<()> {
    let kernel = lab.kernel(spec)?;
    ensure!(transcript.mark("init") == Some(kernel.release.as_str()), "another kernel came up");
    let log = transcript.log.as_ref().context("no kernel log")?;
    let reference = reference::xen_log(&kernel, "stress")?;
    let allowed = log::parse_allow_list(include_str!("../e2e/dmesg-allow.txt"))
        .map_err(anyhow::Error::msg)?;
    let bad = log::unexplained(log, &reference, &allowed);
    ensure!(bad.is_empty(), "the kernel says what it does not under Xen:\n{}", bad.join("\n"));
    Ok(())
}

fn reboot(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let (outcome, transcript) = lab.guest(spec, without, "reboot")?;
    is_pv(&transcript)?;
    ended(&outcome, &transcript, Status::RESET)
}

fn crash(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let (outcome, transcript) = lab.guest(spec, without, "crash")?;
    is_pv(&transcript)?;
    // Without crash MSRs there is nothing to report a crash through: the shim ends by a triple fault,
    // which hosts report, too.
    let reported = !without.iter().any(|f| f == "crash");
    ended(&outcome, &transcript, if reported { Status::CRASH } else { Status::TRIPLE_FAULT })
}

/// The console takes input, and a shell on it answers.
fn shell(lab: &mut Lab, spec: &str, without: &[String]) -> Result<()> {
    let append = "console=hvc0 quiet panic=-1 pontoon_test=shell";
    let mut machine = lab.machine(spec, append, true)?;
    machine.without = without.to_vec();
    let input = Input::default();
    let keyboard = input.clone();
    let mut seen = Vec::new();
    let mut asked = false;
    let outcome = lab.run(&machine, &input, &mut |bytes| {
        seen.extend_from_slice(bytes);
        if !asked && String::from_utf8_lossy(&seen).contains("# ") {
            asked = true;
            keyboard.send(b"echo answer $((6*7))\nexit\n");
        }
    })?;
    let transcript = Transcript::of(&outcome);
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    ensure!(
        transcript.text.contains("answer 42"),
        "the shell did not answer:\n{}",
        transcript.tail()
    );
    Ok(())
}

/// A tiny guest powers off when it liked what it saw, and crashes otherwise.
fn tiny(lab: &mut Lab, name: &str, _: &[String]) -> Result<()> {
    let machine = lab.tiny(name, "")?;
    let outcome = lab.run(&machine, &Input::default(), &mut |_| {})?;
    ended(&outcome, &Transcript::of(&outcome), Status::POWER_OFF)
}

/// Flushes for a vCPU that sleeps. On a host that has hypercalls for them; and in plain QEMU, where nothing
/// else empties a TLB.
fn lazy(lab: &mut Lab, name: &str, _: &[String]) -> Result<()> {
    let mut machine = lab.tiny(name, "turns=200")?;
    machine.cpus = 2;
    let outcome = lab.run(&machine, &Input::default(), &mut |_| {})?;
    ended(&outcome, &Transcript::of(&outcome), Status::POWER_OFF)?;
    machine.append = "turns=4000".to_owned();
    off_in_plain_qemu(&machine)
}

/// It powers off in plain QEMU.
fn off_in_plain_qemu(machine: &Machine) -> Result<()> {
    let (mut host, _) = Host::choose(Under::Qemu, 2 * MEMORY_MIB)?;
    let outcome = host.run(machine, &Input::default(), &mut |_| {})?;
    ended(&outcome, &Transcript::of(&outcome), Status::POWER_OFF)
}

/// Random hypercalls. Always in plain QEMU: what they make of page tables takes QEMU 7.2 down when it
/// emulates nested paging.
fn hcfuzz(lab: &mut Lab, name: &str, _: &[String]) -> Result<()> {
    for cpus in [1, 4] {
        let mut machine = lab.tiny(name, &format!("calls=50000 seed=1 cpus={cpus}"))?;
        machine.cpus = cpus;
        off_in_plain_qemu(&machine)?;
    }
    Ok(())
}

const DETECT: &str = "console=ttyS0 quiet panic=-1 pontoon_test=detect";

/// The judge of hvhost itself: Linux's own Hyper-V support likes what it sees.
fn native_detect(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    let transcript = detected(lab, spec, DETECT, &[])?;
    ensure!(
        transcript.text.contains("Hypervisor detected: Microsoft Hyper-V"),
        "not taken for Hyper-V:\n{}",
        transcript.text
    );
    let clock = transcript.mark("clocksource").unwrap_or_default();
    ensure!(clock.starts_with("hyperv_clocksource"), "clocksource is {clock}");
    Ok(())
}

/// With every feature withheld hvhost is a machine still. An emulated host's ports are too slow to
/// measure the TSC by (docs/hvhost.md), so the kernel is told the rate.
fn native_withheld(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    let full = detected(lab, spec, DETECT, &[])?;
    let rate = full.text.split("tsc: Detected ").nth(1).and_then(|t| t.split_once(" MHz"));
    let (mhz, _) = rate.with_context(|| format!("no rate of the TSC:\n{}", full.text))?;
    // Three decimals, always.
    let append = format!("{DETECT} tsc_early_khz={}", mhz.replace('.', ""));
    let transcript = detected(lab, spec, &append, &Set::all().without)?;
    let clock = transcript.mark("clocksource").unwrap_or_default();
    ensure!(!clock.is_empty() && !clock.contains("hyperv"), "clocksource is {clock}");
    Ok(())
}

/// What a native kernel finds on two processors.
fn detected(lab: &mut Lab, spec: &str, append: &str, without: &[String]) -> Result<Transcript> {
    let mut machine = lab.machine(spec, append, false)?;
    machine.cpus = 2;
    machine.without = without.to_vec();
    let outcome = lab.run(&machine, &Input::default(), &mut |_| {})?;
    let transcript = Transcript::of(&outcome);
    ended(&outcome, &transcript, Status::POWER_OFF)?;
    ensure!(transcript.mark("cpus") == Some("2"), "processors: {:?}", transcript.mark("cpus"));
    Ok(transcript)
}

fn native_reboot(lab: &mut Lab, spec: &str, _: &[String]) -> Result<()> {
    let machine = lab.machine(spec, "console=ttyS0 quiet panic=-1 pontoon_test=reboot", false)?;
    let outcome = lab.run(&machine, &Input::default(), &mut |_| {})?;
    ended(&outcome, &Transcript::of(&outcome), Status::RESET)
}
