//! Fuzz targets: one function of bytes for each parser of what a guest, whoever packed it, or
//! the host supplies. A target panics when a promise is broken; the parsers themselves never may.
//!
//! `cargo xtask fuzz` runs them under libFuzzer, from the inputs kept in `corpus/` and from the
//! seeds here; `cargo test -p pontoon-fuzz` runs those inputs once each.

mod blkif;
mod block;
mod bootinfo;
mod disk;
mod gnttab;
mod import;
mod input;
mod keyboard;
mod netif;
mod netvsc;
mod ring;
mod scsi;
mod seeds;
mod storvsc;
mod vmbus;
mod xenstore;

use std::io::Result;
use std::path::Path;

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
    /// Inputs it starts from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words worth trying.
    pub words: &'static [&'static str],
    /// Bytes of its longest inputs.
    pub max_len: u32,
    /// A minute of it is part of every test run, not only a few seconds.
    pub is_required: bool,
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    max_len: u32,
) -> Target {
    Target { name, run, seeds, words: &[], max_len, is_required: false }
}

impl Target {
    const fn required(self) -> Self {
        Self { is_required: true, ..self }
    }

    const fn words(self, words: &'static [&'static str]) -> Self {
        Self { words, ..self }
    }

    /// The target with a name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Writes `seeds/…` and libFuzzer's `dictionary` into a directory.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_setup(&self, dir: &Path) -> Result<()> {
        let seeds = dir.join("seeds");
        std::fs::create_dir_all(&seeds)?;
        for (index, seed) in (self.seeds)().iter().enumerate() {
            std::fs::write(seeds.join(index.to_string()), seed)?;
        }
        let escape =
            |word: &str| -> String { word.bytes().map(|byte| format!("\\x{byte:02x}")).collect() };
        let lines = self.words.iter().map(|word| format!("\"{}\"\n", escape(word)));
        // An empty file is none to libFuzzer.
        let text = "# words\n".to_owned() + &lines.collect::<String>();
        std::fs::write(dir.join("dictionary"), text)
    }
}

/// All targets.
pub static TARGETS: [Target; 23] = [
    target("vmbus_ring", ring::vmbus_ring, ring::seeds, 4096).required(),
    target("storvsc", storvsc::storvsc, storvsc::seeds, 2048).required(),
    target("blkif", blkif::blkif, blkif::seeds, 2048).required(),
    target("netif", netif::netif, netif::seeds, 2048).required(),
    target("netvsc", netvsc::netvsc, netvsc::seeds, 2048).required(),
    target("xenstore", xenstore::xenstore, xenstore::seeds, 1024).required().words(xenstore::WORDS),
    target("gnttab", gnttab::gnttab, gnttab::seeds, 2048).required(),
    target("bootmenu", disk::bootmenu, seeds::bootmenu, 2048).words(disk::WORDS),
    target("bootinfo", bootinfo::bootinfo, bootinfo::seeds, 2048),
    target("bundle", bundle, seeds::bundle, 2048),
    target("cmdline", cmdline, seeds::cmdline, 512).words(seeds::OPTIONS),
    target("decode", decode, seeds::decode, 32),
    target("decompress", decompress, seeds::decompress, 4096),
    target("image", disk::image, disk::image_seeds, 1024),
    target("kernel", kernel, seeds::kernels, 4096),
    target("keyboard", keyboard::keyboard, keyboard::seeds, 1024),
    target("lvm", import::lvm, import::lvm_seeds, 2048).words(import::LVM_WORDS),
    target("ovf", import::ovf, import::ovf_seeds, 2048),
    target("partition", block::partition, block::partition_seeds, 24 << 10),
    target("vbds", block::vbds, seeds::vbds, 256).words(seeds::OPTIONS),
    target("vmbus", vmbus::vmbus, vmbus::seeds, 2048),
    target("xlcfg", import::xlcfg, import::xl_seeds, 1024).words(import::XL_WORDS),
    target("xva", import::xva, import::xva_seeds, 8192),
];

/// Decompressed sizes above this are left out: only the zeroing of the buffer would be tested.
const MAX_UNPACKED: u32 = 4 << 20;
/// Pages of the domain kernels are put in.
const NR_PAGES: u64 = 0x1000;

/// The bundle: what parses can be written, and reads back the same.
fn bundle(data: &[u8]) {
    if let Ok(bundle) = Bundle::parse(data) {
        let written = cpio::write(&bundle);
        assert_eq!(Bundle::parse(&written), Ok(bundle));
    }
}

/// The command line: splitting what is left of it changes nothing more.
fn cmdline(data: &[u8]) {
    let (guest, _) = words::split(data);
    assert!(guest.len() <= data.len());
    let (again, options) = words::split(&guest);
    assert_eq!(again, guest);
    assert!(options.unknown.is_empty());
}

/// The instruction decoder: lengths are in bounds, and bytes behind the instruction are not read.
fn decode(data: &[u8]) {
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
fn decompress(data: &[u8]) {
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
fn kernel(data: &[u8]) {
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
