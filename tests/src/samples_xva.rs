//! XVA archives as XenServer and XCP-ng write them.

use anyhow::{Context, Result};
use sha1::{Digest, Sha1};
use std::fs;
use std::path::Path;
use twox_hash::XxHash64;

/// Checksums behind a disk's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// SHA-1: XenServer, XCP-ng before 8.1.
    Sha1,
    /// xxHash: XCP-ng since.
    XxHash,
}

/// A guest's disk: its device, its raw file, whether it can be written.
pub type Disk<'a> = (&'a str, &'a Path, bool);

const MIB: usize = 1 << 20;

fn member(name: &str, value: &str) -> String {
    format!("<member><name>{name}</name><value>{value}</value></member>")
}

fn object(class: &str, id: &str, fields: &[(&str, &str)]) -> String {
    let fields: String = fields.iter().map(|(name, value)| member(name, value)).collect();
    let snapshot = member("snapshot", &format!("<struct>{fields}</struct>"));
    format!(
        "<value><struct>{}{}{snapshot}</struct></value>",
        member("class", class),
        member("id", id)
    )
}

fn description(disks: &[Disk<'_>], macs: &[&str]) -> Result<String> {
    const TRUE: &str = "<boolean>1</boolean>";
    const FALSE: &str = "<boolean>0</boolean>";
    let mut objects = object(
        "VM",
        "Ref:0",
        &[
            ("name_label", "xva-guest"),
            ("uuid", "8a1f0c7e-52a1-4d0e-9c57-0c1d2e3f4a5b"),
            ("is_a_template", FALSE),
            ("is_a_snapshot", FALSE),
            ("memory_static_max", "268435456"),
            ("memory_dynamic_max", "268435456"),
            ("VCPUs_max", "2"),
            ("VCPUs_at_startup", "2"),
            ("HVM_boot_policy", ""),
            ("PV_bootloader", "pygrub"),
            ("PV_kernel", ""),
            ("PV_args", "from_pv_args=1"),
            ("VBDs", "<array><data><value>Ref:10</value></data></array>"),
        ],
    );
    for (index, (device, path, writable)) in disks.iter().enumerate() {
        let (vbd, vdi) = (format!("Ref:{}", 10 + index), format!("Ref:{}", 100 + index));
        let size = fs::metadata(path)?.len().to_string();
        let mode = if *writable { "RW" } else { "RO" };
        let bootable = if index == 0 { TRUE } else { FALSE };
        objects += &object(
            "VBD",
            &vbd,
            &[
                ("VM", "Ref:0"),
                ("VDI", &vdi),
                ("device", ""),
                ("userdevice", device),
                ("bootable", bootable),
                ("mode", mode),
                ("type", "Disk"),
                ("empty", FALSE),
            ],
        );
        objects += &object("VDI", &vdi, &[("virtual_size", &size), ("type", "system")]);
    }
    for (index, mac) in macs.iter().enumerate() {
        let device = index.to_string();
        let fields = [
            ("VM", "Ref:0"),
            ("device", &device),
            ("MAC", mac),
            ("MTU", "1500"),
            ("network", "Ref:50"),
        ];
        objects += &object("VIF", &format!("Ref:{}", 20 + index), &fields);
    }
    objects += &object("network", "Ref:50", &[("bridge", "xenbr0"), ("name_label", "Pool-wide")]);
    let version = member("version", &format!("<struct>{}</struct>", member("export_vsn", "2")));
    let list = member("objects", &format!("<array><data>{objects}</data></array>"));
    Ok(format!("<?xml version='1.0'?><value><struct>{version}{list}</struct></value>"))
}

/// Writes an archive. MiBs of zeros are left out, but for the first and the last.
pub fn write(to: &Path, disks: &[Disk<'_>], macs: &[&str], sums: Sums) -> Result<()> {
    let mut archive = tar::Builder::new(fs::File::create(to)?);
    let mut put = |name: &str, data: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o400);
        archive.append_data(&mut header, name, data).with_context(|| name.to_owned())
    };
    put("ova.xml", description(disks, macs)?.as_bytes())?;
    for (index, (_, path, _)) in disks.iter().enumerate() {
        let data = fs::read(path)?;
        let last = data.len().div_ceil(MIB).saturating_sub(1);
        for (number, chunk) in data.chunks(MIB).enumerate() {
            if number != 0 && number != last && chunk.iter().all(|&byte| byte == 0) {
                continue;
            }
            let name = format!("Ref:{}/{number:08}", 100 + index);
            put(&name, chunk)?;
            match sums {
                Sums::Sha1 => {
                    let sum: String =
                        Sha1::digest(chunk).iter().map(|b| format!("{b:02x}")).collect();
                    put(&format!("{name}.checksum"), sum.as_bytes())?;
                }
                Sums::XxHash => {
                    let sum = format!("{:016x}", XxHash64::oneshot(0, chunk));
                    put(&format!("{name}.xxhash"), sum.as_bytes())?;
                }
            }
        }
    }
    archive.finish().context("the archive")
}
