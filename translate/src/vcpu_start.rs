//! The life of a vCPU: initialised by another one, up, down, up again.
//!
//! ```text
//! new ──initialise──▶ initialised ──up──▶ up ◀──up── down
//!                                          └──down──▶ ┘
//! ```
//! A new vCPU's processor waits in ring 0 and does not touch the vCPU, so the one that initialises
//! it may write there ([`Host::with_new_vcpu`](crate::platform::Host::with_new_vcpu)). From the
//! first `up` on only its own processor does ([`enter`]). While a vCPU is down its processor is on
//! none of the guest's page tables, and flushes leave it out.

use core::sync::atomic::Ordering;

use xen_abi::arch::{
    CpuUserRegs, TrapInfo, VGCF_I387_VALID, VGCF_IN_KERNEL, VcpuGuestContext, rflags, ti,
    xen_cr3_to_pfn,
};
use xen_abi::vcpu::Runstate;
use xen_abi::{Errno, GuestVa, Mfn};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::domain::{Domain, Stage, VcpuShared};
use crate::outcome::{HcResult, Outcome, efault, ret};
use crate::platform::{Platform, SegmentBase, Shutdown};
use crate::regs::{CpuRegs, selector};
use crate::sched::Wait;
use crate::trap_table::is_canonical;
use crate::vcpu::Vcpu;
use crate::{Ctx, debugreg, descriptor, emulate, mmu, requests, time};

/// CR0.TS.
const CR0_TS: u64 = 1 << 3;

/// x87 and SSE state, as FXRSTOR takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FpuImage(pub [u8; 512]);

/// What a new vCPU's processor loads before the first instruction.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    regs: CpuRegs,
    l4: u64,
    user_l4: u64,
    ts: bool,
    cr4: u64,
    fs_base: u64,
    gs_base_kernel: u64,
    gs_base_user: u64,
    debugreg: [u64; 8],
    fpu: Option<FpuImage>,
}

fn shared(dom: &Domain, id: u32) -> Option<&VcpuShared> {
    dom.vcpus.get(id as usize).filter(|_| id < dom.nr_vcpus)
}

/// `VCPUOP_initialise`.
///
/// # Errors
/// `EEXIST`: it has been; `EFAULT`; `EINVAL`: something the processor could not load.
pub fn initialise<P: Platform>(cx: &Ctx<'_, P>, id: u32, at: GuestVa) -> HcResult {
    let target = shared(cx.dom, id).ok_or(Errno::ENOENT)?;
    // Xen reads the context first.
    let source = Source { plat: cx.plat, at };
    source.check_readable()?;
    if !target.move_on(Stage::New, Stage::Initialising) {
        return Err(Errno::EEXIST);
    }
    let mut result = Err(Errno::EINVAL);
    let there = cx.plat.with_new_vcpu(id, &mut |vcpu| result = fill(cx, &source, target, vcpu));
    let next = if there && result.is_ok() { Stage::Initialised } else { Stage::New };
    target.move_on(Stage::Initialising, next);
    result?;
    ret(0)
}

/// The guest's structure, read piece by piece: it is too large for the stack.
struct Source<'a, P> {
    plat: &'a P,
    at: GuestVa,
}

impl<P: Platform> Source<'_, P> {
    fn check_readable(&self) -> Result<(), Errno> {
        let last = self.at.add(size_of::<VcpuGuestContext>() as u64 - 1);
        for at in [self.at, last] {
            self.plat.copy_from_guest(&mut [0], at).map_err(efault)?;
        }
        Ok(())
    }

    fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Errno> {
        self.plat.read_guest(self.at.add(offset as u64)).map_err(efault)
    }
}

/// Reads a field of the structure.
macro_rules! field {
    ($source:expr, $name:ident) => {
        $source.read(core::mem::offset_of!(VcpuGuestContext, $name))?
    };
}

/// The last part of the structure.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Tail {
    kernel_sp: u64,
    ctrlreg: [u64; 8],
    debugreg: [u64; 8],
    event_callback: u64,
    failsafe_callback: u64,
    syscall_callback: u64,
    vm_assist: u64,
    fs_base: u64,
    gs_base_kernel: u64,
    gs_base_user: u64,
}
const _: () = assert!(
    core::mem::offset_of!(VcpuGuestContext, kernel_sp) + size_of::<Tail>()
        == size_of::<VcpuGuestContext>()
);

/// Reads the context into a new vCPU (`arch_set_info_guest`). On an error the vCPU is as new.
fn fill<P: Platform>(
    cx: &Ctx<'_, P>,
    source: &Source<'_, P>,
    target: &VcpuShared,
    vcpu: &mut Vcpu,
) -> Result<(), Errno> {
    let info = (*target.info.lock()).ok_or(Errno::EINVAL)?;
    *vcpu = Vcpu::new(vcpu.id, info);
    let filled = try_fill(cx, source, vcpu);
    if filled.is_err() {
        *vcpu = Vcpu::new(vcpu.id, info);
    }
    filled
}

fn try_fill<P: Platform>(
    cx: &Ctx<'_, P>,
    source: &Source<'_, P>,
    vcpu: &mut Vcpu,
) -> Result<(), Errno> {
    let flags: u64 = field!(source, flags);
    let user: CpuUserRegs = field!(source, user_regs);
    let tail: Tail = field!(source, kernel_sp);
    let callbacks = [tail.event_callback, tail.failsafe_callback, tail.syscall_callback];
    let bases = [tail.fs_base, tail.gs_base_kernel, tail.gs_base_user];
    if !callbacks.into_iter().chain(bases).chain([user.rip]).all(is_canonical) {
        return Err(Errno::EINVAL);
    }
    set_traps(cx, source, vcpu)?;
    let frames: [u64; 16] = field!(source, gdt_frames);
    let entries: u64 = field!(source, gdt_ents);
    let table =
        descriptor::check_gdt(cx.plat, &frames, u32::try_from(entries).unwrap_or(u32::MAX))?;
    vcpu.descriptors.gdt_entries = entries as u32;
    vcpu.descriptors.gdt_frames = table.iter().map(|mfn| mfn.0).collect();
    let (ldt_base, ldt_ents): (u64, u64) = (field!(source, ldt_base), field!(source, ldt_ents));
    if ldt_ents != 0 {
        if !descriptor::ldt_okay(ldt_base, ldt_ents) {
            return Err(Errno::EINVAL);
        }
        (vcpu.descriptors.ldt_base, vcpu.descriptors.ldt_entries) = (ldt_base, ldt_ents as u32);
    }
    let l4 = xen_cr3_to_pfn(tail.ctrlreg[3]);
    let user_l4 = xen_cr3_to_pfn(tail.ctrlreg[1]);
    if !cx.plat.is_ram(Mfn(l4)) || user_l4 != 0 && !cx.plat.is_ram(Mfn(user_l4)) {
        return Err(Errno::EINVAL);
    }
    let entry = &mut vcpu.entry;
    entry.kernel_sp = crate::cpu::entry_stack(tail.kernel_sp);
    entry.event_callback = tail.event_callback;
    entry.failsafe_callback = tail.failsafe_callback;
    entry.failsafe_masks = u8::from(flags & xen_abi::arch::VGCF_FAILSAFE_DISABLES_EVENTS != 0);
    let masks = flags & xen_abi::arch::VGCF_SYSCALL_DISABLES_EVENTS != 0;
    entry.set_syscall_callback(tail.syscall_callback, masks);
    vcpu.control.iopl = (user.rflags >> 12) as u8 & 3;
    let fpu = if flags & VGCF_I387_VALID != 0 {
        let mut image = FpuImage([0; 512]);
        let at = source.at.add(core::mem::offset_of!(VcpuGuestContext, fpu_ctxt) as u64);
        source.plat.copy_from_guest(&mut image.0, at).map_err(efault)?;
        Some(image)
    } else {
        None
    };
    vcpu.start = Some(Start {
        regs: registers(&user, flags),
        l4,
        user_l4,
        ts: tail.ctrlreg[0] & CR0_TS != 0,
        cr4: tail.ctrlreg[4],
        fs_base: tail.fs_base,
        gs_base_kernel: tail.gs_base_kernel,
        gs_base_user: tail.gs_base_user,
        debugreg: tail.debugreg,
        fpu,
    });
    Ok(())
}

/// The exception handlers.
fn set_traps<P: Platform>(
    cx: &Ctx<'_, P>,
    source: &Source<'_, P>,
    vcpu: &mut Vcpu,
) -> Result<(), Errno> {
    let first = core::mem::offset_of!(VcpuGuestContext, trap_ctxt);
    for vector in 0..=255u8 {
        let at = first + usize::from(vector) * size_of::<TrapInfo>();
        let info = TrapInfo { vector, ..source.read(at)? };
        if !is_canonical(info.address) {
            return Err(Errno::EINVAL);
        }
        if info.address != 0 {
            vcpu.traps.set(&info);
            if info.flags & ti::DPL_MASK == 3 {
                cx.plat.set_gate_user(vector, true);
            }
        }
    }
    Ok(())
}

/// The registers of the first instruction. As for iret, a kernel gets the selectors it always has.
fn registers(user: &CpuUserRegs, flags: u64) -> CpuRegs {
    let kernel = flags & VGCF_IN_KERNEL != 0 || user.cs & 3 != 3;
    let (cs, ss) = if kernel {
        (selector::KERNEL_CS, selector::KERNEL_SS)
    } else {
        (selector::user_cs(user.cs), selector::user_ss(user.ss))
    };
    let loadable = user.rflags & crate::iret::LOADABLE;
    CpuRegs {
        r15: user.r15,
        r14: user.r14,
        r13: user.r13,
        r12: user.r12,
        rbp: user.rbp,
        rbx: user.rbx,
        r11: user.r11,
        r10: user.r10,
        r9: user.r9,
        r8: user.r8,
        rax: user.rax,
        rcx: user.rcx,
        rdx: user.rdx,
        rsi: user.rsi,
        rdi: user.rdi,
        error_code: 0,
        vector: 0,
        rip: user.rip,
        cs: cs.into(),
        rflags: loadable | rflags::MBS | rflags::IF,
        rsp: user.rsp,
        ss: ss.into(),
    }
}

/// `VCPUOP_up`.
///
/// # Errors
/// `EINVAL`: it has no context.
pub fn up<P: Platform>(cx: &Ctx<'_, P>, id: u32) -> HcResult {
    let target = shared(cx.dom, id).ok_or(Errno::ENOENT)?;
    if target.stage() != Stage::Initialised {
        return Err(Errno::EINVAL);
    }
    if !target.online.swap(true, Ordering::SeqCst) {
        cx.plat.kick(id);
    }
    ret(0)
}

/// `VCPUOP_down`: the last vCPU to go down turns the domain off.
///
/// # Errors
/// None.
pub fn down<P: Platform>(cx: &mut Ctx<'_, P>, id: u32) -> HcResult {
    let target = shared(cx.dom, id).ok_or(Errno::ENOENT)?;
    let is_up = |vcpu: &VcpuShared| vcpu.online.load(Ordering::SeqCst);
    if id != cx.vcpu.id {
        if target.online.swap(false, Ordering::SeqCst) {
            // It notices in the interrupt, or when it looks whether its wait is over.
            cx.plat.kick(id);
        }
        return ret(0);
    }
    // Off the guest's tables first: from then on nobody's flush counts on this vCPU, and it touches
    // no guest memory by virtual address until it is up again.
    go_down(cx);
    target.online.store(false, Ordering::SeqCst);
    if !cx.dom.vcpus.iter().take(cx.dom.nr_vcpus as usize).any(is_up) {
        cx.plat.shutdown(Shutdown::Poweroff, None);
    }
    Ok(Outcome::Block)
}

/// What other vCPUs want of this one, which is not down: what they asked for, and that it goes down. A wait
/// of its own ends with that.
pub fn obey<P: Platform>(cx: &mut Ctx<'_, P>) {
    requests::take(cx);
    if shared(cx.dom, cx.vcpu.id).is_some_and(|vcpu| !vcpu.online.load(Ordering::SeqCst)) {
        go_down(cx);
    }
}

#[cold]
fn go_down<P: Platform>(cx: &mut Ctx<'_, P>) {
    cx.vcpu.wait = Wait::Down;
    time::set_runstate(cx, Runstate::OFFLINE);
    cx.plat.leave_guest_tables();
    if let Some(shared) = shared(cx.dom, cx.vcpu.id) {
        shared.roots.leave();
    }
}

/// The vCPU, which was down, is up again.
pub(crate) fn come_back<P: Platform>(cx: &mut Ctx<'_, P>) {
    if !mmu::load_l4(cx, Mfn(cx.vcpu.mmu.l4)) {
        cx.plat.shutdown(Shutdown::DomainCrash("a vCPU's page table is gone"), None);
    }
    requests::take(cx);
}

/// Another vCPU has moved this one's `vcpu_info`, while it was down, or before it noticed that it was put
/// down.
pub(crate) fn follow_info<P: Platform>(cx: &mut Ctx<'_, P>) {
    if let Some(info) = shared(cx.dom, cx.vcpu.id).and_then(|shared| *shared.info.lock())
        && !core::ptr::eq(info, cx.vcpu.entry.info)
    {
        // What this vCPU's own timers raised since is marked in the old place.
        cx.vcpu.entry.info = info;
        info.evtchn_pending_sel.store(u64::MAX, Ordering::SeqCst);
        info.evtchn_upcall_pending.store(1, Ordering::SeqCst);
        time::publish(cx);
    }
}

/// A new vCPU is up: loads its context on its processor and returns the registers of its first
/// instruction.
pub fn enter<P: Platform>(cx: &mut Ctx<'_, P>) -> CpuRegs {
    let info = shared(cx.dom, cx.vcpu.id).and_then(|shared| *shared.info.lock());
    let (Some(info), Some(start)) = (info, cx.vcpu.start.take()) else {
        cx.plat.shutdown(Shutdown::DomainCrash("a vCPU is up without a context"), None);
    };
    cx.vcpu.entry.info = info;
    if !mmu::load_l4(cx, Mfn(start.l4)) {
        cx.plat.shutdown(Shutdown::DomainCrash("a vCPU's page table is gone"), None);
    }
    cx.vcpu.mmu.user_l4 = start.user_l4;
    let frames = cx.vcpu.descriptors.gdt_frames.clone();
    let entries = cx.vcpu.descriptors.gdt_entries;
    if descriptor::load_gdt(cx, &frames, entries).is_err() {
        cx.plat.shutdown(Shutdown::DomainCrash("a vCPU's descriptor table is gone"), None);
    }
    let (base, entries) = (cx.vcpu.descriptors.ldt_base, cx.vcpu.descriptors.ldt_entries);
    cx.plat.load_ldt(GuestVa(base), entries);
    cx.plat.clear_data_selectors();
    for (which, base) in [
        (SegmentBase::Fs, start.fs_base),
        (SegmentBase::GsKernel, start.gs_base_kernel),
        (SegmentBase::GsUser, start.gs_base_user),
    ] {
        // Checked when the context was given.
        cx.plat.set_segment_base(which, base);
    }
    if start.regs.from_guest_user() {
        cx.plat.swapgs();
    }
    if start.cr4 != 0 {
        cx.plat.set_guest_cr4(start.cr4 & emulate::cr4_allowed(cx));
    }
    for (reg, value) in (0..).zip(start.debugreg) {
        if reg != 4 && reg != 5 && value != 0 {
            // One it may not have is left out.
            let _ = debugreg::write(cx, reg, value);
        }
    }
    if let Some(image) = &start.fpu {
        cx.plat.load_fpu(image);
    }
    emulate::set_ts(cx, start.ts);
    time::init(cx);
    requests::take(cx);
    start.regs
}

#[cfg(test)]
#[path = "vcpu_start_tests.rs"]
mod tests;
