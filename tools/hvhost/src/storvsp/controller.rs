//! A SCSI controller: the storage protocol on its channels, and its units.

use crate::memory::Memory;
use crate::storvsp::buffer::Buffer;
use crate::storvsp::disk::Disk;
use crate::storvsp::inquiry;
use crate::storvsp::options::LUNS_MAX;
use crate::storvsp::unit::{Done, Failure, Unit};
use crate::vmbus::{Channel, ChannelError, Device, Offer, Outbound, Packet, Waker};
use hv_abi::Guid;
use hv_abi::scsi::{
    AdditionalSense, CDB_BYTES, CdbInquiry, CdbReportLuns, Opcode, SENSE_BYTES, VpdPage,
};
use hv_abi::storvsc::{
    ChannelProperties, Header, IDE_CLASS, IdePort, IdeProperties, NtStatus, Operation,
    PACKET_BYTES_MAX, ProtocolVersion, SCSI_CLASS, ScsiRequest, SrbStatus, Version,
};
use hv_abi::vmbus::{ControlMessage, OfferChannel, OfferFlags, PacketType, UserDefined};
use std::collections::BTreeMap;
use std::io;
use std::mem::size_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Most bytes of one command, as Hyper-V has it.
pub const TRANSFER_BYTES_MAX: u32 = 256 << 10;

/// How far the initialization has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Begin,
    Version,
    Properties(Version),
    /// `true`: sub-channels can still be asked for.
    End(Version, bool),
    Ready(Version),
}

impl Stage {
    fn version(self) -> Option<Version> {
        match self {
            Self::Properties(version) | Self::End(version, _) | Self::Ready(version) => {
                Some(version)
            }
            Self::Begin | Self::Version => None,
        }
    }
}

/// Which controller it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// A SCSI controller.
    Scsi(u32),
    /// One device of an IDE controller: each has a channel of its own.
    Ide { controller: u8, device: u8 },
}

/// A controller.
pub struct Controller {
    seat: Seat,
    memory: Memory,
    max_sub_channels: u16,
    monitored: bool,
    /// By LUN; path and target are 0.
    units: RwLock<BTreeMap<u8, Arc<Disk>>>,
    stage: Mutex<Stage>,
    /// Units came or went, and the guest does not know.
    changed: AtomicBool,
    /// Of the primary channel, while it is open.
    primary: Mutex<Option<Arc<Waker>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    /// A controller without units.
    #[must_use]
    pub fn new(number: u32, memory: &Memory, max_sub_channels: u16, monitored: bool) -> Self {
        Self::at(Seat::Scsi(number), memory, max_sub_channels, monitored)
    }

    /// The device of an IDE controller, without its disk, which is LUN 0.
    #[must_use]
    pub fn ide(controller: u8, device: u8, memory: &Memory, monitored: bool) -> Self {
        Self::at(Seat::Ide { controller, device }, memory, 0, monitored)
    }

    fn at(seat: Seat, memory: &Memory, max_sub_channels: u16, monitored: bool) -> Self {
        Self {
            seat,
            memory: memory.clone(),
            max_sub_channels,
            monitored,
            units: RwLock::default(),
            stage: Mutex::default(),
            changed: AtomicBool::new(false),
            primary: Mutex::default(),
        }
    }

    /// Puts a disk at a LUN; `false`: there is one.
    pub fn add(&self, lun: u8, disk: Disk) -> bool {
        let mut units = self.units.write().unwrap_or_else(PoisonError::into_inner);
        if lun >= LUNS_MAX || units.contains_key(&lun) {
            return false;
        }
        units.insert(lun, Arc::new(disk));
        drop(units);
        self.announce();
        true
    }

    /// Takes a disk away, written out; `None`: there is none.
    ///
    /// # Errors
    /// It cannot be written out.
    pub fn remove(&self, lun: u8) -> Option<io::Result<()>> {
        let disk = self.units.write().unwrap_or_else(PoisonError::into_inner).remove(&lun)?;
        self.announce();
        Some(disk.settle())
    }

    fn announce(&self) {
        self.changed.store(true, Ordering::SeqCst);
        if let Some(waker) = &*lock(&self.primary) {
            waker.wake();
        }
    }

    /// The disks, with their LUNs.
    #[must_use]
    pub fn units(&self) -> Vec<(u8, Arc<Disk>)> {
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        units.iter().map(|(lun, disk)| (*lun, disk.clone())).collect()
    }

    fn stage(&self) -> Stage {
        *lock(&self.stage)
    }

    fn serve(&self, channel: &mut Channel) -> Result<(), ChannelError> {
        let mut packet = Packet::default();
        loop {
            if channel.sub_channel == 0
                && let Stage::Ready(version) = self.stage()
                && self.changed.swap(false, Ordering::SeqCst)
            {
                self.enumerate(channel, version)?;
            }
            while channel.receive(&mut packet)? {
                self.packet(channel, &packet)?;
                channel.flush();
            }
            channel.wait()?;
        }
    }

    /// Has the guest look for units that came or went.
    fn enumerate(&self, channel: &mut Channel, version: Version) -> Result<(), ChannelError> {
        let header =
            Header { operation: Operation::ENUMERATE_BUS, flags: 0, status: NtStatus::SUCCESS };
        let payload = filled(&header, &[], version.payload_bytes());
        channel.send(&Outbound {
            kind: PacketType::IN_BAND,
            flags: 0,
            transaction: 0,
            more: &[],
            payload: &payload,
        })
    }

    fn packet(&self, channel: &mut Channel, packet: &Packet) -> Result<(), ChannelError> {
        let sort = packet.kind();
        let good = sort == PacketType::IN_BAND || sort == PacketType::GPA_DIRECT;
        let (Some(transaction), Ok((header, payload)), true) =
            (packet.transaction(), Header::read_from_prefix(packet.payload()), good)
        else {
            channel.malformed();
            return Ok(());
        };
        // An answer is as long as its request, whatever the version: Linux relies
        // on that before a version is agreed on.
        let room = payload.len().min(size_of::<ScsiRequest>());
        let (status, answer) = match header.operation {
            Operation::EXECUTE_SRB => self.execute(channel, packet, payload),
            Operation::RESET_LUN | Operation::RESET_ADAPTER | Operation::RESET_BUS => {
                // Commands are done one after the other: none is under way here.
                (NtStatus::SUCCESS, Vec::new())
            }
            other => self.initialize(channel, other, payload),
        };
        let header = Header { operation: Operation::COMPLETE_IO, flags: 0, status };
        channel.complete(transaction, &filled(&header, &answer, room))
    }

    /// A step of the initialization, on the primary channel and in order.
    fn initialize(
        &self,
        channel: &Channel,
        operation: Operation,
        payload: &[u8],
    ) -> (NtStatus, Vec<u8>) {
        let refused = |status| (status, Vec::new());
        if channel.sub_channel != 0 {
            return refused(NtStatus::INVALID_DEVICE_STATE);
        }
        let mut stage = lock(&self.stage);
        match (operation, *stage) {
            (Operation::BEGIN_INITIALIZATION, Stage::Begin) => {
                *stage = Stage::Version;
                refused(NtStatus::SUCCESS)
            }
            (Operation::QUERY_PROTOCOL_VERSION, Stage::Version) => {
                let Ok((asked, _)) = ProtocolVersion::read_from_prefix(payload) else {
                    return refused(NtStatus::INVALID_PARAMETER);
                };
                let answer = ProtocolVersion { version: asked.version, revision: 0 };
                let known = Version::ALL.contains(&asked.version);
                if known {
                    *stage = Stage::Properties(asked.version);
                }
                let status = if known { NtStatus::SUCCESS } else { NtStatus::REVISION_MISMATCH };
                (status, answer.as_bytes().to_vec())
            }
            (Operation::QUERY_PROPERTIES, Stage::Properties(version)) => {
                let several = version.has_sub_channels();
                *stage = Stage::End(version, several);
                let properties = ChannelProperties {
                    max_sub_channels: if several { self.max_sub_channels } else { 0 },
                    flags: if several { ChannelProperties::MULTI_CHANNEL } else { 0 },
                    max_transfer_bytes: TRANSFER_BYTES_MAX,
                    ..ChannelProperties::new_zeroed()
                };
                (NtStatus::SUCCESS, properties.as_bytes().to_vec())
            }
            (Operation::CREATE_SUB_CHANNELS, Stage::End(_, true) | Stage::Ready(_)) => {
                let count = u16::read_from_prefix(payload).map_or(0, |(count, _)| count);
                let several = stage.version().is_some_and(Version::has_sub_channels);
                let good = several && (1..=self.max_sub_channels).contains(&count);
                if !good || !channel.offer_sub_channels(count) {
                    return refused(NtStatus::INVALID_PARAMETER);
                }
                if let Stage::End(version, _) = *stage {
                    *stage = Stage::End(version, false);
                }
                refused(NtStatus::SUCCESS)
            }
            (Operation::END_INITIALIZATION, Stage::End(version, _)) => {
                *stage = Stage::Ready(version);
                // The guest will look at all units now.
                self.changed.store(false, Ordering::SeqCst);
                refused(NtStatus::SUCCESS)
            }
            (
                Operation::BEGIN_INITIALIZATION
                | Operation::QUERY_PROTOCOL_VERSION
                | Operation::QUERY_PROPERTIES
                | Operation::CREATE_SUB_CHANNELS
                | Operation::END_INITIALIZATION,
                _,
            ) => refused(NtStatus::INVALID_DEVICE_STATE),
            _ => refused(NtStatus::INVALID_DEVICE_REQUEST),
        }
    }

    fn execute(&self, channel: &Channel, packet: &Packet, payload: &[u8]) -> (NtStatus, Vec<u8>) {
        let Stage::Ready(version) = self.stage() else {
            return (NtStatus::INVALID_DEVICE_STATE, Vec::new());
        };
        let mut request = ScsiRequest::new_zeroed();
        let count = version.payload_bytes().min(payload.len());
        if count < ScsiRequest::SHORT_BYTES {
            channel.malformed();
            return (NtStatus::INVALID_PARAMETER, Vec::new());
        }
        for (to, from) in request.as_mut_bytes().iter_mut().zip(payload.iter().take(count)) {
            *to = *from;
        }
        let ranges = packet.ranges();
        let no_data = request.data_length == 0;
        let buffer = match ranges.as_deref() {
            Some(_) if no_data => Some(Buffer::none(&self.memory)),
            Some([range]) => Buffer::new(&self.memory, range, request.data_length),
            _ => None,
        };
        let Some(buffer) = buffer.filter(|b| b.len() <= TRANSFER_BYTES_MAX.into()) else {
            channel.malformed();
            let failure = Failure {
                srb: SrbStatus::INVALID_REQUEST,
                ..Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB)
            };
            return answer(&request, &Done::from(Err(failure)));
        };
        let done = Done::from(self.command(&request, &buffer));
        let counter = match request.direction {
            ScsiRequest::DATA_IN => &channel.counters.bytes_read,
            _ => &channel.counters.bytes_written,
        };
        channel.counters.requests.fetch_add(1, Ordering::Relaxed);
        counter.fetch_add(done.transferred.into(), Ordering::Relaxed);
        answer(&request, &done)
    }

    fn command(&self, request: &ScsiRequest, buffer: &Buffer<'_>) -> Result<u32, Failure> {
        let mut cdb = [0; CDB_BYTES];
        let length = usize::from(request.cdb_length).min(CDB_BYTES);
        for (to, from) in cdb.iter_mut().zip(&request.payload).take(length) {
            *to = *from;
        }
        let opcode = Opcode(cdb[0]);
        let here = match self.seat {
            Seat::Scsi(_) => request.path == 0 && request.target == 0,
            // Guests do not agree on what the path is.
            Seat::Ide { device, .. } => request.target == device,
        };
        if opcode == Opcode::REPORT_LUNS {
            return self.report_luns(&cdb, here, buffer);
        }
        let disk = if here {
            let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
            units.get(&request.lun).cloned()
        } else {
            None
        };
        match disk {
            Some(disk) => Unit { disk: &disk }.execute(&cdb, buffer),
            None if opcode == Opcode::INQUIRY => absent(&cdb, request.lun, buffer),
            None => Err(Failure {
                srb: SrbStatus::INVALID_LUN,
                ..Failure::illegal(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED)
            }),
        }
    }

    fn report_luns(
        &self,
        cdb: &[u8; CDB_BYTES],
        here: bool,
        buffer: &Buffer<'_>,
    ) -> Result<u32, Failure> {
        let field = Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        let (cdb, _) = CdbReportLuns::read_from_prefix(cdb).map_err(|_| field)?;
        if cdb.select > 2 {
            return Err(field);
        }
        let units = if here { self.units() } else { Vec::new() };
        let list = inquiry::lun_list(units.iter().map(|(lun, _)| *lun));
        let room = (cdb.allocation_length.get() as usize).min(list.len());
        Ok(buffer.put(list.get(..room).unwrap_or_default()))
    }
}

/// INQUIRY of a unit that is not there.
fn absent(cdb: &[u8; CDB_BYTES], lun: u8, buffer: &Buffer<'_>) -> Result<u32, Failure> {
    let field = Failure::illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
    let (cdb, _) = CdbInquiry::read_from_prefix(cdb).map_err(|_| field)?;
    if cdb.flags != 0 || cdb.page != VpdPage::SUPPORTED_PAGES {
        return Err(field);
    }
    let data = inquiry::absent(lun);
    let room = usize::from(cdb.allocation_length.get()).min(data.as_bytes().len());
    Ok(buffer.put(data.as_bytes().get(..room).unwrap_or_default()))
}

/// A packet's bytes: header and payload, cut or filled up with zeros to `room`.
fn filled(header: &Header, payload: &[u8], room: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PACKET_BYTES_MAX);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(payload.get(..payload.len().min(room)).unwrap_or_default());
    bytes.resize(size_of::<Header>() + room, 0);
    bytes
}

fn answer(request: &ScsiRequest, done: &Done) -> (NtStatus, Vec<u8>) {
    let mut result = ScsiRequest {
        length: request.length,
        srb_status: done.srb,
        scsi_status: done.scsi,
        port: request.port,
        path: request.path,
        target: request.target,
        lun: request.lun,
        cdb_length: request.cdb_length,
        direction: request.direction,
        data_length: done.transferred,
        ..ScsiRequest::new_zeroed()
    };
    if let Some(sense) = done.sense {
        result.sense_length = SENSE_BYTES as u8;
        for (to, from) in result.payload.iter_mut().zip(sense.as_bytes()) {
            *to = *from;
        }
    }
    let status = match done.srb.code() {
        SrbStatus::SUCCESS => NtStatus::SUCCESS,
        SrbStatus::INVALID_LUN => NtStatus::DEVICE_DOES_NOT_EXIST,
        SrbStatus::DATA_OVERRUN => NtStatus::BUFFER_OVERFLOW,
        _ => NtStatus::IO_DEVICE_ERROR,
    };
    (status, result.as_bytes().to_vec())
}

impl Device for Controller {
    fn name(&self) -> String {
        match self.seat {
            Seat::Scsi(number) => format!("scsi{number}"),
            Seat::Ide { controller, device } => format!("ide{controller}-{device}"),
        }
    }

    fn offer(&self) -> Offer {
        /// What differs between controllers is the last byte.
        const INSTANCE: Guid = Guid::literal("d5e1b0f0-5c51-4be1-8f2d-9a5f0c730000");
        let (interface_type, interface_instance, user_defined) = match self.seat {
            Seat::Scsi(number) => {
                let mut instance = INSTANCE;
                instance.0[15] = number as u8;
                (SCSI_CLASS, instance, UserDefined::ZERO)
            }
            Seat::Ide { controller, device } => {
                let port = IdePort { controller: controller.into(), device: device.into() };
                (IDE_CLASS, port.instance(), IdeProperties::new(controller, device).into())
            }
        };
        let message = OfferChannel {
            interface_type,
            interface_instance,
            user_defined,
            flags: OfferFlags::ENUMERATE_DEVICE_INTERFACE.bits(),
            ..OfferChannel::empty()
        };
        Offer { message, monitored: self.monitored }
    }

    fn run(&self, channel: &mut Channel) {
        let primary = channel.sub_channel == 0;
        if primary {
            *lock(&self.stage) = Stage::Begin;
            *lock(&self.primary) = Some(channel.waker());
        }
        if let Err(ChannelError::Broken(error)) = self.serve(channel) {
            channel.malformed();
            eprintln!("hvhost: {}: the guest's ring makes no sense: {error:?}\r", self.name());
        }
        if primary {
            *lock(&self.primary) = None;
            *lock(&self.stage) = Stage::Begin;
        }
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
