//! Transactions.

use std::string::ToString;

use super::client::Client;
use xen_abi::io::xs_wire::XsType;

#[test]
fn changes_are_seen_when_it_succeeds() {
    let mut c = Client::with_home();
    let t = c.begin();
    assert_eq!(c.write(t, "data/a", "1"), Ok(()));
    assert_eq!(c.read(t, "data/a"), Ok("1".into()));
    assert_eq!(c.one(XsType::DIRECTORY, t, "data"), Ok("a|".into()));
    assert_eq!(c.read(0, "data/a"), Err("ENOENT".into()));
    assert_eq!(c.one(XsType::DIRECTORY, 0, "data"), Ok("".into()));
    assert_eq!(c.end(t, true), Ok(()));
    assert_eq!(c.read(0, "data/a"), Ok("1".into()));
    assert_eq!(c.end(t, true), Err("ENOENT".into()));
    let t = c.begin();
    assert_eq!(c.one(XsType::RM, t, "data/a"), Ok("OK|".into()));
    assert_eq!(c.read(t, "data/a"), Err("ENOENT".into()));
    assert_eq!(c.read(0, "data/a"), Ok("1".into()));
    assert_eq!(c.end(t, false), Ok(()));
    assert_eq!(c.read(0, "data/a"), Ok("1".into()));
    c.check();
}

#[test]
fn conflicts() {
    type Change = fn(&mut Client);
    let changes: [(&str, Change, bool); 8] = [
        ("nothing", |_| {}, true),
        ("another node", |c| c.store.write(b"/other", b"").expect("room"), true),
        ("the node", |c| c.store.write(b"/local/domain/1/data/a", b"2").expect("room"), false),
        (
            "its permissions",
            |c| {
                c.store.set_perms(b"/local/domain/1/data/a", &[b"b1"]).expect("there");
            },
            false,
        ),
        ("removed", |c| c.store.rm(b"/local/domain/1/data/a").expect("there"), false),
        (
            "a child of it",
            |c| c.store.write(b"/local/domain/1/data/a/c", b"").expect("room"),
            false,
        ),
        ("a sibling", |c| c.store.write(b"/local/domain/1/data/s", b"").expect("room"), true),
        ("the same, by the guest", |c| c.write(0, "data/a", "1").expect("room"), false),
    ];
    for (what, change, succeeds) in changes {
        let mut c = Client::with_home();
        c.write(0, "data/a", "1").expect("room");
        let t = c.begin();
        assert_eq!(c.read(t, "data/a"), Ok("1".into()));
        change(&mut c);
        // Reads are repeatable, whatever happened.
        assert_eq!(c.read(t, "data/a"), Ok("1".into()), "{what}");
        assert_eq!(c.write(t, "data/b", "2"), Ok(()));
        let expect = if succeeds { Ok(()) } else { Err("EAGAIN".into()) };
        assert_eq!(c.end(t, true), expect, "{what}");
        assert_eq!(c.read(0, "data/b").is_ok(), succeeds, "{what}");
        c.check();
    }
}

#[test]
fn a_look_at_nothing_is_a_look() {
    let mut c = Client::with_home();
    let t = c.begin();
    assert_eq!(c.read(t, "data/new"), Err("ENOENT".into()));
    c.store.write(b"/local/domain/1/data/new", b"").expect("room");
    assert_eq!(c.read(t, "data/new"), Err("ENOENT".into()));
    assert_eq!(c.end(t, true), Err("EAGAIN".into()));
    // The same with what had been asked for only on the way to an error.
    let t = c.begin();
    assert_eq!(c.one(XsType::DIRECTORY, t, "data/x/y"), Err("ENOENT".into()));
    c.store.write(b"/local/domain/1/data/x", b"").expect("room");
    assert_eq!(c.end(t, true), Err("EAGAIN".into()));
    c.check();
}

#[test]
fn the_first_to_end_wins() {
    let mut c = Client::with_home();
    c.write(0, "data/n", "0").expect("room");
    let (one, two) = (c.begin(), c.begin());
    assert_ne!(one, two);
    for t in [one, two] {
        assert_eq!(c.read(t, "data/n"), Ok("0".into()));
        c.write(t, "data/n", &t.to_string()).expect("room");
    }
    assert_eq!(c.end(two, true), Ok(()));
    assert_eq!(c.end(one, true), Err("EAGAIN".into()));
    assert_eq!(c.read(0, "data/n"), Ok(two.to_string()));
    c.check();
}

#[test]
fn trees_come_and_go() {
    let mut c = Client::with_home();
    for path in ["data/t/a/b", "data/t/c", "data/t/d/e/f"] {
        c.write(0, path, path).expect("room");
    }
    let t = c.begin();
    assert_eq!(c.one(XsType::RM, t, "data/t"), Ok("OK|".into()));
    assert_eq!(c.one(XsType::DIRECTORY, t, "data"), Ok("".into()));
    c.write(t, "data/t/c/new", "1").expect("room");
    assert_eq!(c.read(t, "data/t/a/b"), Err("ENOENT".into()));
    assert_eq!(c.read(0, "data/t/a/b"), Ok("data/t/a/b".into()));
    assert_eq!(c.end(t, true), Ok(()));
    assert_eq!(c.one(XsType::DIRECTORY, 0, "data/t"), Ok("c|".into()));
    assert_eq!(c.read(0, "data/t/c"), Ok("".into()));
    assert_eq!(c.read(0, "data/t/c/new"), Ok("1".into()));
    assert_eq!(c.read(0, "data/t/d/e/f"), Err("ENOENT".into()));
    // Created and removed in one: as if nothing had been.
    let t = c.begin();
    c.write(t, "data/u/v", "1").expect("room");
    assert_eq!(c.one(XsType::RM, t, "data/u"), Ok("OK|".into()));
    assert_eq!(c.end(t, true), Ok(()));
    assert_eq!(c.one(XsType::DIRECTORY, 0, "data"), Ok("t|".into()));
    // A child was added behind the transaction's back to what it removes: it fails, and harms
    // nothing.
    let t = c.begin();
    assert_eq!(c.read(t, "data/t/c"), Ok("".into()));
    c.store.rm(b"/local/domain/1/data/t/c/new").expect("there");
    assert!(c.one(XsType::RM, t, "data/t").is_err());
    assert_eq!(c.end(t, true), Err("ENOMEM".into()));
    c.check();
}

#[test]
fn misuse() {
    let mut c = Client::with_home();
    assert_eq!(c.end(0, true), Err("ENOENT".into()));
    assert_eq!(c.end(5, true), Err("ENOENT".into()));
    assert_eq!(c.read(5, "data"), Err("ENOENT".into()));
    let t = c.begin();
    assert_eq!(c.one(XsType::TRANSACTION_START, t, ""), Err("EBUSY".into()));
    for bad in ["", "X", "TT", "t"] {
        assert_eq!(c.one(XsType::TRANSACTION_END, t, bad), Err("EINVAL".into()));
    }
    // Watches know no transactions.
    assert_eq!(c.many(XsType::WATCH, 99, "data|t"), Ok("OK|".into()));
    assert_eq!(c.many(XsType::UNWATCH, 99, "data|t"), Ok("OK|".into()));
    c.write(t, "data/a", "1").expect("room");
    assert_eq!(c.one(XsType::RESET_WATCHES, 0, ""), Ok("OK|".into()));
    assert_eq!(c.end(t, true), Err("ENOENT".into()));
    let t = c.begin();
    assert_eq!(c.one(XsType::RESET_WATCHES, t, ""), Ok("OK|".into()));
    assert_eq!(c.end(t, true), Err("ENOENT".into()));
}

#[test]
fn permissions_in_a_transaction() {
    let mut c = Client::with_home();
    c.write(0, "data/a", "1").expect("room");
    let t = c.begin();
    assert_eq!(c.many(XsType::SET_PERMS, t, "data/a|r1|b0"), Ok("OK|".into()));
    assert_eq!(c.one(XsType::GET_PERMS, t, "data/a"), Ok("r1|b0|".into()));
    assert_eq!(c.one(XsType::GET_PERMS, 0, "data/a"), Ok("n1|".into()));
    assert_eq!(c.end(t, true), Ok(()));
    assert_eq!(c.one(XsType::GET_PERMS, 0, "data/a"), Ok("r1|b0|".into()));
    assert_eq!(c.read(0, "data/a"), Ok("1".into()));
}

#[test]
fn who_only_reads_is_in_nobodys_way() {
    let mut c = Client::with_home();
    c.write(0, "data/a", "1").expect("room");
    let (one, two) = (c.begin(), c.begin());
    assert_eq!(c.read(one, "data/a"), Ok("1".into()));
    assert_eq!(c.read(two, "data/a"), Ok("1".into()));
    assert_eq!(c.end(one, true), Ok(()));
    assert_eq!(c.end(two, true), Ok(()));
}
