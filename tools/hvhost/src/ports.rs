//! The I/O port space.

use crate::exit::Outcome;
use crate::pm::{PM_TMR, PM1A_CNT, PM1A_EVT, Pm, RESET_PORT};
use crate::rtc::{Cmos, PORT_DATA, PORT_INDEX};
use crate::serial::{COM1, COM2, Com};
use std::sync::{Arc, Mutex, PoisonError};

/// Keyboard controller: only its reset pulse is there.
const I8042_COMMAND: u16 = 0x64;
const I8042_PULSE_RESET: u8 = 0xfe;
/// System control port A: bit 0 is the fast reset.
const FAST_RESET: u16 = 0x92;

/// Devices by port.
pub struct Ports {
    com1: Arc<Com>,
    com2: Arc<Com>,
    cmos: Mutex<Cmos>,
    pm: Mutex<Pm>,
}

impl Ports {
    /// The machine's ports.
    #[must_use]
    pub fn new(com1: Arc<Com>, com2: Arc<Com>) -> Self {
        Self { com1, com2, cmos: Mutex::default(), pm: Mutex::default() }
    }

    fn com(&self, port: u16) -> Option<(&Com, u8)> {
        match port {
            COM1..=0x3ff => Some((&self.com1, (port - COM1) as u8)),
            COM2..=0x2ff => Some((&self.com2, (port - COM2) as u8)),
            _ => None,
        }
    }

    /// Fills `data` with what a guest reads: elements of `size` bytes, all from `port`.
    pub fn read(&self, port: u16, size: usize, data: &mut [u8]) {
        for element in data.chunks_mut(size.max(1)) {
            element.fill(0xff);
            if let (Some((com, offset)), [byte]) = (self.com(port), &mut *element) {
                *byte = com.read(offset);
                continue;
            }
            self.read_element(port, element);
        }
    }

    fn read_element(&self, port: u16, element: &mut [u8]) {
        let size = element.len();
        let mut put = |value: &[u8]| {
            for (to, from) in element.iter_mut().zip(value) {
                *to = *from;
            }
        };
        match port {
            PORT_DATA => {
                let cmos = self.cmos.lock().unwrap_or_else(PoisonError::into_inner);
                put(&[cmos.read()]);
            }
            PM_TMR if size == 4 => {
                let pm = self.pm.lock().unwrap_or_else(PoisonError::into_inner);
                put(&pm.timer().to_le_bytes());
            }
            PM1A_EVT..PM_TMR if port.is_multiple_of(2) => {
                let pm = self.pm.lock().unwrap_or_else(PoisonError::into_inner);
                let half = |port| pm.read16(port).unwrap_or(0).to_le_bytes();
                let ([a, b], [c, d]) = (half(port), half(port.wrapping_add(2)));
                put(&[a, b, c, d]);
            }
            _ => {}
        }
    }

    /// Takes what a guest writes: elements of `size` bytes, all to `port`.
    #[must_use]
    pub fn write(&self, port: u16, size: usize, data: &[u8]) -> Option<Outcome> {
        if let (Some((com, offset)), 1) = (self.com(port), size) {
            com.write(offset, data);
            return None;
        }
        data.chunks(size.max(1)).find_map(|element| self.write_element(port, element))
    }

    fn write_element(&self, port: u16, element: &[u8]) -> Option<Outcome> {
        let (low, rest) = element.split_first()?;
        match port {
            PORT_INDEX => {
                self.cmos.lock().unwrap_or_else(PoisonError::into_inner).select(*low);
                None
            }
            I8042_COMMAND if *low == I8042_PULSE_RESET => Some(Outcome::Reset),
            FAST_RESET if low & 1 != 0 => Some(Outcome::Reset),
            RESET_PORT if low & 1 << 2 != 0 => Some(Outcome::Reset),
            PM1A_EVT..=PM1A_CNT if port.is_multiple_of(2) => {
                let mut pm = self.pm.lock().unwrap_or_else(PoisonError::into_inner);
                let word = |at: usize| {
                    let bytes = [element.get(at), element.get(at + 1)];
                    u16::from_le_bytes(bytes.map(|b| b.copied().unwrap_or(0)))
                };
                let first = if rest.is_empty() { u16::from(*low) } else { word(0) };
                let outcome = pm.write16(port, first);
                match element.len() {
                    4 => outcome.or_else(|| pm.write16(port.wrapping_add(2), word(2))),
                    _ => outcome,
                }
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ioapic::{IoApic, IrqLine, Msi, MsiSink, PINS};
    use crate::options::SerialTarget;
    use crate::stats::Counters;
    use std::sync::mpsc;

    struct Nobody;

    impl MsiSink for Nobody {
        fn inject(&self, _: Msi) {}
        fn routes(&self, _: &[Msi; PINS]) {}
    }

    fn ports(com1: &SerialTarget) -> Ports {
        let counters = Arc::<Counters>::default();
        let ioapic = Arc::new(IoApic::new(Box::new(Nobody), counters.clone()));
        let (events, _) = mpsc::channel();
        let com = |target| {
            Com::new(target, IrqLine::new(ioapic.clone(), 4), vec![], counters.clone(), &events)
                .unwrap()
        };
        Ports::new(com(com1), com(&SerialTarget::Null))
    }

    fn read(ports: &Ports, port: u16, size: usize) -> u32 {
        let mut data = [0u8; 4];
        ports.read(port, size, &mut data[..size]);
        u32::from_le_bytes(data)
    }

    #[test]
    fn unclaimed_ports_read_all_ones() {
        let ports = ports(&SerialTarget::Null);
        assert_eq!(read(&ports, 0x64, 1), 0xff);
        assert_eq!(read(&ports, 0xcfc, 4), 0xffff_ffff);
        assert_eq!(read(&ports, 0x61, 2), 0xffff);
        assert_eq!(ports.write(0x80, 1, &[0]), None);
    }

    #[test]
    fn string_output_is_bytes_to_one_port() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let ports = ports(&SerialTarget::File(path.clone()));
        assert_eq!(ports.write(COM1, 1, b"rep outsb"), None);
        ports.com1.drain();
        assert_eq!(std::fs::read(&path).unwrap(), b"rep outsb");
        let mut lsr = [0u8; 3];
        ports.read(COM1 + 5, 1, &mut lsr);
        assert_eq!(lsr, [0x60; 3]);
    }

    #[test]
    fn ways_to_end() {
        let ports = ports(&SerialTarget::Null);
        assert_eq!(ports.write(0x64, 1, &[0xfe]), Some(Outcome::Reset));
        assert_eq!(ports.write(0x64, 1, &[0xd1]), None);
        assert_eq!(ports.write(0xcf9, 1, &[2]), None);
        assert_eq!(ports.write(0xcf9, 1, &[6]), Some(Outcome::Reset));
        assert_eq!(ports.write(0x92, 1, &[3]), Some(Outcome::Reset));
        let s5 = (5u16 << 10 | 1 << 13).to_le_bytes();
        assert_eq!(ports.write(PM1A_CNT, 2, &s5), Some(Outcome::PowerOff));
    }

    #[test]
    fn power_management_widths() {
        let ports = ports(&SerialTarget::Null);
        assert_eq!(ports.write(PM1A_EVT, 4, &[0, 0, 0x20, 1]), None);
        assert_eq!(read(&ports, 0x600, 4), 0x0120_0000);
        assert_eq!(read(&ports, 0x602, 2), 0x0120);
        assert_eq!(read(&ports, PM1A_CNT, 2), 1);
        let _ = read(&ports, PM_TMR, 4);
        assert_eq!(ports.write(PORT_INDEX, 1, &[0x0b]), None);
        assert_eq!(read(&ports, PORT_DATA, 1), 2);
    }
}
