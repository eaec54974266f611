//! Guests of Xen's as their hosts leave them, for the tests of `pontoon import`: a kernel with an
//! initramfs that says what it finds, and disks around it in every form there is.

use crate::guests;
use crate::parts::{self, run};
use anyhow::{Context, Result};
use pontoon::kernel::Kernel;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const INIT: &str = include_str!("../e2e/import-init.sh");
const MODULES: [&str; 2] = ["xen-blkfront", "xen-netfront"];
const MIB: usize = 1 << 20;
/// Of the file system with the kernel in it.
const ROOT_MIB: u64 = 48;

/// The parts samples are made of, in a directory.
pub struct Samples {
    /// The directory.
    pub dir: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
}

/// What the initramfs has to find.
#[must_use]
pub fn cmdline(disks: usize, cards: usize) -> String {
    format!("console=hvc0 quiet panic=-1 pontoon_disks={disks} pontoon_cards={cards}")
}

impl Samples {
    /// For a Debian kernel, in `dir`.
    pub fn new(dir: &Path, spec: &str) -> Result<Self> {
        let kernel = Kernel::get(spec)?;
        let initrd = dir.join("initrd");
        fs::write(&initrd, guests::with_init(&[INIT], &parts::drivers(&kernel, &MODULES)?)?)?;
        Ok(Self { dir: dir.to_owned(), kernel: kernel.vmlinuz()?, initrd })
    }

    /// A path in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A disk of `mib` that holds something in every sector but for its middle third.
    pub fn data(&self, name: &str, mib: usize) -> Result<PathBuf> {
        let mut data = vec![0; mib * MIB];
        let mut state = u64::from_le_bytes(*b"pontoon!") ^ mib as u64;
        let third = data.len() / 3;
        for (at, byte) in data.iter_mut().enumerate().filter(|(at, _)| at / third.max(1) != 1) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(at as u64 | 1);
            *byte = (state >> 56) as u8;
        }
        let path = self.path(name);
        fs::write(&path, data)?;
        Ok(path)
    }

    /// A file system whose boot menu starts the kernel.
    pub fn root(&self, name: &str, cmdline: &str) -> Result<PathBuf> {
        let tree = self.path("tree");
        fs::create_dir_all(tree.join("boot/grub"))?;
        fs::copy(&self.kernel, tree.join("boot/vmlinuz"))?;
        fs::copy(&self.initrd, tree.join("boot/initrd.img"))?;
        let menu = format!(
            "set default=1\nset timeout=0\nmenuentry 'other' {{\n\tlinux /boot/none\n}}\nmenuentry 'guest' {{\n\
             \tlinux /boot/vmlinuz root=/dev/xvda1 {cmdline}\n\tinitrd /boot/initrd.img\n}}\n"
        );
        fs::write(tree.join("boot/grub/grub.cfg"), menu)?;
        let path = self.path(name);
        parts::ext4(&path, ROOT_MIB, Some(&tree))?;
        fs::remove_dir_all(tree)?;
        Ok(path)
    }

    /// The same on the first partition of a disk.
    pub fn disk(&self, name: &str, label: &str, cmdline: &str) -> Result<PathBuf> {
        let root = self.root("root.part", cmdline)?;
        let path = self.path(name);
        let size = (ROOT_MIB + 2) << 20;
        fs::File::create(&path)?.set_len(size)?;
        let script = self.path("script");
        fs::write(&script, format!("label: {label}\nstart=2048, size={}\n", ROOT_MIB << 11))?;
        let script = fs::File::open(script)?;
        run(Command::new("/sbin/sfdisk").arg("-q").arg(&path).stdin(script))?;
        put(&path, MIB as u64, &fs::read(&root)?)?;
        fs::remove_file(root)?;
        Ok(path)
    }

    /// A disk in another format.
    pub fn converted(
        &self,
        from: &Path,
        name: &str,
        format: &str,
        options: &str,
    ) -> Result<PathBuf> {
        let path = self.path(name);
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", format]);
        if !options.is_empty() {
            command.args(["-o", options]);
        }
        run(command.arg(from).arg(&path))?;
        Ok(path)
    }

    /// An OVF description of two disks and two cards beside it.
    pub fn ovf(&self, name: &str, disks: [&str; 2], macs: [&str; 2]) -> Result<PathBuf> {
        let item = |fields: &str| format!("<Item>{fields}</Item>");
        let drive = |at: usize| {
            item(&format!(
                "<rasd:AddressOnParent>{at}</rasd:AddressOnParent>\
                 <rasd:HostResource>ovf:/disk/d{at}</rasd:HostResource>\
                 <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType>"
            ))
        };
        let card = |mac: &str| {
            item(&format!(
                "<rasd:Address>{mac}</rasd:Address><rasd:Connection>LAN</rasd:Connection>\
                 <rasd:ResourceType>10</rasd:ResourceType>"
            ))
        };
        let text = format!(
            "<?xml version=\"1.0\"?><Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
             xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" xmlns:rasd=\"http://schemas.dmtf.org/\
             wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\">\
             <References><File ovf:id=\"f0\" ovf:href=\"{}\"/><File ovf:id=\"f1\" ovf:href=\"{}\"/></References>\
             <DiskSection><Disk ovf:diskId=\"d0\" ovf:fileRef=\"f0\"/><Disk ovf:diskId=\"d1\" ovf:fileRef=\"f1\"/></DiskSection>\
             <VirtualSystem ovf:id=\"ovf-guest\"><VirtualHardwareSection>{}{}{}{}{}{}</VirtualHardwareSection>\
             </VirtualSystem></Envelope>",
            disks[0],
            disks[1],
            item(
                "<rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity>"
            ),
            item(
                "<rasd:ResourceType>4</rasd:ResourceType><rasd:AllocationUnits>byte * 2^20\
                 </rasd:AllocationUnits><rasd:VirtualQuantity>256</rasd:VirtualQuantity>"
            ),
            // The second disk first: places count, not the order of the text.
            drive(1),
            drive(0),
            card(macs[0]),
            card(macs[1])
        );
        let path = self.path(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// Writes into a file.
pub fn put(path: &Path, at: u64, data: &[u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(path);
    let file = file.with_context(|| path.display().to_string())?;
    Ok(file.write_all_at(data, at)?)
}
