//! Interrupts into KVM: the routes of the IOAPIC's lines and of SINTs, which share
//! one table, and kicks that get a virtual processor's thread out of the guest.
#![allow(unsafe_code, reason = "a flag the signal handler writes into kvm_run")]

use crate::ioapic::{Msi, MsiSink, PINS};
use crate::synic::SintSink;
use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_IRQ_ROUTING_HV_SINT, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi,
    kvm_run,
};
use kvm_ioctls::VmFd;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

#[derive(Default)]
struct Table {
    lines: [Msi; PINS],
    /// GSI of each SINT in use, by virtual processor and SINT.
    sints: BTreeMap<(u32, u8), u32>,
}

impl Table {
    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let line = |(gsi, msi): (u32, &Msi)| {
            let mut entry =
                kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi.address_lo = msi.address;
            entry.u.msi.__bindgen_anon_1.devid = 0;
            entry.u.msi.data = msi.data;
            entry
        };
        let sint = |((vcpu, sint), gsi): (&(u32, u8), &u32)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: *gsi,
                type_: KVM_IRQ_ROUTING_HV_SINT,
                ..Default::default()
            };
            entry.u.hv_sint.vcpu = *vcpu;
            entry.u.hv_sint.sint = u32::from(*sint);
            entry
        };
        (0u32..).zip(&self.lines).map(line).chain(self.sints.iter().map(sint)).collect()
    }
}

/// Interrupts into KVM.
#[derive(Clone)]
pub struct Routing {
    vm: Arc<VmFd>,
    table: Arc<Mutex<Table>>,
    threads: Arc<OnceLock<Vec<JoinHandle<()>>>>,
}

impl Routing {
    /// No routes yet.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Arc::default(), threads: Arc::default() }
    }

    /// The threads of the virtual processors, in their order.
    pub fn set_threads(&self, threads: Vec<JoinHandle<()>>) {
        // Set once, by the machine.
        let _ = self.threads.set(threads);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, table: &Table) {
        // A table KVM refuses would leave lines and SINTs quiet, and nothing
        // better can be done.
        if let Ok(routing) = KvmIrqRouting::from_entries(&table.entries()) {
            let _ = self.vm.set_gsi_routing(&routing);
        }
    }

    /// GSI of a SINT; its route is made at the first use.
    fn sint_gsi(&self, vp: u32, sint: u8) -> u32 {
        let mut table = self.table();
        if let Some(gsi) = table.sints.get(&(vp, sint)) {
            return *gsi;
        }
        let gsi = (PINS + table.sints.len()) as u32;
        table.sints.insert((vp, sint), gsi);
        self.apply(&table);
        gsi
    }
}

impl MsiSink for Routing {
    fn inject(&self, msi: Msi) {
        let msi = kvm_msi { address_lo: msi.address, data: msi.data, ..Default::default() };
        // An interrupt nobody takes is lost, as on hardware.
        let _ = self.vm.signal_msi(msi);
    }

    fn routes(&self, routes: &[Msi; PINS]) {
        let mut table = self.table();
        table.lines = *routes;
        self.apply(&table);
    }
}

impl SintSink for Routing {
    fn inject(&self, vp: u32, sint: u8) {
        let gsi = self.sint_gsi(vp, sint);
        // A masked SINT takes no interrupt; its message waits in its slot.
        let _ = self.vm.set_irq_line(gsi, true);
    }

    fn kick(&self, vp: u32) {
        // Before the threads run, they look by themselves.
        if let Some(thread) = self.threads.get().and_then(|threads| threads.get(vp as usize)) {
            // A thread that has ended runs no guest.
            let _ = thread.kill(kick_signal());
        }
    }
}

fn kick_signal() -> c_int {
    SIGRTMIN()
}

thread_local! {
    /// The `kvm_run` of the virtual processor this thread runs.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Makes the next, or current, entry of the guest end at once. A kick between the
/// last look at the queue and the entry would otherwise be lost.
extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: this thread set the pointer to a mapping that it keeps until it
        // sets it back.
        let flag = unsafe { &raw mut (*run).immediate_exit };
        // SAFETY: as above; the field is a plain byte that only this thread and
        // KVM on its behalf touch.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler of kicks.
///
/// # Errors
/// The system refuses.
pub fn catch_kicks() -> Result<()> {
    register_signal_handler(kick_signal(), on_kick).context("cannot handle kicks")
}

/// From now until it is dropped, kicks to this thread end entries of this guest.
pub struct Kickable(());

impl Kickable {
    /// For the processor whose shared page this is.
    ///
    /// # Safety
    /// `run` stays valid until the value is dropped.
    #[must_use]
    pub unsafe fn new(run: *mut kvm_run) -> Self {
        RUN.set(run);
        Self(())
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_sints_share_the_table() {
        let mut table = Table::default();
        table.lines[4] = Msi { address: 0xfee0_1000, data: 0x34 };
        table.sints.insert((3, 2), 24);
        table.sints.insert((0, 2), 25);
        let entries = table.entries();
        assert_eq!(entries.len(), PINS + 2);
        assert_eq!((entries[4].gsi, entries[4].type_), (4, KVM_IRQ_ROUTING_MSI));
        assert_eq!((entries[24].gsi, entries[24].type_), (25, KVM_IRQ_ROUTING_HV_SINT));
        // SAFETY: the entry's type says which member is in use.
        let sint = unsafe { entries[25].u.hv_sint };
        assert_eq!((sint.vcpu, sint.sint), (3, 2));
    }
}
