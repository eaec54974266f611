//! What passes between the control protocol and those who carry it out.

use crate::vmbus::gpadl::Gpadl;
use hv_abi::vmbus::{ChannelId, ConnectionId, OfferChannel};
use std::sync::Arc;

/// A device's offer, without what the server adds.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Class, instance, flags, user data; the server fills in the numbers.
    pub message: OfferChannel,
    /// Signals go through the monitor page where the guest has one.
    pub monitored: bool,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Send a message.
    Send {
        /// To this virtual processor.
        vp: u32,
        /// Through this SINT.
        sint: u8,
        /// The message.
        message: Vec<u8>,
    },
    /// Start a worker for a channel; where that fails, say `Server::not_opened`.
    Open(Opening),
    /// Stop a channel's worker; when it has ended, say `Server::closed`.
    Close(ChannelId),
    /// A channel is taken away: its worker answers, and does nothing else any more.
    Withdraw(ChannelId),
    /// Interrupt another virtual processor from now on.
    Retarget(ChannelId, u32),
    /// The guest's monitor page, or none any more.
    Monitor(Option<u64>),
}

/// A channel to be opened.
#[derive(Debug)]
pub struct Opening {
    /// Channel.
    pub channel: ChannelId,
    /// Device, as given to `Server::offer`.
    pub device: usize,
    /// 0: the primary channel.
    pub sub_channel: u16,
    /// Connection for the guest's signals.
    pub connection: ConnectionId,
    /// Virtual processor to interrupt, through this SINT.
    pub target_vp: u32,
    /// SINT.
    pub sint: u8,
    /// Its number in the monitor page.
    pub monitor: Option<u8>,
    /// Both rings.
    pub ring: Arc<Gpadl>,
    /// Page at which the host's begins.
    pub downstream_page: usize,
}
