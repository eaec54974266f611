//! The store: a guest on its ring, well-behaved or not, beside backends that work.
//!
//! While the guest keeps to the protocol a model of what it knows stands beside the store: every
//! request is answered once and in order, what was written is read, a transaction happens as a
//! whole or not at all and not on top of changes it did not see, events are for watches there
//! were. In any case the store hangs together at the end.

mod model;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use translate::xenstore::{Config, Device, DomainConfig, Store};
use xen_abi::io::xs_wire::{
    PAYLOAD_MAX, RECONNECT, RING_SIZE, XenstoreDomainInterface, XsType, XsdSockmsg,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::input::Input;
use model::{Change, Known, Transaction, absolute, is_at_or_under, known_inside};

/// Bytes of a store in which things run out.
const BYTES: usize = 64 << 10;
const HEADER: usize = size_of::<XsdSockmsg>();
/// Steps of one run.
const MAX_STEPS: usize = 150;

/// Paths requests name.
const PATHS: [&str; 20] = [
    "data",
    "data/a",
    "data/a/b",
    "data/a/c",
    "data/b",
    "data/b/c/d",
    "/local/domain/1/data/a",
    "/local/domain/1/data",
    "device/vbd/16/state",
    "device/vbd/16",
    "/local/domain/0/backend/vbd/1/16/state",
    "/local/domain/0/backend",
    "/local/domain/1",
    "/",
    "@releaseDomain",
    "control/shutdown",
    "memory/target",
    "/local/domain/1/device/vbd/16/state",
    "data//a",
    "",
];
const TOKENS: [&str; 4] = ["t", "token-2", "backend", ""];
const PERMS: [&str; 7] = ["n1", "b1", "r1", "n0", "w0", "r32757", "x1"];

/// Words for libFuzzer.
pub(crate) const WORDS: &[&str] = &[
    "/local/domain/1/",
    "/local/domain/0/backend/",
    "data/",
    "device/vbd/",
    "@introduceDomain",
    "@releaseDomain",
    "state",
    "b0",
    "n1",
    "r0",
    "w1",
    "T\0",
    "F\0",
    "\0",
    "control/",
    "//",
];

/// A request on its way.
#[derive(Clone, Debug)]
struct Asked {
    header: XsdSockmsg,
    payload: Vec<u8>,
}

struct World {
    store: Store,
    ring: XenstoreDomainInterface,
    /// Bytes that found no room yet, and bytes of replies read.
    to_send: VecDeque<u8>,
    got: Vec<u8>,
    asked: VecDeque<Asked>,
    next_id: u32,
    known: Known,
    transactions: BTreeMap<u32, Transaction>,
    watches: Vec<(Vec<u8>, Vec<u8>)>,
    /// The guest reads what it is sent.
    reads: bool,
    /// Backends worked while answers of the guest's were on their way: it cannot know what came
    /// first.
    is_loose: bool,
    /// It broke the protocol: nothing is known any more.
    is_spoilt: bool,
}

impl World {
    fn new() -> Self {
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
        Self {
            store,
            ring,
            to_send: VecDeque::new(),
            got: Vec::new(),
            asked: VecDeque::new(),
            next_id: 0,
            known: Known::default(),
            transactions: BTreeMap::new(),
            watches: Vec::new(),
            reads: true,
            is_loose: false,
            is_spoilt: false,
        }
    }

    /// Puts bytes into the ring as long as there is room.
    fn put(&mut self) {
        let ring = &self.ring;
        let (mut prod, cons) = (ring.req_prod.load(Relaxed), ring.req_cons.load(Relaxed));
        while prod.wrapping_sub(cons) < RING_SIZE {
            let Some(byte) = self.to_send.pop_front() else { break };
            ring.req[(prod % RING_SIZE) as usize].store(byte, Relaxed);
            prod = prod.wrapping_add(1);
        }
        ring.req_prod.store(prod, Relaxed);
    }

    /// Takes up to `most` bytes out of the ring.
    fn get(&mut self, most: u32) {
        let ring = &self.ring;
        let (prod, mut cons) = (ring.rsp_prod.load(Relaxed), ring.rsp_cons.load(Relaxed));
        for _ in 0..most.min(RING_SIZE) {
            if cons == prod {
                break;
            }
            self.got.push(ring.rsp[(cons % RING_SIZE) as usize].load(Relaxed));
            cons = cons.wrapping_add(1);
        }
        ring.rsp_cons.store(cons, Relaxed);
    }

    fn serve(&mut self, budget: usize) -> bool {
        let served = self.store.serve(&self.ring, budget);
        assert!(served.notify || !served.more);
        served.more
    }

    /// Lets the store work until there is nothing to do, or for a guest that does not read.
    fn pump(&mut self, budget: usize) {
        for _ in 0..20_000 {
            self.put();
            let more = self.serve(budget);
            if self.reads {
                self.get(RING_SIZE);
            }
            if self.is_spoilt {
                self.got.clear();
                return;
            }
            self.judge();
            let idle = self.ring.rsp_prod.load(Relaxed) == self.ring.rsp_cons.load(Relaxed);
            if !more && self.to_send.is_empty() && (idle || !self.reads) {
                return;
            }
            if !self.reads && self.to_send.len() > 3 * PAYLOAD_MAX {
                return;
            }
        }
        assert!(!self.reads, "the store goes on and on");
    }

    /// Looks at every whole message that came.
    fn judge(&mut self) {
        while let Ok((header, rest)) = XsdSockmsg::read_from_prefix(&self.got[..]) {
            let len = header.len as usize;
            assert!(len <= PAYLOAD_MAX);
            if rest.len() < len {
                return;
            }
            let payload = rest[..len].to_vec();
            self.got.drain(..HEADER + len);
            if header.type_ == XsType::WATCH_EVENT {
                self.event(&payload);
            } else {
                let asked = self.asked.pop_front().expect("an answer to nothing");
                assert_eq!(
                    (header.req_id, header.tx_id),
                    (asked.header.req_id, asked.header.tx_id)
                );
                let is_error = header.type_ == XsType::ERROR;
                assert!(is_error || header.type_ == asked.header.type_);
                assert!(!is_error || payload.starts_with(b"E") && payload.ends_with(b"\0"));
                self.reply(&asked, (!is_error).then_some(&payload[..]), &payload);
            }
        }
    }

    fn event(&self, payload: &[u8]) {
        let mut texts = payload.split(|byte| *byte == 0);
        let (path, token) = (texts.next().unwrap_or_default(), texts.next().expect("a token"));
        let is_for = |(top, wanted): &(Vec<u8>, Vec<u8>)| {
            token == &wanted[..] && (path.starts_with(top) || absolute(path).starts_with(top))
        };
        assert!(self.watches.iter().any(is_for), "an event nobody asked for");
    }

    /// What an answer tells; `done`: the reply where it is no error.
    fn reply(&mut self, asked: &Asked, done: Option<&[u8]>, payload: &[u8]) {
        let (tx, texts) = (asked.header.tx_id, &asked.payload);
        let first = texts.split(|byte| *byte == 0).next().unwrap_or_default();
        let path = absolute(first);
        let is_whole = texts.len() == first.len() + 1;
        let value = texts.get(first.len() + 1..).unwrap_or_default().to_vec();
        match asked.header.type_ {
            XsType::READ if is_whole => self.was_read(tx, path, done, payload),
            XsType::WRITE if done.is_some() => self.changed(tx, Change::Write(path, value)),
            XsType::MKDIR if done.is_some() => self.changed(tx, Change::Mkdir(path)),
            XsType::RM if done.is_some() => self.changed(tx, Change::Rm(path)),
            XsType::SET_PERMS if done.is_some() && tx == 0 => self.not_alone(),
            XsType::TRANSACTION_START => {
                if let Some(id) = done {
                    let id = std::str::from_utf8(id).expect("a number").trim_end_matches('\0');
                    let id = id.parse().expect("a number");
                    let new = Transaction { is_alone: true, ..Transaction::default() };
                    assert!(id != 0 && self.transactions.insert(id, new).is_none());
                }
            }
            XsType::TRANSACTION_END => self.ended(asked, done.is_some(), payload),
            XsType::RESET_WATCHES if done.is_some() => self.transactions.clear(),
            _ => {}
        }
    }

    fn was_read(&mut self, tx: u32, path: Vec<u8>, done: Option<&[u8]>, payload: &[u8]) {
        if self.is_loose {
            return;
        }
        let transaction = self.transactions.get_mut(&tx);
        assert!(done.is_none() || tx == 0 || transaction.is_some(), "no such transaction");
        let known = match &transaction {
            // What it sees of a tree that changes under it may contradict itself; it will fail.
            Some(transaction) if !transaction.is_alone => None,
            Some(transaction) => transaction.known.0.get(&path),
            None if tx == 0 => self.known.0.get(&path),
            None => return,
        };
        match (known, done) {
            (Some(Some(value)), Some(now)) => assert_eq!(value, now, "what was written is read"),
            // What backends write is not always for the guest to read.
            (Some(Some(_)), None) => {
                assert!(payload == b"EACCES\0", "a node is lost: {}", payload.escape_ascii());
            }
            (Some(None), Some(_)) => panic!("a node is there that was removed"),
            _ => {}
        }
        match transaction {
            // Its own changes are its own.
            Some(transaction) if done.is_some() && known_inside(transaction, &path).is_none() => {
                transaction.read.insert(path);
            }
            Some(_) => {}
            None if done.is_some() || payload == b"ENOENT\0" => {
                self.known.0.insert(path, done.map(<[u8]>::to_vec));
            }
            None => {}
        }
    }

    fn changed(&mut self, tx: u32, change: Change) {
        if tx == 0 {
            self.changed_outside(&change);
            return;
        }
        let transaction = self.transactions.get_mut(&tx).expect("no such transaction");
        transaction.known.apply(&change);
        transaction.changes.push(change);
    }

    fn changed_outside(&mut self, change: &Change) {
        self.known.apply(change);
        for transaction in self.transactions.values_mut() {
            transaction.is_alone = false;
            // A directory that is made where there is one changes nothing.
            if !matches!(change, Change::Mkdir(_)) {
                let touched = |path: &Vec<u8>| match change {
                    Change::Rm(top) => is_at_or_under(path, top),
                    _ => path == change.path(),
                };
                transaction.is_stale |= transaction.read.iter().any(touched);
            }
        }
    }

    fn ended(&mut self, asked: &Asked, is_done: bool, payload: &[u8]) {
        let commit = asked.payload == b"T\0";
        if !commit && asked.payload != b"F\0" {
            assert!(!is_done);
            return;
        }
        let Some(transaction) = self.transactions.remove(&asked.header.tx_id) else {
            assert!(!is_done, "no such transaction");
            return;
        };
        if !commit {
            assert!(is_done);
            return;
        }
        if self.is_loose {
            return;
        }
        assert!(!transaction.is_alone || payload != b"EAGAIN\0", "nothing was in its way");
        if is_done {
            assert!(!transaction.is_stale, "what it read had changed");
            transaction.changes.iter().for_each(|change| self.changed_outside(change));
        }
    }

    /// A backend changes something the model does not follow.
    fn lose_track(&mut self) {
        self.known = Known::default();
        self.not_alone();
    }

    /// Something changed outside of transactions.
    fn not_alone(&mut self) {
        for transaction in self.transactions.values_mut() {
            transaction.is_alone = false;
        }
    }

    fn ask(&mut self, type_: XsType, tx_id: u32, payload: Vec<u8>) {
        self.next_id += 1;
        let len = payload.len() as u32;
        let header = XsdSockmsg { type_, req_id: self.next_id, tx_id, len };
        self.to_send.extend(header.as_bytes());
        self.to_send.extend(&payload);
        let mut texts = payload.split(|byte| *byte == 0);
        if let (XsType::WATCH, Some(path), Some(token)) = (type_, texts.next(), texts.next()) {
            self.watches.push((path.to_vec(), token.to_vec()));
        }
        self.asked.push_back(Asked { header, payload });
    }

    fn path(input: &mut Input<'_>) -> Vec<u8> {
        match input.byte() {
            what if what >= 0xe0 => input.bytes().to_vec(),
            what if what >= 0x40 => format!("data/n{}/m{}", what & 0x1f, what >> 5).into_bytes(),
            what => PATHS[usize::from(what) % PATHS.len()].as_bytes().to_vec(),
        }
    }

    fn value(input: &mut Input<'_>) -> Vec<u8> {
        match input.byte() {
            what if what >= 0xf0 => vec![b'v'; usize::from(input.half()) % 4200],
            what => input.take(usize::from(what & 0x1f)).to_vec(),
        }
    }

    /// A request of the guest's, mostly as it should be.
    fn request(&mut self, what: u8, input: &mut Input<'_>) {
        let kinds = [
            XsType::WRITE,
            XsType::READ,
            XsType::RM,
            XsType::MKDIR,
            XsType::DIRECTORY,
            XsType::DIRECTORY_PART,
            XsType::GET_PERMS,
            XsType::SET_PERMS,
            XsType::WATCH,
            XsType::UNWATCH,
            XsType::TRANSACTION_START,
            XsType::TRANSACTION_END,
            XsType::GET_DOMAIN_PATH,
            XsType::RESET_WATCHES,
            XsType::GET_FEATURE,
            XsType(u32::from(what)),
        ];
        let type_ = kinds[usize::from(what & 0xf)];
        let tx_id = match what >> 4 & 3 {
            0 => 0,
            3 => input.word(),
            nr => self.transactions.keys().nth(usize::from(nr) - 1).copied().unwrap_or(0),
        };
        let mut payload = match type_ {
            XsType::TRANSACTION_END => (if what & 0x40 != 0 { b"F" } else { b"T" }).to_vec(),
            XsType::TRANSACTION_START | XsType::RESET_WATCHES => Vec::new(),
            XsType::GET_DOMAIN_PATH | XsType::GET_FEATURE => input.bytes().to_vec(),
            _ if what & 0xf == 0xf => input.bytes().to_vec(),
            _ => Self::path(input),
        };
        payload.push(0);
        match type_ {
            XsType::WRITE => payload.extend(Self::value(input)),
            XsType::SET_PERMS => {
                for _ in 0..input.byte() % 7 {
                    payload.extend(input.pick(&PERMS).as_bytes());
                    payload.push(0);
                }
            }
            XsType::DIRECTORY_PART => {
                payload.extend(format!("{}\0", input.byte()).as_bytes());
            }
            XsType::WATCH | XsType::UNWATCH => {
                let token = input.pick(&TOKENS).as_bytes();
                payload.extend(token);
                payload.push(0);
                if what & 0x40 != 0 && type_ == XsType::WATCH {
                    payload.extend(format!("{}\0", input.byte() & 7).as_bytes());
                }
            }
            _ => {}
        }
        if what & 0x80 != 0 && what & 0x40 != 0 {
            // Cut off somewhere, or with more than there should be.
            payload.resize(usize::from(input.byte()), b'/');
        }
        payload.truncate(PAYLOAD_MAX);
        self.ask(type_, tx_id, payload);
    }

    /// What backends and the toolstack do.
    fn backend(&mut self, what: u8, input: &mut Input<'_>) {
        if what & 0x80 != 0 {
            self.reads = true;
            self.pump(4);
        }
        self.is_loose |= !self.asked.is_empty();
        match what >> 4 & 7 {
            0..=2 => {
                let (path, value) = (absolute(&Self::path(input)), input.bytes());
                if self.store.write(&path, value).is_ok() {
                    self.changed_outside(&Change::Write(path, value.to_vec()));
                }
            }
            3 => {
                let path = absolute(&Self::path(input));
                if self.store.rm(&path).is_ok() {
                    self.changed_outside(&Change::Rm(path));
                }
            }
            4 => drop(self.store.watch(&absolute(&Self::path(input)), input.byte().into())),
            5 => {
                let path = absolute(&Self::path(input));
                let perms = [input.pick(&PERMS).as_bytes(), input.pick(&PERMS).as_bytes()];
                let _ = self.store.set_perms(&path, &perms);
                self.lose_track();
            }
            6 => {
                let back = [("mode", input.bytes())];
                let id = u32::from(input.byte());
                let device = Device { kind: "vbd", id, front: &[], back: &back };
                let _ = self.store.add_device(&device);
                self.lose_track();
            }
            _ => {
                let _ = self.store.remove_device("vbd", input.byte().into());
                let _ = self.store.unwatch(&absolute(&Self::path(input)), input.byte().into());
                self.lose_track();
            }
        }
        while self.store.next_internal_event(&mut [0; 64]).is_some() {}
    }

    /// What a guest should not do to its ring.
    fn spoil(&mut self, what: u8, input: &mut Input<'_>) {
        self.is_spoilt = true;
        if what & 0x80 != 0 {
            self.to_send.extend(input.bytes());
            return;
        }
        let ring = &self.ring;
        let indices: [&AtomicU32; 6] = [
            &ring.req_cons,
            &ring.req_prod,
            &ring.rsp_cons,
            &ring.rsp_prod,
            &ring.connection,
            &ring.error,
        ];
        indices[usize::from(what >> 4) % indices.len()].store(input.word(), Relaxed);
    }

    /// The guest starts again, as a kernel that was booted by another does.
    fn reconnect(&mut self) {
        self.ring.connection.store(RECONNECT, Relaxed);
        self.to_send.clear();
        self.serve(4);
        assert_eq!(self.ring.connection.load(Relaxed), 0);
        self.got.clear();
        self.asked.clear();
        self.transactions.clear();
        self.watches.clear();
        self.lose_track();
        (self.is_loose, self.is_spoilt) = (false, false);
    }

    fn step(&mut self, what: u8, input: &mut Input<'_>) {
        match what {
            0..=0x9f => {
                let kind = what % 32;
                match kind {
                    0..=23 => {
                        let request = input.byte();
                        self.request(request, input);
                    }
                    24..=27 => {
                        let backend = input.byte();
                        self.backend(backend, input);
                    }
                    28 => self.reads = !self.reads,
                    29 => self.get(u32::from(input.byte())),
                    30 => {
                        self.serve(usize::from(input.byte() % 8));
                    }
                    _ => {}
                }
            }
            0xa0..=0xef => {
                // The usual, without a byte more.
                self.request(what & 0xf, input);
            }
            0xf0..=0xf3 => self.reconnect(),
            0xf4..=0xf7 => {
                let spoil = input.byte();
                self.spoil(spoil, input);
            }
            _ => self.reads = true,
        }
        self.pump(4);
    }
}

/// The store's ring and messages.
pub(crate) fn xenstore(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new();
    for _ in 0..MAX_STEPS {
        let Some(what) = input.next() else { break };
        world.step(what, &mut input);
    }
    assert_eq!(world.store.check(), Ok(()));
}

/// What Linux and its users do; transactions in each other's way; a device; a broken ring.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let plain = [
        &[0xa8, 0, 0][..],
        &[0xa0, 2, 3, b'a', b'b', b'c', 0xa1, 2, 0xa4, 0, 0xa5, 0, 0, 0xa6, 1],
        &[0xa7, 1, 2, 0, 2, 0xa3, 5, 0xa2, 1, 0xa1, 2, 0xa9, 0, 0, 0xad, 0xac, 1, b'1', 0xae, 0],
    ]
    .concat();
    let conflict = [
        &[0xaa, 0xaa, 0, 0x10, 1, 1, b'x', 0, 0x11, 1, 0, 0x21, 1, 0, 0x23, 4][..],
        &[0, 0x1b, 0xa1, 1, 0, 0x2b, 0xaa, 0, 0x12, 0, 0, 0x5b, 0xa1, 1],
    ]
    .concat();
    let device = [
        &[24, 0x60, 1, b'w', 16, 24, 0x40, 8, 1, 0xa8, 10, 2, 0xa0, 8, 1, b'3', 0xa1, 10][..],
        &[24, 0x70, 16, 0, 0, 24, 0x50, 0, 0, 4, 24, 0x00, 10, 1, b'4', 24, 0x30, 10, 0xad],
    ]
    .concat();
    let full: Vec<u8> = (0x40..0xc0).flat_map(|name| [0xa0, name, 0xf0, 0, 15]).collect();
    let broken =
        vec![28, 0xa0, 1, 0, 0xa1, 1, 0xf4, 0x10, 1, 2, 3, 4, 0xf0, 0xf8, 0xa0, 1, 0, 0xa1, 1];
    vec![plain, conflict, device, full, broken]
}
