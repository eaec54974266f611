use proptest::prelude::*;
use std::vec::Vec;

use super::*;
use crate::net::MacAddress;

const MAC: MacAddress = MacAddress([0, 0x15, 0x5d, 1, 2, 0xff]);
const OTHER: MacAddress = MacAddress([0, 0x15, 0x5d, 1, 2, 3]);

#[test]
fn without_the_option_all_cards_are_there() {
    let plan = parse("").unwrap();
    let handle = |mac, offer| plan.entry(mac, offer).map(|entry| entry.handle);
    assert_eq!((handle(MAC, 0), handle(OTHER, 3), handle(MAC, 256)), (Some(0), Some(3), None));
    assert_eq!(parse("none").unwrap().entry(MAC, 0), None);
}

#[test]
fn options() {
    let plan = parse("00:15:5d:01:02:ff=1,eth2:mtu9000:promisc,eth0=0").unwrap();
    let found: Vec<_> =
        plan.entries().iter().map(|e| (e.card, e.handle, e.mtu, e.promiscuous)).collect();
    let expected = [
        (Card::Mac(MAC), 1, None, false),
        (Card::Offer(2), 2, Some(9000), true),
        (Card::Offer(0), 0, None, false),
    ];
    assert_eq!(found, expected);
    let handle = |mac, offer| plan.entry(mac, offer).map(|entry| entry.handle);
    assert_eq!((handle(MAC, 0), handle(OTHER, 0), handle(OTHER, 1)), (Some(1), Some(0), None));
    let dashes = parse("00-15-5D-01-02-FF").unwrap();
    assert_eq!(dashes.entry(MAC, 7).map(|entry| entry.handle), Some(0));
    for (text, bad) in [
        ("eth", BadOption::Card(0)),
        ("eth01", BadOption::Card(0)),
        ("wlan0", BadOption::Card(0)),
        ("00:15:5d:01:02", BadOption::Card(0)),
        ("00:15:5d-01:02:ff", BadOption::Card(0)),
        ("01:15:5d:01:02:ff", BadOption::Card(0)),
        ("00:15:5d:01:02:+f", BadOption::Card(0)),
        ("eth0,eth1=256", BadOption::Handle(1)),
        ("eth0=", BadOption::Handle(0)),
        ("eth0=x", BadOption::Handle(0)),
        ("eth0=0:mtu", BadOption::Flag(0)),
        ("eth0=0:mtu67", BadOption::Flag(0)),
        ("eth0:mtu70000", BadOption::Flag(0)),
        ("eth0:fast", BadOption::Flag(0)),
        ("eth0=1,eth1=1", BadOption::Twice(1)),
        ("eth0,eth0=1", BadOption::Twice(1)),
    ] {
        assert_eq!(parse(text).unwrap_err(), bad, "{text}");
    }
    assert_eq!(std::format!("{}", BadOption::Card(1)), "entry 2 is no card: an address or ethN");
    let many: Vec<_> = (0..33).map(|n| std::format!("eth{n}")).collect();
    assert_eq!(parse(&many.join(",")).unwrap_err(), BadOption::TooMany);
}

#[test]
fn cards_have_names() {
    for (text, names) in [("", true), ("none", false), ("eth0", true), (",", true)] {
        assert_eq!(parse(text).unwrap().names_cards(), names, "{text}");
    }
    for name in ["eth17", "00:15:5d:01:02:ff"] {
        assert_eq!(std::format!("{}", parse(name).unwrap().entries()[0].card), name);
    }
}

proptest! {
    #[test]
    fn any_option(text in "(eth|00:15:5d:01:02:0|)[a-z0-9:,=]{0,60}") {
        if let Ok(plan) = parse(&text) {
            let mut handles: Vec<_> = plan.entries().iter().map(|entry| entry.handle).collect();
            handles.sort_unstable();
            handles.dedup();
            prop_assert_eq!(handles.len(), plan.entries().len(), "each its own");
        }
    }
}
