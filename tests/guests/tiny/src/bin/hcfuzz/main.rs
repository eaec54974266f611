//! Millions of random hypercalls: numbers, arguments and pointers into every
//! region. Ring 0 has to answer each and stay up.
//!
//! Command line: `calls=N seed=S cpus=C`. It prints its progress, a table of answers by
//! hypercall, and `hcfuzz: N done` before it powers off.
//!
//! A hypercall may do to this guest whatever a guest may do to itself, so some
//! are kept from it: ending or blocking the domain, and writes into the guest's
//! own code, stack and page tables. Those pages (the *critical* ones) never
//! appear as targets. Others appear through read-only aliases, where a write
//! must fail. What is left is random: `window` is a range of addresses whose
//! page-table entries change all the time.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(target_os = "none", expect(unsafe_code, reason = "hypercalls by the million"))]

#[cfg(target_os = "none")]
mod calls;
#[cfg(target_os = "none")]
mod fuzz;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod operations;
#[cfg(target_os = "none")]
mod others;

#[cfg(target_os = "none")]
tiny_guests::guest!(fuzz::main);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("hcfuzz is a Xen PV kernel: build it for x86_64-unknown-none");
}
