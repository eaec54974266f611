//! The guest's ring (`docs/misc/xenstore-ring.txt`).
//!
//! All four indices lie in memory the guest writes. Ours are loaded like the guest's, checked
//! (never more than a ring between producer and consumer) and used once; a ring whose indices
//! cannot be true, or a message that is too long, stops the service: the error field says why,
//! watches and transactions are gone, and only a reconnection starts it again.
//!
//! Orderings. Data go before the index that tells of them, and indices before the data they tell
//! of: an index is loaded with Acquire and stored with Release. Linux tells us of requests only
//! if it saw that we had taken all earlier ones, and of room only if it saw the ring full. So
//! after each store of an index there is a full barrier before the other side's is loaded again,
//! as the guest has one in between: one of the two always sees the other's index, and we stop
//! only when the ring has nothing more for us after our last store.
//!
//! Bounds. One request is carried out at a time, and the next is not read before its reply is in
//! the ring altogether; events wait in a bounded queue. A guest that does not read gets nothing
//! done and costs nothing more.

use core::mem::size_of;
use core::sync::atomic::{Ordering, fence};

use xen_abi::Errno;
use xen_abi::io::xs_wire::{
    CONNECTED, FEATURE_DOMID_ANY, FEATURE_ERROR, FEATURE_RECONNECTION, FEATURE_WATCHDEPTH,
    PAYLOAD_MAX, RECONNECT, RING_SIZE, RingError, XenstoreDomainInterface, XsType, XsdSockmsg,
    error_name,
};
use zerocopy::{FromBytes, IntoBytes};

use super::path::GUEST_PREFIX;
use super::pool::Buf;
use super::request::After;
use super::store::Store;
use super::watch::Side;

/// What the store offers.
pub(super) const FEATURES: u32 =
    FEATURE_RECONNECTION | FEATURE_ERROR | FEATURE_WATCHDEPTH | FEATURE_DOMID_ANY;
/// Bytes before a payload, where a relative path gets its beginning.
pub(super) const PREFIX_ROOM: usize = 32;
const HEADER: usize = size_of::<XsdSockmsg>();
/// Bytes copied at a time.
const CHUNK: usize = 128;

/// A message that was read.
pub(super) struct Request<'a> {
    pub(super) header: XsdSockmsg,
    /// [`PREFIX_ROOM`] bytes that end with [`GUEST_PREFIX`], then the payload.
    bytes: &'a [u8],
}

impl<'a> Request<'a> {
    pub(super) fn payload(&self) -> &'a [u8] {
        self.bytes.get(PREFIX_ROOM..).unwrap_or_default()
    }

    /// The first bytes of the payload, behind the guest's own path.
    pub(super) fn with_prefix(&self, len: usize) -> &'a [u8] {
        self.bytes.get(PREFIX_ROOM - GUEST_PREFIX.len()..PREFIX_ROOM + len).unwrap_or_default()
    }
}

/// The reply that is on its way.
#[derive(Clone, Copy, Debug)]
struct Reply {
    header: XsdSockmsg,
    /// Events that go first.
    after: u32,
}

/// The guest's connection.
#[derive(Debug)]
pub(super) struct Connection {
    header: [u8; HEADER],
    /// Bytes of the request that were read, the header included.
    got: usize,
    /// Room for a relative path's beginning, then the payload.
    input: Buf,
    /// Payload of the reply.
    output: Buf,
    reply: Option<Reply>,
    /// Bytes of the message in hand that are in the ring.
    sent: usize,
    /// The ring is not served.
    broken: bool,
}

impl Connection {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            header: [0; HEADER],
            got: 0,
            input: Buf::new(PREFIX_ROOM + PAYLOAD_MAX)?,
            output: Buf::new(PAYLOAD_MAX)?,
            reply: None,
            sent: 0,
            broken: false,
        })
    }
}

/// What serving the ring came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// The guest is to be told.
    pub notify: bool,
    /// There is more to do.
    pub more: bool,
}

/// Bytes between two indices, if that can be.
fn used(prod: u32, cons: u32) -> Result<u32, RingError> {
    let used = prod.wrapping_sub(cons);
    if used > RING_SIZE { Err(RingError::RINGIDX) } else { Ok(used) }
}

/// What a request takes of the budget: long paths have many nodes above them, and trees and
/// transactions may be large.
const fn cost(header: &XsdSockmsg) -> usize {
    match header.type_ {
        XsType::RM | XsType::TRANSACTION_END => usize::MAX,
        _ => 1 + header.len as usize / 128,
    }
}

impl Store {
    /// Says what is offered, on a new ring.
    pub fn introduce(&mut self, ring: &XenstoreDomainInterface) {
        ring.server_features.store(FEATURES, Ordering::Release);
        ring.connection.store(CONNECTED, Ordering::Release);
        self.fire_special(b"@introduceDomain");
    }

    /// Reads requests, carries them out and sends what there is to send. With a budget of 0 it
    /// only sends; else it reads at least one request, and of short ones as many as the budget.
    pub fn serve(&mut self, ring: &XenstoreDomainInterface, budget: usize) -> Served {
        let mut served = Served::default();
        if ring.connection.load(Ordering::Acquire) == RECONNECT {
            self.reconnect(ring);
            served.notify = true;
        }
        if self.connection.broken {
            return served;
        }
        if let Err(error) = self.serve_ring(ring, budget, &mut served) {
            self.disconnect();
            self.connection.broken = true;
            ring.error.store(error.0, Ordering::Release);
            served = Served { notify: true, more: false };
        }
        served
    }

    fn serve_ring(
        &mut self,
        ring: &XenstoreDomainInterface,
        budget: usize,
        served: &mut Served,
    ) -> Result<(), RingError> {
        self.find_lost(Side::Guest);
        let mut left = budget;
        loop {
            served.notify |= self.send(ring)?;
            if self.connection.reply.is_some() {
                return Ok(());
            }
            if left == 0 {
                // A caller without a budget only has something to send.
                served.more = budget != 0 && self.has_input(ring);
                return Ok(());
            }
            if !self.receive(ring, &mut served.notify)? {
                return Ok(());
            }
            left = left.saturating_sub(cost(&self.header()));
            self.carry_out();
        }
    }

    /// Forgets the connection's state.
    fn disconnect(&mut self) {
        self.remove_all_watches(Side::Guest);
        self.abandon_all();
        self.drop_events(Side::Guest);
        let connection = &mut self.connection;
        (connection.got, connection.sent, connection.reply) = (0, 0, None);
        connection.input.clear();
        connection.output.clear();
    }

    fn reconnect(&mut self, ring: &XenstoreDomainInterface) {
        self.disconnect();
        self.connection.broken = false;
        for index in [&ring.req_cons, &ring.req_prod, &ring.rsp_cons, &ring.rsp_prod] {
            index.store(0, Ordering::Relaxed);
        }
        ring.error.store(RingError::NONE.0, Ordering::Relaxed);
        ring.server_features.store(FEATURES, Ordering::Relaxed);
        // The guest looks at the ring only after this.
        ring.connection.store(CONNECTED, Ordering::Release);
    }

    fn has_input(&self, ring: &XenstoreDomainInterface) -> bool {
        ring.req_prod.load(Ordering::Acquire) != ring.req_cons.load(Ordering::Relaxed)
    }

    /// Reads until a request is complete (true) or the ring is empty.
    fn receive(
        &mut self,
        ring: &XenstoreDomainInterface,
        consumed: &mut bool,
    ) -> Result<bool, RingError> {
        loop {
            let prod = ring.req_prod.load(Ordering::Acquire);
            let cons = ring.req_cons.load(Ordering::Relaxed);
            let there = used(prod, cons)?;
            if there == 0 {
                return Ok(false);
            }
            let mut at = cons;
            let mut complete = false;
            while at != prod && !complete {
                let mut chunk = [0; CHUNK];
                let wanted = self.wanted().min(CHUNK).min(prod.wrapping_sub(at) as usize);
                for byte in chunk.iter_mut().take(wanted) {
                    let place = (at % RING_SIZE) as usize;
                    *byte = ring.req.get(place).map_or(0, |byte| byte.load(Ordering::Relaxed));
                    at = at.wrapping_add(1);
                }
                complete = self.take(chunk.get(..wanted).unwrap_or_default())?;
            }
            ring.req_cons.store(at, Ordering::Release);
            fence(Ordering::SeqCst);
            *consumed = true;
            if complete {
                return Ok(true);
            }
        }
    }

    fn header(&self) -> XsdSockmsg {
        XsdSockmsg::read_from_bytes(&self.connection.header).unwrap_or(XsdSockmsg {
            type_: XsType(0),
            req_id: 0,
            tx_id: 0,
            len: 0,
        })
    }

    /// Bytes missing from the header, or from the payload.
    fn wanted(&self) -> usize {
        match HEADER.checked_sub(self.connection.got) {
            None | Some(0) => {
                (self.header().len as usize + HEADER).saturating_sub(self.connection.got)
            }
            Some(missing) => missing,
        }
    }

    /// Adds bytes, at most [`Self::wanted`], to the request; whether it is complete.
    fn take(&mut self, bytes: &[u8]) -> Result<bool, RingError> {
        let connection = &mut self.connection;
        if connection.got < HEADER {
            let rest = connection.header.iter_mut().skip(connection.got);
            rest.zip(bytes).for_each(|(to, from)| *to = *from);
            connection.got += bytes.len();
            if connection.got < HEADER {
                return Ok(false);
            }
            connection.input.clear();
            connection.input.resize(PREFIX_ROOM);
            let prefix = connection.input.get_mut().iter_mut().rev();
            prefix.zip(GUEST_PREFIX.iter().rev()).for_each(|(to, from)| *to = *from);
            if self.header().len as usize > PAYLOAD_MAX {
                return Err(RingError::PROTO);
            }
        } else {
            connection.input.add(bytes).map_err(|_| RingError::PROTO)?;
            connection.got += bytes.len();
        }
        Ok(self.connection.got == HEADER + self.header().len as usize)
    }

    /// Carries out the request that is complete.
    fn carry_out(&mut self) {
        let header = self.header();
        let input = core::mem::take(&mut self.connection.input);
        let mut output = core::mem::take(&mut self.connection.output);
        output.clear();
        self.connection.got = 0;
        let request = Request { header, bytes: input.get() };
        let mut type_ = header.type_;
        let done = self.request(&request, &mut output);
        let after = done.unwrap_or_else(|error| {
            type_ = XsType::ERROR;
            output.clear();
            // It has room for an error's name.
            let _ = output.add(error_name(error));
            After::Nothing
        });
        let reply = XsdSockmsg { type_, len: output.get().len() as u32, ..header };
        let waiting = self.watcher(Side::Guest).waiting();
        self.connection.reply = Some(Reply { header: reply, after: waiting });
        (self.connection.input, self.connection.output) = (input, output);
        if let After::Announce(watch) = after {
            self.announce(Side::Guest, watch);
        }
    }

    /// Fills the ring with what waits; whether there was anything.
    fn send(&mut self, ring: &XenstoreDomainInterface) -> Result<bool, RingError> {
        let mut sent = false;
        while self.has_output() {
            let cons = ring.rsp_cons.load(Ordering::Acquire);
            let prod = ring.rsp_prod.load(Ordering::Relaxed);
            let mut room = RING_SIZE - used(prod, cons)?;
            if room == 0 {
                break;
            }
            let mut at = prod;
            while room != 0 && self.has_output() {
                let mut chunk = [0; CHUNK];
                let space = chunk.get_mut(..CHUNK.min(room as usize)).unwrap_or_default();
                let count = self.next_output(space);
                if count == 0 {
                    // It cannot be, and would go on for ever.
                    return Err(RingError::COMM);
                }
                for byte in chunk.iter().take(count) {
                    if let Some(place) = ring.rsp.get((at % RING_SIZE) as usize) {
                        place.store(*byte, Ordering::Relaxed);
                    }
                    at = at.wrapping_add(1);
                }
                room -= count as u32;
            }
            ring.rsp_prod.store(at, Ordering::Release);
            fence(Ordering::SeqCst);
            sent = true;
        }
        Ok(sent)
    }

    fn has_output(&self) -> bool {
        self.connection.reply.is_some() || self.watcher(Side::Guest).waiting() != 0
    }

    /// The next bytes of the message in hand, at least one, as many as fit into `space`.
    fn next_output(&mut self, space: &mut [u8]) -> usize {
        let due = self.connection.reply.filter(|reply| reply.after == 0);
        let event = self.first_event(Side::Guest);
        let header = match (due, &event) {
            (Some(reply), _) => reply.header,
            (None, Some(event)) => {
                let len = event.text.len() as u32;
                XsdSockmsg { type_: XsType::WATCH_EVENT, req_id: 0, tx_id: 0, len }
            }
            (None, None) => return 0,
        };
        let sent = self.connection.sent;
        let count = match (HEADER.checked_sub(sent), event) {
            (Some(missing), _) if missing != 0 => {
                let bytes = header.as_bytes().get(sent..).unwrap_or_default();
                space.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                missing.min(space.len())
            }
            (_, Some(event)) if due.is_none() => {
                self.pool.read_at(event.text, sent - HEADER, space)
            }
            _ => {
                let bytes = self.connection.output.get().get(sent - HEADER..).unwrap_or_default();
                space.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                bytes.len().min(space.len())
            }
        };
        self.connection.sent += count;
        if self.connection.sent >= HEADER + header.len as usize {
            self.connection.sent = 0;
            if due.is_some() {
                self.connection.reply = None;
            } else {
                if let Some(reply) = &mut self.connection.reply {
                    reply.after = reply.after.saturating_sub(1);
                }
                self.pop_event(Side::Guest);
            }
        }
        count
    }
}

#[cfg(test)]
#[path = "tests/ring.rs"]
mod tests;
