//! A port's state in one word.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Not in use.
    Free = 0,
    /// Port 0.
    Reserved = 1,
    /// Waits for the domain in `data` to bind.
    Unbound = 2,
    /// Bound to the guest's own port in `data`.
    Loopback = 3,
    /// Bound to a backend, encoded in `data`.
    Backend = 4,
    /// Bound to the VIRQ in `data`.
    Virq = 5,
    /// An inter-processor interrupt.
    Ipi = 6,
}

/// A backend in the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The PV console.
    Console,
    /// The xenstore daemon.
    Xenstore,
    /// A block device, by index.
    Blk(u16),
    /// A network device, by index.
    Net(u16),
}

impl Backend {
    pub(super) const fn encode(self) -> u32 {
        match self {
            Self::Console => 0,
            Self::Xenstore => 1 << 16,
            Self::Blk(index) => 2 << 16 | index as u32,
            Self::Net(index) => 3 << 16 | index as u32,
        }
    }

    const fn decode(data: u32) -> Option<Self> {
        let index = data as u16;
        match data >> 16 {
            0 => Some(Self::Console),
            1 => Some(Self::Xenstore),
            2 => Some(Self::Blk(index)),
            3 => Some(Self::Net(index)),
            _ => None,
        }
    }
}

/// The state of a port: kind (bits 0-7), priority (8-15), vCPU (16-31), data (32-63).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortState(u64);

impl PortState {
    /// A port of this kind on vCPU 0.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self(kind as u64)
    }
    /// What the port is.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self.0 as u8 {
            1 => Kind::Reserved,
            2 => Kind::Unbound,
            3 => Kind::Loopback,
            4 => Kind::Backend,
            5 => Kind::Virq,
            6 => Kind::Ipi,
            _ => Kind::Free,
        }
    }
    /// FIFO priority.
    #[must_use]
    pub const fn priority(self) -> u32 {
        (self.0 >> 8) as u32 & 0xff
    }
    /// The vCPU that is told.
    #[must_use]
    pub const fn vcpu(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
    }
    /// See [`Kind`].
    #[must_use]
    pub const fn data(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// The backend the port is bound to.
    #[must_use]
    pub const fn backend(self) -> Option<Backend> {
        match self.kind() {
            Kind::Backend => Backend::decode(self.data()),
            _ => None,
        }
    }
    pub(super) const fn with_kind(self, kind: Kind) -> Self {
        Self(self.0 & !0xff | kind as u64)
    }
    pub(super) const fn with_priority(self, priority: u32) -> Self {
        Self(self.0 & !0xff00 | (priority as u64 & 0xff) << 8)
    }
    pub(super) const fn with_vcpu(self, vcpu: u32) -> Self {
        Self(self.0 & !0xffff_0000 | (vcpu as u64 & 0xffff) << 16)
    }
    pub(super) const fn with_data(self, data: u32) -> Self {
        Self(self.0 & 0xffff_ffff | (data as u64) << 32)
    }
}

/// A port.
#[derive(Debug)]
pub(super) struct Port {
    state: AtomicU64,
    /// FIFO: the queue the port was last on, as [`super::fifo`] encodes it.
    pub(super) last_queue: AtomicU32,
    /// FIFO: pending while its page of the event array was missing.
    pub(super) saved_pending: AtomicBool,
}

impl Port {
    pub(super) const fn new() -> Self {
        Self::with(PortState::new(Kind::Free))
    }
    pub(super) const fn with(state: PortState) -> Self {
        Self {
            state: AtomicU64::new(state.0),
            last_queue: AtomicU32::new(0),
            saved_pending: AtomicBool::new(false),
        }
    }
    #[inline]
    pub(super) fn state(&self) -> PortState {
        PortState(self.state.load(Ordering::Acquire))
    }
    /// Only with `config` held, so that changes do not overwrite each other.
    pub(super) fn set_state(&self, state: PortState) {
        self.state.store(state.0, Ordering::Release);
    }
}
