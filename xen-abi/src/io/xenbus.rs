//! States of the two ends of a PV device (`xen/include/public/io/xenbus.h`).

/// `enum xenbus_state`, written to a device's `state` nodes as a decimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct XenbusState(pub u32);

impl XenbusState {
    /// Unknown, or not there.
    pub const UNKNOWN: Self = Self(0);
    /// Starts.
    pub const INITIALISING: Self = Self(1);
    /// Initialised as far as it goes without the other end.
    pub const INIT_WAIT: Self = Self(2);
    /// Waits for the other end to connect.
    pub const INITIALISED: Self = Self(3);
    /// Connected.
    pub const CONNECTED: Self = Self(4);
    /// Closes, because of an error or an unplug.
    pub const CLOSING: Self = Self(5);
    /// Closed.
    pub const CLOSED: Self = Self(6);
    /// Is being configured anew.
    pub const RECONFIGURING: Self = Self(7);
    /// Has been configured anew.
    pub const RECONFIGURED: Self = Self(8);

    /// The state a node's text says; [`Self::UNKNOWN`] where it says none (as Linux reads it).
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        match text {
            [digit @ b'0'..=b'8'] => Self(u32::from(*digit - b'0')),
            _ => Self::UNKNOWN,
        }
    }

    /// The text of a node of this state; `0` for states the header does not know.
    #[must_use]
    pub const fn text(self) -> &'static [u8] {
        match self.0 {
            1 => b"1",
            2 => b"2",
            3 => b"3",
            4 => b"4",
            5 => b"5",
            6 => b"6",
            7 => b"7",
            8 => b"8",
            _ => b"0",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::XenbusState;

    #[test]
    fn states_read_as_they_are_written() {
        for state in (0..9).map(XenbusState) {
            assert_eq!(XenbusState::parse(state.text()), state);
        }
        assert_eq!(XenbusState(9).text(), b"0");
        for text in [&b""[..], b"9", b"44", b"x", b"4\0"] {
            assert_eq!(XenbusState::parse(text), XenbusState::UNKNOWN);
        }
    }
}
