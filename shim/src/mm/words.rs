//! A few words to or from the guest, in registers and without a loop: exception frames, iret
//! contexts and requests are copied on every trap and hypercall.

use core::arch::asm;

use static_assertions::const_assert;
use xen_abi::{GuestVa, PAGE_SIZE};
use zerocopy::IntoBytes;

use super::guest::{copy_from, copy_to, outside_hole, repair_slots};
use super::layout::{M2P_L4_SLOT, SHIM_L4_SLOT};

/// Loads a word for each name; a fault goes to `2:` by the exception table and is reported.
macro_rules! load {
    ($from:expr, $($word:ident $offset:literal)*) => {{
        let fault: u32;
        $(let $word: u64;)*
        // SAFETY: the words lie in the guest's address space, clear of the hole; where a load
        // faults, the exception table leads to the end with the report set.
        unsafe {
            asm!(
                $(concat!(
                    "3: mov {", stringify!($word), "}, [{from} + ", $offset, "]\n",
                    ".pushsection __ex_table, \"a\", @progbits\n.quad 3b, 2f\n.popsection",
                ),)*
                "4:",
                ".pushsection .text.fixup, \"ax\", @progbits",
                "2: mov {fault:e}, 1",
                "jmp 4b",
                ".popsection",
                from = in(reg) $from,
                fault = inout(reg) 0_u32 => fault,
                $($word = out(reg) $word,)*
                options(nostack, readonly, preserves_flags)
            );
        }
        if fault != 0 {
            return None;
        }
        [$($word),*]
    }};
}

/// Reads words from the guest's address space; `None` on a fault.
#[inline(always)]
pub fn read<const WORDS: usize>(from: GuestVa) -> Option<[u64; WORDS]> {
    if !outside_hole(from) {
        return None;
    }
    let mut words = [0; WORDS];
    match WORDS {
        1 => words.copy_from_slice(&load!(from.0, a 0)),
        2 => words.copy_from_slice(&load!(from.0, a 0 b 8)),
        3 => words.copy_from_slice(&load!(from.0, a 0 b 8 c 16)),
        6 => words.copy_from_slice(&load!(from.0, a 0 b 8 c 16 d 24 e 32 f 40)),
        8 => words.copy_from_slice(&load!(from.0, a 0 b 8 c 16 d 24 e 32 f 40 g 48 h 56)),
        9 => words.copy_from_slice(&load!(from.0, a 0 b 8 c 16 d 24 e 32 f 40 g 48 h 56 i 64)),
        _ if copy_from(words.as_mut_bytes(), from) => {}
        _ => return None,
    }
    Some(words)
}

/// Stores a word of `$words` for each name; a fault ends in `false`.
macro_rules! store {
    ($to:expr, $words:expr, $($word:ident $at:literal $offset:literal)*) => {
        // SAFETY: the words lie in the guest's address space, clear of the hole; a fault goes to
        // the label by the exception table.
        unsafe {
            asm!(
                $(concat!(
                    "3: mov [{to} + ", $offset, "], {", stringify!($word), "}\n",
                    ".pushsection __ex_table, \"a\", @progbits\n.quad 3b, {fault}\n.popsection",
                ),)*
                to = in(reg) $to,
                $($word = in(reg) $words[$at],)*
                fault = label { return false },
                options(nostack, preserves_flags)
            )
        }
    };
}

/// Writes words to the guest's address space; `false` on a fault, with a part written.
#[inline(always)]
pub fn write<const WORDS: usize>(to: GuestVa, from: &[u64; WORDS]) -> bool {
    if !outside_hole(to) {
        return false;
    }
    match WORDS {
        1 => store!(to.0, from, a 0 0),
        7 => store!(to.0, from, a 0 0 b 1 8 c 2 16 d 3 24 e 4 32 f 5 40 g 6 48),
        8 => store!(to.0, from, a 0 0 b 1 8 c 2 16 d 3 24 e 4 32 f 5 40 g 6 48 h 7 56),
        _ => return copy_to(to, from.as_bytes()),
    }
    // A result goes to where the guest said; frames go to the guest kernel's stack.
    if WORDS == 1 && may_hit_slots(to) {
        repair_slots();
    }
    true
}

/// Whether a word at this address would change the hypervisor's slots, were the page an L4.
#[inline(always)]
const fn may_hit_slots(at: GuestVa) -> bool {
    const FIRST: u64 = M2P_L4_SLOT as u64 * 8;
    const BYTES: u64 = (SHIM_L4_SLOT as u64 + 1) * 8 - FIRST;
    at.0.wrapping_sub(FIRST - 7) % PAGE_SIZE < BYTES + 7
}
const_assert!(SHIM_L4_SLOT == M2P_L4_SLOT + 1);
