//! RNDIS as Linux speaks it, and nonsense.

use super::*;
use hv_abi::netvsc::Oid;
use hv_abi::netvsc::ndis::{
    ChecksumFlags, ChecksumSetting, ObjectHeader, ObjectType, Offload, OffloadParameters,
    RssCapabilities, RssParameters, Setting,
};
use hv_abi::netvsc::rndis::{ConfigParameter, Reset};
use proptest::prelude::*;
use zerocopy::FromZeros;

fn control(version: Version) -> Control {
    let card = Card {
        mac: Mac([0, 0x15, 0x5d, 1, 2, 3]),
        mtu: 9000,
        channels: 8,
        counters: Arc::default(),
    };
    Control::new(card, version, true)
}

fn ready(version: Version) -> Control {
    let mut control = control(version);
    let asked = Initialize {
        request_id: 1,
        major_version: 1,
        minor_version: 0,
        max_transfer_bytes: 0x4000,
    };
    let answer = control.handle(&message(&asked, &[])).unwrap().unwrap();
    let complete: InitializeComplete = body(&answer);
    assert_eq!((complete.request_id, complete.status), (1, Status::SUCCESS));
    control
}

fn body<T: FromBytes + Body>(bytes: &[u8]) -> T {
    let (kind, body) = split(bytes).unwrap();
    assert_eq!(kind, T::TYPE);
    T::read_from_prefix(body).unwrap().0
}

fn query(control: &mut Control, oid: Oid, input: &[u8]) -> Result<Vec<u8>, Status> {
    let asked = Query { request_id: 9, oid, length: input.len() as u32, offset: 20, vc_handle: 0 };
    let answer = control.handle(&message(&asked, input)).unwrap().unwrap();
    let complete: QueryComplete = body(&answer);
    assert_eq!(complete.request_id, 9);
    let (_, whole) = split(&answer).unwrap();
    let value = part(whole, complete.offset, complete.length).unwrap().to_vec();
    if complete.status == Status::SUCCESS { Ok(value) } else { Err(complete.status) }
}

fn set(control: &mut Control, oid: Oid, value: &[u8]) -> Status {
    let asked = Set { request_id: 5, oid, length: value.len() as u32, offset: 20, vc_handle: 0 };
    let answer = control.handle(&message(&asked, value)).unwrap().unwrap();
    body::<SetComplete>(&answer).status
}

fn word(control: &mut Control, oid: Oid) -> u32 {
    u32::from_le_bytes(query(control, oid, &[]).unwrap().try_into().unwrap())
}

#[test]
fn nothing_before_it_is_initialized() {
    let mut control = control(Version::V6_1);
    assert_eq!(query(&mut control, Oid::GEN_LINK_SPEED, &[]), Err(Status::ADAPTER_NOT_READY));
    assert_eq!(
        set(&mut control, Oid::GEN_CURRENT_PACKET_FILTER, &[1, 0, 0, 0]),
        Status::ADAPTER_NOT_READY
    );
    assert!(!control.wants(Mac::BROADCAST) && control.set_link(false).is_none());
    let asked =
        Initialize { request_id: 1, major_version: 2, minor_version: 0, max_transfer_bytes: 0 };
    let answer = control.handle(&message(&asked, &[])).unwrap().unwrap();
    assert_eq!(body::<InitializeComplete>(&answer).status, Status::BAD_VERSION);
    assert!(!control.is_ready());
}

#[test]
fn a_card_is_described() {
    let mut c = ready(Version::V6_1);
    assert_eq!(word(&mut c, Oid::GEN_MAXIMUM_FRAME_SIZE), 9000);
    assert_eq!(word(&mut c, Oid::GEN_MAXIMUM_TOTAL_SIZE), 9014);
    assert_eq!(word(&mut c, Oid::GEN_LINK_SPEED) / 10_000, 10_000);
    assert_eq!(word(&mut c, Oid::GEN_MEDIA_CONNECT_STATUS), 0);
    let mac = query(&mut c, Oid::IEEE_802_3_PERMANENT_ADDRESS, &[]).unwrap();
    assert_eq!(mac, [0, 0x15, 0x5d, 1, 2, 3]);
    c.card.counters.sent.frame(Mac::BROADCAST, 60);
    assert_eq!(word(&mut c, Oid::GEN_BROADCAST_BYTES_XMIT), 60);
    assert_eq!(query(&mut c, Oid::GEN_XMIT_OK, &[0; 8]).unwrap(), 1u64.to_le_bytes());
    let list = query(&mut c, Oid::GEN_SUPPORTED_LIST, &[]).unwrap();
    let list: Vec<Oid> =
        list.chunks(4).map(|o| Oid(u32::from_le_bytes(o.try_into().unwrap()))).collect();
    assert!(list.contains(&Oid::GEN_SUPPORTED_LIST) && list.len() > 50);
    for oid in list {
        let value = query(&mut c, oid, &[]);
        assert!(value.is_ok() || set(&mut c, oid, &[]) != Status::NOT_SUPPORTED, "{oid:?}");
    }
    assert_eq!(query(&mut c, Oid(0x1234), &[]), Err(Status::NOT_SUPPORTED));
    assert_eq!(set(&mut c, Oid(0x1234), &[]), Status::NOT_SUPPORTED);
}

#[test]
fn frames_are_filtered() {
    let mut c = ready(Version::V5);
    let (me, other) = (c.card.mac, Mac([2, 0, 0, 0, 0, 9]));
    let (group, stranger) = (Mac([1, 0, 0x5e, 0, 0, 1]), Mac([1, 0, 0x5e, 0, 0, 2]));
    let all = [me, other, group, stranger, Mac::BROADCAST];
    let wanted = |c: &Control| all.map(|mac| c.wants(mac));
    assert_eq!(wanted(&c), [false; 5]);
    let groups = [group.0, Mac::BROADCAST.0].concat();
    assert_eq!(set(&mut c, Oid::IEEE_802_3_MULTICAST_LIST, &groups), Status::SUCCESS);
    assert_eq!(set(&mut c, Oid::IEEE_802_3_MULTICAST_LIST, &[1; 7]), Status::INVALID_LENGTH);
    assert_eq!(set(&mut c, Oid::IEEE_802_3_MULTICAST_LIST, &[1; 6 * 65]), Status::MULTICAST_FULL);
    for (filter, what) in [
        (0x0b, [true, false, true, false, true]),
        (0x05, [true, false, true, true, false]),
        (0x20, [true; 5]),
    ] {
        assert_eq!(
            set(&mut c, Oid::GEN_CURRENT_PACKET_FILTER, &[filter, 0, 0, 0]),
            Status::SUCCESS
        );
        assert_eq!(wanted(&c), what, "{filter}");
    }
    assert_eq!(set(&mut c, Oid::GEN_CURRENT_PACKET_FILTER, &[1]), Status::INVALID_LENGTH);
    let reset = message(&Reset { reserved: 0 }, &[]);
    let answer = c.handle(&reset).unwrap().unwrap();
    assert_eq!(body::<ResetComplete>(&answer).addressing_reset, 1);
    assert!(c.is_ready() && wanted(&c) == [false; 5]);
    assert_eq!(c.handle(&message(&Halt { request_id: 0 }, &[])), Ok(None));
    assert!(!c.is_ready());
}

#[test]
fn another_address() {
    let mut c = ready(Version::V6_1);
    let mut parameter = |name: &str, value: &str| {
        let utf16 =
            |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let (name, value) = (utf16(name), utf16(value));
        let head = ConfigParameter {
            name_offset: 20,
            name_length: name.len() as u32,
            parameter_type: ConfigParameter::STRING,
            value_offset: 20 + name.len() as u32,
            value_length: value.len() as u32,
        };
        let value = [head.as_bytes(), &name, &value].concat();
        set(&mut c, Oid::GEN_RNDIS_CONFIG_PARAMETER, &value)
    };
    assert_eq!(parameter("NetworkAddress", "0a0b0c0d0e0f"), Status::SUCCESS);
    for bad in ["010b0c0d0e0f", "000000000000", "0a0b", "0a0b0c0d0e0g"] {
        assert_eq!(parameter("NetworkAddress", bad), Status::INVALID_DATA, "{bad}");
    }
    assert_eq!(parameter("Speed", "1"), Status::NOT_SUPPORTED);
    let current = query(&mut c, Oid::IEEE_802_3_CURRENT_ADDRESS, &[]).unwrap();
    assert_eq!(current, [10, 11, 12, 13, 14, 15]);
}

#[test]
fn offloads_by_version() {
    for (version, bytes, udp) in [
        (Version::V6_1, Offload::BYTES_3, true),
        (Version::V4, Offload::BYTES_2, false),
        (Version::V1, Offload::BYTES_1, false),
    ] {
        let mut c = ready(version);
        // As Linux asks: with a header that says what it knows.
        let revision = match bytes {
            Offload::BYTES_3 => 3,
            Offload::BYTES_2 => 2,
            _ => 1,
        };
        let header =
            ObjectHeader { object_type: ObjectType::OFFLOAD, revision, size: bytes as u16 };
        let mut input = vec![0; bytes];
        input[..4].copy_from_slice(header.as_bytes());
        let value = query(&mut c, Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES, &input).unwrap();
        assert_eq!((value.len(), &value[..4]), (bytes, header.as_bytes()));
        let mut offload = Offload::new_zeroed();
        offload.as_mut_bytes()[..bytes].copy_from_slice(&value);
        type F = ChecksumFlags;
        for flags in [offload.checksum.ipv4_tx, offload.checksum.ipv6_tx] {
            assert!(flags.has(F::TCP | F::TCP_OPTIONS | F::IP_OPTIONS));
            assert_eq!(flags.has(F::UDP), udp);
        }
        assert!(offload.lso_v2.ipv4_max_bytes > 60_000 && offload.lso_v2.ipv6_options == 5);
    }
    let mut c = ready(Version::V6_1);
    let parameters = OffloadParameters {
        header: ObjectHeader { object_type: ObjectType::DEFAULT, revision: 3, size: 28 },
        tcp_ipv4_checksum: ChecksumSetting::TX_RX,
        udp_ipv6_checksum: ChecksumSetting::RX,
        lso_v2_ipv4: Setting::ENABLED,
        ..OffloadParameters::new_zeroed()
    };
    assert_eq!(set(&mut c, Oid::TCP_OFFLOAD_PARAMETERS, parameters.as_bytes()), Status::SUCCESS);
    let known = ReceiveChecksums { tcp_ipv4: true, udp_ipv6: true, ..ReceiveChecksums::default() };
    assert_eq!(c.receives(), known);
    let none = OffloadParameters { tcp_ipv4_checksum: ChecksumSetting::NO_CHANGE, ..parameters };
    assert_eq!(set(&mut c, Oid::TCP_OFFLOAD_PARAMETERS, none.as_bytes()), Status::SUCCESS);
    assert_eq!(c.receives(), known);
    let value = query(&mut c, Oid::TCP_OFFLOAD_CURRENT_CONFIG, &[]).unwrap();
    let offload = Offload::read_from_bytes(&value).unwrap();
    assert!(offload.checksum.ipv4_tx.has(ChecksumFlags::TCP) && offload.lso_v2.ipv4_max_bytes != 0);
    assert!(
        !offload.checksum.ipv6_tx.has(ChecksumFlags::UDP) && offload.lso_v2.ipv6_max_bytes == 0
    );
    assert_eq!(set(&mut c, Oid::TCP_OFFLOAD_PARAMETERS, &[0; 19]), Status::INVALID_LENGTH);
    assert_eq!(set(&mut c, Oid::TCP_OFFLOAD_PARAMETERS, &[0; 28]), Status::INVALID_DATA);
}

fn rss(flags: u16, entries: &[u32], key: &[u8]) -> Vec<u8> {
    let parameters = RssParameters {
        header: ObjectHeader { object_type: ObjectType::RSS_PARAMETERS, revision: 2, size: 40 },
        flags,
        hash: HashInformation(HashInformation::TOEPLITZ | HashInformation::IPV4),
        table_bytes: entries.len() as u16 * 4,
        table_offset: 40,
        key_bytes: key.len() as u16,
        key_offset: 40 + entries.len() as u32 * 4,
        ..RssParameters::new_zeroed()
    };
    let table: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    [parameters.as_bytes(), &table, key].concat()
}

#[test]
fn scaling() {
    let oid = Oid::GEN_RECEIVE_SCALE_PARAMETERS;
    let mut c = ready(Version::V6_1);
    assert!(c.rss().is_none());
    let caps = query(&mut c, Oid::GEN_RECEIVE_SCALE_CAPABILITIES, &[]).unwrap();
    assert_eq!(caps.len(), RssCapabilities::BYTES_2);
    let table: Vec<u32> = (0..128).map(|n| n % 8).collect();
    assert_eq!(set(&mut c, oid, &rss(0, &table, &[7; 40])), Status::SUCCESS);
    assert_eq!(c.rss().unwrap().channel(13), 5);
    let same = RssParameters::TABLE_UNCHANGED | RssParameters::KEY_UNCHANGED;
    assert_eq!(set(&mut c, oid, &rss(same, &[], &[])), Status::SUCCESS);
    assert_eq!(c.scaling.key, [7; 40]);
    for (value, status) in [
        (rss(0, &[8; 128], &[7; 40]), Status::INVALID_DATA),
        (rss(0, &table[..127], &[7; 40]), Status::INVALID_LENGTH),
        (rss(0, &[], &[7; 40]), Status::INVALID_LENGTH),
        (rss(0, &table, &[7; 39]), Status::INVALID_LENGTH),
        (rss(0, &table, &[7; 40])[..500].to_vec(), Status::INVALID_LENGTH),
        (vec![0; 27], Status::INVALID_LENGTH),
        (vec![0; 40], Status::INVALID_DATA),
    ] {
        assert_eq!(set(&mut c, oid, &value), status);
    }
    assert_eq!(c.rss().unwrap().channel(13), 5, "as it was");
    assert_eq!(set(&mut c, oid, &rss(RssParameters::DISABLE, &[], &[])), Status::SUCCESS);
    assert!(c.rss().is_none());
    let mut old = ready(Version::V4);
    assert_eq!(set(&mut old, oid, &rss(0, &table, &[7; 40])), Status::NOT_SUPPORTED);
    assert!(query(&mut old, Oid::GEN_RECEIVE_SCALE_CAPABILITIES, &[]).is_err());
}

#[test]
fn the_link_is_told_once() {
    let mut c = ready(Version::V6_1);
    assert!(c.set_link(true).is_none());
    let told = c.set_link(false).unwrap();
    assert_eq!(body::<IndicateStatus>(&told).status, Status::MEDIA_DISCONNECT);
    assert_eq!(word(&mut c, Oid::GEN_MEDIA_CONNECT_STATUS), 1);
    assert_eq!(body::<IndicateStatus>(&c.set_link(true).unwrap()).status, Status::MEDIA_CONNECT);
    let alive = message(&Keepalive { request_id: 3 }, &[]);
    let answer = c.handle(&alive).unwrap().unwrap();
    assert_eq!(body::<KeepaliveComplete>(&answer).request_id, 3);
}

proptest! {
    #[test]
    fn any_message(
        kind in prop_oneof![1u32..10, any::<u32>()],
        oid in prop_oneof![proptest::sample::select(Oid::ALL), any::<u32>().prop_map(Oid)],
        words in proptest::collection::vec(prop_oneof![0u32..64, any::<u32>()], 0..40),
    ) {
        let mut c = ready(Version::V6_1);
        let mut bytes = [kind, 8 + words.len() as u32 * 4].map(u32::to_le_bytes).concat();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        if bytes.len() >= 16 {
            bytes[12..16].copy_from_slice(&oid.0.to_le_bytes());
        }
        if let Ok(Some(answer)) = c.handle(&bytes) {
            prop_assert!(split(&answer).is_some() && answer.len() <= 1024);
        }
        let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let _ = set(&mut c, oid, &value);
        let _ = c.rss().map(|rss| rss.channel(u32::MAX));
    }
}
