//! Packs: all that a Hyper-V host needs to run a guest, in one directory. A medium the virtual
//! machine starts from, the guest's disks, and a script that creates the machine.
//!
//! - [`plan`]: what is to become of a guest;
//! - [`build`]: the directory, made beside its place and put there whole;
//! - [`disk`]: where disks come from, and their conversion;
//! - [`medium`]: what the machine starts from, of [`fat`] file systems and [`grub`];
//! - [`script`]: the PowerShell script.

pub mod build;
pub mod disk;
pub mod fat;
pub mod grub;
pub mod medium;
pub mod options;
pub mod plan;
pub mod script;

#[cfg(test)]
mod tests;
