//! The domain builder: turns a kernel file, an initrd and a command line into
//! a Xen PV domain's initial memory, as `xen/include/public/xen.h` ("struct
//! start_info") describes it. Runs once, before the guest, and allocates.
//!
//! ```text
//! bundle (cpio) -> Bundle -> Kernel::load -> layout::plan -> populate::populate -> Start
//! ```
//!
//! Every input is foreign: all errors are values, nothing here panics on bytes.

pub mod bundle;
pub mod bzimage;
pub mod cmdline;
pub mod decompress;
pub mod e820;
pub mod elf;
pub mod error;
pub mod hypercall_page;
pub mod kernel;
pub mod layout;
pub mod notes;
pub mod populate;

pub use bundle::{Bundle, BundleError};
pub use error::BuildError;
pub use hypercall_page::hypercall_page;
pub use kernel::Kernel;
pub use layout::{Config, Layout};
pub use populate::{BuildMemory, Machine, Start};

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
