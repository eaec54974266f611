//! The synthetic keyboard (`drivers/input/serio/hyperv-keyboard.c`).
//!
//! ```text
//! guest: ProtocolRequest ──> host          in-band packets, no pipe headers
//! host:  ProtocolResponse ─> guest         refused: another version may be asked for
//! host:  Keystroke, … ─────> guest         from then on
//! guest: LedIndicators ────> host          not answered
//! ```

use bitflags::bitflags;
use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the longest message (`HK_MAXIMUM_MESSAGE_SIZE`).
pub const MAX_MESSAGE_BYTES: usize = 256;

/// Kind of a message (`enum synth_kbd_msg_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MessageType(pub u32);

impl MessageType {
    /// [`ProtocolRequest`].
    pub const PROTOCOL_REQUEST: Self = Self(1);
    /// [`ProtocolResponse`].
    pub const PROTOCOL_RESPONSE: Self = Self(2);
    /// [`Keystroke`].
    pub const EVENT: Self = Self(3);
    /// [`LedIndicators`].
    pub const SET_LED_INDICATORS: Self = Self(4);
}

/// Protocol version: major 31:16, minor 15:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Version(pub u32);

impl Version {
    /// The only one there has been.
    pub const V1_0: Self = Self(1 << 16);
}

/// A message by its type.
pub trait Message: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// Its type.
    const TYPE: MessageType;

    /// The message, if it is of this type and all of it is there. Packets are longer, filled up to a
    /// multiple of 8.
    #[must_use]
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (message_type, _) = MessageType::read_from_prefix(bytes).ok()?;
        let of_type = message_type == Self::TYPE;
        of_type.then(|| Self::read_from_prefix(bytes).ok()).flatten().map(|(message, _)| message)
    }
}

/// Proposes a version (`struct synth_kbd_protocol_request`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProtocolRequest {
    /// PROTOCOL_REQUEST.
    pub message_type: MessageType,
    /// Version.
    pub version: Version,
}

impl ProtocolRequest {
    /// For a version.
    #[must_use]
    pub const fn new(version: Version) -> Self {
        Self { message_type: MessageType::PROTOCOL_REQUEST, version }
    }
}

/// Its answer (`struct synth_kbd_protocol_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProtocolResponse {
    /// PROTOCOL_RESPONSE.
    pub message_type: MessageType,
    /// Bit 0: accepted. The others are reserved.
    pub status: u32,
}

impl ProtocolResponse {
    const ACCEPTED: u32 = 1;

    /// Accepts or refuses.
    #[must_use]
    pub const fn new(accepted: bool) -> Self {
        let status = if accepted { Self::ACCEPTED } else { 0 };
        Self { message_type: MessageType::PROTOCOL_RESPONSE, status }
    }

    /// Whether the version was accepted.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        self.status & Self::ACCEPTED != 0
    }
}

bitflags! {
    /// What a [`Keystroke`] is about.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct KeyFlags: u32 {
        /// The code is a UTF-16 code unit.
        const UNICODE = 1 << 0;
        /// The key was released.
        const BREAK = 1 << 1;
        /// The scan code has the prefix E0.
        const E0 = 1 << 2;
        /// The scan code has the prefix E1.
        const E1 = 1 << 3;
    }
}

/// A key was pressed or released, or pressed still (`struct synth_kbd_keystroke`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Keystroke {
    /// EVENT.
    pub message_type: MessageType,
    /// Scan code of set 1 without its release bit, below 0x80; or a UTF-16 code unit.
    pub make_code: u16,
    /// May hold garbage.
    pub reserved: u16,
    /// [`KeyFlags`].
    pub flags: u32,
}

impl Keystroke {
    /// Of a code.
    #[must_use]
    pub const fn new(make_code: u16, flags: KeyFlags) -> Self {
        Self { message_type: MessageType::EVENT, make_code, reserved: 0, flags: flags.bits() }
    }

    /// Flags.
    #[must_use]
    pub const fn flags(&self) -> KeyFlags {
        KeyFlags::from_bits_retain(self.flags)
    }
}

bitflags! {
    /// A keyboard's lights (`KEYBOARD_*_LOCK_ON` of Windows).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Leds: u16 {
        /// Scroll Lock.
        const SCROLL_LOCK = 1 << 0;
        /// Num Lock.
        const NUM_LOCK = 1 << 1;
        /// Caps Lock.
        const CAPS_LOCK = 1 << 2;
    }
}

/// The lights as the guest wants them (`HK_MESSAGE_LED_INDICATORS_STATE` of Microsoft's UEFI firmware).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LedIndicators {
    /// SET_LED_INDICATORS.
    pub message_type: MessageType,
    /// [`Leds`].
    pub leds: u16,
    /// Zero.
    pub reserved: u16,
}

impl LedIndicators {
    /// Of lights.
    #[must_use]
    pub const fn new(leds: Leds) -> Self {
        Self { message_type: MessageType::SET_LED_INDICATORS, leds: leds.bits(), reserved: 0 }
    }

    /// The lights.
    #[must_use]
    pub const fn leds(&self) -> Leds {
        Leds::from_bits_retain(self.leds)
    }
}

const_assert_eq!(offset_of!(Keystroke, make_code), 4);
const_assert_eq!(offset_of!(Keystroke, flags), 8);
const_assert_eq!(offset_of!(LedIndicators, leds), 4);

macro_rules! messages {
    ($($name:ident = $bytes:literal: $kind:ident;)*) => {
        $(
            const_assert_eq!(size_of::<$name>(), $bytes);
            impl Message for $name {
                const TYPE: MessageType = MessageType::$kind;
            }
        )*
    };
}

messages! {
    ProtocolRequest = 8: PROTOCOL_REQUEST;
    ProtocolResponse = 8: PROTOCOL_RESPONSE;
    Keystroke = 12: EVENT;
    LedIndicators = 8: SET_LED_INDICATORS;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_parsed_by_type_and_length() {
        let stroke = Keystroke::new(0x1e, KeyFlags::BREAK | KeyFlags::E0);
        let bytes = stroke.as_bytes();
        assert_eq!(bytes, [3, 0, 0, 0, 0x1e, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(Keystroke::parse(&[bytes, &[0xff; 4]].concat()), Some(stroke));
        assert_eq!(Keystroke::parse(&bytes[..11]), None);
        assert_eq!(Keystroke::parse(&[]), None);
        assert_eq!(ProtocolResponse::parse(bytes), None);
        assert_eq!(ProtocolRequest::new(Version::V1_0).as_bytes(), [1, 0, 0, 0, 0, 0, 1, 0]);
        let leds = LedIndicators::new(Leds::NUM_LOCK | Leds::CAPS_LOCK);
        assert_eq!(leds.as_bytes(), [4, 0, 0, 0, 6, 0, 0, 0]);
    }

    #[test]
    fn reserved_bits_do_not_matter() {
        let mut response = ProtocolResponse::new(true);
        response.status |= 0xffff_fffe;
        assert!(response.is_accepted());
        assert!(!ProtocolResponse { status: 0xffff_fffe, ..response }.is_accepted());
    }
}
