//! PV domains of real Xen, to compare with: Debian's Xen in plain QEMU, a small dom0
//! with Xen's own toolstack, and the guest as domU.
//!
//! dom0 is an initramfs: busybox, the toolstack's programs with their libraries out of
//! Debian's packages, and drivers. The guest's disks are dom0's virtio disks, which
//! Linux' own xen-blkback hands on. The first serial port is the guest's console; the
//! second is Xen's and dom0's, where dom0 reports ([`Domain`]).

use crate::guests;
use crate::images::{done_output, recipe_key};
use crate::parts;
use crate::told::section;
use anyhow::{Context, Result, bail, ensure};
use pontoon::apt::{self, Suite};
use pontoon::cleanup::Scratch;
use pontoon::cpio::Archive;
use pontoon::host::{Input, Machine};
use pontoon::initramfs::{self, Extra};
use pontoon::kernel::Kernel;
use pontoon::outcome::{Outcome, Status};
use pontoon::qemu::Qemu;
use pontoon::{cache, xen};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const INIT: &str = include_str!("../e2e/dom0-init.sh");
const PROBE: &str = include_str!("../e2e/probe-init.sh");
/// Where the toolstack and dom0's kernel come from.
const SUITE: &str = "bookworm";
/// The toolstack, and what its scripts call.
const PACKAGES: [&str; 5] = ["xen-utils-4.17", "xenstore-utils", "bash", "util-linux", "libgcc-s1"];
const MODULES: [&str; 7] =
    ["xen-evtchn", "xen-gntdev", "xen-privcmd", "xenfs", "xen-blkback", "virtio_pci", "virtio_blk"];
const PROGRAMS: [&str; 13] = [
    "usr/lib/xen-4.17/bin/xl",
    "usr/lib/xen-4.17/bin/xenstored",
    "usr/lib/xen-4.17/bin/xenconsoled",
    "usr/lib/xen-4.17/bin/xenconsole",
    "usr/lib/xen-4.17/bin/xen-init-dom0",
    "usr/bin/xenstore-exists",
    "usr/bin/xenstore-list",
    "usr/bin/xenstore-ls",
    "usr/bin/xenstore-read",
    "usr/bin/xenstore-rm",
    "usr/bin/xenstore-write",
    "usr/bin/flock",
    "bin/bash",
];
/// Xen's hotplug scripts.
const SCRIPTS: &str = "etc/xen/scripts";
/// Loaded at run time, by threads that end.
const LATE_LIBRARY: &str = "lib/x86_64-linux-gnu/libgcc_s.so.1";
/// What programs ask the kernel to be started by.
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
/// The same as a file, and the directories libraries are in.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// QEMU 7.2 without XSAVE, and so without AVX: with several domains, whose registers
/// Xen exchanges, it loses the upper halves of AVX registers, and programs in dom0 and
/// in the guest die of it.
const PROCESSOR: &str = "max,-smap,-smep,-xsave";
/// Memory of dom0 beside what it hands to the domain.
const DOM0_MIB: u64 = 384;
/// Until the domain runs, and from its end on.
const OVERHEAD: Duration = Duration::from_secs(180);
/// Names of disks in dom0 and in the guest end with a letter.
const MAX_DISKS: usize = 8;

/// What became of a domain.
#[derive(Debug)]
pub struct Domain {
    /// Its console and how it ended.
    pub outcome: Outcome,
    /// The xenstore once its disks were connected, as `xenstore-ls -fp` shows it to dom0.
    pub store: String,
    /// `xl info` meanwhile.
    pub info: String,
}

/// Runs `machine` as PV domain: its kernel, initrd, command line, memory, processors and
/// time limit mean what they mean for other hosts; of a disk's words `ro` is known.
pub fn run(machine: &Machine, input: &Input, output: &mut dyn FnMut(&[u8])) -> Result<Domain> {
    let kernel = Kernel::get(SUITE)?;
    let scratch = Scratch::new()?;
    let initrd = scratch.path().join("initrd");
    let mut archive = fs::read(toolstack(&kernel)?)?;
    let handed_on = domain_files(machine)?;
    archive.extend_from_slice(&handed_on);
    fs::write(&initrd, &archive)?;
    let mut dom0 = Machine::new(&kernel.vmlinux()?, Some(&initrd), "console=hvc0 panic=-1");
    // The archive, its files, the files xl reads, the guest's memory it fills.
    dom0.memory_mib = DOM0_MIB + 3 * (archive.len() as u64 >> 20);
    let mut all = xen::as_dom0(&dom0, "console=com2 com2=115200,8n1 loglvl=all guest_loglvl=all")?;
    all.memory_mib += machine.memory_mib;
    all.timeout = machine.timeout.map(|limit| limit + OVERHEAD);
    all.show_errors = machine.show_errors;
    let log = scratch.path().join("dom0");
    let mut qemu = Qemu { cpu: PROCESSOR.into(), ..Qemu::default() };
    qemu.more = vec!["-serial".into(), format!("file:{}", log.display())];
    for disk in disks(machine)? {
        let read_only = if disk.read_only { ",readonly=on" } else { "" };
        // QEMU wants commas in file names doubled.
        let file = disk.path.display().to_string().replace(',', ",,");
        qemu.more.extend(["-drive".into(), format!("file={file},format=raw,if=virtio{read_only}")]);
    }
    let outcome = qemu.run(&all, input, output)?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).replace('\r', "");
    ended(outcome, &said)
}

/// The initramfs of a guest that says what its hypervisor tells it, then stays for
/// `seconds` and powers off; for `kernel`.
pub fn probe(kernel: &Kernel, seconds: u32) -> Result<Vec<u8>> {
    // dom0's programs will do, whose later archive has another first process.
    let mut initrd = fs::read(toolstack(&Kernel::get(SUITE)?)?)?;
    let mut archive = Archive::new(Vec::new());
    archive.file("init", 0o755, PROBE.as_bytes())?;
    archive.file("seconds", 0o444, seconds.to_string().as_bytes())?;
    archive.file("cpuid", 0o755, &fs::read(guests::program("cpuid")?)?)?;
    for driver in parts::drivers(kernel, &["xen-blkfront", "xenfs"])? {
        archive.file(&driver.name, 0o444, &driver.data)?;
    }
    initrd.extend(archive.finish()?);
    Ok(initrd)
}

/// Reads what dom0 reported.
fn ended(mut outcome: Outcome, said: &str) -> Result<Domain> {
    if outcome.status != Status::TIMED_OUT {
        outcome.status = match mark(said, "reason") {
            // xen/include/public/sched.h, SHUTDOWN_*.
            Some("0") => Status::POWER_OFF,
            Some("1") => Status::RESET,
            Some("3") => Status::CRASH,
            _ => {
                let lines: Vec<_> = said.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
                bail!("no domain under real Xen:\n{}", tail.join("\n"));
            }
        };
    }
    Ok(Domain { outcome, store: report(said, "store"), info: report(said, "info") })
}

fn mark<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    said.lines().find_map(|line| line.strip_prefix("@@ ")?.strip_prefix(name)?.strip_prefix(' '))
}

/// A section of dom0's report; Xen's own messages and dom0's kernel's are left out.
fn report(said: &str, name: &str) -> String {
    let foreign = |line: &&str| !line.starts_with("(XEN)") && !line.starts_with('[');
    let lines = section(said, name).unwrap_or_default();
    lines.into_iter().filter(foreign).flat_map(|line| [line, "\n"]).collect()
}

/// A disk of the guest.
struct Disk {
    path: PathBuf,
    read_only: bool,
}

fn disks(machine: &Machine) -> Result<Vec<Disk>> {
    ensure!(machine.disks.len() <= MAX_DISKS, "no more than {MAX_DISKS} disks here");
    let one = |disk: &String| {
        let (path, words) = disk.split_once(',').unwrap_or((disk, ""));
        ensure!(matches!(words, "" | "ro"), "--disk {disk}: not with real Xen");
        Ok(Disk { path: path.into(), read_only: words == "ro" })
    };
    machine.disks.iter().map(one).collect()
}

/// The archive with the domain's kernel and initrd, and how xl is to start it.
fn domain_files(machine: &Machine) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let mut archive = Archive::new(Vec::new());
    archive.dir("domu")?;
    archive.file("domu/kernel", 0o444, &read(&machine.kernel)?)?;
    let mut ramdisk = "";
    if let Some(initrd) = &machine.initrd {
        archive.file("domu/ramdisk", 0o444, &read(initrd)?)?;
        ramdisk = "ramdisk = '/domu/ramdisk'\n";
    }
    ensure!(!machine.append.contains(['\'', '\n']), "xl takes no such command line");
    let letters = 'a'..='z';
    let disks = disks(machine)?.into_iter().zip(letters).map(|(disk, letter)| {
        format!("'phy:/dev/vd{letter},xvd{letter},{}'", if disk.read_only { 'r' } else { 'w' })
    });
    let disks: Vec<_> = disks.collect();
    let config = format!(
        "name = 'guest'\ntype = 'pv'\nkernel = '/domu/kernel'\n{ramdisk}cmdline = '{}'\n\
         memory = {}\nvcpus = {}\ndisk = [ {} ]\n\
         on_poweroff = 'destroy'\non_reboot = 'destroy'\non_crash = 'destroy'\n",
        machine.append,
        machine.memory_mib,
        machine.cpus,
        disks.join(", ")
    );
    archive.file("domu/config", 0o444, config.as_bytes())?;
    archive.finish().context("the domain's archive")
}

/// dom0's initramfs without the domain, from the cache.
fn toolstack(kernel: &Kernel) -> Result<PathBuf> {
    let _lock = cache::lock("dom0")?;
    let mut recipe = vec![INIT, kernel.release.as_str(), kernel.version.as_str()];
    for list in [&PACKAGES[..], &MODULES, &PROGRAMS] {
        recipe.extend(list);
    }
    let dir = cache::dir()?.join("dom0").join(format!("{:016x}", recipe_key(&recipe)));
    cache::filled(&dir, |work| {
        pontoon::say("making a dom0 with Xen's toolstack");
        let mut extras = parts::drivers(kernel, &MODULES)?;
        let temporary = Scratch::new()?;
        let tree = temporary.path().join("tree");
        unpack(&tree, temporary.path())?;
        extras.extend(programs(&tree)?);
        // Memory is given to dom0 by Xen's command line, and stays as it is.
        let settings = b"autoballoon = 'off'\n".to_vec();
        extras.push(Extra { name: "etc/xen/xl.conf".into(), data: settings });
        Ok(fs::write(work.join("initrd"), initramfs::build(INIT, &extras)?)?)
    })?;
    Ok(dir.join("initrd"))
}

/// Debian's packages and all they depend on, unpacked; nothing of them is run.
fn unpack(tree: &Path, temporary: &Path) -> Result<()> {
    pontoon::setup::for_testing()?;
    let suite = Suite::open(SUITE)?;
    let settings = temporary.join("apt.conf");
    fs::write(&settings, apt::acquire_settings())?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--mode=chrootless", "--format=directory", "--variant=extract"])
        .arg(format!("--aptopt={}", settings.display()))
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=path-exclude=/usr/share/*"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(SUITE)
        .args([tree, &suite.sources()]);
    let out = done_output(&mut command)?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.success(), "the toolstack cannot be fetched:\n{}", said.trim());
    Ok(())
}

/// The toolstack's files in `tree`, with the libraries they need.
fn programs(tree: &Path) -> Result<Vec<Extra>> {
    let [first, second] = LIBRARIES.map(|dir| tree.join(dir));
    let loader = first.join("ld-linux-x86-64.so.2");
    let mut names: BTreeSet<String> = PROGRAMS.map(str::to_owned).into();
    names.insert(LATE_LIBRARY.into());
    for script in fs::read_dir(tree.join(SCRIPTS)).context(SCRIPTS)? {
        names.insert(format!("{SCRIPTS}/{}", script?.file_name().to_string_lossy()));
    }
    for program in PROGRAMS {
        let mut command = Command::new(&loader);
        command
            .args(["--inhibit-cache", "--library-path"])
            .arg(format!("{}:{}", first.display(), second.display()))
            .arg("--list")
            .arg(tree.join(program));
        let listed = String::from_utf8(parts::run(&mut command)?)?;
        let paths = listed.split_whitespace().map(Path::new);
        let ours = paths.filter_map(|path| path.strip_prefix(tree).ok()?.to_str());
        names.extend(ours.map(str::to_owned));
    }
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let mut extras = vec![Extra { name: LOADER.into(), data: read(&loader)? }];
    for name in names {
        extras.push(Extra { data: read(&tree.join(&name))?, name });
    }
    Ok(extras)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_among_other_messages() {
        let said = "(XEN) x\n@@ created 1\n@@ store begin\n/a = \"\"\n(XEN) y\n[    1.0] z\n\
                    /b = \"1\"\n@@ store end\n@@ reason 1\n@@ end\n";
        assert_eq!(report(said, "store"), "/a = \"\"\n/b = \"1\"\n");
        assert_eq!((mark(said, "reason"), mark(said, "failed")), (Some("1"), None));
        // Cut off.
        assert_eq!(report("@@ store begin\n/a", "store"), "");
    }

    #[test]
    fn domains_are_described_to_xl() -> Result<()> {
        let scratch = Scratch::new()?;
        let kernel = scratch.path().join("kernel");
        fs::write(&kernel, "K")?;
        let mut machine = Machine::new(&kernel, Some(&kernel), "root=/dev/xvda1 ro");
        machine.disks = vec!["/a".into(), "/b,ro".into()];
        let text = String::from_utf8_lossy(&domain_files(&machine)?).into_owned();
        assert!(text.contains("cmdline = 'root=/dev/xvda1 ro'\nmemory = 512\nvcpus = 1\n"));
        assert!(text.contains("disk = [ 'phy:/dev/vda,xvda,w', 'phy:/dev/vdb,xvdb,r' ]\n"));
        machine.disks = vec!["/a,sector=4096".into()];
        assert!(domain_files(&machine).is_err());
        machine.disks.clear();
        machine.append = "it's".into();
        assert!(domain_files(&machine).is_err());
        Ok(())
    }
}
