//! Every software interrupt: three gates are open to programs, no other.

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
        let wanted = if vector == 3 { libc::SIGTRAP } else { libc::SIGSEGV };
        if signal != Some(wanted) {
            wrong.push(format!("int {vector:#x}: {found:x?}"));
            continue;
        }
        // The frame's error code names the gate: vector * 8 + 2.
        let gate = u64::from(vector) * 8 + 2;
        let frame = found.map(|f| (f.trap, f.error));
        if !matches!(vector, 3 | 4) && frame != Some((13, gate)) {
            wrong.push(format!("int {vector:#x}: frame {frame:x?}"));
        }
    }
    ensure!(wrong.is_empty(), "{} wrong: {}", wrong.len(), wrong.join("; "));
    Ok(())
}
