//! The other vCPUs.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::paging::{self, PAGE};
use crate::{StartInfo, hypercall};

/// `__HYPERVISOR_vcpu_op`.
pub const VCPU_OP: u64 = 24;
/// `VCPUOP_initialise`, `VCPUOP_up`, `VCPUOP_get_runstate_info`.
const INITIALISE: u64 = 0;
const UP: u64 = 1;
const GET_RUNSTATE_INFO: u64 = 4;
/// `VGCF_in_kernel`; `FLAT_KERNEL_CS64`, `FLAT_KERNEL_SS`.
const IN_KERNEL: u64 = 1 << 2;
const KERNEL_CS: u64 = 0xe033;
const KERNEL_SS: u64 = 0xe02b;

/// `struct vcpu_guest_context` as words.
#[repr(C, align(4096))]
struct Context([AtomicU64; 646]);
static CONTEXT: Context = Context([const { AtomicU64::new(0) }; 646]);
/// Its members used here, by word.
mod at {
    pub const FLAGS: usize = 64;
    /// R15 comes first.
    pub const RDI: usize = 65 + 14;
    pub const RIP: usize = 65 + 16;
    pub const CS: usize = 65 + 17;
    pub const RFLAGS: usize = 65 + 18;
    pub const RSP: usize = 65 + 19;
    pub const SS: usize = 65 + 20;
    /// Behind the registers (25 words), 256 trap handlers of two words, the LDT (2) and the GDT (17).
    pub const KERNEL_SS: usize = 65 + 25 + 512 + 2 + 17;
    pub const KERNEL_SP: usize = KERNEL_SS + 1;
    pub const CR3: usize = KERNEL_SS + 2 + 3;
}

/// Starts vCPU `id` at `run(id)`, on the caller's page tables and a stack that ends at `top`, a multiple
/// of 16. Whether it runs. One vCPU starts others, one at a time.
///
/// # Safety
/// The stack is that vCPU's alone.
pub unsafe fn start(info: &StartInfo, id: u64, run: extern "C" fn(u64) -> !, top: u64) -> bool {
    // A call pushes the return address on an aligned stack.
    let top = top - 8;
    for (word, value) in [
        (at::FLAGS, IN_KERNEL),
        (at::RDI, id),
        (at::RIP, run as usize as u64),
        (at::CS, KERNEL_CS),
        (at::RFLAGS, 0x200),
        (at::RSP, top),
        (at::SS, KERNEL_SS),
        (at::KERNEL_SS, KERNEL_SS),
        (at::KERNEL_SP, top),
        (at::CR3, paging::mfn_of(info, info.pt_base) * PAGE),
    ] {
        if let Some(slot) = CONTEXT.0.get(word) {
            slot.store(value, Ordering::SeqCst);
        }
    }
    let context = CONTEXT.0.as_ptr().expose_provenance() as u64;
    // SAFETY: reads the context.
    let made = unsafe { hypercall::raw(VCPU_OP, [INITIALISE, id, context, 0, 0, 0]) };
    // SAFETY: from here on the vCPU runs, on its own stack.
    made == 0 && unsafe { hypercall::raw(VCPU_OP, [UP, id, 0, 0, 0, 0]) } == 0
}

/// `struct vcpu_runstate_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Runstate {
    /// `RUNSTATE_*`.
    pub state: u32,
    /// Padding.
    pub pad: u32,
    /// When it came into that state, in nanoseconds of system time.
    pub since: u64,
    /// Nanoseconds in each.
    pub time: [u64; 4],
}

/// `RUNSTATE_blocked`.
pub const BLOCKED: u32 = 2;

/// What a vCPU does.
pub fn runstate(id: u64) -> Runstate {
    let mut is = Runstate::default();
    let at = core::ptr::from_mut(&mut is).expose_provenance() as u64;
    // SAFETY: fills the structure.
    unsafe { hypercall::raw(VCPU_OP, [GET_RUNSTATE_INFO, id, at, 0, 0, 0]) };
    is
}
