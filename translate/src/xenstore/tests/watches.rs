//! Watches and events.

use super::client::Client;
use xen_abi::io::xs_wire::{XsType, XsdSockmsg};

#[test]
fn events_say_what_changed() {
    let mut c = Client::with_home();
    assert_eq!(c.many(XsType::WATCH, 0, "data|rel"), Ok("OK|".into()));
    assert_eq!(c.many(XsType::WATCH, 0, "/local/domain/1/data/a|abs"), Ok("OK|".into()));
    // The reply comes first, then the first event.
    assert_eq!(c.events(), ["data rel", "/local/domain/1/data/a abs"]);
    c.write(0, "data/a", "1").expect("room");
    assert_eq!(c.events(), ["data/a rel", "/local/domain/1/data/a abs"]);
    c.write(0, "data/ab", "1").expect("room");
    assert_eq!(c.events(), ["data/ab rel"]);
    c.store.write(b"/local/domain/1/data/a/b/c", b"").expect("room");
    assert_eq!(c.events(), ["data/a/b/c rel", "/local/domain/1/data/a/b/c abs"]);
    assert_eq!(c.many(XsType::SET_PERMS, 0, "data/a|n1|r0"), Ok("OK|".into()));
    assert_eq!(c.events(), ["data/a rel", "/local/domain/1/data/a abs"]);
    assert_eq!(c.one(XsType::MKDIR, 0, "data/a"), Ok("OK|".into()));
    assert_eq!(c.events(), [""; 0]);
    // Those of what is below a removed node fire for themselves, the others once.
    assert_eq!(c.many(XsType::WATCH, 0, "data/a/b|low"), Ok("OK|".into()));
    assert_eq!(c.events(), ["data/a/b low"]);
    assert_eq!(c.one(XsType::RM, 0, "data/a"), Ok("OK|".into()));
    assert_eq!(c.events(), ["data/a/b low", "data/a rel", "/local/domain/1/data/a abs"]);
    c.check();
}

#[test]
fn events_go_before_the_reply_of_what_caused_them() {
    let mut c = Client::with_home();
    c.many(XsType::WATCH, 0, "data|w").expect("room");
    assert_eq!(c.events(), ["data w"]);
    let header = XsdSockmsg { type_: XsType::WRITE, req_id: 1, tx_id: 0, len: 8 };
    let bytes = [zerocopy::IntoBytes::as_bytes(&header), b"data/a\0x"].concat();
    assert_eq!(c.put(&bytes), bytes.len());
    c.serve();
    c.take(usize::MAX);
    let kinds: std::vec::Vec<XsType> =
        core::iter::from_fn(|| c.message()).map(|(header, _)| header.type_).collect();
    assert_eq!(kinds, [XsType::WATCH_EVENT, XsType::WRITE]);
}

#[test]
fn transactions_fire_when_they_succeed() {
    let mut c = Client::with_home();
    c.many(XsType::WATCH, 0, "data|w").expect("room");
    c.events();
    let t = c.begin();
    c.write(t, "data/a", "1").expect("room");
    c.write(t, "data/a", "2").expect("room");
    c.write(t, "data/b/c", "2").expect("room");
    assert_eq!(c.events(), [""; 0]);
    c.end(t, true).expect("no conflict");
    assert_eq!(c.events(), ["data/a w", "data/b/c w"]);
    let t = c.begin();
    c.one(XsType::RM, t, "data/b").expect("there");
    c.write(t, "data/gone", "").expect("room");
    c.one(XsType::RM, t, "data/gone").expect("there");
    c.end(t, true).expect("no conflict");
    assert_eq!(c.events(), ["data/b w"]);
    let t = c.begin();
    c.write(t, "data/a", "3").expect("room");
    c.end(t, false).expect("over");
    assert_eq!(c.events(), [""; 0]);
    c.check();
}

#[test]
fn what_changed_and_went_is_told_to_those_above() {
    let mut c = Client::with_home();
    c.write(0, "data/d/a", "1").expect("room");
    c.many(XsType::WATCH, 0, "data|w").expect("room");
    c.events();
    let t = c.begin();
    c.write(t, "data/d/a", "2").expect("room");
    c.one(XsType::RM, t, "data/d").expect("there");
    c.end(t, true).expect("no conflict");
    assert_eq!(c.events(), ["data/d/a w", "data/d w"]);
}

#[test]
fn depths() {
    let mut c = Client::with_home();
    for (depth, token) in [("0", "zero"), ("1", "one"), ("99999999", "all")] {
        let watch = std::format!("data|{token}|{depth}");
        assert_eq!(c.many(XsType::WATCH, 0, &watch), Ok("OK|".into()));
    }
    assert_eq!(c.events(), ["data zero", "data one", "data all"]);
    c.write(0, "data/a/b", "1").expect("room");
    assert_eq!(c.events(), ["data/a/b all"]);
    c.write(0, "data/a", "1").expect("room");
    assert_eq!(c.events(), ["data/a one", "data/a all"]);
    c.write(0, "data", "1").expect("room");
    assert_eq!(c.events(), ["data zero", "data one", "data all"]);
    assert_eq!(c.many(XsType::WATCH, 0, "data|t|-1"), Err("EINVAL".into()));
    assert_eq!(c.many(XsType::WATCH, 0, "data|t|1|2"), Err("EINVAL".into()));
}

#[test]
fn adding_and_removing() {
    let mut c = Client::with_home();
    assert_eq!(c.many(XsType::WATCH, 0, "data|t"), Ok("OK|".into()));
    assert_eq!(c.many(XsType::WATCH, 0, "/local/domain/1/data|t"), Err("EEXIST".into()));
    assert_eq!(c.many(XsType::WATCH, 0, "data|t2"), Ok("OK|".into()));
    for bad in ["data", "data//|t", "|t", "da ta|t"] {
        assert_eq!(c.many(XsType::WATCH, 0, bad), Err("EINVAL".into()), "{bad}");
        assert_eq!(c.many(XsType::UNWATCH, 0, bad), Err("EINVAL".into()), "{bad}");
    }
    assert_eq!(c.many(XsType::UNWATCH, 0, "data|t|1"), Err("EINVAL".into()));
    assert_eq!(c.many(XsType::UNWATCH, 0, "data|none"), Err("ENOENT".into()));
    // The same watch by its other name.
    assert_eq!(c.many(XsType::UNWATCH, 0, "/local/domain/1/data|t"), Ok("OK|".into()));
    assert_eq!(c.many(XsType::UNWATCH, 0, "data|t"), Err("ENOENT".into()));
    c.events();
    c.write(0, "data/a", "1").expect("room");
    assert_eq!(c.events(), ["data/a t2"]);
    assert_eq!(c.one(XsType::RESET_WATCHES, 0, ""), Ok("OK|".into()));
    c.write(0, "data/a", "1").expect("room");
    assert_eq!(c.events(), [""; 0]);
}

#[test]
fn what_cannot_be_read_is_not_told() {
    let mut c = Client::with_home();
    for path in ["/secret", "/", "/open", "@introduceDomain", "@releaseDomain"] {
        assert_eq!(c.many(XsType::WATCH, 0, &std::format!("{path}|t")), Ok("OK|".into()));
    }
    // The first event of each comes in any case.
    assert_eq!(c.events().len(), 5);
    c.store.write(b"/secret/a", b"").expect("room");
    assert_eq!(c.events(), [""; 0]);
    c.store.write(b"/open", b"").expect("room");
    c.store.set_perms(b"/open", &[b"n0", b"r1"]).expect("there");
    assert_eq!(c.events(), ["/open t"]);
    // One who may read no more learns that from an event.
    c.store.set_perms(b"/open", &[b"n0"]).expect("there");
    assert_eq!(c.events(), ["/open t"]);
    c.store.rm(b"/open").expect("there");
    assert_eq!(c.events(), [""; 0]);
}

#[test]
fn special_events() {
    let mut c = Client::with_home();
    c.store.watch(b"@introduceDomain", 7).expect("room");
    assert_eq!(c.internal(), ["@introduceDomain 7"]);
    let depth_less = c.many(XsType::WATCH, 0, "@introduceDomain|plain");
    assert_eq!(depth_less, Ok("OK|".into()));
    assert_eq!(c.many(XsType::WATCH, 0, "@introduceDomain|deep|1"), Ok("OK|".into()));
    c.events();
    let ring: &xen_abi::io::xs_wire::XenstoreDomainInterface = &c.ring;
    c.store.introduce(ring);
    assert_eq!(c.internal(), ["@introduceDomain 7"]);
    assert_eq!(c.events(), [""; 0]);
    c.store.set_perms(b"@introduceDomain", &[b"n0", b"r1"]).expect("there");
    c.events();
    let ring: &xen_abi::io::xs_wire::XenstoreDomainInterface = &c.ring;
    c.store.introduce(ring);
    assert_eq!(c.events(), ["@introduceDomain plain", "@introduceDomain/1 deep"]);
}

#[test]
fn equal_events_come_once() {
    let mut c = Client::with_home();
    c.many(XsType::WATCH, 0, "data|t").expect("room");
    c.events();
    for value in 0..50u8 {
        c.store.write(b"/local/domain/1/data/a", &[value]).expect("room");
        c.store.write(b"/local/domain/1/data/b", &[value]).expect("room");
    }
    assert_eq!(c.events(), ["data/a t", "data/b t"]);
}

#[test]
fn events_that_do_not_fit_become_one_for_the_watch() {
    let mut c = Client::with_home();
    c.many(XsType::WATCH, 0, "data|t").expect("room");
    c.many(XsType::WATCH, 0, "drivers|quiet").expect("room");
    c.events();
    for n in 0..1000 {
        let path = std::format!("/local/domain/1/data/node-{n}");
        c.store.write(path.as_bytes(), b"").expect("room");
    }
    let events = c.events();
    assert_eq!(events.len(), 257);
    assert_eq!(events[0], "data/node-0 t");
    assert_eq!(events.iter().filter(|event| **event == "data t").count(), 1);
    assert!(!events.iter().any(|event| event.ends_with("quiet")));
    assert_eq!(c.events(), [""; 0]);
}

/// Linux kicks only when it takes from a ring that was full.
#[test]
fn what_did_not_fit_comes_without_another_kick() {
    let mut c = Client::with_home();
    c.many(XsType::WATCH, 0, "data|t").expect("room");
    c.events();
    for n in 0..400 {
        let path = std::format!("/local/domain/1/data/node-{n}");
        c.store.write(path.as_bytes(), b"").expect("room");
    }
    c.serve();
    let mut last = std::vec::Vec::new();
    loop {
        let count = c.take(usize::MAX);
        while let Some((_, payload)) = c.message() {
            last = payload;
        }
        if count < 1024 {
            break;
        }
        c.serve();
    }
    assert_ne!(last, b"data/node-255\0t\0");
    let told = c.store.watcher(crate::xenstore::watch::Side::Guest).waiting();
    assert_eq!(told, 0, "nothing waits, nothing is forgotten");
    assert_eq!(c.events(), [""; 0]);
}

#[test]
fn backends_watch_too() {
    let mut c = Client::with_home();
    c.store.watch(b"/local/domain/1/data", 5).expect("room");
    assert_eq!(c.store.watch(b"/local/domain/1/data", 5), Err(xen_abi::Errno::EEXIST));
    c.store.watch(b"/local/domain/1/data", 6).expect("room");
    assert_eq!(c.internal(), ["/local/domain/1/data 5", "/local/domain/1/data 6"]);
    c.write(0, "data/a", "1").expect("room");
    c.write(0, "data/a", "2").expect("room");
    assert_eq!(c.internal(), ["/local/domain/1/data/a 5", "/local/domain/1/data/a 6"]);
    assert_eq!(c.store.unwatch(b"/local/domain/1/data", 5), Ok(()));
    assert_eq!(c.store.unwatch(b"/local/domain/1/data", 5), Err(xen_abi::Errno::ENOENT));
    c.write(0, "data/long-name", "1").expect("room");
    let mut buf = [0; 23];
    assert_eq!(c.store.next_internal_event(&mut buf), Some((6, &b"/local/domain/1/data/lo"[..])));
    assert_eq!(c.store.next_internal_event(&mut buf), None);
    // A guest that writes much cannot fill memory with a backend's events.
    for n in 0..400 {
        c.write(0, &std::format!("data/{n}"), "").expect("room");
    }
    let events = c.internal();
    assert_eq!(events.len(), 129);
    assert_eq!(events.iter().filter(|event| **event == "/local/domain/1/data 6").count(), 1);
    c.check();
}
