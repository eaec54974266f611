//! The reserved GDT page and the vCPU's GDT window.
//!
//! A vCPU's GDT is a window of 16 pages. Pages 0-13 are the guest's own frames (or a page of
//! zeroes), page 14 holds the descriptors below at the selectors of
//! [`translate::regs::selector`]; SYSCALL wants SS right behind CS.

use translate::regs::selector as sel;

use crate::cpu::tss;
use crate::mm::layout::{GDT_BASE, GDT_STRIDE};

/// The page the shim's own descriptors are in.
pub const RESERVED_PAGE: u64 = 14;
/// GDT limit: up to and with the reserved page.
pub const LIMIT: u16 = ((RESERVED_PAGE + 1) * 4096 - 1) as u16;

const CODE64_DPL0: u64 = 0x00af_9b00_0000_ffff;
const DATA_DPL0: u64 = 0x00cf_9300_0000_ffff;
const CODE32_DPL3: u64 = 0x00cf_fb00_0000_ffff;
const DATA_DPL3: u64 = 0x00cf_f300_0000_ffff;
const DATA_DPL1: u64 = 0x00cf_b300_0000_ffff;
const CODE64_DPL1: u64 = 0x00af_bb00_0000_ffff;

const fn slot(selector: u16) -> usize {
    ((selector - sel::FIRST_RESERVED) >> 3) as usize
}
const _: () = assert!(sel::SHIM_SS == sel::SHIM_CS + 8, "SYSCALL loads SS from CS + 8");

/// Address of a vCPU's GDT.
pub const fn window(cpu: u32) -> u64 {
    GDT_BASE + cpu as u64 * GDT_STRIDE
}

/// A 16-byte system descriptor: available TSS (9) or LDT (2).
pub const fn system_descriptor(kind: u8, base: u64, limit: u32) -> [u64; 2] {
    let low = (limit as u64 & 0xffff)
        | (base & 0xff_ffff) << 16
        | (0x80 | kind as u64) << 40
        | (limit as u64 >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Fills the reserved page of a vCPU.
pub fn fill_reserved(page: &mut [u64; 512], tss_base: u64) {
    *page = [0; 512];
    page[slot(sel::SHIM_CS)] = CODE64_DPL0;
    page[slot(sel::SHIM_SS)] = DATA_DPL0;
    page[slot(sel::USER_CS32)] = CODE32_DPL3;
    page[slot(sel::KERNEL_SS)] = DATA_DPL1;
    page[slot(sel::KERNEL_CS)] = CODE64_DPL1;
    page[slot(sel::USER_SS_FLAT)] = DATA_DPL3;
    page[slot(sel::USER_CS64_FLAT)] = CODE64_DPL3;
    let tss = system_descriptor(9, tss_base, tss::LIMIT);
    page[slot(sel::TSS)] = tss[0];
    page[slot(sel::TSS) + 1] = tss[1];
}
const CODE64_DPL3: u64 = 0x00af_fb00_0000_ffff;

/// Writes the LDT descriptor in a reserved page; 0 entries makes it not present.
pub fn set_ldt(page: &mut [u64; 512], base: u64, entries: u32) {
    let descriptor = match entries {
        0 => [0, 0],
        n => system_descriptor(2, base, n * 8 - 1),
    };
    page[slot(sel::LDT)] = descriptor[0];
    page[slot(sel::LDT) + 1] = descriptor[1];
}
