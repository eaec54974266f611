//! From the boot loader to the guest's first instruction.

mod guest;
mod memory;

use core::arch::global_asm;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use boot_abi::multiboot2::{self, header_tag};
use boot_abi::{BootInfo, Module};
use translate::builder::cmdline::{ConsoleDevice, LogLevel, Options};

use crate::acpi::{self, Acpi};
use crate::cpu::percpu::{self, Area, PerCpu};
use crate::cpu::{self, Cpu, Features, apic, gdt, idt, mtrr, smp};
use crate::mm::layout::{DIRECT_MAP_BASE, FIXMAP_BASE, M2P_BASE, MAX_VCPUS, SHIM_BASE, SHIM_SIZE};
use crate::mm::page_table::{NoFrames, ShimTables, pte};
use crate::mm::{self, fixmap, frames, heap, phys_to_virt};
use crate::{console, devices, hv, log, power, screen, serial, time};
use memory::Ranges;

/// Boot door: PVH.
pub const KIND_PVH: u32 = 1;
/// Boot door: Linux 64-bit boot protocol.
pub const KIND_LINUX: u32 = 2;
/// Boot door: Multiboot2.
pub const KIND_MULTIBOOT2: u32 = 3;

global_asm!(
    include_str!("entry.S"),
    boot_main = sym boot_main,
    kind_pvh = const KIND_PVH,
    kind_linux = const KIND_LINUX,
    kind_multiboot2 = const KIND_MULTIBOOT2,
    shim_l4_slot = const mm::layout::SHIM_L4_SLOT,
    shim_base = const SHIM_BASE,
    load_paddr = const mm::layout::LOAD_PADDR,
    image_align = const PAGE,
    gdt_limit = const 3 * 8 - 1,
    note_phys32_entry = const 18,
    mb2_loader_magic = const multiboot2::BOOTLOADER_MAGIC,
    mb2_magic = const multiboot2::HEADER_MAGIC,
    mb2_architecture = const multiboot2::ARCHITECTURE_I386,
    mb2_end = const header_tag::END,
    mb2_entry = const header_tag::ENTRY,
    mb2_entry_efi64 = const header_tag::ENTRY_EFI64,
    mb2_relocatable = const header_tag::RELOCATABLE,
    mb2_prefer_low = const header_tag::PREFER_LOW,
    mb2_module_align = const header_tag::MODULE_ALIGN,
    mb2_console = const header_tag::CONSOLE,
    mb2_console_text = const header_tag::CONSOLE_EGA_TEXT,
    mb2_framebuffer = const header_tag::FRAMEBUFFER,
    mb2_optional = const header_tag::OPTIONAL,
);

/// The boot page tables map physical memory one to one up to here.
pub const IDENTITY_END: u64 = memory::BOOT_MAP_END;
const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 1 << 21;
/// Resident heap: what lives as long as the domain and has no fixed place.
const RESIDENT_HEAP: u64 = devices::HEAP_BYTES
    + (translate::gnttab::BOOKKEEPING_BYTES as u64).next_multiple_of(PAGE)
    + (translate::xenstore::DEFAULT_BYTES as u64).next_multiple_of(PAGE);
/// What part of the memory devices may take beside what is set aside for them: one in so many.
const DEVICES_SHARE: u64 = 16;
/// Frames the ABI shares with the guest: shared_info, and the grant table at its largest.
const SHARED_FRAMES: u64 = 1 + guest::GRANT_FRAMES;

static L4_ENTRIES: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// The two L4 entries every guest L4 gets.
#[inline]
pub fn shim_l4_entries() -> [u64; 2] {
    [L4_ENTRIES[0].load(Ordering::Relaxed), L4_ENTRIES[1].load(Ordering::Relaxed)]
}

unsafe extern "C" {
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
    static boot_pml4: u8;
}

/// Ends the boot with a line that says why.
macro_rules! give_up {
    ($($text:tt)*) => {{
        log::print(format_args!($($text)*));
        power::reset_after_failure()
    }};
}
use give_up;

/// What the boot has found out about the machine.
struct BootMachine {
    info: BootInfo,
    acpi: Acpi,
    features: Features,
    ram: Ranges,
    image: Range<u64>,
    /// TSC at entry.
    entered: u64,
}

/// The shim's own memory.
struct Own {
    shared: Range<u64>,
    tables: ShimTables,
    /// A frame of zeroes, for empty pages of GDTs.
    zero: u64,
    /// Physical address of the L4.
    l4: u64,
}

/// Called by the boot assembly.
pub extern "C" fn boot_main(kind: u32, info: u64, image: u64) -> ! {
    let entered = time::rdtsc();
    idt::init_boot();
    let info = match kind {
        KIND_PVH => boot_abi::pvh(&read_identity, info),
        KIND_MULTIBOOT2 => multiboot2::multiboot2(&read_identity, info),
        _ => boot_abi::linux(&read_identity, info),
    };
    let (wanted, level) = early_options(&info);
    console::init(wanted, info.framebuffer.as_ref());
    log::set_level(level);
    log!(Info, "Pontoon {} by {}", env!("CARGO_PKG_VERSION"), info.door);
    if info.lost_regions != 0 {
        log!(Warn, "the memory map is too long: {} entries are not used", info.lost_regions);
    }
    let features = cpu::features();
    let ram = memory::ram(&info);
    let size = (&raw const __image_end) as u64 - SHIM_BASE;
    let machine = BootMachine {
        acpi: find_acpi(&info),
        features,
        ram,
        image: image..image + size,
        info,
        entered,
    };
    run(&machine)
}

/// Physical memory while it is identity mapped.
fn read_identity(address: u64, len: usize) -> Option<&'static [u8]> {
    let end = address.checked_add(len as u64)?;
    // SAFETY: mapped below 4 GiB. What loaders and firmware leave there does not change while it is
    // read; where there is no memory, the bytes are any.
    (address != 0 && end <= memory::BOOT_MAP_END)
        .then(|| unsafe { core::slice::from_raw_parts(address as *const u8, len) })
}

/// The console and the log level, before there is a heap to parse the options on. Of the kernel's
/// line and the shim's, the shim's counts.
fn early_options(info: &BootInfo) -> (ConsoleDevice, log::Level) {
    let lines = [&info.cmdline[..], info.kernel_cmdline.as_deref().unwrap_or_default()];
    let value = |name: &[u8]| {
        let mut words = lines.iter().flat_map(|line| line.rsplit(u8::is_ascii_whitespace));
        words.find_map(|word| word.strip_prefix(name))
    };
    let console = match value(b"pontoon.console=") {
        Some(b"com1") => ConsoleDevice::Com1,
        Some(b"com2") => ConsoleDevice::Com2,
        Some(b"screen") => ConsoleDevice::Screen,
        Some(b"none") => ConsoleDevice::None,
        _ => ConsoleDevice::Auto,
    };
    let level = match value(b"pontoon.log=") {
        Some(b"error") => log::Level::Error,
        Some(b"info") => log::Level::Info,
        Some(b"debug") => log::Level::Debug,
        Some(b"trace") => log::Level::Trace,
        _ => log::Level::Warn,
    };
    (console, level)
}

fn find_acpi(info: &BootInfo) -> Acpi {
    let rsdp = info.rsdp.or_else(|| acpi::scan_rsdp(&read_identity));
    let acpi = rsdp.and_then(|rsdp| acpi::parse(&read_identity, rsdp));
    if acpi.is_none() {
        log!(Warn, "no ACPI tables: no power-off, and the serial port is polled");
    }
    acpi.unwrap_or_default()
}

/// The pages a file of the loader's lies in.
fn pages_of(module: &Module) -> Range<u64> {
    let end = module.start.saturating_add(module.len).checked_next_multiple_of(PAGE);
    module.start & !(PAGE - 1)..end.unwrap_or(u64::MAX)
}

fn payload(info: &BootInfo) -> impl Iterator<Item = Range<u64>> + '_ {
    info.modules.iter().map(pages_of)
}

/// Pages a vCPU takes: stub, data and stacks; the reserved page of its GDT; the host's pages (VP
/// assist, messages, events); its places in what several share (hypercall inputs, page tables).
const VCPU_PAGES: u64 = 1 + percpu::DATA_PAGES + percpu::STACK_PAGES + 1 + 3 + 1;
const _: () = assert!(VCPU_PAGES * PAGE <= 64 << 10);

/// Memory the shim needs for itself, in bytes, without the M2P.
fn own_bytes(machine: &BootMachine, vcpus: u64) -> u64 {
    let gib = machine.ram.last().map_or(0, |r| r.end >> 30) + 1;
    let tables = 34 + machine.ram.len() as u64 * 2 + if machine.features.page_1g { 8 } else { gib };
    let tables = tables + screen_pages(machine).map_or(0, |(_, bytes)| 3 + bytes / LARGE_PAGE);
    let pages = tables + vcpus * VCPU_PAGES + SHARED_FRAMES + devices::POOL_PAGES + 8;
    pages * PAGE + RESIDENT_HEAP
}

fn run(machine: &BootMachine) -> ! {
    let top = machine.ram.last().map_or(0, |r| r.end);
    let max_mfn = top / PAGE;
    let m2p_bytes = (max_mfn * 8).next_multiple_of(PAGE);
    let vcpus = machine.acpi.processors.len().clamp(1, MAX_VCPUS) as u64;
    let bytes = m2p_bytes + own_bytes(machine, vcpus);
    let mut taken: arrayvec::ArrayVec<Range<u64>, 8> = payload(&machine.info).collect();
    taken.push(machine.image.clone());
    let Some(region) = memory::place(&machine.ram, &taken, bytes) else {
        give_up!("no room for the shim's {} KiB below 4 GiB", bytes >> 10)
    };
    // Below it, as far as nothing else is there, it grows for devices.
    let total: u64 = machine.ram.iter().map(|r| r.end - r.start).sum();
    let floor = memory::free_below(&machine.ram, &taken, region.start);
    frames::init(region.clone(), floor.max(region.start.saturating_sub(total / DEVICES_SHARE)));
    let own = match build_tables(machine, max_mfn, m2p_bytes) {
        Ok(own) => own,
        Err(NoFrames) => give_up!("the shim's memory estimate is too small (page tables)"),
    };
    start_processor(machine, own)
}

/// Builds the final page tables and switches to them.
fn build_tables(machine: &BootMachine, max_mfn: u64, m2p_bytes: u64) -> Result<Own, NoFrames> {
    // First, while the region's start is still aligned for large pages.
    let m2p = frames::alloc(m2p_bytes / PAGE, LARGE_PAGE).ok_or(NoFrames)?;
    let shared_start = frames::alloc(SHARED_FRAMES, PAGE).ok_or(NoFrames)?;
    let mut tables = ShimTables::new(machine.features.page_1g)?;
    tables.map(M2P_BASE, m2p, m2p_bytes, pte::RO, true)?;
    let low = payload(&machine.info).filter(|range| memory::is_low_ram(&machine.info, range));
    for range in machine.ram.iter().cloned().chain(low) {
        let va = DIRECT_MAP_BASE + range.start;
        tables.map(va, range.start, range.end - range.start, pte::RW, true)?;
    }
    let image = |symbol: *const u8| symbol as u64 - SHIM_BASE;
    let (rodata, data) = (image(&raw const __rodata_start), image(&raw const __data_start));
    let end = machine.image.end - machine.image.start;
    for (from, to, flags) in [(0, rodata, pte::RX), (rodata, data, pte::RO), (data, end, pte::RW)] {
        tables.map(SHIM_BASE + from, machine.image.start + from, to - from, flags, false)?;
    }
    let zero = frames::alloc(1, PAGE).ok_or(NoFrames)?;
    map_vcpu(&mut tables, zero, 0)?;
    tables.map(fixmap::LAPIC, apic::base(), PAGE, pte::DEVICE, false)?;
    for (n, ioapic) in machine.acpi.ioapics.iter().enumerate() {
        let va = fixmap::IOAPIC + n as u64 * PAGE;
        tables.map(va, ioapic.address & !(PAGE - 1), PAGE, pte::DEVICE, false)?;
    }
    if let Some((first, bytes)) = screen_pages(machine) {
        tables.map(fixmap::SCREEN, first, bytes, pte::WRITE_COMBINING, false)?;
    }
    let l4 = frames::alloc(1, PAGE).ok_or(NoFrames)?;
    let entries = tables.l4_entries();
    for (slot, entry) in
        [mm::layout::M2P_L4_SLOT, mm::layout::SHIM_L4_SLOT].into_iter().zip(entries)
    {
        L4_ENTRIES[slot - mm::layout::M2P_L4_SLOT].store(entry, Ordering::Relaxed);
        let slot = phys_to_virt(l4).cast::<u64>().wrapping_add(slot);
        // SAFETY: the new L4 is a zeroed frame of the shim's, identity mapped.
        unsafe { slot.write(entry) };
    }
    // SAFETY: the tables use NX, which every processor that runs 64-bit Hyper-V guests has.
    unsafe { cpu::msr::set_bits(cpu::msr::nr::EFER, 1 << 11) };
    // SAFETY: the new tables map the image where it runs and its stack.
    unsafe { cpu::write_cr3(l4) };
    mm::use_direct_map();
    if let Some(layout) = machine.info.framebuffer.filter(|_| screen::is_used()) {
        screen::is_mapped(&layout);
    }
    let shared = shared_start / PAGE..shared_start / PAGE + SHARED_FRAMES;
    // SAFETY: the M2P was mapped above, read-only there and in the direct map.
    unsafe { mm::guest::init(m2p, max_mfn, shared.clone()) };
    let heap_start = frames::alloc(RESIDENT_HEAP / PAGE, PAGE).ok_or(NoFrames)?;
    // SAFETY: frames of the shim's, for good.
    unsafe { heap::init_resident(phys_to_virt(heap_start), RESIDENT_HEAP as usize) };
    Ok(Own { shared, tables, zero, l4 })
}

/// The pages of the screen, if it is the console: address and bytes.
fn screen_pages(machine: &BootMachine) -> Option<(u64, u64)> {
    let layout = machine.info.framebuffer.filter(|_| screen::is_used())?;
    let first = layout.address & !(PAGE - 1);
    Some((first, (layout.address - first + layout.bytes()?).next_multiple_of(PAGE)))
}

/// Maps a vCPU's area and GDT window and fills the stub and the reserved GDT page.
fn map_vcpu(tables: &mut ShimTables, zero: u64, cpu: u32) -> Result<(), NoFrames> {
    let area = Area::of(cpu);
    let stub = frames::alloc(1, PAGE).ok_or(NoFrames)?;
    // SAFETY: a fresh frame.
    unsafe { cpu::fill_stub(phys_to_virt(stub)) };
    tables.map(area.stub(), stub, PAGE, pte::RX, false)?;
    let data = frames::alloc(percpu::DATA_PAGES, PAGE).ok_or(NoFrames)?;
    tables.map(area.data(), data, percpu::DATA_PAGES * PAGE, pte::RW, false)?;
    let stacks = frames::alloc(percpu::STACK_PAGES, PAGE).ok_or(NoFrames)?;
    tables.map(area.stacks(), stacks, percpu::STACK_PAGES * PAGE, pte::RW, false)?;
    for page in 0..gdt::RESERVED_PAGE {
        tables.map(gdt::window(cpu) + page * PAGE, zero, PAGE, pte::RO, false)?;
    }
    let reserved = frames::alloc(1, PAGE).ok_or(NoFrames)?;
    // SAFETY: a fresh frame.
    let page = unsafe { &mut *phys_to_virt(reserved).cast::<[u64; 512]>() };
    let tss = area.data() + core::mem::offset_of!(PerCpu, tss) as u64;
    gdt::fill_reserved(page, tss);
    tables.map(gdt::window(cpu) + gdt::RESERVED_PAGE * PAGE, reserved, PAGE, pte::RW, false)
}

/// Hyper-V, interrupts, time.
fn start_processor(machine: &BootMachine, mut own: Own) -> ! {
    power::init(machine.acpi.power);
    let (cmdline, options) = guest::options(machine);
    report_options(&options);
    let hv = hv::detect(|name| !options.hyperv || options.without(name)).filter(|_| options.hyperv);
    match hv {
        Some(hv) => {
            if hv.isolated {
                give_up!("isolated (confidential) virtual machines are not supported")
            }
            hv::init_vm(hv, |page| {
                own.tables.map(fixmap::HYPERCALL_PAGE, page, PAGE, pte::RX, false).is_ok()
            });
            if hv.reset {
                power::use_hv_reset();
            }
            log!(Info, "on Hyper-V: {hv:?}");
        }
        None => log!(Info, "no Hyper-V here: LAPIC timer and TSC, no VMBus"),
    }
    hv::crash::init();
    apic::init(&machine.features);
    let Some(source) = time::init(&machine.acpi.power) else {
        give_up!("no clock to measure the TSC with")
    };
    let vp_index = hv.map_or(0, |hv| hv::init_cpu(0, hv));
    let synic = hv.is_some_and(|hv| hv::synic::init_cpu(0, hv));
    let timer = time::init_timer(&machine.features, synic);
    let rate = if time::tsc_scale().invariant { ", invariant" } else { "" };
    log!(Info, "TSC by {source}{rate}, timer: {timer}");
    route_serial(&machine.acpi);
    apic::note_id(0);
    idt::init();
    let vcpus = start_others(machine, &mut own, &options);
    if synic && hv.is_some_and(devices::possible) {
        devices::start(&options, vcpus);
    }
    guest::launch(machine, own, vp_index, vcpus, cmdline, &options)
}

/// Whether the local APIC can name a processor.
fn is_reached(id: u32) -> bool {
    let is_reached = apic::reaches(id);
    if !is_reached {
        log!(Warn, "no x2APIC: the processor with APIC id {id} is left out");
    }
    is_reached
}

/// Starts the other processors; the number of vCPUs the guest gets.
fn start_others(machine: &BootMachine, own: &mut Own, options: &Options<'_>) -> u32 {
    let me = apic::id();
    let most = options.max_vcpus.map_or(MAX_VCPUS, |most| usize::from(most).clamp(1, MAX_VCPUS));
    let others = machine.acpi.processors.iter().copied().filter(|&id| id != me && is_reached(id));
    let ids: arrayvec::ArrayVec<u32, MAX_VCPUS> = others.take(most - 1).collect();
    if ids.is_empty() {
        return 1;
    }
    let page = memory::low_page(&machine.info)
        .filter(|&page| own.tables.map(fixmap::TRAMPOLINE, page, PAGE, pte::RW, false).is_ok());
    let page = page.map(|page| (page, fixmap::TRAMPOLINE as *mut u8));
    let boot_l4 = machine.image.start + ((&raw const boot_pml4) as u64 - SHIM_BASE);
    if page.is_none() {
        log!(Warn, "no RAM below 640 KiB: other processors start only if the host starts them");
    }
    let begin = time::now_ns();
    mtrr::note();
    let starter = smp::Starter::new(machine.features, page, boot_l4, own.l4);
    starter.init(&ids);
    let mut count = 1;
    let mut mapped = 1;
    for id in ids {
        if mapped == count {
            if map_vcpu(&mut own.tables, own.zero, count).is_err() {
                log!(Error, "no memory for more than {count} processors");
                break;
            }
            mapped += 1;
        }
        let info = guest::vcpu_info(own, count);
        // SAFETY: the area is mapped, and no processor uses it: none has answered for it.
        unsafe { init_area(own, 0, translate::vcpu::Vcpu::new(count, info)) };
        match starter.start(count, id) {
            smp::Answer::Ready => count += 1,
            smp::Answer::None => smp::report_missing(id),
            // What it is on cannot be given to another.
            smp::Answer::Stuck => {
                smp::report_stuck(id);
                break;
            }
        }
    }
    log!(Info, "{count} processors after {} us", (time::now_ns() - begin) / 1000);
    count
}

fn report_options(options: &Options<'_>) {
    for word in &options.unknown {
        log!(Warn, "unknown option {}", core::str::from_utf8(word).unwrap_or("(not text)"));
    }
    log::set_level(match options.log {
        LogLevel::Error => log::Level::Error,
        LogLevel::Warn => log::Level::Warn,
        LogLevel::Info => log::Level::Info,
        LogLevel::Debug => log::Level::Debug,
        LogLevel::Trace => log::Level::Trace,
    });
}

/// Lets the console's port interrupt this processor.
fn route_serial(acpi: &Acpi) {
    let Some(irq) = serial::interrupt_line() else { return };
    let isa = acpi.overrides.iter().find(|o| o.irq == irq);
    let (gsi, flags) = isa.map_or((u32::from(irq), 0), |o| (o.gsi, o.flags));
    let found = acpi
        .ioapics
        .iter()
        .enumerate()
        .filter(|(_, ioapic)| ioapic.gsi_base <= gsi)
        .max_by_key(|(_, ioapic)| ioapic.gsi_base);
    let Some((index, ioapic)) = found else {
        log!(Warn, "no IOAPIC: no console input");
        return;
    };
    let page = fixmap::IOAPIC + index as u64 * PAGE;
    // SAFETY: the page was mapped to this IOAPIC's registers in `build_tables`.
    unsafe { apic::route(page, gsi - ioapic.gsi_base, flags, idt::vector::SERIAL, apic::id()) };
}
const _: () = assert!(FIXMAP_BASE > SHIM_BASE + SHIM_SIZE && MAX_VCPUS <= 64);

/// Sets up a vCPU's area as far as the shim's own part goes.
///
/// # Safety
/// The area must be mapped and unused.
unsafe fn init_area(own: &Own, vp_index: u32, vcpu: translate::vcpu::Vcpu) -> *mut PerCpu {
    let number = vcpu.id;
    let area = Area::of(number);
    let pc = area.data() as *mut PerCpu;
    let cpu = Cpu::new(number);
    cpu.vp_index.set(vp_index);
    let reserved = gdt::window(number) + gdt::RESERVED_PAGE * PAGE;
    cpu.gdt_page.set(reserved as *mut u64);
    if let Some(first) = own.tables.leaf(gdt::window(number)) {
        cpu.gdt_ptes.set(first);
        // SAFETY: the leaf entry of a mapped page.
        cpu.gdt_empty.set(unsafe { first.read() });
    }
    // SAFETY: the caller's promise: mapped, unused, and nothing has a reference to it.
    let uninit = unsafe { &mut *pc.cast::<core::mem::MaybeUninit<PerCpu>>() };
    uninit.write(PerCpu::new(area, vcpu, cpu, crate::trap::handlers()));
    pc
}
