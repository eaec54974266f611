//! Event channels (`xen/include/public/event_channel.h`) and virtual interrupts (`xen.h`).

use core::mem::{offset_of, size_of};
use core::sync::atomic::AtomicU32;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::SharedView;
use crate::mm::DomId;

/// `EVTCHNOP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct EvtchnOp(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl EvtchnOp {
    pub const BIND_INTERDOMAIN: Self = Self(0);
    pub const BIND_VIRQ: Self = Self(1);
    pub const BIND_PIRQ: Self = Self(2);
    pub const CLOSE: Self = Self(3);
    pub const SEND: Self = Self(4);
    pub const STATUS: Self = Self(5);
    pub const ALLOC_UNBOUND: Self = Self(6);
    pub const BIND_IPI: Self = Self(7);
    pub const BIND_VCPU: Self = Self(8);
    pub const UNMASK: Self = Self(9);
    pub const RESET: Self = Self(10);
    pub const INIT_CONTROL: Self = Self(11);
    pub const EXPAND_ARRAY: Self = Self(12);
    pub const SET_PRIORITY: Self = Self(13);
    /// Continuation of a reset; Xen keeps it out of guests' headers, not out of their reach.
    pub const RESET_CONT: Self = Self(14);
}

/// A port number (`evtchn_port_t`).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct EvtchnPort(pub u32);

/// A virtual interrupt (`VIRQ_*`, `xen.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Virq(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl Virq {
    pub const TIMER: Self = Self(0);
    pub const DEBUG: Self = Self(1);
    pub const CONSOLE: Self = Self(2);
    pub const DOM_EXC: Self = Self(3);
    pub const TBUF: Self = Self(4);
    pub const DEBUGGER: Self = Self(6);
    pub const XENOPROF: Self = Self(7);
    pub const CON_RING: Self = Self(8);
    pub const PCPU_STATE: Self = Self(9);
    pub const MEM_EVENT: Self = Self(10);
    pub const ARGO: Self = Self(11);
    pub const ENOMEM: Self = Self(12);
    pub const XENPMU: Self = Self(13);
    pub const ARCH_0: Self = Self(16);
    pub const ARCH_7: Self = Self(23);

    /// Whether the interrupt is the domain's, not one vCPU's: such can be bound on vCPU 0 only
    /// (`virq_is_global`, `xen/common/event_channel.c`; x86 calls all `VIRQ_ARCH_*` global).
    #[must_use]
    pub const fn is_global(self) -> bool {
        !matches!(self, Self::TIMER | Self::DEBUG | Self::XENOPROF | Self::XENPMU)
    }
}

/// `NR_VIRQS`.
pub const NR_VIRQS: usize = 24;

/// `EVTCHNSTAT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct EvtchnStat(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl EvtchnStat {
    pub const CLOSED: Self = Self(0);
    pub const UNBOUND: Self = Self(1);
    pub const INTERDOMAIN: Self = Self(2);
    pub const PIRQ: Self = Self(3);
    pub const VIRQ: Self = Self(4);
    pub const IPI: Self = Self(5);
}

/// `struct evtchn_alloc_unbound`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnAllocUnbound {
    pub dom: DomId,
    pub remote_dom: DomId,
    pub port: EvtchnPort,
}
const_assert_eq!(size_of::<EvtchnAllocUnbound>(), 8);

/// `struct evtchn_bind_interdomain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnBindInterdomain {
    pub remote_dom: DomId,
    pub pad: u16,
    pub remote_port: EvtchnPort,
    pub local_port: EvtchnPort,
}
const_assert_eq!(size_of::<EvtchnBindInterdomain>(), 12);

/// `struct evtchn_bind_virq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnBindVirq {
    pub virq: u32,
    pub vcpu: u32,
    pub port: EvtchnPort,
}
const_assert_eq!(size_of::<EvtchnBindVirq>(), 12);

/// `struct evtchn_bind_pirq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnBindPirq {
    pub pirq: u32,
    pub flags: u32,
    pub port: EvtchnPort,
}
const_assert_eq!(size_of::<EvtchnBindPirq>(), 12);

/// `struct evtchn_bind_ipi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnBindIpi {
    pub vcpu: u32,
    pub port: EvtchnPort,
}
const_assert_eq!(size_of::<EvtchnBindIpi>(), 8);

/// `struct evtchn_status`. `u` is `{dom}` or `{dom, port}` or one number, by `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnStatus {
    pub dom: DomId,
    pub pad: u16,
    pub port: EvtchnPort,
    pub status: EvtchnStat,
    pub vcpu: u32,
    /// `unbound.dom`, `interdomain.dom` (low 16 bits), `pirq` or `virq`.
    pub u0: u32,
    /// `interdomain.port`.
    pub u1: u32,
}
const_assert_eq!(size_of::<EvtchnStatus>(), 24);
const_assert_eq!(offset_of!(EvtchnStatus, u0), 16);

/// `struct evtchn_bind_vcpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnBindVcpu {
    pub port: EvtchnPort,
    pub vcpu: u32,
}
const_assert_eq!(size_of::<EvtchnBindVcpu>(), 8);

/// `struct evtchn_reset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnReset {
    pub dom: DomId,
}
const_assert_eq!(size_of::<EvtchnReset>(), 2);

/// `struct evtchn_init_control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnInitControl {
    pub control_gfn: u64,
    pub offset: u32,
    pub vcpu: u32,
    pub link_bits: u8,
    pub pad: [u8; 7],
}
const_assert_eq!(size_of::<EvtchnInitControl>(), 24);
const_assert_eq!(offset_of!(EvtchnInitControl, link_bits), 16);

/// `struct evtchn_expand_array`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnExpandArray {
    pub array_gfn: u64,
}
const_assert_eq!(size_of::<EvtchnExpandArray>(), 8);

/// `struct evtchn_set_priority`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct EvtchnSetPriority {
    pub port: EvtchnPort,
    pub priority: u32,
}
const_assert_eq!(size_of::<EvtchnSetPriority>(), 8);

/// Offset of the argument union in `struct evtchn_op`, the compat form's argument.
pub const EVTCHN_OP_U_OFFSET: u64 = 4;
/// `sizeof(struct evtchn_op)`.
pub const EVTCHN_OP_SIZE: usize = 28;

/// `EVTCHN_FIFO_PRIORITY_MAX`, `_DEFAULT`, `_MIN` and the layout of an event word.
pub mod fifo {
    /// Most urgent.
    pub const PRIORITY_MAX: u32 = 0;
    /// Of a port nobody set.
    pub const PRIORITY_DEFAULT: u32 = 7;
    /// Least urgent.
    pub const PRIORITY_MIN: u32 = 15;
    /// `EVTCHN_FIFO_MAX_QUEUES`.
    pub const MAX_QUEUES: usize = 16;
    /// Bit number of PENDING.
    pub const PENDING_BIT: u32 = 31;
    /// Bit number of MASKED.
    pub const MASKED_BIT: u32 = 30;
    /// Bit number of LINKED.
    pub const LINKED_BIT: u32 = 29;
    /// Bit number of BUSY.
    pub const BUSY_BIT: u32 = 28;
    /// The event happened.
    pub const PENDING: u32 = 1 << PENDING_BIT;
    /// The guest does not want to see it.
    pub const MASKED: u32 = 1 << MASKED_BIT;
    /// The word is on a queue.
    pub const LINKED: u32 = 1 << LINKED_BIT;
    /// The hypervisor is changing the link; the guest must not unmask.
    pub const BUSY: u32 = 1 << BUSY_BIT;
    /// Bits of a link.
    pub const LINK_BITS: u32 = 17;
    /// The link: the next port of the queue, 0 at its end.
    pub const LINK_MASK: u32 = (1 << LINK_BITS) - 1;
    /// `EVTCHN_FIFO_NR_CHANNELS`.
    pub const NR_CHANNELS: u32 = 1 << LINK_BITS;
    /// Event words in a page of the event array.
    pub const WORDS_PER_PAGE: usize = 1024;
}

/// `struct evtchn_fifo_control_block`.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct FifoControlBlock {
    pub ready: AtomicU32,
    pub rsvd: AtomicU32,
    pub head: [AtomicU32; fifo::MAX_QUEUES],
}
const_assert_eq!(size_of::<FifoControlBlock>(), 72);

/// A page of the FIFO event array.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct FifoArrayPage {
    /// `event_word_t` of 1024 consecutive ports.
    pub words: [AtomicU32; fifo::WORDS_PER_PAGE],
}
const_assert_eq!(size_of::<FifoArrayPage>(), 4096);

impl SharedView for FifoControlBlock {}
impl SharedView for FifoArrayPage {}
