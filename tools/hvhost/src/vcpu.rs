//! One virtual processor: its first state and its run loop.
#![allow(unsafe_code, reason = "unions and the data area of kvm_run")]

use crate::boot::{Entry, GDT};
use crate::exit::Outcome;
use crate::ioapic::{self, IoApic};
use crate::kvm_ext::{set_tsc_offset, tsc_offset};
use crate::memory::{IOAPIC_BASE, Memory};
use crate::migration::Migration;
use crate::msrs::CrashMsrs;
use crate::ports::Ports;
use crate::routing::Kickable;
use crate::stats::{Counters, ExitReason};
use crate::synic::Synic;
use crate::tsc;
use crate::vmbus::Bus;
use anyhow::{Context, Result};
use hv_abi::HvStatus;
use hv_abi::hypercall::{Control, HvResult};
use hv_abi::msr::{
    HV_X64_MSR_EOM, HV_X64_MSR_REENLIGHTENMENT_CONTROL, HV_X64_MSR_TSC_EMULATION_CONTROL,
    HV_X64_MSR_TSC_EMULATION_STATUS, PageMsr, ReenlightenmentControl, TSC_EMULATION_ENABLED,
    TSC_EMULATION_IN_PROGRESS,
};
use kvm_bindings::{
    KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNIC, KVM_EXIT_IO_OUT, KVM_SYSTEM_EVENT_RESET, Msrs,
    kvm_msr_entry, kvm_regs, kvm_run, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::{Bytes, GuestAddress};

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_SCE: u64 = 1 << 0;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const MSR_IA32_TSC: u32 = 0x10;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
const RFLAGS_FIXED: u64 = 2;

/// What the virtual processors share.
pub struct Shared {
    /// Guest memory.
    pub memory: Memory,
    /// I/O ports.
    pub ports: Ports,
    /// IOAPIC.
    pub ioapic: Arc<IoApic>,
    /// Crash MSRs.
    pub crash: Mutex<CrashMsrs>,
    /// SynICs.
    pub synic: Arc<Synic>,
    /// VMBus, where the guest may use it.
    pub bus: Option<Arc<Bus>>,
    /// Moves to another host.
    pub migration: Arc<Migration>,
    /// Counters.
    pub counters: Arc<Counters>,
}

/// A virtual processor with what it needs to run.
pub struct Vcpu {
    id: u32,
    fd: VcpuFd,
    shared: Arc<Shared>,
    /// Moves it has made.
    moves: u32,
    /// The TSC's rate, where the processor has another.
    faster: Option<Faster>,
}

/// A TSC that is made to go faster than the processor's, by steps ahead.
struct Faster {
    /// The processor's TSC, and the guest's distance from it, when this began.
    begin: (u64, u64),
    percent: u64,
}

/// What an exit leads to.
enum Next {
    Run,
    End(Outcome),
    /// The exit's data is in the shared page, where `VcpuExit` does not show it.
    Io,
    Hyperv,
    /// The guest freed a message slot others wait for.
    EndOfMessage,
    /// The processor refuses the guest's state.
    Refused(u64),
    /// KVM gives up on the guest, for a reason in the shared page.
    Internal,
    /// KVM gives up on the guest.
    Broken(String),
}

impl Vcpu {
    /// A virtual processor whose CPUID is already set.
    #[must_use]
    pub fn new(id: u32, fd: VcpuFd, shared: Arc<Shared>) -> Self {
        Self { id, fd, shared, moves: 0, faster: None }
    }

    /// Gives the first processor its entry state.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn enter(&self, entry: Entry) -> Result<()> {
        let mut sregs = self.fd.get_sregs().context("KVM_GET_SREGS")?;
        let regs = entry_state(entry, &mut sregs);
        self.fd.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        self.fd.set_regs(&regs).context("KVM_SET_REGS")
    }

    /// Memory is cacheable unless the guest says otherwise.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn set_memory_type(&self) -> Result<()> {
        self.set_msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK).context("cannot set MTRRs")
    }

    /// Puts the TSC ahead.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn put_tsc_ahead(&self, seconds: u16) -> Result<()> {
        let now = self.msr(MSR_IA32_TSC)?;
        let hz = u64::from(self.fd.get_tsc_khz().context("KVM_GET_TSC_KHZ")?) * 1000;
        self.set_msr(MSR_IA32_TSC, now.wrapping_add(hz * u64::from(seconds)))
    }

    /// Goes on with a TSC of another rate, in percent of the present one; or with the same one, which the
    /// host emulates, and an interrupt that says so, if the guest has asked for that.
    fn arrive(&mut self, percent: u32) -> Result<()> {
        // KVM without Hyper-V's MSRs has none of these two.
        let control = self.msr(HV_X64_MSR_REENLIGHTENMENT_CONTROL).unwrap_or(0);
        let emulation = self.msr(HV_X64_MSR_TSC_EMULATION_CONTROL).unwrap_or(0);
        if emulation & TSC_EMULATION_ENABLED != 0
            && let Some((vector, vp)) = ReenlightenmentControl(control).notified()
        {
            if vp == self.id {
                self.set_msr(HV_X64_MSR_TSC_EMULATION_STATUS, TSC_EMULATION_IN_PROGRESS)?;
                self.shared.migration.interrupt(vp, vector);
            }
            return Ok(());
        }
        let khz = self.fd.get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
        let khz = u64::from(khz) * u64::from(percent) / 100;
        self.fd.set_tsc_khz(u32::try_from(khz)?).context("KVM_SET_TSC_KHZ")?;
        if !self.shared.migration.scales {
            // The frequency MSR says it now. KVM itself would make it so only while its clock is not the
            // TSC.
            let begin = (tsc::now(), tsc_offset(&self.fd)?);
            self.faster = Some(Faster { begin, percent: percent.into() });
            self.shared.migration.kick_on();
        }
        Ok(())
    }

    /// Puts a TSC that is made to go faster where it is to be now.
    fn keep_up(&self) -> Result<()> {
        let Some(Faster { begin: (begin, offset), percent }) = &self.faster else { return Ok(()) };
        let passed = u128::from(tsc::now().saturating_sub(*begin));
        let more = passed * u128::from(percent.saturating_sub(100)) / 100;
        set_tsc_offset(&self.fd, offset.wrapping_add(more as u64))
    }

    fn msr(&self, index: u32) -> Result<u64> {
        let entry = kvm_msr_entry { index, ..Default::default() };
        let mut msrs = Msrs::from_entries(&[entry]).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        anyhow::ensure!(self.fd.get_msrs(&mut msrs)? == 1, "KVM does not give MSR {index:#x}");
        Ok(msrs.as_slice().first().context("no MSR")?.data)
    }

    fn set_msr(&self, index: u32, data: u64) -> Result<()> {
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        let msrs = Msrs::from_entries(&[entry]).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        anyhow::ensure!(self.fd.set_msrs(&msrs)? == 1, "KVM refuses MSR {index:#x}");
        Ok(())
    }

    /// Runs until the machine ends.
    #[must_use]
    pub fn run(&mut self) -> Outcome {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: the page is mapped as long as the descriptor lives, and `self`
        // outlives this function.
        let _kickable = unsafe { Kickable::new(run) };
        loop {
            // A kick from here on ends the entry below, or prevents it.
            self.fd.set_kvm_immediate_exit(0);
            if self.shared.synic.has_posted(self.id) {
                self.shared.synic.deliver(self.id);
            }
            let moved = match self.shared.migration.ahead_of(&mut self.moves) {
                Some(percent) => self.arrive(percent),
                None => self.keep_up(),
            };
            if let Err(error) = moved {
                return self.broken(&format!("it cannot move: {error:#}"));
            }
            match self.step() {
                Next::Run => {}
                Next::End(outcome) => return outcome,
                Next::Io => {
                    if let Some(outcome) = self.io() {
                        return outcome;
                    }
                }
                Next::Hyperv => self.hyperv(),
                Next::EndOfMessage => self.end_of_message(),
                Next::Refused(reason) => {
                    let what = refusal(reason, self.fd.get_sregs().ok().as_ref());
                    return self.broken(&what);
                }
                Next::Internal => {
                    let what = self.internal_error();
                    return self.broken(&what);
                }
                Next::Broken(what) => return self.broken(&what),
            }
        }
    }

    /// Enters the guest once, and handles the exits `VcpuExit` tells all about.
    fn step(&mut self) -> Next {
        let shared = &self.shared;
        let count = |reason| shared.counters.exit(reason);
        let crash = || shared.crash.lock().unwrap_or_else(PoisonError::into_inner);
        match self.fd.run() {
            Ok(VcpuExit::IoIn(..)) => {
                count(ExitReason::IoIn);
                Next::Io
            }
            Ok(VcpuExit::IoOut(..)) => {
                count(ExitReason::IoOut);
                Next::Io
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(ExitReason::MmioRead);
                mmio_read(&shared.ioapic, address, data);
                Next::Run
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(ExitReason::MmioWrite);
                mmio_write(&shared.ioapic, address, data);
                Next::Run
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                count(ExitReason::IoapicEoi);
                shared.ioapic.end_of_interrupt(vector);
                Next::Run
            }
            Ok(VcpuExit::Hyperv) => Next::Hyperv,
            Ok(VcpuExit::X86Rdmsr(exit)) => {
                count(ExitReason::MsrRead);
                shared.counters.msr(exit.index, false);
                match crash().read(exit.index) {
                    Some(value) => *exit.data = value,
                    None => *exit.error = 1,
                }
                Next::Run
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => {
                count(ExitReason::MsrWrite);
                shared.counters.msr(exit.index, true);
                if exit.index == HV_X64_MSR_EOM {
                    return Next::EndOfMessage;
                }
                let report = crash().write(exit.index, exit.data, &shared.memory);
                report.map_or(Next::Run, |report| Next::End(Outcome::Crash(report)))
            }
            Ok(VcpuExit::Shutdown) => Next::End(Outcome::TripleFault(self.registers())),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Next::End(Outcome::Reset),
            Ok(VcpuExit::Intr) => {
                count(ExitReason::Interrupted);
                Next::Run
            }
            Err(error) if matches!(error.errno(), EINTR | EAGAIN) => {
                count(ExitReason::Interrupted);
                Next::Run
            }
            Ok(VcpuExit::InternalError) => Next::Internal,
            Ok(VcpuExit::FailEntry(reason, _)) => Next::Refused(reason),
            Ok(other) => {
                count(ExitReason::Other);
                Next::Broken(format!("KVM ends the run for an unknown reason: {other:?}"))
            }
            Err(error) => Next::Broken(format!("KVM_RUN: {error}")),
        }
    }

    fn io(&mut self) -> Option<Outcome> {
        let run = self.fd.get_kvm_run();
        // SAFETY: the last exit was for I/O, so this is the member in use; it is
        // plain integers.
        let io = unsafe { run.__bindgen_anon_1.io };
        let run: *mut kvm_run = run;
        let (size, bytes) = (usize::from(io.size), usize::from(io.size) * io.count as usize);
        let offset = usize::try_from(io.data_offset).ok()?;
        // SAFETY: KVM maps the I/O data at this offset from kvm_run, inside the
        // same mapping, which lives as long as the processor's descriptor.
        let start = unsafe { run.cast::<u8>().add(offset) };
        // SAFETY: KVM put `size * count` bytes there and touches them only in
        // KVM_RUN, which does not happen while `self` is borrowed here.
        let data = unsafe { std::slice::from_raw_parts_mut(start, bytes) };
        self.shared.counters.port(io.port);
        if u32::from(io.direction) == KVM_EXIT_IO_OUT {
            return self.shared.ports.write(io.port, size, data);
        }
        self.shared.ports.read(io.port, size, data);
        None
    }

    fn hyperv(&mut self) {
        let counters = self.shared.counters.clone();
        // SAFETY: the last exit was KVM_EXIT_HYPERV, so this is the member in use.
        let exit = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.hyperv };
        match exit.type_ {
            KVM_EXIT_HYPERV_SYNIC => {
                counters.exit(ExitReason::HypervSynic);
                // SAFETY: the type says that `synic` is the member in use.
                let synic = unsafe { exit.u.synic };
                let (messages, events) = (PageMsr(synic.msg_page), PageMsr(synic.evt_page));
                let shared = &self.shared;
                shared.synic.update(self.id, synic.msr, synic.control, messages, events);
            }
            KVM_EXIT_HYPERV_HCALL => {
                counters.exit(ExitReason::HypervHypercall);
                // SAFETY: the type says that `hcall` is the member in use.
                let call = unsafe { &mut exit.u.hcall };
                let control = Control(call.input);
                counters.hypercall(control.code().0);
                let status = match &self.shared.bus {
                    Some(bus) => bus.hypercall(control, call.params[0]),
                    None => HvStatus::INVALID_HYPERCALL_CODE,
                };
                call.result = HvResult::new(status, 0).0;
            }
            _ => counters.exit(ExitReason::Other),
        }
    }

    /// The guest wrote EOM: KVM's timers and our messages may have waited for that.
    fn end_of_message(&self) {
        // KVM knows the MSR wherever it has a SynIC.
        let _ = self.set_msr(HV_X64_MSR_EOM, 0);
        self.shared.synic.deliver(self.id);
    }

    fn broken(&self, what: &str) -> Outcome {
        Outcome::HostError(format!("{what}\n{}", self.registers()))
    }

    /// What KVM could not do, with the code the guest is at.
    fn internal_error(&mut self) -> String {
        let run = self.fd.get_kvm_run();
        // SAFETY: the last exit was an internal error, so this is the member in
        // use; it is plain integers.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        let mut text = format!("KVM cannot emulate what the guest does (suberror {suberror})");
        let mut code = [0u8; 15];
        let read = self.fd.get_regs().and_then(|regs| self.fd.translate_gva(regs.rip));
        if let Ok(at) = read
            && at.valid != 0
            && self.shared.memory.read_slice(&mut code, GuestAddress(at.physical_address)).is_ok()
        {
            text.push_str(", code at rip:");
            for byte in code {
                // Writing to a String cannot fail.
                let _ = write!(text, " {byte:02x}");
            }
        }
        text
    }

    /// Registers as text, for reports.
    fn registers(&self) -> String {
        let (Ok(r), Ok(s)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return "(KVM does not tell the registers)".into();
        };
        let mut text = String::new();
        for (name, value) in [
            ("rip", r.rip),
            ("rsp", r.rsp),
            ("rflags", r.rflags),
            ("rax", r.rax),
            ("rbx", r.rbx),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("rbp", r.rbp),
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
            ("efer", s.efer),
            ("cs", s.cs.selector.into()),
            ("ss", s.ss.selector.into()),
            ("gdt", s.gdt.base),
            ("idt", s.idt.base),
        ] {
            // Writing to a String cannot fail.
            let _ = write!(text, " {name}={value:#x}");
        }
        text.trim_start().to_string()
    }
}

/// Why the processor did not enter a guest in this state.
fn refusal(reason: u64, sregs: Option<&kvm_sregs>) -> String {
    // QEMU's emulated SYSENTER (7.2) makes CS so; by now RIP is lost, or the guest could go on.
    let both = |s: &kvm_sregs| s.efer & EFER_LMA != 0 && s.cs.l != 0 && s.cs.db != 0;
    let why = if sregs.is_some_and(both) {
        ": CS is both 64-bit and 32-bit, which is QEMU's SYSENTER"
    } else {
        ""
    };
    format!("the processor refuses the guest ({reason:#x}){why}")
}

const EINTR: i32 = 4;
const EAGAIN: i32 = 11;

fn mmio_read(ioapic: &IoApic, address: u64, data: &mut [u8]) {
    data.fill(0xff);
    if let Some(offset) = ioapic_offset(address) {
        for (to, from) in data.iter_mut().zip(ioapic.read(offset).to_le_bytes()) {
            *to = from;
        }
    }
}

fn mmio_write(ioapic: &IoApic, address: u64, data: &[u8]) {
    if let Some(offset) = ioapic_offset(address) {
        let mut value = [0u8; 4];
        for (to, from) in value.iter_mut().zip(data) {
            *to = *from;
        }
        ioapic.write(offset, u32::from_le_bytes(value));
    }
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address.checked_sub(IOAPIC_BASE).filter(|offset| *offset < ioapic::SIZE)
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Registers of the first processor; `sregs` comes in with the reset state.
fn entry_state(entry: Entry, sregs: &mut kvm_sregs) -> kvm_regs {
    const CODE: u8 = 0xb;
    const DATA: u8 = 0x3;
    let (code, long) = match entry {
        Entry::Protected32 { .. } => (0x08, false),
        Entry::Long64 { code, .. } => (code, true),
    };
    sregs.cs = segment(code, CODE, long);
    let data = segment(code + 8, DATA, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        type_: 0xb,
        present: 1,
        selector: if long { 0 } else { 0x18 },
        ..Default::default()
    };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = if long { 0xffff } else { 0 };
    match entry {
        Entry::Protected32 { rip, rbx } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            kvm_regs { rip, rbx, rflags: RFLAGS_FIXED, ..Default::default() }
        }
        Entry::Long64 { rip, rsi, cr3, .. } => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = cr3;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
            kvm_regs { rip, rsi, rflags: RFLAGS_FIXED, ..Default::default() }
        }
    }
}

// A hypercall without a result would look like success.
const _: () = assert!(HvStatus::SUCCESS.0 == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_names_sysenter() {
        let mut s =
            kvm_sregs { efer: EFER_LMA, cs: segment(0x10, 0xb, true), ..Default::default() };
        assert_eq!(refusal(u64::MAX, Some(&s)), refusal(u64::MAX, None));
        s.cs.db = 1;
        assert!(refusal(u64::MAX, Some(&s)).contains("QEMU's SYSENTER"));
    }

    #[test]
    fn pvh_state() {
        let mut s = kvm_sregs::default();
        let r = entry_state(Entry::Protected32 { rip: 0x100, rbx: 0x6000 }, &mut s);
        assert_eq!((r.rip, r.rbx, r.rflags), (0x100, 0x6000, 2));
        assert_eq!((s.cr0, s.cr4, s.efer), (0x11, 0, 0));
        assert_eq!((s.cs.db, s.cs.l, s.cs.limit), (1, 0, 0xffff_ffff));
        assert_eq!((s.tr.limit, s.tr.type_), (0x67, 0xb));
    }

    #[test]
    fn linux_state() {
        let mut s = kvm_sregs::default();
        let entry = Entry::Long64 { rip: 0x100_0000, rsi: 0x2000, cr3: 0x9000, code: 0x10 };
        let r = entry_state(entry, &mut s);
        assert_eq!((r.rip, r.rsi, r.rsp, r.rflags), (0x100_0000, 0x2000, 0, 2));
        assert_eq!((s.cr0, s.cr3, s.cr4, s.efer), (0x8000_0011, 0x9000, 0x20, 0xd01));
        assert_eq!((s.cs.selector, s.cs.l, s.cs.db, s.ds.selector), (0x10, 1, 0, 0x18));
    }

    #[test]
    fn ioapic_window() {
        assert_eq!(ioapic_offset(0xfec0_0010), Some(0x10));
        assert_eq!(ioapic_offset(0xfec0_1000), None);
        assert_eq!(ioapic_offset(0xfebf_ffff), None);
    }
}
