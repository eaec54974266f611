//! Builds the domain out of the payload and starts it.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;
use boot_abi::Module;
use translate::builder::bundle::{Bundle, BundleError};
use translate::builder::cmdline::{self, Options};
use translate::builder::{BuildMemory, Config, Kernel, Machine, Start, kernel, layout, populate};
use translate::domain::Domain;
use translate::evtchn::{Backend, Here};
use translate::regs::{CpuRegs, selector};
use translate::vcpu::Vcpu;
use translate::{Ctx, gnttab, time as guest_time, xenstore};
use xen_abi::shared_info::{SharedInfo, VcpuInfo};
use xen_abi::{GuestVa, Mfn, PAGE_SIZE, Pfn};

use super::memory::{self, GuestFrames, Ranges, without};
use super::{BootMachine, Own, give_up};
use crate::cpu::percpu::PerCpu;
use crate::cpu::smp;
use crate::mm::{self, frames, heap, phys_bytes, phys_to_virt};
use crate::platform::Shim;
use crate::{cpu, log, power, serial, time, trap};

/// Frames set aside for the grant table and its status pages.
pub const GRANT_FRAMES: u64 = gnttab::MAX_POOL as u64;
/// Beside what the kernel needs: tables of segments, the allocator's own.
const BOOT_HEAP_SLACK: u64 = 1 << 20;

/// The payload, in the direct map.
struct Payload {
    kernel: &'static [u8],
    initrd: Option<&'static [u8]>,
    cmdline: Option<&'static [u8]>,
}

fn module_bytes(machine: &BootMachine, module: &Module) -> Option<&'static [u8]> {
    let end = module.start.checked_add(module.len)?;
    let is_inside = |r: &Range<u64>| module.start >= r.start && end <= r.end;
    let is_mapped = machine.ram.iter().any(is_inside)
        || memory::is_low_ram(&machine.info, &super::pages_of(module));
    if !is_mapped {
        return None;
    }
    // SAFETY: RAM in the direct map; nothing writes it before the payload has been used.
    Some(unsafe { phys_bytes(module.start, module.len as usize) })
}

fn payload(machine: &BootMachine) -> Payload {
    let mut files = machine.info.modules.iter().map(|m| {
        module_bytes(machine, m).unwrap_or_else(|| give_up!("the loader put a module outside RAM"))
    });
    let Some(first) = files.next() else {
        give_up!("no kernel: give a bundle as initrd, or kernel and initrd as modules")
    };
    match Bundle::parse(first) {
        Ok(bundle) => {
            Payload { kernel: bundle.kernel, initrd: bundle.initrd, cmdline: bundle.cmdline }
        }
        Err(BundleError::NotABundle) => {
            Payload { kernel: first, initrd: files.next(), cmdline: None }
        }
        Err(error) => give_up!("{error}"),
    }
}

/// The guest's command line and the shim's options: the bundle's words, the kernel's, then the
/// loader's. Where the kernel has a line of its own, the loader's is for the shim alone.
pub fn options(machine: &BootMachine) -> (Vec<u8>, Options<'static>) {
    let info = &machine.info;
    if info.lost_modules != 0 {
        log!(Warn, "{} modules more than are looked at", info.lost_modules);
    }
    let mut line = Vec::new();
    if let Some(bundled) = payload(machine).cmdline {
        line.extend_from_slice(bundled);
        line.push(b' ');
    }
    match &info.kernel_cmdline {
        Some(kernel) => {
            line.extend_from_slice(kernel);
            for word in cmdline::words(&info.cmdline).filter(|word| cmdline::is_ours(word)) {
                line.push(b' ');
                line.extend_from_slice(word);
            }
        }
        None => line.extend_from_slice(&info.cmdline),
    }
    let (guest, options) = cmdline::split(line.leak());
    (guest, options)
}

/// The guest's frames as the builder writes them.
struct Memory<'a>(&'a GuestFrames);

impl Memory<'_> {
    /// Calls `f` with each contiguous piece of a range of guest memory: address and length.
    fn pieces(&self, pfn: Pfn, offset: u64, bytes: u64, mut f: impl FnMut(u64, u64)) {
        let mut at = pfn.0 * PAGE_SIZE + offset;
        let mut left = bytes;
        while left != 0 {
            let Some((mfn, count)) = self.0.run(Pfn(at / PAGE_SIZE)) else {
                give_up!("the builder wrote past the guest's memory");
            };
            let inside = at % PAGE_SIZE;
            let len = left.min(count * PAGE_SIZE - inside);
            f(mfn.base().0 + inside, len);
            at += len;
            left -= len;
        }
    }
}

impl BuildMemory for Memory<'_> {
    fn run(&self, pfn: Pfn) -> (Mfn, u64) {
        self.0.run(pfn).unwrap_or((Mfn::INVALID, 0))
    }
    fn write(&mut self, pfn: Pfn, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        self.pieces(pfn, offset, bytes.len() as u64, |address, len| {
            let (now, later) = rest.split_at(len as usize);
            // SAFETY: guest RAM, which the layout keeps apart from the boot heap and the payload.
            unsafe { crate::platform::write_phys(address, now) };
            rest = later;
        });
    }
    fn zero(&mut self, pfn: Pfn, offset: u64, bytes: u64) {
        self.pieces(pfn, offset, bytes, |address, len| {
            // SAFETY: as above.
            unsafe { phys_to_virt(address).write_bytes(0, len as usize) };
        });
    }
}

fn range_of(bytes: &[u8]) -> Range<u64> {
    let start = bytes.as_ptr() as u64 - mm::layout::DIRECT_MAP_BASE;
    start..start + bytes.len() as u64
}

fn pages_of(bytes: &[u8]) -> Range<u64> {
    let range = range_of(bytes);
    range.start & !(PAGE_SIZE - 1)..range.end.next_multiple_of(PAGE_SIZE)
}

/// Where the initrd goes: the top of the highest of the guest's ranges that holds it.
fn initrd_place(ranges: &Ranges, bytes: u64) -> Option<Range<u64>> {
    let pages = bytes.next_multiple_of(PAGE_SIZE);
    let range =
        ranges.iter().rev().find(|r| r.end <= memory::BOOT_MAP_END && r.end - r.start > pages)?;
    Some(range.end - pages..range.end)
}

/// The boot heap: the top of the largest range that nothing else needs.
fn heap_place(frames: &GuestFrames, taken: &[Range<u64>], bytes: u64) -> Option<Range<u64>> {
    let mut free = frames.ranges().clone();
    for range in taken {
        free = without(&free, range);
    }
    let largest = free.iter().max_by_key(|r| r.end - r.start)?;
    let start = largest.end.checked_sub(bytes)? & !(PAGE_SIZE - 1);
    (start > largest.start).then_some(start..largest.end)
}

/// Where a vCPU's `vcpu_info` is at first: in `shared_info`, or, beyond what that has room for, nowhere
/// the guest knows.
pub(super) fn vcpu_info(own: &Own, vcpu: u32) -> &'static VcpuInfo {
    static NONE: [AtomicU64; size_of::<VcpuInfo>() / 8] =
        [const { AtomicU64::new(0) }; size_of::<VcpuInfo>() / 8];
    let page = phys_to_virt(own.shared.start * PAGE_SIZE).cast::<SharedInfo>();
    // SAFETY: the first of the shared frames is shared_info's for good; it is made of atomics.
    let shared_info = unsafe { &*page };
    let none = (&raw const NONE).cast::<VcpuInfo>();
    // SAFETY: as large and aligned as the structure, which is made of atomics, for which any bytes are
    // valid.
    shared_info.vcpu_info.get(vcpu as usize).unwrap_or(unsafe { &*none })
}

/// Builds and starts the guest.
pub(super) fn launch(
    machine: &BootMachine,
    own: Own,
    vp_index: u32,
    vcpus: u32,
    guest_cmdline: Vec<u8>,
    options: &Options<'_>,
) -> ! {
    let payload = payload(machine);
    let region = frames::take_rest();
    let ranges = without(&machine.ram, &machine.image);
    let ranges = without(&ranges, &region);
    let limit = options.mem_bytes.map_or(u64::MAX, |bytes| bytes / PAGE_SIZE);
    let guest = GuestFrames::new(ranges, limit);
    let cmdline: &'static [u8] = guest_cmdline.leak();
    let shared = own.shared.start * PAGE_SIZE;
    // SAFETY: the first of the shared frames: zeroed, the shim's, and shared_info's for good.
    let shared_info = unsafe { &*phys_to_virt(shared).cast::<SharedInfo>() };
    let at = xen_abi::MachineAddr(shared);
    let uuid = options.uuid.unwrap_or_else(random_uuid);
    // SAFETY: called once.
    let dom = unsafe { crate::guest::init(shared_info, at, guest.pages(), vcpus, uuid) };
    let info: &'static VcpuInfo = &shared_info.vcpu_info[0];
    let mut vcpu = Vcpu::new(0, info);
    let cpu_for_boot = cpu::Cpu::new(0);
    let plat = Shim { cpu: &cpu_for_boot };
    // In the order of Xen's toolstack: the store has port 1, the console port 2.
    let Ok(store_port) = dom.evtchn.alloc_backend(&plat, Backend::Xenstore) else {
        give_up!("no event channel for xenstore")
    };
    let Ok(console_port) = dom.evtchn.alloc_backend(&plat, Backend::Console) else {
        give_up!("no event channel for the console")
    };
    let grants = (own.shared.start + 1..own.shared.end).map(Mfn);
    dom.gnttab.set_pool(&plat, &grants.collect::<ArrayVec<Mfn, { gnttab::MAX_POOL }>>());
    let link = Machine {
        shared_info: at,
        console_evtchn: console_port,
        store_evtchn: store_port,
        flags: 0,
    };
    let start = build(&guest, &payload, cmdline, &link);
    dom.console.connect(start.console.base(), console_port);
    fill_m2p(&guest);
    start_store(dom, &plat, &start, &link, options);
    crate::devices::attach(dom, &plat, options);
    vcpu.mmu.l4 = start.cr3.0;
    dom.vcpus[0].roots.begin(start.cr3);
    first_vcpu(dom);
    report(machine, &region, &guest, vcpus);
    // SAFETY: the area is mapped and nobody uses it yet.
    let pc = unsafe { super::init_area(&own, vp_index, vcpu) };
    enter(machine, dom, pc, &start)
}

/// Starts the store, with the domain's own nodes in it.
fn start_store(
    dom: &Domain,
    plat: &Shim<'_>,
    start: &Start,
    link: &Machine,
    options: &Options<'_>,
) {
    let config = xenstore::Config { seed: random() as u32, ..xenstore::Config::default() };
    let Some(ring) = start.store else { return };
    if dom.xenstore.start(&config).is_err() {
        give_up!("no memory for xenstore");
    }
    let kib = dom.nr_pages.load(Relaxed) * (PAGE_SIZE >> 10);
    let nodes = xenstore::DomainConfig {
        name: options.name,
        uuid: dom.identity.uuid,
        max_kib: kib,
        target_kib: kib,
        nr_vcpus: dom.nr_vcpus,
        console: (start.console.0, link.console_evtchn),
        store: (ring.0, link.store_evtchn),
    };
    dom.xenstore.connect(plat, ring.base(), link.store_evtchn);
    let online = options.vcpus.map_or(dom.nr_vcpus, u32::from);
    let done = xenstore::with(dom, plat, Here::NOWHERE, |store| {
        store.add_domain(&nodes)?;
        (online..dom.nr_vcpus).try_for_each(|vcpu| store.set_availability(vcpu, false))
    });
    if done != Some(Ok(())) {
        give_up!("no room for the domain in xenstore");
    }
}

/// A number that nobody knows: the processor's own, or at least one that changes from boot to boot.
fn random() -> u64 {
    cpu::random().unwrap_or_else(|| time::rdtsc().wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A UUID of version 4.
fn random_uuid() -> [u8; 16] {
    let mut uuid = (u128::from(random()) << 64 | u128::from(random())).to_be_bytes();
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Loads the kernel, lays the domain out and writes it.
fn build(guest: &GuestFrames, payload: &Payload, cmdline: &[u8], link: &Machine) -> Start {
    let initrd_len = payload.initrd.map_or(0, |i| i.len() as u64);
    let place = payload.initrd.map(|_| {
        initrd_place(guest.ranges(), initrd_len)
            .unwrap_or_else(|| give_up!("no room for the {} KiB of initrd", initrd_len >> 10))
    });
    let mut taken: ArrayVec<Range<u64>, 4> = ArrayVec::new();
    taken.push(pages_of(payload.kernel));
    taken.extend(payload.initrd.map(pages_of));
    taken.extend(place.clone());
    let need = match kernel::heap_bytes(payload.kernel) {
        Ok(bytes) => bytes as u64 + BOOT_HEAP_SLACK,
        Err(error) => give_up!("{error}"),
    };
    let Some(heap) = heap_place(guest, &taken, need) else {
        give_up!("no memory to unpack the kernel in")
    };
    // SAFETY: guest RAM that nothing uses until `close_boot`: the layout is checked against it.
    unsafe { heap::open_boot(phys_to_virt(heap.start), (heap.end - heap.start) as usize) };
    let start = build_with_heap(guest, payload, cmdline, link, place, &heap);
    let left = heap::close_boot();
    if left != 0 {
        log!(Debug, "{left} bytes of the boot heap were not given back");
    }
    start
}

fn build_with_heap(
    guest: &GuestFrames,
    payload: &Payload,
    cmdline: &[u8],
    link: &Machine,
    place: Option<Range<u64>>,
    heap: &Range<u64>,
) -> Start {
    let mut kernel = match Kernel::load(payload.kernel) {
        Ok(kernel) => kernel,
        Err(error) => give_up!("{error}"),
    };
    // The payload may lie where the kernel goes: an image that still borrows it is copied.
    kernel.image.to_mut();
    let initrd_pfn =
        place.as_ref().filter(|_| kernel.mod_start_pfn).and_then(|p| guest.pfn(p.start));
    let config = Config {
        nr_pages: guest.pages(),
        cmdline,
        initrd_bytes: payload.initrd.map_or(0, |i| i.len() as u64),
        initrd_pfn,
        xenstore: true,
    };
    let plan = layout::plan(&kernel, &config).unwrap_or_else(|error| give_up!("{error}"));
    let clash =
        |range: &Range<u64>| guest.pfn(range.start).is_some_and(|first| first < plan.end_pfn);
    if clash(heap) || place.as_ref().is_some_and(clash) {
        give_up!("too little memory to unpack this kernel: {} MiB", guest.pages() >> 8);
    }
    let initrd = payload.initrd.zip(place).map(|(from, to)| {
        let target = phys_to_virt(to.start);
        // SAFETY: the target is guest RAM clear of the heap; `copy` allows for overlap with the
        // source, and the kernel's file is not needed any more.
        unsafe { target.copy_from(from.as_ptr(), from.len()) };
        let pages = (to.end - to.start) as usize;
        let rest = target.wrapping_add(from.len());
        // SAFETY: the rest of the last page.
        unsafe { rest.write_bytes(0, pages - from.len()) };
        // SAFETY: just written, and left alone until the builder has read it.
        unsafe { core::slice::from_raw_parts(target.cast_const(), from.len()) }
    });
    let copied = initrd.filter(|_| plan.initrd.is_some_and(|i| i.copy));
    let mut memory = Memory(guest);
    let start = populate::populate(&plan, &kernel, cmdline, copied, link, &mut memory);
    start.unwrap_or_else(|error| give_up!("{error}"))
}

/// shared_info as a guest finds it: every upcall and every event masked; and vCPU 0 up.
fn first_vcpu(dom: &'static Domain) {
    for vcpu in &dom.shared_info.vcpu_info {
        vcpu.evtchn_upcall_mask.store(1, Relaxed);
    }
    for word in &dom.shared_info.evtchn_mask {
        word.store(u64::MAX, Relaxed);
    }
    for (vcpu, info) in dom.vcpus.iter().zip(&dom.shared_info.vcpu_info) {
        *vcpu.info.lock() = Some(info);
    }
    dom.vcpus[0].begin();
    smp::domain_is_there();
}

/// Makes the frames the guest's.
fn fill_m2p(guest: &GuestFrames) {
    let mut pfn = 0;
    while let Some((mfn, count)) = guest.run(Pfn(pfn)) {
        for index in 0..count {
            mm::guest::give(Mfn(mfn.0 + index), Pfn(pfn + index));
        }
        pfn += count;
    }
}

fn report(machine: &BootMachine, region: &Range<u64>, guest: &GuestFrames, vcpus: u32) {
    let image = machine.image.end - machine.image.start;
    let region = region.end - region.start;
    let used = image + region;
    let total: u64 = machine.ram.iter().map(|r| r.end - r.start).sum();
    log!(
        Info,
        "memory: shim {} KiB (image {}, tables and M2P {}), guest {} MiB of {} MiB; entry to guest {} us",
        used >> 10,
        image >> 10,
        region >> 10,
        guest.pages() >> 8,
        total >> 20,
        time::since(machine.entered) / 1000,
    );
    let of_vcpus = u64::from(vcpus - 1) * (64 << 10);
    let budget = (8 << 20) + total / 500 + frames::added_bytes() + of_vcpus;
    if used > budget {
        log!(
            Warn,
            "the shim uses {} KiB, more than its budget of {} KiB",
            used >> 10,
            budget >> 10
        );
    }
}

/// Starts vCPU 0.
fn enter(machine: &BootMachine, dom: &'static Domain, pc: *mut PerCpu, start: &Start) -> ! {
    {
        // SAFETY: the area was just set up; nothing else refers to it.
        let pc = unsafe { &mut *pc };
        let GuestVa(entry) = start.rip;
        trap::set_kernel_entry(entry);
        // A kernel in the lower half has the user bit on its own pages, as Xen wants it.
        let smep = machine.features.smep && !trap::is_kernel_low();
        let features = cpu::Features { smep, ..machine.features };
        // SAFETY: area and GDT window are mapped and filled, the final page tables loaded.
        unsafe { cpu::init(pc, &features) };
        pc.cpu.runs.set(true);
        let plat = Shim { cpu: &pc.cpu };
        let mut cx = Ctx { dom, vcpu: &mut pc.vcpu, plat: &plat };
        guest_time::init(&mut cx);
        if !translate::platform::Processor::load_cr3(&plat, start.cr3) {
            give_up!("the builder's page tables are not the guest's");
        }
    }
    serial::enable_interrupt();
    let GuestVa(rip) = start.rip;
    let regs = CpuRegs {
        rip,
        cs: u64::from(selector::KERNEL_CS),
        rflags: 0x202,
        rsp: start.rsp.0,
        ss: u64::from(selector::KERNEL_SS),
        rsi: start.rsi.0,
        ..CpuRegs::default()
    };
    if !log::wants(log::Level::Info) {
        log::set_level(log::Level::Error);
    }
    // SAFETY: everything above.
    unsafe { trap::start(pc, regs) }
}
