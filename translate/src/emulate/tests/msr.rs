//! Which MSRs there are.

use xen_abi::arch::{TrapInfo, vector};

use super::{machine, processor, rdmsr, wrmsr};
use crate::fake::{Call, mfn, va};
use crate::platform::GuestMemory;

#[test]
fn msr_filter() {
    let mut machine = machine();
    processor(&machine, b"GenuineIntel");
    let m = &mut machine;
    assert_eq!(rdmsr(m, 0x277), Some(0x0000_0501_0007_0406));
    assert_eq!(rdmsr(m, 0xc000_0080), Some(0xd01));
    assert_eq!(rdmsr(m, 0x1b), Some(0xfee0_0900));
    assert_eq!(rdmsr(m, 0x1a0), Some(0x80_1801));
    assert_eq!(rdmsr(m, 0x8b), Some(0));
    assert_eq!(rdmsr(m, 0xce), Some(0));
    assert_eq!(rdmsr(m, 0x186), Some(0));
    for hidden in [0x48, 0x10a, 0xc001_0015, 0xc001_0000, 0x4000_0000, 0xdead_beef] {
        assert_eq!(rdmsr(m, hidden), None, "{hidden:#x}");
    }
    assert!(wrmsr(m, 0xc000_0080, 0xd01) && !wrmsr(m, 0xc000_0080, 0x501));
    assert!(wrmsr(m, 0x1a0, 12345) && wrmsr(m, 0x8b, 0) && !wrmsr(m, 0x8b, 1));
    assert!(!wrmsr(m, 0x277, 0x0007_0406_0007_0406) && !wrmsr(m, 0x48, 1) && !wrmsr(m, 0x49, 1));
    assert!(wrmsr(m, 0xc000_0103, 7) && !wrmsr(m, 0xc000_0103, 1 << 32));
    assert_eq!(rdmsr(m, 0xc000_0103), Some(7));
    assert_eq!(m.plat.calls(), [Call::SetTscAux(7)]);
    processor(m, b"AuthenticAMD");
    assert_eq!(rdmsr(m, 0xc001_1029), Some(2));
    assert_eq!(rdmsr(m, 0xc001_0015), Some(0));
    assert_eq!(rdmsr(m, 0xc001_0000), Some(0));
    assert_eq!(rdmsr(m, 0x1a0), None);
    assert!(wrmsr(m, 0xc001_0062, 1) && !wrmsr(m, 0xc001_0010, 1) && !wrmsr(m, 0x1a0, 1));
    // Before the guest has a handler, unknown ones read 0.
    let none = TrapInfo { vector: vector::GP, flags: 0, cs: 0, pad: 0, address: 0 };
    m.vcpus[0].traps.set(&none);
    assert_eq!(rdmsr(m, 0x48), Some(0));
    assert_eq!(rdmsr(m, 0x4000_0000), None);
}

#[test]
fn the_hypercall_msr_fills_a_page() {
    let mut machine = machine();
    assert!(wrmsr(&mut machine, 0x4000_0000, mfn(20).base().0));
    let mut page = [0; 4096];
    machine.plat.copy_from_guest(&mut page, va(20)).unwrap();
    assert_eq!(page, crate::builder::hypercall_page());
    assert!(!wrmsr(&mut machine, 0x4000_0000, mfn(20).base().0 + 1));
    machine.dom.vcpus[0].roots.begin(mfn(20));
    assert!(!wrmsr(&mut machine, 0x4000_0000, mfn(20).base().0), "a processor's page table");
    assert!(!wrmsr(&mut machine, 0x4000_0000, 0));
}

#[test]
fn two_machine_check_banks_stay_empty() {
    let mut machine = machine();
    let m = &mut machine;
    for vendor in [b"GenuineIntel", b"AuthenticAMD", b"CentaurHauls"] {
        processor(m, vendor);
        let intel = vendor == b"GenuineIntel";
        assert_eq!(rdmsr(m, 0x179), Some(if intel { 0x100_0c02 } else { 2 }));
        // CTL of the two banks, and of one behind them.
        for (ctl, value) in [(0x400, !0), (0x404, !0), (0x408, 0), (0x47c, 0)] {
            assert_eq!(rdmsr(m, ctl), Some(value), "{ctl:#x}");
            assert!(wrmsr(m, ctl, 0));
            assert_eq!(rdmsr(m, ctl), Some(value), "{ctl:#x}");
            for register in ctl + 1..ctl + 4 {
                assert_eq!(rdmsr(m, register), Some(0), "{register:#x}");
                assert!(wrmsr(m, register, 0));
                assert_eq!(wrmsr(m, register, 1 << 63), value == 0, "{register:#x}");
            }
        }
        for (ctl2, kept) in [(0x280, intel), (0x281, intel), (0x282, false), (0x29f, false)] {
            assert!(wrmsr(m, ctl2, 1 << 30));
            assert_eq!(rdmsr(m, ctl2), Some(if kept { 1 << 30 } else { 0 }), "{ctl2:#x}");
        }
        assert!(wrmsr(m, 0x17a, 4) && wrmsr(m, 0x179, 0) && wrmsr(m, 0x17b, 0));
        assert_eq!((rdmsr(m, 0x17a), rdmsr(m, 0x17b)), (Some(4), Some(0)));
        assert_eq!((rdmsr(m, 0), rdmsr(m, 1)), (Some(0), Some(0)));
        assert!(!wrmsr(m, 0, 0) && !wrmsr(m, 1, 0));
        for beyond in [0x178, 0x17c, 0x27f, 0x2a0, 0x3ff, 0x480, 0x4d0] {
            assert_eq!(rdmsr(m, beyond), None, "{beyond:#x}");
            assert!(!wrmsr(m, beyond, 0), "{beyond:#x}");
        }
    }
}
