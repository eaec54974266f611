//! Ports. None is the guest's: reads give all ones, writes are dropped, at once.
//!
//! One exception saves 100 000 traps. Linux times the PIT's channel 2 before it believes Xen's
//! own figure: it loads the counter with 0xffff and reads port 0x42 until the high byte changes,
//! at most 50 000 times two reads. All ones would be the longest answer. Here the counter has
//! always run out: port 0x42 reads 0, the output in port 0x61 is high. The first comparison
//! fails, Linux prints what it prints on Xen ("Fast TSC calibration failed") and uses Xen's
//! figure.

use xen_abi::GuestVa;

use super::decode::{Insn, Op, Segment};
use super::{CR4_DE, Emulation, page_fault, retire, retire_with};
use crate::Ctx;
use crate::platform::{Platform, SegmentBase};
use crate::regs::CpuRegs;

const PIT_CHANNEL2: u32 = 0x42;
const SYSTEM_CONTROL_B: u32 = 0x61;
/// Gate of channel 2 and speaker data: what can be written and read back.
const SPEAKER_BITS: u8 = 3;
/// Output of channel 2.
const CHANNEL2_OUT: u8 = 1 << 5;
/// Elements of a string instruction done in one go.
const BATCH: u64 = 512;
const DF: u64 = 1 << 10;
/// Page-fault error code of a write to an absent page.
const PF_WRITE: u32 = 2;

#[inline]
fn port(immediate: Option<u8>, regs: &CpuRegs) -> u32 {
    immediate.map_or(regs.rdx as u32 & 0xffff, u32::from)
}

/// Whether vCPU state lets this mode use ports at all (`iopl_ok`).
#[inline]
pub(super) fn iopl_ok<P: Platform>(cx: &Ctx<'_, P>, user: bool) -> bool {
    use core::sync::atomic::Ordering::Relaxed;
    use xen_abi::hypercall::VMASST_TYPE_ARCHITECTURAL_IOPL;
    let needed = if user { 3 } else { 1 };
    cx.vcpu.control.iopl >= needed
        || !user && cx.dom.vm_assist.load(Relaxed) >> VMASST_TYPE_ARCHITECTURAL_IOPL & 1 == 1
}

#[cold]
fn read_special<P: Platform>(cx: &Ctx<'_, P>, port: u32, size: u8) -> u32 {
    (0..u32::from(size)).fold(0, |value, n| {
        let byte = match port + n {
            PIT_CHANNEL2 => 0,
            SYSTEM_CONTROL_B => cx.vcpu.control.speaker | CHANNEL2_OUT,
            _ => 0xff,
        };
        value | u32::from(byte) << (8 * n)
    })
}

/// What a port reads; the operand's width only.
#[inline]
fn read<P: Platform>(cx: &Ctx<'_, P>, port: u32, size: u8) -> u32 {
    if port <= SYSTEM_CONTROL_B && port + u32::from(size) > PIT_CHANNEL2 {
        return read_special(cx, port, size);
    }
    u32::MAX
}

#[inline]
fn write<P: Platform>(cx: &mut Ctx<'_, P>, port: u32, value: u32, size: u8) {
    if port <= SYSTEM_CONTROL_B && port + u32::from(size) > SYSTEM_CONTROL_B {
        let byte = (value >> (8 * (SYSTEM_CONTROL_B - port))) as u8;
        cx.vcpu.control.speaker = byte & SPEAKER_BITS;
    }
}

/// IN and OUT.
#[inline]
pub(super) fn in_out<P: Platform>(
    cx: &mut Ctx<'_, P>,
    regs: &mut CpuRegs,
    insn: &Insn,
) -> Emulation {
    let (number, is_in) = match insn.op {
        Op::In(imm) => (port(imm, regs), true),
        Op::Out(imm) => (port(imm, regs), false),
        _ => return super::GP0,
    };
    if is_in {
        let value = u64::from(read(cx, number, insn.size));
        regs.rax = match insn.size {
            1 => regs.rax & !0xff | value & 0xff,
            2 => regs.rax & !0xffff | value & 0xffff,
            _ => value,
        };
    } else {
        write(cx, number, regs.rax as u32, insn.size);
    }
    match breakpoints(cx, number, insn.size) {
        0 => retire(cx, regs, insn.len),
        hit => retire_with(cx, regs, insn.len, hit),
    }
}

/// DR6 bits of the guest's I/O breakpoints on these ports. The processor never sees those.
#[inline]
fn breakpoints<P: Platform>(cx: &Ctx<'_, P>, port: u32, size: u8) -> u64 {
    let enables = cx.vcpu.debugreg.io_enables();
    if enables == 0 || cx.plat.guest_cr4() & CR4_DE == 0 {
        return 0;
    }
    let dr = &cx.vcpu.debugreg.dr;
    (0..4).fold(0, |hit, n| {
        let width = [1u64, 2, 8, 4][(dr[7] >> (18 + 4 * n) & 3) as usize];
        let start = dr[n] & !(width - 1);
        let overlaps = start < u64::from(port) + u64::from(size) && start + width > u64::from(port);
        hit | u64::from(enables >> (2 * n) & 3 != 0 && overlaps) << n
    })
}

/// Copies between guest memory and a port's operand; the address that faulted otherwise.
fn element<P: Platform>(
    cx: &mut Ctx<'_, P>,
    op: Op,
    port: u32,
    address: u64,
    size: u8,
) -> Result<(), u64> {
    // In two pieces over a page boundary, so that the fault names the right page.
    let size_here = u64::from(size).min(4096 - address % 4096) as usize;
    let mut bytes = read(cx, port, size).to_le_bytes();
    let (here, rest) = bytes.split_at_mut(size_here);
    let rest = rest.get_mut(..usize::from(size) - size_here).unwrap_or_default();
    let behind = address.wrapping_add(size_here as u64);
    for (part, at) in [(here, address), (rest, behind)] {
        if part.is_empty() {
            continue;
        }
        let done = match op {
            Op::Ins => cx.plat.copy_to_guest(GuestVa(at), part),
            _ => cx.plat.copy_from_guest(part, GuestVa(at)),
        };
        done.map_err(|_| at)?;
    }
    if op == Op::Outs {
        write(cx, port, u32::from_le_bytes(bytes), size);
    }
    Ok(())
}

/// INS and OUTS, repeated or not. A long repeat is done in pieces: RIP stays until the last.
pub(super) fn string<P: Platform>(
    cx: &mut Ctx<'_, P>,
    regs: &mut CpuRegs,
    insn: &Insn,
) -> Emulation {
    let mask = if insn.addr32 { 0xffff_ffff } else { u64::MAX };
    let base = match (insn.op, insn.segment) {
        (Op::Outs, Segment::Fs) => cx.plat.segment_base(SegmentBase::Fs),
        (Op::Outs, Segment::Gs) => cx.plat.segment_base(SegmentBase::GsKernel),
        _ => 0,
    };
    let port = regs.rdx as u32 & 0xffff;
    let step = if regs.rflags & DF == 0 {
        u64::from(insn.size)
    } else {
        u64::from(insn.size).wrapping_neg()
    };
    let wanted = if insn.rep { regs.rcx & mask } else { 1 };
    let mut index = if insn.op == Op::Ins { regs.rdi } else { regs.rsi } & mask;
    let (mut done, mut fault, mut hit) = (0, None, 0);
    while done < wanted.min(BATCH) && hit == 0 {
        if let Err(at) = element(cx, insn.op, port, base.wrapping_add(index), insn.size) {
            fault = Some(at);
            break;
        }
        index = index.wrapping_add(step) & mask;
        done += 1;
        hit = breakpoints(cx, port, insn.size);
    }
    if done != 0 {
        *(if insn.op == Op::Ins { &mut regs.rdi } else { &mut regs.rsi }) = index;
    }
    if insn.rep && done != 0 {
        regs.rcx = (regs.rcx & mask) - done;
    }
    if let Some(at) = fault {
        return page_fault(cx, regs, at, if insn.op == Op::Ins { PF_WRITE } else { 0 });
    }
    let len = if done == wanted { insn.len } else { 0 };
    if hit == 0 && done < wanted { Emulation::Done } else { retire_with(cx, regs, len, hit) }
}
