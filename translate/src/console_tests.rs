use proptest::prelude::*;
use std::vec::Vec;

use super::*;
use crate::fake::{Call, Machine, mfn, va};
use crate::outcome::Outcome;
use crate::platform::GuestMemory;
use xen_abi::event_channel::EvtchnOp;

/// Guest frame of the ring.
const RING: u64 = 7;

fn machine() -> (Machine, &'static XenconsInterface, u32) {
    let m = Machine::new();
    let port = m.dom.evtchn.alloc_backend(&m.plat, Backend::Console).expect("free");
    m.dom.console.connect(mfn(RING).base(), port);
    let ring = m.plat.view(mfn(RING).base()).expect("a frame");
    (m, ring, port)
}

/// The guest writes as much as fits, and kicks.
fn write(m: &mut Machine, ring: &XenconsInterface, port: u32, bytes: &[u8]) -> usize {
    let mut prod = ring.out_prod.load(Ordering::Relaxed);
    let used = prod.wrapping_sub(ring.out_cons.load(Ordering::Relaxed));
    let count = bytes.len().min((OUT_SIZE - used) as usize);
    for byte in &bytes[..count] {
        ring.out[(prod % OUT_SIZE) as usize].store(*byte, Ordering::Relaxed);
        prod = prod.wrapping_add(1);
    }
    ring.out_prod.store(prod, Ordering::Relaxed);
    kick(m, port);
    count
}

fn kick(m: &mut Machine, port: u32) {
    m.plat.poke(va(3), port.into());
    let sent = evtchn::event_channel_op(&mut m.cx(), EvtchnOp::SEND.0.into(), va(3).0);
    assert_eq!(sent, ret(0));
}

/// The guest reads what there is.
fn read(ring: &XenconsInterface, most: usize) -> Vec<u8> {
    let mut cons = ring.in_cons.load(Ordering::Relaxed);
    let prod = ring.in_prod.load(Ordering::Relaxed);
    let mut got = Vec::new();
    while cons != prod && got.len() < most {
        got.push(ring.in_[(cons % IN_SIZE) as usize].load(Ordering::Relaxed));
        cons = cons.wrapping_add(1);
    }
    ring.in_cons.store(cons, Ordering::Relaxed);
    got
}

fn output(m: &Machine) -> Vec<u8> {
    let calls = m.plat.calls().into_iter();
    calls
        .filter_map(|call| if let Call::ConsoleWrite(b) = call { Some(b) } else { None })
        .flatten()
        .collect()
}

fn told(m: &Machine, port: u32) -> bool {
    let bit = 1 << port;
    m.dom.shared_info.evtchn_pending[0].fetch_and(!bit, Ordering::SeqCst) & bit != 0
}

#[test]
fn output_is_written_and_told_of_when_the_ring_was_full() {
    let (mut m, ring, port) = machine();
    assert_eq!(write(&mut m, ring, port, b"hello\n"), 6);
    assert_eq!(output(&m), b"hello\n");
    assert_eq!(ring.out_cons.load(Ordering::Relaxed), 6);
    assert!(!told(&m, port), "a guest that has room is left alone");
    assert_eq!(write(&mut m, ring, port, &[b'x'; 3000]), 2048);
    assert_eq!(output(&m), [b'x'; 2048]);
    assert!(told(&m, port));
}

#[test]
fn untrue_indices_are_left_alone() {
    let (mut m, ring, port) = machine();
    ring.out_prod.store(5000, Ordering::Relaxed);
    kick(&mut m, port);
    assert_eq!(output(&m), b"");
    assert_eq!(ring.out_cons.load(Ordering::Relaxed), 0);
    ring.in_prod.store(1025, Ordering::Relaxed);
    m.plat.state().console_in.extend(b"abc");
    input(&m.dom, &m.plat);
    assert_eq!(m.plat.state().console_in.len(), 3);
    ring.in_prod.store(0, Ordering::Relaxed);
    input(&m.dom, &m.plat);
    assert_eq!(read(ring, 10), b"abc");
    assert!(told(&m, port));
}

#[test]
fn no_ring_no_harm() {
    let m = Machine::new();
    input(&m.dom, &m.plat);
    kicked(&m.dom, &m.plat, Here::NOWHERE);
    let (m, _, _) = machine();
    assert!(m.plat.release_frame(mfn(RING)));
    input(&m.dom, &m.plat);
}

#[test]
fn full_ring_keeps_input_in_the_device() {
    let (mut m, ring, port) = machine();
    let all: Vec<u8> = (0..3000u32).map(|i| i as u8).collect();
    m.plat.state().console_in.extend(&all);
    input(&m.dom, &m.plat);
    assert_eq!(m.plat.state().console_in.len(), 3000 - 1024);
    let mut got = read(ring, 100);
    // The guest says that it took some (as Linux does); more comes.
    kick(&mut m, port);
    assert_eq!(m.plat.state().console_in.len(), 3000 - 1124);
    while got.len() < 3000 {
        got.extend(read(ring, 1024));
        kick(&mut m, port);
    }
    assert_eq!(got, all);
}

#[test]
fn console_io_calls() {
    let mut m = Machine::new();
    m.plat.poke(va(4), u64::from_le_bytes(*b"xen says"));
    assert_eq!(console_io(&mut m.cx(), 0, 8, va(4).0), ret(0));
    assert_eq!(output(&m), b"xen says");
    assert_eq!(console_io(&mut m.cx(), 0, 8, 0), Err(Errno::EFAULT));
    assert_eq!(console_io(&mut m.cx(), 0, 0, 0), ret(0));
    assert_eq!(console_io(&mut m.cx(), 0, u64::from(u32::MAX), va(4).0), ret(0));
    assert_eq!(output(&m).len(), 4096);
    m.plat.state().console_in.extend(b"typed");
    assert_eq!(console_io(&mut m.cx(), 1, 1 << 31, va(4).0), Err(Errno::E2BIG));
    assert_eq!(console_io(&mut m.cx(), 1, 3, va(4).0), ret(3));
    assert_eq!(console_io(&mut m.cx(), 1, 300, va(4).0.wrapping_add(3)), ret(2));
    assert_eq!(m.plat.peek(va(4)) & 0xff_ffff_ffff, u64::from_le_bytes(*b"typed\0\0\0"));
    assert_eq!(console_io(&mut m.cx(), 2, 0, 0), Err(Errno::ENOSYS));
}

proptest! {
    /// Whatever is written comes out once and in order, in whatever pieces.
    #[test]
    fn output_is_complete(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2500), 0..12), start: u32) {
        let (mut m, ring, port) = machine();
        ring.out_prod.store(start, Ordering::Relaxed);
        ring.out_cons.store(start, Ordering::Relaxed);
        let mut expect = Vec::new();
        for piece in &pieces {
            let count = write(&mut m, ring, port, piece);
            expect.extend_from_slice(&piece[..count]);
        }
        prop_assert_eq!(output(&m), expect);
    }

    /// Input is neither lost nor reordered, however slowly the guest takes it.
    #[test]
    fn input_is_complete(steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..700), 0usize..900), 0..12), start: u32) {
        let (m, ring, _) = machine();
        ring.in_prod.store(start, Ordering::Relaxed);
        ring.in_cons.store(start, Ordering::Relaxed);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for (bytes, take) in steps {
            m.plat.state().console_in.extend(&bytes);
            sent.extend(bytes);
            input(&m.dom, &m.plat);
            got.extend(read(ring, take));
        }
        while got.len() < sent.len() {
            let before = got.len();
            input(&m.dom, &m.plat);
            got.extend(read(ring, 1024));
            prop_assert!(got.len() > before);
        }
        prop_assert_eq!(got, sent);
    }

    #[test]
    fn never_panics(cmd in 0u64..4, count: u64, buffer: u64, indices: [u32; 4]) {
        let (mut m, ring, port) = machine();
        m.plat.state().console_in.extend([1; 2000]);
        let slots = [&ring.in_cons, &ring.in_prod, &ring.out_cons, &ring.out_prod];
        for (slot, index) in slots.into_iter().zip(indices) {
            slot.store(index, Ordering::Relaxed);
        }
        kick(&mut m, port);
        input(&m.dom, &m.plat);
        let r = console_io(&mut m.cx(), cmd, count, buffer);
        prop_assert!(matches!(r, Err(_) | Ok(Outcome::Return(_))));
    }
}
