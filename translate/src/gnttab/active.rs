//! Who uses which entry: pins, and the flags by which the guest sees them.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use spin::RwLockReadGuard;
use xen_abi::grant_table::{GrantRef, GrantStatus, gtf};
use xen_abi::mm::DomId;
use xen_abi::{Mfn, PAGE_SIZE};

use super::table::{Shared, Table};
use crate::domain::Domain;
use crate::evtchn::{BACKEND_DOMID, GUEST_DOMID};
use crate::platform::Platform;

/// Attempts at an entry the guest keeps changing, as Xen makes.
const ATTEMPTS: u32 = 5;

/// Pins of an entry, four counters of 8 bits (`GNTPIN_*`): host writers, host readers, device
/// writers, device readers.
pub(super) mod pin {
    pub(in super::super) const HOST_WRITE: u32 = 1;
    pub(in super::super) const HOST_READ: u32 = 1 << 8;
    pub(in super::super) const DEVICE_WRITE: u32 = 1 << 16;
    pub(in super::super) const DEVICE_READ: u32 = 1 << 24;
    /// Counters of writers.
    pub(super) const WRITERS: u32 = 0x00ff_00ff;

    /// The top bit of every counter that is not zero here: set in the pins, they are full.
    pub(super) const fn overflow(by: u32) -> u32 {
        by << 7
    }
}

/// What is known about a pinned entry. `state`: pins (bits 0-31), [`LOCKED`], [`OWN`],
/// [`SUB_PAGE`], first byte (35-47) and the byte behind the last (48-60); 0 where it is not pinned.
/// While it is locked only the holder changes it, and `mfn` with it.
#[derive(Debug, Default)]
pub(super) struct Active {
    state: AtomicU64,
    mfn: AtomicU64,
}

/// Bytes of one.
pub(super) const ACTIVE_BYTES: usize = size_of::<Active>();

const LOCKED: u64 = 1 << 32;
/// The guest itself has pinned it, not a backend.
const OWN: u64 = 1 << 33;
/// Only part of the page is granted.
const SUB_PAGE: u64 = 1 << 34;
const FROM_SHIFT: u32 = 35;
const TO_SHIFT: u32 = 48;
const BYTE_MASK: u64 = 0x1fff;
/// All of a page, for a backend.
const WHOLE: u64 = PAGE_SIZE << TO_SHIFT;

impl Active {
    pub(super) fn is_pinned(&self) -> bool {
        self.state.load(Ordering::Relaxed) as u32 != 0
    }

    pub(super) fn is_sub_page(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        state as u32 != 0 && state & SUB_PAGE != 0
    }

    /// The frame of one that is in use. What somebody makes of it now is waited for: until then the frame
    /// is that of its last use.
    pub(super) fn used_frame(&self) -> Option<Mfn> {
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & LOCKED == 0 {
                return (state as u32 != 0).then(|| Mfn(self.mfn.load(Ordering::Relaxed)));
            }
            core::hint::spin_loop();
        }
    }

    fn lock(&self) -> Locked<'_> {
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if state & LOCKED == 0
                && let Ok(state) = self.state.compare_exchange_weak(
                    state,
                    state | LOCKED,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                )
            {
                return Locked { active: self, state };
            }
            core::hint::spin_loop();
        }
    }
}

/// A locked entry; unlocked with its new state when dropped.
struct Locked<'a> {
    active: &'a Active,
    state: u64,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.active.state.store(self.state & !LOCKED, Ordering::Release);
    }
}

impl Locked<'_> {
    const fn pins(&self) -> u32 {
        self.state as u32
    }
    fn set_pins(&mut self, pins: u32) {
        let rest = if pins == 0 { 0 } else { self.state & !u64::from(u32::MAX) };
        self.state = rest | u64::from(pins);
    }
    fn mfn(&self) -> Mfn {
        Mfn(self.active.mfn.load(Ordering::Relaxed))
    }
    fn range(&self) -> Range {
        Range {
            from: (self.state >> FROM_SHIFT & BYTE_MASK) as u16,
            to: (self.state >> TO_SHIFT & BYTE_MASK) as u16,
        }
    }
    const fn is_sub_page(&self) -> bool {
        self.state & SUB_PAGE != 0
    }
    fn set(&mut self, own: bool, target: &Target) {
        self.active.mfn.store(target.mfn.0, Ordering::Relaxed);
        self.state = u64::from(self.pins())
            | if own { OWN } else { 0 }
            | if target.sub_page { SUB_PAGE } else { 0 }
            | u64::from(target.range.from) << FROM_SHIFT
            | u64::from(target.range.to) << TO_SHIFT;
    }
    /// Shows the guest no more use than there is (`reduce_status_for_pin`).
    fn reduce(&self, shared: Option<&Shared>, write: bool) {
        let mut flags = if self.pins() == 0 { gtf::READING } else { 0 };
        if write && self.pins() & pin::WRITERS == 0 {
            flags |= gtf::WRITING;
        }
        if let Some(shared) = shared
            && flags != 0
        {
            shared.clear_in_use(flags);
        }
    }
}

/// Bytes `from..to` of a page: an empty range where the guest's lies outside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    from: u16,
    to: u16,
}

/// What an entry grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    mfn: Mfn,
    range: Range,
    sub_page: bool,
}

impl Target {
    /// Reads it out of an entry whose first word is `head`.
    fn of(shared: &Shared, head: u64) -> Self {
        let page = PAGE_SIZE as u16;
        let whole = Range { from: 0, to: page };
        let Some(v2) = shared.v2 else {
            return Self { mfn: Mfn(head >> 32), range: whole, sub_page: false };
        };
        let mfn = Mfn(v2.frame.load(Ordering::Relaxed));
        if head as u16 & gtf::SUB_PAGE == 0 {
            return Self { mfn, range: whole, sub_page: false };
        }
        let from = ((head >> 32) as u16).min(page);
        let to = from.saturating_add((head >> 48) as u16).min(page);
        Self { mfn, range: Range { from, to }, sub_page: true }
    }
}

/// How an entry is to be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    /// Who uses it.
    pub(super) by: DomId,
    /// Pins to add.
    pub(super) pins: u32,
    /// For writing, too.
    pub(super) write: bool,
    /// As a whole page: parts of one are refused.
    pub(super) map: bool,
}

/// A page or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The frame.
    pub mfn: Mfn,
    /// First byte granted.
    pub offset: u16,
    /// Bytes granted; they do not leave the page.
    pub len: u16,
}

/// `GTF_*` of the types a use accepts, and what of the flags to look at.
impl Use {
    fn accepts(self, pinned: bool, v2: bool, head: u64) -> bool {
        let (flags, domid) = (head as u16, (head >> 16) as u16);
        let kind = flags & (gtf::TYPE_MASK | if self.map { gtf::SUB_PAGE } else { 0 });
        let good = kind == gtf::PERMIT_ACCESS || v2 && !self.map && kind == gtf::TRANSITIVE;
        pinned || good && domid == self.by.0
    }

    fn flags(self) -> u64 {
        u64::from(if self.write { gtf::READING | gtf::WRITING } else { gtf::READING })
    }

    /// Shows the guest the use, if its entry allows it (`_set_status`); the entry's first word as
    /// it was then.
    fn set_status(self, shared: &Shared, pinned: bool) -> Result<u64, GrantStatus> {
        if shared.v2.is_some() {
            self.set_status_v2(shared, pinned)
        } else {
            self.set_status_v1(shared.head, pinned)
        }
    }

    fn set_status_v1(self, head: &AtomicU64, pinned: bool) -> Result<u64, GrantStatus> {
        let mut word = head.load(Ordering::Relaxed);
        for _ in 0..ATTEMPTS {
            if !self.accepts(pinned, false, word) || self.write && word as u16 & gtf::READONLY != 0
            {
                return Err(GrantStatus::GENERAL_ERROR);
            }
            let new = word | self.flags();
            match head.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(new),
                Err(now) => word = now,
            }
        }
        Err(GrantStatus::GENERAL_ERROR)
    }

    /// The status is elsewhere in version 2: set first, then the entry is looked at again. The
    /// guest invalidates the entry first and looks at the status then, each with a full barrier
    /// between: one of the two sees the other.
    fn set_status_v2(self, shared: &Shared, pinned: bool) -> Result<u64, GrantStatus> {
        let failed = Err(GrantStatus::GENERAL_ERROR);
        let word = shared.head.load(Ordering::Relaxed);
        let read_only = |word: u64| word as u16 & gtf::READONLY != 0;
        if !self.accepts(pinned, true, word) || self.write && read_only(word) {
            return failed;
        }
        let (status, shift) = shared.in_use();
        status.fetch_or(self.flags() << shift, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let word = shared.head.load(Ordering::Acquire);
        if !pinned {
            if !self.accepts(false, true, word) || self.write && read_only(word) {
                shared.clear_in_use(gtf::READING | gtf::WRITING);
                return failed;
            }
        } else if read_only(word) {
            shared.clear_in_use(gtf::WRITING);
            return failed;
        }
        Ok(word)
    }
}

/// Whether a page may be used so: the guest's own RAM, and not for writing where a processor
/// walks it as its L4, which holds the hypervisor's slots.
pub(super) fn usable<P: Platform>(
    dom: &Domain,
    plat: &P,
    mfn: Mfn,
    write: bool,
) -> Result<(), GrantStatus> {
    if !plat.is_ram(mfn) {
        return Err(GrantStatus::BAD_PAGE);
    }
    let vcpus = dom.vcpus.iter().take(dom.nr_vcpus as usize);
    if write && vcpus.into_iter().any(|vcpu| vcpu.roots.may_be(mfn)) {
        return Err(GrantStatus::GENERAL_ERROR);
    }
    Ok(())
}

impl Table {
    /// Pins an entry of the guest's (`map_grant_ref`, `acquire_grant_for_copy`).
    #[inline]
    pub(super) fn acquire<P: Platform>(
        &self,
        dom: &Domain,
        plat: &P,
        gref: GrantRef,
        using: Use,
    ) -> Result<Access, GrantStatus> {
        let shared = self.shared(gref).ok_or(GrantStatus::BAD_GNTREF)?;
        let active = self.active.get(gref.0 as usize).ok_or(GrantStatus::BAD_GNTREF)?;
        let mut active = active.lock();
        let own = using.by == GUEST_DOMID;
        let pins = active.pins();
        if pins != 0
            && (own != (active.state & OWN != 0)
                || pins & pin::overflow(using.pins) != 0
                || using.map && active.is_sub_page())
        {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        if pins == 0 || using.write && pins & pin::WRITERS == 0 {
            let head = using.set_status(&shared, pins != 0)?;
            if let Err(status) = examine(dom, plat, &mut active, &shared, head, using) {
                active.reduce(Some(&shared), using.write);
                return Err(status);
            }
        }
        active.set_pins(pins + using.pins);
        let Range { from, to } = active.range();
        Ok(Access { mfn: active.mfn(), offset: from, len: to - from })
    }

    /// [`Self::acquire`] for a backend, of an entry of version 1 that nobody uses and that is as
    /// entries mostly are; `None`: it is not, and nothing was done.
    #[inline(always)]
    fn acquire_plain<P: Platform>(
        &self,
        plat: &P,
        gref: GrantRef,
        plain: &Plain,
        is_l4: impl Fn(u64) -> bool,
    ) -> Option<Mfn> {
        let head = self.shared_v1(gref)?;
        let active = self.active.get(gref.0 as usize)?;
        active.state.compare_exchange(0, LOCKED, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let word = head.load(Ordering::Relaxed);
        let mfn = Mfn(word >> 32);
        let good = word & plain.mask == gtf::PERMIT_ACCESS.into() && plat.is_ram(mfn);
        let new = word | plain.flags;
        if good
            && !is_l4(mfn.0)
            && head.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            active.mfn.store(mfn.0, Ordering::Relaxed);
            active.state.store(plain.pinned, Ordering::Release);
            return Some(mfn);
        }
        active.state.store(0, Ordering::Release);
        None
    }

    /// [`Self::unpin`] for what [`Self::acquire_plain`] did, if nobody else has used the entry since;
    /// whether that is so.
    #[inline(always)]
    fn unpin_plain(&self, gref: GrantRef, plain: &Plain) -> bool {
        let Some(head) = self.shared_v1(gref) else { return false };
        let Some(active) = self.active.get(gref.0 as usize) else { return false };
        let locked = plain.pinned | LOCKED;
        let (take, see) = (Ordering::Acquire, Ordering::Relaxed);
        if active.state.compare_exchange(plain.pinned, locked, take, see).is_err() {
            return false;
        }
        head.fetch_and(!plain.flags, Ordering::Release);
        active.state.store(0, Ordering::Release);
        true
    }

    /// Takes pins away.
    #[inline]
    pub(super) fn unpin(&self, gref: GrantRef, pins: u32, write: bool) {
        let Some(active) = self.active.get(gref.0 as usize) else { return };
        let mut active = active.lock();
        let now = active.pins();
        // Every counter to be taken from must be there: a release too many changes nothing.
        let has = |at: u32| now >> at & 0xff >= pins >> at & 0xff;
        let there = match pins {
            pin::HOST_WRITE => has(0),
            pin::HOST_READ => has(8),
            _ => (0..32).step_by(8).all(has),
        };
        if there {
            active.set_pins(now - pins);
            active.reduce(self.shared(gref).as_ref(), write);
        }
    }
}

/// A backend's only use of a whole page, by an entry of version 1.
struct Plain {
    /// What is looked at in the entry: type, domain (0), and whether it may be written.
    mask: u64,
    /// What is set in it.
    flags: u64,
    /// The entry's state while it is pinned so, and only so.
    pinned: u64,
}

impl Plain {
    const READ: Self = Self::new(false);
    const WRITE: Self = Self::new(true);

    const fn new(write: bool) -> Self {
        let (read_only, writing, pins) = if write {
            (gtf::READONLY, gtf::WRITING, pin::HOST_WRITE)
        } else {
            (0, 0, pin::HOST_READ)
        };
        Self {
            mask: (gtf::TYPE_MASK | read_only) as u64 | 0xffff << 16,
            flags: (gtf::READING | writing) as u64,
            pinned: pins as u64 | WHOLE,
        }
    }

    const fn of(write: bool) -> &'static Self {
        if write { &Self::WRITE } else { &Self::READ }
    }
}
const _: () = assert!(BACKEND_DOMID.0 == 0);

/// With the use shown to the guest: looks at what the entry grants, and remembers or compares it.
fn examine<P: Platform>(
    dom: &Domain,
    plat: &P,
    active: &mut Locked<'_>,
    shared: &Shared,
    head: u64,
    using: Use,
) -> Result<(), GrantStatus> {
    let first = active.pins() == 0;
    if shared.v2.is_some() && head as u16 & gtf::TYPE_MASK == gtf::TRANSITIVE {
        // What lies behind it could only be another domain's grant: there is domain 0, which
        // grants nothing; a domain's own is not allowed.
        return Err(GrantStatus::GENERAL_ERROR);
    }
    let target = Target::of(shared, head);
    if first {
        usable(dom, plat, target.mfn, using.write)?;
        active.set(using.by == GUEST_DOMID, &target);
    } else {
        usable(dom, plat, active.mfn(), using.write)?;
        let same = active.mfn() == target.mfn
            && (!active.is_sub_page() || target.sub_page && active.range() == target.range);
        if !using.map && !same {
            return Err(GrantStatus::GENERAL_ERROR);
        }
    }
    Ok(())
}

fn backend(write: bool, map: bool) -> Use {
    let pins = if write { pin::HOST_WRITE } else { pin::HOST_READ };
    Use { by: BACKEND_DOMID, pins, write, map }
}

/// Pins a page, or a part of one, that the guest granted to domain 0: until [`release`] with the
/// same `write` the guest sees that it is in use. The frame is read or written where it is.
///
/// # Errors
/// Xen's, for a copy from or to the grant: the entry does not exist, is not for domain 0, is read
/// only, transitive or unstable, or does not name RAM of the guest's.
pub fn access<P: Platform>(
    dom: &Domain,
    plat: &P,
    gref: GrantRef,
    write: bool,
) -> Result<Access, GrantStatus> {
    open(dom).access(plat, gref, write)
}

/// As [`access`] for a whole page, as mapping it would do: rings, for instance.
///
/// # Errors
/// As above, and for a part of a page.
pub fn map_page<P: Platform>(
    dom: &Domain,
    plat: &P,
    gref: GrantRef,
    write: bool,
) -> Result<Mfn, GrantStatus> {
    open(dom).map_page(plat, gref, write)
}

/// Ends an [`access`] or a [`map_page`].
pub fn release(dom: &Domain, gref: GrantRef, write: bool) {
    open(dom).release(gref, write);
}

/// The table, held against a change of its size or version while several grants are looked at.
pub struct Grants<'a> {
    dom: &'a Domain,
    table: RwLockReadGuard<'a, Table>,
    /// First and last of the frames that processors use as their L4, once it was asked: pages
    /// outside need no closer look.
    l4s: Cell<Option<(u64, u64)>>,
}

/// Holds the table. Nothing that changes it may be called meanwhile.
#[must_use]
pub fn open(dom: &Domain) -> Grants<'_> {
    Grants { dom, table: dom.gnttab.table.read(), l4s: Cell::new(None) }
}

impl Grants<'_> {
    /// See [`access`].
    ///
    /// # Errors
    /// As there.
    #[inline(always)]
    pub fn access<P: Platform>(
        &self,
        plat: &P,
        gref: GrantRef,
        write: bool,
    ) -> Result<Access, GrantStatus> {
        let is_l4 = |mfn| write && self.may_be_l4(mfn);
        match self.table.acquire_plain(plat, gref, Plain::of(write), is_l4) {
            Some(mfn) => Ok(Access { mfn, offset: 0, len: PAGE_SIZE as u16 }),
            None => self.access_any(plat, gref, write),
        }
    }

    #[cold]
    #[inline(never)]
    fn access_any<P: Platform>(
        &self,
        plat: &P,
        gref: GrantRef,
        write: bool,
    ) -> Result<Access, GrantStatus> {
        self.table.acquire(self.dom, plat, gref, backend(write, false))
    }

    #[inline(always)]
    fn may_be_l4(&self, mfn: u64) -> bool {
        let (first, last) = match self.l4s.get() {
            Some(l4s) => l4s,
            None => self.look_at_l4s(),
        };
        first <= mfn && mfn <= last
    }

    #[inline(never)]
    fn look_at_l4s(&self) -> (u64, u64) {
        let vcpus = self.dom.vcpus.iter().take(self.dom.nr_vcpus as usize);
        let l4s = vcpus.flat_map(|vcpu| vcpu.roots.frames());
        let range = l4s.fold((u64::MAX, 0), |(first, last), l4| (first.min(l4), last.max(l4)));
        self.l4s.set(Some(range));
        range
    }

    /// See [`map_page`].
    ///
    /// # Errors
    /// As there.
    pub fn map_page<P: Platform>(
        &self,
        plat: &P,
        gref: GrantRef,
        write: bool,
    ) -> Result<Mfn, GrantStatus> {
        let access = self.table.acquire(self.dom, plat, gref, backend(write, true))?;
        Ok(access.mfn)
    }

    /// The frame of an entry that is pinned.
    #[must_use]
    pub fn pinned(&self, gref: GrantRef) -> Option<Mfn> {
        let active = self.table.active.get(gref.0 as usize)?.lock();
        (active.pins() != 0).then(|| active.mfn())
    }

    /// See [`release`].
    #[inline(always)]
    pub fn release(&self, gref: GrantRef, write: bool) {
        if !self.table.unpin_plain(gref, Plain::of(write)) {
            self.release_any(gref, write);
        }
    }

    #[cold]
    #[inline(never)]
    fn release_any(&self, gref: GrantRef, write: bool) {
        self.table.unpin(gref, backend(write, false).pins, write);
    }
}
