//! GRUB, out of Debian's packages: its image for a machine's BIOS, and its menu.

use super::plan::Medium;
use crate::bundle;
use crate::guest::Payload;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::{Command, Stdio};

/// Modules in the image, with all they need: nothing is loaded later. `vbe` is for the shim, which
/// asks for a framebuffer.
const MODULES: [&str; 11] = [
    "biosdisk",
    "part_msdos",
    "fat",
    "normal",
    "configfile",
    "multiboot2",
    "serial",
    "terminal",
    "test",
    "echo",
    "vbe",
];
/// Where Debian has it.
const DIRECTORY: &str = "/usr/lib/grub/i386-pc";
/// Files of the volume GRUB reads.
pub const MENU: &str = "grub/grub.cfg";

/// The boot sector's program and the image behind it.
pub struct Image {
    /// In the first sector, in front of the partition table.
    pub boot: Vec<u8>,
    /// From the second sector on, where the boot sector expects it.
    pub core: Vec<u8>,
}

/// Makes the image; it finds its menu on the first partition of the disk it started from.
///
/// # Errors
/// GRUB is not there, or does not do it.
pub fn image(work: &Path) -> Result<Image> {
    /// Of the first sector; then come the disk's signature and the table.
    const BOOT_BYTES: usize = 440;
    let core = work.join("core.img");
    let mut command = Command::new("grub-mkimage");
    command.args(["-O", "i386-pc", "-d", DIRECTORY, "-p", "(,msdos1)/grub", "-o"]).arg(&core);
    run(command.args(MODULES))?;
    let boot = std::fs::read(Path::new(DIRECTORY).join("boot.img")).context("GRUB's boot.img")?;
    let boot = boot.get(..BOOT_BYTES).context("GRUB's boot.img is cut short")?.to_vec();
    let core = std::fs::read(core).context("GRUB's image")?;
    ensure!(core.len() >= 512, "GRUB's image is cut short");
    Ok(Image { boot, core })
}

/// Makes an ISO image of the tree `from` that starts by BIOS and by UEFI.
///
/// # Errors
/// GRUB is not there, or does not do it.
pub fn rescue(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("grub-mkrescue");
    run(command.arg("-o").arg(to).arg(from).args(["--", "-volid", "PONTOON"]))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let out = out.with_context(|| format!("{program} cannot be run"))?;
    let errors = String::from_utf8_lossy(&out.stderr);
    // What went wrong comes first, what follows from it later.
    let why = errors.lines().find(|l| l.contains("error") || l.contains("FAILURE"));
    let why = why.or(errors.lines().last()).unwrap_or("no reason given");
    ensure!(out.status.success(), "{program}: {why}");
    Ok(())
}

/// What GRUB loads: files beside the shim, and the menu.
pub struct Menu {
    /// Files of the directory `pontoon`.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// `grub.cfg`.
    pub text: String,
}

/// The menu for a guest. GRUB puts words together in a way of its own: a command line with quotes
/// or the like goes into a bundle, which it leaves alone.
///
/// # Errors
/// A name GRUB's language has no way to say.
pub fn menu(title: &str, payload: &Payload, words: &[String], medium: Medium) -> Result<Menu> {
    let is_plain = |text: &str| {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b" -_./:,=+@%".contains(&b))
            && !text.contains("  ")
            && text.trim() == text
    };
    ensure!(
        words.iter().all(|word| is_plain(word)),
        "words GRUB would change: {}",
        words.join(" ")
    );
    let mut files: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let mut modules = String::new();
    let kernel = if is_plain(&payload.cmdline) {
        files.push(("pontoon/kernel", payload.kernel.clone()));
        if let Some(initrd) = &payload.initrd {
            files.push(("pontoon/initrd", initrd.clone()));
            modules.push_str("\tmodule2 /pontoon/initrd\n");
        }
        format!("/pontoon/kernel {}", payload.cmdline)
    } else {
        let bundle = bundle::bundle(&payload.kernel, payload.initrd.as_deref(), &payload.cmdline)?;
        files.push(("pontoon/bundle", bundle));
        "/pontoon/bundle".into()
    };
    let screen = match medium {
        // As far as the image has the modules.
        Medium::Iso => "insmod all_video\n",
        _ => "",
    };
    let text = format!(
        "# Starts the shim with its guest. The first line of the entry takes words for the shim,\n\
         # the second the guest's kernel and words for it.\n\
         set timeout=2\nset default=0\n{screen}\
         if serial --unit=0 --speed=115200; then\n\
         \tterminal_input console serial\n\tterminal_output console serial\nfi\n\
         menuentry '{}' {{\n\tmultiboot2 /pontoon/shim {}\n\tmodule2 {}\n{modules}}}\n",
        title.replace('\'', ""),
        words.join(" "),
        kernel.trim_end()
    );
    Ok(Menu { files, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(cmdline: &str) -> Payload {
        Payload {
            kernel: b"k".to_vec(),
            initrd: Some(b"i".to_vec()),
            cmdline: cmdline.into(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn menus() {
        let words = ["pontoon.vbd=xvda:scsi0:0".to_owned(), "pontoon.name=web".to_owned()];
        let made = menu("it's", &payload("root=/dev/xvda1 ro"), &words, Medium::Vhd).unwrap();
        let entry = made.text.split_once("menuentry").unwrap().1;
        assert_eq!(
            entry,
            " 'its' {\n\tmultiboot2 /pontoon/shim pontoon.vbd=xvda:scsi0:0 pontoon.name=web\n\
             \tmodule2 /pontoon/kernel root=/dev/xvda1 ro\n\tmodule2 /pontoon/initrd\n}\n"
        );
        let names: Vec<_> = made.files.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["pontoon/kernel", "pontoon/initrd"]);
        for odd in ["dyndbg=\"file a +p\"", "a$b", "a;b", "a  b", "a\\b", "init='x'", "{}"] {
            let made = menu("x", &payload(odd), &words, Medium::Vhd).unwrap();
            assert!(made.text.contains("module2 /pontoon/bundle\n}"), "{odd}");
            assert_eq!(made.files.len(), 1);
        }
        assert!(menu("x", &payload(""), &["pontoon.name=a;b".into()], Medium::Vhd).is_err());
    }
}
