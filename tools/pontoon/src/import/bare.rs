//! Disks without any description: whole ones, one partition's file system, volumes of LVM's.

use super::host::volumes;
use crate::guest::{Guest, Mac, Nic};
use crate::image::bytes::{Image, ReadAt};
use crate::image::format::{Content, content};
use crate::image::partition::partitions;
use crate::pack::disk::Source;
use crate::pack::options::guess;
use crate::pack::plan::{Boot, Plan, PlannedDisk};
use crate::qemu_img::{Disk, Format};
use anyhow::{Context, Result, ensure};
use pv_frontends::vbd::Vdev;
use std::path::Path;

/// Memory of a guest nobody describes.
const DEFAULT_MIB: u64 = 1024;

/// What the options say of a disk.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What the guest sees it as.
    pub device: Option<String>,
    /// Its volumes of LVM's that are the guest's disks, as `vg0/root=xvda1`.
    pub volumes: Vec<String>,
    /// The format of its file.
    pub format: Option<Format>,
    /// Addresses of network cards.
    pub nets: Vec<String>,
}

/// The plan for a guest with the disk at `path`.
///
/// # Errors
/// What is wrong with it, or with the options.
pub fn plan(path: &Path, wanted: &Wanted) -> Result<Plan> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let mut guest = Guest {
        name: name.chars().map(plain).collect(),
        uuid: None,
        online: None,
        memory_mib: DEFAULT_MIB,
        cpus: 1,
        nics: Vec::new(),
    };
    for (number, mac) in (0..).zip(&wanted.nets) {
        let mac = Mac::parse(mac).with_context(|| format!("--net {mac}"))?;
        guest.nics.push(Nic { number, mac, mtu: None, network: None });
    }
    let mut left_out = Vec::new();
    if guest.nics.is_empty() {
        left_out.push(
            "network cards: a disk does not tell its guest's addresses; --net gives one".into(),
        );
    }
    let disks = if wanted.volumes.is_empty() {
        vec![whole(path, wanted)?]
    } else {
        ensure!(wanted.device.is_none(), "--device goes without --lv, which has names of its own");
        picked(path, &wanted.volumes)?
    };
    let boot = Boot::Disk { entry: None, append: None, initrd: None };
    Ok(Plan { guest, boot, disks, left_out })
}

fn whole(path: &Path, wanted: &Wanted) -> Result<PlannedDisk> {
    let format = wanted.format.map_or_else(|| guess(path), Ok)?;
    let device = match &wanted.device {
        Some(device) => device.clone(),
        None if format == Format::Raw && is_partition(path)? => "xvda1".into(),
        None => "xvda".into(),
    };
    let vdev = Vdev::parse(&device);
    let vdev =
        vdev.with_context(|| format!("--device {device}: no virtual device: xvda, sda1, …"))?;
    let source = Some(Source::File(Disk { path: path.to_owned(), format }));
    Ok(PlannedDisk { vdev, read_only: false, cdrom: false, source })
}

/// Whether a raw image is one file system, and no disk: Xen's hosts have those as `xvda1`.
fn is_partition(path: &Path) -> Result<bool> {
    let image = Image::open(path).with_context(|| path.display().to_string())?;
    let held = content(&image);
    let has_table = held != Some(Content::Fat) && partitions(&image, &|_| true).is_some();
    // A volume group may well take a whole disk.
    Ok(held.is_some_and(|held| held != Content::LVM) && (!has_table || image.is_empty()))
}

fn picked(path: &Path, wanted: &[String]) -> Result<Vec<PlannedDisk>> {
    let all = volumes(path)?;
    let mut disks: Vec<PlannedDisk> = Vec::new();
    for text in wanted {
        let at = || format!("--lv {text}");
        let (name, device) =
            text.split_once('=').context("VG/LV=NAME was expected").with_context(at)?;
        let names = || all.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(", ");
        let volume = all.iter().find(|volume| volume.name == name);
        let volume = volume
            .with_context(|| format!("there is no such volume, but {}", names()))
            .with_context(at)?;
        let vdev = Vdev::parse(device)
            .with_context(|| format!("\"{device}\" is no virtual device"))
            .with_context(at)?;
        ensure!(disks.iter().all(|disk| disk.vdev != vdev), "{}: {device} is given twice", at());
        let source = Some(volume.source().with_context(at)?);
        disks.push(PlannedDisk { vdev, read_only: false, cdrom: false, source });
    }
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::lvm::tests::{metadata, volume};
    use std::path::PathBuf;

    fn file(dir: &tempfile::TempDir, name: &str, data: &[u8]) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, data).unwrap();
        path
    }

    fn devices(plan: &Plan) -> Vec<String> {
        plan.disks.iter().map(|disk| disk.vdev.name().to_string()).collect()
    }

    #[test]
    fn disks_and_partitions_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut ext = vec![0; 4096];
        ext[1080..1082].copy_from_slice(&[0x53, 0xef]);
        let part = file(&dir, "my part.img", &ext);
        let found = plan(&part, &Wanted::default()).unwrap();
        assert_eq!(
            (devices(&found), found.guest.name.as_str()),
            (vec!["xvda1".to_owned()], "my-part")
        );
        let mut disk = vec![0; 4096];
        disk[450] = 0x83;
        disk[454] = 1;
        disk[458] = 1;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let disk = file(&dir, "disk.img", &disk);
        assert_eq!(devices(&plan(&disk, &Wanted::default()).unwrap()), ["xvda"]);
        let wanted = Wanted {
            device: Some("sda".into()),
            nets: vec!["00:16:3e:00:00:01".into()],
            ..Wanted::default()
        };
        let found = plan(&disk, &wanted).unwrap();
        assert_eq!(
            (devices(&found), found.guest.nics.len(), found.left_out.len()),
            (vec!["sda".to_owned()], 1, 0)
        );
        assert!(plan(&disk, &Wanted { device: Some("vda".into()), ..Wanted::default() }).is_err());
    }

    #[test]
    fn volumes_are_picked() {
        let dir = tempfile::tempdir().unwrap();
        let text = metadata(&[("root", "striped", &[(1, 1), (1, 0)]), ("thin", "thin", &[(1, 0)])]);
        let image = file(&dir, "pv.img", &volume(&text, &[7; 8192]));
        let pick = |lv: &[&str]| {
            let volumes = lv.iter().map(|lv| (*lv).to_owned()).collect();
            plan(&image, &Wanted { volumes, ..Wanted::default() })
        };
        let found = pick(&["vg0/root=xvda2"]).unwrap();
        assert_eq!(devices(&found), ["xvda2"]);
        assert_eq!(found.disks[0].source.as_ref().unwrap().size().unwrap(), 8192);
        for (lv, said) in [
            (&["vg0/none=xvda"][..], "there is no such volume, but vg0/root, vg0/thin"),
            (&["vg0/thin=xvda"], "type thin"),
            (&["vg0/root"], "VG/LV=NAME"),
            (&["vg0/root=vda"], "no virtual device"),
            (&["vg0/root=xvda", "vg0/root=xvda"], "twice"),
        ] {
            let error = format!("{:#}", pick(lv).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(devices(&plan(&image, &Wanted::default()).unwrap()), ["xvda"]);
    }
}
