//! OVF (DMTF DSP0243): a description of a machine in XML, with its disks in files beside it.

use super::{MAX_TEXT, check_mode};
use crate::guest::{Guest, Mac, Nic};
use crate::pack::disk::Source;
use crate::pack::options::guess;
use crate::pack::plan::{Boot, Plan, PlannedDisk};
use crate::qemu_img::{Disk, bar};
use anyhow::{Context, Result, bail, ensure};
use pv_frontends::vbd::Vdev;
use roxmltree::{Document, Node};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// A machine as its description has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    name: String,
    kind: String,
    cpus: Option<u64>,
    memory_mib: Option<u64>,
    cards: Vec<Card>,
    disks: Vec<Drive>,
    settings: Vec<(String, String)>,
    left_out: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Card {
    mac: Option<String>,
    network: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Drive {
    /// Controller and place on it, as far as there are such; then the place in the file.
    order: (String, u64),
    file: Option<String>,
    cdrom: bool,
}

/// Kinds of devices (CIM_ResourceAllocationSettingData.ResourceType).
mod kind {
    pub(super) const PROCESSOR: &str = "3";
    pub(super) const MEMORY: &str = "4";
    pub(super) const IDE: &str = "5";
    pub(super) const SCSI: &str = "6";
    pub(super) const ETHERNET: &str = "10";
    pub(super) const CD: &str = "15";
    pub(super) const DVD: &str = "16";
    pub(super) const DISK: &str = "17";
    pub(super) const SATA: &str = "20";
}

/// Children of that name, whatever their namespace.
fn children<'a, 'b>(node: Node<'a, 'b>, name: &'a str) -> impl Iterator<Item = Node<'a, 'b>> {
    node.children().filter(move |child| child.tag_name().name() == name)
}

fn child_text(node: Node<'_, '_>, name: &str) -> Option<String> {
    let found = node.children().find(|child| child.tag_name().name() == name)?;
    found.text().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// An attribute of that name, whatever its namespace.
fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|attribute| attribute.name() == name).map(|attribute| attribute.value())
}

impl Machine {
    /// Reads a description.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let document = Document::parse(text.trim_start_matches('\u{feff}')).context("no XML")?;
        let envelope = document.root_element();
        ensure!(
            envelope.tag_name().name() == "Envelope",
            "no OVF description, which is an Envelope"
        );
        let systems: Vec<_> =
            envelope.descendants().filter(|n| n.tag_name().name() == "VirtualSystem").collect();
        let [system] = systems.as_slice() else {
            bail!("the description has {} machines; one is taken", systems.len());
        };
        let files = disk_files(envelope)?;
        let id = attribute(*system, "id").unwrap_or("guest");
        let mut machine = Self {
            name: child_text(*system, "Name").unwrap_or_else(|| id.to_owned()),
            ..Self::default()
        };
        for section in children(*system, "VirtualHardwareSection") {
            let about = children(section, "System").next();
            machine.kind =
                about.and_then(|s| child_text(s, "VirtualSystemType")).unwrap_or_default();
            for item in section.children().filter(Node::is_element) {
                match item.tag_name().name() {
                    "Item" | "StorageItem" | "EthernetPortItem" => machine.item(item, &files)?,
                    // XenCenter's way to keep what OVF has no words for.
                    "VirtualSystemOtherConfigurationData" => {
                        let name = attribute(item, "Name").map(str::to_owned);
                        machine.settings.extend(name.zip(child_text(item, "Value")));
                    }
                    _ => {}
                }
            }
        }
        Ok(machine)
    }

    fn item(&mut self, item: Node<'_, '_>, files: &[(String, String)]) -> Result<()> {
        let quantity = || child_text(item, "VirtualQuantity").and_then(|n| n.parse::<u64>().ok());
        let name = child_text(item, "ElementName").unwrap_or_default();
        match child_text(item, "ResourceType").as_deref() {
            Some(kind::PROCESSOR) => self.cpus = quantity(),
            Some(kind::MEMORY) => {
                let units = child_text(item, "AllocationUnits").unwrap_or_default();
                let shift = power(&units).with_context(|| format!("memory in \"{units}\""))?;
                let bytes =
                    quantity().and_then(|n| n.checked_mul(1 << shift)).context("no memory")?;
                self.memory_mib = Some(bytes >> 20);
            }
            Some(kind::ETHERNET) => {
                let (mac, network) = (child_text(item, "Address"), child_text(item, "Connection"));
                self.cards.push(Card { mac, network });
            }
            Some(kind @ (kind::DISK | kind::CD | kind::DVD)) => {
                let parent = child_text(item, "Parent").unwrap_or_default();
                let at = child_text(item, "AddressOnParent").and_then(|at| at.parse().ok());
                let cdrom = kind != kind::DISK;
                let file =
                    child_text(item, "HostResource").map(|r| resource(&r, files)).transpose()?;
                ensure!(cdrom || file.is_some(), "the disk \"{name}\" has no file");
                self.disks.push(Drive { order: (parent, at.unwrap_or(u64::MAX)), file, cdrom });
            }
            Some(kind::IDE | kind::SCSI | kind::SATA) | None => {}
            Some(other) => self.left_out.push(format!(
                "\"{name}\", a device of type {other}: there is no such device for it"
            )),
        }
        Ok(())
    }
}

/// `byte * 2^20`, or what older descriptions have, as a power of two.
fn power(units: &str) -> Option<u32> {
    match units.to_ascii_lowercase().replace(' ', "").as_str() {
        "" | "byte*2^20" | "megabytes" | "mb" => Some(20),
        "byte*2^30" | "gigabytes" | "gb" => Some(30),
        "byte*2^10" | "kilobytes" | "kb" => Some(10),
        "byte" | "bytes" => Some(0),
        _ => None,
    }
}

/// The files of disks, by the disks' names; those of files, by theirs.
fn disk_files(envelope: Node<'_, '_>) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let all = |name| {
        envelope.descendants().filter(move |node: &Node<'_, '_>| node.tag_name().name() == name)
    };
    for file in all("References").flat_map(|refs| children(refs, "File").collect::<Vec<_>>()) {
        let (id, href) = attribute(file, "id")
            .zip(attribute(file, "href"))
            .context("a File without id or href")?;
        let packed = attribute(file, "compression").filter(|c| !matches!(*c, "" | "identity"));
        ensure!(packed.is_none(), "the file {href} is compressed: unpack it first");
        ensure!(
            attribute(file, "chunkSize").is_none(),
            "the file {href} is in pieces: put them together first"
        );
        files.push((format!("file/{id}"), href.to_owned()));
    }
    let known = files.clone();
    for disk in all("DiskSection").flat_map(|s| children(s, "Disk").collect::<Vec<_>>()) {
        let id = attribute(disk, "diskId").context("a Disk without diskId")?;
        ensure!(
            attribute(disk, "parentRef").is_none(),
            "the disk {id} is a part only, of another disk"
        );
        let Some(reference) = attribute(disk, "fileRef") else { continue };
        let name = format!("file/{reference}");
        let file = known.iter().find(|(id, _)| *id == name);
        let (_, href) = file.with_context(|| {
            format!("the disk {id} is in the file {reference}, which is not described")
        })?;
        files.push((format!("disk/{id}"), href.clone()));
    }
    Ok(files)
}

/// The file of `ovf:/disk/vmdisk1` or `/file/file1`.
fn resource(text: &str, files: &[(String, String)]) -> Result<String> {
    let name = text.strip_prefix("ovf:").unwrap_or(text).trim_start_matches('/');
    let found = files.iter().find(|(id, _)| id == name);
    Ok(found.with_context(|| format!("a disk is {text}, which is not described"))?.1.clone())
}

/// A file beside the description.
fn beside(description: &Path, href: &str) -> Result<PathBuf> {
    let path = Path::new(href);
    let is_inside =
        path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    ensure!(
        is_inside && !href.contains("://") && !href.is_empty(),
        "\"{}\" is no file of the description's own directory",
        href.escape_default()
    );
    let path = description.parent().unwrap_or(Path::new("")).join(path);
    // A link could lead anywhere, too; there is no reason for one.
    let meta = fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
    ensure!(meta.is_file(), "{} is no file", path.display());
    Ok(path)
}

/// The plan for the machine that the file describes.
///
/// # Errors
/// What is wrong with it.
pub fn plan(path: &Path, as_pv: bool) -> Result<Plan> {
    let name = || path.display().to_string();
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(MAX_TEXT).read_to_end(&mut bytes)).with_context(name)?;
    let text = String::from_utf8(bytes).with_context(name)?;
    let mut machine = Machine::parse(&text).with_context(name)?;
    check_manifest(path)?;
    let setting = |name: &str| {
        let found = machine.settings.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    if machine.kind.to_ascii_lowercase().contains("hvm") || setting("HVM_boot_policy").is_some() {
        check_mode("an HVM", as_pv).with_context(name)?;
    }
    let append = setting("PV_args");
    let (mut left_out, mut nics, mut disks) =
        (std::mem::take(&mut machine.left_out), Vec::new(), Vec::new());
    let plain = |c: char| if c.is_ascii_graphic() && c != '"' { c } else { '-' };
    let guest_name: String = machine.name.chars().map(plain).collect();
    for (number, card) in (0..).zip(&machine.cards) {
        let mac = card.mac.as_deref().map(Mac::parse).transpose().with_context(name)?;
        let mac = mac.unwrap_or_else(|| {
            let made = Mac::made_for(&guest_name, number);
            left_out.push(format!(
                "the address of card {number}: none is given; it is {made} from now on"
            ));
            made
        });
        nics.push(Nic { number, mac, mtu: None, network: card.network.clone() });
    }
    // Disks in the order a machine would find them; CD-ROM drives behind them.
    let mut drives = std::mem::take(&mut machine.disks);
    drives.sort_by_key(|drive| (drive.cdrom, drive.order.clone()));
    for (index, drive) in (0..).zip(drives) {
        let file = drive.file.map(|href| beside(path, &href)).transpose().with_context(name)?;
        let source = file
            .map(|path| Ok::<_, anyhow::Error>(Source::File(Disk { format: guess(&path)?, path })));
        let source = source.transpose().with_context(name)?;
        let vdev = Vdev::xvd(index);
        disks.push(PlannedDisk { vdev, read_only: drive.cdrom, cdrom: drive.cdrom, source });
    }
    let guest = Guest {
        name: guest_name,
        uuid: None,
        online: None,
        memory_mib: machine.memory_mib.context("the description gives the machine no memory")?,
        cpus: u32::try_from(machine.cpus.unwrap_or(1)).with_context(name)?,
        nics,
    };
    Ok(Plan { guest, boot: Boot::Disk { entry: None, append, initrd: None }, disks, left_out })
}

/// Where there is a manifest, what it says of the files is so.
fn check_manifest(description: &Path) -> Result<()> {
    let path = description.with_extension("mf");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let parts = || {
            let (kind, rest) = line.split_once('(')?;
            let (file, sum) = rest.split_once(')')?;
            Some((kind.trim(), file, sum.trim_start().strip_prefix('=')?.trim()))
        };
        let (kind, file, sum) =
            parts().with_context(|| format!("{}: a line that makes no sense", path.display()))?;
        let file = beside(description, file)?;
        let found = match kind {
            "SHA1" => digest::<Sha1>(&file)?,
            "SHA256" => digest::<Sha256>(&file)?,
            _ => bail!("{}: a checksum of kind {kind}, which is not known here", path.display()),
        };
        ensure!(
            found.eq_ignore_ascii_case(sum),
            "{}: its checksum is not that of {}",
            file.display(),
            path.display()
        );
    }
    Ok(())
}

fn digest<D: Digest>(path: &Path) -> Result<String> {
    let name = || path.display().to_string();
    let mut file = File::open(path).with_context(name)?;
    let bar = bar(file.metadata()?.len(), "checking the manifest")?;
    let (mut digest, mut data) = (D::new(), vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut data).with_context(name)?;
        if count == 0 {
            break;
        }
        digest.update(data.get(..count).unwrap_or_default());
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[path = "ovf_tests.rs"]
mod tests;
