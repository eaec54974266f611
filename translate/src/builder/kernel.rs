//! A guest kernel: out of its file into a parsed ELF image.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use xen_abi::{GuestVa, PAGE_SHIFT, PAGE_SIZE, Pfn};

use super::elf::{self, Elf};
use super::notes::Notes;
use super::{BuildError, bzimage, decompress};

/// Addresses beyond this are no pseudo-physical memory (64 TiB).
const MAX_ADDR: u64 = 1 << 46;

/// A loadable piece of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Pseudo-physical address of the first byte.
    pub addr: u64,
    /// Offset of its bytes in the image.
    pub file_offset: usize,
    /// Bytes in the image.
    pub file_bytes: usize,
    /// Bytes in memory; what the file does not give is zero.
    pub mem_bytes: u64,
}

/// A parsed PV kernel.
#[derive(Clone, Debug)]
pub struct Kernel<'a> {
    /// The ELF image, decompressed where it was compressed.
    pub image: Cow<'a, [u8]>,
    /// What to load, in the file's order.
    pub segments: Vec<Segment>,
    /// Virtual address of pseudo-physical 0.
    pub virt_base: GuestVa,
    /// First instruction.
    pub entry: GuestVa,
    /// Where the hypercall page goes, if the kernel wants one; page-aligned, in the image.
    pub hypercall_page: Option<GuestVa>,
    /// Where the p2m goes, if not into the initial mapping.
    pub init_p2m: Option<GuestVa>,
    /// The initrd may stay unmapped (`MOD_START_PFN`).
    pub mod_start_pfn: bool,
    /// Features the kernel knows (XENFEAT submap 0).
    pub supported_features: u32,
}

/// What a kernel file holds.
enum Content<'a> {
    Elf(&'a [u8]),
    Packed(&'a [u8]),
}

fn content(file: &[u8]) -> Result<Content<'_>, BuildError> {
    let inner = if bzimage::is_bzimage(file) { bzimage::payload(file)? } else { file };
    if elf::is_elf(inner) {
        Ok(Content::Elf(inner))
    } else if bzimage::is_bzimage(file) || decompress::detect(inner).is_some() {
        Ok(Content::Packed(inner))
    } else {
        Err(BuildError::UnknownFormat)
    }
}

/// The ELF image in a kernel file.
fn unpack(file: &[u8]) -> Result<Cow<'_, [u8]>, BuildError> {
    match content(file)? {
        Content::Elf(image) => Ok(Cow::Borrowed(image)),
        Content::Packed(packed) => {
            let image = decompress::decompress(packed)?;
            if elf::is_elf(&image) { Ok(Cow::Owned(image)) } else { Err(BuildError::UnknownFormat) }
        }
    }
}

/// Heap that [`Kernel::load`] needs for a file, in bytes, a copy of an image that is not packed
/// included.
///
/// # Errors
/// What is wrong with the file, as far as it shows without unpacking.
pub fn heap_bytes(file: &[u8]) -> Result<usize, BuildError> {
    /// Tables of the hungriest decoder (lzma with lc + lp = 12: 6 MiB) and odds and ends.
    const WORKSPACE: usize = 7 << 20;
    match content(file)? {
        Content::Elf(image) => Ok(image.len() + (64 << 10)),
        Content::Packed(packed) => Ok(decompress::unpacked_bytes(packed)? + WORKSPACE),
    }
}

impl<'a> Kernel<'a> {
    /// Parses a bzImage, an ELF file or a compressed ELF file.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn load(file: &'a [u8]) -> Result<Self, BuildError> {
        let image = unpack(file)?;
        let elf = Elf::parse(&image)?;
        let notes = Notes::find(&elf)?;
        // Without notes old kernels have p_paddr = p_vaddr.
        let virt_base = notes.virt_base.unwrap_or(0);
        let default_offset = if notes.legacy { virt_base } else { 0 };
        let paddr_offset = notes.paddr_offset.unwrap_or(default_offset);
        let segments = segments(&elf, &image, paddr_offset)?;
        let (start, end) = extent(&segments);
        let in_image = |va: u64| {
            // The end is an address libelf allows, too.
            va.checked_sub(virt_base).is_some_and(|addr| (start..=end).contains(&addr))
        };
        let entry = notes.entry.unwrap_or(elf.entry);
        if !in_image(entry) {
            return Err(BuildError::BadNotes("the entry point is outside the kernel"));
        }
        if let Some(va) = notes.hypercall_page {
            let last = va.checked_add(PAGE_SIZE - 1);
            if !va.is_multiple_of(PAGE_SIZE) || !in_image(va) || !last.is_some_and(in_image) {
                return Err(BuildError::BadHypercallPage);
            }
        }
        let p2m = notes.init_p2m.filter(|&va| va < virt_base && va.is_multiple_of(PAGE_SIZE));
        Ok(Self {
            segments,
            virt_base: GuestVa(virt_base),
            entry: GuestVa(entry),
            hypercall_page: notes.hypercall_page.map(GuestVa),
            init_p2m: p2m.map(GuestVa),
            mod_start_pfn: notes.mod_start_pfn,
            supported_features: notes.supported,
            image,
        })
    }

    /// First and end page frame of the segments.
    #[must_use]
    pub fn pfns(&self) -> (Pfn, Pfn) {
        let (start, end) = extent(&self.segments);
        (Pfn(start >> PAGE_SHIFT), Pfn(end.div_ceil(PAGE_SIZE)))
    }

    /// A segment's bytes.
    #[must_use]
    pub fn bytes(&self, segment: &Segment) -> &[u8] {
        // In bounds: checked when the segment was made.
        self.image.get(segment.file_offset..segment.file_offset + segment.file_bytes).unwrap_or(&[])
    }
}

/// First and end address.
fn extent(segments: &[Segment]) -> (u64, u64) {
    let start = segments.iter().map(|s| s.addr).min().unwrap_or(0);
    let end = segments.iter().map(|s| s.addr + s.mem_bytes).max().unwrap_or(0);
    (start, end)
}

fn segments(elf: &Elf<'_>, image: &[u8], paddr_offset: u64) -> Result<Vec<Segment>, BuildError> {
    let mut list = Vec::new();
    for phdr in elf.phdrs() {
        let phdr = phdr?;
        // Xen's rule for what is loaded: writable or executable.
        if phdr.p_type != elf::PT_LOAD || phdr.p_flags & elf::PF_X_OR_W == 0 || phdr.p_memsz == 0 {
            continue;
        }
        let content = elf.content(&phdr)?;
        if phdr.p_filesz > phdr.p_memsz {
            return Err(BuildError::BadElf("a segment is larger in the file than in memory"));
        }
        let addr = phdr
            .p_paddr
            .checked_sub(paddr_offset)
            .filter(|addr| addr.checked_add(phdr.p_memsz).is_some_and(|end| end <= MAX_ADDR))
            .ok_or(BuildError::BadElf("a segment's physical address is out of range"))?;
        let file_offset = usize::try_from(phdr.p_offset).map_err(|_| BuildError::Truncated)?;
        debug_assert!(file_offset + content.len() <= image.len());
        list.push(Segment {
            addr,
            file_offset,
            file_bytes: content.len(),
            mem_bytes: phdr.p_memsz,
        });
    }
    if list.is_empty() { Err(BuildError::BadElf("nothing to load")) } else { Ok(list) }
}
