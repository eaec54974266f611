//! Instructions a program may not execute.

use crate::fault::{self, catch};
use crate::harness::{Check, Ending, Outcome, in_child};
use crate::{ensure, probe};

pub const CHECKS: &[Check] = &[
    ("privileged_instructions", privileged_instructions),
    ("forced_emulation_prefix", forced_emulation_prefix),
    ("descriptor_table_stores", descriptor_table_stores),
    ("rdpmc", rdpmc),
    ("ioperm", ioperm),
    ("iopl", iopl),
    ("interrupt_flag", interrupt_flag),
    ("cpuid_runs", cpuid_runs),
];

/// Name and bytes; each must raise SIGSEGV (#GP) or SIGILL (#UD).
const PRIVILEGED: &[(&str, &[u8])] = &[
    ("hlt", &[0xf4]),
    ("cli", &[0xfa]),
    ("sti", &[0xfb]),
    ("in al, dx", &[0xec]),
    ("in eax, dx", &[0xed]),
    ("out dx, al", &[0xee]),
    ("out dx, eax", &[0xef]),
    ("in al, 0x60", &[0xe4, 0x60]),
    ("out 0x80, al", &[0xe6, 0x80]),
    ("insb", &[0x6c]),
    ("outsb", &[0x6e]),
    ("rdmsr", &[0x0f, 0x32]),
    ("wrmsr", &[0x0f, 0x30]),
    ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
    ("mov rax, cr2", &[0x0f, 0x20, 0xd0]),
    ("mov rax, cr3", &[0x0f, 0x20, 0xd8]),
    ("mov rax, cr4", &[0x0f, 0x20, 0xe0]),
    ("mov rax, cr8", &[0x44, 0x0f, 0x20, 0xc0]),
    ("mov cr0, rax", &[0x0f, 0x22, 0xc0]),
    ("mov cr3, rax", &[0x0f, 0x22, 0xd8]),
    ("mov cr4, rax", &[0x0f, 0x22, 0xe0]),
    ("mov cr8, rax", &[0x44, 0x0f, 0x22, 0xc0]),
    ("mov rax, dr0", &[0x0f, 0x21, 0xc0]),
    ("mov rax, dr7", &[0x0f, 0x21, 0xf8]),
    ("mov dr7, rax", &[0x0f, 0x23, 0xf8]),
    ("lgdt", &[0x0f, 0x01, 0x14, 0x24]),
    ("lidt", &[0x0f, 0x01, 0x1c, 0x24]),
    ("lldt", &[0x0f, 0x00, 0xd0]),
    ("ltr", &[0x0f, 0x00, 0xd8]),
    ("lmsw", &[0x0f, 0x01, 0xf0]),
    ("clts", &[0x0f, 0x06]),
    ("invd", &[0x0f, 0x08]),
    ("wbinvd", &[0x0f, 0x09]),
    ("invlpg", &[0x0f, 0x01, 0x3c, 0x24]),
    ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x04, 0x24]),
    ("swapgs", &[0x0f, 0x01, 0xf8]),
    ("sysret", &[0x48, 0x0f, 0x07]),
    ("sysexit", &[0x0f, 0x35]),
    ("xsetbv", &[0x0f, 0x01, 0xd1]),
    ("clac", &[0x0f, 0x01, 0xca]),
    ("stac", &[0x0f, 0x01, 0xcb]),
    ("monitor", &[0x0f, 0x01, 0xc8]),
    ("mwait", &[0x0f, 0x01, 0xc9]),
    ("rsm", &[0x0f, 0xaa]),
    ("vmrun", &[0x0f, 0x01, 0xd8]),
    ("vmload", &[0x0f, 0x01, 0xda]),
    ("clgi", &[0x0f, 0x01, 0xdd]),
    ("stgi", &[0x0f, 0x01, 0xdc]),
    ("skinit", &[0x0f, 0x01, 0xde]),
    ("vmxoff", &[0x0f, 0x01, 0xc4]),
];

/// Whether a code page with these bytes (and a return) faults as it must.
fn refused(bytes: &[u8]) -> Result<Option<String>, String> {
    let mut code = bytes.to_vec();
    code.push(0xc3);
    let page = fault::code(&code)?;
    let found = unsafe { fault::call(page) };
    unsafe { libc::munmap(page.cast(), 4096) };
    let right = found.is_some_and(|f| f.signal == libc::SIGSEGV || f.signal == libc::SIGILL);
    Ok((!right).then(|| format!("{found:x?}")))
}

fn privileged_instructions() -> Outcome {
    catch()?;
    let mut wrong = Vec::new();
    for _ in 0..20 {
        for (name, bytes) in PRIVILEGED {
            if let Some(found) = refused(bytes)? {
                wrong.push(format!("{name}: {found}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "not refused: {}", wrong.join("; "));
    Ok(())
}

/// Xen executes `ud2; "xen"; cpuid` for its guests, programs included; without
/// it this is an invalid opcode.
fn forced_emulation_prefix() -> Outcome {
    catch()?;
    let fault = unsafe {
        probe!("push rbx", ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2", "pop rbx";
            inout("rax") 0u64 => _, inout("rcx") 0u64 => _, out("rdx") _)
    };
    ensure!(fault.is_none_or(|f| f.signal == libc::SIGILL), "{fault:x?}");
    Ok(())
}

/// With UMIP they fault or the kernel answers in their place; without they run.
fn descriptor_table_stores() -> Outcome {
    catch()?;
    let mut buffer = [0u8; 16];
    let to = buffer.as_mut_ptr();
    let faults = unsafe {
        [
            probe!("sgdt [rcx]"; inout("rcx") to => _),
            probe!("sidt [rcx]"; inout("rcx") to => _),
            probe!("sldt ax"; out("rax") _),
            probe!("str ax"; out("rax") _),
            probe!("smsw ax"; out("rax") _),
        ]
    };
    for fault in faults {
        ensure!(fault.is_none_or(|f| f.signal == libc::SIGSEGV), "{fault:x?}");
    }
    Ok(())
}

fn rdpmc() -> Outcome {
    catch()?;
    let fault = unsafe { probe!("rdpmc"; inout("rcx") 0u64 => _, out("rax") _, out("rdx") _) };
    let allowed = [libc::SIGSEGV, libc::SIGILL];
    ensure!(fault.is_none_or(|f| allowed.contains(&f.signal)), "{fault:x?}");
    Ok(())
}

fn out_80() -> Option<fault::Fault> {
    unsafe { probe!("out 0x80, al"; inout("rax") 0u64 => _) }
}

/// A PV guest's kernel may have no ports to give; what it gives it takes back.
fn ioperm() -> Outcome {
    catch()?;
    for _ in 0..20 {
        let granted = unsafe { libc::ioperm(0x80, 1, 1) } == 0;
        let fault = out_80();
        ensure!(fault.is_none_or(|f| f.signal == libc::SIGSEGV), "port 0x80 allowed: {fault:x?}");
        ensure!(granted || fault.is_some(), "port 0x80 works though ioperm failed");
        let other = unsafe { probe!("in al, 0x84"; out("rax") _) };
        fault::expect_signal("port 0x84", other, libc::SIGSEGV)?;
        let child = in_child(|| {
            unsafe { libc::sched_yield() };
            i32::from(out_80().is_some_and(|f| f.signal != libc::SIGSEGV))
        })?;
        ensure!(child == Ending::Exited(0), "{child:?}");
        unsafe { libc::ioperm(0x80, 1, 0) };
        fault::expect_signal("port 0x80 after ioperm(0)", out_80(), libc::SIGSEGV)?;
    }
    Ok(())
}

fn iopl() -> Outcome {
    catch()?;
    let _ = unsafe { libc::iopl(3) };
    let fault = out_80();
    ensure!(fault.is_none_or(|f| f.signal == libc::SIGSEGV), "out with iopl(3): {fault:x?}");
    unsafe { libc::iopl(0) };
    fault::expect_signal("out after iopl(0)", out_80(), libc::SIGSEGV)
}

/// POPF leaves IF and IOPL alone.
fn interrupt_flag() -> Outcome {
    for attempt in [0x2u64, 0x3002, 0x3202] {
        let found: u64;
        unsafe {
            core::arch::asm!("push {0}", "popfq", "pushfq", "pop {1}", in(reg) attempt,
                out(reg) found);
        }
        ensure!(found & 0x3200 == 0x200, "flags {attempt:x} became {found:x}");
    }
    Ok(())
}

fn cpuid_runs() -> Outcome {
    let leaf = core::arch::x86_64::__cpuid(0);
    ensure!(leaf.eax >= 1, "no CPUID leaf 1");
    let cs: u16;
    unsafe { core::arch::asm!("mov {0:x}, cs", out(reg) cs) };
    ensure!(cs & 3 == 3, "CS {cs:#x}");
    Ok(())
}
