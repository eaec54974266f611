//! A disk: its volumes, and files named as boot loaders name them.

use super::bytes::{ReadAt, Window};
use super::format::{Content, container, content, fixed_vhd};
use super::fs::{self, FileSystem, Kind};
use super::lvm::{Group, Logical, Pieces};
use super::partition::{Partition, Table, partitions};
use anyhow::{Result, anyhow, bail};
use std::rc::Rc;

/// Links that are followed before they are taken for a loop, as Linux does.
const MAX_LINKS: u32 = 40;

/// A partition, the whole disk if it has none, or a logical volume on either.
pub struct Volume {
    /// Its number, or that of the partition it is on; `None` for the whole disk.
    pub number: Option<u32>,
    /// The logical volume, as `vg0/root`.
    pub logical: Option<String>,
    /// Its name in GRUB's way: `hd0,gpt2`, `hd0,msdos1`, `hd0`, `lvm/vg0-root`.
    pub device: String,
    active: bool,
    fs: Result<Box<dyn FileSystem>, String>,
}

/// A disk, open for reading.
pub struct Disk {
    volumes: Vec<Volume>,
}

/// A file: the volume's place among [`Disk::volumes`], and its path there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The volume.
    pub volume: usize,
    /// The path, links resolved.
    pub path: String,
}

impl Disk {
    /// Finds the volumes in `image`, the disk's bytes or a VHD of fixed size. An error if
    /// it is something else, or nothing in it can be read.
    pub fn open(image: Rc<dyn ReadAt>) -> Result<Self> {
        if let Some(name) = container(&*image) {
            bail!(
                "its format is {name}; the kernel is found in raw images, qcow2 images and fixed VHDs only"
            );
        }
        let image: Rc<dyn ReadAt> = match fixed_vhd(&*image) {
            Some(size) => Rc::new(Window::new(image, 0, size)),
            None => image,
        };
        let window = |p: &Partition| Window::new(Rc::clone(&image), p.start_bytes, p.len_bytes);
        // A FAT file system's boot code could look like a partition table.
        let table = match content(&*image) {
            Some(Content::Fat) => None,
            _ => partitions(&*image, &|p| content(&window(p)).is_some()),
        };
        let volumes = match table {
            None => volumes(None, "hd0".into(), false, Rc::clone(&image)),
            Some((kind, partitions)) => {
                let name = match kind {
                    Table::Mbr => "msdos",
                    Table::Gpt => "gpt",
                };
                let on = |p: &Partition| {
                    let device = format!("hd0,{name}{}", p.number);
                    volumes(Some(p.number), device, p.active, Rc::new(window(p)))
                };
                partitions.iter().flat_map(on).collect()
            }
        };
        let disk = Self { volumes };
        if disk.volumes.iter().all(|v| v.fs.is_err()) {
            bail!("no file system that can be read: {}", disk.unreadable());
        }
        Ok(disk)
    }

    /// Its volumes, by number.
    #[must_use]
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// The volumes that cannot be read, and what they hold.
    #[must_use]
    pub fn unreadable(&self) -> String {
        if self.volumes.is_empty() {
            return "its partition table is empty".into();
        }
        let all = self.volumes.iter().filter_map(|v| {
            let why = v.fs.as_ref().err()?;
            Some(match (&v.logical, v.number) {
                (Some(logical), _) => format!("{logical} holds {why}"),
                (None, Some(number)) => format!("partition {number} holds {why}"),
                (None, None) => format!("it holds {why}"),
            })
        });
        all.collect::<Vec<_>>().join("; ")
    }

    /// Volumes that can be read in the order a boot loader is looked for: the one
    /// marked active first.
    #[must_use]
    pub fn in_boot_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> =
            (0..self.volumes.len()).filter(|&v| self.fs(v).is_some()).collect();
        order.sort_by_key(|&v| !self.volumes.get(v).is_some_and(|v| v.active));
        order
    }

    fn fs(&self, volume: usize) -> Option<&dyn FileSystem> {
        self.volumes.get(volume)?.fs.as_deref().ok()
    }

    /// Follows `path` on `volume`, links and all, as if the volume were the root
    /// file system. If the path leads below a /boot that is empty there, because
    /// it is a partition of its own, the file is looked for on the others.
    pub fn locate(&self, volume: usize, path: &str) -> Result<Option<Place>> {
        match self.walk(volume, path)? {
            Walked::Found(path) => Ok(Some(Place { volume, path })),
            Walked::Missing(full) => {
                let Some(below) = full.strip_prefix("/boot/") else { return Ok(None) };
                for other in self.in_boot_order().into_iter().filter(|&v| v != volume) {
                    if let Walked::Found(path) = self.walk(other, below)? {
                        return Ok(Some(Place { volume: other, path }));
                    }
                }
                Ok(None)
            }
        }
    }

    fn walk(&self, volume: usize, path: &str) -> Result<Walked> {
        let fs = self.fs(volume).ok_or_else(|| anyhow!("no such volume"))?;
        let mut rest: Vec<String> = components(path);
        let mut at = String::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                at.truncate(at.rfind('/').unwrap_or(0));
                continue;
            }
            let here = format!("{at}/{name}");
            match fs.kind(&here)? {
                Some(Kind::Link) => {
                    links += 1;
                    if links > MAX_LINKS {
                        bail!("{path}: too many links");
                    }
                    let target = fs.link(&here)?;
                    if target.starts_with('/') {
                        at.clear();
                    }
                    rest.extend(components(&target));
                }
                Some(_) => at = here,
                None => {
                    rest.push(here);
                    rest.reverse();
                    return Ok(Walked::Missing(rest.join("/")));
                }
            }
        }
        Ok(Walked::Found(if at.is_empty() { "/".into() } else { at }))
    }

    /// What is at `place`.
    pub fn kind(&self, place: &Place) -> Result<Option<Kind>> {
        self.fs(place.volume).map_or(Ok(None), |fs| fs.kind(&place.path))
    }

    /// The file at `place`, of at most `limit` bytes.
    pub fn read(&self, place: &Place, limit: u64) -> Result<Vec<u8>> {
        self.fs(place.volume).ok_or_else(|| anyhow!("no such volume"))?.read(&place.path, limit)
    }

    /// Names in the directory `path` of `volume`, sorted; none if there is no such
    /// directory.
    #[must_use]
    pub fn list(&self, volume: usize, path: &str) -> Vec<String> {
        let found = self.locate(volume, path).ok().flatten();
        let names = found.and_then(|p| self.fs(p.volume)?.list(&p.path).ok());
        let mut names = names.unwrap_or_default();
        names.sort();
        names
    }

    /// The volume whose UUID is `uuid`.
    #[must_use]
    pub fn by_uuid(&self, uuid: &str) -> Option<usize> {
        self.position(|fs| fs.uuid().eq_ignore_ascii_case(uuid))
    }

    /// The volume whose label is `label`.
    #[must_use]
    pub fn by_label(&self, label: &str) -> Option<usize> {
        self.position(|fs| !label.is_empty() && fs.label() == label)
    }

    /// The partition `number`, or the whole disk.
    #[must_use]
    pub fn by_number(&self, number: Option<u32>) -> Option<usize> {
        self.volumes.iter().position(|v| v.number == number && v.logical.is_none())
    }

    fn position(&self, is: impl Fn(&dyn FileSystem) -> bool) -> Option<usize> {
        (0..self.volumes.len()).find(|&v| self.fs(v).is_some_and(&is))
    }

    /// The volume as messages name it.
    #[must_use]
    pub fn name(&self, volume: usize) -> String {
        match self.volumes.get(volume).map(|v| (&v.logical, v.number)) {
            Some((Some(logical), _)) => format!("the volume {logical}"),
            Some((None, Some(number))) => format!("partition {number}"),
            _ => "the disk".into(),
        }
    }
}

/// A path's components, last one first.
fn components(path: &str) -> Vec<String> {
    let real = |c: &&str| !c.is_empty() && *c != ".";
    path.split('/').filter(real).rev().map(str::to_owned).collect()
}

enum Walked {
    Found(String),
    /// The path as far as links could be resolved.
    Missing(String),
}

/// What `part` is: one volume, or the logical ones on it.
fn volumes(number: Option<u32>, device: String, active: bool, part: Rc<dyn ReadAt>) -> Vec<Volume> {
    let whole = |fs| vec![Volume { number, logical: None, device: device.clone(), active, fs }];
    if content(&*part) != Some(Content::LVM) {
        return whole(fs::open(part).map_err(|e| format!("{e:#}")));
    }
    let group = match Group::read(&*part) {
        Ok(group) if group.volumes.is_empty() => {
            return whole(Err(format!("the LVM group {}, which has no volumes", group.name)));
        }
        Ok(group) => group,
        Err(error) => return whole(Err(format!("LVM, which cannot be read: {error:#}"))),
    };
    let logical = |Logical { name, pieces }: Logical| {
        let open = |pieces| {
            let part: Rc<dyn ReadAt> = Rc::new(Pieces::new(Rc::clone(&part), pieces));
            fs::open(part).map_err(|e| format!("{e:#}"))
        };
        let fs = pieces.map_err(|why| format!("nothing that can be read: {why}")).and_then(open);
        let device = format!("lvm/{}-{}", escaped(&group.name), escaped(&name));
        Volume { number, logical: Some(format!("{}/{name}", group.name)), device, active, fs }
    };
    group.volumes.iter().cloned().map(logical).collect()
}

/// A part of a device mapper's name, in which a single hyphen divides.
fn escaped(name: &str) -> String {
    name.replace('-', "--")
}
