//! The system-call instruction itself, and pointers that lead nowhere.

use core::arch::asm;

use crate::ensure;
use crate::harness::{Check, Outcome, close, pipe};
use crate::protect::KERNEL_ADDRESSES;

pub const CHECKS: &[Check] = &[
    ("syscall_registers", registers),
    ("syscall_flags", flags),
    ("syscall_numbers", numbers),
    ("syscall_int80", int80),
    ("syscall_bad_pointers", bad_pointers),
    ("syscall_bad_iovec", bad_iovec),
    ("reads_of_proc", reads_of_proc),
];

/// A system call through the instruction, without libc.
pub fn raw(number: i64, args: [u64; 6]) -> i64 {
    let result;
    unsafe {
        asm!("syscall", inout("rax") number => result, in("rdi") args[0], in("rsi") args[1],
             in("rdx") args[2], in("r10") args[3], in("r8") args[4], in("r9") args[5],
             out("rcx") _, out("r11") _);
    }
    result
}

/// SYSCALL returns RIP in RCX and RFLAGS in R11 and keeps everything else.
fn registers() -> Outcome {
    for round in 0..1000u64 {
        let (rcx, r11, next): (u64, u64, u64);
        let (mut rdi, mut rsi, mut rdx, mut r8, mut r9, mut r10) =
            (round, round ^ 1, round ^ 2, round ^ 3, round ^ 4, round ^ 5);
        let flags: u64;
        unsafe {
            asm!("pushfq", "pop {flags}", "syscall", "2: lea {next}, [rip + 2b]",
                 flags = out(reg) flags, next = out(reg) next,
                 inout("rax") libc::SYS_getppid => _, inout("rdi") rdi, inout("rsi") rsi,
                 inout("rdx") rdx, inout("r8") r8, inout("r9") r9, inout("r10") r10,
                 out("rcx") rcx, out("r11") r11);
        }
        ensure!(rcx == next, "RCX {rcx:x}, next instruction {next:x}");
        ensure!(r11 == flags, "R11 {r11:x}, flags {flags:x}");
        let found = [rdi, rsi, rdx, r8, r9, r10];
        let wanted = [round, round ^ 1, round ^ 2, round ^ 3, round ^ 4, round ^ 5];
        ensure!(found == wanted, "{found:x?} instead of {wanted:x?}");
    }
    Ok(())
}

/// Flags survive a system call, odd ones included.
fn flags() -> Outcome {
    // DF, CF+ZF, OF, NT, AC, ID.
    for extra in [0u64, 0x400, 0x41, 0x800, 0x4000, 0x4_0000, 0x20_0000, 0x24_4c41] {
        let wanted = 0x202 | extra;
        let found: u64;
        unsafe {
            asm!("push {wanted}", "popfq", "syscall", "pushfq", "pop {found}", "push 0x202", "popfq",
                 wanted = in(reg) wanted, found = out(reg) found,
                 inout("rax") libc::SYS_getppid => _, out("rcx") _, out("r11") _);
        }
        ensure!(found & 0x24_4fd5 == wanted & 0x24_4fd5, "flags {wanted:x} became {found:x}");
        ensure!(found & 0x3200 == 0x200, "IF or IOPL: {found:x}");
    }
    Ok(())
}

fn numbers() -> Outcome {
    for number in [-1i64, 1000, 0x7fff_ffff, 0x4000_0000 + 5000, i64::MIN + 9999, 400_000] {
        let result = raw(number, [0; 6]);
        ensure!(result == -i64::from(libc::ENOSYS), "system call {number:#x}: {result}");
    }
    Ok(())
}

/// The 32-bit entry from 64-bit code.
fn int80() -> Outcome {
    let pid = i64::from(unsafe { libc::getpid() });
    for _ in 0..500 {
        let result: i64;
        // 20 = getpid.
        unsafe {
            asm!("int 0x80", inout("rax") 20i64 => result, out("r8") _, out("r9") _, out("r10") _,
                 out("r11") _);
        }
        ensure!(result == pid, "int 0x80: getpid {result}, pid {pid}");
    }
    Ok(())
}

fn expect_efault(what: &str, address: u64, result: i64) -> Outcome {
    ensure!(result == -i64::from(libc::EFAULT), "{what} with {address:#x}: {result}");
    Ok(())
}

fn bad_pointers() -> Outcome {
    let (from, to) = pipe()?;
    let descriptors = (from as u64, to as u64);
    unsafe { libc::write(to, c"0123456789abcdef".as_ptr().cast(), 16) };
    let call = |nr: i64, a: u64, b: u64, c: u64| raw(nr, [a, b, c, 0, 0, 0]);
    for &address in KERNEL_ADDRESSES.iter().chain(&[0, 8, 0x7fff_ffff_f000, u64::MAX]) {
        let efault = |what, result| expect_efault(what, address, result);
        efault("write", call(libc::SYS_write, descriptors.1, address, 1))?;
        efault("read", call(libc::SYS_read, descriptors.0, address, 1))?;
        efault("open", call(libc::SYS_open, address, 0, 0))?;
        efault("stat", call(libc::SYS_stat, c"/".as_ptr().expose_provenance() as u64, address, 0))?;
        efault("uname", call(libc::SYS_uname, address, 0, 0))?;
        efault("pipe", call(libc::SYS_pipe, address, 0, 0))?;
        efault("execve", call(libc::SYS_execve, address, 0, 0))?;
        efault("sysinfo", call(libc::SYS_sysinfo, address, 0, 0))?;
        if address != 0 {
            efault("nanosleep", call(libc::SYS_nanosleep, address, 0, 0))?;
            efault("sigaction", raw(libc::SYS_rt_sigaction, [10, address, 0, 8, 0, 0]))?;
            efault("getitimer", call(libc::SYS_getitimer, 0, address, 0))?;
        }
    }
    close(from);
    close(to);
    Ok(())
}

fn bad_iovec() -> Outcome {
    let (from, to) = pipe()?;
    for &address in KERNEL_ADDRESSES {
        let vector = [address, 16];
        let pointer = vector.as_ptr().expose_provenance() as u64;
        let result = raw(libc::SYS_writev, [to as u64, pointer, 1, 0, 0, 0]);
        ensure!(result == -i64::from(libc::EFAULT), "writev from {address:#x}: {result}");
        let result = raw(libc::SYS_writev, [to as u64, address, 1, 0, 0, 0]);
        ensure!(result == -i64::from(libc::EFAULT), "writev, vector at {address:#x}: {result}");
    }
    close(from);
    close(to);
    Ok(())
}

/// Long copies out of the kernel, through files that are there everywhere.
fn reads_of_proc() -> Outcome {
    for path in [
        "/proc/self/maps",
        "/proc/self/status",
        "/proc/cpuinfo",
        "/proc/interrupts",
        "/proc/meminfo",
    ] {
        for _ in 0..5 {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
            ensure!(!text.is_empty(), "{path} is empty");
        }
    }
    let mut random = vec![0u8; 20_000];
    let result = unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
    ensure!(result == 20_000, "getrandom: {result}");
    ensure!(random.iter().any(|&b| b != random[0]), "20000 equal random bytes");
    Ok(())
}
