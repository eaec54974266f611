//! The units of the host in [`crate::storvsc`].

/// A unit, or none.
#[derive(Clone, Copy, Default)]
pub(crate) struct Unit(u32);

/// An answer in the making.
pub(crate) struct Answer {
    /// The packet.
    pub(crate) packet: Vec<u8>,
    /// What goes into the page.
    pub(crate) data: Vec<u8>,
    /// It says that the command was done.
    pub(crate) is_well: bool,
}

impl Unit {
    /// A unit by its shape. Bits: 0: it is there; 1: a CD drive; 2: write protected; 3: no cache;
    /// 4: sectors of 4096 bytes; 5: unmapping; 6, 7: physical sectors; 8: another name; 9: huge.
    pub(crate) const fn new(shape: u32) -> Self {
        Self(shape)
    }

    pub(crate) const fn is_there(self) -> bool {
        self.0 & 1 != 0
    }

    const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    fn blocks(self) -> u64 {
        if self.has(9) { 1 << 33 } else { 0x400 }
    }

    const fn block_bytes(self) -> u32 {
        if self.has(4) { 4096 } else { 512 }
    }

    /// What it answers to a command that asks for data; `None`: it does not know the command.
    fn data(self, cdb: &[u8], luns: &[u8]) -> Option<Vec<u8>> {
        let last = self.blocks() - 1;
        let mut data = vec![0; 36];
        match cdb[0] {
            0x12 if cdb[1] & 1 == 0 => {
                (data[0], data[1]) = (if self.has(1) { 5 } else { 0 }, self.0 as u8 & 0x80);
                (data[2], data[3], data[4]) = (5, 2, 31);
            }
            0x12 => return self.page(cdb[2]),
            0x25 => {
                data[..4].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_be_bytes());
                data[4..8].copy_from_slice(&self.block_bytes().to_be_bytes());
            }
            0x9e => {
                data[..8].copy_from_slice(&last.to_be_bytes());
                data[8..12].copy_from_slice(&self.block_bytes().to_be_bytes());
                data[13] = (self.0 >> 6) as u8 & 3;
            }
            0x1a => {
                data[0] = 23;
                data[2] = if self.has(2) { 0x80 } else { 0 };
                (data[4], data[5], data[6]) = (8, 18, if self.has(3) { 0 } else { 4 });
            }
            0xa0 => {
                data = vec![0; 8 + luns.len() * 8];
                data[3] = luns.len() as u8 * 8;
                (0..).zip(luns).for_each(|(nr, lun)| data[9 + nr * 8] = *lun);
            }
            // TEST UNIT READY, transfers, UNMAP, SYNCHRONIZE CACHE.
            0 | 0x28 | 0x2a | 0x88 | 0x8a | 0x42 | 0x35 | 0x91 => {}
            _ => return None,
        }
        Some(data)
    }

    /// A vital product data page.
    fn page(self, page: u8) -> Option<Vec<u8>> {
        let mut data = vec![0; 64];
        (data[1], data[3]) = (page, 60);
        match page {
            0x83 => {
                data[3] = 12;
                data[4..8].copy_from_slice(&[1, 3, 0, 8]);
                data[8..16].fill(0x60 + (self.0 >> 8) as u8);
            }
            0xb0 => {
                data[11] = 32;
                (data[22], data[27], data[31]) = (1, 1, 4);
                (data[32], data[35]) = (0x80, 1);
            }
            0xb1 => data[5] = 1,
            0xb2 => data[5] = if self.has(5) { 0x80 } else { 0 },
            _ => return None,
        }
        Some(data)
    }
}

/// Completes the answer to a SCSI command; `fault` chooses what goes wrong, mostly nothing.
pub(crate) fn answer(
    answer: &mut Answer,
    request: &[u8],
    cdb: &[u8],
    unit: Unit,
    luns: &[u8],
    room: u32,
    fault: u8,
) {
    let body = &mut answer.packet[12..];
    body[..16].copy_from_slice(&request[..16]);
    let length = (cdb[0] != 0).then(|| unit.data(cdb, luns)).flatten().unwrap_or_default();
    let (mut srb, mut scsi, mut sense) = (1, 0, None);
    if !unit.is_there() && cdb[0] != 0xa0 {
        srb = 0x20;
    } else if cdb[0] != 0 && length.is_empty() {
        (srb, scsi, sense) = (0x84, 2, Some((5, 0x2000)));
    }
    let mut moved = room;
    if fault & 1 != 0 {
        match fault >> 4 {
            0 => (srb, scsi, sense) = (0x84, 2, Some((3, 0x1100))),
            1 => (srb, scsi) = (4, 8),
            2 => (srb, scsi, sense) = (0x84, 2, Some((6, 0x2a09))),
            3 => (srb, scsi, sense) = (0x84, 2, Some((6, 0x3f0e))),
            4 => (srb, scsi, sense) = (0x84, 2, Some((0xb, 0))),
            5 => moved = room / 2,
            6 => srb = 2,
            7 => (srb, scsi, sense) = (0x84, 2, Some((7, 0x2707))),
            8 => srb = 0x12,
            9 => srb = 5,
            10 => (srb, scsi, sense) = (0x84, 2, Some((1, 0))),
            11 => srb = 6,
            12 => (srb, scsi, sense) = (0x84, 2, Some((6, 0x2900))),
            13 => srb = 8,
            14 => (srb, scsi) = (4, 0x28),
            _ => (srb, scsi, sense) = (0x84, 2, Some((2, 0x0401))),
        }
    }
    (body[2], body[3]) = (srb, scsi);
    body[12..16].copy_from_slice(&moved.to_le_bytes());
    if let Some((key, code)) = sense {
        body[9] = 18;
        let [high, low] = u16::to_be_bytes(code);
        (body[16], body[18], body[28], body[29]) = (0x70, key, high, low);
    }
    // An overrun, and an error that was recovered from, are what they say.
    let is_done = matches!((srb, sense), (1 | 0x12, None) | (_, Some((1, _))));
    let is_transfer = matches!(cdb[0], 0x28 | 0x2a | 0x88 | 0x8a);
    answer.is_well = is_done && (moved == room || !is_transfer);
    answer.data = length;
}
