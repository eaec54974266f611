//! Commands on disks in temporary files.

use super::*;
use crate::memory::{Memory, allocate};
use crate::storvsp::fault::Fault;
use crate::vmbus::PageRange;
use hv_abi::scsi::{
    BlockLimits, Capacity10, Capacity16, DeviceType, InquiryData, ModeHeader6, Opcode, VpdPage,
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const ROOM: u32 = 16 << 10;

struct Bench {
    disk: Disk,
    memory: Memory,
    range: PageRange,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(words: &str, faults: &[Fault]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let data: Vec<u8> = (0..1 << 16).map(|n| (n / 512) as u8).collect();
        std::fs::write(&path, data).unwrap();
        let options = format!("{}{words}", path.display()).parse().unwrap();
        let disk = Disk::open(&options, (0, 0), faults).unwrap();
        let pages = vec![0x9000, 0x5000, 0x6000, 0x2000, 0x3000];
        let range = PageRange { offset: 512, len: ROOM, pages };
        Self { disk, memory: allocate(64 << 20).unwrap(), range, _dir: dir }
    }

    fn run(&self, cdb: &[u8], len: u32) -> Result<u32, Failure> {
        let mut whole = [0; CDB_BYTES];
        whole[..cdb.len()].copy_from_slice(cdb);
        let buffer = Buffer::new(&self.memory, &self.range, len).unwrap();
        Unit { disk: &self.disk }.execute(&whole, &buffer)
    }

    fn data(&self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.range.read(&self.memory, 0, &mut bytes).unwrap();
        bytes
    }

    fn fill(&self, bytes: &[u8]) {
        self.range.write(&self.memory, 0, bytes).unwrap();
    }

    fn answer<T: FromBytes>(&self, cdb: &[u8]) -> T {
        let count = self.run(cdb, ROOM).unwrap() as usize;
        T::read_from_prefix(&self.data(count)).ok().unwrap().0
    }
}

fn illegal<T>(sense: AdditionalSense) -> Result<T, Failure> {
    Err(Failure::illegal(sense))
}

#[test]
fn reads_and_writes() {
    let b = Bench::new("", &[]);
    assert_eq!(b.run(&[0x28, 0, 0, 0, 0, 3, 0, 0, 2, 0], ROOM), Ok(1024));
    assert_eq!(b.data(1024), [[3u8; 512], [4; 512]].concat());
    b.fill(&[0x77; 1024]);
    assert_eq!(b.run(&[0x2a, 8, 0, 0, 0, 126, 0, 0, 2, 0], 1024), Ok(1024));
    assert_eq!(b.run(&[0x08, 0, 0, 127, 1, 0], ROOM), Ok(512));
    assert_eq!(b.data(512), [0x77; 512]);
    let out = illegal(AdditionalSense::LBA_OUT_OF_RANGE);
    assert_eq!(b.run(&[0x2a, 0, 0, 0, 0, 127, 0, 0, 2, 0], 1024), out);
    let mut far = [0xff; 16];
    far[0] = 0x88;
    far[1] = 0;
    assert_eq!(b.run(&far, ROOM), out);
    assert_eq!(b.run(&[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], 1023), Err(Failure::OVERRUN));
    assert_eq!(b.run(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0), Ok(0));
    assert_eq!(b.run(&[0x28, 0, 0, 0, 0, 128, 0, 0, 0, 0], 0), Ok(0), "nothing at the end");
}

#[test]
fn read_only_disks_are_protected() {
    let b = Bench::new(",ro", &[]);
    for cdb in [
        &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0][..],
        &[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
    ] {
        let failure = b.run(cdb, ROOM).unwrap_err();
        assert_eq!(
            (failure.key, failure.sense),
            (SenseKey::DATA_PROTECT, AdditionalSense::WRITE_PROTECTED)
        );
    }
    let mode: ModeHeader6 = b.answer(&[0x1a, 0, 0x3f, 0, 255, 0]);
    assert_eq!(mode.device_specific & 0x80, 0x80);
}

#[test]
fn what_it_says_of_itself() {
    let b = Bench::new(",sector=4096", &[]);
    let inquiry: InquiryData = b.answer(&[0x12, 0, 0, 0, 96, 0]);
    assert_eq!((inquiry.device_type, &inquiry.vendor), (DeviceType::DISK, b"Msft    "));
    assert_eq!(inquiry.additional_length, 91);
    assert_eq!(b.run(&[0x12, 0, 0, 0, 36, 0], ROOM), Ok(36), "cut");
    let capacity: Capacity10 = b.answer(&[0x25]);
    assert_eq!((capacity.last_lba.get(), capacity.block_bytes.get()), (15, 4096));
    let capacity: Capacity16 = b.answer(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]);
    assert_eq!((capacity.last_lba.get(), capacity.exponents), (15, 0));
    let count = b.run(&[0x12, 1, 0, 0, 255, 0], ROOM).unwrap() as usize;
    let pages = b.data(count)[4..].to_vec();
    assert_eq!(pages, [0x00, 0x83, 0xb0, 0xb1, 0xb2]);
    for page in pages {
        let count = b.run(&[0x12, 1, page, 0, 255, 0], ROOM).unwrap() as usize;
        let data = b.data(count);
        assert_eq!((data[1], usize::from(data[3]) + 4), (page, count));
    }
    assert!(b.run(&[0x12, 1, 0x80, 0, 255, 0], ROOM).is_err());
    let limits = inquiry::vpd(&b.disk, VpdPage::BLOCK_LIMITS).unwrap();
    let limits = BlockLimits::read_from_bytes(&limits[4..]).unwrap();
    assert_eq!(limits.max_write_same.get(), 2048);
}

#[test]
fn mode_pages() {
    let b = Bench::new("", &[]);
    assert_eq!(b.run(&[0x1a, 0, 0x08, 0, 255, 0], ROOM), Ok(24));
    let data = b.data(24);
    assert_eq!((data[0], data[2], data[4], data[6] & 4), (23, 0x10, 8, 4));
    assert_eq!(b.run(&[0x5a, 0, 0x3f, 0, 0, 0, 0, 1, 0, 0], ROOM), Ok(28));
    assert_eq!(b.run(&[0x1a, 0, 0x48, 0, 255, 0], ROOM), Ok(24), "changeable: nothing");
    assert_eq!(b.data(24)[6], 0);
    let saved = illegal(AdditionalSense::SAVING_PARAMETERS_NOT_SUPPORTED);
    assert_eq!(b.run(&[0x1a, 0, 0xc8, 0, 255, 0], ROOM), saved);
    assert!(b.run(&[0x1a, 0, 0x1c, 0, 255, 0], ROOM).is_err());
}

#[test]
fn unmap_and_write_same() {
    let b = Bench::new("", &[]);
    let mut list = [0u8; 24];
    list[1] = 22;
    list[3] = 16;
    list[15] = 8;
    list[19] = 16;
    b.fill(&list);
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    assert_eq!(b.run(&unmap, 24), Ok(24));
    if b.disk.can_unmap() {
        b.run(&[0x28, 0, 0, 0, 0, 8, 0, 0, 16, 0], ROOM).unwrap();
        assert!(b.data(8192).iter().all(|b| *b == 0));
    }
    for (at, value, sense) in [
        (14, 1, AdditionalSense::LBA_OUT_OF_RANGE),
        (3, 15, AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST),
        (2, 1, AdditionalSense::PARAMETER_LIST_LENGTH_ERROR),
    ] {
        let mut wrong = list;
        wrong[at] = value;
        b.fill(&wrong);
        assert_eq!(b.run(&unmap, 24), illegal(sense), "{at}");
    }
    assert_eq!(b.run(&unmap, 23), Err(Failure::OVERRUN));
    b.fill(&[0x5a; 512]);
    assert_eq!(b.run(&[0x41, 0, 0, 0, 0, 100, 0, 0, 5, 0], 512), Ok(512));
    b.run(&[0x28, 0, 0, 0, 0, 100, 0, 0, 6, 0], ROOM).unwrap();
    let data = b.data(6 * 512);
    assert!(data[..5 * 512].iter().all(|b| *b == 0x5a) && data[5 * 512] == 105);
    let mut zeros = [0x93, 1, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0];
    assert_eq!(b.run(&zeros, 0), Ok(0), "to the end");
    b.run(&[0x28, 0, 0, 0, 0, 127, 0, 0, 1, 0], ROOM).unwrap();
    assert!(b.data(512).iter().all(|b| *b == 0));
    zeros[1] = 0x09;
    assert_eq!(b.run(&zeros, 0), Ok(0), "and given back");
    assert_eq!(b.run(&[0x41, 0, 0, 0, 0, 100, 0, 0, 5, 0], 511), Err(Failure::OVERRUN));
}

#[test]
fn dvds() {
    let b = Bench::new(",dvd", &[]);
    let inquiry: InquiryData = b.answer(&[0x12, 0, 0, 0, 96, 0]);
    assert_eq!((inquiry.device_type, inquiry.removable), (DeviceType::CD_DVD, 0x80));
    assert_eq!(b.run(&[0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0], ROOM), Ok(2048));
    assert_eq!(b.data(1), [4]);
    assert_eq!(b.run(&[0x43, 0, 0, 0, 0, 0, 0, 0, 255, 0], ROOM), Ok(20));
    assert_eq!(b.data(20)[16..], 32u32.to_be_bytes(), "lead-out");
    assert_eq!(b.run(&[0x43, 2, 1, 0, 0, 0, 0, 0, 255, 0], ROOM), Ok(12));
    assert_eq!(b.data(12)[8..], [0, 0, 2, 0]);
    assert_eq!(b.run(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], ROOM), Ok(8));
    assert_eq!(b.data(6)[5], 2, "a medium is there");
    assert_eq!(b.run(&[0x51, 0, 0, 0, 0, 0, 0, 0, 255, 0], ROOM), Ok(34));
    assert_eq!(b.run(&[0x52, 1, 0, 0, 0, 1, 0, 0, 255, 0], ROOM), Ok(36));
    assert_eq!(b.data(36)[24..32], [0, 0, 0, 32, 0, 0, 0, 31]);
    assert!(b.run(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], ROOM).is_err());
}

#[test]
fn supported_commands_are_reported() {
    let b = Bench::new("", &[]);
    let ask = |options, opcode, action| {
        let count = b.run(&[0xa3, 0x0c, options, opcode, 0, action, 0, 0, 0, 64], ROOM)?;
        Ok::<_, Failure>(b.data(count as usize))
    };
    assert_eq!(ask(1, 0x93, 0).unwrap()[..5], [0, 3, 0, 16, 0x93]);
    assert_eq!(ask(1, 0x85, 0).unwrap(), [0, 1, 0, 0]);
    assert_eq!(ask(2, 0x9e, 0x10).unwrap()[..6], [0, 3, 0, 16, 0x9e, 0x10]);
    assert_eq!(ask(3, 0x9e, 0x12).unwrap(), [0, 1, 0, 0]);
    assert!(ask(1, 0x9e, 0).is_err() && ask(7, 0, 0).is_err());
    let count = b.run(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 8, 0], ROOM).unwrap();
    let list = b.data(count as usize);
    assert_eq!(u32::from_be_bytes(list[..4].try_into().unwrap()) + 4, count);
    assert!(list[4..].chunks(8).any(|entry| entry[0] == Opcode::UNMAP.0));
}

#[test]
fn faults_have_their_sense() {
    let error: Fault = "op=read,sectors=5,error".parse().unwrap();
    let short: Fault = "sectors=100,short".parse().unwrap();
    let flush: Fault = "op=flush,error,times=1".parse().unwrap();
    let b = Bench::new("", &[error, short, flush]);
    let failure = b.run(&[0x28, 0, 0, 0, 0, 4, 0, 0, 4, 0], ROOM).unwrap_err();
    assert_eq!(failure.sense().sense_key(), SenseKey::MEDIUM_ERROR);
    assert_eq!(failure.sense().additional(), AdditionalSense::UNRECOVERED_READ_ERROR);
    assert_eq!((failure.sense().response_code, failure.sense().information.get()), (0xf0, 4));
    assert_eq!(b.run(&[0x2a, 0, 0, 0, 0, 5, 0, 0, 1, 0], ROOM), Ok(512), "writes are fine");
    assert_eq!(b.run(&[0x28, 0, 0, 0, 0, 98, 0, 0, 4, 0], ROOM), Ok(1024), "half of it");
    let failure = b.run(&[0x35], 0).unwrap_err();
    assert_eq!(failure.sense, AdditionalSense::WRITE_ERROR);
    assert_eq!(b.run(&[0x35], 0), Ok(0));
    let done = Done::from(Err(failure));
    assert_eq!((done.srb.0, done.scsi, done.transferred), (0x84, ScsiStatus::CHECK_CONDITION, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever the guest asks for, nothing beyond its buffer or the disk changes.
    #[test]
    fn any_command(
        cdbs in proptest::collection::vec((any::<[u8; 16]>(), 0usize..30), 1..40),
        len in 0u32..=ROOM,
        data in proptest::collection::vec(any::<u8>(), 64),
        dvd in any::<bool>(),
    ) {
        let b = Bench::new(if dvd { ",dvd" } else { "" }, &[]);
        let codes: Vec<u8> =
            crate::storvsp::command::known(dvd).map(|(code, ..)| code.0).collect();
        b.memory.write_slice(&[0xee; 512], GuestAddress(0x9000)).unwrap();
        for (mut cdb, pick) in cdbs {
            if let Some(code) = codes.get(pick) {
                cdb[0] = *code;
                // Small numbers hit more.
                cdb[2..9].iter_mut().for_each(|b| *b &= 1);
            }
            b.fill(&data);
            if let Ok(count) = b.run(&cdb, len) {
                prop_assert!(count <= len);
            }
        }
        let mut before = [0; 512];
        b.memory.read_slice(&mut before, GuestAddress(0x9000)).unwrap();
        prop_assert_eq!(before, [0xee; 512]);
        prop_assert_eq!(b.disk.sectors(), if dvd { 32 } else { 128 });
    }
}
