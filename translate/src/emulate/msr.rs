//! RDMSR and WRMSR: Xen 4.17's filter for a PV domU. `None` is the guest's #GP.
//!
//! Features that go with an MSR of speculation control, and the MSRs with them, are hidden: ring 0
//! has no access to them on the guest's behalf yet.

use core::sync::atomic::Ordering::Relaxed;

use xen_abi::arch::{rflags, vector};
use xen_abi::cpuid::XEN_HYPERCALL_MSR;
use xen_abi::{GuestVa, Mfn};

use super::control;
use super::cpuid::{Vendor, has_invariant_tsc, vendor};
use crate::Ctx;
use crate::builder::hypercall_page;
use crate::mmu;
use crate::platform::{Platform, SegmentBase};
use crate::regs::CpuRegs;

/// The instruction.
const RDMSR: u16 = u16::from_le_bytes([0x0f, 0x32]);

const TSC: u32 = 0x10;
const PLATFORM_ID: u32 = 0x17;
const APIC_BASE: u32 = 0x1b;
const TSC_ADJUST: u32 = 0x3b;
const UCODE_REV: u32 = 0x8b;
const PLATFORM_INFO: u32 = 0xce;
const MPERF: u32 = 0xe7;
const APERF: u32 = 0xe8;
const MISC_FEATURES_ENABLES: u32 = 0x140;
const PERF_STATUS: u32 = 0x198;
const PERF_CTL: u32 = 0x199;
const THERM_CONTROL: u32 = 0x19a;
const THERM_STATUS: u32 = 0x19c;
const MISC_ENABLE: u32 = 0x1a0;
const ENERGY_PERF_BIAS: u32 = 0x1b0;
const PAT: u32 = 0x277;
const PERF_CAPABILITIES: u32 = 0x345;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
const K8_HWCR: u32 = 0xc001_0015;
const AMD64_NB_CFG: u32 = 0xc001_001f;
const AMD64_DE_CFG: u32 = 0xc001_1029;

/// Xen's PAT: WB, WT, UC-, UC, WC, WP, UC, UC.
const PAT_VALUE: u64 = 0x0000_0501_0007_0406;
/// SCE, LME, LMA, NXE.
const EFER_VALUE: u64 = 0xd01;
/// Fast strings; no branch trace, no precise events; no perf, no MONITOR; xTPR off.
const MISC_ENABLE_VALUE: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 23;
/// The local APIC's address, enabled; the boot processor's bit.
const APIC_BASE_VALUE: u64 = 0xfee0_0800;
const APIC_BASE_BSP: u64 = 1 << 8;
const DE_CFG_LFENCE_SERIALISE: u64 = 1 << 1;

/// Counters of the vendors' performance monitors: without a virtual PMU they read 0 and ignore
/// writes.
const fn is_perf_counter(vendor: Vendor, msr: u32) -> bool {
    match vendor {
        Vendor::Intel => matches!(msr, 0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x30b | 0x38d..=0x390),
        Vendor::Amd => matches!(msr, 0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b),
        Vendor::Other => false,
    }
}

/// Power states, FID/VID: 0 and ignored.
const fn is_amd_pstate(msr: u32) -> bool {
    matches!(msr, 0xc001_0041 | 0xc001_0042 | 0xc001_0061..=0xc001_006b)
}

/// RDMSR of a segment base by the kernel, ahead of [`super::general_protection`] and its decoder:
/// Linux saves the user's GS base so at every switch of processes. `false`: it is something else,
/// and nothing has changed.
#[inline]
pub fn read_segment_base<P: Platform>(cx: &Ctx<'_, P>, regs: &mut CpuRegs) -> bool {
    let Some(which) = segment(regs.rcx as u32) else { return false };
    if !regs.from_guest_kernel() || regs.error_code != 0 || regs.rflags & rflags::TF != 0 {
        return false;
    }
    // A whole word, which is one load; where the page ends before it does, the decoder serves.
    match cx.plat.read_words(GuestVa(regs.rip)) {
        Ok([code]) if code as u16 == RDMSR => {}
        _ => return false,
    }
    super::set_edx_eax(regs, cx.plat.segment_base(which));
    regs.rip = regs.rip.wrapping_add(2);
    regs.rflags &= !rflags::RF;
    true
}

#[inline]
fn segment(msr: u32) -> Option<SegmentBase> {
    match msr {
        FS_BASE => Some(SegmentBase::Fs),
        GS_BASE => Some(SegmentBase::GsKernel),
        KERNEL_GS_BASE => Some(SegmentBase::GsUser),
        _ => None,
    }
}

/// RDMSR.
pub(super) fn read<P: Platform>(cx: &Ctx<'_, P>, msr: u32) -> Option<u64> {
    // Once per context switch of a guest with FSGSBASE.
    if let Some(which) = segment(msr) {
        return Some(cx.plat.segment_base(which));
    }
    let value = known(cx, msr);
    // Before the guest has a #GP handler, Xen pretends that any real MSR reads 0.
    let early = cx.vcpu.traps.handler(vector::GP).address == 0 && msr >> 16 != 0x4000;
    value.or(if early { Some(0) } else { None })
}

fn known<P: Platform>(cx: &Ctx<'_, P>, msr: u32) -> Option<u64> {
    // Linux looks at it once a second when idle. The vendor would cost a CPUID, which is a VM exit.
    if msr == TSC_ADJUST {
        // Nobody has moved the guest's TSC, and nobody can.
        return has_invariant_tsc(cx).then_some(0);
    }
    let vendor = vendor(cx);
    let intel = |value| (vendor == Vendor::Intel).then_some(value);
    let amd = |value| (vendor == Vendor::Amd).then_some(value);
    match msr {
        TSC => Some(control::tsc(cx)),
        EFER => Some(EFER_VALUE),
        PAT => Some(PAT_VALUE),
        APIC_BASE => Some(APIC_BASE_VALUE | if cx.vcpu.id == 0 { APIC_BASE_BSP } else { 0 }),
        TSC_AUX => has_tsc_aux(cx).then_some(cx.vcpu.control.tsc_aux.into()),
        // No CPUID faulting on offer, none on; no revision known.
        PLATFORM_INFO | MISC_FEATURES_ENABLES | PERF_CAPABILITIES => Some(0),
        UCODE_REV => (vendor != Vendor::Other).then_some(0),
        PLATFORM_ID | PERF_STATUS | PERF_CTL | THERM_STATUS => intel(0),
        MISC_ENABLE => intel(MISC_ENABLE_VALUE),
        K8_HWCR | AMD64_NB_CFG => amd(0),
        AMD64_DE_CFG => amd(DE_CFG_LFENCE_SERIALISE),
        _ if is_amd_pstate(msr) => amd(0),
        _ if is_perf_counter(vendor, msr) => Some(0),
        _ => cx.vcpu.control.machine_check.read(vendor, msr),
    }
}

/// WRMSR.
pub(super) fn write<P: Platform>(cx: &mut Ctx<'_, P>, msr: u32, value: u64) -> Option<()> {
    if let Some(which) = segment(msr) {
        return cx.plat.set_segment_base(which, value).then_some(());
    }
    let vendor = vendor(cx);
    let intel = vendor == Vendor::Intel;
    let amd = vendor == Vendor::Amd;
    let accepted = match msr {
        // The current value may be written back.
        EFER => value == EFER_VALUE,
        TSC_ADJUST => value == 0 && has_invariant_tsc(cx),
        TSC_AUX => return write_tsc_aux(cx, value),
        XEN_HYPERCALL_MSR => return write_hypercall_page(cx, value),
        UCODE_REV => intel && value == 0,
        MISC_FEATURES_ENABLES => value == 0,
        // Ignored, whatever the value.
        MISC_ENABLE | PERF_CTL | THERM_CONTROL | ENERGY_PERF_BIAS => intel,
        MPERF | APERF => intel || amd,
        K8_HWCR | AMD64_DE_CFG => amd,
        AMD64_NB_CFG => true,
        _ if amd && is_amd_pstate(msr) || is_perf_counter(vendor, msr) => true,
        _ => return cx.vcpu.control.machine_check.write(vendor, msr, value),
    };
    accepted.then_some(())
}

/// RDTSCP, or RDPID: either makes TSC_AUX exist.
fn has_tsc_aux<P: Platform>(cx: &Ctx<'_, P>) -> bool {
    super::cpuid::cpuid(cx, 0x8000_0001, 0, true).edx >> 27 & 1 == 1
        || super::cpuid::cpuid(cx, 7, 0, true).ecx >> 22 & 1 == 1
}

fn write_tsc_aux<P: Platform>(cx: &mut Ctx<'_, P>, value: u64) -> Option<()> {
    let value = u32::try_from(value).ok().filter(|_| has_tsc_aux(cx))?;
    cx.vcpu.control.tsc_aux = value;
    cx.plat.set_tsc_aux(value);
    Some(())
}

/// Fills a hypercall page: the value is its machine address, the low bits its index, 0.
fn write_hypercall_page<P: Platform>(cx: &Ctx<'_, P>, value: u64) -> Option<()> {
    if value & 0xfff != 0 {
        return None;
    }
    let mfn = Mfn(value >> 12);
    let words = cx.plat.frame(mfn)?;
    let page = hypercall_page();
    mmu::unless_loaded(cx, mfn, || {
        for (word, bytes) in words.iter().zip(page.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Relaxed);
        }
    })
}
