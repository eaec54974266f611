//! All that the translation core asks of ring 0. The shim implements these
//! traits; tests implement them on plain memory.
//!
//! Every method is called with interrupts off and returns without enabling
//! them. None may panic on values a guest chose.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::domain::Domain;
use crate::evtchn::{Backend, Here};
use crate::vcpu::Vcpu;
use crate::vcpu_start::FpuImage;
use xen_abi::{GuestVa, MachineAddr, Mfn, Pfn, SharedView};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An access to guest memory did not succeed (`EFAULT` to the guest).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// A page of guest memory as 64-bit words the guest may change at any time.
pub type PageWords = [AtomicU64; 512];

/// [`GuestMemory::copy_bytes`] word by word.
fn copy_page_bytes(to: (&PageWords, usize), from: (&PageWords, usize), len: usize) {
    let ((to, mut at), (from, mut source)) = (to, from);
    let page = size_of::<PageWords>();
    let len = len.min(page.saturating_sub(at)).min(page.saturating_sub(source));
    let end = at + len;
    let word = |nr: usize| from.get(nr).map_or(0, |word| word.load(Ordering::Relaxed));
    while at < end {
        let (skip, shift) = (at % 8, source % 8);
        let count = (8 - skip).min(end - at);
        // The 8 bytes from `source` on, of one word or two.
        let mut bytes = word(source / 8) >> (8 * shift);
        if shift + count > 8 {
            bytes |= word(source / 8 + 1) << (64 - 8 * shift);
        }
        if let Some(word) = to.get(at / 8) {
            let mask = (u64::MAX >> (64 - 8 * count)) << (8 * skip);
            let old = if count == 8 { 0 } else { word.load(Ordering::Relaxed) & !mask };
            word.store(old | bytes << (8 * skip) & mask, Ordering::Relaxed);
        }
        (at, source) = (at + count, source + count);
    }
}

/// Guest memory, by virtual address under the current page tables and by machine frame.
pub trait GuestMemory {
    /// Copies `dst.len()` bytes from the guest. Addresses in the hypervisor hole are refused,
    /// except the M2P, which a guest may read but never name as an argument (Xen: `EFAULT`).
    /// On `Fault`, `dst` may be partly written.
    fn copy_from_guest(&self, dst: &mut [u8], src: GuestVa) -> Result<(), Fault>;
    /// Copies `src` to the guest; honours read-only mappings. On `Fault` a prefix may be written.
    fn copy_to_guest(&self, dst: GuestVa, src: &[u8]) -> Result<(), Fault>;
    /// The frame's words if the frame is the guest's own RAM (or a page the shim shares with it
    /// by ABI, such as `shared_info`), else `None`.
    fn frame(&self, mfn: Mfn) -> Option<&'static PageWords>;
    /// A shared structure at a machine address; `None` where the frame is not the guest's, the
    /// address is not aligned for `T`, or the structure would leave its page.
    fn view<T: SharedView>(&self, at: MachineAddr) -> Option<&'static T>;
    /// Whether a guest page-table entry may point at this frame: its own RAM, pages shared with
    /// it by ABI. Cheaper than [`Self::frame`].
    fn may_map(&self, mfn: Mfn) -> bool;
    /// As [`Self::frame`], for the guest's own RAM only; what else the guest may map can be left
    /// out, so that this is the cheaper question.
    #[inline(always)]
    fn ram_frame(&self, mfn: Mfn) -> Option<&'static PageWords> {
        self.frame(mfn)
    }
    /// Whether an L4 entry is what [`Processor::install_hole`] stores into the first of the
    /// hypervisor's slots (accessed from the start, so that no processor changes it).
    fn is_hole_entry(&self, entry: u64) -> bool;
    /// Whether [`Self::ram_frame`] gives something.
    #[inline(always)]
    fn is_ram(&self, mfn: Mfn) -> bool {
        self.may_map(mfn)
    }
    /// The M2P entry of a guest frame.
    fn m2p(&self, mfn: Mfn) -> Option<Pfn>;
    /// Writes the M2P entry of a guest frame; `false` where the frame is not the guest's.
    fn set_m2p(&self, mfn: Mfn, pfn: Pfn) -> bool;
    /// First machine frame number above all RAM (the M2P's length).
    fn max_mfn(&self) -> Mfn;
    /// Takes a frame out of the guest (ballooning). `false` where it is not the guest's RAM.
    fn release_frame(&self, mfn: Mfn) -> bool;
    /// Gives a formerly released frame back, zeroed, M2P set to `pfn`; `None` when there is none.
    fn acquire_frame(&self, pfn: Pfn) -> Option<Mfn>;

    /// Reads a plain structure from the guest.
    fn read_guest<T: FromBytes + IntoBytes>(&self, src: GuestVa) -> Result<T, Fault> {
        let mut value = T::new_zeroed();
        self.copy_from_guest(value.as_mut_bytes(), src)?;
        Ok(value)
    }
    /// Reads a few words from the guest: as [`Self::copy_from_guest`], on the hottest paths, where
    /// ring 0 has better than a loop.
    #[inline(always)]
    fn read_words<const WORDS: usize>(&self, src: GuestVa) -> Result<[u64; WORDS], Fault> {
        let mut words = [0; WORDS];
        self.copy_from_guest(words.as_mut_bytes(), src)?;
        Ok(words)
    }
    /// Writes a few words to the guest, as above.
    #[inline(always)]
    fn write_words<const WORDS: usize>(
        &self,
        dst: GuestVa,
        words: [u64; WORDS],
    ) -> Result<(), Fault> {
        self.copy_to_guest(dst, words.as_bytes())
    }
    /// Copies `len` bytes from one page to another; a range that leaves its page is cut. For bulk
    /// data, where ring 0 has better than a loop.
    fn copy_bytes(&self, to: (&PageWords, usize), from: (&PageWords, usize), len: usize) {
        copy_page_bytes(to, from, len);
    }
    /// Writes a plain structure to the guest.
    fn write_guest<T: IntoBytes + Immutable>(&self, dst: GuestVa, value: &T) -> Result<(), Fault> {
        self.copy_to_guest(dst, value.as_bytes())
    }
}

/// A segment base the guest may set (`SEGBASE_*`, `xen.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentBase {
    /// FS base.
    Fs,
    /// GS base of guest user mode (in KERNEL_GS_BASE while the guest kernel runs).
    GsUser,
    /// GS base of the guest kernel (the active one while it runs).
    GsKernel,
}

/// Which vCPUs an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuSet {
    /// All online vCPUs.
    All,
    /// The vCPUs whose bit is set (ids 0..64).
    Mask(u64),
}

/// The values of a CPUID leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "register names")]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The processor the calling vCPU runs on.
pub trait Processor {
    /// Loads a guest L4 (kernel and user share it), after giving it the hypervisor's slots.
    /// Flushes the TLB of this processor. `false` where the frame is not the guest's RAM.
    fn load_cr3(&self, l4: Mfn) -> bool;
    /// Gives an L4 the hypervisor's slots without loading it. `false` as above.
    fn install_hole(&self, l4: Mfn) -> bool;
    /// Flushes non-global entries of this processor.
    fn flush_tlb_local(&self);
    /// Flushes one page on this processor.
    fn invlpg_local(&self, va: GuestVa);
    /// Flushes everything, or one page, on the given vCPUs, this one included if in the set.
    /// Returns when it is done everywhere.
    fn flush_tlb(&self, set: VcpuSet, va: Option<GuestVa>);
    /// Reads a segment base.
    fn segment_base(&self, which: SegmentBase) -> u64;
    /// Sets a segment base; `false` where the address is not canonical.
    fn set_segment_base(&self, which: SegmentBase, base: u64) -> bool;
    /// Loads a selector into the user GS (`SEGBASE_GS_USER_SEL`); a bad one loads null.
    /// `false` where it was bad.
    fn load_user_gs(&self, selector: u16) -> bool;
    /// The guest moves between user and kernel mode: exchanges the GS bases (SWAPGS).
    fn swapgs(&self);
    /// Current DS, ES, FS, GS selectors, in this order.
    fn data_selectors(&self) -> [u16; 4];
    /// Loads null into DS, ES, FS and GS, keeping the FS and GS bases' semantics of a null load.
    fn clear_data_selectors(&self);
    /// Sets or clears CR0.TS.
    fn set_ts(&self, on: bool);
    /// Writes hardware debug register 0-3, 6 or 7 (already validated).
    fn set_debugreg(&self, reg: u8, value: u64);
    /// Maps the frames as the vCPU's GDT pages 0.. (at most 14) and unmaps the others. The frames
    /// have been checked to be the guest's and their descriptors to be harmless.
    fn load_gdt(&self, frames: &[Mfn]);
    /// Sets the LDT (linear base, number of 8-byte entries; 0 entries unloads it).
    fn load_ldt(&self, base: GuestVa, entries: u32);
    /// Makes the gate of a vector reachable by INT n from guest user mode (true) or not.
    fn set_gate_user(&self, vector: u8, user: bool);
    /// Sets the I/O permission bitmap that guest user mode gets; `None` denies all. `nr_ports` ports
    /// are described by the bitmap at `va`, 1 = denied. Only devices the guest may see matter:
    /// ports of the host's own devices stay denied.
    fn set_iobitmap(&self, bitmap: Option<(GuestVa, u32)>) -> Result<(), Fault>;
    /// Executes CPUID on the hardware.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult;
    /// Reads XCR0.
    fn xcr0(&self) -> u64;
    /// Writes XCR0; `false` where the processor refuses the value.
    fn set_xcr0(&self, value: u64) -> bool;
    /// Reads TSC_AUX; sets it.
    fn set_tsc_aux(&self, value: u32);
    /// Value of CR4 bits the guest owns (FSGSBASE, ...) written through `mov cr4`; the shim
    /// applies what it allows and ignores the rest.
    fn guest_cr4(&self) -> u64;
    /// See [`Self::guest_cr4`].
    fn set_guest_cr4(&self, value: u64);
    /// WBINVD.
    fn wbinvd(&self);
    /// Loads page tables without anything of the guest's, which then is in no TLB of this processor.
    fn leave_guest_tables(&self);
    /// Loads x87 and SSE state; what MXCSR may not hold is left out.
    fn load_fpu(&self, image: &FpuImage);
}

/// How a TSC value becomes system time: `((tsc - tsc_timestamp) << shift) * mul >> 32 +
/// system_time`, with a right shift where `shift` is negative (`xen.h`, `vcpu_time_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "field names are the ABI's own")]
pub struct TscScale {
    pub tsc_timestamp: u64,
    pub system_time_ns: u64,
    pub mul: u32,
    pub shift: i8,
    /// TSC frequency in kHz.
    pub khz: u32,
    /// Whether the TSC is synchronous over all vCPUs (`XEN_PVCLOCK_TSC_STABLE_BIT`).
    pub stable: bool,
    /// Whether it keeps its rate as long as the machine runs, wherever that is moved.
    pub invariant: bool,
}

/// Time.
pub trait Clock {
    /// System time: nanoseconds since the domain was built, monotonic over all vCPUs.
    fn now_ns(&self) -> u64;
    /// The conversion in force.
    fn tsc_scale(&self) -> TscScale;
    /// Wall-clock time at system time 0: (seconds since 1970, nanoseconds).
    fn wallclock_base(&self) -> (u64, u32);
    /// Arms this vCPU's hardware timer for a system time, or disarms it.
    fn set_timer(&self, deadline_ns: Option<u64>);
    /// Nanoseconds this vCPU was runnable but not running, since boot (steal); 0 where unknown.
    fn stolen_ns(&self) -> u64;
}

/// Why the domain ends (`SHUTDOWN_*`, `sched.h`, and what Xen calls a domain crash).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Power off.
    Poweroff,
    /// Reset.
    Reboot,
    /// The guest kernel reported its own crash (`SHUTDOWN_crash`).
    GuestCrash,
    /// The guest's watchdog fired.
    Watchdog,
    /// The guest did something only a crash can answer; the text says what.
    DomainCrash(&'static str),
}

/// The rest of the world.
pub trait Host {
    /// Ends the domain. `regs` are printed for a crash.
    fn shutdown(&self, why: Shutdown, regs: Option<&crate::regs::CpuRegs>) -> !;
    /// Makes another vCPU look at its pending events, at what was asked of it, and whether it is up:
    /// interrupts it, in the guest or in a halt. Not called for the current one.
    fn kick(&self, vcpu: u32);
    /// Gives access to a vCPU that has never run; meanwhile its processor leaves it alone. `false`
    /// where there is none with this id.
    fn with_new_vcpu(&self, id: u32, f: &mut dyn FnMut(&mut Vcpu)) -> bool;
    /// Tells the host this vCPU spins or yields (long-spin-wait hint).
    fn yield_hint(&self);
    /// Writes bytes to the guest's console device.
    fn console_write(&self, bytes: &[u8]);
    /// Takes input bytes from the guest's console device; returns how many.
    fn console_read(&self, into: &mut [u8]) -> usize;
    /// The guest notified a backend that is not this crate's, or, for [`Backend::Xenstore`], wrote
    /// something that such a backend watches. Whether there is more to do: it is called again once
    /// events have been looked at.
    fn kick_backend(&self, dom: &Domain, here: Here<'_>, backend: Backend) -> bool {
        let _ = (dom, here, backend);
        false
    }
    /// Logs a line at debug level, from the shim about the guest.
    fn log(&self, text: core::fmt::Arguments<'_>);
}

/// Everything together.
pub trait Platform: GuestMemory + Processor + Clock + Host {}
impl<T: GuestMemory + Processor + Clock + Host> Platform for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_copied_from_anywhere_to_anywhere() {
        let page = |seed: u64| -> PageWords {
            core::array::from_fn(|nr| {
                AtomicU64::new((nr as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            })
        };
        let bytes = |page: &PageWords| -> std::vec::Vec<u8> {
            page.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
        };
        let from = page(1);
        for at in (0..20).chain(4070..4100) {
            for source in (0..9).chain([100, 4085, 4096, 5000]) {
                for len in [0, 1, 2, 7, 8, 9, 15, 16, 17, 40, 4096] {
                    let to = page(7);
                    let mut wanted = bytes(&to);
                    copy_page_bytes((&to, at), (&from, source), len);
                    let len =
                        len.min(4096usize.saturating_sub(at)).min(4096usize.saturating_sub(source));
                    if len > 0 {
                        wanted[at..at + len].copy_from_slice(&bytes(&from)[source..source + len]);
                    }
                    assert!(bytes(&to) == wanted, "{len} bytes from {source} to {at}");
                }
            }
        }
    }
}
