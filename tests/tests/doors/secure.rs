//! Secure Boot with a key of one's own: OVMF refuses the application as it is built, and starts the one
//! that the key has signed.

use crate::screen::qmp;
use crate::{answered, boot_in, ensure_said, guest};
use anyhow::{Result, ensure};
use pontoon::artefact;
use pontoon::cleanup::Scratch;
use pontoon::outcome::Outcome;
use pontoon::qemu::{BootDisk, Firmware, Qemu};
use pontoon_tests::keys::Key;
use pontoon_tests::media::{Efi, Files};
use std::fs;
use std::path::Path;

/// What the firmware says of an application it does not trust.
const REFUSED: &str = "Access Denied";
/// The application, where the firmware trusts it.
const TRUSTED: &str =
    "Secure Boot is on and trusts this application; kernel and initrd are not checked";

/// Both applications, with the same variables.
pub fn boot(spec: &str) -> Result<()> {
    let scratch = Scratch::new()?;
    let key = Key::new(scratch.path())?;
    let variables = key.enrolled()?;
    let files = guest(spec, "pontoon.log=info")?;
    let refused = start(&files, Efi::Pontoon, &variables, scratch.path())?.console_text();
    ensure_said(&refused, REFUSED)?;
    ensure!(!refused.contains("Pontoon "), "it was started:\n{refused}");
    let signed = key.sign(&fs::read(artefact::EFI.find()?)?)?;
    let outcome = start(&files, Efi::Other(signed), &variables, scratch.path())?;
    ensure_said(&outcome.console_text(), TRUSTED)?;
    answered(&outcome, "Multiboot2")
}

/// Starts the firmware; a refusal is the end, as it would wait for a key.
fn start(files: &Files, efi: Efi, variables: &Path, dir: &Path) -> Result<Outcome> {
    let socket = dir.join("monitor");
    boot_in(files, efi, |image, machine, input, output| {
        let qemu = Qemu {
            boot_disk: Some(BootDisk { image, firmware: Firmware::Uefi }),
            secure_boot: Some(variables.to_owned()),
            more: ["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display())].into(),
            ..Qemu::default()
        };
        let (mut said, mut ends) = (String::new(), false);
        qemu.run(machine, input, &mut |bytes| {
            said.push_str(&String::from_utf8_lossy(bytes));
            if !ends && said.contains(REFUSED) {
                // Should QEMU not listen, its time will be over.
                ends = qmp(&socket, r#"{"execute":"quit"}"#).is_ok();
            }
            output(bytes);
        })
    })
}
