//! TLB flushes for a vCPU that sleeps: one vCPU sleeps and looks at a page by turns, while another puts
//! other frames there and asks for flushes. What is seen after a flush must not be older than it.
//!
//! `lazy turns=N`. Which frame is there is changed with a plain store, as an L1 entry may be, and
//! each fourth time by mmu_update.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(target_os = "none", expect(unsafe_code, reason = "page tables and vCPUs"))]

#[cfg(target_os = "none")]
mod guest {
    use core::cell::UnsafeCell;
    use core::sync::atomic::{AtomicU64, Ordering};

    use tiny_guests::paging::{self, PAGE};
    use tiny_guests::{Random, StartInfo, hypercall, say, trap, vcpu};

    tiny_guests::guest!(main);

    /// How long the other vCPU sleeps, nanoseconds.
    const NAP_NS: u64 = 200_000;
    const SLEEPER: u64 = 1;
    const MMUEXT_OP: u64 = 26;
    const TLB_FLUSH_MULTI: u64 = 8;
    const INVLPG_MULTI: u64 = 9;
    const SCHEDOP_POLL: u64 = 3;
    const DOMID_SELF: u64 = 0x7ff0;

    #[repr(C, align(4096))]
    struct Page([AtomicU64; 512]);
    /// Two pages of data, and a place where one of them is seen.
    static PAGES: [Page; 3] = [const { Page([const { AtomicU64::new(0) }; 512]) }; 3];

    #[repr(C, align(4096))]
    struct Stack(UnsafeCell<[u8; 16 << 10]>);
    // SAFETY: one vCPU's.
    unsafe impl Sync for Stack {}
    static STACK: Stack = Stack(UnsafeCell::new([0; 16 << 10]));

    /// The turn whose flush is done.
    static NOW: AtomicU64 = AtomicU64::new(0);
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    static STALE: AtomicU64 = AtomicU64::new(0);

    fn address(page: &Page) -> u64 {
        core::ptr::from_ref(page).expose_provenance() as u64
    }

    /// The vCPU that sleeps.
    extern "C" fn sleeper(_: u64) -> ! {
        trap::install();
        let [_, _, seen] = &PAGES;
        let [seen, ..] = &seen.0;
        loop {
            let least = NOW.load(Ordering::SeqCst);
            if seen.load(Ordering::SeqCst) < least {
                STALE.fetch_add(1, Ordering::Relaxed);
            }
            LOOKS.fetch_add(1, Ordering::Relaxed);
            // No ports, until some time after the last waking.
            let poll = [0, 0, vcpu::runstate(SLEEPER).since + NAP_NS];
            let poll = poll.as_ptr().expose_provenance() as u64;
            // SAFETY: reads three words.
            unsafe { hypercall::raw(hypercall::SCHED_OP, [SCHEDOP_POLL, poll, 0, 0, 0, 0]) };
        }
    }

    /// Asks for a flush on the other vCPU.
    fn flush(command: u64, at: u64) -> bool {
        let set = 1u64 << SLEEPER;
        let operation = [command, at, core::ptr::from_ref(&set).expose_provenance() as u64];
        let list = operation.as_ptr().expose_provenance() as u64;
        // SAFETY: reads the list and the set.
        unsafe { hypercall::raw(MMUEXT_OP, [list, 1, 0, DOMID_SELF, 0, 0]) == 0 }
    }

    fn main(info: &'static StartInfo) -> ! {
        trap::install();
        let turns = info.number("turns").unwrap_or(4000);
        let [one, two, seen] = &PAGES;
        let at = address(seen);
        let frames = [one, two].map(|page| (paging::mfn_of(info, address(page)) * PAGE) | 0x63);
        let (Some(entry), Some(machine)) =
            (paging::entry_of(info, at), paging::machine_entry(info, at))
        else {
            say!("FAIL no entry of {at:#x}");
            hypercall::shutdown(hypercall::SHUTDOWN_CRASH)
        };
        // SAFETY: page tables of the initial mapping; an L1 entry may be written.
        let entry = unsafe { AtomicU64::from_ptr(entry as *mut u64) };
        let top = STACK.0.get().expose_provenance() as u64 + (16 << 10);
        // SAFETY: the stack is nobody else's.
        if !unsafe { vcpu::start(info, SLEEPER, sleeper, top) } {
            say!("FAIL there is no second vCPU");
            hypercall::shutdown(hypercall::SHUTDOWN_CRASH)
        }
        let mut random = Random::new(1);
        let (mut asleep, mut failed) = (0u64, 0u64);
        for turn in 1..=turns {
            let (page, frame) = if turn % 2 == 0 { (one, frames[0]) } else { (two, frames[1]) };
            page.0[0].store(turn, Ordering::SeqCst);
            if turn % 4 == 3 {
                // SAFETY: the page at that address is nobody's but the test's.
                failed += u64::from(unsafe { hypercall::mmu_update(machine, frame) } != 0);
            } else {
                entry.store(frame, Ordering::SeqCst);
            }
            asleep += u64::from(vcpu::runstate(SLEEPER).state == vcpu::BLOCKED);
            let command = if turn % 3 == 0 { INVLPG_MULTI } else { TLB_FLUSH_MULTI };
            failed += u64::from(!flush(command, at));
            NOW.store(turn, Ordering::SeqCst);
            // Shorter and longer than it sleeps.
            for _ in 0..random.below(40_000) {
                core::hint::spin_loop();
            }
        }
        let [looks, stale] = [&LOOKS, &STALE].map(|count| count.load(Ordering::Relaxed));
        say!("lazy: {turns} flushes, {asleep} of one asleep, {looks} looks, {stale} stale");
        let good = failed == 0 && stale == 0 && asleep > turns / 10 && looks > turns / 10;
        if !good {
            say!("FAIL {failed} calls failed");
        }
        hypercall::shutdown(if good {
            hypercall::SHUTDOWN_POWEROFF
        } else {
            hypercall::SHUTDOWN_CRASH
        })
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("lazy is a Xen PV kernel: build it for x86_64-unknown-none");
}
