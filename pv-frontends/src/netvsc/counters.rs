//! What happened, counted.

use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter {
            $($(#[$doc])* $name,)*
        }

        impl Counter {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it is called, in logs and in the documentation.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

counters! {
    /// Packets handed to the host, in any way.
    TxPackets = "tx_packets",
    /// Their bytes.
    TxBytes = "tx_bytes",
    /// Those of them that were copied.
    TxCopied = "tx_copied",
    /// Messages that told the host of copied ones.
    TxBatches = "tx_batches",
    /// Packets to be cut up.
    TxGso = "tx_gso",
    /// Of them those that were longer than the host takes, and went in pieces.
    TxCut = "tx_cut",
    /// Of them those of which not all pieces found room.
    TxCutShort = "tx_cut_short",
    /// Times that nothing was taken: no room in the ring, or too much on its way.
    TxBusy = "tx_busy",
    /// Small packets that were not copied since no section was free.
    TxNoSection = "tx_no_section",
    /// Packets refused here.
    TxRefused = "tx_refused",
    /// Messages with packets that the host refused.
    TxHostRefused = "tx_host_refused",
    /// Packets whose channel went away.
    TxLost = "tx_lost",
    /// Packets handed to the backend.
    RxPackets = "rx_packets",
    /// Their bytes.
    RxBytes = "rx_bytes",
    /// Packets made of several by the host.
    RxCoalesced = "rx_coalesced",
    /// Messages of the host's with ranges of the receive buffer.
    RxMessages = "rx_messages",
    /// Times the backend had no room.
    RxWaits = "rx_waits",
    /// Ranges and packets that make no sense.
    RxMalformed = "rx_malformed",
    /// Packets for nobody: too early, or of a kind that is none.
    RxDropped = "rx_dropped",
    /// More outstanding messages or ranges than the receive buffer can have.
    RxOverrun = "rx_overrun",
    /// Completions for which the ring had no room at once.
    RxCompletionsDeferred = "rx_completions_deferred",
    /// Answers to nothing, and packets that are none.
    Bogus = "bogus",
    /// Virtual functions offered; none is taken.
    VfRefused = "vf_refused",
    /// Times the conversation began.
    Sessions = "sessions",
    /// Answers that did not come in time.
    TimedOut = "timed_out",
}

const COUNTERS: usize = Counter::ALL.len();

/// All of them. Those of a queue's direction change under its lock, so that no bus lock is needed.
#[derive(Debug)]
pub(super) struct Counters([AtomicU64; COUNTERS]);

impl Counters {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS])
    }

    pub(super) fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// More, where nobody else adds to it now.
    pub(super) fn add(&self, counter: Counter, more: u64) {
        let value = &self.0[counter as usize];
        value.store(value.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// More, whoever else does.
    pub(super) fn add_shared(&self, counter: Counter, more: u64) -> u64 {
        self.0[counter as usize].fetch_add(more, Ordering::Relaxed) + more
    }

    /// Takes over what a queue that ends has counted.
    pub(super) fn absorb(&self, other: &Self) {
        for &counter in Counter::ALL {
            self.add_shared(counter, other.get(counter));
        }
    }
}
