//! Reading a pack as Hyper-V and the shim's EFI application would: devices by its script, what is
//! booted by the disk it starts from.

use anyhow::{Context, Result, ensure};
use pontoon::host::Machine;
use pontoon::image::bytes::{Image, ReadAt, Window};
use pontoon::image::{fs as image_fs, partition};
use pontoon::qemu_img::{self, Disk, Format};
use pontoon_tests::parts::run;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

/// A pack's devices, as its script adds them.
struct Devices {
    /// LUN and file of each disk.
    disks: Vec<(u8, String)>,
    macs: Vec<String>,
    memory_mib: u64,
    cpus: u32,
}

/// The part of `text` between two others.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Result<&'a str> {
    let found = text.split_once(before).and_then(|(_, rest)| rest.split_once(after));
    Ok(found.with_context(|| format!("no {before}…{after} in the script"))?.0)
}

impl Devices {
    fn of(script: &str) -> Result<Self> {
        let mut devices = Self {
            disks: Vec::new(),
            macs: Vec::new(),
            memory_mib: between(script, "-MemoryStartupBytes ", "MB")?.parse()?,
            cpus: between(script, "-ProcessorCount ", " ")?.parse()?,
        };
        for line in script.lines().filter(|line| line.contains("[pscustomobject]")) {
            if line.contains("Location = ") {
                let lun = between(line, "Location = ", ";")?.parse()?;
                devices.disks.push((lun, between(line, "File = '", "'")?.to_owned()));
            } else {
                let digits = between(line, "Address = '", "'")?;
                let byte = |at: usize| digits.get(2 * at..2 * at + 2).map(str::to_lowercase);
                let bytes: Option<Vec<_>> = (0..6).map(byte).collect();
                devices.macs.push(bytes.context("an address")?.join(":"));
            }
        }
        Ok(devices)
    }
}

/// The machine a pack is for. Disks are unpacked to `work`.
pub fn machine(pack: &Path, name: &str, work: &Path) -> Result<Machine> {
    let script = fs::read_to_string(pack.join(format!("{name}.ps1")))?;
    let devices = Devices::of(&script)?;
    let boot = raw(&pack.join(format!("{name}.vhdx")), &work.join("boot.raw"))?;
    let volume = Esp::open(&boot, work)?;
    let mut machine = {
        let take = |file: &str| -> Result<PathBuf> {
            let to = work.join(file);
            fs::write(&to, volume.read(&format!("/pontoon/{file}"))?)?;
            Ok(to)
        };
        let kernel = take("kernel")?;
        let initrd = volume.has("/pontoon/initrd")?.then(|| take("initrd")).transpose()?;
        let text = |file: &str| Ok::<_, anyhow::Error>(String::from_utf8(volume.read(file)?)?);
        let cmdline = text("/pontoon/cmdline")?.trim().to_owned();
        let config = text("/pontoon/config")?;
        let lines = config.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let words = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        Machine::new(&kernel, initrd.as_deref(), &format!("{cmdline} {words}"))
    };
    (machine.memory_mib, machine.cpus) = (devices.memory_mib, devices.cpus);
    // The disk it starts from is there, too, and must not be seen.
    machine.disks.push(format!("{},scsi=0:0", boot.display()));
    for (lun, file) in devices.disks {
        let unpacked = raw(&pack.join(&file), &work.join(format!("{file}.raw")))?;
        machine.disks.push(format!("{},scsi=0:{lun}", unpacked.display()));
    }
    // In another order: addresses tell which card is which.
    for mac in devices.macs.iter().rev() {
        machine.nets.push(format!("user,mac={mac}").parse()?);
    }
    Ok(machine)
}

/// A sound VHDX as raw file.
fn raw(vhdx: &Path, to: &Path) -> Result<PathBuf> {
    let from = Disk { path: vhdx.to_owned(), format: Format::Vhdx };
    qemu_img::check(&from)?;
    let _ = fs::remove_file(to);
    qemu_img::convert(&from, &Disk { path: to.to_owned(), format: Format::Raw }, &[], "a disk")?;
    Ok(to.to_owned())
}

/// The EFI system partition.
struct Esp(Box<dyn image_fs::FileSystem>);

impl Esp {
    fn open(disk: &Path, work: &Path) -> Result<Self> {
        let whole: Rc<dyn ReadAt> = Rc::new(Image::open(disk)?);
        let table = partition::partitions(&*whole, &|_| true).context("no table")?;
        ensure!(table.0 == partition::Table::Gpt, "the table is no GPT");
        let [esp] = table.1.as_slice() else { anyhow::bail!("one partition was expected") };
        let window = Window::new(Rc::clone(&whole), esp.start_bytes, esp.len_bytes);
        let mut bytes = vec![0; usize::try_from(window.len())?];
        window.read_at(0, &mut bytes)?;
        let copy = work.join("esp");
        fs::write(&copy, bytes)?;
        run(Command::new("/sbin/fsck.vfat").arg("-n").arg(&copy))?;
        fs::remove_file(copy)?;
        let fs = image_fs::open(Rc::new(window))?;
        ensure!(fs.read("/EFI/BOOT/BOOTX64.EFI", 64 << 20)?.starts_with(b"MZ"), "no application");
        Ok(Self(fs))
    }

    fn has(&self, path: &str) -> Result<bool> {
        Ok(self.0.kind(path)?.is_some())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.0.read(path, 1 << 30)
    }
}
