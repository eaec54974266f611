//! Installing what the project needs from Debian.

use crate::artefact;
use crate::pack::plan::Medium;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// A package and a file that tells whether it is installed.
struct Need {
    package: &'static str,
    file: &'static str,
}

const fn need(package: &'static str, file: &'static str) -> Need {
    Need { package, file }
}

/// What running guests takes.
const RUN: &[Need] = &[
    need("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    need("busybox-static", "/usr/share/doc/busybox-static"),
    need("xz-utils", "/usr/bin/xz"),
    need("gcc", "/usr/bin/gcc"),
    need("libc6-dev", "/usr/lib/x86_64-linux-gnu/libc.a"),
];

/// What the tests take beyond that.
const TEST: &[Need] = &[
    need("g++", "/usr/bin/g++"),
    need("libxen-dev", "/usr/include/xen/xen.h"),
    need("zstd", "/usr/bin/zstd"),
    need("lz4", "/usr/bin/lz4"),
    need("lzop", "/usr/bin/lzop"),
    need("bzip2", "/usr/bin/bzip2"),
    need("cpio", "/usr/bin/cpio"),
    need("e2fsprogs", "/sbin/mke2fs"),
    need("fdisk", "/sbin/sfdisk"),
    need("fio", "/usr/bin/fio"),
    need("mmdebstrap", "/usr/bin/mmdebstrap"),
    need("iproute2", "/sbin/ip"),
    need("ethtool", "/sbin/ethtool"),
    need("dnsmasq-base", "/usr/sbin/dnsmasq"),
    need("openssh-client", "/usr/bin/ssh"),
    need("iperf3", "/usr/bin/iperf3"),
    need("ovmf", crate::qemu::OVMF[0]),
    need("openssl", "/usr/bin/openssl"),
    need("sbsigntool", "/usr/bin/sbsign"),
    // What virt-fw-vars takes, see the crate of the tests.
    need("python3-cryptography", "/usr/lib/python3/dist-packages/cryptography"),
    need("python3-importlib-resources", "/usr/lib/python3/dist-packages/importlib_resources"),
    need("python3-pefile", "/usr/lib/python3/dist-packages/pefile.py"),
    need("lvm2", "/sbin/lvm"),
    need("make", "/usr/bin/make"),
    need("rt-tests", "/usr/bin/hackbench"),
    need("stress-ng", "/usr/bin/stress-ng"),
];

/// What packs are made with.
const PACK: &[Need] = &[
    need("qemu-utils", "/usr/bin/qemu-img"),
    need("dosfstools", "/sbin/mkfs.vfat"),
    need("mtools", "/usr/bin/mcopy"),
];

/// What GRUB is put on a disk with.
const GRUB: &[Need] = &[
    need("grub-common", "/usr/bin/grub-mkimage"),
    need("grub-pc-bin", "/usr/lib/grub/i386-pc/boot.img"),
];

/// What ISO images take beyond that.
const ISO: &[Need] = &[
    need("grub-efi-amd64-bin", "/usr/lib/grub/x86_64-efi/normal.mod"),
    need("xorriso", "/usr/bin/xorriso"),
];

/// Makes sure packs can be made.
pub fn for_packing(medium: Medium) -> Result<()> {
    ensure(match medium {
        Medium::Vhdx => &[PACK],
        Medium::Vhd => &[PACK, GRUB],
        Medium::Iso => &[PACK, GRUB, ISO],
    })?;
    for_building()
}

/// Makes sure guests can be run.
pub fn for_running() -> Result<()> {
    ensure(&[RUN])
}

/// Makes sure the tests can be run, too.
pub fn for_testing() -> Result<()> {
    ensure(&[RUN, PACK, GRUB, ISO, TEST])?;
    rust_target()?;
    rust_components()
}

fn ensure(lists: &[&[Need]]) -> Result<()> {
    let packages_missing = || -> Vec<_> {
        let needs = lists.iter().copied().flatten();
        needs.filter(|n| !Path::new(n.file).exists()).map(|n| n.package).collect()
    };
    // A second time for what the first made room for: QEMU of one release takes away the disk tools of
    // a later one, if those were here alone.
    for _ in 0..2 {
        let missing = packages_missing();
        if missing.is_empty() {
            return Ok(());
        }
        install(&missing)?;
    }
    let still = packages_missing();
    if !still.is_empty() {
        bail!(
            "apt-get installed {}, yet their files are not where Debian has them",
            still.join(" ")
        );
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing: {list}; install them (only Debian's apt-get is known here)");
    }
    crate::say(format!("installing {list} with apt-get"));
    if apt_get("install", packages)?.is_err() {
        // Lists may be missing or old on a fresh machine. What is wrong with
        // other sources than ours does not matter if the packages then come.
        let _ = apt_get("update", &[])?;
        if let Err(why) = apt_get("install", packages)? {
            bail!("apt-get could not install {list}: {why}");
        }
    }
    Ok(())
}

/// Runs apt-get; its chatter is kept back, its last complaint is the error.
fn apt_get(action: &str, packages: &[&str]) -> Result<std::result::Result<(), String>> {
    let root = rustix::process::geteuid().is_root();
    let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
    if !root {
        command.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    }
    command.env("DEBIAN_FRONTEND", "noninteractive").args([
        "-qq",
        "-y",
        "--no-install-recommends",
        action,
    ]);
    let out = command.args(packages).stdin(Stdio::null()).output();
    let out = out.with_context(|| {
        if root {
            "apt-get cannot be run"
        } else {
            "not root, and sudo cannot be run: install by hand"
        }
    })?;
    if out.status.success() {
        return Ok(Ok(()));
    }
    let errors = String::from_utf8_lossy(&out.stderr).into_owned();
    let why = errors.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no reason given");
    Ok(Err(why.to_owned()))
}

/// rustup adds the toolchain file's targets by itself when it installs the
/// toolchain, not when the toolchain was there before.
fn rust_target() -> Result<()> {
    let Some(workspace) = artefact::workspace() else { return Ok(()) };
    let sysroot = Command::new("rustc")
        .current_dir(&workspace)
        .args(["--print", "sysroot"])
        .output()
        .context("rustc cannot be run")?;
    let sysroot = String::from_utf8_lossy(&sysroot.stdout).trim().to_owned();
    let missing = |target: &&str| !Path::new(&sysroot).join("lib/rustlib").join(target).exists();
    let missing: Vec<_> = [artefact::BARE, artefact::UEFI].into_iter().filter(missing).collect();
    if missing.is_empty() {
        return Ok(());
    }
    rustup_add("target", &missing)
}

fn rust_components() -> Result<()> {
    let Some(workspace) = artefact::workspace() else { return Ok(()) };
    for (tool, component) in [("clippy", "clippy"), ("fmt", "rustfmt")] {
        let there =
            Command::new("cargo").current_dir(&workspace).args([tool, "--version"]).output();
        if !there.is_ok_and(|o| o.status.success()) {
            rustup_add("component", &[component])?;
        }
    }
    Ok(())
}

fn rustup_add(kind: &str, names: &[&str]) -> Result<()> {
    let list = names.join(" ");
    crate::say(format!("adding the Rust {kind} {list} with rustup"));
    let mut rustup = Command::new("rustup");
    if let Some(workspace) = artefact::workspace() {
        rustup.current_dir(workspace);
    }
    let out = rustup.args([kind, "add"]).args(names).output();
    let out =
        out.with_context(|| format!("rustup cannot be run; install the Rust {kind} {list}"))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        bail!(
            "rustup could not add the {kind} {list}: {}",
            text.lines().last().unwrap_or("no reason given")
        );
    }
    Ok(())
}

/// Makes sure the shim can be built.
pub fn for_building() -> Result<()> {
    rust_target()
}
