//! The guest's memory, by what may happen to it.

use tiny_guests::paging::{self, PAGE, VIRT_BASE};
use tiny_guests::{Random, StartInfo};

/// Pages any hypercall may write.
pub const ARENA_PAGES: u64 = 32;
/// Pages of address space whose mappings are random.
pub const WINDOW_PAGES: u64 = 64;
/// Pages of scratch memory.
pub const SCRATCH_PAGES: u64 = 16;

#[repr(C, align(4096))]
struct Pages<const N: usize>(core::cell::UnsafeCell<[[u64; 512]; N]>);

// SAFETY: this guest has one processor, and only volatile accesses by address
// reach the pages.
unsafe impl<const N: usize> Sync for Pages<N> {}

/// The arena, with a page in front and one behind that get unmapped.
static ARENA: Pages<34> = Pages(core::cell::UnsafeCell::new([[0; 512]; 34]));
static WINDOW: Pages<64> = Pages(core::cell::UnsafeCell::new([[0; 512]; 64]));
/// Pages that are only seen through read-only aliases once they are filled.
static READ_ONLY: Pages<4> = Pages(core::cell::UnsafeCell::new([[0; 512]; 4]));
/// Argument lists whose contents must stay as generated.
static SCRATCH: Pages<16> = Pages(core::cell::UnsafeCell::new([[0; 512]; 16]));

fn address<const N: usize>(pages: &Pages<N>) -> u64 {
    pages.0.get().expose_provenance() as u64
}

/// Where everything is.
pub struct Memory {
    info: &'static StartInfo,
    /// First address of the arena.
    pub arena: u64,
    /// First address of the window.
    pub window: u64,
    /// First address of the scratch pages.
    pub scratch: u64,
    /// Machine frames of the arena.
    pub arena_mfns: [u64; ARENA_PAGES as usize],
    /// Machine addresses of the window's level-1 entries.
    window_entries: [u64; WINDOW_PAGES as usize],
    /// Lowest and highest machine frame of image, p2m, start info, page tables.
    critical: (u64, u64),
    /// Pages behind the initial mapping, nobody's: pfn of the first and number.
    spare: (u64, u64),
    /// Machine frames that may be aliased read-only: the first page of text and
    /// those of `READ_ONLY`. Not just any: what an alias shows may be taken for
    /// an argument, so it must not name critical pages.
    read_only: [u64; 5],
}

impl Memory {
    /// Takes stock.
    pub fn new(info: &'static StartInfo) -> Self {
        let (arena, window, scratch) =
            (address(&ARENA) + PAGE, address(&WINDOW), address(&SCRATCH));
        let arena_mfns = core::array::from_fn(|i| paging::mfn_of(info, arena + i as u64 * PAGE));
        let window_entries = core::array::from_fn(|i| {
            paging::machine_entry(info, window + i as u64 * PAGE).unwrap_or(0)
        });
        // The last thing in the initial mapping is the boot stack, behind the
        // page tables; the module and the p2m come before them.
        let first = paging::pfn_of(VIRT_BASE + 0x10_0000);
        let last = paging::pfn_of(info.pt_base) + info.nr_pt_frames + 1;
        let mut critical = (u64::MAX, 0);
        for pfn in first..=last {
            let mfn = paging::mfn(info, pfn);
            critical = (critical.0.min(mfn), critical.1.max(mfn));
        }
        let read_only = core::array::from_fn(|i| {
            let page = match i {
                0 => VIRT_BASE + 0x10_0000,
                _ => address(&READ_ONLY) + (i as u64 - 1) * PAGE,
            };
            paging::mfn_of(info, page)
        });
        let spare = (last + 1024, info.nr_pages.saturating_sub(last + 1024));
        Self {
            info,
            arena,
            window,
            scratch,
            arena_mfns,
            window_entries,
            critical,
            spare,
            read_only,
        }
    }

    /// Fills what must not change, makes the arena no-execute and unmaps the
    /// pages around it.
    pub fn prepare(&self, random: &mut Random) -> bool {
        for at in self.read_only_words() {
            write(at, self.any_value(random));
        }
        const NX_RW: u64 = 1 << 63 | 0x63;
        let arena_done = self.arena_mfns.iter().zip(0..).all(|(mfn, i)| {
            // SAFETY: the same frame as before, without execution.
            unsafe {
                paging::set_entry(self.info, self.arena + i * PAGE, (mfn * PAGE) | NX_RW) == 0
            }
        });
        arena_done
            && [self.arena - PAGE, self.arena + ARENA_PAGES * PAGE].iter().all(|&guard| {
                // SAFETY: nothing uses the guard pages.
                unsafe { paging::set_entry(self.info, guard, 0) == 0 }
            })
    }

    /// Addresses of the words behind the read-only aliases.
    pub fn read_only_words(&self) -> impl Iterator<Item = u64> {
        (address(&READ_ONLY)..address(&READ_ONLY) + 4 * PAGE).step_by(8)
    }

    /// Whether a number could name a critical page: as a frame, as the address
    /// of one, or as half of a word. Virtual addresses are checked, too.
    pub fn is_critical(&self, value: u64) -> bool {
        let frame = |mfn: u64| {
            (self.critical.0..=self.critical.1).contains(&mfn) && !self.arena_mfns.contains(&mfn)
        };
        let pfn = |value: u64| {
            let (low, high) = (paging::pfn_of(VIRT_BASE + 0x10_0000), self.spare.0 - 1024);
            let arena = paging::pfn_of(self.arena);
            (low..=high).contains(&value) && !(arena..arena + ARENA_PAGES).contains(&value)
        };
        let image = value >= VIRT_BASE
            && value < VIRT_BASE + self.spare.0 * PAGE
            && !(self.arena..self.arena + ARENA_PAGES * PAGE).contains(&value)
            && !(self.window..self.window + WINDOW_PAGES * PAGE).contains(&value);
        let machine = (value & 0x000f_ffff_ffff_ffff) >> 12;
        image
            || [value, machine, value & 0xffff_ffff, value >> 32]
                .into_iter()
                .any(|v| frame(v) || pfn(v))
    }

    /// The machine address of one of the window's entries.
    pub fn window_entry(&self, random: &mut Random) -> u64 {
        random.pick(&self.window_entries)
    }

    /// A frame that belongs to nothing of importance: the arena's, an unused
    /// one, one that does not exist, one of the machine's devices.
    pub fn any_mfn(&self, random: &mut Random) -> u64 {
        let mfn = match random.below(8) {
            0..=2 => random.pick(&self.arena_mfns),
            3 if self.spare.1 != 0 => paging::mfn(self.info, self.spare_pfn(random)),
            4 => random.below(64),
            5 => random.below(0x10_0000),
            6 => random.pick(&[0xfee00, 0xfec00, 0xfed00, 0xa0, 0xf0, u64::MAX, 0xfffff, 1 << 40]),
            _ => random.word() >> random.below(64),
        };
        if self.is_critical(mfn) { random.pick(&self.arena_mfns) } else { mfn }
    }

    /// The machine frame of a pfn.
    pub fn mfn(&self, pfn: u64) -> u64 {
        paging::mfn(self.info, pfn)
    }

    /// A pfn nobody uses.
    pub fn spare_pfn(&self, random: &mut Random) -> u64 {
        self.spare.0 + random.below(self.spare.1.max(1))
    }

    /// A level-1 entry. Critical pages come read-only, and only if wanted.
    pub fn any_entry(&self, random: &mut Random, aliases: bool) -> u64 {
        let flags = random.pick(&[0x63, 0x61, 0x67, 0x65, 0x60, 0, 0xe3, 0x163, 0x7ff, 0x73]);
        let high = random.pick(&[0, 0, 0, 0, 1 << 63, 1 << 52, 0x7ff << 52]);
        if aliases && random.once_in(6) {
            return (random.pick(&self.read_only) * PAGE) | (flags & !2) | high;
        }
        ((self.any_mfn(random) * PAGE) & 0x000f_ffff_ffff_f000) | flags | high
    }

    /// An address: the arena, the edges of its pages, the window, the tables
    /// and the hole of the hypervisor, what is no address at all.
    pub fn any_pointer(&self, random: &mut Random) -> u64 {
        match random.below(16) {
            0..=4 => self.arena + random.below(ARENA_PAGES * PAGE / 8) * 8,
            5 => self.arena + random.below(ARENA_PAGES * PAGE),
            6 => self.arena + random.below(ARENA_PAGES) * PAGE - random.below(32),
            7 | 8 => self.window + random.below(WINDOW_PAGES * PAGE / 8) * 8,
            9 => self.window + random.below(WINDOW_PAGES + 1) * PAGE - random.below(32),
            10 => 0xffff_8000_0000_0000 + random.below(1 << 23),
            11 => 0xffff_8000_0000_0000 + (random.word() >> 17),
            12 => 0xffff_8800_0000_0000 + random.below(1 << 40),
            13 => random.word() >> (16 + random.below(48)),
            14 => 0u64.wrapping_sub(random.below(1 << 13)),
            _ => random.pick(&[
                0,
                8,
                0x7fff_ffff_fff8,
                0x7fff_ffff_ffff,
                0x8000_0000_0000,
                0xffff_7fff_ffff_ffff,
                0xdead_beef_dead_beef,
                u64::MAX,
                0xffff_87ff_ffff_fff8,
                0xffff_8080_0000_0000,
            ]),
        }
    }

    /// A number of any kind, but none that names a critical page.
    pub fn any_value(&self, random: &mut Random) -> u64 {
        let value = match random.below(10) {
            0..=2 => random.below(16),
            3 => random.below(1 << 16),
            4 => self.any_pointer(random),
            5 => self.any_mfn(random),
            6 => self.any_mfn(random).wrapping_mul(PAGE) | random.below(PAGE),
            7 => random.pick(&[
                0x7ff0,
                0x7ff1,
                0x7ff2,
                0x7ff3,
                0x7ff4,
                0xffff_ffff,
                1 << 31,
                1 << 63,
            ]),
            8 => random.below(16) | random.below(1 << 16) << 32,
            _ => random.word() >> random.below(64),
        };
        if self.is_critical(value) { 0 } else { value }
    }
}

/// Writes a word of the arena or the scratch pages.
pub fn write(address: u64, value: u64) {
    // SAFETY: the callers write to pages of theirs, mapped from boot on.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(address as usize).write_volatile(value) }
}
