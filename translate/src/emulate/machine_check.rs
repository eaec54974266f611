//! Machine-check registers as Xen's `vmce` keeps them: two banks in which no error ever is.

use super::cpuid::Vendor;

/// Banks.
const BANKS: usize = 2;

const P5_MC_ADDR: u32 = 0;
const P5_MC_TYPE: u32 = 1;
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MCG_CTL: u32 = 0x17b;
/// CTL2 of the first bank; numbers for 32 of them.
const MC0_CTL2: u32 = 0x280;
const MC31_CTL2: u32 = 0x29f;
/// CTL, STATUS, ADDR and MISC of the first bank; numbers for 32 banks.
const MC0_CTL: u32 = 0x400;
const MC31_MISC: u32 = 0x47f;
/// Which of a bank's four.
const CTL: u32 = 0;

/// MCG_CAP on Intel's processors: corrected errors interrupt (they never do), the status is
/// threshold-based, software recovers.
const MCG_CMCI_P: u64 = 1 << 10;
const MCG_TES_P: u64 = 1 << 11;
const MCG_SER_P: u64 = 1 << 24;

/// What a vCPU has written.
#[derive(Debug, Default)]
pub(super) struct MachineCheck {
    status: u64,
    ctl2: [u64; BANKS],
}

impl MachineCheck {
    /// A register's value; `None` where there is no such register.
    pub(super) fn read(&self, vendor: Vendor, msr: u32) -> Option<u64> {
        match msr {
            MCG_CAP if vendor == Vendor::Intel => {
                Some(MCG_SER_P | MCG_TES_P | MCG_CMCI_P | BANKS as u64)
            }
            MCG_CAP => Some(BANKS as u64),
            MCG_STATUS => Some(self.status),
            MC0_CTL2..=MC31_CTL2 if vendor == Vendor::Intel => {
                Some(self.ctl2.get((msr - MC0_CTL2) as usize).copied().unwrap_or(0))
            }
            // Every kind of error is reported; those beyond the banks read 0.
            MC0_CTL..=MC31_MISC if bank(msr) < BANKS && msr % 4 == CTL => Some(!0),
            P5_MC_ADDR | P5_MC_TYPE | MCG_CTL | MC0_CTL2..=MC31_CTL2 | MC0_CTL..=MC31_MISC => {
                Some(0)
            }
            _ => None,
        }
    }

    /// Writes a register; `None` where it cannot be, or not with this value.
    pub(super) fn write(&mut self, vendor: Vendor, msr: u32, value: u64) -> Option<()> {
        match msr {
            MCG_STATUS => self.status = value,
            MC0_CTL2..=MC31_CTL2 if vendor == Vendor::Intel => {
                if let Some(ctl2) = self.ctl2.get_mut((msr - MC0_CTL2) as usize) {
                    *ctl2 = value;
                }
            }
            // Errors can be cleared, not made up.
            MC0_CTL..=MC31_MISC if bank(msr) < BANKS && msr % 4 != CTL => {
                return (value == 0).then_some(());
            }
            MCG_CAP | MCG_CTL | MC0_CTL2..=MC31_CTL2 | MC0_CTL..=MC31_MISC => {}
            _ => return None,
        }
        Some(())
    }
}

/// The bank of a register from [`MC0_CTL`] on.
const fn bank(msr: u32) -> usize {
    ((msr - MC0_CTL) / 4) as usize
}
