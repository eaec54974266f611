//! Layouts and constants of the ABI crates against the C headers Debian has.

#[path = "../abi/mod.rs"]
mod abi;

use std::path::{Path, PathBuf};

use abi::{Table, declared, hyperv, rndis, vmbus, workspace, xen};
use anyhow::{Context, Result};
use pontoon::{apt::Suite, cache};

fn assert_same(table: &Table, prelude: &str, include: &[PathBuf]) {
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

/// The kernel headers of Debian 12, unpacked in the cache.
fn kernel_headers() -> Result<PathBuf> {
    // Before anything of apt's: two tests want the headers.
    let _lock = cache::lock("headers")?;
    let suite = Suite::open("bookworm")?;
    let of = |package: &str, ends: &str| -> Result<String> {
        let depends = suite.depends(package)?.into_iter();
        let found = depends
            .into_iter()
            .find(|name| name.starts_with("linux-headers-") && name.ends_with(ends));
        found.with_context(|| format!("{package} depends on no linux-headers-*{ends}"))
    };
    let common = of(&of("linux-headers-amd64", "-amd64")?, "-common")?;
    let version = suite.version(&common)?.context("a package has a version")?;
    let dir = cache::dir()?.join("headers").join(format!("{common}_{version}"));
    cache::filled(&dir, |work| suite.unpack(&common, work))?;
    Ok(dir.join("usr/src").join(common))
}

/// Debian's package of the headers is fetched like a kernel, without installing it.
#[test]
fn hv_abi() {
    let headers = kernel_headers().expect("the kernel headers of Debian 12");
    let stand_ins = tempfile::tempdir().expect("a temporary directory");
    let include = hyperv::include(stand_ins.path(), &headers);
    assert_same(&hyperv::table(), hyperv::PRELUDE, &include);
}

#[test]
fn vmbus_abi() {
    let headers = kernel_headers().expect("the kernel headers of Debian 12");
    let stand_ins = tempfile::tempdir().expect("a temporary directory");
    let include = vmbus::include(stand_ins.path(), &headers);
    assert_same(&vmbus::table(), vmbus::PRELUDE, &include);
}

#[test]
fn rndis_abi() {
    let headers = kernel_headers().expect("the kernel headers of Debian 12");
    assert_same(&rndis::table(), rndis::PRELUDE, &[headers.join("include")]);
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
        .chain(
            codes.iter().filter(|code| !xen::HIDDEN.contains(&code.as_str()) && !table.has(code)),
        )
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
