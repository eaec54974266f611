//! Which network cards a guest has: the `pontoon.vif` option.

mod config;
#[cfg(test)]
mod tests;

pub use config::{BadOption, Card, Entry, MAX_ENTRIES, Plan, parse};
