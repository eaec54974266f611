//! What a frontend says of itself in its directory.

use xen_abi::grant_table::GrantRef;

use super::rx::{GsoForm, RxConfig};
use crate::xenbus::Dir;

/// Most bytes of headroom: there must be room for packets behind it. Linux asks for 256.
const MAX_HEADROOM: u64 = 2048;

/// Why a frontend cannot be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Queues,
    MissingNode,
    TxRing,
    RxRing,
    CtrlRing,
    EventChannel,
    Store,
}

/// What holds for all queues.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) queues: u16,
    pub(super) rx: RxConfig,
    pub(super) multicast_control: bool,
    /// The control ring and its event channel.
    pub(super) ctrl: Option<(GrantRef, u32)>,
}

/// The rings and event channels of a queue: one channel for both, or one for each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) tx: GrantRef,
    pub(super) rx: GrantRef,
    pub(super) tx_port: u32,
    pub(super) rx_port: u32,
}

fn number(front: &mut Dir<'_>, name: &str) -> Option<u32> {
    front.read_number(name).and_then(|number| u32::try_from(number).ok())
}

fn flag(front: &mut Dir<'_>, name: &str) -> bool {
    front.read_number(name).is_some_and(|number| number != 0)
}

/// Bytes the frontend wants to be left free in front of data.
pub(super) fn headroom(front: &mut Dir<'_>) -> u16 {
    let bytes = front.read_number("xdp-headroom").filter(|bytes| *bytes <= MAX_HEADROOM);
    bytes.map_or(0, |bytes| bytes as u16)
}

pub(super) fn multicast_control(front: &mut Dir<'_>) -> bool {
    flag(front, "request-multicast-control")
}

/// Reads what holds for all queues.
pub(super) fn wanted(front: &mut Dir<'_>, most: u16) -> Result<Wanted, Refusal> {
    let queues = front.read_number("multi-queue-num-queues").unwrap_or(1);
    let queues = u16::try_from(queues).ok().filter(|queues| (1..=most).contains(queues));
    let mut gso = |name, prefix| {
        if flag(front, name) {
            GsoForm::Extra
        } else if flag(front, prefix) {
            GsoForm::Prefix
        } else {
            GsoForm::None
        }
    };
    let rx = RxConfig {
        gso_v4: gso("feature-gso-tcpv4", "feature-gso-tcpv4-prefix"),
        gso_v6: gso("feature-gso-tcpv6", "feature-gso-tcpv6-prefix"),
        can_sg: flag(front, "feature-sg"),
        csum_v4: !flag(front, "feature-no-csum-offload"),
        csum_v6: flag(front, "feature-ipv6-csum-offload"),
        headroom: headroom(front),
        // Frontends from before there was a choice.
        flip: !flag(front, "request-rx-copy"),
        notifies: flag(front, "feature-rx-notify"),
    };
    let ctrl = match number(front, "ctrl-ring-ref") {
        None => None,
        Some(gref) => {
            let port = number(front, "event-channel-ctrl").ok_or(Refusal::MissingNode)?;
            Some((GrantRef(gref), port))
        }
    };
    let multicast_control = multicast_control(front);
    Ok(Wanted { queues: queues.ok_or(Refusal::Queues)?, rx, multicast_control, ctrl })
}

/// Reads where a queue's rings are: in the frontend's directory where there is one queue, else in
/// one of its own.
pub(super) fn connection(
    front: &mut Dir<'_>,
    queue: u16,
    queues: u16,
) -> Result<Connection, Refusal> {
    if queues > 1 {
        front.enter(format_args!("queue-{queue}")).ok_or(Refusal::MissingNode)?;
    }
    let mut read = |name| number(front, name);
    let split = read("event-channel-tx").zip(read("event-channel-rx"));
    let ports = split.or_else(|| read("event-channel").map(|port| (port, port)));
    let rings = read("tx-ring-ref").zip(read("rx-ring-ref"));
    if queues > 1 {
        front.leave();
    }
    let ((tx, rx), (tx_port, rx_port)) = rings.zip(ports).ok_or(Refusal::MissingNode)?;
    Ok(Connection { tx: GrantRef(tx), rx: GrantRef(rx), tx_port, rx_port })
}
