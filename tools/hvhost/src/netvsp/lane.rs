//! What was received and waits for the worker of its channel.
//!
//! Whoever brings frames waits a little where a queue is full; then it throws them away
//! until there is room again, so that a guest that takes nothing holds nobody up.

use crate::vmbus::Waker;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Frames that may wait.
pub const QUEUE_FRAMES: usize = 1024;
/// How long a full queue is waited for.
const PATIENCE: Duration = Duration::from_millis(100);

/// A frame for the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inbound {
    /// The frame, without what is below.
    pub bytes: Vec<u8>,
    /// TCI of its 802.1Q tag.
    pub vlan: Option<u16>,
    /// Its hash.
    pub hash: Option<u32>,
    /// Its checksums are known to be right.
    pub valid: bool,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Inbound>,
    waker: Option<Arc<Waker>>,
    /// It was waited for in vain.
    stuck: bool,
}

/// Of one channel.
#[derive(Debug, Default)]
pub struct Lane {
    queue: Mutex<Queue>,
    room: Condvar,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits.
    Yes,
    /// There is no room, and it is lost.
    Full,
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel is open, its worker woken by this.
    pub fn open(&self, waker: Arc<Waker>) {
        *self.lock() = Queue { waker: Some(waker), ..Queue::default() };
    }

    /// The channel is closed; frames that waited are lost.
    pub fn close(&self) {
        *self.lock() = Queue::default();
        self.room.notify_all();
    }

    /// Whether the channel is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lock().waker.is_some()
    }

    /// Wakes the worker for other reasons.
    pub fn wake(&self) {
        if let Some(waker) = &self.lock().waker {
            waker.wake();
        }
    }

    /// Brings a frame.
    ///
    /// # Errors
    /// The channel is not open; the frame comes back.
    pub fn push(&self, frame: Inbound) -> Result<Pushed, Inbound> {
        let mut queue = self.lock();
        let full = |queue: &mut Queue| queue.waker.is_some() && queue.frames.len() >= QUEUE_FRAMES;
        if full(&mut queue) && !queue.stuck {
            let waited = self.room.wait_timeout_while(queue, PATIENCE, full);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.stuck = full(&mut queue);
        let Some(waker) = queue.waker.clone() else { return Err(frame) };
        if queue.stuck {
            return Ok(Pushed::Full);
        }
        queue.frames.push_back(frame);
        let first = queue.frames.len() == 1;
        drop(queue);
        // A worker that has not come yet finds all that follow.
        if first {
            waker.wake();
        }
        Ok(Pushed::Yes)
    }

    /// Moves all that waits to the end of `to`, unless there is something in it already.
    pub fn take(&self, to: &mut VecDeque<Inbound>) {
        if !to.is_empty() {
            return;
        }
        let mut queue = self.lock();
        std::mem::swap(&mut queue.frames, to);
        drop(queue);
        self.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn frames_wait_in_order_and_not_for_ever() {
        let lane = Lane::default();
        assert_eq!(lane.push(Inbound::default()), Err(Inbound::default()));
        lane.open(Arc::new(Waker::new(0).unwrap()));
        let frame = |n: usize| Inbound { bytes: vec![n as u8], ..Inbound::default() };
        for n in 0..QUEUE_FRAMES {
            assert_eq!(lane.push(frame(n)), Ok(Pushed::Yes));
        }
        assert_eq!(lane.push(frame(0)), Ok(Pushed::Full));
        // Not waited for again.
        let begin = std::time::Instant::now();
        assert_eq!(lane.push(frame(0)), Ok(Pushed::Full));
        assert!(begin.elapsed() < PATIENCE);
        let mut taken = VecDeque::new();
        lane.take(&mut taken);
        assert_eq!((taken.len(), taken[3].bytes[0]), (QUEUE_FRAMES, 3));
        assert_eq!(lane.push(frame(9)), Ok(Pushed::Yes));
        lane.take(&mut taken);
        assert_eq!(taken.len(), QUEUE_FRAMES, "what is there first");
        for n in 1..QUEUE_FRAMES {
            assert_eq!(lane.push(frame(n)), Ok(Pushed::Yes));
        }
        thread::scope(|scope| {
            let waits = scope.spawn(|| lane.push(frame(7)));
            thread::sleep(Duration::from_millis(10));
            lane.close();
            assert_eq!(waits.join().unwrap(), Err(frame(7)));
        });
        assert!(!lane.is_open());
    }
}
