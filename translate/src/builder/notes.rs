//! What a kernel says of itself: Xen ELF notes, or the legacy `__xen_guest` section.
//!
//! The rules and their order are Xen's (libelf's dominfo): note segments first, note sections if
//! those held none, `__xen_guest` if there were no notes at all.

use xen_abi::elfnote::{FEATURE_NAMES, NoteType, OWNER};
use xen_abi::features::xenfeat;

use super::BuildError;
use super::elf::{self, Elf, Note};

/// Everything of interest in the notes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes<'a> {
    /// `ENTRY`, or `VIRT_ENTRY`.
    pub entry: Option<u64>,
    /// `VIRT_BASE`.
    pub virt_base: Option<u64>,
    /// `PADDR_OFFSET`; the legacy section's default is the virtual base, see [`Self::legacy`].
    pub paddr_offset: Option<u64>,
    /// `HYPERCALL_PAGE`, as a virtual address.
    pub hypercall_page: Option<u64>,
    /// `INIT_P2M`.
    pub init_p2m: Option<u64>,
    /// `HV_START_LOW`.
    pub hv_start_low: Option<u64>,
    /// `PHYS32_ENTRY`: it can start as PVH.
    pub phys32_entry: Option<u64>,
    /// `MOD_START_PFN`.
    pub mod_start_pfn: bool,
    /// `SUSPEND_CANCEL`.
    pub suspend_cancel: bool,
    /// `BSD_SYMTAB`.
    pub bsd_symtab: bool,
    /// `LOADER`.
    pub loader: &'a [u8],
    /// `GUEST_OS`.
    pub guest_os: &'a [u8],
    /// `GUEST_VERSION`.
    pub guest_version: &'a [u8],
    /// `XEN_VERSION`.
    pub xen_version: &'a [u8],
    /// `PAE_MODE`.
    pub pae: &'a [u8],
    /// Features it can use (bits of XENFEAT submap 0).
    pub supported: u32,
    /// Features it cannot do without.
    pub required: u32,
    /// It required a feature by a name nobody knows.
    pub unknown_required: bool,
    /// From `__xen_guest`.
    pub legacy: bool,
}

fn number(desc: &[u8]) -> Option<u64> {
    // As wide as the descriptor, and 0 for a width nobody writes (libelf's elf_note_numeric).
    match desc.len() {
        1 | 2 | 4 | 8 => {
            let mut bytes = [0; 8];
            bytes.get_mut(..desc.len())?.copy_from_slice(desc);
            Some(u64::from_le_bytes(bytes))
        }
        _ => Some(0),
    }
}

fn string(desc: &[u8]) -> &[u8] {
    desc.split(|&c| c == 0).next().unwrap_or(desc)
}

impl<'a> Notes<'a> {
    /// Finds and reads them.
    ///
    /// # Errors
    /// [`BuildError::NotXenPv`], [`BuildError::BadNotes`], [`BuildError::BadElf`].
    pub fn find(elf: &Elf<'a>) -> Result<Self, BuildError> {
        let mut found = Self::default();
        let mut count = 0;
        for phdr in elf.phdrs() {
            let phdr = phdr?;
            if phdr.p_type == elf::PT_NOTE {
                count += found.read(elf.content(&phdr)?);
            }
        }
        if count == 0 {
            count = elf.note_sections().map(|content| found.read(content)).sum();
        }
        if count == 0 {
            let section = elf.section(b"__xen_guest").ok_or(BuildError::NotXenPv)?;
            found.read_legacy(string(section));
        }
        found.check()?;
        Ok(found)
    }

    fn read(&mut self, content: &'a [u8]) -> usize {
        elf::notes(content).filter(|n| n.owner == OWNER).map(|n| self.note(&n)).count()
    }

    fn note(&mut self, note: &Note<'a>) {
        let (number, string) = (number(note.desc), string(note.desc));
        match NoteType(note.kind) {
            NoteType::ENTRY => self.entry = number,
            NoteType::HYPERCALL_PAGE => self.hypercall_page = number,
            NoteType::VIRT_BASE => self.virt_base = number,
            NoteType::PADDR_OFFSET => self.paddr_offset = number,
            NoteType::XEN_VERSION => self.xen_version = string,
            NoteType::GUEST_OS => self.guest_os = string,
            NoteType::GUEST_VERSION => self.guest_version = string,
            NoteType::LOADER => self.loader = string,
            NoteType::PAE_MODE => self.pae = string,
            NoteType::FEATURES => self.features(string),
            NoteType::BSD_SYMTAB => self.bsd_symtab = string == b"yes",
            NoteType::HV_START_LOW => self.hv_start_low = number,
            NoteType::SUSPEND_CANCEL => self.suspend_cancel = number != Some(0),
            NoteType::INIT_P2M => self.init_p2m = number,
            NoteType::MOD_START_PFN => self.mod_start_pfn = number != Some(0),
            NoteType::SUPPORTED_FEATURES => {
                self.supported |= number.unwrap_or(0) as u32;
            }
            NoteType::PHYS32_ENTRY => self.phys32_entry = number,
            // L1_MFN_VALID and PHYS32_RELOC do not concern this loader; INFO is for people.
            _ => {}
        }
    }

    fn features(&mut self, names: &[u8]) {
        for name in names.split(|&c| c == b'|').filter(|name| !name.is_empty()) {
            let (required, name) = match name.strip_prefix(b"!") {
                Some(name) => (true, name),
                None => (false, name),
            };
            match FEATURE_NAMES.iter().find(|feature| feature.1 == name) {
                Some(&(bit, _)) => {
                    self.supported |= 1 << bit;
                    self.required |= u32::from(required) << bit;
                }
                None => self.unknown_required |= required,
            }
        }
    }

    fn read_legacy(&mut self, text: &'a [u8]) {
        self.legacy = true;
        for item in text.split(|&c| c == b',') {
            let mut parts = item.splitn(2, |&c| c == b'=');
            let name = parts.next().unwrap_or(&[]);
            let value = parts.next().unwrap_or(&[]);
            let number = legacy_number(value);
            match name {
                b"LOADER" => self.loader = value,
                b"GUEST_OS" => self.guest_os = value,
                b"GUEST_VER" => self.guest_version = value,
                b"XEN_VER" => self.xen_version = value,
                b"PAE" => self.pae = value,
                b"BSD_SYMTAB" => self.bsd_symtab = true,
                b"VIRT_BASE" => self.virt_base = number,
                b"VIRT_ENTRY" => self.entry = number,
                b"ELF_PADDR_OFFSET" => self.paddr_offset = number,
                // A page number counted from the virtual base.
                b"HYPERCALL_PAGE" => self.hypercall_page = number.map(|page| page << 12),
                b"FEATURES" => self.features(value),
                _ => {}
            }
        }
        if let (Some(page), Some(base)) = (&mut self.hypercall_page, self.virt_base) {
            *page = page.wrapping_add(base);
        }
    }

    fn check(&self) -> Result<(), BuildError> {
        if !self.loader.starts_with(b"generic") && !self.guest_os.starts_with(b"linux") {
            // What a kernel for PVH only looks like.
            return Err(match (self.phys32_entry, self.entry) {
                (Some(_), None) => BuildError::NotXenPv,
                _ => BuildError::BadNotes("LOADER is not \"generic\" and GUEST_OS not \"linux\""),
            });
        }
        if !self.xen_version.starts_with(b"xen-3.0") {
            return Err(BuildError::BadNotes("XEN_VERSION is not \"xen-3.0\""));
        }
        if self.paddr_offset.is_some() && self.virt_base.is_none() {
            return Err(BuildError::BadNotes("PADDR_OFFSET without VIRT_BASE"));
        }
        if self.unknown_required {
            return Err(BuildError::BadNotes("an unknown feature is required"));
        }
        // Nothing of these is on offer to a PV domU; the others a kernel may insist on are.
        const REFUSED: [u32; 4] = [
            xenfeat::AUTO_TRANSLATED_PHYSMAP,
            xenfeat::SUPERVISOR_MODE_KERNEL,
            xenfeat::HVM_CALLBACK_VECTOR,
            xenfeat::DOM0,
        ];
        match REFUSED.iter().find(|&&bit| self.required >> bit & 1 == 1) {
            Some(&bit) => Err(BuildError::MissingFeature(bit as u8)),
            None => Ok(()),
        }
    }
}

fn legacy_number(value: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(value).ok()?;
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    u64::from_str_radix(digits, radix).ok()
}
