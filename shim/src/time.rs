//! Clocks and the vCPU's hardware timer.
//!
//! System time is the TSC through one conversion for all, started at 0 when the domain is built, and
//! changed only if the host's clock does ([`watch`]). The rate comes from the best source there is:
//! the reference TSC page, the host's frequency MSR, CPUID, or a measurement against the reference
//! counter, the ACPI timer or the PIT.

pub mod watch;

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;
use translate::platform::TscScale;
use translate::time::{SharedScale, mul_shift_hz, ns_to_tsc, tsc_to_ns};

use crate::acpi::{Gas, Power};
use crate::cpu::idt::vector;
use crate::cpu::{Cpu, Features, apic, cpuid};
use crate::hv;
use crate::port;

const NS_PER_S: u64 = 1_000_000_000;

/// The conversion; until the rate is known one in which time stands still.
static SCALE: SharedScale = SharedScale::new();
static WALLCLOCK: Once<(u64, u32)> = Once::new();

#[derive(Clone, Copy, PartialEq, Eq)]
enum Timer {
    Synthetic,
    Apic,
}
static TIMER: Once<Timer> = Once::new();
/// The TSC is emulated at the rate it had: see [`tsc_changed`].
static EMULATED: AtomicBool = AtomicBool::new(false);

/// Reads the TSC.
#[inline]
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC has no preconditions in ring 0.
    unsafe { _rdtsc() }
}

/// Reads the TSC after everything before it.
#[inline]
pub fn rdtsc_ordered() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: neither instruction has preconditions in ring 0.
    unsafe {
        core::arch::asm!("lfence", "rdtsc", out("eax") low, out("edx") high,
            options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// The conversion as the guest is told; before [`init`] one in which time stands still.
#[inline]
pub fn tsc_scale() -> TscScale {
    SCALE.load()
}

/// Nanoseconds of system time.
#[inline]
pub fn now_ns() -> u64 {
    tsc_to_ns(&tsc_scale(), rdtsc())
}

/// Nanoseconds since a TSC reading, which may be older than the clock.
pub fn since(tsc: u64) -> u64 {
    tsc_to_ns(&TscScale { tsc_timestamp: tsc, ..tsc_scale() }, rdtsc())
}

/// Wall-clock time at system time 0.
pub fn wallclock() -> (u64, u32) {
    WALLCLOCK.get().copied().unwrap_or((0, 0))
}

/// A clock's time in ns, and the TSC then: the best of some readings, for in others the host may have
/// run something else meanwhile.
fn reading(clock_ns: &impl Fn() -> u64) -> (u64, u64) {
    const TRIES: usize = 10;
    let tries = (0..TRIES).map(|_| {
        let before = rdtsc_ordered();
        let ns = clock_ns();
        let took = rdtsc_ordered().wrapping_sub(before);
        (took, ns, before.wrapping_add(took / 2))
    });
    tries.min().map_or((0, 0), |(_, ns, tsc)| (ns, tsc))
}

/// The TSC's rate in Hz by a clock in ns, watched for a window of time; 0 where the clock does not go on.
fn measure(clock_ns: impl Fn() -> u64, window_ns: u64) -> u64 {
    let (begin, first) = reading(&clock_ns);
    let mut spins = 0u64;
    while clock_ns().saturating_sub(begin) < window_ns {
        spins += 1;
        if spins > 50_000_000 {
            return 0;
        }
    }
    let (end, last) = reading(&clock_ns);
    let (ticks, ns) = (last.wrapping_sub(first), end.saturating_sub(begin));
    (u128::from(ticks) * u128::from(NS_PER_S) / u128::from(ns.max(1))) as u64
}

const WINDOW_NS: u64 = 50_000_000;

fn by_reference_counter() -> Option<u64> {
    let start = hv::reference_count()?;
    let hz = measure(|| hv::reference_count().unwrap_or(0).wrapping_sub(start) * 100, WINDOW_NS);
    (hz != 0).then_some(hz)
}

fn by_pm_timer(power: &Power) -> Option<u64> {
    const PM_HZ: u64 = 3_579_545;
    let gas = power.pm_timer.filter(|gas| gas.space == Gas::IO)?;
    let read = || port::read::<u32>(gas.address as u16) & 0xff_ffff;
    let start = read();
    if (0..1000).all(|_| read() == start) {
        return None;
    }
    let start = read();
    let hz =
        measure(|| u64::from(read().wrapping_sub(start) & 0xff_ffff) * NS_PER_S / PM_HZ, WINDOW_NS);
    (hz != 0).then_some(hz)
}

fn by_pit() -> Option<u64> {
    const PIT_HZ: u64 = 1_193_182;
    const COUNT: u64 = 59_659;
    const GATE: u16 = 0x61;
    let expired = || port::read::<u8>(GATE) & 0x20 != 0;
    // Channel 2, which drives only the speaker: gate on, speaker off, one-shot, low byte, high byte.
    port::write(GATE, port::read::<u8>(GATE) & !2 | 1);
    port::write(0x43, 0xb0u8);
    port::write(0x42, COUNT as u8);
    port::write(0x42, (COUNT >> 8) as u8);
    if expired() {
        return None;
    }
    let start = rdtsc();
    let done = (0..5_000_000).any(|_| expired());
    let ticks = rdtsc().wrapping_sub(start);
    done.then(|| (u128::from(ticks) * u128::from(PIT_HZ) / u128::from(COUNT)) as u64)
}

/// CPUID leaf 0x15 (crystal) and, for the crystal's missing rate, 0x16.
fn by_cpuid() -> Option<u64> {
    if cpuid(0, 0).eax < 0x15 {
        return None;
    }
    let ratio = cpuid(0x15, 0);
    if ratio.eax == 0 || ratio.ebx == 0 || ratio.ecx == 0 {
        return None;
    }
    Some(u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax))
}

/// Finds the rate; returns it with the name of its source.
fn frequency(power: &Power) -> Option<(u64, &'static str)> {
    hv::reference_tsc()
        .and_then(|page| page.hz())
        .map(|hz| (hz, "reference TSC page"))
        .or_else(|| hv::tsc_frequency().map(|hz| (hz, "frequency MSR")))
        .or_else(|| by_cpuid().map(|hz| (hz, "CPUID")))
        .or_else(|| by_reference_counter().map(|hz| (hz, "reference counter")))
        .or_else(|| by_pm_timer(power).map(|hz| (hz, "ACPI timer")))
        .or_else(|| by_pit().map(|hz| (hz, "PIT")))
}

/// CPUID's invariant TSC. On Hyper-V it shows only once it was asked for, and means that the rate
/// outlives a move to another host.
fn invariant_by_cpuid() -> bool {
    const POWER: u32 = 0x8000_0007;
    cpuid(0x8000_0000, 0).eax >= POWER && cpuid(POWER, 0).edx >> 8 & 1 != 0
}

/// Starts the clock. Returns the rate's source; `None` where there is no clock to measure the TSC
/// with.
pub fn init(power: &Power) -> Option<&'static str> {
    let (hz, source) = frequency(power)?;
    if hz < 1_000_000 {
        return None;
    }
    let (by_cpuid, by_page) = (invariant_by_cpuid(), hv::reference_tsc().is_some());
    // The page says that the TSC is invariant on this host; of the next one it says nothing.
    let invariant = by_cpuid || by_page && hv::keep_tsc_rate(vector::TSC_CHANGED);
    let (mul, shift) = mul_shift_hz(hz);
    let first = watch::reading();
    SCALE.store(&TscScale {
        tsc_timestamp: first.map_or_else(rdtsc, |first| first.after),
        system_time_ns: 0,
        mul,
        shift,
        khz: u32::try_from(hz / 1000).unwrap_or(u32::MAX),
        stable: by_cpuid || by_page,
        invariant,
    });
    if let Some(first) = first.filter(|_| !invariant) {
        watch::begin(hz, first);
    }
    WALLCLOCK
        .call_once(|| (crate::rtc::seconds().unwrap_or(0).saturating_sub(now_ns() / NS_PER_S), 0));
    Some(source)
}

/// The VM was moved to a host whose TSC has another rate, and the TSC is emulated at the old one
/// from now on: slow, but all that was said of it stays true. It is never switched back, because
/// the guest may count on the rate.
pub fn tsc_changed() {
    if !EMULATED.swap(true, Ordering::Relaxed) {
        crate::log!(Warn, "moved to a host of another TSC rate: RDTSC is slow until the next boot");
    }
}

/// Waits by the TSC.
pub fn wait_ms(ms: u32) {
    let end = now_ns() + u64::from(ms) * 1_000_000;
    while now_ns() < end {
        core::hint::spin_loop();
    }
}

/// Nanoseconds this processor was not given although it was not halted.
pub fn stolen_ns(cpu: &Cpu) -> u64 {
    let Some(run) = hv::vp_runtime_ns() else { return 0 };
    let (start, halted) = cpu.steal_base.get().unwrap_or_else(|| {
        let base = (now_ns().saturating_sub(run), cpu.halted_ns.get());
        cpu.steal_base.set(Some(base));
        base
    });
    let halted = cpu.halted_ns.get() - halted;
    now_ns().saturating_sub(start).saturating_sub(run).saturating_sub(halted)
}

/// Chooses and prepares this processor's timer; returns its name.
pub fn init_timer(f: &Features, synic_works: bool) -> &'static str {
    let hv = hv::get().filter(|hv| hv.stimer && (hv.stimer_direct || synic_works));
    let has_reference = hv::reference_tsc().is_some() || hv::reference_count().is_some();
    if let Some(hv) = hv.filter(|_| has_reference) {
        hv::synic::init_timer(hv);
        TIMER.call_once(|| Timer::Synthetic);
        return if hv.stimer_direct {
            "synthetic timer, direct"
        } else {
            "synthetic timer, messages"
        };
    }
    apic::init_timer(f, wait_ms);
    TIMER.call_once(|| Timer::Apic);
    if f.tsc_deadline { "local APIC, TSC deadline" } else { "local APIC, counting" }
}

/// Reference time (100 ns) at a system time: by the reference TSC page, else by the counter itself, a
/// VM exit. A pair of readings kept for later would save that, and drift: a timer that fires early
/// is armed again, over and over.
fn reference_time(deadline_ns: u64, now: u64) -> u64 {
    let ahead = deadline_ns.saturating_sub(now).div_ceil(100);
    // Whose ticks the page counts while the TSC is emulated, nothing says.
    let page = hv::reference_tsc().filter(|_| !EMULATED.load(Ordering::Relaxed));
    let reference = match page {
        Some(page) => page.time_100ns(rdtsc()),
        None => hv::reference_count().unwrap_or(0),
    };
    reference + ahead
}

/// Sets the guest's deadline on this processor, or clears it.
pub fn set_timer(cpu: &Cpu, deadline_ns: Option<u64>) {
    cpu.guest_deadline.set(deadline_ns);
    arm(cpu);
}

/// Sets the devices' deadline on this processor, or clears it. A timer that is armed for earlier
/// stays so, and finds nothing to do: the deadlines of requests move with each of them.
pub fn set_device_timer(cpu: &Cpu, deadline_ns: Option<u64>) {
    cpu.device_deadline.set(deadline_ns);
    if deadline_ns.is_some_and(|ns| cpu.armed.get().is_none_or(|armed| ns < armed)) {
        arm(cpu);
    }
}

/// Below this a deadline of the devices does not wait for the guest's.
const SOON_NS: u64 = 20_000_000;

/// As [`set_device_timer`] where the guest is about to set its timer: one that is not soon is armed
/// with that, or by [`before_halt`].
pub fn set_device_timer_with_the_guests(cpu: &Cpu, deadline_ns: Option<u64>) {
    if deadline_ns.is_some_and(|ns| ns < now_ns().saturating_add(SOON_NS)) {
        set_device_timer(cpu, deadline_ns);
    } else {
        cpu.device_deadline.set(deadline_ns);
    }
}

/// The processor halts: what it is to wake up for must be armed.
pub fn before_halt(cpu: &Cpu) {
    if cpu.armed.get().is_none() && cpu.device_deadline.get().is_some() {
        arm(cpu);
    }
}

/// The timer has fired: it is armed for nothing, and the guest arms it anew.
pub fn fired(cpu: &Cpu) {
    cpu.armed.set(None);
    cpu.guest_deadline.set(None);
}

/// Arms this processor's timer for the first of its deadlines, or stops it. A deadline it is armed
/// for already, by the present conversion, costs nothing.
fn arm(cpu: &Cpu) {
    let deadline_ns = match (cpu.guest_deadline.get(), cpu.device_deadline.get()) {
        (Some(guest), Some(device)) => Some(guest.min(device)),
        (guest, None) => guest,
        (None, device) => device,
    };
    let version = SCALE.version();
    if cpu.armed.get() == deadline_ns && cpu.armed_version.get() == version {
        return;
    }
    cpu.armed.set(deadline_ns);
    cpu.armed_version.set(version);
    let now = now_ns();
    match TIMER.get() {
        Some(Timer::Synthetic) => {
            hv::synic::arm_timer(deadline_ns.map(|ns| reference_time(ns, now)));
        }
        Some(Timer::Apic) => {
            let scale = tsc_scale();
            apic::arm_timer(deadline_ns.map(|ns| (ns_to_tsc(&scale, ns), ns.saturating_sub(now))));
        }
        None => {}
    }
}
