//! Each door's structures, made by hand, read; and damaged ones, which must be survived.

extern crate std;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use crate::multiboot2::{Header, Relocatable, Writer, multiboot2};
use crate::{BootInfo, Channel, Framebuffer, PixelFormat, Region, elf, linux, memory_type, pvh};

/// Where the memory of these tests begins.
const BASE: u64 = 0x10_0000;

fn read_from<'a>(memory: &'a [u8]) -> impl Fn(u64, usize) -> Option<&'a [u8]> {
    |address, len| {
        let at = usize::try_from(address.checked_sub(BASE)?).ok()?;
        memory.get(at..at.checked_add(len)?)
    }
}

fn put(memory: &mut [u8], at: usize, bytes: &[u8]) {
    memory[at..at + bytes.len()].copy_from_slice(bytes);
}

fn ranges(info: &BootInfo) -> Vec<(u64, u64, bool)> {
    info.regions.iter().map(|r| (r.start, r.end, r.ram)).collect()
}

const SCREEN: Framebuffer = Framebuffer {
    address: 0x1_8000_0000,
    pitch: 4096,
    width: 1024,
    height: 768,
    bpp: 32,
    format: PixelFormat::Rgb(
        Channel { shift: 16, bits: 8 },
        Channel { shift: 8, bits: 8 },
        Channel { shift: 0, bits: 8 },
    ),
};

#[test]
fn linux_zero_page() {
    let mut memory = vec![0; 0x3000];
    memory[0x1e8] = 3;
    for (n, (start, bytes, kind)) in
        [(0u64, 0x9_f000u64, 1u32), (0xf_0000, 0x1_0000, 2), (0x10_0000, 0x700_0000, 1)]
            .into_iter()
            .enumerate()
    {
        put(&mut memory, 0x2d0 + n * 20, &start.to_le_bytes());
        put(&mut memory, 0x2d0 + n * 20 + 8, &bytes.to_le_bytes());
        put(&mut memory, 0x2d0 + n * 20 + 16, &kind.to_le_bytes());
    }
    put(&mut memory, 0x228, &(BASE as u32 + 0x1000).to_le_bytes());
    put(&mut memory, 0x1000, b"a b=c\0d");
    put(&mut memory, 0x218, &0x400_0000u32.to_le_bytes());
    put(&mut memory, 0x0c0, &1u32.to_le_bytes());
    put(&mut memory, 0x21c, &77u32.to_le_bytes());
    put(&mut memory, 0x70, &0xe_0000u64.to_le_bytes());
    memory[0x0f] = 0x70;
    put(&mut memory, 0x12, &[0x00, 0x04, 0x00, 0x03, 32, 0]);
    put(&mut memory, 0x18, &0x8000_0000u32.to_le_bytes());
    put(&mut memory, 0x24, &[0x00, 0x10, 8, 16, 8, 8, 8, 0]);
    put(&mut memory, 0x36, &[2, 0, 0, 0, 1, 0, 0, 0]);
    let info = linux(&read_from(&memory), BASE);
    assert_eq!(
        ranges(&info),
        [(0, 0x9_f000, true), (0xf_0000, 0x10_0000, false), (0x10_0000, 0x710_0000, true)]
    );
    assert_eq!((&info.cmdline[..], info.kernel_cmdline), (&b"a b=c"[..], None));
    assert_eq!((info.modules[0].start, info.modules[0].len), (0x1_0400_0000, 77));
    assert_eq!((info.rsdp, info.framebuffer), (Some(0xe_0000), Some(SCREEN)));
    assert_eq!(SCREEN.bytes(), Some(4096 * 768));
}

#[test]
fn pvh_start_info() {
    let mut memory = vec![0; 0x1000];
    put(&mut memory, 0, &0x336e_c578u32.to_le_bytes());
    put(&mut memory, 4, &1u32.to_le_bytes());
    put(&mut memory, 12, &2u32.to_le_bytes());
    let pointers = [BASE + 0x100, BASE + 0x200, 0xf_5000, BASE + 0x300];
    for (n, pointer) in pointers.into_iter().enumerate() {
        put(&mut memory, 16 + n * 8, &pointer.to_le_bytes());
    }
    put(&mut memory, 48, &1u32.to_le_bytes());
    for (n, word) in [0x20_0000u64, 0x1234, 0, 0, 0x30_0000, 5].into_iter().enumerate() {
        put(&mut memory, 0x100 + n * 8, &word.to_le_bytes());
    }
    put(&mut memory, 0x200, b"words\0");
    put(&mut memory, 0x308, &0x1000u64.to_le_bytes());
    put(&mut memory, 0x310, &1u32.to_le_bytes());
    let info = pvh(&read_from(&memory), BASE);
    assert_eq!(ranges(&info), [(0, 0x1000, true)]);
    assert_eq!((info.modules[0].len, info.modules[1].start), (0x1234, 0x30_0000));
    assert_eq!((&info.cmdline[..], info.rsdp), (&b"words"[..], Some(0xf_5000)));
    memory[0] = 0;
    assert!(pvh(&read_from(&memory), BASE).regions.is_empty());
}

fn written(lines: [&[u8]; 2]) -> Vec<u8> {
    let mut memory = vec![0xaa; 0x1000];
    let mut writer = Writer::new(&mut memory);
    writer.cmdline(b"pontoon.log=info");
    writer.module(0x20_0000, 0x20_1000, lines[0]);
    writer.module(0x30_0000, 0x30_0005, lines[1]);
    let map = [
        (0, 0x9_f000, memory_type::RAM),
        (0xf_0000, 0x8000, memory_type::RESERVED),
        (0xf_8000, 0x8000, memory_type::RESERVED),
        (0x10_0000, 0x100_0000, memory_type::RAM),
        (0x110_0000, 0x1000, memory_type::ACPI),
    ];
    writer.memory_map(map.into_iter());
    writer.rsdp(&[1; 20]);
    writer.rsdp(&[2; 36]);
    writer.framebuffer(&SCREEN);
    let used = writer.finish().expect("it fits");
    memory.truncate(used);
    memory
}

#[test]
fn multiboot2_reads_what_is_written() {
    let memory = written([b"root=/dev/xvda1 ro", b""]);
    let info = multiboot2(&read_from(&memory), BASE);
    assert_eq!(
        ranges(&info),
        [
            (0, 0x9_f000, true),
            (0xf_0000, 0x10_0000, false),
            (0x10_0000, 0x110_0000, true),
            (0x110_0000, 0x110_1000, false)
        ]
    );
    assert_eq!(&info.cmdline[..], b"pontoon.log=info");
    assert_eq!(info.kernel_cmdline.as_deref(), Some(&b"root=/dev/xvda1 ro"[..]));
    assert_eq!((info.modules.len(), info.modules[1].len), (2, 5));
    assert_eq!(info.framebuffer, Some(SCREEN));
    let rsdp = (info.rsdp.expect("one of two") - BASE) as usize;
    assert_eq!(memory[rsdp..rsdp + 36], [2; 36]);
}

#[test]
fn a_menu_made_for_xen_has_a_word_that_means_nothing() {
    for (line, left) in [
        (&b"placeholder root=a"[..], &b"root=a"[..]),
        (b"placeholder", b""),
        (b"placeholders a", b"placeholders a"),
        (b"a placeholder", b"a placeholder"),
    ] {
        let memory = written([line, b""]);
        let info = multiboot2(&read_from(&memory), BASE);
        assert_eq!(info.kernel_cmdline.as_deref(), Some(left));
    }
}

#[test]
fn a_full_buffer_is_noticed() {
    let mut memory = [0; 64];
    let mut writer = Writer::new(&mut memory);
    writer.cmdline(&[b'x'; 100]);
    assert_eq!(writer.finish(), None);
}

#[test]
fn more_than_there_is_room_for_is_counted() {
    let mut memory = vec![0; 0x4000];
    let mut writer = Writer::new(&mut memory);
    for n in 0..6 {
        writer.module(n, n + 1, b"");
    }
    writer.memory_map((0..200).map(|n| (n * 0x2000, 0x1000, memory_type::RAM)));
    let used = writer.finish().expect("it fits");
    let info = multiboot2(&read_from(&memory[..used]), BASE);
    assert_eq!((info.modules.len(), info.lost_modules), (4, 2));
    assert_eq!((info.regions.len(), info.lost_regions), (128, 72));
}

#[test]
fn nonsense_of_a_screen_is_refused() {
    let bad = |change: fn(&mut Framebuffer)| {
        let mut screen = SCREEN;
        change(&mut screen);
        screen.bytes()
    };
    assert_eq!(bad(|s| s.address = 0), None);
    assert_eq!(bad(|s| s.pitch = 100), None);
    assert_eq!(bad(|s| s.bpp = 8), None);
    assert_eq!(bad(|s| s.width = 0), None);
    assert_eq!(bad(|s| s.height = u32::MAX), None);
    assert_eq!(bad(|s| s.address = u64::MAX), None);
}

#[test]
fn an_image_says_what_it_wants() {
    let mut file = vec![0; 0x2000];
    let tags: [u32; 14] = [
        3,
        12,
        0x20_0040,
        0,
        9,
        12,
        0x20_0080,
        0,
        1 << 16 | 10,
        24,
        0x10_0000,
        0xffff_ffff,
        4096,
        1,
    ];
    let bytes = 16 + tags.len() as u32 * 4 + 8;
    let head = [0xe852_50d6u32, 0, bytes, 0u32.wrapping_sub(0xe852_50d6 + bytes)];
    let words = head.into_iter().chain(tags).chain([0, 8]);
    for (n, word) in words.enumerate() {
        put(&mut file, 0x1008 + n * 4, &word.to_le_bytes());
    }
    let header = Header::find(&file).expect("it is there");
    assert_eq!((header.entry, header.entry_efi64), (Some(0x20_0040), Some(0x20_0080)));
    let place = Relocatable { min: 0x10_0000, max: 0xffff_ffff, align: 4096 };
    // The high half of a tag's first word is its flags.
    assert_eq!(header.relocatable, Some(place));
    file[0x1008 + 12] ^= 1;
    assert_eq!(Header::find(&file), None);
}

/// An ELF file of two segments, and sections behind them.
fn image() -> Vec<u8> {
    let mut file = vec![0; 0x3000];
    put(&mut file, 0, b"\x7fELF\x02\x01");
    put(&mut file, 0x20, &64u64.to_le_bytes());
    put(&mut file, 0x28, &0x2800u64.to_le_bytes());
    put(&mut file, 0x36, &[56, 0, 3, 0, 64, 0, 4, 0, 3, 0]);
    for (n, fields) in [
        [0x5_0000_0001u64, 0x1000, 0xffff_8000_0020_0000, 0x20_0000, 0x800, 0x1000],
        [4, 0, 0, 0, 0, 0],
        [0x6_0000_0001, 0x2000, 0xffff_8000_0020_1000, 0x20_1000, 0x400, 0x9000],
    ]
    .into_iter()
    .enumerate()
    {
        for (field, value) in fields.into_iter().enumerate() {
            put(&mut file, 64 + n * 56 + field * 8, &value.to_le_bytes());
        }
    }
    file[0x2000] = 7;
    file
}

#[test]
fn an_image_is_loaded_by_its_segments() {
    let mut file = image();
    let segments = elf::segments(&file).expect("it is whole");
    let seen: Vec<_> = segments.iter().map(|s| (s.address, s.content.len(), s.bytes)).collect();
    assert_eq!(seen, [(0x20_0000, 0x800, 0x1000), (0x20_1000, 0x400, 0x9000)]);
    assert_eq!(segments[1].content[0], 7);
    drop(segments);
    assert_eq!(elf::segments(&file[..0x2300]), None);
    assert_eq!(elf::strip(&mut file), Some(0x2400));
    file.truncate(0x2400);
    assert_eq!(elf::segments(&file).expect("still").len(), 2);
    assert_eq!((file[0x28], file[0x29], file[0x3c], file[0x3e]), (0, 0, 0, 0));
}

proptest! {
    #[test]
    fn a_damaged_image_is_survived(
        changes in proptest::collection::vec((0usize..232, any::<u8>()), 0..8),
        cut in 0usize..0x3000,
    ) {
        let mut file = image();
        changes.into_iter().for_each(|(at, byte)| file[at] = byte);
        file.truncate(cut);
        if let Some(len) = elf::strip(&mut file) {
            prop_assert!(len <= file.len());
        }
    }

    #[test]
    fn damage_is_survived(
        changes in proptest::collection::vec((0usize..600, any::<u8>()), 0..20),
        cut in 0usize..600,
    ) {
        let mut memory = written([b"a", b"b"]);
        for (at, byte) in changes {
            if let Some(place) = memory.get_mut(at) {
                *place = byte;
            }
        }
        memory.truncate(cut);
        let read = read_from(&memory);
        for parse in [multiboot2, pvh, linux] {
            let info = parse(&read, BASE);
            for Region { start, end, .. } in info.regions {
                prop_assert!(start <= end);
            }
        }
        let _ = Header::find(&memory);
    }
}
