use super::*;
use crate::pack::disk::Source;
use crate::pack::plan::Medium;
use std::path::Path;

/// A directory with a few files, and a host that knows them.
fn host() -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().unwrap();
    let mut map = Vec::new();
    for (path, file) in [
        ("/dev/vg0/web-root", "root.img"),
        ("/dev/vg0/web-swap", "swap.img"),
        ("/srv/cd.iso", "cd.iso"),
        ("/boot/vmlinuz", "vmlinuz"),
        ("/boot/initrd", "initrd"),
    ] {
        let file = dir.path().join(file);
        std::fs::write(&file, [0; 1024]).unwrap();
        map.push(format!("{path}={}", file.display()));
    }
    let host = Host::new(&map, &[], Path::new("")).unwrap();
    (dir, host)
}

const WEB: &str = r#"
# A guest as xen-create-image makes it
kernel      = '/boot/vmlinuz'
extra       = 'elevator=noop console=hvc0'
ramdisk     = '/boot/initrd'
vcpus       = '2'
maxvcpus    = 4
memory      = '512'
maxmem      = 1024
root        = '/dev/xvda2 ro'
disk        = [
                  'phy:/dev/vg0/web-root,xvda2,w',
                  'phy:/dev/vg0/web-swap,xvda1,w',
                  'file:/srv/cd.iso,hdc:cdrom,r',
              ]
name        = 'web'
uuid        = '00112233-4455-6677-8899-aabbccddeeff'
vif         = [ 'mac=00:16:3E:11:22:33,bridge=xenbr0,rate=10Mb/s', '' ]
on_poweroff = 'destroy'
on_crash    = 'restart'
"#;

#[test]
fn a_guest_becomes_a_plan() {
    let (_dir, host) = host();
    let plan = plan(WEB.as_bytes(), &host, Reading::default()).unwrap();
    assert_eq!((plan.guest.name.as_str(), plan.guest.memory_mib, plan.guest.cpus), ("web", 512, 4));
    assert_eq!(plan.guest.online, Some(2));
    assert_eq!(plan.guest.uuid.as_deref(), Some("00112233-4455-6677-8899-aabbccddeeff"));
    let Boot::Files { kernel, initrd, cmdline } = &plan.boot else { panic!("{:?}", plan.boot) };
    assert!(kernel.ends_with("vmlinuz") && initrd.as_ref().unwrap().ends_with("initrd"));
    assert_eq!(cmdline, "root=/dev/xvda2 ro elevator=noop console=hvc0");
    let names: Vec<_> = plan.disks.iter().map(|disk| disk.vdev.name().to_string()).collect();
    assert_eq!(names, ["xvda2", "xvda1", "hdc"]);
    assert!(plan.disks[2].cdrom && plan.disks[2].read_only);
    let Some(Source::File(disk)) = &plan.disks[0].source else { panic!() };
    assert!(disk.path.ends_with("root.img"));
    let words = plan.guest.words(&plan.places(Medium::Vhdx).unwrap()).unwrap();
    assert_eq!(words[3], "pontoon.vbd=xvda2:scsi0:1,xvda1:scsi0:2,hdc:scsi0:3:cdrom");
    let made = Mac::made_for("web", 1);
    assert_eq!(words[4], format!("pontoon.vif=00:16:3e:11:22:33=0,{made}=1"));
    let text = plan.text(Medium::Vhdx).unwrap();
    for part in [
        "web: 512 MiB, 4 processors, 2 of them online",
        "root.img (raw, 1 KiB) -> web-xvda2.vhdx, SCSI 0:1",
        "-> web-hdc.iso, SCSI 0:3, CD-ROM",
        "vif0   00:16:3e:11:22:33, was on xenbr0",
        "not carried over: on_crash (line 20): what the machine does at its end",
        "not carried over: maxmem = 1024",
        "not carried over: rate=10Mb/s of vif 0",
        "not carried over: the address of vif 1",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    assert!(plan.places(Medium::Vhd).unwrap_err().to_string().contains("hdc is a CD-ROM drive"));
}

#[test]
fn pygrub_leads_to_the_first_disk() {
    let (_dir, host) = host();
    let file = "name='a'\nbootloader='/usr/bin/pygrub'\nbootloader_args=['--entry=1','--args=b']\n\
        extra='a'\ndisk=['/dev/vg0/web-root,,xvda']\n";
    let plan = plan(file.as_bytes(), &host, Reading::default()).unwrap();
    let expected = Boot::Disk { entry: Some("1".into()), append: Some("a b".into()), initrd: None };
    assert_eq!((plan.boot, plan.guest.memory_mib, plan.guest.cpus), (expected, DEFAULT_MIB, 1));
    assert_eq!(plan.left_out, Vec::<String>::new());
}

#[test]
fn what_is_wrong_is_said_in_a_line() {
    let (_dir, host) = host();
    let error = |file: &str| {
        let error = format!("{:#}", plan(file.as_bytes(), &host, Reading::default()).unwrap_err());
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    };
    for (file, said) in [
        ("memory=1", "gives the guest no name"),
        ("name='a'\nvcpu=2", "line 2: the key \"vcpu\" is unknown; vcpus is known"),
        ("name='a'\nfrobnicate=2", "line 2: the key \"frobnicate\" is unknown"),
        ("name='a'\ntype='hvm'", "HVM"),
        ("name='a'\nbuilder='hvm'", "HVM"),
        ("name='a'\ntype='pvh'", "PVH"),
        ("name='a'\ntype='x'", "pv, hvm or pvh"),
        ("name='a'\nmemory='much'", "line 2: memory = much"),
        ("name=['a']", "line 1: name is a string"),
        ("name='a'\ndisk=[['a']]", "line 2: disk is a list of strings"),
        (
            "name='a'\ndisk=['/dev/vg0/web-root,,vda']",
            "line 2: disk \"/dev/vg0/web-root,,vda\": \"vda\" is no",
        ),
        ("name='a'\ndisk=['/dev/vg0/no,,xvda']", "--map /dev/vg0/no=FILE"),
        ("name='a'\ndisk=['/dev/vg0/web-root,,xvda','/dev/vg0/web-swap,,xvda']", "two disks xvda"),
        ("name='a'\ndisk=['/tmp,,xvda']", "is a directory"),
        ("name='a'\nvif=['mac=1']", "line 2: vif \"mac=1\""),
        ("name='a'\nvif=['','devid=0']", "two interfaces 0"),
        ("name='a'\nkernel='/boot/none'", "--map /boot/none=FILE"),
        ("name='a'\nkernel='/tmp'", "no file"),
        ("name='a'\nbootloader='pypxeboot'", "pypxeboot"),
    ] {
        assert!(error(file).contains(said), "{file}: {}", error(file));
    }
    let reading = Reading { ignores_unknown: true, as_pv: true };
    let plan = plan(b"name='a'\nfrobnicate=2\ntype='hvm'", &host, reading).unwrap();
    assert_eq!(plan.left_out, ["frobnicate (line 2): nobody knows it"]);
}
