//! What happened on a vif, counted.

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: u64,)*
        }

        impl $name {
            /// Names and values, in a fixed order.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field)),*].into_iter()
            }

            pub(super) fn add(&mut self, other: &Self) {
                $(self.$field = self.$field.wrapping_add(other.$field);)*
            }
        }
    };
}

counters! {
    /// What the guest sends.
    TxCounters {
        /// Packets the device took.
        packets,
        /// Their bytes.
        bytes,
        /// Of them those the device copied at once.
        copied,
        /// Of them those that are to be segmented.
        gso,
        /// Packets to be segmented that did not say their checksum is blank.
        gso_csum_fixup,
        /// Packets whose checksum was made here.
        software_csum,
        /// Chains of slots that were wrong.
        bad_chains,
        /// Packets with grants that do not allow it.
        bad_grants,
        /// Packets whose headers are not what their flags say.
        bad_headers,
        /// Packets that need what the device does not do.
        unsupported,
        /// Packets the device or the host refused.
        refused,
        /// Packets under which the host's channel went away.
        lost,
        /// Times the device was busy.
        busy,
    }
}

counters! {
    /// What the guest receives.
    RxCounters {
        /// Packets given to the guest.
        packets,
        /// Their bytes.
        bytes,
        /// Slots they took.
        slots,
        /// Of them those made of several by the host.
        gso,
        /// Packets whose checksum was made here.
        software_csum,
        /// Dropped: nobody is connected.
        no_frontend,
        /// Dropped: a group the guest did not ask for.
        filtered,
        /// Dropped: too large for what the frontend takes.
        too_large,
        /// Dropped: there were no slots for too long.
        no_slots,
        /// Slots whose grants do not allow it.
        bad_grants,
        /// Times a packet had to wait for slots.
        waits,
        /// Times a queue had no slots for so long that the device was told to receive nothing.
        stalls,
    }
}

/// A vif's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What the guest sends.
    pub tx: TxCounters,
    /// What the guest receives.
    pub rx: RxCounters,
}
