//! Which disks a guest has: their numbers and names, and the `pontoon.vbd` option.

mod config;
mod number;
#[cfg(test)]
mod tests;

pub use config::{
    BadOption, Controller, Entry, Flags, Lun, MAX_ENTRIES, Source, default_entry, parse,
};
pub use number::{Kind, Name, Vdev};
