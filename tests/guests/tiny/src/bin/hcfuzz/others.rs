//! The other processors: each makes calls of its own, over and over, of the kinds in which processors
//! get into each other's way. Their arguments are sound, and what they change is nobody's but the arena's,
//! the window's and spare pages.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use tiny_guests::paging::PAGE;
use tiny_guests::{Random, StartInfo, hypercall, say, trap, vcpu};

use crate::memory::Memory;

/// Processors there can be beside the first.
pub const MOST: usize = 7;
const STACK_BYTES: usize = 32 << 10;
/// Words of a processor's lists.
const WORDS: usize = 512;
const DOMID_SELF: u64 = 0x7ff0;
/// What belongs to a processor alone.
#[repr(C, align(4096))]
struct Own {
    stack: UnsafeCell<[u8; STACK_BYTES]>,
    words: [AtomicU64; WORDS],
    calls: AtomicU64,
}

// SAFETY: the stack is used by its processor only.
unsafe impl Sync for Own {}

static OWN: [Own; MOST] = [const {
    Own {
        stack: UnsafeCell::new([0; STACK_BYTES]),
        words: [const { AtomicU64::new(0) }; WORDS],
        calls: AtomicU64::new(0),
    }
}; MOST];

static MEMORY: AtomicPtr<Memory> = AtomicPtr::new(core::ptr::null_mut());

/// Starts the processors from 1 on; how many run then.
pub fn start(info: &'static StartInfo, memory: &mut Memory, wanted: u64) -> usize {
    MEMORY.store(core::ptr::from_mut(memory), Ordering::SeqCst);
    let others = OWN.iter().zip(1u64..wanted.max(1));
    others
        .take_while(|(own, id)| {
            let top = own.stack.get().expose_provenance() as u64 + STACK_BYTES as u64;
            // SAFETY: the stack is the processor's alone.
            unsafe { vcpu::start(info, *id, run, top) }
        })
        .count()
}

/// The calls each has made.
pub fn calls() -> [u64; MOST] {
    core::array::from_fn(|nr| OWN.get(nr).map_or(0, |own| own.calls.load(Ordering::Relaxed)))
}

/// A processor.
extern "C" fn run(id: u64) -> ! {
    trap::install();
    let memory = MEMORY.load(Ordering::SeqCst);
    // SAFETY: the first processor never lets go of it and changes it no more.
    let memory = unsafe { &*memory };
    let Some(own) = OWN.get((id as usize).wrapping_sub(1)) else {
        say!("FAIL there is no processor {id}");
        hypercall::shutdown(hypercall::SHUTDOWN_CRASH)
    };
    let mut other = Other { own, memory, random: Random::new(id * 0x9e37 + 1), used: 0 };
    loop {
        other.used = 0;
        let (number, args) = other.call(true);
        // SAFETY: calls that change nothing of importance to anybody.
        unsafe { hypercall::raw(number, args) };
        own.calls.fetch_add(1, Ordering::Relaxed);
    }
}

struct Other<'a> {
    own: &'static Own,
    memory: &'a Memory,
    random: Random,
    used: usize,
}

impl Other<'_> {
    /// Words in this processor's memory.
    fn list(&mut self, words: &[u64]) -> u64 {
        if self.used + words.len() > WORDS {
            self.used = 0;
        }
        let slots = self.own.words.get(self.used..self.used + words.len()).unwrap_or_default();
        for (slot, word) in slots.iter().zip(words) {
            slot.store(*word, Ordering::Relaxed);
        }
        self.used += words.len();
        slots.as_ptr().expose_provenance() as u64
    }

    fn frame(&mut self) -> u64 {
        self.random.pick(&self.memory.arena_mfns)
    }

    fn call(&mut self, outer: bool) -> (u64, [u64; 6]) {
        match self.random.below(16) {
            0..=3 => self.flush(),
            4 => self.page(),
            5 | 6 => self.entry(),
            7 => self.reservation(),
            8..=10 => self.event(),
            11 => self.vcpu(),
            12 => {
                let poll = self.list(&[0, 0, 1]);
                (29, [self.random.pick(&[0, 3]), poll, 0, 0, 0, 0])
            }
            13 | 14 if outer => self.multicall(),
            _ => (17, [self.random.below(4), self.memory.arena, 0, 0, 0, 0]),
        }
    }

    /// TLB flushes here and elsewhere, and the base pointer, which stays the same.
    fn flush(&mut self) -> (u64, [u64; 6]) {
        let set = self.random.word() & 0xff;
        let set = self.list(&[set]);
        let command = self.random.pick(&[6, 7, 8, 8, 9, 9, 10, 11]);
        let page = self.memory.window + self.random.below(64) * PAGE;
        let operation = self.list(&[command, page, set]);
        (26, [operation, 1, 0, DOMID_SELF, 0, 0])
    }

    /// Clears and copies frames.
    fn page(&mut self) -> (u64, [u64; 6]) {
        let (to, from) = (self.frame(), self.frame());
        let operation = [self.random.pick(&[16, 17]), to, from];
        let operation = self.list(&operation);
        (26, [operation, 1, 0, DOMID_SELF, 0, 0])
    }

    /// Entries of the window, and of the M2P.
    fn entry(&mut self) -> (u64, [u64; 6]) {
        let frame = self.frame();
        let request = match self.random.below(3) {
            0 => [(frame * PAGE) | 1, self.random.below(1 << 20)],
            1 => [self.memory.window_entry(&mut self.random), 0],
            _ => [self.memory.window_entry(&mut self.random), (frame * PAGE) | 0x63],
        };
        let request = self.list(&request);
        (1, [request, 1, 0, DOMID_SELF, 0, 0])
    }

    /// Spare pages go and come.
    fn reservation(&mut self) -> (u64, [u64; 6]) {
        let command = self.random.pick(&[1, 6]);
        let pfns = [0; 4].map(|_| self.memory.spare_pfn(&mut self.random));
        let frames = if command == 1 { pfns.map(|pfn| self.memory.mfn(pfn)) } else { pfns };
        let list = self.list(&frames);
        let reservation = self.list(&[list, 4, 0, DOMID_SELF]);
        (12, [command, reservation, 0, 0, 0, 0])
    }

    /// bind_ipi, close, send, status, alloc_unbound, bind_vcpu, unmask.
    fn event(&mut self) -> (u64, [u64; 6]) {
        let (port, vcpu) = (3 + self.random.below(40), self.random.below(8));
        let (command, words) = match self.random.below(8) {
            0 | 1 => (7, [vcpu, 0]),
            2 => (3, [port, 0]),
            3 => (5, [DOMID_SELF | port << 32, 0]),
            4 => (6, [DOMID_SELF | DOMID_SELF << 16, 0]),
            5 => (8, [port | vcpu << 32, 0]),
            6 => (9, [port, 0]),
            _ => (4, [port, 0]),
        };
        // What status returns is longer than what it is asked with, and a list follows.
        let [first, second] = words;
        let argument = self.list(&[first, second, 0]);
        (32, [command, argument, 0, 0, 0, 0])
    }

    /// Whether others are up, what they do, NMIs to them; timers of its own.
    fn vcpu(&mut self) -> (u64, [u64; 6]) {
        let argument = self.list(&[1_000_000, 0, 0, 0, 0, 0]);
        let vcpu = self.random.below(8);
        (24, [self.random.pick(&[3, 4, 6, 7, 11]), vcpu, argument, 0, 0, 0])
    }

    /// A few of all that.
    fn multicall(&mut self) -> (u64, [u64; 6]) {
        let count = 2 + self.random.below(5);
        let mut words = [0; 48];
        for entry in words.chunks_mut(8).take(count as usize) {
            let (number, args) = self.call(false);
            for (slot, value) in entry.iter_mut().zip([number, 0].into_iter().chain(args)) {
                *slot = value;
            }
        }
        let list = self.list(words.get(..count as usize * 8).unwrap_or_default());
        (13, [list, count, 0, 0, 0, 0])
    }
}
