//! Instructions that may fault, and what the fault looked like.
//!
//! `probe!` runs instructions with a recovery address; the signal handler
//! notes the fault and goes on there, with the stack pointer as it was.

use core::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::harness::{Outcome, os_error};

/// Where the handler resumes, and on which stack.
pub static RECOVER_RIP: AtomicU64 = AtomicU64::new(0);
/// See [`RECOVER_RIP`].
pub static RECOVER_RSP: AtomicU64 = AtomicU64::new(0);

static SIGNAL: AtomicU64 = AtomicU64::new(0);
static CODE: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);
static TRAP: AtomicU64 = AtomicU64::new(0);
static ERROR: AtomicU64 = AtomicU64::new(0);

/// One caught fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Signal number.
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub address: u64,
    /// Where.
    pub rip: u64,
    /// Vector, from the frame.
    pub trap: u64,
    /// Error code, from the frame.
    pub error: u64,
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    unsafe {
        // The handler inherits AC.
        core::arch::asm!("pushfq", "and dword ptr [rsp], ~0x40000", "popfq");
        let regs = &mut (*context).uc_mcontext.gregs;
        let greg = |index: i32| regs[index as usize].cast_unsigned();
        CODE.store(i64::from((*info).si_code).cast_unsigned(), Ordering::Relaxed);
        ADDRESS.store((*info).si_addr().expose_provenance() as u64, Ordering::Relaxed);
        RIP.store(greg(libc::REG_RIP), Ordering::Relaxed);
        TRAP.store(greg(libc::REG_TRAPNO), Ordering::Relaxed);
        ERROR.store(greg(libc::REG_ERR), Ordering::Relaxed);
        SIGNAL.store(signal as u64, Ordering::Relaxed);
        regs[libc::REG_RIP as usize] = RECOVER_RIP.load(Ordering::Relaxed).cast_signed();
        regs[libc::REG_RSP as usize] = RECOVER_RSP.load(Ordering::Relaxed).cast_signed();
        // Code in a 32-bit segment faults, too; recovery is 64-bit.
        let selectors = &mut regs[libc::REG_CSGSFS as usize];
        *selectors = *selectors & !0xffff & !(0xffff << 48) | 0x33 | 0x2b << 48;
        // TF, DF, AC, NT must not survive into ordinary code.
        regs[libc::REG_EFL as usize] &= !0x4_4500;
    }
}

/// Installs a handler that gets the signal's details.
pub fn on_signal(
    signal: i32,
    handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void),
    flags: i32,
) -> Outcome {
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | flags;
    match unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(os_error("sigaction")),
    }
}

/// Gives this thread an alternate signal stack; its lowest address.
pub fn alternate_stack() -> Result<u64, String> {
    const BYTES: usize = 128 * 1024;
    let stack = crate::memory::map(BYTES, 0)?;
    let wanted = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: BYTES };
    match unsafe { libc::sigaltstack(&wanted, ptr::null_mut()) } {
        0 => Ok(stack.expose_provenance() as u64),
        _ => Err(os_error("sigaltstack")),
    }
}

/// Prepares this process for `probe!`.
pub fn catch() -> Outcome {
    alternate_stack()?;
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
        on_signal(signal, handler, libc::SA_ONSTACK | libc::SA_NODEFER)?;
    }
    Ok(())
}

/// The fault since the last call.
pub fn take() -> Option<Fault> {
    let signal = SIGNAL.swap(0, Ordering::Relaxed);
    (signal != 0).then(|| Fault {
        signal: signal as i32,
        code: CODE.load(Ordering::Relaxed) as i32,
        address: ADDRESS.load(Ordering::Relaxed),
        rip: RIP.load(Ordering::Relaxed),
        trap: TRAP.load(Ordering::Relaxed),
        error: ERROR.load(Ordering::Relaxed),
    })
}

/// Runs the instructions; `Option<Fault>` says what they raised, if anything.
/// RAX, RCX, RDX, R8 to R11 are free for them; operands follow a semicolon.
#[macro_export]
macro_rules! probe {
    ($($insn:literal),+ $(; $($operand:tt)*)?) => {{
        core::arch::asm!(
            "lea r11, [rip + 2f]",
            "mov [rip + {recover_rip}], r11",
            "mov [rip + {recover_rsp}], rsp",
            $($insn,)+
            "2:",
            recover_rip = sym $crate::fault::RECOVER_RIP,
            recover_rsp = sym $crate::fault::RECOVER_RSP,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            $($($operand)*)?
        );
        $crate::fault::take()
    }};
}

/// The fault must be this signal with this code.
pub fn expect(what: &str, fault: Option<Fault>, signal: i32, code: i32) -> Outcome {
    match fault {
        Some(fault) if fault.signal == signal && fault.code == code => Ok(()),
        other => Err(format!("{what}: expected signal {signal} code {code}, got {other:x?}")),
    }
}

/// The fault must be this signal.
pub fn expect_signal(what: &str, fault: Option<Fault>, signal: i32) -> Outcome {
    match fault {
        Some(fault) if fault.signal == signal => Ok(()),
        other => Err(format!("{what}: expected signal {signal}, got {other:x?}")),
    }
}

/// Executable memory holding `code`, below 4 GiB.
pub fn code(code: &[u8]) -> Result<*mut u8, String> {
    let bytes = code.len().next_multiple_of(4096);
    let page = crate::memory::map(bytes, libc::MAP_32BIT)?;
    unsafe {
        ptr::copy_nonoverlapping(code.as_ptr(), page, code.len());
        if libc::mprotect(page.cast(), bytes, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            return Err(os_error("mprotect"));
        }
    }
    Ok(page)
}

/// Calls generated code; what it raised.
///
/// # Safety
/// The code returns or faults, and keeps the registers a C function keeps.
pub unsafe fn call(code: *mut u8) -> Option<Fault> {
    unsafe { probe!("call rax"; inout("rax") code => _, out("rcx") _, out("rdx") _) }
}
