use super::disk::{Source, convert};
use super::plan::{Boot, Medium, Plan, PlannedDisk};
use super::{fat, grub, medium, script};
use crate::guest::{Guest, Mac, Nic};
use crate::image::bytes::{Image, ReadAt, Window};
use crate::image::{fs as image_fs, partition};
use crate::qemu_img::{self, Disk, Format};
use proptest::prelude::*;
use pv_frontends::vbd::Vdev;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

fn plan(name: &str) -> Plan {
    let disk = |name: &str, cdrom| PlannedDisk {
        vdev: Vdev::parse(name).unwrap(),
        read_only: cdrom,
        cdrom,
        source: Some(Source::File(Disk { path: "/dev/null".into(), format: Format::Raw })),
    };
    let nic = |number, network: Option<&str>| Nic {
        number,
        mac: Mac::made_for("web", number),
        mtu: None,
        network: network.map(str::to_owned),
    };
    Plan {
        guest: Guest {
            name: name.into(),
            uuid: None,
            online: None,
            memory_mib: 512,
            cpus: 2,
            nics: vec![nic(0, Some("xenbr0")), nic(1, None)],
        },
        boot: Boot::Disk { entry: None, append: None, initrd: None },
        disks: vec![disk("xvda", false), disk("xvdb1", false), disk("hdc", true)],
        left_out: Vec::new(),
    }
}

/// Places at which the grammar finds the script wrong.
fn mistakes(script: &str) -> Vec<String> {
    let mut parser = tree_sitter::Parser::new();
    parser.set_language(&tree_sitter_powershell::LANGUAGE.into()).unwrap();
    let tree = parser.parse(script.trim_start_matches('\u{feff}'), None).unwrap();
    let mut found = Vec::new();
    let mut open = vec![tree.root_node()];
    while let Some(node) = open.pop() {
        if node.is_error() || node.is_missing() {
            found.push(format!("{} at {}", node.kind(), node.start_position()));
        }
        open.extend((0..node.child_count()).filter_map(|index| node.child(index as _)));
    }
    found
}

#[test]
fn scripts_are_powershell() {
    assert!(!mistakes("if ($a { }").is_empty(), "the grammar finds nothing wrong at all");
    for medium in [Medium::Vhdx, Medium::Iso, Medium::Vhd] {
        for name in ["web", "it's", "a`$(x)\u{2019}b", "#"] {
            let mut plan = plan(name);
            if medium == Medium::Vhd {
                plan.disks.pop();
            }
            let script = script::script(&plan, medium, "boot.file").unwrap();
            let wrong = mistakes(&script);
            assert!(wrong.is_empty(), "{wrong:?}\n{script}");
            assert!(script.lines().all(|line| script.contains(&format!("{line}\r\n"))));
        }
    }
}

#[test]
fn scripts_have_the_guests_devices() {
    let script = script::script(&plan("web"), Medium::Vhdx, "web.vhdx").unwrap();
    let mac = Mac::made_for("web", 1).0.map(|b| format!("{b:02X}")).concat();
    for part in [
        "-Generation 2 -MemoryStartupBytes 522MB -NoVHD",
        "-ProcessorCount 2 -StaticMemory",
        "-EnableSecureBoot Off",
        "Guest = 'xvda'; Location = 1; Dvd = $false; File = 'web-xvda.vhdx' }",
        "Guest = 'xvdb1'; Location = 2; Dvd = $false; File = 'web-xvdb1.vhdx' }",
        "Guest = 'hdc'; Location = 3; Dvd = $true; File = 'web-hdc.iso' }",
        &format!("Guest = 'vif1'; Address = '{mac}'; Network = '' }}"),
        "Get-PackFile 'web.vhdx'",
        "Set-VMComPort -VM $vm -Number 1",
        "Remove-VM -VM $vm -Force",
    ] {
        assert!(script.contains(part), "{part}:\n{script}");
    }
    let mut first = plan("web");
    first.disks.pop();
    let script = script::script(&first, Medium::Vhd, "web.vhd").unwrap();
    assert!(script.contains("-Generation 1") && script.contains("-ControllerType IDE"));
    assert!(script.contains("Guest = 'xvda'; Location = 0;") && !script.contains("Set-VMFirmware"));
}

#[test]
fn machines_have_memory_for_the_shim() {
    assert_eq!(script::machine_mib(512), 522);
    assert_eq!(script::machine_mib(1024), 1036);
    assert_eq!(script::machine_mib(65536), 65676);
}

#[test]
fn files_have_names_windows_takes() {
    for (name, stem) in [
        ("web", "web"),
        ("a/b:c", "a-b-c"),
        ("con", "vm-con"),
        ("LPT1.x", "vm-LPT1.x"),
        ("..", "vm-.."),
    ] {
        assert_eq!(plan(name).stem(), stem);
    }
}

#[test]
fn disks_find_room_or_are_refused() {
    let mut many = plan("web");
    many.disks = (0..64)
        .map(|index| PlannedDisk { vdev: Vdev::xvd(index), ..many.disks[0].clone() })
        .collect();
    assert!(many.places(Medium::Vhd).is_ok());
    assert!(many.places(Medium::Vhdx).unwrap_err().to_string().contains("room for 63"));
    many.disks.pop();
    let places = many.places(Medium::Vhdx).unwrap();
    assert_eq!((places[0].lun, places[62].lun), (1, 63));
    assert!(many.guest.words(&places).is_ok());
}

fn run(program: &str, args: &[&str]) {
    let out =
        Command::new(program).args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output();
    let out = out.unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = [out.stdout, out.stderr].concat();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&said));
}

const FILES: &fat::Files<'static> = &[
    ("EFI/BOOT/BOOTX64.EFI", b"application"),
    ("pontoon/kernel", &[7; 100_000]),
    ("pontoon/cmdline", b"root=/dev/xvda1\n"),
];

/// The volume on the first partition of the disk, by other programs' judgement and by our reader.
fn check_volume(disk: &Path, kind: partition::Table) {
    let image: Rc<dyn ReadAt> = Rc::new(Image::open(disk).unwrap());
    let (table, partitions) = partition::partitions(&*image, &|_| true).unwrap();
    assert_eq!((table, partitions.len()), (kind, 1));
    let (start, len) = (partitions[0].start_bytes, partitions[0].len_bytes);
    let fs = image_fs::open(Rc::new(Window::new(Rc::clone(&image), start, len))).unwrap();
    for (name, data) in FILES {
        assert!(fs.read(&format!("/{name}"), 1 << 20).unwrap() == *data, "{name}");
    }
    let volume = disk.with_extension("volume");
    let data = std::fs::read(disk).unwrap();
    let start = usize::try_from(start).unwrap();
    std::fs::write(&volume, &data[start..start + usize::try_from(len).unwrap()]).unwrap();
    run("fsck.vfat", &["-n", volume.to_str().unwrap()]);
    run("sfdisk", &["--verify", "-q", disk.to_str().unwrap()]);
}

#[test]
fn an_efi_disk_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    medium::gpt_disk(&raw, FILES, dir.path()).unwrap();
    check_volume(&raw, partition::Table::Gpt);
    let vhdx = Disk { path: dir.path().join("disk.vhdx"), format: Format::Vhdx };
    let raw = Disk { path: raw, format: Format::Raw };
    convert(&raw, &vhdx.path, false, "disk").unwrap();
    qemu_img::check(&vhdx).unwrap();
    // Zeros take no room.
    assert!(std::fs::metadata(&vhdx.path).unwrap().len() < 64 << 20);
}

#[test]
fn a_bios_disk_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    let image = grub::Image { boot: vec![1; 440], core: vec![2; 40_000] };
    medium::mbr_disk(&raw, &image, FILES, dir.path()).unwrap();
    check_volume(&raw, partition::Table::Mbr);
    let start = std::fs::read(&raw).unwrap();
    assert!(start[..440].iter().all(|&b| b == 1) && start[512..40_512].iter().all(|&b| b == 2));
    let large = grub::Image { boot: vec![1; 440], core: vec![2; 1 << 20] };
    let error = medium::mbr_disk(&dir.path().join("other"), &large, FILES, dir.path()).unwrap_err();
    assert!(error.to_string().contains("does not fit"));
}

#[test]
fn odd_disks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd");
    let to = dir.path().join("to.vhdx");
    for (data, said) in [(vec![], "is empty"), (vec![0; 1000], "no whole number of sectors")] {
        std::fs::write(&path, &data).unwrap();
        let disk = Disk { path: path.clone(), format: Format::Raw };
        let error = convert(&disk, &to, false, "xvda").unwrap_err().to_string();
        assert!(error.contains(said) && error.starts_with("xvda: "), "{error}");
        assert!(!to.exists());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_name_is_quoted(name in "\\PC{0,30}", network in "\\PC{0,20}") {
        let mut plan = plan(&name);
        plan.guest.nics[0].network = Some(network);
        let wrong = mistakes(&script::script(&plan, Medium::Vhdx, "boot").unwrap());
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
    }
}
