//! Hypercall number to handler: one table, from which the `match` and `docs/hypercalls.md` come.

use xen_abi::Errno;
use xen_abi::hypercall::HypercallNr;

use crate::outcome::{HcResult, Outcome};
use crate::platform::Platform;
use crate::regs::CpuRegs;
use crate::{
    Ctx, callback, console, cpu, debugreg, descriptor, evtchn, gnttab, iret, memory, mmu,
    multicall, physdev, privileged, sched, time, trap_table, vcpu_op, version,
};

/// A line of the table, as the documentation shows it.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// Number.
    pub nr: u32,
    /// Name, without `__HYPERVISOR_`.
    pub name: &'static str,
    /// What answers: a handler's path, or an error.
    pub answer: &'static str,
    /// What a guest may expect.
    pub doc: &'static str,
}

/// Calls what a line of the table names. A number is how many arguments the handler takes, in
/// order from RDI, RSI, RDX, R10, R8; `regs` is for handlers that continue or replace the
/// registers; `never` is an errno.
macro_rules! call {
    ($cx:ident, $regs:ident, regs $handler:path) => {
        $handler($cx, $regs)
    };
    ($cx:ident, $regs:ident, never $errno:ident) => {
        Err(Errno::$errno)
    };
    ($cx:ident, $regs:ident, 1 $handler:path) => {
        $handler($cx, $regs.rdi)
    };
    ($cx:ident, $regs:ident, 2 $handler:path) => {
        $handler($cx, $regs.rdi, $regs.rsi)
    };
    ($cx:ident, $regs:ident, 3 $handler:path) => {
        $handler($cx, $regs.rdi, $regs.rsi, $regs.rdx)
    };
    ($cx:ident, $regs:ident, 4 $handler:path) => {
        $handler($cx, $regs.rdi, $regs.rsi, $regs.rdx, $regs.r10)
    };
}

macro_rules! hypercalls {
    ($($name:ident = ($($answer:tt)+), $doc:literal;)*) => {
        /// Every hypercall there is a line for.
        pub const TABLE: &[Line] = &[$(Line {
            nr: HypercallNr::$name.0,
            name: stringify!($name),
            answer: stringify!($($answer)+),
            doc: $doc,
        },)*];

        /// Makes the hypercall in the registers.
        #[inline(never)]
        fn call<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> HcResult {
            match HypercallNr(u32::try_from(regs.rax).unwrap_or(u32::MAX)) {
                $(HypercallNr::$name => call!(cx, regs, $($answer)+),)*
                _ => Err(Errno::ENOSYS),
            }
        }
    };
}

hypercalls! {
    set_trap_table = (regs trap_table::set_trap_table),
        "Sets the exception handlers of the vCPU. Code selectors are ignored.";
    mmu_update = (regs mmu::mmu_update),
        "Stores page-table entries and M2P entries. Checked: the frame, the hypervisor's L4 slots.";
    set_gdt = (2 descriptor::set_gdt),
        "Sets the GDT: up to 14 frames, no gates; DPL 0 becomes 1.";
    stack_switch = (2 cpu::stack_switch),
        "Sets the stack for entries from user mode; the selector is ignored.";
    set_callbacks = (3 callback::set_callbacks),
        "Sets the event, failsafe and system call callbacks.";
    fpu_taskswitch = (1 cpu::fpu_taskswitch),
        "Sets or clears CR0.TS.";
    sched_op_compat = (2 sched::sched_op_compat),
        "yield, block, shutdown with the reason as argument.";
    platform_op = (1 privileged::platform_op),
        "EPERM; EACCES for another interface version.";
    set_debugreg = (2 debugreg::set_debugreg),
        "Writes a debug register; addresses in the hypervisor's hole and GD are EPERM.";
    get_debugreg = (1 debugreg::get_debugreg),
        "Reads a debug register.";
    update_descriptor = (2 descriptor::update_descriptor),
        "Writes a descriptor at a machine address; checked as by set_gdt.";
    memory_op = (regs memory::memory_op),
        "Reservation, exchange, memory map, M2P. Extents of order 0 only come back.";
    multicall = (regs multicall::multicall),
        "A list of hypercalls; EINVAL for a multicall in it.";
    update_va_mapping = (3 mmu::update_va_mapping),
        "Stores an L1 entry by address and flushes. Kernel mappings stay writable.";
    set_timer_op = (1 time::set_timer_op),
        "Arms the vCPU's one-shot timer.";
    event_channel_op_compat = (1 evtchn::event_channel_op_compat),
        "event_channel_op with its old calling convention.";
    xen_version = (2 version::xen_version),
        "Version, capabilities, features, handle.";
    console_io = (3 console::console_io),
        "The emergency console.";
    physdev_op_compat = (1 physdev::physdev_op_compat),
        "physdev_op with its old calling convention.";
    grant_table_op = (regs gnttab::grant_table_op),
        "Grant tables, versions 1 and 2; the guest may map, copy and transfer its own grants.";
    vm_assist = (2 cpu::vm_assist),
        "Switches assists; those for page tables and segments change nothing.";
    update_va_mapping_otherdomain = (4 mmu::update_va_mapping_otherdomain),
        "As update_va_mapping for DOMID_SELF; EPERM or ESRCH for others.";
    iret = (regs iret_call),
        "Returns from a handler.";
    vcpu_op = (3 vcpu_op::vcpu_op),
        "vCPU state, timers and registered areas.";
    set_segment_base = (2 cpu::set_segment_base),
        "Sets the FS base, a GS base, or the user GS selector.";
    mmuext_op = (regs mmu::mmuext_op),
        "Page-table base, TLB flushes, LDT, page clear and copy. Pinning is accepted.";
    xsm_op = (never ENOSYS),
        "No XSM.";
    nmi_op = (2 callback::nmi_op),
        "Sets the NMI handler.";
    sched_op = (2 sched::sched_op),
        "yield, block, poll, shutdown, watchdog.";
    callback_op = (2 callback::callback_op),
        "Sets and clears callbacks of every type.";
    xenoprof_op = (1 privileged::xenoprof_op),
        "EPERM; EINVAL for no operation.";
    event_channel_op = (2 evtchn::event_channel_op),
        "Event channels, 2-level and FIFO.";
    physdev_op = (2 physdev::physdev_op),
        "IOPL, I/O bitmap; a guest has no physical devices.";
    hvm_op = (2 privileged::hvm_op),
        "EINVAL: the guest is no HVM guest.";
    sysctl = (1 privileged::sysctl),
        "EPERM; EACCES for another interface version.";
    domctl = (1 privileged::domctl),
        "EPERM; EACCES for another interface version.";
    kexec_op = (never EPERM),
        "For domain 0.";
    tmem_op = (never ENOSYS),
        "Gone from Xen.";
    argo_op = (never ENOSYS),
        "Not built into Debian's Xen either.";
    xenpmu_op = (never EOPNOTSUPP),
        "No virtual PMU.";
    dm_op = (2 privileged::dm_op),
        "EPERM: a guest is no device model of itself.";
    hypfs_op = (never EPERM),
        "For domain 0.";
    mca = (never EPERM),
        "For domain 0.";
    paging_domctl_cont = (1 privileged::paging_domctl_cont),
        "EOPNOTSUPP or EPERM: a continuation of domctl.";
}

/// [`iret::iret`] with a handler's result.
#[inline]
fn iret_call<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> HcResult {
    Ok(iret::iret(cx, regs))
}

/// Makes the hypercall whose number is in RAX and whose arguments are in RDI, RSI, RDX, R10, R8,
/// R9.
#[inline(always)]
pub fn hypercall<P: Platform>(cx: &mut Ctx<'_, P>, regs: &mut CpuRegs) -> Outcome {
    let result = if regs.rax == u64::from(HypercallNr::iret.0) {
        iret_call(cx, regs)
    } else {
        call(cx, regs)
    };
    match result {
        Ok(outcome) => outcome,
        Err(errno) => Outcome::Return(errno.to_ret()),
    }
}

/// The calls of every page fault, fork and switch of processes in their plain form: they complete
/// at once and are given their first arguments only. `None` leaves everything to [`hypercall`].
#[inline(always)]
pub fn plain<P: Platform>(cx: &mut Ctx<'_, P>, nr: u64, args: [u64; 4]) -> Option<i64> {
    const MMU_UPDATE: u64 = HypercallNr::mmu_update.0 as u64;
    const MMUEXT_OP: u64 = HypercallNr::mmuext_op.0 as u64;
    const STACK_SWITCH: u64 = HypercallNr::stack_switch.0 as u64;
    const SET_SEGMENT_BASE: u64 = HypercallNr::set_segment_base.0 as u64;
    let [a, b, c, d] = args;
    if nr == u64::from(HypercallNr::update_va_mapping.0) {
        return mmu::update_va_mapping_plain(cx, a, b, c).then_some(0);
    }
    let result = match nr {
        MMUEXT_OP if mmu::is_plain_list(b, c, d) => mmu::mmuext_op_plain(cx, a, b),
        MMU_UPDATE if mmu::is_plain_list(b, c, d) => mmu::mmu_update_plain(cx, a, b),
        STACK_SWITCH => cpu::stack_switch(cx, a, b),
        SET_SEGMENT_BASE => cpu::set_segment_base(cx, a, b),
        _ => return None,
    };
    Some(plain_value(result))
}

/// The value in RAX after a call that completes at once.
#[inline(always)]
pub fn plain_value(result: HcResult) -> i64 {
    match result {
        Ok(Outcome::Return(value)) => value,
        // No such call has another outcome.
        Ok(_) => 0,
        Err(errno) => errno.to_ret(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Machine, kernel_regs};
    use std::format;
    use std::string::String;

    /// docs/hypercalls.md as the table says it.
    fn document() -> String {
        let mut text = String::from(
            "# Hypercalls\n\n\
             Generated from the table in `translate/src/dispatch.rs`; `PONTOON_UPDATE_DOCS=1 cargo \
             test -p translate` writes it anew.\n\n\
             Numbers not listed are `ENOSYS`. Where a line names an error, a domU of Xen 4.17 gets \
             the same.\n\n\
             | number | name | answered by | what to expect |\n|---:|---|---|---|\n",
        );
        for line in TABLE {
            let (kind, answer) = line.answer.split_once(' ').unwrap();
            let answer = answer.replace(' ', "");
            let answer = if kind == "never" {
                format!("`-{answer}`")
            } else {
                format!("`{}`", answer.replace("iret_call", "iret::iret"))
            };
            text += &format!("| {} | {} | {} | {} |\n", line.nr, line.name, answer, line.doc);
        }
        text
    }

    #[test]
    fn the_document_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hypercalls.md");
        let document = document();
        if std::env::var_os("PONTOON_UPDATE_DOCS").is_some() {
            std::fs::write(path, &document).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == document,
            "docs/hypercalls.md is stale: PONTOON_UPDATE_DOCS=1 rewrites it"
        );
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(TABLE.windows(2).all(|pair| pair[0].nr < pair[1].nr));
    }

    #[test]
    fn unknown_numbers_do_not_exist() {
        let mut machine = Machine::new();
        for nr in [11, 43, 49, 56, 63, 64, 0xffff_ffff, 0x1_0000_0003, u64::MAX] {
            let mut regs = CpuRegs { rax: nr, ..kernel_regs() };
            let outcome = hypercall(&mut machine.cx(), &mut regs);
            assert_eq!(outcome, Outcome::Return(-38), "hypercall {nr:#x}");
        }
    }
}
