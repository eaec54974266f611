//! What the host answers, and says of itself.

use hv_abi::netvsc::nvsp::{
    InitComplete, Message, MessageType, SendReceiveBufferComplete, SendSendBufferComplete, Status,
    SubChannelComplete, Version,
};
use hv_abi::netvsc::rndis::{self, Status as RndisStatus};
use zerocopy::FromZeros;

use super::super::config::Config;
use super::super::control::{self, Told};
use super::{About, Machine, Phase, QUERIES, Step, VERSIONS, Which};

/// How long sub-channels are waited for.
const CHANNELS_NS: u64 = 5_000_000_000;
/// Least bytes of a receive section: an Ethernet frame's least.
const MIN_RECEIVE_SECTION: u32 = 68;

impl Machine {
    /// A message of ours was answered, in the ring; `false`: there was none such.
    pub(in crate::netvsc) fn answered(
        &mut self,
        number: u32,
        message: &Message,
        config: &Config,
        now_ns: u64,
    ) -> bool {
        if self.page_busy == Some(number) {
            // The page is ours again; the answer to what was in it comes by itself.
            self.page_busy = None;
            return true;
        }
        let Some(sent) = self.sent.filter(|sent| sent.number == number) else { return false };
        let Phase::Talking(step) = self.phase else { return false };
        if sent.about != About::Step {
            return false;
        }
        let next = match step {
            Step::Init(nr) => Some(self.version_answered(nr, message)),
            Step::Buffer(Which::Receive) => self.receive_buffer_answered(message),
            Step::Buffer(Which::Send) => self.send_buffer_answered(message),
            Step::SubChannels => {
                let answer: Option<SubChannelComplete> = message.get();
                let granted = answer.filter(|answer| answer.status == Status::SUCCESS);
                let wanted = self.wanted_channels(config);
                self.granted = granted.map_or(0, |answer| answer.count.min(wanted));
                let until = now_ns.saturating_add(CHANNELS_NS);
                Some(Ok(if self.granted == 0 { Step::Start } else { Step::AwaitChannels(until) }))
            }
            // Answered by RNDIS, not here.
            _ => return false,
        };
        self.sent = None;
        match next {
            Some(Ok(step)) => self.phase = Phase::Talking(step),
            Some(Err(why)) => self.fail(why, false),
            None => self.fail("the host's answer makes no sense", true),
        }
        true
    }

    fn version_answered(&mut self, nr: usize, message: &Message) -> Result<Step, &'static str> {
        let status = message.get::<InitComplete>().map(|answer| answer.status);
        if status == Some(Status::SUCCESS) {
            self.facts.version = VERSIONS.get(nr).copied().unwrap_or(Version::V5);
            return Ok(Step::NdisConfig);
        }
        // Whatever the refusal is called: the next.
        if nr + 1 < VERSIONS.len() {
            return Ok(Step::Init(nr + 1));
        }
        Err("the host speaks no version of NVSP from 5 to 6.1, which this needs")
    }

    fn receive_buffer_answered(&mut self, message: &Message) -> Option<Result<Step, &'static str>> {
        let answer: SendReceiveBufferComplete = message.get()?;
        if answer.status != Status::SUCCESS {
            return Some(Err("the host refuses the receive buffer"));
        }
        self.given[Which::Receive as usize] = true;
        let section = answer.section;
        let bytes = u64::from(section.bytes) * u64::from(section.count);
        let is_sane = answer.section_count == 1
            && section.offset == 0
            && section.bytes >= MIN_RECEIVE_SECTION
            && section.count > 0
            && bytes <= u64::from(self.memory.receive.bytes());
        is_sane.then_some(Ok(Step::Buffer(Which::Send)))
    }

    fn send_buffer_answered(&mut self, message: &Message) -> Option<Result<Step, &'static str>> {
        let answer: SendSendBufferComplete = message.get()?;
        // Without one nothing is copied.
        let is_taken = answer.status == Status::SUCCESS;
        self.given[Which::Send as usize] = is_taken;
        self.facts.send_section_bytes = if is_taken { answer.section_bytes } else { 0 };
        Some(Ok(Step::Initialize))
    }

    /// An RNDIS message of the host's that is no packet; `false`: it makes no sense.
    pub(in crate::netvsc) fn rndis_told(&mut self, bytes: &[u8]) -> bool {
        let Some(told) = control::told(bytes) else { return false };
        match told {
            Told::Status(status, value) => self.status(status, value),
            Told::Keepalive(id) => self.keepalive = Some(id),
            Told::Nothing => {}
            Told::Initialized(answer) => {
                if !self.is_answer(answer.request_id, |step| step == Step::Initialize) {
                    return false;
                }
                self.sent = None;
                if answer.status != RndisStatus::SUCCESS
                    || answer.major_version != rndis::MAJOR_VERSION
                {
                    self.fail("the host refuses RNDIS", false);
                    return true;
                }
                self.facts.initialized(&answer);
                self.phase = Phase::Talking(Step::Query(0));
            }
            Told::Value(id, value) => {
                let Phase::Talking(Step::Query(nr)) = self.phase else { return false };
                let Some(&oid) = QUERIES.get(nr) else { return false };
                if !self.is_answer(id, |_| true) {
                    return false;
                }
                self.sent = None;
                self.phase = Phase::Talking(Step::Query(nr + 1));
                if !self.facts.take(oid, value) {
                    self.fail("the host tells no address", false);
                }
            }
            Told::Set(id, succeeded) => return self.set_answered(id, succeeded),
        }
        true
    }

    /// Whether something in this state is what is answered.
    fn is_answer(&self, id: u32, is_step: impl Fn(Step) -> bool) -> bool {
        let is_sent = self.sent.is_some_and(|sent| sent.number == id);
        is_sent && matches!(self.phase, Phase::Talking(step) if is_step(step))
    }

    fn set_answered(&mut self, id: u32, succeeded: bool) -> bool {
        let is_set = |step| matches!(step, Step::Offloads | Step::Running);
        if !self.is_answer(id, is_set) {
            return false;
        }
        let about = self.sent.take().map(|sent| sent.about);
        match about {
            Some(About::Step) => {
                if !succeeded {
                    // Then none is used.
                    self.log = Some("the host refuses offloads");
                    self.facts.offload = FromZeros::new_zeroed();
                }
                self.phase = Phase::Talking(Step::SubChannels);
            }
            Some(About::Filter) if !succeeded => self.fail("the host refuses the filter", true),
            Some(About::Rss) if !succeeded => {
                self.log = Some("the host refuses receive-side scaling");
            }
            Some(About::Offloads) if !succeeded => {
                self.log = Some("the host refuses to coalesce");
            }
            _ => {}
        }
        true
    }

    fn status(&mut self, status: RndisStatus, value: &[u8]) {
        match status {
            RndisStatus::MEDIA_CONNECT => self.set_link(true),
            RndisStatus::MEDIA_DISCONNECT => self.set_link(false),
            // Another network: whoever has an address there is to ask again.
            RndisStatus::NETWORK_CHANGE if self.facts.link => {
                self.set_link(false);
                self.blink = true;
            }
            RndisStatus::LINK_SPEED_CHANGE => {
                if let Some(speed) = control::number(value) {
                    self.facts.speed_bps = u64::from(speed) * 100;
                    self.news = true;
                }
            }
            // Others are of no use here.
            _ => {}
        }
    }

    fn set_link(&mut self, link: bool) {
        self.blink = false;
        self.news |= self.facts.link != link;
        self.facts.link = link;
    }

    /// An NVSP message of the host's own; `None`: it makes no sense. `Some(true)`: a virtual
    /// function was offered.
    pub(in crate::netvsc) fn nvsp_told(kind: Option<MessageType>) -> Option<bool> {
        match kind? {
            // Packets stay on the channel they were submitted to; the table is a hint about hashes.
            MessageType::SEND_INDIRECTION_TABLE | MessageType::SWITCH_DATA_PATH => Some(false),
            MessageType::SEND_VF_ASSOCIATION => Some(true),
            _ => None,
        }
    }
}
