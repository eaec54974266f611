//! Xen's CPUID leaves (`xen/include/public/arch-x86/cpuid.h`) and the names of the
//! architectural feature bits the PV policy speaks of.

/// First hypervisor leaf.
pub const XEN_CPUID_FIRST_LEAF: u32 = 0x4000_0000;
/// Highest leaf for a PV guest: the time, HVM and PV leaves included.
pub const XEN_CPUID_MAX_PV_LEAF: u32 = XEN_CPUID_FIRST_LEAF + 5;
/// "XenV" (EBX of the first leaf).
pub const XEN_CPUID_SIGNATURE_EBX: u32 = 0x566e_6558;
/// "MMXe" (ECX).
pub const XEN_CPUID_SIGNATURE_ECX: u32 = 0x6558_4d4d;
/// "nVMM" (EDX).
pub const XEN_CPUID_SIGNATURE_EDX: u32 = 0x4d4d_566e;
/// Leaf 2 ECX: `MMU_PT_UPDATE_PRESERVE_AD` is supported.
pub const XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD: u32 = 1;
/// Leaf 3 EAX: the TSC is emulated.
pub const XEN_CPUID_TSC_EMULATED: u32 = 1 << 0;
/// Leaf 3 EAX: the host's TSC is reliable.
pub const XEN_CPUID_HOST_TSC_RELIABLE: u32 = 1 << 1;
/// Leaf 3 EAX: RDTSCP is available.
pub const XEN_CPUID_RDTSCP_INSTR_AVAIL: u32 = 1 << 2;
/// Leaf 5 EBX: mask of the machine address width in bits.
pub const XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK: u32 = 0xff;
/// MSR that fills hypercall pages (leaf 2 EBX).
pub const XEN_HYPERCALL_MSR: u32 = 0x4000_0000;
