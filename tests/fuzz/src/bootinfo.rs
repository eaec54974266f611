//! What boot loaders hand over.

use boot_abi::multiboot2::{self, Header, Writer};
use boot_abi::{BootInfo, memory_type};

/// Where the bytes are in memory.
const BASE: u64 = 0x10_0000;

/// Any bytes, read as each door's structures: nothing outside them is looked at, lists keep their
/// bounds; and what is read of Multiboot2's is the same when it is written anew and read again.
pub(crate) fn bootinfo(data: &[u8]) {
    let Some((&door, data)) = data.split_first() else { return };
    let read = |address: u64, len: usize| {
        let at = usize::try_from(address.checked_sub(BASE)?).ok()?;
        data.get(at..at.checked_add(len)?)
    };
    let info = match door % 4 {
        0 => boot_abi::linux(&read, BASE),
        1 => boot_abi::pvh(&read, BASE),
        2 => multiboot2::multiboot2(&read, BASE),
        _ => {
            let _ = Header::find(data);
            return;
        }
    };
    for region in &info.regions {
        assert!(region.start < region.end);
    }
    if let Some(screen) = info.framebuffer
        && let Some(bytes) = screen.bytes()
    {
        assert!(bytes >= u64::from(screen.width) * u64::from(screen.height));
    }
    if door % 4 == 2 {
        again(&info);
    }
}

fn again(info: &BootInfo) {
    let mut buffer = vec![0; 32 << 10];
    let mut writer = Writer::new(&mut buffer);
    writer.cmdline(&info.cmdline);
    let line = info.kernel_cmdline.as_deref().unwrap_or_default();
    for (n, module) in info.modules.iter().enumerate() {
        let end = module.start + module.len;
        let word = |address: u64| u32::try_from(address).expect("32 bits in the tag");
        writer.module(word(module.start), word(end), if n == 0 { line } else { b"" });
    }
    let kind = |ram| if ram { memory_type::RAM } else { memory_type::RESERVED };
    writer.memory_map(info.regions.iter().map(|r| (r.start, r.end - r.start, kind(r.ram))));
    if let Some(screen) = &info.framebuffer {
        writer.framebuffer(screen);
    }
    let used = writer.finish().expect("the buffer is large enough");
    let read = |address: u64, len: usize| {
        let at = usize::try_from(address.checked_sub(BASE)?).ok()?;
        buffer[..used].get(at..at.checked_add(len)?)
    };
    let same = multiboot2::multiboot2(&read, BASE);
    assert_eq!((&same.cmdline, &same.modules), (&info.cmdline, &info.modules));
    assert_eq!((&same.regions, same.framebuffer), (&info.regions, info.framebuffer));
}

/// One of each door.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut information = vec![0; 512];
    let mut writer = Writer::new(&mut information);
    writer.cmdline(b"pontoon.log=info");
    writer.module(0x20_0000, 0x20_1000, b"placeholder root=/dev/xvda1");
    writer.memory_map([(0, 0x9_f000, memory_type::RAM), (0xf_0000, 0x1_0000, 2)].into_iter());
    writer.rsdp(&[0; 36]);
    let used = writer.finish().unwrap_or(0);
    information.truncate(used);
    let mut zero_page = vec![0; 4096];
    zero_page[0x1e8] = 2;
    zero_page[0x0f] = 0x70;
    let mut start_info = vec![0; 128];
    start_info[..8].copy_from_slice(&[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]);
    let header = [0xe852_50d6u32, 0, 24, 0u32.wrapping_sub(0xe852_50d6 + 24), 0, 8];
    let header = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    [zero_page, start_info, information, header]
        .into_iter()
        .zip(0u8..)
        .map(|(bytes, door): (Vec<u8>, u8)| [vec![door], bytes].concat())
        .collect()
}
