//! A controller's own conversation with the host: initialization, then scans.
//!
//! At most one packet is on its way. What could not be sent is sent when there is room.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_abi::PAGE_SIZE;
use hv_abi::scsi::LunListHeader;
use hv_abi::storvsc::{
    ChannelProperties, NtStatus, Operation, ProtocolVersion, ScsiRequest, Version,
};
use translate::platform::PageWords;
use zerocopy::FromZeros;

use super::command::{Cdb, Payload, control};
use super::result::{Answer, Outcome};
use super::scan::{Bounds, Next, Probe, Seen, luns};
use super::unit::UnitAddress;
use crate::blkback::IoError;
use crate::vmbus::Shared;

/// The last unit probed where the host gives no list of them.
const LAST_LUN: u8 = 63;
/// Versions proposed, newest first.
const VERSIONS: [Version; 4] = Version::ALL;

/// Where the conversation is.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The channel is not open.
    Closed,
    Begin,
    Version(usize),
    Properties,
    SubChannels,
    End,
    Luns,
    Probe(Probe),
    /// All is known.
    Idle,
    /// The host does not talk to this guest.
    Failed,
}

/// What to send.
#[derive(Debug)]
pub(super) enum Send {
    /// A packet of the initialization.
    Control(Payload),
    /// A command, and the room for its data.
    Command(UnitAddress, Cdb, u32),
}

/// What a scan found at an address.
pub(super) type Found = (UnitAddress, Seen);

#[derive(Debug)]
pub(super) struct Machine {
    step: Step,
    is_sent: bool,
    pub version: Version,
    max_sub_channels: u16,
    wanted_sub_channels: u16,
    host_max_transfer: u32,
    bounds: Bounds,
    /// The only unit of an IDE port.
    only: Option<UnitAddress>,
    page: Shared<PageWords>,
    /// The last unit that may be there: [`LAST_LUN`], or beyond it the last there was in a list.
    last_lun: u8,
    /// Addresses to probe.
    queue: VecDeque<UnitAddress>,
    probing: UnitAddress,
    found: Vec<Found>,
    /// A scan is over, and nobody has taken what it found.
    is_untold: bool,
    /// Another scan follows this one.
    is_stale: bool,
    /// When one follows that the host did not ask for.
    scan_at_ns: Option<u64>,
}

impl Machine {
    pub(super) fn new(
        page: Shared<PageWords>,
        only: Option<UnitAddress>,
        wanted_sub_channels: u16,
        bounds: Bounds,
    ) -> Self {
        Self {
            step: Step::Closed,
            is_sent: false,
            version: VERSIONS[0],
            max_sub_channels: 0,
            wanted_sub_channels,
            host_max_transfer: 0,
            bounds,
            only,
            page,
            last_lun: LAST_LUN,
            queue: VecDeque::new(),
            probing: UnitAddress { path: 0, target: 0, lun: 0 },
            found: Vec::new(),
            is_untold: false,
            is_stale: false,
            scan_at_ns: None,
        }
    }

    pub(super) const fn page_gpfn(&self) -> u64 {
        self.page.gpfn
    }

    /// The channel is open: from the beginning.
    pub(super) fn start(&mut self) {
        (self.step, self.is_sent) = (Step::Begin, false);
    }

    /// The channel is closed: what was sent is not answered any more.
    pub(super) fn stop(&mut self) {
        (self.step, self.is_sent) = (Step::Closed, false);
        self.queue.clear();
        self.found.clear();
        self.is_untold = false;
        self.scan_at_ns = None;
    }

    /// There will be no channel.
    pub(super) fn fail(&mut self) {
        self.stop();
        self.step = Step::Failed;
    }

    /// Whether requests can be sent.
    pub(super) const fn is_ready(&self) -> bool {
        matches!(self.step, Step::Luns | Step::Probe(_) | Step::Idle)
    }

    /// Whether the host does not talk to this guest.
    pub(super) const fn has_failed(&self) -> bool {
        matches!(self.step, Step::Failed)
    }

    /// Whether there is nothing more to find out.
    pub(super) const fn is_settled(&self) -> bool {
        match self.step {
            Step::Failed => true,
            Step::Idle => !self.is_stale && !self.is_untold,
            _ => false,
        }
    }

    /// The host says that units came or went.
    pub(super) fn rescan(&mut self) {
        self.is_stale = true;
        self.begin_scan();
    }

    /// Another scan, at that time.
    pub(super) fn rescan_at(&mut self, ns: u64) {
        self.scan_at_ns = Some(ns);
    }

    /// Begins a scan that is due; when one will be.
    pub(super) fn look(&mut self, now_ns: u64) -> Option<u64> {
        if self.scan_at_ns.is_some_and(|ns| ns <= now_ns) {
            self.scan_at_ns = None;
            self.rescan();
        }
        self.scan_at_ns
    }

    fn begin_scan(&mut self) {
        // What the last scan found is not thrown away: without it, all units would seem gone.
        if !matches!(self.step, Step::Idle) || !self.is_stale || self.is_untold {
            return;
        }
        self.is_stale = false;
        self.scan_at_ns = None;
        self.found.clear();
        self.queue.clear();
        match self.only {
            Some(address) => {
                self.queue.push_back(address);
                self.next_unit();
            }
            None => self.step = Step::Luns,
        }
    }

    fn next_unit(&mut self) {
        self.step = match self.queue.pop_front() {
            Some(address) => {
                self.probing = address;
                Step::Probe(Probe::new())
            }
            None => Step::Idle,
        };
    }

    /// What is to be sent now; [`Self::sent`] follows where it was.
    pub(super) fn to_send(&self) -> Option<Send> {
        if self.is_sent {
            return None;
        }
        let packet = match self.step {
            Step::Closed | Step::Idle | Step::Failed => return None,
            Step::Begin => control(Operation::BEGIN_INITIALIZATION, &()),
            Step::Version(nr) => {
                let version = VERSIONS.get(nr).copied()?;
                let proposal = ProtocolVersion { version, revision: 0 };
                control(Operation::QUERY_PROTOCOL_VERSION, &proposal)
            }
            Step::Properties => control(Operation::QUERY_PROPERTIES, &()),
            Step::SubChannels => control(Operation::CREATE_SUB_CHANNELS, &self.sub_channels()),
            Step::End => control(Operation::END_INITIALIZATION, &()),
            Step::Luns => {
                let address = UnitAddress { path: 0, target: 0, lun: 0 };
                let room = PAGE_SIZE as u32;
                return Some(Send::Command(address, Cdb::report_luns(room), room));
            }
            Step::Probe(probe) => {
                let (cdb, room) = probe.command();
                return Some(Send::Command(self.probing, cdb, room));
            }
        };
        Some(Send::Control(packet))
    }

    pub(super) fn sent(&mut self) {
        self.is_sent = true;
    }

    fn sub_channels(&self) -> u16 {
        self.max_sub_channels.min(self.wanted_sub_channels)
    }

    /// A packet of the initialization was answered.
    pub(super) fn on_control(&mut self, answer: Option<&Answer>) {
        self.is_sent = false;
        let is_answer = |a: &&Answer| a.header.operation == Operation::COMPLETE_IO;
        let status = answer.filter(is_answer).map(|answer| answer.header.status);
        let succeeded = status == Some(NtStatus::SUCCESS);
        self.step = match self.step {
            Step::Begin if succeeded => Step::Version(0),
            Step::Version(nr) if succeeded => {
                self.version = VERSIONS.get(nr).copied().unwrap_or(Version::V4_2);
                Step::Properties
            }
            // Whatever the refusal is called: the next.
            Step::Version(nr) if status.is_some() && nr + 1 < VERSIONS.len() => {
                Step::Version(nr + 1)
            }
            Step::Properties if succeeded => {
                let properties = answer.and_then(Answer::body::<ChannelProperties>);
                self.properties(&properties.unwrap_or_else(ChannelProperties::new_zeroed));
                if self.sub_channels() > 0 { Step::SubChannels } else { Step::End }
            }
            // One channel does, too.
            Step::SubChannels if status.is_some() => Step::End,
            Step::End if succeeded => {
                self.is_stale = true;
                Step::Idle
            }
            Step::Begin | Step::Version(_) | Step::Properties | Step::SubChannels | Step::End => {
                Step::Failed
            }
            // Not the answer to anything here.
            step => step,
        };
        self.begin_scan();
    }

    fn properties(&mut self, properties: &ChannelProperties) {
        let multi = properties.flags & ChannelProperties::MULTI_CHANNEL != 0;
        let several = multi && self.version.has_sub_channels() && self.only.is_none();
        self.max_sub_channels = if several { properties.max_sub_channels } else { 0 };
        self.host_max_transfer = properties.max_transfer_bytes;
    }

    fn bounds(&self) -> Bounds {
        let mut bounds = self.bounds;
        if self.host_max_transfer >= PAGE_SIZE as u32 {
            bounds.max_transfer_bytes = bounds.max_transfer_bytes.min(self.host_max_transfer);
        }
        bounds
    }

    /// A command of the scan ended. `true`: the scan is over, and [`Self::take_found`] has what
    /// it found.
    pub(super) fn on_command(&mut self, outcome: Outcome) -> bool {
        self.is_sent = false;
        let data = match outcome {
            Outcome::Done(bytes) => Ok(bytes as usize),
            Outcome::News(_) | Outcome::Busy | Outcome::Aborted => Err(IoError::Io),
            Outcome::Failed(error) => Err(error),
        };
        match self.step {
            Step::Luns => {
                self.list_units(data);
                self.next_unit();
            }
            Step::Probe(mut probe) => {
                let mut copy = [0; 256];
                let data = data.map(|bytes| self.copy(&mut copy, bytes));
                match probe.answer(data, self.bounds()) {
                    Next::Command => self.step = Step::Probe(probe),
                    Next::End(seen) => {
                        self.found.push((self.probing, seen));
                        self.next_unit();
                    }
                }
            }
            _ => return false,
        }
        self.is_untold = matches!(self.step, Step::Idle);
        self.is_untold
    }

    /// What a scan found that is over, once; the next begins if one was asked for meanwhile.
    pub(super) fn take_found(&mut self) -> Option<Vec<Found>> {
        if !core::mem::take(&mut self.is_untold) {
            return None;
        }
        let found = core::mem::take(&mut self.found);
        self.begin_scan();
        Some(found)
    }

    fn list_units(&mut self, data: Result<usize, IoError>) {
        let at = |lun| UnitAddress { path: 0, target: 0, lun };
        match data {
            Ok(bytes) if bytes >= size_of::<LunListHeader>() => {
                let words = self.page.view.iter().take(bytes / 8);
                let words = words.map(|word| word.load(Ordering::Relaxed).to_le_bytes());
                for lun in luns(words) {
                    self.last_lun = self.last_lun.max(lun);
                    if !self.queue.contains(&at(lun)) {
                        self.queue.push_back(at(lun));
                    }
                }
            }
            Ok(_) | Err(_) => self.queue.extend((0..=self.last_lun).map(at)),
        }
    }

    /// Copies what the host wrote into the page, once.
    fn copy<'a>(&self, into: &'a mut [u8; 256], bytes: usize) -> &'a [u8] {
        for (chunk, word) in into.chunks_mut(8).zip(self.page.view) {
            let word = word.load(Ordering::Relaxed).to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(word) {
                *to = from;
            }
        }
        into.get(..bytes.min(256)).unwrap_or_default()
    }
}

/// Requests are at most this large, whatever is in them.
pub(super) const PACKET_OVERHEAD_BYTES: u32 = 40 + size_of::<ScsiRequest>() as u32 + 24;
