//! Puts the machine together, runs it, and says how it ended.
#![allow(unsafe_code, reason = "guest memory is handed to KVM by address")]

use crate::acpi;
use crate::boot::{self, Payload};
use crate::control::{self, Target};
use crate::cpuid::{self, Shape};
use crate::exit::Outcome;
use crate::features::HvFeatures;
use crate::ioapic::{IoApic, IrqLine, PINS};
use crate::keyboard::Keyboard;
use crate::kvm_ext::{stats_file, supported_hv_cpuid};
use crate::memory::{self, KVM_IDENTITY_MAP, KVM_TSS, Memory};
use crate::migration::Migration;
use crate::msrs::{self, CrashMsrs};
use crate::netvsp::Network;
use crate::options::Options;
use crate::ports::Ports;
use crate::probe;
use crate::routing::{self, Routing};
use crate::screen::{self, Screen};
use crate::serial::{COM_IRQ, Com};
use crate::stats::Counters;
use crate::storvsp::Storage;
use crate::synic::Synic;
use crate::trace::Trace;
use crate::vcpu::{Shared, Vcpu};
use crate::vmbus::Bus;
use anyhow::{Context, Result};
use hv_abi::cpuid::LEAF_VENDOR;
use hv_abi::msr::HV_X64_MSR_EOM;
use kvm_bindings::{
    CpuId, KVM_CAP_HYPERV_ENFORCE_CPUID, KVM_CAP_HYPERV_SYNIC2, KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES, KVM_MSR_EXIT_REASON_FILTER,
    kvm_cpuid_entry2, kvm_enable_cap, kvm_userspace_memory_region, kvm_xcrs,
};
use kvm_ioctls::{
    Cap, Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd,
    VmFd,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::arch::x86_64::__cpuid;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Runs the machine the options describe.
///
/// # Errors
/// One line that says what could not be set up.
pub fn run(options: &Options) -> Result<Outcome> {
    let counters = Arc::new(Counters::new(Instant::now()));
    let hv = options.hv_features()?;
    let payload = read_payload(options)?;
    let kvm = probe::open()?;
    let vm = Arc::new(create_vm(&kvm)?);
    let memory = memory::allocate_with(options.memory.0, options.screen.then_some(screen::REGION))?;
    if options.lock_memory {
        lock(&memory)?;
    }
    map_memory(&vm, &memory)?;
    let entry = load(options, &memory, &payload)?;
    drop(payload);

    let (events, ended) = mpsc::channel();
    watch_signals(options, &counters, &events)?;
    let routing = Routing::new(vm.clone());
    let ioapic = Arc::new(IoApic::new(Box::new(routing.clone()), counters.clone()));
    let [irq1, irq2] = COM_IRQ.map(|pin| IrqLine::new(ioapic.clone(), pin));
    let markers = markers(options);
    if let Some(screen) = Screen::of(&memory) {
        screen.watch(markers.clone(), counters.clone())?;
    }
    let com2 = Com::new(&options.com2, irq2, Vec::new(), counters.clone(), &events)?;
    let com1 = Com::new(&options.com1, irq1, markers, counters.clone(), &events)?;
    let features = hv.unwrap_or(HvFeatures::empty());
    route_msrs(&vm, features)?;
    if probe::has_statistics(&kvm) {
        counters.add_vm(stats_file(&*vm));
    }
    let synic = Arc::new(Synic::new(memory.clone(), options.cpus, Box::new(routing.clone())));
    let bus = features
        .has_vmbus(options.openvmm_like)
        .then(|| Bus::new(&memory, synic.clone(), Some(vm.clone()), counters.clone()));
    let scales = kvm.check_extension(Cap::TscControl);
    let migration = Arc::new(Migration::new(Arc::new(routing.clone()), options.cpus, scales));
    let devices = Target {
        screen: Screen::of(&memory),
        migration: Some(migration.clone()),
        ..devices(bus.as_ref(), &memory, options, &counters)?
    };
    let storage = devices.storage.clone();
    control::start(options, &Arc::new(devices))?;
    let shared = Arc::new(Shared {
        memory,
        synic,
        bus,
        ports: Ports::new(com1.clone(), com2.clone()),
        ioapic,
        crash: Mutex::new(CrashMsrs::default()),
        migration,
        counters: counters.clone(),
    });

    let vcpus = vcpus(create_vcpus(&kvm, &vm, options, hv)?, options, &shared, entry)?;
    start(vcpus, options, &counters, &events, &routing)?;
    let outcome = wait(options, &ended);
    com1.drain();
    com2.drain();
    let settled = storage.map_or(Ok(()), |storage| storage.settle());
    let written = write_stats(options.stats.as_deref(), &counters, Some(&outcome));
    counters.end_trace();
    written?;
    settled?;
    Ok(outcome)
}

/// The texts to look for, each once: one may have several commands.
fn markers(options: &Options) -> Vec<String> {
    let at = options.at.iter().map(|at| at.marker.clone());
    let mut markers: Vec<_> = options.marker.iter().cloned().chain(at).collect();
    markers.sort();
    markers.dedup();
    markers
}

/// What there is on VMBus.
fn devices(
    bus: Option<&Arc<Bus>>,
    memory: &Memory,
    options: &Options,
    counters: &Arc<Counters>,
) -> Result<Target> {
    let mut target = Target { counters: counters.clone(), ..Target::default() };
    if let Some(bus) = bus {
        target.storage = Some(Storage::new(bus.clone(), memory, options)?);
        target.network = Some(Network::new(bus.clone(), memory, options, counters)?);
        if options.keyboard {
            target.keyboard = Some(Keyboard::new(bus.clone())?);
        }
    }
    Ok(target)
}

/// The virtual processors, the first one at its entry.
fn vcpus(
    fds: Vec<VcpuFd>,
    options: &Options,
    shared: &Arc<Shared>,
    entry: boot::Entry,
) -> Result<Vec<Vcpu>> {
    let mut vcpus = Vec::new();
    for (id, fd) in (0u32..).zip(fds) {
        shared.counters.add_vcpu(stats_file(&fd));
        let vcpu = Vcpu::new(id, fd, shared.clone());
        vcpu.set_memory_type()?;
        if id == 0 {
            vcpu.enter(entry)?;
        }
        vcpus.push(vcpu);
    }
    for (index, seconds) in &options.tsc_ahead {
        let vcpu = vcpus.get(*index as usize);
        vcpu.with_context(|| format!("no processor {index}"))?.put_tsc_ahead(*seconds)?;
    }
    Ok(vcpus)
}

fn read_payload(options: &Options) -> Result<Payload> {
    let read =
        |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(Payload {
        kernel: read(&options.kernel)?,
        modules: options.initrd.iter().chain(&options.module).map(read).collect::<Result<_>>()?,
        command_line: options.append.clone(),
    })
}

fn create_vm(kvm: &Kvm) -> Result<VmFd> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    vm.set_identity_map_address(KVM_IDENTITY_MAP).context("KVM_SET_IDENTITY_MAP_ADDR")?;
    vm.set_tss_address(KVM_TSS).context("KVM_SET_TSS_ADDR")?;
    enable_vm_cap(&vm, KVM_CAP_SPLIT_IRQCHIP, PINS as u64).context("KVM_CAP_SPLIT_IRQCHIP")?;
    Ok(vm)
}

fn enable_vm_cap(vm: &VmFd, cap: u32, argument: u64) -> Result<()> {
    let mut request = kvm_enable_cap { cap, ..Default::default() };
    request.args[0] = argument;
    Ok(vm.enable_cap(&request)?)
}

fn map_memory(vm: &VmFd, memory: &Memory) -> Result<()> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let host = memory.get_host_address(region.start_addr()).context("guest memory")?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the region is a mapping of `memory`, of this length; regions do
        // not overlap. `memory` moves into `Shared`, which the threads that run
        // the guest keep; the process ends with the machine.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    }
    Ok(())
}

fn load(options: &Options, memory: &Memory, payload: &Payload) -> Result<boot::Entry> {
    let tables = acpi::tables(options.cpus);
    memory.write_slice(&tables.image, GuestAddress(tables.rsdp)).context("cannot place ACPI")?;
    let machine = boot::Machine {
        memory,
        map: &memory::memory_map(options.memory.0),
        rsdp: tables.rsdp,
        openvmm_like: options.openvmm_like,
    };
    boot::load(&machine, payload, options.door)
}

/// Has accesses to the MSRs that are done here handed out, where they are offered.
fn route_msrs(vm: &VmFd, features: HvFeatures) -> Result<()> {
    let range = |base: u32, msr_count: u32, flags| MsrFilterRange {
        flags,
        base,
        msr_count,
        // Bits of zero: none of the range is KVM's own to do.
        bitmap: &[0],
    };
    let mut ranges = Vec::new();
    if features.contains(HvFeatures::CRASH) {
        let count = msrs::RANGE.end() - msrs::RANGE.start() + 1;
        let both = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
        ranges.push(range(*msrs::RANGE.start(), count, both));
    }
    if features.contains(HvFeatures::SYNIC) {
        ranges.push(range(HV_X64_MSR_EOM, 1, MsrFilterRangeFlags::WRITE));
    }
    if ranges.is_empty() {
        return Ok(());
    }
    let reason = u64::from(KVM_MSR_EXIT_REASON_FILTER);
    enable_vm_cap(vm, KVM_CAP_X86_USER_SPACE_MSR, reason).context("KVM_CAP_X86_USER_SPACE_MSR")?;
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges).context("KVM_X86_SET_MSR_FILTER")
}

/// Locks guest memory, each page when it is first used.
fn lock(memory: &Memory) -> Result<()> {
    for region in memory.iter() {
        let (at, bytes) = (region.as_ptr().cast(), usize::try_from(region.len())?);
        // SAFETY: the region is this process' own mapping; what is in it does not change.
        if unsafe { libc::mlock2(at, bytes, libc::MLOCK_ONFAULT) } != 0 {
            let error = std::io::Error::last_os_error();
            return Err(error).context("guest memory cannot be locked");
        }
    }
    Ok(())
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    options: &Options,
    hv: Option<HvFeatures>,
) -> Result<Vec<VcpuFd>> {
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    let hv_supported = if hv.is_some() { supported_hv_cpuid(kvm)? } else { Vec::new() };
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let host = __cpuid(LEAF_VENDOR);
    let fixed_xcr0 = cpuid::fixed_xcr0([host.ebx, host.ecx, host.edx]);
    (0..options.cpus)
        .map(|id| {
            let told = options.cpuid_id.iter().find(|(index, _)| *index == id).map(|(_, id)| *id);
            let shape = Shape {
                id,
                told_id: told.unwrap_or(id),
                cpus: options.cpus,
                hv,
                tsc_deadline,
                openvmm_like: options.openvmm_like,
                fixed_xcr0,
            };
            let leaves = cpuid::shape(supported.as_slice(), &hv_supported, &shape);
            create_vcpu(vm, &shape, &leaves)
                .with_context(|| format!("cannot create virtual processor {id}"))
        })
        .collect()
}

fn create_vcpu(vm: &VmFd, shape: &Shape, leaves: &[kvm_cpuid_entry2]) -> Result<VcpuFd> {
    let fd = vm.create_vcpu(shape.id.into()).context("KVM_CREATE_VCPU")?;
    if let Some(features) = shape.hv {
        // OpenVMM's hypercalls for messages and events work although no privilege
        // says so; KVM can only enforce all or nothing.
        if !shape.openvmm_like {
            let mut cap =
                kvm_enable_cap { cap: KVM_CAP_HYPERV_ENFORCE_CPUID, ..Default::default() };
            cap.args[0] = 1;
            fd.enable_cap(&cap).context("KVM_CAP_HYPERV_ENFORCE_CPUID")?;
        }
        // KVM's timers need its SynIC, even in direct mode; the SynIC's own MSRs
        // stay closed where it is withheld.
        if features.intersects(HvFeatures::SYNIC | HvFeatures::STIMER) {
            let cap = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
            fd.enable_cap(&cap).context("KVM_CAP_HYPERV_SYNIC2")?;
        }
    }
    let cpuid = CpuId::from_entries(leaves).map_err(|e| anyhow::anyhow!("CPUID: {e:?}"))?;
    fd.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
    if let Some(value) = shape.fixed_xcr0 {
        let supported =
            leaves.iter().find(|e| e.function == 0xd && e.index == 0).map_or(0, |e| e.eax);
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = value & u64::from(supported);
        // A processor without XSAVE has no XCR0 to set.
        if supported != 0 {
            fd.set_xcrs(&xcrs).context("KVM_SET_XCRS")?;
        }
    }
    Ok(fd)
}

/// Starts a thread for each virtual processor.
fn start(
    vcpus: Vec<Vcpu>,
    options: &Options,
    counters: &Counters,
    events: &Sender<Outcome>,
    routing: &Routing,
) -> Result<()> {
    routing::catch_kicks()?;
    // Tracing wants to know the threads, by their names, before they run: they
    // wait once until all are there and once until it has started.
    let ready = Arc::new(Barrier::new(vcpus.len() + 1));
    let mut threads = Vec::new();
    let places = if options.pin { processors()? } else { Vec::new() };
    let mut places = places.into_iter().cycle();
    for (id, mut vcpu) in vcpus.into_iter().enumerate() {
        let (events, ready, place) = (events.clone(), ready.clone(), places.next());
        let dead = options.dead_cpu.iter().any(|dead| *dead as usize == id);
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                if let Some(place) = place {
                    // Of those this program may use; one that went offline since is not worth more.
                    let _ = sched_setaffinity(None, &place);
                }
                ready.wait();
                ready.wait();
                if dead {
                    loop {
                        thread::park();
                    }
                }
                // The receiver lives until the program ends.
                let _ = events.send(vcpu.run());
            })
            .context("cannot start a thread for a virtual processor")?;
        threads.push(thread);
    }
    routing.set_threads(threads);
    ready.wait();
    if options.trace {
        counters.add_trace(Trace::start()?);
    }
    counters.first_entry();
    ready.wait();
    Ok(())
}

/// The processors this program may use, one by one.
fn processors() -> Result<Vec<CpuSet>> {
    let all = sched_getaffinity(None).context("sched_getaffinity")?;
    let one = |cpu| {
        let mut set = CpuSet::new();
        set.set(cpu);
        set
    };
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).map(one).collect())
}

/// Turns signals into events; SIGUSR1 into snapshots of the counters.
fn watch_signals(
    options: &Options,
    counters: &Arc<Counters>,
    events: &Sender<Outcome>,
) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1])
        .context("cannot watch signals")?;
    let (counters, events, stats) = (counters.clone(), events.clone(), options.stats.clone());
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut snapshots = 0u32;
            for signal in signals.forever() {
                if signal != SIGUSR1 {
                    let _ = events.send(Outcome::Signal(signal));
                    continue;
                }
                let Some(path) = &stats else { continue };
                let mut name = path.as_os_str().to_owned();
                name.push(format!(".{snapshots}"));
                snapshots += 1;
                if let Err(error) = write_stats(Some(Path::new(&name)), &counters, None) {
                    eprintln!("hvhost: {error:#}\r");
                }
            }
        })
        .context("cannot start the signal thread")?;
    Ok(())
}

fn wait(options: &Options, ended: &mpsc::Receiver<Outcome>) -> Outcome {
    let outcome = match options.time_limit() {
        Some(limit) => ended.recv_timeout(limit),
        None => ended.recv().map_err(|_| RecvTimeoutError::Disconnected),
    };
    outcome.unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Outcome::Timeout,
        RecvTimeoutError::Disconnected => Outcome::HostError("all threads have ended".into()),
    })
}

fn write_stats(path: Option<&Path>, counters: &Counters, end: Option<&Outcome>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let report = match end {
        Some(outcome) => {
            let status = outcome.status();
            counters.report(status.name(), Some(status.0))
        }
        None => counters.report("running", None),
    };
    report.write(path)
}

// What `route_msrs` asks KVM for is what `MsrExitReason` calls a filter exit.
const _: () = assert!(MsrExitReason::Filter.bits() == KVM_MSR_EXIT_REASON_FILTER);
