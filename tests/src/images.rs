//! Disk images of Debian systems, as the administrator of a Xen PV guest has
//! them: built once and kept in the cache.

use anyhow::{Context, Result, bail};
use pontoon::apt::{self, Suite};
use pontoon::cache;
use pontoon::cleanup::Scratch;
pub use pontoon::doctor::initrd::names as initramfs_names;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("../images/build.sh");

/// What is installed beyond Debian's essential packages.
const PACKAGES: [&str; 13] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "login",
    "passwd",
    "kmod",
    "iproute2",
    "iputils-ping",
    "e2fsprogs",
    "linux-image-amd64",
    "initramfs-tools",
    "grub2-common",
    "zstd",
];

/// The suites whose images the tests boot.
pub const SUITES: [&str; 2] = ["bookworm", "trixie"];

/// The password of root in every image.
pub const PASSWORD: &str = "pontoon";
/// Words for the kernel's command line: on a loaded machine a console takes longer to
/// appear than systemd waits for one.
pub const PATIENCE: &str =
    "systemd.default_timeout_start_sec=600 systemd.default_device_timeout_sec=600";
/// Their host name.
pub const HOSTNAME: &str = "pontoon-guest";

/// Partition tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// MBR.
    Mbr,
    /// GPT.
    Gpt,
}

/// An image to have.
#[derive(Clone, Debug)]
pub struct Image {
    /// Debian suite.
    pub suite: String,
    /// Its partition table. The root file system is on the first and only
    /// partition. With GPT it is named by its UUID; with MBR as /dev/xvda1.
    pub table: Table,
    /// Its size; the file is sparse.
    pub size_mib: u64,
    /// Packages beyond those all images have.
    pub packages: Vec<String>,
}

impl Image {
    /// An image of 2 GiB with a login and no more.
    #[must_use]
    pub fn new(suite: &str, table: Table) -> Self {
        Self { suite: suite.to_owned(), table, size_mib: 2048, packages: Vec::new() }
    }

    /// The image, read-only for its users: a guest gets a copy of it, or an
    /// overlay. Built if it is not in the cache, which takes root, a network and
    /// one to three minutes.
    pub fn get(&self) -> Result<PathBuf> {
        let _lock = cache::lock("images")?;
        let table = match self.table {
            Table::Mbr => "dos",
            Table::Gpt => "gpt",
        };
        let key = self.key();
        let dir = cache::dir()?.join("images").join(format!("{}-{table}-{key:016x}", self.suite));
        cache::filled(&dir, |work| self.build(table, work))?;
        Ok(dir.join("disk.raw"))
    }

    /// A copy of the image at `to`, sparse as it is, for a guest that writes.
    pub fn copy(&self, to: &Path) -> Result<()> {
        let from = self.get()?;
        let mut command = Command::new("cp");
        command.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to);
        let out = done_output(&mut command)?;
        if !out.status.success() {
            bail!("cp: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    /// Changes with everything an image is made from, save for what the mirror
    /// has today.
    fn key(&self) -> u64 {
        let table = format!("{:?}", self.table);
        let size = self.size_mib.to_string();
        let mut parts = vec![SCRIPT, &self.suite, &table, &size];
        parts.extend(PACKAGES);
        parts.extend(self.packages.iter().map(String::as_str));
        recipe_key(&parts)
    }

    fn build(&self, table: &str, work: &Path) -> Result<()> {
        pontoon::setup::for_testing()?;
        pontoon::say(format!("building a disk image of Debian {} ({table})", self.suite));
        let suite = Suite::open(&self.suite)?;
        let temporary = Scratch::new()?;
        let settings = temporary.path().join("apt.conf");
        fs::write(&settings, apt::acquire_settings())?;
        let script = temporary.path().join("build.sh");
        fs::write(&script, SCRIPT)?;
        let all: Vec<_> =
            PACKAGES.into_iter().chain(self.packages.iter().map(String::as_str)).collect();
        let key = self.key();
        let digits = format!("{key:016x}{:016x}", key.rotate_left(29));
        let group = |from: usize, to: usize| digits.get(from..to).unwrap_or_default().to_owned();
        let uuid =
            [group(0, 8), group(8, 12), group(12, 16), group(16, 20), group(20, 32)].join("-");
        let root_by = if self.table == Table::Gpt { "uuid" } else { "device" };
        let place = |path: &Path| path.display().to_string();
        let variables = [
            ("OUT", place(&work.join("disk.raw"))),
            ("TMP", place(temporary.path())),
            ("SUITE", self.suite.clone()),
            ("SOURCES", place(&suite.sources())),
            ("APTCONF", place(&settings)),
            ("TABLE", table.to_owned()),
            ("SIZE_MIB", self.size_mib.to_string()),
            ("ROOT_BY", root_by.to_owned()),
            ("UUID", uuid),
            ("PACKAGES", all.join(",")),
            ("EPOCH", "1735689600".to_owned()),
            ("LC_ALL", "C.UTF-8".to_owned()),
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ];
        // As with apt-get: root, or sudo.
        let mut command = Command::new(if is_root()? { "env" } else { "sudo" });
        if !is_root()? {
            command.arg("env");
        }
        command.args(variables.map(|(name, value)| format!("{name}={value}")));
        command.arg("sh").arg(&script);
        let out = done_output(&mut command)?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            let lines: Vec<_> = said.lines().collect();
            let last = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
            bail!("the image of Debian {} cannot be built:\n{last}", self.suite);
        }
        Ok(())
    }
}

/// FNV-1a of the parts of a recipe: what is made by another has another name in the
/// cache.
pub(crate) fn recipe_key(parts: &[&str]) -> u64 {
    parts
        .iter()
        .flat_map(|part| part.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    // The owner of a process is the owner of its directory in /proc.
    Ok(fs::metadata("/proc/self").context("/proc/self")?.uid() == 0)
}

pub(crate) fn done_output(command: &mut Command) -> Result<std::process::Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).output().with_context(|| format!("{program} cannot be run"))
}
