use proptest::prelude::*;

use super::*;

#[test]
fn numbers_of_the_interface() {
    // xen-vbd-interface(7).
    let cases = [
        ("xvda", 202 << 8, "xvda"),
        ("d0", 202 << 8, "xvda"),
        ("d0p0", 202 << 8, "xvda"),
        ("xvdb2", 202 << 8 | 1 << 4 | 2, "xvdb2"),
        ("d1p2", 202 << 8 | 1 << 4 | 2, "xvdb2"),
        ("xvdp15", 202 << 8 | 15 << 4 | 15, "xvdp15"),
        ("xvda16", 1 << 28 | 16, "xvda16"),
        ("xvdq", 1 << 28 | 16 << 8, "xvdq"),
        ("xvdtq37", 1 << 28 | 536 << 8 | 37, "xvdtq37"),
        ("d536p37", 1 << 28 | 536 << 8 | 37, "xvdtq37"),
        ("sdb3", 8 << 8 | 1 << 4 | 3, "sdb3"),
        ("hdc2", 22 << 8 | 2, "hdc2"),
        ("hdb63", 3 << 8 | 1 << 6 | 63, "hdb63"),
        ("51712", 202 << 8, "xvda"),
        ("0xca10", 202 << 8 | 16, "xvdb"),
        ("0145000", 202 << 8, "xvda"),
    ];
    for (text, number, name) in cases {
        let vdev = Vdev::parse(text).unwrap_or_else(|| panic!("{text} is one"));
        assert_eq!(vdev.number(), Some(number), "{text}");
        assert_eq!(Vdev::from_number(number), Some(vdev), "{text}");
        assert_eq!(vdev.name().as_str(), name);
    }
    let none = [
        "",
        "xvd",
        "xvda0",
        "xvda256",
        "sdq",
        "sda16",
        "hde",
        "hda64",
        "d",
        "dp1",
        "d1p",
        "d+1",
        "xvdA",
        "xvda01",
        "vda",
        "1",
        "0x20000000",
        "xvdzzzzzzzzzz",
        "d1048576",
        "-1",
    ];
    for text in none {
        assert_eq!(Vdev::parse(text), None, "{text}");
    }
    // Deprecated encodings, and extended ones of what has a plain one.
    for number in [0, 65 << 8, 33 << 8, 2 << 28, 1 << 28, 1 << 28 | 15 << 8 | 15, u32::MAX] {
        assert_eq!(Vdev::from_number(number), None, "{number:#x}");
    }
}

proptest! {
    #[test]
    fn numbers_and_names_go_both_ways(number: u32, disk in 0..1u32 << 20, partition in 0..256u16) {
        for number in [Some(number), Vdev { partition, ..Vdev::xvd(disk) }.number()] {
            if let Some(vdev) = number.and_then(Vdev::from_number) {
                prop_assert_eq!(vdev.number(), number);
                prop_assert_eq!(Vdev::parse(&vdev.name()), Some(vdev));
            }
        }
    }

    #[test]
    fn names_are_read_or_refused(text in "(xvd|sd|hd|d|0x|)[a-z0-9p]{0,8}") {
        if let Some(vdev) = Vdev::parse(&text) {
            prop_assert!(vdev.number().is_some());
        }
    }

    #[test]
    fn any_option(text in "[a-z0-9:,]{0,60}") {
        if let Ok(entries) = parse(&text) {
            prop_assert!(entries.iter().all(|entry| entry.vdev.number().is_some()));
        }
    }
}

#[test]
fn none_alone_is_no_disk() {
    assert_eq!(parse("none").map(|entries| entries.len()), Ok(0));
    assert_eq!(parse("none,xvda:scsi0:0"), Err(BadOption::Source(0)));
}

fn lun(controller: u16, target: u8, lun: u8) -> Lun {
    Lun { controller: Controller::Scsi(controller), target, lun }
}

#[test]
fn options() {
    let entries =
        parse("xvda:scsi0:0,sda1:scsi0:1p2,xvdc:scsi1:3:4p1:ro,hdc:scsi0:5:cdrom").unwrap();
    let found: std::vec::Vec<_> = entries
        .iter()
        .map(|e| {
            (
                std::string::String::from(e.vdev.name().as_str()),
                e.source.lun,
                e.source.partition,
                e.flags,
            )
        })
        .collect();
    let ro = Flags { read_only: true, cdrom: false };
    let cdrom = Flags { read_only: true, cdrom: true };
    let expected = [
        ("xvda", lun(0, 0, 0), None, Flags::default()),
        ("sda1", lun(0, 0, 1), Some(2), Flags::default()),
        ("xvdc", lun(1, 3, 4), Some(1), ro),
        ("hdc", lun(0, 0, 5), None, cdrom),
    ];
    assert_eq!(found, expected.map(|(name, lun, p, flags)| (name.into(), lun, p, flags)));
    assert!(parse("").unwrap().is_empty());
    for (text, bad) in [
        ("xvda", BadOption::Source(0)),
        ("xvda:", BadOption::Source(0)),
        ("xvda:ide0", BadOption::Source(0)),
        ("xvda:ide:0", BadOption::Source(0)),
        ("xvda:ide0:0:1", BadOption::Flag(0)),
        ("xvda:ide0:1,xvdb:ide0:1", BadOption::Twice(1)),
        ("xvda:scsi0", BadOption::Source(0)),
        ("xvda:scsi0:256", BadOption::Source(0)),
        ("xvda:scsi0:0p0", BadOption::Source(0)),
        ("xvda:scsi0:00", BadOption::Source(0)),
        ("vda:scsi0:0", BadOption::Name(0)),
        ("xvda:scsi0:0,xvdb:scsi0:1:rx", BadOption::Flag(1)),
        ("xvda:scsi0:0,xvda:scsi0:1", BadOption::Twice(1)),
        ("xvda:scsi0:0,xvdb:scsi0:0p1", BadOption::Twice(1)),
        ("xvda1:scsi0:0p1,xvdb:scsi0:0p1", BadOption::Twice(1)),
    ] {
        assert_eq!(parse(text).unwrap_err(), bad, "{text}");
    }
    // The same data twice is fine where nobody writes it; so are two partitions.
    assert_eq!(parse("xvda:scsi0:0:ro,xvdb:scsi0:0:ro").unwrap().len(), 2);
    assert_eq!(parse("xvda1:scsi0:0p1,xvda2:scsi0:0p2").unwrap().len(), 2);
    let ide = |controller, target| Lun { controller: Controller::Ide(controller), target, lun: 0 };
    let entries = parse("xvda:ide1:0,sda1:ide0:1p2:ro,xvdb:scsi1:0").unwrap();
    let places: std::vec::Vec<_> =
        entries.iter().map(|e| (e.source.lun, e.source.partition, e.flags.read_only)).collect();
    assert_eq!(
        places,
        [(ide(1, 0), None, false), (ide(0, 1), Some(2), true), (lun(1, 0, 0), None, false)]
    );
    assert!(ide(0, 1) < ide(1, 0) && ide(1, 1) < lun(0, 0, 0));
    assert_eq!(std::format!("{} {}", ide(1, 0), lun(2, 0, 3)), "ide1:0 scsi2:0:3");
    let many: std::vec::Vec<_> = (0..65).map(|n| std::format!("d{n}:scsi0:{n}")).collect();
    assert_eq!(parse(&many.join(",")).unwrap_err(), BadOption::TooMany);
    let entry = default_entry(1, lun(0, 0, 7), true);
    assert_eq!((entry.vdev.name().as_str(), entry.flags), ("xvdb", cdrom));
}
