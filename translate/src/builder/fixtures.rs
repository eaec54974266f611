//! Tiny kernels and plain memory for the builder's tests.

use std::vec;
use std::vec::Vec;

use xen_abi::elfnote::NoteType;
use xen_abi::{Mfn, Pfn};

use super::BuildMemory;

/// Machine frame of page 0 in [`Memory`].
pub const FIRST_MFN: u64 = 0x5_0000;

/// Memory whose frames are scattered: every run of `stride` pages lies elsewhere.
pub struct Memory {
    pub bytes: Vec<u8>,
    pub stride: u64,
}

impl Memory {
    pub fn new(pages: u64, stride: u64) -> Self {
        Self { bytes: vec![0xa5; (pages * 4096) as usize], stride }
    }
    /// Pages swap places in pairs of runs.
    pub fn mfn_of(&self, pfn: u64) -> u64 {
        FIRST_MFN + ((pfn / self.stride) ^ 1) * self.stride + pfn % self.stride
    }
    pub fn pfn_of(&self, mfn: u64) -> u64 {
        let n = mfn - FIRST_MFN;
        ((n / self.stride) ^ 1) * self.stride + n % self.stride
    }
    pub fn word(&self, addr: u64) -> u64 {
        let at = addr as usize;
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }
    pub fn slice(&self, addr: u64, len: usize) -> &[u8] {
        &self.bytes[addr as usize..addr as usize + len]
    }
    /// Walks page tables from an L4 frame; the pseudo-physical page and the entry found.
    pub fn walk(&self, l4: Mfn, va: u64) -> Option<(u64, u64)> {
        let mut mfn = l4.0;
        let mut entry = 0;
        for shift in [39, 30, 21, 12] {
            let table = self.pfn_of(mfn) * 4096;
            entry = self.word(table + (va >> shift & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            mfn = (entry & 0x000f_ffff_ffff_f000) >> 12;
        }
        Some((self.pfn_of(mfn), entry & 0xfff))
    }
}

impl BuildMemory for Memory {
    fn run(&self, pfn: Pfn) -> (Mfn, u64) {
        (Mfn(self.mfn_of(pfn.0)), self.stride - pfn.0 % self.stride)
    }
    fn write(&mut self, pfn: Pfn, offset: u64, bytes: &[u8]) {
        let at = (pfn.0 * 4096 + offset) as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fn zero(&mut self, pfn: Pfn, offset: u64, bytes: u64) {
        let at = (pfn.0 * 4096 + offset) as usize;
        self.bytes[at..at + bytes as usize].fill(0);
    }
}

/// A program header: (type, flags, vaddr, paddr, bytes, memory size).
pub struct Seg<'a> {
    pub kind: u32,
    pub flags: u32,
    pub paddr: u64,
    pub bytes: &'a [u8],
    pub memsz: u64,
}

/// An ELF file of these segments.
pub fn elf(machine: u16, entry: u64, segs: &[Seg<'_>]) -> Vec<u8> {
    let mut file = vec![0u8; 64 + 56 * segs.len()];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..18].copy_from_slice(&2u16.to_le_bytes());
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[24..32].copy_from_slice(&entry.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&(segs.len() as u16).to_le_bytes());
    for (n, seg) in segs.iter().enumerate() {
        let offset = file.len() as u64;
        file.extend_from_slice(seg.bytes);
        let h = &mut file[64 + 56 * n..][..56];
        h[..4].copy_from_slice(&seg.kind.to_le_bytes());
        h[4..8].copy_from_slice(&seg.flags.to_le_bytes());
        let words = [offset, seg.paddr, seg.paddr, seg.bytes.len() as u64, seg.memsz, 0];
        for (k, word) in words.iter().enumerate() {
            h[8 + 8 * k..][..8].copy_from_slice(&word.to_le_bytes());
        }
    }
    file
}

/// A note of owner "Xen".
pub fn note(kind: NoteType, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [4, desc.len() as u32, kind.0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(b"Xen\0");
    out.extend_from_slice(desc);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// `VIRT_BASE` of [`linux_like`].
pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Where [`linux_like`] is loaded.
pub const LOAD_ADDR: u64 = 0x10_0000;

/// The notes of a Linux-like kernel, with more behind them.
pub fn linux_notes(more: &[Vec<u8>]) -> Vec<u8> {
    let mut notes = Vec::new();
    notes.extend(note(NoteType::GUEST_OS, b"linux\0"));
    notes.extend(note(NoteType::XEN_VERSION, b"xen-3.0\0"));
    notes.extend(note(NoteType::VIRT_BASE, &VIRT_BASE.to_le_bytes()));
    notes.extend(note(NoteType::ENTRY, &(VIRT_BASE + LOAD_ADDR + 0x10).to_le_bytes()));
    more.iter().for_each(|n| notes.extend_from_slice(n));
    notes
}

/// A kernel of 3 pages of 'K' in a segment of 16 KiB, and a second segment.
pub fn linux_like(more: &[Vec<u8>]) -> Vec<u8> {
    let notes = linux_notes(more);
    elf(
        62,
        0x1234,
        &[
            Seg { kind: 4, flags: 4, paddr: 0, bytes: &notes, memsz: notes.len() as u64 },
            Seg { kind: 1, flags: 5, paddr: LOAD_ADDR, bytes: &[b'K'; 0x3000], memsz: 0x4000 },
            Seg { kind: 1, flags: 6, paddr: LOAD_ADDR + 0x5008, bytes: b"data", memsz: 0x10 },
            Seg {
                kind: 1,
                flags: 4,
                paddr: 0xdead_0000,
                bytes: b"read-only: not loaded",
                memsz: 64,
            },
        ],
    )
}
