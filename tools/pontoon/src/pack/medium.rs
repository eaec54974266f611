//! What a virtual machine starts from: a disk with an EFI system partition, a disk with GRUB, or
//! an ISO image with GRUB.

use super::fat::{self, Files};
use super::grub;
use super::plan::Medium;
use crate::artefact;
use crate::guest::Payload;
use crate::qemu_img::{self, Disk, Format};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Partitions begin here, as everybody has it.
const ALIGNMENT: u64 = MIB;
/// Behind the last partition: a GPT's copy.
const TAIL: u64 = MIB;

/// Makes the medium `to`; `work` is for files that do not stay.
///
/// # Errors
/// What it takes is not there, or there is no room.
pub fn create(
    medium: Medium,
    title: &str,
    payload: &Payload,
    words: &[String],
    work: &Path,
    to: &Path,
) -> Result<()> {
    match medium {
        Medium::Vhdx => efi_disk(payload, words, work, to),
        Medium::Vhd => bios_disk(title, payload, words, work, to),
        Medium::Iso => iso(title, payload, words, work, to),
    }
}

/// Files of a volume the EFI application starts from.
fn efi_disk(payload: &Payload, words: &[String], work: &Path, to: &Path) -> Result<()> {
    let application = read(&artefact::EFI.find()?)?;
    let cmdline = format!("{}\n", payload.cmdline);
    let config = format!("# Words for the shim.\n{}\n", words.join("\n"));
    let mut files: Vec<(&str, &[u8])> = vec![
        ("EFI/BOOT/BOOTX64.EFI", &application),
        ("pontoon/kernel", &payload.kernel),
        ("pontoon/cmdline", cmdline.as_bytes()),
        ("pontoon/config", config.as_bytes()),
    ];
    files.extend(payload.initrd.as_deref().map(|initrd| ("pontoon/initrd", initrd)));
    let raw = work.join("disk.raw");
    gpt_disk(&raw, &files, work)?;
    converted(&raw, to, Format::Vhdx, &["subformat=dynamic"])
}

/// A disk with a GPT and a FAT volume as EFI system partition.
pub(super) fn gpt_disk(raw: &Path, files: &Files<'_>, work: &Path) -> Result<()> {
    let bytes = fat::volume_bytes(files);
    let (mut disk, size) = disk_with_volume(raw, bytes, files, work)?;
    let sectors = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
    let protective = gpt::mbr::ProtectiveMBR::with_lb_size(sectors);
    protective.overwrite_lba0(&mut disk).context("a GPT")?;
    let config = gpt::GptConfig::new().writable(true);
    let config = config.logical_block_size(gpt::disk::LogicalBlockSize::Lb512);
    let mut table = config.create_from_device(disk, None).context("a GPT")?;
    let (first, length) = (ALIGNMENT / SECTOR, bytes / SECTOR);
    table
        .add_partition_at("EFI system", 1, first, length, gpt::partition_types::EFI, 0)
        .context("a GPT")?;
    let disk = table.write().context("a GPT")?;
    disk.sync_all().context("a GPT")
}

fn bios_disk(
    title: &str,
    payload: &Payload,
    words: &[String],
    work: &Path,
    to: &Path,
) -> Result<()> {
    let menu = grub::menu(title, payload, words, Medium::Vhd)?;
    let shim = shim()?;
    let mut files: Vec<(&str, &[u8])> =
        vec![("pontoon/shim", &shim), (grub::MENU, menu.text.as_bytes())];
    files.extend(menu.files.iter().map(|(name, data)| (*name, data.as_slice())));
    let raw = work.join("disk.raw");
    mbr_disk(&raw, &grub::image(work)?, &files, work)?;
    // Its size as it is, not what cylinders, heads and sectors make of it.
    converted(&raw, to, Format::Vhd, &["subformat=dynamic", "force_size=on"])
}

/// A disk with an MBR, GRUB behind it, and a FAT volume it reads.
pub(super) fn mbr_disk(
    raw: &Path,
    grub: &grub::Image,
    files: &Files<'_>,
    work: &Path,
) -> Result<()> {
    /// FAT32 by LBA.
    const KIND: u8 = 0x0c;
    /// Beyond what cylinders, heads and sectors can say.
    const CHS: [u8; 3] = [0xfe, 0xff, 0xff];
    ensure!(
        grub.core.len() as u64 <= ALIGNMENT - SECTOR,
        "GRUB's image does not fit in front of the partition"
    );
    let bytes = fat::volume_bytes(files);
    let (disk, _) = disk_with_volume(raw, bytes, files, work)?;
    let mut sector = grub.boot.clone();
    // The disk's signature: of no meaning to anybody here, and none is zero.
    sector.extend(*b"pntn\0\0");
    sector.push(0x80);
    sector.extend(CHS);
    sector.push(KIND);
    sector.extend(CHS);
    sector.extend(u32::try_from(ALIGNMENT / SECTOR)?.to_le_bytes());
    sector.extend(u32::try_from(bytes / SECTOR)?.to_le_bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    disk.write_all_at(&sector, 0)?;
    disk.write_all_at(&grub.core, SECTOR)?;
    Ok(disk.sync_all()?)
}

/// A disk with a FAT volume at its first partition's place, and no table.
fn disk_with_volume(raw: &Path, bytes: u64, files: &Files<'_>, work: &Path) -> Result<(File, u64)> {
    let volume = work.join("volume");
    fat::create(&volume, bytes, files, work)?;
    let size = ALIGNMENT + bytes + TAIL;
    let mut disk = File::options().read(true).write(true).create_new(true).open(raw)?;
    disk.set_len(size)?;
    disk.seek(SeekFrom::Start(ALIGNMENT))?;
    std::io::copy(&mut File::open(&volume)?, &mut disk)
        .context("no room for the disk to start from")?;
    disk.seek(SeekFrom::Start(0))?;
    fs::remove_file(volume)?;
    Ok((disk, size))
}

fn iso(title: &str, payload: &Payload, words: &[String], work: &Path, to: &Path) -> Result<()> {
    let menu = grub::menu(title, payload, words, Medium::Iso)?;
    let tree = work.join("iso");
    let shim = shim()?;
    let mut files: Vec<(&str, &[u8])> =
        vec![("pontoon/shim", &shim), ("boot/grub/grub.cfg", menu.text.as_bytes())];
    files.extend(menu.files.iter().map(|(name, data)| (*name, data.as_slice())));
    for (name, data) in files {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        File::create(&path)?.write_all(data).with_context(|| path.display().to_string())?;
    }
    grub::rescue(&tree, to)?;
    Ok(fs::remove_dir_all(tree)?)
}

/// The shim as GRUB takes it: GRUB loads symbols, too, if there are any.
fn shim() -> Result<Vec<u8>> {
    let path = artefact::SHIM.find()?;
    let mut file = read(&path)?;
    let len = boot_abi::elf::strip(&mut file);
    file.truncate(len.with_context(|| format!("{} is no image of the shim", path.display()))?);
    Ok(file)
}

fn converted(raw: &Path, to: &Path, format: Format, options: &[&str]) -> Result<()> {
    let from = Disk { path: raw.to_owned(), format: Format::Raw };
    let to = Disk { path: to.to_owned(), format };
    qemu_img::convert(&from, &to, options, "the disk to start from")?;
    Ok(fs::remove_file(raw)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}
