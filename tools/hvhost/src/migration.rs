//! A move to another host while the machine runs, as a guest sees it: the TSC has another rate from then
//! on.

use crate::ioapic::{Msi, MsiSink};
use crate::synic::SintSink;
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

/// Rates, in percent of what they were, that make sense.
const PERCENT: std::ops::RangeInclusive<u32> = 10..=1000;
/// How often a TSC that is made to go faster is put right.
const KICKS: Duration = Duration::from_millis(5);
/// Where local APICs take messages, and the place of the destination in it.
const MSI_ADDRESS: u32 = 0xfee0_0000;
const MSI_DESTINATION: u32 = 12;

/// How interrupts and kicks get to the processors.
pub trait Processors: MsiSink + SintSink {}
impl<T: MsiSink + SintSink> Processors for T {}

/// The moves until now.
pub struct Migration {
    /// Their number, and the last one's percentage below it.
    last: AtomicU64,
    processors: Arc<dyn Processors>,
    cpus: u32,
    /// The processors have TSC scaling.
    pub scales: bool,
    kicks: Once,
}

impl Migration {
    /// None yet.
    #[must_use]
    pub fn new(processors: Arc<dyn Processors>, cpus: u32, scales: bool) -> Self {
        Self { last: AtomicU64::new(0), processors, cpus, scales, kicks: Once::new() }
    }

    /// `move PERCENT`: to a host whose TSC runs at so much of the present rate.
    ///
    /// # Errors
    /// No such rate.
    pub fn command(&self, line: &str) -> Result<String> {
        let text = line.trim().strip_prefix("move").unwrap_or_default().trim();
        let percent: u32 = text.parse().with_context(|| format!("move {text:?}: a percentage"))?;
        ensure!(PERCENT.contains(&percent), "move {percent}: not within {PERCENT:?} percent");
        let next = |last: u64| Some((last >> 32).wrapping_add(1) << 32 | u64::from(percent));
        // The closure refuses nothing.
        let _ = self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        kick(&*self.processors, self.cpus);
        Ok(String::new())
    }

    /// Has all processors look again, over and over.
    pub fn kick_on(&self) {
        self.kicks.call_once(|| {
            let (processors, cpus) = (self.processors.clone(), self.cpus);
            thread::spawn(move || {
                loop {
                    thread::sleep(KICKS);
                    kick(&*processors, cpus);
                }
            });
        });
    }

    /// The percentage of a move that a processor which has made so many has still to make.
    pub fn ahead_of(&self, made: &mut u32) -> Option<u32> {
        let last = self.last.load(Ordering::SeqCst);
        let number = (last >> 32) as u32;
        if number == *made {
            return None;
        }
        *made = number;
        Some(last as u32)
    }

    /// Interrupts a processor.
    pub fn interrupt(&self, vp: u32, vector: u8) {
        let address = MSI_ADDRESS | vp << MSI_DESTINATION;
        MsiSink::inject(&*self.processors, Msi { address, data: vector.into() });
    }
}

fn kick(processors: &dyn Processors, cpus: u32) {
    (0..cpus).for_each(|vp| SintSink::kick(processors, vp));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ioapic::PINS;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<(u32, u32)>>>);
    impl MsiSink for Seen {
        fn inject(&self, msi: Msi) {
            self.0.lock().unwrap().push((msi.address, msi.data));
        }
        fn routes(&self, _: &[Msi; PINS]) {}
    }
    impl SintSink for Seen {
        fn inject(&self, _: u32, _: u8) {}
        fn kick(&self, vp: u32) {
            self.0.lock().unwrap().push((vp, 0));
        }
    }

    #[test]
    fn moves() {
        let seen = Seen::default();
        let migration = Migration::new(Arc::new(seen.clone()), 2, true);
        let mut made = 0;
        assert_eq!(migration.ahead_of(&mut made), None);
        for wrong in ["move", "move x", "move 9", "move 1001", "move -5"] {
            assert!(migration.command(wrong).is_err(), "{wrong}");
        }
        assert_eq!(migration.ahead_of(&mut made), None);
        migration.command("move 150").unwrap();
        assert_eq!(migration.ahead_of(&mut made), Some(150));
        assert_eq!(migration.ahead_of(&mut made), None);
        migration.command(" move 70\n").unwrap();
        migration.command("move 80").unwrap();
        assert_eq!(migration.ahead_of(&mut made), Some(80));
        migration.interrupt(3, 0xee);
        let kicks = [(0, 0), (1, 0)].repeat(3);
        assert_eq!(*seen.0.lock().unwrap(), [kicks, vec![(0xfee0_3000, 0xee)]].concat());
    }
}
