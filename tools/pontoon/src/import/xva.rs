//! XVA: what XenServer and XCP-ng export. A tar archive of `ova.xml`, which describes the VM, and a
//! directory for each of its disks, with a file for each MiB that is not all zeros, and the file's
//! checksum behind it: SHA-1 (`.checksum`), or xxHash (`.xxhash`) since XCP-ng 8.1.
//!
//! A number that is left out is a MiB of zeros; a file without bytes is none, and takes no place
//! (xapi: `ocaml/xapi/stream_vdi.ml`).

use super::{MAX_TEXT, check_mode, pygrub_options};
use crate::guest::{Guest, Mac, Nic};
use crate::import::xva_xml::{Object, objects};
use crate::pack::disk::Source;
use crate::pack::plan::{Boot, Plan, PlannedDisk};
use crate::qemu_img;
use anyhow::{Context, Result, anyhow, bail, ensure};
use pv_frontends::vbd::Vdev;
use sha1::{Digest, Sha1};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tar::Archive;
use twox_hash::XxHash64;

const MIB: u64 = 1 << 20;

/// A disk in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// The archive.
    pub archive: PathBuf,
    /// The directory its files are in.
    pub directory: String,
    /// Bytes of the disk.
    pub bytes: u64,
}

/// What an archive's file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry<'a> {
    Description,
    Chunk(&'a str, u64),
    Sha1(&'a str, u64),
    XxHash(&'a str, u64),
    /// Of no meaning, as a directory.
    Other,
}

impl<'a> Entry<'a> {
    /// By its path: nothing is ever written where a path leads, and what leads out of the archive
    /// shows that nobody should trust it.
    fn of(path: &'a str, is_file: bool) -> Result<Self> {
        let bad = || anyhow!("\"{}\" is no part of an XVA archive", path.escape_default());
        if path == "ova.xml" {
            return Ok(Self::Description);
        }
        let (directory, file) = path.split_once('/').ok_or_else(bad)?;
        let number = directory.strip_prefix("Ref:").ok_or_else(bad)?;
        ensure!(!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()), bad());
        if !is_file && file.is_empty() {
            return Ok(Self::Other);
        }
        ensure!(is_file, bad());
        let (stem, kind) = file.split_once('.').unwrap_or((file, ""));
        ensure!((8..=18).contains(&stem.len()) && stem.bytes().all(|b| b.is_ascii_digit()), bad());
        let number = stem.parse().map_err(|_| bad())?;
        match kind {
            "" => Ok(Self::Chunk(directory, number)),
            "checksum" => Ok(Self::Sha1(directory, number)),
            "xxhash" => Ok(Self::XxHash(directory, number)),
            _ => Err(bad()),
        }
    }
}

/// Goes through the files of an archive as long as `each` wants.
fn each(
    from: impl Read + Seek,
    mut each: impl FnMut(Entry<'_>, u64, &mut dyn Read) -> Result<bool>,
) -> Result<()> {
    let mut archive = Archive::new(from);
    for entry in archive.entries_with_seek().context("not a tar archive")? {
        let mut entry = entry.context("the archive is cut short or damaged")?;
        let kind = entry.header().entry_type();
        let path = entry.path_bytes().into_owned();
        let path = std::str::from_utf8(&path).context("a name that is no text")?;
        ensure!(
            kind.is_file() || kind.is_dir(),
            "\"{}\" is neither a file nor a directory",
            path.escape_default()
        );
        let (what, size) = (Entry::of(path, kind.is_file())?, entry.size());
        if !each(what, size, &mut entry)? {
            return Ok(());
        }
    }
    Ok(())
}

/// The text of `ova.xml`.
fn description(from: impl Read + Seek) -> Result<String> {
    let mut text = None;
    each(from, |what, size, data| {
        if what == Entry::Description {
            ensure!(size <= MAX_TEXT, "ova.xml has {} MiB", size >> 20);
            let mut bytes = Vec::new();
            data.take(MAX_TEXT).read_to_end(&mut bytes).context("ova.xml is cut short")?;
            ensure!(bytes.len() as u64 == size, "ova.xml is cut short");
            text = Some(String::from_utf8(bytes).context("ova.xml is no text")?);
        }
        // It comes first as a rule.
        Ok(text.is_none())
    })?;
    text.context("the archive has no ova.xml: it is no XVA")
}

impl Chunks {
    /// Writes the disk into a new file, every MiB of it known by its checksum.
    ///
    /// # Errors
    /// The archive is damaged, or there is no room.
    pub fn unpack(&self, to: &Path, what: &str) -> Result<()> {
        let name = || to.display().to_string();
        let file = File::create_new(to).with_context(name)?;
        file.set_len(self.bytes).with_context(name)?;
        let bar = qemu_img::bar(self.bytes, &format!("unpacking {what}"))?;
        let archive = File::open(&self.archive)?;
        let write = |at: u64, data: &[u8]| {
            bar.set_position(at);
            file.write_all_at(data, at).with_context(name)
        };
        self.read(archive, write).with_context(|| self.archive.display().to_string())?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Gives out the disk's bytes, with their places, as they come.
    ///
    /// # Errors
    /// The archive is damaged, or `write` has one.
    pub fn read(
        &self,
        archive: impl Read + Seek,
        mut write: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut walk = Walk::default();
        each(archive, |what, size, data| {
            let (Entry::Chunk(directory, number)
            | Entry::Sha1(directory, number)
            | Entry::XxHash(directory, number)) = what
            else {
                return Ok(true);
            };
            let name = || format!("{directory}/{number:08}");
            if directory != self.directory {
                return Ok(true);
            }
            ensure!(size <= MIB, "{} has more than a MiB", name());
            let mut bytes = Vec::new();
            data.take(MIB).read_to_end(&mut bytes).with_context(name)?;
            ensure!(bytes.len() as u64 == size, "{}: the archive is cut short", name());
            match what {
                Entry::Chunk(..) => walk.chunk(number, bytes, self.bytes, &mut write),
                Entry::Sha1(..) => walk.check(number, &bytes, |data| hex(&Sha1::digest(data))),
                _ => walk
                    .check(number, &bytes, |data| format!("{:016x}", XxHash64::oneshot(0, data))),
            }
            .with_context(name)?;
            Ok(true)
        })?;
        ensure!(walk.unchecked.is_none(), "{}: the last chunk has no checksum", self.directory);
        // The last MiB is always there.
        ensure!(
            walk.next_at == self.bytes,
            "{} ends at {} of {} bytes: the archive is cut short",
            self.directory,
            walk.next_at,
            self.bytes
        );
        Ok(())
    }
}

/// Where the walk through a disk's chunks is.
#[derive(Default)]
struct Walk {
    /// The number that would come next if nothing is left out.
    next: u64,
    /// The byte behind the last chunk.
    next_at: u64,
    unchecked: Option<(u64, Vec<u8>)>,
}

impl Walk {
    fn chunk(
        &mut self,
        number: u64,
        data: Vec<u8>,
        bytes: u64,
        write: &mut impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        ensure!(self.unchecked.is_none(), "the chunk before it has no checksum");
        let left_out = number.checked_sub(self.next).context("its number came before")?;
        let at = left_out.checked_mul(MIB).and_then(|skip| skip.checked_add(self.next_at));
        let end = at.and_then(|at| at.checked_add(data.len() as u64));
        let (at, end) =
            at.zip(end).filter(|(_, end)| *end <= bytes).context("it is behind the disk's end")?;
        // Written before it is checked: what is wrong does not become a pack.
        write(at, &data)?;
        (self.next, self.next_at) = (number + 1, end);
        self.unchecked = Some((number, data));
        Ok(())
    }

    fn check(&mut self, number: u64, sum: &[u8], hash: impl Fn(&[u8]) -> String) -> Result<()> {
        let (_, data) = self
            .unchecked
            .take()
            .filter(|(of, _)| *of == number)
            .context("a checksum of no chunk")?;
        let sum = String::from_utf8_lossy(sum).trim().to_ascii_lowercase();
        ensure!(sum == hash(&data), "its checksum is wrong: the archive is damaged");
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The plan for the VM in the archive at `path`.
///
/// # Errors
/// What is wrong with it.
pub fn plan(path: &Path, as_pv: bool) -> Result<Plan> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    plan_of(file, path, as_pv).with_context(|| path.display().to_string())
}

/// The same for an archive that is open.
///
/// # Errors
/// What is wrong with it.
pub fn plan_of(file: impl Read + Seek, path: &Path, as_pv: bool) -> Result<Plan> {
    let objects = objects(&description(file)?)?;
    let of = |class: &str| objects.iter().filter(move |o| o.class == class).collect::<Vec<_>>();
    let real = |vm: &&&Object| !vm.is("is_a_snapshot") && !vm.is("is_control_domain");
    let vms = of("VM");
    let vm = *vms.iter().find(real).context("ova.xml has no VM")?;
    let mut left_out = Vec::new();
    if vm.get("domain_type").is_some_and(|t| t.starts_with("hvm"))
        || vm.get("HVM_boot_policy").is_some()
    {
        check_mode("an HVM", as_pv)?;
    }
    let number = |name: &str| vm.get(name).and_then(|value| value.parse::<u64>().ok());
    let bytes = number("memory_dynamic_max").or(number("memory_static_max"));
    let cpus = number("VCPUs_at_startup").or(number("VCPUs_max")).unwrap_or(1);
    let most = number("VCPUs_max").unwrap_or(cpus).max(cpus);
    let name = vm.get("name_label").unwrap_or("guest");
    let plain = |c: char| if c.is_ascii_graphic() && c != '"' { c } else { '-' };
    let guest = Guest {
        name: name.chars().map(plain).collect(),
        uuid: vm.get("uuid").map(str::to_owned),
        memory_mib: bytes.context("ova.xml gives the VM no memory")? >> 20,
        cpus: u32::try_from(most)?,
        online: Some(u32::try_from(cpus)?).filter(|_| cpus < most),
        nics: nics(vm, &of("VIF"), &of("network"), &mut left_out)?,
    };
    let disks = disks(vm, &of("VBD"), &of("VDI"), path)?;
    let boot = boot(vm, &mut left_out)?;
    for (field, why) in [
        ("ha_restart_priority", "high availability is the cluster's"),
        ("PCI_bus", "there is no such device on Hyper-V"),
        ("start_delay", "what starts by itself is Hyper-V's: Set-VM"),
    ] {
        if let Some(value) = vm.get(field).filter(|value| *value != "0") {
            left_out.push(format!("{field} = {value}: {why}"));
        }
    }
    Ok(Plan { guest, boot, disks, left_out })
}

fn nics(
    vm: &Object,
    vifs: &[&Object],
    networks: &[&Object],
    left_out: &mut Vec<String>,
) -> Result<Vec<Nic>> {
    let mut nics = Vec::new();
    for vif in vifs.iter().filter(|vif| vif.get("VM") == Some(&vm.id)) {
        let number =
            vif.get("device").and_then(|n| n.parse().ok()).context("a VIF without its number")?;
        let mac = Mac::parse(vif.get("MAC").context("a VIF without its address")?)?;
        let network =
            networks.iter().find(|network| Some(network.id.as_str()) == vif.get("network"));
        let network =
            network.and_then(|n| n.get("bridge").or(n.get("name_label"))).map(str::to_owned);
        // The switch's is what it is by default.
        let mtu = vif.get("MTU").and_then(|mtu| mtu.parse().ok()).filter(|mtu| *mtu != 1500);
        if let Some(mode) =
            vif.get("locking_mode").filter(|m| !matches!(*m, "network_default" | "unlocked"))
        {
            left_out
                .push(format!("locking_mode = {mode} of vif {number}: it is the switch's to do"));
        }
        nics.push(Nic { number, mac, mtu, network });
    }
    nics.sort_by_key(|nic| nic.number);
    Ok(nics)
}

fn disks(
    vm: &Object,
    vbds: &[&Object],
    vdis: &[&Object],
    archive: &Path,
) -> Result<Vec<PlannedDisk>> {
    let mut disks = Vec::new();
    for vbd in vbds.iter().filter(|vbd| vbd.get("VM") == Some(&vm.id)) {
        let device =
            vbd.get("device").or(vbd.get("userdevice")).context("a VBD without its device")?;
        let vdev = match device.parse() {
            Ok(number) if number < 1 << 16 => Some(Vdev::xvd(number)),
            _ => Vdev::parse(device),
        };
        let vdev = vdev
            .with_context(|| format!("a VBD's device \"{}\" is none", device.escape_default()))?;
        let (cdrom, name) = (vbd.get("type") == Some("CD"), vdev.name());
        let read_only = cdrom || vbd.get("mode") == Some("RO");
        let source = if vbd.is("empty") || (cdrom && vbd.get("VDI").is_none()) {
            None
        } else {
            let id = vbd.get("VDI").unwrap_or_default();
            let vdi = vdis.iter().find(|vdi| vdi.id == id);
            // A CD of the pool's is not in the archive.
            match vdi {
                None if cdrom => None,
                None => bail!("{name}: its disk {} is not described", id.escape_default()),
                Some(vdi) => {
                    let bytes = vdi.get("virtual_size").and_then(|size| size.parse().ok());
                    let bytes = bytes.with_context(|| format!("{name}: its disk has no size"))?;
                    let (archive, directory) = (archive.to_owned(), vdi.id.clone());
                    Some(Source::Chunks(Chunks { archive, directory, bytes }))
                }
            }
        };
        let boots = vbd.is("bootable") && !cdrom;
        disks.push((!boots, vdev.number(), PlannedDisk { vdev, read_only, cdrom, source }));
    }
    disks.sort_by_key(|(boots, number, _)| (*boots, *number));
    Ok(disks.into_iter().map(|(.., disk)| disk).collect())
}

fn boot(vm: &Object, left_out: &mut Vec<String>) -> Result<Boot> {
    if let Some(kernel) = vm.get("PV_kernel") {
        left_out.push(format!(
            "PV_kernel = {kernel}, a file of the old host's: the kernel is looked for on the first disk"
        ));
    }
    if let Some(loader) = vm.get("PV_bootloader").filter(|l| !matches!(*l, "pygrub" | "eliloader"))
    {
        left_out.push(format!("PV_bootloader = {loader}: the kernel is found as pygrub would"));
    }
    let (entry, args, more) = pygrub_options(vm.get("PV_bootloader_args").unwrap_or_default());
    left_out.extend(more);
    let words: Vec<_> = vm.get("PV_args").map(str::to_owned).into_iter().chain(args).collect();
    let append = Some(words.join(" ")).filter(|words| !words.is_empty());
    Ok(Boot::Disk { entry, append, initrd: None })
}

#[cfg(test)]
#[path = "xva_tests.rs"]
mod tests;
