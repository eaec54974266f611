//! `xen-abi` against the headers of Debian's `libxen-dev`.

use xen_abi::arch::*;
use xen_abi::callback::*;
use xen_abi::elfnote::{NoteHeader, NoteType};
use xen_abi::errno::Errno;
use xen_abi::event_channel::*;
use xen_abi::features::*;
use xen_abi::hypercall::*;
use xen_abi::io::console::*;
use xen_abi::memory::*;
use xen_abi::mm::*;
use xen_abi::nmi::*;
use xen_abi::physdev::*;
use xen_abi::sched::*;
use xen_abi::shared_info::*;
use xen_abi::start_info::*;
use xen_abi::vcpu::*;
use xen_abi::version::*;

use super::{Table, codes, constants, structures};

/// Where `libxen-dev` puts its headers.
pub const HEADER: &str = "/usr/include/xen/xen.h";

/// What the C program includes. As the toolstack sees them the headers show most.
pub const PRELUDE: &str = "
#include <elf.h>
#include <stdint.h>
#define __XEN_TOOLS__
#include <xen/xen.h>
#include <xen/callback.h>
#include <xen/elfnote.h>
#include <xen/errno.h>
#include <xen/event_channel.h>
#include <xen/features.h>
#include <xen/grant_table.h>
#include <xen/memory.h>
#include <xen/nmi.h>
#include <xen/physdev.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>
#include <xen/io/console.h>
#include <xen/arch-x86/cpuid.h>
#include <xen/io/blkif.h>
#include <xen/io/netif.h>
#include <xen/io/protocols.h>
#include <errno.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>

/* The header once more, as a 32-bit compiler lays it out: no number is aligned to 8 bytes. */
#undef __XEN_PUBLIC_IO_BLKIF_H__
#define __i386__
#pragma pack(push, 4)
#define blkif_request_segment blkif32_request_segment
#define blkif_request blkif32_request
#define blkif_request_discard blkif32_request_discard
#define blkif_request_indirect blkif32_request_indirect
#define blkif_response blkif32_response
#define blkif_sring_entry blkif32_sring_entry
#define blkif_sring blkif32_sring
#define blkif_front_ring blkif32_front_ring
#define blkif_back_ring blkif32_back_ring
#define blkif_request_t blkif32_request_t
#define blkif_request_discard_t blkif32_request_discard_t
#define blkif_request_indirect_t blkif32_request_indirect_t
#define blkif_response_t blkif32_response_t
#define blkif_sring_t blkif32_sring_t
#define blkif_front_ring_t blkif32_front_ring_t
#define blkif_back_ring_t blkif32_back_ring_t
#include <xen/io/blkif.h>
#pragma pack(pop)
#undef __i386__
#undef blkif_request_segment
#undef blkif_request
#undef blkif_request_discard
#undef blkif_request_indirect
#undef blkif_response
#undef blkif_sring_entry
#undef blkif_sring
#undef blkif_front_ring
#undef blkif_back_ring
#undef blkif_request_t
#undef blkif_request_discard_t
#undef blkif_request_indirect_t
#undef blkif_response_t
#undef blkif_sring_t
#undef blkif_front_ring_t
#undef blkif_back_ring_t
";

/// Structures of ours that C does not have as such: pages as arrays of entries, single ids.
pub const OURS: &[&str] = &[
    "SringHeader",
    "RingPage",
    "FifoArrayPage",
    "GrantPageV1",
    "GrantPageV2",
    "GrantStatusPage",
    "BytePage",
    "MemoryDomain",
    "NetifExtraXdp",
];
/// Codes that the headers of 4.17 keep to the hypervisor, or do not have yet.
pub const HIDDEN: &[&str] = &[
    "EvtchnOp::RESET_CONT",
    "Mfn::INVALID",
    "Errno::EINTR",
    "Errno::ERESTART",
    "NoteType::PHYS32_RELOC",
    "XenMem::TRANSLATE_GPFN_LIST",
    "XsType::GET_FEATURE",
    "XsType::SET_FEATURE",
    "XsType::GET_QUOTA",
    "XsType::SET_QUOTA",
    "ExtraType::XDP",
];

/// Everything in `xen-abi`.
pub fn table() -> Table {
    let mut t = Table::default();
    core(&mut t);
    cpu(&mut t);
    memory(&mut t);
    event_channel(&mut t);
    super::grant_table::add(&mut t);
    operations(&mut t);
    physdev(&mut t);
    start(&mut t);
    super::blkif::add(&mut t);
    super::netif::add(&mut t);
    super::xenstore::add(&mut t);
    t
}

fn core(t: &mut Table) {
    structures! { t;
        VcpuTimeInfo = "vcpu_time_info_t" {
            version, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags,
        }
        ArchVcpuInfo = "arch_vcpu_info_t" { cr2 }
        VcpuInfo = "vcpu_info_t" {
            evtchn_upcall_pending, evtchn_upcall_mask, evtchn_pending_sel, arch, time,
        }
        ArchSharedInfo = "arch_shared_info_t" {
            max_pfn, pfn_to_mfn_frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation,
        }
        MulticallEntry = "multicall_entry_t" { op, result, args }
    }
    // The C structure has room for more words behind those of `arch` that we know.
    structures! { t; SharedInfo = "shared_info_t" {
        vcpu_info, evtchn_pending, evtchn_mask, wc_version, wc_sec, wc_nsec, wc_sec_hi, arch,
    } }
    codes! { t; DomId, "DOMID_", to_uppercase { SELF, IO, XEN, COW, INVALID, IDLE, FIRST_RESERVED } }
    codes! { t; HypercallNr, "__HYPERVISOR_", to_lowercase {
        set_trap_table, mmu_update, set_gdt, stack_switch, set_callbacks, fpu_taskswitch,
        sched_op_compat, platform_op, set_debugreg, get_debugreg, update_descriptor, memory_op,
        multicall, update_va_mapping, set_timer_op, event_channel_op_compat, xen_version,
        console_io, physdev_op_compat, grant_table_op, vm_assist, update_va_mapping_otherdomain,
        iret, vcpu_op, set_segment_base, mmuext_op, xsm_op, nmi_op, sched_op, callback_op,
        xenoprof_op, event_channel_op, physdev_op, hvm_op, sysctl, domctl, kexec_op, tmem_op,
        argo_op, xenpmu_op, dm_op, hypfs_op, arch_1, mca = "__HYPERVISOR_arch_0",
    } }
    constants! { t;
        LEGACY_MAX_VCPUS = "XEN_LEGACY_MAX_VCPUS",
        EVTCHN_2L_NR_CHANNELS = "EVTCHN_2L_NR_CHANNELS",
        VMASST_CMD_ENABLE = "VMASST_CMD_enable",
        VMASST_CMD_DISABLE = "VMASST_CMD_disable",
        VMASST_TYPE_4GB_SEGMENTS = "VMASST_TYPE_4gb_segments",
        VMASST_TYPE_4GB_SEGMENTS_NOTIFY = "VMASST_TYPE_4gb_segments_notify",
        VMASST_TYPE_WRITABLE_PAGETABLES = "VMASST_TYPE_writable_pagetables",
        VMASST_TYPE_PAE_EXTENDED_CR3 = "VMASST_TYPE_pae_extended_cr3",
        VMASST_TYPE_ARCHITECTURAL_IOPL = "VMASST_TYPE_architectural_iopl",
        VMASST_TYPE_RUNSTATE_UPDATE_FLAG = "VMASST_TYPE_runstate_update_flag",
        VMASST_TYPE_M2P_STRICT = "VMASST_TYPE_m2p_strict",
        CONSOLEIO_WRITE = "CONSOLEIO_write",
        CONSOLEIO_READ = "CONSOLEIO_read",
    }
    codes! { t; Errno, "XEN_", to_uppercase {
        EPERM, ENOENT, ESRCH, EIO, ENXIO, E2BIG, EBADF, EAGAIN, ENOMEM, EACCES, EFAULT,
        EBUSY, EEXIST, EXDEV, ENODEV, EISDIR, EINVAL, ENOSPC, EROFS, EDOM, ERANGE, EDEADLK,
        ENOSYS, ENOTEMPTY, ENODATA, ETIME, EBADMSG, EOVERFLOW, EILSEQ, EOPNOTSUPP,
        EADDRINUSE, ENOBUFS, ENOTCONN, ETIMEDOUT,
    } }
}

fn cpu(t: &mut Table) {
    structures! { t;
        TrapInfo = "trap_info_t" { vector, flags, cs, address }
        IretContext = "struct iret_context" { rax, r11, rcx, flags, rip, cs, rflags, rsp, ss }
        CpuUserRegs = "cpu_user_regs_t" {
            r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, error_code,
            entry_vector, rip, cs, saved_upcall_mask, rflags, rsp, ss, es, ds, fs, gs,
        }
        VcpuGuestContext = "vcpu_guest_context_t" {
            fpu_ctxt, flags, user_regs, trap_ctxt, ldt_base, ldt_ents, gdt_frames, gdt_ents,
            kernel_ss, kernel_sp, ctrlreg, debugreg, event_callback_eip, failsafe_callback_eip,
            syscall_callback_eip, vm_assist, fs_base, gs_base_kernel, gs_base_user,
        }
        CallbackRegister = "callback_register_t" { type_ = "type", flags, address }
        CallbackUnregister = "callback_unregister_t" { type_ = "type" }
        XennmiCallback = "xennmi_callback_t" { handler_address }
    }
    codes! { t; CallbackType, "CALLBACKTYPE_", to_lowercase {
        EVENT, FAILSAFE, SYSCALL, SYSENTER_DEPRECATED, NMI, SYSENTER, SYSCALL32,
    } }
    constants! { t;
        flat::RING3_CS32 = "FLAT_RING3_CS32",
        flat::RING3_DS32 = "FLAT_RING3_DS32",
        flat::RING3_CS64 = "FLAT_RING3_CS64",
        FIRST_RESERVED_GDT_ENTRY = "FIRST_RESERVED_GDT_ENTRY",
        VGCF_IN_SYSCALL = "VGCF_in_syscall",
        VGCF_I387_VALID = "VGCF_i387_valid",
        VGCF_IN_KERNEL = "VGCF_in_kernel",
        VGCF_FAILSAFE_DISABLES_EVENTS = "VGCF_failsafe_disables_events",
        VGCF_SYSCALL_DISABLES_EVENTS = "VGCF_syscall_disables_events",
        VGCF_ONLINE = "VGCF_online",
        SEGBASE_FS = "SEGBASE_FS",
        SEGBASE_GS_USER = "SEGBASE_GS_USER",
        SEGBASE_GS_KERNEL = "SEGBASE_GS_KERNEL",
        SEGBASE_GS_USER_SEL = "SEGBASE_GS_USER_SEL",
        CALLBACKOP_REGISTER = "CALLBACKOP_register",
        CALLBACKOP_UNREGISTER = "CALLBACKOP_unregister",
        CALLBACKF_MASK_EVENTS = "CALLBACKF_mask_events",
        XENNMI_REGISTER_CALLBACK = "XENNMI_register_callback",
        XENNMI_UNREGISTER_CALLBACK = "XENNMI_unregister_callback",
        XEN_NMIREASON_IO_ERROR = "XEN_NMIREASON_io_error",
        XEN_NMIREASON_PCI_SERR = "XEN_NMIREASON_pci_serr",
        XEN_NMIREASON_UNKNOWN = "XEN_NMIREASON_unknown",
    }
    // A trap's flags, through the macros that read them.
    t.add("ti::DPL_MASK", "TI_GET_DPL(&(trap_info_t){ .flags = 0xff })", ti::DPL_MASK.into());
    t.add("ti::IF", "TI_GET_IF(&(trap_info_t){ .flags = 0xff })", ti::IF.into());
    use xen_abi::cpuid::*;
    constants! { t;
        XEN_CPUID_FIRST_LEAF = "XEN_CPUID_FIRST_LEAF",
        XEN_CPUID_SIGNATURE_EBX = "XEN_CPUID_SIGNATURE_EBX",
        XEN_CPUID_SIGNATURE_ECX = "XEN_CPUID_SIGNATURE_ECX",
        XEN_CPUID_SIGNATURE_EDX = "XEN_CPUID_SIGNATURE_EDX",
        XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = "XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD",
        XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK = "XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK",
    }
}

fn memory(t: &mut Table) {
    structures! { t;
        MmuUpdate = "mmu_update_t" { ptr, val }
        MmuextOp = "mmuext_op_t" { cmd, arg1 = "arg1", arg2 = "arg2" }
        MemoryReservation = "xen_memory_reservation_t" {
            extent_start, nr_extents, extent_order, mem_flags, domid,
        }
        MemoryExchange = "xen_memory_exchange_t" { in_ = "in", out, nr_exchanged }
        MachphysMfnList = "xen_machphys_mfn_list_t" { max_extents, extent_start, nr_extents }
        MachphysMapping = "xen_machphys_mapping_t" { v_start, v_end, max_mfn }
        AddToPhysmap = "xen_add_to_physmap_t" { domid, size, space, idx, gpfn }
        RemoveFromPhysmap = "xen_remove_from_physmap_t" { domid, gpfn }
        MemoryMap = "xen_memory_map_t" { nr_entries, buffer }
    }
    codes! { t; XenMem, "XENMEM_", to_lowercase {
        INCREASE_RESERVATION, DECREASE_RESERVATION, MAXIMUM_RAM_PAGE, CURRENT_RESERVATION,
        MAXIMUM_RESERVATION, MACHPHYS_MFN_LIST, POPULATE_PHYSMAP, ADD_TO_PHYSMAP, MEMORY_MAP,
        MACHINE_MEMORY_MAP, EXCHANGE, MACHPHYS_MAPPING, SET_MEMORY_MAP, MAXIMUM_GPFN,
        REMOVE_FROM_PHYSMAP, GET_SHARING_FREED_PAGES, GET_SHARING_SHARED_PAGES,
        MACHPHYS_COMPAT_MFN_LIST, SET_POD_TARGET, GET_POD_TARGET, PAGING_OP, ACCESS_OP,
        SHARING_OP, ADD_TO_PHYSMAP_BATCH, CLAIM_PAGES, GET_VNUMAINFO, RESERVED_DEVICE_MEMORY_MAP,
        ACQUIRE_RESOURCE,
    } }
    codes! { t; MmuextCmd, "MMUEXT_", to_uppercase {
        PIN_L1_TABLE, PIN_L2_TABLE, PIN_L3_TABLE, PIN_L4_TABLE, UNPIN_TABLE, NEW_BASEPTR,
        TLB_FLUSH_LOCAL, INVLPG_LOCAL, TLB_FLUSH_MULTI, INVLPG_MULTI, TLB_FLUSH_ALL, INVLPG_ALL,
        FLUSH_CACHE, SET_LDT, NEW_USER_BASEPTR, CLEAR_PAGE, COPY_PAGE, FLUSH_CACHE_GLOBAL,
        MARK_SUPER, UNMARK_SUPER,
    } }
    constants! { t;
        MMU_NORMAL_PT_UPDATE = "MMU_NORMAL_PT_UPDATE",
        MMU_MACHPHYS_UPDATE = "MMU_MACHPHYS_UPDATE",
        MMU_PT_UPDATE_PRESERVE_AD = "MMU_PT_UPDATE_PRESERVE_AD",
        MMU_PT_UPDATE_NO_TRANSLATE = "MMU_PT_UPDATE_NO_TRANSLATE",
        UVMF_NONE = "UVMF_NONE",
        UVMF_TLB_FLUSH = "UVMF_TLB_FLUSH",
        UVMF_INVLPG = "UVMF_INVLPG",
        UVMF_FLUSHTYPE_MASK = "UVMF_FLUSHTYPE_MASK",
        UVMF_ALL = "UVMF_ALL",
        HYPERVISOR_VIRT_START = "HYPERVISOR_VIRT_START",
        HYPERVISOR_VIRT_END = "HYPERVISOR_VIRT_END",
        XENMEMF_POPULATE_ON_DEMAND = "XENMEMF_populate_on_demand",
    }
}

fn event_channel(t: &mut Table) {
    structures! { t;
        EvtchnAllocUnbound = "evtchn_alloc_unbound_t" { dom, remote_dom, port }
        EvtchnBindInterdomain = "evtchn_bind_interdomain_t" { remote_dom, remote_port, local_port }
        EvtchnBindVirq = "evtchn_bind_virq_t" { virq, vcpu, port }
        EvtchnBindPirq = "evtchn_bind_pirq_t" { pirq, flags, port }
        EvtchnBindIpi = "evtchn_bind_ipi_t" { vcpu, port }
        EvtchnStatus = "evtchn_status_t" {
            dom, port, status, vcpu, u0 = "u.virq", u1 = "u.interdomain.port",
        }
        EvtchnBindVcpu = "evtchn_bind_vcpu_t" { port, vcpu }
        EvtchnReset = "evtchn_reset_t" { dom }
        EvtchnInitControl = "evtchn_init_control_t" { control_gfn, offset, vcpu, link_bits }
        EvtchnExpandArray = "evtchn_expand_array_t" { array_gfn }
        EvtchnSetPriority = "evtchn_set_priority_t" { port, priority }
        FifoControlBlock = "evtchn_fifo_control_block_t" { ready, head }
    }
    codes! { t; EvtchnOp, "EVTCHNOP_", to_lowercase {
        BIND_INTERDOMAIN, BIND_VIRQ, BIND_PIRQ, CLOSE, SEND, STATUS, ALLOC_UNBOUND, BIND_IPI,
        BIND_VCPU, UNMASK, RESET, INIT_CONTROL, EXPAND_ARRAY, SET_PRIORITY,
    } }
    codes! { t; Virq, "VIRQ_", to_uppercase {
        TIMER, DEBUG, CONSOLE, DOM_EXC, TBUF, DEBUGGER, XENOPROF, CON_RING, PCPU_STATE, MEM_EVENT,
        ARGO, ENOMEM, XENPMU, ARCH_0, ARCH_7,
    } }
    codes! { t; EvtchnStat, "EVTCHNSTAT_", to_lowercase {
        CLOSED, UNBOUND, INTERDOMAIN, PIRQ, VIRQ, IPI,
    } }
    constants! { t;
        NR_VIRQS = "NR_VIRQS",
        EVTCHN_OP_U_OFFSET = "__builtin_offsetof(evtchn_op_t, u)",
        EVTCHN_OP_SIZE = "sizeof(evtchn_op_t)",
        fifo::PRIORITY_MAX = "EVTCHN_FIFO_PRIORITY_MAX",
        fifo::PRIORITY_DEFAULT = "EVTCHN_FIFO_PRIORITY_DEFAULT",
        fifo::PRIORITY_MIN = "EVTCHN_FIFO_PRIORITY_MIN",
        fifo::MAX_QUEUES = "EVTCHN_FIFO_MAX_QUEUES",
        fifo::PENDING_BIT = "EVTCHN_FIFO_PENDING",
        fifo::MASKED_BIT = "EVTCHN_FIFO_MASKED",
        fifo::LINKED_BIT = "EVTCHN_FIFO_LINKED",
        fifo::BUSY_BIT = "EVTCHN_FIFO_BUSY",
        fifo::LINK_BITS = "EVTCHN_FIFO_LINK_BITS",
        fifo::LINK_MASK = "EVTCHN_FIFO_LINK_MASK",
        fifo::NR_CHANNELS = "EVTCHN_FIFO_NR_CHANNELS",
        fifo::WORDS_PER_PAGE = "4096 / sizeof(event_word_t)",
    }
}

fn operations(t: &mut Table) {
    structures! { t;
        SchedShutdown = "sched_shutdown_t" { reason }
        SchedPoll = "sched_poll_t" { ports, nr_ports, timeout }
        SchedRemoteShutdown = "sched_remote_shutdown_t" { domain_id, reason }
        SchedWatchdog = "sched_watchdog_t" { id, timeout }
        SchedPinOverride = "sched_pin_override_t" { pcpu }
        VcpuRunstateInfo = "vcpu_runstate_info_t" { state, state_entry_time, time }
        VcpuRegisterMemoryArea = "vcpu_register_runstate_memory_area_t" { addr }
        VcpuRegisterMemoryArea = "vcpu_register_time_memory_area_t" { addr }
        VcpuSetPeriodicTimer = "vcpu_set_periodic_timer_t" { period_ns }
        VcpuSetSingleshotTimer = "vcpu_set_singleshot_timer_t" { timeout_abs_ns, flags }
        VcpuRegisterVcpuInfo = "vcpu_register_vcpu_info_t" { mfn, offset, rsvd }
        VcpuGetPhysid = "vcpu_get_physid_t" { phys_id }
        XenCompileInfo = "xen_compile_info_t" { compiler, compile_by, compile_domain, compile_date }
        XenPlatformParameters = "xen_platform_parameters_t" { virt_start }
        XenFeatureInfo = "xen_feature_info_t" { submap_idx, submap }
        XenconsInterface = "struct xencons_interface" {
            in_ = "in", out, in_cons, in_prod, out_cons, out_prod,
        }
    }
    codes! { t; SchedOp, "SCHEDOP_", to_lowercase {
        YIELD, BLOCK, SHUTDOWN, POLL, REMOTE_SHUTDOWN, SHUTDOWN_CODE, WATCHDOG, PIN_OVERRIDE,
    } }
    codes! { t; ShutdownReason, "SHUTDOWN_", to_lowercase {
        POWEROFF, REBOOT, SUSPEND, CRASH, WATCHDOG, SOFT_RESET, MAX = "SHUTDOWN_MAX",
    } }
    codes! { t; VcpuOp, "VCPUOP_", to_lowercase {
        INITIALISE, UP, DOWN, IS_UP, GET_RUNSTATE_INFO, REGISTER_RUNSTATE_MEMORY_AREA,
        SET_PERIODIC_TIMER, STOP_PERIODIC_TIMER, SET_SINGLESHOT_TIMER, STOP_SINGLESHOT_TIMER,
        REGISTER_VCPU_INFO, SEND_NMI, GET_PHYSID, REGISTER_VCPU_TIME_MEMORY_AREA,
    } }
    codes! { t; Runstate, "RUNSTATE_", to_lowercase { RUNNING, RUNNABLE, BLOCKED, OFFLINE } }
    codes! { t; XenVer, "XENVER_", to_lowercase {
        VERSION, EXTRAVERSION, COMPILE_INFO, CAPABILITIES, CHANGESET, PLATFORM_PARAMETERS,
        GET_FEATURES, PAGESIZE, GUEST_HANDLE, COMMANDLINE, BUILD_ID,
    } }
    constants! { t;
        XEN_RUNSTATE_UPDATE = "XEN_RUNSTATE_UPDATE",
        VCPU_SSHOTTMR_FUTURE = "VCPU_SSHOTTMR_future",
        EXTRAVERSION_LEN = "XEN_EXTRAVERSION_LEN",
        CAPABILITIES_INFO_LEN = "XEN_CAPABILITIES_INFO_LEN",
        CHANGESET_INFO_LEN = "XEN_CHANGESET_INFO_LEN",
        COMMANDLINE_LEN = "sizeof(xen_commandline_t)",
        XENFEAT_NR_SUBMAPS = "XENFEAT_NR_SUBMAPS",
        xenfeat::WRITABLE_PAGE_TABLES = "XENFEAT_writable_page_tables",
        xenfeat::WRITABLE_DESCRIPTOR_TABLES = "XENFEAT_writable_descriptor_tables",
        xenfeat::AUTO_TRANSLATED_PHYSMAP = "XENFEAT_auto_translated_physmap",
        xenfeat::SUPERVISOR_MODE_KERNEL = "XENFEAT_supervisor_mode_kernel",
        xenfeat::PAE_PGDIR_ABOVE_4GB = "XENFEAT_pae_pgdir_above_4gb",
        xenfeat::MMU_PT_UPDATE_PRESERVE_AD = "XENFEAT_mmu_pt_update_preserve_ad",
        xenfeat::HIGHMEM_ASSIST = "XENFEAT_highmem_assist",
        xenfeat::GNTTAB_MAP_AVAIL_BITS = "XENFEAT_gnttab_map_avail_bits",
        xenfeat::HVM_CALLBACK_VECTOR = "XENFEAT_hvm_callback_vector",
        xenfeat::HVM_SAFE_PVCLOCK = "XENFEAT_hvm_safe_pvclock",
        xenfeat::HVM_PIRQS = "XENFEAT_hvm_pirqs",
        xenfeat::DOM0 = "XENFEAT_dom0",
        xenfeat::MEMORY_OP_VNODE_SUPPORTED = "XENFEAT_memory_op_vnode_supported",
        xenfeat::ARM_SMCCC_SUPPORTED = "XENFEAT_ARM_SMCCC_supported",
        xenfeat::LINUX_RSDP_UNRESTRICTED = "XENFEAT_linux_rsdp_unrestricted",
        xenfeat::NOT_DIRECT_MAPPED = "XENFEAT_not_direct_mapped",
        xenfeat::DIRECT_MAPPED = "XENFEAT_direct_mapped",
    }
}

fn physdev(t: &mut Table) {
    structures! { t;
        PhysdevEoi = "physdev_eoi_t" { irq }
        PhysdevPirqEoiGmfn = "physdev_pirq_eoi_gmfn_t" { gmfn }
        PhysdevIrqStatusQuery = "physdev_irq_status_query_t" { irq, flags }
        PhysdevSetIopl = "physdev_set_iopl_t" { iopl }
        PhysdevSetIobitmap = "physdev_set_iobitmap_t" { bitmap, nr_ports }
        PhysdevApic = "physdev_apic_t" { apic_physbase, reg, value }
        PhysdevIrq = "physdev_irq_t" { irq, vector }
        PhysdevMapPirq = "physdev_map_pirq_t" {
            domid, type_ = "type", index, pirq, bus, devfn, entry_nr, table_base,
        }
        PhysdevUnmapPirq = "physdev_unmap_pirq_t" { domid, pirq }
        PhysdevManagePci = "physdev_manage_pci_t" { bus, devfn }
        PhysdevManagePci = "physdev_restore_msi_t" { bus, devfn }
        PhysdevManagePciExt = "physdev_manage_pci_ext_t" { bus, devfn, is_extfn, is_virtfn, physfn }
        PhysdevSetupGsi = "physdev_setup_gsi_t" { gsi, triggering, polarity }
        PhysdevGetFreePirq = "physdev_get_free_pirq_t" { type_ = "type", pirq }
        PhysdevPciMmcfgReserved = "physdev_pci_mmcfg_reserved_t" {
            address, segment, start_bus, end_bus, flags,
        }
        PhysdevPciDeviceAdd = "physdev_pci_device_add_t" { seg, bus, devfn, flags, physfn }
        PhysdevPciDevice = "physdev_pci_device_t" { seg, bus, devfn }
    }
    codes! { t; PhysdevOp, "PHYSDEVOP_", to_lowercase {
        IRQ_UNMASK_NOTIFY = "PHYSDEVOP_IRQ_UNMASK_NOTIFY", IRQ_STATUS_QUERY, SET_IOPL,
        SET_IOBITMAP, APIC_READ, APIC_WRITE, ALLOC_IRQ_VECTOR, FREE_IRQ_VECTOR, EOI, MAP_PIRQ,
        UNMAP_PIRQ, MANAGE_PCI_ADD, MANAGE_PCI_REMOVE, PIRQ_EOI_GMFN_V1, RESTORE_MSI,
        MANAGE_PCI_ADD_EXT, SETUP_GSI, GET_FREE_PIRQ, PCI_MMCFG_RESERVED, PCI_DEVICE_ADD,
        PCI_DEVICE_REMOVE, RESTORE_MSI_EXT, PIRQ_EOI_GMFN_V2, DBGP_OP, PREPARE_MSIX, RELEASE_MSIX,
    } }
    constants! { t;
        XENIRQSTAT_NEEDS_EOI = "XENIRQSTAT_needs_eoi",
        XENIRQSTAT_SHARED = "XENIRQSTAT_shared",
        map_pirq_type::MSI = "MAP_PIRQ_TYPE_MSI",
        map_pirq_type::GSI = "MAP_PIRQ_TYPE_GSI",
        map_pirq_type::UNKNOWN = "MAP_PIRQ_TYPE_UNKNOWN",
        map_pirq_type::MSI_SEG = "MAP_PIRQ_TYPE_MSI_SEG",
        map_pirq_type::MULTI_MSI = "MAP_PIRQ_TYPE_MULTI_MSI",
        XEN_PCI_DEV_PXM = "XEN_PCI_DEV_PXM",
        PHYSDEV_OP_U_OFFSET = "__builtin_offsetof(physdev_op_t, u)",
        PHYSDEV_OP_SIZE = "sizeof(physdev_op_t)",
    }
}

fn start(t: &mut Table) {
    structures! { t;
        NoteHeader = "Elf64_Nhdr" { namesz = "n_namesz", descsz = "n_descsz", kind = "n_type" }
        StartInfo = "start_info_t" {
            magic, nr_pages, shared_info, flags, store_mfn, store_evtchn,
            console_mfn = "console.domU.mfn", console_evtchn = "console.domU.evtchn", pt_base,
            nr_pt_frames, mfn_list, mod_start, mod_len, cmd_line, first_p2m_pfn, nr_p2m_frames,
        }
    }
    constants! { t;
        MAX_GUEST_CMDLINE = "MAX_GUEST_CMDLINE",
        SIF_PRIVILEGED = "SIF_PRIVILEGED",
        SIF_INITDOMAIN = "SIF_INITDOMAIN",
        SIF_MULTIBOOT_MOD = "SIF_MULTIBOOT_MOD",
        SIF_MOD_START_PFN = "SIF_MOD_START_PFN",
        SIF_VIRT_P2M_4TOOLS = "SIF_VIRT_P2M_4TOOLS",
    }
    codes! { t; NoteType, "XEN_ELFNOTE_", to_uppercase {
        INFO, ENTRY, HYPERCALL_PAGE, VIRT_BASE, PADDR_OFFSET, XEN_VERSION, GUEST_OS,
        GUEST_VERSION, LOADER, PAE_MODE, FEATURES, BSD_SYMTAB, HV_START_LOW, L1_MFN_VALID,
        SUSPEND_CANCEL, INIT_P2M, MOD_START_PFN, SUPPORTED_FEATURES, PHYS32_ENTRY,
    } }
}
