//! Crash reports to the host (TLFS 11.3.6 "Guest Crash Enlightenment").

use hv_abi::crash::CrashCtl;
use hv_abi::msr as hvmsr;
use spin::Once;

use crate::cpu::msr;
use crate::mm::{frames, phys_to_virt};

/// Page the message is left in: (physical address).
static MESSAGE: Once<u64> = Once::new();

/// Sets a page aside for the message.
pub fn init() {
    if let Some(page) = frames::alloc(1, 4096) {
        MESSAGE.call_once(|| page);
    }
}

/// Fills the crash registers and notifies the host, where it has them. P0-P2 are `parameters`, P3
/// and P4 the message's address and length.
pub fn report(text: &str, parameters: [u64; 3]) {
    let Some(_) = super::get().filter(|hv| hv.crash) else { return };
    let bytes = &text.as_bytes()[..text.len().min(4096)];
    // Read, it says what the host takes; older ones know no message.
    let takes = CrashCtl::from_bits_retain(msr::try_read(hvmsr::HV_X64_MSR_CRASH_CTL).unwrap_or(0));
    let mut control = CrashCtl::NOTIFY;
    let mut p3_p4 = [0, 0];
    if let Some(&page) = MESSAGE.get().filter(|_| takes.contains(CrashCtl::MESSAGE)) {
        // SAFETY: the page is the shim's own and used for nothing else.
        unsafe { phys_to_virt(page).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        p3_p4 = [page, bytes.len() as u64];
        control |= CrashCtl::MESSAGE;
    }
    let [p0, p1, p2] = parameters;
    for (n, value) in [p0, p1, p2, p3_p4[0], p3_p4[1]].into_iter().enumerate() {
        // SAFETY: offered by the host; only reports.
        unsafe { msr::try_write(hvmsr::crash_parameter(n as u8), value) };
    }
    // SAFETY: as above; the host may end the VM here.
    unsafe { msr::try_write(hvmsr::HV_X64_MSR_CRASH_CTL, control.bits()) };
}
