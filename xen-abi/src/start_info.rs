//! `struct start_info`, the page a PV guest finds in rsi (`xen/include/public/xen.h`).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `magic` of a 64-bit guest, followed by NULs.
pub const MAGIC_X86_64: &[u8] = b"xen-3.0-x86_64";
/// Bytes of `cmd_line`, the closing NUL included (`MAX_GUEST_CMDLINE`).
pub const MAX_GUEST_CMDLINE: usize = 1024;

/// `SIF_PRIVILEGED`: the domain may issue privileged calls.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// `SIF_INITDOMAIN`: the initial control domain.
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// `SIF_MULTIBOOT_MOD`: `mod_start` is a multiboot module list.
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
/// `SIF_MOD_START_PFN`: `mod_start` is a page frame number.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
/// `SIF_VIRT_P2M_4TOOLS`: the toolstack understands a virtually mapped p2m.
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;

/// `start_info_t` of a 64-bit domU. All addresses are virtual unless they say otherwise.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StartInfo {
    /// [`MAGIC_X86_64`], NUL-padded.
    pub magic: [u8; 32],
    /// Pages the domain has.
    pub nr_pages: u64,
    /// Machine address of `shared_info`.
    pub shared_info: u64,
    /// `SIF_*`.
    pub flags: u32,
    /// Padding.
    pub pad0: u32,
    /// Machine frame of the xenstore ring.
    pub store_mfn: u64,
    /// Event channel of xenstore.
    pub store_evtchn: u32,
    /// Padding.
    pub pad1: u32,
    /// `console.domU.mfn`: machine frame of the console ring.
    pub console_mfn: u64,
    /// `console.domU.evtchn`.
    pub console_evtchn: u32,
    /// Padding.
    pub pad2: u32,
    /// The initial L4.
    pub pt_base: u64,
    /// Pages of initial page tables from `pt_base` on.
    pub nr_pt_frames: u64,
    /// The p2m.
    pub mfn_list: u64,
    /// The initrd: address, or page frame number with [`SIF_MOD_START_PFN`].
    pub mod_start: u64,
    /// Bytes of initrd.
    pub mod_len: u64,
    /// Command line, NUL-terminated.
    pub cmd_line: [u8; MAX_GUEST_CMDLINE],
    /// First page frame of the p2m, where it is not in the initial mapping.
    pub first_p2m_pfn: u64,
    /// Pages of such a p2m with the tables that map it.
    pub nr_p2m_frames: u64,
}
const_assert_eq!(size_of::<StartInfo>(), 1168);
const_assert_eq!(offset_of!(StartInfo, store_mfn), 56);
const_assert_eq!(offset_of!(StartInfo, console_mfn), 72);
const_assert_eq!(offset_of!(StartInfo, pt_base), 88);
const_assert_eq!(offset_of!(StartInfo, cmd_line), 128);
const_assert_eq!(offset_of!(StartInfo, first_p2m_pfn), 1152);
