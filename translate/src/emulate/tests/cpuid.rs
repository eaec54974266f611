//! CPUID as the guest sees it.

use xen_abi::Mfn;

use super::{cpuid_leaf, forced, guest_cpuid, machine, processor};
use crate::emulate::Emulation;
use crate::emulate::cpuid::machine_address_bits;
use crate::fake::user_regs;
use crate::regs::CpuRegs;

#[test]
fn xen_leaves() {
    let mut machine = machine();
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0001, 0), [4 << 16 | 17, 0, 0, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0002, 0), [1, 0x4000_0000, 1, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0003, 0), [2, 0, 1_000_000, 1]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0003, 1), [0, 0, 0x8000_0000, 1]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0003, 2), [1_000_000, 0, 0, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0004, 0), [0; 4]);
    // The highest frame number has 13 bits.
    assert_eq!(guest_cpuid(&mut machine, 0x4000_0005, 0), [0, 25, 0, 0]);
    for leaf in [0x4000_0006, 0x4000_0100, 0x4000_00ff] {
        assert_eq!(guest_cpuid(&mut machine, leaf, 0), [0; 4], "Hyper-V is not shown");
    }
}

#[test]
fn machine_addresses_are_as_wide_as_the_highest_one() {
    for (above, bits) in [(0x8_0000, 31), (0x8_0001, 32), (0x10_0000, 32), (0x14_0000, 33)] {
        assert_eq!(machine_address_bits(Mfn(above)), bits, "{above:#x}");
    }
}

#[test]
fn hidden_features() {
    for vendor in [b"GenuineIntel", b"AuthenticAMD"] {
        let mut machine = machine();
        processor(&machine, vendor);
        let [max, ..] = guest_cpuid(&mut machine, 0, 0);
        assert_eq!(max, 0xd);
        let [_, ebx, ecx, edx] = guest_cpuid(&mut machine, 1, 0);
        // PSE, MTRR, PGE, PSE36, DS, TM; MCE, MCA.
        assert_eq!(edx & (1 << 3 | 1 << 12 | 1 << 13 | 1 << 17 | 1 << 21 | 1 << 29), 0);
        assert_eq!(edx & (1 << 7 | 1 << 14), 1 << 7 | 1 << 14);
        assert_eq!(edx >> 11 & 1, u32::from(vendor == b"GenuineIntel"), "SEP");
        // MONITOR, VMX, SMX, PDCM, PCID, x2APIC, TSC deadline.
        assert_eq!(ecx & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 15 | 1 << 17 | 1 << 21 | 1 << 24), 0);
        // XSAVE, OSXSAVE, AVX, hypervisor; APIC id 0.
        assert_eq!(ecx >> 26, 0x3f & ecx >> 26);
        assert_eq!(
            ecx & (0xd << 26 | 1 << 31 | 1 << 27),
            0x1 << 26 | 1 << 27 | 1 << 28 | 1 << 31 | (ecx & 1 << 29)
        );
        assert_eq!(ebx >> 24, 0);
        let [_, ebx, ecx, edx] = guest_cpuid(&mut machine, 7, 0);
        // SMEP, INVPCID, MPX, SMAP; PKU, UMIP, shadow stacks, LA57; IBT, IBRS, ARCH_CAPS, AMX.
        assert_eq!(ebx & (1 << 7 | 1 << 10 | 1 << 14 | 1 << 20), 0);
        assert_eq!(ebx & 1, 1, "FSGSBASE");
        assert_eq!(ecx & (1 << 2 | 1 << 3 | 1 << 7 | 1 << 16), 0);
        assert_eq!(edx & (1 << 20 | 1 << 22 | 1 << 24 | 1 << 25 | 1 << 26 | 1 << 29), 0);
        let [_, _, ecx, edx] = guest_cpuid(&mut machine, 0x8000_0001, 0);
        assert_eq!(ecx & (1 << 2 | 1 << 22), 0, "SVM, topology");
        assert_eq!(edx & (1 << 26), 0, "1 GiB pages");
        assert_eq!(edx & (1 << 11 | 1 << 20 | 1 << 29), 1 << 11 | 1 << 20 | 1 << 29);
        assert_eq!(edx & 0x23f, if vendor == b"AuthenticAMD" { 0x275 & 0x23f } else { 0 });
        for leaf in
            [3, 5, 6, 8, 9, 0xa, 0xb, 0xc, 0xe, 0x15, 0x16, 0x8000_000a, 0x8000_001e, 0x8000_0022]
        {
            assert_eq!(guest_cpuid(&mut machine, leaf, 0), [0; 4], "{leaf:#x}");
        }
        assert_eq!(guest_cpuid(&mut machine, 0x8000_0007, 0), [0; 4]);
        // Physical addresses are the processor's, linear ones have four levels of tables.
        cpuid_leaf(&machine, 0x8000_0008, 0, [0x0023_392e, 0, 0, 0]);
        assert_eq!(guest_cpuid(&mut machine, 0x8000_0008, 0)[0], 0x302e);
    }
}

#[test]
fn xsave_leaves_agree_with_xcr0() {
    let mut machine = machine();
    processor(&machine, b"GenuineIntel");
    assert_eq!(guest_cpuid(&mut machine, 0xd, 0), [0xe7, 0x340, 2688, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0xd, 1), [7, !0, 0, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0xd, 2), [256, 576, 2, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0xd, 3), [0; 4], "MPX");
    assert_eq!(guest_cpuid(&mut machine, 0xd, 63), [0; 4]);
    // A program sees OSXSAVE when its kernel has switched it on.
    let mut regs = CpuRegs { rax: 1, rcx: 0, ..user_regs() };
    assert_eq!(forced(&mut machine, &mut regs), Emulation::Done);
    assert_eq!(regs.rcx >> 27 & 1, 0);
    machine.plat.state().guest_cr4 = 1 << 18;
    let mut regs = CpuRegs { rax: 1, rcx: 0, ..user_regs() };
    assert_eq!(forced(&mut machine, &mut regs), Emulation::Done);
    assert_eq!(regs.rcx >> 27 & 1, 1);
    // Without leaf 0xd there is no XSAVE, and nothing that needs it.
    cpuid_leaf(&machine, 0, 0, [0xb, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    let [_, _, ecx, _] = guest_cpuid(&mut machine, 1, 0);
    assert_eq!(ecx & (1 << 12 | 7 << 26 | 1 << 29), 0);
    let [_, ebx, ..] = guest_cpuid(&mut machine, 7, 0);
    assert_eq!(ebx & (1 << 5 | 1 << 16), 0);
}

#[test]
fn no_leaf_panics_on_any_answer() {
    let mut machine = machine();
    for vendor in [b"GenuineIntel", b"AuthenticAMD", b"CentaurHauls"] {
        processor(&machine, vendor);
        cpuid_leaf(&machine, 0xd, 0, [!0; 4]);
        for leaf in (0..0x40).chain(0x4000_0000..0x4000_0010).chain(0x8000_0000..0x8000_0040) {
            for subleaf in [0, 1, 2, 3, 5, 6, 31, 32, 62, 63, 64, u32::MAX] {
                let _ = guest_cpuid(&mut machine, leaf, subleaf);
            }
        }
    }
}
