//! multicall: a list of hypercalls in one.

use core::mem::offset_of;

use xen_abi::hypercall::{HypercallNr, MulticallEntry};
use xen_abi::{Errno, GuestVa};

use crate::mmu::flush;
use crate::outcome::{HcResult, Outcome, efault, ret};
use crate::platform::Platform;
use crate::regs::CpuRegs;
use crate::sched::Wait;
use crate::{Ctx, dispatch, sched};

/// Calls made in one go; the rest is a continuation.
const BATCH: u32 = 64;
/// Bytes of an entry.
const ENTRY: u64 = size_of::<MulticallEntry>() as u64;
const WORDS: usize = size_of::<MulticallEntry>() / 8;

/// `multicall(list, count)`. Each entry gets its own result; the first that cannot be read or
/// written ends the call. A call that continues is written back as its continuation and the
/// multicall continues there; a multicall inside is `EINVAL`.
///
/// # Errors
/// `EFAULT`.
#[inline(never)]
pub fn multicall<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> HcResult {
    let mut list = regs.rdi;
    let mut left = regs.rsi as u32;
    let saved = Arguments::of(regs);
    let mut budget = BATCH;
    cx.vcpu.mmu.flushes.collect();
    let outcome = loop {
        if left == 0 {
            break ret(0);
        }
        if budget == 0 {
            break Ok(Outcome::Continue);
        }
        budget -= 1;
        let [op, _, a, b, c, d, ..]: [u64; WORDS] = match cx.plat.read_words(GuestVa(list)) {
            Ok(words) => words,
            Err(fault) => break Err(efault(fault)),
        };
        // mmuext_op knows itself what must not overtake a flush.
        if cx.vcpu.mmu.flushes.wait() && op != u64::from(HypercallNr::mmuext_op.0) {
            flush::send(cx);
        }
        let result = match dispatch::plain(cx, op, [a, b, c, d]) {
            Some(value) => value,
            None => match one(cx, regs, GuestVa(list)) {
                Ok(Outcome::Return(value)) => value,
                // iret: the registers are no longer this call's.
                Ok(Outcome::Replaced) => {
                    flush::end(cx);
                    return Ok(Outcome::Replaced);
                }
                Ok(Outcome::Block) if left != 1 && cx.vcpu.wait != Wait::Down => {
                    // A block may end early for any reason; here it does at once.
                    sched::cancel_wait(cx);
                    0
                }
                end => break end,
            },
        };
        let at = GuestVa(list).add(offset_of!(MulticallEntry, result) as u64);
        if let Err(fault) = cx.plat.write_words(at, [result.cast_unsigned()]) {
            break Err(efault(fault));
        }
        list = list.wrapping_add(ENTRY);
        left -= 1;
    };
    flush::end(cx);
    saved.restore(regs);
    (regs.rdi, regs.rsi) = (list, left.into());
    outcome
}

/// Makes the call of an entry; one that continues is written back as its continuation.
#[inline(never)]
fn one<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs, at: GuestVa) -> HcResult {
    let mut entry: MulticallEntry = cx.plat.read_guest(at).map_err(efault)?;
    if entry.op == u64::from(HypercallNr::multicall.0) {
        return ret(Errno::EINVAL.to_ret());
    }
    Arguments { rax: entry.op, args: entry.args }.restore(regs);
    let outcome = dispatch::hypercall(cx, regs);
    if outcome == Outcome::Continue {
        let Arguments { rax, args } = Arguments::of(regs);
        (entry.op, entry.args) = (rax, args);
        cx.plat.write_guest(at, &entry).map_err(efault)?;
    }
    Ok(outcome)
}

/// The registers a hypercall is in.
struct Arguments {
    rax: u64,
    args: [u64; 6],
}

impl Arguments {
    #[inline]
    const fn of(regs: &CpuRegs) -> Self {
        Self { rax: regs.rax, args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] }
    }

    #[inline]
    const fn restore(&self, regs: &mut CpuRegs) {
        regs.rax = self.rax;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = self.args;
    }
}

#[cfg(test)]
mod tests;
