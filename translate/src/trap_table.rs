//! The guest's exception handlers: set_trap_table.

use xen_abi::arch::{TrapInfo, ti};
use xen_abi::{Errno, GuestVa};

use crate::Ctx;
use crate::outcome::{HcResult, Outcome, efault, ret};
use crate::platform::Platform;
use crate::regs::CpuRegs;

/// Table entries taken in one go; the rest is a continuation.
const BATCH: usize = 256;

/// The guest's handlers, by vector. The code selector of an entry is ignored: a handler runs on
/// [`crate::regs::selector::KERNEL_CS`] whatever the guest gave.
#[derive(Debug)]
pub struct TrapTable {
    /// Handler addresses, 0 = none.
    address: [u64; 256],
    /// [`ti`] flags.
    flags: [u8; 256],
}

impl Default for TrapTable {
    fn default() -> Self {
        Self { address: [0; 256], flags: [0; 256] }
    }
}

/// A handler, as the bounce needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handler {
    /// Address, 0 = none.
    pub address: u64,
    /// 1: events are masked on entry.
    pub masks: u8,
}

impl TrapTable {
    /// The handler of a vector.
    #[inline]
    #[must_use]
    pub fn handler(&self, vector: u8) -> Handler {
        let at = usize::from(vector);
        Handler { address: self.address[at], masks: self.flags[at] >> 2 & 1 }
    }

    /// The ring from which INT n may raise the vector: 3 for user mode too, 1 and 2 for the
    /// kernel only, 0 for nobody (`TI_GET_DPL`).
    #[inline]
    #[must_use]
    pub fn dpl(&self, vector: u8) -> u8 {
        self.flags[usize::from(vector)] & ti::DPL_MASK
    }

    /// Sets a handler; the caller sets the hardware gate.
    pub fn set(&mut self, info: &TrapInfo) {
        let at = usize::from(info.vector);
        self.address[at] = info.address;
        self.flags[at] = info.flags;
    }
}

/// Whether an address is canonical.
#[inline]
#[must_use]
pub const fn is_canonical(address: u64) -> bool {
    ((address << 16).cast_signed() >> 16).cast_unsigned() == address
}

/// `set_trap_table`: a null pointer clears all handlers, else a list that ends with address 0.
///
/// # Errors
/// `EFAULT`; `EINVAL` for an address that is not canonical, entries before it are in force.
pub fn set_trap_table<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> HcResult {
    if regs.rdi == 0 {
        cx.vcpu.traps = TrapTable::default();
        (0..=255).for_each(|vector| cx.plat.set_gate_user(vector, false));
        return ret(0);
    }
    for _ in 0..BATCH {
        let info: TrapInfo = cx.plat.read_guest(GuestVa(regs.rdi)).map_err(efault)?;
        if info.address == 0 {
            return ret(0);
        }
        if !is_canonical(info.address) {
            return Err(Errno::EINVAL);
        }
        cx.vcpu.traps.set(&info);
        cx.plat.set_gate_user(info.vector, info.flags & ti::DPL_MASK == 3);
        regs.rdi = regs.rdi.wrapping_add(size_of::<TrapInfo>() as u64);
    }
    Ok(Outcome::Continue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Call, Machine, kernel_regs, va};
    use std::vec::Vec;
    use zerocopy::IntoBytes;

    fn entry(vector: u8, flags: u8, address: u64) -> TrapInfo {
        TrapInfo { vector, flags, cs: 0xe033, pad: 0, address }
    }

    fn write(machine: &Machine, at: GuestVa, entries: &[TrapInfo]) {
        use crate::platform::GuestMemory;
        machine.plat.copy_to_guest(at, entries.as_bytes()).unwrap();
    }

    #[test]
    fn a_table_is_taken_up_to_its_end() {
        let mut machine = Machine::new();
        let table = [
            entry(3, 3, 0xffff_ffff_8100_0300),
            entry(14, 4, 0xffff_ffff_8100_1400),
            entry(0, 0, 0),
            entry(6, 0, 0xffff_ffff_8100_0600),
        ];
        write(&machine, va(2), &table);
        let mut regs = CpuRegs { rdi: va(2).0, ..kernel_regs() };
        assert_eq!(set_trap_table(&mut machine.cx(), &mut regs), ret(0));
        let traps = &machine.vcpus[0].traps;
        assert_eq!(traps.handler(3), Handler { address: 0xffff_ffff_8100_0300, masks: 0 });
        assert_eq!(traps.handler(14), Handler { address: 0xffff_ffff_8100_1400, masks: 1 });
        assert_eq!(traps.handler(6).address, 0);
        assert_eq!((traps.dpl(3), traps.dpl(14)), (3, 0));
        assert_eq!(
            machine.plat.calls(),
            [Call::SetGateUser(3, true), Call::SetGateUser(14, false)]
        );
    }

    #[test]
    fn null_clears_the_table() {
        let mut machine = Machine::new();
        machine.vcpus[0].traps.set(&entry(3, 3, 8));
        let mut regs = CpuRegs { rdi: 0, ..kernel_regs() };
        assert_eq!(set_trap_table(&mut machine.cx(), &mut regs), ret(0));
        assert_eq!(machine.vcpus[0].traps.handler(3).address, 0);
        assert_eq!(machine.plat.calls().len(), 256);
    }

    #[test]
    fn bad_pointers_and_addresses_are_refused() {
        let mut machine = Machine::new();
        let mut regs = CpuRegs { rdi: 0x1000, ..kernel_regs() };
        assert_eq!(set_trap_table(&mut machine.cx(), &mut regs), Err(Errno::EFAULT));
        write(&machine, va(2), &[entry(3, 3, 0x8000_0000_0000)]);
        regs.rdi = va(2).0;
        assert_eq!(set_trap_table(&mut machine.cx(), &mut regs), Err(Errno::EINVAL));
    }

    #[test]
    fn a_list_without_end_is_cut() {
        let mut machine = Machine::new();
        let table: Vec<_> =
            (0..=255).chain(0..=255).map(|vector| entry(vector, 0, 0x1000)).collect();
        write(&machine, va(2), &table);
        let mut regs = CpuRegs { rdi: va(2).0, ..kernel_regs() };
        assert_eq!(set_trap_table(&mut machine.cx(), &mut regs), Ok(Outcome::Continue));
        assert_eq!(regs.rdi, va(3).0, "the continuation goes on behind the first page");
    }
}
