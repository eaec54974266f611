//! The SCSI controllers of a Hyper-V machine, and the disks behind them.
//!
//! ```text
//! VMBus offer ─> Controller: BEGIN_INIT, version, properties, sub-channels, END_INIT ─> scan
//! scan: REPORT LUNS, then for each unit INQUIRY, VPD, READ CAPACITY, MODE SENSE ─> Unit
//! Disk (BlockDevice) ─> Unit ─> Queue (one per channel) ─> GPA-direct packet ─> completion ─> Sink
//! ```
//!
//! [`StorVsc`] is the VMBus driver of all controllers: the SCSI ones, and the two IDE ports of
//! Generation 1 machines. A [`Unit`] is a disk or CD drive; whoever integrates this makes a
//! [`Disk`] of it when the [`Sink`] hears of it.
//!
//! The guest's pages go to the host as they are; they are the guest's again when the host has
//! answered, or has closed the channel, and not before: a request that is late resets the bus, and
//! if that does not help, closes the controller's channel.
//!
//! Lock order: a controller's machine, then a queue's slots, then what VMBus has. None of them is
//! held while the [`Sink`] is called, but for the channel's incoming ring during a completion.

mod command;
mod controller;
mod driver;
mod machine;
mod queue;
mod result;
mod scan;
#[cfg(test)]
mod tests;
mod unit;

use hv_abi::storvsc::IdePort;
use hv_abi::vmbus::OfferChannel;
use hv_abi::vmbus::offer::interface;

pub use command::Cdb;
pub use driver::{Config, Sink, StorVsc};
pub use unit::{Disk, Identifier, Unit, UnitAddress, UnitInfo};

/// The IDE port a unit is at; `None`: it is on a SCSI controller.
#[must_use]
pub fn ide_port_of(unit: &Unit) -> Option<IdePort> {
    ide_port(&unit.controller.offer)
}

/// The IDE port an offer is for; `None` for SCSI controllers.
fn ide_port(offer: &OfferChannel) -> Option<IdePort> {
    let is_ide = offer.interface_type == interface::IDE;
    is_ide.then(|| IdePort::of_instance(offer.interface_instance))
}
