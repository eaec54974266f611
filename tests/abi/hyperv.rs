//! `hv-abi` against the Linux kernel's Hyper-V headers (`asm/hyperv-tlfs.h`,
//! `asm-generic/hyperv-tlfs.h`, as Debian's `linux-headers-*-common` has them).
