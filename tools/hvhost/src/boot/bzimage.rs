//! bzImage by its 64-bit entry, 0x200 behind the start of the protected-mode code.

use super::linux64::{BootParams, long_mode_entry, offset};
use super::{COMMAND_LINE_MAX, Entry, Machine, Payload};
use crate::memory::HIGH_MEMORY_START;
use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const SECTOR: usize = 512;
const ENTRY_64: u64 = 0x200;
const MIN_VERSION: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;

/// Whether this is a Linux image with a setup header.
#[must_use]
pub fn is_bzimage(kernel: &[u8]) -> bool {
    kernel.get(offset::HEADER..offset::HEADER + 4) == Some(b"HdrS")
        && kernel.get(offset::BOOT_FLAG..offset::BOOT_FLAG + 2) == Some(&[0x55, 0xaa])
}

struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> Result<[u8; N]> {
        let bytes = self.0.get(offset..offset + N).and_then(|b| b.try_into().ok());
        bytes.context("the bzImage is cut off")
    }

    fn u16(&self, offset: usize) -> Result<u16> {
        Ok(u16::from_le_bytes(self.bytes(offset)?))
    }

    fn u32(&self, offset: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(offset)?))
    }
}

/// Loads a bzImage.
///
/// # Errors
/// It is too old, has no 64-bit entry, or does not fit.
pub fn load(machine: &Machine, payload: &Payload) -> Result<Entry> {
    let header = Header(&payload.kernel);
    let version = header.u16(offset::VERSION)?;
    let flags = if version >= MIN_VERSION { header.u16(offset::XLOADFLAGS)? } else { 0 };
    ensure!(flags & XLF_KERNEL_64 != 0, "the bzImage has no 64-bit entry (protocol {version:#x})");
    let [sectors] = header.bytes(offset::SETUP_HEADER)?;
    let sectors = if sectors == 0 { 4 } else { usize::from(sectors) };
    let code = payload.kernel.get((sectors + 1) * SECTOR..).context("the bzImage is cut off")?;
    let limit = header.u32(offset::CMDLINE_SIZE)? as usize;
    ensure!(
        payload.command_line.len() <= limit.min(COMMAND_LINE_MAX - 1),
        "the command line is longer than the {limit} bytes the kernel takes"
    );

    let size = u64::from(header.u32(offset::INIT_SIZE)?).max(code.len() as u64);
    let at = place(machine, &header, size)?;
    machine.memory.write_slice(code, GuestAddress(at)).context("cannot place the kernel")?;

    let mut params = BootParams::default();
    // The setup header ends where the byte behind the jump at 0x200 says.
    let [length] = header.bytes(0x201)?;
    let end = offset::HEADER + usize::from(length);
    let setup = payload.kernel.get(offset::SETUP_HEADER..end).context("the bzImage is cut off")?;
    params.put(offset::SETUP_HEADER, setup);
    params.put(offset::CODE32_START, &(at as u32).to_le_bytes());
    let initrd_limit = match flags & XLF_CAN_BE_LOADED_ABOVE_4G {
        0 => u64::from(header.u32(offset::INITRD_ADDR_MAX)?) + 1,
        _ => u64::MAX,
    };
    params.finish(machine, payload, at + size, initrd_limit)?;
    long_mode_entry(machine, at + ENTRY_64)
}

/// Where the kernel and the memory it needs to unpack itself fit: where it
/// prefers, or, if it can move, as low as its alignment allows.
fn place(machine: &Machine, header: &Header, size: u64) -> Result<u64> {
    let fits = |at: u64| {
        at >= HIGH_MEMORY_START
            && usize::try_from(size)
                .is_ok_and(|len| machine.memory.check_range(GuestAddress(at), len))
    };
    let preferred = u64::from_le_bytes(header.bytes(offset::PREF_ADDRESS)?);
    if fits(preferred) {
        return Ok(preferred);
    }
    let alignment = u64::from(header.u32(offset::KERNEL_ALIGNMENT)?).max(0x1000);
    let [relocatable] = header.bytes(offset::RELOCATABLE_KERNEL)?;
    let lowest = HIGH_MEMORY_START.next_multiple_of(alignment);
    ensure!(
        relocatable != 0 && fits(lowest),
        "the kernel needs {} MiB at {preferred:#x}; give the machine more (--memory)",
        size.div_ceil(1 << 20)
    );
    Ok(lowest)
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::{machine, memory};
    use super::super::linux64::BOOT_PARAMS;
    use super::super::load as load_any;
    use super::*;
    use crate::options::Door;
    use proptest::prelude::*;

    fn image(preferred: u64, init_size: u32, flags: u16) -> Vec<u8> {
        let mut image = vec![0u8; 2 * SECTOR];
        let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
        put(offset::SETUP_HEADER, &[1]);
        put(offset::BOOT_FLAG, &[0x55, 0xaa]);
        put(0x200, &[0xeb, 0x6a]);
        put(offset::HEADER, b"HdrS");
        put(offset::VERSION, &0x20fu16.to_le_bytes());
        put(offset::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
        put(offset::KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
        put(offset::RELOCATABLE_KERNEL, &[1]);
        put(offset::XLOADFLAGS, &flags.to_le_bytes());
        put(offset::CMDLINE_SIZE, &2047u32.to_le_bytes());
        put(offset::PREF_ADDRESS, &preferred.to_le_bytes());
        put(offset::INIT_SIZE, &init_size.to_le_bytes());
        image.extend(b"protected-mode code");
        image
    }

    fn payload(kernel: Vec<u8>) -> Payload {
        Payload { kernel, modules: vec![vec![5; 10]], command_line: "quiet".into() }
    }

    #[test]
    fn loads_where_it_prefers() {
        let (memory, map) = memory();
        let payload = payload(image(0x100_0000, 0x10_0000, 3));
        let entry = load_any(&machine(&memory, &map), &payload, Door::Auto).unwrap();
        assert!(matches!(entry, Entry::Long64 { rip: 0x100_0200, code: 0x10, .. }));
        let mut code = [0u8; 9];
        memory.read_slice(&mut code, GuestAddress(0x100_0000)).unwrap();
        assert_eq!(&code, b"protected");
        let word =
            |at: usize| memory.read_obj::<u32>(GuestAddress(BOOT_PARAMS + at as u64)).unwrap();
        assert_eq!(word(offset::HEADER), u32::from_le_bytes(*b"HdrS"));
        assert_eq!(word(offset::INIT_SIZE), 0x10_0000);
        assert_eq!(word(offset::TYPE_OF_LOADER) & 0xff, 0xff);
        assert_eq!(word(offset::RAMDISK_SIZE), 10);
    }

    #[test]
    fn moves_down_in_a_small_machine() {
        let (memory, map) = memory();
        let payload = payload(image(0x100_0000, 60 << 20, 3));
        let entry = load_any(&machine(&memory, &map), &payload, Door::Auto).unwrap();
        assert!(matches!(entry, Entry::Long64 { rip: 0x20_0200, .. }));
    }

    #[test]
    fn refusals() {
        let (memory, map) = memory();
        for (kernel, door, word) in [
            (image(0x100_0000, 63 << 20, 3), Door::Auto, "--memory"),
            (image(0x100_0000, 1 << 20, 0), Door::Auto, "64-bit entry"),
            (image(0x100_0000, 1 << 20, 3), Door::Pvh, "PVH"),
        ] {
            let error = load_any(&machine(&memory, &map), &payload(kernel), door).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        let mut long = payload(image(0x100_0000, 1 << 20, 3));
        long.command_line = "x".repeat(2048);
        assert!(load_any(&machine(&memory, &map), &long, Door::Auto).is_err());
    }

    proptest! {
        #[test]
        fn damaged_images_never_panic(
            flips in prop::collection::vec((0x1f1usize..0x270, any::<u8>()), 1..8),
            cut in 0x206usize..1100,
        ) {
            let (memory, map) = memory();
            let mut kernel = image(0x100_0000, 1 << 20, 3);
            for (at, value) in flips {
                kernel[at] = value;
            }
            kernel.truncate(cut);
            let _ = load_any(&machine(&memory, &map), &payload(kernel), Door::Auto);
        }
    }
}
