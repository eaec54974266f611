//! The block protocol, as 64-bit and as 32-bit guests lay it out.

use xen_abi::io::blkif::*;
use xen_abi::io::ring::*;

use super::{Table, codes, constants, structures};

/// Adds all of it.
pub fn add(t: &mut Table) {
    structures! { t;
        BlkifSegment = "struct blkif_request_segment" { gref, first_sect, last_sect }
        BlkifRequest = "blkif_request_t" {
            operation, nr_segments, handle, id, sector_number, seg,
        }
        BlkifRequestDiscard = "blkif_request_discard_t" {
            operation, flag, handle, id, sector_number, nr_sectors,
        }
        BlkifRequestIndirect = "blkif_request_indirect_t" {
            operation, indirect_op, nr_segments, id, sector_number, handle, indirect_grefs,
        }
        BlkifResponse = "blkif_response_t" { id, operation, status }
        BlkifRequest32 = "blkif32_request_t" {
            operation, nr_segments, handle, id, sector_number, seg,
        }
        BlkifRequestDiscard32 = "blkif32_request_discard_t" {
            operation, flag, handle, id, sector_number, nr_sectors,
        }
        BlkifRequestIndirect32 = "blkif32_request_indirect_t" {
            operation, indirect_op, nr_segments, id, sector_number, handle, indirect_grefs,
        }
        BlkifResponse32 = "blkif32_response_t" { id, operation, status }
    }
    codes! { t; BlkifOp, "BLKIF_OP_", to_uppercase {
        READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE, RESERVED_1, DISCARD, INDIRECT,
    } }
    codes! { t; BlkifStatus, "BLKIF_RSP_", to_uppercase { OKAY, ERROR, EOPNOTSUPP } }
    constants! { t;
        MAX_SEGMENTS_PER_REQUEST = "BLKIF_MAX_SEGMENTS_PER_REQUEST",
        MAX_INDIRECT_PAGES = "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST",
        DISCARD_SECURE = "BLKIF_DISCARD_SECURE",
        VDISK_CDROM = "VDISK_CDROM",
        VDISK_REMOVABLE = "VDISK_REMOVABLE",
        VDISK_READONLY = "VDISK_READONLY",
        REQ_PROD = "__builtin_offsetof(blkif_sring_t, req_prod) / 4",
        REQ_EVENT = "__builtin_offsetof(blkif_sring_t, req_event) / 4",
        RSP_PROD = "__builtin_offsetof(blkif_sring_t, rsp_prod) / 4",
        RSP_EVENT = "__builtin_offsetof(blkif_sring_t, rsp_event) / 4",
        ENTRIES = "__builtin_offsetof(blkif_sring_t, ring) / 4",
    }
    for (name, value) in [("X86_32", PROTOCOL_X86_32), ("X86_64", PROTOCOL_X86_64)] {
        let same = format!("__builtin_strcmp(XEN_IO_PROTO_ABI_{name}, \"{value}\") == 0");
        t.add(format!("PROTOCOL_{name}"), same, 1);
    }
    for (ring, entry, pages) in [("blkif", 112, 1), ("blkif32", 108, 1), ("blkif", 112, 16)] {
        let size = format!("__RING_SIZE((struct {ring}_sring *)0, {pages} * 4096)");
        let value = ring_size(pages * 4096, entry);
        t.add(format!("ring_size of {pages} pages for {ring}"), size, value.into());
    }
}
