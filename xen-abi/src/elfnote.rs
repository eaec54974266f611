//! The ELF notes a kernel describes itself with (`xen/include/public/elfnote.h`), and the
//! feature bits they name (`xen/include/public/features.h`).

use crate::features::xenfeat;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `name` of every Xen note, without its NUL.
pub const OWNER: &[u8] = b"Xen";

/// Header of an ELF note; name and descriptor follow, each padded to 4 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NoteHeader {
    /// Bytes of name, NUL included.
    pub namesz: u32,
    /// Bytes of descriptor.
    pub descsz: u32,
    /// `n_type`.
    pub kind: NoteType,
}
static_assertions::const_assert_eq!(size_of::<NoteHeader>(), 12);

/// `XEN_ELFNOTE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct NoteType(pub u32);

macro_rules! notes {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl NoteType {
            $(#[doc = $text] pub const $name: Self = Self($value);)*
        }
    };
}
notes! {
    INFO = 0, "Free text.";
    ENTRY = 1, "Virtual address of the first instruction.";
    HYPERCALL_PAGE = 2, "Virtual address of the hypercall page.";
    VIRT_BASE = 3, "Virtual address of pseudo-physical 0.";
    PADDR_OFFSET = 4, "What ELF p_paddr holds beyond the pseudo-physical address.";
    XEN_VERSION = 5, "Xen version it was built for: \"xen-3.0\".";
    GUEST_OS = 6, "Name of the operating system.";
    GUEST_VERSION = 7, "Its version.";
    LOADER = 8, "The loader it wants: \"generic\".";
    PAE_MODE = 9, "32-bit kernels: PAE.";
    FEATURES = 10, "Feature names, divided by '|', required ones after '!'.";
    BSD_SYMTAB = 11, "Wants its symbol table loaded behind it.";
    HV_START_LOW = 12, "Lowest address the hypervisor may use.";
    L1_MFN_VALID = 13, "Mask and value of a valid L1 entry.";
    SUSPEND_CANCEL = 14, "Understands a cancelled suspend.";
    INIT_P2M = 15, "Virtual address the initial p2m is to be mapped at.";
    MOD_START_PFN = 16, "The initrd need not be mapped.";
    SUPPORTED_FEATURES = 17, "Feature bits, submap 0.";
    PHYS32_ENTRY = 18, "32-bit physical entry point (PVH).";
    PHYS32_RELOC = 19, "How the PVH image may be moved.";
}

/// The features of submap 0 that notes can name: (`XENFEAT_*` bit number, name).
pub const FEATURE_NAMES: [(u32, &[u8]); 7] = [
    (xenfeat::WRITABLE_PAGE_TABLES, b"writable_page_tables"),
    (xenfeat::WRITABLE_DESCRIPTOR_TABLES, b"writable_descriptor_tables"),
    (xenfeat::AUTO_TRANSLATED_PHYSMAP, b"auto_translated_physmap"),
    (xenfeat::SUPERVISOR_MODE_KERNEL, b"supervisor_mode_kernel"),
    (xenfeat::PAE_PGDIR_ABOVE_4GB, b"pae_pgdir_above_4gb"),
    (xenfeat::HVM_CALLBACK_VECTOR, b"hvm_callback_vector"),
    (xenfeat::DOM0, b"dom0"),
];
