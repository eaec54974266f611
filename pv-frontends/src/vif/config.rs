//! `pontoon.vif=CARD[=N][:FLAG..],..`: which of the host's network cards the guest sees as which.
//!
//! `CARD` is a card's address (`00:15:5d:01:02:03`, or with dashes) or `ethN`, the `N`-th the host
//! offers. `=N` makes it interface `N` of the guest's; without it is the lowest number that no
//! entry has. Flags: `mtu1500` sets the MTU, `promisc` receives all the switch lets through. `none`
//! alone: the guest has no cards. Without the option every card is an interface, in the order of
//! their offers; with it only those it names.

use core::fmt;

use arrayvec::ArrayVec;

use crate::net::MacAddress;

/// Cards the option may name.
pub const MAX_ENTRIES: usize = 32;
/// Interfaces a guest may have: their numbers are below.
const MAX_HANDLES: u32 = 256;
/// MTUs: what IPv4 asks of a link, and what fits into a packet.
const MTUS: core::ops::RangeInclusive<u16> = 68..=65521;

/// A card of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    /// The one with this address.
    Mac(MacAddress),
    /// The one offered after so many others.
    Offer(u32),
}

impl fmt::Display for Card {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(out, "{mac}"),
            Self::Offer(offer) => write!(out, "eth{offer}"),
        }
    }
}

/// An interface of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub card: Card,
    /// Its number.
    pub handle: u32,
    /// Its MTU, where not the card's.
    pub mtu: Option<u16>,
    /// It receives everything the switch lets through.
    pub promiscuous: bool,
}

/// What the option says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Only the cards of `entries` are used.
    named: bool,
    entries: ArrayVec<Entry, MAX_ENTRIES>,
}

/// An option that says nothing sensible; where, as the number of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOption {
    /// The card is neither an address nor `ethN`.
    Card(usize),
    /// The number is none, or too large.
    Handle(usize),
    /// A flag is unknown, or its value out of bounds.
    Flag(usize),
    /// The card or the number was given before.
    Twice(usize),
    /// There are more than [`MAX_ENTRIES`].
    TooMany,
}

impl fmt::Display for BadOption {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, what) = match *self {
            Self::Card(at) => (at, "is no card: an address or ethN"),
            Self::Handle(at) => (at, "has no interface number below 256"),
            Self::Flag(at) => (at, "has an unknown flag"),
            Self::Twice(at) => (at, "names a card or a number once more"),
            Self::TooMany => return write!(out, "more than {MAX_ENTRIES} cards"),
        };
        write!(out, "entry {} {what}", at + 1)
    }
}

/// Reads the option.
///
/// # Errors
/// The first entry that is wrong; the guest would not find the cards it expects.
pub fn parse(text: &str) -> Result<Plan, BadOption> {
    let mut plan = Plan::default();
    if text == "none" {
        plan.named = true;
        return Ok(plan);
    }
    // Those without a number get theirs once all others are known.
    let mut unnumbered = ArrayVec::<usize, MAX_ENTRIES>::new();
    for (at, part) in text.split(',').filter(|part| !part.is_empty()).enumerate() {
        let (entry, is_numbered) = parse_entry(part, at)?;
        let clash = |index: usize, other: &Entry| {
            let same = is_numbered && !unnumbered.contains(&index) && other.handle == entry.handle;
            same || other.card == entry.card
        };
        if plan.entries.iter().enumerate().any(|(index, other)| clash(index, other)) {
            return Err(BadOption::Twice(at));
        }
        plan.entries.try_push(entry).map_err(|_| BadOption::TooMany)?;
        if !is_numbered {
            unnumbered.try_push(at).map_err(|_| BadOption::TooMany)?;
        }
        plan.named = true;
    }
    for index in 0..unnumbered.len() {
        let open = unnumbered.get(index..).unwrap_or_default();
        let is_taken = |handle: u32| {
            let numbered = plan.entries.iter().enumerate().filter(|(at, _)| !open.contains(at));
            numbered.map(|(_, entry)| entry.handle).any(|other| other == handle)
        };
        let handle = (0..MAX_HANDLES).find(|handle| !is_taken(*handle)).unwrap_or(0);
        if let Some(entry) = open.first().and_then(|at| plan.entries.get_mut(*at)) {
            entry.handle = handle;
        }
    }
    Ok(plan)
}

fn parse_entry(text: &str, at: usize) -> Result<(Entry, bool), BadOption> {
    let (card, rest) = parse_card(text).ok_or(BadOption::Card(at))?;
    let mut entry = Entry { card, handle: 0, mtu: None, promiscuous: false };
    let mut words = rest.split(':');
    let number = words.next().unwrap_or_default();
    let is_numbered = !number.is_empty();
    if is_numbered {
        let number = number.strip_prefix('=').and_then(decimal);
        let number = number.filter(|number| *number < MAX_HANDLES);
        entry.handle = number.ok_or(BadOption::Handle(at))?;
    }
    for flag in words {
        match flag {
            "promisc" => entry.promiscuous = true,
            _ => {
                let mtu = flag.strip_prefix("mtu").and_then(decimal);
                let mtu = mtu.and_then(|mtu| u16::try_from(mtu).ok());
                entry.mtu = Some(mtu.filter(|mtu| MTUS.contains(mtu)).ok_or(BadOption::Flag(at))?);
            }
        }
    }
    Ok((entry, is_numbered))
}

/// The card at the head of an entry, and what is behind it.
fn parse_card(text: &str) -> Option<(Card, &str)> {
    if let Some(rest) = text.strip_prefix("eth") {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, rest) = rest.split_at_checked(end)?;
        return Some((Card::Offer(decimal(number)?), rest));
    }
    // 6 bytes of two digits and 5 separators, all the same.
    let (mac, rest) = text.split_at_checked(17)?;
    let separator = mac.chars().nth(2).filter(|c| [':', '-'].contains(c))?;
    let mut parts = mac.split(separator);
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let mac = MacAddress(bytes);
    mac.is_unicast().then_some((Card::Mac(mac), rest))
}

/// Decimal digits without sign or leading zeros.
fn decimal(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    if canonical { text.parse().ok() } else { None }
}

impl Plan {
    /// What becomes of the card the host offers after `offer` others, with this address; `None`
    /// where the guest does not see it. An address goes before a place in the order.
    #[must_use]
    pub fn entry(&self, mac: MacAddress, offer: u32) -> Option<Entry> {
        if !self.named {
            let handle = (offer < MAX_HANDLES).then_some(offer)?;
            return Some(Entry { card: Card::Offer(offer), handle, mtu: None, promiscuous: false });
        }
        let find = |card| self.entries.iter().find(|entry| entry.card == card).copied();
        find(Card::Mac(mac)).or_else(|| find(Card::Offer(offer)))
    }

    /// Whether any card can be one of the guest's.
    #[must_use]
    pub fn names_cards(&self) -> bool {
        !self.named || !self.entries.is_empty()
    }

    /// The entries, in the order they were given.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}
