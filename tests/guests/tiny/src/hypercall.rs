//! Hypercalls, by the inline `syscall` newer kernels use.

use core::arch::asm;

/// `__HYPERVISOR_console_io`.
pub const CONSOLE_IO: u64 = 18;
/// `__HYPERVISOR_sched_op`.
pub const SCHED_OP: u64 = 29;
/// `SCHEDOP_shutdown`.
pub const SCHEDOP_SHUTDOWN: u64 = 2;
/// `SHUTDOWN_poweroff`.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// `SHUTDOWN_reboot`.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// `SHUTDOWN_crash`.
pub const SHUTDOWN_CRASH: u32 = 3;

/// Hypercall `nr` with up to six arguments.
///
/// # Safety
/// The hypercall may write wherever its arguments point and may change how the
/// guest runs; the caller answers for both.
#[inline]
pub unsafe fn raw(nr: u64, args: [u64; 6]) -> i64 {
    let mut result = nr;
    // SAFETY: SYSCALL clobbers RCX and R11, a hypercall its own arguments, and
    // all are listed; the rest is the caller's contract.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            inlateout("r8") args[4] => _,
            inlateout("r9") args[5] => _,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result.cast_signed()
}

/// Writes bytes to the hypervisor's console. The result is Xen's.
pub fn console_write(bytes: &[u8]) -> i64 {
    let args = [0, bytes.len() as u64, bytes.as_ptr().expose_provenance() as u64, 0, 0, 0];
    // SAFETY: CONSOLEIO_write only reads `bytes`.
    unsafe { raw(CONSOLE_IO, args) }
}

/// Ends the domain with `reason`.
pub fn shutdown(reason: u32) -> ! {
    let arg = core::ptr::from_ref(&reason).expose_provenance() as u64;
    loop {
        // SAFETY: reads one word at `arg` and does not return.
        unsafe { raw(SCHED_OP, [SCHEDOP_SHUTDOWN, arg, 0, 0, 0, 0]) };
    }
}

/// `struct trap_info`, `xen/include/public/arch-x86/xen.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TrapInfo {
    /// Vector.
    pub vector: u8,
    /// 0-3: privilege level; bit 2: mask events on entry.
    pub flags: u8,
    /// Code selector.
    pub cs: u16,
    /// Padding.
    pub pad: u32,
    /// Handler; 0 ends the table.
    pub address: u64,
}

/// `struct callback_register`, `xen/include/public/callback.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Callback {
    /// `CALLBACKTYPE_*`.
    pub kind: u16,
    /// `CALLBACKF_mask_events`.
    pub flags: u16,
    /// Padding.
    pub pad: u32,
    /// Handler.
    pub address: u64,
}

fn address_of<T: ?Sized>(value: &T) -> u64 {
    core::ptr::from_ref(value).cast::<u8>().expose_provenance() as u64
}

/// `HYPERVISOR_set_trap_table`.
pub fn set_trap_table(table: &[TrapInfo]) -> i64 {
    // SAFETY: reads `table` up to its null entry.
    unsafe { raw(0, [address_of(table), 0, 0, 0, 0, 0]) }
}

/// `CALLBACKOP_register`.
pub fn register_callback(callback: &Callback) -> i64 {
    // SAFETY: reads `callback`.
    unsafe { raw(30, [0, address_of(callback), 0, 0, 0, 0]) }
}

/// `MMU_NORMAL_PT_UPDATE` of one entry.
///
/// # Safety
/// Changes how memory is mapped.
pub unsafe fn mmu_update(machine_address: u64, value: u64) -> i64 {
    const DOMID_SELF: u64 = 0x7ff0;
    let request = [machine_address & !7, value];
    // SAFETY: the caller's contract.
    unsafe { raw(1, [address_of(&request), 1, 0, DOMID_SELF, 0, 0]) }
}
