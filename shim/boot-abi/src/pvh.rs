//! PVH (xen/include/public/arch-x86/hvm/start_info.h).

use crate::bytes::{u32_at, u64_at};
use crate::info::string;
use crate::{BootInfo, MAX_MODULES, MAX_REGIONS, Reader};

const MAGIC: u32 = 0x336e_c578;
/// Bytes of the structure in version 0, and from 1.
const V0_BYTES: usize = 40;
const V1_BYTES: usize = 56;
const MODULE_BYTES: u64 = 32;
const REGION_BYTES: u64 = 24;

/// Reads the `hvm_start_info` at `start_info`.
#[must_use]
pub fn pvh(read: &Reader<'_>, start_info: u64) -> BootInfo {
    let mut info = BootInfo::by("PVH");
    // What is damaged ends the reading; what was read before stands.
    let _ = fill(&mut info, read, start_info);
    info
}

fn fill(info: &mut BootInfo, read: &Reader<'_>, start_info: u64) -> Option<()> {
    let head = read(start_info, V0_BYTES).filter(|head| u32_at(head, 0) == Some(MAGIC))?;
    let modules = u64::from(u32_at(head, 12)?);
    let list = u64_at(head, 16)?;
    for n in 0..modules.min(MAX_MODULES as u64) {
        let entry = read(list.checked_add(n * MODULE_BYTES)?, MODULE_BYTES as usize)?;
        info.add_module(u64_at(entry, 0)?, u64_at(entry, 8)?);
    }
    info.lost_modules = u32::try_from(modules.saturating_sub(MAX_MODULES as u64)).ok()?;
    info.cmdline = string(read, u64_at(head, 24)?);
    info.rsdp = u64_at(head, 32).filter(|&address| address != 0);
    if u32_at(head, 4)? >= 1 {
        let more = read(start_info, V1_BYTES)?;
        let map = u64_at(more, 40)?;
        for n in 0..u64::from(u32_at(more, 48)?).min(MAX_REGIONS as u64) {
            let entry = read(map.checked_add(n * REGION_BYTES)?, REGION_BYTES as usize)?;
            info.add_region(u64_at(entry, 0)?, u64_at(entry, 8)?, u32_at(entry, 16)?);
        }
    }
    Some(())
}
