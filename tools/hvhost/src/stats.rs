//! Counters of a run, and their JSON form (`docs/hvhost.md` explains the fields).

use crate::kvm_ext::KvmStats;
use crate::netvsp::{NicCounters, NicReport};
use crate::trace::{Trace, TraceReport};
use crate::vmbus::{ChannelCounters, ChannelReport};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Reasons for which a virtual processor returns to this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// Port read.
    IoIn,
    /// Port write.
    IoOut,
    /// Read of unbacked memory.
    MmioRead,
    /// Write to unbacked memory.
    MmioWrite,
    /// EOI of a level-triggered interrupt.
    IoapicEoi,
    /// SynIC page set up.
    HypervSynic,
    /// Hypercall KVM does not do itself.
    HypervHypercall,
    /// MSR read.
    MsrRead,
    /// MSR write.
    MsrWrite,
    /// Signal.
    Interrupted,
    /// Anything else.
    Other,
}

/// Names of [`ExitReason`] in the JSON form, in its order.
pub const EXIT_NAMES: [&str; 11] = [
    "io_in",
    "io_out",
    "mmio_read",
    "mmio_write",
    "ioapic_eoi",
    "hyperv_synic",
    "hyperv_hypercall",
    "msr_read",
    "msr_write",
    "interrupted",
    "other",
];

/// Interrupt lines counted.
pub const GSI_COUNT: usize = 24;

/// Counters, shared by all threads.
#[derive(Debug)]
pub struct Counters {
    started: Instant,
    exits: [AtomicU64; EXIT_NAMES.len()],
    interrupts: [AtomicU64; GSI_COUNT],
    ports: Mutex<BTreeMap<u16, u64>>,
    hypercalls: Mutex<BTreeMap<u16, u64>>,
    msrs: Mutex<BTreeMap<u32, MsrCount>>,
    first_entry: Mutex<Option<Duration>>,
    markers: Mutex<BTreeMap<String, f64>>,
    channels: Mutex<BTreeMap<String, Arc<ChannelCounters>>>,
    nics: Mutex<BTreeMap<String, Arc<NicCounters>>>,
    vmbus_malformed: AtomicU64,
    marker_watch: Mutex<Option<Sender<String>>>,
    kvm: Mutex<KvmFiles>,
}

#[derive(Debug, Default)]
struct KvmFiles {
    vm: Option<KvmStats>,
    vcpus: Vec<KvmStats>,
    trace: Option<Trace>,
}

/// Accesses to one MSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrCount {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// The JSON form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How the run ended (`ExitStatus::name`), or "running" in a snapshot.
    pub outcome: String,
    /// Exit status; `None` in a snapshot.
    pub status: Option<u8>,
    /// Wall time since the program started.
    pub wall_ms: f64,
    /// From the program's start to the first guest instruction.
    pub first_entry_ms: Option<f64>,
    /// Markers (`--marker`): from the program's start to their first sight.
    pub markers_ms: BTreeMap<String, f64>,
    /// Exits to this program by reason.
    pub user_exits: BTreeMap<String, u64>,
    /// Port accesses by port, in hexadecimal.
    pub ports: BTreeMap<String, u64>,
    /// Hypercalls that reached this program, by code in hexadecimal.
    pub hypercalls: BTreeMap<String, u64>,
    /// MSR accesses that reached this program, by number in hexadecimal.
    pub msrs: BTreeMap<String, MsrCount>,
    /// Interrupts this program injected, by line.
    pub interrupts: BTreeMap<String, u64>,
    /// VMBus control messages that made no sense.
    #[serde(default)]
    pub vmbus_malformed: u64,
    /// VMBus channels, by device and sub-channel.
    #[serde(default)]
    pub channels: BTreeMap<String, ChannelReport>,
    /// Network adapters.
    #[serde(default)]
    pub nics: BTreeMap<String, NicReport>,
    /// KVM's own statistics.
    pub kvm: KvmReport,
    /// Counts of KVM's tracepoints (`--trace`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceReport>,
}

/// KVM's own statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmReport {
    /// Of the VM.
    pub vm: BTreeMap<String, u64>,
    /// Sum over all virtual processors.
    pub total: BTreeMap<String, u64>,
    /// Of each virtual processor.
    pub vcpus: Vec<BTreeMap<String, u64>>,
}

/// Locks, going on with the data of a thread that panicked: they are counters.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Default for Counters {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl Counters {
    /// Counters of a run that began at `started`.
    #[must_use]
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            exits: Default::default(),
            interrupts: Default::default(),
            ports: Mutex::default(),
            hypercalls: Mutex::default(),
            msrs: Mutex::default(),
            first_entry: Mutex::default(),
            markers: Mutex::default(),
            channels: Mutex::default(),
            nics: Mutex::default(),
            vmbus_malformed: AtomicU64::new(0),
            marker_watch: Mutex::default(),
            kvm: Mutex::default(),
        }
    }

    /// Adds KVM's statistics of the VM.
    pub fn add_vm(&self, stats: Option<KvmStats>) {
        lock(&self.kvm).vm = stats;
    }

    /// Adds KVM's statistics of the next virtual processor.
    pub fn add_vcpu(&self, stats: Option<KvmStats>) {
        lock(&self.kvm).vcpus.extend(stats);
    }

    /// Adds the tracepoint counts.
    pub fn add_trace(&self, trace: Trace) {
        lock(&self.kvm).trace = Some(trace);
    }

    /// Ends the tracepoint counts.
    pub fn end_trace(&self) {
        lock(&self.kvm).trace = None;
    }

    /// Counts an exit to this program.
    pub fn exit(&self, reason: ExitReason) {
        if let Some(counter) = self.exits.get(reason as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Counts an access to a port.
    pub fn port(&self, port: u16) {
        *lock(&self.ports).entry(port).or_default() += 1;
    }

    /// Counts a hypercall.
    pub fn hypercall(&self, code: u16) {
        *lock(&self.hypercalls).entry(code).or_default() += 1;
    }

    /// Counts an MSR access.
    pub fn msr(&self, index: u32, write: bool) {
        let mut msrs = lock(&self.msrs);
        let count = msrs.entry(index).or_default();
        if write {
            count.writes += 1;
        } else {
            count.reads += 1;
        }
    }

    /// Counts VMBus control messages that made no sense.
    pub fn vmbus_malformed(&self, count: u64) {
        self.vmbus_malformed.fetch_add(count, Relaxed);
    }

    /// Counters of a VMBus channel; the same ones whenever it is opened.
    #[must_use]
    pub fn channel(&self, name: &str) -> Arc<ChannelCounters> {
        lock(&self.channels).entry(name.to_string()).or_default().clone()
    }

    /// Counters of a network adapter; the same ones whenever it is plugged in.
    #[must_use]
    pub fn nic(&self, name: &str) -> Arc<NicCounters> {
        lock(&self.nics).entry(name.to_string()).or_default().clone()
    }

    /// Counts an interrupt injected.
    pub fn interrupt(&self, gsi: usize) {
        if let Some(counter) = self.interrupts.get(gsi) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Notes that the guest is about to run its first instruction.
    pub fn first_entry(&self) {
        lock(&self.first_entry).get_or_insert_with(|| self.started.elapsed());
    }

    /// Notes that a marker was seen; only the first time counts.
    pub fn marker(&self, text: &str) {
        if let Some(watch) = &*lock(&self.marker_watch) {
            // Whoever watched may have ended.
            let _ = watch.send(text.to_string());
        }
        let now = millis(self.started.elapsed());
        lock(&self.markers).entry(text.to_string()).or_insert(now);
    }

    /// Markers from here on, as they are seen.
    #[must_use]
    pub fn watch_markers(&self) -> Receiver<String> {
        let (sender, receiver) = mpsc::channel();
        *lock(&self.marker_watch) = Some(sender);
        receiver
    }

    /// All counters as they stand.
    #[must_use]
    pub fn report(&self, outcome: &str, status: Option<u8>) -> Report {
        let counts = |values: &[AtomicU64]| -> Vec<u64> {
            values.iter().map(|value| value.load(Relaxed)).collect()
        };
        let kvm = lock(&self.kvm);
        let vcpus: Vec<_> = kvm.vcpus.iter().map(KvmStats::read).collect();
        let mut total = BTreeMap::new();
        for (name, value) in vcpus.iter().flatten() {
            let sum: &mut u64 = total.entry(name.clone()).or_default();
            *sum = sum.wrapping_add(*value);
        }
        Report {
            outcome: outcome.into(),
            status,
            wall_ms: millis(self.started.elapsed()),
            first_entry_ms: lock(&self.first_entry).map(millis),
            markers_ms: lock(&self.markers).clone(),
            user_exits: EXIT_NAMES
                .iter()
                .zip(counts(&self.exits))
                .filter(|(_, count)| *count != 0)
                .map(|(name, count)| ((*name).to_string(), count))
                .collect(),
            ports: hex_keys(&lock(&self.ports), 4),
            hypercalls: hex_keys(&lock(&self.hypercalls), 4),
            msrs: hex_keys(&lock(&self.msrs), 8),
            interrupts: counts(&self.interrupts)
                .into_iter()
                .enumerate()
                .filter(|(_, count)| *count != 0)
                .map(|(gsi, count)| (gsi.to_string(), count))
                .collect(),
            vmbus_malformed: self.vmbus_malformed.load(Relaxed),
            channels: lock(&self.channels)
                .iter()
                .map(|(name, counters)| (name.clone(), counters.report()))
                .collect(),
            nics: lock(&self.nics)
                .iter()
                .map(|(name, counters)| (name.clone(), counters.report()))
                .collect(),
            kvm: KvmReport {
                vm: kvm.vm.as_ref().map(KvmStats::read).unwrap_or_default(),
                total,
                vcpus,
            },
            trace: kvm.trace.as_ref().map(Trace::report),
        }
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn hex_keys<K: Copy + Into<u32>, V: Copy>(
    map: &BTreeMap<K, V>,
    digits: usize,
) -> BTreeMap<String, V> {
    map.iter()
        .map(|(key, value)| {
            let key: u32 = (*key).into();
            (format!("0x{key:0digits$x}"), *value)
        })
        .collect()
}

impl Report {
    /// Writes the report; readers never see half of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, path))
            .with_context(|| format!("cannot write counters to {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_back_from_json() {
        let counters = Counters::default();
        counters.exit(ExitReason::IoOut);
        counters.exit(ExitReason::IoOut);
        counters.exit(ExitReason::Other);
        counters.port(0x3f8);
        counters.hypercall(0x5c);
        counters.msr(0x4000_0105, true);
        counters.interrupt(4);
        counters.interrupt(99);
        counters.marker("up");
        counters.first_entry();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.json");
        counters.report("power-off", Some(0)).write(&path).unwrap();
        let report: Report = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(report.user_exits.get("io_out"), Some(&2));
        assert_eq!(report.user_exits.get("other"), Some(&1));
        assert_eq!(report.user_exits.len(), 2);
        assert_eq!(report.ports.get("0x03f8"), Some(&1));
        assert_eq!(report.hypercalls.get("0x005c"), Some(&1));
        assert_eq!(report.msrs.get("0x40000105"), Some(&MsrCount { reads: 0, writes: 1 }));
        assert_eq!(report.interrupts.get("4"), Some(&1));
        assert!(report.markers_ms.contains_key("up"));
        assert_eq!((report.outcome.as_str(), report.status), ("power-off", Some(0)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
