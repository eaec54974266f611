//! The command line.

use crate::features::HvFeatures;
use crate::memory::{MAX_MEMORY, MIN_MEMORY};
use crate::net::NetOptions;
use crate::net::options::ADAPTERS_MAX;
use crate::storvsp::options::{CONTROLLERS_MAX, place};
use crate::storvsp::{DiskOptions, Fault};
use anyhow::{Result, anyhow, bail};
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Largest number of virtual processors.
pub const MAX_CPUS: u32 = 64;

/// Run one virtual machine that sees Hyper-V's interfaces.
///
/// The exit status is the guest's outcome: 0 power-off, 3 reset, 4 triple fault,
/// 5 crash reported through the crash MSRs; 1 host error, 2 usage, 6 timeout.
#[derive(Clone, Debug, Parser)]
#[command(name = "hvhost", version, max_term_width = 100)]
pub struct Options {
    /// Kernel: bzImage or ELF.
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk or bundle.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Further modules behind the initrd, PVH door only.
    #[arg(long, value_name = "FILE")]
    pub module: Vec<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Guest memory, 64M to 64G.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub memory: MemorySize,
    /// Virtual processors, 1 to 64.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// A processor that is there and never runs, whatever the guest does to start it.
    #[arg(long, value_name = "INDEX")]
    pub dead_cpu: Vec<u32>,
    /// A processor whose TSC is ahead of the others' by so many seconds; KVM takes less than two for
    /// an attempt to set them all.
    #[arg(long, value_name = "INDEX=SECONDS", value_parser = tsc_ahead)]
    pub tsc_ahead: Vec<(u32, u16)>,
    /// A processor to which CPUID tells another APIC id than it has, as real hosts do with several
    /// NUMA nodes.
    #[arg(long, value_name = "INDEX=ID", value_parser = cpuid_id)]
    pub cpuid_id: Vec<(u32, u32)>,
    /// How the kernel is entered.
    #[arg(long, value_enum, default_value = "auto")]
    pub door: Door,
    /// COM1: stdio, null, file:PATH or socket:PATH (a listening UNIX socket).
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub com1: SerialTarget,
    /// COM2, likewise.
    #[arg(long, value_name = "WHERE", default_value = "null")]
    pub com2: SerialTarget,
    /// Host features to withhold, comma-separated, or `all`.
    #[arg(long, value_name = "LIST", default_value = "")]
    pub hv_without: String,
    /// Offer no Hyper-V interface at all.
    #[arg(long, conflicts_with = "hv_without")]
    pub no_hyperv: bool,
    /// Take the entry state and the features OpenVMM gives on KVM.
    #[arg(long)]
    pub openvmm_like: bool,
    /// A disk: `FILE[,ro][,sector=4096][,scsi=C:L|,ide=B:D][,dvd][,direct=on|off][,format=raw|qcow2|vhd]`.
    #[arg(long, value_name = "FILE[,…]")]
    pub disk: Vec<DiskOptions>,
    /// A fault: `[scsi=C:L,][op=OP,][sectors=N-M,][times=N,]` and error, delay=MS or short.
    #[arg(long, value_name = "SPEC")]
    pub disk_fault: Vec<Fault>,
    /// SCSI controllers, 0 to 8 [default: as many as the disks need].
    #[arg(long, value_name = "N")]
    pub scsi_controllers: Option<u32>,
    /// Sub-channels each controller allows [default: processors less one].
    #[arg(long, value_name = "N")]
    pub scsi_sub_channels: Option<u16>,
    /// A network adapter: `user[,hostfwd=tcp:2222-:22]`, `tap,ifname=NAME` or
    /// `socket,path=PATH`, then `[,mac=…][,mtu=9000][,queues=N][,detached]`.
    #[arg(long, value_name = "BACKEND[,…]")]
    pub net: Vec<NetOptions>,
    /// Offer a keyboard; the commands `type` and `key` type on it.
    #[arg(long)]
    pub keyboard: bool,
    /// Have a screen; the command `screen` says what is on it.
    #[arg(long)]
    pub screen: bool,
    /// Have signals come through the monitor page.
    #[arg(long)]
    pub vmbus_monitor: bool,
    /// Take commands on this UNIX socket: see docs/hvhost.md.
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// When TEXT first appears on COM1 or the screen, do what --control takes.
    #[arg(long, value_name = "TEXT=COMMAND")]
    pub at: Vec<At>,
    /// Write counters as JSON at the end, and to FILE.N at each SIGUSR1.
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// Note in the counters when TEXT first appears on COM1 or the screen.
    #[arg(long, value_name = "TEXT")]
    pub marker: Vec<String>,
    /// Keep the thread of each virtual processor on one processor, in turn.
    #[arg(long)]
    pub pin: bool,
    /// Keep guest memory where it is: this machine neither moves its pages nor takes them away.
    #[arg(long)]
    pub lock_memory: bool,
    /// End with status 6 after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Count VM exits, hypercalls, MSRs and vectors in the kernel (tracefs, root).
    #[arg(long, requires = "stats")]
    pub trace: bool,
}

impl Options {
    /// Checks what the parser cannot.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            bail!("--cpus {} is not in 1 to {MAX_CPUS}", self.cpus);
        }
        let bytes = self.memory.0;
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
            bail!("--memory of {} MiB is not in 64 MiB to 64 GiB", bytes >> 20);
        }
        if self.com1 == SerialTarget::Stdio && self.com2 == SerialTarget::Stdio {
            bail!("--com1 and --com2 cannot both use stdio");
        }
        if !self.module.is_empty() && self.door == Door::Linux64 {
            bail!("--module needs the PVH door; the Linux boot protocol has one slot, the initrd");
        }
        if self.screen && self.door != Door::Linux64 {
            bail!("--screen needs --door linux64: the PVH door tells of no screen");
        }
        let features = self.hv_features()?.unwrap_or(HvFeatures::empty());
        place(&self.disk)?;
        let storage = !self.disk.is_empty() || self.scsi_controllers.is_some();
        for (asked, need) in [
            (storage, "disks need"),
            (!self.net.is_empty(), "networks need"),
            (self.keyboard, "the keyboard needs"),
        ] {
            if asked && !features.has_vmbus(self.openvmm_like) {
                bail!("{need} VMBus, which needs the features hypercall, synic and messages");
            }
        }
        if self.net.len() > ADAPTERS_MAX {
            bail!("--net: at most {ADAPTERS_MAX}");
        }
        if self.scsi_controllers.is_some_and(|count| count > CONTROLLERS_MAX) {
            bail!("--scsi-controllers: at most {CONTROLLERS_MAX}");
        }
        Ok(())
    }

    /// Host features of this run; `None` without Hyper-V.
    ///
    /// # Errors
    /// An unknown name in `--hv-without`.
    pub fn hv_features(&self) -> Result<Option<HvFeatures>> {
        if self.no_hyperv {
            return Ok(None);
        }
        let offered = HvFeatures::all_without(&self.hv_without)?;
        Ok(Some(if self.openvmm_like { offered & HvFeatures::OPENVMM } else { offered }))
    }

    /// The time limit.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        self.timeout.map(Duration::from_secs)
    }
}

/// A command to be done at a time in the guest's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// When this text first appears on COM1 or the screen.
    pub marker: String,
    /// A line as `--control` takes it.
    pub command: String,
}

impl FromStr for At {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((marker, command)) if !marker.is_empty() && !command.is_empty() => {
                Ok(Self { marker: marker.into(), command: command.into() })
            }
            _ => bail!("expected TEXT=COMMAND"),
        }
    }
}

/// The way into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Door {
    /// bzImage: linux64; ELF with a PVH note: pvh; other ELF: linux64.
    Auto,
    /// 32-bit entry with `hvm_start_info`.
    Pvh,
    /// 64-bit entry with `boot_params`.
    Linux64,
}

/// A size in bytes, written as `512M`, `1G`, or plain MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

impl FromStr for MemorySize {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 =
            digits.parse().map_err(|_| anyhow!("expected a size such as 512M or 1G"))?;
        let shift = match text.get(digits.len()..).unwrap_or("").to_ascii_lowercase().as_str() {
            "" | "m" | "mb" | "mib" => 20,
            "k" | "kb" | "kib" => 10,
            "g" | "gb" | "gib" => 30,
            _ => bail!("expected a size such as 512M or 1G"),
        };
        let bytes = number.checked_mul(1 << shift).ok_or_else(|| anyhow!("size too large"))?;
        if bytes % (1 << 20) != 0 {
            bail!("the size must be whole MiB");
        }
        Ok(Self(bytes))
    }
}

/// What a serial port is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialTarget {
    /// Standard input and output.
    Stdio,
    /// Nothing.
    Null,
    /// A file that receives the output.
    File(PathBuf),
    /// A UNIX socket this program listens on; one peer at a time.
    Socket(PathBuf),
}

impl FromStr for SerialTarget {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            _ => bail!("expected stdio, null, file:PATH or socket:PATH"),
        }
    }
}

/// `INDEX=SECONDS`.
fn tsc_ahead(text: &str) -> Result<(u32, u16), String> {
    let parsed = text.split_once('=').and_then(|(index, seconds)| {
        let seconds = seconds.parse().ok().filter(|&seconds| seconds >= 2)?;
        Some((index.parse().ok()?, seconds))
    });
    parsed.ok_or_else(|| format!("\"{text}\" is no INDEX=SECONDS"))
}

/// `INDEX=ID`.
fn cpuid_id(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('=').and_then(|(index, id)| {
        let id = id.parse().ok().filter(|&id| id < 255)?;
        Some((index.parse().ok()?, id))
    });
    parsed.ok_or_else(|| format!("\"{text}\" is no INDEX=ID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> std::result::Result<Options, clap::Error> {
        Options::try_parse_from(["hvhost", "--kernel", "k"].iter().chain(words))
    }

    #[test]
    fn defaults() {
        let o = parse(&[]).unwrap();
        assert_eq!((o.memory.0, o.cpus, o.door), (1 << 30, 1, Door::Auto));
        assert_eq!((o.com1.clone(), o.com2.clone()), (SerialTarget::Stdio, SerialTarget::Null));
        assert!(o.validate().is_ok());
        assert_eq!(o.hv_features().unwrap(), Some(HvFeatures::all()));
    }

    #[test]
    fn everything_given() {
        let o = parse(&[
            "--append",
            "-x console=ttyS0",
            "--memory",
            "64",
            "--cpus",
            "64",
            "--door",
            "linux64",
            "--com1",
            "file:/a:b",
            "--com2",
            "socket:/s",
            "--hv-without",
            "tlbflush,ipi",
            "--stats",
            "s",
            "--timeout",
            "9",
            "--marker",
            "a",
            "--marker",
            "b",
        ])
        .unwrap();
        assert!(o.validate().is_ok());
        assert_eq!(o.append, "-x console=ttyS0");
        assert_eq!(o.memory.0, 64 << 20);
        assert_eq!(o.com1, SerialTarget::File("/a:b".into()));
        assert_eq!(o.com2, SerialTarget::Socket("/s".into()));
        assert_eq!(o.time_limit(), Some(Duration::from_secs(9)));
        assert_eq!(o.marker, ["a", "b"]);
        assert!(!o.hv_features().unwrap().unwrap().contains(HvFeatures::IPI));
        let o = parse(&["--disk", "a,ro", "--disk", "b", "--openvmm-like"]).unwrap();
        assert!(o.validate().is_ok() && o.disk[0].read_only && !o.disk[1].read_only);
        let o = parse(&["--at", "@@ x=disk-add /y,ro"]).unwrap();
        assert_eq!((&*o.at[0].marker, &*o.at[0].command), ("@@ x", "disk-add /y,ro"));
    }

    #[test]
    fn refusals() {
        assert!(parse(&["--memory", "1T"]).is_err());
        assert!(parse(&["--memory", "99999999999G"]).is_err());
        assert!(parse(&["--memory", "1023K"]).is_err());
        assert!(parse(&["--com1", "file:"]).is_err());
        assert!(parse(&["--door", "multiboot"]).is_err());
        assert!(parse(&["--no-hyperv", "--hv-without", "ipi"]).is_err());
        assert!(parse(&["--disk", "a,rw"]).is_err());
        assert!(parse(&["--disk-fault", "x"]).is_err());
        assert!(parse(&["--net", "user,mtu=1"]).is_err());
        assert!(parse(&["--net", "user"]).unwrap().validate().is_ok());
        assert!(parse(&["--net", "user"].repeat(17)).unwrap().validate().is_err());
        assert!(parse(&["--at", "text"]).is_err());
        assert!(parse(&["--tsc-ahead", "1=1"]).is_err());
        assert_eq!(parse(&["--tsc-ahead", "1=10"]).unwrap().tsc_ahead, [(1, 10)]);
        assert!(parse(&["--cpuid-id", "1=255"]).is_err());
        assert_eq!(parse(&["--cpuid-id", "1=16"]).unwrap().cpuid_id, [(1, 16)]);
        for words in [
            &["--cpus", "0"][..],
            &["--cpus", "65"],
            &["--memory", "63M"],
            &["--memory", "65G"],
            &["--com2", "stdio"],
            &["--hv-without", "tlb"],
            &["--disk", "a", "--no-hyperv"],
            &["--disk", "a", "--hv-without", "messages"],
            &["--net", "user", "--hv-without", "synic"],
            &["--keyboard", "--no-hyperv"],
            &["--disk", "a,scsi=0:0", "--disk", "b,scsi=0:0"],
            &["--scsi-controllers", "9"],
            &["--door", "linux64", "--module", "m"],
            &["--screen"],
        ] {
            assert!(parse(words).unwrap().validate().is_err(), "{words:?}");
        }
    }

    #[test]
    fn sizes() {
        for (text, mib) in [("64M", 64), ("1g", 1024), ("2GiB", 2048), ("512", 512), ("2048k", 2)] {
            assert_eq!(text.parse::<MemorySize>().unwrap().0, mib << 20, "{text}");
        }
    }
}
