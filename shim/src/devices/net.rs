//! The guest's network cards: which of the host's it sees as which, and the way from one to the
//! other.
//!
//! Cards come and go ([`Cards`]). Before there is a guest they are only noted; [`attach`] makes
//! virtual interfaces of them, in the order of their numbers: the store lists them as they were
//! made, and Linux calls the first it finds there eth0. From then on a new card becomes one at once.
//!
//! Memory: each card that is offered at boot adds to the pool what it takes, before the guest gets
//! its memory. One that comes later takes what `pontoon.net-spare` set aside, or what one left that
//! went.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use arrayvec::ArrayVec;
use hv_abi::Guid;
use pv_frontends::net::{NetDevice, RxPacket, RxVerdict, Tag, TxEnd};
use pv_frontends::netback::{BouncePage, Env, Kicked, Limits, MAX_VIFS, Vif, VifConfig, of_port};
use pv_frontends::netvsc::{Card, Config, Counter, Nic, Sink};
use pv_frontends::vif::{self, Entry, Plan};
use pv_frontends::vmbus::{Hypervisor, VmBus};
use spin::{Mutex, RwLock};
use xen_abi::Mfn;

use super::store::{Access, Watcher};
use crate::hv::vmbus::Hv;
use crate::mm::{heap, pool};
use crate::platform::Shim;
use crate::{hv, log, time};

/// A card as a network device.
type Device = Nic<&'static VmBus<Hv>>;

/// Heap a card takes with its interface, what lists of pages need to be one piece included.
const CARD_BYTES: usize = 32 << 10;
/// And for each queue, the card and the interface.
const CARD_QUEUE_BYTES: usize = 44 << 10;
const VIF_QUEUE_BYTES: usize = 16 << 10;
/// What the others keep of the pool while cards are added to a guest that runs.
const POOL_RESERVE: usize = 64;

/// Pages for headers of packets whose checksum a card does not make.
const fn bounce_pages(queues: u16) -> usize {
    8 + 8 * queues as usize
}

/// An interface and what it is made of.
struct Interface {
    card: Arc<Card>,
    entry: Entry,
    vif: Vif<Device>,
    // Last: the vif lets go of them first.
    _bounce: Bounce,
}

/// Pages for headers, out of the pool.
struct Bounce(ArrayVec<BouncePage, { bounce_pages(Limits::USUAL_QUEUES) }>);

impl Bounce {
    /// As many as there are.
    fn new(queues: u16) -> Self {
        let page =
            || Hv.allocate().map(|page| BouncePage { gpfn: Mfn(page.gpfn), page: page.view });
        Self(core::iter::from_fn(page).take(bounce_pages(queues)).collect())
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        self.0.iter().for_each(|page| Hv.free(page.gpfn.0));
    }
}

/// What is known of the host's cards.
struct Known {
    /// Which card is which interface; `None`: there are none.
    plan: Option<Plan>,
    /// Cards in the order of their offers, also those that are gone: the same one is offered again
    /// by the same name. Whether each has what it takes.
    offers: Vec<(Guid, bool)>,
    cards: Vec<Arc<Card>>,
    /// Entries whose number a vif has that is still closing.
    waiting: Vec<(Entry, Arc<Card>)>,
}

static KNOWN: Mutex<Known> =
    Mutex::new(Known { plan: None, offers: Vec::new(), cards: Vec::new(), waiting: Vec::new() });
/// The interfaces by index.
static VIFS: RwLock<Vec<Option<Arc<Interface>>>> = RwLock::new(Vec::new());
/// There is a domain to attach cards to.
static STARTED: AtomicBool = AtomicBool::new(false);
/// Some vif was made: there may be one.
static USED: AtomicBool = AtomicBool::new(false);
/// Some vif has more to do.
static AGAIN: AtomicBool = AtomicBool::new(false);
/// Cards whose interfaces have not closed yet.
static LEAVING: AtomicBool = AtomicBool::new(false);
/// Cards that memory is set aside for, until they come.
static SPARE: AtomicU8 = AtomicU8::new(0);
/// Queues of a card.
static QUEUES: AtomicU16 = AtomicU16::new(1);

/// What cards may use: a queue for each vCPU, up to the number an interface has.
pub(super) fn config(vcpus: u32) -> Config {
    let max_queues = QUEUES.load(Ordering::Relaxed);
    Config { vps: hv::vp::indices(vcpus), max_queues, ..Config::default() }
}

/// Pages of the pool a card takes with its interface.
fn pages() -> usize {
    let queues = QUEUES.load(Ordering::Relaxed);
    Config::default().pages(queues) + bounce_pages(queues)
}

/// Heap a card takes with its interface.
fn card_heap_bytes() -> usize {
    let queues = usize::from(QUEUES.load(Ordering::Relaxed));
    CARD_BYTES + queues * (CARD_QUEUE_BYTES + VIF_QUEUE_BYTES)
}

/// Before anything is offered: `wanted` is `pontoon.vif=`, `spare` `pontoon.net-spare=`.
pub(super) fn start(wanted: &[u8], spare: u8, vcpus: u32) {
    KNOWN.lock().plan = parse(wanted);
    SPARE.store(spare, Ordering::Relaxed);
    QUEUES.store(Limits::new(vcpus).queues, Ordering::Relaxed);
}

/// Heap that [`attach`] takes, and cards that come later.
pub(super) fn heap_bytes() -> usize {
    let queues = usize::from(QUEUES.load(Ordering::Relaxed));
    let interfaces = KNOWN.lock().cards.len() * (CARD_BYTES + queues * VIF_QUEUE_BYTES);
    interfaces + usize::from(SPARE.load(Ordering::Relaxed)) * card_heap_bytes()
}

/// `None` where the option says that there are no cards, or nothing sensible: none are better than
/// wrong ones.
fn parse(wanted: &[u8]) -> Option<Plan> {
    let Ok(text) = core::str::from_utf8(wanted) else {
        log!(Error, "pontoon.vif is not text: no network cards");
        return None;
    };
    vif::parse(text)
        .inspect_err(|error| log!(Error, "pontoon.vif={text}: {error}: no network cards"))
        .ok()
        .filter(Plan::names_cards)
}

/// A card was offered, for the first time or again. Whether it can be used. Called while the bus is
/// locked.
pub(super) fn card_offered(instance: Guid) -> bool {
    let mut known = KNOWN.lock();
    if known.plan.is_none() {
        return false;
    }
    let offers = &mut known.offers;
    let place = offers.iter().position(|(other, _)| *other == instance).unwrap_or(offers.len());
    if place == offers.len() {
        if place >= usize::from(MAX_VIFS) {
            log!(Error, "network card {instance}: not used, there were too many");
            return false;
        }
        offers.push((instance, false));
    }
    let Some((_, is_used)) = offers.get_mut(place) else { return false };
    if !*is_used {
        *is_used = has_memory(instance);
    }
    *is_used
}

/// Whether there is what one more card takes, from now on at boot.
fn has_memory(instance: Guid) -> bool {
    let is_late = STARTED.load(Ordering::Acquire);
    // Until there is a guest the heap grows.
    if is_late && heap::free_bytes() < card_heap_bytes() {
        log!(Error, "network card {instance}: not used, no heap for it");
        return false;
    }
    let pages = pages();
    let has_pages =
        if is_late { pool::free_pages() >= pages + POOL_RESERVE } else { pool::grow(pages as u64) };
    if !has_pages {
        let kib = pages * 4;
        log!(
            Error,
            "network card {instance}: not used, no {kib} KiB for it (pontoon.net-spare sets some aside)"
        );
    }
    has_pages
}

/// Sets memory aside for cards that come later.
pub(super) fn set_aside() {
    for _ in 0..SPARE.load(Ordering::Relaxed) {
        if !pool::grow(pages() as u64) {
            log!(Error, "pontoon.net-spare asks for more memory than there is for cards");
            return;
        }
    }
}

/// The host's side.
pub(super) struct Cards;

impl Sink<Arc<Card>> for Cards {
    fn added(&self, card: &Arc<Card>) {
        KNOWN.lock().cards.push(Arc::clone(card));
        if STARTED.load(Ordering::Acquire) {
            super::with_env(|env| attach_card(env, card));
        }
    }

    fn changed(&self, card: &Arc<Card>) {
        super::with_env(|env| {
            if let Some(interface) = of_card(card) {
                interface.vif.changed(env, &Access(env));
                settle_if_due(env, &interface);
            }
        });
    }

    fn removed(&self, card: &Arc<Card>) {
        {
            let mut known = KNOWN.lock();
            known.cards.retain(|other| !Arc::ptr_eq(other, card));
            known.waiting.retain(|(_, other)| !Arc::ptr_eq(other, card));
            // Its memory is anybody's.
            let is_it = |(instance, _): &&mut (Guid, bool)| *instance == card.instance();
            if let Some((_, is_used)) = known.offers.iter_mut().find(is_it) {
                *is_used = false;
            }
        }
        super::with_env(|env| {
            if let Some(interface) = of_card(card) {
                interface.vif.remove(env, &Access(env));
                LEAVING.store(true, Ordering::Release);
                settle_if_due(env, &interface);
            }
            reap(env);
        });
    }

    fn receive(&self, card: &Arc<Card>, queue: u32, packet: &RxPacket<'_>) -> RxVerdict {
        let verdict = super::with_env(|env| with_vif(card, |vif| vif.receive(env, queue, packet)));
        // Nobody is there yet: dropped.
        verdict.flatten().unwrap_or(RxVerdict::Done)
    }

    fn transmitted(&self, card: &Arc<Card>, _queue: u32, tag: Tag, end: TxEnd) {
        super::with_env(|env| with_vif(card, |vif| vif.transmitted(env, tag, end)));
    }

    fn settled(&self, card: &Arc<Card>, _queue: u32) {
        super::with_env(|env| {
            if let Some(interface) = of_card(card) {
                settle(env, &interface);
            }
        });
    }
}

/// Calls `f` with a card's vif; `f` comes back here by no way.
fn with_vif<R>(card: &Arc<Card>, f: impl FnOnce(&Vif<Device>) -> R) -> Option<R> {
    let vifs = VIFS.read();
    let interface = vifs.iter().flatten().find(|other| Arc::ptr_eq(&other.card, card))?;
    Some(f(&interface.vif))
}

fn of_card(card: &Arc<Card>) -> Option<Arc<Interface>> {
    VIFS.read().iter().flatten().find(|other| Arc::ptr_eq(&other.card, card)).cloned()
}

fn of_index(index: u16) -> Option<Arc<Interface>> {
    VIFS.read().get(usize::from(index))?.clone()
}

/// Calls `f` for every interface, with no lock held.
fn each(mut f: impl FnMut(&Interface)) {
    for index in 0.. {
        let Some(slot) = VIFS.read().get(index).cloned() else { break };
        if let Some(interface) = slot {
            f(&interface);
        }
    }
}

fn settle(env: &Env<'_, Shim<'_>>, interface: &Interface) {
    if interface.vif.settled(env, &Access(env)) {
        AGAIN.store(true, Ordering::Release);
    }
}

fn settle_if_due(env: &Env<'_, Shim<'_>>, interface: &Interface) {
    if interface.vif.is_unsettled() {
        settle(env, interface);
    }
}

/// The guest notified one of a vif's ports.
pub(super) fn kicked(env: &Env<'_, Shim<'_>>, port: u16) -> Kicked {
    let Some(interface) = of_index(of_port(port)) else { return Kicked::default() };
    let kicked = interface.vif.kicked_holding(env, port);
    settle_if_due(env, &interface);
    kicked
}

/// Hands over what a vif's queue held back.
pub(super) fn release(env: &Env<'_, Shim<'_>>, port: u16) {
    let Some(interface) = of_index(of_port(port)) else { return };
    if interface.vif.kicked(env, port) {
        AGAIN.store(true, Ordering::Release);
    }
    settle_if_due(env, &interface);
}

/// Nodes that a vif watches were written.
pub(super) fn frontend_changed(env: &Env<'_, Shim<'_>>, index: u16) {
    if let Some(interface) = of_index(index) {
        interface.vif.frontend_changed(env, &Access(env));
        settle_if_due(env, &interface);
    }
    reap(env);
}

/// When [`again`] has something to do, at the latest.
pub(super) fn next_ns() -> u64 {
    if !USED.load(Ordering::Relaxed) {
        return u64::MAX;
    }
    if AGAIN.load(Ordering::Relaxed) {
        return 0;
    }
    let vifs = VIFS.read();
    vifs.iter().flatten().filter_map(|interface| interface.vif.deadline()).min().unwrap_or(u64::MAX)
}

/// Goes on with vifs that were not done, or whose time has come. Whether some still are not done.
pub(super) fn again(env: &Env<'_, Shim<'_>>) -> bool {
    let is_more = AGAIN.load(Ordering::Relaxed) && AGAIN.swap(false, Ordering::AcqRel);
    let now = time::now_ns();
    each(|interface| {
        if interface.vif.deadline().is_some_and(|deadline| deadline <= now) {
            interface.vif.tick(env);
            settle_if_due(env, interface);
        }
        if is_more {
            settle(env, interface);
        }
    });
    reap(env);
    AGAIN.load(Ordering::Relaxed)
}

/// Forgets vifs that are gone for good, and makes those that had to wait for their numbers.
fn reap(env: &Env<'_, Shim<'_>>) {
    if !LEAVING.swap(false, Ordering::AcqRel) {
        return;
    }
    let mut gone = ArrayVec::<Arc<Interface>, 8>::new();
    for index in 0.. {
        let Some(slot) = VIFS.read().get(index).cloned() else { break };
        let Some(interface) = slot.filter(|interface| is_leaving(interface)) else { continue };
        if gone.is_full() || !interface.vif.is_gone() {
            LEAVING.store(true, Ordering::Release);
            continue;
        }
        // Whoever takes it out lets it go.
        let taken = VIFS.write().get_mut(index).and_then(Option::take);
        gone.extend(taken);
    }
    for interface in &gone {
        log!(Info, "vif {}: gone; {interface}", interface.entry.handle);
        for path in interface.vif.watched().iter().flatten() {
            Watcher::Vif(interface.vif.index()).unwatch(env, path);
        }
        let waiting = {
            let waiting = &mut KNOWN.lock().waiting;
            let at = waiting.iter().position(|(entry, _)| entry.handle == interface.entry.handle);
            at.map(|at| waiting.remove(at))
        };
        if let Some((entry, card)) = waiting {
            make(env, &card, entry);
        }
    }
}

/// What an interface and its card counted, without what never happened.
impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = self.vif.counters();
        let card = Counter::ALL.iter().map(|&counter| (counter.name(), self.card.count(counter)));
        let mut list = |title: &str, counts: &mut dyn Iterator<Item = (&'static str, u64)>| {
            write!(f, "{title}")?;
            counts
                .filter(|(_, count)| *count != 0)
                .try_for_each(|(name, n)| write!(f, " {name} {n}"))
        };
        list("tx:", &mut counters.tx.each())?;
        list(", rx:", &mut counters.rx.each())?;
        list(", card:", &mut { card })
    }
}

/// Logs what the interfaces counted.
pub(super) fn report() {
    each(|interface| log!(Info, "vif {}: {interface}", interface.entry.handle));
}

/// Whether its card is gone.
fn is_leaving(interface: &Interface) -> bool {
    !KNOWN.lock().cards.iter().any(|card| Arc::ptr_eq(card, &interface.card))
}

/// Makes vifs of all cards found so far, and of later ones from now on.
pub(super) fn attach(env: &Env<'_, Shim<'_>>) {
    let mut cards = KNOWN.lock().cards.clone();
    cards.sort_by_key(|card| (wanted(card).map(|entry| entry.handle), place(card)));
    STARTED.store(true, Ordering::Release);
    for card in &cards {
        attach_card(env, card);
    }
    missing();
}

/// Says which entries have no card.
fn missing() {
    let known = KNOWN.lock();
    for entry in known.plan.iter().flat_map(Plan::entries) {
        if !VIFS.read().iter().flatten().any(|vif| vif.entry.handle == entry.handle) {
            log!(Error, "pontoon.vif: the host has no card {}", entry.card);
        }
    }
}

/// How many cards were offered before this one.
fn place(card: &Card) -> u32 {
    let known = KNOWN.lock();
    let place = known.offers.iter().position(|(instance, _)| *instance == card.instance());
    place.and_then(|place| u32::try_from(place).ok()).unwrap_or(u32::MAX)
}

/// Makes the vif of a card, if it has one.
fn attach_card(env: &Env<'_, Shim<'_>>, card: &Arc<Card>) {
    match wanted(card) {
        Some(entry) => make(env, card, entry),
        None => log!(Info, "network card {}: not named by pontoon.vif", card.mac()),
    }
}

/// What a card is to be, if the guest is to see it.
fn wanted(card: &Card) -> Option<Entry> {
    let (mac, place) = (card.mac(), place(card));
    KNOWN.lock().plan.as_ref().and_then(|plan| plan.entry(mac, place))
}

/// Makes a vif and shows it to the guest.
fn make(env: &Env<'_, Shim<'_>>, card: &Arc<Card>, entry: Entry) {
    let handle = entry.handle;
    let Some(interface) = create(card, entry, Limits::new(env.dom.nr_vcpus)) else { return };
    USED.store(true, Ordering::Relaxed);
    let vif = &interface.vif;
    let watcher = Watcher::Vif(vif.index());
    let announced = vif.announce(&Access(env)).is_ok()
        && vif.watched().is_some_and(|paths| paths.iter().all(|path| watcher.watch(env, path)));
    if announced {
        let info = vif.device().info();
        let link = if info.link { "up" } else { "down" };
        log!(Info, "vif {handle}: {}, MTU {}, link {link}", vif.mac(), info.mtu);
    } else {
        log!(Error, "vif {handle}: no room in xenstore");
        VIFS.write()[usize::from(vif.index())] = None;
    }
}

/// Makes a vif that nobody sees yet; says why it cannot. What this takes of the stack is not to be
/// there while the store is written.
#[inline(never)]
fn create(card: &Arc<Card>, entry: Entry, limits: Limits) -> Option<Arc<Interface>> {
    let handle = entry.handle;
    let config = VifConfig { handle, mac: None, mtu: entry.mtu, promiscuous: entry.promiscuous };
    let mut vifs = VIFS.write();
    if vifs.iter().flatten().any(|other| other.entry.handle == handle) {
        drop(vifs);
        KNOWN.lock().waiting.push((entry, Arc::clone(card)));
        return None;
    }
    let free = vifs.iter().position(Option::is_none).unwrap_or(vifs.len());
    let Some(index) = u16::try_from(free).ok().filter(|&index| index < MAX_VIFS) else {
        log!(Error, "vif {handle}: too many network cards");
        return None;
    };
    let device = Device::new(super::bus(), Arc::clone(card));
    let bounce = Bounce::new(limits.queues);
    let Some(vif) = Vif::new(index, config, limits, device, &bounce.0) else {
        log!(Error, "vif {handle}: no memory for its queues");
        return None;
    };
    let interface = Arc::new(Interface { card: Arc::clone(card), entry, vif, _bounce: bounce });
    if free == vifs.len() {
        vifs.push(None);
    }
    vifs[free] = Some(Arc::clone(&interface));
    Some(interface)
}
