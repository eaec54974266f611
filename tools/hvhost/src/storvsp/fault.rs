//! Faults on purpose (`--disk-fault`): errors, delays and short transfers on
//! chosen sectors, for testing what guests make of them.

use anyhow::{Context, Result, bail};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Operations a fault can be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads.
    Read,
    /// Writes, WRITE SAME included.
    Write,
    /// SYNCHRONIZE CACHE.
    Flush,
    /// UNMAP.
    Unmap,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A medium error.
    Error,
    /// It takes this much longer.
    Delay(Duration),
    /// Half of the blocks are transferred, and that is called success.
    Short,
}

/// A fault.
#[derive(Debug)]
pub struct Fault {
    /// Controller and unit; `None`: all.
    pub scsi: Option<(u32, u8)>,
    /// `None`: any operation.
    op: Option<Op>,
    /// First and last sector.
    sectors: (u64, u64),
    kind: Kind,
    /// Times it still happens.
    left: AtomicU64,
}

impl Clone for Fault {
    fn clone(&self) -> Self {
        let left = AtomicU64::new(self.left.load(Ordering::Relaxed));
        Self { left, ..*self }
    }
}

impl Fault {
    /// What happens to an operation on `count` sectors from `first`; flushes have
    /// none and meet every sector.
    #[must_use]
    pub fn strikes(&self, op: Op, first: u64, count: u64) -> Option<Kind> {
        let last = first.saturating_add(count.saturating_sub(1));
        let meets = op == Op::Flush || (first <= self.sectors.1 && last >= self.sectors.0);
        if self.op.is_some_and(|wanted| wanted != op) || !meets {
            return None;
        }
        let take = |left: u64| left.checked_sub(1);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.is_ok().then_some(self.kind)
    }
}

/// Reads `C:L`.
///
/// # Errors
/// It is not of that form.
pub fn parse_scsi(text: &str) -> Result<(u32, u8)> {
    let (controller, lun) = text.split_once(':').context("expected scsi=CONTROLLER:LUN")?;
    let bad = || format!("scsi={text}: not a controller and a LUN");
    Ok((controller.parse().with_context(bad)?, lun.parse().with_context(bad)?))
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut fault = Self {
            scsi: None,
            op: None,
            sectors: (0, u64::MAX),
            kind: Kind::Error,
            left: u64::MAX.into(),
        };
        let mut kinds = 0;
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("scsi", value)) => fault.scsi = Some(parse_scsi(value)?),
                Some(("op", value)) => {
                    fault.op = match value {
                        "any" => None,
                        "read" => Some(Op::Read),
                        "write" => Some(Op::Write),
                        "flush" => Some(Op::Flush),
                        "unmap" => Some(Op::Unmap),
                        _ => bail!("op={value}: expected read, write, flush, unmap or any"),
                    }
                }
                Some(("sectors", value)) => {
                    let (first, last) = value.split_once('-').unwrap_or((value, value));
                    let bad = || format!("sectors={value}: expected N or N-M");
                    fault.sectors =
                        (first.parse().with_context(bad)?, last.parse().with_context(bad)?);
                    if fault.sectors.0 > fault.sectors.1 {
                        bail!("sectors={value}: the last is before the first");
                    }
                }
                Some(("times", value)) => {
                    let times = value.parse().with_context(|| format!("times={value}"))?;
                    fault.left = AtomicU64::new(times);
                }
                Some(("delay", value)) => {
                    let millis =
                        value.parse().with_context(|| format!("delay={value}: milliseconds"))?;
                    fault.kind = Kind::Delay(Duration::from_millis(millis));
                    kinds += 1;
                }
                None if word == "error" => {
                    fault.kind = Kind::Error;
                    kinds += 1;
                }
                None if word == "short" => {
                    fault.kind = Kind::Short;
                    kinds += 1;
                }
                _ => bail!(
                    "{word:?}: expected scsi=C:L, op=, sectors=N-M, times=N and one of error, delay=MS, short"
                ),
            }
        }
        if kinds != 1 {
            bail!("expected one of error, delay=MS, short");
        }
        Ok(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_and_operations_are_met() {
        let fault: Fault = "scsi=1:2,op=read,sectors=100-200,error".parse().unwrap();
        assert_eq!(fault.scsi, Some((1, 2)));
        assert_eq!(fault.strikes(Op::Read, 0, 100), None);
        assert_eq!(fault.strikes(Op::Read, 0, 101), Some(Kind::Error));
        assert_eq!(fault.strikes(Op::Read, 200, 8), Some(Kind::Error));
        assert_eq!(fault.strikes(Op::Read, 201, 8), None);
        assert_eq!(fault.strikes(Op::Write, 100, 8), None);
        let twice: Fault = "delay=5,times=2".parse().unwrap();
        let delay = Some(Kind::Delay(Duration::from_millis(5)));
        assert_eq!(twice.strikes(Op::Flush, 0, 0), delay);
        assert_eq!(twice.strikes(Op::Unmap, u64::MAX, u64::MAX), delay);
        assert_eq!(twice.strikes(Op::Read, 0, 1), None);
    }

    #[test]
    fn refusals() {
        for text in [
            "",
            "error,short",
            "op=erase,error",
            "sectors=9-1,error",
            "delay=x",
            "scsi=1,error",
            "x",
        ] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }
}
