//! Watches and the events they cause.
//!
//! Events wait in a bounded queue. One that waits already is not queued again, except special
//! ones, as in xenstored. Where one does not fit, xenstored forgets it; here the watch remembers,
//! and fires once for its own path when there is room (a watch may fire spuriously, and tells
//! whoever set it to look again).

use xen_abi::Errno;

use super::db::Caller;
use super::node::{DOM0, GUEST, Perms, READ};
use super::path::{GUEST_PREFIX, parent};
use super::pool::{Chain, NIL, Payer};
use super::store::Store;

/// Which watches an event is for (`enum watch_match`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// Those of the path itself.
    Exact,
    /// Those of the path and of all above it, as deep as they look.
    Subtree,
    /// A special event with a domain's id: those that ask for it.
    Depth,
    /// A special event without: the others.
    NoDepth,
}

/// A watch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    next: u16,
    path: Chain,
    /// The guest's token.
    token: Chain,
    /// A backend's token.
    number: u32,
    /// Levels it looks down.
    depth: Option<u16>,
    /// Its paths are told without [`GUEST_PREFIX`].
    relative: bool,
    /// An event did not fit.
    lost: bool,
}

impl Watch {
    /// What it stores.
    pub(super) const fn texts(&self) -> [Chain; 2] {
        [self.path, self.token]
    }
}

/// An event that waits. For the guest the text is what is sent: path and token, each with a NUL;
/// for a backend it is the path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    next: u16,
    pub(super) text: Chain,
    number: u32,
    /// To tell quickly that two differ.
    tag: u32,
}

/// Whose watches and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Dom0,
    Guest,
}

impl Side {
    const fn dom(self) -> u16 {
        match self {
            Self::Dom0 => DOM0,
            Self::Guest => GUEST,
        }
    }
}

/// Watches and waiting events of one side, each in order.
#[derive(Debug)]
pub(super) struct Watcher {
    first_watch: u16,
    nr_watches: u32,
    first: u16,
    last: u16,
    nr_events: u32,
    /// Events that may wait.
    limit: u32,
    /// Some watch has lost one.
    lost: bool,
}

impl Watcher {
    pub(super) const fn new(limit: u32) -> Self {
        Self {
            first_watch: NIL,
            nr_watches: 0,
            first: NIL,
            last: NIL,
            nr_events: 0,
            limit,
            lost: false,
        }
    }

    /// Events that wait.
    pub(super) const fn waiting(&self) -> u32 {
        self.nr_events
    }
}

/// How a watch is named.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Absolute or special; checked.
    pub(super) path: &'a [u8],
    pub(super) token: &'a [u8],
    pub(super) number: u32,
}

/// Whether `path` is `above` or below it, at most `depth` levels (`is_child`). What `above` is,
/// is given by its length, and that `path` begins with it.
fn is_below(path: &[u8], above: usize, depth: Option<u16>) -> bool {
    let rest = path.get(above..).unwrap_or_default();
    let root = above == 1;
    if !root && !matches!(rest.first(), None | Some(b'/')) {
        return false;
    }
    let Some(depth) = depth else { return true };
    let slashes = rest.iter().filter(|byte| **byte == b'/').count();
    let levels = slashes + usize::from(root && !rest.is_empty());
    levels <= usize::from(depth)
}

impl Store {
    pub(super) const fn watcher(&self, side: Side) -> &Watcher {
        match side {
            Side::Dom0 => &self.dom0,
            Side::Guest => &self.guest,
        }
    }

    const fn watcher_mut(&mut self, side: Side) -> &mut Watcher {
        match side {
            Side::Dom0 => &mut self.dom0,
            Side::Guest => &mut self.guest,
        }
    }

    /// The watch of that name, and the one before it.
    fn find_watch(&self, side: Side, wanted: &Wanted<'_>) -> (Option<u16>, u16) {
        let (mut at, mut before) = (self.watcher(side).first_watch, NIL);
        while let Some(watch) = self.pool.watch(at) {
            if watch.number == wanted.number
                && self.pool.is(watch.path, wanted.path)
                && self.pool.is(watch.token, wanted.token)
            {
                return (Some(at), before);
            }
            (at, before) = (watch.next, at);
        }
        (None, before)
    }

    /// Adds a watch. Its first event is the caller's to cause: [`Self::announce`].
    pub(super) fn add_watch(
        &mut self,
        side: Side,
        wanted: &Wanted<'_>,
        depth: Option<u16>,
        relative: bool,
    ) -> Result<u16, Errno> {
        let (found, last) = self.find_watch(side, wanted);
        if found.is_some() {
            return Err(Errno::EEXIST);
        }
        let (payer, limit) = match side {
            Side::Guest => (Payer::Guest, self.limits.watches),
            Side::Dom0 => (Payer::Dom0, self.limits.backend_watches),
        };
        if self.watcher(side).nr_watches >= limit {
            return Err(Errno::ENOSPC);
        }
        let path = self.pool.store(payer, wanted.path)?;
        let token = self.pool.store(payer, wanted.token);
        let watch = token.and_then(|token| {
            let (number, next, lost) = (wanted.number, NIL, false);
            let watch = Watch { next, path, token, number, depth, relative, lost };
            self.pool.put_watch(payer, watch).inspect_err(|_| self.pool.drop_text(token))
        });
        let at = watch.inspect_err(|_| self.pool.drop_text(path))?;
        match self.pool.watch_mut(last) {
            Some(last) => last.next = at,
            None => self.watcher_mut(side).first_watch = at,
        }
        self.watcher_mut(side).nr_watches += 1;
        Ok(at)
    }

    /// Removes a watch; what it caused still comes.
    pub(super) fn remove_watch(&mut self, side: Side, wanted: &Wanted<'_>) -> Result<(), Errno> {
        let (Some(at), before) = self.find_watch(side, wanted) else { return Err(Errno::ENOENT) };
        let next = self.free_watch(at);
        match self.pool.watch_mut(before) {
            Some(before) => before.next = next,
            None => self.watcher_mut(side).first_watch = next,
        }
        self.watcher_mut(side).nr_watches -= 1;
        Ok(())
    }

    fn free_watch(&mut self, at: u16) -> u16 {
        let Some(watch) = self.pool.watch(at).copied() else { return NIL };
        self.pool.drop_text(watch.path);
        self.pool.drop_text(watch.token);
        self.pool.give(at);
        watch.next
    }

    /// Removes all watches; what they caused still comes.
    pub(super) fn remove_all_watches(&mut self, side: Side) {
        let mut at = self.watcher(side).first_watch;
        while self.pool.watch(at).is_some() {
            at = self.free_watch(at);
        }
        let watcher = self.watcher_mut(side);
        (watcher.first_watch, watcher.nr_watches, watcher.lost) = (NIL, 0, false);
    }

    /// The event of a watch's own path, which it begins with.
    pub(super) fn announce(&mut self, side: Side, at: u16) {
        let Some(path) = self.pool.watch(at).map(|watch| watch.path) else { return };
        let mut line = core::mem::take(&mut self.path);
        line.clear();
        if self.pool.pieces(path).try_for_each(|piece| line.add(piece)).is_ok() {
            self.send_event(side, at, line.get());
        }
        self.path = line;
    }

    /// Fires the watches of both sides for a change of a node: with the permissions it has (or
    /// had, if it goes), and those it had before where they changed. In a transaction it is done
    /// when that succeeds.
    pub(super) fn fire(
        &mut self,
        c: Caller,
        path: &[u8],
        what: Match,
        now: Option<Perms>,
        before: Option<Perms>,
    ) {
        if c.space != 0 {
            return self.fire_later(c, path, what);
        }
        for side in [Side::Dom0, Side::Guest] {
            if self.may_know(side, path, now, before) {
                self.fire_side(side, path, what);
            }
        }
    }

    /// Whether a side may know of a change: where it may read the node or the one above.
    fn may_know(&self, side: Side, path: &[u8], now: Option<Perms>, before: Option<Perms>) -> bool {
        let readable = |perms: Perms| perms.of(side.dom()) & READ != 0;
        if before.is_some_and(readable) {
            return true;
        }
        let Some(now) = now else { return false };
        let above = || self.find(0, parent(path)).and_then(|at| self.pool.node(at));
        readable(now) || above().is_some_and(|node| readable(node.perms))
    }

    fn fire_side(&mut self, side: Side, path: &[u8], what: Match) {
        let mut at = self.watcher(side).first_watch;
        while let Some(watch) = self.pool.watch(at).copied() {
            let same = || self.pool.is(watch.path, path);
            let below = || {
                self.pool.begins(watch.path, path) && is_below(path, watch.path.len(), watch.depth)
            };
            let fires = match what {
                Match::Exact => same(),
                Match::Subtree => below(),
                Match::Depth => same() || watch.depth.is_some_and(|depth| depth > 0) && below(),
                Match::NoDepth => watch.depth.is_none() && same(),
            };
            if fires {
                self.send_event(side, at, path);
            }
            at = watch.next;
        }
    }

    /// Fires a special watch, `@introduceDomain` or `@releaseDomain`, for the guest.
    pub(super) fn fire_special(&mut self, path: &[u8]) {
        let perms = self.find(0, path).and_then(|at| self.pool.node(at)).map(|node| node.perms);
        self.fire(Caller::DOM0, path, Match::NoDepth, perms, None);
        let mut with_id = core::mem::take(&mut self.walk);
        with_id.clear();
        let added = with_id.add(path).and_then(|()| with_id.add(b"/"));
        if added.and_then(|()| with_id.add_number(GUEST.into())).is_ok() {
            self.fire(Caller::DOM0, with_id.get(), Match::Depth, perms, None);
        }
        self.walk = with_id;
    }

    /// Queues an event of a watch.
    fn send_event(&mut self, side: Side, at: u16, path: &[u8]) {
        let Some(watch) = self.pool.watch(at).copied() else { return };
        // It fires for its own path when there is room, whatever else changes until then.
        if watch.lost {
            return;
        }
        let shown = if watch.relative { GUEST_PREFIX.len() } else { 0 };
        let shown = path.get(shown..).unwrap_or_default();
        let mut text = core::mem::take(&mut self.text);
        text.clear();
        let mut made = text.add(shown);
        if side == Side::Guest {
            made = made.and_then(|()| text.add(b"\0"));
            made = made.and_then(|()| self.pool.pieces(watch.token).try_for_each(|p| text.add(p)));
            made = made.and_then(|()| text.add(b"\0"));
        }
        // One too long for a message is not sent, as in xenstored: nobody could be told.
        if made.is_ok() && !self.queue_event(side, watch.number, text.get(), path) {
            if let Some(watch) = self.pool.watch_mut(at) {
                watch.lost = true;
            }
            self.watcher_mut(side).lost = true;
        }
        self.text = text;
    }

    /// Queues an event; whether that was possible, or needless.
    fn queue_event(&mut self, side: Side, number: u32, text: &[u8], path: &[u8]) -> bool {
        let tag = text
            .iter()
            .fold(number, |tag, byte| (tag ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        if !path.starts_with(b"@") {
            let mut at = self.watcher(side).first;
            while let Some(event) = self.pool.event(at) {
                if event.tag == tag && event.number == number && self.pool.is(event.text, text) {
                    return true;
                }
                at = event.next;
            }
        }
        if self.watcher(side).nr_events >= self.watcher(side).limit {
            return false;
        }
        // Also a backend's: it is the guest that can cause many.
        let Ok(text) = self.pool.store(Payer::Guest, text) else { return false };
        let Ok(at) = self.pool.put_event(Payer::Guest, Event { next: NIL, text, number, tag })
        else {
            self.pool.drop_text(text);
            return false;
        };
        let last = self.watcher(side).last;
        match self.pool.event_mut(last) {
            Some(last) => last.next = at,
            None => self.watcher_mut(side).first = at,
        }
        let watcher = self.watcher_mut(side);
        watcher.last = at;
        watcher.nr_events += 1;
        true
    }

    /// The event that waits longest.
    pub(super) fn first_event(&self, side: Side) -> Option<Event> {
        self.pool.event(self.watcher(side).first).copied()
    }

    /// Removes the event that waits longest; its number. When few wait, watches that have lost
    /// some fire.
    pub(super) fn pop_event(&mut self, side: Side) -> Option<u32> {
        let event = self.first_event(side)?;
        self.pool.give(self.watcher(side).first);
        self.pool.drop_text(event.text);
        let watcher = self.watcher_mut(side);
        watcher.first = event.next;
        watcher.nr_events -= 1;
        if event.next == NIL {
            watcher.last = NIL;
        }
        self.find_lost(side);
        Some(event.number)
    }

    /// Fires the watches that have lost an event, if there is room now.
    pub(super) fn find_lost(&mut self, side: Side) {
        let watcher = self.watcher_mut(side);
        if !watcher.lost || watcher.nr_events > watcher.limit / 2 {
            return;
        }
        watcher.lost = false;
        let mut at = self.watcher(side).first_watch;
        while let Some(watch) = self.pool.watch_mut(at) {
            let next = watch.next;
            if core::mem::take(&mut watch.lost) {
                self.announce(side, at);
            }
            at = next;
        }
    }

    /// Forgets all that waits.
    pub(super) fn drop_events(&mut self, side: Side) {
        self.watcher_mut(side).lost = false;
        while self.pop_event(side).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::is_below;

    #[test]
    fn depths() {
        let below = |path: &str, above: &str, depth| {
            path.starts_with(above) && is_below(path.as_bytes(), above.len(), depth)
        };
        assert!(below("/a/b/c", "/a", None) && below("/a", "/a", None) && below("/a", "/", None));
        assert!(!below("/ab", "/a", None));
        for (path, above, levels) in [
            ("/a", "/a", 0),
            ("/a/b", "/a", 1),
            ("/a/b/c", "/a", 2),
            ("/", "/", 0),
            ("/a", "/", 1),
            ("/a/b", "/", 2),
        ] {
            for depth in 0..4 {
                assert_eq!(
                    below(path, above, Some(depth)),
                    levels <= depth,
                    "{path} {above} {depth}"
                );
            }
        }
    }
}
