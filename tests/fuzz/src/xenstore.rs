//! The store: a guest that writes what it likes into its ring, beside backends that work.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use translate::xenstore::{Config, Device, DomainConfig, Store};
use xen_abi::io::xs_wire::{RING_SIZE, XenstoreDomainInterface, XsType, XsdSockmsg};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of a store in which things run out.
const BYTES: usize = 64 << 10;

/// Takes the input apart.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }
    fn word(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte()))
    }
    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }
}

fn put(ring: &XenstoreDomainInterface, bytes: &[u8]) {
    let prod = ring.req_prod.load(Relaxed);
    let room = RING_SIZE.saturating_sub(prod.wrapping_sub(ring.req_cons.load(Relaxed)));
    let bytes = &bytes[..bytes.len().min(room as usize)];
    for (at, byte) in (0u32..).zip(bytes) {
        ring.req[(prod.wrapping_add(at) % RING_SIZE) as usize].store(*byte, Relaxed);
    }
    ring.req_prod.store(prod.wrapping_add(bytes.len() as u32), Relaxed);
}

/// One thing somebody does.
fn step(input: &mut Input<'_>, store: &mut Store, ring: &XenstoreDomainInterface) {
    match input.byte() {
        0 => put(ring, input.bytes()),
        // The guest reads.
        1 => {
            let there = ring.rsp_prod.load(Relaxed).wrapping_sub(ring.rsp_cons.load(Relaxed));
            let taken = there.min(u32::from(input.byte()) * 8);
            ring.rsp_cons.fetch_add(taken, Relaxed);
        }
        2 => {
            let indices: [&AtomicU32; 6] = [
                &ring.req_cons,
                &ring.req_prod,
                &ring.rsp_cons,
                &ring.rsp_prod,
                &ring.connection,
                &ring.error,
            ];
            let index = indices[usize::from(input.byte()) % indices.len()];
            index.store(input.word(), Relaxed);
        }
        3 => ring.connection.store(1, Relaxed),
        4 => {
            let (path, value) = (input.bytes(), input.bytes());
            let _ = store.write(path, value);
        }
        5 => {
            let _ = store.rm(input.bytes());
        }
        6 => {
            let _ = store.watch(input.bytes(), input.byte().into());
        }
        7 => {
            let _ = store.next_internal_event(&mut [0; 64]);
        }
        8 => {
            let _ = store.set_perms(input.bytes(), &[input.bytes(), input.bytes()]);
        }
        9 => {
            let back = [("mode", input.bytes())];
            let device = Device { kind: "vbd", id: input.byte().into(), front: &[], back: &back };
            let _ = store.add_device(&device);
        }
        // A request: type, transaction, payload.
        kind => {
            let tx_id = u32::from(input.byte() % 12);
            let payload = input.bytes();
            let len = payload.len() as u32;
            let header = XsdSockmsg { type_: XsType((kind - 10).into()), req_id: 7, tx_id, len };
            put(ring, header.as_bytes());
            put(ring, payload);
        }
    }
    let served = store.serve(ring, 4);
    assert!(served.notify || !served.more);
}

/// The store's ring and messages: nothing panics, and what is stored hangs together.
pub fn xenstore(data: &[u8]) {
    let config = Config { bytes: BYTES, ..Config::default() };
    let mut store = Store::new(&config).expect("a store of this size");
    let ring = XenstoreDomainInterface::new_zeroed();
    store.introduce(&ring);
    let domain = DomainConfig {
        name: b"fuzz",
        uuid: [7; 16],
        max_kib: 1 << 20,
        target_kib: 1 << 20,
        nr_vcpus: 1,
        console: (1, 1),
        store: (2, 2),
    };
    store.add_domain(&domain).expect("room for a domain");
    let mut input = Input(data);
    while !input.0.is_empty() {
        step(&mut input, &mut store, &ring);
    }
    assert_eq!(store.check(), Ok(()));
}

/// A script of what Linux and its users do.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    fn ask(out: &mut Vec<u8>, type_: XsType, tx: u8, payload: &[u8]) {
        out.extend([type_.0 as u8 + 10, tx, payload.len() as u8]);
        out.extend_from_slice(payload);
        out.extend([1, 255]);
    }
    let mut plain = Vec::new();
    ask(&mut plain, XsType::WATCH, 0, b"data\0token\0");
    ask(&mut plain, XsType::WRITE, 0, b"data/a/b\0value");
    ask(&mut plain, XsType::READ, 0, b"data/a/b\0");
    ask(&mut plain, XsType::DIRECTORY, 0, b"data\0");
    ask(&mut plain, XsType::DIRECTORY_PART, 0, b"data\x000\0");
    ask(&mut plain, XsType::GET_PERMS, 0, b"data/a\0");
    ask(&mut plain, XsType::SET_PERMS, 0, b"data/a\0n1\0r0\0");
    ask(&mut plain, XsType::RM, 0, b"data/a\0");
    ask(&mut plain, XsType::UNWATCH, 0, b"data\0token\0");
    ask(&mut plain, XsType::RESET_WATCHES, 0, b"\0");
    let mut transaction = Vec::new();
    ask(&mut transaction, XsType::TRANSACTION_START, 0, b"\0");
    ask(&mut transaction, XsType::TRANSACTION_START, 0, b"\0");
    ask(&mut transaction, XsType::WRITE, 1, b"data/x\x001");
    ask(&mut transaction, XsType::MKDIR, 1, b"data/d/e\0");
    ask(&mut transaction, XsType::RM, 2, b"data\0");
    ask(&mut transaction, XsType::TRANSACTION_END, 1, b"T\0");
    ask(&mut transaction, XsType::TRANSACTION_END, 2, b"T\0");
    let mut device = vec![9, 1, b'w', 16, 6, 18];
    device.extend_from_slice(b"/local/domain/1/de");
    device.extend([5, 7]);
    ask(&mut device, XsType::WRITE, 0, b"device/vbd/16/state\x003");
    ask(&mut device, XsType::RM, 0, b"device/vbd/16\0");
    device.extend([7, 5, 26]);
    device.extend_from_slice(b"/local/domain/0/backend/vb");
    let broken =
        vec![2, 1, 0, 8, 0, 0, 3, 0, 17, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 46, 0];
    vec![plain, transaction, device, broken]
}
