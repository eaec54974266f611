//! `--disk FILE[,word]…`.

use crate::storvsp::fault::parse_scsi;
use anyhow::{Context, Result, bail};
use hv_abi::Guid;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

/// Controllers a machine may have.
pub const CONTROLLERS_MAX: u32 = 8;
/// Units of a controller.
pub const LUNS_MAX: u8 = 64;

/// IDE controllers, and devices of each.
const IDE_MAX: u8 = 2;

/// Where a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// An IDE controller, and the device on it.
    Ide(u8, u8),
    /// A SCSI controller, and the LUN on it.
    Scsi(u32, u8),
}

impl From<(u32, u8)> for Place {
    fn from((controller, lun): (u32, u8)) -> Self {
        Self::Scsi(controller, lun)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ide(controller, device) => write!(f, "ide={controller}:{device}"),
            Self::Scsi(controller, lun) => write!(f, "scsi={controller}:{lun}"),
        }
    }
}

impl Place {
    /// Reads `B:D`.
    fn parse_ide(text: &str) -> Result<Self> {
        let place = text.split_once(':').and_then(|(controller, device)| {
            Some((controller.parse().ok()?, device.parse().ok()?))
        });
        match place {
            Some((controller, device)) if controller < IDE_MAX && device < IDE_MAX => {
                Ok(Self::Ide(controller, device))
            }
            _ => bail!("ide={text}: expected ide=B:D, each 0 or 1"),
        }
    }
}

/// Whether to go around the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// Where the file system can.
    Auto,
    /// Always, or not at all.
    On,
    /// Never.
    Off,
}

/// How a file holds the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Raw, unless it looks like something else, which is refused.
    Guess,
    /// Raw, whatever it looks like.
    Raw,
    /// A VHD of fixed size.
    Vhd,
    /// qcow2, version 2 or 3.
    Qcow2,
}

/// A disk of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// File or block device.
    pub file: PathBuf,
    /// The guest must not write.
    pub read_only: bool,
    /// Logical sector size.
    pub sector_bytes: u32,
    /// `None`: the next free LUN.
    pub place: Option<Place>,
    /// A DVD.
    pub dvd: bool,
    /// Page cache.
    pub direct: Direct,
    /// What is not flushed is lost with the program: [`crate::storvsp::cache`].
    pub volatile: bool,
    /// Format.
    pub format: Format,
    /// Files the image names, such as its backing file, may be opened.
    pub backing: bool,
    /// It is plugged in later, by `disk-attach`.
    pub detached: bool,
    /// Transfers a second; `None`: as many as can be.
    pub iops: Option<NonZeroU32>,
    /// Identity; `None`: made from file and place.
    pub id: Option<Guid>,
}

impl FromStr for DiskOptions {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split(',');
        let file = words.next().unwrap_or_default();
        if file.is_empty() {
            bail!("expected FILE[,ro][,sector=512|4096][,scsi=C:L|,ide=B:D][,dvd][,direct=on|off]");
        }
        let mut options = Self {
            file: file.into(),
            read_only: false,
            sector_bytes: 0,
            place: None,
            dvd: false,
            direct: Direct::Auto,
            volatile: false,
            format: Format::Guess,
            backing: false,
            detached: false,
            iops: None,
            id: None,
        };
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("ro", "") => options.read_only = true,
                ("dvd", "") => options.dvd = true,
                ("detached", "") => options.detached = true,
                ("sector", "512") => options.sector_bytes = 512,
                ("sector", "4096") => options.sector_bytes = 4096,
                ("sector", value) => bail!("sector={value}: expected 512 or 4096"),
                ("scsi" | "ide", _) if options.place.is_some() => bail!("{word:?}: a second place"),
                ("scsi", value) => options.place = Some(parse_scsi(value)?.into()),
                ("ide", value) => options.place = Some(Place::parse_ide(value)?),
                ("direct", "on") => options.direct = Direct::On,
                ("direct", "off") => options.direct = Direct::Off,
                ("cache", "volatile") => options.volatile = true,
                ("cache", value) => bail!("cache={value}: expected volatile"),
                ("format", "raw") => options.format = Format::Raw,
                ("format", "vhd") => options.format = Format::Vhd,
                ("format", "qcow2") => options.format = Format::Qcow2,
                ("format", value) => bail!("format={value}: expected raw, qcow2 or vhd"),
                ("backing", "on") => options.backing = true,
                ("backing", value) => bail!("backing={value}: expected on"),
                ("iops", value) => {
                    let iops = value.parse().with_context(|| format!("iops={value}: a number"))?;
                    options.iops = Some(iops);
                }
                ("id", value) => {
                    options.id = Some(Guid::parse(value).context("id= wants a GUID")?);
                }
                _ => bail!(
                    "{word:?}: expected ro, sector=, scsi=C:L, ide=B:D, dvd, direct=on|off, cache=volatile, format=raw|qcow2|vhd, backing=on, iops=N, detached or id=GUID"
                ),
            }
        }
        if options.volatile && (options.read_only || options.dvd || options.direct == Direct::On) {
            bail!("cache=volatile goes with neither ro, dvd nor direct=on");
        }
        if options.backing && options.format != Format::Qcow2 {
            bail!("backing=on goes with format=qcow2 only");
        }
        match (options.dvd, options.sector_bytes) {
            (true, 0) => (options.sector_bytes, options.read_only) = (2048, true),
            (true, _) => bail!("a DVD has sectors of 2048 bytes: leave sector= out"),
            (false, 0) => options.sector_bytes = 512,
            _ => {}
        }
        if matches!(options.place, Some(Place::Ide(..))) && (options.dvd || options.detached) {
            bail!(
                "ide= goes with neither dvd nor detached: disks alone are on VMBus, and they stay"
            );
        }
        if let Some(Place::Scsi(controller, lun)) = options.place
            && (controller >= CONTROLLERS_MAX || lun >= LUNS_MAX)
        {
            bail!(
                "scsi={controller}:{lun}: there are controllers 0 to {} and LUNs 0 to {}",
                CONTROLLERS_MAX - 1,
                LUNS_MAX - 1
            );
        }
        Ok(options)
    }
}

/// Gives every disk a place: the one it names, else the next free LUN of
/// controller 0.
///
/// # Errors
/// Two disks at one place, or no place left.
pub fn place(disks: &[DiskOptions]) -> Result<Vec<Place>> {
    let mut taken = BTreeSet::new();
    for place in disks.iter().filter_map(|disk| disk.place) {
        if !taken.insert(place) {
            bail!("two disks at {place}");
        }
    }
    disks
        .iter()
        .map(|disk| match disk.place {
            Some(place) => Ok(place),
            None => {
                let next = (0..LUNS_MAX)
                    .map(|lun| Place::Scsi(0, lun))
                    .find(|place| !taken.contains(place));
                let place = next.with_context(|| {
                    format!("controller 0 is full; place {} with scsi=C:L", disk.file.display())
                })?;
                taken.insert(place);
                Ok(place)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskOptions> {
        text.parse()
    }

    #[test]
    fn words() {
        let o = parse("/a b.img,ro,sector=4096,scsi=1:63,direct=off,format=raw").unwrap();
        assert_eq!(o.file, PathBuf::from("/a b.img"));
        assert_eq!((o.read_only, o.sector_bytes), (true, 4096));
        assert_eq!(o.place, Some(Place::Scsi(1, 63)));
        assert_eq!(parse("x,ide=1:0").unwrap().place, Some(Place::Ide(1, 0)));
        assert_eq!((o.direct, o.format), (Direct::Off, Format::Raw));
        assert!(!o.volatile && parse("x,cache=volatile").unwrap().volatile);
        let o = parse("x,backing=on,format=qcow2").unwrap();
        assert_eq!((o.format, o.backing), (Format::Qcow2, true));
        assert_eq!(parse("x,iops=500").unwrap().iops, NonZeroU32::new(500));
        let o = parse("x.iso,dvd").unwrap();
        assert_eq!((o.read_only, o.sector_bytes, o.dvd), (true, 2048, true));
        let id = "f8615163-df3e-46c5-913f-f2d2f965ed0e";
        assert_eq!(parse(&format!("x,id={id}")).unwrap().id, Guid::parse(id));
    }

    #[test]
    fn refusals_are_one_line() {
        for text in [
            "",
            ",ro",
            "x,rw",
            "x,ro=1",
            "x,sector=520",
            "x,sector=512,dvd",
            "x,scsi=8:0",
            "x,scsi=0:64",
            "x,scsi=0",
            "x,scsi=-1:0",
            "x,ide=0",
            "x,ide=2:0",
            "x,ide=0:2",
            "x,ide=0:0,scsi=0:0",
            "x,ide=1:0,dvd",
            "x,ide=1:0,detached",
            "x,direct=maybe",
            "x,cache=none",
            "x,cache=volatile,ro",
            "x,cache=volatile,direct=on",
            "x,format=vhdx",
            "x,backing=on",
            "x,format=qcow2,backing=off",
            "x,iops=0",
            "x,id=1",
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(!error.contains('\n') && !error.is_empty(), "{text}");
        }
    }

    #[test]
    fn places() {
        let disks: Vec<_> = ["a", "b,scsi=0:1", "c", "d,scsi=2:0", "e,scsi=0:0", "f,ide=0:1"]
            .iter()
            .map(|t| parse(t).unwrap())
            .collect();
        let scsi = [(0, 2), (0, 1), (0, 3), (2, 0), (0, 0)].map(Place::from);
        assert_eq!(place(&disks).unwrap(), [&scsi[..], &[Place::Ide(0, 1)]].concat());
        let twice = [parse("a,scsi=0:1").unwrap(), parse("b,scsi=0:1").unwrap()];
        assert!(place(&twice).is_err());
        let twice = [parse("a,ide=0:1").unwrap(), parse("b,ide=0:1").unwrap()];
        assert!(place(&twice).is_err());
        assert!(place(&vec![parse("a").unwrap(); 65]).is_err());
    }
}
