//! A card's own conversation with the host.
//!
//! ```text
//! Away ─offer─> Opening ─opened─> Talking: INIT … SEND_SEND_BUFFER, RNDIS, sub-channels ─> running
//!   ^                                │ new MTU, no answer, nonsense
//!   │ rescind, from anywhere         v
//!   └──────────── Closed <─closed─ Closing: HALT, REVOKE both
//!                   └─ GPADLs back, then Opening again, or Failed
//! ```
//! At most one message is on its way. [`Machine::next`] says what is to be done; whoever does it
//! holds no lock while it calls others.

mod answer;
mod talk;

use alloc::sync::Arc;

use hv_abi::netvsc::Oid;
use hv_abi::netvsc::nvsp::{Message, Version};
use hv_abi::vmbus::{GpadlId, NtStatus};
use translate::platform::PageWords;

use super::facts::{Facts, Settings};
use super::slots::Pages;
use super::tx::Session;
use crate::vmbus::Shared;

/// Versions proposed, newest first.
const VERSIONS: [Version; 3] = [Version::V6_1, Version::V6, Version::V5];
/// How often a channel is opened again that broke.
const MAX_REOPENS: u8 = 3;

/// A buffer the host is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::netvsc) enum Which {
    Receive,
    Send,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gpadl {
    None,
    Creating,
    Created(GpadlId),
    TearingDown,
}

/// What is asked when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Init(usize),
    NdisConfig,
    NdisVersion,
    /// Its GPADL, then the message.
    Buffer(Which),
    Initialize,
    /// By its number in [`QUERIES`].
    Query(usize),
    Offloads,
    SubChannels,
    AwaitChannels(u64),
    Start,
    Running,
}

/// Objects asked for, in order.
const QUERIES: [Oid; 6] = [
    Oid::IEEE_802_3_PERMANENT_ADDRESS,
    Oid::GEN_MAXIMUM_FRAME_SIZE,
    Oid::GEN_MEDIA_CONNECT_STATUS,
    Oid::GEN_LINK_SPEED,
    Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
    Oid::GEN_RECEIVE_SCALE_CAPABILITIES,
];

/// Steps of an orderly end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stop,
    Halt,
    RevokeReceive,
    RevokeSend,
    /// Hosts before version 4.0 of VMBus answer no teardown once the channel is closed.
    Gpadls,
    Close,
    Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No channel, until then.
    Away(u64),
    /// To be opened.
    Open,
    Opening,
    Talking(Step),
    Closing(Ending),
    /// Closed; GPADLs are to be taken back.
    Closed,
    /// Will not be opened again.
    Failed,
    Gone,
}

/// Settings that the host is to be told.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    offloads: bool,
    rss: bool,
    filter: bool,
}

impl Due {
    const fn is_any(self) -> bool {
        self.offloads || self.rss || self.filter
    }
}

/// What a message on its way is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Step,
    Offloads,
    Rss,
    Filter,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u32,
    about: About,
    deadline_ns: u64,
}

/// What the backend is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::netvsc) enum News {
    Added,
    Changed,
    Removed,
}

/// What is to be done.
#[derive(Debug)]
pub(in crate::netvsc) enum Todo {
    Nothing,
    /// Send this, then [`Machine::sent`].
    Nvsp {
        number: u32,
        message: Message,
        is_answered: bool,
    },
    /// Send so many bytes of the page, then [`Machine::sent`].
    Rndis {
        number: u32,
        bytes: u32,
    },
    CreateGpadl(Which),
    TeardownGpadl(GpadlId),
    Open,
    Close,
    /// Queues take packets, or none any more.
    Session(Option<Arc<Session>>),
    Tell(News),
    Log(&'static str),
}

/// Memory of a card while it has a channel.
#[derive(Clone, Debug)]
pub(in crate::netvsc) struct Memory {
    pub receive: Arc<Pages>,
    pub send: Arc<Pages>,
    pub page: Shared<PageWords>,
}

#[derive(Debug)]
pub(in crate::netvsc) struct Machine {
    phase: Phase,
    pub memory: Memory,
    gpadls: [Gpadl; 2],
    /// The host was given the buffer.
    given: [bool; 2],
    number: u32,
    sent: Option<Sent>,
    /// The page is the host's until it has answered this.
    page_busy: Option<u32>,
    /// A keep-alive to be answered.
    keepalive: Option<u32>,
    /// A keep-alive's answer is what goes next.
    sending_keepalive: bool,
    pub facts: Facts,
    pub settings: Settings,
    due: Due,
    pub mtu: u32,
    /// The link went down and up at once: up is to be told, too.
    blink: bool,
    /// Queues that are open, a bit each; the first is the primary.
    pub open_queues: u128,
    granted: u32,
    reopen: bool,
    reopens: u8,
    old_bus: bool,
    log: Option<&'static str>,
    known: bool,
    news: bool,
    /// Someone does what was to be done, without the lock: nobody else does anything meanwhile.
    carrying: bool,
}

impl Machine {
    pub(in crate::netvsc) fn new(memory: Memory, mtu: u32) -> Self {
        Self {
            phase: Phase::Open,
            memory,
            gpadls: [Gpadl::None; 2],
            given: [false; 2],
            number: 0,
            sent: None,
            page_busy: None,
            keepalive: None,
            sending_keepalive: false,
            facts: Facts::new(),
            settings: Settings::new(),
            due: Due::default(),
            mtu,
            blink: false,
            open_queues: 0,
            granted: 0,
            reopen: false,
            reopens: 0,
            old_bus: false,
            log: None,
            known: false,
            news: false,
            carrying: false,
        }
    }

    /// Whether nobody has to be told of it any more.
    pub(in crate::netvsc) const fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone) && !self.known && !self.carrying
    }

    /// Whether it waits to be offered again.
    pub(in crate::netvsc) const fn is_away(&self) -> bool {
        matches!(self.phase, Phase::Away(_))
    }

    /// Whether nothing more is to be found out.
    pub(in crate::netvsc) const fn is_settled(&self) -> bool {
        match self.phase {
            Phase::Failed | Phase::Gone => true,
            Phase::Talking(Step::Running) => {
                self.known && self.sent.is_none() && !self.news && !self.due.is_any()
            }
            _ => false,
        }
    }

    /// Offered again.
    pub(in crate::netvsc) fn offered(&mut self, memory: Memory) {
        self.memory = memory;
        (self.phase, self.reopens) = (Phase::Open, 0);
    }

    /// The channel is open: from the beginning.
    pub(in crate::netvsc) fn opened(&mut self, old_bus: bool) {
        self.phase = Phase::Talking(Step::Init(0));
        (self.given, self.granted, self.old_bus) = ([false; 2], 0, old_bus);
        self.forget();
    }

    /// Nothing that was sent is answered any more.
    fn forget(&mut self) {
        (self.sent, self.page_busy) = (None, None);
        (self.keepalive, self.sending_keepalive) = (None, false);
        self.due = Due::default();
    }

    /// It did not open; `again`: it may be tried again.
    pub(in crate::netvsc) fn not_opened(&mut self, again: bool) {
        self.log = Some("the channel does not open");
        self.reopen = again && self.may_reopen();
        self.phase = Phase::Closed;
        self.lost_link();
    }

    /// The channel is closed.
    pub(in crate::netvsc) fn closed(&mut self) {
        if !matches!(self.phase, Phase::Closing(_)) {
            self.reopen = self.may_reopen();
        }
        self.forget();
        self.phase = Phase::Closed;
        self.lost_link();
    }

    /// The channel is gone, and what it had with it.
    pub(in crate::netvsc) fn rescinded(&mut self, until_ns: u64) {
        self.forget();
        self.gpadls = [Gpadl::None; 2];
        self.phase = if self.known { Phase::Away(until_ns) } else { Phase::Gone };
        self.lost_link();
    }

    fn lost_link(&mut self) {
        self.blink = false;
        if core::mem::replace(&mut self.facts.link, false) {
            self.news = true;
        }
    }

    fn may_reopen(&mut self) -> bool {
        self.reopens += 1;
        self.reopens <= MAX_REOPENS
    }

    /// The channel is to be closed; opened again if that is of use.
    fn fail(&mut self, why: &'static str, again: bool) {
        self.log = Some(why);
        self.reopen = again && self.may_reopen();
        self.phase = Phase::Closing(Ending::Stop);
        self.sent = None;
    }

    /// Another MTU: the host takes one only at the beginning.
    pub(in crate::netvsc) fn set_mtu(&mut self, mtu: u32) {
        if core::mem::replace(&mut self.mtu, mtu) == mtu {
            return;
        }
        if matches!(self.phase, Phase::Talking(_)) {
            (self.reopen, self.reopens) = (true, 0);
            self.phase = Phase::Closing(Ending::Stop);
            self.sent = None;
        }
    }

    pub(in crate::netvsc) const fn filter_changed(&mut self) {
        self.due.filter = true;
    }

    pub(in crate::netvsc) const fn rss_changed(&mut self) {
        self.due.rss = true;
    }

    pub(in crate::netvsc) const fn offloads_changed(&mut self) {
        self.due.offloads = true;
    }

    /// A queue opened or went.
    pub(in crate::netvsc) fn queue_changed(&mut self, index: u16, is_open: bool) {
        let bit = 1_u128.checked_shl(index.into()).unwrap_or(0);
        let before = self.open_queues;
        self.open_queues = if is_open { before | bit } else { before & !bit };
        if self.open_queues != before && self.phase == Phase::Talking(Step::Running) {
            (self.due.rss, self.news) = (true, true);
        }
    }

    /// Queues as the backend counts them: up to the last that is open.
    pub(in crate::netvsc) const fn queues(&self) -> u32 {
        let queues = u128::BITS - self.open_queues.leading_zeros();
        if queues == 0 { 1 } else { queues }
    }

    pub(in crate::netvsc) fn gpadl_created(&mut self, id: GpadlId, status: NtStatus) {
        let Some(gpadl) = self.gpadls.iter_mut().find(|gpadl| **gpadl == Gpadl::Creating) else {
            return;
        };
        *gpadl = if status.is_success() { Gpadl::Created(id) } else { Gpadl::None };
        if !status.is_success() && matches!(self.phase, Phase::Talking(_)) {
            self.fail("the host takes no buffer", false);
        }
    }

    pub(in crate::netvsc) fn gpadl_refused(&mut self) {
        self.gpadl_created(GpadlId(0), NtStatus::UNSUCCESSFUL);
    }

    pub(in crate::netvsc) fn gpadl_torndown(&mut self) {
        let gpadl = self.gpadls.iter_mut().find(|gpadl| **gpadl == Gpadl::TearingDown);
        if let Some(gpadl) = gpadl {
            *gpadl = Gpadl::None;
        }
    }

    /// When it has something to do though nothing happens.
    pub(in crate::netvsc) const fn deadline_ns(&self) -> Option<u64> {
        match (self.phase, &self.sent) {
            (Phase::Away(until), _) | (Phase::Talking(Step::AwaitChannels(until)), _) => {
                Some(until)
            }
            (Phase::Talking(_), Some(sent)) => Some(sent.deadline_ns),
            _ => None,
        }
    }

    /// Whether the host took too long.
    pub(in crate::netvsc) const fn is_late(&self, now_ns: u64) -> bool {
        match (self.phase, &self.sent) {
            (Phase::Talking(_), Some(sent)) => sent.deadline_ns <= now_ns,
            _ => false,
        }
    }
}
