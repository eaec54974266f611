//! Programs and the memory of kernel and hypervisor.

use crate::ensure;
use crate::fault::{catch, expect_signal};
use crate::harness::{Check, Outcome, Random};
use crate::memory::{jump_to, read_at, write_at};

pub const CHECKS: &[Check] = &[
    ("kernel_read", kernel_read),
    ("kernel_write", kernel_write),
    ("kernel_jump", kernel_jump),
    ("kernel_scan", kernel_scan),
    ("hypervisor_scan", hypervisor_scan),
    ("vsyscall", vsyscall),
];

/// The machine-to-physical table, the rest of the hypervisor's hole, the
/// kernel's direct maps (with and without KASLR), vmalloc, CPU entry area,
/// text, modules, fixmap, the end; and addresses that are none.
pub const KERNEL_ADDRESSES: &[u64] = &[
    0xffff_8000_0000_0000,
    0xffff_8000_0000_1000,
    0xffff_8040_0000_0000,
    0xffff_8080_0000_0000,
    0xffff_8080_0010_0000,
    0xffff_8100_0000_0000,
    0xffff_8200_0000_0000,
    0xffff_82d0_4020_0000,
    0xffff_8300_0000_0000,
    0xffff_87ff_ffff_f000,
    0xffff_8800_0000_0000,
    0xffff_8880_0000_0000,
    0xffff_8880_0100_0000,
    0xffff_c900_0000_0000,
    0xffff_ea00_0000_0000,
    0xffff_fe00_0000_0000,
    0xffff_ffff_8000_0000,
    0xffff_ffff_8100_0000,
    0xffff_ffff_8200_0000,
    0xffff_ffff_c000_0000,
    0xffff_ffff_ff5f_c000,
    0xffff_ffff_ffff_f000,
    0x0000_8000_0000_0000,
    0xffff_7fff_ffff_f000,
    0xdead_beef_0000_0000,
];

fn all(what: &str, attempt: fn(u64) -> Option<crate::fault::Fault>) -> Outcome {
    catch()?;
    for _ in 0..5 {
        for &address in KERNEL_ADDRESSES {
            expect_signal(&format!("{what} {address:#x}"), attempt(address), libc::SIGSEGV)?;
        }
    }
    Ok(())
}

fn kernel_read() -> Outcome {
    all("read of", read_at)
}

fn kernel_write() -> Outcome {
    all("write to", write_at)
}

fn kernel_jump() -> Outcome {
    all("jump to", jump_to)
}

/// Anywhere in the upper half but the vsyscall page.
fn kernel_scan() -> Outcome {
    catch()?;
    let mut random = Random(99);
    for _ in 0..3000 {
        let address = random.next() | 0xffff_8000_0000_0000;
        if address >> 12 == 0xffff_ffff_ff60_0000 >> 12 {
            continue;
        }
        expect_signal(&format!("read of {address:#x}"), read_at(address), libc::SIGSEGV)?;
        expect_signal(&format!("write to {address:#x}"), write_at(address), libc::SIGSEGV)?;
    }
    Ok(())
}

/// The first pages of every 2 MiB and 1 GiB of the slots Xen keeps for itself.
fn hypervisor_scan() -> Outcome {
    catch()?;
    let base = 0xffff_8000_0000_0000u64;
    let steps = (0..512u64).map(|i| i << 21).chain((0..8192).map(|i| i << 30));
    for offset in steps {
        let address = base + offset;
        expect_signal(&format!("read of {address:#x}"), read_at(address), libc::SIGSEGV)?;
        let probe = jump_to(address + 0x1000);
        ensure!(
            probe.is_some_and(|f| f.signal == libc::SIGSEGV),
            "jump to {address:#x}: {probe:x?}"
        );
    }
    Ok(())
}

/// Debian builds kernels without the page (SIGSEGV); where it is emulated it
/// works. Never is it writable.
fn vsyscall() -> Outcome {
    const PAGE: u64 = 0xffff_ffff_ff60_0000;
    catch()?;
    expect_signal("write to the vsyscall page", write_at(PAGE), libc::SIGSEGV)?;
    // time(NULL) is at +0x400; RDI is what the caller had, so pass null.
    let mut result = 0u64;
    let fault = unsafe {
        crate::probe!("call rcx"; inout("rcx") PAGE + 0x400 => _, inout("rdi") 0u64 => _,
            inout("rax") result, out("rdx") _)
    };
    match fault {
        Some(fault) => expect_signal("vsyscall", Some(fault), libc::SIGSEGV),
        None => {
            let now = unsafe { libc::time(core::ptr::null_mut()) }.cast_unsigned();
            ensure!(now.abs_diff(result) < 10, "vsyscall time {result}, time {now}");
            Ok(())
        }
    }
}
