//! `--trace`: what KVM handles itself, counted in the kernel by histograms over
//! KVM's tracepoints: VM exits by reason, hypercalls by code, MSR accesses by
//! number, interrupts by vector. No event is recorded, nothing leaves to user
//! space, and a private tracefs instance keeps it apart from other users.

use crate::stats::MsrCount;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where tracefs may be mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Tracepoints of KVM's and the fields counted by.
const HISTOGRAMS: [(&str, &str); 4] = [
    ("kvm_exit", "isa,exit_reason.hex"),
    ("kvm_hv_hypercall", "code.hex"),
    ("kvm_msr", "ecx.hex,write"),
    ("kvm_inj_virq", "vector.hex"),
];

/// What the tracepoints counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceReport {
    /// VM exits by reason, named where the name is known, else in hexadecimal.
    pub exits: BTreeMap<String, u64>,
    /// Hypercalls by code.
    pub hypercalls: BTreeMap<String, u64>,
    /// MSR accesses that left the guest, by number.
    pub msrs: BTreeMap<String, MsrCount>,
    /// Interrupts injected, by vector.
    pub vectors: BTreeMap<String, u64>,
}

/// Histograms in the kernel; gone when dropped.
#[derive(Debug)]
pub struct Trace {
    instance: PathBuf,
}

impl Trace {
    /// Starts counting for this process's threads called `vcpu…`.
    ///
    /// # Errors
    /// No tracefs, no right to use it, or no KVM tracepoints.
    pub fn start() -> Result<Self> {
        let Some(root) = TRACEFS.into_iter().map(Path::new).find(|p| p.join("events/kvm").exists())
        else {
            bail!("--trace needs tracefs (mount -t tracefs tracefs {}) and root", TRACEFS[0]);
        };
        let instance = root.join("instances").join(format!("hvhost-{}", std::process::id()));
        fs::create_dir(&instance)
            .with_context(|| format!("--trace: cannot create {}", instance.display()))?;
        let trace = Self { instance };
        let filter = thread_filter(&vcpu_threads()?);
        for (event, keys) in HISTOGRAMS {
            let path = trace.event(event).join("trigger");
            let trigger = format!("hist:keys={keys} if {filter}\n");
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                // One write: the kernel takes each for a whole command.
                .and_then(|mut file| file.write_all(trigger.as_bytes()))
                .with_context(|| format!("--trace: {} refuses", path.display()))?;
        }
        Ok(trace)
    }

    fn event(&self, name: &str) -> PathBuf {
        self.instance.join("events/kvm").join(name)
    }

    /// The counts so far.
    #[must_use]
    pub fn report(&self) -> TraceReport {
        let [exits, hypercalls, msrs, vectors] = HISTOGRAMS.map(|(event, _)| {
            parse(&fs::read_to_string(self.event(event).join("hist")).unwrap_or_default())
        });
        let one_key = |lines: Vec<(Vec<u64>, u64)>, digits: usize| {
            let named = lines.into_iter().filter_map(|(keys, count)| {
                keys.first().map(|key| (format!("0x{key:0digits$x}"), count))
            });
            named.collect()
        };
        let mut report = TraceReport {
            hypercalls: one_key(hypercalls, 4),
            vectors: one_key(vectors, 2),
            ..TraceReport::default()
        };
        for (keys, count) in exits {
            if let [reason, isa] = keys[..] {
                *report.exits.entry(exit_name(isa, reason)).or_default() += count;
            }
        }
        for (keys, count) in msrs {
            if let [msr, write] = keys[..] {
                let entry = report.msrs.entry(format!("0x{msr:08x}")).or_default();
                *if write != 0 { &mut entry.writes } else { &mut entry.reads } += count;
            }
        }
        report
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // What cannot be removed here stays visible in tracefs until a reboot.
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Thread ids of this process's virtual processors.
fn vcpu_threads() -> Result<Vec<u32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task").context("--trace: no /proc")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if let (true, Ok(id)) =
            (name.starts_with("vcpu"), entry.file_name().to_string_lossy().parse())
        {
            threads.push(id);
        }
    }
    Ok(threads)
}

fn thread_filter(threads: &[u32]) -> String {
    let terms: Vec<String> = threads.iter().map(|id| format!("common_pid=={id}")).collect();
    terms.join("||")
}

/// Lines `{ a: 10, b: 2 } hitcount: 5` of a histogram. The keys come in the order
/// of their names here, so that the kernel's order does not matter.
fn parse(text: &str) -> Vec<(Vec<u64>, u64)> {
    let line = |line: &str| {
        let (keys, rest) = line.strip_prefix('{')?.split_once('}')?;
        let mut keys: Vec<(&str, u64)> = keys
            .split(',')
            .map(|pair| {
                let (name, value) = pair.split_once(':')?;
                let (name, value) = (name.trim(), value.trim());
                // Fields asked for with `.hex` come without prefix.
                let radix = if matches!(name, "isa" | "write") { 10 } else { 16 };
                Some((name, u64::from_str_radix(value, radix).ok()?))
            })
            .collect::<Option<_>>()?;
        keys.sort_unstable();
        let count = rest.split_once("hitcount:")?.1.trim().parse().ok()?;
        Some((keys.into_iter().map(|(_, value)| value).collect(), count))
    };
    text.lines().filter_map(line).collect()
}

const ISA_VMX: u64 = 1;
const ISA_SVM: u64 = 2;

/// Intel SDM, appendix C; the high half holds flags.
const VMX_NAMES: &[(u64, &str)] = &[
    (0, "exception"),
    (1, "external_interrupt"),
    (7, "interrupt_window"),
    (8, "nmi_window"),
    (10, "cpuid"),
    (12, "hlt"),
    (14, "invlpg"),
    (18, "hypercall"),
    (28, "cr_access"),
    (29, "dr_access"),
    (30, "io"),
    (31, "rdmsr"),
    (32, "wrmsr"),
    (36, "mwait"),
    (40, "pause"),
    (44, "apic_access"),
    (45, "virtualized_eoi"),
    (48, "ept_violation"),
    (49, "ept_misconfig"),
    (52, "preemption_timer"),
    (54, "wbinvd"),
    (55, "xsetbv"),
    (56, "apic_write"),
];

/// AMD APM volume 2, appendix C.
const SVM_NAMES: &[(u64, &str)] = &[
    (0x60, "external_interrupt"),
    (0x61, "nmi"),
    (0x64, "interrupt_window"),
    (0x65, "cr0_selective_write"),
    (0x72, "cpuid"),
    (0x74, "iret"),
    (0x77, "pause"),
    (0x78, "hlt"),
    (0x79, "invlpg"),
    (0x7b, "io"),
    (0x7c, "msr"),
    (0x7f, "shutdown"),
    (0x81, "hypercall"),
    (0x89, "wbinvd"),
    (0x8d, "xsetbv"),
    (0x400, "npf"),
    (0x401, "avic_incomplete_ipi"),
    (0x402, "avic_unaccelerated"),
];

fn exit_name(isa: u64, reason: u64) -> String {
    let (names, reason) = match isa {
        ISA_VMX => (VMX_NAMES, reason & 0xffff),
        ISA_SVM => (SVM_NAMES, reason),
        _ => (&[][..], reason),
    };
    let kind = match (isa, reason) {
        (ISA_SVM, 0..=0x0f) => Some("cr_read"),
        (ISA_SVM, 0x10..=0x1f) => Some("cr_write"),
        (ISA_SVM, 0x20..=0x3f) => Some("dr_access"),
        (ISA_SVM, 0x40..=0x5f) => Some("exception"),
        _ => names.iter().find(|(known, _)| *known == reason).map(|(_, name)| *name),
    };
    kind.map_or_else(|| format!("{reason:#x}"), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_read() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=...\n#\n\n\
            { isa:          2, exit_reason: 7c } hitcount:      12837\n\
            { exit_reason: 400, isa:          2 } hitcount:      19952\n\n\
            Totals:\n    Hits: 69461\n    Entries: 12\n    Dropped: 0\n";
        assert_eq!(parse(text), [(vec![0x7c, 2], 12837), (vec![0x400, 2], 19952)]);
        assert_eq!(
            parse("{ ecx: 40000070, write:          1 } hitcount: 936"),
            [(vec![0x4000_0070, 1], 936)]
        );
        assert!(parse("{ junk } hitcount: x\n{").is_empty());
    }

    #[test]
    fn reasons_have_names() {
        assert_eq!(exit_name(2, 0x7c), "msr");
        assert_eq!(exit_name(2, 0x14), "cr_write");
        assert_eq!(exit_name(2, 0x99), "0x99");
        assert_eq!(exit_name(1, 0x8000_0021), "0x21");
        assert_eq!(exit_name(1, 12), "hlt");
    }

    #[test]
    fn filter_names_each_thread() {
        assert_eq!(thread_filter(&[7, 9]), "common_pid==7||common_pid==9");
    }
}
