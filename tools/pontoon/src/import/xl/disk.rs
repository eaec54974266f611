//! Disk specifications (xl-disk-configuration(5), `tools/libs/util/libxlu_disk_l.l`):
//! parameters by name, flags, and up to four by their position, with xm's prefixes.

use crate::qemu_img::Format;
use anyhow::{Context, Result, bail, ensure};
use pv_frontends::vbd::Vdev;

/// A disk as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Path of the host; `None` for a drive without a medium.
    pub target: Option<String>,
    /// How the file holds the disk.
    pub format: Format,
    /// What the guest sees it as.
    pub vdev: Vdev,
    /// Writes are refused.
    pub read_only: bool,
    /// It is a CD-ROM drive.
    pub cdrom: bool,
    /// Parameters that have no meaning outside of Xen's host, as they were given.
    pub left_out: Vec<String>,
}

/// Prefixes of targets that say how a host opened it, which is not asked here.
const WAYS: [&str; 7] = ["file", "phy", "tap", "tap2", "tapdisk", "aio", "ioemu"];
/// Prefixes of targets a script of the host's fetches.
const SCRIPTS: [&str; 4] = ["iscsi", "nbd", "enbd", "drbd"];
/// Parameters and flags for the host's side of the disk, which is Hyper-V's now.
const HOSTS: [&str; 16] = [
    "backend",
    "backendtype",
    "specification",
    "direct-io-safe",
    "discard",
    "no-discard",
    "colo",
    "no-colo",
    "colo-host",
    "colo-port",
    "colo-export",
    "active-disk",
    "hidden-disk",
    "trusted",
    "untrusted",
    "grant_usage",
];

#[derive(Default)]
struct Parts {
    target: Option<String>,
    format: Option<String>,
    vdev: Option<String>,
    access: Option<String>,
    cdrom: bool,
    has_prefix: bool,
    left_out: Vec<String>,
}

impl DiskSpec {
    /// Reads a specification.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = Parts::default();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            if let Some(target) = rest.strip_prefix("target=") {
                parts.set_target(target)?;
                break;
            }
            if let Some((prefix, behind)) = prefix(rest)? {
                parts.prefix(prefix)?;
                rest = behind;
                continue;
            }
            let (word, behind) = rest.split_once(',').unwrap_or((rest, ""));
            parts.word(word)?;
            rest = behind.trim_start();
        }
        parts.finish()
    }
}

/// A prefix such as `phy:` at the head of `text`, and what is behind it.
fn prefix(text: &str) -> Result<Option<(&str, &str)>> {
    let Some((name, behind)) = text.split_once(':') else { return Ok(None) };
    let is_word = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !is_word {
        return Ok(None);
    }
    let known = [&WAYS[..], &SCRIPTS, &["raw", "qcow", "qcow2", "vhd"]].concat().contains(&name);
    if known {
        return Ok(Some((name, behind)));
    }
    // `hdc:cdrom` is a device and its type.
    ensure!(
        behind.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()),
        "\"{name}:\" is no prefix of a disk that is known"
    );
    Ok(None)
}

fn set(place: &mut Option<String>, name: &str, value: &str) -> Result<()> {
    // An empty value is none, and may be said again.
    if place.as_deref().is_some_and(|old| !old.is_empty() && old != value) {
        bail!("{name} is given twice");
    }
    *place = Some(value.to_owned());
    Ok(())
}

impl Parts {
    fn set_target(&mut self, target: &str) -> Result<()> {
        set(&mut self.target, "target", target)
    }

    fn prefix(&mut self, prefix: &str) -> Result<()> {
        self.has_prefix = true;
        if SCRIPTS.contains(&prefix) {
            bail!(
                "{prefix}: fetches the disk by a script of Xen's host: copy it into a file first"
            );
        }
        if WAYS.contains(&prefix) {
            return Ok(());
        }
        set(&mut self.format, "format", prefix)
    }

    /// A parameter by name, a flag, or the next by position.
    fn word(&mut self, word: &str) -> Result<()> {
        if let Some((name, value)) = word.split_once('=') {
            return match name {
                "format" => set(&mut self.format, name, value),
                "vdev" => set(&mut self.vdev, name, value),
                "access" => set(&mut self.access, name, value),
                "devtype" => match value {
                    "cdrom" => {
                        self.cdrom = true;
                        Ok(())
                    }
                    "disk" => {
                        self.cdrom = false;
                        Ok(())
                    }
                    _ => bail!("devtype={value}: cdrom or disk was expected"),
                },
                "script" => bail!(
                    "script={value}: the disk is made by a script of Xen's host: copy it into a file first"
                ),
                _ if HOSTS.contains(&name) => {
                    self.left_out.push(word.to_owned());
                    Ok(())
                }
                _ => bail!("\"{name}=\" is no parameter of a disk that is known"),
            };
        }
        match word {
            "cdrom" => self.cdrom = true,
            flag if HOSTS.contains(&flag) => self.left_out.push(word.to_owned()),
            _ => return self.positional(word),
        }
        Ok(())
    }

    fn positional(&mut self, word: &str) -> Result<()> {
        if self.target.is_none() {
            self.target = Some(word.to_owned());
        } else if !self.has_prefix && self.format.is_none() {
            // `,hdc:cdrom` is a drive without a medium.
            if self.target.as_deref() == Some("") && word.contains(':') {
                self.device_and_type(word)?;
                self.format = Some("empty".into());
            } else {
                self.format = Some(word.to_owned());
            }
        } else if self.vdev.is_none() {
            self.device_and_type(word)?;
        } else if self.access.is_none() {
            self.access = Some(word.to_owned());
        } else {
            bail!("\"{word}\" is one parameter too many");
        }
        Ok(())
    }

    fn device_and_type(&mut self, word: &str) -> Result<()> {
        let (vdev, kind) = word.rsplit_once(':').unwrap_or((word, ""));
        match kind {
            "cdrom" => self.cdrom = true,
            "disk" => self.cdrom = false,
            "" => {}
            _ => bail!("\"{word}\": cdrom or disk was expected behind the colon"),
        }
        set(&mut self.vdev, "vdev", vdev)
    }

    fn finish(self) -> Result<DiskSpec> {
        let vdev = self.vdev.filter(|v| !v.is_empty()).context("the disk has no vdev")?;
        let vdev = vdev.strip_prefix("/dev/").unwrap_or(&vdev).to_owned();
        let name = vdev.clone();
        let vdev = Vdev::parse(&vdev);
        let vdev =
            vdev.with_context(|| format!("\"{name}\" is no virtual device: xvda, sda1, …"))?;
        let target = self.target.filter(|target| !target.is_empty());
        let format = match self.format.as_deref().unwrap_or_default() {
            "" | "raw" => Format::Raw,
            "qcow2" => Format::Qcow2,
            "vhd" => Format::Vhd,
            "empty" if target.is_none() => Format::Raw,
            "qcow" | "qed" => {
                bail!("format={}: convert it to qcow2 first", self.format.unwrap_or_default())
            }
            other => bail!("format={other}: raw, qcow2 or vhd was expected"),
        };
        ensure!(target.is_some() || self.cdrom, "{name} has no target, and is no CD-ROM drive");
        let read_only = match self.access.as_deref().unwrap_or_default() {
            "" | "rw" | "w" | "w!" => self.cdrom,
            "r" | "ro" => true,
            other => bail!("access={other}: rw or ro was expected"),
        };
        Ok(DiskSpec { target, format, vdev, read_only, cdrom: self.cdrom, left_out: self.left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn brief(text: &str) -> String {
        match DiskSpec::parse(text) {
            Err(error) => format!("error: {error}"),
            Ok(disk) => format!(
                "{} {:?} {}{}{}",
                disk.target.as_deref().unwrap_or("-"),
                disk.format,
                disk.vdev.name(),
                if disk.read_only { " ro" } else { "" },
                if disk.cdrom { " cdrom" } else { "" }
            ),
        }
    }

    #[test]
    fn both_syntaxes() {
        for (text, expected) in [
            // xl-disk-configuration(5).
            ("/dev/vg/guest-volume,,hda", "/dev/vg/guest-volume Raw hda"),
            ("/dev/vg/guest-volume,raw,hda,rw", "/dev/vg/guest-volume Raw hda"),
            (
                "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
                "/dev/vg/guest-volume Raw hda",
            ),
            ("raw:/dev/vg/guest-volume,hda,w", "/dev/vg/guest-volume Raw hda"),
            ("/root/image.iso,,hdc,cdrom", "/root/image.iso Raw hdc ro cdrom"),
            ("/root/image.iso,,hdc,,cdrom", "/root/image.iso Raw hdc ro cdrom"),
            ("/root/image.iso,raw,hdc,devtype=cdrom", "/root/image.iso Raw hdc ro cdrom"),
            (
                "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
                "/root/image.iso Raw hdc ro cdrom",
            ),
            ("raw:/root/image.iso,hdc:cdrom,ro", "/root/image.iso Raw hdc ro cdrom"),
            (",hdc:cdrom,r", "- Raw hdc ro cdrom"),
            (",,hdc,cdrom", "- Raw hdc ro cdrom"),
            // xm's.
            ("phy:/dev/vg0/web,xvda1,w", "/dev/vg0/web Raw xvda1"),
            ("phy:vg0/web,xvda,w", "vg0/web Raw xvda"),
            ("file:/srv/a.img,sda1,r", "/srv/a.img Raw sda1 ro"),
            ("tap:aio:/srv/a.img,xvdb,w", "/srv/a.img Raw xvdb"),
            ("tap2:vhd:/srv/a.vhd,xvdb,w", "/srv/a.vhd Vhd xvdb"),
            ("qcow2:/srv/a.qcow2,xvdb,w", "/srv/a.qcow2 Qcow2 xvdb"),
            ("/srv/a,qcow2,xvdaa,discard,backendtype=qdisk", "/srv/a Qcow2 xvdaa"),
            ("vdev=xvda,target=/a,b:c ", "/a,b:c  Raw xvda"),
            ("/a,raw,/dev/xvda", "/a Raw xvda"),
            ("/a,raw,51712", "/a Raw xvda"),
        ] {
            assert_eq!(brief(text), expected, "{text}");
        }
        let disk = DiskSpec::parse("/a,raw,xvda,discard,backendtype=phy").unwrap();
        assert_eq!(disk.left_out, ["discard", "backendtype=phy"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("", "no vdev"),
            ("/a", "no vdev"),
            ("/a,raw,vda", "no virtual device"),
            ("/a,raw,xvda,rw,x", "too many"),
            ("/a,vmdk,xvda", "raw, qcow2 or vhd"),
            ("/a,raw,xvda,rx", "rw or ro"),
            ("/a,raw,xvda,speed=1", "\"speed=\""),
            ("nfs:/a,xvda,w", "\"nfs:\""),
            ("iscsi:/a,xvda,w", "script"),
            ("script=block-nbd,vdev=xvda,target=x", "script"),
            ("vdev=xvda,vdev=xvdb,target=/a", "twice"),
            ("/a,raw,xvda:floppy", "cdrom or disk"),
            ("/a,raw,xvda,devtype=floppy", "cdrom or disk"),
            (",raw,xvda", "no target"),
        ] {
            assert!(
                brief(text).starts_with("error: ") && brief(text).contains(said),
                "{text}: {}",
                brief(text)
            );
        }
    }

    proptest! {
        #[test]
        fn any_specification(text in "(phy:|file:|vhd:|target=|vdev=|access=|cdrom|,|/a|xvda|hdc:|raw| |[a-z]{1,3}|=){0,12}") {
            if let Ok(disk) = DiskSpec::parse(&text) {
                prop_assert!(disk.vdev.number().is_some());
                prop_assert!(disk.cdrom || disk.target.is_some());
            }
        }

        #[test]
        fn any_text(text: String) {
            let _ = DiskSpec::parse(&text);
        }
    }
}
