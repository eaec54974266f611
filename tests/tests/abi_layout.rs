//! Layouts and constants of the ABI crates against the C headers Debian has.

#[path = "../abi/mod.rs"]
mod abi;

use std::path::Path;

use abi::{Table, declared, workspace, xen};

fn assert_same(table: &Table, prelude: &str, include: &[std::path::PathBuf]) {
    let differences = table.differences(prelude, include);
    assert!(differences.is_empty(), "not as in the headers:\n{}", differences.join("\n"));
}

#[test]
fn xen_abi() {
    assert!(
        Path::new(xen::HEADER).exists(),
        "{} is missing: install libxen-dev (`cargo xtask setup` does)",
        xen::HEADER,
    );
    assert_same(&xen::table(), xen::PRELUDE, &[]);
}

/// A structure or code that is added to `xen-abi` is added to the table, too.
#[test]
fn xen_abi_is_complete() {
    let table = xen::table();
    let (structures, codes) = declared(&workspace().join("xen-abi"));
    assert!(structures.len() > 50 && codes.len() > 100, "the sources are read");
    let missing: Vec<_> = structures
        .iter()
        .filter(|name| !xen::OURS.contains(&name.as_str()))
        .filter(|name| !table.has(&format!("size of {name}")))
        .chain(codes.iter().filter(|code| {
            !xen::HIDDEN.contains(&code.as_str()) && !table.has(code)
        }))
        .collect();
    assert!(missing.is_empty(), "not compared with C: {missing:?}");
}

/// The comparison sees differences.
#[test]
fn differences_are_seen() {
    let mut table = Table::default();
    table.add("one", "1", 1);
    table.add("two", "3", 2);
    let differences = table.differences("", &[]);
    assert_eq!(differences, ["two: 0x2, but 3 is 0x3"]);
}
