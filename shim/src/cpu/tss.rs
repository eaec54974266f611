//! Task state segment (Intel SDM 3A 8.7). It has no I/O permission bitmap: the guest owns no port,
//! so every IN and OUT outside ring 0 traps and is answered by emulation.

use core::mem::size_of;

use static_assertions::const_assert_eq;

use crate::cpu::percpu::Area;

/// A 64-bit TSS.
#[repr(C, packed(4))]
pub struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
}
const_assert_eq!(size_of::<Tss>(), 104);

/// Segment limit.
pub const LIMIT: u32 = size_of::<Tss>() as u32 - 1;

impl Tss {
    /// The TSS of a vCPU's area.
    pub fn new(area: Area) -> Self {
        let mut ist = [0; 7];
        ist[..4].copy_from_slice(&area.ist_tops());
        Self {
            reserved0: 0,
            rsp: [area.stack_top(), 0, 0],
            reserved1: 0,
            ist,
            reserved2: 0,
            reserved3: 0,
            io_map_base: size_of::<Self>() as u16,
        }
    }
}
