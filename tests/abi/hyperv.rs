//! `hv-abi` against the Linux kernel's Hyper-V headers (`asm/hyperv-tlfs.h`,
//! `asm-generic/hyperv-tlfs.h`, as Debian's `linux-headers-*-common` has them).
//!
//! Only what the headers know is compared: they lack a good part of the specification.

use std::path::{Path, PathBuf};

use hv_abi::cpuid::*;
use hv_abi::crash::*;
use hv_abi::hypercall::*;
use hv_abi::msr::*;
use hv_abi::reference_tsc::ReferenceTscPage;
use hv_abi::status::HvStatus;
use hv_abi::synic::*;
use hv_abi::timer::*;

use super::{Table, codes, constants, structures};

/// Kernel headers lean on others that do not compile in a program: stand-ins for those.
const STAND_INS: [(&str, &str); 4] = [
    (
        "linux/types.h",
        "#pragma once
#include <stdint.h>
typedef uint8_t u8, __u8; typedef uint16_t u16, __u16; typedef uint32_t u32, __u32;
typedef uint64_t u64, __u64; typedef int64_t s64;
#define __packed __attribute__((packed))
#define __aligned(n) __attribute__((aligned(n)))
",
    ),
    (
        "linux/bits.h",
        "#pragma once
#define BIT(n) (1ul << (n))
#define BIT_ULL(n) (1ull << (n))
#define GENMASK_ULL(h, l) ((~0ull << (l)) & (~0ull >> (63 - (h))))
#define GENMASK GENMASK_ULL
",
    ),
    ("linux/time64.h", "#define NSEC_PER_SEC 1000000000ll\n"),
    ("asm/page.h", "#define PAGE_SIZE 4096ul\n"),
];

/// What the C program includes.
pub const PRELUDE: &str = "#include <linux/types.h>\n#include <asm/hyperv-tlfs.h>\n";

/// The include path: stand-ins (written to `dir`), then the package's directories.
pub fn include(dir: &Path, headers: &Path) -> Vec<PathBuf> {
    for (name, text) in STAND_INS {
        let file = dir.join(name);
        std::fs::create_dir_all(file.parent().expect("it has one")).expect("a directory");
        std::fs::write(file, text).expect("a stand-in is written");
    }
    vec![dir.to_owned(), headers.join("arch/x86/include"), headers.join("include")]
}

/// What the headers and `hv-abi` both have.
pub fn table() -> Table {
    let mut t = Table::default();
    cpuid(&mut t);
    msrs(&mut t);
    hypercalls(&mut t);
    synic(&mut t);
    t
}

/// Adds bit flags: `Type::NAME = "C name"`.
macro_rules! flags {
    ($table:expr; $type:ident { $($name:ident = $c:literal),* $(,)? }) => {
        $($table.add(
            concat!(stringify!($type), "::", stringify!($name)),
            $c,
            u64::from($type::$name.bits()),
        );)*
    };
}

fn cpuid(t: &mut Table) {
    constants! { t;
        LEAF_VENDOR = "HYPERV_CPUID_VENDOR_AND_MAX_FUNCTIONS",
        LEAF_INTERFACE = "HYPERV_CPUID_INTERFACE",
        LEAF_VERSION = "HYPERV_CPUID_VERSION",
        LEAF_FEATURES = "HYPERV_CPUID_FEATURES",
        LEAF_RECOMMENDATIONS = "HYPERV_CPUID_ENLIGHTMENT_INFO",
        LEAF_LIMITS = "HYPERV_CPUID_IMPLEMENT_LIMITS",
        LEAF_CPU_MANAGEMENT = "HYPERV_CPUID_CPU_MANAGEMENT_FEATURES",
        LEAF_NESTED_VIRTUALIZATION = "HYPERV_CPUID_NESTED_FEATURES",
        MIN_MAX_LEAF = "HYPERV_CPUID_MIN",
        CPUID_1_ECX_HYPERVISOR = "HYPERV_HYPERVISOR_PRESENT_BIT",
    }
    flags! { t; Privileges {
        ACCESS_VP_RUN_TIME_REG = "HV_MSR_VP_RUNTIME_AVAILABLE",
        ACCESS_PARTITION_REFERENCE_COUNTER = "HV_MSR_TIME_REF_COUNT_AVAILABLE",
        ACCESS_SYNIC_REGS = "HV_MSR_SYNIC_AVAILABLE",
        ACCESS_SYNTHETIC_TIMER_REGS = "HV_MSR_SYNTIMER_AVAILABLE",
        ACCESS_INTR_CTRL_REGS = "HV_MSR_APIC_ACCESS_AVAILABLE",
        ACCESS_HYPERCALL_MSRS = "HV_MSR_HYPERCALL_AVAILABLE",
        ACCESS_VP_INDEX = "HV_MSR_VP_INDEX_AVAILABLE",
        ACCESS_RESET_REG = "HV_MSR_RESET_AVAILABLE",
        ACCESS_STATS_REG = "HV_MSR_STAT_PAGES_AVAILABLE",
        ACCESS_PARTITION_REFERENCE_TSC = "HV_MSR_REFERENCE_TSC_AVAILABLE",
        ACCESS_GUEST_IDLE_REG = "HV_MSR_GUEST_IDLE_AVAILABLE",
        ACCESS_FREQUENCY_REGS = "HV_ACCESS_FREQUENCY_MSRS",
        ACCESS_REENLIGHTENMENT_CONTROLS = "HV_ACCESS_REENLIGHTENMENT",
        ACCESS_TSC_INVARIANT_CONTROLS = "HV_ACCESS_TSC_INVARIANT",
        CREATE_PARTITIONS = "(u64)HV_CREATE_PARTITIONS << 32",
        ACCESS_PARTITION_ID = "(u64)HV_ACCESS_PARTITION_ID << 32",
        ACCESS_MEMORY_POOL = "(u64)HV_ACCESS_MEMORY_POOL << 32",
        POST_MESSAGES = "(u64)HV_POST_MESSAGES << 32",
        SIGNAL_EVENTS = "(u64)HV_SIGNAL_EVENTS << 32",
        CREATE_PORT = "(u64)HV_CREATE_PORT << 32",
        CONNECT_PORT = "(u64)HV_CONNECT_PORT << 32",
        ACCESS_STATS = "(u64)HV_ACCESS_STATS << 32",
        DEBUGGING = "(u64)HV_DEBUGGING << 32",
        CPU_MANAGEMENT = "(u64)HV_CPU_MANAGEMENT << 32",
        ENABLE_EXTENDED_HYPERCALLS = "(u64)HV_ENABLE_EXTENDED_HYPERCALLS << 32",
        ISOLATION = "(u64)HV_ISOLATION << 32",
    } }
    flags! { t; Features {
        MWAIT = "HV_X64_MWAIT_AVAILABLE",
        GUEST_DEBUGGING = "HV_X64_GUEST_DEBUGGING_AVAILABLE",
        PERFORMANCE_MONITOR = "HV_X64_PERF_MONITOR_AVAILABLE",
        CPU_DYNAMIC_PARTITIONING = "HV_X64_CPU_DYNAMIC_PARTITIONING_AVAILABLE",
        XMM_HYPERCALL_INPUT = "HV_X64_HYPERCALL_XMM_INPUT_AVAILABLE",
        GUEST_IDLE_STATE = "HV_X64_GUEST_IDLE_STATE_AVAILABLE",
        FREQUENCY_MSRS = "HV_FEATURE_FREQUENCY_MSRS_AVAILABLE",
        GUEST_CRASH_MSRS = "HV_FEATURE_GUEST_CRASH_MSR_AVAILABLE",
        DEBUG_MSRS = "HV_FEATURE_DEBUG_MSRS_AVAILABLE",
        XMM_HYPERCALL_OUTPUT = "HV_X64_HYPERCALL_XMM_OUTPUT_AVAILABLE",
        DIRECT_SYNTHETIC_TIMERS = "HV_STIMER_DIRECT_MODE_AVAILABLE",
    } }
    flags! { t; Recommendations {
        ADDRESS_SPACE_SWITCH = "HV_X64_AS_SWITCH_RECOMMENDED",
        LOCAL_TLB_FLUSH = "HV_X64_LOCAL_TLB_FLUSH_RECOMMENDED",
        REMOTE_TLB_FLUSH = "HV_X64_REMOTE_TLB_FLUSH_RECOMMENDED",
        APIC_MSRS = "HV_X64_APIC_ACCESS_RECOMMENDED",
        RESET_MSR = "HV_X64_SYSTEM_RESET_RECOMMENDED",
        RELAXED_TIMING = "HV_X64_RELAXED_TIMING_RECOMMENDED",
        DEPRECATE_AUTO_EOI = "HV_DEPRECATING_AEOI_RECOMMENDED",
        CLUSTER_IPI = "HV_X64_CLUSTER_IPI_RECOMMENDED",
        EX_PROCESSOR_MASKS = "HV_X64_EX_PROCESSOR_MASKS_RECOMMENDED",
        ENLIGHTENED_VMCS = "HV_X64_ENLIGHTENED_VMCS_RECOMMENDED",
        NO_NONARCHITECTURAL_CORE_SHARING = "HV_X64_NO_NONARCH_CORESHARING",
    } }
}

fn msrs(t: &mut Table) {
    constants! { t;
        HV_X64_MSR_GUEST_OS_ID = "HV_X64_MSR_GUEST_OS_ID",
        HV_X64_MSR_HYPERCALL = "HV_X64_MSR_HYPERCALL",
        HV_X64_MSR_VP_INDEX = "HV_X64_MSR_VP_INDEX",
        HV_X64_MSR_RESET = "HV_X64_MSR_RESET",
        HV_X64_MSR_VP_RUNTIME = "HV_X64_MSR_VP_RUNTIME",
        HV_X64_MSR_TIME_REF_COUNT = "HV_X64_MSR_TIME_REF_COUNT",
        HV_X64_MSR_REFERENCE_TSC = "HV_X64_MSR_REFERENCE_TSC",
        HV_X64_MSR_TSC_FREQUENCY = "HV_X64_MSR_TSC_FREQUENCY",
        HV_X64_MSR_APIC_FREQUENCY = "HV_X64_MSR_APIC_FREQUENCY",
        HV_X64_MSR_EOI = "HV_X64_MSR_EOI",
        HV_X64_MSR_ICR = "HV_X64_MSR_ICR",
        HV_X64_MSR_TPR = "HV_X64_MSR_TPR",
        HV_X64_MSR_VP_ASSIST_PAGE = "HV_X64_MSR_VP_ASSIST_PAGE",
        HV_X64_MSR_SCONTROL = "HV_X64_MSR_SCONTROL",
        HV_X64_MSR_SVERSION = "HV_X64_MSR_SVERSION",
        HV_X64_MSR_SIEFP = "HV_X64_MSR_SIEFP",
        HV_X64_MSR_SIMP = "HV_X64_MSR_SIMP",
        HV_X64_MSR_EOM = "HV_X64_MSR_EOM",
        HV_X64_MSR_SINT0 = "HV_X64_MSR_SINT0",
        HV_X64_MSR_SINT15 = "HV_X64_MSR_SINT15",
        HV_X64_MSR_STIMER0_CONFIG = "HV_X64_MSR_STIMER0_CONFIG",
        HV_X64_MSR_STIMER0_COUNT = "HV_X64_MSR_STIMER0_COUNT",
        HV_X64_MSR_STIMER3_CONFIG = "HV_X64_MSR_STIMER3_CONFIG",
        HV_X64_MSR_STIMER3_COUNT = "HV_X64_MSR_STIMER3_COUNT",
        HV_X64_MSR_GUEST_IDLE = "HV_X64_MSR_GUEST_IDLE",
        HV_X64_MSR_CRASH_P0 = "HV_X64_MSR_CRASH_P0",
        HV_X64_MSR_CRASH_P4 = "HV_X64_MSR_CRASH_P4",
        HV_X64_MSR_CRASH_CTL = "HV_X64_MSR_CRASH_CTL",
        HV_X64_MSR_REENLIGHTENMENT_CONTROL = "HV_X64_MSR_REENLIGHTENMENT_CONTROL",
        HV_X64_MSR_TSC_EMULATION_CONTROL = "HV_X64_MSR_TSC_EMULATION_CONTROL",
        HV_X64_MSR_TSC_EMULATION_STATUS = "HV_X64_MSR_TSC_EMULATION_STATUS",
        HV_X64_MSR_TSC_INVARIANT_CONTROL = "HV_X64_MSR_TSC_INVARIANT_CONTROL",
        PageMsr::ENABLE = "HV_X64_MSR_HYPERCALL_ENABLE",
        PageMsr::ADDRESS = "HV_X64_MSR_HYPERCALL_PAGE_ADDRESS_MASK",
        Sint::MASKED = "HV_SYNIC_SINT_MASKED",
        Sint::AUTO_EOI = "HV_SYNIC_SINT_AUTO_EOI",
        Sint::POLLING = "((union hv_synic_sint){ .polling = 1 }).as_uint64",
        SCONTROL_ENABLE = "HV_SYNIC_CONTROL_ENABLE",
        SVERSION_1 = "HV_SYNIC_VERSION_1",
        CRASH_PARAMETERS = "HV_X64_MSR_CRASH_PARAMS",
    }
    flags! { t; CrashCtl {
        MESSAGE = "HV_CRASH_CTL_CRASH_NOTIFY_MSG",
        NOTIFY = "HV_CRASH_CTL_CRASH_NOTIFY",
    } }
}

fn hypercalls(t: &mut Table) {
    // Banks follow a processor set, and addresses a flush; ours end before them as C's do.
    structures! { t;
        VpSet = "struct hv_vpset" { format, valid_bank_mask }
        FlushVirtualAddressSpace = "struct hv_tlb_flush" { address_space, flags, processor_mask }
        FlushVirtualAddressSpaceEx = "struct hv_tlb_flush_ex" {
            address_space, flags, vp_set = "hv_vp_set",
        }
        SendSyntheticClusterIpi = "struct hv_send_ipi" { vector, processor_mask = "cpu_mask" }
        SendSyntheticClusterIpiEx = "struct hv_send_ipi_ex" { vector, vp_set }
    }
    codes! { t; CallCode, "HVCALL_", to_uppercase {
        FLUSH_VIRTUAL_ADDRESS_SPACE, FLUSH_VIRTUAL_ADDRESS_LIST, NOTIFY_LONG_SPIN_WAIT,
        FLUSH_VIRTUAL_ADDRESS_SPACE_EX, FLUSH_VIRTUAL_ADDRESS_LIST_EX, GET_PARTITION_ID,
        GET_VP_REGISTERS, SET_VP_REGISTERS, POST_MESSAGE, SIGNAL_EVENT, POST_DEBUG_DATA,
        RETRIEVE_DEBUG_DATA, RESET_DEBUG_SESSION, FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE,
        FLUSH_GUEST_PHYSICAL_ADDRESS_LIST,
        SEND_SYNTHETIC_CLUSTER_IPI = "HVCALL_SEND_IPI",
        SEND_SYNTHETIC_CLUSTER_IPI_EX = "HVCALL_SEND_IPI_EX",
        EXT_CALL_QUERY_CAPABILITIES = "HV_EXT_CALL_QUERY_CAPABILITIES",
        EXT_CALL_MEMORY_HEAT_HINT = "HV_EXT_CALL_MEMORY_HEAT_HINT",
    } }
    codes! { t; HvStatus, "HV_STATUS_", to_uppercase {
        SUCCESS, INVALID_HYPERCALL_CODE, INVALID_HYPERCALL_INPUT, INVALID_ALIGNMENT,
        INVALID_PARAMETER, ACCESS_DENIED, OPERATION_DENIED, INSUFFICIENT_MEMORY, INVALID_PORT_ID,
        INVALID_CONNECTION_ID, INSUFFICIENT_BUFFERS,
    } }
    flags! { t; FlushFlags {
        ALL_PROCESSORS = "HV_FLUSH_ALL_PROCESSORS",
        ALL_VIRTUAL_ADDRESS_SPACES = "HV_FLUSH_ALL_VIRTUAL_ADDRESS_SPACES",
        NON_GLOBAL_MAPPINGS_ONLY = "HV_FLUSH_NON_GLOBAL_MAPPINGS_ONLY",
        USE_EXTENDED_RANGE_FORMAT = "HV_FLUSH_USE_EXTENDED_RANGE_FORMAT",
    } }
    constants! { t;
        Control::FAST = "HV_HYPERCALL_FAST_BIT",
        VpSet::SPARSE_4K = "HV_GENERIC_SET_SPARSE_4K",
        VpSet::ALL = "HV_GENERIC_SET_ALL",
    }
    let code = CallCode(0);
    let header = Control::new(code).with_variable_header(Control::VARIABLE_HEADER_MAX);
    t.add("variable header", "HV_HYPERCALL_VARHEAD_MASK", header.0);
    t.add(
        "repetitions and start",
        "HV_HYPERCALL_REP_COMP_MASK | HV_HYPERCALL_REP_START_MASK",
        Control::new(code).with_reps(Control::REP_MAX, Control::REP_MAX).0,
    );
}

fn synic(t: &mut Table) {
    structures! { t;
        MessageSlot = "struct hv_message" {
            message_type = "header.message_type", payload_size = "header.payload_size",
            message_flags = "header.message_flags", sender = "header.sender", payload = "u.payload",
        }
        MessagePage = "struct hv_message_page" { slots = "sint_message" }
        EventFlags = "union hv_synic_event_flags" { words = "flags" }
        TimerMessagePayload = "struct hv_timer_message_payload" {
            timer_index, expiration_time_100ns = "expiration_time",
            delivery_time_100ns = "delivery_time",
        }
    }
    // The reference TSC page fills its page; the header names its first fields only.
    let tsc = "struct ms_hyperv_tsc_page";
    for (field, offset) in [
        ("tsc_sequence", core::mem::offset_of!(ReferenceTscPage, tsc_sequence)),
        ("tsc_scale", core::mem::offset_of!(ReferenceTscPage, tsc_scale)),
        ("tsc_offset", core::mem::offset_of!(ReferenceTscPage, tsc_offset)),
    ] {
        let c = format!("__builtin_offsetof({tsc}, {field})");
        t.add(format!("offset of ReferenceTscPage.{field}"), c, offset as u64);
    }
    codes! { t; MessageType, "HVMSG_", to_uppercase {
        NONE, UNMAPPED_GPA, GPA_INTERCEPT, TIMER_EXPIRED, INVALID_VP_REGISTER_VALUE,
        UNRECOVERABLE_EXCEPTION, UNSUPPORTED_FEATURE,
        EVENT_LOG_BUFFER_COMPLETE = "HVMSG_EVENTLOG_BUFFERCOMPLETE",
    } }
    constants! { t;
        SINT_COUNT = "HV_SYNIC_SINT_COUNT",
        MESSAGE_PAYLOAD_BYTES = "HV_MESSAGE_PAYLOAD_BYTE_COUNT",
        EVENT_FLAGS_PER_SINT = "HV_EVENT_FLAGS_COUNT",
        MESSAGE_PENDING = "((union hv_message_flags){ .msg_pending = 1 }).asu8",
        STIMER_COUNT = "HV_SYNIC_STIMER_COUNT",
        StimerConfig::ENABLED = "((union hv_stimer_config){ .enable = 1 }).as_uint64",
        StimerConfig::PERIODIC = "((union hv_stimer_config){ .periodic = 1 }).as_uint64",
        StimerConfig::LAZY = "((union hv_stimer_config){ .lazy = 1 }).as_uint64",
        StimerConfig::AUTO_ENABLE = "((union hv_stimer_config){ .auto_enable = 1 }).as_uint64",
        StimerConfig::DIRECT_MODE = "((union hv_stimer_config){ .direct_mode = 1 }).as_uint64",
    }
}
