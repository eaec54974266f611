//! The PV console: the ring's backend, and console_io.
//!
//! The ring follows xenconsoled (`tools/console/daemon/io.c`): indices that cannot be true make
//! it look empty (output) or full (input), and nothing is done until they are sane again.
//! Input bytes stay in the device until the ring has room, so none is lost that the ring could
//! ever take.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use spin::Mutex;
use xen_abi::io::console::{CONSOLEIO_READ, CONSOLEIO_WRITE, IN_SIZE, OUT_SIZE, XenconsInterface};
use xen_abi::{Errno, GuestVa, MachineAddr};

use crate::Ctx;
use crate::domain::Domain;
use crate::evtchn::{self, Backend, Here};
use crate::outcome::{HcResult, efault, ret};
use crate::platform::Platform;

/// Bytes copied at a time.
const CHUNK: usize = 128;
/// Bytes one console_io call writes at most; the rest is dropped. A line of a kernel log is far
/// below it, and a call that is all noise does not hold the processor.
const IO_MAX: u64 = 4096;
/// No ring.
const NONE: u64 = u64::MAX;

/// The PV console.
#[derive(Debug)]
pub struct Console {
    /// Machine address of the ring, whose page is the guest's.
    ring: AtomicU64,
    port: AtomicU32,
    /// One processor at a time moves bytes.
    busy: Mutex<()>,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// No ring yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { ring: AtomicU64::new(NONE), port: AtomicU32::new(0), busy: Mutex::new(()) }
    }

    /// Connects the ring the builder put into `start_info` with the port that
    /// [`evtchn::EventChannels::alloc_backend`] gave.
    pub fn connect(&self, ring: MachineAddr, port: u32) {
        self.port.store(port, Ordering::Relaxed);
        self.ring.store(ring.0, Ordering::Release);
    }

    fn ring<P: Platform>(&self, plat: &P) -> Option<&'static XenconsInterface> {
        match self.ring.load(Ordering::Acquire) {
            NONE => None,
            at => plat.view(MachineAddr(at)),
        }
    }
}

/// The guest kicked the console: its output goes to the device, and room in the input ring is
/// used.
pub fn kicked<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>) {
    let console = &dom.console;
    let Some(ring) = console.ring(plat) else { return };
    let (output, input) = {
        let _busy = console.busy.lock();
        (drain(plat, ring), fill(plat, ring))
    };
    if output || input {
        evtchn::notify(dom, plat, here, console.port.load(Ordering::Relaxed), Backend::Console);
    }
}

/// Bytes arrived on the guest's console device. Level-triggered: call it again while the device
/// has bytes and after the guest kicked.
pub fn input<P: Platform>(dom: &Domain, plat: &P) {
    // With one vCPU this is its processor; with more, a kick too many does no harm.
    let here = if dom.nr_vcpus == 1 { Here::on_id(0) } else { Here::NOWHERE };
    input_on(dom, plat, here);
}

/// [`input`] where the processor is known.
pub fn input_on<P: Platform>(dom: &Domain, plat: &P, here: Here<'_>) {
    let console = &dom.console;
    let Some(ring) = console.ring(plat) else { return };
    let filled = {
        let _busy = console.busy.lock();
        fill(plat, ring)
    };
    if filled {
        evtchn::notify(dom, plat, here, console.port.load(Ordering::Relaxed), Backend::Console);
    }
}

/// Writes the output ring to the device. Whether the guest is to be told: xenconsoled tells it
/// every time, but a guest that only adds to a ring it knows to have room learns nothing from
/// that, so we do once the ring was half full.
fn drain<P: Platform>(plat: &P, ring: &XenconsInterface) -> bool {
    let prod = ring.out_prod.load(Ordering::Acquire);
    let mut cons = ring.out_cons.load(Ordering::Relaxed);
    let used = prod.wrapping_sub(cons);
    if used == 0 || used > OUT_SIZE {
        return false;
    }
    let mut chunk = [0; CHUNK];
    // At most one ring full per kick, even if another vCPU goes on writing.
    let mut left = used as usize;
    while left > 0 {
        let part = left.min(CHUNK);
        let mut bytes = chunk.iter_mut().take(part);
        bytes.by_ref().for_each(|byte| {
            if let Some(slot) = ring.out.get((cons % OUT_SIZE) as usize) {
                *byte = slot.load(Ordering::Relaxed);
            }
            cons = cons.wrapping_add(1);
        });
        plat.console_write(chunk.get(..part).unwrap_or_default());
        left -= part;
    }
    // The bytes were read before the guest may overwrite them.
    fence(Ordering::SeqCst);
    ring.out_cons.store(cons, Ordering::Release);
    used >= OUT_SIZE / 2
}

/// Fills the input ring from the device; whether it got anything.
fn fill<P: Platform>(plat: &P, ring: &XenconsInterface) -> bool {
    let mut filled = false;
    let mut chunk = [0; CHUNK];
    // Bounded: the guest may take bytes as fast as we add them.
    for _ in 0..IN_SIZE as usize / CHUNK {
        let cons = ring.in_cons.load(Ordering::Acquire);
        let mut prod = ring.in_prod.load(Ordering::Relaxed);
        let used = prod.wrapping_sub(cons);
        let room = IN_SIZE.saturating_sub(used) as usize;
        let Some(space) = chunk.get_mut(..room.min(CHUNK)) else { break };
        if space.is_empty() {
            break;
        }
        let got = plat.console_read(space);
        if got == 0 {
            break;
        }
        for byte in space.iter().take(got) {
            if let Some(slot) = ring.in_.get((prod % IN_SIZE) as usize) {
                slot.store(*byte, Ordering::Relaxed);
            }
            prod = prod.wrapping_add(1);
        }
        // The bytes are there before the guest sees the index.
        ring.in_prod.store(prod, Ordering::Release);
        filled = true;
    }
    filled
}

/// `console_io(cmd, count, buffer)`. Xen lets a domU use it where the domain was built with
/// `is_console`; this one always is.
///
/// # Errors
/// Xen's.
pub fn console_io<P: Platform>(cx: &mut Ctx<'_, P>, cmd: u64, count: u64, buffer: u64) -> HcResult {
    let count = count & u64::from(u32::MAX);
    match cmd as u32 {
        CONSOLEIO_WRITE => {
            let mut chunk = [0; CHUNK];
            let mut at = GuestVa(buffer);
            let mut left = count.min(IO_MAX);
            while left > 0 {
                let part = left.min(CHUNK as u64);
                let Some(bytes) = chunk.get_mut(..part as usize) else { break };
                cx.plat.copy_from_guest(bytes, at).map_err(efault)?;
                cx.plat.console_write(bytes);
                at = at.add(part);
                left -= part;
            }
            ret(0)
        }
        CONSOLEIO_READ => {
            if count > i32::MAX as u64 {
                return Err(Errno::E2BIG);
            }
            let mut chunk = [0; CHUNK];
            let mut done = 0u64;
            while done < count.min(IO_MAX) {
                let part = (count.min(IO_MAX) - done).min(CHUNK as u64);
                let Some(bytes) = chunk.get_mut(..part as usize) else { break };
                let got = cx.plat.console_read(bytes);
                let Some(bytes) = bytes.get(..got) else { break };
                if bytes.is_empty() {
                    break;
                }
                cx.plat.copy_to_guest(GuestVa(buffer).add(done), bytes).map_err(efault)?;
                done += got as u64;
            }
            ret(done.cast_signed())
        }
        _ => Err(Errno::ENOSYS),
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
