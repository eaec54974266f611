//! Inputs a target starts from.

use translate::builder::bundle::{self, Bundle};
use xen_abi::elfnote::NoteType;

const PACKED: [&[u8]; 7] = [
    include_bytes!("../../../translate/src/builder/decompress/samples/sample.gz"),
    include_bytes!("../../../translate/src/builder/decompress/samples/sample.xz"),
    include_bytes!("../../../translate/src/builder/decompress/samples/sample.lzma"),
    include_bytes!("../../../translate/src/builder/decompress/samples/sample.bz2"),
    include_bytes!("../../../translate/src/builder/decompress/samples/sample.lzo"),
    include_bytes!("../../../translate/src/builder/decompress/samples/sample.lz4"),
    include_bytes!("../../../translate/src/builder/decompress/samples/sample.zst"),
];

/// Words of the shim's options.
pub(crate) const OPTIONS: &[&str] = &[
    "pontoon.",
    "console=",
    "mem=",
    "vbd=",
    "log=",
    "hv-without=",
    "net=",
    "--",
    "xvda",
    "sdb",
    "hdc",
    "scsi0:",
    "ide0:",
    ":ro",
    ":rw",
    ":cdrom",
    ":disk",
    "p1",
];

pub(crate) fn bundle() -> Vec<Vec<u8>> {
    let (kernel, initrd) = (b"kernel".as_slice(), Some(b"initrd".as_slice()));
    let (cmdline, config) = (Some(b"quiet".as_slice()), Some(b"config".as_slice()));
    vec![bundle::write(&Bundle { kernel, initrd, cmdline, config })]
}

pub(crate) fn bootmenu() -> Vec<Vec<u8>> {
    vec![GRUB2.into(), LEGACY.into(), SYSLINUX.into(), BLS.into()]
}

pub(crate) fn cmdline() -> Vec<Vec<u8>> {
    vec![
        b"console=hvc0 pontoon.console=com2 root=/dev/xvda pontoon.log=debug quiet".to_vec(),
        b"a=\"b c\" pontoon.mem=1G \"pontoon.hv-without=ipi,stimer\" pontoon.x".to_vec(),
    ]
}

pub(crate) fn decode() -> Vec<Vec<u8>> {
    vec![
        vec![0x66, 0x67, 0xf3, 0x65, 0x48, 0x6f, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90],
        vec![0x41, 0x0f, 0x22, 0xdf, 0x44, 0x0f, 0x21, 0xc0, 0x0f, 0x01, 0xd1, 0x0f, 0x30],
        vec![0xe4, 0x61, 0xe7, 0x80, 0xec, 0xef, 0xfa, 0xfb, 0x0f, 0xa2, 0x0f, 0x32, 0xcc],
    ]
}

pub(crate) fn decompress() -> Vec<Vec<u8>> {
    PACKED.map(<[u8]>::to_vec).to_vec()
}

pub(crate) fn vbds() -> Vec<Vec<u8>> {
    vec![b"xvda:scsi0:0,sda1:scsi0:1p2:ro,hdc:scsi1:2:3:cdrom,d536p37:scsi0:9:rw:disk".to_vec()]
}

const GRUB2: &[u8] = br#"# GRUB Environment Block
load_env
if [ "${next_entry}" ] ; then set default="${next_entry}"; else set default="1>0"; fi
function f { for i in 1 2; do set x="$x$i"; done; return 1; }
menuentry 'a' --class x --id b { search --fs-uuid --set=root 1-2
 f "$1"; linux (hd0,gpt2)/vmlinuz root=UUID=1-2 ro ${x} ; initrd /a /b }
submenu "c" { menuentry "d" { linux16 /k 'a b' \\
 c } }
while false; do true; done
blscfg
"#;
const LEGACY: &[u8] = b"default=1\ntitle a\nroot (hd0,0)\nkernel /xen.gz\nmodule /vmlinuz ro\n\
    module /initrd\ntitle b\nkernel --type=linux (hd0,1)/k root=/dev/xvda1\ninitrd /i\n";
const SYSLINUX: &[u8] = b"DEFAULT a\nAPPEND x\nLABEL a\n MENU LABEL ^A\n LINUX ../k\n INITRD i,j\n\
    label b\n kernel c.c32\n append initrd=/i root=/dev/xvda1\ninclude a.cfg\n";
const BLS: &[u8] = b"title A\nversion 6.1\nlinux /k\ninitrd /i $x\noptions root=/dev/xvda1 ${y}\n";

/// A small ext2 and a small FAT file system, as they are and on a partition.
pub(crate) fn images() -> Vec<Vec<u8>> {
    let ext = include_bytes!("../seeds/ext2").to_vec();
    let fat = include_bytes!("../seeds/fat12").to_vec();
    let mut disk = vec![0; 512];
    disk[450] = 0x83;
    disk[454] = 1;
    disk[458..462].copy_from_slice(&(ext.len() as u32 / 512).to_le_bytes());
    disk[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.extend_from_slice(&ext);
    vec![ext, fat, disk]
}

fn note(out: &mut Vec<u8>, kind: NoteType, desc: &[u8]) {
    for word in [4, desc.len() as u32, kind.0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(b"Xen\0");
    out.extend_from_slice(desc);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// An ELF file of two segments, notes and code, as Linux has them.
fn elf(load: u64, notes: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 64 + 2 * 56;
    let mut file = vec![0u8; HEADERS];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[24..32].copy_from_slice(&(load + 16).to_le_bytes());
    file[32] = 64;
    file[54..58].copy_from_slice(&[56, 0, 2, 0]);
    let code_at = HEADERS + notes.len();
    let note_segment = [4, HEADERS as u64, 0, 0, notes.len() as u64, notes.len() as u64];
    let code_segment = [1 | 7 << 32, code_at as u64, load, load, 64, 0x3000];
    for (header, words) in file[64..].chunks_exact_mut(56).zip([note_segment, code_segment]) {
        for (to, word) in header.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }
    file.extend_from_slice(notes);
    file.extend_from_slice(&[0x90; 64]);
    file
}

pub(crate) fn kernels() -> Vec<Vec<u8>> {
    let base = 0xffff_ffff_8000_0000u64;
    let mut notes = Vec::new();
    note(&mut notes, NoteType::GUEST_OS, b"linux\0");
    note(&mut notes, NoteType::XEN_VERSION, b"xen-3.0\0");
    note(&mut notes, NoteType::VIRT_BASE, &base.to_le_bytes());
    note(&mut notes, NoteType::ENTRY, &(base + 0x10_0010).to_le_bytes());
    let plain = elf(0x10_0000, &notes);
    note(&mut notes, NoteType::HYPERCALL_PAGE, &(base + 0x10_1000).to_le_bytes());
    note(&mut notes, NoteType::INIT_P2M, &0x80_0000_0000u64.to_le_bytes());
    note(&mut notes, NoteType::MOD_START_PFN, &[1]);
    note(&mut notes, NoteType::FEATURES, b"!writable_page_tables|pae_pgdir_above_4gb\0");
    note(&mut notes, NoteType::SUPPORTED_FEATURES, &[1, 0x88, 0, 0]);
    let modern = elf(0x10_0000, &notes);
    let mut generic = Vec::new();
    note(&mut generic, NoteType::LOADER, b"generic\0");
    note(&mut generic, NoteType::XEN_VERSION, b"xen-3.0\0");
    let low = elf(0, &generic);
    let mut kernels = vec![bzimage(&modern), bzimage(PACKED[0]), legacy(), plain, modern, low];
    kernels.extend(PACKED.map(<[u8]>::to_vec));
    kernels
}

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0u8; 1024];
    file[0x1f1] = 1;
    file[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend_from_slice(payload);
    file
}

/// A kernel with `__xen_guest` instead of notes.
fn legacy() -> Vec<u8> {
    let text = b"GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE=0,HYPERCALL_PAGE=0x1,LOADER=generic\0";
    let names = b"\0__xen_guest\0.shstrtab\0";
    let mut file = elf(0, &[]);
    let text_at = file.len();
    file.extend_from_slice(text);
    let names_at = file.len();
    file.extend_from_slice(names);
    let sections_at = file.len() as u64;
    for (name, at, size) in [(0u32, 0, 0), (1, text_at, text.len()), (13, names_at, names.len())] {
        let mut header = [0u8; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4] = 3;
        header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        file.extend_from_slice(&header);
    }
    file[40..48].copy_from_slice(&sections_at.to_le_bytes());
    file[58..64].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    file
}

#[cfg(test)]
mod tests {
    use pontoon::image::Boot;
    use std::rc::Rc;
    use translate::builder::Kernel;

    #[test]
    fn image_seeds_boot() {
        for image in super::images() {
            assert_eq!(Boot::find(Rc::new(image), None).unwrap().kernel, b"kernel");
        }
    }

    #[test]
    fn kernel_seeds_load() {
        let loaded = super::kernels().iter().filter(|file| Kernel::load(file).is_ok()).count();
        assert_eq!(loaded, 5);
    }
}
