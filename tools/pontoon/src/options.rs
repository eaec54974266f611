//! Values of options that several commands take.

/// A size in MiB: `512M`, `1G`, `1.5` is none.
///
/// # Errors
/// It is no size, or not of a machine.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let (number, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 =
        number.parse().map_err(|_| format!("\"{text}\" is no size; write 512M or 1G"))?;
    let mib = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" | "M" => Some(number),
        "G" => number.checked_mul(1024),
        _ => return Err(format!("\"{unit}\" is no unit of memory; use M or G")),
    };
    mib.filter(|m| (64..=64 * 1024).contains(m)).ok_or_else(|| "memory is from 64M to 64G".into())
}
