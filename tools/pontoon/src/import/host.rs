//! Files that stand for those of the old host: its configurations name paths that are another
//! machine's, and volumes that may lie in an image here.

use crate::image::bytes::{Image, ReadAt, Window};
use crate::image::format::{Content, content};
use crate::image::lvm::{Group, Piece};
use crate::image::partition::partitions;
use crate::pack::disk::Source;
use crate::qemu_img::{Disk, Format};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Where paths of the old host lead.
#[derive(Debug, Default)]
pub struct Host {
    map: Vec<(String, PathBuf)>,
    volumes: Vec<Volume>,
    /// Relative paths begin here, too.
    beside: PathBuf,
}

/// A logical volume in an image.
#[derive(Clone, Debug)]
pub struct Volume {
    /// As `vg0/root`.
    pub name: String,
    /// The image.
    pub image: PathBuf,
    /// Its parts, or why they are not all there.
    pub pieces: Result<Vec<Piece>, String>,
}

impl Volume {
    /// As a disk's source.
    ///
    /// # Errors
    /// It is not all there.
    pub fn source(&self) -> Result<Source> {
        let (name, image) = (self.name.clone(), self.image.clone());
        match &self.pieces {
            Ok(pieces) => Ok(Source::Pieces { image, name, pieces: pieces.clone() }),
            Err(why) => bail!("the volume {name} cannot be read: {why}"),
        }
    }

    /// Whether `path` is what a host calls it: `/dev/vg/lv`, `/dev/mapper/vg-lv`, `vg/lv`.
    fn is(&self, path: &str) -> bool {
        let device = path.strip_prefix("/dev/").unwrap_or(path);
        let mapped = || {
            let (group, volume) = self.name.split_once('/')?;
            Some(format!("mapper/{}-{}", group.replace('-', "--"), volume.replace('-', "--")))
        };
        device == self.name || mapped().as_deref() == Some(device)
    }
}

/// The logical volumes on `image`, a physical volume or a disk with one in a partition.
///
/// # Errors
/// There are none.
pub fn volumes(image: &Path) -> Result<Vec<Volume>> {
    let name = || image.display().to_string();
    let whole: Rc<dyn ReadAt> = Rc::new(Image::open(image).with_context(name)?);
    let mut places = vec![(0, whole.len())];
    if content(&*whole) != Some(Content::LVM) {
        let window = |start, len| Window::new(Rc::clone(&whole), start, len);
        let table =
            partitions(&*whole, &|p| content(&window(p.start_bytes, p.len_bytes)).is_some());
        let all = table.map(|(_, partitions)| partitions).unwrap_or_default();
        places = all.iter().map(|p| (p.start_bytes, p.len_bytes)).collect();
        places.retain(|&(start, len)| content(&window(start, len)) == Some(Content::LVM));
    }
    ensure!(!places.is_empty(), "{}: there is no physical volume of LVM's in it", name());
    let mut found = Vec::new();
    for (start, len) in places {
        let group = Group::read(&Window::new(Rc::clone(&whole), start, len)).with_context(name)?;
        for volume in group.volumes {
            let moved = |pieces: Vec<Piece>| {
                pieces.iter().map(|p| Piece { start: p.start + start, ..*p }).collect()
            };
            let (name, pieces) =
                (format!("{}/{}", group.name, volume.name), volume.pieces.map(moved));
            found.push(Volume { name, image: image.to_owned(), pieces });
        }
    }
    Ok(found)
}

impl Host {
    /// From options `PATH=FILE`, and images with volumes; relative paths are looked for beside
    /// `config`.
    ///
    /// # Errors
    /// An option that is none, an image that has no volumes.
    pub fn new(map: &[String], lvm: &[PathBuf], config: &Path) -> Result<Self> {
        let mut host = Self::default();
        for text in map {
            let (path, file) = text
                .split_once('=')
                .with_context(|| format!("--map {text}: PATH=FILE was expected"))?;
            std::fs::metadata(file).with_context(|| format!("--map {text}"))?;
            host.map.push((path.to_owned(), file.into()));
        }
        for image in lvm {
            host.volumes.extend(volumes(image)?);
        }
        host.beside = config.parent().map(Path::to_owned).unwrap_or_default();
        Ok(host)
    }

    /// The file that `path` of the old host is here.
    fn file(&self, path: &str) -> Option<PathBuf> {
        if let Some((_, file)) = self.map.iter().find(|(from, _)| from == path) {
            return Some(file.clone());
        }
        // As xl has it, a relative path is one of a device.
        let device = Path::new("/dev").join(path);
        [device, self.beside.join(path)].into_iter().find(|path| path.exists())
    }

    /// The file that a configuration has as `path` for its `key`.
    ///
    /// # Errors
    /// There is none.
    pub fn kernel_file(&self, key: &str, path: &str) -> Result<PathBuf> {
        let found = self.file(path);
        let found = found.with_context(|| {
            format!("{key} = {path}, which is not here: --map {path}=FILE says what stands for it")
        })?;
        ensure!(found.is_file(), "{key} = {path}, which is no file");
        Ok(found)
    }

    /// The disk that a configuration has as `path`.
    ///
    /// # Errors
    /// There is none.
    pub fn disk(&self, path: &str, format: Format) -> Result<Source> {
        // An image of the volumes goes before what this machine happens to have by that name.
        let mapped = self.map.iter().any(|(from, _)| from == path);
        if !mapped && let Some(volume) = self.volumes.iter().find(|volume| volume.is(path)) {
            return volume.source();
        }
        let found = self.file(path).with_context(|| {
            format!("{path} is not here: --map {path}=FILE says what stands for it, --lvm IMAGE where its volumes are")
        })?;
        Ok(Source::File(Disk { path: found, format }))
    }

    /// Directories cannot be disks; and what is no whole disk is said early.
    ///
    /// # Errors
    /// It is one.
    pub fn check(source: &Source) -> Result<()> {
        if let Source::File(disk) = source {
            ensure!(!disk.path.is_dir(), "{} is a directory", disk.path.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_have_several_names() {
        let volume =
            Volume { name: "vg-0/ro-ot".into(), image: PathBuf::new(), pieces: Ok(Vec::new()) };
        for name in
            ["/dev/vg-0/ro-ot", "vg-0/ro-ot", "/dev/mapper/vg--0-ro--ot", "mapper/vg--0-ro--ot"]
        {
            assert!(volume.is(name), "{name}");
        }
        assert!(!volume.is("/dev/mapper/vg-0-ro-ot") && !volume.is("ro-ot"));
    }

    #[test]
    fn paths_lead_to_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.img");
        std::fs::write(&file, [0; 512]).unwrap();
        let map = format!("/dev/vg/web={}", file.display());
        let host = Host::new(&[map], &[], &dir.path().join("web.cfg")).unwrap();
        let path = |name| match host.disk(name, Format::Raw) {
            Ok(Source::File(disk)) => disk.path,
            other => panic!("{other:?}"),
        };
        assert_eq!(path("/dev/vg/web"), file);
        assert_eq!(path("disk.img"), file);
        let error = host.disk("/dev/vg/none", Format::Raw).unwrap_err().to_string();
        assert!(error.contains("--map /dev/vg/none=FILE"), "{error}");
        assert!(Host::new(&["x".into()], &[], &file).is_err());
        assert!(Host::new(&["x=/none".into()], &[], &file).is_err());
        assert!(volumes(&file).unwrap_err().to_string().contains("no physical volume"));
    }
}
