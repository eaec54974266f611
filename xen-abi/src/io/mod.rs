//! Rings and wire formats of the PV devices (`xen/include/public/io`).

pub mod blkif;
pub mod console;
pub mod netif;
pub mod ring;
pub mod xenbus;
pub mod xs_wire;
