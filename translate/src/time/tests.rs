//! Timers against a model, and the calls that wait (`crate::sched`), whose point is time.

use core::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;
use std::vec::Vec;
use xen_abi::Errno;
use xen_abi::sched::SchedOp;
use xen_abi::vcpu::VcpuRunstateInfo;

use super::*;
use crate::fake::{Call, Machine, catch_shutdown, va};
use crate::outcome::Outcome;
use crate::platform::GuestMemory;
use crate::sched::{Wait, sched_op, sched_op_compat, wake_check};

const S: u64 = 1_000_000_000;

fn op(m: &mut Machine, cmd: SchedOp, words: &[u64]) -> HcResult {
    for (index, word) in (0u64..).zip(words) {
        m.plat.poke(va(3).add(index * 8), *word);
    }
    sched_op(&mut m.cx(), cmd.0.into(), va(3).0)
}

/// Binds VIRQ_TIMER of vCPU 0.
fn bind_timer(m: &mut Machine) -> u32 {
    m.plat.poke(va(3), 0);
    assert_eq!(evtchn::event_channel_op(&mut m.cx(), 1, va(3).0), ret(0));
    m.plat.peek(va(3).add(8)) as u32
}

fn bind_ipi(m: &mut Machine, vcpu: u64) -> u32 {
    m.plat.poke(va(3), vcpu);
    assert_eq!(evtchn::event_channel_op(&mut m.cx(), 7, va(3).0), ret(0));
    (m.plat.peek(va(3)) >> 32) as u32
}

fn send(m: &mut Machine, from: usize, port: u32) {
    m.plat.poke(va(3), port.into());
    assert_eq!(evtchn::event_channel_op(&mut m.cx_of(from), 4, va(3).0), ret(0));
}

fn fired(m: &Machine, port: u32) -> bool {
    let bit = 1 << port;
    m.dom.shared_info.evtchn_pending[0].fetch_and(!bit, SeqCst) & bit != 0
}

fn armed(m: &Machine) -> Vec<Option<u64>> {
    let calls = m.plat.calls().into_iter();
    calls.filter_map(|call| if let Call::SetTimer(at) = call { Some(at) } else { None }).collect()
}

fn advance(m: &Machine, ns: u64) {
    m.plat.state().now_ns += ns;
}

#[test]
fn block_unmasks_and_waits() {
    let mut m = Machine::new();
    let ipi = bind_ipi(&mut m, 0);
    assert_eq!(m.info().evtchn_upcall_mask.load(SeqCst), 1);
    assert_eq!(sched_op_compat(&mut m.cx(), 1, 0), Ok(Outcome::Block));
    assert_eq!(m.info().evtchn_upcall_mask.load(SeqCst), 0);
    assert!(m.dom.vcpus[0].blocked.load(SeqCst));
    assert_eq!(wake_check(&mut m.cx()), None);
    send(&mut m, 0, ipi);
    assert_eq!(wake_check(&mut m.cx()), Some(0));
    assert_eq!(m.vcpus[0].wait, Wait::No);
    assert!(!m.dom.vcpus[0].blocked.load(SeqCst));
    // Pending: no wait at all.
    assert_eq!(op(&mut m, SchedOp::BLOCK, &[]), ret(0));
    m.info().evtchn_upcall_pending.store(0, SeqCst);
    assert_eq!(op(&mut m, SchedOp::BLOCK, &[]), Ok(Outcome::Block));
    m.vcpus[0].nmi.pending = true;
    assert_eq!(wake_check(&mut m.cx()), Some(0));
}

#[test]
fn poll_waits_for_its_port() {
    let mut m = Machine::with(64, 2);
    let mine = bind_ipi(&mut m, 0);
    let other = bind_ipi(&mut m, 1);
    let poll = |m: &mut Machine, ports: u64, timeout: u64| {
        m.plat.poke(va(5), u64::from(mine));
        op(m, SchedOp::POLL, &[va(5).0, ports, timeout])
    };
    // Upcalls stay masked, as for a spinlock; the port itself is masked, too.
    m.dom.shared_info.evtchn_mask[0].store(1 << mine, SeqCst);
    assert_eq!(poll(&mut m, 1, 0), Ok(Outcome::Block));
    assert_eq!(wake_check(&mut m.cx()), None);
    send(&mut m, 1, other);
    assert_eq!(wake_check(&mut m.cx()), None, "another port");
    m.plat.calls();
    send(&mut m, 1, mine);
    assert_eq!(m.plat.calls(), [Call::Kick(0)]);
    assert_eq!(wake_check(&mut m.cx()), Some(0));
    assert_eq!(m.info().evtchn_upcall_pending.load(SeqCst), 0);
    // Pending at once.
    assert_eq!(poll(&mut m, 1, 0), ret(0));
    assert!(fired(&m, mine));
    // Timeout.
    let now = m.plat.state().now_ns;
    assert_eq!(poll(&mut m, 1, now + 700), Ok(Outcome::Block));
    assert_eq!(wake_check(&mut m.cx()), None);
    assert_eq!(armed(&m), [Some(now + 700)]);
    advance(&m, 700);
    timer_interrupt(&mut m.cx());
    assert_eq!(wake_check(&mut m.cx()), Some(0));
    // A timeout that is past or negative.
    for past in [1, u64::MAX] {
        assert_eq!(poll(&mut m, 1, past), Ok(Outcome::Block));
        assert_eq!(wake_check(&mut m.cx()), Some(0));
    }
    // An upcall ends it, even a masked one.
    assert_eq!(poll(&mut m, 1, 0), Ok(Outcome::Block));
    let second = bind_ipi(&mut m, 0);
    send(&mut m, 1, second);
    assert_eq!(wake_check(&mut m.cx()), Some(0));
    // No port at all: any event, or the timeout.
    m.info().evtchn_upcall_pending.store(0, SeqCst);
    assert_eq!(poll(&mut m, 0, now + 5 * S), Ok(Outcome::Block));
    m.vcpus[1].entry.info.evtchn_upcall_mask.store(0, SeqCst);
    fired(&m, other);
    send(&mut m, 1, other);
    assert_eq!(wake_check(&mut m.cx()), Some(0));
}

#[test]
fn poll_errors() {
    let mut m = Machine::new();
    assert_eq!(op(&mut m, SchedOp::POLL, &[va(5).0, 129, 0]), Err(Errno::EINVAL));
    assert_eq!(op(&mut m, SchedOp::POLL, &[0xffff_8000_0000_0000, 1, 0]), Err(Errno::EFAULT));
    assert_eq!(op(&mut m, SchedOp::POLL, &[0x10, 1, 0]), Err(Errno::EFAULT));
    assert_eq!(op(&mut m, SchedOp::POLL, &[va(5).0, 1, 0]), Err(Errno::EINVAL), "port 0");
    assert_eq!(m.dom.sched.pollers(), 0);
    assert_eq!(m.vcpus[0].wait, Wait::No);
}

#[test]
fn shutdown_reasons() {
    let mut m = Machine::new();
    let mut shutdown = |reason| catch_shutdown(|| op(&mut m, SchedOp::SHUTDOWN, &[reason]));
    assert_eq!(shutdown(0), Err(Shutdown::Poweroff));
    assert_eq!(shutdown(1), Err(Shutdown::Reboot));
    assert_eq!(shutdown(2), Ok(ret(1)));
    assert_eq!(shutdown(3), Err(Shutdown::GuestCrash));
    assert_eq!(shutdown(4), Err(Shutdown::Watchdog));
    assert_eq!(shutdown(5), Err(Shutdown::Reboot));
    assert_eq!(shutdown(0x103), Err(Shutdown::GuestCrash), "8 bits count");
    assert_eq!(shutdown(77), Err(Shutdown::Poweroff));
    assert_eq!(catch_shutdown(|| sched_op_compat(&mut m.cx(), 2, 1)), Err(Shutdown::Reboot));
    assert_eq!(sched_op_compat(&mut m.cx(), 3, 0), Err(Errno::ENOSYS));
    // A code given before wins.
    assert_eq!(op(&mut m, SchedOp::SHUTDOWN_CODE, &[1]), ret(0));
    assert_eq!(op(&mut m, SchedOp::SHUTDOWN_CODE, &[3]), ret(0));
    let end = catch_shutdown(|| op(&mut m, SchedOp::SHUTDOWN, &[0]));
    assert_eq!(end, Err(Shutdown::Reboot));
}

#[test]
fn other_sched_ops() {
    let mut m = Machine::new();
    assert_eq!(op(&mut m, SchedOp::YIELD, &[]), ret(0));
    assert_eq!(m.plat.calls(), [Call::YieldHint]);
    assert_eq!(op(&mut m, SchedOp::REMOTE_SHUTDOWN, &[1]), Err(Errno::EPERM));
    assert_eq!(op(&mut m, SchedOp::REMOTE_SHUTDOWN, &[0]), Err(Errno::EPERM));
    assert_eq!(op(&mut m, SchedOp::REMOTE_SHUTDOWN, &[0x7ff0]), Err(Errno::ESRCH));
    assert_eq!(op(&mut m, SchedOp::PIN_OVERRIDE, &[0]), Err(Errno::EPERM));
    assert_eq!(op(&mut m, SchedOp(8), &[]), Err(Errno::ENOSYS));
    assert_eq!(sched_op(&mut m.cx(), 2, 0), Err(Errno::EFAULT));
}

#[test]
fn watchdogs() {
    let mut m = Machine::new();
    let start = m.plat.state().now_ns;
    let mut dog = |id: u64, seconds: u64| op(&mut m, SchedOp::WATCHDOG, &[seconds << 32 | id]);
    assert_eq!(dog(1, 5), Err(Errno::EINVAL), "not taken");
    assert_eq!(dog(0, 10), ret(1));
    assert_eq!(dog(0, 20), ret(2));
    assert_eq!(dog(0, 20), Err(Errno::ENOSPC));
    assert_eq!(dog(3, 20), Err(Errno::EINVAL));
    assert_eq!(dog(1, 30), ret(0));
    assert_eq!(dog(2, 0), ret(0));
    assert_eq!(dog(2, 5), Err(Errno::EINVAL));
    m.plat.state().now_ns = start + 10 * S;
    timer_interrupt(&mut m.cx());
    assert_eq!(armed(&m).last(), Some(&Some(start + 30 * S)));
    m.plat.state().now_ns = start + 30 * S;
    let end = catch_shutdown(|| timer_interrupt(&mut m.cx()));
    assert_eq!(end, Err(Shutdown::Watchdog));
}

#[test]
fn watchdog_at_once() {
    let mut m = Machine::new();
    let end = catch_shutdown(|| op(&mut m, SchedOp::WATCHDOG, &[0]));
    assert_eq!(end, Err(Shutdown::Watchdog));
}

#[test]
fn odd_timeouts() {
    let mut m = Machine::new();
    let timer = bind_timer(&mut m);
    let now = m.plat.state().now_ns;
    assert_eq!(set_timer_op(&mut m.cx(), now + 10), ret(0));
    assert_eq!(armed(&m), [Some(now + 10)]);
    assert_eq!(set_timer_op(&mut m.cx(), 0), ret(0));
    advance(&m, 10);
    timer_interrupt(&mut m.cx());
    assert!(!fired(&m, timer));
    assert_eq!(set_timer_op(&mut m.cx(), now), ret(0));
    assert!(fired(&m, timer), "past");
    for odd in [u64::MAX, 1 << 63, now + 10 + (1 << 51)] {
        assert_eq!(set_timer_op(&mut m.cx(), odd), ret(0));
        assert!(!fired(&m, timer));
    }
    assert_eq!(armed(&m), [Some(now + 10 + S / 10)]);
    let far = now + 10 + (1 << 50) - 1;
    assert_eq!(set_timer_op(&mut m.cx(), far), ret(0));
    assert_eq!(armed(&m), [], "later than armed: left");
}

/// Re-arming costs an exit: only for an earlier deadline, and before a halt.
#[test]
fn lazy_hardware_timer() {
    let mut m = Machine::new();
    let timer = bind_timer(&mut m);
    let now = m.plat.state().now_ns;
    set_singleshot(&mut m.cx(), now + 400);
    set_singleshot(&mut m.cx(), now + 400);
    set_singleshot(&mut m.cx(), now + 900);
    stop_singleshot(&mut m.cx());
    set_singleshot(&mut m.cx(), now + 900);
    assert_eq!(armed(&m), [Some(now + 400)]);
    set_singleshot(&mut m.cx(), now + 300);
    assert_eq!(armed(&m), [Some(now + 300)]);
    set_singleshot(&mut m.cx(), now + 900);
    // The interrupt that was left finds nothing due.
    advance(&m, 300);
    timer_interrupt(&mut m.cx());
    assert!(!fired(&m, timer));
    assert_eq!(armed(&m), [Some(now + 900)]);
    set_singleshot(&mut m.cx(), now + 5000);
    assert_eq!(op(&mut m, SchedOp::BLOCK, &[]), Ok(Outcome::Block));
    assert_eq!(wake_check(&mut m.cx()), None);
    assert_eq!(wake_check(&mut m.cx()), None);
    assert_eq!(armed(&m), [Some(now + 5000)], "exact before a halt, once");
    stop_singleshot(&mut m.cx());
    assert_eq!(wake_check(&mut m.cx()), None);
    assert_eq!(armed(&m), [None]);
}

#[test]
fn due_before_the_halt() {
    let mut m = Machine::new();
    let timer = bind_timer(&mut m);
    let now = m.plat.state().now_ns;
    set_singleshot(&mut m.cx(), now + 400);
    assert_eq!(op(&mut m, SchedOp::BLOCK, &[]), Ok(Outcome::Block));
    advance(&m, 500);
    assert_eq!(wake_check(&mut m.cx()), Some(0));
    assert!(fired(&m, timer));
}

#[derive(Clone, Debug)]
enum Step {
    Singleshot(u64),
    Stop,
    Periodic(u64),
    Advance(u64),
    Halt,
}

/// What the guest reads of its steal time.
fn stolen(m: &Machine) -> u64 {
    let info: VcpuRunstateInfo = m.plat.read_guest(va(9)).unwrap();
    info.time[Runstate::RUNNABLE.0 as usize]
}

#[test]
fn steal_time_is_told_to_those_who_run() {
    let mut m = Machine::new();
    init(&mut m.cx());
    register_runstate(&mut m.cx(), va(9).0);
    m.plat.state().stolen_ns = S / 2;
    // An idle minute: halted but for 10 ms of each second.
    for _ in 0..60 {
        set_runstate(&mut m.cx(), Runstate::BLOCKED);
        advance(&m, 990_000_000);
        set_runstate(&mut m.cx(), Runstate::RUNNING);
        advance(&m, 10_000_000);
        timer_interrupt(&mut m.cx());
        assert_eq!(stolen(&m), 0);
    }
    // 600 ms of running are on the account: 399 more are not enough, and one more is.
    advance(&m, 399_000_000);
    timer_interrupt(&mut m.cx());
    assert_eq!(stolen(&m), 0);
    advance(&m, 1_000_000);
    timer_interrupt(&mut m.cx());
    assert_eq!(stolen(&m), S / 2);
    // From here on it runs: every ten seconds.
    m.plat.state().stolen_ns = S;
    advance(&m, 10 * S - 1);
    timer_interrupt(&mut m.cx());
    assert_eq!(stolen(&m), S / 2);
    advance(&m, 1);
    set_runstate(&mut m.cx(), Runstate::BLOCKED);
    assert_eq!(stolen(&m), S);
}

/// A timer that is put off before each of many short waits is left alone; before a long one it is not.
#[test]
fn short_waits_leave_the_timer() {
    let mut m = Machine::new();
    let begin = m.plat.state().now_ns;
    let (tick, far) = (begin + 4_000_000, begin + S);
    let wait = |m: &mut Machine, ns| {
        set_runstate(&mut m.cx(), Runstate::BLOCKED);
        set_singleshot(&mut m.cx(), far);
        before_halt(&mut m.cx());
        advance(m, ns);
        set_runstate(&mut m.cx(), Runstate::RUNNING);
    };
    set_singleshot(&mut m.cx(), tick);
    assert_eq!(armed(&m), [Some(tick)]);
    // How long they take, nobody knows at first.
    wait(&mut m, 10_000);
    assert_eq!(armed(&m), [Some(far)]);
    for _ in 0..30 {
        set_singleshot(&mut m.cx(), tick);
        wait(&mut m, 10_000);
    }
    let _ = armed(&m);
    for _ in 0..10 {
        set_singleshot(&mut m.cx(), tick);
        wait(&mut m, 10_000);
    }
    assert_eq!(armed(&m), []);
    // A wait that is not over when the tick comes: from there on it is exact.
    let left = tick - m.plat.state().now_ns;
    wait(&mut m, left);
    timer_interrupt(&mut m.cx());
    assert_eq!(armed(&m), [Some(far)]);
    // Nor is it left alone after a long one, were there short ones between.
    for _ in 0..3 {
        let soon = m.plat.state().now_ns + 1_000_000;
        set_singleshot(&mut m.cx(), soon);
        wait(&mut m, 10_000);
        assert_eq!(armed(&m), [Some(soon), Some(far)]);
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..5000).prop_map(Step::Singleshot),
        1 => Just(Step::Stop),
        1 => prop_oneof![Just(0u64), 100u64..3000].prop_map(Step::Periodic),
        5 => (1u64..3000).prop_map(Step::Advance),
        2 => Just(Step::Halt),
    ]
}

proptest! {
    /// However deadlines are set and moved, the hardware timer is never later than the next one,
    /// every deadline fires when it is due and none before.
    #[test]
    fn no_deadline_is_missed(steps in prop::collection::vec(step(), 0..100)) {
        let mut m = Machine::new();
        let timer = bind_timer(&mut m);
        m.info().evtchn_upcall_mask.store(0, SeqCst);
        let mut hardware: Option<u64> = None;
        let mut single: Option<u64> = None;
        for step in steps {
            let now = m.plat.state().now_ns;
            match step {
                Step::Singleshot(ahead) => {
                    set_singleshot(&mut m.cx(), now + ahead);
                    single = Some(now + ahead);
                }
                Step::Stop => {
                    stop_singleshot(&mut m.cx());
                    single = None;
                }
                Step::Periodic(period) => {
                    set_periodic(&mut m.cx(), period);
                    fired(&m, timer);
                }
                Step::Advance(ns) => advance(&m, ns),
                Step::Halt => {
                    before_halt(&mut m.cx());
                    hardware = armed(&m).last().copied().unwrap_or(hardware);
                    let next = next_deadline(&m.cx());
                    prop_assert_eq!(hardware, (next != NEVER).then_some(next), "it never waited");
                }
            }
            hardware = armed(&m).last().copied().unwrap_or(hardware);
            let now = m.plat.state().now_ns;
            if let Some(at) = hardware && at <= now {
                hardware = None;
                timer_interrupt(&mut m.cx());
                hardware = armed(&m).last().copied().unwrap_or(hardware);
            }
            if single.is_some_and(|at| at <= now) {
                prop_assert!(fired(&m, timer), "due and not fired");
                single = None;
            } else if m.vcpus[0].time.periodic_period_ns == 0 {
                prop_assert!(!fired(&m, timer), "fired before its time");
            }
            fired(&m, timer);
            let next = next_deadline(&m.cx());
            prop_assert!(next == NEVER || hardware.is_some_and(|at| at <= next));
        }
    }

    /// The four runstate times add up to the time since the start, whatever happens.
    #[test]
    fn runstate_adds_up(steps in prop::collection::vec((0u32..3, 0u64..5_000_000_000, 0u64..1_000_000_000), 1..40)) {
        let mut m = Machine::new();
        let start = m.plat.state().now_ns;
        init(&mut m.cx());
        register_runstate(&mut m.cx(), va(9).0);
        for (state, ns, stolen) in steps {
            advance(&m, ns);
            m.plat.state().stolen_ns += stolen;
            set_runstate(&mut m.cx(), Runstate(state));
            let info = get_runstate(&mut m.cx());
            let now = m.plat.state().now_ns;
            prop_assert_eq!(info.time.iter().sum::<u64>(), now);
            prop_assert_eq!(info.time[3], start);
        }
    }

    #[test]
    fn never_panics(calls in prop::collection::vec((0u64..10, (any::<u64>(), 0u64..140, any::<u64>()), any::<u64>()), 0..30), at: u64) {
        let mut m = Machine::new();
        for (cmd, (a, b, c), now) in calls {
            let words = [a, b, c];
            m.plat.state().now_ns = now;
            let _ = catch_shutdown(|| op(&mut m, SchedOp(cmd as u32), &words));
            let _ = catch_shutdown(|| sched_op(&mut m.cx(), cmd, at));
            let _ = catch_shutdown(|| sched_op_compat(&mut m.cx(), cmd, at));
            let _ = set_timer_op(&mut m.cx(), words[0]);
            let _ = catch_shutdown(|| wake_check(&mut m.cx()));
            let _ = catch_shutdown(|| timer_interrupt(&mut m.cx()));
        }
    }
}
