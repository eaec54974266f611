//! 32-bit code: in segments of a 64-bit program, and as a program of its own.

use core::arch::global_asm;
use std::sync::atomic::Ordering;

use crate::ensure;
use crate::fault::{self, Fault, RECOVER_RIP, RECOVER_RSP, catch, expect_signal};
use crate::harness::{Check, Ending, Outcome, in_child, must};
use crate::memory::map;
use crate::segments::{CODE32, UserDesc, write_ldt};

pub const CHECKS: &[Check] = &[
    ("compat_int80", compat_int80),
    ("compat_syscall", compat_syscall),
    ("compat_exceptions", compat_exceptions),
    ("compat_privileged", compat_privileged),
    ("compat_timer", compat_timer),
    ("ldt_code", ldt_code),
    ("program32", program32),
    ("program32_sysenter", program32_sysenter),
    ("program32_syscall", program32_syscall),
];

// stress_enter32(selector, offset, stack, data) jumps into 32-bit code and
// comes back with its EAX. The 32-bit code returns by a far return to 0x33 and
// the address at [edi], a stub below 4 GiB that jumps to stress_back32.
global_asm!(
    ".pushsection .bss",
    "stress_saved_rsp: .skip 8",
    ".popsection",
    ".pushsection .text",
    "stress_enter32:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + stress_saved_rsp], rsp",
    "mov rsp, rdx",
    "push rdi",
    "push rsi",
    "mov edi, ecx",
    "retfq",
    "stress_back32:",
    "mov ecx, 0x2b",
    "mov ss, ecx",
    "mov rsp, [rip + stress_saved_rsp]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "xor ecx, ecx",
    "mov ds, ecx",
    "mov es, ecx",
    "ret",
    ".popsection",
    // The 32-bit pieces; each is copied to low memory and run there.
    ".pushsection .rodata",
    ".code32",
    ".macro piece name",
    // Global: the code may be compiled in another unit.
    ".global \\name",
    "\\name:",
    "mov ecx, 0x2b",
    "mov ds, ecx",
    "mov es, ecx",
    ".endm",
    ".macro piece_end name",
    "push 0x33",
    "push dword ptr [edi]",
    "retf",
    ".global \\name",
    "\\name:",
    ".endm",
    "piece stress_int80",
    "mov eax, 20",
    "int 0x80",
    "piece_end stress_int80_end",
    "piece stress_syscall32",
    "push ebp",
    "mov ebp, ecx",
    "mov eax, 20",
    "syscall",
    "mov ecx, 0x2b",
    "mov ss, ecx",
    "pop ebp",
    "piece_end stress_syscall32_end",
    "piece stress_into",
    "mov al, 0x7f",
    "add al, 1",
    "into",
    "piece_end stress_into_end",
    "piece stress_bound",
    "mov eax, 0x7fffffff",
    "bound eax, [edi + 16]",
    "piece_end stress_bound_end",
    "piece stress_aam",
    ".byte 0xd4, 0",
    "piece_end stress_aam_end",
    "piece stress_high",
    "mov eax, [0xfffff000]",
    "piece_end stress_high_end",
    "piece stress_spin",
    "mov ecx, [edi + 8]",
    "xor eax, eax",
    "4: add eax, ecx",
    "dec ecx",
    "jnz 4b",
    "piece_end stress_spin_end",
    ".code64",
    ".popsection",
);

unsafe extern "C" {
    fn stress_enter32(selector: u64, offset: u64, stack: u64, data: u64) -> u64;
    fn stress_back32();
    static stress_int80: u8;
    static stress_int80_end: u8;
    static stress_syscall32: u8;
    static stress_syscall32_end: u8;
    static stress_into: u8;
    static stress_into_end: u8;
    static stress_bound: u8;
    static stress_bound_end: u8;
    static stress_aam: u8;
    static stress_aam_end: u8;
    static stress_high: u8;
    static stress_high_end: u8;
    static stress_spin: u8;
    static stress_spin_end: u8;
}

macro_rules! piece {
    ($start:ident, $end:ident) => {
        unsafe {
            let (start, end) = (&raw const $start, &raw const $end);
            core::slice::from_raw_parts(start, end.offset_from_unsigned(start))
        }
    };
}

const USER_CODE32: u64 = 0x23;
const STUB_BYTES: usize = 16;

/// 32-bit code, its stack and data, all below 4 GiB.
struct Low {
    page: u64,
    stack: u64,
    data: u64,
}

impl Low {
    fn new(piece: &[u8]) -> Result<Self, String> {
        let back = stress_back32 as *const () as u64;
        // movabs rcx, back; jmp rcx; then the piece.
        let mut code = vec![0x48, 0xb9];
        code.extend_from_slice(&back.to_le_bytes());
        code.extend_from_slice(&[0xff, 0xe1]);
        code.resize(STUB_BYTES, 0x90);
        code.extend_from_slice(piece);
        let page = fault::code(&code)?.expose_provenance() as u64;
        let area = map(4 * 4096, libc::MAP_32BIT)?;
        unsafe { area.cast::<u64>().write(page) };
        let data = area.expose_provenance() as u64;
        Ok(Self { page, stack: data + 3 * 4096, data })
    }

    /// Runs it; EAX, or the fault that ended it.
    fn run(&self, selector: u64, base: u64) -> Result<u32, Fault> {
        let offset = self.page + STUB_BYTES as u64 - base;
        // A fault comes back by the same way; the stack is loaded there.
        RECOVER_RIP.store(stress_back32 as *const () as u64, Ordering::Relaxed);
        RECOVER_RSP.store(self.stack, Ordering::Relaxed);
        let eax = unsafe { stress_enter32(selector, offset, self.stack, self.data) };
        fault::take().map_or(Ok(eax as u32), Err)
    }
}

fn expect_pid(what: &str, result: Result<u32, Fault>) -> Outcome {
    let pid = unsafe { libc::getpid() }.cast_unsigned();
    ensure!(result == Ok(pid), "{what}: {result:x?}, pid {pid:x}");
    Ok(())
}

fn compat_int80() -> Outcome {
    catch()?;
    let low = Low::new(piece!(stress_int80, stress_int80_end))?;
    for _ in 0..500 {
        expect_pid("int 0x80", low.run(USER_CODE32, 0))?;
    }
    Ok(())
}

/// Intel's processors have no 32-bit SYSCALL. QEMU's TCG executes it there all
/// the same, at an entry point no kernel has set (address 0, in ring 0).
fn has_syscall32() -> bool {
    let vendor = core::arch::x86_64::__cpuid(0);
    vendor.ebx != u32::from_le_bytes(*b"Genu")
}

/// Linux returns from the 32-bit SYSCALL to a place in the 32-bit vDSO, which a
/// 64-bit program does not have: nothing but a fault can come of it.
/// `program32_syscall` has the version that works.
fn compat_syscall() -> Outcome {
    if !has_syscall32() {
        return Ok(());
    }
    for _ in 0..20 {
        let ending = in_child(|| {
            let Ok(low) = Low::new(piece!(stress_syscall32, stress_syscall32_end)) else {
                return 99;
            };
            let _ = low.run(USER_CODE32, 0);
            0
        })?;
        let known = [libc::SIGSEGV, libc::SIGILL, libc::SIGBUS, libc::SIGTRAP];
        let right = matches!(ending, Ending::Killed(signal) if known.contains(&signal));
        ensure!(right, "{ending:?}");
    }
    Ok(())
}

fn compat_exceptions() -> Outcome {
    catch()?;
    let pieces = [
        ("into", piece!(stress_into, stress_into_end), libc::SIGSEGV, 4),
        ("bound", piece!(stress_bound, stress_bound_end), libc::SIGSEGV, 5),
        ("aam 0", piece!(stress_aam, stress_aam_end), libc::SIGFPE, 0),
        ("read of 0xfffff000", piece!(stress_high, stress_high_end), libc::SIGSEGV, 14),
    ];
    for (what, piece, signal, vector) in pieces {
        let low = Low::new(piece)?;
        for _ in 0..50 {
            let result = low.run(USER_CODE32, 0);
            expect_signal(what, result.err(), signal)?;
            let found = result.err().map(|f| f.trap);
            ensure!(found == Some(vector), "{what}: vector {found:?} instead of {vector}");
        }
    }
    Ok(())
}

fn compat_privileged() -> Outcome {
    catch()?;
    for bytes in
        [&[0xf4_u8][..], &[0xfa], &[0xec], &[0x0f, 0x32], &[0x0f, 0x22, 0xd8], &[0xcd, 0x20]]
    {
        let result = Low::new(bytes)?.run(USER_CODE32, 0);
        expect_signal(&format!("{bytes:x?} in 32-bit code"), result.err(), libc::SIGSEGV)?;
    }
    Ok(())
}

/// Timer interrupts and signals hit 32-bit code.
fn compat_timer() -> Outcome {
    extern "C" fn tick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    catch()?;
    fault::on_signal(libc::SIGALRM, tick, libc::SA_ONSTACK)?;
    let ms = libc::timeval { tv_sec: 0, tv_usec: 1000 };
    let timer = libc::itimerval { it_interval: ms, it_value: ms };
    must(
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, core::ptr::null_mut()) },
        "setitimer",
    )?;
    let low = Low::new(piece!(stress_spin, stress_spin_end))?;
    for round in 0..20u32 {
        let count = 1_000_000 + round;
        let data = core::ptr::with_exposed_provenance_mut::<u32>(low.data as usize + 8);
        unsafe { data.write(count) };
        let wanted = (u64::from(count) * (u64::from(count) + 1) / 2) as u32;
        let result = low.run(USER_CODE32, 0);
        ensure!(result == Ok(wanted), "round {round}: {result:x?} instead of {wanted:x}");
    }
    Ok(())
}

/// Code in a segment of the LDT, with a base of its own.
fn ldt_code() -> Outcome {
    catch()?;
    let low = Low::new(piece!(stress_int80, stress_int80_end))?;
    let desc = UserDesc { entry: 2, base: low.page as u32, limit: 0xfff, flags: CODE32 };
    let selector = write_ldt(desc)?;
    for _ in 0..200 {
        expect_pid("int 0x80 in an LDT segment", low.run(u64::from(selector), low.page))?;
    }
    // Beyond the limit; QEMU's TCG checks none.
    let desc = UserDesc { limit: 0x12, ..desc };
    write_ldt(desc)?;
    let result = low.run(u64::from(selector), low.page);
    match result {
        Ok(_) => expect_pid("code beyond its limit", result),
        Err(fault) => expect_signal("code beyond its limit", Some(fault), libc::SIGSEGV),
    }
}

// A whole 32-bit program: the vDSO's system call against int 0x80, a signal,
// with one argument the bare SYSENTER, with two the bare
// SYSCALL. Status 0 if all agree.
global_asm!(
    ".pushsection .rodata",
    ".code32",
    "stress_program:",
    "mov esi, [esp]",
    "lea ebx, [esp + esi * 4 + 8]",
    "2: mov eax, [ebx]",
    "add ebx, 4",
    "test eax, eax",
    "jnz 2b",
    "3: mov eax, [ebx]",
    "mov edi, [ebx + 4]",
    "add ebx, 8",
    "cmp eax, 32", // AT_SYSINFO
    "je 4f",
    "test eax, eax",
    "jnz 3b",
    "xor edi, edi",
    "4: mov eax, 20",
    "int 0x80",
    "push eax",
    "test edi, edi",
    "jz 6f",
    "push 300",
    "5: mov eax, 20",
    "call edi",
    "mov ebx, 1",
    "cmp eax, [esp + 4]",
    "jne 9f",
    "dec dword ptr [esp]",
    "jnz 5b",
    "pop ecx",
    // rt_sigaction(SIGUSR1, {handler}, 0, 8); kill(pid, SIGUSR1)
    "6: push esi",
    "call 7f",
    "7: pop ebp",
    // Intel's syntax has no differences of labels in addresses; in bytes:
    // lea eax, [ebp + stress_handler - 7b]
    ".byte 0x8d, 0x85",
    ".long stress_handler - 7b",
    "push 0",
    "push 0",
    "push 0",
    "push 0",
    "push eax",
    "mov ecx, esp",
    "mov ebx, 10",
    "xor edx, edx",
    "mov esi, 8",
    "mov eax, 174",
    "int 0x80",
    "add esp, 20",
    "mov ebx, 2",
    "test eax, eax",
    "jnz 9f",
    "mov ebx, [esp + 4]",
    "mov ecx, 10",
    "mov eax, 37",
    "int 0x80",
    "mov ebx, 3",
    // cmp dword ptr [ebp + stress_seen - 7b], 1
    ".byte 0x83, 0xbd",
    ".long stress_seen - 7b",
    ".byte 1",
    "jne 9f",
    "pop esi",
    "cmp esi, 1",
    "je 8f",
    "mov eax, 20",
    "call stress_fast",
    "mov ebx, 4",
    "cmp eax, [esp]",
    "jne 9f",
    "8: xor ebx, ebx",
    "9: mov eax, 1",
    "int 0x80",
    // The vDSO's landing pad pops these three and returns.
    "stress_fast:",
    "push ecx",
    "push edx",
    "push ebp",
    "cmp esi, 3",
    "je 2f",
    "mov ebp, esp",
    // With NT and DF: SYSENTER leaves them to the kernel.
    "pushfd",
    "or dword ptr [esp], 0x4400",
    "popfd",
    "sysenter",
    "2: mov ebp, ecx",
    "syscall",
    "stress_handler:",
    "call 2f",
    "2: pop eax",
    // inc dword ptr [eax + stress_seen - 2b]
    ".byte 0xff, 0x80",
    ".long stress_seen - 2b",
    "ret",
    ".balign 4",
    "stress_seen: .long 0",
    "stress_program_end:",
    ".code64",
    ".popsection",
);

unsafe extern "C" {
    static stress_program: u8;
    static stress_program_end: u8;
}

/// A 32-bit ELF executable of one segment.
fn elf32(code: &[u8]) -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let size = HEADERS + code.len() as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, value: u16| file.extend_from_slice(&value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend_from_slice(&value.to_le_bytes());
    // ET_EXEC, EM_386.
    half(&mut file, 2);
    half(&mut file, 3);
    for value in [1, BASE + HEADERS, 52, 0, 0] {
        word(&mut file, value);
    }
    for value in [52, 32, 1, 40, 0, 0] {
        half(&mut file, value);
    }
    // PT_LOAD, all of the file, readable, writable, executable.
    for value in [1, 0, BASE, BASE, size, size, 7, 4096] {
        word(&mut file, value);
    }
    file.extend_from_slice(code);
    file
}

fn run_program(arguments: usize) -> Result<Ending, String> {
    let file = elf32(piece!(stress_program, stress_program_end));
    let fd = unsafe { libc::memfd_create(c"program32".as_ptr(), 0) };
    must(fd, "memfd_create")?;
    must(unsafe { libc::write(fd, file.as_ptr().cast(), file.len()) } as i64, "write")?;
    let ending = in_child(|| {
        let mut argv = [c"program32".as_ptr(); 4];
        if let Some(last) = argv.get_mut(1 + arguments) {
            *last = core::ptr::null();
        }
        let envp = [core::ptr::null()];
        // fexecve finds no program in a memfd on 5.10.223, not even natively.
        let path = format!("/proc/self/fd/{fd}\0");
        unsafe { libc::execve(path.as_ptr().cast(), argv.as_ptr(), envp.as_ptr()) };
        let error = std::io::Error::last_os_error().raw_os_error();
        if error == Some(libc::ENOEXEC) { 77 } else { 99 }
    });
    crate::harness::close(fd);
    ending
}

fn program32() -> Outcome {
    for _ in 0..10 {
        let ending = run_program(0)?;
        // 77: a kernel without 32-bit programs.
        ensure!(matches!(ending, Ending::Exited(0 | 77)), "{ending:?}");
    }
    Ok(())
}

/// AMD processors have no SYSENTER in long mode: SIGILL is right, too. So is
/// SIGSEGV, where the kernel (or Xen, on AMD) leaves SYSENTER_CS zero.
fn program32_sysenter() -> Outcome {
    for _ in 0..10 {
        let ending = run_program(1)?;
        let right =
            matches!(ending, Ending::Exited(0 | 77) | Ending::Killed(libc::SIGILL | libc::SIGSEGV));
        ensure!(right, "{ending:?}");
    }
    Ok(())
}

fn program32_syscall() -> Outcome {
    if !has_syscall32() {
        return Ok(());
    }
    for _ in 0..10 {
        let ending = run_program(2)?;
        let right = matches!(ending, Ending::Exited(0 | 77) | Ending::Killed(libc::SIGILL));
        ensure!(right, "{ending:?}");
    }
    Ok(())
}
