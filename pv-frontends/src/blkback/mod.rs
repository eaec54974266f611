//! The block backend: a guest's blkfront on one side, a [`BlockDevice`] on the other.

mod device;

pub use device::{
    BlockDevice, DeviceInfo, Discard, Io, IoError, IoResult, Operation, Segment, Submitted, Tag,
};
