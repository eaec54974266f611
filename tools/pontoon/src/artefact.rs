//! The project's own programs: found beside this one, or built.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// A thing built out of this workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Artefact {
    /// Cargo package.
    pub package: &'static str,
    /// Name of the binary.
    pub binary: &'static str,
    /// Target triple.
    pub target: &'static str,
}

/// Programs for the bare Linux inside, and for initramfs archives: static.
pub const LINUX: &str = "x86_64-unknown-linux-gnu";
/// Programs without an operating system.
pub const BARE: &str = "x86_64-unknown-none";

/// Applications of UEFI firmware.
pub const UEFI: &str = "x86_64-unknown-uefi";

/// The ring-0 image.
pub const SHIM: Artefact = Artefact { package: "shim", binary: "shim", target: BARE };
/// The UEFI application with the shim in it.
pub const EFI: Artefact = Artefact { package: "pontoon-efi", binary: "pontoon-efi", target: UEFI };
/// The Hyper-V-compatible host.
pub const HVHOST: Artefact = Artefact { package: "hvhost", binary: "hvhost", target: LINUX };
/// Our helper in the emulated Linux.
pub const AGENT: Artefact = Artefact { package: "pontoon", binary: "pontoon-agent", target: LINUX };

/// The workspace this program was built from, if it is still there.
#[must_use]
pub fn workspace() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.parent()?;
    dir.join("Cargo.lock").exists().then(|| dir.to_owned())
}

impl Artefact {
    /// Finds the program. In the workspace Cargo builds it when it is missing or
    /// older than its sources; elsewhere it lies beside the running program. A
    /// variable such as `PONTOON_HVHOST` names another one.
    pub fn find(self) -> Result<PathBuf> {
        let variable = format!(
            "PONTOON_{}",
            self.binary.trim_start_matches("pontoon-").to_uppercase().replace('-', "_")
        );
        if let Some(path) = std::env::var_os(&variable).map(PathBuf::from) {
            anyhow::ensure!(path.is_file(), "{variable}={} is no file", path.display());
            return Ok(path);
        }
        if let Some(workspace) = workspace() {
            return self.build(&workspace);
        }
        let me = std::env::current_exe()?;
        let beside = me.with_file_name(self.file_name());
        if !beside.exists() {
            let name = self.file_name();
            bail!("{name} is not beside {}: the installation is incomplete", me.display());
        }
        Ok(beside)
    }

    /// The program's file.
    fn file_name(self) -> String {
        let extension = if self.target == UEFI { ".efi" } else { "" };
        format!("{}{extension}", self.binary)
    }

    /// What is optimised across crates is the image and what is measured.
    fn profile(self) -> &'static str {
        if self.target != LINUX || self.package == "guests" { "ring0" } else { "release" }
    }

    fn build(self, workspace: &Path) -> Result<PathBuf> {
        static BUILT: Mutex<Vec<(Artefact, PathBuf)>> = Mutex::new(Vec::new());
        // What goes into another program is built before it.
        let inner = if self == EFI { Some(SHIM.find()?) } else { None };
        let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, path)) = built.iter().find(|(a, _)| *a == self) {
            return Ok(path.clone());
        }
        let path = self.cargo_build(workspace, inner.as_deref())?;
        built.push((self, path.clone()));
        Ok(path)
    }

    fn cargo_build(self, workspace: &Path, inner: Option<&Path>) -> Result<PathBuf> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .current_dir(workspace)
            .args(["build", "--quiet", "--package", self.package, "--bin", self.binary])
            .args(["--profile", self.profile()])
            .args(["--target", self.target, "--message-format=json-render-diagnostics"])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        // Settings cargo gives to the programs it runs would make it build anew.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(name);
            }
        }
        if self.target == LINUX {
            command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
        } else {
            command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        }
        if let Some(shim) = inner {
            // shim/uefi/build.rs reads it.
            command.env("PONTOON_SHIM_ELF", shim);
        }
        let out = command.output().context("cargo cannot be run")?;
        if !out.status.success() {
            bail!("building {} failed", self.binary);
        }
        let text = String::from_utf8_lossy(&out.stdout);
        let executable = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find_map(|m| {
                let ours = m["reason"] == "compiler-artifact" && m["target"]["name"] == self.binary;
                ours.then(|| m["executable"].as_str().map(PathBuf::from)).flatten()
            });
        executable.with_context(|| format!("cargo named no executable for {}", self.binary))
    }
}
