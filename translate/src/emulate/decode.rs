//! Decoder of the instructions Xen emulates for a PV guest's kernel, in 64-bit mode.
//!
//! The list is that of Xen's `priv-op` emulation: IN, OUT, INS, OUTS, CLI, STI, CLTS, WBINVD,
//! MOV CR/DR, RDMSR, WRMSR, RDTSC(P), CPUID, XSETBV. Whatever else traps (HLT, LGDT and its
//! family, INVLPG, INVD, LMSW, LTR ...) is the guest's own fault, as on Xen, and not decoded.

/// Longest instruction the processor takes, in bytes.
pub const MAX_BYTES: usize = 15;

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "mnemonics")]
pub enum Op {
    /// Port in DX, or an immediate one.
    In(Option<u8>),
    /// Likewise.
    Out(Option<u8>),
    Ins,
    Outs,
    Cli,
    Sti,
    Clts,
    /// And WBNOINVD.
    Wbinvd,
    /// Control register, general register.
    FromCr(u8, u8),
    ToCr(u8, u8),
    /// Debug register, general register.
    FromDr(u8, u8),
    ToDr(u8, u8),
    Wrmsr,
    Rdtsc,
    Rdmsr,
    Rdtscp,
    Xsetbv,
    Cpuid,
}

/// Segment override that matters in 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "register names")]
pub enum Segment {
    Flat,
    Fs,
    Gs,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// What it does.
    pub op: Op,
    /// Bytes it is long.
    pub len: u8,
    /// Bytes of the operand of IN, OUT, INS, OUTS: 1, 2 or 4.
    pub size: u8,
    /// Addresses and the repeat count are 32 bits wide.
    pub addr32: bool,
    /// A repeat prefix.
    pub rep: bool,
    /// Segment of a memory operand.
    pub segment: Segment,
}

/// Why bytes are not one of these instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// They end before the instruction does.
    Truncated,
    /// They are something else.
    Other,
}

/// What the first opcode byte, or the one after 0F, means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Other,
    /// A prefix without effect here (ES, CS, SS, DS).
    Null,
    Operand16,
    Address32,
    SegFs,
    SegGs,
    Repeat,
    Rex,
    /// 0F: the second map.
    Escape,
    /// I/O with byte operand (else 2 or 4), immediate port.
    In {
        byte: bool,
        imm: bool,
    },
    Out {
        byte: bool,
        imm: bool,
    },
    Ins {
        byte: bool,
    },
    Outs {
        byte: bool,
    },
    Simple(Op),
    /// ModRM names a control (or debug) and a general register.
    Move {
        debug: bool,
        to: bool,
    },
    /// 0F 01: ModRM chooses.
    Group7,
}

static ONE_BYTE: [Entry; 256] = {
    let mut t = [Entry::Other; 256];
    t[0x26] = Entry::Null;
    t[0x2e] = Entry::Null;
    t[0x36] = Entry::Null;
    t[0x3e] = Entry::Null;
    t[0x64] = Entry::SegFs;
    t[0x65] = Entry::SegGs;
    t[0x66] = Entry::Operand16;
    t[0x67] = Entry::Address32;
    t[0xf2] = Entry::Repeat;
    t[0xf3] = Entry::Repeat;
    let mut n = 0x40;
    while n < 0x50 {
        t[n] = Entry::Rex;
        n += 1;
    }
    t[0x0f] = Entry::Escape;
    t[0x6c] = Entry::Ins { byte: true };
    t[0x6d] = Entry::Ins { byte: false };
    t[0x6e] = Entry::Outs { byte: true };
    t[0x6f] = Entry::Outs { byte: false };
    t[0xe4] = Entry::In { byte: true, imm: true };
    t[0xe5] = Entry::In { byte: false, imm: true };
    t[0xe6] = Entry::Out { byte: true, imm: true };
    t[0xe7] = Entry::Out { byte: false, imm: true };
    t[0xec] = Entry::In { byte: true, imm: false };
    t[0xed] = Entry::In { byte: false, imm: false };
    t[0xee] = Entry::Out { byte: true, imm: false };
    t[0xef] = Entry::Out { byte: false, imm: false };
    t[0xfa] = Entry::Simple(Op::Cli);
    t[0xfb] = Entry::Simple(Op::Sti);
    t
};

static TWO_BYTE: [Entry; 256] = {
    let mut t = [Entry::Other; 256];
    t[0x01] = Entry::Group7;
    t[0x06] = Entry::Simple(Op::Clts);
    t[0x09] = Entry::Simple(Op::Wbinvd);
    t[0x20] = Entry::Move { debug: false, to: false };
    t[0x21] = Entry::Move { debug: true, to: false };
    t[0x22] = Entry::Move { debug: false, to: true };
    t[0x23] = Entry::Move { debug: true, to: true };
    t[0x30] = Entry::Simple(Op::Wrmsr);
    t[0x31] = Entry::Simple(Op::Rdtsc);
    t[0x32] = Entry::Simple(Op::Rdmsr);
    t[0xa2] = Entry::Simple(Op::Cpuid);
    t
};

/// Reads bytes one after the other.
struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    #[inline]
    fn next(&mut self) -> Result<u8, DecodeError> {
        if self.at >= MAX_BYTES {
            return Err(DecodeError::Other);
        }
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }
}

/// Decodes the instruction at the start of `bytes`.
///
/// # Errors
/// [`DecodeError::Truncated`] where more bytes, up to [`MAX_BYTES`] in all, could make it one.
#[inline]
pub fn decode(bytes: &[u8]) -> Result<Insn, DecodeError> {
    let mut bytes = Bytes { bytes, at: 0 };
    let mut insn =
        Insn { op: Op::Cli, len: 0, size: 4, addr32: false, rep: false, segment: Segment::Flat };
    let mut rex = 0;
    let entry = loop {
        let byte = bytes.next()?;
        let entry = ONE_BYTE[usize::from(byte)];
        match entry {
            Entry::Null => {}
            Entry::Operand16 => insn.size = 2,
            Entry::Address32 => insn.addr32 = true,
            Entry::SegFs => insn.segment = Segment::Fs,
            Entry::SegGs => insn.segment = Segment::Gs,
            Entry::Repeat => insn.rep = true,
            Entry::Rex => {
                rex = byte;
                continue;
            }
            Entry::Escape => break TWO_BYTE[usize::from(bytes.next()?)],
            _ => break entry,
        }
        // A REX prefix counts only right before the opcode.
        rex = 0;
    };
    // REX.W makes the operand 64 bits wide; I/O has no such form and stays at 32.
    if rex & 8 != 0 {
        insn.size = 4;
    }
    let (op, byte) = match entry {
        Entry::In { byte, imm } => (Op::In(port(&mut bytes, imm)?), byte),
        Entry::Out { byte, imm } => (Op::Out(port(&mut bytes, imm)?), byte),
        Entry::Ins { byte } => (Op::Ins, byte),
        Entry::Outs { byte } => (Op::Outs, byte),
        Entry::Simple(op) => (op, false),
        Entry::Group7 => match bytes.next()? {
            0xd1 => (Op::Xsetbv, false),
            0xf9 => (Op::Rdtscp, false),
            _ => return Err(DecodeError::Other),
        },
        Entry::Move { debug, to } => {
            // Always registers: ModRM.mod is ignored.
            let modrm = bytes.next()?;
            let special = modrm >> 3 & 7 | (rex & 4) << 1;
            let general = modrm & 7 | (rex & 1) << 3;
            let op = match (debug, to) {
                (false, false) => Op::FromCr(special, general),
                (false, true) => Op::ToCr(special, general),
                (true, false) => Op::FromDr(special, general),
                (true, true) => Op::ToDr(special, general),
            };
            (op, false)
        }
        _ => return Err(DecodeError::Other),
    };
    insn.op = op;
    if byte {
        insn.size = 1;
    }
    insn.len = bytes.at as u8;
    Ok(insn)
}

#[inline]
fn port(bytes: &mut Bytes<'_>, immediate: bool) -> Result<Option<u8>, DecodeError> {
    if immediate { bytes.next().map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};
    use proptest::prelude::*;
    use std::vec::Vec;

    fn plain(op: Op, len: u8, size: u8) -> Insn {
        Insn { op, len, size, addr32: false, rep: false, segment: Segment::Flat }
    }

    #[test]
    fn every_form() {
        let forms: &[(&[u8], Insn)] = &[
            (&[0xe4, 0x61], plain(Op::In(Some(0x61)), 2, 1)),
            (&[0xe5, 0x61], plain(Op::In(Some(0x61)), 2, 4)),
            (&[0x66, 0xe5, 0x61], plain(Op::In(Some(0x61)), 3, 2)),
            (&[0xec], plain(Op::In(None), 1, 1)),
            (&[0xed], plain(Op::In(None), 1, 4)),
            (&[0x66, 0xed], plain(Op::In(None), 2, 2)),
            (&[0x66, 0x48, 0xed], plain(Op::In(None), 3, 4)),
            (&[0x48, 0x66, 0xed], plain(Op::In(None), 3, 2)),
            (&[0xe6, 0x80], plain(Op::Out(Some(0x80)), 2, 1)),
            (&[0xe7, 0x80], plain(Op::Out(Some(0x80)), 2, 4)),
            (&[0xee], plain(Op::Out(None), 1, 1)),
            (&[0xef], plain(Op::Out(None), 1, 4)),
            (&[0xfa], plain(Op::Cli, 1, 4)),
            (&[0xfb], plain(Op::Sti, 1, 4)),
            (&[0x0f, 0x06], plain(Op::Clts, 2, 4)),
            (&[0x0f, 0x09], plain(Op::Wbinvd, 2, 4)),
            (&[0x0f, 0x20, 0xe0], plain(Op::FromCr(4, 0), 3, 4)),
            (&[0x44, 0x0f, 0x20, 0xc0], plain(Op::FromCr(8, 0), 4, 4)),
            (&[0x41, 0x0f, 0x22, 0xdf], plain(Op::ToCr(3, 15), 4, 4)),
            (&[0x0f, 0x21, 0xf8], plain(Op::FromDr(7, 0), 3, 4)),
            (&[0x0f, 0x23, 0x3b], plain(Op::ToDr(7, 3), 3, 4)),
            (&[0x0f, 0x30], plain(Op::Wrmsr, 2, 4)),
            (&[0x0f, 0x31], plain(Op::Rdtsc, 2, 4)),
            (&[0x0f, 0x32], plain(Op::Rdmsr, 2, 4)),
            (&[0x0f, 0xa2], plain(Op::Cpuid, 2, 4)),
            (&[0x0f, 0x01, 0xd1], plain(Op::Xsetbv, 3, 4)),
            (&[0x0f, 0x01, 0xf9], plain(Op::Rdtscp, 3, 4)),
            (&[0xf3, 0x6c], Insn { rep: true, ..plain(Op::Ins, 2, 1) }),
            (&[0x66, 0x6d], plain(Op::Ins, 2, 2)),
            (
                &[0x65, 0x67, 0xf2, 0x6f],
                Insn { rep: true, addr32: true, segment: Segment::Gs, ..plain(Op::Outs, 4, 4) },
            ),
        ];
        for (bytes, insn) in forms {
            assert_eq!(decode(bytes), Ok(*insn), "{bytes:x?}");
            // What follows does not matter; a byte less is not enough.
            let mut longer = bytes.to_vec();
            longer.extend_from_slice(&[0x90; 20]);
            assert_eq!(decode(&longer), Ok(*insn));
            let shorter = &bytes[..bytes.len() - 1];
            assert_eq!(decode(shorter), Err(DecodeError::Truncated), "{shorter:x?}");
        }
    }

    #[test]
    fn others_are_not_decoded() {
        for bytes in [
            &[0xf4u8][..],             // hlt
            &[0x0f, 0x01, 0x10],       // lgdt
            &[0x0f, 0x01, 0x38],       // invlpg
            &[0x0f, 0x01, 0xf0],       // lmsw
            &[0x0f, 0x08],             // invd
            &[0xf0, 0x0f, 0x20, 0xc0], // lock mov cr0: cr8 on some processors
            &[0xcd, 0x80],             // int
            &[0x66; 15],
            &[0x90],
        ] {
            assert_eq!(decode(bytes), Err(DecodeError::Other), "{bytes:x?}");
        }
        let mut long = [0x2e; 16];
        long[14] = 0xec;
        assert_eq!(decode(&long), Ok(plain(Op::In(None), 15, 1)));
        long[14] = 0x2e;
        long[15] = 0xec;
        assert_eq!(decode(&long), Err(DecodeError::Other));
    }

    fn general(register: Register) -> u8 {
        u8::try_from(register as u32 - Register::RAX as u32).unwrap()
    }

    /// What the reference says, in our words.
    fn reference(insn: &Instruction) -> Option<(Op, u8)> {
        let control = |r: Register| (r as u32 - Register::CR0 as u32) as u8;
        let debug = |r: Register| (r as u32 - Register::DR0 as u32) as u8;
        let immediate = |op: u32| match insn.op_kind(op) {
            OpKind::Immediate8 => Some(insn.immediate8()),
            _ => None,
        };
        Some(match insn.code() {
            Code::In_AL_imm8 | Code::In_AL_DX => (Op::In(immediate(1)), 1),
            Code::In_AX_imm8 | Code::In_AX_DX => (Op::In(immediate(1)), 2),
            Code::In_EAX_imm8 | Code::In_EAX_DX => (Op::In(immediate(1)), 4),
            Code::Out_imm8_AL | Code::Out_DX_AL => (Op::Out(immediate(0)), 1),
            Code::Out_imm8_AX | Code::Out_DX_AX => (Op::Out(immediate(0)), 2),
            Code::Out_imm8_EAX | Code::Out_DX_EAX => (Op::Out(immediate(0)), 4),
            Code::Insb_m8_DX => (Op::Ins, 1),
            Code::Insw_m16_DX => (Op::Ins, 2),
            Code::Insd_m32_DX => (Op::Ins, 4),
            Code::Outsb_DX_m8 => (Op::Outs, 1),
            Code::Outsw_DX_m16 => (Op::Outs, 2),
            Code::Outsd_DX_m32 => (Op::Outs, 4),
            Code::Cli => (Op::Cli, 0),
            Code::Sti => (Op::Sti, 0),
            Code::Clts => (Op::Clts, 0),
            Code::Wbinvd | Code::Wbnoinvd => (Op::Wbinvd, 0),
            Code::Mov_r64_cr => {
                (Op::FromCr(control(insn.op1_register()), general(insn.op0_register())), 0)
            }
            Code::Mov_cr_r64 => {
                (Op::ToCr(control(insn.op0_register()), general(insn.op1_register())), 0)
            }
            Code::Mov_r64_dr => {
                (Op::FromDr(debug(insn.op1_register()), general(insn.op0_register())), 0)
            }
            Code::Mov_dr_r64 => {
                (Op::ToDr(debug(insn.op0_register()), general(insn.op1_register())), 0)
            }
            Code::Wrmsr => (Op::Wrmsr, 0),
            Code::Rdtsc => (Op::Rdtsc, 0),
            Code::Rdmsr => (Op::Rdmsr, 0),
            Code::Cpuid => (Op::Cpuid, 0),
            Code::Xsetbv => (Op::Xsetbv, 0),
            Code::Rdtscp => (Op::Rdtscp, 0),
            _ => return None,
        })
    }

    fn compare(bytes: &[u8]) {
        let mut decoder = Decoder::new(64, bytes, DecoderOptions::NO_INVALID_CHECK);
        let insn = decoder.decode();
        let known = if insn.is_invalid() { None } else { reference(&insn) };
        match (known, decode(bytes)) {
            (Some((op, size)), Ok(ours)) => {
                assert_eq!((ours.op, usize::from(ours.len)), (op, insn.len()), "{bytes:x?}");
                assert!(size == 0 || ours.size == size, "{bytes:x?}");
                if matches!(op, Op::Ins | Op::Outs) {
                    assert_eq!(ours.rep, insn.has_rep_prefix() || insn.has_repne_prefix());
                }
                if op == Op::Outs {
                    let segment = match insn.memory_segment() {
                        Register::FS => Segment::Fs,
                        Register::GS => Segment::Gs,
                        _ => Segment::Flat,
                    };
                    assert_eq!(ours.segment, segment, "{bytes:x?}");
                }
            }
            // A locked one never traps with #GP: it is undefined.
            (Some(_), Err(_)) => assert!(insn.has_lock_prefix(), "{bytes:x?}"),
            // Prefixes that make an undefined instruction of a known one, or a register that
            // does not exist: the processor raises #UD and nothing comes here.
            (None, Ok(ours)) => assert!(
                insn.is_invalid()
                    || bytes[..usize::from(ours.len)]
                        .iter()
                        .any(|b| matches!(b, 0x66 | 0xf2 | 0xf3)),
                "{bytes:x?}"
            ),
            (None, Err(_)) => {}
        }
    }

    const OPCODES: &[&[u8]] = &[
        &[0xe4],
        &[0xe5],
        &[0xe6],
        &[0xe7],
        &[0xec],
        &[0xed],
        &[0xee],
        &[0xef],
        &[0x6c],
        &[0x6d],
        &[0x6e],
        &[0x6f],
        &[0xfa],
        &[0xfb],
        &[0x0f, 0x06],
        &[0x0f, 0x09],
        &[0x0f, 0x20],
        &[0x0f, 0x21],
        &[0x0f, 0x22],
        &[0x0f, 0x23],
        &[0x0f, 0x30],
        &[0x0f, 0x31],
        &[0x0f, 0x32],
        &[0x0f, 0xa2],
        &[0x0f, 0x01],
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = decode(&bytes);
            if bytes.len() >= MAX_BYTES { compare(&bytes); }
        }

        #[test]
        fn prefixed_instructions(
            prefixes in proptest::collection::vec(proptest::sample::select(
                &[0x26u8, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x40, 0x41,
                  0x44, 0x48, 0x4f][..]), 0..6),
            opcode in proptest::sample::select(OPCODES),
            rest: [u8; 16],
        ) {
            let mut bytes: Vec<u8> = prefixes;
            bytes.extend_from_slice(opcode);
            bytes.extend_from_slice(&rest);
            compare(&bytes);
        }
    }
}
