//! Models of what vCPUs do to each other, in every order there is: shootdowns and flushes that are put
//! off (the code itself), and the
//! protocols of requests and kicks (`requests.rs`, `sched.rs`), of events (`evtchn/two_level.rs`, and the
//! guest's part of it), of polls (`sched.rs`), and of frames that must be no L4 (`mmu/root.rs`).

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use translate::lazy::Lazy;
use translate::shootdown::{Shootdown, Slot, Word};

/// A word that loom watches.
struct Watched(AtomicU64);

impl Default for Watched {
    fn default() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Word for Watched {
    fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    fn store(&self, value: u64) {
        self.0.store(value, Ordering::SeqCst);
    }
    fn store_release(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }
    fn set(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits, Ordering::SeqCst)
    }
    fn clear(&self, bits: u64) {
        self.0.fetch_and(!bits, Ordering::SeqCst);
    }
    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

type Vcpus = Shootdown<Box<[Slot<Watched>]>>;

/// Every order with up to three switches between threads that need not be.
fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

fn vcpus(count: usize) -> Vcpus {
    Shootdown((0..count).map(|_| Slot::default()).collect())
}

/// A page-table entry, and whether what it mapped at first has been given to somebody else.
struct Entry {
    table: AtomicU64,
    reused: AtomicBool,
}

const OLD: u64 = 1;
const NEW: u64 = 2;

/// vCPU 1 uses an entry that it may have in its TLB, while vCPU 0 changes it, has it flushed, and
/// gives the page away: vCPU 1 never uses the page then.
#[test]
fn nothing_stale_is_used() {
    model(|| {
        let entry = Entry { table: AtomicU64::new(OLD), reused: AtomicBool::new(false) };
        let shared = Arc::new((vcpus(2), entry));
        let other = Arc::clone(&shared);
        let user = thread::spawn(move || {
            let (vcpus, entry) = &*other;
            let mut tlb = None;
            for turn in 0..2 {
                let gone = entry.reused.load(Ordering::SeqCst);
                let used = *tlb.get_or_insert_with(|| entry.table.load(Ordering::Relaxed));
                assert!(used != OLD || !gone, "turn {turn}: the page was somebody else's");
                vcpus.serve(1, |_| tlb = None);
            }
            // From here on it is idle, and answers in its interrupts.
            while !entry.reused.load(Ordering::SeqCst) {
                vcpus.serve(1, |_| ());
                thread::yield_now();
            }
        });
        let (vcpus, entry) = &*shared;
        entry.table.store(NEW, Ordering::Relaxed);
        vcpus.ask(0, 0b10, Some(0x1000));
        while !vcpus.is_done(0) {
            thread::yield_now();
        }
        entry.reused.store(true, Ordering::SeqCst);
        user.join().unwrap();
    });
}

/// vCPU 0 has vCPU 1 flush, now or later.
fn flush(vcpus: &Vcpus, lazy: &Lazy<Watched>, count: u64) {
    if !lazy.put_off(count) {
        vcpus.ask(0, 0b10, None);
        while !vcpus.is_done(0) {
            thread::yield_now();
        }
    }
}

/// The same while vCPU 1 halts between two looks: the flush is put off until it goes on, or done.
#[test]
fn nothing_stale_is_used_after_a_halt() {
    model(|| {
        let entry = Entry { table: AtomicU64::new(OLD), reused: AtomicBool::new(false) };
        let shared = Arc::new((vcpus(2), Lazy::<Watched>::default(), entry));
        let other = Arc::clone(&shared);
        let user = thread::spawn(move || {
            let (vcpus, lazy, entry) = &*other;
            let mut tlb = None;
            for turn in 0..2 {
                let gone = entry.reused.load(Ordering::SeqCst);
                let used = *tlb.get_or_insert_with(|| entry.table.load(Ordering::Relaxed));
                assert!(used != OLD || !gone, "turn {turn}: the page was somebody else's");
                lazy.halt();
                thread::yield_now();
                if lazy.wake() {
                    tlb = None;
                }
                vcpus.serve(1, |_| tlb = None);
            }
            while !entry.reused.load(Ordering::SeqCst) {
                vcpus.serve(1, |_| ());
                thread::yield_now();
            }
        });
        let (vcpus, lazy, entry) = &*shared;
        entry.table.store(NEW, Ordering::Relaxed);
        flush(vcpus, lazy, 0);
        entry.reused.store(true, Ordering::SeqCst);
        user.join().unwrap();
    });
}

/// vCPU 0 takes a table out of the one above and frees it, while vCPU 1 loads CR3, uses the table if it
/// still finds it, and halts: no processor has a pointer to a free table, not even a halted one.
#[test]
fn no_halted_processor_walks_a_free_table() {
    struct Tables {
        hooked: AtomicBool,
        unhooked: AtomicU64,
        free: AtomicBool,
    }
    model(|| {
        let tables = Tables {
            hooked: AtomicBool::new(true),
            unhooked: AtomicU64::new(0),
            free: AtomicBool::new(false),
        };
        let shared = Arc::new((vcpus(2), Lazy::<Watched>::default(), tables));
        let other = Arc::clone(&shared);
        let user = thread::spawn(move || {
            let (vcpus, lazy, tables) = &*other;
            // What its caches point at before does not matter: CR3 is loaded.
            lazy.emptied(tables.unhooked.load(Ordering::SeqCst));
            let mut points = tables.hooked.load(Ordering::SeqCst);
            lazy.halt();
            let gone = tables.free.load(Ordering::SeqCst);
            vcpus.serve(1, |_| points = false);
            assert!(!points || !gone, "halted, with a pointer to what is another one's");
            if lazy.wake() {
                points = false;
            }
            while !tables.free.load(Ordering::SeqCst) {
                vcpus.serve(1, |_| points = false);
                thread::yield_now();
            }
        });
        let (vcpus, lazy, tables) = &*shared;
        tables.hooked.store(false, Ordering::SeqCst);
        let count = tables.unhooked.fetch_add(1, Ordering::SeqCst) + 1;
        flush(vcpus, lazy, count);
        tables.free.store(true, Ordering::SeqCst);
        user.join().unwrap();
    });
}

/// Two that wait for each other with interrupts off both go on.
#[test]
fn two_that_ask_each_other() {
    fn run(vcpus: &Vcpus, me: u32) {
        vcpus.ask(me, 1 << (1 - me), None);
        while !vcpus.is_done(me) {
            vcpus.serve(me, |page| assert_eq!(page, None));
            thread::yield_now();
        }
        // Back in the guest: the interrupt comes.
        while !vcpus.is_done(1 - me) {
            vcpus.serve(me, |page| assert_eq!(page, None));
            thread::yield_now();
        }
    }
    model(|| {
        let shared = Arc::new(vcpus(2));
        let other = Arc::clone(&shared);
        let second = thread::spawn(move || run(&other, 1));
        run(&shared, 0);
        second.join().unwrap();
    });
}

/// A request to a vCPU that comes up meanwhile: it is taken, or an interrupt is pending that leads to
/// it.
#[test]
fn no_request_is_lost() {
    struct Vcpu {
        online: AtomicBool,
        bits: AtomicU64,
        /// The interrupt is pending in its APIC.
        kicked: AtomicBool,
    }
    model(|| {
        let vcpu = Arc::new(Vcpu {
            online: AtomicBool::new(false),
            bits: AtomicU64::new(0),
            kicked: AtomicBool::new(false),
        });
        let (asked, started) = (Arc::clone(&vcpu), Arc::clone(&vcpu));
        let asker = thread::spawn(move || {
            asked.bits.fetch_or(1, Ordering::SeqCst);
            // loom takes SeqCst loads for Acquire; the fence is what makes them more.
            fence(Ordering::SeqCst);
            if asked.online.load(Ordering::SeqCst) {
                asked.kicked.store(true, Ordering::SeqCst);
            }
        });
        let starter = thread::spawn(move || {
            if !started.online.swap(true, Ordering::SeqCst) {
                fence(Ordering::SeqCst);
                started.kicked.store(true, Ordering::SeqCst);
            }
        });
        // Its processor halts until the kick, then looks.
        while !vcpu.online.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        vcpu.kicked.swap(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        vcpu.bits.swap(0, Ordering::SeqCst);
        asker.join().unwrap();
        starter.join().unwrap();
        let left = vcpu.bits.load(Ordering::SeqCst);
        assert!(left == 0 || vcpu.kicked.load(Ordering::SeqCst), "a request without a kick");
    });
}

/// An event for a vCPU that is about to halt: it does not halt, or the interrupt ends the halt.
#[test]
fn no_wake_up_is_lost() {
    struct Vcpu {
        upcall: AtomicU64,
        /// The interrupt is pending in its APIC; a halt is over when it is, or becomes so.
        kicked: Mutex<bool>,
        comes: Condvar,
    }
    model(|| {
        let vcpu = Arc::new(Vcpu {
            upcall: AtomicU64::new(0),
            kicked: Mutex::new(false),
            comes: Condvar::new(),
        });
        let other = Arc::clone(&vcpu);
        let sender = thread::spawn(move || {
            if other.upcall.swap(1, Ordering::SeqCst) == 0 {
                *other.kicked.lock().unwrap() = true;
                other.comes.notify_one();
            }
        });
        // Interrupts are off from the look to the halt.
        while vcpu.upcall.load(Ordering::SeqCst) == 0 {
            let mut kicked = vcpu.kicked.lock().unwrap();
            while !*kicked {
                kicked = vcpu.comes.wait(kicked).unwrap();
            }
            *kicked = false;
        }
        sender.join().unwrap();
    });
}

/// A port, the words above it, and the interrupt that makes the vCPU look.
struct Port {
    pending: AtomicU64,
    masked: AtomicU64,
    selector: AtomicU64,
    upcall: AtomicU64,
    kicked: AtomicBool,
}

impl Port {
    fn new(masked: bool) -> Self {
        Self {
            pending: AtomicU64::new(0),
            masked: AtomicU64::new(masked.into()),
            selector: AtomicU64::new(0),
            upcall: AtomicU64::new(0),
            kicked: AtomicBool::new(false),
        }
    }

    /// The hypervisor's: selector, upcall, kick.
    fn select(&self) {
        if self.selector.fetch_or(1, Ordering::SeqCst) == 0
            && self.upcall.swap(1, Ordering::SeqCst) == 0
        {
            self.kicked.store(true, Ordering::SeqCst);
        }
    }

    /// The hypervisor's: an event for the port.
    fn raise(&self) {
        if self.pending.fetch_or(1, Ordering::SeqCst) != 0 {
            return;
        }
        // loom takes SeqCst loads for Acquire; a locked instruction is a fence.
        fence(Ordering::SeqCst);
        if self.masked.load(Ordering::SeqCst) == 0 {
            self.select();
        }
    }

    /// The guest's event handler; the events it took. It leaves masked ports alone.
    fn handle(&self) -> u64 {
        let mut taken = 0;
        while self.upcall.swap(0, Ordering::SeqCst) != 0 {
            fence(Ordering::SeqCst);
            if self.selector.swap(0, Ordering::SeqCst) != 0 {
                fence(Ordering::SeqCst);
                if self.masked.load(Ordering::SeqCst) == 0 {
                    taken += self.pending.swap(0, Ordering::SeqCst);
                }
            }
        }
        taken
    }

    /// `EVTCHNOP_unmask`.
    fn unmask(&self) {
        if self.masked.swap(0, Ordering::SeqCst) != 0 {
            fence(Ordering::SeqCst);
            if self.pending.load(Ordering::SeqCst) != 0 {
                self.select();
            }
        }
    }

    /// No event is left that nothing leads the guest to.
    fn settle(&self, raised: u64, mut taken: u64) {
        if self.kicked.load(Ordering::SeqCst) {
            taken += self.handle();
        }
        assert_eq!(self.pending.load(Ordering::SeqCst), 0, "an event without a kick");
        assert!((1..=raised).contains(&taken), "{taken} of {raised}");
    }
}

/// Two events from two vCPUs while the guest handles one: each is taken, or leads to a kick.
#[test]
fn no_event_is_lost() {
    model(|| {
        let port = Arc::new(Port::new(false));
        let senders = [0, 1].map(|_| {
            let port = Arc::clone(&port);
            thread::spawn(move || port.raise())
        });
        let taken = port.handle();
        for sender in senders {
            sender.join().unwrap();
        }
        port.settle(2, taken);
    });
}

/// An event while the guest unmasks the port on another vCPU than the one that is told.
#[test]
fn no_event_is_lost_by_unmasking() {
    model(|| {
        let port = Arc::new(Port::new(true));
        let (raises, unmasks) = (Arc::clone(&port), Arc::clone(&port));
        let sender = thread::spawn(move || raises.raise());
        let owner = thread::spawn(move || unmasks.unmask());
        let taken = port.handle();
        sender.join().unwrap();
        owner.join().unwrap();
        port.settle(1, taken);
    });
}

/// An event for a vCPU that begins to poll its port: the poll does not begin, or ends.
#[test]
fn no_poll_sleeps_over_its_event() {
    model(|| {
        let polls = Arc::new((AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false)));
        let other = Arc::clone(&polls);
        let sender = thread::spawn(move || {
            let (pending, pollers, kicked) = &*other;
            pending.fetch_or(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if pollers.load(Ordering::SeqCst) != 0 && pollers.swap(0, Ordering::SeqCst) != 0 {
                kicked.store(true, Ordering::SeqCst);
            }
        });
        let (pending, pollers, kicked) = &*polls;
        pollers.fetch_or(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let sleeps = pending.load(Ordering::SeqCst) == 0;
        sender.join().unwrap();
        if sleeps {
            assert_eq!(pollers.load(Ordering::SeqCst), 0, "it polls for ever");
            assert!(kicked.load(Ordering::SeqCst), "it is not told");
        }
    });
}

/// A vCPU loads an L4 while another one clears the frame: the processor never runs on one without the
/// hypervisor's slots.
#[test]
fn no_l4_in_use_is_cleared() {
    const FRAME: u64 = 5;
    struct Shared {
        on: AtomicU64,
        taken: AtomicU64,
        slots: AtomicU64,
    }
    model(|| {
        let shared = Arc::new(Shared {
            on: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            slots: AtomicU64::new(0),
        });
        let other = Arc::clone(&shared);
        let clears = thread::spawn(move || {
            other.taken.swap(FRAME, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if other.on.load(Ordering::SeqCst) != FRAME {
                other.slots.store(0, Ordering::Relaxed);
            }
            other.taken.swap(0, Ordering::SeqCst);
        });
        shared.on.swap(FRAME, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        while shared.taken.load(Ordering::SeqCst) == FRAME {
            thread::yield_now();
        }
        shared.slots.store(1, Ordering::Relaxed);
        // On it from here.
        clears.join().unwrap();
        assert_eq!(shared.slots.load(Ordering::Relaxed), 1, "ring 0 is not mapped");
    });
}
