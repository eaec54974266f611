//! The address map: the one place it is written down (the linker script repeats `SHIM_BASE`,
//! checked at boot).
//!
//! ```text
//! 0xffff800000000000  M2P, read-only for the guest                    L4 slot 256
//! 0xffff808000000000  direct map of all RAM, NX                       L4 slot 257
//!        ...          (up to 510 GiB)
//! 0xffff80ff80000000  the shim's image (2 MiB)                        last 2 GiB of slot 257
//! 0xffff80ff90000000  per-vCPU areas, 64 KiB each
//! 0xffff80ffa0000000  per-vCPU GDT windows, 64 KiB each
//! 0xffff80ffb0000000  fixed mappings of device registers
//! ```
//! The two slots go into every L4 the guest loads.

/// First address of the hole the ABI reserves for the hypervisor (`xen-x86_64.h`).
pub const HOLE_START: u64 = 0xffff_8000_0000_0000;
/// One past its last address.
pub const HOLE_END: u64 = 0xffff_8800_0000_0000;

/// machine_to_phys_mapping.
pub const M2P_BASE: u64 = HOLE_START;
/// L4 slot of the M2P.
pub const M2P_L4_SLOT: usize = 256;
/// L4 slot of everything else.
pub const SHIM_L4_SLOT: usize = 257;

/// All RAM at `DIRECT_MAP_BASE + physical address`.
pub const DIRECT_MAP_BASE: u64 = 0xffff_8080_0000_0000;
/// RAM the direct map has room for.
pub const DIRECT_MAP_SIZE: u64 = 510 << 30;

/// Where the image is linked.
pub const SHIM_BASE: u64 = 0xffff_80ff_8000_0000;
/// Physical address the image is linked for; the 64-bit doors take it wherever it was loaded.
pub const LOAD_PADDR: u64 = 0x20_0000;
/// Bytes set aside for the image.
pub const SHIM_SIZE: u64 = 0x20_0000;

/// Per-vCPU areas.
pub const PERCPU_BASE: u64 = 0xffff_80ff_9000_0000;
/// Bytes of address space per vCPU area; aligned to it, so that masking any address in it finds
/// its start.
pub const PERCPU_STRIDE: u64 = 0x1_0000;

/// Per-vCPU GDT windows.
pub const GDT_BASE: u64 = 0xffff_80ff_a000_0000;
/// Bytes of address space per GDT window (the architectural maximum of a GDT).
pub const GDT_STRIDE: u64 = 0x1_0000;

/// Fixed mappings: see [`crate::mm::fixmap`].
pub const FIXMAP_BASE: u64 = 0xffff_80ff_b000_0000;

/// vCPUs the map has room for.
pub const MAX_VCPUS: usize = 64;
