//! What guests were told by their hypervisors (`tests/e2e/probe-init.sh`), compared.

use crate::log::parse_allow_list;
use anyhow::{Context, Error, Result};
use std::collections::BTreeSet;

/// Differences that are meant.
const MEANT: &str = include_str!("../e2e/xen-differences.txt");

/// A section of the report, and how lines of it begin that are compared: the other
/// leaves of CPUID are the processor's.
const SECTIONS: [(&str, &str); 5] =
    [("store", "/"), ("refused", "/"), ("version", "/"), ("cpuid", "4000"), ("blkfront", "/")];

/// What stands between the marks `begin` and `end` of a section.
#[must_use]
pub fn section<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let (begin, end) = (format!("@@ {name} begin"), format!("@@ {name} end"));
    let mut lines = text.lines().skip_while(|line| *line != begin).skip(1);
    let mut found = Vec::new();
    loop {
        match lines.next()? {
            line if line == end => return Some(found),
            line => found.push(line),
        }
    }
}

/// Lines of one report that the other has not, and that are not meant: with `-` what
/// only real Xen says, with `+` what only the shim says.
pub fn differences(xen: &str, shim: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (name, start) in SECTIONS {
        let lines = |text| -> Result<BTreeSet<String>> {
            let lines = section(text, name).with_context(|| format!("no section \"{name}\""))?;
            Ok(lines.into_iter().filter(|l| l.starts_with(start)).map(without_uuids).collect())
        };
        let (ours, theirs) = (lines(shim)?, lines(xen)?);
        all.extend(theirs.difference(&ours).map(|line| format!("-{line}")));
        all.extend(ours.difference(&theirs).map(|line| format!("+{line}")));
    }
    let meant = parse_allow_list(MEANT).map_err(Error::msg)?;
    all.retain(|line| !meant.iter().any(|allowed| line.contains(&allowed.part)));
    Ok(all)
}

/// UUIDs replaced by a word.
fn without_uuids(line: &str) -> String {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    let is_uuid = |word: &str| {
        let groups: Vec<_> = word.split('-').collect();
        groups.iter().map(|g| g.len()).eq(GROUPS)
            && groups.concat().bytes().all(|b| b.is_ascii_hexdigit())
    };
    let of_uuid = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut result = line.to_owned();
    for word in line.split(|c| !of_uuid(c)).filter(|word| is_uuid(word)) {
        result = result.replace(word, "UUID");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(store: &str) -> String {
        let part = |(name, _): &(&str, &str)| {
            let lines = if *name == "store" { store } else { "" };
            format!("@@ {name} begin\n{lines}@@ {name} end\n")
        };
        SECTIONS.iter().map(part).collect()
    }

    #[test]
    fn only_what_is_not_meant_is_a_difference() {
        let xen =
            "/a = \"1\"\n/vm/c0a16297-f7be-486d-8373-f34b79fcc874/b = \"\"\n/x/params = \"1\"\n";
        let shim = "/a = \"2\"\n/vm/b3a10c27-bedf-4566-95bc-b16ae88f4ce8/b = \"\"\n";
        let found = differences(&report(xen), &report(shim)).unwrap();
        assert_eq!(found, ["-/a = \"1\"", "+/a = \"2\""]);
        assert!(differences(&report(xen), "").is_err());
    }
}
