//! ACPI fixed hardware: PM1a event and control blocks, PM timer, reset register.
//!
//! Power management is always in ACPI mode (there is no SMI command port).
//! Writing SLP_EN with the sleep type of `\_S5` to the control block powers off.

use crate::exit::Outcome;
use std::time::Instant;

/// PM1a event block: status, then enable, 16 bits each.
pub const PM1A_EVT: u16 = 0x600;
/// PM1a control block.
pub const PM1A_CNT: u16 = 0x604;
/// PM timer.
pub const PM_TMR: u16 = 0x608;
/// Reset register.
pub const RESET_PORT: u16 = 0xcf9;
/// Value that resets.
pub const RESET_VALUE: u8 = 0x06;
/// System control interrupt.
pub const SCI_IRQ: u8 = 9;
/// Sleep type of `\_S5`.
pub const S5_SLEEP_TYPE: u8 = 5;
/// Ticks of the PM timer in a second.
pub const PM_TIMER_HZ: u64 = 3_579_545;

const CNT_SCI_EN: u16 = 1;
const CNT_SLP_TYP_SHIFT: u16 = 10;
const CNT_SLP_EN: u16 = 1 << 13;

/// State of the fixed hardware.
#[derive(Debug)]
pub struct Pm {
    enable: u16,
    control: u16,
    started: Instant,
}

impl Default for Pm {
    fn default() -> Self {
        Self { enable: 0, control: CNT_SCI_EN, started: Instant::now() }
    }
}

impl Pm {
    /// Reads 16 bits of the event or control block; `None` for other ports.
    #[must_use]
    pub fn read16(&self, port: u16) -> Option<u16> {
        match port {
            // No fixed event ever happens.
            PM1A_EVT => Some(0),
            0x602 => Some(self.enable),
            PM1A_CNT => Some(self.control),
            _ => None,
        }
    }

    /// Writes 16 bits of the event or control block.
    pub fn write16(&mut self, port: u16, value: u16) -> Option<Outcome> {
        match port {
            0x602 => self.enable = value,
            PM1A_CNT => {
                let sleep_type = (value >> CNT_SLP_TYP_SHIFT) as u8 & 7;
                self.control = value & !CNT_SLP_EN | CNT_SCI_EN;
                if value & CNT_SLP_EN != 0 && sleep_type == S5_SLEEP_TYPE {
                    return Some(Outcome::PowerOff);
                }
            }
            _ => {}
        }
        None
    }

    /// The PM timer.
    #[must_use]
    pub fn timer(&self) -> u32 {
        ticks(self.started.elapsed().as_nanos())
    }
}

fn ticks(ns: u128) -> u32 {
    (ns * u128::from(PM_TIMER_HZ) / 1_000_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_powers_off() {
        let mut pm = Pm::default();
        assert_eq!(pm.read16(PM1A_CNT), Some(1), "SCI_EN");
        assert_eq!(pm.write16(PM1A_CNT, 5 << 10), None);
        assert_eq!(pm.write16(PM1A_CNT, 3 << 10 | 1 << 13), None);
        assert_eq!(pm.write16(PM1A_CNT, 5 << 10 | 1 << 13), Some(Outcome::PowerOff));
        assert_eq!(pm.read16(PM1A_CNT), Some(5 << 10 | 1));
    }

    #[test]
    fn event_block() {
        let mut pm = Pm::default();
        assert_eq!(pm.write16(0x602, 0x120), None);
        assert_eq!(pm.write16(0x600, 0xffff), None);
        assert_eq!((pm.read16(0x600), pm.read16(0x602)), (Some(0), Some(0x120)));
        assert_eq!(pm.read16(0x610), None);
    }

    #[test]
    fn timer_runs_at_its_rate_and_wraps() {
        assert_eq!(ticks(1_000_000_000), 3_579_545);
        assert_eq!(ticks(1_200 * 1_000_000_000), (3_579_545u64 * 1200) as u32);
        let pm = Pm::default();
        let first = pm.timer();
        assert!(pm.timer().wrapping_sub(first) < 3_579_545);
    }
}
