//! Requests outside of transactions.

use std::vec::Vec;

use super::client::Client;
use xen_abi::io::xs_wire::XsType;

const ERR: fn(&str) -> Result<std::string::String, std::string::String> = |name| Err(name.into());

#[test]
fn values_come_back() {
    let mut c = Client::with_home();
    assert_eq!(c.write(0, "data/a", "1"), Ok(()));
    assert_eq!(c.read(0, "data/a"), Ok("1".into()));
    assert_eq!(c.read(0, "/local/domain/1/data/a"), Ok("1".into()));
    assert_eq!(c.write(0, "/local/domain/1/data/a", ""), Ok(()));
    assert_eq!(c.read(0, "data/a"), Ok("".into()));
    let binary: Vec<u8> = (0..=255).collect();
    let payload = [&b"data/bin\0"[..], &binary].concat();
    assert_eq!(c.ask(XsType::WRITE, 0, &payload), Ok(b"OK\0".to_vec()));
    assert_eq!(c.ask(XsType::READ, 0, b"data/bin\0"), Ok(binary));
    // Domain 0 sees it, and long values go through the ring in parts.
    c.store.write(b"/local/domain/1/data/long", &[b'x'; 4096]).expect("room");
    assert_eq!(c.read(0, "data/long"), Ok("x".repeat(4096)));
    let mut buf = [0; 4];
    assert_eq!(c.store.read(b"/local/domain/1/data/a", &mut buf), Ok(&b""[..]));
    assert_eq!(c.store.read(b"/local/domain/1/data/long", &mut buf), Err(xen_abi::Errno::E2BIG));
}

#[test]
fn directories() {
    let mut c = Client::with_home();
    for name in ["one", "two", "three"] {
        assert_eq!(c.one(XsType::MKDIR, 0, &std::format!("data/{name}")), Ok("OK|".into()));
    }
    assert_eq!(c.one(XsType::DIRECTORY, 0, "data"), Ok("one|two|three|".into()));
    assert_eq!(c.one(XsType::DIRECTORY, 0, "data/one"), Ok("".into()));
    assert_eq!(c.one(XsType::MKDIR, 0, "data/one"), Ok("OK|".into()));
    assert_eq!(c.one(XsType::RM, 0, "data/two"), Ok("OK|".into()));
    assert_eq!(c.one(XsType::DIRECTORY, 0, "data"), Ok("one|three|".into()));
    // Parents are created, with no value; what is removed goes with all below it.
    assert_eq!(c.write(0, "data/x/y/z", "deep"), Ok(()));
    assert_eq!(c.read(0, "data/x/y"), Ok("".into()));
    assert_eq!(c.one(XsType::DIRECTORY, 0, "data/x"), Ok("y|".into()));
    assert_eq!(c.one(XsType::RM, 0, "data/x"), Ok("OK|".into()));
    assert_eq!(c.read(0, "data/x/y/z"), ERR("ENOENT"));
    assert_eq!(c.one(XsType::DIRECTORY, 0, "data"), Ok("one|three|".into()));
    // Removing what is not there is fine, if its parent is.
    assert_eq!(c.one(XsType::RM, 0, "data/none"), Ok("OK|".into()));
    assert_eq!(c.one(XsType::RM, 0, "data/none/below"), ERR("ENOENT"));
    c.check();
}

#[test]
fn long_directories_in_parts() {
    let mut c = Client::with_home();
    let name = |n: usize| std::format!("child-with-a-long-name-{n:04}");
    for n in 0..300 {
        let path = std::format!("/local/domain/1/data/{}", name(n));
        c.store.write(path.as_bytes(), b"").expect("room");
    }
    assert_eq!(c.one(XsType::DIRECTORY, 0, "data"), ERR("E2BIG"));
    let (mut names, mut parts) = (std::string::String::new(), 0);
    let mut generation = None;
    loop {
        let request = std::format!("data|{}", names.len());
        let reply = c.many(XsType::DIRECTORY_PART, 0, &request).expect("a part");
        assert!(reply.len() <= 4096);
        let (count, list) = reply.split_once('|').expect("a generation");
        let count: u64 = count.parse().expect("a number");
        assert_eq!(*generation.get_or_insert(count), count);
        parts += 1;
        if let Some(last) = list.strip_suffix("||") {
            names.push_str(last);
            names.push('|');
            break;
        }
        names.push_str(list);
    }
    assert_eq!(parts, 3);
    assert_eq!(names, (0..300).map(|n| name(n) + "|").collect::<std::string::String>());
    // A change is seen by the generation.
    c.store.write(b"/local/domain/1/data/more", b"").expect("room");
    let reply = c.many(XsType::DIRECTORY_PART, 0, "data|0").expect("a part");
    assert_ne!(reply.split_once('|').map(|(count, _)| count.parse()), generation.map(Ok));
    let end = c.many(XsType::DIRECTORY_PART, 0, "data|99999").expect("a part");
    assert!(end.ends_with("||") && end.matches('|').count() == 2);
    assert_eq!(c.many(XsType::DIRECTORY_PART, 0, "data"), ERR("EINVAL"));
    assert_eq!(c.many(XsType::DIRECTORY_PART, 0, "data/none|0"), ERR("ENOENT"));
}

#[test]
fn permissions_are_kept() {
    let mut c = Client::with_home();
    c.store.write(b"/secret/key", b"s").expect("room");
    for (type_, path, error) in [
        (XsType::READ, "/secret/key", "EACCES"),
        (XsType::READ, "/secret/none", "EACCES"),
        (XsType::READ, "/none", "EACCES"),
        (XsType::READ, "none", "ENOENT"),
        (XsType::READ, "data/none", "ENOENT"),
        (XsType::DIRECTORY, "/", "EACCES"),
        (XsType::MKDIR, "new", "EACCES"),
        (XsType::RM, "data/x/y", "ENOENT"),
        (XsType::RM, "/local/domain/1", "EACCES"),
        (XsType::GET_PERMS, "/secret", "EACCES"),
    ] {
        assert_eq!(c.one(type_, 0, path), ERR(error), "{type_:?} {path}");
    }
    assert_eq!(c.write(0, "new", "1"), Err("EACCES".into()));
    assert_eq!(c.one(XsType::GET_PERMS, 0, "data"), Ok("n1|".into()));
    assert_eq!(c.one(XsType::GET_PERMS, 0, "/local/domain/1"), Ok("n0|r1|".into()));
    // What the guest creates is its own, with the parent's other entries.
    assert_eq!(c.many(XsType::SET_PERMS, 0, "data|n1|r0"), Ok("OK|".into()));
    assert_eq!(c.write(0, "data/a/b", "1"), Ok(()));
    assert_eq!(c.one(XsType::GET_PERMS, 0, "data/a/b"), Ok("n1|r0|".into()));
    // What domain 0 creates is its parent's owner's.
    c.store.write(b"/local/domain/1/data/given", b"").expect("room");
    assert_eq!(c.one(XsType::GET_PERMS, 0, "data/given"), Ok("n1|r0|".into()));
    // A directory of domain 0 that the guest may write to.
    c.store.write(b"/shared", b"").expect("room");
    c.store.set_perms(b"/shared", &[b"n0", b"b1"]).expect("there");
    assert_eq!(c.write(0, "/shared/mine", "1"), Ok(()));
    assert_eq!(c.one(XsType::GET_PERMS, 0, "/shared/mine"), Ok("n1|b1|".into()));
    assert_eq!(c.many(XsType::SET_PERMS, 0, "/shared|n0|b1"), ERR("EACCES"));
    assert_eq!(c.one(XsType::RM, 0, "/shared/mine"), Ok("OK|".into()));
    c.check();
}

#[test]
fn setting_permissions() {
    let mut c = Client::with_home();
    for (perms, error) in [
        ("data", "EINVAL"),
        ("data|x1", "EINVAL"),
        ("data|n", "EINVAL"),
        ("data|n1z", "EINVAL"),
        ("data|n1|r2|r3|r4|r5|r6", "ENOSPC"),
        ("data|n9", "ENOENT"),
        ("data|n0", "EPERM"),
        ("/local/domain/1|n1", "EACCES"),
        ("@releaseDomain|n1", "EACCES"),
        ("none|n1", "EACCES"),
        ("data/none|n1", "ENOENT"),
    ] {
        assert_eq!(c.many(XsType::SET_PERMS, 0, perms), ERR(error), "{perms}");
    }
    assert_eq!(c.one(XsType::GET_PERMS, 0, "@releaseDomain"), Ok("n0|r32757|".into()));
    assert_eq!(c.one(XsType::GET_PERMS, 0, "@introduceDomain"), ERR("EACCES"));
    assert_eq!(c.many(XsType::SET_PERMS, 0, "data|b1|w0|r7"), Ok("OK|".into()));
    assert_eq!(c.one(XsType::GET_PERMS, 0, "data"), Ok("b1|w0|r7|".into()));
    // Domain 0 may give a node away.
    c.store.set_perms(b"/local/domain/1/data", &[b"n0", b"r1"]).expect("there");
    assert_eq!(c.write(0, "data", "1"), Err("EACCES".into()));
    c.check();
}

#[test]
fn paths_are_checked() {
    let mut c = Client::with_home();
    let long = std::format!("data/{}", "x".repeat(2048));
    for path in ["", "/", "data/", "data//a", "a b", "data/\u{e4}", "@introduceDomain", &long] {
        let error = if path == "/" { "EACCES" } else { "EINVAL" };
        assert_eq!(c.write(0, path, "1"), Err(error.into()), "{path}");
    }
    // No closing NUL, or more than one text.
    for payload in [&b""[..], b"data", b"data\0x", b"data\0\0"] {
        assert_eq!(c.ask(XsType::READ, 0, payload), Err("EINVAL".into()));
    }
    assert_eq!(c.ask(XsType::WRITE, 0, b"data"), Err("EINVAL".into()));
}

#[test]
fn what_a_guest_may_not_ask() {
    let mut c = Client::with_home();
    for type_ in [0, 8, 9, 17, 18, 19, 24, 25, 26] {
        assert_eq!(c.one(XsType(type_), 0, "1"), ERR("EACCES"), "{type_}");
    }
    for type_ in [15, 16, 20, 27, 0xffff, u32::MAX] {
        assert_eq!(c.one(XsType(type_), 0, "1"), ERR("ENOSYS"), "{type_}");
    }
    assert_eq!(c.one(XsType::GET_FEATURE, 0, "1"), ERR("EACCES"));
    assert_eq!(c.ask(XsType::GET_FEATURE, 0, b""), Ok(b"15\0".to_vec()));
}

#[test]
fn domain_paths() {
    let mut c = Client::with_home();
    assert_eq!(c.one(XsType::GET_DOMAIN_PATH, 0, "1"), Ok("/local/domain/1|".into()));
    assert_eq!(c.one(XsType::GET_DOMAIN_PATH, 0, "007"), Ok("/local/domain/7|".into()));
    for bad in ["", "x", "1x", "65536", "99999999999"] {
        assert_eq!(c.one(XsType::GET_DOMAIN_PATH, 0, bad), ERR("EINVAL"), "{bad}");
    }
    assert_eq!(c.one(XsType::GET_DOMAIN_PATH, 77, "1"), ERR("ENOENT"));
}

#[test]
fn backends_see_children_in_order() {
    let mut c = Client::with_home();
    let mut names = Vec::new();
    c.store.directory(b"/", |name| names.push(name.to_vec())).expect("there");
    assert_eq!(names, [&b"tool"[..], b"local"]);
    assert_eq!(c.store.directory(b"/none", |_| {}), Err(xen_abi::Errno::ENOENT));
    assert_eq!(c.store.rm(b"/"), Err(xen_abi::Errno::EINVAL));
    assert_eq!(c.store.rm(b"/none/none"), Err(xen_abi::Errno::ENOENT));
    assert_eq!(c.store.rm(b"/none"), Ok(()));
    assert_eq!(c.store.rm(b"/local"), Ok(()));
    assert!(!c.store.exists(b"/local/domain/1/data"));
    assert_eq!(c.store.write(b"/a", &[0; 4097]), Err(xen_abi::Errno::E2BIG));
    assert_eq!(c.store.set_perms(b"/tool", &[]), Err(xen_abi::Errno::EINVAL));
    assert_eq!(c.store.set_perms(b"/tool", &[b"n8"]), Err(xen_abi::Errno::ENOENT));
}
