//! Synthetic timers: `HV_X64_MSR_STIMERn_CONFIG` and `_COUNT` (TLFS 12.3).

/// Synthetic timers of each virtual processor.
pub const STIMER_COUNT: usize = 4;

/// Contents of `HV_X64_MSR_STIMERn_CONFIG`.
///
/// ```text
/// 0 enabled | 1 periodic | 2 lazy | 3 auto-enable | 11:4 APIC vector
/// | 12 direct mode | 19:16 SINTx
/// ```
/// A write of zero to the count MSR stops the timer; with auto-enable set, a
/// non-zero write to it sets `enabled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct StimerConfig(pub u64);

impl StimerConfig {
    /// The timer runs.
    pub const ENABLED: u64 = 1 << 0;
    /// The count is a period, not a due time.
    pub const PERIODIC: u64 = 1 << 1;
    /// Late expiry is acceptable (periodic timers).
    pub const LAZY: u64 = 1 << 2;
    /// Writing the count enables the timer.
    pub const AUTO_ENABLE: u64 = 1 << 3;
    /// Expiry asserts the APIC vector instead of sending a message.
    pub const DIRECT_MODE: u64 = 1 << 12;

    /// One-shot, enabled by the next count written, expiring as `vector`.
    #[must_use]
    pub const fn one_shot_direct(vector: u8) -> Self {
        Self(Self::AUTO_ENABLE | Self::DIRECT_MODE | (vector as u64) << 4)
    }

    /// One-shot, enabled by the next count written, expiring as a message on `sint` (1..=15).
    #[must_use]
    pub const fn one_shot_message(sint: u8) -> Self {
        Self(Self::AUTO_ENABLE | ((sint & 0xf) as u64) << 16)
    }

    /// Whether the timer runs.
    #[must_use]
    pub const fn is_enabled(self) -> bool {
        self.0 & Self::ENABLED != 0
    }

    /// Whether expiry asserts a vector directly.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        self.0 & Self::DIRECT_MODE != 0
    }

    /// Vector of direct mode.
    #[must_use]
    pub const fn apic_vector(self) -> u8 {
        (self.0 >> 4) as u8
    }

    /// SINT of message mode.
    #[must_use]
    pub const fn sintx(self) -> u8 {
        (self.0 >> 16) as u8 & 0xf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_fields() {
        let c = StimerConfig::one_shot_direct(0xed);
        assert_eq!(c.0, 0x1ed8);
        assert!(c.is_direct() && !c.is_enabled());
        assert_eq!(c.apic_vector(), 0xed);
        let c = StimerConfig::one_shot_message(2);
        assert_eq!(c.0, 0x2_0008);
        assert_eq!(c.sintx(), 2);
    }
}
