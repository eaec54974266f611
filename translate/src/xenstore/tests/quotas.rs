//! What a guest may have, and that it costs no more.

use super::client::Client;
use crate::xenstore::{Config, Limits};
use xen_abi::Errno;
use xen_abi::io::xs_wire::XsType;

#[test]
fn nodes() {
    // The directory may be large.
    let limits = Limits { node_size: 8192, ..Limits::default() };
    let mut c = Client::with(&Config { limits, ..Config::default() });
    c.home();
    // One is `data` itself.
    for n in 0..999 {
        assert_eq!(c.write(0, &std::format!("data/{n}"), ""), Ok(()), "{n}");
    }
    assert_eq!(c.write(0, "data/more", ""), Err("ENOSPC".into()));
    assert_eq!(c.one(XsType::MKDIR, 0, "data/more"), Err("ENOSPC".into()));
    assert_eq!(c.write(0, "data/5", "x"), Ok(()), "what is there may change");
    assert_eq!(c.one(XsType::RM, 0, "data/7"), Ok("OK|".into()));
    assert_eq!(c.write(0, "data/a/b", ""), Err("ENOSPC".into()), "two nodes");
    assert_eq!(c.write(0, "data/more", ""), Ok(()));
    // Domain 0 has no such limit, and what it takes away counts no more.
    assert_eq!(c.store.write(b"/local/domain/1/data/dom0", b""), Ok(()));
    assert_eq!(c.store.set_perms(b"/local/domain/1/data/5", &[b"n0"]), Ok(()));
    assert_eq!(c.store.set_perms(b"/local/domain/1/data/6", &[b"n0"]), Ok(()));
    assert_eq!(c.write(0, "data/again", ""), Ok(()));
    assert_eq!(c.write(0, "data/again2", ""), Err("ENOSPC".into()));
    c.check();
}

#[test]
fn nodes_in_transactions() {
    let limits = Limits { nodes: 10, ..Limits::default() };
    let mut c = Client::with(&Config { limits, ..Config::default() });
    c.home();
    let (one, two) = (c.begin(), c.begin());
    for n in 0..9 {
        assert_eq!(c.write(one, &std::format!("data/{n}"), ""), Ok(()));
    }
    assert_eq!(c.write(one, "data/9", ""), Err("ENOSPC".into()));
    assert_eq!(c.one(XsType::RM, one, "data/0"), Ok("OK|".into()));
    assert_eq!(c.write(one, "data/9", ""), Ok(()));
    // An own tree, so that there is no conflict.
    c.store.write(b"/local/domain/1/attr", b"").expect("room");
    c.store.set_perms(b"/local/domain/1/attr", &[b"n1"]).expect("there");
    assert_eq!(c.write(two, "attr/x", ""), Ok(()));
    assert_eq!(c.end(two, true), Ok(()));
    assert_eq!(c.end(one, true), Err("ENOSPC".into()), "no room any more");
    c.check();
}

#[test]
fn node_sizes() {
    let mut c = Client::with_home();
    // 16 + 8 * 1 + value < 2048
    assert_eq!(c.write(0, "data/a", &"x".repeat(2023)), Ok(()));
    assert_eq!(c.write(0, "data/a", &"x".repeat(2024)), Err("ENOSPC".into()));
    assert_eq!(c.write(0, "data/new", &"x".repeat(2024)), Err("ENOSPC".into()));
    assert_eq!(c.read(0, "data/a").map(|value| value.len()), Ok(2023));
    assert_eq!(c.many(XsType::SET_PERMS, 0, "data/a|n1|r0"), Err("ENOSPC".into()));
    // Names of children count for the node above, whoever owns it.
    let name = "n".repeat(670);
    for n in 0..3 {
        let made = c.write(0, &std::format!("data/a{n}{name}"), "");
        assert_eq!(made.is_ok(), n < 2 || 16 + 8 + 2 + 3 * 673 < 2048, "{n}");
    }
    let t = c.begin();
    assert_eq!(c.write(t, "data/a", &"x".repeat(2024)), Err("ENOSPC".into()));
    assert_eq!(c.end(t, true), Err("ENOMEM".into()), "it cannot succeed any more");
    c.check();
}

#[test]
fn watches_and_transactions() {
    let mut c = Client::with_home();
    for n in 0..128 {
        assert_eq!(c.many(XsType::WATCH, 0, &std::format!("data|{n}")), Ok("OK|".into()));
    }
    assert_eq!(c.many(XsType::WATCH, 0, "data|more"), Err("ENOSPC".into()));
    for _ in 0..10 {
        c.begin();
    }
    assert_eq!(c.one(XsType::TRANSACTION_START, 0, ""), Err("ENOSPC".into()));
    assert_eq!(c.end(3, false), Ok(()));
    assert_eq!(c.begin(), 11, "ids are not used again at once");
    for n in 0..256 {
        let made = c.store.watch(b"/local", n);
        assert_eq!(made, Ok(()), "{n}");
    }
    assert_eq!(c.store.watch(b"/local", 256), Err(Errno::ENOSPC));
}

#[test]
fn nodes_a_transaction_looks_at() {
    let limits = Limits { transaction_nodes: 5, ..Limits::default() };
    let mut c = Client::with(&Config { limits, ..Config::default() });
    c.home();
    let t = c.begin();
    for n in 0..4 {
        // The first also looks at the directory.
        assert_eq!(c.read(t, &std::format!("data/{n}")), Err("ENOENT".into()), "{n}");
    }
    assert_eq!(c.read(t, "data/0"), Err("ENOENT".into()));
    assert_eq!(c.read(t, "data/9"), Err("ENOSPC".into()));
    assert_eq!(c.end(t, true), Err("ENOMEM".into()));
}

#[test]
fn memory_is_bounded_and_backends_keep_theirs() {
    let mut c = Client::with_home();
    // As much as the guest can get: large nodes, then small ones, then transactions and watches.
    let mut nodes = 0;
    while c.write(0, &std::format!("data/{nodes}"), &"x".repeat(1900)).is_ok() {
        nodes += 1;
    }
    assert!(nodes > 60, "{nodes}");
    assert_eq!(c.write(0, "data/last", &"x".repeat(1900)), Err("ENOMEM".into()));
    while c.write(0, &std::format!("data/{nodes}"), "").is_ok() {
        nodes += 1;
    }
    assert_eq!(c.write(0, "data/last", ""), Err("ENOMEM".into()));
    assert_eq!(c.many(XsType::WATCH, 0, "data|t"), Err("ENOMEM".into()));
    let t = c.begin();
    assert_eq!(c.read(t, "data/0"), Err("ENOMEM".into()));
    assert_eq!(c.end(t, true), Err("ENOMEM".into()));
    // A backend still gets devices done.
    let name = "x".repeat(30);
    for n in 0..150 {
        let path = std::format!("/local/domain/0/backend/{n}/{name}");
        assert_eq!(c.store.write(path.as_bytes(), b"value"), Ok(()), "{n}");
    }
    // The guest can help itself.
    assert_eq!(c.one(XsType::RM, 0, "data/0"), Ok("OK|".into()));
    assert_eq!(c.read(0, "data/1").map(|value| value.len()), Ok(1900));
    c.check();
    for n in 1..nodes {
        assert_eq!(c.one(XsType::RM, 0, &std::format!("data/{n}")), Ok("OK|".into()));
    }
    c.check();
}

#[test]
fn all_memory_comes_back() {
    let mut c = Client::with_home();
    let before = c.store.pool.nr_used();
    for round in 0..20 {
        for n in 0..100 {
            c.write(0, &std::format!("data/a{n}/b/c"), &"v".repeat(n)).expect("room");
            c.many(XsType::WATCH, 0, &std::format!("data/a{n}|t{round}")).expect("room");
        }
        let t = c.begin();
        c.one(XsType::RM, t, "data").expect("there");
        c.end(t, round % 2 == 0).expect("no conflict");
        c.one(XsType::RESET_WATCHES, 0, "").expect("always");
        c.store.rm(b"/local/domain/1").expect("there");
        c.home();
        c.events();
        c.check();
    }
    assert_eq!(c.store.pool.nr_used(), before);
}

#[test]
fn a_store_needs_some_memory() {
    let config = |bytes| Config { bytes, ..Config::default() };
    assert_eq!(crate::xenstore::Store::new(&config(0)).err(), Some(Errno::ENOMEM));
    assert_eq!(crate::xenstore::Store::new(&config(20_900)).err(), Some(Errno::ENOMEM));
    assert!(crate::xenstore::Store::new(&config(32 << 10)).is_ok());
    assert!(crate::xenstore::Store::new(&config(8 << 20)).is_ok());
}
