//! A platform of plain memory, for tests.
//!
//! [`Machine::new`] makes a domain of a few frames with one vCPU; [`Machine::cx`] is what a
//! handler takes. Guest frame `pfn` is machine frame `FIRST_MFN + pfn`, and is mapped writable at
//! [`va`]`(pfn)`; tests map more with [`FakePlatform::map`]. What the code under test asks of
//! ring 0 is recorded: [`FakePlatform::calls`].

use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::string::String;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::vec::Vec;

use xen_abi::mm::{FIRST_XEN_SLOT, HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START};
use xen_abi::shared_info::SharedInfo;
use xen_abi::{GuestVa, MachineAddr, Mfn, Pfn, SharedView};

use crate::Ctx;
use crate::domain::{Domain, VcpuShared};
use crate::platform::{
    Clock, CpuidResult, Fault, GuestMemory, PageWords, Processor, SegmentBase, TscScale, VcpuSet,
};
use crate::regs::{CpuRegs, selector};
use crate::vcpu::Vcpu;
use crate::vcpu_start::FpuImage;

mod host;
pub use host::catch_shutdown;

/// Machine frame of guest frame 0.
pub const FIRST_MFN: u64 = 0x1000;
/// Machine frame of `shared_info`.
pub const SHARED_INFO_MFN: Mfn = Mfn(0xf00);
/// What an L4 that has been loaded or pinned has in slot 256: a frame the guest may not map.
pub const HOLE_ENTRY: u64 = 0x63;
/// Where guest frame 0 is mapped.
pub const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;

/// Where guest frame `pfn` is mapped at the start.
pub const fn va(pfn: u64) -> GuestVa {
    GuestVa(DIRECT_MAP + pfn * 4096)
}

/// The machine frame of guest frame `pfn`.
pub const fn mfn(pfn: u64) -> Mfn {
    Mfn(FIRST_MFN + pfn)
}

/// What the code under test asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the methods of the platform")]
pub enum Call {
    LoadCr3(Mfn),
    InstallHole(Mfn),
    FlushTlbLocal,
    InvlpgLocal(GuestVa),
    FlushTlb(VcpuSet, Option<GuestVa>),
    SetSegmentBase(SegmentBase, u64),
    LoadUserGs(u16),
    Swapgs,
    ClearDataSelectors,
    SetTs(bool),
    SetDebugreg(u8, u64),
    LoadGdt(Vec<Mfn>),
    LoadLdt(GuestVa, u32),
    SetGateUser(u8, bool),
    SetIobitmap(Option<(GuestVa, u32)>),
    SetXcr0(u64),
    SetTscAux(u32),
    SetGuestCr4(u64),
    Wbinvd,
    LeaveGuestTables,
    LoadFpu,
    SetTimer(Option<u64>),
    Kick(u32),
    YieldHint,
    ConsoleWrite(Vec<u8>),
    Log(String),
}

/// A guest frame.
#[derive(Clone, Copy)]
struct Frame {
    words: &'static PageWords,
    owned: bool,
    m2p: Pfn,
}

/// What a test may set and look at.
pub struct State {
    frames: Vec<Frame>,
    shared_info: &'static PageWords,
    map: BTreeMap<u64, (Mfn, bool)>,
    calls: Vec<Call>,
    /// System time.
    pub now_ns: u64,
    /// The conversion in force.
    pub tsc_scale: TscScale,
    /// Wall clock at system time 0.
    pub wallclock_base: (u64, u32),
    /// Steal time.
    pub stolen_ns: u64,
    /// Bytes the console device holds for the guest.
    pub console_in: VecDeque<u8>,
    /// FS base.
    pub fs_base: u64,
    /// GS base in force: the kernel's while it runs.
    pub gs_base: u64,
    /// KERNEL_GS_BASE: the user's while the kernel runs.
    pub inactive_gs_base: u64,
    /// DS, ES, FS, GS.
    pub data_selectors: [u16; 4],
    /// Answers of CPUID; zeros for the others.
    pub cpuid: BTreeMap<(u32, u32), CpuidResult>,
    /// XCR0.
    pub xcr0: u64,
    /// CR4 as the guest wrote it.
    pub guest_cr4: u64,
}

/// The platform.
pub struct FakePlatform {
    state: Mutex<State>,
    /// vCPUs that have never run, by id.
    new_vcpus: Mutex<BTreeMap<u32, Vcpu>>,
}

/// Pages of machines that are gone, for reuse: many thousands of cases would leak too much.
static POOL: Mutex<Vec<&'static PageWords>> = Mutex::new(Vec::new());

fn page() -> &'static PageWords {
    let reused = POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
    let words = reused.unwrap_or_else(|| Box::leak(Box::new([const { AtomicU64::new(0) }; 512])));
    words.iter().for_each(|word| word.store(0, Relaxed));
    words
}

impl Drop for FakePlatform {
    fn drop(&mut self) {
        let state = self.state();
        let mut pool = POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pool.extend(state.frames.iter().map(|frame| frame.words));
        // Its domain is gone, or points into a page of another machine's now, which is of the
        // same make.
        pool.push(state.shared_info);
    }
}

impl FakePlatform {
    /// A platform whose guest has `nr_pages` frames.
    pub fn new(nr_pages: u64) -> Self {
        let frames =
            (0..nr_pages).map(|pfn| Frame { words: page(), owned: true, m2p: Pfn(pfn) }).collect();
        let map = (0..nr_pages).map(|pfn| (va(pfn).0 >> 12, (mfn(pfn), true))).collect();
        Self {
            new_vcpus: Mutex::default(),
            state: Mutex::new(State {
                frames,
                shared_info: page(),
                map,
                calls: Vec::new(),
                now_ns: 1_000_000_000,
                tsc_scale: TscScale {
                    tsc_timestamp: 0,
                    system_time_ns: 0,
                    mul: 0x8000_0000,
                    shift: 1,
                    khz: 1_000_000,
                    stable: true,
                    invariant: false,
                },
                wallclock_base: (1_700_000_000, 0),
                stolen_ns: 0,
                console_in: VecDeque::new(),
                fs_base: 0,
                gs_base: 0x6b,
                inactive_gs_base: 0x75,
                data_selectors: [0; 4],
                cpuid: BTreeMap::new(),
                xcr0: 1,
                guest_cr4: 0,
            }),
        }
    }

    /// What a test may set and look at. Do not hold it over a call into the code under test.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The calls since the last time, in order.
    pub fn calls(&self) -> Vec<Call> {
        core::mem::take(&mut self.state().calls)
    }

    /// Maps the page at `va` to a frame.
    pub fn map(&self, va: GuestVa, mfn: Mfn, writable: bool) {
        self.state().map.insert(va.0 >> 12, (mfn, writable));
    }

    /// Unmaps the page at `va`.
    pub fn unmap(&self, va: GuestVa) {
        self.state().map.remove(&(va.0 >> 12));
    }

    /// Writes a word of guest memory, whatever its mapping allows.
    pub fn poke(&self, va: GuestVa, value: u64) {
        let state = self.state();
        let (mfn, _) = *state.map.get(&(va.0 >> 12)).expect("poke: mapped");
        let words = state.words(mfn).expect("poke: a guest frame");
        words[(va.0 & 4095) as usize / 8].store(value, Relaxed);
    }

    /// Reads a word of guest memory.
    pub fn peek(&self, va: GuestVa) -> u64 {
        let state = self.state();
        let (mfn, _) = *state.map.get(&(va.0 >> 12)).expect("peek: mapped");
        state.words(mfn).expect("peek: a guest frame")[(va.0 & 4095) as usize / 8].load(Relaxed)
    }

    fn record(&self, call: Call) {
        self.state().calls.push(call);
    }

    /// Runs `access` on each part of a range that lies in one word: the word, the offset in it,
    /// the offset in the range and the length.
    fn each_part(
        &self,
        at: GuestVa,
        len: usize,
        write: bool,
        mut access: impl FnMut(&AtomicU64, usize, usize, usize),
    ) -> Result<(), Fault> {
        let state = self.state();
        let mut done = 0;
        while done < len {
            let va = at.0.checked_add(done as u64).ok_or(Fault)?;
            if (HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&va) {
                return Err(Fault);
            }
            let &(mfn, writable) = state.map.get(&(va >> 12)).ok_or(Fault)?;
            if write && !writable {
                return Err(Fault);
            }
            let words = state.words(mfn).ok_or(Fault)?;
            let offset = (va & 7) as usize;
            let part = (8 - offset).min(len - done);
            access(&words[(va & 4095) as usize / 8], offset, done, part);
            done += part;
        }
        Ok(())
    }
}

impl State {
    fn owned(&self, mfn: Mfn) -> Option<&Frame> {
        let index = usize::try_from(mfn.0.checked_sub(FIRST_MFN)?).ok()?;
        self.frames.get(index).filter(|frame| frame.owned)
    }

    fn owned_mut(&mut self, mfn: Mfn) -> Option<&mut Frame> {
        let index = usize::try_from(mfn.0.checked_sub(FIRST_MFN)?).ok()?;
        self.frames.get_mut(index).filter(|frame| frame.owned)
    }

    fn install_hole(&self, l4: Mfn) -> bool {
        let frame = self.owned(l4);
        frame.map(|frame| frame.words[FIRST_XEN_SLOT].store(HOLE_ENTRY, Relaxed)).is_some()
    }

    fn words(&self, mfn: Mfn) -> Option<&'static PageWords> {
        if mfn == SHARED_INFO_MFN {
            return Some(self.shared_info);
        }
        self.owned(mfn).map(|frame| frame.words)
    }
}

impl GuestMemory for FakePlatform {
    fn is_hole_entry(&self, entry: u64) -> bool {
        entry == HOLE_ENTRY
    }
    fn copy_from_guest(&self, dst: &mut [u8], src: GuestVa) -> Result<(), Fault> {
        self.each_part(src, dst.len(), false, |word, offset, at, len| {
            let bytes = word.load(Relaxed).to_le_bytes();
            dst[at..at + len].copy_from_slice(&bytes[offset..offset + len]);
        })
    }

    fn copy_to_guest(&self, dst: GuestVa, src: &[u8]) -> Result<(), Fault> {
        self.each_part(dst, src.len(), true, |word, offset, at, len| {
            let mut bytes = word.load(Relaxed).to_le_bytes();
            bytes[offset..offset + len].copy_from_slice(&src[at..at + len]);
            word.store(u64::from_le_bytes(bytes), Relaxed);
        })
    }

    fn frame(&self, mfn: Mfn) -> Option<&'static PageWords> {
        self.state().words(mfn)
    }

    #[expect(unsafe_code, reason = "atomics as another type made of atomics: no safe way exists")]
    fn view<T: SharedView>(&self, at: MachineAddr) -> Option<&'static T> {
        let words = self.frame(at.mfn())?;
        let offset = at.offset() as usize;
        if !offset.is_multiple_of(align_of::<T>()) || offset.checked_add(size_of::<T>())? > 4096 {
            return None;
        }
        let first = words.as_ptr().cast::<u8>().wrapping_add(offset).cast::<T>();
        assert!(first.is_aligned(), "the page's words are aligned for every shared structure");
        // SAFETY: the page is leaked (so 'static) and initialised; the range lies in it and is
        // aligned, as checked above; T is valid for every bit pattern (FromBytes) and made of
        // atomics only (SharedView), so that references to it may alias the words.
        Some(unsafe { &*first })
    }

    fn may_map(&self, mfn: Mfn) -> bool {
        self.state().words(mfn).is_some()
    }

    fn m2p(&self, mfn: Mfn) -> Option<Pfn> {
        self.state().owned(mfn).map(|frame| frame.m2p)
    }

    fn set_m2p(&self, mfn: Mfn, pfn: Pfn) -> bool {
        self.state().owned_mut(mfn).map(|frame| frame.m2p = pfn).is_some()
    }

    fn max_mfn(&self) -> Mfn {
        Mfn(FIRST_MFN + self.state().frames.len() as u64)
    }

    fn release_frame(&self, mfn: Mfn) -> bool {
        self.state()
            .owned_mut(mfn)
            .map(|frame| {
                frame.owned = false;
                frame.m2p = Pfn(u64::MAX);
            })
            .is_some()
    }

    fn acquire_frame(&self, pfn: Pfn) -> Option<Mfn> {
        let mut state = self.state();
        let (index, frame) = state.frames.iter_mut().enumerate().find(|(_, frame)| !frame.owned)?;
        frame.owned = true;
        frame.m2p = pfn;
        frame.words.iter().for_each(|word| word.store(0, Relaxed));
        Some(mfn(index as u64))
    }
}

/// Whether an address is canonical for 48 bits.
const fn canonical(address: u64) -> bool {
    ((address << 16).cast_signed() >> 16).cast_unsigned() == address
}

impl Processor for FakePlatform {
    fn load_cr3(&self, l4: Mfn) -> bool {
        self.record(Call::LoadCr3(l4));
        self.state().install_hole(l4)
    }
    fn install_hole(&self, l4: Mfn) -> bool {
        self.record(Call::InstallHole(l4));
        self.state().install_hole(l4)
    }
    fn flush_tlb_local(&self) {
        self.record(Call::FlushTlbLocal);
    }
    fn invlpg_local(&self, va: GuestVa) {
        self.record(Call::InvlpgLocal(va));
    }
    fn flush_tlb(&self, set: VcpuSet, va: Option<GuestVa>) {
        self.record(Call::FlushTlb(set, va));
    }
    fn segment_base(&self, which: SegmentBase) -> u64 {
        let state = self.state();
        match which {
            SegmentBase::Fs => state.fs_base,
            SegmentBase::GsUser => state.inactive_gs_base,
            SegmentBase::GsKernel => state.gs_base,
        }
    }
    fn set_segment_base(&self, which: SegmentBase, base: u64) -> bool {
        self.record(Call::SetSegmentBase(which, base));
        let mut state = self.state();
        if canonical(base) {
            *match which {
                SegmentBase::Fs => &mut state.fs_base,
                SegmentBase::GsUser => &mut state.inactive_gs_base,
                SegmentBase::GsKernel => &mut state.gs_base,
            } = base;
        }
        canonical(base)
    }
    fn load_user_gs(&self, selector: u16) -> bool {
        self.record(Call::LoadUserGs(selector));
        let good = selector < 4 || selector == selector::USER_SS;
        self.state().data_selectors[3] = if good { selector } else { 0 };
        good
    }
    fn swapgs(&self) {
        self.record(Call::Swapgs);
        let state = &mut *self.state();
        core::mem::swap(&mut state.gs_base, &mut state.inactive_gs_base);
    }
    fn data_selectors(&self) -> [u16; 4] {
        self.state().data_selectors
    }
    fn clear_data_selectors(&self) {
        self.record(Call::ClearDataSelectors);
        self.state().data_selectors = [0; 4];
    }
    fn set_ts(&self, on: bool) {
        self.record(Call::SetTs(on));
    }
    fn set_debugreg(&self, reg: u8, value: u64) {
        self.record(Call::SetDebugreg(reg, value));
    }
    fn load_gdt(&self, frames: &[Mfn]) {
        self.record(Call::LoadGdt(frames.to_vec()));
    }
    fn load_ldt(&self, base: GuestVa, entries: u32) {
        self.record(Call::LoadLdt(base, entries));
    }
    fn set_gate_user(&self, vector: u8, user: bool) {
        self.record(Call::SetGateUser(vector, user));
    }
    fn set_iobitmap(&self, bitmap: Option<(GuestVa, u32)>) -> Result<(), Fault> {
        self.record(Call::SetIobitmap(bitmap));
        Ok(())
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.state().cpuid.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }
    fn xcr0(&self) -> u64 {
        self.state().xcr0
    }
    fn set_xcr0(&self, value: u64) -> bool {
        self.record(Call::SetXcr0(value));
        let good = value & 1 == 1;
        if good {
            self.state().xcr0 = value;
        }
        good
    }
    fn set_tsc_aux(&self, value: u32) {
        self.record(Call::SetTscAux(value));
    }
    fn guest_cr4(&self) -> u64 {
        self.state().guest_cr4
    }
    fn set_guest_cr4(&self, value: u64) {
        self.record(Call::SetGuestCr4(value));
        self.state().guest_cr4 = value;
    }
    fn wbinvd(&self) {
        self.record(Call::Wbinvd);
    }
    fn leave_guest_tables(&self) {
        self.record(Call::LeaveGuestTables);
    }
    fn load_fpu(&self, _image: &FpuImage) {
        self.record(Call::LoadFpu);
    }
}

impl Clock for FakePlatform {
    fn now_ns(&self) -> u64 {
        self.state().now_ns
    }
    fn tsc_scale(&self) -> TscScale {
        self.state().tsc_scale
    }
    fn wallclock_base(&self) -> (u64, u32) {
        self.state().wallclock_base
    }
    fn set_timer(&self, deadline_ns: Option<u64>) {
        self.record(Call::SetTimer(deadline_ns));
    }
    fn stolen_ns(&self) -> u64 {
        self.state().stolen_ns
    }
}

/// A platform with a domain on it.
pub struct Machine {
    /// The domain; leaked in its own box so that views of it may be 'static.
    pub dom: Box<Domain>,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// The platform.
    pub plat: FakePlatform,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// A domain of 64 frames with one vCPU.
    pub fn new() -> Self {
        Self::with(64, 1)
    }

    /// A domain of `nr_pages` frames with `nr_vcpus` vCPUs.
    pub fn with(nr_pages: u64, nr_vcpus: u32) -> Self {
        let plat = FakePlatform::new(nr_pages);
        let shared_info: &'static SharedInfo =
            plat.view(SHARED_INFO_MFN.base()).expect("shared_info is a frame");
        for info in &shared_info.vcpu_info {
            info.evtchn_upcall_mask.store(1, Relaxed);
        }
        let dom = Box::new(Domain::new(shared_info, SHARED_INFO_MFN.base(), nr_pages, nr_vcpus));
        let vcpus = (0..nr_vcpus)
            .map(|id| {
                let info = shared_info.vcpu_info.get(id as usize);
                let shared = &dom.vcpus[id as usize];
                *shared.info.lock() = info;
                shared.begin();
                Vcpu::new(id, info.unwrap_or(&shared_info.vcpu_info[0]))
            })
            .collect();
        Self { dom, vcpus, plat }
    }

    /// What a handler takes, for vCPU 0.
    pub fn cx(&mut self) -> Ctx<'_, FakePlatform> {
        self.cx_of(0)
    }

    /// What a handler takes.
    pub fn cx_of(&mut self, vcpu: usize) -> Ctx<'_, FakePlatform> {
        Ctx { dom: &self.dom, vcpu: &mut self.vcpus[vcpu], plat: &self.plat }
    }

    /// Makes a vCPU one that has never run: its processor waits in ring 0.
    pub fn make_new(&mut self, id: u32) {
        let info = self.dom.shared_info.vcpu_info.get(id as usize);
        let shared = &mut self.dom.vcpus[id as usize];
        *shared = VcpuShared::new();
        *shared.info.lock() = info;
        let vcpu = Vcpu::new(id, info.unwrap_or(&self.dom.shared_info.vcpu_info[0]));
        self.plat.new_vcpus().insert(id, vcpu);
    }

    /// What a new vCPU's processor does when it is up: takes the vCPU over. `false`: it is not up.
    pub fn take_over(&mut self, id: u32) -> bool {
        let up = self.dom.vcpus[id as usize].online.load(Relaxed);
        if up && let Some(vcpu) = self.plat.new_vcpus().remove(&id) {
            self.vcpus[id as usize] = vcpu;
        }
        up
    }

    /// `vcpu_info` of vCPU 0.
    pub fn info(&self) -> &'static xen_abi::shared_info::VcpuInfo {
        self.vcpus[0].entry.info
    }
}

/// Registers of a guest kernel that made a hypercall.
pub fn kernel_regs() -> CpuRegs {
    CpuRegs {
        rip: 0xffff_ffff_8100_0002,
        cs: selector::KERNEL_CS.into(),
        rflags: 0x202,
        rsp: va(1).0 + 0xf00,
        ss: selector::KERNEL_SS.into(),
        vector: CpuRegs::VECTOR_SYSCALL,
        ..CpuRegs::default()
    }
}

/// Registers of a guest program that was interrupted.
pub fn user_regs() -> CpuRegs {
    CpuRegs {
        rip: 0x40_1000,
        cs: selector::USER_CS64.into(),
        rflags: 0x246,
        rsp: 0x7fff_ffff_e000,
        ss: selector::USER_SS.into(),
        ..CpuRegs::default()
    }
}
