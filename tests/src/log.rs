//! Comparing kernel logs: a guest of the shim may complain about nothing that
//! the same kernel does not also complain about under real Xen.

use std::collections::BTreeSet;

/// A line the comparison accepts, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// What the normalised line must contain.
    pub part: String,
    /// The reason.
    pub reason: String,
}

/// Reads an allow-list: `part of a normalised line | reason`, `#` for comments.
/// The error names the first line without a reason.
pub fn parse_allow_list(text: &str) -> Result<Vec<Allowed>, String> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines
        .map(|line| match line.rsplit_once('|') {
            Some((part, reason)) if !reason.trim().is_empty() && !part.trim().is_empty() => {
                Ok(Allowed { part: part.trim().to_owned(), reason: reason.trim().to_owned() })
            }
            _ => Err(format!("no reason given: {line}")),
        })
        .collect()
}

/// A log line without what differs from boot to boot: level, time, numbers.
#[must_use]
pub fn normalise(line: &str) -> String {
    let line =
        line.strip_prefix('<').and_then(|l| l.split_once('>')).map_or(line, |(_, rest)| rest);
    let line = match line.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(line, |(_, text)| text),
        None => line,
    };
    let mut out = String::new();
    for word in line.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&numbers_out(word));
    }
    out
}

/// Replaces runs that hold a digit and only hexadecimal digits by `#`.
fn numbers_out(word: &str) -> String {
    let mut out = String::new();
    let mut run = String::new();
    let flush = |run: &mut String, out: &mut String| {
        if run.bytes().any(|b| b.is_ascii_digit()) {
            out.push('#');
        } else {
            out.push_str(run);
        }
        run.clear();
    };
    let word = word.replace("0x", "0");
    for c in word.chars() {
        if c.is_ascii_hexdigit() {
            run.push(c);
        } else {
            flush(&mut run, &mut out);
            out.push(c);
        }
    }
    flush(&mut run, &mut out);
    out
}

/// Lines of `ours` that `reference` lacks and the list does not allow.
#[must_use]
pub fn unexplained(ours: &[String], reference: &[String], allowed: &[Allowed]) -> Vec<String> {
    let known: BTreeSet<_> = reference.iter().map(|l| normalise(l)).collect();
    let bad = |line: &&String| {
        let line = normalise(line);
        !line.is_empty()
            && !known.contains(&line)
            && !allowed.iter().any(|a| line.contains(&a.part))
    };
    ours.iter().filter(bad).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_do_not_matter() {
        assert_eq!(
            normalise("<4>[    0.123456] foo: at 0xffff88 cpu 3, 12.5 MHz"),
            "foo: at # cpu #, #.# MHz"
        );
        assert_eq!(normalise("<4>[ 1.0] x86: bad"), normalise("<3>[ 2.5] x86: bad"));
    }

    #[test]
    fn only_new_lines_are_reported() {
        let lines = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let ours = lines(&["<4>[1.0] same 5", "<4>[1.1] allowed thing", "<3>[1.2] new trouble"]);
        let xen = lines(&["<4>[9.0] same 7"]);
        let allowed = parse_allow_list("# comment\nallowed thing | it is known\n").unwrap();
        assert_eq!(unexplained(&ours, &xen, &allowed), ["<3>[1.2] new trouble"]);
    }

    #[test]
    fn the_allow_list_gives_reasons() {
        assert!(parse_allow_list("a line without reason").is_err());
        assert!(parse_allow_list("a line | ").is_err());
        assert!(parse_allow_list(include_str!("../e2e/dmesg-allow.txt")).is_ok());
    }
}
