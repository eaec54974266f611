//! A guest's side of the ring.

use std::boxed::Box;
use std::collections::VecDeque;
use std::string::{String, ToString};
use std::vec::Vec;

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::io::xs_wire::{RING_SIZE, XenstoreDomainInterface, XsType, XsdSockmsg};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::xenstore::{Config, Served, Store};

/// A store with a guest.
pub struct Client {
    pub store: Store,
    pub ring: Box<XenstoreDomainInterface>,
    /// Watch events that came: path, token.
    pub events: VecDeque<(String, String)>,
    req_id: u32,
    pending: Vec<u8>,
}

impl Client {
    pub fn new() -> Self {
        Self::with(&Config::default())
    }

    pub fn with(config: &Config) -> Self {
        let mut store = Store::new(config).expect("memory");
        let ring = Box::new(XenstoreDomainInterface::new_zeroed());
        store.introduce(&ring);
        Self { store, ring, events: VecDeque::new(), req_id: 100, pending: Vec::new() }
    }

    /// With the nodes a domain has at least: its own, which it may read, and one of its own.
    pub fn with_home() -> Self {
        let mut client = Self::new();
        client.home();
        client
    }

    pub fn home(&mut self) {
        self.store.write(b"/local/domain/1", b"").expect("room");
        self.store.set_perms(b"/local/domain/1", &[b"n0", b"r1"]).expect("there");
        self.store.write(b"/local/domain/1/data", b"").expect("room");
        self.store.set_perms(b"/local/domain/1/data", &[b"n1"]).expect("there");
    }

    /// Puts as many bytes into the ring as fit.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let prod = self.ring.req_prod.load(Relaxed);
        let used = prod.wrapping_sub(self.ring.req_cons.load(Relaxed));
        let count = bytes.len().min((RING_SIZE - used) as usize);
        for (at, byte) in (0u32..).zip(&bytes[..count]) {
            self.ring.req[(prod.wrapping_add(at) % RING_SIZE) as usize].store(*byte, Relaxed);
        }
        self.ring.req_prod.store(prod.wrapping_add(count as u32), Relaxed);
        count
    }

    /// Takes at most that many bytes out of the ring.
    pub fn take(&mut self, most: usize) -> usize {
        let cons = self.ring.rsp_cons.load(Relaxed);
        let there = self.ring.rsp_prod.load(Relaxed).wrapping_sub(cons);
        let count = (there as usize).min(most);
        for at in 0..count as u32 {
            let place = (cons.wrapping_add(at) % RING_SIZE) as usize;
            self.pending.push(self.ring.rsp[place].load(Relaxed));
        }
        self.ring.rsp_cons.store(cons.wrapping_add(count as u32), Relaxed);
        count
    }

    pub fn serve(&mut self) -> Served {
        self.store.serve(&self.ring, 16)
    }

    /// The next whole message that was taken.
    pub fn message(&mut self) -> Option<(XsdSockmsg, Vec<u8>)> {
        let (header, rest) = XsdSockmsg::read_from_prefix(&self.pending).ok()?;
        let payload = rest.get(..header.len as usize)?.to_vec();
        self.pending.drain(..16 + payload.len());
        Some((header, payload))
    }

    /// Takes what there is until nothing comes any more; returns the replies, keeps the events.
    pub fn drain(&mut self) -> Vec<(XsdSockmsg, Vec<u8>)> {
        let mut replies = Vec::new();
        loop {
            let served = self.serve();
            let count = self.take(usize::MAX);
            while let Some((header, payload)) = self.message() {
                if header.type_ == XsType::WATCH_EVENT {
                    assert_eq!((header.req_id, header.tx_id), (0, 0));
                    let text = String::from_utf8(payload).expect("text");
                    let mut parts = text.split_terminator('\0').map(str::to_string);
                    let event = (parts.next().expect("path"), parts.next().expect("token"));
                    assert_eq!(parts.next(), None);
                    self.events.push_back(event);
                } else {
                    replies.push((header, payload));
                }
            }
            if count == 0 && !served.more {
                return replies;
            }
        }
    }

    /// Sends a request and waits for its reply.
    pub fn raw(&mut self, type_: XsType, tx_id: u32, payload: &[u8]) -> (XsType, Vec<u8>) {
        self.req_id += 1;
        let len = payload.len() as u32;
        let header = XsdSockmsg { type_, req_id: self.req_id, tx_id, len };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(payload);
        let mut rest = &bytes[..];
        let mut replies = Vec::new();
        while !rest.is_empty() {
            rest = &rest[self.put(rest)..];
            replies.extend(self.drain());
        }
        assert_eq!(replies.len(), 1, "one reply");
        let (header, payload) = replies.remove(0);
        assert_eq!((header.req_id, header.tx_id), (self.req_id, tx_id));
        (header.type_, payload)
    }

    /// A request whose reply has its own type; else the error's name.
    pub fn ask(&mut self, type_: XsType, tx: u32, payload: &[u8]) -> Result<Vec<u8>, String> {
        let (kind, payload) = self.raw(type_, tx, payload);
        if kind == XsType::ERROR {
            let (nul, name) = payload.split_last().expect("a name");
            assert_eq!(*nul, 0);
            return Err(String::from_utf8(name.to_vec()).expect("text"));
        }
        assert_eq!(kind, type_);
        Ok(payload)
    }

    /// A request of one text; the reply as text, its NULs shown as `|`.
    pub fn one(&mut self, type_: XsType, tx: u32, text: &str) -> Result<String, String> {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        let reply = self.ask(type_, tx, &payload)?;
        Ok(String::from_utf8(reply).expect("text").replace('\0', "|"))
    }

    /// The same with several texts, separated by `|`.
    pub fn many(&mut self, type_: XsType, tx: u32, texts: &str) -> Result<String, String> {
        self.one(type_, tx, &texts.replace('|', "\0"))
    }

    pub fn read(&mut self, tx: u32, path: &str) -> Result<String, String> {
        self.one(XsType::READ, tx, path)
    }

    pub fn write(&mut self, tx: u32, path: &str, value: &str) -> Result<(), String> {
        let mut payload = path.as_bytes().to_vec();
        payload.push(0);
        payload.extend_from_slice(value.as_bytes());
        self.ask(XsType::WRITE, tx, &payload).map(|reply| assert_eq!(reply, b"OK\0"))
    }

    pub fn begin(&mut self) -> u32 {
        let reply = self.one(XsType::TRANSACTION_START, 0, "").expect("a transaction");
        reply.strip_suffix('|').expect("terminated").parse().expect("a number")
    }

    pub fn end(&mut self, tx: u32, commit: bool) -> Result<(), String> {
        let what = if commit { "T" } else { "F" };
        self.one(XsType::TRANSACTION_END, tx, what).map(|reply| assert_eq!(reply, "OK|"))
    }

    /// The events since the last time, as `path token`.
    pub fn events(&mut self) -> Vec<String> {
        assert!(self.drain().is_empty());
        self.events.drain(..).map(|(path, token)| std::format!("{path} {token}")).collect()
    }

    /// What backends get, as `path token`.
    pub fn internal(&mut self) -> Vec<String> {
        let mut buf = [0; 4096];
        let mut events = Vec::new();
        while let Some((token, path)) = self.store.next_internal_event(&mut buf) {
            events.push(std::format!("{} {token}", String::from_utf8_lossy(path)));
        }
        events
    }

    /// The store must hang together after every test.
    pub fn check(&mut self) {
        assert_eq!(self.store.check(), Ok(()));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}
