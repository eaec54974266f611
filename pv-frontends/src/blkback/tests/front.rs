//! A frontend that behaves as Linux's blkfront does.

use std::collections::BTreeMap;
use std::format;
use std::string::ToString;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use std::vec::Vec;

use translate::platform::GuestMemory;
use xen_abi::Mfn;
use xen_abi::grant_table::GrantRef;
use xen_abi::io::blkif::{
    BlkifOp, BlkifRequest, BlkifRequest32, BlkifRequestDiscard, BlkifRequestDiscard32,
    BlkifRequestIndirect, BlkifRequestIndirect32, BlkifResponse, BlkifResponse32, BlkifSegment,
    PROTOCOL_X86_32, PROTOCOL_X86_64,
};
use xen_abi::io::ring::{
    ENTRIES, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingPage, WORDS_PER_PAGE, ring_size,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::world::{World, set_page_bytes};
use crate::blkback::request::Layout;

/// A segment of a request: a page, and which of its sectors.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub page: Mfn,
    pub first: u8,
    pub last: u8,
}

/// A request the frontend waits for.
#[derive(Clone, Debug)]
pub struct Shadow {
    pub operation: BlkifOp,
    pub sector: u64,
    pub pieces: Vec<Piece>,
    grefs: Vec<u32>,
    /// Pages of segments.
    indirect: Vec<Mfn>,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Done {
    pub id: u64,
    pub status: i16,
    pub shadow: Shadow,
}

/// One queue's frontend.
pub struct Front {
    pub layout: Layout,
    pages: Vec<Mfn>,
    grefs: Vec<u32>,
    pub port: u32,
    pub queue: u16,
    pub entries: u32,
    req_prod: u32,
    rsp_cons: u32,
    pub shadows: BTreeMap<u64, Shadow>,
    next_id: u64,
}

impl Front {
    /// Allocates a ring and a port, and writes them where they belong.
    fn new(w: &mut World, layout: Layout, order: u32, queue: u16, queues: u16) -> Self {
        let pages: Vec<Mfn> = (0..1 << order).map(|_| w.page()).collect();
        for page in &pages {
            set_page_bytes(&w.machine.plat, *page, 0, &[0; 4096]);
        }
        let grefs: Vec<u32> = pages.iter().map(|page| w.grant(*page, false)).collect();
        let port = w.alloc_port();
        let dir = if queues > 1 { format!("queue-{queue}/") } else { Default::default() };
        w.store.set_front(&format!("{dir}event-channel"), port);
        if order == 0 {
            w.store.set_front(&format!("{dir}ring-ref"), grefs[0]);
        }
        for (page, gref) in grefs.iter().enumerate().filter(|_| order > 0) {
            w.store.set_front(&format!("{dir}ring-ref{page}"), gref);
        }
        let entries = ring_size(pages.len() * 4096, layout.entry_bytes());
        let front = Self {
            layout,
            pages,
            grefs,
            port,
            queue,
            entries,
            req_prod: 0,
            rsp_cons: 0,
            shadows: BTreeMap::new(),
            next_id: 1 << 40,
        };
        front.store(w, REQ_EVENT, 1);
        front.store(w, RSP_EVENT, 1);
        front
    }

    fn word<'w>(&self, w: &'w World, word: usize) -> &'w core::sync::atomic::AtomicU32 {
        let page = self.pages[word / WORDS_PER_PAGE];
        let page: &'static RingPage = w.machine.plat.view(page.base()).expect("the guest's page");
        &page.words[word % WORDS_PER_PAGE]
    }
    pub fn store(&self, w: &World, word: usize, value: u32) {
        self.word(w, word).store(value, Relaxed);
    }
    pub fn load(&self, w: &World, word: usize) -> u32 {
        self.word(w, word).load(Acquire)
    }

    pub fn free_requests(&self) -> u32 {
        self.entries - (self.req_prod - self.rsp_cons)
    }

    /// Puts an entry into the ring as it is.
    pub fn put_raw(&mut self, w: &World, words: &[u32]) {
        let entry = self.layout.entry_bytes() / 4;
        let at = ENTRIES + (self.req_prod % self.entries) as usize * entry;
        for (index, word) in words.iter().take(entry).enumerate() {
            self.store(w, at + index, *word);
        }
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    fn put(&mut self, w: &World, bytes: &[u8]) {
        let mut words = [0u32; 28];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        self.put_raw(w, &words);
    }

    /// Queues a transfer (or a flush of nothing); its id.
    pub fn transfer(
        &mut self,
        w: &mut World,
        operation: BlkifOp,
        sector: u64,
        pieces: &[Piece],
        indirect: bool,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let read_only = operation != BlkifOp::READ;
        let grefs: Vec<u32> = pieces.iter().map(|piece| w.grant(piece.page, read_only)).collect();
        let segments: Vec<BlkifSegment> = pieces
            .iter()
            .zip(&grefs)
            .map(|(piece, gref)| BlkifSegment {
                gref: GrantRef(*gref),
                first_sect: piece.first,
                last_sect: piece.last,
                pad: 0,
            })
            .collect();
        let mut shadow =
            Shadow { operation, sector, pieces: pieces.to_vec(), grefs, indirect: Vec::new() };
        if indirect {
            self.put_indirect(w, id, &mut shadow, &segments);
        } else {
            self.put_direct(w, id, &shadow, &segments);
        }
        self.shadows.insert(id, shadow);
        id
    }

    fn put_direct(&mut self, w: &World, id: u64, shadow: &Shadow, segments: &[BlkifSegment]) {
        let mut rw = BlkifRequest::new_zeroed();
        rw.operation = shadow.operation;
        rw.nr_segments = segments.len() as u8;
        (rw.id, rw.sector_number) = (id, shadow.sector);
        rw.seg[..segments.len()].copy_from_slice(segments);
        if self.layout == Layout::X86_64 {
            return self.put(w, rw.as_bytes());
        }
        let mut rw32 = BlkifRequest32::new_zeroed();
        (rw32.operation, rw32.nr_segments) = (rw.operation, rw.nr_segments);
        rw32.id.as_mut_bytes().copy_from_slice(id.as_bytes());
        rw32.sector_number.as_mut_bytes().copy_from_slice(shadow.sector.as_bytes());
        rw32.seg = rw.seg;
        self.put(w, rw32.as_bytes());
    }

    fn put_indirect(
        &mut self,
        w: &mut World,
        id: u64,
        shadow: &mut Shadow,
        segments: &[BlkifSegment],
    ) {
        let mut grefs = [GrantRef(0); 8];
        for (gref, part) in grefs.iter_mut().zip(segments.chunks(512)) {
            let page = w.page();
            set_page_bytes(&w.machine.plat, page, 0, part.as_bytes());
            *gref = GrantRef(w.grant(page, true));
            shadow.grefs.push(gref.0);
            shadow.indirect.push(page);
        }
        if self.layout == Layout::X86_64 {
            let mut request = BlkifRequestIndirect::new_zeroed();
            (request.operation, request.indirect_op) = (BlkifOp::INDIRECT, shadow.operation);
            (request.id, request.sector_number) = (id, shadow.sector);
            (request.nr_segments, request.indirect_grefs) = (segments.len() as u16, grefs);
            return self.put(w, request.as_bytes());
        }
        let mut request = BlkifRequestIndirect32::new_zeroed();
        (request.operation, request.indirect_op) = (BlkifOp::INDIRECT, shadow.operation);
        request.id.as_mut_bytes().copy_from_slice(id.as_bytes());
        request.sector_number.as_mut_bytes().copy_from_slice(shadow.sector.as_bytes());
        (request.nr_segments, request.indirect_grefs) = (segments.len() as u16, grefs);
        self.put(w, request.as_bytes());
    }

    /// Queues a discard.
    pub fn discard(&mut self, w: &World, sector: u64, nr_sectors: u64, flag: u8) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let operation = BlkifOp::DISCARD;
        if self.layout == Layout::X86_64 {
            let request = BlkifRequestDiscard {
                operation,
                flag,
                handle: 0,
                pad: 0,
                id,
                sector_number: sector,
                nr_sectors,
            };
            self.put(w, request.as_bytes());
        } else {
            let halves = |value: u64| [value as u32, (value >> 32) as u32];
            let request = BlkifRequestDiscard32 {
                operation,
                flag,
                handle: 0,
                id: halves(id),
                sector_number: halves(sector),
                nr_sectors: halves(nr_sectors),
            };
            self.put(w, request.as_bytes());
        }
        let shadow = Shadow {
            operation,
            sector,
            pieces: Vec::new(),
            grefs: Vec::new(),
            indirect: Vec::new(),
        };
        self.shadows.insert(id, shadow);
        id
    }

    /// Shows the requests; whether the backend wants to be told.
    pub fn push(&self, w: &World) -> bool {
        let old = self.load(w, REQ_PROD);
        self.word(w, REQ_PROD).store(self.req_prod, Release);
        fence(SeqCst);
        let event = self.load(w, REQ_EVENT);
        self.req_prod.wrapping_sub(event) < self.req_prod.wrapping_sub(old)
    }

    /// Shows the requests and tells the backend if it wants to be.
    pub fn flush(&self, w: &World) {
        if self.push(w) {
            while w.vbd.kicked(&w.env(), self.queue) {}
        }
    }

    /// Whether a grant is one of the ring's.
    pub fn is_ring(&self, gref: u32) -> bool {
        self.grefs.contains(&gref)
    }

    /// The event handler: takes all responses and checks them as blkfront does.
    pub fn responses(&mut self, w: &mut World) -> Vec<Done> {
        let mut done = Vec::new();
        while self.rsp_cons != self.load(w, RSP_PROD) {
            assert!(self.load(w, RSP_PROD).wrapping_sub(self.rsp_cons) <= self.entries);
            let entry = self.layout.entry_bytes() / 4;
            let at = ENTRIES + (self.rsp_cons % self.entries) as usize * entry;
            let words: [u32; 4] = core::array::from_fn(|word| self.load(w, at + word));
            self.rsp_cons = self.rsp_cons.wrapping_add(1);
            let (id, operation, status) = if self.layout == Layout::X86_64 {
                let response = BlkifResponse::read_from_bytes(words.as_bytes()).unwrap();
                (response.id, response.operation, response.status)
            } else {
                let (response, _) = BlkifResponse32::read_from_prefix(words.as_bytes()).unwrap();
                let id = u64::from(response.id[0]) | u64::from(response.id[1]) << 32;
                (id, response.operation, response.status)
            };
            let shadow = self.shadows.remove(&id).expect("a response to nothing");
            assert_eq!(operation, shadow.operation, "response contains incorrect operation");
            for gref in &shadow.grefs {
                w.end_access(*gref);
            }
            for page in &shadow.indirect {
                w.free_page(*page);
            }
            done.push(Done { id, status: status.0, shadow });
        }
        self.store(w, RSP_EVENT, self.rsp_cons.wrapping_add(1));
        done
    }

    /// Lets go of the ring, whose backend has.
    pub fn destroy(self, w: &mut World) {
        for shadow in self.shadows.values() {
            for gref in &shadow.grefs {
                w.end_access(*gref);
            }
        }
        for (gref, page) in self.grefs.iter().zip(&self.pages) {
            w.end_access(*gref);
            w.free_page(*page);
        }
        w.close_port(self.port);
    }
}

/// Sets a frontend up and connects it, through the states as blkfront goes.
pub fn connect(w: &mut World, layout: Layout, order: u32, queues: u16) -> Vec<Front> {
    assert_eq!(w.back_state(), 2, "the backend waits");
    let protocol = if layout == Layout::X86_64 { PROTOCOL_X86_64 } else { PROTOCOL_X86_32 };
    w.store.set_front("protocol", protocol);
    w.store.remove_front("ring-page-order");
    w.store.remove_front("multi-queue-num-queues");
    if order > 0 {
        let most = w.store.back("max-ring-page-order").unwrap();
        assert!(order.to_string() <= most);
        w.store.set_front("ring-page-order", order);
    }
    if queues > 1 {
        w.store.set_front("multi-queue-num-queues", queues);
    }
    let fronts = (0..queues).map(|queue| Front::new(w, layout, order, queue, queues)).collect();
    w.set_state(3);
    w.log();
    assert_eq!(w.back_state(), 4);
    w.set_state(4);
    fronts
}
