//! The IOAPIC: 24 lines, in this program because KVM's SynIC wants the split
//! interrupt controller. An entry that fires becomes an MSI for KVM's LAPICs.
//! KVM is told every entry as an MSI route, so that it knows for which vectors
//! it must report the EOI of a level-triggered interrupt.

use crate::stats::Counters;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Number of lines.
pub const PINS: usize = 24;
/// Bytes of register space.
pub const SIZE: u64 = 0x1000;

const REG_SELECT: u64 = 0x00;
const REG_WINDOW: u64 = 0x10;
const REG_EOI: u64 = 0x40;
const INDEX_ID: u8 = 0x00;
const INDEX_VERSION: u8 = 0x01;
const INDEX_ARBITRATION: u8 = 0x02;
const INDEX_REDIRECTION: u8 = 0x10;
/// Version 0x20 has the EOI register.
const VERSION: u32 = 0x20;

const ENTRY_VECTOR: u64 = 0xff;
const ENTRY_DELIVERY_MODE: u64 = 7 << 8;
const ENTRY_LOGICAL: u64 = 1 << 11;
const ENTRY_DELIVERY_STATUS: u64 = 1 << 12;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
const ENTRY_READ_ONLY: u64 = ENTRY_DELIVERY_STATUS | ENTRY_REMOTE_IRR;

/// A message-signalled interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// Address, 0xfee00000 and the destination.
    pub address: u32,
    /// Vector, delivery mode, trigger mode.
    pub data: u32,
}

/// Where interrupts go; KVM in earnest.
pub trait MsiSink: Send + Sync {
    /// Injects an interrupt.
    fn inject(&self, msi: Msi);
    /// Tells the routes of all lines after a change.
    fn routes(&self, routes: &[Msi; PINS]);
}

/// The IOAPIC.
pub struct IoApic {
    state: Mutex<State>,
    sink: Box<dyn MsiSink>,
    counters: Arc<Counters>,
}

struct State {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// Level of each line.
    lines: u32,
}

impl IoApic {
    /// All lines masked.
    #[must_use]
    pub fn new(sink: Box<dyn MsiSink>, counters: Arc<Counters>) -> Self {
        let state = State { select: 0, id: 0, entries: [ENTRY_MASKED; PINS], lines: 0 };
        Self { state: Mutex::new(state), sink, counters }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A rising edge on `pin`.
    pub fn pulse(&self, pin: usize) {
        let mut state = self.lock();
        self.raise(&mut state, pin);
    }

    /// Sets the level of `pin`.
    pub fn set_level(&self, pin: usize, high: bool) {
        let mut state = self.lock();
        let bit = 1u32.checked_shl(u32::try_from(pin).unwrap_or(32)).unwrap_or(0);
        let was_high = state.lines & bit != 0;
        state.lines = if high { state.lines | bit } else { state.lines & !bit };
        if high && !was_high {
            self.raise(&mut state, pin);
        }
    }

    /// The guest ended the interrupt with `vector`: level-triggered lines that
    /// are still high interrupt again.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.lock();
        for pin in 0..PINS {
            let Some(entry) = state.entries.get_mut(pin) else { continue };
            if *entry & ENTRY_VECTOR == u64::from(vector) && *entry & ENTRY_REMOTE_IRR != 0 {
                *entry &= !ENTRY_REMOTE_IRR;
                if state.lines & 1 << pin != 0 {
                    self.raise(&mut state, pin);
                }
            }
        }
    }

    fn raise(&self, state: &mut State, pin: usize) {
        let Some(entry) = state.entries.get_mut(pin) else { return };
        if *entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) != 0 {
            return;
        }
        if *entry & ENTRY_LEVEL != 0 {
            *entry |= ENTRY_REMOTE_IRR;
        }
        self.counters.interrupt(pin);
        self.sink.inject(msi(*entry));
    }

    /// Reads 32 bits at `offset`.
    pub fn read(&self, offset: u64) -> u32 {
        let state = self.lock();
        match offset {
            REG_SELECT => state.select.into(),
            REG_WINDOW => state.read_indirect(),
            _ => 0,
        }
    }

    /// Writes 32 bits at `offset`.
    pub fn write(&self, offset: u64, value: u32) {
        match offset {
            REG_SELECT => self.lock().select = value as u8,
            REG_WINDOW => self.write_indirect(value),
            REG_EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn write_indirect(&self, value: u32) {
        let mut state = self.lock();
        if state.select == INDEX_ID {
            state.id = value & 0x0f00_0000;
            return;
        }
        let Some((pin, high)) = redirection(state.select) else { return };
        let Some(entry) = state.entries.get_mut(pin) else { return };
        let old = *entry;
        let value = u64::from(value);
        let new = if high { old & 0xffff_ffff | value << 32 } else { old & !0xffff_ffff | value };
        let mut new = new & !ENTRY_READ_ONLY | old & ENTRY_READ_ONLY;
        if new & ENTRY_LEVEL == 0 {
            // Switching to edge is how old drivers clear a stuck interrupt.
            new &= !ENTRY_REMOTE_IRR;
        }
        *entry = new;
        let high_level = new & ENTRY_LEVEL != 0 && state.lines & 1 << pin != 0;
        if msi(old) != msi(new) || (old ^ new) & ENTRY_MASKED != 0 {
            self.sink.routes(&state.entries.map(route));
        }
        if high_level {
            self.raise(&mut state, pin);
        }
    }
}

impl State {
    fn read_indirect(&self) -> u32 {
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => self.id,
            INDEX_VERSION => VERSION | ((PINS as u32) - 1) << 16,
            select => {
                let Some((pin, high)) = redirection(select) else { return 0 };
                let entry = self.entries.get(pin).copied().unwrap_or(0);
                (if high { entry >> 32 } else { entry }) as u32
            }
        }
    }
}

/// Line and half (`true`: high) an index selects.
fn redirection(select: u8) -> Option<(usize, bool)> {
    let offset = select.checked_sub(INDEX_REDIRECTION)?;
    let pin = usize::from(offset / 2);
    (pin < PINS).then_some((pin, offset % 2 != 0))
}

fn msi(entry: u64) -> Msi {
    let destination = (entry >> 56) as u32;
    let logical = if entry & ENTRY_LOGICAL != 0 { 1 << 2 } else { 0 };
    let level = if entry & ENTRY_LEVEL != 0 { 1 << 15 | 1 << 14 } else { 0 };
    Msi {
        address: 0xfee0_0000 | destination << 12 | logical,
        data: (entry & (ENTRY_VECTOR | ENTRY_DELIVERY_MODE)) as u32 | level,
    }
}

/// A masked line has no route: its vector needs no EOI report.
fn route(entry: u64) -> Msi {
    if entry & ENTRY_MASKED != 0 { Msi::default() } else { msi(entry) }
}

/// One line, as a device holds it.
#[derive(Clone)]
pub struct IrqLine {
    ioapic: Arc<IoApic>,
    pin: usize,
}

impl IrqLine {
    /// Line `pin` of `ioapic`.
    #[must_use]
    pub fn new(ioapic: Arc<IoApic>, pin: usize) -> Self {
        Self { ioapic, pin }
    }
}

impl vm_superio::Trigger for IrqLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.ioapic.pulse(self.pin);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log {
        injected: Mutex<Vec<Msi>>,
        routes: Mutex<Vec<[Msi; PINS]>>,
    }

    impl MsiSink for Arc<Log> {
        fn inject(&self, msi: Msi) {
            self.injected.lock().unwrap().push(msi);
        }

        fn routes(&self, routes: &[Msi; PINS]) {
            self.routes.lock().unwrap().push(*routes);
        }
    }

    fn ioapic() -> (IoApic, Arc<Log>) {
        let log = Arc::new(Log::default());
        (IoApic::new(Box::new(log.clone()), Arc::default()), log)
    }

    fn set(ioapic: &IoApic, pin: u8, entry: u64) {
        ioapic.write(REG_SELECT, u32::from(INDEX_REDIRECTION + 2 * pin + 1));
        ioapic.write(REG_WINDOW, (entry >> 32) as u32);
        ioapic.write(REG_SELECT, u32::from(INDEX_REDIRECTION + 2 * pin));
        ioapic.write(REG_WINDOW, entry as u32);
    }

    fn get(ioapic: &IoApic, pin: u8) -> u64 {
        ioapic.write(REG_SELECT, u32::from(INDEX_REDIRECTION + 2 * pin));
        let low = ioapic.read(REG_WINDOW);
        ioapic.write(REG_SELECT, u32::from(INDEX_REDIRECTION + 2 * pin + 1));
        u64::from(ioapic.read(REG_WINDOW)) << 32 | u64::from(low)
    }

    #[test]
    fn identity() {
        let (ioapic, _) = ioapic();
        ioapic.write(REG_SELECT, 1);
        assert_eq!(ioapic.read(REG_WINDOW), 0x17_0020);
        assert_eq!(get(&ioapic, 23), ENTRY_MASKED);
        ioapic.write(REG_SELECT, 0xff);
        ioapic.write(REG_WINDOW, 1);
        assert_eq!(ioapic.read(REG_WINDOW), 0);
    }

    #[test]
    fn edge_fires_each_time_unless_masked() {
        let (ioapic, log) = ioapic();
        ioapic.pulse(4);
        set(&ioapic, 4, 3 << 56 | 0x34);
        ioapic.pulse(4);
        ioapic.pulse(4);
        let expected = Msi { address: 0xfee0_3000, data: 0x34 };
        assert_eq!(*log.injected.lock().unwrap(), [expected, expected]);
        ioapic.pulse(99);
        assert_eq!(ioapic.counters.report("", None).interrupts.get("4"), Some(&2));
        assert_eq!(log.routes.lock().unwrap().last().unwrap()[4], expected);
    }

    #[test]
    fn level_waits_for_eoi() {
        let (ioapic, log) = ioapic();
        set(&ioapic, 9, ENTRY_LEVEL | ENTRY_LOGICAL | 0x51 | 1 << 56);
        ioapic.set_level(9, true);
        ioapic.set_level(9, true);
        assert_eq!(log.injected.lock().unwrap().len(), 1);
        assert_ne!(get(&ioapic, 9) & ENTRY_REMOTE_IRR, 0);
        assert_eq!(log.injected.lock().unwrap()[0], Msi { address: 0xfee0_1004, data: 0xc051 });
        ioapic.end_of_interrupt(0x51);
        assert_eq!(log.injected.lock().unwrap().len(), 2, "still high: again");
        ioapic.set_level(9, false);
        ioapic.write(REG_EOI, 0x51);
        assert_eq!(log.injected.lock().unwrap().len(), 2);
        assert_eq!(get(&ioapic, 9) & ENTRY_REMOTE_IRR, 0);
    }

    #[test]
    fn unmasking_a_high_level_line_fires() {
        let (ioapic, log) = ioapic();
        set(&ioapic, 9, ENTRY_LEVEL | ENTRY_MASKED | 0x51);
        ioapic.set_level(9, true);
        assert!(log.injected.lock().unwrap().is_empty());
        set(&ioapic, 9, ENTRY_LEVEL | 0x51);
        assert_eq!(log.injected.lock().unwrap().len(), 1);
        assert_eq!(log.routes.lock().unwrap().last().unwrap()[9].data, 0xc051);
    }

    #[test]
    fn read_only_bits_stay() {
        let (ioapic, _) = ioapic();
        set(&ioapic, 0, ENTRY_LEVEL | ENTRY_READ_ONLY | 0x40);
        assert_eq!(get(&ioapic, 0), ENTRY_LEVEL | 0x40);
    }
}
