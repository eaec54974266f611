//! Disks firmware boots from: one FAT partition, Debian's GRUB for BIOS and UEFI, or the EFI
//! application; and the files of docs/firmware.md.

use anyhow::{Context, Result, ensure};
use pontoon::artefact;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SECTOR: usize = 512;
/// First sector of the partition; GRUB for BIOS lies before it.
const PARTITION: usize = 2048;
/// Room beside the files.
const SPARE: usize = 8 << 20;
/// A FAT32 file system has at least so many bytes.
const LEAST: usize = 40 << 20;

/// Modules GRUB is made with, for both firmwares.
const MODULES: [&str; 10] = [
    "part_msdos",
    "fat",
    "search",
    "search_fs_file",
    "normal",
    "configfile",
    "echo",
    "serial",
    "terminal",
    "multiboot2",
];
/// GRUB's first commands: speak on COM1, find the volume, then its menu.
const EARLY: &str = "serial --unit=0 --speed=115200\nterminal_output console serial\n\
    search --set=root --file /pontoon/grub.cfg\n\
    set prefix=($root)/boot/grub\nconfigfile /pontoon/grub.cfg\n";

/// Who boots from the disk under UEFI; under BIOS it is always GRUB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Efi {
    /// Debian's GRUB.
    Grub,
    /// The EFI application.
    Pontoon,
    /// Another application.
    Other(Vec<u8>),
}

/// What is on a disk.
#[derive(Clone, Debug, Default)]
pub struct Files {
    files: Vec<(String, Vec<u8>)>,
}

impl Files {
    /// With one more file, or with another content; `path` as on the volume, without a slash first.
    #[must_use]
    pub fn with(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.retain(|(other, _)| other != path);
        self.files.push((path.to_owned(), content.into()));
        self
    }

    /// Without a file.
    #[must_use]
    pub fn without(mut self, path: &str) -> Self {
        self.files.retain(|(other, _)| other != path);
        self
    }

    /// What every door needs: the shim, a kernel, its initrd, both command lines, GRUB's menu.
    pub fn of_guest(kernel: &Path, initrd: Vec<u8>, cmdline: &str, words: &str) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
        let menu = format!(
            "set timeout=0\n\
             menuentry Pontoon {{\n\
             multiboot2 /pontoon/shim {words}\n\
             module2 /pontoon/kernel {cmdline}\n\
             module2 /pontoon/initrd\n\
             }}\n"
        );
        Ok(Self::default()
            .with("pontoon/shim", read(&artefact::SHIM.find()?)?)
            .with("pontoon/kernel", read(kernel)?)
            .with("pontoon/initrd", initrd)
            .with("pontoon/cmdline", format!("{cmdline}\n"))
            .with("pontoon/config", format!("# words for the shim\n{words}\n"))
            .with("pontoon/grub.cfg", menu))
    }

    /// Makes the disk; its path.
    pub fn disk(&self, dir: &Path, efi: Efi) -> Result<PathBuf> {
        let loader = match efi {
            Efi::Grub => grub(dir, "x86_64-efi", &["efi_gop"])?,
            Efi::Pontoon => fs::read(artefact::EFI.find()?)?,
            Efi::Other(application) => application,
        };
        let files = self.clone().with("EFI/BOOT/BOOTX64.EFI", loader);
        let bytes = files.files.iter().map(|(_, content)| content.len()).sum::<usize>() + SPARE;
        let sectors = bytes.max(LEAST).div_ceil(SECTOR);
        let partition = dir.join("partition");
        let _ = fs::remove_file(&partition);
        let kib = (sectors / 2).to_string();
        run("/sbin/mkfs.vfat", &["-F", "32", "-C", path(&partition)?, &kib])?;
        for (name, content) in &files.files {
            files.put(dir, &partition, name, content)?;
        }
        let mut disk = fs::read("/usr/lib/grub/i386-pc/boot.img").context("grub-pc-bin")?;
        disk.resize(SECTOR, 0);
        let core = grub(dir, "i386-pc", &["biosdisk", "vbe", "video"])?;
        ensure!(core.len() <= (PARTITION - 1) * SECTOR, "GRUB does not fit before the partition");
        disk.extend_from_slice(&core);
        disk.resize(PARTITION * SECTOR, 0);
        partition_table(&mut disk, u32::try_from(sectors)?);
        disk.extend(fs::read(&partition)?);
        let made = tempfile::Builder::new().prefix("disk-").tempfile_in(dir)?;
        fs::write(made.path(), disk)?;
        let (_, path) = made.keep()?;
        Ok(path)
    }

    fn put(&self, dir: &Path, partition: &Path, name: &str, content: &[u8]) -> Result<()> {
        let file = dir.join("file");
        fs::write(&file, content)?;
        let mut parent = String::new();
        for part in name.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev() {
            parent = format!("{parent}/{part}");
            // There already, for the second file of a directory.
            let _ = run("mmd", &["-i", path(partition)?, "-D", "s", &format!("::{parent}")]);
        }
        run("mcopy", &["-i", path(partition)?, "-o", path(&file)?, &format!("::/{name}")])
    }
}

/// One active partition of type EFI system, which firmwares of both kinds accept.
fn partition_table(disk: &mut [u8], sectors: u32) {
    // GRUB has code for floppy disks there.
    disk[446..510].fill(0);
    let entry = &mut disk[446..462];
    entry[0] = 0x80;
    entry[4] = 0xef;
    entry[8..12].copy_from_slice(&(PARTITION as u32).to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
}

/// Debian's GRUB for a platform.
fn grub(dir: &Path, platform: &str, more: &[&str]) -> Result<Vec<u8>> {
    let (early, image) = (dir.join("early.cfg"), dir.join("grub"));
    fs::write(&early, EARLY)?;
    let mut args =
        vec!["-O", platform, "-p", "/boot/grub", "-c", path(&early)?, "-o", path(&image)?];
    args.extend(MODULES.iter().chain(more));
    run("grub-mkimage", &args)?;
    fs::read(&image).context("grub-mkimage left no image")
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program).args(args).output();
    let out = out.with_context(|| format!("{program} cannot be run"))?;
    let errors = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{program}: {}", errors.trim());
    Ok(())
}
