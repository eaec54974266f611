//! What a kernel says of itself.

use super::{Report, initrd};
use crate::kernel::pipe_through;
use translate::builder::elf::Elf;
use translate::builder::notes::Notes;
use translate::builder::{BuildError, Kernel};
use xen_abi::elfnote::FEATURE_NAMES;

/// Drivers a guest reaches its devices with: their modules, their settings, what they are for.
const DRIVERS: [(&str, &str, &str); 2] = [
    ("xen-blkfront", "CONFIG_XEN_BLKDEV_FRONTEND", "disks"),
    ("xen-netfront", "CONFIG_XEN_NETDEV_FRONTEND", "networks"),
];

/// Whether the bytes could be meant to be a kernel.
#[must_use]
pub fn is_kernel(file: &[u8]) -> bool {
    const PACKED: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"];
    let is_elf = file.starts_with(b"\x7fELF");
    let is_bzimage = file.get(0x202..0x206) == Some(b"HdrS");
    is_elf
        || is_bzimage
        || (PACKED.iter().any(|magic| file.starts_with(magic)) && Kernel::load(file).is_ok())
}

/// What the kernel `file` is, and whether it will run; with its initrd, if it has one.
#[must_use]
pub fn examine(file: &[u8], initrd: Option<&[u8]>) -> Report {
    let mut report = Report::default();
    let kernel = match Kernel::load(file) {
        Ok(kernel) => kernel,
        Err(error) => {
            report.obstacle = Some(explain(error));
            return report;
        }
    };
    if let Some(version) = version(&kernel.image) {
        report.fact(format!("kernel: {version}"));
    }
    let calls = match kernel.hypercall_page {
        Some(page) => format!("its hypercall page is at {:#x}", page.0),
        None => "it makes hypercalls by itself".into(),
    };
    report.fact(format!("starts as PV guest at {:#x}; {calls}", kernel.entry.0));
    if let Ok(notes) =
        Elf::parse(&kernel.image).and_then(|elf| Notes::find(&elf).map(|n| features(&n)))
    {
        report.fact(notes);
    }
    if kernel.init_p2m.is_none() {
        report
            .warn("its map of memory is in its first mapping, which limits it to some hundred GiB");
    }
    drivers(&kernel.image, initrd, &mut report);
    report
}

/// The reason in words that say what to do.
fn explain(error: BuildError) -> String {
    let more = match error {
        BuildError::NotXenPv => {
            "; it was built without CONFIG_XEN_PV and can only run as HVM guest, or natively"
        }
        BuildError::Elf32 => "; 32-bit user space runs with a 64-bit kernel",
        _ => "",
    };
    format!("{error}{more}")
}

/// What features its notes ask for.
fn features(notes: &Notes<'_>) -> String {
    let names = |bits: u32| {
        let all = FEATURE_NAMES.iter().filter(|(bit, _)| bits >> *bit & 1 == 1);
        let names: Vec<_> =
            all.map(|(_, name)| String::from_utf8_lossy(name).into_owned()).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    };
    let source = if notes.legacy { "__xen_guest" } else { "ELF notes" };
    let os = String::from_utf8_lossy(notes.guest_os);
    let pvh = if notes.phys32_entry.is_some() { "; it can start as PVH guest, too" } else { "" };
    format!(
        "{source}: {os}, required features: {}; others it knows: {}{pvh}",
        names(notes.required),
        names(notes.supported & !notes.required)
    )
}

/// Linux's own words on its version.
fn version(image: &[u8]) -> Option<String> {
    const MARK: &[u8] = b"Linux version ";
    let at = find_all(image, MARK)
        .find(|at| image.get(at + MARK.len()).is_some_and(u8::is_ascii_digit))?;
    let text = image.get(at..)?;
    let end = text.iter().position(|b| !(b' '..=b'~').contains(b))?;
    let line = String::from_utf8_lossy(text.get(..end)?).into_owned();
    // Behind it is who built it with what.
    Some(line.split(" (").next().unwrap_or_default().to_owned())
}

fn find_all<'a>(image: &'a [u8], what: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = what.first().copied().unwrap_or(0);
    let at = image.iter().enumerate().filter(move |(_, byte)| **byte == first).map(|(at, _)| at);
    at.filter(move |at| image.get(*at..).is_some_and(|rest| rest.starts_with(what)))
}

/// The settings it was built with, where it keeps them (`CONFIG_IKCONFIG`).
fn settings(image: &[u8]) -> Option<String> {
    let start = find_all(image, b"IKCFG_ST").next()? + 8;
    let end = find_all(image.get(start..)?, b"IKCFG_ED").next()?;
    let text = pipe_through("gzip", &["-dc"], image.get(start..start + end)?).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Where its drivers are.
fn drivers(image: &[u8], initrd: Option<&[u8]>, report: &mut Report) {
    let settings = settings(image);
    let names = initrd.map(initrd::names);
    if let Some(Err(error)) = &names {
        report.warn(format!("its initrd cannot be looked into: {error:#}"));
    }
    for (module, setting, what) in DRIVERS {
        let is = |value: &str| {
            settings.as_ref().is_some_and(|text| text.contains(&format!("\n{setting}={value}\n")))
        };
        // Parameters of what is built in begin with its name.
        let parameter = format!("\0{}.", module.replace('-', "_"));
        let built_in = is("y") || find_all(image, parameter.as_bytes()).next().is_some();
        let file = format!("{module}.ko");
        let in_initrd =
            matches!(&names, Some(Ok(names)) if names.iter().any(|name| name.contains(&file)));
        if built_in {
            report.fact(format!("driver of {what}: {module}, built in"));
        } else if in_initrd {
            report.fact(format!("driver of {what}: {module}, in the initrd"));
        } else if matches!(names, Some(Ok(_))) && what == "disks" {
            report.warn(format!(
                "{module} is neither built in nor in the initrd: without it there are no {what}"
            ));
        } else {
            report.fact(format!(
                "driver of {what}: {module} is not built in: as a module, if at all"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found() {
        let image =
            b"..Linux version %s\0 Linux version 6.1.0 (root@x) (gcc)\n\0\0xen_blkfront.max\0";
        assert_eq!(version(image).unwrap(), "Linux version 6.1.0");
        assert_eq!(version(b"Linux version"), None);
        let mut report = Report::default();
        drivers(image, None, &mut report);
        assert_eq!(report.facts[0], "driver of disks: xen-blkfront, built in");
        assert!(report.facts[1].contains("not built in"));
    }

    #[test]
    fn what_is_no_pv_kernel_is_explained() {
        let text = examine(b"\x7fELF\x01\x01\x01", None).text("k");
        assert!(text.contains("it will not run: "), "{text}");
        assert!(explain(BuildError::NotXenPv).contains("CONFIG_XEN_PV"));
        assert!(!is_kernel(b"name = 'x'") && is_kernel(b"\x7fELF"));
    }
}
