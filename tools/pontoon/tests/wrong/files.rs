//! The files the commands are given.

use sha1::{Digest, Sha1};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Makes them.
pub struct Files<'a>(&'a Path);

impl Files<'_> {
    /// All of them, in `dir`.
    pub fn make(dir: &Path) {
        let files = Files(dir);
        for name in ["tmp", "dir", "exists"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        files.kernels();
        files.images();
        files.configurations();
        files.archives();
        files.descriptions();
    }

    fn put(&self, name: &str, data: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), data).unwrap();
    }

    fn run(&self, program: &str, args: &str) {
        let mut command = Command::new(program);
        command
            .args(args.split(' '))
            .current_dir(self.0)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let out = command.output().unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(out.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn kernels(&self) {
        let pv = elf(&[
            (5, b"xen-3.0\0"),
            (6, b"linux\0"),
            (3, &BASE.to_le_bytes()),
            (1, &(BASE + 0x10_0010).to_le_bytes()),
        ]);
        self.put("pv.elf", &pv);
        self.put("hvm.elf", elf(&[]));
        self.put("pvh.elf", elf(&[(18, &0x10_0000u32.to_le_bytes())]));
        let mut elf32 = pv.clone();
        (elf32[4], elf32[18]) = (1, 3);
        self.put("elf32.elf", elf32);
        let needs = elf(&[
            (5, b"xen-3.0\0"),
            (6, b"linux\0"),
            (3, &BASE.to_le_bytes()),
            (10, b"!auto_translated_physmap\0"),
        ]);
        self.put("needs.elf", needs);
        let mut bzimage = vec![0; 1024];
        bzimage[0x1f1] = 1;
        bzimage[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
        bzimage[0x24c..0x250].copy_from_slice(&100_000u32.to_le_bytes());
        self.put("cut.bzimage", bzimage);
        self.put("application", b"MZ");
    }

    fn images(&self) {
        self.put("empty", b"");
        let noise: Vec<u8> =
            (0u32..2 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        self.put("noise.img", &noise);
        self.put("odd.img", &noise[..1000]);
        self.put("disk.gz", b"\x1f\x8b\x08\x00");
        let mut xfs = vec![0; 1 << 20];
        xfs[..4].copy_from_slice(b"XFSB");
        self.put("xfs.img", xfs);
        for (name, kernel) in [("root", "pv.elf"), ("hvmroot", "hvm.elf"), ("bare", "")] {
            let tree = self.0.join("tree");
            fs::create_dir_all(tree.join("boot/grub")).unwrap();
            if !kernel.is_empty() {
                fs::copy(self.0.join(kernel), tree.join("boot/vmlinuz")).unwrap();
                let menu = "menuentry one {\nlinux /boot/vmlinuz root=/dev/xvda1 console=hvc0\n}\n";
                fs::write(tree.join("boot/grub/grub.cfg"), menu).unwrap();
            }
            self.run("mke2fs", &format!("-q -F -t ext4 -d tree {name}.img 4M"));
            fs::remove_dir_all(tree).unwrap();
        }
        let root = fs::read(self.0.join("root.img")).unwrap();
        self.put("cut.img", &root[..1 << 20]);
        self.run("qemu-img", "create -q -f qcow2 -F raw -b root.img overlay.qcow2");
        self.run("qemu-img", "convert -f raw -O vhdx root.img root.vhdx");
        let vhdx = fs::read(self.0.join("root.vhdx")).unwrap();
        self.put("cut.vhdx", &vhdx[..1 << 20]);
        let mut lvm = vec![0; 1 << 20];
        lvm[512..520].copy_from_slice(b"LABELONE");
        lvm[536..544].copy_from_slice(b"LVM2 001");
        self.put("lvm.img", lvm);
    }

    fn configurations(&self) {
        for (name, text) in CONFIGURATIONS {
            self.put(&format!("{name}.cfg"), format!("name = 'web'\n{text}\n"));
        }
        self.put("noname.cfg", "memory = 64\n");
        self.put("latin.cfg", b"name = 'caf\xe9'\n");
        let disks: Vec<_> = (0..64).map(|n| format!("'root.img,,d{n}'")).collect();
        self.put(
            "many.cfg",
            format!("name = 'web'\nkernel = 'pv.elf'\ndisk = [ {} ]\n", disks.join(", ")),
        );
        self.put(
            "long.cfg",
            format!("name = 'web'\nkernel = 'pv.elf'\nextra = '{}'\n", "x".repeat(1024)),
        );
    }

    fn archives(&self) {
        let mib = vec![1; 1 << 20];
        let sum: String = Sha1::digest(&mib).iter().map(|byte| format!("{byte:02x}")).collect();
        let chunk: (&str, &[u8]) = ("Ref:3/00000000", &mib);
        let check: (&str, &[u8]) = ("Ref:3/00000000.checksum", sum.as_bytes());
        let ova = ova("");
        let about: (&str, &[u8]) = ("ova.xml", ova.as_bytes());
        let hvm =
            self::ova("<member><name>HVM_boot_policy</name><value>BIOS order</value></member>");
        let mut whole = tar(&[about, chunk, check], b'0');
        self.put("whole.xva", &whole);
        whole.truncate(100_000);
        self.put("cut.xva", &whole);
        self.put("lacks.xva", tar(&[about], b'0'));
        self.put("sum.xva", tar(&[about, chunk, ("Ref:3/00000000.checksum", b"00")], b'0'));
        self.put("unsummed.xva", tar(&[about, chunk], b'0'));
        self.put("leaves.xva", tar(&[("../../etc/cron.d/x", b"x"), about], b'0'));
        self.put("leaves-later.xva", tar(&[about, ("Ref:3/../../x", b"x")], b'0'));
        self.put("link.xva", tar(&[("ova.xml", b"")], b'2'));
        self.put("nothing.xva", tar(&[chunk, check], b'0'));
        self.put("first.xva", tar(&[("ova.xml", b"<appliance version='0.1'/>")], b'0'));
        self.put("xml.xva", tar(&[("ova.xml", b"<value><struct>")], b'0'));
        self.put("hvm.xva", tar(&[("ova.xml", hvm.as_bytes())], b'0'));
    }

    fn descriptions(&self) {
        for (name, from, to) in [
            ("good", "", ""),
            ("leaves", "root.img", "../root.img"),
            ("absolute", "root.img", "/etc/passwd"),
            ("remote", "root.img", "http://host/root.img"),
            ("lost", "root.img", "none.img"),
            ("packed", "ovf:href", "ovf:compression='gzip' ovf:href"),
            ("two", "</Envelope>", "<VirtualSystem/></Envelope>"),
            ("broken", "</Envelope>", ""),
            ("units", "byte * 2^20", "pages"),
            (
                "hvmlike",
                "<System/>",
                "<System><VirtualSystemType>hvm-3.0</VirtualSystemType></System>",
            ),
            ("summed", "", ""),
        ] {
            self.put(&format!("{name}.ovf"), OVF.replace(from, to));
        }
        self.put("html.ovf", "<html></html>");
        self.put("summed.mf", "SHA1(root.img)= 00\n");
    }
}

const CONFIGURATIONS: [(&str, &str); 31] = [
    ("good", "kernel = 'pv.elf'\ndisk = ['root.img,,xvda']\nvif = ['mac=00:16:3e:00:00:01']"),
    ("unknown", "vcpu = 2"),
    ("hvm", "type = 'hvm'"),
    ("old-hvm", "builder = 'hvm'"),
    ("pvh", "type = 'pvh'"),
    ("python", "import os"),
    ("arithmetic", "memory = 2 * 64"),
    ("open", "extra = 'quiet"),
    ("commas", "disk = [ 'a' 'b' ]"),
    ("number", "memory = 'much'"),
    ("little", "memory = 1\nkernel = 'pv.elf'"),
    ("list", "kernel = ['pv.elf']"),
    ("nodisk", "kernel = 'pv.elf'\ndisk = ['/dev/vg/none,,xvda']"),
    ("vdev", "kernel = 'pv.elf'\ndisk = ['root.img,,vda']"),
    ("vdevs", "kernel = 'pv.elf'\ndisk = ['root.img,,xvda', 'bare.img,,xvda']"),
    ("directory", "kernel = 'pv.elf'\ndisk = ['dir,,xvda']"),
    ("script", "kernel = 'pv.elf'\ndisk = ['iscsi:x,xvda,w']"),
    ("format", "kernel = 'pv.elf'\ndisk = ['root.img,vmdk,xvda']"),
    ("notqcow2", "kernel = 'pv.elf'\ndisk = ['root.img,qcow2,xvda']"),
    ("overlay", "kernel = 'pv.elf'\ndisk = ['overlay.qcow2,qcow2,xvda']"),
    ("mac", "kernel = 'pv.elf'\nvif = ['mac=01:00:00:00:00:01']"),
    ("macs", "kernel = 'pv.elf'\nvif = ['mac=00:16:3e:00:00:01', 'mac=00:16:3e:00:00:01']"),
    ("vif", "kernel = 'pv.elf'\nvif = ['mak=1']"),
    ("nokernel", "kernel = '/boot/none'"),
    ("notpv", "kernel = 'hvm.elf'"),
    ("loader", "bootloader = '/usr/bin/pypxeboot'\ndisk = ['root.img,,xvda']"),
    ("diskless", "memory = 64"),
    ("bare", "disk = ['bare.img,,xvda']"),
    ("cpus", "kernel = 'pv.elf'\nvcpus = 65"),
    ("uuid", "kernel = 'pv.elf'\nuuid = '1234'"),
    ("cdrom", "kernel = 'pv.elf'\ndisk = [',hdc:cdrom,r']"),
];

const OVF: &str = "<Envelope xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1'>\
    <References><File ovf:id='f' ovf:href='root.img'/></References>\
    <DiskSection><Disk ovf:diskId='d' ovf:fileRef='f'/></DiskSection>\
    <VirtualSystem ovf:id='web'><VirtualHardwareSection><System/>\
    <Item><ResourceType>4</ResourceType><AllocationUnits>byte * 2^20</AllocationUnits><VirtualQuantity>64</VirtualQuantity></Item>\
    <Item><ResourceType>17</ResourceType><HostResource>ovf:/disk/d</HostResource></Item>\
    </VirtualHardwareSection></VirtualSystem></Envelope>";

const BASE: u64 = 0xffff_ffff_8000_0000;

/// A kernel of two segments, Xen's notes and code; without notes it is none of Xen's.
fn elf(notes: &[(u32, &[u8])]) -> Vec<u8> {
    const HEADERS: usize = 64 + 2 * 56;
    const LOAD: u64 = 0x10_0000;
    let mut notes_bytes = Vec::new();
    for (kind, data) in notes {
        for word in [4, data.len() as u32, *kind] {
            notes_bytes.extend(word.to_le_bytes());
        }
        notes_bytes.extend(b"Xen\0");
        notes_bytes.extend(*data);
        notes_bytes.resize(notes_bytes.len().next_multiple_of(4), 0);
    }
    let mut file = vec![0u8; HEADERS];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[24..32].copy_from_slice(&(LOAD + 16).to_le_bytes());
    file[32] = 64;
    file[54..58].copy_from_slice(&[56, 0, 2, 0]);
    let (at, len) = (HEADERS as u64, notes_bytes.len() as u64);
    let segments = [[4, at, 0, 0, len, len], [1 | 7 << 32, at + len, LOAD, LOAD, 64, 0x3000]];
    for (header, words) in file[64..].chunks_exact_mut(56).zip(segments) {
        for (to, word) in header.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }
    file.extend(notes_bytes);
    file.extend([0x90; 64]);
    file
}

fn ova(more: &str) -> String {
    let member = |name: &str, value: &str| {
        format!("<member><name>{name}</name><value>{value}</value></member>")
    };
    let object = |class: &str, id: &str, fields: String| {
        let fields = member("snapshot", &format!("<struct>{fields}</struct>"));
        format!(
            "<value><struct>{}{}{fields}</struct></value>",
            member("class", class),
            member("id", id)
        )
    };
    let objects = [
        object(
            "VM",
            "Ref:0",
            member("name_label", "web") + &member("memory_static_max", "67108864") + more,
        ),
        object(
            "VBD",
            "Ref:1",
            member("VM", "Ref:0") + &member("VDI", "Ref:3") + &member("userdevice", "0"),
        ),
        object("VDI", "Ref:3", member("virtual_size", "1048576")),
    ];
    let list = format!("<array><data>{}</data></array>", objects.concat());
    format!("<value><struct>{}</struct></value>", member("objects", &list))
}

/// An archive, with names as they are, of entries of one kind.
fn tar(files: &[(&str, &[u8])], kind: u8) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_entry_type(tar::EntryType::new(kind));
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}
