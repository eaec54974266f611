//! What a unit says of itself: INQUIRY and its pages, capacity, mode pages.

use crate::storvsp::command::known;
use crate::storvsp::disk::Disk;
use crate::storvsp::unit::Failure;
use hv_abi::Guid;
use hv_abi::scsi::{
    AdditionalSense, BlockDeviceCharacteristics, BlockLimits, BlockProvisioning, CachingPage,
    Capacity10, Capacity16, Designator, DeviceType, InquiryData, LunListHeader, MODE_FUA,
    MODE_WRITE_PROTECTED, ModeHeader6, ModeHeader10, ModePage, Opcode, VpdHeader, VpdPage,
};
use zerocopy::{FromZeros, IntoBytes};

const VENDOR: [u8; 8] = *b"Msft    ";
/// Microsoft's IEEE company number with the NAA 6 in front.
const NAA_MICROSOFT: [u8; 4] = [0x60, 0x02, 0x24, 0x80];
/// Most bytes of one WRITE SAME.
pub const WRITE_SAME_BYTES_MAX: u64 = 8 << 20;
/// Most descriptors of one UNMAP.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;

fn device_type(disk: &Disk) -> DeviceType {
    if disk.is_dvd() { DeviceType::CD_DVD } else { DeviceType::DISK }
}

/// Standard INQUIRY data of a unit that is there.
#[must_use]
pub fn standard(disk: &Disk) -> InquiryData {
    let mut data = template(device_type(disk));
    if disk.is_dvd() {
        data.removable = InquiryData::REMOVABLE;
        data.product = *b"Virtual DVD-ROM ";
    }
    data.flags7 = InquiryData::COMMAND_QUEUE;
    data
}

/// Standard INQUIRY data of unit `lun`, where there is none. Unit 0 shows that
/// there is a target, which can be asked for its units.
#[must_use]
pub fn absent(lun: u8) -> InquiryData {
    let data = template(DeviceType::ABSENT);
    match lun {
        0 => data,
        _ => InquiryData { vendor: [0; 8], product: [0; 16], revision: [0; 4], ..data },
    }
}

fn template(device_type: DeviceType) -> InquiryData {
    InquiryData {
        device_type,
        version: InquiryData::SPC3,
        response_format: 2,
        // Behind this field.
        additional_length: (size_of::<InquiryData>() - 5) as u8,
        vendor: VENDOR,
        product: *b"Virtual Disk    ",
        revision: *b"1.0 ",
        ..InquiryData::new_zeroed()
    }
}

/// A vital product data page.
///
/// # Errors
/// The unit has no such page.
pub fn vpd(disk: &Disk, page: VpdPage) -> Result<Vec<u8>, Failure> {
    let body = match page {
        VpdPage::SUPPORTED_PAGES => pages(disk).iter().map(|page| page.0).collect(),
        VpdPage::DEVICE_IDENTIFICATION => identification(disk.id()),
        VpdPage::BLOCK_LIMITS if !disk.is_dvd() => block_limits(disk).as_bytes().to_vec(),
        VpdPage::BLOCK_DEVICE_CHARACTERISTICS if !disk.is_dvd() => {
            // Not rotating: no seek is to be avoided.
            let page = BlockDeviceCharacteristics { rotation_rate: 1.into(), reserved: [0; 58] };
            page.as_bytes().to_vec()
        }
        VpdPage::LOGICAL_BLOCK_PROVISIONING if !disk.is_dvd() => {
            provisioning(disk).as_bytes().to_vec()
        }
        _ => return Err(Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB)),
    };
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX).into();
    let header = VpdHeader { device_type: device_type(disk), page, length };
    Ok([header.as_bytes(), &body].concat())
}

fn pages(disk: &Disk) -> &'static [VpdPage] {
    const ALL: [VpdPage; 5] = [
        VpdPage::SUPPORTED_PAGES,
        VpdPage::DEVICE_IDENTIFICATION,
        VpdPage::BLOCK_LIMITS,
        VpdPage::BLOCK_DEVICE_CHARACTERISTICS,
        VpdPage::LOGICAL_BLOCK_PROVISIONING,
    ];
    ALL.get(..if disk.is_dvd() { 2 } else { ALL.len() }).unwrap_or_default()
}

/// Two designators: vendor and GUID, and an NAA of the GUID's most random bytes.
fn identification(id: Guid) -> Vec<u8> {
    let header =
        |kind, length| Designator { code_set: Designator::BINARY, kind, reserved: 0, length };
    let (begin, end) = (id.0.get(..6).unwrap_or_default(), id.0.get(10..).unwrap_or_default());
    [
        header(Designator::T10_VENDOR, 24).as_bytes(),
        &VENDOR,
        id.as_bytes(),
        header(Designator::NAA, 16).as_bytes(),
        &NAA_MICROSOFT,
        begin,
        end,
    ]
    .concat()
}

/// Most blocks of one WRITE SAME.
#[must_use]
pub fn write_same_max(disk: &Disk) -> u64 {
    WRITE_SAME_BYTES_MAX / u64::from(disk.sector_bytes())
}

fn block_limits(disk: &Disk) -> BlockLimits {
    let mut page = BlockLimits::new_zeroed();
    if !disk.is_read_only() {
        page.max_write_same = write_same_max(disk).into();
    }
    if disk.can_unmap() {
        page.max_unmap_blocks = u32::MAX.into();
        page.max_unmap_descriptors = UNMAP_DESCRIPTORS_MAX.into();
        // Holes in files are of pages.
        page.unmap_granularity = (4096 / disk.sector_bytes()).max(1).into();
        page.unmap_alignment = BlockLimits::ALIGNMENT_VALID.into();
    }
    page
}

fn provisioning(disk: &Disk) -> BlockProvisioning {
    let exponent = (disk.sectors() >> 32).next_power_of_two().trailing_zeros().max(1);
    let flags = BlockProvisioning::UNMAP
        | BlockProvisioning::WRITE_SAME_16
        | BlockProvisioning::WRITE_SAME_10;
    BlockProvisioning {
        threshold_exponent: exponent as u8,
        flags: if disk.can_unmap() { flags } else { 0 },
        kind: if disk.can_unmap() { BlockProvisioning::THIN } else { 0 },
        reserved: 0,
    }
}

/// READ CAPACITY(10) data.
#[must_use]
pub fn capacity10(disk: &Disk) -> Capacity10 {
    let last = u32::try_from(disk.sectors() - 1).unwrap_or(u32::MAX);
    Capacity10 { last_lba: last.into(), block_bytes: disk.sector_bytes().into() }
}

/// READ CAPACITY(16) data.
#[must_use]
pub fn capacity16(disk: &Disk) -> Capacity16 {
    Capacity16 {
        last_lba: (disk.sectors() - 1).into(),
        block_bytes: disk.sector_bytes().into(),
        // A physical block is a page, below which the host would read first.
        exponents: (4096 / disk.sector_bytes()).max(1).trailing_zeros() as u8,
        provisioning: if disk.can_unmap() { Capacity16::PROVISIONING } else { 0 }.into(),
        ..Capacity16::new_zeroed()
    }
}

/// MODE SENSE data.
///
/// # Errors
/// A page or value the unit does not have.
pub fn mode(disk: &Disk, page: ModePage, control: u8, ten: bool) -> Result<Vec<u8>, Failure> {
    const CHANGEABLE: u8 = 1;
    const SAVED: u8 = 3;
    if control == SAVED {
        return Err(Failure::illegal(AdditionalSense::SAVING_PARAMETERS_NOT_SUPPORTED));
    }
    let caching = CachingPage {
        page: ModePage::CACHING.0,
        length: (size_of::<CachingPage>() - 2) as u8,
        // Nothing can be changed.
        flags: if control == CHANGEABLE || disk.is_read_only() {
            0
        } else {
            CachingPage::WRITE_CACHE
        },
        rest: [0; 17],
    };
    // Reads DVD-ROM, cannot write, no audio; nothing changes.
    let mut capabilities = [0u8; 22];
    capabilities[..3].copy_from_slice(&[ModePage::CD_CAPABILITIES.0, 20, 0x08]);
    let pages = match (page, disk.is_dvd()) {
        (ModePage::CACHING, _) => caching.as_bytes().to_vec(),
        (ModePage::CD_CAPABILITIES, true) => capabilities.to_vec(),
        (ModePage::ALL, false) => caching.as_bytes().to_vec(),
        (ModePage::ALL, true) => [caching.as_bytes(), &capabilities].concat(),
        _ => return Err(Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB)),
    };
    let protected = if disk.is_read_only() { MODE_WRITE_PROTECTED } else { 0 };
    let device_specific = if disk.is_dvd() { 0 } else { protected | MODE_FUA };
    Ok(if ten {
        let length = (size_of::<ModeHeader10>() - 2 + pages.len()) as u16;
        let header =
            ModeHeader10 { length: length.into(), device_specific, ..ModeHeader10::new_zeroed() };
        [header.as_bytes(), &pages].concat()
    } else {
        let length = (size_of::<ModeHeader6>() - 1 + pages.len()) as u8;
        let header = ModeHeader6 { length, device_specific, ..ModeHeader6::new_zeroed() };
        [header.as_bytes(), &pages].concat()
    })
}

/// REPORT LUNS data.
#[must_use]
pub fn lun_list(luns: impl Iterator<Item = u8>) -> Vec<u8> {
    let list: Vec<u8> = luns.flat_map(|lun| [0, lun, 0, 0, 0, 0, 0, 0]).collect();
    let length = u32::try_from(list.len()).unwrap_or(u32::MAX).into();
    [LunListHeader { length, reserved: [0; 4] }.as_bytes(), &list].concat()
}

/// REPORT SUPPORTED OPERATION CODES data: all, or one.
///
/// # Errors
/// An unknown way of asking.
pub fn opcodes(disk: &Disk, options: u8, opcode: Opcode, action: u16) -> Result<Vec<u8>, Failure> {
    let all = || known(disk.is_dvd());
    if options == 0 {
        let list: Vec<u8> = all()
            .flat_map(|(code, length, action)| {
                let has_action = u8::from(action.is_some());
                [code.0, 0, 0, action.unwrap_or(0), 0, has_action, 0, *length]
            })
            .collect();
        let length = u32::try_from(list.len()).unwrap_or(u32::MAX);
        return Ok([&length.to_be_bytes()[..], &list].concat());
    }
    let found = all().find(|(code, ..)| *code == opcode);
    let matches = match (options, found) {
        // By code alone: not for those with service actions.
        (1, Some((.., Some(_)))) => {
            return Err(Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB));
        }
        (1 | 3, Some((.., None))) => true,
        (2 | 3, Some((.., Some(known)))) => u16::from(*known) == action,
        (1..=3, _) => false,
        _ => return Err(Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB)),
    };
    const SUPPORTED: u8 = 3;
    const NOT_SUPPORTED: u8 = 1;
    Ok(match found.filter(|_| matches) {
        None => vec![0, NOT_SUPPORTED, 0, 0],
        Some((code, length, action)) => {
            // The map: the code, its service action, and every other bit in use.
            let mut usage = vec![0xff; usize::from(*length)];
            for (byte, value) in usage.iter_mut().zip([Some(code.0), *action]) {
                *byte = value.unwrap_or(*byte);
            }
            [&[0, SUPPORTED, 0, *length][..], &usage].concat()
        }
    })
}

/// READ TOC data of a DVD with one data track.
///
/// # Errors
/// An unknown format or track.
pub fn toc(disk: &Disk, format: u8, msf: bool, track: u8) -> Result<Vec<u8>, Failure> {
    const LEAD_OUT: u8 = 0xaa;
    const DATA_TRACK: u8 = 0x14;
    let place = |lba: u64| -> [u8; 4] {
        let lba = u32::try_from(lba).unwrap_or(u32::MAX);
        if !msf {
            return lba.to_be_bytes();
        }
        let frames = lba.saturating_add(150);
        [0, (frames / 75 / 60).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
    };
    let entry = |number: u8, lba| [&[0, DATA_TRACK, number, 0][..], &place(lba)].concat();
    let list = match (format, track) {
        (0, 0 | 1) => [entry(1, 0), entry(LEAD_OUT, disk.sectors())].concat(),
        (0, LEAD_OUT) => entry(LEAD_OUT, disk.sectors()),
        // The first track of the last session, which is the only one.
        (1, _) => entry(1, 0),
        _ => return Err(Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB)),
    };
    let length = u16::try_from(list.len() + 2).unwrap_or(u16::MAX);
    Ok([&length.to_be_bytes()[..], &[1, 1], &list].concat())
}

/// READ DISC INFORMATION data: finished, one session of one track.
#[must_use]
pub fn disc_information() -> [u8; 34] {
    let mut data = [0; 34];
    let (start, _) = data.split_at_mut(7);
    start.copy_from_slice(&[0, 32, 0x0e, 1, 1, 1, 1]);
    data
}

/// READ TRACK INFORMATION data: track 1 of session 1, data, from block 0 to the end.
#[must_use]
pub fn track_information(disk: &Disk) -> Vec<u8> {
    let blocks = u32::try_from(disk.sectors()).unwrap_or(u32::MAX);
    let last = blocks.saturating_sub(1);
    const LAST_VALID: u8 = 2;
    let start = [0, 34, 1, 1, 0, 4, 1, LAST_VALID];
    [&start[..], &[0; 16], &blocks.to_be_bytes(), &last.to_be_bytes(), &[0; 4]].concat()
}

/// GET CONFIGURATION data: the current profile is DVD-ROM, no feature is told.
#[must_use]
pub fn configuration() -> [u8; 8] {
    [0, 0, 0, 4, 0, 0, 0, 0x10]
}

/// GET EVENT STATUS NOTIFICATION data for these classes: nothing happened to the
/// medium, which is there.
#[must_use]
pub fn event(classes: u8) -> Vec<u8> {
    const MEDIA: u8 = 4;
    const NONE_OF_THESE: u8 = 0x80;
    if classes & 1 << MEDIA != 0 {
        vec![0, 6, MEDIA, 1 << MEDIA, 0, 2, 0, 0]
    } else {
        vec![0, 2, NONE_OF_THESE, 1 << MEDIA]
    }
}
