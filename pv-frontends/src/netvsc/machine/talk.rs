//! What is to be done next, and sent.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_abi::netvsc::Oid;
use hv_abi::netvsc::nvsp::{
    Body, Capabilities, Init, Message, RECEIVE_BUFFER_ID, RevokeReceiveBuffer, RevokeSendBuffer,
    SEND_BUFFER_ID, SendNdisConfig, SendNdisVersion, SendReceiveBuffer, SendSendBuffer,
    SubChannelOperation, SubChannelRequest, Version,
};
use zerocopy::IntoBytes;

use super::super::config::Config;
use super::super::control;
use super::{
    About, Due, Ending, Gpadl, Machine, News, Phase, QUERIES, Sent, Step, Todo, VERSIONS, Which,
};
use crate::net::ETHERNET_HEADER_BYTES;

/// How long the host may take for an answer.
const ANSWER_NS: u64 = 30_000_000_000;

impl Machine {
    /// What is to be done now.
    pub(in crate::netvsc) fn next(&mut self, config: &Config, now_ns: u64) -> Todo {
        if self.carrying {
            return Todo::Nothing;
        }
        let todo = match self.log.take() {
            Some(text) => Todo::Log(text),
            None => self.step(config, now_ns),
        };
        self.carrying = !matches!(todo, Todo::Nothing | Todo::Nvsp { .. } | Todo::Rndis { .. });
        todo
    }

    /// What was to be done without the lock is done.
    pub(in crate::netvsc) const fn carried_out(&mut self) {
        self.carrying = false;
    }

    fn step(&mut self, config: &Config, now_ns: u64) -> Todo {
        let todo = match self.phase {
            Phase::Away(until) if until <= now_ns => {
                self.phase = Phase::Gone;
                Todo::Nothing
            }
            Phase::Open => {
                self.phase = Phase::Opening;
                Todo::Open
            }
            Phase::Talking(step) => self.talk(step, config, now_ns),
            Phase::Closing(ending) => self.end(ending),
            Phase::Closed => self.take_back(),
            Phase::Away(_) | Phase::Opening | Phase::Failed | Phase::Gone => Todo::Nothing,
        };
        match todo {
            Todo::Nothing => self.tell(),
            todo => todo,
        }
    }

    fn tell(&mut self) -> Todo {
        let news = match self.phase {
            Phase::Gone if self.known => {
                self.known = false;
                News::Removed
            }
            Phase::Talking(Step::Running) if !self.known => {
                (self.known, self.news) = (true, false);
                News::Added
            }
            _ if self.known && core::mem::take(&mut self.news) => News::Changed,
            _ => return Todo::Nothing,
        };
        Todo::Tell(news)
    }

    /// The backend was told.
    pub(in crate::netvsc) fn told_backend(&mut self) {
        if core::mem::take(&mut self.blink) {
            (self.facts.link, self.news) = (true, true);
        }
    }

    fn talk(&mut self, step: Step, config: &Config, now_ns: u64) -> Todo {
        if self.is_late(now_ns) {
            self.fail("the host does not answer", true);
            return self.log.take().map_or(Todo::Nothing, Todo::Log);
        }
        if let Some(id) = self.keepalive
            && self.page_busy.is_none()
        {
            self.sending_keepalive = true;
            return self.rndis(|_| control::keepalive_complete(id));
        }
        if self.sent.is_some() {
            return Todo::Nothing;
        }
        match step {
            Step::Init(nr) => {
                let version = VERSIONS.get(nr).copied().unwrap_or(Version::V5);
                self.nvsp(&Init { min_version: version, max_version: version }, true)
            }
            Step::NdisConfig => {
                let rsc = if self.facts.version.has_rsc() { Capabilities::RSC } else { 0 };
                let bits = Capabilities::IEEE_8021Q | Capabilities::TEAMING | rsc;
                let mtu = self.mtu + ETHERNET_HEADER_BYTES;
                let capabilities = Capabilities(bits);
                self.nvsp(&SendNdisConfig { mtu, reserved: 0, capabilities }, false)
            }
            Step::NdisVersion => {
                let (major, minor) = self.facts.version.ndis();
                self.nvsp(&SendNdisVersion { major, minor }, false)
            }
            Step::Buffer(which) => self.give(which),
            Step::Initialize => self.rndis(control::initialize),
            Step::Query(nr) => match QUERIES.get(nr) {
                Some(&oid) => self.rndis(|id| control::query(id, oid)),
                None => self.go_to(Step::Offloads, config, now_ns),
            },
            Step::Offloads => self.set_offloads(),
            Step::SubChannels => match self.wanted_channels(config) {
                0 => self.go_to(Step::Start, config, now_ns),
                count => {
                    let operation = SubChannelOperation::ALLOCATE;
                    self.nvsp(&SubChannelRequest { operation, count }, true)
                }
            },
            Step::AwaitChannels(until) => {
                let all = self.open_queues.count_ones() > self.granted;
                if all || until <= now_ns {
                    self.go_to(Step::Start, config, now_ns)
                } else {
                    Todo::Nothing
                }
            }
            Step::Start => {
                self.phase = Phase::Talking(Step::Running);
                // All of it is new to the host, and to the backend what the host said.
                self.due = Due { offloads: false, rss: self.has_rss(), filter: true };
                self.news = true;
                let session = self.facts.session(config, self.mtu, &self.memory.send);
                Todo::Session(Some(Arc::new(session)))
            }
            Step::Running => self.set_what_is_due(),
        }
    }

    fn go_to(&mut self, step: Step, config: &Config, now_ns: u64) -> Todo {
        self.phase = Phase::Talking(step);
        self.talk(step, config, now_ns)
    }

    pub(super) fn wanted_channels(&self, config: &Config) -> u32 {
        let most = u32::from(config.max_queues).min(self.facts.rss_queues).min(u128::BITS);
        if self.facts.version.has_sub_channels() { most.saturating_sub(1) } else { 0 }
    }

    const fn has_rss(&self) -> bool {
        self.facts.rss_queues > 1 && self.granted > 0
    }

    fn set_offloads(&mut self) -> Todo {
        let can = self.facts.coalesce();
        let want = self.settings.coalesce;
        let coalesce = (can.0 && want.0, can.1 && want.1);
        let parameters = control::offload_parameters(&self.facts.tx(), coalesce);
        self.rndis(|id| control::set(id, Oid::TCP_OFFLOAD_PARAMETERS, parameters.as_bytes()))
    }

    fn set_what_is_due(&mut self) -> Todo {
        if self.due.offloads {
            return self.set_offloads();
        }
        if self.due.rss {
            let open = self.open_queues;
            let value = self.settings.rss_value(|nr| nr < 128 && open >> nr & 1 != 0);
            return self.rndis(|id| control::set(id, Oid::GEN_RECEIVE_SCALE_PARAMETERS, &value));
        }
        if self.due.filter {
            let value = self.settings.filter_value();
            return self.rndis(|id| control::set(id, Oid::GEN_CURRENT_PACKET_FILTER, &value));
        }
        Todo::Nothing
    }

    /// Gives the host a buffer.
    fn give(&mut self, which: Which) -> Todo {
        if which == Which::Send && self.memory.send.bytes() == 0 {
            self.phase = Phase::Talking(Step::Initialize);
            return self.rndis(control::initialize);
        }
        match self.gpadls[which as usize] {
            Gpadl::None => {
                self.gpadls[which as usize] = Gpadl::Creating;
                Todo::CreateGpadl(which)
            }
            Gpadl::Creating | Gpadl::TearingDown => Todo::Nothing,
            Gpadl::Created(gpadl) => match which {
                Which::Receive => {
                    let id = RECEIVE_BUFFER_ID;
                    self.nvsp(&SendReceiveBuffer { gpadl, id, reserved: 0 }, true)
                }
                Which::Send => {
                    let id = SEND_BUFFER_ID;
                    self.nvsp(&SendSendBuffer { gpadl, id, reserved: 0 }, true)
                }
            },
        }
    }

    fn nvsp<T: Body>(&mut self, body: &T, is_answered: bool) -> Todo {
        Todo::Nvsp { number: self.next_number(), message: Message::new(body), is_answered }
    }

    /// A message in the page, which must be ours.
    fn rndis(&mut self, make: impl FnOnce(u32) -> Vec<u8>) -> Todo {
        if self.page_busy.is_some() {
            return Todo::Nothing;
        }
        let number = self.next_number();
        let bytes = make(number);
        for (place, chunk) in self.memory.page.view.iter().zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            place.store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        Todo::Rndis { number, bytes: bytes.len() as u32 }
    }

    const fn next_number(&mut self) -> u32 {
        self.number = self.number.wrapping_add(1);
        self.number
    }

    /// What [`Self::next`] wanted sent is on its way.
    pub(in crate::netvsc) fn sent(&mut self, todo: &Todo, now_ns: u64) {
        let (number, is_answered) = match *todo {
            Todo::Nvsp { number, is_answered, .. } => (number, is_answered),
            Todo::Rndis { number, .. } => {
                self.page_busy = Some(number);
                (number, true)
            }
            _ => return,
        };
        if core::mem::take(&mut self.sending_keepalive) {
            self.keepalive = None;
            return;
        }
        match self.phase {
            Phase::Closing(_) => {}
            Phase::Talking(step) if !is_answered => {
                self.phase = Phase::Talking(match step {
                    Step::NdisConfig => Step::NdisVersion,
                    Step::NdisVersion => Step::Buffer(Which::Receive),
                    step => step,
                });
            }
            Phase::Talking(step) => {
                let about = match step {
                    Step::Running if core::mem::take(&mut self.due.offloads) => About::Offloads,
                    Step::Running if core::mem::take(&mut self.due.rss) => About::Rss,
                    Step::Running if core::mem::take(&mut self.due.filter) => About::Filter,
                    _ => About::Step,
                };
                let deadline_ns = now_ns.saturating_add(ANSWER_NS);
                self.sent = Some(Sent { number, about, deadline_ns });
            }
            _ => {}
        }
    }

    /// It found no room: it is tried again.
    pub(in crate::netvsc) const fn not_sent(&mut self) {
        self.sending_keepalive = false;
    }

    /// The next step of an orderly end.
    fn end(&mut self, ending: Ending) -> Todo {
        let (next, todo) = match ending {
            Ending::Stop => (Ending::Halt, Todo::Session(None)),
            // All of these are courtesies: where there is no room for them, they are left out.
            Ending::Halt if self.given[0] && self.page_busy.is_none() => {
                (Ending::RevokeReceive, self.rndis(control::halt))
            }
            Ending::Halt => (Ending::RevokeReceive, Todo::Nothing),
            Ending::RevokeReceive if core::mem::take(&mut self.given[0]) => {
                let id = RECEIVE_BUFFER_ID;
                (Ending::RevokeSend, self.nvsp(&RevokeReceiveBuffer { id, reserved: 0 }, false))
            }
            Ending::RevokeReceive => (Ending::RevokeSend, Todo::Nothing),
            Ending::RevokeSend if core::mem::take(&mut self.given[1]) => {
                let id = SEND_BUFFER_ID;
                (Ending::Gpadls, self.nvsp(&RevokeSendBuffer { id, reserved: 0 }, false))
            }
            Ending::RevokeSend => (Ending::Gpadls, Todo::Nothing),
            Ending::Gpadls if self.old_bus => match self.tear_down() {
                Some(todo) => return todo,
                None => (Ending::Close, Todo::Nothing),
            },
            Ending::Gpadls => (Ending::Close, Todo::Nothing),
            Ending::Close => (Ending::Wait, Todo::Close),
            Ending::Wait => return Todo::Nothing,
        };
        self.phase = Phase::Closing(next);
        match todo {
            Todo::Nothing => self.end(next),
            todo => todo,
        }
    }

    /// Takes GPADLs back; `None`: there are none left.
    fn tear_down(&mut self) -> Option<Todo> {
        for gpadl in &mut self.gpadls {
            if let Gpadl::Created(id) = *gpadl {
                *gpadl = Gpadl::TearingDown;
                return Some(Todo::TeardownGpadl(id));
            }
        }
        let none_left = self.gpadls.iter().all(|gpadl| *gpadl == Gpadl::None);
        if none_left { None } else { Some(Todo::Nothing) }
    }

    /// The channel is closed: the buffers are to be ours again before anything else.
    fn take_back(&mut self) -> Todo {
        if let Some(todo) = self.tear_down() {
            return todo;
        }
        if self.open_queues != 0 {
            // Sub-channels close after the card's own.
            return Todo::Nothing;
        }
        if core::mem::take(&mut self.reopen) {
            self.phase = Phase::Opening;
            return Todo::Open;
        }
        self.phase = Phase::Failed;
        Todo::Log("the card is given up")
    }
}
