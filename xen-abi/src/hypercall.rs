//! Hypercall numbers (`xen/include/public/xen.h`, `__HYPERVISOR_*`) and the multicall entry.

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A hypercall number, as the guest puts it in EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct HypercallNr(pub u32);

macro_rules! numbers {
    ($($name:ident = $value:literal;)*) => {
        #[allow(missing_docs, reason = "names are the header's own")]
        #[allow(non_upper_case_globals, reason = "names are the header's own")]
        impl HypercallNr {
            $(pub const $name: Self = Self($value);)*
        }
    };
}
numbers! {
    set_trap_table = 0;
    mmu_update = 1;
    set_gdt = 2;
    stack_switch = 3;
    set_callbacks = 4;
    fpu_taskswitch = 5;
    sched_op_compat = 6;
    platform_op = 7;
    set_debugreg = 8;
    get_debugreg = 9;
    update_descriptor = 10;
    memory_op = 12;
    multicall = 13;
    update_va_mapping = 14;
    set_timer_op = 15;
    event_channel_op_compat = 16;
    xen_version = 17;
    console_io = 18;
    physdev_op_compat = 19;
    grant_table_op = 20;
    vm_assist = 21;
    update_va_mapping_otherdomain = 22;
    iret = 23;
    vcpu_op = 24;
    set_segment_base = 25;
    mmuext_op = 26;
    xsm_op = 27;
    nmi_op = 28;
    sched_op = 29;
    callback_op = 30;
    xenoprof_op = 31;
    event_channel_op = 32;
    physdev_op = 33;
    hvm_op = 34;
    sysctl = 35;
    domctl = 36;
    kexec_op = 37;
    tmem_op = 38;
    argo_op = 39;
    xenpmu_op = 40;
    dm_op = 41;
    hypfs_op = 42;
    mca = 48;
    arch_1 = 49;
    paging_domctl_cont = 50;
    arch_3 = 51;
    arch_4 = 52;
    arch_5 = 53;
    arch_6 = 54;
    arch_7 = 55;
}

/// Stubs in a hypercall page, and entries in Xen's own table (`NR_hypercalls`).
pub const NR_HYPERCALLS: u32 = 64;

/// `struct multicall_entry` (`xen.h`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct MulticallEntry {
    pub op: u64,
    pub result: u64,
    pub args: [u64; 6],
}
const_assert_eq!(size_of::<MulticallEntry>(), 64);
const_assert_eq!(offset_of!(MulticallEntry, result), 8);

/// `VMASST_CMD_enable` (`xen.h`).
pub const VMASST_CMD_ENABLE: u32 = 0;
/// `VMASST_CMD_disable`.
pub const VMASST_CMD_DISABLE: u32 = 1;
/// `VMASST_TYPE_4gb_segments`: 32-bit guests only.
pub const VMASST_TYPE_4GB_SEGMENTS: u32 = 0;
/// `VMASST_TYPE_4gb_segments_notify`: 32-bit guests only.
pub const VMASST_TYPE_4GB_SEGMENTS_NOTIFY: u32 = 1;
/// `VMASST_TYPE_writable_pagetables`.
pub const VMASST_TYPE_WRITABLE_PAGETABLES: u32 = 2;
/// `VMASST_TYPE_pae_extended_cr3`.
pub const VMASST_TYPE_PAE_EXTENDED_CR3: u32 = 3;
/// `VMASST_TYPE_architectural_iopl`.
pub const VMASST_TYPE_ARCHITECTURAL_IOPL: u32 = 4;
/// `VMASST_TYPE_runstate_update_flag`.
pub const VMASST_TYPE_RUNSTATE_UPDATE_FLAG: u32 = 5;
/// `VMASST_TYPE_m2p_strict`.
pub const VMASST_TYPE_M2P_STRICT: u32 = 32;
