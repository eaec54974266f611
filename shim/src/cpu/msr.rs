//! Model-specific registers the shim uses, and access that survives a refusal.

use core::arch::asm;

#[allow(missing_docs, reason = "names are the manuals' own")]
pub mod nr {
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const PAT: u32 = 0x277;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_BASE: u32 = 0x800;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

unsafe extern "C" {
    fn wrmsr_checked(msr: u32, value: u64) -> u64;
    fn rdmsr_checked(msr: u32, value: *mut u64) -> u64;
}

/// Reads an MSR.
///
/// # Safety
/// The processor must have the MSR: a refusal here is a fault in ring 0.
#[inline]
pub unsafe fn read(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller says the MSR exists; reading has no effect on memory.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
/// The MSR must exist, take the value, and the write's effect must be sound where it is made.
#[inline]
pub unsafe fn write(msr: u32, value: u64) {
    // SAFETY: passed on to the caller.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// Sets bits of an MSR.
///
/// # Safety
/// As for [`write`].
pub unsafe fn set_bits(msr: u32, bits: u64) {
    // SAFETY: the caller says the MSR exists.
    let value = unsafe { read(msr) };
    // SAFETY: the caller's promise.
    unsafe { write(msr, value | bits) };
}

/// Writes an MSR that may not exist or may refuse the value; `false` then.
///
/// # Safety
/// The write's effect, where it succeeds, must be sound.
pub unsafe fn try_write(msr: u32, value: u64) -> bool {
    // SAFETY: the assembly catches a refusal; the effect is the caller's promise.
    unsafe { wrmsr_checked(msr, value) == 0 }
}

/// Reads an MSR that may not exist; `None` then.
pub fn try_read(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: the assembly catches a refusal, and writes only the value.
    let refused = unsafe { rdmsr_checked(msr, &raw mut value) };
    (refused == 0).then_some(value)
}
