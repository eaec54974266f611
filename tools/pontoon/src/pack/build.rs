//! Making a pack of a plan.

use super::disk::{self, Source};
use super::medium;
use super::plan::{Boot, Medium, Plan};
use super::script;
use crate::cleanup::Scratch;
use crate::guest::Payload;
use crate::image;
use crate::qemu_img::{self, Disk, Format};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// Makes the directory `to`: it is there when all of it is. What there is to say about what the
/// guest boots.
///
/// # Errors
/// Anything that is wrong with the guest, or with this machine; then there is nothing at `to`.
pub fn build(plan: &Plan, medium: Medium, to: &Path) -> Result<String> {
    let dir = Scratch::beside(to)?;
    // On the same file system: /tmp may be too small for disks.
    let work = Scratch::beside(&dir.path().join("work"))?;
    let words = plan.guest.words(&plan.places(medium)?)?;
    let payload = disks(plan, dir.path(), work.path())?;
    payload.check().context("the guest's kernel")?;
    let boot = format!("{}.{}", plan.stem(), medium.extension());
    let name = &plan.guest.name;
    medium::create(medium, name, &payload, &words, work.path(), &dir.path().join(&boot))?;
    let text = script::script(plan, medium, &boot)?;
    fs::write(dir.path().join(format!("{}.ps1", plan.stem())), text)?;
    let told = payload.told();
    fs::write(dir.path().join(format!("{}.txt", plan.stem())), plan.text(medium)? + &told)?;
    drop(work);
    dir.publish(to)?;
    Ok(told)
}

/// Puts the disks there; what the guest boots.
fn disks(plan: &Plan, dir: &Path, work: &Path) -> Result<Payload> {
    // What is quick and may be wrong comes first.
    let mut payload = early_payload(plan)?;
    if let Some(payload) = &payload {
        payload.check().context("the guest's kernel")?;
    }
    for planned in &plan.disks {
        let Some((source, file)) = planned.source.as_ref().zip(plan.disk_file(planned)) else {
            continue;
        };
        let name = planned.vdev.name();
        let unpacked = source.unpacked(work, &name)?;
        if payload.is_none() {
            payload = Some(from_disk(&plan.boot, &unpacked, work)?);
        }
        disk::convert(&unpacked, &dir.join(file), planned.cdrom, &name)?;
        if !matches!(source, Source::File(_)) {
            fs::remove_file(&unpacked.path)?;
        }
    }
    payload.context("the guest has no disk to boot from, and no kernel is given")
}

/// What the guest boots, where that can be told before its disks are converted.
///
/// # Errors
/// It boots nothing.
pub fn early_payload(plan: &Plan) -> Result<Option<Payload>> {
    match &plan.boot {
        Boot::Files { kernel, initrd, cmdline } => {
            let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
            Ok(Some(Payload {
                kernel: read(kernel)?,
                initrd: initrd.as_deref().map(read).transpose()?,
                cmdline: cmdline.clone(),
                // A boot loader has words of its own.
                notes: image::console_hint(cmdline)
                    .filter(|_| !cmdline.is_empty())
                    .into_iter()
                    .collect(),
            }))
        }
        Boot::Disk { entry, .. } => {
            let Some(source) = plan.disks.first().and_then(|disk| disk.source.as_ref()) else {
                anyhow::bail!("the guest has no disk to boot from, and no kernel is given");
            };
            let found =
                source.boot(entry.as_deref()).context("no kernel in the guest's first disk")?;
            found.map(|found| taken(&plan.boot, found)).transpose()
        }
    }
}

/// What is found on a disk, with what the plan wants otherwise.
fn taken(boot: &Boot, found: image::Boot) -> Result<Payload> {
    let Boot::Disk { append, initrd, .. } = boot else {
        anyhow::bail!("a plan with a kernel of its own");
    };
    let cmdline = image::with_append(&found.cmdline, append.as_deref());
    let mut notes = found.notes;
    notes.extend(image::console_hint(&cmdline));
    let initrd = match initrd {
        Some(path) => Some(fs::read(path).with_context(|| path.display().to_string())?),
        None => found.initrd,
    };
    Ok(Payload { kernel: found.kernel, initrd, cmdline, notes })
}

fn from_disk(boot: &Boot, disk: &Disk, work: &Path) -> Result<Payload> {
    let Boot::Disk { entry, .. } = boot else {
        anyhow::bail!("a plan with a kernel of its own");
    };
    let mut raw = disk.clone();
    if !matches!(disk.format, Format::Raw | Format::Qcow2) {
        raw = Disk { path: work.join("boot.raw"), format: Format::Raw };
        qemu_img::convert(disk, &raw, &[], "the disk to boot from")?;
    }
    let found = image::Boot::from_image(&raw.path, entry.as_deref());
    let found = found.context("no kernel in the guest's first disk")?;
    ensure!(!found.kernel.is_empty(), "the kernel in the guest's first disk is empty");
    if raw.path != disk.path {
        fs::remove_file(&raw.path)?;
    }
    taken(boot, found)
}
