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
    assert!(!wrmsr(&mut machine, 0x4000_0000, 0));
}
