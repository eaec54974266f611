//! Packets for the guest, right or wrong, as words in a ring.

use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_abi::netvsc::nvsp::{ChannelType, Message, RECEIVE_BUFFER_ID, SendRndisPacket};
use hv_abi::vmbus::ChannelId;
use hv_abi::vmbus::packet::{PacketDescriptor, PacketType, TransferPageHeader, TransferPageRange};
use translate::platform::PageWords;
use zerocopy::{IntoBytes, transmute};

use super::{Frame, Host, packet_message};
use crate::net::copy_out;
use crate::vmbus::VmBus;
use crate::vmbus::fake::{Fake, HostChannel};
use crate::vmbus::ring::{ControlWord, RingMemory};

impl Host {
    /// Sends frames, one in a range.
    pub fn receive(&mut self, bus: &VmBus<Fake>, channel: u32, frames: &[Frame<'_>]) -> bool {
        let messages: Vec<_> =
            frames.iter().map(|(frame, infos)| packet_message(frame, infos)).collect();
        let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        self.push(bus, channel, &messages)
    }

    /// Sends a transfer-page packet, each message in a range of its own.
    pub fn push(&mut self, bus: &VmBus<Fake>, channel: u32, messages: &[&[u8]]) -> bool {
        let size = self.section_bytes as usize;
        let needed: usize = messages.iter().map(|m| m.len().div_ceil(size).max(1)).sum();
        if self.receive.is_empty() || self.free_sections.len() < needed || needed != messages.len()
        {
            return false;
        }
        let mut ranges = Vec::new();
        let mut sections = Vec::new();
        for message in messages {
            let section = self.free_sections.pop().expect("enough");
            let at = section * self.section_bytes;
            write(&self.server.fake, &self.receive, at as usize, message);
            ranges.push((at, message.len() as u32));
            sections.push(section);
        }
        let id = self.ranges(bus, channel, &ranges);
        if let Some(id) = id {
            self.outstanding.insert(id, (self.era(channel), sections));
        } else {
            self.free_sections.extend(sections);
        }
        id.is_some()
    }

    /// Sends a transfer-page packet of any ranges; its number.
    pub fn ranges(
        &mut self,
        bus: &VmBus<Fake>,
        channel: u32,
        ranges: &[(u32, u32)],
    ) -> Option<u64> {
        let header = TransferPageHeader {
            transfer_page_set_id: RECEIVE_BUFFER_ID,
            sender_owns_set: 0,
            reserved: 0,
            range_count: ranges.len() as u32,
        };
        let mut words = vec![transmute!(header)];
        words.extend(ranges.iter().map(|&(byte_offset, byte_count)| -> u64 {
            transmute!(TransferPageRange { byte_count, byte_offset })
        }));
        let message = Message::new(&SendRndisPacket {
            channel_type: ChannelType::DATA,
            section: SendRndisPacket::NO_SECTION,
            section_bytes: 0,
        });
        let id = self.next_id;
        self.next_id += 1;
        // Before the guest answers.
        self.outstanding.insert(id, (self.era(channel), Vec::new()));
        let kind = PacketType::TRANSFER_PAGES;
        let sent = self.write(channel, kind, 1, id, &words, &message.as_bytes()[..28]);
        if !sent {
            self.outstanding.remove(&id);
            return None;
        }
        bus.on_signal(ChannelId(channel));
        Some(id)
    }

    /// Writes any packet and signals; whether there was room.
    pub fn raw(
        &mut self,
        bus: &VmBus<Fake>,
        channel: u32,
        kind: PacketType,
        id: u64,
        header: &[u64],
        payload: &[u8],
    ) -> bool {
        let sent = self.write(channel, kind, 0, id, header, payload);
        bus.on_signal(ChannelId(channel));
        sent
    }

    pub fn write(
        &self,
        channel: u32,
        packet_type: PacketType,
        flags: u16,
        transaction_id: u64,
        header: &[u64],
        payload: &[u8],
    ) -> bool {
        // The guest may have closed it since.
        let Some(channel) = self.server.channels.get(&channel) else { return true };
        let mut payload = payload.to_vec();
        payload.resize(payload.len().next_multiple_of(8), 0);
        let offset8 = 2 + header.len() as u16;
        let descriptor = PacketDescriptor {
            packet_type,
            data_offset8: offset8,
            length8: offset8 + payload.len() as u16 / 8,
            flags,
            transaction_id,
        };
        let first: [u64; 2] = transmute!(descriptor);
        let body = payload.chunks(8).map(|c| u64::from_le_bytes(c.try_into().expect("8")));
        let words: Vec<u64> = first.into_iter().chain(header.iter().copied()).chain(body).collect();
        publish(channel, &words)
    }
}

/// Writes words and a footer at the ring's end.
fn publish(channel: &HostChannel, words: &[u64]) -> bool {
    let memory = channel.outgoing.memory();
    let bytes = memory.data_bytes();
    let write = memory.load(ControlWord::WriteIndex, Ordering::Relaxed);
    let read = memory.load(ControlWord::ReadIndex, Ordering::Acquire);
    let used = if write >= read { write - read } else { bytes - read + write };
    let total = (words.len() as u32 + 1) * 8;
    if bytes - 8 - used < total {
        return false;
    }
    let mut at = write;
    for word in words.iter().copied().chain([u64::from(write) << 32]) {
        memory.write(at, word);
        at = (at + 8) % bytes;
    }
    memory.store(ControlWord::WriteIndex, at, Ordering::Release);
    true
}

/// Bytes of pages.
pub(super) fn read(fake: &Fake, pages: &[u64], at: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut rest = &mut bytes[..];
    let mut at = at;
    while !rest.is_empty() {
        let (now, later) = rest.split_at_mut(rest.len().min(4096 - at % 4096));
        let page = fake.page::<PageWords>(pages[at / 4096]).expect("a page of the guest's");
        copy_out(page, at % 4096, now);
        (at, rest) = (at + now.len(), later);
    }
    bytes
}

pub(super) fn write(fake: &Fake, pages: &[u64], at: usize, bytes: &[u8]) {
    let (mut at, mut rest) = (at, bytes);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(4096 - at % 4096));
        let page = fake.page::<PageWords>(pages[at / 4096]).expect("a page of the guest's");
        write_page(page, at % 4096, now);
        (at, rest) = (at + now.len(), later);
    }
}

/// Writes bytes into a page.
pub fn write_page(page: &PageWords, at: usize, bytes: &[u8]) {
    let mut rest = bytes;
    let mut at = at;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(8 - at % 8));
        let word = &page[at / 8];
        let mut whole = word.load(Ordering::Relaxed).to_le_bytes();
        whole[at % 8..at % 8 + now.len()].copy_from_slice(now);
        word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
        (at, rest) = (at + now.len(), later);
    }
}
