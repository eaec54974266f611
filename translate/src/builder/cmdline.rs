//! The command line: the guest's, with the shim's own `pontoon.` words taken out.
//!
//! Words are divided by white space; a double quote begins or ends a stretch
//! in which white space does not divide, as the Linux kernel reads its own.

use alloc::vec::Vec;

/// Where the guest's console goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleDevice {
    /// The first of the others that is there.
    #[default]
    Auto,
    /// First serial port.
    Com1,
    /// Second serial port.
    Com2,
    /// The screen.
    Screen,
    /// Nowhere.
    None,
}

/// How much the shim itself says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "level names")]
pub enum LogLevel {
    Error,
    #[default]
    Warn,
    Info,
    Debug,
    Trace,
}

/// The shim's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options<'a> {
    /// `pontoon.console=auto|com1|com2|screen|none`.
    pub console: ConsoleDevice,
    /// `pontoon.log=error|warn|info|debug|trace`.
    pub log: LogLevel,
    /// `pontoon.mem=SIZE`: cap of the guest's memory in bytes.
    pub mem_bytes: Option<u64>,
    /// `pontoon.max_vcpus=N`: the guest gets so many vCPUs at most.
    pub max_vcpus: Option<u16>,
    /// `pontoon.vcpus=N`: so many of them are to be online at the start.
    pub vcpus: Option<u16>,
    /// `pontoon.hyperv=off` makes it false: Hyper-V is not looked for.
    pub hyperv: bool,
    /// `pontoon.hv-without=a,b`: host features not to use, as given; see [`Self::without`].
    pub hv_without: &'a [u8],
    /// `pontoon.name=NAME`: the domain's name in xenstore.
    pub name: &'a [u8],
    /// `pontoon.uuid=UUID`: its UUID.
    pub uuid: Option<[u8; 16]>,
    /// `pontoon.vbd=…`: which disk is which virtual block device, as given; empty: all of them, in
    /// the order they are found.
    pub vbd: &'a [u8],
    /// `pontoon.vif=…`: which network card is which virtual interface, as given; empty: all of them,
    /// in the order they are offered.
    pub vif: &'a [u8],
    /// `pontoon.net-spare=N`: cards that may be added later, for which memory is set aside.
    pub net_spare: u8,
    /// `pontoon.` words that were not understood (unknown name or bad value), for a warning.
    pub unknown: Vec<&'a [u8]>,
}

impl Options<'_> {
    /// Whether `pontoon.hv-without` names the feature (or `all`).
    #[must_use]
    pub fn without(&self, feature: &str) -> bool {
        self.hv_without.split(|&c| c == b',').any(|f| f == b"all" || f == feature.as_bytes())
    }
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            console: ConsoleDevice::default(),
            log: LogLevel::default(),
            mem_bytes: None,
            max_vcpus: None,
            vcpus: None,
            hyperv: true,
            hv_without: &[],
            name: b"guest",
            uuid: None,
            vbd: &[],
            vif: &[],
            net_spare: 0,
            unknown: Vec::new(),
        }
    }
}

/// Bytes of a domain's name.
const MAX_NAME: usize = 64;

/// A number of vCPUs.
fn vcpus(text: &[u8]) -> Option<u16> {
    core::str::from_utf8(text).ok()?.parse().ok().filter(|&vcpus| vcpus != 0)
}

/// A UUID as text, the hyphens wherever they are.
fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut value = 0u128;
    let mut digits = 0;
    for &c in text.iter().filter(|&&c| c != b'-') {
        value = value << 4 | u128::from(char::from(c).to_digit(16)?);
        digits += 1;
    }
    (digits == 32).then(|| value.to_be_bytes())
}

/// Bytes of a size with an optional K, M, G or T (decimal or 0x).
fn size_bytes(text: &[u8]) -> Option<u64> {
    let (digits, shift) = match text.split_last()? {
        (b'k' | b'K', rest) => (rest, 10),
        (b'm' | b'M', rest) => (rest, 20),
        (b'g' | b'G', rest) => (rest, 30),
        (b't' | b'T', rest) => (rest, 40),
        _ => (text, 0),
    };
    let digits = core::str::from_utf8(digits).ok()?;
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    value.checked_mul(1 << shift)
}

fn unquote(value: &[u8]) -> &[u8] {
    let value = value.strip_prefix(b"\"").unwrap_or(value);
    value.strip_suffix(b"\"").unwrap_or(value)
}

/// Applies one word without its `pontoon.`; `None` where it is not understood.
fn apply<'a>(options: &mut Options<'a>, word: &'a [u8]) -> Option<()> {
    let equals = word.iter().position(|&c| c == b'=')?;
    let name = word.get(..equals)?;
    let value = unquote(word.get(equals + 1..)?);
    match name {
        b"console" => {
            options.console = match value {
                b"auto" => ConsoleDevice::Auto,
                b"com1" => ConsoleDevice::Com1,
                b"com2" => ConsoleDevice::Com2,
                b"screen" => ConsoleDevice::Screen,
                b"none" => ConsoleDevice::None,
                _ => return None,
            };
        }
        b"log" => {
            options.log = match value {
                b"error" => LogLevel::Error,
                b"warn" => LogLevel::Warn,
                b"info" => LogLevel::Info,
                b"debug" => LogLevel::Debug,
                b"trace" => LogLevel::Trace,
                _ => return None,
            };
        }
        b"mem" => options.mem_bytes = Some(size_bytes(value).filter(|&bytes| bytes != 0)?),
        b"max_vcpus" => options.max_vcpus = Some(vcpus(value)?),
        b"vcpus" => options.vcpus = Some(vcpus(value)?),
        b"hyperv" => {
            options.hyperv = match value {
                b"on" => true,
                b"off" => false,
                _ => return None,
            };
        }
        b"hv-without" => options.hv_without = value,
        b"name" if (1..=MAX_NAME).contains(&value.len()) => options.name = value,
        b"uuid" => options.uuid = Some(uuid(value)?),
        b"vbd" => options.vbd = value,
        b"vif" => options.vif = value,
        b"net-spare" => {
            options.net_spare = core::str::from_utf8(value).ok()?.parse().ok()?;
        }
        _ => return None,
    }
    Some(())
}

/// Words of a command line, quotes kept.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |&c| {
        quoted ^= c == b'"';
        !quoted && c.is_ascii_whitespace()
    })
    .filter(|word| !word.is_empty())
}

/// What stands behind `pontoon.` in a word of the shim's.
fn ours(word: &[u8]) -> Option<&[u8]> {
    word.strip_prefix(b"\"").unwrap_or(word).strip_prefix(b"pontoon.")
}

/// Whether a word is the shim's.
#[must_use]
pub fn is_ours(word: &[u8]) -> bool {
    ours(word).is_some()
}

/// Divides a command line into the guest's (words as they were, single spaces between) and the
/// shim's options. Of an option given twice, the last counts.
#[must_use]
pub fn split(line: &[u8]) -> (Vec<u8>, Options<'_>) {
    let end = line.iter().position(|&c| c == 0).unwrap_or(line.len());
    let mut guest = Vec::with_capacity(end);
    let mut options = Options::default();
    for word in words(line.get(..end).unwrap_or(line)) {
        if let Some(ours) = ours(word) {
            if apply(&mut options, ours).is_none() {
                options.unknown.push(word);
            }
            continue;
        }
        if !guest.is_empty() {
            guest.push(b' ');
        }
        guest.extend_from_slice(word);
    }
    (guest, options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn guest_words_stay_and_ours_leave() {
        let line = b"console=hvc0 pontoon.console=com2  root=/dev/xvda pontoon.log=debug quiet\n";
        let (guest, options) = split(line);
        assert_eq!(guest, b"console=hvc0 root=/dev/xvda quiet");
        assert_eq!(options.console, ConsoleDevice::Com2);
        assert_eq!(options.log, LogLevel::Debug);
        assert!(options.hyperv && options.unknown.is_empty());
    }

    #[test]
    fn quotes_keep_words_together() {
        let (guest, options) = split(b"dyndbg=\"file a.c +p\" pontoon.hv-without=\"ipi,stimer\" x");
        assert_eq!(guest, b"dyndbg=\"file a.c +p\" x");
        assert!(options.without("ipi") && options.without("stimer") && !options.without("crash"));
        let (guest, options) = split(b"\"pontoon.mem=1G\" a=\"b pontoon.mem=2G\"");
        assert_eq!(guest, b"a=\"b pontoon.mem=2G\"");
        assert_eq!(options.mem_bytes, Some(1 << 30));
        let line = &b"dom0_mem=1G \"pontoon.log=info\" pontoon.mem=1G a=pontoon.b"[..];
        assert_eq!(words(line).filter(|word| is_ours(word)).count(), 2);
    }

    #[test]
    fn sizes() {
        assert_eq!(size_bytes(b"64M"), Some(64 << 20));
        assert_eq!(size_bytes(b"0x1000"), Some(4096));
        assert_eq!(size_bytes(b"1t"), Some(1 << 40));
        assert_eq!(size_bytes(b"99999999T"), None);
        assert_eq!(size_bytes(b""), None);
        assert_eq!(size_bytes(b"M"), None);
    }

    #[test]
    fn what_is_not_understood_is_reported_not_passed_on() {
        let (guest, options) =
            split(b"a pontoon.mem=lots pontoon.frob=1 pontoon.log pontoon.hyperv=off b");
        assert_eq!(guest, b"a b");
        assert_eq!(options.unknown, [&b"pontoon.mem=lots"[..], b"pontoon.frob=1", b"pontoon.log"]);
        assert!(!options.hyperv);
    }

    #[test]
    fn the_domain_is_named() {
        let (_, options) = split(
            b"pontoon.name=web1 pontoon.uuid=00112233-4455-6677-8899-AABBCCDDEEFF pontoon.vbd=xvda:scsi0:0",
        );
        assert_eq!((options.name, options.vbd), (&b"web1"[..], &b"xvda:scsi0:0"[..]));
        let bytes = core::array::from_fn(|n| n as u8 * 0x11);
        assert_eq!(options.uuid, Some(bytes));
        let (_, options) = split(b"pontoon.uuid=001122 pontoon.name=");
        assert_eq!((options.uuid, options.unknown.len()), (None, 2));
    }

    #[test]
    fn cards_are_named() {
        let (_, options) = split(b"pontoon.vif=eth1=0,eth0 pontoon.net-spare=2");
        assert_eq!((options.vif, options.net_spare), (&b"eth1=0,eth0"[..], 2));
        let (_, options) = split(b"pontoon.net-spare=256 pontoon.net-spare=-1 pontoon.net-spare=");
        assert_eq!((options.vif, options.net_spare, options.unknown.len()), (&b""[..], 0, 3));
    }

    #[test]
    fn a_nul_ends_the_line() {
        assert_eq!(split(b"a b\0pontoon.log=info c").0, b"a b");
    }

    proptest! {
        #[test]
        fn splitting_is_stable(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (guest, _) = split(&line);
            let (again, options) = split(&guest);
            prop_assert_eq!(&again, &guest);
            prop_assert!(options.unknown.is_empty());
        }
    }
}
