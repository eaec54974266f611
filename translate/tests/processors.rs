//! Models of what vCPUs do to each other, in every order there is: shootdowns (the code itself), and
//! requests and kicks (their protocol, as `requests.rs` and `sched.rs` have it).

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
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
    fn set(&self, bits: u64) {
        self.0.fetch_or(bits, Ordering::SeqCst);
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
