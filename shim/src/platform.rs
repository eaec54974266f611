//! What the translation core asks of ring 0.

use core::arch::asm;

use translate::domain::Domain;
use translate::evtchn::{Backend, Here};
use translate::platform::{
    Clock, CpuidResult, Fault, GuestMemory, Host, PageWords, Processor, SegmentBase, Shutdown,
    TscScale, VcpuSet,
};
use translate::regs::CpuRegs;
use translate::vcpu::Vcpu;
use translate::vcpu_start::FpuImage;
use xen_abi::{GuestVa, MachineAddr, Mfn, Pfn, SharedView};

use crate::cpu::{self, Cpu, msr};
use crate::mm::{guest, phys_to_virt, words};

/// The platform on this processor.
pub struct Shim<'a> {
    /// The processor's own state.
    pub cpu: &'a Cpu,
}

impl GuestMemory for Shim<'_> {
    #[inline]
    fn copy_from_guest(&self, dst: &mut [u8], src: GuestVa) -> Result<(), Fault> {
        if guest::copy_from(dst, src) { Ok(()) } else { Err(Fault) }
    }
    #[inline]
    fn copy_to_guest(&self, dst: GuestVa, src: &[u8]) -> Result<(), Fault> {
        if guest::copy_to(dst, src) { Ok(()) } else { Err(Fault) }
    }
    #[inline(always)]
    fn read_words<const WORDS: usize>(&self, src: GuestVa) -> Result<[u64; WORDS], Fault> {
        words::read(src).ok_or(Fault)
    }
    #[inline(always)]
    fn write_words<const WORDS: usize>(
        &self,
        dst: GuestVa,
        from: [u64; WORDS],
    ) -> Result<(), Fault> {
        if words::write(dst, &from) { Ok(()) } else { Err(Fault) }
    }
    #[inline]
    fn frame(&self, mfn: Mfn) -> Option<&'static PageWords> {
        guest::frame(mfn)
    }
    #[inline(always)]
    fn ram_frame(&self, mfn: Mfn) -> Option<&'static PageWords> {
        guest::ram_frame(mfn)
    }
    #[inline(always)]
    fn is_ram(&self, mfn: Mfn) -> bool {
        guest::is_ram(mfn)
    }
    #[inline(always)]
    fn is_hole_entry(&self, entry: u64) -> bool {
        guest::is_hole_entry(entry)
    }
    fn view<T: SharedView>(&self, at: MachineAddr) -> Option<&'static T> {
        guest::view(at)
    }
    #[inline]
    fn may_map(&self, mfn: Mfn) -> bool {
        guest::may_map(mfn)
    }
    #[inline]
    fn m2p(&self, mfn: Mfn) -> Option<Pfn> {
        guest::m2p(mfn)
    }
    fn set_m2p(&self, mfn: Mfn, pfn: Pfn) -> bool {
        guest::set_m2p(mfn, pfn)
    }
    fn max_mfn(&self) -> Mfn {
        Mfn(guest::max_mfn())
    }
    fn release_frame(&self, mfn: Mfn) -> bool {
        guest::release(mfn)
    }
    fn acquire_frame(&self, pfn: Pfn) -> Option<Mfn> {
        guest::acquire(pfn)
    }
}

/// A canonical 48-bit address.
fn is_canonical(address: u64) -> bool {
    (address.cast_signed() << 16 >> 16).cast_unsigned() == address
}

unsafe extern "C" {
    fn load_gs_checked(selector: u32) -> u64;
    fn xsetbv_checked(value: u64) -> u64;
}

/// DS, ES, FS, GS.
pub fn data_selectors() -> [u16; 4] {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: only reads the selectors.
    unsafe {
        asm!("mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags));
    }
    [ds, es, fs, gs]
}

fn swapgs() {
    // SAFETY: both GS bases are the guest's; the shim uses neither.
    unsafe { asm!("swapgs", options(nomem, nostack, preserves_flags)) };
}

impl Processor for Shim<'_> {
    #[inline]
    fn load_cr3(&self, l4: Mfn) -> bool {
        let Some(words) = guest::frame(l4) else { return false };
        guest::install_slots(words);
        let value = l4.base().0;
        self.cpu.cr3.set(value);
        // SAFETY: the L4 has the shim's slots.
        unsafe { cpu::write_cr3(value) };
        true
    }
    fn install_hole(&self, l4: Mfn) -> bool {
        guest::frame(l4).map(guest::install_slots).is_some()
    }
    #[inline]
    fn flush_tlb_local(&self) {
        self.cpu.reload_cr3();
    }
    #[inline]
    fn invlpg_local(&self, va: GuestVa) {
        cpu::invlpg(va.0);
    }
    #[inline]
    fn flush_tlb(&self, set: VcpuSet, va: Option<GuestVa>) {
        let set = match set {
            VcpuSet::All => u64::MAX,
            VcpuSet::Mask(mask) => mask,
        };
        let me = 1 << (self.cpu.id & 63);
        crate::guest::domain().flush_tlbs(set & !me, |others| {
            cpu::ipi::flush(self.cpu, others, va);
            va.is_none()
        });
        match va {
            _ if set & me == 0 => {}
            Some(va) => self.invlpg_local(va),
            None => self.flush_tlb_local(),
        }
    }
    fn segment_base(&self, which: SegmentBase) -> u64 {
        let number = match which {
            SegmentBase::Fs => msr::nr::FS_BASE,
            SegmentBase::GsKernel => msr::nr::GS_BASE,
            SegmentBase::GsUser => msr::nr::KERNEL_GS_BASE,
        };
        // SAFETY: every 64-bit processor has these.
        unsafe { msr::read(number) }
    }
    #[inline]
    fn set_segment_base(&self, which: SegmentBase, base: u64) -> bool {
        if !is_canonical(base) {
            return false;
        }
        let number = match which {
            SegmentBase::Fs => msr::nr::FS_BASE,
            SegmentBase::GsKernel => msr::nr::GS_BASE,
            SegmentBase::GsUser => msr::nr::KERNEL_GS_BASE,
        };
        // SAFETY: the address is canonical and the shim uses neither FS nor GS.
        unsafe { msr::write(number, base) };
        true
    }
    fn load_user_gs(&self, selector: u16) -> bool {
        swapgs();
        // SAFETY: the assembly catches a selector that cannot be loaded.
        let refused = unsafe { load_gs_checked(u32::from(selector)) };
        swapgs();
        refused == 0
    }
    #[inline]
    fn swapgs(&self) {
        swapgs();
    }
    fn data_selectors(&self) -> [u16; 4] {
        data_selectors()
    }
    fn clear_data_selectors(&self) {
        // SAFETY: null selectors; the shim uses none of these segments.
        unsafe {
            asm!("mov ds, {0:e}", "mov es, {0:e}", "mov fs, {0:e}", "mov gs, {0:e}",
                in(reg) 0, options(nomem, nostack, preserves_flags));
        }
    }
    #[inline]
    fn set_ts(&self, on: bool) {
        if on {
            // SAFETY: TS only makes the guest's next FPU use trap; the shim uses no FPU.
            unsafe {
                asm!("mov {0}, cr0", "or {0}, 8", "mov cr0, {0}", out(reg) _,
                    options(nomem, nostack));
            }
        } else {
            // SAFETY: as above.
            unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) };
        }
    }
    fn set_debugreg(&self, reg: u8, value: u64) {
        macro_rules! write {
            ($name:literal) => {
                // SAFETY: a validated value: breakpoints of the guest, which ring 0 tolerates.
                unsafe {
                    asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nomem, nostack));
                }
            };
        }
        match reg {
            0 => write!("dr0"),
            1 => write!("dr1"),
            2 => write!("dr2"),
            3 => write!("dr3"),
            6 => write!("dr6"),
            7 => write!("dr7"),
            _ => {}
        }
    }
    fn load_gdt(&self, frames: &[Mfn]) {
        self.cpu.load_gdt(frames);
    }
    fn load_ldt(&self, base: GuestVa, entries: u32) {
        self.cpu.load_ldt(base.0, entries);
    }
    fn set_gate_user(&self, vector: u8, user: bool) {
        cpu::idt::set_user(vector, user);
    }
    fn set_iobitmap(&self, _bitmap: Option<(GuestVa, u32)>) -> Result<(), Fault> {
        // The guest owns no port, so every access traps whatever the bitmap says, and emulation
        // asks the guest's bitmap.
        Ok(())
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let r = cpu::cpuid(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    }
    fn xcr0(&self) -> u64 {
        if !self.cpu.has_xsave.get() {
            return 0;
        }
        let (low, high): (u32, u32);
        // SAFETY: CR4.OSXSAVE is set where the processor has XSAVE.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
                options(nomem, nostack, preserves_flags));
        }
        u64::from(high) << 32 | u64::from(low)
    }
    fn set_xcr0(&self, value: u64) -> bool {
        // SAFETY: the assembly catches a value the processor refuses; the shim uses no such state.
        self.cpu.has_xsave.get() && unsafe { xsetbv_checked(value) } == 0
    }
    fn set_tsc_aux(&self, value: u32) {
        // SAFETY: the register is the guest's own; processors without it refuse, which is caught.
        unsafe { msr::try_write(msr::nr::TSC_AUX, u64::from(value)) };
    }
    fn guest_cr4(&self) -> u64 {
        self.cpu.guest_cr4.get()
    }
    fn set_guest_cr4(&self, value: u64) {
        self.cpu.set_guest_cr4(value);
    }
    fn leave_guest_tables(&self) {
        self.cpu.leave_guest_tables();
    }
    fn load_fpu(&self, image: &FpuImage) {
        /// MXCSR bits every processor with 64-bit mode has.
        const MXCSR: u32 = 0xffff;
        let mut image = *image;
        let mxcsr = &mut image.0[24..28];
        let value = u32::from_le_bytes([mxcsr[0], mxcsr[1], mxcsr[2], mxcsr[3]]) & MXCSR;
        mxcsr.copy_from_slice(&value.to_le_bytes());
        // SAFETY: the image is aligned, and MXCSR has no reserved bit; the shim uses no FPU.
        unsafe { asm!("clts", "fxrstor64 [{}]", in(reg) &raw const image, options(nostack)) };
    }
    fn wbinvd(&self) {
        // SAFETY: writes caches back.
        unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
    }
}

impl Clock for Shim<'_> {
    #[inline]
    fn now_ns(&self) -> u64 {
        crate::time::now_ns()
    }
    fn tsc_scale(&self) -> TscScale {
        let same = cpu::tsc::are_same();
        let scale = crate::time::tsc_scale();
        TscScale { stable: scale.stable && same, invariant: scale.invariant && same, ..scale }
    }
    fn wallclock_base(&self) -> (u64, u32) {
        crate::time::wallclock()
    }
    fn set_timer(&self, deadline_ns: Option<u64>) {
        crate::time::set_timer(self.cpu, deadline_ns);
    }
    fn stolen_ns(&self) -> u64 {
        crate::time::stolen_ns(self.cpu)
    }
}

impl Host for Shim<'_> {
    fn shutdown(&self, why: Shutdown, regs: Option<&CpuRegs>) -> ! {
        crate::fatal::shutdown(why, regs)
    }
    fn kick(&self, vcpu: u32) {
        cpu::ipi::send(1 << (vcpu & 63), cpu::idt::vector::KICK);
    }
    fn with_new_vcpu(&self, id: u32, f: &mut dyn FnMut(&mut Vcpu)) -> bool {
        cpu::smp::with_new_vcpu(id, f)
    }
    fn yield_hint(&self) {
        crate::hv::notify_long_spin_wait(u32::MAX);
    }
    fn console_write(&self, bytes: &[u8]) {
        crate::console::write_bytes(bytes);
    }
    fn console_read(&self, into: &mut [u8]) -> usize {
        crate::console::read_bytes(self.cpu, into)
    }
    fn kick_backend(&self, dom: &Domain, here: Here<'_>, backend: Backend) -> bool {
        crate::devices::kicked(self, dom, here, backend)
    }
    fn log(&self, text: core::fmt::Arguments<'_>) {
        crate::log::log(crate::log::Level::Debug, text);
    }
}

/// A copy into the direct map, for the builder.
///
/// # Safety
/// The range must be guest RAM nothing else uses.
pub unsafe fn write_phys(address: u64, bytes: &[u8]) {
    // SAFETY: the caller's promise; `copy` allows for the source to overlap.
    unsafe { phys_to_virt(address).copy_from(bytes.as_ptr(), bytes.len()) };
}
