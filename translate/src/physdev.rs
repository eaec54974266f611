//! physdev_op for a guest without devices (`xen/arch/x86/physdev.c`).
//!
//! Interrupt lines (pirqs) exist as numbers the guest may allocate and never use.

use core::sync::atomic::{AtomicU64, Ordering};

use xen_abi::physdev::{
    PHYSDEV_OP_SIZE, PHYSDEV_OP_U_OFFSET, PhysdevApic, PhysdevEoi, PhysdevGetFreePirq, PhysdevIrq,
    PhysdevIrqStatusQuery, PhysdevManagePci, PhysdevManagePciExt, PhysdevMapPirq, PhysdevOp,
    PhysdevPciDevice, PhysdevPciDeviceAdd, PhysdevPirqEoiGmfn, PhysdevSetIobitmap, PhysdevSetIopl,
    PhysdevSetupGsi, PhysdevUnmapPirq, XEN_PCI_DEV_PXM, XENIRQSTAT_NEEDS_EOI, map_pirq_type,
};
use xen_abi::{Errno, GuestVa, Mfn};
use zerocopy::{FromBytes, IntoBytes};

use crate::Ctx;
use crate::evtchn::domain_by_any_id;
use crate::outcome::{HcResult, efault, ret};
use crate::platform::Platform;
use crate::time::handle_okay;

/// Interrupt lines of the I/O APIC a Xen host typically has.
const NR_IRQS_GSI: u32 = 24;
/// Lines below are ISA's.
const NR_ISA_IRQS: u32 = 16;
/// Lines of the domain: a host's and `extra_guest_irqs`, 32 by default.
pub(crate) const NR_PIRQS: u32 = NR_IRQS_GSI + 32;
/// Ports of an I/O bitmap.
const IO_PORTS: u32 = 65536;
/// No page.
const NONE: u64 = u64::MAX;

/// What physdev_op remembers.
#[derive(Debug)]
pub struct Physdev {
    /// Allocated pirqs.
    pirqs: AtomicU64,
    /// The page given by `PHYSDEVOP_pirq_eoi_gmfn`; nothing is ever written there.
    eoi_map: AtomicU64,
}

impl Default for Physdev {
    fn default() -> Self {
        Self::new()
    }
}

impl Physdev {
    /// Nothing allocated.
    #[must_use]
    pub const fn new() -> Self {
        Self { pirqs: AtomicU64::new(0), eoi_map: AtomicU64::new(NONE) }
    }

    fn allocated(&self, pirq: u32) -> bool {
        self.pirqs.load(Ordering::Relaxed) >> pirq & 1 != 0
    }

    /// Takes a free pirq (`get_free_pirq`): lines from below, message interrupts from above.
    fn allocate(&self, gsi: bool) -> Option<u32> {
        let take = |pirq: &u32| {
            let bit = 1u64 << *pirq;
            self.pirqs.fetch_or(bit, Ordering::Relaxed) & bit == 0
        };
        if gsi {
            (NR_ISA_IRQS..NR_IRQS_GSI).find(take)
        } else {
            // Xen's loop stops before it tries the first line above the I/O APIC's.
            (NR_IRQS_GSI + 1..NR_PIRQS).rev().find(take)
        }
    }
}

/// `physdev_op(cmd, arg)`.
///
/// # Errors
/// Xen's.
pub fn physdev_op<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, arg: u64) -> HcResult {
    let at = GuestVa(arg);
    match PhysdevOp(cmd as u32) {
        PhysdevOp::EOI => {
            let op: PhysdevEoi = read(cx, at)?;
            let known = op.irq < NR_PIRQS && cx.dom.physdev.allocated(op.irq);
            if known { ret(0) } else { Err(Errno::EINVAL) }
        }
        PhysdevOp::PIRQ_EOI_GMFN_V1 | PhysdevOp::PIRQ_EOI_GMFN_V2 => {
            let op: PhysdevPirqEoiGmfn = read(cx, at)?;
            cx.plat.frame(Mfn(op.gmfn)).ok_or(Errno::EINVAL)?;
            let map = &cx.dom.physdev.eoi_map;
            map.compare_exchange(NONE, op.gmfn, Ordering::Relaxed, Ordering::Relaxed)
                .map_err(|_| Errno::EBUSY)?;
            ret(0)
        }
        PhysdevOp::IRQ_UNMASK_NOTIFY => ret(0),
        PhysdevOp::IRQ_STATUS_QUERY => {
            let mut op: PhysdevIrqStatusQuery = read(cx, at)?;
            if op.irq >= NR_PIRQS {
                return Err(Errno::EINVAL);
            }
            op.flags = XENIRQSTAT_NEEDS_EOI;
            cx.plat.write_guest(at, &op).map_err(efault)?;
            ret(0)
        }
        PhysdevOp::SET_IOPL => {
            let op: PhysdevSetIopl = read(cx, at)?;
            if op.iopl > 3 {
                return Err(Errno::EINVAL);
            }
            cx.vcpu.control.iopl = op.iopl as u8;
            ret(0)
        }
        PhysdevOp::SET_IOBITMAP => set_iobitmap(cx, at),
        PhysdevOp::GET_FREE_PIRQ => {
            let mut op: PhysdevGetFreePirq = read(cx, at)?;
            let gsi = op.type_ == map_pirq_type::GSI;
            op.pirq = cx.dom.physdev.allocate(gsi).ok_or(Errno::ENOSPC)?;
            cx.plat.write_guest(at, &op).map_err(efault)?;
            ret(0)
        }
        PhysdevOp::MAP_PIRQ => map_pirq(cx, at),
        op => privileged(cx, op, at),
    }
}

/// `physdev_op_compat(op)`: command and argument in one structure.
///
/// # Errors
/// Xen's.
pub fn physdev_op_compat<P: Platform>(cx: &mut Ctx<'_, P>, uop: u64) -> HcResult {
    let mut op = [0; PHYSDEV_OP_SIZE];
    cx.plat.copy_from_guest(&mut op, GuestVa(uop)).map_err(efault)?;
    let [b0, b1, b2, b3, ..] = op;
    let cmd = u32::from_le_bytes([b0, b1, b2, b3]);
    physdev_op(cx, cmd.into(), uop.wrapping_add(PHYSDEV_OP_U_OFFSET))
}

fn read<P: Platform, T: FromBytes + IntoBytes>(cx: &Ctx<'_, P>, at: GuestVa) -> Result<T, Errno> {
    cx.plat.read_guest(at).map_err(efault)
}

/// The argument can be read; what it says makes no difference.
fn readable<P: Platform, T: FromBytes + IntoBytes>(
    cx: &Ctx<'_, P>,
    at: GuestVa,
) -> Result<(), Errno> {
    read::<P, T>(cx, at).map(|_| ())
}

/// Linux calls this at every return to a process with port access: cheap for one without.
fn set_iobitmap<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa) -> HcResult {
    let op: PhysdevSetIobitmap = read(cx, at)?;
    if !handle_okay(op.bitmap) || op.nr_ports > IO_PORTS {
        return Err(Errno::EINVAL);
    }
    let bitmap = (op.nr_ports != 0).then_some((GuestVa(op.bitmap), op.nr_ports));
    // Xen reads the bitmap at each access and takes a fault for "denied".
    if cx.plat.set_iobitmap(bitmap).is_err() {
        let _ = cx.plat.set_iobitmap(None);
    }
    ret(0)
}

/// `PHYSDEVOP_map_pirq`: the argument is written back even where the call fails.
fn map_pirq<P: Platform>(cx: &mut Ctx<'_, P>, at: GuestVa) -> HcResult {
    let mut op: PhysdevMapPirq = read(cx, at)?;
    match op.type_ {
        map_pirq_type::MSI_SEG => op.type_ = map_pirq_type::MSI,
        map_pirq_type::MULTI_MSI if op.table_base != 0 => return Err(Errno::EINVAL),
        _ => {}
    }
    let result = domain_by_any_id(op.domid).map_or_else(Err, |_| Err(Errno::EPERM));
    cx.plat.write_guest(at, &op).map_err(efault)?;
    result
}

/// What only a domain with hardware may do: the argument is read, and then it is `EPERM`.
fn privileged<P: Platform>(cx: &Ctx<'_, P>, op: PhysdevOp, at: GuestVa) -> HcResult {
    match op {
        PhysdevOp::UNMAP_PIRQ => {
            let op: PhysdevUnmapPirq = read(cx, at)?;
            domain_by_any_id(op.domid)?;
        }
        PhysdevOp::APIC_READ | PhysdevOp::APIC_WRITE => readable::<_, PhysdevApic>(cx, at)?,
        PhysdevOp::ALLOC_IRQ_VECTOR => readable::<_, PhysdevIrq>(cx, at)?,
        PhysdevOp::MANAGE_PCI_ADD | PhysdevOp::MANAGE_PCI_REMOVE => {
            readable::<_, PhysdevManagePci>(cx, at)?;
        }
        PhysdevOp::MANAGE_PCI_ADD_EXT => {
            let op: PhysdevManagePciExt = read(cx, at)?;
            if op.is_extfn > 1 || op.is_virtfn > 1 {
                return Err(Errno::EINVAL);
            }
        }
        PhysdevOp::PREPARE_MSIX | PhysdevOp::RELEASE_MSIX | PhysdevOp::PCI_DEVICE_REMOVE => {
            readable::<_, PhysdevPciDevice>(cx, at)?;
        }
        PhysdevOp::PCI_DEVICE_ADD => {
            let op: PhysdevPciDeviceAdd = read(cx, at)?;
            if op.flags & XEN_PCI_DEV_PXM != 0 {
                let array = at.add(size_of::<PhysdevPciDeviceAdd>() as u64);
                readable::<_, u32>(cx, array)?;
            }
        }
        PhysdevOp::RESTORE_MSI => {
            readable::<_, PhysdevManagePci>(cx, at)?;
            return Err(Errno::ENODEV);
        }
        PhysdevOp::RESTORE_MSI_EXT => {
            readable::<_, PhysdevPciDevice>(cx, at)?;
            return Err(Errno::ENODEV);
        }
        PhysdevOp::SETUP_GSI => {
            let op: PhysdevSetupGsi = read(cx, at)?;
            if !(0..NR_IRQS_GSI.cast_signed()).contains(&op.gsi) {
                return Err(Errno::EINVAL);
            }
        }
        // Refused before the argument is looked at.
        PhysdevOp::PCI_MMCFG_RESERVED | PhysdevOp::DBGP_OP => {}
        _ => return Err(Errno::ENOSYS),
    }
    Err(Errno::EPERM)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fake::{Call, Machine, mfn, va};
    use crate::outcome::Outcome;

    fn call(m: &mut Machine, op: PhysdevOp, words: &[u64]) -> HcResult {
        for (index, word) in (0u64..).zip(words) {
            m.plat.poke(va(3).add(index * 8), *word);
        }
        physdev_op(&mut m.cx(), op.0.into(), va(3).0)
    }

    #[test]
    fn lines() {
        let mut m = Machine::new();
        assert_eq!(call(&mut m, PhysdevOp::EOI, &[17]), Err(Errno::EINVAL));
        assert_eq!(call(&mut m, PhysdevOp::GET_FREE_PIRQ, &[1]), ret(0));
        assert_eq!(m.plat.peek(va(3)) >> 32, 16);
        assert_eq!(call(&mut m, PhysdevOp::EOI, &[16]), ret(0));
        assert_eq!(call(&mut m, PhysdevOp::GET_FREE_PIRQ, &[0]), ret(0));
        assert_eq!(m.plat.peek(va(3)) >> 32, 55);
        for _ in 17..24 {
            assert_eq!(call(&mut m, PhysdevOp::GET_FREE_PIRQ, &[1]), ret(0));
        }
        assert_eq!(call(&mut m, PhysdevOp::GET_FREE_PIRQ, &[1]), Err(Errno::ENOSPC));
        assert_eq!(call(&mut m, PhysdevOp::IRQ_STATUS_QUERY, &[55]), ret(0));
        assert_eq!(m.plat.peek(va(3)) >> 32, 1);
        assert_eq!(call(&mut m, PhysdevOp::IRQ_STATUS_QUERY, &[56]), Err(Errno::EINVAL));
        assert_eq!(call(&mut m, PhysdevOp::EOI, &[u64::from(u32::MAX)]), Err(Errno::EINVAL));
    }

    #[test]
    fn eoi_page_once() {
        let mut m = Machine::new();
        assert_eq!(call(&mut m, PhysdevOp::PIRQ_EOI_GMFN_V2, &[1]), Err(Errno::EINVAL));
        assert_eq!(call(&mut m, PhysdevOp::PIRQ_EOI_GMFN_V2, &[mfn(5).0]), ret(0));
        assert_eq!(call(&mut m, PhysdevOp::PIRQ_EOI_GMFN_V1, &[mfn(6).0]), Err(Errno::EBUSY));
    }

    #[test]
    fn port_access() {
        let mut m = Machine::new();
        assert_eq!(call(&mut m, PhysdevOp::SET_IOPL, &[4]), Err(Errno::EINVAL));
        assert_eq!(call(&mut m, PhysdevOp::SET_IOPL, &[3]), ret(0));
        m.plat.calls();
        assert_eq!(call(&mut m, PhysdevOp::SET_IOBITMAP, &[va(5).0, 65536]), ret(0));
        assert_eq!(call(&mut m, PhysdevOp::SET_IOBITMAP, &[0, 0]), ret(0));
        let bitmap = Some((va(5), 65536));
        assert_eq!(m.plat.calls(), [Call::SetIobitmap(bitmap), Call::SetIobitmap(None)]);
        assert_eq!(call(&mut m, PhysdevOp::SET_IOBITMAP, &[0, 65537]), Err(Errno::EINVAL));
        let hole = 0xffff_8000_0000_0000;
        assert_eq!(call(&mut m, PhysdevOp::SET_IOBITMAP, &[hole, 8]), Err(Errno::EINVAL));
    }

    #[test]
    fn not_a_guests_business() {
        let mut m = Machine::new();
        let self_ = 0x7ff0u64;
        assert_eq!(call(&mut m, PhysdevOp::MAP_PIRQ, &[3 << 32 | self_]), Err(Errno::EPERM));
        assert_eq!(m.plat.peek(va(3)) >> 32, 0, "MSI_SEG is written back as MSI");
        assert_eq!(call(&mut m, PhysdevOp::MAP_PIRQ, &[7]), Err(Errno::ESRCH));
        assert_eq!(call(&mut m, PhysdevOp::UNMAP_PIRQ, &[7]), Err(Errno::ESRCH));
        assert_eq!(call(&mut m, PhysdevOp::UNMAP_PIRQ, &[self_]), Err(Errno::EPERM));
        assert_eq!(call(&mut m, PhysdevOp::APIC_READ, &[0]), Err(Errno::EPERM));
        assert_eq!(physdev_op(&mut m.cx(), 8, 0), Err(Errno::EFAULT));
        assert_eq!(physdev_op(&mut m.cx(), 24, 0), Err(Errno::EPERM));
        assert_eq!(call(&mut m, PhysdevOp::SETUP_GSI, &[24]), Err(Errno::EINVAL));
        assert_eq!(call(&mut m, PhysdevOp::FREE_IRQ_VECTOR, &[0]), Err(Errno::ENOSYS));
        assert_eq!(call(&mut m, PhysdevOp::RESTORE_MSI, &[0]), Err(Errno::ENODEV));
    }

    #[test]
    fn compat_form() {
        let mut m = Machine::new();
        m.plat.poke(va(3), 6);
        m.plat.poke(va(3).add(8), 2);
        assert_eq!(physdev_op_compat(&mut m.cx(), va(3).0), ret(0));
        m.plat.poke(va(3).add(8), 9);
        assert_eq!(physdev_op_compat(&mut m.cx(), va(3).0), Err(Errno::EINVAL));
        assert_eq!(physdev_op_compat(&mut m.cx(), 8), Err(Errno::EFAULT));
    }

    proptest! {
        #[test]
        fn never_panics(cmd in 0u64..40, words: [u64; 8], at in prop_oneof![Just(va(3).0), any::<u64>()]) {
            let mut m = Machine::new();
            for (index, word) in (0u64..).zip(words) {
                m.plat.poke(va(3).add(index * 8), word);
            }
            let r = physdev_op(&mut m.cx(), cmd, at);
            prop_assert!(matches!(r, Err(_) | Ok(Outcome::Return(0))));
        }
    }
}
