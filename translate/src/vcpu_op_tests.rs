use proptest::prelude::*;
use xen_abi::vcpu::Runstate;

use super::*;
use crate::fake::{Call, Machine, catch_shutdown, mfn, va};
use crate::outcome::Outcome;
use crate::platform::{GuestMemory, Shutdown};

fn op(m: &mut Machine, cmd: VcpuOp, id: u64, words: &[u64]) -> HcResult {
    for (index, word) in (0u64..).zip(words) {
        m.plat.poke(va(3).add(index * 8), *word);
    }
    vcpu_op(&mut m.cx(), cmd.0.into(), id, va(3).0)
}

fn bind_timer(m: &mut Machine) -> u32 {
    m.plat.poke(va(3), 0);
    assert_eq!(evtchn::event_channel_op(&mut m.cx(), 1, va(3).0), ret(0));
    m.plat.peek(va(3).add(8)) as u32
}

fn fired(m: &Machine, port: u32) -> bool {
    let bit = 1 << port;
    m.dom.shared_info.evtchn_pending[0].fetch_and(!bit, Ordering::SeqCst) & bit != 0
}

fn armed(m: &Machine) -> Vec<Option<u64>> {
    let calls = m.plat.calls().into_iter();
    calls.filter_map(|call| if let Call::SetTimer(at) = call { Some(at) } else { None }).collect()
}

use std::vec::Vec;

#[test]
fn others_do_not_exist() {
    let mut m = Machine::new();
    for cmd in 0..20 {
        for id in [1, 31, 64, 8191, u64::from(u32::MAX)] {
            assert_eq!(vcpu_op(&mut m.cx(), cmd, id, va(3).0), Err(Errno::ENOENT));
        }
    }
    assert_eq!(op(&mut m, VcpuOp::IS_UP, 0, &[]), ret(1));
    assert_eq!(op(&mut m, VcpuOp::UP, 0, &[]), ret(0));
    assert_eq!(op(&mut m, VcpuOp::INITIALISE, 0, &[]), Err(Errno::EEXIST));
    assert_eq!(vcpu_op(&mut m.cx(), 0, 0, 0), Err(Errno::EFAULT));
    assert_eq!(op(&mut m, VcpuOp::GET_PHYSID, 0, &[]), Err(Errno::EINVAL));
    assert_eq!(vcpu_op(&mut m.cx(), 14, 0, 0), Err(Errno::ENOSYS));
    let down = catch_shutdown(|| op(&mut m, VcpuOp::DOWN, 0, &[]));
    assert_eq!(down, Err(Shutdown::Poweroff));
}

#[test]
fn nmi() {
    let mut m = Machine::new();
    assert_eq!(op(&mut m, VcpuOp::SEND_NMI, 0, &[]), Err(Errno::EINVAL));
    assert_eq!(vcpu_op(&mut m.cx(), 11, 0, 0), ret(0));
    assert!(m.vcpus[0].nmi.pending);
    assert_ne!(m.vcpus[0].entry.attention, 0);
}

#[test]
fn vcpu_info_moves_once() {
    let mut m = Machine::new();
    time::init(&mut m.cx());
    let old = m.info();
    old.arch.cr2.store(0x1234, Ordering::Relaxed);
    let place = |offset: u64| [mfn(6).0, offset];
    assert_eq!(op(&mut m, VcpuOp::REGISTER_VCPU_INFO, 0, &place(4096 - 56)), Err(Errno::ENXIO));
    assert_eq!(op(&mut m, VcpuOp::REGISTER_VCPU_INFO, 0, &place(4)), Err(Errno::ENXIO));
    assert_eq!(op(&mut m, VcpuOp::REGISTER_VCPU_INFO, 0, &[6, 0]), Err(Errno::EINVAL));
    assert_eq!(op(&mut m, VcpuOp::REGISTER_VCPU_INFO, 0, &[u64::MAX, 0]), Err(Errno::EINVAL));
    assert_eq!(op(&mut m, VcpuOp::REGISTER_VCPU_INFO, 0, &place(64)), ret(0));
    let new = m.info();
    let at = MachineAddr(mfn(6).base().0 + 64);
    assert!(core::ptr::eq(new, m.plat.view::<VcpuInfo>(at).expect("a frame")));
    assert!(core::ptr::eq(new, m.dom.vcpus[0].info.lock().expect("set")));
    assert_eq!(new.arch.cr2.load(Ordering::Relaxed), 0x1234);
    assert_eq!(new.evtchn_upcall_mask.load(Ordering::Relaxed), 1);
    assert_eq!(new.evtchn_upcall_pending.load(Ordering::Relaxed), 1);
    assert_eq!(new.evtchn_pending_sel.load(Ordering::Relaxed), u64::MAX);
    assert_eq!(new.time.version.load(Ordering::Relaxed) % 2, 0);
    assert_eq!(new.time.tsc_to_system_mul.load(Ordering::Relaxed), 0x8000_0000);
    assert_eq!(op(&mut m, VcpuOp::REGISTER_VCPU_INFO, 0, &place(128)), Err(Errno::EINVAL));
    // Events go to the new place.
    new.evtchn_upcall_pending.store(0, Ordering::Relaxed);
    new.evtchn_pending_sel.store(0, Ordering::Relaxed);
    let timer = bind_timer(&mut m);
    evtchn::send_virq(&m.dom, &m.plat, 0, 0, xen_abi::event_channel::Virq::TIMER);
    assert!(fired(&m, timer));
    assert_eq!(new.evtchn_upcall_pending.load(Ordering::Relaxed), 1);
}

#[test]
fn singleshot() {
    let mut m = Machine::new();
    let timer = bind_timer(&mut m);
    let now = m.plat.state().now_ns;
    assert_eq!(op(&mut m, VcpuOp::SET_SINGLESHOT_TIMER, 0, &[now + 5000, 0]), ret(0));
    assert_eq!(armed(&m), [Some(now + 5000)]);
    assert!(!fired(&m, timer));
    m.plat.state().now_ns = now + 5000;
    time::timer_interrupt(&mut m.cx());
    assert!(fired(&m, timer));
    // Past: at once, with or without the flag that asks for an error.
    assert_eq!(op(&mut m, VcpuOp::SET_SINGLESHOT_TIMER, 0, &[now, 1]), ret(0));
    assert!(fired(&m, timer));
    let negative = [u64::MAX - 3, 0];
    assert_eq!(op(&mut m, VcpuOp::SET_SINGLESHOT_TIMER, 0, &negative), ret(0));
    assert!(fired(&m, timer));
    assert_eq!(op(&mut m, VcpuOp::SET_SINGLESHOT_TIMER, 0, &[now + 9000, 0]), ret(0));
    assert_eq!(op(&mut m, VcpuOp::STOP_SINGLESHOT_TIMER, 0, &[]), ret(0));
    m.plat.state().now_ns = now + 9000;
    time::timer_interrupt(&mut m.cx());
    assert!(!fired(&m, timer));
}

#[test]
fn periodic() {
    let mut m = Machine::new();
    let timer = bind_timer(&mut m);
    assert_eq!(op(&mut m, VcpuOp::SET_PERIODIC_TIMER, 0, &[999_999]), Err(Errno::EINVAL));
    assert_eq!(op(&mut m, VcpuOp::SET_PERIODIC_TIMER, 0, &[u64::MAX]), Err(Errno::EINVAL));
    let now = m.plat.state().now_ns;
    assert_eq!(op(&mut m, VcpuOp::SET_PERIODIC_TIMER, 0, &[10_000_000]), ret(0));
    assert!(fired(&m, timer), "the last tick was long ago");
    assert_eq!(armed(&m), [Some(now + 10_000_000)]);
    for tick in 1..4 {
        m.plat.state().now_ns = now + tick * 10_000_000;
        time::timer_interrupt(&mut m.cx());
        assert!(fired(&m, timer));
        assert_eq!(armed(&m), [Some(now + (tick + 1) * 10_000_000)]);
    }
    assert_eq!(op(&mut m, VcpuOp::STOP_PERIODIC_TIMER, 0, &[]), ret(0));
    m.plat.state().now_ns = now + 50_000_000;
    time::timer_interrupt(&mut m.cx());
    assert!(!fired(&m, timer));
}

#[test]
fn time_area() {
    let mut m = Machine::new();
    let hole = 0xffff_8000_0000_0000;
    let area = VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA;
    assert_eq!(op(&mut m, area, 0, &[hole]), Err(Errno::EFAULT));
    assert_eq!(op(&mut m, area, 0, &[va(9).0 + 32]), ret(0));
    m.plat.state().tsc_scale.tsc_timestamp = 77;
    m.plat.state().tsc_scale.system_time_ns = 99;
    time::scale_changed(&mut m.cx());
    let record: Vec<u64> = (0..4).map(|i| m.plat.peek(va(9).add(32 + i * 8))).collect();
    assert_eq!(record, [4, 77, 99, 1 << 40 | 1 << 32 | 0x8000_0000]);
    let info = &m.info().time;
    assert_eq!(info.version.load(Ordering::Relaxed), 4);
    assert_eq!(info.tsc_timestamp.load(Ordering::Relaxed), 77);
    assert_eq!(m.dom.shared_info.wc_version.load(Ordering::Relaxed), 2);
    assert_eq!(m.dom.shared_info.wc_sec.load(Ordering::Relaxed), 1_700_000_000);
    // An area that is no longer mapped is not an error.
    m.plat.unmap(va(9));
    time::scale_changed(&mut m.cx());
    assert_eq!(op(&mut m, area, 0, &[0]), ret(0));
}

#[test]
fn another_scale_for_everybody() {
    let mut m = Machine::with(64, 3);
    m.dom.vcpus[2].online.store(false, Ordering::SeqCst);
    let deadline = m.plat.state().now_ns + 1000;
    time::set_singleshot(&mut m.cx_of(1), deadline);
    assert_eq!(armed(&m), [Some(deadline)]);
    m.plat.state().tsc_scale.system_time_ns = 99;
    time::scale_changed(&mut m.cx());
    let times = |m: &Machine| -> Vec<u64> {
        let infos = m.vcpus.iter().map(|vcpu| &vcpu.entry.info.time);
        infos.map(|time| time.system_time.load(Ordering::Relaxed)).collect()
    };
    assert_eq!(times(&m), [99, 0, 0]);
    assert_eq!(m.plat.calls(), [Call::Kick(1)], "one that is not up sees it when it comes up");
    for vcpu in 1..3 {
        requests::take(&mut m.cx_of(vcpu));
    }
    assert_eq!(times(&m), [99, 99, 99]);
    assert_eq!(armed(&m), [Some(deadline)], "by the new one");
}

#[test]
fn runstate_area() {
    let mut m = Machine::new();
    let start = m.plat.state().now_ns;
    time::init(&mut m.cx());
    let area = VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA;
    assert_eq!(op(&mut m, area, 0, &[va(9).0]), ret(0));
    m.plat.state().now_ns = start + 500;
    time::set_runstate(&mut m.cx(), Runstate::BLOCKED);
    assert_eq!(m.plat.peek(va(9)), 2);
    assert_eq!(m.plat.peek(va(9).add(8)), start + 500);
    assert_eq!(m.plat.peek(va(9).add(16)), 500);
    m.plat.state().now_ns = start + 1000;
    time::set_runstate(&mut m.cx(), Runstate::RUNNING);
    m.plat.state().now_ns = start + 20_000_000_000;
    m.plat.state().stolen_ns = 100;
    time::set_runstate(&mut m.cx(), Runstate::RUNNING);
    let times: Vec<u64> = (0..4).map(|i| m.plat.peek(va(9).add(16 + i * 8))).collect();
    let ran = 20_000_000_000 - 500 - 100;
    assert_eq!(times, [ran, 100, 500, start]);
    // The assist leaves no update flag behind, and the read-out includes the current state.
    m.dom.vm_assist.store(1 << 5, Ordering::Relaxed);
    m.plat.state().now_ns += 50;
    assert_eq!(op(&mut m, VcpuOp::GET_RUNSTATE_INFO, 0, &[]), ret(0));
    assert_eq!(m.plat.peek(va(3).add(16)), ran + 50);
    time::set_runstate(&mut m.cx(), Runstate::BLOCKED);
    assert_eq!(m.plat.peek(va(9).add(8)), start + 20_000_000_050);
    assert_eq!(m.plat.peek(va(9).add(16)), ran + 50);
    let hole = 0xffff_8000_0000_0000;
    assert_eq!(op(&mut m, area, 0, &[hole]), Err(Errno::EFAULT));
}

proptest! {
    #[test]
    fn never_panics(
        calls in prop::collection::vec(
            (0u64..16, 0u64..3, prop::array::uniform2(prop_oneof![
                0u64..200, Just(mfn(6).0), Just(va(9).0), any::<u64>(),
            ]), any::<u64>()),
            0..40,
        ),
        at: u64,
    ) {
        let mut m = Machine::with(64, 2);
        for (cmd, id, words, now) in calls {
            m.plat.state().now_ns = now;
            let r = catch_shutdown(|| op(&mut m, VcpuOp(cmd as u32), id, &words));
            prop_assert!(matches!(r, Ok(Err(_) | Ok(Outcome::Return(_) | Outcome::Block)) | Err(_)));
            let _ = catch_shutdown(|| vcpu_op(&mut m.cx(), cmd, id, at));
            time::timer_interrupt(&mut m.cx());
        }
    }
}
