//! The iret hypercall: back from a handler to what it interrupted. The assembly has a fast path
//! for the usual return to a 64-bit program; this is the complete one.

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::GuestVa;
use xen_abi::arch::{IretContext, VGCF_IN_SYSCALL, rflags};
use xen_abi::hypercall::VMASST_TYPE_ARCHITECTURAL_IOPL;

use crate::Ctx;
use crate::bounce;
use crate::outcome::Outcome;
use crate::platform::{Platform, Shutdown};
use crate::regs::{CpuRegs, selector};

/// RFLAGS bits the guest may load: all that are defined, but those it has only virtually.
pub(crate) const LOADABLE: u64 = rflags::CF
    | rflags::PF
    | rflags::AF
    | rflags::ZF
    | rflags::SF
    | rflags::TF
    | rflags::DF
    | rflags::OF
    | rflags::NT
    | rflags::RF
    | rflags::AC
    | rflags::ID;

/// `iret`. The context lies at RSP; if it cannot be read the domain crashes, as on Xen.
///
/// CS decides by its RPL alone: 3 is user mode with the selectors given (a bad one makes the
/// final IRETQ fault, which becomes the failsafe callback), everything else is the kernel, which
/// always gets its own. For Xen's flat user selectors, whose entries are the guest kernel's here,
/// the shim has others.
#[inline]
pub fn iret<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> Outcome {
    let Ok(words) = cx.plat.read_words(GuestVa(regs.rsp)) else {
        cx.plat.shutdown(Shutdown::DomainCrash("iret: the context cannot be read"), Some(regs));
    };
    let from: IretContext = {
        let words: [u64; 9] = words;
        zerocopy::transmute!(words)
    };
    if from.cs & 3 == 3 {
        cx.plat.swapgs();
        regs.cs = selector::user_cs(from.cs as u16).into();
        regs.ss = selector::user_ss(from.ss as u16).into();
    } else {
        regs.cs = selector::KERNEL_CS.into();
        regs.ss = selector::KERNEL_SS.into();
    }
    if cx.dom.vm_assist.load(Relaxed) & 1 << VMASST_TYPE_ARCHITECTURAL_IOPL != 0 {
        cx.vcpu.control.iopl = (from.rflags >> 12) as u8 & 3;
    }
    regs.rip = from.rip;
    regs.rsp = from.rsp;
    regs.rflags = from.rflags & LOADABLE | rflags::MBS | rflags::IF;
    regs.rax = from.rax;
    if from.flags & VGCF_IN_SYSCALL == 0 {
        regs.rcx = from.rcx;
        regs.r11 = from.r11;
    } else {
        // What SYSRET leaves there.
        regs.rcx = regs.rip;
        regs.r11 = regs.rflags;
    }
    let mask = u8::from(from.rflags & rflags::IF == 0);
    cx.vcpu.entry.info.evtchn_upcall_mask.store(mask, Relaxed);
    if cx.vcpu.nmi.masked {
        cx.vcpu.nmi.masked = false;
        bounce::update_attention(cx);
    }
    Outcome::Replaced
}
