//! Fuzz targets: one function of bytes for each parser of what a guest, whoever packed it, or
//! the host supplies. A target panics when a promise is broken; the parsers themselves never may.
//!
//! On stable, `cargo test -p pontoon-fuzz` runs every target over its kept corpus, its seeds and
//! seeded random mutations of both (`FUZZ_RUNS` sets how many). `cargo xtask fuzz` runs the same
//! functions under libFuzzer.

mod block;
mod disk;
mod mutate;
mod seeds;
mod vmbus;
mod xenstore;

pub use block::{blkif, partition, vbds};
pub use disk::{bootmenu, image};

pub use mutate::Mutator;
pub use seeds::seeds;
pub use vmbus::{storvsc, vmbus, vmbus_ring};
pub use xenstore::xenstore;

use translate::builder::layout::{self, Config};
use translate::builder::populate::{self, Machine};
use translate::builder::{BuildMemory, Bundle, Kernel, bundle as cpio, cmdline as words};
use translate::emulate::decode::{self as decoder, DecodeError, MAX_BYTES};
use xen_abi::{MachineAddr, Mfn, Pfn};

/// A target.
pub struct Target {
    /// Its name, also of its corpus directory.
    pub name: &'static str,
    /// What it runs.
    pub run: fn(&[u8]),
    /// Mutations a plain test run tries.
    pub runs: u32,
}

/// All targets.
pub const TARGETS: [Target; 14] = [
    Target { name: "blkif", run: blkif, runs: 1500 },
    Target { name: "bootmenu", run: bootmenu, runs: 3000 },
    Target { name: "bundle", run: bundle, runs: 3000 },
    Target { name: "cmdline", run: cmdline, runs: 3000 },
    Target { name: "decode", run: decode, runs: 20_000 },
    Target { name: "decompress", run: decompress, runs: 400 },
    Target { name: "image", run: image, runs: 3000 },
    Target { name: "kernel", run: kernel, runs: 1500 },
    Target { name: "partition", run: partition, runs: 2000 },
    Target { name: "storvsc", run: storvsc, runs: 3000 },
    Target { name: "vbds", run: vbds, runs: 5000 },
    Target { name: "vmbus", run: vmbus, runs: 3000 },
    Target { name: "vmbus_ring", run: vmbus_ring, runs: 10_000 },
    Target { name: "xenstore", run: xenstore, runs: 3000 },
];

/// Decompressed sizes above this are left out: only the zeroing of the buffer would be tested.
const MAX_UNPACKED: u32 = 4 << 20;
/// Pages of the domain kernels are put in.
const NR_PAGES: u64 = 0x1000;

/// The bundle: what parses can be written, and reads back the same.
pub fn bundle(data: &[u8]) {
    if let Ok(bundle) = Bundle::parse(data) {
        let written = cpio::write(&bundle);
        assert_eq!(Bundle::parse(&written), Ok(bundle));
    }
}

/// The command line: splitting what is left of it changes nothing more.
pub fn cmdline(data: &[u8]) {
    let (guest, _) = words::split(data);
    assert!(guest.len() <= data.len());
    let (again, options) = words::split(&guest);
    assert_eq!(again, guest);
    assert!(options.unknown.is_empty());
}

/// The instruction decoder: lengths are in bounds, and bytes behind the instruction are not read.
pub fn decode(data: &[u8]) {
    match decoder::decode(data) {
        Ok(insn) => {
            let len = usize::from(insn.len);
            assert!((1..=MAX_BYTES.min(data.len())).contains(&len));
            assert!(matches!(insn.size, 1 | 2 | 4));
            assert_eq!(decoder::decode(&data[..len]), Ok(insn));
            assert_eq!(decoder::decode(&data[..len - 1]), Err(DecodeError::Truncated));
        }
        Err(DecodeError::Truncated) => assert!(data.len() < MAX_BYTES),
        Err(DecodeError::Other) => {}
    }
}

fn unpacked_size(data: &[u8]) -> u32 {
    data.last_chunk().map_or(0, |size| u32::from_le_bytes(*size))
}

/// Decompression: the result has the size the data says, or there is none.
pub fn decompress(data: &[u8]) {
    use translate::builder::decompress::decompress;
    if unpacked_size(data) > MAX_UNPACKED {
        return;
    }
    if let Ok(out) = decompress(data) {
        assert_eq!(out.len(), unpacked_size(data) as usize);
    }
}

/// Memory that holds nothing, but knows its bounds.
struct Bounds;

impl Bounds {
    fn check(pfn: Pfn, offset: u64, bytes: u64) {
        let end = pfn.0.checked_mul(4096).and_then(|at| at.checked_add(offset));
        let end = end.and_then(|at| at.checked_add(bytes));
        assert!(bytes == 0 || end.is_some_and(|end| end <= NR_PAGES * 4096));
    }
}

impl BuildMemory for Bounds {
    fn run(&self, pfn: Pfn) -> (Mfn, u64) {
        assert!(pfn.0 < NR_PAGES);
        (Mfn(pfn.0 + 0x1_0000), NR_PAGES - pfn.0)
    }
    fn write(&mut self, pfn: Pfn, offset: u64, bytes: &[u8]) {
        Self::check(pfn, offset, bytes.len() as u64);
    }
    fn zero(&mut self, pfn: Pfn, offset: u64, bytes: u64) {
        Self::check(pfn, offset, bytes);
    }
}

/// Kernels: bzImage, ELF, notes; what loads is laid out and populated inside its domain.
pub fn kernel(data: &[u8]) {
    if !data.starts_with(b"\x7fELF") && unpacked_size(data) > MAX_UNPACKED {
        return;
    }
    let Ok(kernel) = Kernel::load(data) else { return };
    for (initrd_bytes, initrd_pfn) in [(0, None), (5000, None), (5000, Some(Pfn(0xe00)))] {
        let cmdline = b"console=hvc0";
        let config =
            Config { nr_pages: NR_PAGES, cmdline, initrd_bytes, initrd_pfn, xenstore: true };
        let Ok(plan) = layout::plan(&kernel, &config) else { continue };
        assert!(plan.end_pfn.0 <= NR_PAGES && plan.window.pages <= NR_PAGES);
        let initrd = vec![1; usize::try_from(initrd_bytes).unwrap_or(0)];
        let machine = Machine {
            shared_info: MachineAddr(0x1000),
            console_evtchn: 1,
            store_evtchn: 2,
            flags: 0,
        };
        let built =
            populate::populate(&plan, &kernel, cmdline, Some(&initrd), &machine, &mut Bounds);
        assert!(built.is_ok());
    }
}

/// Runs a target on the files named on the command line.
pub fn replay(run: fn(&[u8])) {
    for path in std::env::args_os().skip(1) {
        match std::fs::read(&path) {
            Ok(data) => run(&data),
            Err(error) => eprintln!("{}: {error}", path.display()),
        }
    }
}
