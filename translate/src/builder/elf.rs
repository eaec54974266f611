//! ELF64: program headers, sections, notes. Only what a PV kernel's loader needs.

use super::BuildError;

const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const ELFCLASS32: u8 = 1;
const ELFCLASS64: u8 = 2;
const PHDR_BYTES: usize = 56;
const SHDR_BYTES: usize = 64;
/// Notes looked at in all (`ELF_MAX_TOTAL_NOTE_COUNT` of Xen's libelf).
const MAX_NOTES: usize = 4096;

/// `PT_LOAD`.
pub const PT_LOAD: u32 = 1;
/// `PT_NOTE`.
pub const PT_NOTE: u32 = 4;
/// `PF_X | PF_W`.
pub const PF_X_OR_W: u32 = 3;
/// `SHT_NOTE`.
pub const SHT_NOTE: u32 = 7;

/// A parsed ELF header over its file.
#[derive(Clone, Copy, Debug)]
pub struct Elf<'a> {
    image: &'a [u8],
    /// `e_entry`.
    pub entry: u64,
    phdrs: (usize, usize, usize),
    shdrs: (usize, usize, usize),
    shstrndx: usize,
}

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "field names are the format's")]
pub struct Phdr {
    pub p_type: u32,
    pub p_flags: u32,
    pub p_offset: u64,
    pub p_vaddr: u64,
    pub p_paddr: u64,
    pub p_filesz: u64,
    pub p_memsz: u64,
}

/// A note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<'a> {
    /// Owner, without its NUL.
    pub owner: &'a [u8],
    /// `n_type`.
    pub kind: u32,
    /// The descriptor.
    pub desc: &'a [u8],
}

fn get<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk().copied()
}
fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    get(data, at).map(u16::from_le_bytes)
}
fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    get(data, at).map(u32::from_le_bytes)
}
fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    get(data, at).map(u64::from_le_bytes)
}

/// Whether the file claims to be ELF.
#[must_use]
pub fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF")
}

impl<'a> Elf<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`BuildError::Elf32`], [`BuildError::WrongMachine`], [`BuildError::BadElf`].
    pub fn parse(image: &'a [u8]) -> Result<Self, BuildError> {
        let bad = BuildError::BadElf("the header is truncated");
        let class = *image.get(4).ok_or(bad)?;
        if !is_elf(image) || image.get(5) != Some(&1) {
            return Err(BuildError::BadElf("not little-endian ELF"));
        }
        let machine = u16_at(image, 18).ok_or(bad)?;
        match (class, machine) {
            (ELFCLASS64, EM_X86_64) => {}
            (ELFCLASS32, EM_386) => return Err(BuildError::Elf32),
            (ELFCLASS32 | ELFCLASS64, _) => return Err(BuildError::WrongMachine),
            _ => return Err(BuildError::BadElf("unknown class")),
        }
        let word = |at| u16_at(image, at).map(usize::from).ok_or(bad);
        let offset = |at| usize::try_from(u64_at(image, at).ok_or(bad)?).map_err(|_| bad);
        let elf = Self {
            image,
            entry: u64_at(image, 24).ok_or(bad)?,
            phdrs: (offset(32)?, word(54)?, word(56)?),
            shdrs: (offset(40)?, word(58)?, word(60)?),
            shstrndx: word(62)?,
        };
        if elf.phdrs.2 == 0 || elf.phdrs.1 < PHDR_BYTES {
            return Err(BuildError::BadElf("no program headers"));
        }
        // Sections are optional; ones that cannot be read count as absent.
        Ok(elf)
    }

    /// The program headers.
    ///
    /// # Errors
    /// [`BuildError::BadElf`] where they leave the file.
    pub fn phdrs(&self) -> impl Iterator<Item = Result<Phdr, BuildError>> + use<'a> {
        let (at, step, count) = self.phdrs;
        let image = self.image;
        (0..count).map(move |n| {
            let read = || {
                let h = image.get(at.checked_add(n * step)?..)?;
                Some(Phdr {
                    p_type: u32_at(h, 0)?,
                    p_flags: u32_at(h, 4)?,
                    p_offset: u64_at(h, 8)?,
                    p_vaddr: u64_at(h, 16)?,
                    p_paddr: u64_at(h, 24)?,
                    p_filesz: u64_at(h, 32)?,
                    p_memsz: u64_at(h, 40)?,
                })
            };
            read().ok_or(BuildError::BadElf("program headers leave the file"))
        })
    }

    /// Sections as (type, name offset, content); unreadable ones are left out.
    fn sections(&self) -> impl Iterator<Item = (usize, u32, usize, &'a [u8])> + use<'a> {
        let (at, step, count) = self.shdrs;
        let count = if step >= SHDR_BYTES && at != 0 { count } else { 0 };
        let image = self.image;
        (0..count).filter_map(move |n| {
            let h = image.get(at.checked_add(n * step)?..)?;
            let name = usize::try_from(u32_at(h, 0)?).ok()?;
            let kind = u32_at(h, 4)?;
            let content = Self::bytes(image, u64_at(h, 24)?, u64_at(h, 32)?)?;
            Some((n, kind, name, content))
        })
    }

    fn bytes(image: &'a [u8], offset: u64, length: u64) -> Option<&'a [u8]> {
        let from = usize::try_from(offset).ok()?;
        let length = usize::try_from(length).ok()?;
        image.get(from..from.checked_add(length)?)
    }

    /// The file's bytes of a segment.
    ///
    /// # Errors
    /// [`BuildError::BadElf`] where it leaves the file.
    pub fn content(&self, phdr: &Phdr) -> Result<&'a [u8], BuildError> {
        Self::bytes(self.image, phdr.p_offset, phdr.p_filesz)
            .ok_or(BuildError::BadElf("a segment leaves the file"))
    }

    /// Contents of the note sections.
    pub fn note_sections(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.sections().filter(|s| s.1 == SHT_NOTE).map(|s| s.3)
    }

    /// The content of a section by name.
    #[must_use]
    pub fn section(&self, name: &[u8]) -> Option<&'a [u8]> {
        let names = self.sections().find(|s| s.0 == self.shstrndx)?.3;
        self.sections()
            .find(|s| {
                let rest = names.get(s.2..).unwrap_or(&[]);
                rest.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0))
            })
            .map(|s| s.3)
    }
}

/// Notes of a note segment or section; ends at the first one that does not fit.
pub fn notes(content: &[u8]) -> impl Iterator<Item = Note<'_>> {
    let mut at = 0usize;
    core::iter::from_fn(move || {
        let namesz = usize::try_from(u32_at(content, at)?).ok()?;
        let descsz = usize::try_from(u32_at(content, at + 4)?).ok()?;
        let kind = u32_at(content, at + 8)?;
        let name_at = at + 12;
        let desc_at = name_at.checked_add(namesz.checked_next_multiple_of(4)?)?;
        let next = desc_at.checked_add(descsz.checked_next_multiple_of(4)?)?;
        let name = content.get(name_at..name_at + namesz)?;
        let desc = content.get(desc_at..desc_at.checked_add(descsz)?)?;
        at = next;
        Some(Note { owner: name.strip_suffix(b"\0").unwrap_or(name), kind, desc })
    })
    .take(MAX_NOTES)
}
