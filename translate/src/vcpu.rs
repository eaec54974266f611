//! Per-vCPU state. One processor owns it; nothing else reads it except through
//! [`crate::domain::VcpuShared`].

use xen_abi::shared_info::VcpuInfo;

/// What the assembly entry path reads and writes, at fixed offsets.
#[derive(Debug)]
#[repr(C)]
pub struct Entry {
    /// The vCPU's `vcpu_info`, wherever the guest registered it.
    pub info: &'static VcpuInfo,
    /// RSP on entry to the guest kernel from user mode (stack_switch).
    pub kernel_sp: u64,
    /// Where the assembly sends a 64-bit system call of user mode: `syscall_callback` while that is
    /// set and masks events, else 0 (the slow path then decides). Whoever changes the callback
    /// keeps it right.
    pub fast_syscall: u64,
    /// Event callback, 0 = none.
    pub event_callback: u64,
    /// Failsafe callback, 0 = none.
    pub failsafe_callback: u64,
    /// 64-bit system call callback, 0 = none.
    pub syscall_callback: u64,
    /// 32-bit SYSCALL callback, 0 = none (CALLBACKTYPE_syscall32).
    pub syscall32_callback: u64,
    /// SYSENTER callback, 0 = none.
    pub sysenter_callback: u64,
    /// NMI callback, 0 = none.
    pub nmi_callback: u64,
    /// 1: the callback masks events (CALLBACKF_mask_events).
    pub syscall_masks: u8,
    /// As above.
    pub failsafe_masks: u8,
    /// As above.
    pub syscall32_masks: u8,
    /// As above.
    pub sysenter_masks: u8,
    /// Something besides event bits must be looked at before the next return to the guest
    /// (a pending NMI, a timer): the fast paths take the slow exit when it is not 0.
    pub attention: u8,
    /// Padding.
    pub pad: [u8; 3],
}

/// A vCPU.
#[derive(Debug)]
#[repr(C)]
pub struct Vcpu {
    /// What the assembly uses; must stay first.
    pub entry: Entry,
    /// The vCPU's id.
    pub id: u32,
    /// The guest's exception handlers.
    pub traps: crate::trap_table::TrapTable,
    /// NMI pending and masked state.
    pub nmi: crate::bounce::NmiState,
    /// The guest's view of its debug registers.
    pub debugreg: crate::debugreg::DebugRegs,
    /// GDT and LDT as the guest set them.
    pub descriptors: crate::descriptor::Descriptors,
    /// Page-table roots.
    pub mmu: crate::mmu::VcpuMmu,
    /// Control registers as the guest sees them, IOPL, I/O bitmap.
    pub control: crate::emulate::ControlRegs,
    /// Timers, time areas, runstate.
    pub time: crate::time::VcpuTime,
    /// What a blocked vCPU waits for.
    pub wait: crate::sched::Wait,
    /// What its processor loads before the first instruction, until it has.
    pub start: Option<crate::vcpu_start::Start>,
}

impl Entry {
    /// No callbacks yet.
    #[must_use]
    pub const fn new(info: &'static VcpuInfo) -> Self {
        Self {
            info,
            kernel_sp: 0,
            fast_syscall: 0,
            event_callback: 0,
            failsafe_callback: 0,
            syscall_callback: 0,
            syscall32_callback: 0,
            sysenter_callback: 0,
            nmi_callback: 0,
            syscall_masks: 0,
            failsafe_masks: 0,
            syscall32_masks: 0,
            sysenter_masks: 0,
            attention: 0,
            pad: [0; 3],
        }
    }
}

impl Vcpu {
    /// A vCPU as it is before its first instruction.
    #[must_use]
    pub fn new(id: u32, info: &'static VcpuInfo) -> Self {
        Self {
            entry: Entry::new(info),
            id,
            traps: Default::default(),
            nmi: Default::default(),
            debugreg: Default::default(),
            descriptors: Default::default(),
            mmu: Default::default(),
            control: Default::default(),
            time: Default::default(),
            wait: Default::default(),
            start: None,
        }
    }
}
