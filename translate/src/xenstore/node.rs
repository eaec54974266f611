//! Nodes and their permissions.

use xen_abi::Errno;

use super::pool::{Buf, Chain};

/// Permission entries a node may have (Xen's quota for a domU, here for all).
pub(super) const MAX_PERMS: usize = 5;
/// May read.
pub(super) const READ: u8 = 1;
/// May write.
pub(super) const WRITE: u8 = 2;
/// Owns the node.
pub(super) const OWNER: u8 = 8;
/// An entry for a domain that does not exist.
const IGNORE: u8 = 0x10;

/// `DOMID_ANY`: every domain.
const DOMID_ANY: u16 = 0x7ff5;
/// Domain 0 and the guest: those that exist.
pub(super) const DOM0: u16 = 0;
/// The guest.
pub(super) const GUEST: u16 = crate::evtchn::GUEST_DOMID.0;

/// A generation: every change of a node and every start of a transaction gets one. Two words, so
/// that a slot needs no 8-byte alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation([u32; 2]);

impl Generation {
    /// That of a node that does not exist.
    pub(super) const NONE: Self = Self::new(u64::MAX);

    pub(super) const fn new(count: u64) -> Self {
        Self([count as u32, (count >> 32) as u32])
    }

    pub(super) const fn count(self) -> u64 {
        let [low, high] = self.0;
        low as u64 | (high as u64) << 32
    }
}

/// Who may do what with a node: the owner and what everybody else may, then entries for domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Perms {
    count: u8,
    bits: [u8; MAX_PERMS],
    ids: [u16; MAX_PERMS],
}

impl Perms {
    /// No entries: those of a node that does not exist.
    pub(super) const ABSENT: Self = Self { count: 0, bits: [0; MAX_PERMS], ids: [0; MAX_PERMS] };

    /// Domain 0 owns it, nobody else sees it.
    pub(super) const fn private() -> Self {
        Self { count: 1, ..Self::ABSENT }
    }

    /// [`Self::private`], but everybody may read.
    pub(super) const fn readable_by_all() -> Self {
        Self { count: 2, bits: [0, READ, 0, 0, 0], ids: [DOM0, DOMID_ANY, 0, 0, 0] }
    }

    pub(super) const fn len(&self) -> usize {
        self.count as usize
    }

    pub(super) const fn owner(&self) -> u16 {
        let [owner, ..] = self.ids;
        owner
    }

    /// The same with another owner.
    pub(super) const fn owned_by(mut self, dom: u16) -> Self {
        let [owner, ..] = &mut self.ids;
        *owner = dom;
        self
    }

    fn entries(&self) -> impl Iterator<Item = (u16, u8)> {
        self.ids.into_iter().zip(self.bits).take(self.len())
    }

    /// What a domain may do (`perm_for_conn`).
    pub(super) fn of(&self, dom: u16) -> u8 {
        if dom == DOM0 || self.owner() == dom || self.owner() == DOMID_ANY {
            return READ | WRITE | OWNER;
        }
        let own = |(id, bits): &(u16, u8)| bits & IGNORE == 0 && (*id == dom || *id == DOMID_ANY);
        let [others, ..] = self.bits;
        let found = self.entries().skip(1).find(own);
        found.map_or(others, |(_, bits)| bits) & (READ | WRITE)
    }

    /// Adds an entry of the protocol's form: `n`, `r`, `w` or `b` and an id.
    ///
    /// # Errors
    /// `EINVAL`; `ENOSPC` for too many.
    pub(super) fn add(&mut self, text: &[u8]) -> Result<(), Errno> {
        let (kind, id) = text.split_first().ok_or(Errno::EINVAL)?;
        let bits = match kind {
            b'n' => 0,
            b'r' => READ,
            b'w' => WRITE,
            b'b' => READ | WRITE,
            _ => return Err(Errno::EINVAL),
        };
        let id = number(id).and_then(|id| u16::try_from(id).ok()).ok_or(Errno::EINVAL)?;
        let exists = matches!(id, DOM0 | GUEST | DOMID_ANY);
        let at = self.len();
        *self.ids.get_mut(at).ok_or(Errno::ENOSPC)? = id;
        *self.bits.get_mut(at).ok_or(Errno::ENOSPC)? = if exists { bits } else { bits | IGNORE };
        self.count += 1;
        Ok(())
    }

    /// Whether the owner exists.
    pub(super) const fn owner_exists(&self) -> bool {
        let [owner, ..] = self.bits;
        owner & IGNORE == 0
    }

    /// Writes the entries, a NUL behind each.
    pub(super) fn text(&self, out: &mut Buf) -> Result<(), Errno> {
        for (id, bits) in self.entries() {
            out.add(match bits & (READ | WRITE) {
                0 => b"n",
                READ => b"r",
                WRITE => b"w",
                _ => b"b",
            })?;
            out.add_number(id.into())?;
            out.add(b"\0")?;
        }
        Ok(())
    }
}

/// A number as `strtol` reads it with base 0, without sign or blanks.
fn number(text: &[u8]) -> Option<u32> {
    let (digits, base) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (rest, 16),
        [b'0', rest @ ..] if !rest.is_empty() => (rest, 8),
        _ => (text, 10),
    };
    let text = core::str::from_utf8(digits).ok()?;
    if text.starts_with('+') {
        return None;
    }
    u32::from_str_radix(text, base).ok()
}

/// A node, of the store itself or of a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) generation: Generation,
    /// Part of the hash of space and path.
    pub(super) tag: u16,
    /// Next in its bucket.
    pub(super) next: u16,
    /// 0 = the store, else the transaction whose view of the node it is.
    pub(super) space: u16,
    /// What the transaction did with it, else nothing.
    pub(super) access: u16,
    pub(super) path: Chain,
    pub(super) value: Chain,
    /// Names of its children, each with a NUL, the oldest first.
    pub(super) children: Chain,
    /// Absent: in a transaction's view it does not exist.
    pub(super) perms: Perms,
}

impl Node {
    pub(super) const fn exists(&self) -> bool {
        self.perms.len() != 0
    }
}

/// What counts for the quota of a node's size, as xenstored stores it.
pub(super) const fn size(perms: usize, value: usize, children: usize) -> usize {
    16 + perms * 8 + value + children
}

#[cfg(test)]
mod tests {
    use super::*;

    fn perms(entries: &[&str]) -> Result<Perms, Errno> {
        let mut perms = Perms::ABSENT;
        entries.iter().try_for_each(|entry| perms.add(entry.as_bytes()))?;
        Ok(perms)
    }

    #[test]
    fn who_may_what() {
        let p = perms(&["r0", "b1"]).expect("good");
        assert_eq!((p.of(GUEST), p.of(DOM0)), (READ | WRITE, READ | WRITE | OWNER));
        assert_eq!(perms(&["r0"]).expect("good").of(GUEST), READ);
        assert_eq!(perms(&["r0", "n1"]).expect("good").of(GUEST), 0);
        assert_eq!(perms(&["b0", "w32757", "r1"]).expect("good").of(GUEST), WRITE);
        assert_eq!(perms(&["n1", "r0"]).expect("good").of(GUEST), READ | WRITE | OWNER);
        assert_eq!(Perms::private().of(GUEST), 0);
        assert_eq!(Perms::readable_by_all().of(GUEST), READ);
        // Entries for domains that are not there mean nothing, but are kept.
        let stale = perms(&["w0", "r7"]).expect("good");
        assert_eq!(stale.of(7), WRITE);
        assert!(stale.owner_exists() && !perms(&["n7"]).expect("good").owner_exists());
    }

    #[test]
    fn texts() {
        for bad in ["", "n", "x1", "n-1", "n1x", "n99999", "n 1", "n+1", "r0x", "n08"] {
            assert_eq!(perms(&[bad]), Err(Errno::EINVAL), "{bad}");
        }
        assert_eq!(perms(&["n0"; 6]), Err(Errno::ENOSPC));
        let mut out = Buf::new(100).expect("memory");
        perms(&["n0", "r1", "w0x10", "b010", "r0"]).expect("good").text(&mut out).expect("room");
        assert_eq!(out.get(), b"n0\0r1\0w16\0b8\0r0\0");
    }
}
