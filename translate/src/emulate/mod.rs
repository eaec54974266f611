//! Privileged instructions of the guest kernel, which runs in ring 1 and traps on them.

use crate::Ctx;
use crate::platform::Platform;
use crate::regs::CpuRegs;

/// Control registers and the like, as the guest sees them.
#[derive(Debug, Default)]
pub struct ControlRegs {
    /// IOPL by `PHYSDEVOP_set_iopl`: whether user mode may name I/O ports.
    pub iopl: u8,
}

/// What became of a trapped instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// Done: `rip` is past it.
    Done,
    /// The guest gets this exception; registers are unchanged.
    Bounce {
        /// Vector.
        vector: u8,
        /// Error code, for vectors that have one.
        error_code: Option<u32>,
    },
}

/// #GP from the guest.
pub fn general_protection<P: Platform>(
    _cx: &mut Ctx<'_, P>,
    _regs: &mut CpuRegs,
    error_code: u32,
) -> Emulation {
    Emulation::Bounce { vector: 13, error_code: Some(error_code) }
}

/// #UD from the guest: the forced-emulation prefix, else the guest's own.
pub fn invalid_opcode<P: Platform>(_cx: &mut Ctx<'_, P>, _regs: &mut CpuRegs) -> Emulation {
    Emulation::Bounce { vector: 6, error_code: None }
}
