//! CPUID as the guest's kernel sees it, through Xen's forced-emulation prefix: a line
//! for each leaf and subleaf that is not zero.

use std::arch::asm;

/// Leaf ranges, and how many subleaves of each are looked at.
const RANGES: [(u32, u32, u32); 3] =
    [(0, 0x20, 4), (0x4000_0000, 0x4000_0006, 3), (0x8000_0000, 0x8000_0022, 1)];

#[expect(unsafe_code, reason = "one instruction")]
fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: Xen emulates CPUID behind the prefix and passes over both; without Xen the
    // process gets SIGILL. RBX is the compiler's and put back.
    unsafe {
        asm!(
            "mov {saved}, rbx",
            ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
            "cpuid",
            "xchg {saved}, rbx",
            saved = out(reg) ebx,
            inlateout("eax") leaf => eax,
            inlateout("ecx") subleaf => ecx,
            out("edx") edx,
            options(nomem, nostack),
        );
    }
    // The upper half is zero.
    [eax, (ebx & 0xffff_ffff) as u32, ecx, edx]
}

fn main() {
    for (first, end, subleaves) in RANGES {
        for leaf in first..end {
            for subleaf in 0..subleaves {
                let [eax, ebx, ecx, edx] = cpuid(leaf, subleaf);
                if eax | ebx | ecx | edx != 0 {
                    println!("{leaf:08x}.{subleaf} {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}");
                }
            }
        }
    }
}
