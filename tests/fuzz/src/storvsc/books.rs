//! What the host makes of packets and answers.

use std::sync::atomic::Ordering;

use hv_abi::storvsc::Operation as Op;
use pv_frontends::blkback::Operation;
use pv_frontends::vmbus::fake::Fake;
use translate::platform::PageWords;

use super::{Books, FIRST_FRAME, Sent};

impl Books {
    /// The host answered the request with this tag; flushes and discards are not told apart.
    pub(super) fn answered(&mut self, tag: Option<u64>, may_be_well: bool) {
        for (other, request) in &mut self.accepted {
            if tag == Some(*other) {
                request.may_be_well = may_be_well;
            } else if request.segments.is_empty() {
                request.may_be_well |= may_be_well;
            }
        }
    }

    /// The host says anything about a packet it has, or had, or never had.
    pub(super) fn forged(&mut self, channel: u32, id: u64) {
        let is_it = |sent: &Sent| sent.channel == channel && sent.id == id;
        while let Some(at) = self.waiting.iter().position(is_it) {
            let sent = self.waiting.swap_remove(at);
            self.answered(sent.tag, true);
        }
        self.answered(None, true);
    }

    /// A command on the wire says what its request said.
    pub(super) fn check(&mut self, sent: &mut Sent, fake: &Fake, spoilt: bool) {
        if sent.operation() != Op::EXECUTE_SRB {
            return;
        }
        let (opcode, cdb) = (sent.cdb()[0], sent.cdb());
        let number = |at: usize, count: usize| {
            cdb[at..at + count].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let (lba, blocks) = match opcode {
            0x28 | 0x2a => (number(2, 4), number(7, 2)),
            0x88 | 0x8a => (number(2, 8), number(10, 4)),
            0x42 => return self.check_unmap(sent, fake),
            _ => return,
        };
        let (offset, bytes) = sent.range.expect("a transfer has a range");
        let tag = (sent.pages[0] - FIRST_FRAME) / 16;
        let request = self.accepted.get(&tag).expect("a request nobody made");
        let is_write = opcode & 2 != 0;
        assert_eq!(request.operation == Operation::Write, is_write);
        assert_eq!(lba * u64::from(request.block_bytes / 512), request.sector);
        assert_eq!(blocks * u64::from(request.block_bytes), u64::from(bytes));
        assert_eq!(request.segments.iter().map(|s| u32::from(s.len)).sum::<u32>(), bytes);
        assert_eq!(u32::from(request.segments[0].offset), offset);
        let pages: Vec<_> = request.segments.iter().map(|segment| segment.gpfn.0).collect();
        assert_eq!(pages, sent.pages);
        let twice = self.waiting.iter().any(|other| other.tag == Some(tag));
        assert!(!twice || spoilt, "the host was sent a request it has");
        sent.tag = Some(tag);
    }

    pub(super) fn check_unmap(&self, sent: &Sent, fake: &Fake) {
        let (offset, bytes) = sent.range.expect("parameters");
        assert_eq!(bytes, 24);
        let page = fake.page::<PageWords>(sent.pages[0]).expect("a page of the driver's");
        let word = |nr: usize| page[offset as usize / 8 + nr].load(Ordering::Relaxed).swap_bytes();
        let (lba, blocks) = (word(1), word(2) >> 32);
        assert!(self.accepted.values().any(|request| {
            let per_block = u64::from(request.block_bytes / 512);
            let sectors = blocks * per_block;
            matches!(request.operation, Operation::Discard { sectors: s, .. } if s == sectors)
                && lba * per_block == request.sector
        }));
    }
}
