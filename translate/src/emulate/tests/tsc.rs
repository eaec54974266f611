//! What the guest is told of its TSC.

use super::{cpuid_leaf, guest_cpuid, machine, processor, rdmsr, wrmsr};

const TSC_ADJUST: u32 = 0x3b;
const ITSC: [u32; 4] = [0, 0, 0, 1 << 8];

#[test]
fn an_invariant_tsc_is_shown_where_the_platform_vouches_for_it() {
    for vendor in [b"GenuineIntel", b"AuthenticAMD"] {
        let mut machine = machine();
        processor(&machine, vendor);
        // The processor's own bits do not count: the platform has seen them.
        assert_eq!(guest_cpuid(&mut machine, 0x8000_0007, 0), [0; 4]);
        assert_eq!(guest_cpuid(&mut machine, 7, 0)[1] & 2, 0);
        machine.plat.state().tsc_scale.invariant = true;
        assert_eq!(guest_cpuid(&mut machine, 0x8000_0007, 0), ITSC);
        assert_eq!(guest_cpuid(&mut machine, 7, 0)[1] & 2, 2);
        assert_eq!(guest_cpuid(&mut machine, 7, 1)[1], 0);
        // Nor does a processor that has neither bit hide them.
        cpuid_leaf(&machine, 0x8000_0007, 0, [0; 4]);
        cpuid_leaf(&machine, 7, 0, [2, 0, 0, 0]);
        assert_eq!(guest_cpuid(&mut machine, 0x8000_0007, 0), ITSC);
        assert_eq!(guest_cpuid(&mut machine, 7, 0)[1], 2);
    }
}

#[test]
fn leaves_a_processor_lacks_stay_away() {
    let mut machine = machine();
    processor(&machine, b"GenuineIntel");
    machine.plat.state().tsc_scale.invariant = true;
    cpuid_leaf(&machine, 0x8000_0000, 0, [0x8000_0004, 0, 0, 0]);
    assert_eq!(guest_cpuid(&mut machine, 0x8000_0007, 0), [0; 4]);
}

#[test]
fn tsc_adjust_is_zero_and_stays_so() {
    let mut machine = machine();
    processor(&machine, b"GenuineIntel");
    let m = &mut machine;
    assert_eq!(rdmsr(m, TSC_ADJUST), None);
    assert!(!wrmsr(m, TSC_ADJUST, 0));
    m.plat.state().tsc_scale.invariant = true;
    assert_eq!(rdmsr(m, TSC_ADJUST), Some(0));
    assert!(wrmsr(m, TSC_ADJUST, 0));
    for moved in [1, 1 << 32, u64::MAX] {
        assert!(!wrmsr(m, TSC_ADJUST, moved), "{moved:#x}");
    }
    assert_eq!(rdmsr(m, TSC_ADJUST), Some(0));
    assert_eq!(m.plat.calls(), []);
}
