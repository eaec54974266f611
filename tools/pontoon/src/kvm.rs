//! Whether this machine's `/dev/kvm` can host a Hyper-V guest.
//!
//! Its presence says little: some hosts offer a KVM that interprets
//! instructions, or one without Hyper-V's interfaces. So it is asked for what
//! hvhost needs, and a tiny guest must really run, in a child process with a
//! time limit.

use crate::artefact;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, Kvm, VcpuExit};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A processor does the tiny guest's work in about 10 ms.
const LIMIT: Duration = Duration::from_millis(1500);

/// Asks `/dev/kvm`; the error says why it cannot be used.
pub fn probe() -> Result<(), String> {
    if !Path::new("/dev/kvm").exists() {
        return Err("this machine has no /dev/kvm".into());
    }
    let agent = artefact::AGENT.find().map_err(|e| format!("{e:#}"))?;
    let child = Command::new(agent)
        .arg("probe-kvm")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.map_err(|e| format!("the prober cannot be run: {e}"))?;
    let until = Instant::now() + LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("a tiny guest on /dev/kvm did not end in time".into());
            }
        }
    }
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    if out.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    Err(if why.is_empty() { "a tiny guest on /dev/kvm took the prober down".into() } else { why })
}

/// Does the asking, in this process.
pub fn probe_here() -> Result<(), String> {
    let kvm = Kvm::new().map_err(|e| format!("/dev/kvm cannot be opened ({e})"))?;
    let needed = [
        (Cap::HypervSynic2, "KVM_CAP_HYPERV_SYNIC2"),
        (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    ];
    for (cap, name) in needed {
        if !kvm.check_extension(cap) {
            return Err(format!("/dev/kvm lacks {name}"));
        }
    }
    tiny_guest(&kvm).map_err(|e| format!("/dev/kvm cannot run a tiny guest ({e})"))
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Counts down from five million and halts.
const TINY: [u8; 11] = [0x66, 0xb9, 0x40, 0x4b, 0x4c, 0x00, 0x66, 0x49, 0x75, 0xfc, 0xf4];

#[expect(unsafe_code, reason = "KVM is given memory of this process")]
fn tiny_guest(kvm: &Kvm) -> Result<(), String> {
    const AT: u64 = 0x1000;
    let text = |e: kvm_ioctls::Error| e.to_string();
    let vm = kvm.create_vm().map_err(text)?;
    let mut page = Box::new(Page([0; 4096]));
    page.0[..TINY.len()].copy_from_slice(&TINY);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: AT,
        memory_size: 4096,
        userspace_addr: (&raw mut *page).addr() as u64,
    };
    // SAFETY: the page is owned by this function and outlives `vm`, which is
    // dropped before it; nobody else looks at it while the guest runs.
    unsafe { vm.set_user_memory_region(region) }.map_err(text)?;
    let mut vcpu = vm.create_vcpu(0).map_err(text)?;
    let mut sregs = vcpu.get_sregs().map_err(text)?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(text)?;
    let mut regs = vcpu.get_regs().map_err(text)?;
    regs.rip = AT;
    regs.rflags = 2;
    vcpu.set_regs(&regs).map_err(text)?;
    let exit = vcpu.run().map_err(text)?;
    let halted = matches!(exit, VcpuExit::Hlt);
    let text = format!("{exit:?}");
    drop(vcpu);
    drop(vm);
    drop(page);
    if halted { Ok(()) } else { Err(text) }
}
