//! One random hypercall.

use tiny_guests::Random;
use tiny_guests::paging::PAGE;

use crate::memory::{ARENA_PAGES, Memory, SCRATCH_PAGES, write};
use crate::operations;

/// Number and arguments.
pub type Call = (u64, [u64; 6]);

/// Most grant operations of a call: they fit behind every pointer into the arena.
const GRANT_OPERATIONS: u32 = 3;
/// Words of an argument structure that are filled.
const FILLED_WORDS: u64 = 16;

/// Draws calls.
pub struct Generator<'a> {
    pub memory: &'a Memory,
    pub random: Random,
    /// Words of the scratch pages used by this call.
    pub scratch_used: u64,
}

impl Generator<'_> {
    /// A structure of plausible words somewhere in the arena.
    pub fn structure(&mut self) -> u64 {
        let words = ARENA_PAGES * PAGE / 8 - FILLED_WORDS;
        let at = self.memory.arena + self.random.below(words) * 8;
        for i in 0..FILLED_WORDS {
            let value = self.memory.any_value(&mut self.random);
            write(at + i * 8, value);
        }
        at
    }

    /// Mostly a structure, at times any pointer.
    pub fn argument(&mut self) -> u64 {
        if self.random.once_in(4) {
            self.memory.any_pointer(&mut self.random)
        } else {
            self.structure()
        }
    }

    /// A pointer that is not good for anything, or to what is there by chance
    /// when that does no harm.
    pub fn bad_pointer(&mut self) -> u64 {
        self.random.pick(&[
            0,
            0x1000,
            0x8000_0000_0000,
            0xffff_8000_0000_1000,
            u64::MAX - 15,
            1 << 63,
        ])
    }

    /// Words kept from all other calls' reach.
    pub fn scratch(&mut self, words: &[u64]) -> u64 {
        if self.scratch_used + words.len() as u64 > SCRATCH_PAGES * PAGE / 8 {
            self.scratch_used = 0;
        }
        let at = self.memory.scratch + self.scratch_used * 8;
        for (i, word) in (0..).zip(words) {
            write(at + i * 8, *word);
        }
        self.scratch_used += words.len() as u64;
        at
    }

    fn any_args(&mut self) -> [u64; 6] {
        core::array::from_fn(|_| self.memory.any_value(&mut self.random))
    }

    /// Any number with any arguments.
    fn blind(&mut self) -> Call {
        let number = match self.random.below(8) {
            0..=5 => self.random.below(64),
            6 => self.random.below(256),
            _ => self.random.word(),
        };
        (number, self.any_args())
    }

    /// An operation with a sub-command and a structure.
    fn sub_command(&mut self, number: u64, commands: u64) -> Call {
        let command = self.random.below(commands);
        let mut args = self.any_args();
        args[0] = if self.random.once_in(16) { self.random.word() } else { command };
        args[1] = self.argument();
        (number, args)
    }

    /// A call that may be issued.
    pub fn call(&mut self, nested: bool) -> Call {
        loop {
            let call = self.draw(nested);
            if !forbidden(&call) {
                return call;
            }
        }
    }

    fn draw(&mut self, nested: bool) -> Call {
        match self.random.below(30) {
            0..=2 => self.blind(),
            3 | 4 => operations::mmu_update(self),
            5 | 6 => operations::mmuext_op(self),
            7 | 8 => operations::update_va_mapping(self),
            9 => operations::memory_op(self),
            10 => operations::set_trap_table(self),
            11 => operations::set_gdt(self),
            12 => operations::update_descriptor(self),
            13 if !nested => operations::multicall(self),
            14 => operations::poll(self),
            15 => operations::callbacks(self),
            16 => self.sub_command(17, 16),
            17 => operations::console_io(self),
            18 => self.sub_command(20, 16),
            19 => operations::vcpu_op(self),
            20 => operations::set_segment_base(self),
            21 => (29, operations::sched_op(self)),
            22 | 23 => self.sub_command(32, 16),
            24 => self.sub_command(33, 32),
            25 => operations::debugreg(self),
            26 => {
                let args = self.any_args();
                (self.random.pick(&[3, 5, 15, 21, 40, 28]), args)
            }
            27 => {
                let number = self.random.pick(&[16, 19, 6]);
                let (args, structure) = (self.any_args(), self.argument());
                (number, [structure, args[1], args[2], args[3], args[4], args[5]])
            }
            28 => {
                let (number, commands) = self.random.pick(&[
                    (7, 64),
                    (27, 8),
                    (31, 16),
                    (34, 32),
                    (35, 32),
                    (36, 64),
                    (37, 4),
                    (38, 8),
                    (39, 8),
                    (41, 32),
                    (42, 8),
                    (48, 16),
                ]);
                self.sub_command(number, commands)
            }
            _ => operations::grant_table(self),
        }
    }
}

/// What would legitimately end this guest, block it, or change it beyond what
/// it checks afterwards. [`operations`] issues the harmless forms.
fn forbidden(&(number, args): &Call) -> bool {
    let command = args[0] as u32;
    match number as u32 {
        // Lists, and page tables: only as generated.
        1 | 13 | 26 => !generated(&args),
        14 | 22 => !generated_va(args[0]),
        // The bits above the sub-command are a continuation's progress.
        12 => !generated(&[args[1]; 6]),
        // block, shutdown, poll without end, remote shutdown, watchdog.
        6 => matches!(command, 1 | 2),
        29 => match command {
            1 | 2 | 4 | 6 => true,
            3 => !generated(&[args[1]; 6]),
            _ => false,
        },
        // A long list of grant operations would run on through this program, and put its results
        // there.
        20 => args[2] as u32 > GRANT_OPERATIONS,
        23 => true,
        // VCPUOP_down.
        24 => command == 2,
        18 => command == 0 && args[1] != 0 && args[2] >> 63 != 0 && !generated(&[args[2]; 6]),
        _ => false,
    }
}

/// Lists come from the scratch pages or do not exist at all.
fn generated(args: &[u64; 6]) -> bool {
    let pointer = args[0];
    crate::fuzz::in_scratch(pointer) || unmapped(pointer)
}

fn unmapped(pointer: u64) -> bool {
    // The lower half has no page tables in this guest; the rest is no address.
    (0x1000..0xffff_8000_0000_0000).contains(&pointer)
        || (0xffff_8000_0000_0000..0xffff_8800_0000_0000).contains(&pointer)
        || pointer < 0x1000
}

fn generated_va(address: u64) -> bool {
    crate::fuzz::in_window(address) || unmapped(address)
}
