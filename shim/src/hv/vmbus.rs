//! What the VMBus client needs of ring 0.

use core::fmt;

use hv_abi::hypercall::{CallCode, PostMessage};
use hv_abi::synic::MessageType;
use hv_abi::vmbus::{ConnectionId, MAX_MESSAGE_BYTES};
use hv_abi::{HvStatus, SharedView};
use pv_frontends::vmbus::{Hypervisor, Shared};
use zerocopy::IntoBytes;

use super::synic::{self, Taken};
use crate::mm::{phys_to_virt, pool};

/// Ring 0 on Hyper-V.
#[derive(Debug)]
pub struct Hv;

impl Hypervisor for Hv {
    fn post_message(&self, to: ConnectionId, payload: &[u8]) -> HvStatus {
        let mut input = PostMessage {
            connection_id: to.0,
            reserved: 0,
            message_type: MessageType::VMBUS_CHANNEL.0,
            payload_size: payload.len() as u32,
            payload: [0; _],
        };
        let Some(space) = input.payload.as_mut_bytes().get_mut(..payload.len()) else {
            return HvStatus::INVALID_PARAMETER;
        };
        space.copy_from_slice(payload);
        super::hypercall(CallCode::POST_MESSAGE, &input)
    }

    fn signal_event(&self, to: ConnectionId) -> HvStatus {
        super::fast_hypercall(CallCode::SIGNAL_EVENT, u64::from(to.0), 0)
    }

    fn vp_index(&self) -> u32 {
        super::current_vp_index()
    }

    fn now_ns(&self) -> u64 {
        crate::time::now_ns()
    }

    fn allocate<T: SharedView>(&self) -> Option<Shared<T>> {
        if size_of::<T>() > 4096 || align_of::<T>() > 4096 {
            return None;
        }
        let gpfn = pool::alloc()?;
        let page = phys_to_virt(gpfn << 12).cast::<T>();
        // SAFETY: a page of the pool, mapped for good, large enough and aligned; T (SharedView) is
        // made of atomics, for which any bytes are valid. If it is given back, the next owner's
        // views are of atomics, too.
        Some(Shared { view: unsafe { &*page }, gpfn })
    }

    fn free(&self, gpfn: u64) {
        if !pool::free(gpfn) {
            crate::log!(Error, "page {gpfn:#x} was given back, but it is not in use");
        }
    }

    fn take_message(&self, payload: &mut [u8; MAX_MESSAGE_BYTES]) -> Option<usize> {
        (0..synic::cpus()).find_map(|cpu| match synic::take_message(cpu, payload) {
            Taken::Channel(bytes) => Some(bytes),
            Taken::Nothing | Taken::Timer | Taken::Other => None,
        })
    }

    fn relax(&self) {
        core::hint::spin_loop();
    }

    fn log(&self, text: fmt::Arguments<'_>) {
        crate::log::log(crate::log::Level::Info, text);
    }
}
