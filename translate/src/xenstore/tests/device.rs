use std::string::{String, ToString};
use std::vec::Vec;

use super::*;
use crate::xenstore::tests::client::Client;
use xen_abi::io::xs_wire::XsType;

fn domain() -> Client {
    let mut c = Client::new();
    let config = DomainConfig {
        name: b"guest",
        uuid: *b"\x01\x23\x45\x67\x89\xab\xcd\xef\x00\x11\x22\x33\x44\x55\x66\x77",
        max_kib: 262_144,
        target_kib: 131_072,
        nr_vcpus: 2,
        console: (0x1234, 1),
        store: (0x1235, 2),
    };
    c.store.add_domain(&config).expect("room");
    c
}

/// All nodes below a path as the guest sees them: path, value, permissions.
fn list(c: &mut Client, path: &str, out: &mut Vec<String>) {
    let perms = c.one(XsType::GET_PERMS, 0, path).expect("readable");
    let value = c.read(0, path).expect("readable");
    out.push(std::format!("{path} = {value} ({})", perms.trim_end_matches('|')));
    let children = c.one(XsType::DIRECTORY, 0, path).expect("readable");
    for child in children.split_terminator('|') {
        list(c, &std::format!("{path}/{child}"), out);
    }
}

#[test]
fn the_domain_has_what_it_expects() {
    let mut c = domain();
    let mut nodes = Vec::new();
    list(&mut c, "/local/domain/1", &mut nodes);
    let vm = "/vm/01234567-89ab-cdef-0011-223344556677";
    for (node, value, perms) in [
        ("", "", "n0|r1"),
        ("/vm", vm, "n0|r1"),
        ("/name", "guest", "n0|r1"),
        ("/domid", "1", "n0|r1"),
        ("/memory", "", "n0|r1"),
        ("/memory/target", "131072", "n0|r1"),
        ("/memory/static-max", "262144", "n0|r1"),
        ("/cpu/0/availability", "online", "n0|r1"),
        ("/cpu/1/availability", "online", "n0|r1"),
        ("/control", "", "n0|r1"),
        ("/control/shutdown", "", "n1"),
        ("/control/sysrq", "", "n1"),
        ("/control/feature-poweroff", "", "n1"),
        ("/control/platform-feature-xs_reset_watches", "1", "n0|r1"),
        ("/device", "", "n0|r1"),
        ("/device/suspend/event-channel", "", "n1"),
        ("/data", "", "n1"),
        ("/drivers", "", "n1"),
        ("/attr", "", "n1"),
        ("/feature", "", "n1"),
        ("/error", "", "n1"),
        ("/console", "", "n0|r1"),
        ("/console/ring-ref", "4660", "n0|r1"),
        ("/console/port", "1", "n0|r1"),
        ("/console/type", "xenconsoled", "n0|r1"),
        ("/console/limit", "1048576", "n0|r1"),
        ("/console/tty", "", "n0|r1"),
        ("/store/ring-ref", "4661", "n0|r1"),
        ("/store/port", "2", "n0|r1"),
    ] {
        let line = std::format!("/local/domain/1{node} = {value} ({perms})");
        assert!(nodes.contains(&line), "{line}\n{nodes:#?}");
    }
    assert_eq!(c.read(0, &std::format!("{vm}/name")), Ok("guest".into()));
    assert_eq!(c.read(0, "/libxl/1/type"), Err("EACCES".into()));
    assert_eq!(c.read(0, "/local/domain/0"), Err("EACCES".into()));
    // What it owns, it may write; the rest it may not.
    assert_eq!(c.write(0, "control/feature-poweroff", "1"), Ok(()));
    assert_eq!(c.write(0, "memory/target", "1"), Err("EACCES".into()));
    assert_eq!(c.write(0, "device/vbd/51712/state", "3"), Err("EACCES".into()));
    c.check();
}

#[test]
fn vcpus_are_made_available() {
    let mut c = domain();
    let at = "cpu/1/availability";
    for (online, value) in [(false, "offline"), (true, "online")] {
        c.store.set_availability(1, online).expect("room");
        assert_eq!(c.read(0, at), Ok(value.into()));
    }
    assert_eq!(c.write(0, at, "offline"), Err("EACCES".into()));
    c.check();
}

#[test]
fn a_second_time_changes_nothing() {
    let mut c = domain();
    let used = c.store.pool.nr_used();
    let mut again = domain();
    let config = DomainConfig {
        name: b"other",
        uuid: [0; 16],
        max_kib: 1,
        target_kib: 1,
        nr_vcpus: 2,
        console: (0x1234, 1),
        store: (0x1235, 2),
    };
    again.store.add_domain(&config).expect("room");
    assert_eq!(again.read(0, "name"), Ok("other".into()));
    assert_eq!(again.read(0, "vm"), Ok("/vm/00000000-0000-0000-0000-000000000000".into()));
    assert!(again.store.pool.nr_used() > used, "the old /vm stays");
    c.check();
}

#[test]
fn devices_come_and_go() {
    let mut c = domain();
    let used = c.store.pool.nr_used();
    c.many(XsType::WATCH, 0, "device|dev").expect("room");
    c.store.watch(b"/local/domain/1/device/vbd/51712/state", 3).expect("room");
    c.events();
    c.internal();
    let disk = Device {
        kind: "vbd",
        id: 51712,
        front: &[("virtual-device", b"51712"), ("device-type", b"disk")],
        back: &[("sectors", b"2048"), ("mode", b"w")],
    };
    c.store.add_device(&disk).expect("room");
    let mut nodes = Vec::new();
    list(&mut c, "/local/domain/1/device/vbd/51712", &mut nodes);
    let front = "/local/domain/1/device/vbd/51712";
    let back = "/local/domain/0/backend/vbd/1/51712";
    let expect = [
        (front, "", "", "n1|r0"),
        (front, "/backend", back, "n1|r0"),
        (front, "/backend-id", "0", "n1|r0"),
        (front, "/virtual-device", "51712", "n1|r0"),
        (front, "/device-type", "disk", "n1|r0"),
        (front, "/state", "1", "n1|r0"),
    ];
    let expect: Vec<String> = expect
        .map(|(dir, node, value, perms)| std::format!("{dir}{node} = {value} ({perms})"))
        .to_vec();
    assert_eq!(nodes, expect);
    nodes.clear();
    list(&mut c, back, &mut nodes);
    assert_eq!(nodes.len(), 7);
    assert!(nodes.iter().all(|node| node.ends_with("(n0|r1)")), "{nodes:?}");
    assert_eq!(c.read(0, &(back.to_string() + "/frontend")), Ok(front.into()));
    assert_eq!(
        c.internal().last().map(String::as_str),
        Some("/local/domain/1/device/vbd/51712/state 3")
    );
    assert!(c.events().contains(&"device/vbd/51712/state dev".to_string()));
    // The handshake: each may write its own state only.
    assert_eq!(c.write(0, "device/vbd/51712/state", "3"), Ok(()));
    assert_eq!(c.internal(), ["/local/domain/1/device/vbd/51712/state 3"]);
    assert_eq!(c.write(0, &(back.to_string() + "/state"), "4"), Err("EACCES".into()));
    // The guest cannot remove what is the toolstack's, but its own.
    assert_eq!(c.one(XsType::RM, 0, back), Err("EACCES".into()));
    c.store.remove_device("vbd", 51712).expect("there");
    assert_eq!(c.read(0, "device/vbd/51712/state"), Err("ENOENT".into()));
    assert!(!c.store.exists(back.as_bytes()));
    c.store.remove_device("vbd", 51712).expect("no error");
    for bad in ["", "a/b", "v b", "@x"] {
        assert_eq!(c.store.add_device(&Device { kind: bad, ..disk }), Err(Errno::EINVAL));
    }
    // A device that does not fit leaves nothing.
    let big = std::vec![b'x'; 4096];
    let nodes: Vec<String> = (0..60).map(|n| std::format!("n{n}")).collect();
    let many: Vec<(&str, &[u8])> = nodes.iter().map(|node| (node.as_str(), &big[..])).collect();
    let device = Device { kind: "vif", id: 0, front: &many, back: &[] };
    assert_eq!(c.store.add_device(&device), Err(Errno::ENOMEM));
    assert!(!c.store.exists(b"/local/domain/1/device/vif/0"));
    c.internal();
    c.events();
    assert!(c.store.pool.nr_used() < used + 60, "directories of kinds and two watches");
    c.check();
}
