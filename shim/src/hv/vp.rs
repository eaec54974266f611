//! Other virtual processors by hypercall: interrupts, TLB flushes, starting them.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_abi::hypercall::{
    CallCode, Control, FlushFlags, FlushVirtualAddressSpace, FlushVirtualAddressSpaceEx, GvaRange,
    SendSyntheticClusterIpiEx, VpSet,
};
use hv_abi::vp::{
    GetVpIndexFromApicId, InitialVpContext, PARTITION_ID_SELF, SegmentRegister,
    StartVirtualProcessor,
};
use translate::bits::bits;
use xen_abi::GuestVa;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::{VP_INDEX, get};

/// Banks of 64 processors there can be a processor of ours in.
const BANKS: usize = 64;

/// Indices of the virtual processors of vCPUs.
fn indices_of(vcpus: u64) -> impl Iterator<Item = u32> {
    bits(vcpus).map(|vcpu| VP_INDEX[vcpu as usize].load(Ordering::Relaxed))
}

/// The virtual processors of vCPUs as one word, where all have indices below 64.
fn mask_of(vcpus: u64) -> Option<u64> {
    indices_of(vcpus).try_fold(0, |mask, index| Some(mask | 1u64.checked_shl(index)?))
}

/// Indices of the virtual processors of the first vCPUs.
pub fn indices(vcpus: u32) -> Vec<u32> {
    let indices = VP_INDEX.iter().take(vcpus.max(1) as usize);
    indices.map(|index| index.load(Ordering::Relaxed)).collect()
}

/// A set of processors as hypercalls name it: which banks of 64, and their words in order.
struct Set {
    banks: u64,
    words: [u64; BANKS],
    used: usize,
}

impl Set {
    /// The virtual processors of vCPUs.
    fn of(vcpus: u64) -> Option<Self> {
        let mut all = [0u64; BANKS];
        for index in indices_of(vcpus) {
            *all.get_mut(index as usize / 64)? |= 1 << (index % 64);
        }
        let mut set = Self { banks: 0, words: [0; BANKS], used: 0 };
        for (bank, word) in all.iter().enumerate().filter(|(_, word)| **word != 0) {
            set.banks |= 1 << bank;
            set.words[set.used] = *word;
            set.used += 1;
        }
        Some(set)
    }

    fn words(&self) -> &[u64] {
        &self.words[..self.used]
    }

    fn header(&self) -> VpSet {
        VpSet { format: VpSet::SPARSE_4K, valid_bank_mask: self.banks }
    }
}

/// The header and banks of a sparse set as one input.
fn with_banks<T: IntoBytes + Immutable>(
    input: &mut [u64; super::INPUT_WORDS],
    header: &T,
    banks: &[u64],
) -> Option<usize> {
    let bytes = header.as_bytes();
    let words = bytes.len() / 8;
    input.as_mut_bytes().get_mut(..bytes.len())?.copy_from_slice(bytes);
    input.get_mut(words..words + banks.len())?.copy_from_slice(banks);
    Some(words + banks.len())
}

/// Interrupts vCPUs by the host's hypercall. `false` where it does not offer that.
pub fn send_ipi(vcpus: u64, vector: u8) -> bool {
    let Some(hv) = get().filter(|hv| hv.cluster_ipi) else { return false };
    if let Some(mask) = mask_of(vcpus) {
        let code = CallCode::SEND_SYNTHETIC_CLUSTER_IPI;
        return super::fast_hypercall(code, u64::from(vector), mask).ok().is_ok();
    }
    hv.ex_masks && send_ipi_ex(vcpus, vector)
}

#[cold]
fn send_ipi_ex(vcpus: u64, vector: u8) -> bool {
    let Some(set) = Set::of(vcpus) else { return false };
    let header = SendSyntheticClusterIpiEx {
        vector: vector.into(),
        target_vtl: 0,
        reserved: [0; 3],
        vp_set: set.header(),
    };
    let mut input = [0; super::INPUT_WORDS];
    let Some(words) = with_banks(&mut input, &header, set.words()) else { return false };
    let control =
        Control::new(CallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX).with_variable_header(set.used as u16);
    super::hypercall_with(control, input[..words].as_bytes()).ok().is_ok()
}

/// Flushes a page, or everything, on vCPUs, by the host's hypercall. `false` where it does not
/// recommend that.
///
/// In all address spaces: a page of the kernel's half is in those of every L4.
pub fn flush(vcpus: u64, page: Option<GuestVa>) -> bool {
    let Some(hv) = get().filter(|hv| hv.remote_flush) else { return false };
    let flags = FlushFlags::ALL_VIRTUAL_ADDRESS_SPACES.bits();
    let Some(processor_mask) = mask_of(vcpus) else {
        return hv.ex_masks && flush_ex(vcpus, page, flags);
    };
    let header = FlushVirtualAddressSpace { address_space: 0, flags, processor_mask };
    let Some(va) = page else {
        return super::hypercall(CallCode::FLUSH_VIRTUAL_ADDRESS_SPACE, &header).ok().is_ok();
    };
    let FlushVirtualAddressSpace { address_space, flags, processor_mask } = header;
    let input = [address_space, flags, processor_mask, GvaRange::new(va.0, 1).0];
    let control = Control::new(CallCode::FLUSH_VIRTUAL_ADDRESS_LIST).with_reps(1, 0);
    super::hypercall_with(control, input.as_bytes()).ok().is_ok()
}

#[cold]
fn flush_ex(vcpus: u64, page: Option<GuestVa>, flags: u64) -> bool {
    let Some(set) = Set::of(vcpus) else { return false };
    let code = match page {
        None => CallCode::FLUSH_VIRTUAL_ADDRESS_SPACE_EX,
        Some(_) => CallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX,
    };
    let header = FlushVirtualAddressSpaceEx { address_space: 0, flags, vp_set: set.header() };
    let mut control = Control::new(code).with_variable_header(set.used as u16);
    let mut input = [0; super::INPUT_WORDS];
    let Some(mut words) = with_banks(&mut input, &header, set.words()) else { return false };
    if let Some(va) = page {
        let Some(word) = input.get_mut(words) else { return false };
        *word = GvaRange::new(va.0, 1).0;
        words += 1;
        control = control.with_reps(1, 0);
    }
    super::hypercall_with(control, input[..words].as_bytes()).ok().is_ok()
}

/// Starts the virtual processor with an APIC id in 64-bit mode at `entry`, on the page tables in use.
/// Whether the host has done it.
pub fn start(apic_id: u32, entry: u64) -> bool {
    let ask = GetVpIndexFromApicId {
        partition_id: PARTITION_ID_SELF,
        apic_id,
        ..GetVpIndexFromApicId::new_zeroed()
    };
    let Some(vp_index) = super::hypercall_for_u32(CallCode::GET_VP_INDEX_FROM_APIC_ID, &ask) else {
        return false;
    };
    let flat = |attributes| SegmentRegister { base: 0, limit: u32::MAX, selector: 0, attributes };
    let code = SegmentRegister { selector: 8, ..flat(0xa09b) };
    let data = SegmentRegister { selector: 16, ..flat(0xc093) };
    let task = SegmentRegister { limit: 0x67, ..flat(0x8b) };
    let context = InitialVpContext {
        rip: entry,
        rflags: 2,
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task,
        ldtr: SegmentRegister { limit: 0xffff, ..flat(0x82) },
        // SCE is not needed yet: LME, LMA, NXE.
        efer: 0xd00,
        cr0: 0x8000_0011,
        cr3: crate::cpu::current_l4(),
        // PAE.
        cr4: 0x20,
        pat: crate::cpu::XEN_PAT,
        ..InitialVpContext::new_zeroed()
    };
    let start = StartVirtualProcessor {
        partition_id: PARTITION_ID_SELF,
        vp_index,
        context,
        ..StartVirtualProcessor::new_zeroed()
    };
    super::hypercall(CallCode::START_VIRTUAL_PROCESSOR, &start).ok().is_ok()
}
