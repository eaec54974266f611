//! Looking for a boot loader's configuration on a disk.

use super::disk::{Disk, Place};
use super::fs::Kind;
use super::menu::{Action, Entry, Menu, Named, Recipe, World};
use super::{bls, grub, legacy, syslinux, version};
use anyhow::{Context, Result, bail};

/// Configuration files are not longer than this.
const MAX_TEXT: u64 = 4 << 20;

/// Languages of configurations.
#[derive(Clone, Copy)]
enum Language {
    Grub2,
    Syslinux,
    Legacy,
}

/// Configuration files in the order they are looked for, as pygrub does; `/boot`
/// may be a partition of its own.
const FILES: [(Language, &str); 17] = [
    (Language::Grub2, "/boot/grub/grub.cfg"),
    (Language::Grub2, "/grub/grub.cfg"),
    (Language::Grub2, "/boot/grub2/grub.cfg"),
    (Language::Grub2, "/grub2/grub.cfg"),
    (Language::Syslinux, "/boot/extlinux/extlinux.conf"),
    (Language::Syslinux, "/extlinux/extlinux.conf"),
    (Language::Syslinux, "/boot/extlinux.conf"),
    (Language::Syslinux, "/extlinux.conf"),
    (Language::Syslinux, "/boot/isolinux/isolinux.cfg"),
    (Language::Syslinux, "/boot/syslinux/syslinux.cfg"),
    (Language::Syslinux, "/syslinux/syslinux.cfg"),
    (Language::Syslinux, "/boot/syslinux.cfg"),
    (Language::Syslinux, "/syslinux.cfg"),
    (Language::Legacy, "/boot/grub/menu.lst"),
    (Language::Legacy, "/boot/grub/grub.conf"),
    (Language::Legacy, "/grub/menu.lst"),
    (Language::Legacy, "/grub/grub.conf"),
];

/// A menu and where it is from.
pub struct Found {
    /// The menu.
    pub menu: Menu,
    /// The volume its file is on.
    pub volume: usize,
    /// Where it is from, for messages.
    pub source: String,
}

impl World for Disk {
    fn by_uuid(&self, uuid: &str) -> Option<usize> {
        Self::by_uuid(self, uuid)
    }

    fn by_label(&self, label: &str) -> Option<usize> {
        Self::by_label(self, label)
    }

    fn by_file(&self, path: &str) -> Option<usize> {
        self.in_boot_order().into_iter().find(|&v| World::kind(self, v, path).is_some())
    }

    fn by_number(&self, number: Option<u32>) -> Option<usize> {
        Self::by_number(self, number)
    }

    fn device(&self, volume: usize) -> String {
        self.volumes().get(volume).map(|v| v.device.clone()).unwrap_or_default()
    }

    fn kind(&self, volume: usize, path: &str) -> Option<Kind> {
        self.kind(&self.locate(volume, path).ok()??).ok()?
    }

    fn text(&self, volume: usize, path: &str) -> Option<String> {
        let place = self.locate(volume, path).ok()??;
        let bytes = self.read(&place, MAX_TEXT).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn list(&self, volume: usize, path: &str) -> Vec<String> {
        Self::list(self, volume, path)
    }
}

/// The disk's menu: of the first configuration there is on its volumes, else of
/// Boot Loader Specification entries, else of the kernels that lie in /boot.
pub fn menu(disk: &Disk) -> Result<Found> {
    for volume in disk.in_boot_order() {
        for (language, path) in FILES {
            if let Some(found) = configured(disk, volume, language, path)? {
                return Ok(found);
            }
        }
    }
    // On an EFI system partition a script may lie that leads to another.
    for volume in disk.in_boot_order() {
        for vendor in disk.list(volume, "/EFI") {
            let path = format!("/EFI/{vendor}/grub.cfg");
            if let Some(found) = configured(disk, volume, Language::Grub2, &path)? {
                return Ok(found);
            }
        }
    }
    for volume in disk.in_boot_order() {
        let entries = bls::entries(disk, volume, &|_| String::new());
        if !entries.is_empty() {
            let source = format!("loader/entries on {}", disk.name(volume));
            return Ok(Found { menu: Menu { entries, ..Menu::default() }, volume, source });
        }
    }
    bare(disk)
}

fn configured(disk: &Disk, volume: usize, language: Language, path: &str) -> Result<Option<Found>> {
    let Some(place) = disk.locate(volume, path)?.filter(|place| place.volume == volume) else {
        return Ok(None);
    };
    if !matches!(disk.kind(&place)?, Some(Kind::File(_))) {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&disk.read(&place, MAX_TEXT)?).into_owned();
    let source = format!("{path} on {}", disk.name(volume));
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let menu = match language {
        Language::Grub2 => grub::menu(&text, disk, volume, path).with_context(|| source.clone())?,
        Language::Syslinux => syslinux::menu(&text, disk, volume, directory),
        Language::Legacy => legacy::menu(&text, disk, volume, directory),
    };
    // An empty file, or one that leads nowhere, is as good as none.
    Ok((!menu.entries.is_empty()).then_some(Found { menu, volume, source }))
}

/// Kernels without any configuration, newest first.
fn bare(disk: &Disk) -> Result<Found> {
    for volume in disk.in_boot_order() {
        for directory in ["/boot", ""] {
            let entries = kernels(disk, volume, directory);
            if !entries.is_empty() {
                let source = format!(
                    "no boot loader's configuration, but kernels in {}/ on {}",
                    directory,
                    disk.name(volume)
                );
                return Ok(Found { menu: Menu { entries, ..Menu::default() }, volume, source });
            }
        }
    }
    let unreadable = disk.unreadable();
    let but = if unreadable.is_empty() { String::new() } else { format!(" ({unreadable})") };
    bail!("neither a boot loader's configuration nor a kernel in /boot{but}")
}

fn kernels(disk: &Disk, volume: usize, directory: &str) -> Vec<Entry> {
    let names = disk.list(volume, if directory.is_empty() { "/" } else { directory });
    let left_over =
        |v: &str| [".old", ".bak", ".dpkg-old", ".dpkg-tmp"].iter().any(|e| v.ends_with(e));
    let mut versions: Vec<&str> = names
        .iter()
        .filter_map(|n| n.strip_prefix("vmlinuz-"))
        .filter(|v| !left_over(v) && !v.contains("rescue"))
        .collect();
    versions.sort_by(|a, b| version::compare(b, a));
    let root = root_device(disk, volume);
    let entry = |version: &&str| {
        let places = [
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
            format!("initrd-{version}"),
            format!("initramfs-{version}"),
        ];
        let named =
            |name: &str| Named { volume: Some(volume), path: format!("{directory}/{name}") };
        let kernel = format!("vmlinuz-{version}");
        let recipe = Recipe {
            kernel: named(&kernel),
            initrds: places
                .iter()
                .filter(|p| names.contains(p))
                .take(1)
                .map(|p| named(p))
                .collect(),
            cmdline: format!("root={root} ro"),
        };
        Entry { title: kernel, id: String::new(), action: Action::Linux(recipe) }
    };
    versions.iter().map(entry).collect()
}

/// What /etc/fstab has as the root file system; else the partition it is on as
/// the guest's first disk.
fn root_device(disk: &Disk, kernels_on: usize) -> String {
    let volumes = std::iter::once(kernels_on).chain(disk.in_boot_order());
    let mut root = None;
    for volume in volumes {
        let Some(fstab) = World::text(disk, volume, "/etc/fstab") else { continue };
        root = root.or(Some(volume));
        for line in fstab.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let mut fields = line.split_whitespace();
            if let (Some(device), Some("/")) = (fields.next(), fields.next()) {
                return device.to_owned();
            }
        }
    }
    let volume = disk.volumes().get(root.unwrap_or(kernels_on));
    if let Some((logical, device)) = volume.and_then(|v| Some((v.logical.as_ref()?, &v.device))) {
        let name = device.strip_prefix("lvm/").unwrap_or(logical);
        return format!("/dev/mapper/{name}");
    }
    let number = volume.and_then(|v| v.number);
    number.map_or("/dev/xvda".into(), |n| format!("/dev/xvda{n}"))
}

/// The file a recipe names. What is not where the recipe says, because its
/// device is unknown or its UUID has changed, is looked for beside the
/// configuration, then everywhere; with and without /boot.
pub fn file(disk: &Disk, home: usize, named: &Named) -> Result<Place> {
    let mut volumes: Vec<usize> = named.volume.into_iter().chain([home]).collect();
    volumes.extend(disk.in_boot_order());
    let path = format!("/{}", named.path.trim_start_matches('/'));
    let other = match path.strip_prefix("/boot") {
        Some(below) if below.starts_with('/') => below.to_owned(),
        _ => format!("/boot{path}"),
    };
    for path in [&path, &other] {
        for &volume in &volumes {
            if let Some(place) = disk.locate(volume, path)?
                && matches!(disk.kind(&place)?, Some(Kind::File(_)))
            {
                return Ok(place);
            }
        }
    }
    bail!("{} does not exist", named.path)
}
