//! Why a domain cannot be built: one clear line each.

use core::fmt;

/// Why a domain cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// Neither bzImage nor ELF nor something compressed.
    UnknownFormat,
    /// The file ends before what its headers promise.
    Truncated,
    /// A bzImage without a payload (boot protocol before 2.08).
    NoPayload,
    /// A payload compressed in a way that is not supported.
    UnknownCompression,
    /// The compressed data is damaged.
    Corrupt(Compression),
    /// The data decompresses to more than the payload says, or than is allowed.
    TooLarge,
    /// Not enough memory to decompress or build.
    NoMemory,
    /// An ELF file whose headers contradict each other.
    BadElf(&'static str),
    /// A 32-bit kernel: PV kernels of 32 bits are not supported yet.
    Elf32,
    /// An ELF file for another processor.
    WrongMachine,
    /// An ELF file without Xen PV entry: no Xen notes and no `__xen_guest` section.
    NotXenPv,
    /// The notes contradict each other, or lie outside the file.
    BadNotes(&'static str),
    /// The kernel requires a Xen feature that is not offered (first such bit).
    MissingFeature(u8),
    /// The hypercall page is outside the kernel's image.
    BadHypercallPage,
    /// An address of the initial layout collides with the hypervisor's or is not canonical.
    BadAddress,
    /// The domain has too little memory for kernel, initrd and tables: pages needed.
    TooLittleMemory(u64),
    /// The initrd lies where the kernel or the initial tables must go.
    InitrdOverlaps,
    /// The initrd must be placed in the initial mapping: give its bytes.
    InitrdNeedsCopy,
    /// Command line longer than `start_info` holds.
    CommandLineTooLong,
}

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "format names")]
pub enum Compression {
    Gzip,
    Xz,
    Lzma,
    Bzip2,
    Lzo,
    Lz4,
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFormat => f.write_str("the kernel is neither a bzImage nor an ELF file"),
            Self::Truncated => f.write_str("the kernel file is truncated"),
            Self::NoPayload => {
                f.write_str("the bzImage is too old: it does not say where its payload is")
            }
            Self::UnknownCompression => {
                f.write_str("the kernel is compressed in an unknown format")
            }
            Self::Corrupt(c) => write!(f, "the kernel's {c} data is damaged"),
            Self::TooLarge => f.write_str("the kernel decompresses to more than it says"),
            Self::NoMemory => f.write_str("not enough memory to unpack the kernel"),
            Self::BadElf(what) => write!(f, "bad ELF file: {what}"),
            Self::Elf32 => f.write_str("a 32-bit kernel: 32-bit PV guests are not supported yet"),
            Self::WrongMachine => f.write_str("the kernel is not for x86-64"),
            Self::NotXenPv => f.write_str("not a Xen PV kernel: no Xen notes with a PV entry"),
            Self::BadNotes(what) => write!(f, "bad Xen notes: {what}"),
            Self::MissingFeature(bit) => {
                write!(
                    f,
                    "the kernel requires Xen feature {bit}, which a PV guest does not have here"
                )
            }
            Self::BadHypercallPage => f.write_str("the hypercall page is outside the kernel"),
            Self::BadAddress => f.write_str("the kernel's addresses collide with the hypervisor's"),
            Self::TooLittleMemory(pages) => {
                write!(f, "too little memory: kernel and initrd need {} MiB", pages.div_ceil(256))
            }
            Self::InitrdOverlaps => f.write_str("the initrd lies where the kernel must go"),
            Self::InitrdNeedsCopy => {
                f.write_str("the kernel wants its initrd mapped, but no copy was given")
            }
            Self::CommandLineTooLong => f.write_str("the command line is longer than 1023 bytes"),
        }
    }
}

impl core::error::Error for BuildError {}
