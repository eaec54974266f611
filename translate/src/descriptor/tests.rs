use proptest::prelude::*;

use super::*;
use crate::fake::{Call, Machine, mfn, va};

/// Linux' kernel code, kernel data, user code; a TSS, an LDT, a call gate.
const KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;
const KERNEL_DATA: u64 = 0x00cf_9300_0000_ffff;
const USER_CODE: u64 = 0x00af_fb00_0000_ffff;
const TSS: u64 = 0x0000_8900_0000_0067;
const LDT: u64 = 0x0000_8200_0000_0fff;
const CALL_GATE: u64 = 0xffff_ec00_0010_1000;

#[test]
fn kernel_descriptors_get_ring_1_and_users_stay() {
    assert_eq!(check_descriptor(KERNEL_CODE), Some(0x00af_bb00_0000_ffff));
    assert_eq!(check_descriptor(KERNEL_DATA), Some(0x00cf_b300_0000_ffff));
    assert_eq!(check_descriptor(USER_CODE), Some(USER_CODE));
    assert_eq!(check_descriptor(0), Some(0));
    assert_eq!(check_descriptor(TSS & !P), Some(TSS & !P), "not present: harmless");
    for bad in [TSS, LDT, CALL_GATE, 0x0000_8e00_0008_1000, 0x0000_8f00_0008_1000] {
        assert_eq!(check_descriptor(bad), None, "{bad:#x}");
    }
}

#[test]
fn a_gdt_is_checked_and_loaded() {
    let mut machine = Machine::new();
    machine.plat.poke(va(5).add(8), KERNEL_CODE);
    machine.plat.poke(va(2), mfn(5).0);
    machine.plat.poke(va(2).add(8), mfn(6).0);
    assert_eq!(set_gdt(&mut machine.cx(), va(2).0, 513), ret(0));
    assert_eq!(machine.plat.calls(), [Call::LoadGdt([mfn(5), mfn(6)].into())]);
    assert_eq!(machine.plat.peek(va(5).add(8)), KERNEL_CODE | DPL_1);
    assert_eq!(machine.vcpus[0].descriptors.gdt_entries, 513);
    machine.plat.poke(va(6), TSS);
    assert_eq!(set_gdt(&mut machine.cx(), va(2).0, 513), Err(Errno::EINVAL));
    assert_eq!(set_gdt(&mut machine.cx(), va(2).0, 512), ret(0), "the second page is not used");
    machine.plat.poke(va(2), 0x800);
    assert_eq!(set_gdt(&mut machine.cx(), va(2).0, 1), Err(Errno::EINVAL));
    assert_eq!(set_gdt(&mut machine.cx(), va(2).0, 14 * 512 + 1), Err(Errno::EINVAL));
    assert_eq!(set_gdt(&mut machine.cx(), 0x1000, 1), Err(Errno::EFAULT));
    assert_eq!(set_gdt(&mut machine.cx(), 0x1000, 0), ret(0), "an empty table needs no list");
}

#[test]
fn a_descriptor_is_written_where_it_belongs() {
    let mut machine = Machine::new();
    let at = mfn(5).0 << 12 | 0x18;
    let mut update = |at, descriptor| update_descriptor(&mut machine.cx(), at, descriptor);
    assert_eq!(update(at, USER_CODE), ret(0));
    assert_eq!(update(at + 4, USER_CODE), Err(Errno::EINVAL));
    assert_eq!(update(at, CALL_GATE), Err(Errno::EINVAL));
    assert_eq!(update(0x80_0000, USER_CODE), Err(Errno::EINVAL));
    assert_eq!(update(u64::MAX - 7, 0), Err(Errno::EINVAL));
    assert_eq!(machine.plat.peek(va(5).add(0x18)), USER_CODE);
}

#[test]
fn a_descriptor_is_not_written_into_the_hole() {
    let mut machine = Machine::new();
    machine.vcpus[0].mmu.l4 = mfn(8).0;
    machine.plat.poke(va(8).add(0x800), 0x63);
    let at = mfn(8).0 << 12 | 0x808;
    assert_eq!(update_descriptor(&mut machine.cx(), at, 0), Err(Errno::EINVAL));
}

proptest! {
    /// Whatever passes is absent, empty, or a segment outside ring 0.
    #[test]
    fn nothing_of_ring_0_passes(descriptor: u64) {
        if let Some(checked) = check_descriptor(descriptor) {
            let segment = checked & S != 0 && checked & DPL != 0;
            prop_assert!(checked & P == 0 || segment || checked & (S | TYPE) == 0);
            prop_assert_eq!(checked & !DPL, descriptor & !DPL);
        }
    }
}
