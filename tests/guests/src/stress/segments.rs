//! Segment bases, thread-local storage, descriptor tables.

use core::arch::asm;

use crate::fault::{catch, expect_signal};
use crate::harness::{Check, Ending, Outcome, in_child, must, spawn, wait};
use crate::memory::map;
use crate::{ensure, probe};

pub const CHECKS: &[Check] = &[
    ("tls_threads", tls_threads),
    ("arch_prctl", arch_prctl),
    ("arch_prctl_refuses_kernel", arch_prctl_refuses_kernel),
    ("fs_gs_processes", fs_gs_processes),
    ("fsgsbase_instructions", fsgsbase_instructions),
    ("set_thread_area", set_thread_area),
    ("ldt_data", ldt_data),
    ("ldt_processes", ldt_processes),
    ("ldt_fork", ldt_fork),
    ("ldt_threads", ldt_threads),
    ("ldt_storm", ldt_storm),
    ("selectors_null", selectors_null),
    ("selectors_bad", selectors_bad),
];

const ARCH_SET_GS: i32 = 0x1001;
const ARCH_SET_FS: i32 = 0x1002;
const ARCH_GET_FS: i32 = 0x1003;
const ARCH_GET_GS: i32 = 0x1004;

/// `struct user_desc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct UserDesc {
    /// Index of the entry.
    pub entry: u32,
    /// Base.
    pub base: u32,
    /// Limit.
    pub limit: u32,
    /// Bits of [`DATA32`] and so on.
    pub flags: u32,
}

/// 32-bit, writable data, limit in pages.
pub const DATA32: u32 = 1 | 1 << 4 | 1 << 6;
/// 32-bit code, readable, limit in bytes.
pub const CODE32: u32 = 1 | 2 << 1 | 1 << 6;
/// Not present.
pub const ABSENT: u32 = 1 << 5;

fn prctl(code: i32, argument: u64) -> i64 {
    unsafe { libc::syscall(libc::SYS_arch_prctl, code, argument) }
}

fn base(code: i32) -> u64 {
    let mut value = 0u64;
    prctl(code, (&raw mut value).expose_provenance() as u64);
    value
}

/// Writes LDT entry; the selector.
pub fn write_ldt(desc: UserDesc) -> Result<u16, String> {
    let size = size_of::<UserDesc>();
    // Function 0x11: the modern form of write.
    must(unsafe { libc::syscall(libc::SYS_modify_ldt, 0x11, &desc, size) }, "modify_ldt")?;
    Ok((desc.entry << 3 | 7) as u16)
}

fn load_gs(selector: u16) {
    unsafe { asm!("mov gs, {0:x}", in(reg) selector) };
}

fn gs_word() -> u64 {
    let value;
    unsafe { asm!("mov {0}, qword ptr gs:[0]", out(reg) value) };
    value
}

fn yield_now() {
    unsafe { libc::sched_yield() };
}

fn low_word(value: u64) -> Result<u32, String> {
    let area = map(4096, libc::MAP_32BIT)?;
    unsafe { area.cast::<u64>().write(value) };
    Ok(area.expose_provenance() as u32)
}

fn tls_threads() -> Outcome {
    thread_local!(static OWN: core::cell::Cell<u64> = const { core::cell::Cell::new(0) });
    let workers: Vec<_> = (0..8u64)
        .map(|id| {
            std::thread::spawn(move || {
                (0..200).all(|i| {
                    OWN.set(id * 1000 + i);
                    yield_now();
                    OWN.get() == id * 1000 + i
                })
            })
        })
        .collect();
    for worker in workers {
        ensure!(worker.join().unwrap_or(false), "another thread's value");
    }
    Ok(())
}

fn arch_prctl() -> Outcome {
    let fs: u64;
    unsafe { asm!("mov {0}, qword ptr fs:[0]", out(reg) fs) };
    let told = base(ARCH_GET_FS);
    ensure!(told == fs, "FS base {told:x}, thread pointer {fs:x}");
    for value in 0..100u64 {
        let word = value * 3;
        must(prctl(ARCH_SET_GS, (&raw const word).expose_provenance() as u64), "arch_prctl")?;
        yield_now();
        ensure!(gs_word() == word, "gs:0 is {}", gs_word());
        let told = base(ARCH_GET_GS);
        ensure!(told == (&raw const word).expose_provenance() as u64, "GS base {told:x}");
    }
    // A base above 4 GiB, and FS moved away and back within one system call.
    let result: i64;
    unsafe {
        asm!("syscall", "mov rdi, {set}", "mov rsi, {old}", "mov eax, {prctl}", "syscall",
             set = const ARCH_SET_FS, old = in(reg) fs, prctl = const libc::SYS_arch_prctl,
             inout("rax") libc::SYS_arch_prctl => result, inout("rdi") ARCH_SET_FS as u64 => _,
             inout("rsi") 0x7000_0000_0000u64 => _, out("rcx") _, out("r11") _);
    }
    ensure!(result == 0, "ARCH_SET_FS: {result}");
    ensure!(base(ARCH_GET_FS) == fs, "FS base not restored");
    Ok(())
}

fn arch_prctl_refuses_kernel() -> Outcome {
    for value in [0xffff_8000_0000_0000u64, 0xffff_ffff_8100_0000, 0x8000_0000_0000, u64::MAX] {
        for code in [ARCH_SET_GS, ARCH_SET_FS] {
            let result = prctl(code, value);
            let error = std::io::Error::last_os_error().raw_os_error();
            ensure!(
                result == -1 && error == Some(libc::EPERM),
                "base {value:x}: {result} {error:?}"
            );
        }
    }
    Ok(())
}

/// Processes with different GS bases and selectors switch to and fro.
fn fs_gs_processes() -> Outcome {
    let children: Result<Vec<_>, _> = (0..5u64)
        .map(|id| {
            spawn(move || {
                let word = id + 77;
                if id == 4 {
                    load_gs(0);
                } else if prctl(ARCH_SET_GS, (&raw const word).expose_provenance() as u64) != 0 {
                    return 2;
                }
                for _ in 0..400 {
                    yield_now();
                    if id != 4 && gs_word() != word {
                        return 1;
                    }
                }
                0
            })
        })
        .collect();
    for pid in children? {
        let ending = wait(pid)?;
        ensure!(ending == Ending::Exited(0), "GS base of another process: {ending:?}");
    }
    Ok(())
}

/// RDGSBASE and its kin, where the kernel says (AT_HWCAP2) programs may.
fn fsgsbase_instructions() -> Outcome {
    const HWCAP2_FSGSBASE: u64 = 2;
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE == 0 {
        catch()?;
        let fault = unsafe { probe!("rdgsbase rax"; out("rax") _) };
        return expect_signal("rdgsbase where it is off", fault, libc::SIGILL);
    }
    let fs: u64;
    unsafe { asm!("rdfsbase {0}", out(reg) fs) };
    ensure!(fs == base(ARCH_GET_FS), "rdfsbase {fs:x}");
    let children: Result<Vec<_>, _> = (0..5u64)
        .map(|id| {
            spawn(move || {
                // Any value goes, as long as nothing is read through it.
                let wanted = 0x1234_5678_9abc ^ id << 20;
                for round in 0..300 {
                    let found: u64;
                    unsafe {
                        asm!("wrgsbase {0}", in(reg) wanted + round);
                        libc::sched_yield();
                        asm!("rdgsbase {0}", out(reg) found);
                    }
                    if found != wanted + round || base(ARCH_GET_GS) != found {
                        return 1;
                    }
                }
                0
            })
        })
        .collect();
    for pid in children? {
        let ending = wait(pid)?;
        ensure!(ending == Ending::Exited(0), "GS base changed: {ending:?}");
    }
    catch()?;
    let fault = unsafe { probe!("wrgsbase rcx"; inout("rcx") 0x8000_0000_0000u64 => _) };
    // QEMU's TCG takes it.
    if fault.is_some() {
        expect_signal("wrgsbase, non-canonical", fault, libc::SIGSEGV)?;
    }
    // A kernel base is allowed, but of no use.
    let fault = unsafe {
        probe!("wrgsbase rcx", "mov rax, gs:[0]"; inout("rcx") 0xffff_8000_0000_0000u64 => _,
            out("rax") _)
    };
    expect_signal("read through a kernel GS base", fault, libc::SIGSEGV)?;
    let fault = unsafe {
        probe!("rdfsbase r8", "wrfsbase rcx", "nop", "rdfsbase rax", "wrfsbase r8";
            inout("rcx") 0x1000u64 => _, out("rax") _)
    };
    ensure!(fault.is_none(), "wrfsbase: {fault:x?}");
    Ok(())
}

/// A 32-bit system call with one pointer: set_thread_area has no 64-bit form.
fn call32(number: u32, argument: *const UserDesc) -> i32 {
    let result: u64;
    unsafe {
        asm!("push rbx", "mov ebx, ecx", "int 0x80", "pop rbx", inout("rax") u64::from(number) => result,
             inout("rcx") argument => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result as i32
}

/// GDT entries of a thread (Xen: update_descriptor at every switch).
fn set_thread_area() -> Outcome {
    const SET: u32 = 243;
    const GET: u32 = 244;
    let children: Result<Vec<_>, _> = (0..4u64)
        .map(|id| {
            spawn(move || {
                let Ok(low) = low_word(id + 500) else { return 2 };
                let Ok(area) = map(4096, libc::MAP_32BIT) else { return 2 };
                let desc: *mut UserDesc = area.cast();
                let (entry, limit) = (u32::MAX, 0xf_ffff);
                unsafe { desc.write(UserDesc { entry, base: low, limit, flags: DATA32 }) };
                if call32(SET, desc) != 0 {
                    return 3;
                }
                load_gs((unsafe { desc.read_volatile() }.entry << 3 | 3) as u16);
                for _ in 0..300 {
                    yield_now();
                    if gs_word() != id + 500 {
                        return 1;
                    }
                }
                unsafe { (&raw mut (*desc).base).write_volatile(0) };
                i32::from(call32(GET, desc) != 0 || unsafe { desc.read_volatile() }.base != low) * 4
            })
        })
        .collect();
    for pid in children? {
        let ending = wait(pid)?;
        ensure!(ending == Ending::Exited(0), "TLS segment: {ending:?}");
    }
    Ok(())
}

fn ldt_data() -> Outcome {
    let low = low_word(0xfeed)?;
    let desc = UserDesc { entry: 3, base: low, limit: 0, flags: DATA32 };
    let selector = write_ldt(desc)?;
    load_gs(selector);
    for _ in 0..50 {
        yield_now();
        ensure!(gs_word() == 0xfeed, "gs:0 is {:x}", gs_word());
    }
    catch()?;
    let mut table = [0u8; 64];
    let bytes = unsafe { libc::syscall(libc::SYS_modify_ldt, 0, table.as_mut_ptr(), table.len()) };
    ensure!(bytes >= 32, "modify_ldt read {bytes} bytes");
    let entry = u64::from_le_bytes(core::array::from_fn(|i| table[24 + i]));
    let found = (entry >> 16 & 0xff_ffff | entry >> 56 << 24) as u32;
    ensure!(found == low, "base in the table {found:x} instead of {low:x}");
    load_gs(0);
    let fault = unsafe { probe!("mov gs, cx"; inout("rcx") 0xfu64 => _) };
    expect_signal("an empty LDT entry", fault, libc::SIGSEGV)?;
    write_ldt(UserDesc { entry: 5, base: low, limit: 0, flags: DATA32 | ABSENT })?;
    let fault = unsafe { probe!("mov gs, cx"; inout("rcx") (5u64 << 3 | 7) => _) };
    expect_signal("an absent segment", fault, libc::SIGBUS)
}

/// Some processes have an LDT, some have another, some have none.
fn ldt_processes() -> Outcome {
    let children: Result<Vec<_>, _> = (0..6u64)
        .map(|id| {
            spawn(move || {
                if id % 3 == 0 {
                    (0..400).for_each(|_| yield_now());
                    return 0;
                }
                let Ok(low) = low_word(id + 900) else { return 2 };
                let desc = UserDesc { entry: id as u32 * 90, base: low, limit: 0, flags: DATA32 };
                let Ok(selector) = write_ldt(desc) else { return 3 };
                for _ in 0..200 {
                    load_gs(selector);
                    yield_now();
                    if gs_word() != id + 900 {
                        return 1;
                    }
                    load_gs(0);
                    yield_now();
                }
                0
            })
        })
        .collect();
    for pid in children? {
        let ending = wait(pid)?;
        ensure!(ending == Ending::Exited(0), "LDT of another process: {ending:?}");
    }
    Ok(())
}

fn ldt_fork() -> Outcome {
    let low = low_word(31)?;
    let selector = write_ldt(UserDesc { entry: 1, base: low, limit: 0, flags: DATA32 })?;
    load_gs(selector);
    for _ in 0..20 {
        let ending = in_child(|| {
            let inherited = gs_word() == 31;
            // Its own table from here on.
            let Ok(other) = low_word(32) else { return 2 };
            let desc = UserDesc { entry: 1, base: other, limit: 0, flags: DATA32 };
            let Ok(selector) = write_ldt(desc) else { return 3 };
            load_gs(selector);
            yield_now();
            i32::from(!inherited || gs_word() != 32)
        })?;
        ensure!(ending == Ending::Exited(0), "child: {ending:?}");
        load_gs(selector);
        ensure!(gs_word() == 31, "the child changed the parent's LDT");
    }
    Ok(())
}

/// A thread changes the table all threads use.
fn ldt_threads() -> Outcome {
    let (low, other) = (low_word(1)?, low_word(2)?);
    write_ldt(UserDesc { entry: 0, base: low, limit: 0, flags: DATA32 })?;
    for round in 0..30u64 {
        let target = if round % 2 == 0 { other } else { low };
        let writer = std::thread::spawn(move || {
            write_ldt(UserDesc { entry: 0, base: target, limit: 0, flags: DATA32 })
        });
        let selector = writer.join().map_err(|_| "a thread panicked".to_owned())??;
        load_gs(selector);
        let wanted = if round % 2 == 0 { 2 } else { 1 };
        ensure!(gs_word() == wanted, "round {round}: {}", gs_word());
        load_gs(0);
    }
    Ok(())
}

/// Tables grow, shrink and go with their processes.
fn ldt_storm() -> Outcome {
    for round in 0..40u32 {
        let ending = in_child(|| {
            let Ok(low) = low_word(u64::from(round)) else { return 2 };
            for entry in [0u32, 7, 600, 8191, round * 11] {
                let desc = UserDesc { entry, base: low, limit: 0, flags: DATA32 };
                let Ok(selector) = write_ldt(desc) else { return 3 };
                load_gs(selector);
                if gs_word() != u64::from(round) {
                    return 1;
                }
            }
            0
        })?;
        ensure!(ending == Ending::Exited(0), "round {round}: {ending:?}");
    }
    Ok(())
}

/// Null selectors load without a fault, whatever their RPL, and stay null. An IRET to user mode makes
/// them 0, on real processors and without any hypervisor, too; it may come at any time.
fn selectors_null() -> Outcome {
    for selector in 0..4u16 {
        let (ds, es): (u16, u16);
        unsafe {
            asm!("mov ds, {0:x}", "mov es, {0:x}", "mov {1:x}, ds", "mov {2:x}, es",
                 in(reg) selector, out(reg) ds, out(reg) es);
        }
        let fits = |now: u16| now == selector || now == 0;
        ensure!(fits(ds) && fits(es), "{selector}: DS {ds:x} ES {es:x}");
        yield_now();
        let (ds, es): (u16, u16);
        unsafe { asm!("mov {0:x}, ds", "mov {1:x}, es", out(reg) ds, out(reg) es) };
        ensure!(fits(ds) && fits(es), "{selector}, later: DS {ds:x} ES {es:x}");
    }
    unsafe { asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0) };
    Ok(())
}

/// Selectors of the kernel and of the hypervisor's part of the GDT. Real Xen
/// fails this: it raises the kernel's descriptors to DPL 3.
fn selectors_bad() -> Outcome {
    catch()?;
    for selector in [0x8u64, 0x10, 0x18, 0xfff8, 0xe008, 0xe010, 0xe040, 0xe050] {
        for value in [selector, selector | 3] {
            let faults = unsafe {
                [
                    probe!("mov ds, cx"; inout("rcx") value => _),
                    probe!("mov ss, cx"; inout("rcx") value => _),
                    probe!("mov gs, cx"; inout("rcx") value => _),
                ]
            };
            for fault in faults {
                expect_signal(&format!("selector {value:#x}"), fault, libc::SIGSEGV)?;
                let error = fault.map(|f| f.error);
                ensure!(error == Some(selector), "selector {value:#x}: error code {error:x?}");
            }
        }
    }
    Ok(())
}
