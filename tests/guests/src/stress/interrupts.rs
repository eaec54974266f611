//! Every software interrupt: three gates are open to programs, no other.
//!
//! QEMU's TCG counts gates of 16 bytes in the error code of a refused `int`. A
//! PV hypervisor finds the vector there: under TCG it takes `int 2` for `int 4`
//! and `int 0x40` for `int 0x80`, which is QEMU's fault and accepted here.

use crate::ensure;
use crate::fault::{self, catch};
use crate::harness::{Check, Outcome};

pub const CHECKS: &[Check] = &[("int_n", int_n)];

fn int_n() -> Outcome {
    catch()?;
    let mut wrong = Vec::new();
    for vector in 0..=255u8 {
        if vector == 0x80 {
            continue;
        }
        // int vector; ret
        let page = fault::code(&[0xcd, vector, 0xc3])?;
        let found = unsafe { fault::call(page) };
        unsafe { libc::munmap(page.cast(), 4096) };
        let signal = found.map(|f| f.signal);
        let mistaken = matches!(vector.wrapping_mul(2), 4 | 0x80);
        if mistaken && signal.is_none_or(|s| s == libc::SIGSEGV) {
            continue;
        }
        let wanted = if vector == 3 { libc::SIGTRAP } else { libc::SIGSEGV };
        if signal != Some(wanted) {
            wrong.push(format!("int {vector:#x}: {found:x?}"));
            continue;
        }
        // The frame's error code names the gate: vector * 8 + 2. QEMU's TCG
        // counts in gates of 16 bytes.
        let gates = [u64::from(vector) * 8 + 2, u64::from(vector) * 16 + 2];
        let right = found.is_some_and(|f| f.trap == 13 && gates.contains(&f.error));
        if !matches!(vector, 3 | 4) && !right {
            wrong.push(format!("int {vector:#x}: {found:x?}"));
        }
    }
    let first = wrong.first().map_or("", String::as_str);
    ensure!(wrong.is_empty(), "{} wrong, the first: {first}", wrong.len());
    Ok(())
}
