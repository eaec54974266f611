//! A key of one's own for Secure Boot: applications signed with it, and OVMF's variables that trust
//! it and nothing else.

use crate::parts;
use anyhow::Result;
use pontoon::apt::Suite;
use pontoon::cache;
use pontoon::qemu::OVMF;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose the key is; any will do.
const OWNER: &str = "b41f93f2-6b0d-4be1-95f1-b8d7a3c7f5a8";
/// What enrols keys in such variables; Debian 12 has not got it.
const ENROLLER: &str = "/usr/bin/virt-fw-vars";
/// Its package, and a suite that has it. It runs with the modules of Debian 12's Python.
const PACKAGE: &str = "python3-virt-firmware";
const SUITE: &str = "trixie";

/// A key and its certificate, as docs/firmware.md makes them.
pub struct Key {
    dir: PathBuf,
}

impl Key {
    /// Makes one; its files are in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let key = Self { dir: dir.to_owned() };
        let args = "req -new -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=test/";
        let args = args.split(' ').chain(["-keyout", "db.key", "-out", "db.crt"]);
        key.run(Command::new("openssl").args(args))?;
        Ok(key)
    }

    /// An application with its signature.
    pub fn sign(&self, application: &[u8]) -> Result<Vec<u8>> {
        fs::write(self.dir.join("unsigned.efi"), application)?;
        let args = ["--key", "db.key", "--cert", "db.crt", "--output", "signed.efi"];
        self.run(Command::new("sbsign").args(args).arg("unsigned.efi"))?;
        Ok(fs::read(self.dir.join("signed.efi"))?)
    }

    /// A file of variables with which OVMF starts what this key has signed, and nothing else.
    pub fn enrolled(&self) -> Result<PathBuf> {
        let to = self.dir.join("variables.fd");
        let mut command = enroller()?;
        let [_, without_keys] = OVMF;
        command.args(["--input", without_keys, "--output"]).arg(&to);
        for option in ["--set-pk", "--add-kek", "--add-db"] {
            command.args([option, OWNER, "db.crt"]);
        }
        command.arg("--secure-boot");
        self.run(&mut command)?;
        Ok(to)
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        parts::run(command.current_dir(&self.dir)).map(drop)
    }
}

/// `virt-fw-vars`, installed or out of its package.
fn enroller() -> Result<Command> {
    if Path::new(ENROLLER).exists() {
        return Ok(Command::new(ENROLLER));
    }
    let _lock = cache::lock("tools")?;
    let dir = cache::dir()?.join("tools").join(format!("{PACKAGE}_{SUITE}"));
    cache::filled(&dir, |work| Suite::open(SUITE)?.unpack(PACKAGE, work))?;
    let mut command = Command::new("/usr/bin/python3");
    command.env("PYTHONPATH", dir.join("usr/lib/python3/dist-packages"));
    command.arg(dir.join(ENROLLER.trim_start_matches('/')));
    Ok(command)
}
