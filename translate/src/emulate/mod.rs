//! Privileged instructions of the guest kernel, which runs in ring 1 and traps on them.
//!
//! The rules are Xen 4.17's for a PV domU (`pv/emul-priv-op.c`, `pv/emul-inv-op.c`, `msr.c`,
//! `cpuid.c`); docs/emulation.md has them as tables. Two rules cover most: what Xen does not
//! emulate is the guest's own #GP, and so is everything privileged in user mode, ports under
//! IOPL 3 excepted.
//!
//! The common case by far is IN and OUT of ports nobody claims: one copy of the instruction's
//! bytes, the decoder's table, done.

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::GuestVa;
use xen_abi::arch::{rflags, vector};

use crate::platform::Platform;
use crate::regs::{CpuRegs, selector};
use crate::{Ctx, debugreg};
use decode::{DecodeError, Insn, MAX_BYTES, Op};

mod control;
pub mod cpuid;
pub mod decode;
mod io;
mod machine_check;
mod msr;
pub(crate) use control::cr4_allowed;
pub use msr::read_segment_base;
#[cfg(test)]
mod tests;

/// Error-code bits of #GP: raised by an external event; by an IDT entry (INT n).
const EC_EXTERNAL: u32 = 1;
const EC_IDT: u32 = 2;
/// Page-fault error code: a program's access.
const PF_USER: u32 = 4;
/// Opcode of INT n.
const INT_N: u8 = 0xcd;
/// CR4.DE: I/O breakpoints are on.
const CR4_DE: u64 = 1 << 3;
/// DR6 where nothing happened, and its single-step bit.
const DR6_NOTHING: u64 = 0xffff_0ff0;
const DR6_BS: u64 = 1 << 14;
/// Xen's forced-emulation prefix (UD2 and "xen") and the only instruction it is for, CPUID.
const FORCED_CPUID: [u8; 7] = *b"\x0f\x0bxen\x0f\xa2";

/// Control registers and the like, as the guest sees them. CR2 is in `vcpu_info`, CR3 in
/// [`crate::mmu::VcpuMmu`], CR4 with the platform.
#[derive(Debug, Default)]
pub struct ControlRegs {
    /// IOPL by `PHYSDEVOP_set_iopl`: who may name I/O ports.
    pub iopl: u8,
    /// CR0.TS, as the guest set it.
    pub ts: bool,
    /// Port 0x61's writable bits.
    speaker: u8,
    /// TSC_AUX.
    tsc_aux: u32,
    machine_check: machine_check::MachineCheck,
}

/// What became of a trapped instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// Done: `rip` is past it (or, for a part of a long repeat, not yet).
    Done,
    /// The guest gets this exception, with the registers as they are now: unchanged for a
    /// fault; past the instruction for a trap (#DB, a software interrupt).
    Bounce {
        /// Vector.
        vector: u8,
        /// Error code, for vectors that have one.
        error_code: Option<u32>,
    },
}

const GP0: Emulation = Emulation::Bounce { vector: vector::GP, error_code: Some(0) };
const UD: Emulation = Emulation::Bounce { vector: vector::UD, error_code: None };

/// #GP from the guest.
#[inline]
pub fn general_protection<P: Platform>(
    cx: &mut Ctx<'_, P>,
    regs: &mut CpuRegs,
    error_code: u32,
) -> Emulation {
    if error_code != 0 {
        return with_error_code(cx, regs, error_code);
    }
    let user = regs.from_guest_user();
    if user && !user_io_possible(cx, regs) {
        return GP0;
    }
    let insn = match fetch(cx, regs) {
        Ok(insn) => insn,
        Err(emulation) => return emulation,
    };
    match insn.op {
        Op::In(_) | Op::Out(_) if io::iopl_ok(cx, user) => io::in_out(cx, regs, &insn),
        // On Xen, too, these change nothing: POPF could not undo what CLI did.
        Op::Cli | Op::Sti if io::iopl_ok(cx, user) => retire(cx, regs, insn.len),
        _ if user => GP0,
        Op::Ins | Op::Outs if io::iopl_ok(cx, user) => io::string(cx, regs, &insn),
        Op::In(_) | Op::Out(_) | Op::Ins | Op::Outs | Op::Cli | Op::Sti => GP0,
        _ => privileged(cx, regs, &insn),
    }
}

/// Kernel mode's other instructions.
#[inline(never)]
fn privileged<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs, insn: &Insn) -> Emulation {
    let done = match insn.op {
        Op::Clts => {
            set_ts(cx, false);
            Ok(())
        }
        // Only domains with devices may flush caches; others may try.
        Op::Wbinvd => Ok(()),
        Op::FromCr(cr, gpr) => control::read_cr(cx, cr).map(|value| *general(regs, gpr) = value),
        Op::ToCr(cr, gpr) => control::write_cr(cx, cr, *general(regs, gpr)),
        Op::FromDr(dr, gpr) => control::read_dr(cx, dr).map(|value| *general(regs, gpr) = value),
        Op::ToDr(dr, gpr) => control::write_dr(cx, dr, *general(regs, gpr)),
        Op::Wrmsr => {
            let value = regs.rdx << 32 | regs.rax & 0xffff_ffff;
            msr::write(cx, regs.rcx as u32, value).ok_or(GP0)
        }
        Op::Rdmsr => {
            msr::read(cx, regs.rcx as u32).ok_or(GP0).map(|value| set_edx_eax(regs, value))
        }
        Op::Rdtsc => {
            set_edx_eax(regs, control::tsc(cx));
            Ok(())
        }
        Op::Rdtscp => {
            set_edx_eax(regs, control::tsc(cx));
            regs.rcx = cx.vcpu.control.tsc_aux.into();
            Ok(())
        }
        Op::Xsetbv => {
            let value = regs.rdx << 32 | regs.rax & 0xffff_ffff;
            control::xsetbv(cx, regs.rcx as u32, value)
        }
        Op::Cpuid => {
            execute_cpuid(cx, regs);
            Ok(())
        }
        _ => Err(GP0),
    };
    match done {
        Ok(()) => retire(cx, regs, insn.len),
        Err(emulation) => emulation,
    }
}

/// Sets or clears CR0.TS, for the guest and the processor.
pub fn set_ts<P: Platform>(cx: &mut Ctx<'_, P>, on: bool) {
    cx.vcpu.control.ts = on;
    cx.plat.set_ts(on);
}

/// #GP with an error code: INT n of a vector whose gate is closed to this ring in hardware, but
/// open by the guest's table (DPL 1 and 2: kernel only). QEMU's TCG counts gates of 16 bytes in the
/// error code, so INT 2 would be INT 4 and a program's INT 0x40 a system call: the instruction has
/// to agree.
#[cold]
fn with_error_code<P: Platform>(
    cx: &mut Ctx<'_, P>,
    regs: &mut CpuRegs,
    error_code: u32,
) -> Emulation {
    if error_code & (EC_EXTERNAL | EC_IDT) == EC_IDT {
        let vector = (error_code >> 3) as u8;
        let needed = if regs.from_guest_user() { 3 } else { 1 };
        let mut insn = [0; 2];
        let agrees = cx.plat.copy_from_guest(&mut insn, GuestVa(regs.rip)).is_ok()
            && insn == [INT_N, vector];
        if agrees && cx.vcpu.traps.dpl(vector) >= needed {
            regs.rip = regs.rip.wrapping_add(2);
            return Emulation::Bounce { vector, error_code: None };
        }
    }
    Emulation::Bounce { vector: vector::GP, error_code: Some(error_code) }
}

/// Whether a user program may use ports at all, and runs on a code segment whose instructions
/// decode as the forms of interest do in 64-bit mode.
#[cold]
fn user_io_possible<P: Platform>(cx: &Ctx<'_, P>, regs: &CpuRegs) -> bool {
    const LINUX_CS32: u16 = 0x23;
    const FLAT: [u16; 4] =
        [selector::USER_CS64, selector::USER_CS64_FLAT, selector::USER_CS32, LINUX_CS32];
    io::iopl_ok(cx, true) && FLAT.contains(&(regs.cs as u16))
}

/// Reads and decodes the instruction at `rip`.
#[inline]
fn fetch<P: Platform>(cx: &Ctx<'_, P>, regs: &CpuRegs) -> Result<Insn, Emulation> {
    let mut bytes = [0; MAX_BYTES];
    if cx.plat.copy_from_guest(&mut bytes, GuestVa(regs.rip)).is_ok() {
        return decode::decode(&bytes).map_err(|_| GP0);
    }
    fetch_at_page_end(cx, regs)
}

/// The page behind the instruction's is not there, or its own is not.
#[cold]
fn fetch_at_page_end<P: Platform>(cx: &Ctx<'_, P>, regs: &CpuRegs) -> Result<Insn, Emulation> {
    let rip = regs.rip;
    let mut bytes = [0; MAX_BYTES];
    let here = (4096 - rip % 4096).min(MAX_BYTES as u64);
    let bytes = bytes.get_mut(..here as usize).unwrap_or_default();
    if cx.plat.copy_from_guest(bytes, GuestVa(rip)).is_err() {
        return Err(page_fault(cx, regs, rip, 0));
    }
    decode::decode(bytes).map_err(|error| match error {
        DecodeError::Truncated => page_fault(cx, regs, rip.wrapping_add(here), 0),
        DecodeError::Other => GP0,
    })
}

#[cold]
fn page_fault<P: Platform>(
    cx: &Ctx<'_, P>,
    regs: &CpuRegs,
    address: u64,
    access: u32,
) -> Emulation {
    cx.vcpu.entry.info.arch.cr2.store(address, Relaxed);
    // Of a program's accesses without it Linux says that its own code made them, and dies.
    let user = if regs.from_guest_user() { PF_USER } else { 0 };
    Emulation::Bounce { vector: vector::PF, error_code: Some(access | user) }
}

/// The instruction is done: RIP moves on, RF is cleared, TF raises #DB.
#[inline]
fn retire<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs, len: u8) -> Emulation {
    if regs.rflags & rflags::TF != 0 {
        return retire_with(cx, regs, len, 0);
    }
    regs.rip = regs.rip.wrapping_add(len.into());
    regs.rflags &= !rflags::RF;
    Emulation::Done
}

/// As [`retire`], with breakpoints that were hit.
#[cold]
fn retire_with<P: Platform>(
    cx: &mut Ctx<'_, P>,
    regs: &mut CpuRegs,
    len: u8,
    breakpoints: u64,
) -> Emulation {
    regs.rip = regs.rip.wrapping_add(len.into());
    regs.rflags &= !rflags::RF;
    let step = if regs.rflags & rflags::TF != 0 { DR6_BS } else { 0 };
    if breakpoints | step == 0 {
        return Emulation::Done;
    }
    debugreg::merge_dr6(&mut cx.vcpu.debugreg, DR6_NOTHING | breakpoints | step);
    Emulation::Bounce { vector: vector::DB, error_code: None }
}

/// #UD from the guest: the forced-emulation prefix, from kernel and user alike, else the guest's
/// own.
pub fn invalid_opcode<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> Emulation {
    let mut bytes = [0; FORCED_CPUID.len()];
    if cx.plat.copy_from_guest(&mut bytes, GuestVa(regs.rip)).is_err() {
        // A page boundary behind the opcode that trapped: read no more than what settles it.
        let mut at = regs.rip;
        for (n, byte) in bytes.iter_mut().enumerate() {
            if cx.plat.copy_from_guest(core::slice::from_mut(byte), GuestVa(at)).is_err() {
                return page_fault(cx, regs, at, 0);
            }
            if FORCED_CPUID.get(n) != Some(byte) {
                return UD;
            }
            at = at.wrapping_add(1);
        }
    }
    if bytes != FORCED_CPUID {
        return UD;
    }
    execute_cpuid(cx, regs);
    retire(cx, regs, FORCED_CPUID.len() as u8)
}

fn execute_cpuid<P: Platform>(cx: &Ctx<'_, P>, regs: &mut CpuRegs) {
    let kernel = regs.from_guest_kernel();
    let result = cpuid::cpuid(cx, regs.rax as u32, regs.rcx as u32, kernel);
    regs.rax = result.eax.into();
    regs.rbx = result.ebx.into();
    regs.rcx = result.ecx.into();
    regs.rdx = result.edx.into();
}

fn set_edx_eax(regs: &mut CpuRegs, value: u64) {
    regs.rax = value & 0xffff_ffff;
    regs.rdx = value >> 32;
}

/// A general register by its number.
fn general(regs: &mut CpuRegs, number: u8) -> &mut u64 {
    match number & 15 {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}
