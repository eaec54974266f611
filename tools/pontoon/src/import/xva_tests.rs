use super::*;
use proptest::prelude::*;
use std::io::Cursor;

fn object(class: &str, id: &str, fields: &[(&str, &str)]) -> String {
    let fields: String = fields
        .iter()
        .map(|(name, value)| format!("<member><name>{name}</name><value>{value}</value></member>"))
        .collect();
    format!(
        "<value><struct><member><name>class</name><value>{class}</value></member>\
         <member><name>id</name><value>{id}</value></member>\
         <member><name>snapshot</name><value><struct>{fields}</struct></value></member></struct></value>"
    )
}

fn ova(vm: &[(&str, &str)]) -> String {
    let vm = [
        &[
            ("name_label", "web 1"),
            ("uuid", "00112233-4455-6677-8899-aabbccddeeff"),
            ("memory_static_max", "536870912"),
            ("VCPUs_max", "2"),
            ("HVM_boot_policy", ""),
        ],
        vm,
    ]
    .concat();
    let objects = [
        object("VM", "Ref:0", &vm),
        object(
            "VBD",
            "Ref:1",
            &[
                ("VM", "Ref:0"),
                ("VDI", "Ref:4"),
                ("userdevice", "1"),
                ("device", "xvdb"),
                ("mode", "RO"),
                ("type", "Disk"),
            ],
        ),
        object(
            "VBD",
            "Ref:2",
            &[
                ("VM", "Ref:0"),
                ("VDI", "Ref:3"),
                ("userdevice", "0"),
                ("bootable", "<boolean>1</boolean>"),
                ("type", "Disk"),
            ],
        ),
        object(
            "VBD",
            "Ref:9",
            &[
                ("VM", "Ref:0"),
                ("userdevice", "3"),
                ("empty", "<boolean>1</boolean>"),
                ("type", "CD"),
            ],
        ),
        object("VDI", "Ref:3", &[("virtual_size", "3146240")]),
        object("VDI", "Ref:4", &[("virtual_size", "1048576")]),
        object(
            "VIF",
            "Ref:5",
            &[
                ("VM", "Ref:0"),
                ("device", "1"),
                ("MAC", "8a:00:00:00:00:01"),
                ("MTU", "9000"),
                ("network", "Ref:6"),
            ],
        ),
        object(
            "VIF",
            "Ref:7",
            &[("VM", "Ref:0"), ("device", "0"), ("MAC", "8a:00:00:00:00:00"), ("MTU", "1500")],
        ),
        object("network", "Ref:6", &[("bridge", "xapi0"), ("name_label", "backup")]),
    ];
    format!(
        "<value><struct><member><name>version</name><value><struct></struct></value></member>\
         <member><name>objects</name><value><array><data>{}</data></array></value></member></struct></value>",
        objects.concat()
    )
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        // By hand: the crate refuses names that lead out of the archive.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_vm_becomes_a_plan() {
    let archive = tar(&[(
        "ova.xml",
        ova(&[("PV_args", "console=hvc0"), ("PV_bootloader", "pygrub")]).as_bytes(),
    )]);
    let plan = plan_of(Cursor::new(archive), Path::new("a.xva"), false).unwrap();
    assert_eq!(
        (plan.guest.name.as_str(), plan.guest.memory_mib, plan.guest.cpus),
        ("web-1", 512, 2)
    );
    let disks: Vec<_> = plan
        .disks
        .iter()
        .map(|d| {
            (
                d.vdev.name().to_string(),
                d.read_only,
                d.cdrom,
                d.source.as_ref().map(|s| s.size().unwrap()),
            )
        })
        .collect();
    let expected = [
        ("xvda".to_owned(), false, false, Some(3_146_240)),
        ("xvdb".to_owned(), true, false, Some(1 << 20)),
        ("xvdd".to_owned(), true, true, None),
    ];
    assert_eq!(disks, expected);
    let nics: Vec<_> = plan
        .guest
        .nics
        .iter()
        .map(|n| (n.number, n.mac.to_string(), n.mtu, n.network.as_deref()))
        .collect();
    assert_eq!(nics[0], (0, "8a:00:00:00:00:00".into(), None, None));
    assert_eq!(nics[1], (1, "8a:00:00:00:00:01".into(), Some(9000), Some("xapi0")));
    assert_eq!(
        plan.boot,
        Boot::Disk { entry: None, append: Some("console=hvc0".into()), initrd: None }
    );
}

fn sum(data: &[u8]) -> Vec<u8> {
    hex(&Sha1::digest(data)).into_bytes()
}

fn read(files: &[(&str, &[u8])], bytes: u64) -> Result<Vec<u8>> {
    let chunks = Chunks { archive: PathBuf::new(), directory: "Ref:3".into(), bytes };
    let mut disk = vec![0; usize::try_from(bytes)?];
    chunks.read(Cursor::new(tar(files)), |at, data| {
        let at = usize::try_from(at)?;
        disk[at..at + data.len()].copy_from_slice(data);
        Ok(())
    })?;
    Ok(disk)
}

#[test]
fn disks_are_put_together() {
    let (one, two, end) = (vec![1; 1 << 20], vec![2; 1 << 20], vec![3; 512]);
    let sums = [sum(&one), sum(&two), sum(&end), sum(b"")];
    let xx = |data: &[u8]| format!("{:016x}", XxHash64::oneshot(0, data)).into_bytes();
    let hashes = [xx(&one), xx(&two), xx(&end)];
    let mut expected = one.clone();
    expected.resize(3 << 20, 0);
    expected.extend(&two);
    expected.extend(&end);
    let bytes = expected.len() as u64;
    // Zeros left out; another disk between; a file without bytes, which has a number and no place.
    let old = read(
        &[
            ("ova.xml", b""),
            ("Ref:3/00000000", &one),
            ("Ref:3/00000000.checksum", &sums[0]),
            ("Ref:33/00000000", &two),
            ("Ref:33/00000000.checksum", &sums[0]),
            ("Ref:3/00000003", &two),
            ("Ref:3/00000003.checksum", &sums[1]),
            ("Ref:3/00000004", b""),
            ("Ref:3/00000004.checksum", &sums[3]),
            ("Ref:3/00000005", &end),
            ("Ref:3/00000005.checksum", &sums[2]),
        ],
        bytes,
    );
    assert!(old.unwrap() == expected);
    let new = read(
        &[
            ("Ref:3/00000000", &one),
            ("Ref:3/00000000.xxhash", &hashes[0]),
            ("Ref:3/00000003", &two),
            ("Ref:3/00000003.xxhash", &hashes[1]),
            ("Ref:3/00000004", &end),
            ("Ref:3/00000004.xxhash", &hashes[2]),
        ],
        bytes,
    );
    assert!(new.unwrap() == expected);
}

#[test]
fn damage_is_told() {
    let one = vec![1; 1 << 20];
    let (good, bad) = (sum(&one), sum(b"x"));
    let chunk: (&str, &[u8]) = ("Ref:3/00000000", &one);
    let check: (&str, &[u8]) = ("Ref:3/00000000.checksum", &good);
    let large = vec![0; (1 << 20) + 1];
    for (files, said) in [
        (vec![chunk], "no checksum"),
        (vec![chunk, ("Ref:3/00000001", &one)], "before it has no checksum"),
        (vec![check], "of no chunk"),
        (vec![chunk, ("Ref:3/00000000.checksum", &bad)], "checksum is wrong"),
        (vec![chunk, ("Ref:3/00000000.xxhash", &good)], "checksum is wrong"),
        (vec![chunk, check], "cut short"),
        (vec![], "cut short"),
        (vec![chunk, check, chunk], "came before"),
        (vec![("Ref:3/00000002", &one)], "behind the disk's end"),
        (vec![("Ref:3/999999999999999999", &one)], "behind the disk's end"),
        (vec![("Ref:3/00000000", &large)], "more than a MiB"),
        (vec![("../../etc/passwd", b"")], "no part"),
        (vec![("/etc/passwd", b"")], "no part"),
        (vec![("Ref:3/../x", b"")], "no part"),
        (vec![("Ref:3/00000000.sh", b"")], "no part"),
        (vec![("Ref:x/00000000", b"")], "no part"),
    ] {
        let error = format!("{:#}", read(&files, 2 << 20).unwrap_err());
        assert!(error.contains(said) && error.lines().count() == 1, "{said}: {error}");
    }
}

#[test]
fn archives_that_are_none() {
    let error = |archive: Vec<u8>, as_pv| {
        format!("{:#}", plan_of(Cursor::new(archive), Path::new("a"), as_pv).unwrap_err())
    };
    assert!(error(Vec::new(), false).contains("no ova.xml"));
    assert!(error(tar(&[("Ref:3/00000000", b"")]), false).contains("no ova.xml"));
    assert!(error(tar(&[("ova.xml", b"<appliance/>")]), false).contains("first XenServers"));
    let hvm = tar(&[("ova.xml", ova(&[("HVM_boot_policy", "BIOS order")]).as_bytes())]);
    assert!(error(hvm.clone(), false).contains("--as-pv"));
    assert!(plan_of(Cursor::new(hvm.clone()), Path::new("a"), true).is_ok());
    let mut cut = hvm;
    cut.truncate(700);
    assert!(error(cut, false).contains("cut short"));
    let lost = tar(&[(
        "ova.xml",
        ova(&[])
            .replace(
                "<value>Ref:3</value></member><member><name>userdevice",
                "<value>Ref:99</value></member><member><name>userdevice",
            )
            .as_bytes(),
    )]);
    assert!(error(lost, false).contains("Ref:99 is not described"));
}

proptest! {
    #[test]
    fn any_names(path in "(Ref:|[0-9]{1,9}|/|\\.|checksum|xxhash|ova.xml|\\PC){0,6}", is_file: bool) {
        if let Ok(Entry::Chunk(directory, _)) = Entry::of(&path, is_file) {
            prop_assert!(is_file && path.starts_with(directory));
        }
    }

    #[test]
    fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = plan_of(Cursor::new(data), Path::new("a"), false);
    }
}
