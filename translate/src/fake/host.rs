//! The fake's part of the world outside.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::string::ToString;
use std::sync::{MutexGuard, PoisonError};

use super::{Call, FakePlatform};
use crate::platform::{Host, Shutdown};
use crate::regs::CpuRegs;
use crate::vcpu::Vcpu;

impl FakePlatform {
    /// vCPUs that have never run.
    pub(super) fn new_vcpus(&self) -> MutexGuard<'_, BTreeMap<u32, Vcpu>> {
        self.new_vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`Host::shutdown`] unwinds with.
struct ShutdownPayload(Shutdown);

/// Runs `f`; `Err` with the reason if it ended the domain. Other panics go through.
pub fn catch_shutdown<R>(f: impl FnOnce() -> R) -> Result<R, Shutdown> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        match payload.downcast::<ShutdownPayload>() {
            Ok(shutdown) => shutdown.0,
            Err(other) => resume_unwind(other),
        }
    })
}

impl Host for FakePlatform {
    fn shutdown(&self, why: Shutdown, _regs: Option<&CpuRegs>) -> ! {
        resume_unwind(Box::new(ShutdownPayload(why)))
    }
    fn kick(&self, vcpu: u32) {
        self.record(Call::Kick(vcpu));
    }
    fn with_new_vcpu(&self, id: u32, f: &mut dyn FnMut(&mut Vcpu)) -> bool {
        self.new_vcpus().get_mut(&id).map(f).is_some()
    }
    fn yield_hint(&self) {
        self.record(Call::YieldHint);
    }
    fn console_write(&self, bytes: &[u8]) {
        self.record(Call::ConsoleWrite(bytes.to_vec()));
    }
    fn console_read(&self, into: &mut [u8]) -> usize {
        let mut state = self.state();
        let count = into.len().min(state.console_in.len());
        into.iter_mut().zip(state.console_in.drain(..count)).for_each(|(to, byte)| *to = byte);
        count
    }
    fn log(&self, text: core::fmt::Arguments<'_>) {
        self.record(Call::Log(text.to_string()));
    }
}
