//! The CMOS clock at ports 0x70 and 0x71: the present time in BCD, 24-hour form,
//! UTC. It only tells the time: no alarm, no interrupt, and it cannot be set.

use std::time::{SystemTime, UNIX_EPOCH};

/// Index port.
pub const PORT_INDEX: u16 = 0x70;
/// Data port.
pub const PORT_DATA: u16 = 0x71;
/// CMOS byte with the century, as FADT says.
pub const CENTURY: u8 = 0x32;

const STATUS_B_24_HOURS: u8 = 1 << 1;
const STATUS_D_VALID: u8 = 1 << 7;

/// The clock's index register; everything else comes from the host's clock.
#[derive(Debug, Default)]
pub struct Cmos {
    index: u8,
}

/// Time of day and date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: u64,
    month: u8,
    day: u8,
    /// Sunday is 1.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Cmos {
    /// A write to the index port.
    pub fn select(&mut self, value: u8) {
        // Bit 7 masks NMIs on real machines.
        self.index = value & 0x7f;
    }

    /// A read of the data port.
    #[must_use]
    pub fn read(&self) -> u8 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        register(self.index, now)
    }
}

fn register(index: u8, unix_seconds: u64) -> u8 {
    let time = civil(unix_seconds);
    match index {
        0x00 => bcd(time.second),
        0x02 => bcd(time.minute),
        0x04 => bcd(time.hour),
        0x06 => time.weekday,
        0x07 => bcd(time.day),
        0x08 => bcd(time.month),
        0x09 => bcd((time.year % 100) as u8),
        // A: 32768 Hz, rate 1024 Hz, no update in progress.
        0x0a => 0x26,
        0x0b => STATUS_B_24_HOURS,
        0x0d => STATUS_D_VALID,
        CENTURY => bcd((time.year / 100) as u8),
        _ => 0,
    }
}

fn bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

/// Gregorian date of a count of seconds since 1970.
fn civil(seconds: u64) -> Civil {
    let (days, in_day) = (seconds / 86400, seconds % 86400);
    // Days since 0000-03-01: years then end with February.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    Civil {
        year: era * 400 + year_of_era + u64::from(month <= 2),
        month: month as u8,
        day: day as u8,
        weekday: ((days + 4) % 7) as u8 + 1,
        hour: (in_day / 3600) as u8,
        minute: (in_day / 60 % 60) as u8,
        second: (in_day % 60) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix: u64) -> [u8; 8] {
        [CENTURY, 9, 8, 7, 4, 2, 0, 6].map(|index| register(index, unix))
    }

    #[test]
    fn known_dates() {
        // date -u -d @N
        assert_eq!(at(0), [0x19, 0x70, 0x01, 0x01, 0, 0, 0, 5]);
        assert_eq!(at(951_782_399), [0x20, 0x00, 0x02, 0x28, 0x23, 0x59, 0x59, 2]);
        assert_eq!(at(951_782_400), [0x20, 0x00, 0x02, 0x29, 0, 0, 0, 3]);
        assert_eq!(at(1_735_689_599), [0x20, 0x24, 0x12, 0x31, 0x23, 0x59, 0x59, 3]);
        assert_eq!(at(4_107_542_400), [0x21, 0x00, 0x03, 0x01, 0, 0, 0, 2]);
    }

    #[test]
    fn status_registers() {
        let mut cmos = Cmos::default();
        cmos.select(0x8b);
        assert_eq!(cmos.read(), 0x02);
        cmos.select(0x0a);
        assert_eq!(cmos.read() & 0x80, 0);
        cmos.select(0x0d);
        assert_eq!(cmos.read(), 0x80);
    }
}
