//! Long NOPs with a number in them, which an emulator may notice (`tools/xtask/src/bench/count.c`):
//! what is between is counted.

use core::arch::asm;

/// Counting begins.
pub fn begin() {
    // SAFETY: `nopl 0x504e0001(%rax)` reads nothing.
    unsafe { asm!(".byte 0x0f, 0x1f, 0x80", ".long 0x504e0001", options(nomem, nostack)) };
}

/// Counting ends.
pub fn end() {
    // SAFETY: as above.
    unsafe { asm!(".byte 0x0f, 0x1f, 0x80", ".long 0x504e0002", options(nomem, nostack)) };
}
