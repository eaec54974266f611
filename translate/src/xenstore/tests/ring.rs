use std::vec::Vec;

use core::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use xen_abi::event_channel::EvtchnOp;

use super::*;
use crate::domain::Domain;
use crate::evtchn::{self, Backend, Here};
use crate::fake::{Machine, mfn, va};
use crate::outcome::{Outcome, ret};
use crate::platform::GuestMemory;
use crate::xenstore::tests::client::Client;
use crate::xenstore::{self, Config};

fn message(type_: XsType, req_id: u32, payload: &[u8]) -> Vec<u8> {
    let header = XsdSockmsg { type_, req_id, tx_id: 0, len: payload.len() as u32 };
    [header.as_bytes(), payload].concat()
}

/// Sets all indices of an idle ring.
fn indices(ring: &XenstoreDomainInterface, at: u32) {
    for index in [&ring.req_cons, &ring.req_prod, &ring.rsp_cons, &ring.rsp_prod] {
        index.store(at, Relaxed);
    }
}

#[test]
fn features_are_offered() {
    let c = Client::new();
    assert_eq!(c.ring.server_features.load(Relaxed), 15);
    assert_eq!((c.ring.connection.load(Relaxed), c.ring.error.load(Relaxed)), (0, 0));
}

#[test]
fn messages_come_in_any_pieces() {
    let mut c = Client::with_home();
    indices(&c.ring, u32::MAX - 20);
    let request = message(XsType::WRITE, 7, b"data/a\0value");
    for byte in &request {
        assert_eq!(c.put(&[*byte]), 1);
        assert_eq!(c.serve(), Served { notify: true, more: false });
    }
    let request = message(XsType::READ, 8, b"data/a\0");
    assert_eq!(c.put(&request), request.len());
    c.serve();
    let mut got = Vec::new();
    while c.take(1) == 1 {
        got.extend(c.message());
    }
    let header = |type_, req_id, len| XsdSockmsg { type_, req_id, tx_id: 0, len };
    assert_eq!(
        got,
        [
            (header(XsType::WRITE, 7, 3), b"OK\0".to_vec()),
            (header(XsType::READ, 8, 5), b"value".to_vec())
        ]
    );
    assert_eq!(c.serve(), Served::default(), "nothing to do");
}

#[test]
fn a_guest_that_does_not_read_gets_nothing_done() {
    let mut c = Client::with_home();
    c.store.write(b"/local/domain/1/data/long", &[b'x'; 3000]).expect("room");
    let request = message(XsType::READ, 1, b"data/long\0");
    for _ in 0..3 {
        c.put(&request);
    }
    let served = c.serve();
    assert_eq!(served, Served { notify: true, more: false });
    assert_eq!(c.ring.rsp_prod.load(Relaxed), 1024);
    let taken = c.ring.req_cons.load(Relaxed);
    assert_eq!(taken as usize, request.len(), "one request, whose reply waits");
    let used = c.store.pool.nr_used();
    for _ in 0..100 {
        c.put(&request);
        assert_eq!(c.serve(), Served::default());
    }
    assert_eq!((c.ring.req_cons.load(Relaxed), c.store.pool.nr_used()), (taken, used));
    let replies = c.drain();
    assert!(replies.len() > 3);
    assert!(replies.iter().all(|(header, payload)| header.len == 3000 && payload.len() == 3000));
}

#[test]
fn long_batches_are_cut() {
    let mut c = Client::with_home();
    let empty = message(XsType::RESET_WATCHES, 1, b"");
    let batch: Vec<u8> = empty.repeat(40);
    assert_eq!(c.put(&batch), batch.len());
    assert_eq!(c.serve(), Served { notify: true, more: true });
    assert_eq!(c.ring.req_cons.load(Relaxed), 16 * 16);
    // What backends do sends, but reads no requests.
    assert_eq!(c.store.serve(&c.ring, 0), Served::default());
    assert_eq!(c.ring.req_cons.load(Relaxed), 16 * 16);
    assert!(c.serve().more);
    assert!(!c.serve().more);
    assert_eq!(c.drain().len(), 40);
    // Long requests count more, and one that may be large is the last of its turn.
    for (request, done) in
        [(message(XsType::RM, 1, b"data/x\0"), 1), (message(XsType::READ, 1, &[b'a'; 128]), 7)]
    {
        let before = c.ring.req_cons.load(Relaxed);
        c.put(&request.repeat(7));
        assert_eq!(c.serve().more, done < 7);
        let read = c.ring.req_cons.load(Relaxed).wrapping_sub(before) as usize;
        assert_eq!(read, done * request.len());
        assert_eq!(c.drain().len(), 7);
    }
}

#[test]
fn broken_rings_are_left_alone() {
    type Break = fn(&XenstoreDomainInterface);
    let breaks: [(Break, RingError); 4] = [
        (
            |ring| ring.req_prod.store(ring.req_cons.load(Relaxed).wrapping_add(1025), Relaxed),
            RingError::RINGIDX,
        ),
        (
            |ring| ring.req_cons.store(ring.req_prod.load(Relaxed).wrapping_add(1), Relaxed),
            RingError::RINGIDX,
        ),
        (
            |ring| ring.rsp_cons.store(ring.rsp_prod.load(Relaxed).wrapping_add(1), Relaxed),
            RingError::RINGIDX,
        ),
        (
            |ring| {
                // A message longer than any.
                let header = XsdSockmsg { type_: XsType::READ, req_id: 0, tx_id: 0, len: 4097 };
                let prod = ring.req_prod.load(Relaxed);
                for (at, byte) in (0u32..).zip(header.as_bytes()) {
                    ring.req[(prod.wrapping_add(at) % 1024) as usize].store(*byte, Relaxed);
                }
                ring.req_prod.store(prod.wrapping_add(16), Relaxed);
            },
            RingError::PROTO,
        ),
    ];
    for (break_it, error) in breaks {
        let mut c = Client::with_home();
        c.many(XsType::WATCH, 0, "data|t").expect("room");
        let t = c.begin();
        c.write(t, "data/x", "1").expect("room");
        c.events();
        // An event waits, so that the other direction is looked at.
        c.store.write(b"/local/domain/1/data/e", b"").expect("room");
        break_it(&c.ring);
        assert_eq!(c.serve(), Served { notify: true, more: false });
        assert_eq!(c.ring.error.load(Relaxed), error.0);
        c.check();
        // Not even good indices help, and nothing is kept for this guest.
        let used = c.store.pool.nr_used();
        indices(&c.ring, 0);
        c.put(&message(XsType::READ, 1, b"data\0"));
        c.store.write(b"/local/domain/1/data/e", b"x").expect("room");
        assert_eq!(c.serve(), Served::default());
        assert_eq!(c.store.pool.nr_used(), used + 1, "the value");
        // A reconnection does.
        c.ring.connection.store(RECONNECT, Relaxed);
        assert_eq!(c.serve(), Served { notify: true, more: false });
        assert_eq!((c.ring.connection.load(Relaxed), c.ring.error.load(Relaxed)), (0, 0));
        assert_eq!(c.ring.req_prod.load(Relaxed), 0);
        assert_eq!(c.read(0, "data/e"), Ok("x".into()));
        assert_eq!(c.end(t, true), Err("ENOENT".into()), "transactions are gone");
        c.store.write(b"/local/domain/1/data/e", b"y").expect("room");
        assert_eq!(c.events(), [""; 0], "and watches");
    }
}

#[test]
fn reconnection_drops_what_is_under_way() {
    let mut c = Client::with_home();
    c.many(XsType::WATCH, 0, "data|t").expect("room");
    c.events();
    c.store.write(b"/local/domain/1/data/long", &[b'x'; 3000]).expect("room");
    c.put(&message(XsType::READ, 1, b"data/long\0"));
    c.put(&message(XsType::READ, 2, b"data/long\0")[..20]);
    c.serve();
    c.ring.connection.store(RECONNECT, Relaxed);
    assert!(c.serve().notify);
    assert_eq!(c.ring.rsp_prod.load(Relaxed), 0);
    let mut fresh = Client::with_home();
    core::mem::swap(&mut fresh.store, &mut c.store);
    core::mem::swap(&mut fresh.ring, &mut c.ring);
    assert_eq!(fresh.read(0, "data/long").map(|value| value.len()), Ok(3000));
    assert_eq!(fresh.events(), [""; 0]);
}

fn machine() -> (Machine, &'static XenstoreDomainInterface, u32) {
    let m = Machine::new();
    let port = m.dom.evtchn.alloc_backend(&m.plat, Backend::Xenstore).expect("free");
    m.dom.xenstore.start(&Config::default()).expect("memory");
    m.dom.xenstore.connect(&m.plat, mfn(7).base(), port);
    let ring = m.plat.view(mfn(7).base()).expect("a frame");
    (m, ring, port)
}

fn put(ring: &XenstoreDomainInterface, bytes: &[u8]) {
    let prod = ring.req_prod.load(Relaxed);
    for (at, byte) in (0u32..).zip(bytes) {
        ring.req[(prod.wrapping_add(at) % 1024) as usize].store(*byte, Relaxed);
    }
    ring.req_prod.store(prod.wrapping_add(bytes.len() as u32), Relaxed);
}

fn told(dom: &Domain, port: u32) -> bool {
    let bit = 1 << port;
    dom.shared_info.evtchn_pending[0].fetch_and(!bit, Relaxed) & bit != 0
}

#[test]
fn a_kick_is_answered() {
    let (mut m, ring, port) = machine();
    m.plat.poke(va(3), port.into());
    let kick =
        |m: &mut Machine| evtchn::event_channel_op(&mut m.cx(), EvtchnOp::SEND.0.into(), va(3).0);
    assert_eq!(ring.server_features.load(Relaxed), 15);
    assert_eq!(kick(&mut m), ret(0));
    assert!(!told(&m.dom, port), "nothing happened");
    put(ring, &message(XsType::GET_DOMAIN_PATH, 1, b"1\0"));
    assert_eq!(kick(&mut m), ret(0));
    assert!(told(&m.dom, port));
    assert_eq!(ring.rsp_prod.load(Relaxed), 16 + 16);
    // More than is done at a time: the call goes on.
    put(ring, &message(XsType::RESET_WATCHES, 1, b"").repeat(20));
    assert_eq!(kick(&mut m), Ok(Outcome::Continue));
    assert_eq!(kick(&mut m), ret(0));
    assert_eq!(ring.req_cons.load(Relaxed), ring.req_prod.load(Relaxed));
    assert!(told(&m.dom, port));
    // A backend's work is told at once, and the guest's to backends.
    put(ring, &message(XsType::WATCH, 1, b"/tool\0t\0"));
    ring.rsp_cons.store(ring.rsp_prod.load(Relaxed), Relaxed);
    kick(&mut m).expect("done");
    assert!(told(&m.dom, port));
    let made = xenstore::with(&m.dom, &m.plat, Here::NOWHERE, |store| {
        store.set_perms(b"/tool", &[b"b0"])?;
        store.watch(b"/tool/x", 9)
    });
    assert_eq!(made, Some(Ok(())));
    assert!(told(&m.dom, port) && m.dom.xenstore.internal_pending());
    let mut buf = [0; 64];
    let event = xenstore::with(&m.dom, &m.plat, Here::NOWHERE, |store| {
        store.next_internal_event(&mut buf).map(|(token, path)| (token, path.len()))
    });
    assert_eq!(event, Some(Some((9, 7))));
    assert!(!m.dom.xenstore.internal_pending());
    assert!(!told(&m.dom, port));
}

#[test]
fn no_ring_no_harm() {
    let m = Machine::new();
    assert!(!xenstore::kicked(&m.dom, &m.plat, Here::NOWHERE));
    assert_eq!(xenstore::with(&m.dom, &m.plat, Here::NOWHERE, |_| ()), None);
    m.dom.xenstore.connect(&m.plat, mfn(7).base(), 1);
    assert!(!xenstore::kicked(&m.dom, &m.plat, Here::NOWHERE));
    let (m, _, _) = machine();
    assert!(m.plat.release_frame(mfn(7)));
    assert!(!xenstore::kicked(&m.dom, &m.plat, Here::NOWHERE));
    assert_eq!(
        xenstore::with(&m.dom, &m.plat, Here::NOWHERE, |store| store.exists(b"/")),
        Some(true)
    );
}

proptest! {
    /// Whatever a guest puts into its page: no harm, and a reconnection always helps.
    #[test]
    fn any_page(
        steps in prop::collection::vec(
            (0..8u8, any::<u32>(), prop::collection::vec(any::<u8>(), 0..300)), 1..30),
    ) {
        let mut c = Client::with_home();
        for (what, number, bytes) in steps {
            match what {
                0 => c.ring.req_prod.store(number, Relaxed),
                1 => c.ring.rsp_cons.store(number, Relaxed),
                2 => c.ring.rsp_prod.store(number, Relaxed),
                3 => c.ring.connection.store(number % 3, Relaxed),
                4 => {
                    c.take((number % 2000) as usize);
                }
                5 => put(&c.ring, &bytes),
                _ => put(&c.ring, &message(XsType(number % 28), 1, &bytes)),
            }
            let served = c.serve();
            prop_assert!(!served.more || served.notify);
        }
        c.check();
        c.ring.connection.store(RECONNECT, Relaxed);
        let mut fresh = Client::with_home();
        core::mem::swap(&mut fresh.store, &mut c.store);
        core::mem::swap(&mut fresh.ring, &mut c.ring);
        fresh.serve();
        prop_assert_eq!(fresh.read(0, "none"), Err("ENOENT".into()));
    }
}
