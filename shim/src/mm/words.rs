//! A few words to or from the guest, without a loop: exception frames, iret contexts and requests
//! are copied on every trap and hypercall.

use core::arch::asm;

use xen_abi::GuestVa;

use super::guest::{copy_from, copy_to, outside_hole, repair_slots};

/// Copies a word for each offset; the access numbered 2 is the guest's and may fault.
macro_rules! copy {
    (from guest: $($offset:literal)*) => {
        copy!(@ $("2: mov rax, [{from} + " $offset "]\n" "3: mov [{to} + " $offset "], rax\n")*)
    };
    (to guest: $($offset:literal)*) => {
        copy!(@ $("3: mov rax, [{from} + " $offset "]\n" "2: mov [{to} + " $offset "], rax\n")*)
    };
    (@ $($load:literal $at:literal $end:literal $store:literal $to:literal $last:literal)*) => {
        concat!($(
            $load, $at, $end, $store, $to, $last,
            ".pushsection __ex_table, \"a\", @progbits\n.quad 2b, {fault}\n.popsection\n",
        )*)
    };
}

/// The sizes there are; others are copied in a loop.
macro_rules! sized {
    ($words:expr, $direction:ident, $to:expr, $from:expr, $otherwise:expr) => {
        match $words {
            1 => sized!(@ $direction, $to, $from, 0),
            2 => sized!(@ $direction, $to, $from, 0 8),
            3 => sized!(@ $direction, $to, $from, 0 8 16),
            7 => sized!(@ $direction, $to, $from, 0 8 16 24 32 40 48),
            8 => sized!(@ $direction, $to, $from, 0 8 16 24 32 40 48 56),
            9 => sized!(@ $direction, $to, $from, 0 8 16 24 32 40 48 56 64),
            _ => return $otherwise,
        }
    };
    (@ $direction:ident, $to:expr, $from:expr, $($offset:literal)*) => {
        // SAFETY: one of the two is a live array of this many words; the other lies in the guest,
        // clear of the hole, where a fault goes to the label by the exception table. Neither
        // register but RAX is changed.
        unsafe {
            asm!(
                copy!($direction guest: $($offset)*),
                to = in(reg) $to, from = in(reg) $from, out("rax") _,
                fault = label { return false },
                options(nostack, preserves_flags)
            )
        }
    };
}

/// Reads words from the guest's address space; `false` on a fault.
#[inline(always)]
pub fn read<const WORDS: usize>(to: &mut [u64; WORDS], from: GuestVa) -> bool {
    if !outside_hole(from, WORDS * 8) {
        return false;
    }
    sized!(WORDS, from, to.as_mut_ptr(), from.0, {
        copy_from(zerocopy::IntoBytes::as_mut_bytes(to), from)
    });
    true
}

/// Writes words to the guest's address space; `false` on a fault, with a part written.
#[inline(always)]
pub fn write<const WORDS: usize>(to: GuestVa, from: &[u64; WORDS]) -> bool {
    if !outside_hole(to, WORDS * 8) {
        return false;
    }
    sized!(WORDS, to, to.0, from.as_ptr(), copy_to(to, zerocopy::IntoBytes::as_bytes(from)));
    if WORDS == 1 {
        // A result, to where the guest said; frames go to the guest kernel's stack.
        repair_slots();
    }
    true
}
