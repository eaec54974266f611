//! Grant tables, both versions.

use xen_abi::grant_table::*;

use super::{Table, codes, constants, structures};

/// Adds all of it.
pub fn add(t: &mut Table) {
    structures! { t;
        GrantEntryV1 = "grant_entry_v1_t" { flags, domid, frame }
        GrantEntryV2 = "grant_entry_v2_t" {
            flags = "hdr.flags", domid = "hdr.domid", page_off = "sub_page.page_off",
            length = "sub_page.length", frame = "full_page.frame",
        }
        GnttabMapGrantRef = "gnttab_map_grant_ref_t" {
            host_addr, flags, ref_ = "ref", dom, status, handle, dev_bus_addr,
        }
        GnttabUnmapGrantRef = "gnttab_unmap_grant_ref_t" { host_addr, dev_bus_addr, handle, status }
        GnttabUnmapGrantRef = "gnttab_unmap_and_replace_t" {
            host_addr, dev_bus_addr = "new_addr", handle, status,
        }
        GnttabSetupTable = "gnttab_setup_table_t" { dom, nr_frames, status, frame_list }
        GnttabTransfer = "gnttab_transfer_t" { mfn, domid, ref_ = "ref", status }
        GnttabCopyPtr = "struct gnttab_copy_ptr" { u, domid, offset }
        GnttabCopy = "gnttab_copy_t" { source, dest, len, flags, status }
        GnttabQuerySize = "gnttab_query_size_t" { dom, nr_frames, max_nr_frames, status }
        GnttabSetVersion = "gnttab_set_version_t" { version }
        GnttabGetStatusFrames = "gnttab_get_status_frames_t" { nr_frames, dom, status, frame_list }
        GnttabGetVersion = "gnttab_get_version_t" { dom, version }
        GnttabSwapGrantRef = "gnttab_swap_grant_ref_t" { ref_a, ref_b, status }
        GnttabCacheFlush = "gnttab_cache_flush_t" { a, offset, length, op }
    }
    codes! { t; GnttabOp, "GNTTABOP_", to_lowercase {
        MAP_GRANT_REF, UNMAP_GRANT_REF, SETUP_TABLE, DUMP_TABLE, TRANSFER, COPY, QUERY_SIZE,
        UNMAP_AND_REPLACE, SET_VERSION, GET_STATUS_FRAMES, GET_VERSION, SWAP_GRANT_REF,
        CACHE_FLUSH,
    } }
    codes! { t; GrantStatus, "GNTST_", to_lowercase {
        OKAY, GENERAL_ERROR, BAD_DOMAIN, BAD_GNTREF, BAD_HANDLE, BAD_VIRT_ADDR, BAD_DEV_ADDR,
        NO_DEVICE_SPACE, PERMISSION_DENIED, BAD_PAGE, BAD_COPY_ARG, ADDRESS_TOO_BIG, EAGAIN,
        NO_SPACE,
    } }
    constants! { t;
        NR_RESERVED_ENTRIES = "GNTTAB_NR_RESERVED_ENTRIES",
        gtf::INVALID = "GTF_invalid",
        gtf::PERMIT_ACCESS = "GTF_permit_access",
        gtf::ACCEPT_TRANSFER = "GTF_accept_transfer",
        gtf::TRANSITIVE = "GTF_transitive",
        gtf::TYPE_MASK = "GTF_type_mask",
        gtf::READONLY = "GTF_readonly",
        gtf::READING = "GTF_reading",
        gtf::WRITING = "GTF_writing",
        gtf::PWT = "GTF_PWT",
        gtf::PCD = "GTF_PCD",
        gtf::PAT = "GTF_PAT",
        gtf::SUB_PAGE = "GTF_sub_page",
        gtf::TRANSFER_COMMITTED = "GTF_transfer_committed",
        gtf::TRANSFER_COMPLETED = "GTF_transfer_completed",
        gntmap::DEVICE_MAP = "GNTMAP_device_map",
        gntmap::HOST_MAP = "GNTMAP_host_map",
        gntmap::READONLY = "GNTMAP_readonly",
        gntmap::APPLICATION_MAP = "GNTMAP_application_map",
        gntmap::CONTAINS_PTE = "GNTMAP_contains_pte",
        GNTCOPY_SOURCE_GREF = "GNTCOPY_source_gref",
        GNTCOPY_DEST_GREF = "GNTCOPY_dest_gref",
        GNTTAB_CACHE_CLEAN = "GNTTAB_CACHE_CLEAN",
        GNTTAB_CACHE_INVAL = "GNTTAB_CACHE_INVAL",
        GNTTAB_CACHE_SOURCE_GREF = "GNTTAB_CACHE_SOURCE_GREF",
        V1_ENTRIES_PER_PAGE = "4096 / sizeof(grant_entry_v1_t)",
        V2_ENTRIES_PER_PAGE = "4096 / sizeof(grant_entry_v2_t)",
        STATUS_PER_PAGE = "4096 / sizeof(grant_status_t)",
    }
    t.add("RESERVED_CONSOLE", "GNTTAB_RESERVED_CONSOLE", RESERVED_CONSOLE.0.into());
    t.add("RESERVED_XENSTORE", "GNTTAB_RESERVED_XENSTORE", RESERVED_XENSTORE.0.into());
}
