//! Device registers the shim uses, each in its own page.

use super::layout::FIXMAP_BASE;

/// Local APIC registers (xAPIC mode only).
pub const LAPIC: u64 = FIXMAP_BASE;
/// First IOAPIC page; one per IOAPIC.
pub const IOAPIC: u64 = FIXMAP_BASE + 0x1000;
/// IOAPICs there is room for.
pub const MAX_IOAPICS: u64 = 8;
/// The page other processors start in.
pub const TRAMPOLINE: u64 = FIXMAP_BASE + 0xf000;
/// The Hyper-V hypercall page.
pub const HYPERCALL_PAGE: u64 = FIXMAP_BASE + 0x1_0000;
/// The screen's pixels.
pub const SCREEN: u64 = FIXMAP_BASE + 0x100_0000;
/// Bytes of a screen there is room for.
pub const SCREEN_BYTES: u64 = 0x800_0000;
