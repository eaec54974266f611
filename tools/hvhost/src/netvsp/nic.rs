//! A network adapter: its channels' workers and the thread that receives.

use crate::memory::Memory;
use crate::net::checksum::{Takes, reduce};
use crate::net::frame::{ETHERNET_BYTES, VLAN_TAG_BYTES};
use crate::net::{Backend, Frame, Mac, Sent};
use crate::netvsp::buffers::{ReceiveBuffer, SendBuffer};
use crate::netvsp::control::{Card, Control};
use crate::netvsp::counters::NicCounters;
use crate::netvsp::lane::{Inbound, Lane, Pushed};
use crate::netvsp::oid::frame_bytes;
use crate::netvsp::rss::Rss;
use crate::netvsp::serve::Worker;
use crate::vmbus::{Channel, ChannelError, Device, Offer};
use anyhow::{Context, Result};
use hv_abi::Guid;
use hv_abi::netvsc::nvsp::{Capabilities, SendNdisConfig, Version};
use hv_abi::vmbus::offer::interface;
use hv_abi::vmbus::{ControlMessage, OfferChannel, OfferFlags};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;

/// What an adapter is made of.
pub struct Parts {
    /// Number, for its name and identity.
    pub number: usize,
    /// Address.
    pub mac: Mac,
    /// Largest packet.
    pub mtu: u16,
    /// Most channels.
    pub channels: u16,
    /// Signals go through the monitor page.
    pub monitored: bool,
    /// The other side.
    pub backend: Arc<dyn Backend>,
    /// Counters.
    pub counters: Arc<NicCounters>,
}

/// What the guest has agreed on since its primary channel was opened.
#[derive(Default)]
pub(super) struct Session {
    pub version: Option<Version>,
    pub config: Option<SendNdisConfig>,
    pub receive: Option<Arc<ReceiveBuffer>>,
    pub send: Option<Arc<SendBuffer>>,
    pub control: Option<Control>,
    /// RNDIS messages for the guest.
    pub outbox: VecDeque<Vec<u8>>,
}

impl Session {
    /// Bytes of the guest's longest frame, without a tag.
    pub fn frame_bytes(&self) -> u32 {
        let usual = u32::from(crate::net::options::MTU_DEFAULT) + ETHERNET_BYTES as u32;
        let longest = crate::net::frame::FRAME_BYTES_MAX as u32;
        self.config.map_or(usual, |config| config.mtu.min(longest))
    }
}

/// What workers and the receiving thread need of it for each frame.
#[derive(Clone, Default)]
pub(super) struct Path {
    pub receive: Option<Arc<ReceiveBuffer>>,
    pub send: Option<Arc<SendBuffer>>,
    /// Of version and filter; `None`: nothing is received.
    pub control: Option<Arc<Control>>,
    pub rss: Option<Arc<Rss>>,
    /// Tags travel beside frames.
    pub tags_beside: bool,
    /// Longest frame, without a tag.
    pub frame_bytes: usize,
}

/// An adapter.
pub struct Nic {
    pub(super) parts: Parts,
    pub(super) memory: Memory,
    pub(super) session: Mutex<Session>,
    path: RwLock<Arc<Path>>,
    pub(super) lanes: Vec<Lane>,
    /// As commanded.
    plugged: AtomicBool,
    /// The other side is gone.
    lost: AtomicBool,
}

impl Nic {
    /// An adapter, and the thread that receives for it.
    ///
    /// # Errors
    /// No more threads.
    pub fn new(memory: &Memory, parts: Parts) -> Result<Arc<Self>> {
        let lanes = (0..parts.channels).map(|_| Lane::default()).collect();
        let nic = Arc::new(Self {
            parts,
            memory: memory.clone(),
            session: Mutex::default(),
            path: RwLock::default(),
            lanes,
            plugged: AtomicBool::new(true),
            lost: AtomicBool::new(false),
        });
        let receiver = nic.clone();
        let name = format!("{}-receive", nic.name());
        thread::Builder::new().name(name).spawn(move || receiver.receive()).context("thread")?;
        Ok(nic)
    }

    /// Lets go of the other side, for good.
    pub fn stop(&self) {
        self.parts.backend.stop();
    }

    /// Plugs the cable in, or out.
    pub fn set_link(&self, up: bool) {
        self.plugged.store(up, Ordering::SeqCst);
        self.link_changed();
    }

    /// Whether frames come through.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.plugged.load(Ordering::SeqCst) && !self.lost.load(Ordering::SeqCst)
    }

    /// Address, largest packet, open channels.
    #[must_use]
    pub fn facts(&self) -> (Mac, u16, usize) {
        let open = self.lanes.iter().filter(|lane| lane.is_open()).count();
        (self.parts.mac, self.parts.mtu, open)
    }

    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self) -> Arc<Path> {
        self.path.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A card as its guest finds it.
    pub(super) fn control(&self, version: Version) -> Control {
        let Parts { mac, mtu, channels, counters, .. } = &self.parts;
        let card = Card { mac: *mac, mtu: *mtu, channels: *channels, counters: counters.clone() };
        Control::new(card, version, self.is_up())
    }

    /// Has everybody see what changed in the session.
    pub(super) fn publish(&self, session: &Session) {
        let control = session.control.clone().filter(Control::is_ready).map(Arc::new);
        let beside = |c: &SendNdisConfig| c.capabilities.0 & Capabilities::IEEE_8021Q != 0;
        let path = Path {
            receive: session.receive.clone(),
            send: session.send.clone(),
            rss: control.as_ref().and_then(|control| control.rss()).map(Arc::new),
            control,
            tags_beside: session.config.as_ref().is_some_and(beside),
            frame_bytes: session.frame_bytes() as usize,
        };
        *self.path.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(path);
    }

    fn link_changed(&self) {
        let mut session = self.session();
        let up = self.is_up();
        let told = session.control.as_mut().and_then(|control| control.set_link(up));
        session.outbox.extend(told);
        drop(session);
        if let Some(lane) = self.lanes.first() {
            lane.wake();
        }
    }

    /// A frame of the guest's.
    pub(super) fn transmit(&self, frame: Frame) {
        let Parts { backend, counters, mtu, .. } = &self.parts;
        let count =
            |counter: &std::sync::atomic::AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let length = frame.bytes.len();
        if length < ETHERNET_BYTES || frame.offload.segment.is_none() && length > frame_bytes(*mtu)
        {
            count(&counters.sent_malformed);
            return;
        }
        if !self.is_up() {
            count(&counters.sent_dropped);
            return;
        }
        if frame.offload.segment.is_some() {
            count(&counters.sent_large);
        } else if frame.offload.checksum.is_some() {
            count(&counters.sent_checksum);
        }
        let (to, mut all) = (frame.destination(), true);
        let reduced = reduce(frame, backend.takes(), |frame| match backend.send(&frame) {
            Ok(Sent::Yes) => {}
            Ok(Sent::Dropped) => all = false,
            Err(error) => {
                all = false;
                self.lose(&error);
            }
        });
        match (reduced, all) {
            (Some(()), true) => counters.sent.frame(to, length),
            (Some(()), false) => {
                count(&counters.sent_dropped);
            }
            (None, _) => {
                count(&counters.sent_malformed);
            }
        }
    }

    fn lose(&self, error: &std::io::Error) {
        if !self.lost.swap(true, Ordering::SeqCst) {
            eprintln!("hvhost: {}: the other side is gone: {error}\r", self.name());
            self.link_changed();
        }
    }

    fn receive(&self) {
        let mut frame = Frame::default();
        loop {
            match self.parts.backend.receive(&mut frame) {
                Ok(true) => self.arrived(std::mem::take(&mut frame)),
                Ok(false) => return,
                Err(error) => return self.lose(&error),
            }
        }
    }

    /// A frame for the guest.
    fn arrived(&self, mut frame: Frame) {
        let counters = &self.parts.counters;
        let count =
            |counter: &std::sync::atomic::AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let path = self.path();
        let Some(control) = path.control.as_ref().filter(|_| self.is_up()) else {
            count(&counters.filtered);
            return;
        };
        if !control.wants(frame.destination()) {
            count(&counters.filtered);
            return;
        }
        let vlan = if path.tags_beside { frame.take_vlan() } else { None };
        let limit = path.frame_bytes + if path.tags_beside { 0 } else { VLAN_TAG_BYTES };
        let reduced = reduce(frame, Takes::NOTHING, |frame| {
            if frame.bytes.len() > limit {
                count(&counters.unfit);
                return;
            }
            let hash = path.rss.as_ref().and_then(|rss| rss.hash(&frame.bytes));
            let lane = match (&path.rss, hash) {
                (Some(rss), Some(hash)) => rss.channel(hash),
                _ => 0,
            };
            let valid = frame.offload.valid;
            let mut inbound = Inbound { bytes: frame.bytes, vlan, hash, valid };
            // A channel that is not open yet leaves its frames to the primary one.
            for number in [lane, 0] {
                let Some(lane) = self.lanes.get(usize::from(number)) else { continue };
                match lane.push(inbound) {
                    Ok(Pushed::Yes) => return,
                    Ok(Pushed::Full) => break,
                    Err(back) => inbound = back,
                }
            }
            count(&counters.no_room);
        });
        if reduced.is_none() {
            count(&counters.unfit);
        }
    }
}

impl Device for Nic {
    fn name(&self) -> String {
        format!("net{}", self.parts.number)
    }

    fn offer(&self) -> Offer {
        /// What differs between adapters is the last byte.
        const INSTANCE: Guid = Guid::literal("d5e1b0f0-5c51-4be1-8f2d-9a5f0c6e6500");
        let mut instance = INSTANCE;
        instance.0[15] = self.parts.number as u8;
        let message = OfferChannel {
            interface_type: interface::NETWORK,
            interface_instance: instance,
            flags: OfferFlags::ENUMERATE_DEVICE_INTERFACE.bits(),
            ..OfferChannel::empty()
        };
        Offer { message, monitored: self.parts.monitored }
    }

    /// Linux waits for the completions of what it has sent before it lets a channel go.
    fn answers_to_the_end(&self) -> bool {
        true
    }

    fn run(&self, channel: &mut Channel) {
        let number = channel.sub_channel;
        let Some(lane) = self.lanes.get(usize::from(number)) else { return };
        if number == 0 {
            *self.session() = Session::default();
            self.publish(&Session::default());
        }
        lane.open(channel.waker());
        if let Err(ChannelError::Broken(error)) = Worker::new(self, lane, channel).serve() {
            channel.malformed();
            eprintln!("hvhost: {}: the guest's ring makes no sense: {error:?}\r", self.name());
        }
        lane.close();
        let mut session = self.session();
        if let Some(receive) = &session.receive {
            receive.give_all_back(number);
        }
        if number == 0 {
            *session = Session::default();
            self.publish(&session);
        }
    }
}

#[cfg(test)]
#[path = "nic_tests.rs"]
mod tests;
