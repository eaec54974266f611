//! Exceptions a guest kernel raises: the vector, the error code and the frame
//! it gets for each.
//!
//! The frame's CS says ring 0 by its RPL in a 64-bit PV guest, whatever ring the
//! kernel is really in.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(target_os = "none", expect(unsafe_code, reason = "raises exceptions"))]
#![cfg_attr(
    target_os = "none",
    expect(
        clippy::undocumented_unsafe_blocks,
        clippy::multiple_unsafe_ops_per_block,
        reason = "each is caught by its probe"
    )
)]

#[cfg(target_os = "none")]
mod guest {
    use tiny_guests::trap::{self, Frame, Trap};
    use tiny_guests::{StartInfo, hypercall, paging, probe, say};

    tiny_guests::guest!(main);

    struct Judge {
        failed: u32,
    }

    impl Judge {
        fn expect(&mut self, what: &str, found: Option<Trap>, vector: u64, error: u64) {
            let right = found.is_some_and(|t| {
                t.vector == vector && t.error == error && t.cs & 3 == 0 && t.cs >> 32 == 1
            });
            if right {
                say!("ok {what}");
            } else {
                self.failed += 1;
                say!("FAIL {what}: expected vector {vector} error {error:#x}, got {found:x?}");
            }
        }

        fn check(&mut self, what: &str, right: bool) {
            self.failed += u32::from(!right);
            say!("{} {what}", if right { "ok" } else { "FAIL" });
        }
    }

    fn faults(judge: &mut Judge) {
        unsafe {
            judge.expect("ud2", probe!("ud2"), 6, 0);
            judge.expect(
                "divide by zero",
                probe!("div ecx"; inout("rax") 1u64 => _, inout("rdx") 0u64 => _,
                    inout("rcx") 0u64 => _),
                0,
                0,
            );
            judge.expect("int3", probe!("int3"), 3, 0);
            judge.expect("int 4", probe!("int 4"), 4, 0);
            judge.expect(
                "non-canonical read",
                probe!("mov rax, [rcx]"; inout("rcx") 1u64 << 63 => _, out("rax") _),
                13,
                0,
            );
            judge.expect(
                "unmapped read",
                probe!("mov rax, [rcx]"; inout("rcx") 0x1000u64 => _, out("rax") _),
                14,
                0,
            );
            judge.expect(
                "unmapped write",
                probe!("mov [rcx], rax"; inout("rcx") 0x1000u64 => _),
                14,
                2,
            );
            judge.expect(
                "single step",
                probe!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop"),
                1,
                0,
            );
            judge.expect(
                "bad selector",
                probe!("mov gs, cx"; inout("rcx") 0xfff8u64 => _),
                13,
                0xfff8,
            );
            judge.expect(
                "unknown MSR read",
                probe!("rdmsr"; inout("rcx") 0x1234_5678u64 => _,
                out("rax") _, out("rdx") _),
                13,
                0,
            );
        }
    }

    /// What ring 0 does in the kernel's place.
    fn emulation(judge: &mut Judge) {
        let (cr0, cr4): (u64, u64);
        let fault = unsafe { probe!("mov rax, cr0"; out("rax") cr0) };
        judge.check("mov rax, cr0", fault.is_none() && cr0 & 0x8000_0001 == 0x8000_0001);
        let fault = unsafe { probe!("mov rax, cr4"; out("rax") cr4) };
        judge.check("mov rax, cr4", fault.is_none() && cr4 & 0x20 != 0);
        // Without an I/O privilege level the kernel, which counts as ring 1
        // here, may not; with level 1 (PHYSDEVOP_set_iopl) it may.
        judge.expect("cli at IOPL 0", unsafe { probe!("cli") }, 13, 0);
        let level = 1u32;
        let pointer = (&raw const level).expose_provenance() as u64;
        let result = unsafe { hypercall::raw(33, [6, pointer, 0, 0, 0, 0]) };
        judge.check("PHYSDEVOP_set_iopl", result == 0);
        let fault = unsafe { probe!("cli", "sti") };
        judge.check("cli and sti are nothing", fault.is_none());
        let port: u64;
        let fault = unsafe {
            probe!("mov edx, 0x2f0", "in al, dx"; inout("rax") 0u64 => port, out("rdx") _)
        };
        judge.check("in from an unclaimed port", fault.is_none() && port & 0xff == 0xff);
        let (signature, fault): (u32, _);
        unsafe {
            let low: u64;
            fault = probe!("push rbx", ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2",
                "mov eax, ebx", "pop rbx"; inout("rax") 0x4000_0000u64 => low, out("rcx") _,
                out("rdx") _);
            signature = low as u32;
        }
        // "XenV"
        judge.check("forced CPUID is Xen's", fault.is_none() && signature == 0x566e_6558);
        let pat: u64;
        let fault = unsafe {
            probe!("rdmsr", "shl rdx, 32", "or rax, rdx"; inout("rcx") 0x277u64 => _,
                out("rax") pat, out("rdx") _)
        };
        judge.check("the PAT MSR is Xen's", fault.is_none() && pat == 0x0000_0501_0007_0406);
    }

    /// The GS base the kernel sets is there after a hypercall and a trap.
    fn segment_bases(judge: &mut Judge) {
        let word = 0x1234_5678u64;
        let base = (&raw const word).expose_provenance() as u64;
        // SEGBASE_GS_KERNEL
        let result = unsafe { hypercall::raw(25, [2, base, 0, 0, 0, 0]) };
        let found: u64;
        let fault = unsafe { probe!("mov rax, gs:[0]"; out("rax") found) };
        judge.check("SEGBASE_GS_KERNEL", result == 0 && fault.is_none() && found == word);
        let fault = unsafe {
            probe!("mov rdx, rax", "shr rdx, 32", "wrmsr"; inout("rcx") 0xc000_0100u64 => _,
                inout("rax") base => _, out("rdx") _)
        };
        let found: u64;
        let read = unsafe { probe!("mov rax, fs:[0]"; out("rax") found) };
        judge.check("wrmsr FS_BASE", fault.is_none() && read.is_none() && found == word);
        let result = unsafe { hypercall::raw(25, [0, 1 << 63, 0, 0, 0, 0]) };
        judge.check("a non-canonical base is EINVAL", result == -22);
    }

    #[repr(align(4096))]
    struct Page([u8; 4096]);
    static PAGE: Page = Page([7; 4096]);

    /// Page tables and what a page fault says about them.
    fn page_tables(judge: &mut Judge, info: &StartInfo) {
        let address = (&raw const PAGE.0).expose_provenance() as u64;
        let frame = paging::mfn_of(info, address) * 4096;
        unsafe {
            let result = paging::set_entry(info, address, frame | 0x61);
            judge.check("mmu_update to read-only", result == 0);
            hypercall::raw(
                26,
                [[7u64, 0, 0].as_ptr().expose_provenance() as u64, 1, 0, 0x7ff0, 0, 0],
            );
            judge.expect(
                "write to read-only",
                probe!("mov [rcx], al"; inout("rcx") address => _),
                14,
                3,
            );
            let value: u64;
            let fault =
                probe!("movzx eax, byte ptr [rcx]"; inout("rcx") address => _, out("rax") value);
            judge.check("read of read-only", fault.is_none() && value == 7);
            // update_va_mapping, not present, flush this address.
            let result = hypercall::raw(14, [address, 0, 2, 0, 0, 0]);
            judge.check("update_va_mapping to nothing", result == 0);
            judge.expect(
                "read of nothing",
                probe!("mov al, [rcx]"; inout("rcx") address => _, out("rax") _),
                14,
                0,
            );
            let result = hypercall::raw(14, [address, frame | 0x63, 2, 0, 0, 0]);
            let fault = probe!("mov [rcx], al"; inout("rcx") address => _, inout("rax") 0u64 => _);
            judge.check("update_va_mapping back", result == 0 && fault.is_none());
            // The M2P is there, and not for writing.
            let m2p = 0xffff_8000_0000_0000 + frame / 4096 * 8;
            let found: u64;
            let fault = probe!("mov rax, [rcx]"; inout("rcx") m2p => _, out("rax") found);
            judge.check("M2P", fault.is_none() && found == paging::pfn_of(address));
            let fault = probe!("mov [rcx], rax"; inout("rcx") m2p => _, inout("rax") found => _);
            judge.check("M2P is read-only", fault.is_some_and(|t| t.vector == 14));
        }
    }

    /// Registers come back from a trap whose handler only returns.
    fn registers(judge: &mut Judge) {
        fn skip(frame: &mut Frame) -> bool {
            if frame.vector == 6 {
                frame.rip += 2;
                return true;
            }
            false
        }
        trap::set_hook(skip);
        let mut right = true;
        for i in 0..100u64 {
            let (mut a, mut b, mut c, mut d) = (i, i + 1, i + 2, i + 3);
            let (mut e, mut f) = (i + 4, i + 5);
            unsafe {
                core::arch::asm!("ud2", inout("rax") a, inout("rcx") b, inout("rdx") c,
                    inout("r11") d, inout("r9") e, inout("r15") f);
            }
            right &= [a, b, c, d, e, f] == [i, i + 1, i + 2, i + 3, i + 4, i + 5];
        }
        judge.check("registers over 100 traps", right);
    }

    fn main(info: &'static StartInfo) -> ! {
        trap::install();
        let mut judge = Judge { failed: 0 };
        faults(&mut judge);
        emulation(&mut judge);
        segment_bases(&mut judge);
        page_tables(&mut judge, info);
        registers(&mut judge);
        say!("traps: {} failed", judge.failed);
        let reason = if judge.failed == 0 {
            hypercall::SHUTDOWN_POWEROFF
        } else {
            hypercall::SHUTDOWN_CRASH
        };
        hypercall::shutdown(reason)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("traps is a Xen PV kernel: build it for x86_64-unknown-none");
}
