//! Packets, as a guest's or a host's stack makes them.

use std::vec;
use std::vec::Vec;

use crate::net::{Ip, Transport};

/// Sum of 16-bit words, folded: another way than [`Sum`](crate::netback::headers::Sum)'s.
pub fn fold(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// What to make.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub ip: Ip,
    pub transport: Transport,
    pub payload: Vec<u8>,
    /// In-band tag.
    pub tag: Option<u16>,
    pub ports: (u16, u16),
}

impl Recipe {
    pub fn new(ip: Ip, transport: Transport, payload: usize) -> Self {
        let payload = (0..payload).map(|at| (at * 7 + at / 251) as u8).collect();
        Self { ip, transport, payload, tag: None, ports: (1234, 80) }
    }

    pub fn tcp(payload: usize) -> Self {
        Self::new(Ip::V4, Transport::Tcp, payload)
    }

    pub fn l3(&self) -> usize {
        14 + if self.tag.is_some() { 4 } else { 0 }
    }

    pub fn l4(&self) -> usize {
        self.l3() + if self.ip == Ip::V4 { 20 } else { 40 }
    }

    pub fn csum_at(&self) -> usize {
        self.l4() + if self.transport == Transport::Tcp { 16 } else { 6 }
    }

    pub fn payload_at(&self) -> usize {
        self.l4() + if self.transport == Transport::Tcp { 20 } else { 8 }
    }

    /// The packet with only the pseudo header summed up.
    pub fn partial(&self) -> Vec<u8> {
        let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        if let Some(tag) = self.tag {
            bytes.extend([0x81, 0, (tag >> 8) as u8, tag as u8]);
        }
        let proto = if self.transport == Transport::Tcp { 6 } else { 17 };
        let l4_bytes = (self.payload_at() - self.l4() + self.payload.len()) as u16;
        let mut pseudo = vec![];
        if self.ip == Ip::V4 {
            bytes.extend([8, 0, 0x45, 0]);
            bytes.extend((l4_bytes + 20).to_be_bytes());
            bytes.extend([0, 1, 0x40, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            pseudo.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        } else {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(l4_bytes.to_be_bytes());
            bytes.extend([proto, 64]);
            let addresses: Vec<u8> = (0..32).map(|byte| byte ^ 0xfe).collect();
            bytes.extend(&addresses);
            pseudo.extend(addresses);
        }
        pseudo.extend([0, proto]);
        pseudo.extend(l4_bytes.to_be_bytes());
        let sum = fold(&pseudo).to_be_bytes();
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        if self.transport == Transport::Tcp {
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 4, 0, sum[0], sum[1], 0, 0]);
        } else {
            bytes.extend(l4_bytes.to_be_bytes());
            bytes.extend(sum);
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// The packet as it goes over the wire.
    pub fn complete(&self) -> Vec<u8> {
        let mut bytes = self.partial();
        let at = self.csum_at();
        let sum = match (!fold(&bytes[self.l4()..]), self.transport) {
            (0, Transport::Udp) => 0xffff,
            (sum, _) => sum,
        };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}
