//! User mode of a guest that never sets a GDT: a program on Xen's flat segments is interrupted,
//! makes a system call, goes on, and its kernel sees Xen's selectors each time.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(target_os = "none", expect(unsafe_code, reason = "builds page tables, enters ring 3"))]

#[cfg(target_os = "none")]
mod guest {
    use core::cell::UnsafeCell;
    use core::sync::atomic::{AtomicU64, Ordering};
    use tiny_guests::trap::{self, Frame};
    use tiny_guests::{StartInfo, hypercall, paging, probe, say};

    tiny_guests::guest!(main);

    /// FLAT_RING3_CS64, FLAT_RING3_SS64: `xen/include/public/arch-x86/xen-x86_64.h`.
    const USER_CS: u64 = 0xe033;
    const USER_SS: u64 = 0xe02b;
    /// Where the program lies: the first page of its own tables.
    const PROGRAM: u64 = 0x4000_0000;
    /// int3; mov eax, 0x1234; syscall; int3; syscall; ud2
    const CODE: [u8; 16] =
        [0xcc, 0xb8, 0x34, 0x12, 0, 0, 0x0f, 0x05, 0xcc, 0x0f, 0x05, 0x0f, 0x0b, 0, 0, 0];
    /// RIP of each of the kernel's visits: behind int3, SYSCALL, int3, SYSCALL, and at UD2.
    const VISITS: [(u64, u64); 5] =
        [(3, 1), (trap::SYSCALL, 8), (3, 9), (trap::SYSCALL, 11), (6, 11)];

    #[repr(align(4096))]
    struct Page(UnsafeCell<[u64; 512]>);
    // SAFETY: written before the program starts, by the only processor.
    unsafe impl Sync for Page {}
    impl Page {
        const fn new() -> Self {
            Self(UnsafeCell::new([0; 512]))
        }
        fn address(&self) -> u64 {
            self.0.get().expose_provenance() as u64
        }
        fn set(&self, index: usize, word: u64) {
            // SAFETY: see `Sync`.
            unsafe { (*self.0.get())[index] = word };
        }
    }
    static L3: Page = Page::new();
    static L2: Page = Page::new();
    static L1: Page = Page::new();
    static TEXT: Page = Page::new();
    static STACK: [Page; 4] = [const { Page::new() }; 4];

    static VISIT: AtomicU64 = AtomicU64::new(0);
    static WRONG: AtomicU64 = AtomicU64::new(0);

    /// The kernel's side of the program: judges the frame, and goes on.
    fn visit(frame: &mut Frame) -> bool {
        if frame.vector == trap::EVENT {
            return true;
        }
        let visit = VISIT.fetch_add(1, Ordering::Relaxed);
        let expected = VISITS.get(visit as usize).copied();
        let found = (frame.vector, frame.rip.wrapping_sub(PROGRAM));
        let right = Some(found) == expected
            && frame.cs & 0xffff == USER_CS
            && frame.ss == USER_SS
            && frame.rsp == PROGRAM + 0x800;
        WRONG.fetch_add(u64::from(!right), Ordering::Relaxed);
        say!("{} visit {visit}: {frame:x?}", if right { "ok" } else { "FAIL" });
        if right && frame.vector != 6 {
            return true;
        }
        // The end: on in the kernel.
        frame.cs = u64::from(trap::KERNEL_CS) & !3;
        frame.ss = USER_SS;
        false
    }

    /// Maps the program's page for user mode, by tables of its own.
    fn map(info: &StartInfo) -> bool {
        let machine = |page: &Page| paging::mfn_of(info, page.address()) * paging::PAGE;
        for (at, word) in CODE.as_chunks().0.iter().enumerate() {
            TEXT.set(at, u64::from_le_bytes(*word));
        }
        L1.set(0, machine(&TEXT) | 0x65);
        L2.set(0, machine(&L1) | 0x67);
        L3.set((PROGRAM >> 30) as usize, machine(&L2) | 0x67);
        // Xen wants tables read-only, and TEXT is one page more that is not written any more.
        let read_only = [&L3, &L2, &L1, &TEXT].into_iter().all(|page| {
            // SAFETY: update_va_mapping of pages nobody writes from here on.
            let result =
                unsafe { hypercall::raw(14, [page.address(), machine(page) | 0x61, 2, 0, 0, 0]) };
            result == 0
        });
        let top = paging::mfn_of(info, info.pt_base) * paging::PAGE;
        // SAFETY: the slot is empty; what it maps is the program.
        let linked = unsafe { hypercall::mmu_update(top, machine(&L3) | 0x67) };
        // MMUEXT_NEW_USER_BASEPTR: the same tables serve user mode.
        let op = [15u64, top / paging::PAGE, 0];
        let list = (&raw const op).expose_provenance() as u64;
        // SAFETY: the tables map the kernel, too.
        let base = unsafe { hypercall::raw(26, [list, 1, 0, 0x7ff0, 0, 0]) };
        say!("tables: {read_only} {linked} {base}");
        read_only && linked == 0 && base == 0
    }

    fn main(info: &'static StartInfo) -> ! {
        trap::install();
        trap::set_hook(visit);
        let mut right = map(info);
        let kernel_sp = STACK[3].address() + paging::PAGE;
        // SAFETY: a stack of the kernel's own for traps out of user mode.
        right &= unsafe { hypercall::raw(3, [USER_SS, kernel_sp, 0, 0, 0, 0]) } == 0;
        if right {
            // SAFETY: the program comes back by its UD2, which the probe recovers from.
            let end = unsafe {
                probe!(
                    "push {ss}", "push rdx", "push 0x202", "push {cs}", "push rcx",
                    "push 0", "push 0", "push 0", "push 0",
                    "mov eax, 23", "syscall";
                    ss = const USER_SS, cs = const USER_CS,
                    inout("rcx") PROGRAM => _, inout("rdx") PROGRAM + 0x800 => _, out("rax") _
                )
            };
            right = end.is_some_and(|trap| trap.vector == 6);
        }
        right &= VISIT.load(Ordering::Relaxed) == VISITS.len() as u64;
        right &= WRONG.load(Ordering::Relaxed) == 0;
        say!("user: {}", if right { "passed" } else { "failed" });
        hypercall::shutdown(if right {
            hypercall::SHUTDOWN_POWEROFF
        } else {
            hypercall::SHUTDOWN_CRASH
        })
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("user is a Xen PV kernel: build it for x86_64-unknown-none");
}
