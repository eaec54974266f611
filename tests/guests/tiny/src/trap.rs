//! The trap table, the callbacks and code that may fault.
//!
//! Xen enters a handler with RCX and R11 on top of the frame: rcx, r11, [error
//! code], rip, cs, rflags, rsp, ss. The stubs turn that into one [`Frame`] and
//! leave through the iret hypercall, whose frame is rax, r11, rcx, flags, rip,
//! cs, rflags, rsp, ss.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::hypercall::{self, Callback, TrapInfo};

/// Vector number the stubs give the event callback.
pub const EVENT: u64 = 32;
/// Vector number the stubs give the failsafe callback.
pub const FAILSAFE: u64 = 33;
/// Vector number the stubs give the system-call callback.
pub const SYSCALL: u64 = 34;
/// Stubs there are.
const STUBS: u64 = 35;
/// Bytes of a stub.
const STUB_BYTES: u64 = 32;

/// What a handler sees and may change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// R15 to R8.
    pub r15_to_r8: [u64; 8],
    /// RDI.
    pub rdi: u64,
    /// RSI.
    pub rsi: u64,
    /// RBP.
    pub rbp: u64,
    /// RBX.
    pub rbx: u64,
    /// RDX.
    pub rdx: u64,
    /// RCX.
    pub rcx: u64,
    /// RAX.
    pub rax: u64,
    /// Vector.
    pub vector: u64,
    /// Error code, 0 for vectors without.
    pub error: u64,
    /// RIP.
    pub rip: u64,
    /// CS, and in the upper half the saved upcall mask.
    pub cs: u64,
    /// RFLAGS, IF being the inverse of the saved upcall mask.
    pub rflags: u64,
    /// RSP.
    pub rsp: u64,
    /// SS.
    pub ss: u64,
}

/// All stubs, [`STUB_BYTES`] apart, and behind them what they share.
#[unsafe(naked)]
extern "C" fn stubs() {
    naked_asm!(
    ".set vector, 0",
    ".rept {stubs}",
    ".balign 32",
    "pop rcx",
    "pop r11",
    ".if vector == {failsafe}",
    // ds, es, fs, gs
    "add rsp, 32",
    ".endif",
    // 8, 10 to 14, 17, 21, 29, 30 have an error code.
    ".if ((0x60227d00 >> vector) & 1) == 0 || vector > 31",
    "push 0",
    ".endif",
    "push vector",
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    "trap_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "mov rbx, rsp",
    "and rsp, -16",
    "call {handle}",
    "mov rsp, rbx",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    // Vector and error code give way to the iret hypercall's frame.
    "add rsp, 16",
    "push 0",
    "push rcx",
    "push r11",
    "push rax",
    "mov eax, 23",
    "syscall",
    "ud2",
    stubs = const STUBS,
    failsafe = const FAILSAFE,
    handle = sym handle,
    )
}

/// Where a fault inside guarded code goes on; 0 outside.
pub static RECOVER_RIP: AtomicU64 = AtomicU64::new(0);
/// With this stack pointer.
pub static RECOVER_RSP: AtomicU64 = AtomicU64::new(0);

static LAST: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
static COUNT: AtomicU64 = AtomicU64::new(0);
static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sees every trap first; true if that was all.
pub type Hook = fn(&mut Frame) -> bool;

/// Installs the hook.
pub fn set_hook(hook: Hook) {
    HOOK.store(hook as *mut (), Ordering::Relaxed);
}

extern "C" fn handle(frame: &mut Frame) {
    let hook = HOOK.load(Ordering::Relaxed);
    if !hook.is_null() {
        // SAFETY: only `set_hook` stores here, and it stores a `Hook`.
        let hook = unsafe { core::mem::transmute::<*mut (), Hook>(hook) };
        if hook(frame) {
            return;
        }
    }
    let recover = RECOVER_RIP.swap(0, Ordering::Relaxed);
    assert!(recover != 0, "trap {frame:x?}");
    let noted = [frame.vector, frame.error, frame.rip, frame.cs, frame.rflags, frame.ss];
    for (slot, value) in LAST.iter().zip(noted) {
        slot.store(value, Ordering::Relaxed);
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    frame.rip = recover;
    frame.rsp = RECOVER_RSP.load(Ordering::Relaxed);
    // TF, DF, AC, NT end here.
    frame.rflags &= !0x4_4500;
}

/// A trap that guarded code raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Vector.
    pub vector: u64,
    /// Error code.
    pub error: u64,
    /// RIP in the frame.
    pub rip: u64,
    /// CS in the frame.
    pub cs: u64,
    /// RFLAGS in the frame.
    pub rflags: u64,
    /// SS in the frame.
    pub ss: u64,
}

/// Traps recovered from so far.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// The last trap recovered from.
pub fn last() -> Trap {
    let [vector, error, rip, cs, rflags, ss] =
        core::array::from_fn(|i| LAST.get(i).map_or(0, |slot| slot.load(Ordering::Relaxed)));
    Trap { vector, error, rip, cs, rflags, ss }
}

/// Address of the stub for `vector`.
pub fn stub(vector: u64) -> u64 {
    // The first stub is aligned; its function need not be.
    let first = ((stubs as *const ()).expose_provenance() as u64).next_multiple_of(STUB_BYTES);
    first + vector * STUB_BYTES
}

/// Registers every vector and callback; int3 and overflow are open to all.
pub fn install() {
    let mut table = [TrapInfo::default(); 33];
    for (entry, vector) in table.iter_mut().take(32).zip(0u8..) {
        let open = if matches!(vector, 3 | 4) { 3 } else { 0 };
        *entry =
            TrapInfo { vector, flags: open, cs: KERNEL_CS, pad: 0, address: stub(vector.into()) };
    }
    assert!(hypercall::set_trap_table(&table) == 0, "set_trap_table");
    for (kind, vector) in [(0u16, EVENT), (1, FAILSAFE), (2, SYSCALL)] {
        let callback = Callback { kind, flags: 0, pad: 0, address: stub(vector) };
        assert!(hypercall::register_callback(&callback) == 0, "callback {kind}");
    }
}

/// FLAT_KERNEL_CS64, `xen/include/public/arch-x86/xen-x86_64.h`.
pub const KERNEL_CS: u16 = 0xe033;

/// Runs instructions; the trap they raised, if any. R8 to R11 are free for
/// them; operands follow a semicolon.
#[macro_export]
macro_rules! probe {
    ($($insn:literal),+ $(; $($operand:tt)*)?) => {{
        let before = $crate::trap::count();
        core::arch::asm!(
            "lea r11, [rip + 2f]",
            "mov [rip + {recover_rsp}], rsp",
            "mov [rip + {recover_rip}], r11",
            $($insn,)+
            "2:",
            "mov qword ptr [rip + {recover_rip}], 0",
            recover_rip = sym $crate::trap::RECOVER_RIP,
            recover_rsp = sym $crate::trap::RECOVER_RSP,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            $($($operand)*)?
        );
        ($crate::trap::count() != before).then($crate::trap::last)
    }};
}
