use super::*;
use proptest::prelude::*;

const WEB: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References><File ovf:id="f1" ovf:href="root.vhd"/><File ovf:id="f2" ovf:href="data.img"/></References>
  <DiskSection><Info/><Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="1048576"/>
    <Disk ovf:diskId="d2" ovf:fileRef="f2" ovf:capacity="1"/></DiskSection>
  <VirtualSystem ovf:id="x"><Info/><Name>web server</Name>
    <VirtualHardwareSection><Info/>
      <System><vssd:VirtualSystemType>xen-3.0-x86_64</vssd:VirtualSystemType></System>
      <Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
      <Item><rasd:ResourceType>6</rasd:ResourceType><rasd:InstanceID>5</rasd:InstanceID></Item>
      <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d2</rasd:HostResource><rasd:Parent>5</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:Parent>5</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:ResourceType>15</rasd:ResourceType></Item>
      <Item><rasd:ElementName>sound</rasd:ElementName><rasd:ResourceType>35</rasd:ResourceType></Item>
      <Item><rasd:Address>00:16:3e:00:00:01</rasd:Address><rasd:Connection>LAN</rasd:Connection><rasd:ResourceType>10</rasd:ResourceType></Item>
      <VirtualSystemOtherConfigurationData ovf:required="false" Name="PV_args"><Value>console=hvc0</Value></VirtualSystemOtherConfigurationData>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>"#;

fn files(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("root.vhd"), [1; 512]).unwrap();
    fs::write(dir.path().join("data.img"), [2; 512]).unwrap();
    let path = dir.path().join("web.ovf");
    fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn a_machine_becomes_a_plan() {
    let (_dir, path) = files(WEB);
    let plan = plan(&path, false).unwrap();
    assert_eq!(
        (plan.guest.name.as_str(), plan.guest.memory_mib, plan.guest.cpus),
        ("web-server", 512, 2)
    );
    let files: Vec<_> = plan
        .disks
        .iter()
        .map(|disk| match &disk.source {
            Some(Source::File(file)) => {
                format!("{} {}", disk.vdev.name(), file.path.file_name().unwrap().display())
            }
            _ => format!("{} -", disk.vdev.name()),
        })
        .collect();
    assert_eq!(files, ["xvda root.vhd", "xvdb data.img", "xvdc -"]);
    assert!(plan.disks[2].cdrom);
    assert_eq!(
        (plan.guest.nics[0].mac.to_string().as_str(), plan.guest.nics[0].network.as_deref()),
        ("00:16:3e:00:00:01", Some("LAN"))
    );
    assert_eq!(
        plan.boot,
        Boot::Disk { entry: None, append: Some("console=hvc0".into()), initrd: None }
    );
    assert!(plan.left_out[0].contains("\"sound\""));
}

#[test]
fn what_is_wrong_is_said() {
    for (from, to, said) in [
        ("root.vhd", "../root.vhd", "no file of the description's own"),
        ("root.vhd", "/etc/passwd", "no file of the description's own"),
        ("root.vhd", "http://x/root.vhd", "no file of the description's own"),
        ("root.vhd", "none.vhd", "none.vhd"),
        ("ovf:id=\"f1\"", "ovf:id=\"f9\"", "not described"),
        ("ovf:/disk/d1", "ovf:/disk/d9", "not described"),
        ("ovf:id=\"f1\"", "ovf:id=\"f1\" ovf:compression=\"gzip\"", "compressed"),
        ("byte * 2^20", "pages", "memory in \"pages\""),
        (
            "<VirtualSystem ovf:id=\"x\">",
            "<VirtualSystem/><VirtualSystem ovf:id=\"x\">",
            "2 machines",
        ),
        ("xen-3.0-x86_64", "hvm-3.0-x86_64", "--as-pv"),
        ("00:16:3e:00:00:01", "00:16:3e", "no address"),
        ("</Envelope>", "", "no XML"),
    ] {
        let (_dir, path) = files(&WEB.replace(from, to));
        let error = format!("{:#}", plan(&path, false).unwrap_err());
        assert!(error.contains(said) && error.lines().count() == 1, "{to}: {error}");
    }
    let (dir, path) = files(WEB);
    fs::remove_file(dir.path().join("root.vhd")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("root.vhd")).unwrap();
    assert!(format!("{:#}", plan(&path, false).unwrap_err()).contains("is no file"));
}

#[test]
fn manifests_are_checked() {
    let (dir, path) = files(WEB);
    let manifest = dir.path().join("web.mf");
    let sum = digest::<Sha256>(&dir.path().join("root.vhd")).unwrap();
    let short = digest::<Sha1>(&dir.path().join("data.img")).unwrap().to_uppercase();
    fs::write(&manifest, format!("SHA256(root.vhd)= {sum}\nSHA1(data.img)={short}\n")).unwrap();
    plan(&path, false).unwrap();
    for (text, said) in [
        ("SHA1(root.vhd)= 00", "checksum"),
        ("MD5(root.vhd)= 00", "kind MD5"),
        ("nonsense", "makes no sense"),
        ("SHA1(../x)= 00", "own directory"),
    ] {
        fs::write(&manifest, text).unwrap();
        let error = format!("{:#}", plan(&path, false).unwrap_err());
        assert!(error.contains(said), "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn any_change(at in 0..WEB.len(), with in "[<>/a-z\"]{0,4}") {
        let mut text = WEB.to_owned();
        if text.is_char_boundary(at) {
            text.insert_str(at, &with);
        }
        let _ = Machine::parse(&text);
    }

    #[test]
    fn files_stay_in_their_directory(href in "(\\.|/|a|\\.\\.|:){0,8}") {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        fs::create_dir(&inside).unwrap();
        for file in [dir.path().join("a"), inside.join("a")] {
            fs::write(file, "").unwrap();
        }
        if let Ok(path) = beside(&inside.join("x.ovf"), &href) {
            prop_assert!(path.canonicalize().unwrap().starts_with(inside.canonicalize().unwrap()));
        }
    }
}
