//! What describes guests of Xen's: configurations, archives, descriptions, LVM's metadata.

use pontoon::image::bytes::ReadAt;
use pontoon::image::lvm::{Group, Pieces};
use pontoon::import::ovf::Machine;
use pontoon::import::xl::disk::DiskSpec;
use pontoon::import::xl::keys;
use pontoon::import::xl::syntax::{self, Value};
use pontoon::import::xl::vif::VifSpec;
use pontoon::import::xva::{self, Chunks};
use std::io::Cursor;
use std::path::Path;
use std::rc::Rc;

pub(crate) const XL_WORDS: &[&str] = &[
    "disk=[",
    "vif=[",
    "name=",
    "+=",
    "'phy:",
    "'file:",
    "'tap:aio:",
    "target=",
    "vdev=",
    "access=",
    "devtype=cdrom",
    ",xvda,w'",
    ":cdrom",
    "mac=00:16:3e:",
    "bridge=",
    "\\x41",
    "kernel=",
];
pub(crate) const LVM_WORDS: &[&str] = &[
    "extent_size = ",
    "physical_volumes",
    "logical_volumes",
    "segment1",
    "start_extent = ",
    "extent_count = ",
    "type = \"striped\"",
    "stripe_count = 1",
    "stripes = [",
    "status = [",
    "\"VISIBLE\"",
    "pe_start = ",
    "id = \"x\"",
];

/// Configurations: what is read names its line, and devices have numbers.
pub(crate) fn xlcfg(data: &[u8]) {
    let settings = match syntax::parse(data) {
        Ok(settings) => settings,
        Err(error) => {
            assert!(error.to_string().starts_with("line "));
            return;
        }
    };
    let lines = data.iter().filter(|&&byte| byte == b'\n').count() + 1;
    for setting in &settings {
        assert!((1..=lines).contains(&setting.line));
        let twice = settings.iter().filter(|other| other.name == setting.name).count();
        assert_eq!(twice, 1);
        let _ = (keys::why_left_out(&setting.name), keys::similar(&setting.name));
        specifications(&setting.value);
    }
}

fn specifications(value: &Value) {
    match value {
        Value::List(items) => items.iter().for_each(specifications),
        Value::Text(text) => {
            if let Ok(disk) = DiskSpec::parse(text) {
                assert!(disk.vdev.number().is_some());
                assert!(disk.cdrom || disk.target.is_some());
            }
            if let Ok(vif) = VifSpec::parse(text) {
                assert!(vif.mac.is_none_or(|mac| mac.0[0] & 1 == 0));
            }
        }
    }
}

/// Archives: a disk's bytes come in order, within the disk, and to its end, or there is an error.
pub(crate) fn xva(data: &[u8]) {
    const BYTES: u64 = (1 << 20) + 512;
    let _ = xva::plan_of(Cursor::new(data), Path::new("a.xva"), true);
    let chunks = Chunks { archive: "a.xva".into(), directory: "Ref:1".into(), bytes: BYTES };
    let mut next = 0;
    let read = chunks.read(Cursor::new(data), |at, data| {
        assert!(at >= next);
        next = at + data.len() as u64;
        assert!(next <= BYTES);
        Ok(())
    });
    assert!(read.is_err() || next == BYTES);
}

/// Descriptions in XML.
pub(crate) fn ovf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Machine::parse(text);
    let _ = pontoon::import::xva_xml::objects(text);
}

/// LVM's label and metadata; and the text alone, which is otherwise behind its checksum. Pieces
/// are on the volume.
pub(crate) fn lvm(data: &[u8]) {
    const LEN: usize = 1 << 20;
    let _ = Group::read(&data.to_vec());
    let Ok(group) = Group::from_text(data, "x", LEN as u64) else { return };
    let whole: Rc<dyn ReadAt> = Rc::new(vec![0; LEN]);
    for volume in group.volumes {
        let Ok(pieces) = volume.pieces else { continue };
        assert!(!pieces.is_empty());
        assert!(pieces.iter().all(|piece| piece.start + piece.len <= LEN as u64));
        let volume = Pieces::new(Rc::clone(&whole), pieces);
        let mut last = [0; 1];
        if let Some(at) = volume.len().checked_sub(1) {
            assert!(volume.read_at(at, &mut last).is_ok());
        }
        assert!(volume.read_at(volume.len(), &mut last).is_err());
    }
}

pub(crate) fn xl_seeds() -> Vec<Vec<u8>> {
    vec![
        b"# guest\nname = 'web'\nmemory=0x200;vcpus = 2\nkernel = \"/boot/k\"\nextra = 'a'\nextra += ' b'\n\
          disk = [ 'phy:/dev/vg0/a,xvda1,w',\n'format=qcow2, vdev=xvdb, access=ro, target=/a,b', ',hdc:cdrom,r' ]\n\
          vif = [ 'mac=00:16:3e:00:00:01,bridge=xenbr0,mtu=9000', '' ]\n"
            .to_vec(),
        b"disk=['tap:aio:/a,sda1,r','/b,,xvdaa,discard','vhd:/c,51712,w']\nvif=['devid=3, rate=1Mb/s']\n".to_vec(),
    ]
}

pub(crate) fn lvm_seeds() -> Vec<Vec<u8>> {
    vec![b"contents = \"x\" # text\nvg0 {\nid = \"y\"\nextent_size = 8\nphysical_volumes {\npv0 {\nid = \"x\"\npe_start = 8\n}\n}\n\
        logical_volumes {\nroot {\nstatus = [\"READ\", \"VISIBLE\"]\nsegment1 {\nstart_extent = 0\nextent_count = 2\ntype = \"striped\"\n\
        stripe_count = 1\nstripes = [\n\"pv0\", 3\n]\n}\nsegment2 {\nstart_extent = 2\nextent_count = 1\ntype = \"striped\"\nstripe_count = 1\n\
        stripes = [\"pv0\", 0]\n}\n}\n}\n}\n"
        .to_vec()]
}

pub(crate) fn ovf_seeds() -> Vec<Vec<u8>> {
    vec![
        b"<Envelope xmlns:o='x'><References><File o:id='f' o:href='a.vhd'/></References><DiskSection><Disk o:diskId='d' o:fileRef='f'/></DiskSection>\
          <VirtualSystem o:id='g'><VirtualHardwareSection><System><VirtualSystemType>xen</VirtualSystemType></System>\
          <Item><ResourceType>4</ResourceType><AllocationUnits>byte * 2^20</AllocationUnits><VirtualQuantity>64</VirtualQuantity></Item>\
          <Item><ResourceType>17</ResourceType><HostResource>ovf:/disk/d</HostResource><AddressOnParent>0</AddressOnParent></Item>\
          <Item><ResourceType>10</ResourceType><Address>00:16:3e:00:00:01</Address></Item></VirtualHardwareSection></VirtualSystem></Envelope>"
            .to_vec(),
        OVA.to_vec(),
    ]
}

const OVA: &[u8] = b"<value><struct><member><name>objects</name><value><array><data><value><struct><member><name>class</name><value>VM</value></member>\
    <member><name>id</name><value>Ref:0</value></member><member><name>snapshot</name><value><struct><member><name>memory_static_max</name>\
    <value>67108864</value></member></struct></value></member></struct></value></data></array></value></member></struct></value>";

pub(crate) fn xva_seeds() -> Vec<Vec<u8>> {
    let mut archive = Vec::new();
    for (name, data) in [
        ("ova.xml", OVA),
        ("Ref:1/00000001", &[7; 512]),
        ("Ref:1/00000001.checksum", b"0000000000000000000000000000000000000000"),
    ] {
        // A header of the oldest form: name, mode, owner, size, time, checksum, kind.
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000400\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend(header);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    vec![archive]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read() {
        for seed in xl_seeds() {
            assert!(syntax::parse(&seed).is_ok());
        }
        let group = Group::from_text(&lvm_seeds()[0], "x", 1 << 20).unwrap();
        assert!(group.volumes[0].pieces.is_ok());
        let [ovf, ova] = ovf_seeds().try_into().unwrap();
        assert!(Machine::parse(std::str::from_utf8(&ovf).unwrap()).is_ok());
        assert!(pontoon::import::xva_xml::objects(std::str::from_utf8(&ova).unwrap()).is_ok());
        assert!(xva::plan_of(Cursor::new(&xva_seeds()[0]), Path::new("a"), false).is_ok());
    }
}
