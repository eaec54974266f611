//! The CMOS clock, read once at boot.

use crate::port;

fn cmos(register: u8) -> u8 {
    // Bit 7 of the index leaves NMIs as they are by default: enabled.
    port::write(0x70, register);
    port::read(0x71)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let years: u64 = (1970..year).map(|y| if leap(y) { 366 } else { 365 }).sum();
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months: u64 = lengths.iter().take(month as usize - 1).sum();
    years + months + day - 1
}

fn registers() -> [u8; 7] {
    [0, 2, 4, 7, 8, 9, 0x32].map(cmos)
}

/// Seconds since 1970 (UTC); `None` where there is no clock.
pub fn seconds() -> Option<u64> {
    let stable = (0..1000).find_map(|_| {
        if cmos(0x0a) & 0x80 != 0 {
            return None;
        }
        let first = registers();
        (first == registers()).then_some(first)
    })?;
    let format = cmos(0x0b);
    let value = |raw: u8| {
        let raw = if format & 4 == 0 { (raw >> 4) * 10 + (raw & 15) } else { raw };
        u64::from(raw)
    };
    let [second, minute, hour_raw, day, month, year, century] = stable;
    let mut hour = value(hour_raw & 0x7f);
    if format & 2 == 0 {
        hour = hour % 12 + if hour_raw & 0x80 != 0 { 12 } else { 0 };
    }
    let century = match value(century) {
        c @ 19..=22 => c,
        _ => 20,
    };
    let (second, minute, day, month) = (value(second), value(minute), value(day), value(month));
    if second > 60
        || minute > 59
        || hour > 23
        || !(1..=31).contains(&day)
        || !(1..=12).contains(&month)
    {
        return None;
    }
    let date = days(century * 100 + value(year), month, day);
    Some(date * 86400 + hour * 3600 + minute * 60 + second)
}
