//! Mappings, protection and copies to and from user memory.

use core::ptr;

use crate::fault::{self, Fault, catch, expect};
use crate::harness::{Check, Ending, Outcome, Random, close, in_child, must, os_error, pipe};
use crate::{ensure, probe};

/// Bytes of a page.
pub const PAGE: usize = 4096;

const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub const CHECKS: &[Check] = &[
    ("mprotect_read_only", mprotect_read_only),
    ("mprotect_none", mprotect_none),
    ("mprotect_no_execute", mprotect_no_execute),
    ("mprotect_storm", mprotect_storm),
    ("munmap_faults", munmap_faults),
    ("zero_page", zero_page),
    ("mremap", mremap),
    ("madvise_dontneed", madvise_dontneed),
    ("map_storm", map_storm),
    ("large_touch", large_touch),
    ("shared_mapping", shared_mapping),
    ("private_file_mapping", private_file_mapping),
    ("self_modifying_code", self_modifying_code),
    ("stack_growth", stack_growth),
    ("efault_read_only", efault_read_only),
    ("efault_partial", efault_partial),
    ("null_pointer", null_pointer),
];

/// Private anonymous memory, readable and writable.
pub fn map(bytes: usize, flags: i32) -> Result<*mut u8, String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    let area = unsafe { libc::mmap(ptr::null_mut(), bytes, RW, flags, -1, 0) };
    if area == libc::MAP_FAILED { Err(os_error("mmap")) } else { Ok(area.cast()) }
}

fn protect(area: *mut u8, bytes: usize, prot: i32) -> Outcome {
    must(unsafe { libc::mprotect(area.cast(), bytes, prot) }, "mprotect").map(|_| ())
}

/// Reads a byte.
pub fn read_at(address: u64) -> Option<Fault> {
    unsafe { probe!("mov al, [rcx]"; inout("rcx") address => _, out("rax") _) }
}

/// Writes a byte.
pub fn write_at(address: u64) -> Option<Fault> {
    unsafe { probe!("mov byte ptr [rcx], 0x5a"; inout("rcx") address => _) }
}

/// Jumps there.
pub fn jump_to(address: u64) -> Option<Fault> {
    unsafe { probe!("call rcx"; inout("rcx") address => _, out("rax") _, out("rdx") _) }
}

fn number(pointer: *mut u8) -> u64 {
    pointer.expose_provenance() as u64
}

fn expect_at(what: &str, fault: Option<Fault>, code: i32, address: u64) -> Outcome {
    expect(what, fault, libc::SIGSEGV, code)?;
    let found = fault.map(|f| f.address);
    ensure!(found == Some(address), "{what}: si_addr {found:x?} instead of {address:x}");
    Ok(())
}

fn mprotect_read_only() -> Outcome {
    catch()?;
    let area = map(2 * PAGE, 0)?;
    let second = number(area) + PAGE as u64 + 5;
    for _ in 0..50 {
        ensure!(write_at(second).is_none(), "write to a writable page");
        protect(area, 2 * PAGE, libc::PROT_READ)?;
        expect_at("write to a read-only page", write_at(second), SEGV_ACCERR, second)?;
        ensure!(read_at(second).is_none(), "read of a read-only page");
        protect(area, 2 * PAGE, RW)?;
    }
    Ok(())
}

fn mprotect_none() -> Outcome {
    catch()?;
    let area = map(PAGE, 0)?;
    unsafe { area.write(7) };
    protect(area, PAGE, libc::PROT_NONE)?;
    expect_at("read of PROT_NONE", read_at(number(area)), SEGV_ACCERR, number(area))?;
    protect(area, PAGE, RW)?;
    ensure!(unsafe { area.read() } == 7, "the page lost its contents");
    Ok(())
}

fn mprotect_no_execute() -> Outcome {
    catch()?;
    let area = map(PAGE, 0)?;
    unsafe { area.write(0xc3) };
    expect_at("jump to a no-execute page", jump_to(number(area)), SEGV_ACCERR, number(area))?;
    protect(area, PAGE, libc::PROT_READ | libc::PROT_EXEC)?;
    ensure!(jump_to(number(area)).is_none(), "jump to an executable page");
    Ok(())
}

/// Random protections against a model of them.
fn mprotect_storm() -> Outcome {
    const PAGES: usize = 64;
    catch()?;
    let area = map(PAGES * PAGE, 0)?;
    let mut model = [RW; PAGES];
    let mut random = Random(11);
    for round in 0..600 {
        let first = random.below(PAGES);
        let count = 1 + random.below(PAGES - first);
        let prot = [libc::PROT_NONE, libc::PROT_READ, RW][random.below(3)];
        protect(unsafe { area.add(first * PAGE) }, count * PAGE, prot)?;
        model[first..first + count].fill(prot);
        for _ in 0..4 {
            let page = random.below(PAGES);
            let address = number(area) + (page * PAGE) as u64;
            let (reads, writes) = (read_at(address).is_none(), write_at(address).is_none());
            ensure!(
                reads == (model[page] != libc::PROT_NONE) && writes == (model[page] == RW),
                "round {round} page {page}: protection {} read {reads} write {writes}",
                model[page]
            );
        }
    }
    Ok(())
}

fn munmap_faults() -> Outcome {
    catch()?;
    for _ in 0..50 {
        let area = map(PAGE, 0)?;
        unsafe { area.write(1) };
        must(unsafe { libc::munmap(area.cast(), PAGE) }, "munmap")?;
        expect_at("read after munmap", read_at(number(area)), SEGV_MAPERR, number(area))?;
    }
    Ok(())
}

fn zero_page() -> Outcome {
    const PAGES: usize = 256;
    let area = map(PAGES * PAGE, 0)?;
    for step in [0u8, 9] {
        for page in 0..PAGES {
            let byte = unsafe { area.add(page * PAGE + 17) };
            ensure!(unsafe { byte.read_volatile() } == step, "page {page}");
            unsafe { byte.write_volatile(9) };
        }
    }
    Ok(())
}

fn mremap() -> Outcome {
    const PAGES: usize = 100;
    let mut area = map(PAGES * PAGE, 0)?;
    for page in 0..PAGES {
        unsafe { area.add(page * PAGE).cast::<usize>().write(page) };
    }
    for round in 0..20 {
        let target = map(2 * PAGES * PAGE, 0)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let new =
            unsafe { libc::mremap(area.cast(), PAGES * PAGE, 2 * PAGES * PAGE, flags, target) };
        ensure!(new == target.cast(), "{}", os_error("mremap"));
        area = target;
        for page in 0..PAGES {
            let found = unsafe { area.add(page * PAGE).cast::<usize>().read_volatile() };
            ensure!(found == page, "round {round} page {page}: {found}");
        }
        ensure!(unsafe { area.add(PAGES * PAGE).read_volatile() } == 0, "new part not zero");
        let shrunk = unsafe {
            libc::mremap(area.cast(), 2 * PAGES * PAGE, PAGES * PAGE, 0, ptr::null_mut::<u8>())
        };
        ensure!(shrunk == area.cast(), "{}", os_error("mremap to shrink"));
    }
    Ok(())
}

fn madvise_dontneed() -> Outcome {
    const PAGES: usize = 64;
    let area = map(PAGES * PAGE, 0)?;
    for _ in 0..20 {
        for page in 0..PAGES {
            let byte = unsafe { area.add(page * PAGE) };
            ensure!(unsafe { byte.read_volatile() } == 0, "page {page} not zero");
            unsafe { byte.write_volatile(1) };
        }
        let result = unsafe { libc::madvise(area.cast(), PAGES * PAGE, libc::MADV_DONTNEED) };
        must(result, "madvise")?;
    }
    Ok(())
}

/// Many mappings come and go; each keeps its own contents.
fn map_storm() -> Outcome {
    let mut random = Random(23);
    let mut live: Vec<(*mut u8, usize, u64)> = Vec::new();
    for _ in 0..1500 {
        if live.len() > 60 || (!live.is_empty() && random.below(3) == 0) {
            let (area, pages, tag) = live.swap_remove(random.below(live.len()));
            for page in 0..pages {
                let found = unsafe { area.add(page * PAGE).cast::<u64>().read_volatile() };
                ensure!(found == tag + page as u64, "mapping {area:p} page {page}: {found:x}");
            }
            must(unsafe { libc::munmap(area.cast(), pages * PAGE) }, "munmap")?;
        } else {
            let (pages, tag) = (1 + random.below(40), random.next() >> 8);
            let area = map(pages * PAGE, 0)?;
            for page in 0..pages {
                unsafe { area.add(page * PAGE).cast::<u64>().write_volatile(tag + page as u64) };
            }
            live.push((area, pages, tag));
        }
    }
    Ok(())
}

fn large_touch() -> Outcome {
    const PAGES: usize = 16 * 1024;
    let area = map(PAGES * PAGE, 0)?;
    for page in 0..PAGES {
        unsafe { area.add(page * PAGE).cast::<usize>().write_volatile(!page) };
    }
    for page in (0..PAGES).rev() {
        let found = unsafe { area.add(page * PAGE).cast::<usize>().read_volatile() };
        ensure!(found == !page, "page {page}: {found:x}");
    }
    Ok(())
}

fn shared_mapping() -> Outcome {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let area = unsafe { libc::mmap(ptr::null_mut(), 16 * PAGE, RW, flags, -1, 0) };
    ensure!(area != libc::MAP_FAILED, "{}", os_error("mmap"));
    let area: *mut u8 = area.cast();
    let ending = in_child(|| {
        for page in 0..16 {
            unsafe { area.add(page * PAGE).write_volatile(page as u8 + 1) };
        }
        0
    })?;
    ensure!(ending == Ending::Exited(0), "{ending:?}");
    for page in 0..16 {
        let found = unsafe { area.add(page * PAGE).read_volatile() };
        ensure!(found == page as u8 + 1, "page {page}: {found}");
    }
    Ok(())
}

fn private_file_mapping() -> Outcome {
    let file = unsafe { libc::memfd_create(c"stress".as_ptr(), 0) };
    must(file, "memfd_create")?;
    let data = [0x33u8; 3 * PAGE];
    must(unsafe { libc::write(file, data.as_ptr().cast(), data.len()) } as i64, "write")?;
    let map_file = |flags| unsafe { libc::mmap(ptr::null_mut(), data.len(), RW, flags, file, 0) };
    let (private, shared) = (map_file(libc::MAP_PRIVATE), map_file(libc::MAP_SHARED));
    ensure!(private != libc::MAP_FAILED && shared != libc::MAP_FAILED, "{}", os_error("mmap"));
    let (private, shared) = (private.cast::<u8>(), shared.cast::<u8>());
    unsafe {
        ensure!(private.add(PAGE).read_volatile() == 0x33, "file contents");
        private.add(PAGE).write_volatile(1);
        ensure!(shared.add(PAGE).read_volatile() == 0x33, "a private write reached the file");
        shared.write_volatile(2);
        ensure!(private.read_volatile() == 2, "a shared write not seen in an untouched page");
    }
    catch()?;
    must(unsafe { libc::ftruncate(file, PAGE as i64) }, "ftruncate")?;
    fault::expect_signal("read beyond the file", read_at(number(shared) + 5000), libc::SIGBUS)
}

fn self_modifying_code() -> Outcome {
    let area = map(PAGE, 0)?;
    for value in 0..100u8 {
        protect(area, PAGE, RW)?;
        // mov eax, value; ret
        unsafe { ptr::copy_nonoverlapping([0xb8, value, 0, 0, 0, 0xc3].as_ptr(), area, 6) };
        protect(area, PAGE, libc::PROT_READ | libc::PROT_EXEC)?;
        let code: extern "C" fn() -> u32 = unsafe { core::mem::transmute(area) };
        let found = code();
        ensure!(found == u32::from(value), "{found} instead of {value}");
    }
    Ok(())
}

fn stack_growth() -> Outcome {
    fn down(depth: u64) -> u64 {
        let mut frame = [depth; 200];
        core::hint::black_box(&mut frame);
        if depth == 0 { 0 } else { down(depth - 1) + frame[100] - depth + 1 }
    }
    // About 3 MiB of the 8 there are.
    let depth = down(1800);
    ensure!(depth == 1800, "{depth}");
    Ok(())
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The kernel honours read-only user pages when it writes for a process.
fn efault_read_only() -> Outcome {
    let (from, to) = pipe()?;
    let area = map(PAGE, 0)?;
    unsafe { area.write(0x77) };
    protect(area, PAGE, libc::PROT_READ)?;
    for _ in 0..20 {
        unsafe { libc::write(to, c"abcd".as_ptr().cast(), 4) };
        let got = unsafe { libc::read(from, area.cast(), 4) };
        ensure!(got == -1 && errno() == libc::EFAULT, "read() to a read-only page: {got}");
        let mut buffer = [0u8; 4];
        // Whether the bytes are still in the pipe is the kernel's business.
        unsafe {
            libc::fcntl(from, libc::F_SETFL, libc::O_NONBLOCK);
            libc::read(from, buffer.as_mut_ptr().cast(), 4);
        }
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, area.cast()) };
        ensure!(failed == -1 && errno() == libc::EFAULT, "clock_gettime to a read-only page");
    }
    ensure!(unsafe { area.read_volatile() } == 0x77, "a read-only page was written");
    // A page shared after fork is written by the kernel as by the process.
    protect(area, PAGE, RW)?;
    let ending = in_child(|| unsafe {
        libc::write(to, c"wxyz".as_ptr().cast(), 4);
        i32::from(libc::read(from, area.cast(), 4) != 4 || area.read_volatile() != b'w')
    })?;
    ensure!(ending == Ending::Exited(0), "read() to a copy-on-write page: {ending:?}");
    ensure!(unsafe { area.read_volatile() } == 0x77, "the child's read() changed the parent");
    close(from);
    close(to);
    Ok(())
}

fn efault_partial() -> Outcome {
    let area = map(2 * PAGE, 0)?;
    must(unsafe { libc::munmap(area.add(PAGE).cast(), PAGE) }, "munmap")?;
    let (from, to) = pipe()?;
    // A path that runs into the hole.
    unsafe { ptr::write_bytes(area, b'x', PAGE) };
    let path = unsafe { area.add(PAGE - 8) };
    let opened = unsafe { libc::open(path.cast(), libc::O_RDONLY) };
    ensure!(opened == -1 && errno() == libc::EFAULT, "open() with a path into a hole: {opened}");
    let wrote = unsafe { libc::write(to, area.add(PAGE).cast(), 8) };
    ensure!(wrote == -1 && errno() == libc::EFAULT, "write() from a hole: {wrote}");
    close(from);
    close(to);
    Ok(())
}

fn null_pointer() -> Outcome {
    catch()?;
    expect_at("read of address 0", read_at(0), SEGV_MAPERR, 0)?;
    expect_at("write to address 8", write_at(8), SEGV_MAPERR, 8)?;
    expect_at("call of address 0", jump_to(0), SEGV_MAPERR, 0)
}
