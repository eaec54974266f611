//! physdev_op (`xen/include/public/physdev.h`): what a guest without devices may ask.

use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::mm::DomId;

/// `PHYSDEVOP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PhysdevOp(pub u32);

#[allow(missing_docs, reason = "names are the header's own")]
impl PhysdevOp {
    pub const IRQ_UNMASK_NOTIFY: Self = Self(4);
    pub const IRQ_STATUS_QUERY: Self = Self(5);
    pub const SET_IOPL: Self = Self(6);
    pub const SET_IOBITMAP: Self = Self(7);
    pub const APIC_READ: Self = Self(8);
    pub const APIC_WRITE: Self = Self(9);
    pub const ALLOC_IRQ_VECTOR: Self = Self(10);
    pub const FREE_IRQ_VECTOR: Self = Self(11);
    pub const EOI: Self = Self(12);
    pub const MAP_PIRQ: Self = Self(13);
    pub const UNMAP_PIRQ: Self = Self(14);
    pub const MANAGE_PCI_ADD: Self = Self(15);
    pub const MANAGE_PCI_REMOVE: Self = Self(16);
    pub const PIRQ_EOI_GMFN_V1: Self = Self(17);
    pub const RESTORE_MSI: Self = Self(19);
    pub const MANAGE_PCI_ADD_EXT: Self = Self(20);
    pub const SETUP_GSI: Self = Self(21);
    pub const GET_FREE_PIRQ: Self = Self(23);
    pub const PCI_MMCFG_RESERVED: Self = Self(24);
    pub const PCI_DEVICE_ADD: Self = Self(25);
    pub const PCI_DEVICE_REMOVE: Self = Self(26);
    pub const RESTORE_MSI_EXT: Self = Self(27);
    pub const PIRQ_EOI_GMFN_V2: Self = Self(28);
    pub const DBGP_OP: Self = Self(29);
    pub const PREPARE_MSIX: Self = Self(30);
    pub const RELEASE_MSIX: Self = Self(31);
}

/// `struct physdev_eoi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevEoi {
    pub irq: u32,
}
const_assert_eq!(size_of::<PhysdevEoi>(), 4);

/// `struct physdev_pirq_eoi_gmfn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevPirqEoiGmfn {
    pub gmfn: u64,
}
const_assert_eq!(size_of::<PhysdevPirqEoiGmfn>(), 8);

/// `struct physdev_irq_status_query`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevIrqStatusQuery {
    pub irq: u32,
    pub flags: u32,
}
const_assert_eq!(size_of::<PhysdevIrqStatusQuery>(), 8);

/// `XENIRQSTAT_needs_eoi`.
pub const XENIRQSTAT_NEEDS_EOI: u32 = 1;
/// `XENIRQSTAT_shared`.
pub const XENIRQSTAT_SHARED: u32 = 2;

/// `struct physdev_set_iopl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevSetIopl {
    pub iopl: u32,
}
const_assert_eq!(size_of::<PhysdevSetIopl>(), 4);

/// `struct physdev_set_iobitmap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevSetIobitmap {
    pub bitmap: u64,
    pub nr_ports: u32,
    pub pad: u32,
}
const_assert_eq!(size_of::<PhysdevSetIobitmap>(), 16);

/// `struct physdev_apic`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevApic {
    pub apic_physbase: u64,
    pub reg: u32,
    pub value: u32,
}
const_assert_eq!(size_of::<PhysdevApic>(), 16);

/// `struct physdev_irq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevIrq {
    pub irq: u32,
    pub vector: u32,
}
const_assert_eq!(size_of::<PhysdevIrq>(), 8);

/// `struct physdev_map_pirq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevMapPirq {
    pub domid: DomId,
    pub pad0: u16,
    pub type_: i32,
    pub index: i32,
    pub pirq: i32,
    pub bus: i32,
    pub devfn: i32,
    pub entry_nr: i32,
    pub pad1: u32,
    pub table_base: u64,
}
const_assert_eq!(size_of::<PhysdevMapPirq>(), 40);

/// `MAP_PIRQ_TYPE_*`.
#[allow(missing_docs, reason = "names are the header's own")]
pub mod map_pirq_type {
    pub const MSI: i32 = 0;
    pub const GSI: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const MSI_SEG: i32 = 3;
    pub const MULTI_MSI: i32 = 4;
}

/// `struct physdev_unmap_pirq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevUnmapPirq {
    pub domid: DomId,
    pub pad: u16,
    pub pirq: i32,
}
const_assert_eq!(size_of::<PhysdevUnmapPirq>(), 8);

/// `struct physdev_manage_pci`, also `struct physdev_restore_msi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevManagePci {
    pub bus: u8,
    pub devfn: u8,
}
const_assert_eq!(size_of::<PhysdevManagePci>(), 2);

/// `struct physdev_manage_pci_ext`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevManagePciExt {
    pub bus: u8,
    pub devfn: u8,
    pub pad0: u16,
    pub is_extfn: u32,
    pub is_virtfn: u32,
    pub physfn: [u8; 2],
    pub pad1: u16,
}
const_assert_eq!(size_of::<PhysdevManagePciExt>(), 16);

/// `struct physdev_setup_gsi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevSetupGsi {
    pub gsi: i32,
    pub triggering: u8,
    pub polarity: u8,
    pub pad: u16,
}
const_assert_eq!(size_of::<PhysdevSetupGsi>(), 8);

/// `struct physdev_get_free_pirq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevGetFreePirq {
    pub type_: i32,
    pub pirq: u32,
}
const_assert_eq!(size_of::<PhysdevGetFreePirq>(), 8);

/// `struct physdev_pci_mmcfg_reserved`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevPciMmcfgReserved {
    pub address: u64,
    pub segment: u16,
    pub start_bus: u8,
    pub end_bus: u8,
    pub flags: u32,
}
const_assert_eq!(size_of::<PhysdevPciMmcfgReserved>(), 16);

/// `struct physdev_pci_device_add` without its trailing array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevPciDeviceAdd {
    pub seg: u16,
    pub bus: u8,
    pub devfn: u8,
    pub flags: u32,
    pub physfn: [u8; 2],
    pub pad: u16,
}
const_assert_eq!(size_of::<PhysdevPciDeviceAdd>(), 12);

/// `struct physdev_pci_device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "field names are the header's own")]
pub struct PhysdevPciDevice {
    pub seg: u16,
    pub bus: u8,
    pub devfn: u8,
}
const_assert_eq!(size_of::<PhysdevPciDevice>(), 4);

/// `XEN_PCI_DEV_PXM`: a proximity domain follows the structure.
pub const XEN_PCI_DEV_PXM: u32 = 4;

/// Offset of the argument union in `struct physdev_op`, the compat form's argument.
pub const PHYSDEV_OP_U_OFFSET: u64 = 8;
/// `sizeof(struct physdev_op)`.
pub const PHYSDEV_OP_SIZE: usize = 24;
