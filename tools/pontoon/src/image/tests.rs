//! Whole images, made by the tools administrators use (`cargo xtask setup`
//! installs them).

use super::*;
use std::fs;
use std::process::{Command, Stdio};

/// A tree of files: path and contents; `-> target` makes a link, a name that
/// ends in a slash a directory.
type Tree<'a> = &'a [(&'a str, &'a str)];

const ROOT: Tree<'static> = &[
    ("boot/vmlinuz-6.1", "KERNEL"),
    ("boot/initrd.img-6.1", "INITRD"),
    ("boot/grub/grub.cfg", GRUB),
    ("vmlinuz", "-> boot/vmlinuz-6.1"),
];
const GRUB: &str = "menuentry one {\nlinux /boot/vmlinuz-6.1 root=/dev/xvda1 ro\n\
                    initrd /boot/initrd.img-6.1\n}\n";
/// `grub.cfg` of a /boot that is a partition of its own.
const GRUB_BOOT: &str = "menuentry boot {\nset root=hd0,msdos1\n\
                         linux /vmlinuz-6.1 root=/dev/xvda2 ro\ninitrd /initrd.img-6.1\n}\n";

fn run(program: &str, args: &[&str], input: &str) {
    use std::io::Write;
    let mut command = Command::new(program);
    command.args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

/// An ext file system of `mib` MiB.
fn ext(kind: &str, options: &[&str], mib: usize, tree: Tree<'_>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("tree");
    for (path, data) in tree {
        let path = top.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match data.strip_prefix("-> ") {
            Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            None if path.as_os_str().as_encoded_bytes().ends_with(b"/") => {
                fs::create_dir_all(path).unwrap();
            }
            None => fs::write(path, data).unwrap(),
        }
    }
    let image = dir.path().join("image");
    let (image_name, top) = (image.to_str().unwrap(), top.to_str().unwrap());
    let size = format!("{mib}M");
    let fixed = ["-q", "-F", "-t", kind, "-d", top, "-U", UUID, "-L", "rootfs"];
    run("mke2fs", &[&fixed, options, &[image_name, &size]].concat(), "");
    fs::read(image).unwrap()
}

const UUID: &str = "0f8c1a2e-6f3b-4c57-9d11-2b7e8c9a4d10";

/// A FAT file system.
fn fat(bits: &str, mib: usize, tree: Tree<'_>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, vec![0; mib << 20]).unwrap();
    let name = image.to_str().unwrap();
    run("mkfs.vfat", &["-F", bits, "-n", "BOOTFAT", "-i", "1234abcd", name], "");
    let mut made = Vec::new();
    for (path, data) in tree {
        for (at, _) in path.match_indices('/') {
            if !made.contains(&&path[..at]) {
                run("mmd", &["-i", name, &format!("::{}", &path[..at])], "");
                made.push(&path[..at]);
            }
        }
        let file = dir.path().join("file");
        fs::write(&file, data).unwrap();
        run("mcopy", &["-i", name, file.to_str().unwrap(), &format!("::{path}")], "");
    }
    fs::read(image).unwrap()
}

/// A disk with a table as sfdisk writes it; parts are put where the table has
/// partitions of those numbers.
fn disk(script: &str, mib: usize, parts: &[(u32, &[u8])]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, vec![0; mib << 20]).unwrap();
    run("sfdisk", &["-q", image.to_str().unwrap()], script);
    let mut bytes = fs::read(image).unwrap();
    let (_, table) = partition::partitions(&bytes, &|_| false).unwrap();
    for (number, part) in parts {
        let place = table.iter().find(|p| p.number == *number).unwrap();
        let at = usize::try_from(place.start_bytes).unwrap();
        assert!(part.len() as u64 <= place.len_bytes);
        bytes[at..at + part.len()].copy_from_slice(part);
    }
    bytes
}

fn boot(image: Vec<u8>) -> Result<Boot> {
    Boot::find(Rc::new(image), None)
}

fn error(image: Vec<u8>) -> String {
    format!("{:#}", boot(image).unwrap_err())
}

fn is_the_kernel(found: &Boot) {
    assert_eq!(found.kernel, b"KERNEL");
    // Padded to four bytes.
    assert_eq!(found.initrd.as_deref(), Some(&b"INITRD\0\0"[..]));
}

#[test]
fn every_ext_without_a_table() {
    for (kind, options) in [
        ("ext2", &[][..]),
        ("ext3", &[]),
        ("ext4", &[]),
        ("ext4", &["-b", "1024"]),
        ("ext4", &["-O", "64bit,metadata_csum,metadata_csum_seed,orphan_file"]),
        ("ext4", &["-O", "^64bit,^metadata_csum,uninit_bg,bigalloc", "-C", "16384"]),
        ("ext4", &["-O", "inline_data"]),
        ("ext4", &["-O", "meta_bg,^resize_inode", "-g", "256", "-b", "1024"]),
        ("ext4", &["-O", "ea_inode,mmp,casefold,encrypt,large_dir"]),
        ("ext3", &["-I", "128"]),
        ("ext2", &["-r", "0", "-O", "none"]),
    ] {
        let found = boot(ext(kind, options, 32, ROOT));
        let found = found.unwrap_or_else(|e| panic!("{kind} {options:?}: {e:#}"));
        is_the_kernel(&found);
        assert_eq!(found.cmdline, "root=/dev/xvda1 ro");
        assert!(found.notes[0].contains("\"one\"") && found.notes[0].contains("on the disk"));
    }
}

#[test]
fn files_of_many_blocks_come_whole() {
    let data: String = (0..1_000_000).map(|i| format!("{i:07}\n")).collect();
    let tree = [("boot/vmlinuz-1", data.as_str()), ("etc/fstab", "/dev/xvda7 / ext4 x 0 1\n")];
    for (kind, options) in [("ext4", &["-b", "4096"][..]), ("ext2", &["-b", "1024"])] {
        let found = boot(ext(kind, options, 64, &tree)).unwrap();
        assert!(found.kernel == data.as_bytes(), "{kind}");
        assert_eq!(found.cmdline, "root=/dev/xvda7 ro");
    }
    for (bits, mib) in [("12", 15), ("16", 64), ("32", 64)] {
        let found = boot(fat(bits, mib, &tree[..1])).unwrap();
        assert!(found.kernel == data.as_bytes(), "FAT{bits}");
    }
}

#[test]
fn tables_and_partitions() {
    let root = ext("ext4", &[], 16, ROOT);
    for (script, number) in [
        ("label: dos\nstart=2048, type=83\n", 1),
        ("label: dos\nsize=4M, type=82\ntype=5\nsize=4M, type=83\ntype=83\n", 6),
        ("label: gpt\nsize=1M, type=21686148-6449-6E6F-744E-656564454649\ntype=linux\n", 2),
        ("label: gpt\nsector-size: 4096\nfirst-lba: 64\ntype=linux\n", 1),
    ] {
        let found = boot(disk(script, 32, &[(number, &root)])).unwrap();
        is_the_kernel(&found);
        assert!(found.notes[0].contains(&format!("partition {number}")), "{:?}", found.notes);
    }
}

#[test]
fn a_vhd_of_fixed_size_is_a_disk_with_a_footer() {
    let root = ext("ext4", &[], 16, ROOT);
    let mut image = disk("label: gpt\ntype=linux\n", 32, &[(1, &root)]);
    // The table's first copy is broken: the other one is at the end of the disk.
    image[512] = 0;
    let mut footer = vec![0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[48..56].copy_from_slice(&(image.len() as u64).to_be_bytes());
    footer[63] = 2;
    image.extend(footer);
    is_the_kernel(&boot(image).unwrap());
}

#[test]
fn boot_is_a_partition() {
    let boot_tree: Tree<'_> = &[
        ("vmlinuz-6.1", "KERNEL"),
        ("initrd.img-6.1", "INITRD"),
        ("grub/grub.cfg", GRUB_BOOT),
        ("Some Long Name.txt", ""),
    ];
    let script = "label: dos\nsize=40M, type=83, bootable\ntype=83\n";
    let root = ext("ext4", &[], 16, &[("boot/", ""), ("etc/fstab", "")]);
    for part in [ext("ext2", &[], 16, boot_tree), fat("32", 36, boot_tree)] {
        let found = boot(disk(script, 64, &[(1, &part), (2, &root)])).unwrap();
        is_the_kernel(&found);
        assert_eq!(found.cmdline, "root=/dev/xvda2 ro");
    }
    // A configuration on the root file system whose links lead into the other.
    let grub = GRUB.replace("/boot/vmlinuz-6.1", "/vmlinuz");
    let root = ext(
        "ext4",
        &[],
        16,
        &[("boot/", ""), ("vmlinuz", "-> boot/vmlinuz-6.1"), ("grub/grub.cfg", &grub)],
    );
    let part = ext("ext2", &[], 16, &boot_tree[..2]);
    is_the_kernel(&boot(disk(script, 64, &[(1, &part), (2, &root)])).unwrap());
}

#[test]
fn links() {
    let grub = |kernel: &str| GRUB.replace("/boot/vmlinuz-6.1", kernel);
    for kernel in ["/vmlinuz", "/boot/../etc/abs", "/far/vmlinuz-6.1", "//boot/./vmlinuz-6.1"] {
        let mut tree = ROOT.to_vec();
        let grub = grub(kernel);
        let long = format!("-> {}boot/vmlinuz-6.1", "./".repeat(60));
        tree[2].1 = &grub;
        tree.push(("etc/abs", "-> /etc/long"));
        tree.push(("etc/long", "-> ../over"));
        tree.push(("over", &long));
        tree.push(("far", "-> boot"));
        is_the_kernel(&boot(ext("ext4", &[], 16, &tree)).unwrap());
    }
    let looped = error(ext("ext4", &[], 16, &[("boot/vmlinuz-1", "-> vmlinuz-1")]));
    assert!(looped.contains("too many links"), "{looped}");
}

#[test]
fn without_a_configuration_the_newest_kernel() {
    let tree = [
        ("boot/vmlinuz-6.9.1", "OLD"),
        ("boot/vmlinuz-6.12.1", "KERNEL"),
        ("boot/vmlinuz-6.13.1.old", "OLDER"),
        ("boot/initrd.img-6.12.1", "INITRD"),
        ("etc/fstab", "# fstab\nUUID=1-2 / ext4 errors=remount-ro 0 1\n"),
    ];
    let found = boot(ext("ext4", &[], 16, &tree)).unwrap();
    is_the_kernel(&found);
    assert_eq!(found.cmdline, "root=UUID=1-2 ro");
    assert!(found.notes[0].contains("no boot loader's configuration"));
}

#[test]
fn entries_are_chosen() {
    let grub =
        "set default=1\nmenuentry one { linux /boot/a }\nmenuentry two { linux /boot/b x }\n";
    let image: Rc<dyn ReadAt> = Rc::new(ext(
        "ext4",
        &[],
        16,
        &[("boot/a", "A"), ("boot/b", "B"), ("boot/grub/grub.cfg", grub)],
    ));
    let kernel = |entry| Boot::find(Rc::clone(&image), entry).unwrap().kernel;
    assert_eq!(kernel(None), b"B");
    assert_eq!(kernel(Some("0")), b"A");
    assert_eq!(kernel(Some("two")), b"B");
    let error = format!("{:#}", Boot::find(image, Some("three")).unwrap_err());
    assert!(error.contains("0 \"one\", 1 \"two\""), "{error}");
}

#[test]
fn a_file_system_in_use_is_read_and_not_written() {
    // Not unmounted, as far as its superblock knows.
    let mut image = ext("ext4", &[], 16, ROOT);
    image[1024 + 0x60] |= 4;
    let before = image.clone();
    let shared: Rc<dyn ReadAt> = Rc::new(image);
    is_the_kernel(&Boot::find(Rc::clone(&shared), None).unwrap());
    let mut after = vec![0; before.len()];
    shared.read_at(0, &mut after).unwrap();
    assert!(after == before);
}

#[test]
fn fat_names_and_labels() {
    let tree = [("EFI/Debian/A quite long name.conf", "x"), ("SHORT.TXT", "y")];
    let fs = super::fs::open(Rc::new(fat("16", 16, &tree))).unwrap();
    assert_eq!((fs.uuid().as_str(), fs.label().as_str()), ("1234-ABCD", "BOOTFAT"));
    assert_eq!(fs.list("/EFI/debian").unwrap(), ["A quite long name.conf"]);
    assert_eq!(fs.read("/efi/DEBIAN/a quite long name.conf", 9).unwrap(), b"x");
    assert_eq!(fs.read("/short.txt", 9).unwrap(), b"y");
    assert_eq!(fs.kind("/EFI").unwrap(), Some(super::fs::Kind::Dir));
    assert_eq!(fs.kind("/EFI/none/x").unwrap(), None);
    assert!(fs.read("/EFI", 9).is_err());
    assert!(fs.read("/short.txt", 0).unwrap_err().to_string().contains("at most"));
}

#[test]
fn what_cannot_be_read_is_named() {
    let mut xfs = vec![0; 4 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    assert!(error(xfs.clone()).contains("it holds XFS, which is not read here"));
    let gpt = disk("label: gpt\nsize=5M\nsize=5M\n", 16, &[(2, &xfs)]);
    let said = error(gpt);
    assert!(said.contains("partition 1 holds nothing that is recognised"), "{said}");
    assert!(said.contains("partition 2 holds XFS"), "{said}");
    assert!(error(b"QFI\xfb".repeat(1000)).contains("its format is qcow2"));
    assert!(error(vec![0; 1 << 20]).contains("nothing that is recognised"));
    assert!(error(Vec::new()).contains("nothing that is recognised"));
    assert!(error(disk("label: gpt\n", 4, &[])).contains("partition table is empty"));
    let mut cut = ext("ext4", &[], 16, ROOT);
    cut.truncate(8 << 20);
    assert!(error(cut).contains("larger than its partition"));
    let none = error(ext("ext4", &[], 16, &[("etc/fstab", "")]));
    assert!(none.contains("neither a boot loader's configuration nor a kernel"), "{none}");
    let gone = error(ext("ext4", &[], 16, &[("boot/grub/grub.cfg", GRUB)]));
    assert!(gone.contains("/boot/vmlinuz-6.1 does not exist"), "{gone}");
}

#[test]
fn consoles_are_hinted_at() {
    assert_eq!(console_hint("root=/dev/xvda1 console=tty0 console=hvc0,115200"), None);
    assert!(console_hint("console=tty0").unwrap().contains("(console=tty0)"));
    assert!(console_hint("quiet").unwrap().contains("(none)"));
    assert_eq!(with_append("a", Some("b")), "a b");
    assert_eq!(with_append("", Some("b")), "b");
    assert_eq!(with_append("a", None), "a");
}
