//! What the end-to-end tests share: the programs guests run, the initramfs
//! around them, and what their consoles and kernel logs say.

pub mod dialogue;
pub mod disks;
pub mod domu;
pub mod files;
pub mod guests;
pub mod images;
pub mod keys;
pub mod lab;
pub mod load;
pub mod log;
pub mod media;
pub mod net;
pub mod packs;
pub mod parts;
pub mod records;
pub mod reference;
pub mod samples;
pub mod samples_xva;
pub mod told;
pub mod traffic;
pub mod transcript;
pub mod trials;

/// The kernels tested: 5.10, 6.1, 6.12 and the newest, as their suites have them now.
pub const KERNELS: [&str; 4] = ["bullseye", "bookworm", "trixie", "sid"];
