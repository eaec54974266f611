//! Hypercalls with plausible arguments, each its own way to go wrong.

use tiny_guests::paging::PAGE;
use tiny_guests::trap;

use crate::calls::{Call, Generator};
use crate::memory::WINDOW_PAGES;

const DOMID_SELF: u64 = 0x7ff0;

fn domain(g: &mut Generator<'_>) -> u64 {
    if g.random.once_in(8) { g.memory.any_value(&mut g.random) } else { DOMID_SELF }
}

/// A count: mostly right, at times far too large.
fn count(g: &mut Generator<'_>, right: u64) -> u64 {
    match g.random.below(16) {
        0 => 0,
        1 if right != 0 => g.random.below(right),
        _ => right,
    }
}

/// Page-table entries: those of the window, and others that must be refused or
/// do no harm (frames of the arena, slots of the hypervisor's hole, M2P).
pub fn mmu_update(g: &mut Generator<'_>) -> Call {
    let entries = 1 + g.random.below(6);
    let mut words = [0; 12];
    for pair in words.chunks_mut(2).take(entries as usize) {
        let kind = g.random.pick(&[0, 0, 0, 2, 2, 1, 3]);
        let target = match g.random.below(8) {
            0..=3 => g.memory.window_entry(&mut g.random),
            4 => g.random.pick(&g.memory.arena_mfns) * PAGE + g.random.below(512) * 8,
            _ => g.memory.any_mfn(&mut g.random).wrapping_mul(PAGE) + g.random.below(PAGE / 8) * 8,
        };
        let value = if kind == 1 {
            g.memory.any_value(&mut g.random)
        } else {
            g.memory.any_entry(&mut g.random, true)
        };
        if let [pointer, slot] = pair {
            *pointer = target | kind;
            *slot = value;
        }
    }
    let list = list(g, words.get(..entries as usize * 2).unwrap_or_default());
    let done = if g.random.once_in(2) { 0 } else { g.structure() };
    (1, [list, count(g, entries), done, domain(g), 0, 0])
}

/// A list in scratch memory, at times a pointer to nowhere instead.
fn list(g: &mut Generator<'_>, words: &[u64]) -> u64 {
    let at = g.scratch(words);
    if g.random.once_in(12) { g.bad_pointer() } else { at }
}

/// All sub-commands; a new base pointer only where it must be refused.
pub fn mmuext_op(g: &mut Generator<'_>) -> Call {
    let entries = 1 + g.random.below(4);
    let mut words = [0; 12];
    for op in words.chunks_mut(3).take(entries as usize) {
        let command = g.random.below(24);
        let frame = match command {
            // NEW_BASEPTR, NEW_USER_BASEPTR
            5 | 15 => g.random.pick(&[1 << 40, u64::MAX >> 12, 0xfee00, u64::MAX]),
            // Clear, copy: write to the frame.
            16 | 17 => g.random.pick(&g.memory.arena_mfns),
            // Addresses: INVLPG, SET_LDT.
            7 | 9 | 13 => g.memory.any_pointer(&mut g.random),
            _ => g.memory.any_mfn(&mut g.random),
        };
        if let [first, second, third] = op {
            *first = command | g.random.pick(&[0, 0, 0, 1 << 32]);
            *second = frame;
            *third = match command {
                17 => g.random.pick(&g.memory.arena_mfns),
                // TLB flushes: a pointer to a mask of vCPUs.
                8 | 9 => g.argument(),
                _ => g.random.below(0x2_0000),
            };
        }
    }
    let list = list(g, words.get(..entries as usize * 3).unwrap_or_default());
    let done = if g.random.once_in(2) { 0 } else { g.structure() };
    (26, [list, count(g, entries), done, domain(g), 0, 0])
}

/// Mappings of the window, and of addresses without page tables.
pub fn update_va_mapping(g: &mut Generator<'_>) -> Call {
    let address = match g.random.below(6) {
        0 => g.random.pick(&[0, 0x1000, 0x7fff_ffff_f000, 0x8000_0000_0000, 0xffff_8000_0000_0000]),
        1 => 0xffff_8000_0000_0000 + (g.random.word() >> 17),
        _ => g.memory.window + g.random.below(WINDOW_PAGES * PAGE),
    };
    let flush = match g.random.below(4) {
        0 => g.random.below(8),
        1 => g.argument() & !3 | g.random.below(4),
        2 => 2,
        _ => 0,
    };
    // No read-only aliases: ring 0 may leave them writable here.
    let entry = g.memory.any_entry(&mut g.random, false);
    if g.random.once_in(8) {
        return (22, [address, entry, flush, domain(g), 0, 0]);
    }
    (14, [address, entry, flush, 0, 0, 0])
}

/// Reservations of pages nobody uses, and everything else with random
/// structures.
pub fn memory_op(g: &mut Generator<'_>) -> Call {
    let command = match g.random.below(4) {
        0 => g.random.below(4) * 2,
        1 => 1,
        _ => g.random.below(32),
    };
    let (mut frames, extents) = ([0; 8], 1 + g.random.below(8));
    for frame in frames.iter_mut().take(extents as usize) {
        *frame = if g.random.once_in(4) {
            g.memory.any_mfn(&mut g.random)
        } else {
            g.memory.spare_pfn(&mut g.random)
        };
    }
    // Output goes where input came from: let that be scratch memory.
    let list = list(g, &frames);
    let order = if g.random.once_in(8) { g.random.word() & 0xffff_ffff } else { 0 };
    let structure = match command {
        // increase, decrease, populate: {list, number, order + flags, domain}.
        0 | 1 | 6 => [list, count(g, extents), order, domain(g), 0, 0],
        // Current, maximum reservation: a domain id. Maps of the machine: a
        // count and a buffer.
        9 => [g.random.below(40), g.memory.any_pointer(&mut g.random), 0, 0, 0, 0],
        5 => [g.random.below(64), g.memory.any_pointer(&mut g.random), 0, 0, 0, 0],
        2..=4 => [domain(g), 0, 0, 0, 0, 0],
        _ => core::array::from_fn(|_| g.memory.any_value(&mut g.random)),
    };
    let pointer = if g.random.once_in(8) { g.bad_pointer() } else { g.scratch(&structure) };
    let progress = if g.random.once_in(16) { g.random.below(1 << 20) << 6 } else { 0 };
    (12, [command | progress, pointer, 0, 0, 0, 0])
}

/// Tables with good and impossible handlers; the fuzzer installs its own again.
pub fn set_trap_table(g: &mut Generator<'_>) -> Call {
    if g.random.once_in(3) {
        return (0, [g.argument(), 0, 0, 0, 0, 0]);
    }
    let mut words = [0; 16];
    let entries = g.random.below(8);
    for entry in words.chunks_mut(2).take(entries as usize) {
        if let [head, handler] = entry {
            *head = g.random.word() & 0xffff_ffff;
            *handler = g.random.pick(&[trap::stub(3), trap::stub(13), 0x1000, 1 << 63]);
        }
    }
    (0, [list(g, &words), 0, 0, 0, 0, 0])
}

/// Descriptor tables out of the arena's pages.
pub fn set_gdt(g: &mut Generator<'_>) -> Call {
    let mut frames = [0; 16];
    for frame in &mut frames {
        *frame = g.memory.any_mfn(&mut g.random);
    }
    let entries = match g.random.below(4) {
        0 => g.random.word(),
        1 => g.random.below(16) * 512,
        _ => g.random.below(7168 + 600),
    };
    (2, [list(g, &frames), entries, 0, 0, 0, 0])
}

/// Descriptors in the arena and in frames that may not be written.
pub fn update_descriptor(g: &mut Generator<'_>) -> Call {
    let frame = if g.random.once_in(3) {
        g.memory.any_mfn(&mut g.random)
    } else {
        g.random.pick(&g.memory.arena_mfns)
    };
    let at = frame.wrapping_mul(PAGE).wrapping_add(g.random.below(PAGE));
    (10, [at, g.random.word(), 0, 0, 0, 0])
}

/// A list of other calls.
pub fn multicall(g: &mut Generator<'_>) -> Call {
    const WORDS: usize = 8;
    let calls = 1 + g.random.below(6);
    let mut words = [0; 6 * WORDS];
    for entry in words.chunks_mut(WORDS).take(calls as usize) {
        let (number, args) = g.call(true);
        // {op, result, args[6]}; a nested multicall is refused.
        for (slot, value) in entry.iter_mut().zip([number, g.random.word()].into_iter().chain(args))
        {
            *slot = value;
        }
        if g.random.once_in(20)
            && let Some(number) = entry.first_mut()
        {
            *number = 13;
            if let Some(list) = entry.get_mut(2) {
                *list = g.bad_pointer();
            }
        }
    }
    let list = list(g, words.get(..calls as usize * WORDS).unwrap_or_default());
    (13, [list, count(g, calls), 0, 0, 0, 0])
}

/// SCHEDOP_poll with a time that has passed.
pub fn poll(g: &mut Generator<'_>) -> Call {
    let ports = g.argument();
    let number = g.random.pick(&[0, 1, 2, 8, 128, 129, 0xffff_ffff]);
    let timeout = 1 + g.random.below(1000);
    let structure = g.scratch(&[ports, number, timeout]);
    (29, [3, structure, 0, 0, 0, 0])
}

/// yield, and what a guest must not ask.
pub fn sched_op(g: &mut Generator<'_>) -> [u64; 6] {
    let command = g.random.pick(&[0, 0, 5, 7, 8, 9, 77, 0x1_0000_0000]);
    [command, g.argument(), 0, 0, 0, 0]
}

/// Registrations, by all three hypercalls.
pub fn callbacks(g: &mut Generator<'_>) -> Call {
    let handler =
        g.random.pick(&[trap::stub(trap::EVENT), 0x1000, 1 << 63, 0x8000_0000_0000, u64::MAX]);
    match g.random.below(4) {
        0 => (4, [handler, handler, handler, 0, 0, 0]),
        1 => (28, [g.random.below(4), g.argument(), 0, 0, 0, 0]),
        _ => {
            let kind = g.random.below(10) | g.random.below(4) << 16;
            let structure = g.scratch(&[kind, handler]);
            let command = g.random.below(3);
            (30, [command, structure, 0, 0, 0, 0])
        }
    }
}

/// The console: seldom a word, often a pointer to nothing.
pub fn console_io(g: &mut Generator<'_>) -> Call {
    if g.random.once_in(0x4000) {
        let text = g.scratch(&[u64::from_le_bytes(*b"hcfuzz!\n")]);
        return (18, [0, 8, text, 0, 0, 0]);
    }
    match g.random.below(4) {
        0 => (18, [0, g.random.word() >> 40, g.bad_pointer(), 0, 0, 0]),
        1 => (18, [0, 0, g.argument(), 0, 0, 0]),
        2 => (18, [1, g.random.below(64), g.argument(), 0, 0, 0]),
        _ => (18, [2 + g.random.below(8), g.random.below(64), g.argument(), 0, 0, 0]),
    }
}

/// All but taking the only vCPU down.
pub fn vcpu_op(g: &mut Generator<'_>) -> Call {
    let command = g.random.pick(&[0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 99]);
    let vcpu = if g.random.once_in(3) { g.memory.any_value(&mut g.random) } else { 0 };
    (24, [command, vcpu, g.argument(), 0, 0, 0])
}

/// Bases and selectors.
pub fn set_segment_base(g: &mut Generator<'_>) -> Call {
    let value = match g.random.below(3) {
        0 => g.random.below(0x1_0000),
        1 => g.memory.any_pointer(&mut g.random),
        _ => g.random.word(),
    };
    (25, [g.random.below(6), value, 0, 0, 0, 0])
}

/// Watchpoints in the arena, in the hypervisor, anywhere.
pub fn debugreg(g: &mut Generator<'_>) -> Call {
    let register = g.random.below(10);
    if g.random.once_in(3) {
        return (9, [register, 0, 0, 0, 0, 0]);
    }
    let value = match register {
        0..=3 => g.memory.any_pointer(&mut g.random),
        _ => g.random.word() >> g.random.below(64),
    };
    (8, [register, value, 0, 0, 0, 0])
}

/// Tables, versions, copies between pages of the arena.
pub fn grant_table(g: &mut Generator<'_>) -> Call {
    let arena = |g: &mut Generator<'_>| g.random.pick(&g.memory.arena_mfns);
    let command = g.random.below(14);
    let words: [u64; 6] = match command {
        // setup_table: {domain, frames}, status, list.
        2 => [DOMID_SELF | g.random.below(80) << 32, 0, g.argument(), 0, 0, 0],
        // copy: {frame, domain + offset} twice, length + flags.
        5 => {
            let (source, dest) = (arena(g), arena(g));
            let offset = |g: &mut Generator<'_>| DOMID_SELF | g.random.below(0x1100) << 16;
            [source, offset(g), dest, offset(g), g.random.below(0x1_4000), 0]
        }
        8 => [g.random.below(4), 0, 0, 0, 0, 0],
        6 => [DOMID_SELF, 0, 0, 0, 0, 0],
        _ => core::array::from_fn(|_| g.memory.any_value(&mut g.random)),
    };
    let structure = g.scratch(&words);
    (20, [command, structure, g.random.below(3), 0, 0, 0])
}
