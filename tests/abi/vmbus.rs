//! `hv-abi`'s VMBus types against the Linux kernel's `include/linux/hyperv.h`, as Debian's
//! `linux-headers-*-common` has it.
//!
//! The headers know versions up to 5.3, and neither monitor pages nor the inputs of hypercalls.

use std::path::{Path, PathBuf};

use hv_abi::Guid;
use hv_abi::vmbus::gpadl::*;
use hv_abi::vmbus::message::*;
use hv_abi::vmbus::offer::*;
use hv_abi::vmbus::packet::*;
use hv_abi::vmbus::ring::*;
use hv_abi::vmbus::version::*;

use super::{Table, codes, constants, hyperv, structures};

/// Headers that `linux/hyperv.h` includes; what it uses of them follows in [`STAND_IN`].
const INCLUDED: [&str; 9] = [
    "linux/mm.h",
    "linux/scatterlist.h",
    "linux/list.h",
    "linux/timer.h",
    "linux/completion.h",
    "linux/device.h",
    "linux/mod_devicetable.h",
    "linux/interrupt.h",
    "linux/reciprocal_div.h",
];

/// Types the driver's own structures are made of, in any layout, and the GUIDs' in the true one.
const STAND_IN: &str = "#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
typedef struct { u8 b[16]; } guid_t;
#define GUID_INIT(a, b, c, d...) { { (a) & 0xff, (a) >> 8 & 0xff, (a) >> 16 & 0xff, \\
    (a) >> 24 & 0xff, (b) & 0xff, (b) >> 8 & 0xff, (c) & 0xff, (c) >> 8 & 0xff, d } }
typedef int spinlock_t; typedef uint64_t dma_addr_t, phys_addr_t;
struct list_head { int i; }; struct completion { int i; }; struct mutex { int i; };
struct device { int i; }; struct device_driver { int i; }; struct device_dma_parameters { int i; };
struct tasklet_struct { int i; }; struct rcu_head { int i; }; struct kobject { int i; };
struct work_struct { int i; }; struct kset; struct dentry; struct page; struct resource;
struct reciprocal_value { int i; }; typedef uint64_t resource_size_t; struct hv_vmbus_device_id;
struct kvec; struct bus_type; typedef int pm_message_t;
#define U64_MAX (~0ull)
#define U32_MAX (~0u)
#define __must_check
#define __always_inline inline
#define container_of(p, t, m) ((t *)0)
#define READ_ONCE(x) (x)
#define PAGE_ALIGN(x) (x)
";

/// What the C program includes.
pub const PRELUDE: &str = "#include <linux/types.h>\n#include <linux/hyperv.h>\n";

/// The include path, as [`hyperv::include`] makes it, with more stand-ins.
pub fn include(dir: &Path, headers: &Path) -> Vec<PathBuf> {
    let path = hyperv::include(dir, headers);
    std::fs::write(dir.join("linux/vmbus_stand_in.h"), STAND_IN).expect("a stand-in is written");
    for name in INCLUDED {
        std::fs::write(dir.join(name), "#include <linux/vmbus_stand_in.h>\n")
            .expect("a stand-in is written");
    }
    path
}

/// What the header and `hv-abi` both have.
pub fn table() -> Table {
    let mut t = Table::default();
    messages(&mut t);
    offers(&mut t);
    gpadls(&mut t);
    rings(&mut t);
    t
}

fn messages(t: &mut Table) {
    structures! { t;
        MessageHeader = "struct vmbus_channel_message_header" { message_type = "msgtype", padding }
        OpenChannel = "struct vmbus_channel_open_channel" {
            header, channel_id = "child_relid", open_id = "openid",
            ring_gpadl = "ringbuffer_gpadlhandle", target_vp,
            downstream_page_offset = "downstream_ringbuffer_pageoffset", user_data = "userdata",
        }
        OpenResult = "struct vmbus_channel_open_result" {
            header, channel_id = "child_relid", open_id = "openid", status,
        }
        CloseChannel = "struct vmbus_channel_close_channel" { header, channel_id = "child_relid" }
        RelidReleased = "struct vmbus_channel_relid_released" {
            header, channel_id = "child_relid",
        }
        ModifyChannel = "struct vmbus_channel_modifychannel" {
            header, channel_id = "child_relid", target_vp,
        }
        ModifyChannelResponse = "struct vmbus_channel_modifychannel_response" {
            header, channel_id = "child_relid", status,
        }
        TlConnectRequest = "struct vmbus_channel_tl_connect_request" {
            header, endpoint_id = "guest_endpoint_id", service_id = "host_service_id",
        }
        InitiateContact = "struct vmbus_channel_initiate_contact" {
            header, version = "vmbus_version_requested", target_vp = "target_vcpu",
            interrupt_page_or_target_info = "interrupt_page",
            parent_to_child_monitor_page = "monitor_page1",
            child_to_parent_monitor_page = "monitor_page2",
        }
        VersionResponse = "struct vmbus_channel_version_response" {
            header, version_supported, connection_state, padding,
            connection_id_or_version = "msg_conn_id",
        }
    }
    codes! { t; MessageType, "CHANNELMSG_", to_uppercase {
        INVALID, OFFER_CHANNEL = "CHANNELMSG_OFFERCHANNEL",
        RESCIND_CHANNEL_OFFER = "CHANNELMSG_RESCIND_CHANNELOFFER",
        REQUEST_OFFERS = "CHANNELMSG_REQUESTOFFERS",
        ALL_OFFERS_DELIVERED = "CHANNELMSG_ALLOFFERS_DELIVERED",
        OPEN_CHANNEL = "CHANNELMSG_OPENCHANNEL",
        OPEN_CHANNEL_RESULT = "CHANNELMSG_OPENCHANNEL_RESULT",
        CLOSE_CHANNEL = "CHANNELMSG_CLOSECHANNEL", GPADL_HEADER, GPADL_BODY, GPADL_CREATED,
        GPADL_TEARDOWN, GPADL_TORNDOWN, RELID_RELEASED, INITIATE_CONTACT, VERSION_RESPONSE, UNLOAD,
        UNLOAD_RESPONSE, OPEN_RESERVED_CHANNEL = "CHANNELMSG_18",
        CLOSE_RESERVED_CHANNEL = "CHANNELMSG_19", CLOSE_RESERVED_RESPONSE = "CHANNELMSG_20",
        TL_CONNECT_REQUEST, MODIFY_CHANNEL = "CHANNELMSG_MODIFYCHANNEL", TL_CONNECT_RESULT,
        MODIFY_CHANNEL_RESPONSE = "CHANNELMSG_MODIFYCHANNEL_RESPONSE",
    } }
    codes! { t; Version, "VERSION_", to_uppercase {
        V0_13 = "VERSION_WS2008", V1_1 = "VERSION_WIN7", V2_4 = "VERSION_WIN8",
        V3_0 = "VERSION_WIN8_1", V4_0 = "VERSION_WIN10", V4_1 = "VERSION_WIN10_V4_1",
        V5_0 = "VERSION_WIN10_V5", V5_1 = "VERSION_WIN10_V5_1", V5_2 = "VERSION_WIN10_V5_2",
        V5_3 = "VERSION_WIN10_V5_3",
    } }
    t.add(
        "target info's SINT",
        "((struct vmbus_channel_initiate_contact){ .msg_sint = 2 }).interrupt_page",
        TargetInfo::new(2, 0, FeatureFlags::empty()).0,
    );
}

/// A GUID as two numbers.
fn guid(t: &mut Table, name: &str, c: &str, guid: Guid) {
    let [low, high]: [u64; 2] = halves(guid);
    for (half, offset, value) in [("low", 0, low), ("high", 8, high)] {
        let c = format!(
            "({{ struct {{ guid_t guid; }} g = {{ {c} }}; u64 v; \
             __builtin_memcpy(&v, g.guid.b + {offset}, 8); v; }})"
        );
        t.add(format!("{name}, {half}"), c, value);
    }
}

fn halves(guid: Guid) -> [u64; 2] {
    [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|nr| guid.0[at + nr])))
}

fn offers(t: &mut Table) {
    structures! { t;
        OfferChannel = "struct vmbus_channel_offer_channel" {
            header, interface_type = "offer.if_type", interface_instance = "offer.if_instance",
            flags = "offer.chn_flags", mmio_megabytes = "offer.mmio_megabytes",
            user_defined = "offer.u", sub_channel_index = "offer.sub_channel_index",
            mmio_megabytes_optional = "offer.reserved3", channel_id = "child_relid",
            monitor_id = "monitorid", connection_id,
        }
        RescindChannelOffer = "struct vmbus_channel_rescind_offer" {
            header, channel_id = "child_relid",
        }
    }
    // Bit-fields: what a set bit makes of the structure's end.
    for (field, offset) in [
        ("monitor_allocated", core::mem::offset_of!(OfferChannel, monitor_allocated)),
        ("is_dedicated_interrupt", core::mem::offset_of!(OfferChannel, is_dedicated_interrupt)),
    ] {
        let c =
            format!("((u8 *)&(struct vmbus_channel_offer_channel){{ .{field} = 1 }})[{offset}]");
        t.add(format!("bit of OfferChannel.{field}"), c, 1);
    }
    for (flag, c) in [
        (OfferFlags::ENUMERATE_DEVICE_INTERFACE, "VMBUS_CHANNEL_ENUMERATE_DEVICE_INTERFACE"),
        (OfferFlags::NAMED_PIPE_MODE, "VMBUS_CHANNEL_NAMED_PIPE_MODE"),
        (OfferFlags::LOOPBACK_OFFER, "VMBUS_CHANNEL_LOOPBACK_OFFER"),
        (OfferFlags::PARENT_OFFER, "VMBUS_CHANNEL_PARENT_OFFER"),
        (
            OfferFlags::REQUEST_MONITORED_NOTIFICATION,
            "VMBUS_CHANNEL_REQUEST_MONITORED_NOTIFICATION",
        ),
        (OfferFlags::TLNPI_PROVIDER_OFFER, "VMBUS_CHANNEL_TLNPI_PROVIDER_OFFER"),
    ] {
        t.add(format!("{flag:?}"), c, u64::from(flag.bits()));
    }
    constants! { t; UserDefined::BYTES = "MAX_USER_DEFINED_BYTES" }
    codes! { t; PipeMode, "VMBUS_PIPE_TYPE_", to_uppercase { BYTE, MESSAGE } }
    for (name, c, value) in [
        ("NETWORK", "HV_NIC_GUID", interface::NETWORK),
        ("IDE", "HV_IDE_GUID", interface::IDE),
        ("SCSI", "HV_SCSI_GUID", interface::SCSI),
        ("FIBRE_CHANNEL", "HV_SYNTHFC_GUID", interface::FIBRE_CHANNEL),
        ("SHUTDOWN", "HV_SHUTDOWN_GUID", interface::SHUTDOWN),
        ("TIMESYNC", "HV_TS_GUID", interface::TIMESYNC),
        ("HEARTBEAT", "HV_HEART_BEAT_GUID", interface::HEARTBEAT),
        ("KVP", "HV_KVP_GUID", interface::KVP),
        ("VSS", "HV_VSS_GUID", interface::VSS),
        ("FILE_COPY", "HV_FCOPY_GUID", interface::FILE_COPY),
        ("DYNAMIC_MEMORY", "HV_DM_GUID", interface::DYNAMIC_MEMORY),
        ("MOUSE", "HV_MOUSE_GUID", interface::MOUSE),
        ("KEYBOARD", "HV_KBD_GUID", interface::KEYBOARD),
        ("VIDEO", "HV_SYNTHVID_GUID", interface::VIDEO),
        ("NETWORK_DIRECT", "HV_ND_GUID", interface::NETWORK_DIRECT),
        ("PCI", "HV_PCIE_GUID", interface::PCI),
    ] {
        guid(t, name, c, value);
    }
}

fn gpadls(t: &mut Table) {
    structures! { t;
        GpaRange = "struct gpa_range" { byte_count, byte_offset }
        GpadlHeader = "struct vmbus_channel_gpadl_header" {
            header, channel_id = "child_relid", gpadl_id = "gpadl", range_bytes = "range_buflen",
            range_count = "rangecount",
        }
        GpadlBody = "struct vmbus_channel_gpadl_body" {
            header, message_number = "msgnumber", gpadl_id = "gpadl",
        }
        GpadlCreated = "struct vmbus_channel_gpadl_created" {
            header, channel_id = "child_relid", gpadl_id = "gpadl", status = "creation_status",
        }
        GpadlTeardown = "struct vmbus_channel_gpadl_teardown" {
            header, channel_id = "child_relid", gpadl_id = "gpadl",
        }
        GpadlTorndown = "struct vmbus_channel_gpadl_torndown" { header, gpadl_id = "gpadl" }
    }
    let list = "__builtin_offsetof(struct vmbus_channel_gpadl_header, range)";
    t.add("begin of a GPADL's list", list, size_of::<GpadlHeader>() as u64);
    let list = "__builtin_offsetof(struct vmbus_channel_gpadl_body, pfn)";
    t.add("begin of its continuation", list, size_of::<GpadlBody>() as u64);
}

fn rings(t: &mut Table) {
    structures! { t;
        RingControl = "struct hv_ring_buffer" {
            write_index, read_index, interrupt_mask, pending_send_size = "pending_send_sz",
            reserved = "reserved1", feature_bits, reserved2,
        }
        PacketDescriptor = "struct vmpacket_descriptor" {
            packet_type = "type", data_offset8 = "offset8", length8 = "len8", flags,
            transaction_id = "trans_id",
        }
        TransferPageRange = "struct vmtransfer_page_range" { byte_count, byte_offset }
        PipeHeader = "struct vmbuspipe_hdr" { packet_type = "flags", data_bytes = "msgsize" }
    }
    // What follows the descriptor: ours begins there.
    let descriptor = size_of::<PacketDescriptor>();
    for (name, c, offset) in [
        (
            "transfer_page_set_id",
            "struct vmtransfer_page_packet_header, xfer_pageset_id",
            core::mem::offset_of!(TransferPageHeader, transfer_page_set_id),
        ),
        (
            "sender_owns_set",
            "struct vmtransfer_page_packet_header, sender_owns_set",
            core::mem::offset_of!(TransferPageHeader, sender_owns_set),
        ),
        (
            "range_count",
            "struct vmtransfer_page_packet_header, range_cnt",
            core::mem::offset_of!(TransferPageHeader, range_count),
        ),
        (
            "transfer page ranges",
            "struct vmtransfer_page_packet_header, ranges",
            size_of::<TransferPageHeader>(),
        ),
        (
            "GPA-direct range count",
            "struct vmdata_gpa_direct, range_cnt",
            core::mem::offset_of!(GpaDirectHeader, range_count),
        ),
        ("GPA-direct ranges", "struct vmdata_gpa_direct, range", size_of::<GpaDirectHeader>()),
    ] {
        t.add(name, format!("__builtin_offsetof({c})"), (descriptor + offset) as u64);
    }
    codes! { t; PacketType, "VM_PKT_", to_uppercase {
        INVALID, SYNCH, ADD_TRANSFER_PAGE_SET = "VM_PKT_ADD_XFER_PAGESET",
        REMOVE_TRANSFER_PAGE_SET = "VM_PKT_RM_XFER_PAGESET", ESTABLISH_GPADL, TEARDOWN_GPADL,
        IN_BAND = "VM_PKT_DATA_INBAND", TRANSFER_PAGES = "VM_PKT_DATA_USING_XFER_PAGES",
        GPADL = "VM_PKT_DATA_USING_GPADL", GPA_DIRECT = "VM_PKT_DATA_USING_GPA_DIRECT",
        CANCEL_REQUEST, COMPLETION = "VM_PKT_COMP",
        ADDITIONAL_PACKETS = "VM_PKT_DATA_USING_ADDITIONAL_PKT", ADDITIONAL_DATA,
    } }
    constants! { t;
        PacketDescriptor::COMPLETION_REQUESTED = "VMBUS_DATA_PACKET_FLAG_COMPLETION_REQUESTED",
        MAX_PIPE_DATA_BYTES = "MAX_PIPE_DATA_PAYLOAD",
        RingControl::FEATURE_PENDING_SEND_SIZE =
            "((struct hv_ring_buffer){ .feature_bits.feat_pending_send_sz = 1 }).feature_bits.value",
    }
}
