//! The test program of the end-to-end boots: what a kernel owes its user space,
//! with an eye on everything a layer below the kernel could get wrong.
//!
//! Each check runs in a process of its own and prints `ok NAME` or
//! `FAIL NAME: why`; the last line is `stress: N passed, M failed`, the exit
//! status 1 if any failed. Usage: `stress [--loops N] [--list] [--known NAME,…]
//! [NAME…]`; a name selects every check it is a part of. The checks named by
//! `--known` may fail (`known NAME: why`): docs/xen-reference.md lists those of
//! real Xen.
//!
//! Everything passes on a kernel without a hypervisor. Where processors or PV
//! kernels may legitimately differ, the check accepts each of the answers and
//! says why.
#![expect(unsafe_code, reason = "tests of what system calls and instructions do")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "every check pokes at the machine")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "every check pokes at the machine")]

mod compat;
mod exceptions;
mod fault;
mod fpu;
mod harness;
mod interrupts;
mod memory;
mod privileged;
mod process;
mod processors;
mod protect;
mod segments;
mod signals;
mod sigreturn;
mod sync;
mod syscalls;
mod time;
mod trace;

use harness::Check;

fn checks() -> Vec<Check> {
    [
        process::CHECKS,
        memory::CHECKS,
        signals::CHECKS,
        sigreturn::CHECKS,
        syscalls::CHECKS,
        exceptions::CHECKS,
        interrupts::CHECKS,
        privileged::CHECKS,
        protect::CHECKS,
        trace::CHECKS,
        fpu::CHECKS,
        segments::CHECKS,
        compat::CHECKS,
        time::CHECKS,
        sync::CHECKS,
        processors::CHECKS,
    ]
    .concat()
}

fn main() {
    let mut loops = 1;
    let mut names = Vec::new();
    let mut known = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--exit" => {
                let status = args.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                std::process::exit(status)
            }
            "--loops" => loops = args.next().and_then(|n| n.parse().ok()).unwrap_or(1),
            "--known" => {
                known.extend(args.next().iter().flat_map(|l| l.split(',')).map(str::to_owned))
            }
            "--list" => {
                for check in checks() {
                    println!("{}", check.0);
                }
                return;
            }
            _ => names.push(arg),
        }
    }
    let chosen = checks()
        .into_iter()
        .filter(|(name, _)| names.is_empty() || names.iter().any(|n| name.contains(n.as_str())))
        .collect::<Vec<_>>();
    let failed: usize = (0..loops).map(|_| harness::run_all(&chosen, &known)).sum();
    println!("stress: {} passed, {failed} failed", chosen.len() * loops - failed);
    std::process::exit(i32::from(failed != 0));
}
