//! The reference: the same kernels under real Xen, as PV dom0 in plain QEMU.

use crate::apt::Suite;
use crate::cache;
use crate::host::{Input, Machine};
use crate::kernel::pipe_through;
use crate::outcome::Outcome;
use crate::qemu::Qemu;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;

const SUITE: &str = "bookworm";
const PACKAGE: &str = "xen-hypervisor-4.17-amd64";
const IMAGE: &str = "boot/xen-4.17-amd64.gz";
/// Xen's own share of the machine.
const XEN_MIB: u64 = 512;

/// Xen 4.17 as ELF file, from Debian's package.
pub fn hypervisor() -> Result<PathBuf> {
    let _lock = cache::lock("xen")?;
    let dir = cache::dir()?.join("xen");
    if !dir.exists() {
        let suite = Suite::open(SUITE)?;
        cache::filled(&dir, |work| {
            suite.unpack(PACKAGE, work)?;
            let packed = fs::read(work.join(IMAGE)).context(IMAGE)?;
            let image = pipe_through("gzip", &["-dc"], &packed)?;
            if image.is_empty() {
                bail!("{PACKAGE}: {IMAGE} cannot be unpacked");
            }
            Ok(fs::write(work.join("xen"), image)?)
        })?;
    }
    Ok(dir.join("xen"))
}

/// Runs `machine` as PV dom0 of Xen with all of its memory. Xen's own messages
/// come on the same console unless `quiet`.
pub fn run(
    machine: &Machine,
    qemu: &Qemu,
    quiet: bool,
    output: &mut dyn FnMut(&[u8]),
) -> Result<Outcome> {
    let level = if quiet { "loglvl=none guest_loglvl=none" } else { "loglvl=all" };
    let all = as_dom0(machine, &format!("console=com1 com1=115200,8n1 {level}"))?;
    qemu.run(&all, &Input::default(), output)
}

/// The machine that boots Xen, with `options` for Xen itself, and `machine` as its
/// PV dom0 with all of the memory that one has.
pub fn as_dom0(machine: &Machine, options: &str) -> Result<Machine> {
    let initrd = machine.initrd.as_ref().context("a dom0 here needs an initrd")?;
    // QEMU takes "file arguments,file" and wants commas in arguments doubled.
    let module = format!("{} {}", machine.kernel.display(), machine.append).replace(',', ",,");
    let modules = format!("{module},{}", initrd.display().to_string().replace(',', ",,"));
    Ok(Machine {
        kernel: hypervisor()?,
        initrd: Some(modules.into()),
        append: format!("{options} dom0=pv dom0_mem={}M", machine.memory_mib),
        memory_mib: machine.memory_mib + XEN_MIB,
        ..machine.clone()
    })
}
