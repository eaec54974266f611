//! Each exception a program can raise, and the signal it becomes.

use core::arch::asm;

use crate::fault::{self, catch, expect, expect_signal};
use crate::harness::{Check, Outcome, must};
use crate::memory::{PAGE, jump_to, map, read_at};
use crate::{ensure, probe};

/// `SI_KERNEL`.
const SI_KERNEL: i32 = 0x80;
const FPE_INTDIV: i32 = 1;
const FPE_FLTDIV: i32 = 3;
const ILL_ILLOPN: i32 = 2;
const TRAP_TRACE: i32 = 2;
const BUS_ADRALN: i32 = 1;

pub const CHECKS: &[Check] = &[
    ("divide_error", divide_error),
    ("invalid_opcode", invalid_opcode),
    ("invalid_opcode_at_page_end", invalid_opcode_at_page_end),
    ("general_protection", general_protection),
    ("stack_fault", stack_fault),
    ("breakpoint", breakpoint),
    ("breakpoint_storm", breakpoint_storm),
    ("icebp", icebp),
    ("overflow", overflow),
    ("trap_flag", trap_flag),
    ("trap_flag_over_syscall", trap_flag_over_syscall),
    ("direction_flag", direction_flag),
    ("alignment_check", alignment_check),
    ("x87_exception", x87_exception),
    ("page_fault_error_codes", page_fault_error_codes),
    ("exception_registers", exception_registers),
];

fn divide_error() -> Outcome {
    catch()?;
    for _ in 0..200 {
        let fault = unsafe {
            probe!("div ecx"; inout("rax") 1u64 => _, inout("rdx") 0u64 => _, inout("rcx") 0u64 => _)
        };
        expect("division by zero", fault, libc::SIGFPE, FPE_INTDIV)?;
        ensure!(fault.map(|f| (f.trap, f.error)) == Some((0, 0)), "frame: {fault:x?}");
        let fault = unsafe {
            probe!("idiv ecx"; inout("rax") 0x8000_0000u64 => _,
                inout("rdx") 0xffff_ffffu64 => _, inout("rcx") 0xffff_ffffu64 => _)
        };
        expect("quotient overflow", fault, libc::SIGFPE, FPE_INTDIV)?;
    }
    Ok(())
}

fn invalid_opcode() -> Outcome {
    catch()?;
    expect("ud2", unsafe { probe!("ud2") }, libc::SIGILL, ILL_ILLOPN)?;
    // ud1; into, push es and lock nop do not exist in 64-bit mode.
    for bytes in [&[0x0f, 0xb9, 0xc0][..], &[0xce], &[0x06], &[0xf0, 0x90], &[0x0f, 0x04]] {
        let page = fault::code(bytes)?;
        expect_signal(&format!("{bytes:x?}"), unsafe { fault::call(page) }, libc::SIGILL)?;
    }
    Ok(())
}

/// Xen, and the shim with it, look behind a UD2 for the forced-emulation prefix. That fault is the
/// program's then, not its kernel's.
fn invalid_opcode_at_page_end() -> Outcome {
    catch()?;
    let mut bytes = vec![0x90; PAGE + 1];
    bytes[PAGE - 2..PAGE].copy_from_slice(&[0x0f, 0x0b]);
    let page = fault::code(&bytes)?;
    let behind = page.wrapping_add(PAGE);
    must(unsafe { libc::munmap(behind.cast(), PAGE) }, "munmap")?;
    let fault = unsafe { fault::call(page.wrapping_add(PAGE - 2)) };
    let user = 4;
    let at_behind = |f: fault::Fault| {
        (f.signal, f.trap, f.error & user, f.address)
            == (libc::SIGSEGV, 14, user, behind.expose_provenance() as u64)
    };
    ensure!(fault.is_some_and(|f| f.signal == libc::SIGILL || at_behind(f)), "{fault:x?}");
    Ok(())
}

fn general_protection() -> Outcome {
    catch()?;
    for address in [0x8000_0000_0000u64, 0xdead_beef_dead_beef, 0xffff_7fff_ffff_ffff, 1 << 63] {
        let fault = read_at(address);
        expect("non-canonical read", fault, libc::SIGSEGV, SI_KERNEL)?;
        ensure!(fault.map(|f| f.trap) == Some(13), "vector: {fault:x?}");
        expect("non-canonical call", jump_to(address), libc::SIGSEGV, SI_KERNEL)?;
    }
    Ok(())
}

fn stack_fault() -> Outcome {
    catch()?;
    let fault =
        unsafe { probe!("mov rsp, rcx", "push rax"; inout("rcx") 0x8000_0000_1000u64 => _) };
    // QEMU's TCG raises #GP instead of #SS.
    expect_signal("push with a non-canonical RSP", fault, libc::SIGBUS)
        .or_else(|_| expect("push with a non-canonical RSP", fault, libc::SIGSEGV, SI_KERNEL))?;
    let fault = unsafe { probe!("mov rsp, rcx", "push rax"; inout("rcx") 8u64 => _) };
    expect_signal("push to address 0", fault, libc::SIGSEGV)?;
    let fault =
        unsafe { probe!("mov rsp, rcx", "push rax"; inout("rcx") 0xffff_8000_0000_1000u64 => _) };
    expect_signal("push to the hypervisor", fault, libc::SIGSEGV)
}

fn breakpoint() -> Outcome {
    catch()?;
    for form in [&[0xcc_u8, 0xc3][..], &[0xcd, 3, 0xc3]] {
        let page = fault::code(form)?;
        let found = unsafe { fault::call(page) };
        expect("int3", found, libc::SIGTRAP, SI_KERNEL)?;
        let behind = page.expose_provenance() as u64 + form.len() as u64 - 1;
        ensure!(found.map(|f| f.rip) == Some(behind), "{found:x?}, expected RIP {behind:x}");
    }
    Ok(())
}

fn breakpoint_storm() -> Outcome {
    catch()?;
    for i in 0..3000 {
        expect("int3", unsafe { probe!("int3") }, libc::SIGTRAP, SI_KERNEL)
            .map_err(|why| format!("round {i}: {why}"))?;
    }
    Ok(())
}

/// 0xf1: QEMU's TCG gets it wrong even without a hypervisor, so any signal
/// (and none) will do; the machine has to survive.
fn icebp() -> Outcome {
    catch()?;
    let fault = unsafe { probe!(".byte 0xf1") };
    let known = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGILL];
    ensure!(fault.is_none_or(|f| known.contains(&f.signal)), "{fault:x?}");
    Ok(())
}

fn overflow() -> Outcome {
    catch()?;
    // The gate of vector 4 is open to programs; the kernel sends SIGSEGV.
    let found = unsafe { probe!("int 4") };
    expect_signal("int 4", found, libc::SIGSEGV)?;
    ensure!(found.map(|f| f.trap) == Some(4), "vector: {found:x?}");
    Ok(())
}

fn trap_flag() -> Outcome {
    catch()?;
    for _ in 0..100 {
        let fault =
            unsafe { probe!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop", "nop") };
        expect("trap flag", fault, libc::SIGTRAP, TRAP_TRACE)?;
    }
    Ok(())
}

/// SYSCALL clears TF for the kernel. The trap comes behind it, or one
/// instruction later when the way back is an IRET that sets TF.
fn trap_flag_over_syscall() -> Outcome {
    catch()?;
    for _ in 0..50 {
        let behind: u64;
        let fault = unsafe {
            probe!("lea rdx, [rip + 3f]", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "syscall",
                "3: nop", "nop";
                inout("rax") libc::SYS_getppid => _, out("rcx") _, out("rdx") behind)
        };
        let found = fault.map_or(0, |f| f.rip.wrapping_sub(behind));
        ensure!(found <= 1, "{fault:x?}, instruction behind at {behind:x}");
        expect("trap flag over syscall", fault, libc::SIGTRAP, TRAP_TRACE)?;
    }
    Ok(())
}

/// Each way into the kernel, and below it, with strings going downwards.
fn direction_flag() -> Outcome {
    catch()?;
    for _ in 0..100 {
        let fault =
            unsafe { probe!("pushfq", "or qword ptr [rsp], 0x500", "popfq", "nop", "nop", "nop") };
        expect("trap flag", fault, libc::SIGTRAP, TRAP_TRACE)?;
        expect("ud2", unsafe { probe!("std", "ud2") }, libc::SIGILL, ILL_ILLOPN)?;
        let fault = unsafe { probe!("std", "mov al, [rcx]"; in("rcx") 8, out("rax") _) };
        expect_signal("read", fault, libc::SIGSEGV)?;
        let fault = unsafe { probe!("std", "hlt") };
        expect_signal("hlt", fault, libc::SIGSEGV)?;
    }
    let start = std::time::Instant::now();
    while start.elapsed().as_millis() < 300 {
        unsafe {
            asm!("std", "4: dec ecx", "jnz 4b", "cld", inout("ecx") 2_000_000 => _);
        }
    }
    Ok(())
}

/// CR0.AM is set by Linux, natively and as a guest. QEMU's TCG knows no
/// alignment checks: no fault is accepted, a wrong one is not.
fn alignment_check() -> Outcome {
    catch()?;
    let word = [0u64; 2];
    let odd = word.as_ptr().expose_provenance() as u64 + 1;
    let fault = unsafe {
        probe!("pushfq", "or qword ptr [rsp], 0x40000", "popfq", "mov rax, [rcx]", "pushfq",
            "and qword ptr [rsp], ~0x40000", "popfq"; inout("rcx") odd => _, out("rax") _)
    };
    match fault {
        None => Ok(()),
        some => expect("unaligned read with AC set", some, libc::SIGBUS, BUS_ADRALN),
    }
}

fn x87_exception() -> Outcome {
    catch()?;
    for _ in 0..50 {
        let control = 0x37bu16; // Zero divide unmasked.
        let fault = unsafe {
            probe!("fninit", "fldcw [rcx]", "fld1", "fldz", "fdivp", "fwait", "nop";
                inout("rcx") &raw const control => _)
        };
        unsafe { asm!("fnclex", "fninit") };
        expect("x87 division by zero", fault, libc::SIGFPE, FPE_FLTDIV)?;
    }
    Ok(())
}

fn page_fault_error_codes() -> Outcome {
    catch()?;
    let area = map(PAGE, 0)?;
    let address = area.expose_provenance() as u64;
    unsafe {
        area.write(0);
        libc::mprotect(area.cast(), PAGE, libc::PROT_READ);
    }
    // P=1 W=2 U=4 I=16: user mode everywhere.
    let cases = [
        ("read of nothing", read_at(16), 4, 16),
        ("write of nothing", crate::memory::write_at(24), 6, 24),
        ("write of read-only", crate::memory::write_at(address), 7, address),
        ("execute of no-execute", jump_to(address), 0x15, address),
        ("jump to nothing", jump_to(32), 0x14, 32),
    ];
    for (what, fault, error, address) in cases {
        expect_signal(what, fault, libc::SIGSEGV)?;
        let found = fault.map(|f| (f.trap, f.error, f.address));
        ensure!(found == Some((14, error, address)), "{what}: {found:x?}");
    }
    Ok(())
}

/// All registers come back from an exception as they were.
fn exception_registers() -> Outcome {
    extern "C" fn skip(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let context: *mut libc::ucontext_t = context.cast();
        // ud2 has two bytes.
        unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] += 2 };
    }
    fault::on_signal(libc::SIGILL, skip, 0)?;
    for round in 0..300u64 {
        let mut values: [u64; 13] = core::array::from_fn(|i| round.wrapping_mul(0x9e37) + i as u64);
        let wanted = values;
        unsafe {
            asm!("push rbx", "push rbp", "mov rbx, r15", "mov rbp, r14", "ud2",
                 "cmp rbx, r15", "jne 2f", "cmp rbp, r14", "je 3f", "2: xor eax, eax", "3:",
                 "pop rbp", "pop rbx",
                 inout("rax") values[0], inout("rcx") values[1], inout("rdx") values[2],
                 inout("rsi") values[3], inout("rdi") values[4], inout("r8") values[5],
                 inout("r9") values[6], inout("r10") values[7], inout("r11") values[8],
                 inout("r12") values[9], inout("r13") values[10], inout("r14") values[11],
                 inout("r15") values[12]);
        }
        ensure!(values == wanted, "{values:x?} instead of {wanted:x?}");
    }
    Ok(())
}
