//! TLB flushes that a guest asks for on several vCPUs.
//!
//! This vCPU's own part is done at once. In a multicall the others' part waits for that of the flushes
//! that follow, and goes out with them: before anything but a flush is done, and before the multicall
//! returns. docs/smp.md says why that is enough.

use xen_abi::mm::{MmuextCmd, UVMF_ALL, UVMF_FLUSHTYPE_MASK, UVMF_INVLPG, UVMF_TLB_FLUSH};
use xen_abi::{Errno, GuestVa};

use crate::Ctx;
use crate::outcome::efault;
use crate::platform::{Platform, VcpuSet};

/// What waits of a vCPU's flushes.
#[derive(Debug, Default)]
pub struct Flushes {
    /// A multicall is being made: flushes wait.
    collects: bool,
    /// The vCPUs they are for; 0: none waits.
    targets: u64,
    /// The page; `None`: everything.
    page: Option<GuestVa>,
}

impl Flushes {
    /// Whether a flush waits.
    #[inline(always)]
    pub(crate) const fn wait(&self) -> bool {
        self.targets != 0
    }

    /// A multicall begins.
    #[inline(always)]
    pub(crate) const fn collect(&mut self) {
        self.collects = true;
    }

    /// One more flush: of all pages where it is not of the same one.
    fn add(&mut self, targets: u64, page: Option<GuestVa>) {
        self.page = if self.targets == 0 || self.page == page { page } else { None };
        self.targets |= targets;
    }
}

/// Sends what waits.
#[inline(always)]
pub(crate) fn send<P: Platform>(cx: &mut Ctx<'_, P>) {
    if cx.vcpu.mmu.flushes.wait() {
        send_all(cx);
    }
}

#[cold]
#[inline(never)]
fn send_all<P: Platform>(cx: &mut Ctx<'_, P>) {
    let Flushes { targets, page, .. } = cx.vcpu.mmu.flushes;
    cx.vcpu.mmu.flushes.targets = 0;
    cx.plat.flush_tlb(VcpuSet::Mask(targets), page);
}

/// The multicall ends.
#[inline(always)]
pub(crate) fn end<P: Platform>(cx: &mut Ctx<'_, P>) {
    cx.vcpu.mmu.flushes.collects = false;
    send(cx);
}

/// Whether an operation is nothing but a flush.
pub(super) const fn is_flush(cmd: MmuextCmd) -> bool {
    use MmuextCmd as C;
    matches!(
        cmd,
        C::TLB_FLUSH_LOCAL
            | C::INVLPG_LOCAL
            | C::TLB_FLUSH_MULTI
            | C::INVLPG_MULTI
            | C::TLB_FLUSH_ALL
            | C::INVLPG_ALL
    )
}

/// Flushes a page, or everything, on vCPUs.
pub(super) fn flush<P: Platform>(cx: &mut Ctx<'_, P>, set: VcpuSet, page: Option<GuestVa>) {
    let me = 1u64 << (cx.vcpu.id & 63);
    let mask = match set {
        VcpuSet::All => u64::MAX,
        VcpuSet::Mask(mask) => mask,
    };
    let others = mask & !me;
    if others != 0 && !cx.vcpu.mmu.flushes.collects {
        return cx.plat.flush_tlb(set, page);
    }
    match page {
        _ if mask & me == 0 => {}
        None => cx.plat.flush_tlb_local(),
        Some(va) => cx.plat.invlpg_local(va),
    }
    if others != 0 {
        cx.vcpu.mmu.flushes.add(others, page);
    }
}

/// The flush update_va_mapping was asked for.
#[inline]
pub(super) fn for_update<P: Platform>(
    cx: &mut Ctx<'_, P>,
    va: u64,
    flags: u64,
) -> Result<(), Errno> {
    let page = match flags & UVMF_FLUSHTYPE_MASK {
        UVMF_TLB_FLUSH => None,
        UVMF_INVLPG => Some(GuestVa(va)),
        _ => return Ok(()),
    };
    match (flags & !UVMF_FLUSHTYPE_MASK, page) {
        (0, None) => cx.plat.flush_tlb_local(),
        (0, Some(va)) => cx.plat.invlpg_local(va),
        (UVMF_ALL, _) => flush(cx, VcpuSet::All, page),
        (bitmap, _) => {
            let set = vcpu_set(cx, bitmap)?;
            flush(cx, VcpuSet::Mask(set), page);
        }
    }
    Ok(())
}

/// Reads a guest's vCPU bitmap; bits of vCPUs it does not have are left out.
pub(super) fn vcpu_set<P: Platform>(cx: &Ctx<'_, P>, bitmap: u64) -> Result<u64, Errno> {
    let bits: u64 = cx.plat.read_guest(GuestVa(bitmap)).map_err(efault)?;
    Ok(bits & (u64::MAX >> (64 - cx.dom.nr_vcpus.clamp(1, 64))))
}
