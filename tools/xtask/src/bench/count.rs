//! Counting instructions: QEMU with a plugin of ours (`count.c`).

use anyhow::{Context, Result, bail, ensure};
use pontoon::cleanup::Scratch;
use pontoon::nested::Session;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("count.c");
/// Where no guest has code: the hole of the hypervisor's, in which the shim is.
const HOLE: (u64, u64) = (0xffff_8000_0000_0000, 0xffff_8800_0000_0000);

/// A plugin that was compiled, and what it writes.
pub struct Counter {
    dir: Scratch,
}

impl Counter {
    /// Compiles it for the QEMU at hand.
    pub fn new() -> Result<Self> {
        let version = Command::new("qemu-system-x86_64").arg("--version").output();
        let version = version.context("qemu-system-x86_64 cannot be run")?;
        let interface = interface(&String::from_utf8_lossy(&version.stdout))?;
        let dir = Scratch::new()?;
        let source = dir.path().join("count.c");
        fs::write(&source, SOURCE)?;
        let status = Command::new("gcc")
            .args(["-O2", "-Wall", "-shared", "-fPIC", &format!("-DPLUGIN_API={interface}"), "-o"])
            .arg(dir.path().join("count.so"))
            .arg(source)
            .status()
            .context("gcc cannot be run")?;
        ensure!(status.success(), "the counting plugin does not compile");
        Ok(Self { dir })
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Starts an emulated machine whose instructions in the shim are counted; `profile` is for where
    /// they were.
    pub fn start(&self, guest_mib: u64, profile: Option<&Path>) -> Result<Session> {
        let (plugin, out) = (self.dir.path().join("count.so"), self.out());
        let mut argument =
            format!("{},from={:x},to={:x},out={}", plugin.display(), HOLE.0, HOLE.1, out.display());
        if let Some(path) = profile {
            let path = std::path::absolute(path)?;
            argument.push_str(&format!(",profile={}", path.display()));
        }
        Session::start_with(guest_mib, &["-plugin".into(), argument])
    }

    /// What was counted between each pair of markers.
    pub fn counts(&self) -> Result<Vec<u64>> {
        let text = fs::read_to_string(self.out()).context("the counting plugin wrote nothing")?;
        text.lines().map(|line| line.parse().context("the counting plugin's words")).collect()
    }
}

/// The version of the plugin interface that a QEMU has, by what it says of itself.
fn interface(words: &str) -> Result<u32> {
    let version = words.split_whitespace().skip_while(|word| *word != "version").nth(1);
    let mut numbers = version.unwrap_or_default().split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("QEMU does not say its version: {words}");
    };
    Ok(match (major, minor) {
        (..6, _) => bail!("QEMU {major}.{minor} has no plugins that would do"),
        (..9, _) => 1,
        (9, 0) => 2,
        _ => 3,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces() {
        let of = |version: &str| {
            interface(&format!("QEMU emulator version {version} (Debian 1:x)\nCopyright")).ok()
        };
        assert_eq!(of("7.2.22"), Some(1));
        assert_eq!([of("9.0.0"), of("9.1.0"), of("10.0.2")], [Some(2), Some(3), Some(3)]);
        assert_eq!([of("5.2.0"), of("")], [None, None]);
    }
}
