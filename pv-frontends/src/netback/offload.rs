//! What the device is to do to a packet the guest sends.

use core::sync::atomic::Ordering;

use translate::platform::PageWords;
use xen_abi::io::netif::{GsoType, txf};

use super::BouncePage;
use super::chain::Chain;
use super::headers::{HEADER_BYTES, Headers, Sum, vlan_tag};
use super::tx::Fragments;
use crate::net::{
    ETHERNET_HEADER_BYTES, Gso, Ip, NetInfo, Transport, TxCsum, TxFragment, TxRefusal,
    VLAN_TAG_BYTES, copy_out,
};

/// Bytes of a packet that are looked at first: enough for nearly all.
const FIRST_LOOK: usize = 128;
/// The longest header of TCP.
const TCP_HEADER_BYTES: usize = 60;

/// It.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offload {
    pub(super) csum: TxCsum,
    pub(super) gso: Option<Gso>,
    pub(super) vlan: Option<u16>,
    pub(super) hash: Option<u32>,
    /// The guest forgot to say that the checksum is blank.
    pub(super) fixup: bool,
    /// The checksum is to be made here: the device does not.
    sum: Option<Headers>,
}

/// Copies a packet's bytes from its beginning; how many.
fn copy(fragments: &Fragments, into: &mut [u8]) -> usize {
    let mut done = 0;
    for fragment in fragments {
        let rest = into.get_mut(done..).unwrap_or_default();
        let count = rest.len().min(fragment.len.into());
        if count == 0 {
            break;
        }
        let to = rest.get_mut(..count).unwrap_or_default();
        copy_out(fragment.page, fragment.offset.into(), to);
        done += count;
    }
    done
}

/// The headers of a packet, and the bytes they are in.
fn headers<'a>(
    fragments: &Fragments,
    bytes: &'a mut [u8; HEADER_BYTES],
) -> Option<(Headers, &'a [u8])> {
    for most in [FIRST_LOOK, HEADER_BYTES] {
        let count = copy(fragments, bytes.get_mut(..most)?);
        // What is cut off at the end of the packet is so for good.
        if let Some(found) = Headers::parse(bytes.get(..count)?)
            && (usize::from(found.l4) + TCP_HEADER_BYTES <= count || count < most)
        {
            return Some((found, bytes.get(..count)?));
        }
    }
    None
}

impl Offload {
    /// What a packet asks for. A VLAN tag is cut out where the device puts one in.
    pub(super) fn of(
        chain: &Chain,
        fragments: &mut Fragments,
        info: &NetInfo,
    ) -> Result<Self, TxRefusal> {
        let first = chain.slots.first().ok_or(TxRefusal::Fragments)?;
        let mut offload = Self {
            csum: TxCsum::None,
            gso: None,
            vlan: None,
            hash: chain.hash.map(|hash| u32::from_ne_bytes(hash.value)),
            fixup: false,
            sum: None,
        };
        let blank = first.flags & txf::CSUM_BLANK != 0;
        if blank || chain.gso.is_some() {
            offload.partial(chain, fragments, info, blank)?;
        }
        if info.tx.vlan && offload.sum.is_none() {
            offload.vlan = cut_tag(fragments);
            if offload.vlan.is_some() {
                offload.moved();
            }
        }
        if fragments.len() > usize::from(info.max_fragments) {
            return Err(TxRefusal::Fragments);
        }
        Ok(offload)
    }

    /// Finds the headers, and what is to be done with them.
    fn partial(
        &mut self,
        chain: &Chain,
        fragments: &Fragments,
        info: &NetInfo,
        blank: bool,
    ) -> Result<(), TxRefusal> {
        let mut bytes = [0; HEADER_BYTES];
        let total: u32 = fragments.iter().map(|fragment| u32::from(fragment.len)).sum();
        let (found, bytes) = headers(fragments, &mut bytes).ok_or(TxRefusal::Headers)?;
        let (Some(transport), Some(csum_at)) = (found.transport, found.csum_at()) else {
            return Err(TxRefusal::Headers);
        };
        if bytes.len() < usize::from(csum_at) + 2 {
            return Err(TxRefusal::Headers);
        }
        let ip = found.ip;
        let csum = TxCsum::Partial { ip, transport, l3: found.l3, l4: found.l4 };
        if let Some(gso) = chain.gso {
            let wanted = if gso.type_ == GsoType::TCPV6 { Ip::V6 } else { Ip::V4 };
            let payload_at = found.tcp_payload_at(bytes).filter(|_| ip == wanted);
            let payload_at = payload_at.ok_or(TxRefusal::Headers)?;
            // One segment is a packet like any other.
            if total.saturating_sub(payload_at.into()) > gso.size.into() {
                let most = match ip {
                    Ip::V4 => info.tx.gso_v4_bytes,
                    Ip::V6 => info.tx.gso_v6_bytes,
                };
                if total - ETHERNET_HEADER_BYTES > most {
                    return Err(TxRefusal::Unsupported);
                }
                self.gso = Some(Gso { mss: gso.size });
                self.csum = csum;
                self.fixup = !blank;
                return Ok(());
            }
        }
        if !blank {
            return Ok(());
        }
        let offered = match (ip, transport) {
            (Ip::V4, Transport::Tcp) => info.tx.csum_tcp_v4,
            (Ip::V4, Transport::Udp) => info.tx.csum_udp_v4,
            (Ip::V6, Transport::Tcp) => info.tx.csum_tcp_v6,
            (Ip::V6, Transport::Udp) => info.tx.csum_udp_v6,
        };
        if offered {
            self.csum = csum;
        } else {
            self.sum = Some(found);
        }
        Ok(())
    }

    /// A tag in front of the headers is gone.
    const fn moved(&mut self) {
        if let TxCsum::Partial { l3, l4, .. } = &mut self.csum {
            *l3 -= VLAN_TAG_BYTES as u16;
            *l4 -= VLAN_TAG_BYTES as u16;
        }
    }

    /// Whether [`Self::sum_up`] is due.
    pub(super) const fn wants_sum(&self) -> bool {
        self.sum.is_some()
    }

    /// Makes the checksum. The guest's pages are not ours to write: the packet gets a beginning of
    /// its own, in `page`.
    pub(super) fn sum_up(&mut self, fragments: &mut Fragments, page: &BouncePage) {
        let Some(found) = self.sum.take() else { return };
        let (Some(transport), Some(csum_at)) = (found.transport, found.csum_at()) else { return };
        let mut bytes = [0; HEADER_BYTES];
        let count = copy(fragments, &mut bytes);
        drop_front(fragments, count as u16);
        let l4 = usize::from(found.l4);
        let mut left = (found.l4_bytes as usize).max(usize::from(csum_at) + 2 - l4);
        let mut sum = Sum::default();
        let mut add = |bytes: &[u8]| {
            let part = bytes.get(..left.min(bytes.len())).unwrap_or_default();
            left -= part.len();
            sum.add(part);
        };
        add(bytes.get(l4..count).unwrap_or_default());
        for fragment in fragments.iter() {
            each_chunk(fragment, &mut add);
        }
        let sum = sum.checksum(transport).to_be_bytes();
        let at = usize::from(csum_at);
        if let Some(field) = bytes.get_mut(at..at + 2) {
            field.copy_from_slice(&sum);
        }
        for (word, bytes) in page.page.iter().zip(bytes.chunks_exact(8)) {
            let bytes = bytes.try_into().unwrap_or_default();
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        let head = TxFragment { gpfn: page.gpfn, page: page.page, offset: 0, len: count as u16 };
        // There is room: a fragment for headers of our own is counted in.
        if !fragments.is_full() {
            fragments.insert(0, head);
        }
    }
}

/// A fragment's bytes, some at a time.
fn each_chunk(fragment: &TxFragment, mut add: impl FnMut(&[u8])) {
    let (mut at, end) = (fragment.offset, fragment.offset + fragment.len);
    let page: &PageWords = fragment.page;
    while at < end {
        let mut chunk = [0; 64];
        let count = usize::from(end - at).min(chunk.len());
        let chunk = chunk.get_mut(..count).unwrap_or_default();
        copy_out(page, at.into(), chunk);
        add(chunk);
        at += count as u16;
    }
}

/// Takes bytes away from a packet's beginning.
fn drop_front(fragments: &mut Fragments, count: u16) {
    let mut left = count;
    fragments.retain(|fragment| {
        let cut = fragment.len.min(left);
        left -= cut;
        fragment.offset += cut;
        fragment.len -= cut;
        fragment.len > 0
    });
}

/// Cuts an 802.1Q tag out; the tag.
fn cut_tag(fragments: &mut Fragments) -> Option<u16> {
    let mut bytes = [0; ETHERNET_HEADER_BYTES as usize + VLAN_TAG_BYTES as usize - 2];
    let addresses = ETHERNET_HEADER_BYTES as u16 - 2;
    // The first has an Ethernet header at least.
    if fragments.first()?.len < addresses || fragments.is_full() {
        return None;
    }
    let count = copy(fragments, &mut bytes);
    let tag = vlan_tag(bytes.get(..count)?)?;
    let first = *fragments.first()?;
    drop_front(fragments, bytes.len() as u16);
    fragments.insert(0, TxFragment { len: addresses, ..first });
    Some(tag)
}
