//! Every command against Xen's answers, and both ABIs against a guest that consumes events as
//! Linux does (`drivers/xen/events/events_{2l,fifo}.c` for what is allowed to a guest).

use std::collections::BTreeSet;
use std::vec::Vec;

use core::sync::atomic::Ordering::SeqCst;
use proptest::prelude::*;
use xen_abi::event_channel::{EvtchnOp, FifoArrayPage, FifoControlBlock, fifo as abi};
use xen_abi::{GuestVa, MachineAddr};

mod threads;

use super::*;
use crate::fake::{Call, Machine, mfn, va};
use crate::outcome::{HcResult, ret};
use crate::platform::GuestMemory;

/// Where arguments are put.
const ARG: u64 = 3;

fn op(m: &mut Machine, cmd: EvtchnOp, words: &[u32]) -> HcResult {
    for (index, pair) in (0u64..).zip(words.chunks(2)) {
        let high = u64::from(pair.get(1).copied().unwrap_or(0));
        m.plat.poke(va(ARG).add(index * 8), high << 32 | u64::from(pair[0]));
    }
    event_channel_op(&mut m.cx(), cmd.0.into(), va(ARG).0)
}

fn word(m: &Machine, index: u64) -> u32 {
    (m.plat.peek(va(ARG).add(index / 2 * 8)) >> (index % 2 * 32)) as u32
}

const SELF: u32 = 0x7ff0;

fn alloc(m: &mut Machine, remote: u32) -> u32 {
    assert_eq!(op(m, EvtchnOp::ALLOC_UNBOUND, &[remote << 16 | SELF, 0]), ret(0));
    word(m, 1)
}

fn bind_ipi(m: &mut Machine, vcpu: u32) -> u32 {
    assert_eq!(op(m, EvtchnOp::BIND_IPI, &[vcpu, 0]), ret(0));
    word(m, 1)
}

fn bind_virq(m: &mut Machine, virq: Virq, vcpu: u32) -> u32 {
    assert_eq!(op(m, EvtchnOp::BIND_VIRQ, &[virq.0, vcpu, 0]), ret(0));
    word(m, 2)
}

/// (status, vcpu, u0, u1)
fn status(m: &mut Machine, port: u32) -> (u32, u32, u32, u32) {
    assert_eq!(op(m, EvtchnOp::STATUS, &[SELF, port, 0, 0, 0, 0]), ret(0));
    (word(m, 2), word(m, 3), word(m, 4), word(m, 5))
}

fn unmask_upcalls(m: &Machine) {
    for vcpu in &m.vcpus {
        vcpu.entry.info.evtchn_upcall_mask.store(0, SeqCst);
    }
}

fn pending(m: &Machine, port: u32) -> bool {
    two_level::is_pending(&m.dom, port)
}

#[test]
fn loopback_pair() {
    let mut m = Machine::new();
    let a = alloc(&mut m, SELF);
    assert_eq!(a, 1);
    assert_eq!(status(&mut m, a), (1, 0, 1, 0));
    // Unbound: dropped.
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[a]), ret(0));
    assert_eq!(op(&mut m, EvtchnOp::BIND_INTERDOMAIN, &[SELF, a, 0]), ret(0));
    let b = word(&m, 2);
    assert_eq!(b, 2);
    assert_eq!(status(&mut m, a), (2, 0, 1, b));
    assert_eq!(status(&mut m, b), (2, 0, 1, a));
    assert!(pending(&m, b) && !pending(&m, a), "the binder is told once");
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[b]), ret(0));
    assert!(pending(&m, a));
    assert_eq!(m.info().evtchn_upcall_pending.load(SeqCst), 1);
    assert_eq!(m.info().evtchn_pending_sel.load(SeqCst), 1);
    assert_eq!(op(&mut m, EvtchnOp::CLOSE, &[b]), ret(0));
    assert!(!pending(&m, b));
    assert_eq!(status(&mut m, a), (1, 0, 1, 0));
    assert_eq!(status(&mut m, b).0, 0);
    assert!(!m.plat.calls().iter().any(|call| matches!(call, Call::Kick(_))));
}

#[test]
fn errors() {
    let mut m = Machine::with(64, 2);
    let einval = Err(Errno::EINVAL);
    assert_eq!(op(&mut m, EvtchnOp::ALLOC_UNBOUND, &[0]), Err(Errno::EPERM));
    assert_eq!(op(&mut m, EvtchnOp::ALLOC_UNBOUND, &[5]), Err(Errno::ESRCH));
    assert_eq!(op(&mut m, EvtchnOp::BIND_INTERDOMAIN, &[5, 1, 0]), Err(Errno::ESRCH));
    assert_eq!(op(&mut m, EvtchnOp::BIND_INTERDOMAIN, &[0, 1, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::BIND_INTERDOMAIN, &[SELF, 9, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::BIND_VIRQ, &[24, 0, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::BIND_VIRQ, &[u32::MAX, 0, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::BIND_VIRQ, &[Virq::CONSOLE.0, 1, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::BIND_VIRQ, &[0, 2, 0]), Err(Errno::ENOENT));
    assert_eq!(op(&mut m, EvtchnOp::BIND_IPI, &[2, 0]), Err(Errno::ENOENT));
    assert_eq!(op(&mut m, EvtchnOp::BIND_PIRQ, &[1000, 0, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::BIND_PIRQ, &[4, 0, 0]), Err(Errno::EPERM));
    assert_eq!(op(&mut m, EvtchnOp::CLOSE, &[0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[7]), einval);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[u32::MAX]), einval);
    assert_eq!(op(&mut m, EvtchnOp::STATUS, &[SELF, 63, 0, 0, 0, 0]), ret(0));
    assert_eq!(op(&mut m, EvtchnOp::STATUS, &[SELF, 64, 0, 0, 0, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::STATUS, &[0, 1]), Err(Errno::EPERM));
    assert_eq!(op(&mut m, EvtchnOp::UNMASK, &[63]), ret(0));
    assert_eq!(op(&mut m, EvtchnOp::UNMASK, &[64]), einval);
    assert_eq!(op(&mut m, EvtchnOp::RESET_CONT, &[SELF]), Err(Errno::EBUSY));
    assert_eq!(op(&mut m, EvtchnOp::RESET, &[0]), Err(Errno::EPERM));
    assert_eq!(op(&mut m, EvtchnOp::EXPAND_ARRAY, &[0, 0]), Err(Errno::EOPNOTSUPP));
    assert_eq!(op(&mut m, EvtchnOp::SET_PRIORITY, &[1, 0]), Err(Errno::ENOSYS));
    assert_eq!(op(&mut m, EvtchnOp(15), &[]), Err(Errno::ENOSYS));
    assert_eq!(event_channel_op(&mut m.cx(), 4, 0), Err(Errno::EFAULT));
    let ipi = bind_ipi(&mut m, 1);
    assert_eq!(op(&mut m, EvtchnOp::BIND_VCPU, &[ipi, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::BIND_VCPU, &[ipi, 2]), Err(Errno::ENOENT));
    let timer = bind_virq(&mut m, Virq::TIMER, 1);
    assert_eq!(op(&mut m, EvtchnOp::BIND_VIRQ, &[0, 1, 0]), Err(Errno::EEXIST));
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[timer]), einval);
    assert_eq!(status(&mut m, timer), (4, 1, 0, 0));
    assert_eq!(status(&mut m, ipi), (5, 1, 0, 0));
    assert_eq!(op(&mut m, EvtchnOp::CLOSE, &[timer]), ret(0));
    assert_eq!(bind_virq(&mut m, Virq::TIMER, 1), timer, "free again");
}

#[test]
fn ports_run_out() {
    let mut m = Machine::new();
    for port in 1..MAX_PORTS as u32 {
        assert_eq!(alloc(&mut m, 0), port);
    }
    assert_eq!(op(&mut m, EvtchnOp::ALLOC_UNBOUND, &[SELF]), Err(Errno::ENOSPC));
    assert_eq!(op(&mut m, EvtchnOp::STATUS, &[SELF, 4096]), Err(Errno::EINVAL));
    assert_eq!(op(&mut m, EvtchnOp::CLOSE, &[77]), ret(0));
    assert_eq!(alloc(&mut m, 0), 77);
}

#[test]
fn backend_ports() {
    let mut m = Machine::new();
    let port = m.dom.evtchn.alloc_backend(&m.plat, Backend::Console).expect("free");
    assert_eq!(status(&mut m, port), (2, 0, 0, port));
    notify(&m.dom, &m.plat, Here::on_id(0), port, Backend::Blk(0));
    assert!(!pending(&m, port), "not its port");
    notify(&m.dom, &m.plat, Here::on_id(0), port, Backend::Console);
    assert!(pending(&m, port));

    let front = alloc(&mut m, 0);
    assert_eq!(m.dom.evtchn.bind_backend(port, Backend::Blk(3)), Err(Errno::EINVAL));
    assert_eq!(m.dom.evtchn.bind_backend(front, Backend::Blk(3)), Ok(()));
    assert_eq!(m.dom.evtchn.state(front).and_then(PortState::backend), Some(Backend::Blk(3)));
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[front]), ret(0));
    m.dom.evtchn.unbind_backend(front, Backend::Net(3));
    assert_eq!(status(&mut m, front).0, 2);
    m.dom.evtchn.unbind_backend(front, Backend::Blk(3));
    assert_eq!(status(&mut m, front), (1, 0, 0, 0));
    let own = alloc(&mut m, SELF);
    assert_eq!(m.dom.evtchn.bind_backend(own, Backend::Blk(3)), Err(Errno::EINVAL));
}

#[test]
fn another_vcpu_is_kicked_once() {
    let mut m = Machine::with(64, 2);
    unmask_upcalls(&m);
    let ipi = bind_ipi(&mut m, 1);
    m.plat.calls();
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[ipi]), ret(0));
    assert_eq!(m.plat.calls(), [Call::Kick(1)]);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[ipi]), ret(0));
    assert_eq!(m.plat.calls(), []);
    assert_eq!(m.info().evtchn_upcall_pending.load(SeqCst), 0);
    assert_eq!(m.vcpus[1].entry.info.evtchn_upcall_pending.load(SeqCst), 1);
    // A vCPU that is down gets its bits and no kick.
    m.vcpus[1].entry.info.evtchn_upcall_pending.store(0, SeqCst);
    m.vcpus[1].entry.info.evtchn_pending_sel.store(0, SeqCst);
    m.dom.shared_info.evtchn_pending[0].store(0, SeqCst);
    m.dom.vcpus[1].online.store(false, SeqCst);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[ipi]), ret(0));
    assert_eq!(m.plat.calls(), []);
}

#[test]
fn virqs_find_their_vcpu() {
    let mut m = Machine::with(64, 2);
    let timer = bind_virq(&mut m, Virq::TIMER, 1);
    let global = bind_virq(&mut m, Virq::ARGO, 0);
    assert_eq!(op(&mut m, EvtchnOp::BIND_VCPU, &[global, 1]), ret(0));
    send_virq(&m.dom, &m.plat, 0, 0, Virq::TIMER);
    assert!(!pending(&m, timer), "not bound on vCPU 0");
    send_virq(&m.dom, &m.plat, 1, 1, Virq::TIMER);
    assert!(pending(&m, timer));
    let info = m.vcpus[1].entry.info;
    info.evtchn_upcall_pending.store(0, SeqCst);
    info.evtchn_pending_sel.store(0, SeqCst);
    m.plat.calls();
    send_virq(&m.dom, &m.plat, 0, 0, Virq::ARGO);
    assert!(pending(&m, global));
    assert_eq!(info.evtchn_upcall_pending.load(SeqCst), 1);
    assert_eq!(m.plat.calls(), [Call::Kick(1)]);
    send_virq(&m.dom, &m.plat, 7000, 0, Virq(99));
}

#[test]
fn masked_until_unmasked() {
    let mut m = Machine::new();
    let ipi = bind_ipi(&mut m, 0);
    m.dom.shared_info.evtchn_mask[0].store(1 << ipi, SeqCst);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[ipi]), ret(0));
    assert!(pending(&m, ipi));
    assert_eq!(m.info().evtchn_upcall_pending.load(SeqCst), 0);
    assert_eq!(op(&mut m, EvtchnOp::UNMASK, &[ipi]), ret(0));
    assert_eq!(m.dom.shared_info.evtchn_mask[0].load(SeqCst), 0);
    assert_eq!(m.info().evtchn_upcall_pending.load(SeqCst), 1);
}

#[test]
fn compat_form() {
    let mut m = Machine::new();
    m.plat.poke(va(ARG), u64::from(EvtchnOp::BIND_IPI.0));
    m.plat.poke(va(ARG).add(8), 0);
    assert_eq!(event_channel_op_compat(&mut m.cx(), va(ARG).0), ret(0));
    assert_eq!(word(&m, 2), 1);
    m.plat.poke(va(ARG), 1 << 32 | u64::from(EvtchnOp::SEND.0));
    assert_eq!(event_channel_op_compat(&mut m.cx(), va(ARG).0), ret(0));
    assert!(pending(&m, 1));
    m.plat.poke(va(ARG), u64::from(EvtchnOp::RESET.0));
    assert_eq!(event_channel_op_compat(&mut m.cx(), va(ARG).0), Err(Errno::ENOSYS));
}

/// Frames of the FIFO structures, by pfn.
const CONTROL: u64 = 10;
const ARRAY: u64 = 20;

/// Switches a machine to FIFO: control block of vCPU n in its own page, one array page.
fn start_fifo(m: &mut Machine) {
    for vcpu in 0..m.vcpus.len() as u64 {
        let page = mfn(CONTROL + vcpu).0;
        let words = [page as u32, (page >> 32) as u32, 64, vcpu as u32, 0, 0];
        assert_eq!(op(m, EvtchnOp::INIT_CONTROL, &words), ret(0));
        assert_eq!(word(m, 4) & 0xff, 17);
    }
    assert_eq!(expand(m, ARRAY), ret(0));
}

fn expand(m: &mut Machine, pfn: u64) -> HcResult {
    let page = mfn(pfn).0;
    op(m, EvtchnOp::EXPAND_ARRAY, &[page as u32, (page >> 32) as u32])
}

fn control(m: &Machine, vcpu: u64) -> &'static FifoControlBlock {
    m.plat.view(MachineAddr(mfn(CONTROL + vcpu).base().0 + 64)).expect("a frame")
}

fn event_word(m: &Machine, port: u32) -> &'static AtomicU32 {
    let page: &'static FifoArrayPage = m.plat.view(mfn(ARRAY).base()).expect("a frame");
    &page.words[port as usize]
}

#[test]
fn fifo_set_up() {
    let mut m = Machine::new();
    let einval = Err(Errno::EINVAL);
    let page = mfn(CONTROL).0 as u32;
    assert_eq!(op(&mut m, EvtchnOp::INIT_CONTROL, &[page, 0, 0, 1]), Err(Errno::ENOENT));
    assert_eq!(op(&mut m, EvtchnOp::INIT_CONTROL, &[page, 0, 4096 - 64, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::INIT_CONTROL, &[page, 0, 4, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::INIT_CONTROL, &[1, 0, 0, 0]), einval);
    assert_eq!(op(&mut m, EvtchnOp::INIT_CONTROL, &[u32::MAX, u32::MAX, 0, 0]), einval);
    assert!(!m.dom.evtchn.uses_fifo());
    // Pending on the old ABI: raised again when the array page comes.
    let ipi = bind_ipi(&mut m, 0);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[ipi]), ret(0));
    start_fifo(&mut m);
    assert_ne!(event_word(&m, ipi).load(SeqCst) & abi::PENDING, 0);
    assert_eq!(control(&m, 0).head[7].load(SeqCst), ipi);
    assert_eq!(control(&m, 0).ready.load(SeqCst), 1 << 7);
    assert_eq!(op(&mut m, EvtchnOp::INIT_CONTROL, &[page, 0, 0, 0]), einval, "once per vCPU");
    // 128 pages in all; those beyond our ports are accepted.
    for _ in 1..128 {
        assert_eq!(expand(&mut m, ARRAY + 1), ret(0));
    }
    assert_eq!(expand(&mut m, ARRAY), Err(Errno::ENOSPC));
    assert_eq!(op(&mut m, EvtchnOp::SET_PRIORITY, &[ipi, 16]), einval);
    assert_eq!(op(&mut m, EvtchnOp::SET_PRIORITY, &[64, 1]), einval);
    assert_eq!(op(&mut m, EvtchnOp::SET_PRIORITY, &[ipi, 15]), ret(0));
    // A linked port is not given out again until the guest has taken it off its queue.
    assert_eq!(op(&mut m, EvtchnOp::CLOSE, &[ipi]), ret(0));
    assert_eq!(event_word(&m, ipi).load(SeqCst) & abi::PENDING, 0);
    assert_ne!(bind_ipi(&mut m, 0), ipi);
    event_word(&m, ipi).store(0, SeqCst);
    assert_eq!(bind_ipi(&mut m, 0), ipi);
    assert_eq!(op(&mut m, EvtchnOp::RESET, &[SELF]), ret(0));
    assert!(!m.dom.evtchn.uses_fifo());
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[ipi]), einval);
    let again = bind_ipi(&mut m, 0);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[again]), ret(0));
    assert!(pending(&m, again));
    start_fifo(&mut m);
}

/// As in Xen: nobody but a toolstack binds the store's and the console's ports again, and what
/// the guest puts in their place is its own.
#[test]
fn reset_takes_the_backends_ports() {
    let mut m = Machine::new();
    let store = m.dom.evtchn.alloc_backend(&m.plat, Backend::Xenstore).expect("free");
    let console = m.dom.evtchn.alloc_backend(&m.plat, Backend::Console).expect("free");
    assert_eq!((store, console), (1, 2));
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[store]), ret(0));
    assert_eq!(op(&mut m, EvtchnOp::RESET, &[SELF]), ret(0));
    for port in [store, console] {
        assert_eq!(op(&mut m, EvtchnOp::SEND, &[port]), Err(Errno::EINVAL));
        assert_eq!(op(&mut m, EvtchnOp::CLOSE, &[port]), Err(Errno::EINVAL));
    }
    assert_eq!(bind_ipi(&mut m, 0), store);
    assert_eq!(alloc(&mut m, 0), console);
    notify(&m.dom, &m.plat, Here::NOWHERE, store, Backend::Xenstore);
    notify(&m.dom, &m.plat, Here::NOWHERE, console, Backend::Console);
    assert!(!pending(&m, store) && !pending(&m, console));
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[store]), ret(0));
    assert!(pending(&m, store));
    // It waits for domain 0 as any port does that a frontend allocates.
    assert_eq!(status(&mut m, console).0, 1);
}

/// An event of a vCPU that has no queues yet waits in its word until the port is unmasked.
#[test]
fn fifo_without_a_control_block() {
    let mut m = Machine::with(64, 2);
    let page = mfn(CONTROL).0 as u32;
    assert_eq!(op(&mut m, EvtchnOp::INIT_CONTROL, &[page, 0, 64, 0]), ret(0));
    assert_eq!(expand(&mut m, ARRAY), ret(0));
    let ipi = bind_ipi(&mut m, 1);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[ipi]), ret(0));
    assert_eq!(event_word(&m, ipi).load(SeqCst), abi::PENDING);
    assert_eq!(op(&mut m, EvtchnOp::INIT_CONTROL, &[page + 1, 0, 64, 1]), ret(0));
    assert_eq!(op(&mut m, EvtchnOp::UNMASK, &[ipi]), ret(0));
    assert_eq!(control(&m, 1).head[7].load(SeqCst), ipi);
}

#[test]
fn fifo_page_given_away() {
    let mut m = Machine::new();
    start_fifo(&mut m);
    let ipi = bind_ipi(&mut m, 0);
    assert!(m.plat.release_frame(mfn(ARRAY)));
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[ipi]), ret(0));
    assert!(m.plat.release_frame(mfn(CONTROL)));
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[ipi]), ret(0));
    assert_eq!(op(&mut m, EvtchnOp::UNMASK, &[ipi]), ret(0));
}

/// What a test does to a domain of two vCPUs with ports 1..=PORTS.
#[derive(Clone, Debug)]
enum Step {
    Send(u32),
    Mask(u32),
    Unmask(u32),
    Move(u32, u32),
    Priority(u32, u32),
    Consume(u32),
}

const PORTS: u32 = 6;

fn step() -> impl Strategy<Value = Step> {
    let port = 1..=PORTS;
    prop_oneof![
        4 => port.clone().prop_map(Step::Send),
        1 => port.clone().prop_map(Step::Mask),
        2 => port.clone().prop_map(Step::Unmask),
        1 => (port.clone(), 0u32..2).prop_map(|(port, vcpu)| Step::Move(port, vcpu)),
        1 => (port, 0u32..16).prop_map(|(port, priority)| Step::Priority(port, priority)),
        3 => (0u32..2).prop_map(Step::Consume),
    ]
}

/// The events a guest must get: pending ones, each once.
#[derive(Default)]
struct Model {
    pending: BTreeSet<u32>,
    masked: BTreeSet<u32>,
}

/// A guest on either ABI.
struct Guest {
    fifo: bool,
    /// FIFO: the guest's own idea of each queue's head.
    heads: [[u32; abi::MAX_QUEUES]; 2],
}

impl Guest {
    fn mask(&self, m: &Machine, port: u32) {
        if self.fifo {
            event_word(m, port).fetch_or(abi::MASKED, SeqCst);
        } else {
            m.dom.shared_info.evtchn_mask[0].fetch_or(1 << port, SeqCst);
        }
    }

    /// Takes what is pending on a vCPU, if it got an upcall; the ports in the order they came.
    fn consume(&mut self, m: &Machine, vcpu: u32) -> Vec<u32> {
        let info = m.vcpus[vcpu as usize].entry.info;
        let mut got = Vec::new();
        while info.evtchn_upcall_pending.swap(0, SeqCst) != 0 {
            if self.fifo {
                self.consume_fifo(m, vcpu, &mut got);
            } else {
                let mut words = info.evtchn_pending_sel.swap(0, SeqCst);
                while words != 0 {
                    let word = words.trailing_zeros();
                    words &= words - 1;
                    let shared = m.dom.shared_info;
                    let mask = shared.evtchn_mask[word as usize].load(SeqCst);
                    let mut bits = shared.evtchn_pending[word as usize].load(SeqCst) & !mask;
                    while bits != 0 {
                        let bit = bits.trailing_zeros();
                        bits &= bits - 1;
                        shared.evtchn_pending[word as usize].fetch_and(!(1 << bit), SeqCst);
                        got.push(word * 64 + bit);
                    }
                }
            }
        }
        got
    }

    fn consume_fifo(&mut self, m: &Machine, vcpu: u32, got: &mut Vec<u32>) {
        let control = control(m, vcpu.into());
        let mut ready = control.ready.swap(0, SeqCst);
        while ready != 0 {
            let queue = ready.trailing_zeros() as usize;
            let head = &mut self.heads[vcpu as usize][queue];
            if *head == 0 {
                *head = control.head[queue].load(SeqCst);
            }
            let port = *head;
            let word = event_word(m, port);
            let mask = !(abi::LINKED | abi::LINK_MASK);
            *head = word.fetch_and(mask, SeqCst) & abi::LINK_MASK;
            if *head == 0 {
                ready &= !(1 << queue);
            }
            let flags = word.load(SeqCst);
            if flags & abi::PENDING != 0 && flags & abi::MASKED == 0 {
                word.fetch_and(!abi::PENDING, SeqCst);
                got.push(port);
            }
            ready |= control.ready.swap(0, SeqCst);
        }
    }
}

fn run(steps: &[Step], fifo: bool) -> Result<(), TestCaseError> {
    let mut m = Machine::with(64, 2);
    unmask_upcalls(&m);
    if fifo {
        start_fifo(&mut m);
    }
    // Ports that can be moved: loopback pairs, each sent to from its peer.
    let mut peers = Vec::new();
    for _ in 0..PORTS {
        alloc(&mut m, SELF);
    }
    for port in 1..=PORTS {
        assert_eq!(op(&mut m, EvtchnOp::BIND_INTERDOMAIN, &[SELF, port, 0]), ret(0));
        peers.push(word(&m, 2));
    }
    let mut guest = Guest { fifo, heads: Default::default() };
    let mut model = Model::default();
    // Peers became pending by binding.
    let bound: BTreeSet<_> = guest.consume(&m, 0).into_iter().collect();
    prop_assert_eq!(&bound, &peers.iter().copied().collect());
    let take = |model: &mut Model, got: Vec<u32>| {
        for port in got {
            prop_assert!(!model.masked.contains(&port), "masked {port} was delivered");
            prop_assert!(model.pending.remove(&port), "{port} was delivered twice");
        }
        Ok(())
    };
    for step in steps {
        match *step {
            Step::Send(port) => {
                let peer = peers[port as usize - 1];
                prop_assert_eq!(op(&mut m, EvtchnOp::SEND, &[peer]), ret(0));
                model.pending.insert(port);
            }
            Step::Mask(port) => {
                guest.mask(&m, port);
                model.masked.insert(port);
            }
            Step::Unmask(port) => {
                prop_assert_eq!(op(&mut m, EvtchnOp::UNMASK, &[port]), ret(0));
                model.masked.remove(&port);
            }
            // As Linux does: mask, move, unmask.
            Step::Move(port, vcpu) => {
                guest.mask(&m, port);
                prop_assert_eq!(op(&mut m, EvtchnOp::BIND_VCPU, &[port, vcpu]), ret(0));
                if !model.masked.contains(&port) {
                    prop_assert_eq!(op(&mut m, EvtchnOp::UNMASK, &[port]), ret(0));
                }
            }
            Step::Priority(port, priority) => {
                let expect = if fifo { ret(0) } else { Err(Errno::ENOSYS) };
                prop_assert_eq!(op(&mut m, EvtchnOp::SET_PRIORITY, &[port, priority]), expect);
            }
            Step::Consume(vcpu) => {
                let got = guest.consume(&m, vcpu);
                take(&mut model, got)?;
            }
        }
    }
    for port in 1..=PORTS {
        prop_assert_eq!(op(&mut m, EvtchnOp::UNMASK, &[port]), ret(0));
    }
    model.masked.clear();
    for vcpu in [0, 1, 0, 1] {
        let got = guest.consume(&m, vcpu);
        take(&mut model, got)?;
    }
    prop_assert!(model.pending.is_empty(), "lost: {:?}", model.pending);
    Ok(())
}

#[test]
fn fifo_order_and_priority() {
    let mut m = Machine::new();
    unmask_upcalls(&m);
    start_fifo(&mut m);
    let ports: Vec<_> = (0..4).map(|_| bind_ipi(&mut m, 0)).collect();
    assert_eq!(op(&mut m, EvtchnOp::SET_PRIORITY, &[ports[3], 0]), ret(0));
    for port in [2usize, 0, 1, 3, 0] {
        assert_eq!(op(&mut m, EvtchnOp::SEND, &[ports[port]]), ret(0));
    }
    let mut guest = Guest { fifo: true, heads: Default::default() };
    assert_eq!(guest.consume(&m, 0), [ports[3], ports[2], ports[0], ports[1]]);
}

#[test]
fn fifo_hostile_guest() {
    let mut m = Machine::new();
    start_fifo(&mut m);
    let a = bind_ipi(&mut m, 0);
    let b = bind_ipi(&mut m, 0);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[a]), ret(0));
    // The tail word is scribbled over: links into nowhere, then not linked.
    event_word(&m, a).store(u32::MAX, SeqCst);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[b]), ret(0));
    assert_eq!(event_word(&m, a).load(SeqCst) & (abi::LINK_MASK | abi::BUSY), b);
    event_word(&m, a).store(0, SeqCst);
    event_word(&m, b).store(0, SeqCst);
    assert_eq!(op(&mut m, EvtchnOp::SEND, &[a]), ret(0));
    assert_eq!(control(&m, 0).head[7].load(SeqCst), a);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn two_level_delivers_each_event_once(steps in prop::collection::vec(step(), 0..80)) {
        run(&steps, false)?;
    }

    #[test]
    fn fifo_delivers_each_event_once(steps in prop::collection::vec(step(), 0..80)) {
        run(&steps, true)?;
    }

    #[test]
    fn never_panics(
        calls in prop::collection::vec(
            (0u32..17, prop::array::uniform6(prop_oneof![
                0u32..4, Just(SELF), Just(mfn(CONTROL).0 as u32), any::<u32>(),
            ])),
            0..60,
        ),
        at: u64,
    ) {
        let mut m = Machine::with(64, 3);
        for (cmd, words) in calls {
            let _ = op(&mut m, EvtchnOp(cmd), &words);
            let _ = event_channel_op(&mut m.cx(), cmd.into(), at);
            let _ = event_channel_op_compat(&mut m.cx(), va(ARG).0);
        }
        let _ = GuestVa(at);
    }
}
