//! Samples, their import, and what the guests have to find.

use crate::packed;
use anyhow::{Context, Result, ensure};
use pontoon::outcome::Status;
use pontoon_tests::lab::{Lab, ended};
use pontoon_tests::packs::PONTOON;
use pontoon_tests::parts::run;
use pontoon_tests::samples::{Samples, cmdline, put};
use pontoon_tests::samples_xva::{self, Sums};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// PvGrub2 waits for each page it reads.
const LIMIT: Duration = Duration::from_secs(600);
const MACS: [&str; 2] = ["00:16:3e:5a:01:02", "8a:fe:01:02:03:04"];

/// What is to be imported, and what it has.
pub struct Sample {
    /// Arguments of `pontoon import`.
    args: Vec<String>,
    /// Name of the guest.
    name: &'static str,
    /// Disks: name, raw contents, whether it can be written.
    disks: Vec<(&'static str, PathBuf, bool)>,
    macs: Vec<&'static str>,
    cpus: u32,
    /// A part of the command line.
    word: &'static str,
}

type Make = fn(&Samples) -> Result<Sample>;

/// Every source there is.
pub const SOURCES: [(&str, Make); 8] = [
    ("xl", xl),
    ("xva-sha1", |samples| xva(samples, Sums::Sha1)),
    ("xva-xxhash", |samples| xva(samples, Sums::XxHash)),
    ("ovf", ovf),
    ("raw", raw),
    ("lvm", lvm),
    ("partition", partition),
    ("pvgrub2", pvgrub2),
];

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A configuration with three disks, one of them a partition, one qcow2 and read only, and two
/// cards; the kernel is a file of the host's.
fn xl(samples: &Samples) -> Result<Sample> {
    let root = samples.data("root.img", 6)?;
    let swap = samples.data("swap.img", 3)?;
    let more = samples.data("more.img", 4)?;
    samples.converted(&more, "more.qcow2", "qcow2", "")?;
    let config = format!(
        "name = 'xl-guest'\nuuid = '8a1f0c7e-52a1-4d0e-9c57-0c1d2e3f4a5b'\nmemory = 256\nmaxmem = 512\n\
         vcpus = 2\nkernel = '/boot/vmlinuz-guest'\nramdisk = '/boot/initrd-guest'\n\
         root = '/dev/xvda2 ro'\nextra = '{}'\n\
         disk = [\n  'phy:/dev/vg0/guest-root,xvda2,w',\n  'phy:/dev/vg0/guest-swap,xvda1,w',\n\
         \x20 'format=qcow2, vdev=xvdc, access=ro, target=more.qcow2',\n]\n\
         vif = [ 'mac={},bridge=xenbr0', 'mac={},bridge=xenbr1' ]\non_crash = 'restart'\n",
        cmdline(3, 2),
        MACS[0],
        MACS[1]
    );
    let path = samples.path("guest.cfg");
    fs::write(&path, config)?;
    let mut args = vec![text(&path)];
    for (from, to) in [
        ("/dev/vg0/guest-root", &root),
        ("/dev/vg0/guest-swap", &swap),
        ("/boot/vmlinuz-guest", &samples.kernel),
        ("/boot/initrd-guest", &samples.initrd),
    ] {
        args.extend(["--map".into(), format!("{from}={}", to.display())]);
    }
    Ok(Sample {
        args,
        name: "xl-guest",
        disks: vec![("xvda2", root, true), ("xvda1", swap, true), ("xvdc", more, false)],
        macs: MACS.to_vec(),
        cpus: 2,
        word: "root=/dev/xvda2 ro",
    })
}

/// An archive of two disks: the kernel is on the first one.
fn xva(samples: &Samples, sums: Sums) -> Result<Sample> {
    let root = samples.disk("root.img", "gpt", &cmdline(2, 2))?;
    let more = samples.data("more.img", 7)?;
    let path = samples.path("guest.xva");
    samples_xva::write(&path, &[("0", &root, true), ("3", &more, false)], &MACS, sums)?;
    Ok(Sample {
        args: vec![text(&path)],
        name: "xva-guest",
        disks: vec![("xvda", root, true), ("xvdd", more, false)],
        macs: MACS.to_vec(),
        cpus: 2,
        word: "from_pv_args=1",
    })
}

/// A description with a dynamic and a fixed VHD.
fn ovf(samples: &Samples) -> Result<Sample> {
    let root = samples.disk("root.img", "dos", &cmdline(2, 2))?;
    let more = samples.data("more.img", 5)?;
    samples.converted(&root, "root.vhd", "vpc", "subformat=dynamic,force_size=on")?;
    samples.converted(&more, "more.vhd", "vpc", "subformat=fixed,force_size=on")?;
    let path = samples.ovf("guest.ovf", ["root.vhd", "more.vhd"], MACS)?;
    Ok(Sample {
        args: vec![text(&path)],
        name: "ovf-guest",
        disks: vec![("xvda", root, true), ("xvdb", more, true)],
        macs: MACS.to_vec(),
        cpus: 2,
        word: "root=/dev/xvda1",
    })
}

fn single(path: &Path, name: &'static str, disk: &'static str) -> Sample {
    let mut args = vec![text(path), "--memory".into(), "256M".into()];
    args.extend(["--net".into(), MACS[1].into()]);
    let disks = vec![(disk, path.to_owned(), true)];
    Sample { args, name, disks, macs: vec![MACS[1]], cpus: 1, word: "root=/dev/xvda1" }
}

/// A disk with a table, and nothing else.
fn raw(samples: &Samples) -> Result<Sample> {
    let disk = samples.disk("raw-guest.img", "dos", &cmdline(1, 1))?;
    Ok(single(&disk, "raw-guest", "xvda"))
}

/// The same, but that PvGrub2 is what the pack starts: it finds the kernel.
fn pvgrub2(samples: &Samples) -> Result<Sample> {
    let mut sample = raw(samples)?;
    sample.args.extend(["--bootloader", "pvgrub2"].map(str::to_owned));
    Ok(sample)
}

/// A partition's file system, as Xen's hosts have them for `xvda1`.
fn partition(samples: &Samples) -> Result<Sample> {
    let root = samples.root("part-guest.img", &cmdline(1, 1))?;
    Ok(single(&root, "part-guest", "xvda1"))
}

/// A host's physical volume, by LVM's own programs, with two guests' volumes on it; one of them in
/// two pieces.
fn lvm(samples: &Samples) -> Result<Sample> {
    const MIB: usize = 1 << 20;
    let root = samples.root("root.img", &cmdline(2, 1))?;
    let swap = samples.data("swap.img", 8)?;
    let image = samples.path("lvm-guest.img");
    fs::File::create(&image)?.set_len(128 << 20)?;
    let script = include_str!("../../e2e/lvm-volumes.sh");
    let out = run(Command::new("sh").arg("-c").arg(script).arg("sh").arg(&image))?;
    // Each extent's place, as LVM says it: volume, first byte, bytes.
    for line in String::from_utf8(out)?.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let [volume, from, at, bytes] = words.as_slice() else { continue };
        let data = fs::read(if *volume == "guest-root" { &root } else { &swap })?;
        let (from, bytes): (usize, usize) = (from.parse()?, bytes.parse()?);
        put(&image, at.parse()?, data.get(from..from + bytes).context("a volume's piece")?)?;
    }
    ensure!(fs::read(&swap)?.len() == 8 * MIB);
    let mut sample = single(&image, "lvm-guest", "xvda1");
    for lv in ["vg0/guest-root=xvda1", "vg0/guest-swap=xvda2"] {
        sample.args.extend(["--lv".into(), lv.into()]);
    }
    sample.disks = vec![("xvda1", root, true), ("xvda2", swap, true)];
    Ok(sample)
}

/// Imports a sample, boots what comes out, and compares.
pub fn imported(lab: &mut Lab, spec: &str, make: Make) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("import-").tempdir_in(lab.file("")?)?;
    let samples = Samples::new(dir.path(), spec)?;
    let sample = make(&samples)?;
    let (pack, work) = (dir.path().join("pack"), dir.path().join("work"));
    fs::create_dir(&work)?;
    let sums = sums(&sample)?;
    let mut command = Command::new(PONTOON.find()?);
    command.arg("import").args(&sample.args).arg("-o").arg(&pack);
    run(&mut command)?;
    ensure!(sums == self::sums(&sample)?, "a source was written to");
    let mut machine = packed::machine(&pack, sample.name, &work)?;
    machine.timeout = Some(LIMIT);
    ensure!(machine.cpus == sample.cpus, "{} processors", machine.cpus);
    let outcome = lab.run(&machine, &mut |_| {})?;
    let transcript = ended(&outcome, Status::POWER_OFF)?;
    let tail = || format!("console:\n{}\nhost:\n{}", transcript.tail(), outcome.errors);
    ensure!(transcript.mark("end").is_some(), "no end; {}", tail());
    let marked = |kind: &str| -> Vec<(String, String)> {
        let lines = transcript.text.lines().filter_map(|line| line.strip_prefix("@@ "));
        let found = lines.filter_map(|line| line.strip_prefix(kind)?.split_once(' '));
        found.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    };
    let mut expected = Vec::new();
    for ((name, path, writable), sum) in sample.disks.iter().zip(&sums) {
        let sectors = fs::metadata(path)?.len() / 512;
        expected.push(((*name).to_owned(), format!("{sectors} {} {sum}", u8::from(!writable))));
    }
    expected.sort();
    let (disks, cards) = (marked("disk-"), marked("card-"));
    ensure!(disks == expected, "disks: {disks:?}, not {expected:?}; {}", tail());
    let number = |(index, mac): (usize, &&str)| (format!("eth{index}"), (*mac).to_owned());
    let expected: Vec<_> = sample.macs.iter().enumerate().map(number).collect();
    ensure!(cards == expected, "cards: {cards:?}, not {expected:?}; {}", tail());
    let cmdline = transcript.mark("cmdline").unwrap_or_default();
    ensure!(cmdline.contains(sample.word), "the command line is {cmdline}");
    ensure!(!cmdline.contains("pontoon.vbd"), "the shim's words reached the guest: {cmdline}");
    Ok(())
}

/// Sums of the disks' contents, as md5sum has them.
fn sums(sample: &Sample) -> Result<Vec<String>> {
    let sum = |(_, path, _): &(&str, PathBuf, bool)| -> Result<String> {
        let out = String::from_utf8(run(Command::new("md5sum").arg(path))?)?;
        Ok(out.split(' ').next().unwrap_or_default().to_owned())
    };
    sample.disks.iter().map(sum).collect()
}
