use std::boxed::Box;

use super::*;
use crate::fake::{Call, FakePlatform, Machine, catch_shutdown, mfn, va};
use crate::platform::GuestMemory;
use crate::sched;
use crate::vcpu_op::vcpu_op;
use xen_abi::sched::SchedOp;
use xen_abi::shared_info::VcpuInfo;
use xen_abi::vcpu::VcpuOp;
use zerocopy::FromZeros;

/// Frames: the L4 and the GDT of the new vCPU; two for its context.
const L4: u64 = 20;
const GDT: u64 = 21;
const CONTEXT: u64 = 24;
const TEXT: u64 = 0xffff_ffff_8100_0000;

fn op(m: &mut Machine, by: usize, cmd: VcpuOp, id: u64) -> HcResult {
    vcpu_op(&mut m.cx_of(by), cmd.0.into(), id, va(CONTEXT).0)
}

/// A context as Linux fills it.
fn context() -> Box<VcpuGuestContext> {
    let mut context = Box::new(VcpuGuestContext::new_zeroed());
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rip = TEXT;
    context.user_regs.rsp = va(30).0;
    context.user_regs.rflags = 0x1000;
    context.user_regs.cs = 0x10;
    context.user_regs.ss = 0x18;
    context.trap_ctxt[0] = TrapInfo { vector: 14, flags: 4, cs: 0x10, pad: 0, address: TEXT + 14 };
    context.trap_ctxt[14] = context.trap_ctxt[0];
    context.trap_ctxt[0].address = 0;
    context.gdt_frames[0] = mfn(GDT).0;
    context.gdt_ents = 16;
    context.kernel_sp = va(31).0 + 8;
    context.ctrlreg[3] = mfn(L4).0 << 12;
    context.event_callback_eip = TEXT + 1;
    context.failsafe_callback_eip = TEXT + 2;
    context.gs_base_kernel = va(32).0;
    context
}

fn write(m: &Machine, context: &VcpuGuestContext) {
    m.plat.copy_to_guest(va(CONTEXT), context.as_bytes()).unwrap();
}

fn machine() -> Machine {
    let mut m = Machine::with(64, 2);
    m.make_new(1);
    write(&m, &context());
    m
}

fn kicks(m: &Machine) -> usize {
    m.plat.calls().iter().filter(|call| **call == Call::Kick(1)).count()
}

#[test]
fn from_new_to_up() {
    let mut m = machine();
    assert_eq!(op(&mut m, 0, VcpuOp::IS_UP, 1), ret(0));
    assert_eq!(op(&mut m, 0, VcpuOp::UP, 1), Err(Errno::EINVAL), "without a context");
    assert_eq!(op(&mut m, 0, VcpuOp::INITIALISE, 1), ret(0));
    assert_eq!(op(&mut m, 0, VcpuOp::INITIALISE, 1), Err(Errno::EEXIST));
    assert!(!m.take_over(1));
    assert_eq!(kicks(&m), 0);
    assert_eq!(op(&mut m, 0, VcpuOp::UP, 1), ret(0));
    assert_eq!(op(&mut m, 0, VcpuOp::UP, 1), ret(0));
    assert_eq!(kicks(&m), 1);
    assert_eq!(op(&mut m, 0, VcpuOp::IS_UP, 1), ret(1));
    assert!(m.take_over(1));
    let regs = enter(&mut m.cx_of(1));
    assert_eq!((regs.rip, regs.rsp, regs.rflags), (TEXT, va(30).0, 0x202));
    assert_eq!((regs.cs, regs.ss), (selector::KERNEL_CS.into(), selector::KERNEL_SS.into()));
    let vcpu = &m.vcpus[1];
    assert_eq!((vcpu.entry.event_callback, vcpu.entry.kernel_sp), (TEXT + 1, va(31).0));
    assert_eq!(vcpu.traps.handler(14).address, TEXT + 14);
    assert_eq!(vcpu.control.iopl, 1);
    assert_eq!(m.dom.vcpus[1].roots.frames(), [mfn(L4).0; 2]);
    assert_eq!(m.plat.state().gs_base, va(32).0);
    let calls = m.plat.calls();
    assert!(calls.contains(&Call::LoadCr3(mfn(L4))));
    assert!(calls.contains(&Call::LoadGdt([mfn(GDT)].to_vec())));
    let version = &m.dom.shared_info.vcpu_info[1].time.version;
    assert_ne!(version.load(Ordering::Relaxed), 0, "its clock runs");
}

/// Whatever the processor could not load is refused, and the vCPU stays as new.
#[test]
fn bad_contexts() {
    let bad: [fn(&mut VcpuGuestContext); 9] = [
        |c| c.user_regs.rip = 1 << 47,
        |c| c.event_callback_eip = 1 << 62,
        |c| c.gs_base_user = 1 << 47,
        |c| c.trap_ctxt[3].address = 1 << 50,
        |c| c.gdt_frames[0] = 1,
        |c| c.gdt_ents = 14 * 512 + 1,
        |c| (c.ldt_base, c.ldt_ents) = (0x1008, 4),
        |c| c.ctrlreg[3] = 0x5000,
        |c| c.ctrlreg[1] = 0x5000,
    ];
    let mut m = machine();
    for (number, spoil) in bad.iter().enumerate() {
        let mut context = context();
        spoil(&mut context);
        write(&m, &context);
        assert_eq!(op(&mut m, 0, VcpuOp::INITIALISE, 1), Err(Errno::EINVAL), "{number}");
        assert_eq!(m.dom.vcpus[1].stage(), Stage::New);
    }
    let bad = vcpu_op(&mut m.cx(), VcpuOp::INITIALISE.0.into(), 1, va(63).0);
    assert_eq!(bad, Err(Errno::EFAULT));
    write(&m, &context());
    assert_eq!(op(&mut m, 0, VcpuOp::INITIALISE, 1), ret(0));
}

/// A page table that went between initialise and up ends the domain, not ring 0.
#[test]
fn a_page_table_that_went() {
    let mut m = machine();
    assert_eq!(op(&mut m, 0, VcpuOp::INITIALISE, 1), ret(0));
    assert!(m.plat.release_frame(mfn(L4)));
    assert_eq!(op(&mut m, 0, VcpuOp::UP, 1), ret(0));
    assert!(m.take_over(1));
    let end = catch_shutdown(|| enter(&mut m.cx_of(1)));
    assert_eq!(end, Err(Shutdown::DomainCrash("a vCPU's page table is gone")));
}

fn up(m: &mut Machine) {
    assert_eq!(op(m, 0, VcpuOp::INITIALISE, 1), ret(0));
    assert_eq!(op(m, 0, VcpuOp::UP, 1), ret(0));
    assert!(m.take_over(1));
    enter(&mut m.cx_of(1));
    m.plat.calls();
}

fn wake<'a>(m: &'a mut Machine) -> Option<i64> {
    let mut cx: Ctx<'a, FakePlatform> = m.cx_of(1);
    sched::wake_check(&mut cx)
}

#[test]
fn down_and_up_again() {
    let mut m = machine();
    up(&mut m);
    assert_eq!(op(&mut m, 1, VcpuOp::DOWN, 1), Ok(Outcome::Block));
    assert!(m.plat.calls().contains(&Call::LeaveGuestTables));
    assert!(!m.dom.vcpus[1].roots.any(), "no flush waits for it");
    assert_eq!(op(&mut m, 0, VcpuOp::IS_UP, 1), ret(0));
    m.dom.shared_info.vcpu_info[1].evtchn_upcall_pending.store(1, Ordering::SeqCst);
    assert_eq!(wake(&mut m), None, "events do not wake it");
    assert_eq!(op(&mut m, 0, VcpuOp::UP, 1), ret(0));
    assert_eq!(kicks(&m), 1);
    assert_eq!(wake(&mut m), Some(0));
    assert!(m.plat.calls().contains(&Call::LoadCr3(mfn(L4))));
    assert_eq!(m.dom.vcpus[1].roots.frames(), [mfn(L4).0; 2]);
}

/// A vCPU that is down can be given another place for its `vcpu_info`, and misses nothing.
#[test]
fn vcpu_info_of_one_that_is_down() {
    let mut m = machine();
    up(&mut m);
    assert_eq!(op(&mut m, 1, VcpuOp::DOWN, 1), Ok(Outcome::Block));
    let new = move_info(&mut m);
    assert_eq!(op(&mut m, 0, VcpuOp::REGISTER_VCPU_INFO, 1), Err(Errno::EINVAL), "once");
    assert_eq!(new.evtchn_upcall_pending.swap(0, Ordering::SeqCst), 1);
    assert_eq!(op(&mut m, 0, VcpuOp::UP, 1), ret(0));
    assert_eq!(wake(&mut m), Some(0));
    assert!(core::ptr::eq(m.vcpus[1].entry.info, new));
    assert_eq!(new.evtchn_upcall_pending.load(Ordering::SeqCst), 1);
}

#[test]
fn put_down_by_another() {
    let mut m = machine();
    up(&mut m);
    obey(&mut m.cx_of(1));
    assert_eq!(m.vcpus[1].wait, Wait::No);
    assert_eq!(op(&mut m, 0, VcpuOp::DOWN, 1), ret(0));
    assert_eq!(kicks(&m), 1);
    obey(&mut m.cx_of(1));
    assert_eq!(m.vcpus[1].wait, Wait::Down);
    assert_eq!(wake(&mut m), None);
    // The last one turns the domain off.
    let end = catch_shutdown(|| op(&mut m, 0, VcpuOp::DOWN, 0));
    assert_eq!(end, Err(Shutdown::Poweroff));
}

/// One that waits for an event leaves the guest's tables like any other, and comes back to the
/// `vcpu_info` it was given meanwhile.
#[test]
fn put_down_while_it_waits() {
    for poll in [false, true] {
        let mut m = machine();
        up(&mut m);
        m.dom.shared_info.vcpu_info[1].evtchn_upcall_pending.store(0, Ordering::SeqCst);
        if poll {
            m.plat.poke(va(CONTEXT), 0);
            m.plat.poke(va(CONTEXT).add(8), 0);
            m.plat.poke(va(CONTEXT).add(16), 0);
        }
        let cmd = if poll { SchedOp::POLL } else { SchedOp::BLOCK };
        let waits = sched::sched_op(&mut m.cx_of(1), cmd.0.into(), va(CONTEXT).0);
        assert_eq!(waits, Ok(Outcome::Block));
        assert_eq!(wake(&mut m), None);
        assert_eq!(op(&mut m, 0, VcpuOp::DOWN, 1), ret(0));
        assert_eq!(wake(&mut m), None);
        assert!(!m.dom.vcpus[1].roots.any(), "no flush waits for it");
        move_info(&mut m);
        assert_eq!(op(&mut m, 0, VcpuOp::UP, 1), ret(0));
        assert_eq!(wake(&mut m), Some(0));
        let new = (*m.dom.vcpus[1].info.lock()).unwrap();
        assert!(core::ptr::eq(m.vcpus[1].entry.info, new));
        assert_eq!(m.vcpus[1].wait, Wait::No);
    }
}

/// Down, moved, and up again before it has noticed anything.
#[test]
fn vcpu_info_of_one_that_runs() {
    let mut m = machine();
    up(&mut m);
    assert_eq!(op(&mut m, 0, VcpuOp::DOWN, 1), ret(0));
    let new = move_info(&mut m);
    assert_eq!(op(&mut m, 0, VcpuOp::UP, 1), ret(0));
    new.evtchn_upcall_pending.store(0, Ordering::SeqCst);
    assert_eq!(kicks(&m), 2);
    obey(&mut m.cx_of(1));
    assert_eq!(m.vcpus[1].wait, Wait::No);
    assert!(core::ptr::eq(m.vcpus[1].entry.info, new));
    assert_eq!(new.evtchn_upcall_pending.load(Ordering::SeqCst), 1, "it looks");
}

/// Gives vCPU 1 another `vcpu_info`.
fn move_info(m: &mut Machine) -> &'static VcpuInfo {
    m.plat.poke(va(CONTEXT), mfn(41).0);
    m.plat.poke(va(CONTEXT).add(8), 128);
    assert_eq!(op(m, 0, VcpuOp::REGISTER_VCPU_INFO, 1), ret(0));
    (*m.dom.vcpus[1].info.lock()).unwrap()
}

#[test]
fn what_is_asked_of_another() {
    let mut m = machine();
    // Before it is up nobody is kicked, and nothing is lost.
    m.plat.poke(va(CONTEXT), va(40).0);
    assert_eq!(op(&mut m, 0, VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA, 1), ret(0));
    assert_eq!(kicks(&m), 0);
    write(&m, &context());
    up(&mut m);
    assert_ne!(m.plat.peek(va(40).add(8)), 0, "the area has an entry time");
    let nmi = vcpu_op(&mut m.cx(), VcpuOp::SEND_NMI.0.into(), 1, 0);
    assert_eq!((nmi, kicks(&m)), (ret(0), 1));
    m.plat.poke(va(CONTEXT), 5_000_000);
    assert_eq!(op(&mut m, 0, VcpuOp::SET_PERIODIC_TIMER, 1), ret(0));
    requests::take(&mut m.cx_of(1));
    assert!(m.vcpus[1].nmi.pending);
    let calls = m.plat.calls();
    assert!(calls.iter().any(|call| matches!(call, Call::SetTimer(Some(_)))), "{calls:?}");
    assert_eq!(op(&mut m, 0, VcpuOp::SET_SINGLESHOT_TIMER, 1), Err(Errno::EINVAL));
    assert_eq!(op(&mut m, 0, VcpuOp::REGISTER_VCPU_INFO, 1), Err(Errno::EINVAL), "it runs");
    m.plat.state().now_ns += 77;
    assert_eq!(op(&mut m, 0, VcpuOp::GET_RUNSTATE_INFO, 1), ret(0));
    assert_eq!(m.plat.peek(va(CONTEXT)) as u32, Runstate::RUNNING.0);
    assert_eq!(m.plat.peek(va(CONTEXT).add(16)), 77);
}

/// Whatever vCPUs do to each other's lives: one that is up has been initialised, one that has run is on
/// page tables exactly while it is not parked, and nothing panics.
mod any_order {
    use super::*;
    use proptest::prelude::*;

    const VCPUS: u32 = 3;

    /// Whether a vCPU executes the guest's instructions, and so can make hypercalls.
    fn runs(m: &Machine, id: u32) -> bool {
        m.vcpus[id as usize].wait == Wait::No && m.dom.vcpus[id as usize].roots.any()
    }

    use Ordering::SeqCst;

    fn step(m: &mut Machine, by: u32, cmd: VcpuOp, id: u32) {
        if runs(m, by) {
            // The arguments are what the last one left there: good, or of another operation.
            let _ = op(m, by as usize, cmd, id.into());
        }
        for id in 1..VCPUS {
            let at = id as usize;
            // What the vCPU's processor does: takes a new one over, looks at kicks, ends waits.
            if !m.dom.vcpus[at].roots.any() && m.vcpus[at].wait == Wait::No {
                if m.take_over(id) {
                    let _ = enter(&mut m.cx_of(at));
                }
            } else if m.vcpus[at].wait == Wait::No {
                obey(&mut m.cx_of(at));
            } else {
                let _ = sched::wake_check(&mut m.cx_of(at));
            }
        }
    }

    proptest! {
        #[test]
        fn holds(calls in prop::collection::vec((0..VCPUS, 0u32..15, 0..VCPUS, 0u8..8), 1..60)) {
            let mut m = Machine::with(64, VCPUS);
            m.dom.vcpus[0].roots.begin(mfn(L4));
            for id in 1..VCPUS {
                m.make_new(id);
            }
            write(&m, &context());
            for (by, cmd, id, content) in calls {
                match content {
                    0..6 => write(&m, &context()),
                    6 => m.plat.poke(va(CONTEXT), mfn(45).0),
                    _ => m.plat.poke(va(CONTEXT), u64::MAX),
                }
                let ended = catch_shutdown(|| step(&mut m, by, VcpuOp(cmd), id));
                if let Err(why) = ended {
                    prop_assert_eq!(why, Shutdown::Poweroff);
                    return Ok(());
                }
                for (vcpu, state) in m.dom.vcpus.iter().zip(&m.vcpus).skip(1) {
                    let (online, on_tables) = (vcpu.online.load(SeqCst), vcpu.roots.any());
                    prop_assert!(!online || vcpu.stage() == Stage::Initialised);
                    prop_assert_ne!(vcpu.stage(), Stage::Initialising);
                    if state.wait == Wait::Down {
                        prop_assert!(!online && !on_tables);
                    }
                    if online {
                        prop_assert_eq!(vcpu.roots.frames(), [mfn(L4).0; 2]);
                    }
                }
            }
        }
    }
}
