//! What every tiny guest needs: the Xen notes and entry point, hypercalls, a
//! console, the start info page and a way out.
//!
//! These kernels know nothing of Pontoon: they run under any Xen that loads a
//! 64-bit PV kernel, which is what makes them a reference. They build for
//! `x86_64-unknown-none`; on a host the crate is empty, so that workspace-wide
//! commands work.
//!
//! Facts used here are from `xen/include/public/{xen,elfnote,sched}.h`.
#![no_std]
#![cfg(target_os = "none")]
#![expect(unsafe_code, reason = "a kernel without an operating system below it")]

pub mod console;
pub mod hypercall;
pub mod paging;
pub mod random;
pub mod start_info;
pub mod trap;
pub mod vcpu;

pub use console::Console;
pub use random::Random;
pub use start_info::StartInfo;

/// The stack the guest runs on; the boot stack is one page only.
pub const STACK_BYTES: usize = 64 * 1024;

/// Makes `$main` (a `fn(&'static StartInfo) -> !`) the kernel: emits the notes,
/// the hypercall page and the entry point.
///
/// The builder enters with RSI = start info, RSP = boot stack, flat segments,
/// IF on, the upcall masked.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        extern "C" fn guest_entry(info: &'static $crate::StartInfo) -> ! {
            let main: fn(&'static $crate::StartInfo) -> ! = $main;
            main(info)
        }

        core::arch::global_asm!(
            // A note is {name size, description size, type, "Xen\0", description}.
            ".macro pv_note type, value:vararg",
            ".balign 4",
            ".long 4, 8f - 7f, \\type",
            ".asciz \"Xen\"",
            "7: \\value",
            "8:",
            ".balign 4",
            ".endm",
            ".pushsection .note.Xen, \"a\", @note",
            "pv_note 1, .quad _start",
            "pv_note 2, .quad hypercall_page",
            "pv_note 3, .quad 0xffffffff80000000",
            "pv_note 4, .quad 0",
            "pv_note 5, .asciz \"xen-3.0\"",
            "pv_note 6, .asciz \"tiny\"",
            "pv_note 8, .asciz \"generic\"",
            "pv_note 9, .asciz \"yes\"",
            "pv_note 10, .asciz \"!writable_page_tables|pae_pgdir_above_4gb\"",
            ".popsection",
            ".pushsection .bss.pv_stack, \"aw\", @nobits",
            ".balign 4096",
            "pv_stack: .skip {stack}",
            "pv_stack_end:",
            ".popsection",
            ".pushsection .text.hypercall_page, \"ax\", @progbits",
            ".balign 4096",
            ".global hypercall_page",
            "hypercall_page: .skip 4096, 0xcc",
            ".popsection",
            ".pushsection .text.pv_start, \"ax\", @progbits",
            ".global _start",
            "_start:",
            "cld",
            "lea rsp, [rip + pv_stack_end]",
            "xor ebp, ebp",
            "mov rdi, rsi",
            "call {entry}",
            "ud2",
            ".popsection",
            entry = sym guest_entry,
            stack = const $crate::STACK_BYTES,
        );

        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
            use core::fmt::Write as _;
            let _ = writeln!($crate::Console::new(), "FAIL panic: {info}");
            $crate::hypercall::shutdown($crate::hypercall::SHUTDOWN_CRASH)
        }
    };
}
