//! What a guest receives: one queue's ring of pages to be filled.
//!
//! A packet is copied once, from the device's receive buffer into granted pages, each filled to its
//! end before the next is begun. While there are not enough of them the packet stays where it is
//! and the device waits; after too long it is dropped, and so is what follows, until there are.

use arrayvec::ArrayVec;
use translate::gnttab;
use translate::platform::Platform;
use xen_abi::PAGE_SIZE;
use xen_abi::io::netif::{
    EXTRA_FLAG_MORE, ExtraType, GsoType, NR_SLOTS_MIN, NetifExtraGso, NetifExtraInfo,
    NetifExtraXdp, NetifRxRequest, NetifRxResponse, NetifStatus, rxf,
};
use zerocopy::{FromBytes, IntoBytes};

use super::Env;
use super::chain::Fatal;
use super::counters::RxCounters;
use super::fill::{Source, ip_of, make_csum, make_ip_csum};
use super::line::{Line, Port};
use super::steering::extra;
use crate::net::{Ip, RxCsum, RxPacket, RxPiece, RxVerdict, VLAN_TAG_BYTES};

/// Bytes of an entry.
pub(super) const RX_ENTRY_BYTES: usize = size_of::<NetifRxRequest>();
/// How long a packet waits for slots (`rx_drain_timeout_msecs`).
const DRAIN_NS: u64 = 10_000_000_000;
/// As above, where the frontend does not tell of new slots: then it is looked for them so often.
const DRAIN_QUIET_NS: u64 = 30_000_000;
/// How long there are no slots until the device is told to receive nothing
/// (`rx_stall_timeout_msecs`).
const STALL_NS: u64 = 60_000_000_000;

/// How a frontend wants to be told of packets made of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum GsoForm {
    /// Not at all.
    #[default]
    None,
    /// By an extra info.
    Extra,
    /// By a slot in front (`NETRXF_gso_prefix`).
    Prefix,
}

/// What a frontend takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RxConfig {
    /// Packets in several slots.
    pub(super) can_sg: bool,
    pub(super) gso_v4: GsoForm,
    pub(super) gso_v6: GsoForm,
    /// Checksums that are not made yet.
    pub(super) csum_v4: bool,
    pub(super) csum_v6: bool,
    /// Bytes to be left free in front of each slot's data.
    pub(super) headroom: u16,
    /// Pages change hands instead of being filled.
    pub(super) flip: bool,
    /// It tells of new slots.
    pub(super) notifies: bool,
}

impl RxConfig {
    const fn csum(&self, ip: Ip) -> bool {
        match ip {
            Ip::V4 => self.csum_v4,
            Ip::V6 => self.csum_v6,
        }
    }
}

/// What a packet needs of the ring.
struct Wanted {
    gso: Option<NetifExtraGso>,
    form: GsoForm,
    /// Slots without data in front, and behind the first.
    prefix: bool,
    extras: ArrayVec<NetifExtraInfo, 3>,
    data_slots: u32,
}

impl Wanted {
    fn slots(&self) -> u32 {
        self.data_slots + u32::from(self.prefix) + self.extras.len() as u32
    }
}

/// What is to be done about queues that wait, once the lock is let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Woken {
    /// Queues of the device's that wait no longer, a bit each.
    pub(super) queues: u64,
    /// The queue was stalled, and is no more; or has stalled.
    pub(super) stall: Option<bool>,
}

/// The receiving half of a queue.
pub(super) struct RxQueue {
    line: Option<Line>,
    pub(super) config: RxConfig,
    /// Queues of the device's that wait for slots: a bit each, of their number modulo 64.
    waiters: u64,
    /// Slots the packet needs that waits.
    needed: u32,
    /// Since when there are not enough.
    dry_since: Option<u64>,
    stalled: bool,
    pub(super) counters: RxCounters,
}

impl RxQueue {
    pub(super) const fn new() -> Self {
        Self {
            line: None,
            config: RxConfig {
                can_sg: false,
                gso_v4: GsoForm::None,
                gso_v6: GsoForm::None,
                csum_v4: false,
                csum_v6: false,
                headroom: 0,
                flip: false,
                notifies: false,
            },
            waiters: 0,
            needed: 0,
            dry_since: None,
            stalled: false,
            counters: RxCounters {
                packets: 0,
                bytes: 0,
                slots: 0,
                gso: 0,
                software_csum: 0,
                no_frontend: 0,
                filtered: 0,
                too_large: 0,
                no_slots: 0,
                bad_grants: 0,
                waits: 0,
                stalls: 0,
            },
        }
    }

    pub(super) fn connect(&mut self, line: Line, config: RxConfig) {
        self.line = Some(line);
        self.config = config;
        (self.dry_since, self.stalled) = (None, false);
    }

    /// Takes nothing more from the ring. Who waits need not.
    #[must_use]
    pub(super) fn stop(&mut self) -> Woken {
        if let Some(line) = &mut self.line {
            line.stopped = true;
        }
        self.dry_since = None;
        let stall = core::mem::take(&mut self.stalled).then_some(false);
        Woken { queues: core::mem::take(&mut self.waiters), stall }
    }

    pub(super) fn disconnect(&mut self) -> Option<Line> {
        self.line.take()
    }

    /// Shows the frontend what was put; the port to notify.
    pub(super) fn push(&mut self) -> Option<Port> {
        self.line.as_mut().and_then(Line::push)
    }

    /// A packet came by the device's queue `from`. Nothing of it was taken where it has to wait.
    pub(super) fn receive<P: Platform>(
        &mut self,
        env: &Env<'_, P>,
        packet: &RxPacket<'_>,
        hash: Option<NetifExtraInfo>,
        from: u32,
    ) -> Result<RxVerdict, Fatal> {
        let Some(line) = self.line.as_mut().filter(|line| !line.stopped) else {
            self.counters.no_frontend += 1;
            return Ok(RxVerdict::Done);
        };
        let Some(wanted) = wanted(&self.config, packet, hash) else {
            self.counters.too_large += 1;
            return Ok(RxVerdict::Done);
        };
        let enough = line.ring.sleep_for(wanted.slots());
        if enough.is_err() {
            line.stopped = true;
            self.counters.no_frontend += 1;
        }
        if enough? {
            self.dry_since = None;
            self.deliver(env, packet, &wanted);
            return Ok(RxVerdict::Done);
        }
        let now = env.plat.now_ns();
        let since = *self.dry_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.drain_ns() {
            self.counters.no_slots += 1;
            return Ok(RxVerdict::Done);
        }
        self.counters.waits += 1;
        self.needed = wanted.slots();
        self.waiters |= 1 << (from % u64::BITS);
        Ok(RxVerdict::Wait)
    }

    const fn drain_ns(&self) -> u64 {
        if self.config.notifies { DRAIN_NS } else { DRAIN_QUIET_NS }
    }

    /// When [`Self::tick`] is due.
    pub(super) fn deadline(&self) -> Option<u64> {
        let since = self.dry_since?;
        if self.waiters != 0 {
            Some(since + self.drain_ns())
        } else {
            (self.config.notifies && !self.stalled).then_some(since + STALL_NS)
        }
    }

    /// The frontend may have put slots into the ring.
    pub(super) fn look(&mut self) -> Result<Woken, Fatal> {
        let mut woken = Woken::default();
        let Some(line) = self.line.as_mut().filter(|line| !line.stopped) else { return Ok(woken) };
        if self.dry_since.is_none() {
            return Ok(woken);
        }
        let there = line.ring.sleep_for(self.needed.max(1));
        if there.is_err() {
            line.stopped = true;
        }
        if there? {
            self.dry_since = None;
            woken.queues = core::mem::take(&mut self.waiters);
            woken.stall = core::mem::take(&mut self.stalled).then_some(false);
        }
        Ok(woken)
    }

    /// Time has passed: what waited for too long does so no longer.
    pub(super) fn tick(&mut self, now: u64) -> Result<Woken, Fatal> {
        let mut woken = self.look()?;
        let Some(since) = self.dry_since else { return Ok(woken) };
        let dry = now.saturating_sub(since);
        if dry >= self.drain_ns() {
            // They bring their packets again, which are dropped.
            woken.queues |= core::mem::take(&mut self.waiters);
        }
        if self.config.notifies && !self.stalled && dry >= STALL_NS {
            self.stalled = true;
            self.counters.stalls += 1;
            woken.stall = Some(true);
        }
        Ok(woken)
    }

    /// Gives a packet to the frontend, which has the slots.
    fn deliver<P: Platform>(&mut self, env: &Env<'_, P>, packet: &RxPacket<'_>, wanted: &Wanted) {
        let csum = make_csum(packet, |ip| self.config.csum(ip));
        let mut flags = match packet.csum {
            RxCsum::Partial if csum.is_none() && packet.vlan.is_none() => {
                rxf::CSUM_BLANK | rxf::DATA_VALIDATED
            }
            RxCsum::Partial | RxCsum::Validated => rxf::DATA_VALIDATED,
            RxCsum::Unchecked | RxCsum::Wrong => 0,
        };
        self.counters.packets += 1;
        self.counters.bytes += u64::from(packet.bytes);
        self.counters.slots += u64::from(wanted.slots());
        self.counters.gso += u64::from(wanted.gso.is_some());
        self.counters.software_csum += u64::from(csum.is_some());
        if let Some(gso) = wanted.gso.filter(|_| wanted.prefix) {
            let id = self.take().id;
            let status = NetifStatus(wanted.slots() as i16);
            let flags = rxf::GSO_PREFIX | rxf::MORE_DATA;
            self.put(&NetifRxResponse { id, offset: gso.size, flags, status });
        }
        if !wanted.extras.is_empty() {
            flags |= rxf::EXTRA_INFO;
        }
        let mut source = Source::new(packet, packet.pieces(), [csum, make_ip_csum(packet)]);
        self.slot(env, &mut source, flags);
        let mut left = wanted.extras.len();
        for info in &wanted.extras {
            left -= 1;
            let more = if left > 0 { EXTRA_FLAG_MORE } else { 0 };
            // Its page is not used: the frontend finds its request at the same place.
            self.take();
            self.put(&NetifExtraInfo { flags: more, ..*info });
        }
        while source.left() > 0 {
            self.slot(env, &mut source, 0);
        }
    }

    /// Fills a slot.
    fn slot<P: Platform, I: Iterator<Item = RxPiece> + Clone>(
        &mut self,
        env: &Env<'_, P>,
        source: &mut Source<'_, I>,
        flags: u16,
    ) {
        let request = self.take();
        let at = self.config.headroom;
        let filled = if self.config.flip {
            flip(env, &request, source, at)
        } else {
            copy(env, &request, source, at)
        };
        let status = match filled {
            Some(bytes) => NetifStatus(bytes.cast_signed()),
            None => {
                self.counters.bad_grants += 1;
                source.fill(env.plat, None, at);
                NetifStatus::ERROR
            }
        };
        let more = if source.left() > 0 { rxf::MORE_DATA } else { 0 };
        self.put(&NetifRxResponse { id: request.id, offset: at, flags: flags | more, status });
    }

    fn take(&mut self) -> NetifRxRequest {
        let mut words = [0u32; RX_ENTRY_BYTES / 4];
        if let Some(line) = &mut self.line {
            line.ring.take(&mut words);
        }
        NetifRxRequest::read_from_bytes(words.as_bytes()).unwrap_or(NetifRxRequest {
            id: 0,
            pad: 0,
            gref: xen_abi::grant_table::GrantRef(0),
        })
    }

    fn put(&mut self, response: &(impl IntoBytes + zerocopy::Immutable)) {
        if let Some(line) = &mut self.line {
            line.put(response);
        }
    }
}

/// Copies into the page a request grants; `None`, and nothing was taken of the packet, where it
/// does not.
fn copy<P: Platform, I: Iterator<Item = RxPiece> + Clone>(
    env: &Env<'_, P>,
    request: &NetifRxRequest,
    source: &mut Source<'_, I>,
    at: u16,
) -> Option<u16> {
    let grants = gnttab::open(env.dom);
    let access = grants.access(env.plat, request.gref, true).ok()?;
    let is_whole = access.offset == 0 && u64::from(access.len) == PAGE_SIZE;
    let page = env.plat.frame(access.mfn).filter(|_| is_whole);
    let bytes = page.map(|page| source.fill(env.plat, Some(page), at));
    grants.release(request.gref, true);
    bytes
}

/// Gives the guest a filled page for the one it gave up.
fn flip<P: Platform, I: Iterator<Item = RxPiece> + Clone>(
    env: &Env<'_, P>,
    request: &NetifRxRequest,
    source: &mut Source<'_, I>,
    at: u16,
) -> Option<u16> {
    let (mut ahead, mut bytes) = (source.clone(), 0);
    gnttab::transfer_to_guest(env.dom, env.plat, request.gref, |page| {
        bytes = ahead.fill(env.plat, Some(page), at);
    })
    .ok()?;
    *source = ahead;
    Some(bytes)
}

/// What a packet needs; `None` where the frontend cannot have it.
fn wanted(
    config: &RxConfig,
    packet: &RxPacket<'_>,
    hash: Option<NetifExtraInfo>,
) -> Option<Wanted> {
    let room = PAGE_SIZE as u32 - u32::from(config.headroom);
    let tag = if packet.vlan.is_some() { VLAN_TAG_BYTES } else { 0 };
    let data_slots = (packet.bytes + tag).div_ceil(room);
    if data_slots > 1 && !config.can_sg || data_slots > NR_SLOTS_MIN as u32 {
        return None;
    }
    let mut wanted = Wanted {
        gso: None,
        form: GsoForm::None,
        prefix: false,
        extras: ArrayVec::new(),
        data_slots,
    };
    // Linux' frontend looks for IP behind the Ethernet header of what it is to cut up or to sum up,
    // and drops it where that is a tag. What it gets instead, a frame longer than its MTU whose
    // data is right, it takes.
    if let Some(gso) = packet.gso.filter(|_| packet.vlan.is_none()) {
        let (form, type_) = match ip_of(packet)? {
            Ip::V4 => (config.gso_v4, GsoType::TCPV4),
            Ip::V6 => (config.gso_v6, GsoType::TCPV6),
        };
        wanted.form = form;
        wanted.gso = (form != GsoForm::None).then_some(NetifExtraGso {
            size: gso.mss,
            type_,
            pad: 0,
            features: 0,
        });
    }
    wanted.prefix = wanted.form == GsoForm::Prefix;
    if let Some(gso) = wanted.gso.filter(|_| wanted.form == GsoForm::Extra) {
        wanted.extras.push(extra(ExtraType::GSO, &gso));
    }
    if config.headroom > 0 {
        let xdp = NetifExtraXdp { headroom: config.headroom, pad: [0; 2] };
        wanted.extras.push(extra(ExtraType::XDP, &xdp));
    }
    wanted.extras.extend(hash);
    Some(wanted)
}
