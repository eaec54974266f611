//! ELF kernels: segments go to their physical addresses. Both classes are read,
//! since a PVH kernel is often a 32-bit ELF; the linux-loader crate reads ELF64
//! only, and takes segments that would overwrite the boot structures below 1 MiB.

use super::Machine;
use crate::memory::HIGH_MEMORY_START;
use anyhow::{Context, Result, bail, ensure};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Note "Xen", type 18: the 32-bit physical entry point of PVH.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// An ELF kernel, checked as far as headers go.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    segments: Vec<Segment>,
    /// `e_entry`.
    pub entry: u64,
    /// ELF64 rather than ELF32.
    pub is_64: bool,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

/// Little-endian reads that fail at the end of the file.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

impl<'a> Image<'a> {
    /// Reads the headers.
    ///
    /// # Errors
    /// Not an ELF executable for x86, or cut off.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        ensure!(bytes.starts_with(b"\x7fELF"), "no ELF file");
        let is_64 = match (bytes.get(4), bytes.get(5)) {
            (Some(2), Some(1)) => true,
            (Some(1), Some(1)) => false,
            _ => bail!("the ELF file is not little-endian"),
        };
        Self::parse_headers(bytes, is_64).context("the ELF file is cut off")?
    }

    /// `None`: the file ends too early.
    fn parse_headers(bytes: &'a [u8], is_64: bool) -> Option<Result<Self>> {
        let machine = u16_at(bytes, 18)?;
        if machine != if is_64 { EM_X86_64 } else { EM_386 } {
            return Some(Err(anyhow::anyhow!("the ELF file is for machine {machine}, not x86")));
        }
        let word = |at: usize| u32_at(bytes, at).map(u64::from);
        let (entry, phoff, sizes) = if is_64 {
            (u64_at(bytes, 24)?, u64_at(bytes, 32)?, 54)
        } else {
            (word(24)?, word(28)?, 42)
        };
        let (size, count) = (u16_at(bytes, sizes)?, u16_at(bytes, sizes + 2)?);
        let mut segments = Vec::new();
        for n in 0..usize::from(count) {
            let at = usize::try_from(phoff).ok()?.checked_add(n * usize::from(size))?;
            segments.push(if is_64 {
                Segment {
                    kind: u32_at(bytes, at)?,
                    offset: u64_at(bytes, at.checked_add(8)?)?,
                    paddr: u64_at(bytes, at.checked_add(24)?)?,
                    filesz: u64_at(bytes, at.checked_add(32)?)?,
                    memsz: u64_at(bytes, at.checked_add(40)?)?,
                }
            } else {
                Segment {
                    kind: u32_at(bytes, at)?,
                    offset: word(at.checked_add(4)?)?,
                    paddr: word(at.checked_add(12)?)?,
                    filesz: word(at.checked_add(16)?)?,
                    memsz: word(at.checked_add(20)?)?,
                }
            });
        }
        Some(Ok(Self { bytes, segments, entry, is_64 }))
    }

    fn contents(&self, segment: &Segment) -> Option<&'a [u8]> {
        let start = usize::try_from(segment.offset).ok()?;
        let end = start.checked_add(usize::try_from(segment.filesz).ok()?)?;
        self.bytes.get(start..end)
    }

    /// The PVH entry point, if a note names one.
    ///
    /// # Errors
    /// The notes lie outside the file.
    pub fn pvh_entry(&self) -> Result<Option<u64>> {
        for segment in self.segments.iter().filter(|s| s.kind == PT_NOTE) {
            let notes = self.contents(segment).context("lie outside the file")?;
            if let Some(entry) = find_phys32_entry(notes) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Loads all segments; returns the first address behind them.
    ///
    /// # Errors
    /// A segment lies outside memory, in the first MiB, or outside the file.
    pub fn load(&self, machine: &Machine) -> Result<u64> {
        let mut end = 0;
        for segment in self.segments.iter().filter(|s| s.kind == PT_LOAD && s.memsz != 0) {
            let Segment { paddr, memsz, .. } = *segment;
            let contents = self.contents(segment).context("a segment lies outside the ELF file")?;
            ensure!(segment.filesz <= memsz, "a segment is longer in the file than in memory");
            ensure!(
                paddr >= HIGH_MEMORY_START,
                "a segment wants physical address {paddr:#x}, below 1 MiB"
            );
            let last = paddr.checked_add(memsz).context("a segment wraps around")?;
            let len = usize::try_from(memsz)?;
            ensure!(
                machine.memory.check_range(GuestAddress(paddr), len),
                "a segment needs memory at {paddr:#x} to {last:#x}; give the machine more (--memory)"
            );
            // The rest of the segment is zero: guest memory starts that way.
            machine.memory.write_slice(contents, GuestAddress(paddr))?;
            end = end.max(last);
        }
        ensure!(end != 0, "the ELF file has nothing to load");
        Ok(end)
    }
}

fn find_phys32_entry(mut notes: &[u8]) -> Option<u64> {
    const HEADER: usize = 12;
    while notes.len() >= HEADER {
        let name_len = u32_at(notes, 0)? as usize;
        let desc_len = u32_at(notes, 4)? as usize;
        let name = notes.get(HEADER..HEADER.checked_add(name_len)?)?;
        let desc_at = HEADER.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if name == b"Xen\0" && u32_at(notes, 8)? == XEN_ELFNOTE_PHYS32_ENTRY {
            return u32_at(desc, 0).map(u64::from);
        }
        let next = desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?;
        notes = notes.get(next..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::memory::{Memory, Range, allocate, memory_map};
    use proptest::prelude::*;

    /// Builds an ELF64 with one segment and, where given, a PVH note.
    pub fn elf64(paddr: u64, contents: &[u8], memsz: u64, pvh: Option<u32>) -> Vec<u8> {
        let mut notes = Vec::new();
        if let Some(entry) = pvh {
            for (name, kind, desc) in
                [(&b"GNU\0"[..], 3u32, &[1u8, 2, 3][..]), (b"Xen\0", 18, &entry.to_le_bytes())]
            {
                notes.extend((name.len() as u32).to_le_bytes());
                notes.extend((desc.len() as u32).to_le_bytes());
                notes.extend(kind.to_le_bytes());
                notes.extend(name);
                notes.extend(desc);
                notes.resize(notes.len().next_multiple_of(4), 0);
            }
        }
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend(2u16.to_le_bytes());
        elf.extend(EM_X86_64.to_le_bytes());
        elf.extend(1u32.to_le_bytes());
        elf.extend(paddr.to_le_bytes());
        elf.extend(64u64.to_le_bytes());
        elf.extend(0u64.to_le_bytes());
        elf.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 2, 0, 0, 0] {
            elf.extend(half.to_le_bytes());
        }
        let start = 64 + 2 * 56;
        for (kind, offset, at, filesz, memsz) in [
            (PT_LOAD, start, paddr, contents.len(), memsz),
            (PT_NOTE, start + contents.len(), 0, notes.len(), notes.len() as u64),
        ] {
            elf.extend(kind.to_le_bytes());
            elf.extend(7u32.to_le_bytes());
            elf.extend((offset as u64).to_le_bytes());
            // p_vaddr: far away, as in kernels.
            elf.extend(0xffff_ffff_8100_0000u64.to_le_bytes());
            elf.extend(at.to_le_bytes());
            elf.extend((filesz as u64).to_le_bytes());
            elf.extend(memsz.to_le_bytes());
            elf.extend(4096u64.to_le_bytes());
        }
        elf.extend(contents);
        elf.extend(notes);
        elf
    }

    pub fn memory() -> (Memory, Vec<Range>) {
        (allocate(64 << 20).unwrap(), memory_map(64 << 20))
    }

    pub fn machine<'a>(memory: &'a Memory, map: &'a [Range]) -> Machine<'a> {
        Machine { memory, map, rsdp: 0xe_0000, openvmm_like: false }
    }

    #[test]
    fn segments_go_to_physical_addresses() {
        let (memory, map) = memory();
        let elf = elf64(0x20_0000, b"kernel", 0x3000, Some(0x20_0040));
        let image = Image::parse(&elf).unwrap();
        assert_eq!((image.entry, image.is_64), (0x20_0000, true));
        assert_eq!(image.pvh_entry().unwrap(), Some(0x20_0040));
        assert_eq!(image.load(&machine(&memory, &map)).unwrap(), 0x20_3000);
        let mut seen = [0u8; 8];
        memory.read_slice(&mut seen, GuestAddress(0x20_0000)).unwrap();
        assert_eq!(&seen, b"kernel\0\0");
    }

    #[test]
    fn no_note_no_entry() {
        let elf = elf64(0x20_0000, b"x", 1, None);
        assert_eq!(Image::parse(&elf).unwrap().pvh_entry().unwrap(), None);
    }

    #[test]
    fn places_that_are_refused() {
        let (memory, map) = memory();
        for (paddr, memsz, word) in [
            (0x8000, 0x1000, "below 1 MiB"),
            (60 << 20, 5 << 20, "--memory"),
            (u64::MAX - 10, 0x1000, "wraps"),
            (0x20_0000, 0, "nothing"),
            (0x20_0000, 3, "longer"),
        ] {
            let elf = elf64(paddr, b"kernel", memsz, None);
            let error = Image::parse(&elf).unwrap().load(&machine(&memory, &map)).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn thirty_two_bit_headers() {
        let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend(2u16.to_le_bytes());
        elf.extend(EM_386.to_le_bytes());
        for word in [1u32, 0x10_0000, 52, 0, 0] {
            elf.extend(word.to_le_bytes());
        }
        for half in [52u16, 32, 1, 0, 0, 0] {
            elf.extend(half.to_le_bytes());
        }
        for word in [PT_LOAD, 84, 0xc010_0000, 0x10_0000, 4, 8, 7, 4096] {
            elf.extend(word.to_le_bytes());
        }
        elf.extend(b"code");
        let (memory, map) = memory();
        let image = Image::parse(&elf).unwrap();
        assert_eq!((image.entry, image.is_64), (0x10_0000, false));
        assert_eq!(image.load(&machine(&memory, &map)).unwrap(), 0x10_0008);
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            flips in prop::collection::vec((0usize..300, any::<u8>()), 1..8),
            cut in 0usize..400,
        ) {
            let (memory, map) = memory();
            let mut elf = elf64(0x20_0000, b"kernel", 0x3000, Some(0x20_0040));
            for (at, value) in flips {
                if let Some(byte) = elf.get_mut(at) {
                    *byte = value;
                }
            }
            elf.truncate(cut);
            if let Ok(image) = Image::parse(&elf) {
                let _ = image.pvh_entry();
                let _ = image.load(&machine(&memory, &map));
            }
        }
    }
}
