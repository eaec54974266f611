//! Disk images as administrators have them: what is found in them boots.
//!
//! Images are built on first use, which takes root, a network and minutes; so
//! these tests are ignored unless asked for: `cargo xtask image --check`.

use anyhow::{Context, Result, ensure};
use pontoon::cleanup::Scratch;
use pontoon::host::{Input, Machine};
use pontoon::image::{Boot, with_append};
use pontoon::kernel::unpack_bzimage;
use pontoon::outcome::Status;
use pontoon::qemu::Qemu;
use pontoon_tests::images::{HOSTNAME, Image, PASSWORD, SUITES, Table, initramfs_names};
use std::time::Duration;

fn all() -> impl Iterator<Item = Image> {
    SUITES.into_iter().zip([Table::Gpt, Table::Mbr]).map(|(suite, table)| Image::new(suite, table))
}

/// Debian's own menu leads to Debian's kernel, and its initramfs has the disk and
/// network drivers of a Xen guest.
#[test]
#[ignore = "builds images"]
fn kernels_are_found() -> Result<()> {
    for image in all() {
        let boot = Boot::from_image(&image.get()?, None)?;
        ensure!(boot.title == "Debian GNU/Linux", "the entry is \"{}\"", boot.title);
        let root = match image.table {
            Table::Gpt => "root=UUID=",
            Table::Mbr => "root=/dev/xvda1 ",
        };
        ensure!(
            boot.cmdline.starts_with(root) && boot.cmdline.contains("console=hvc0"),
            "the command line is \"{}\"",
            boot.cmdline
        );
        let elf = unpack_bzimage(&boot.kernel)?;
        ensure!(elf.windows(4).any(|w| w == b"Xen\0"), "the kernel has no Xen notes");
        let names = initramfs_names(&boot.initrd.context("no initrd")?)?;
        for module in ["xen-blkfront.ko", "xen-netfront.ko"] {
            ensure!(
                names.iter().any(|n| n.contains(module)),
                "{}: {module} is not among the {} files of the initramfs",
                image.suite,
                names.len()
            );
        }
        // All entries of the menu, down to the sub-menu's last, are there.
        let recovery = Boot::from_image(&image.get()?, Some("1>1"))?;
        ensure!(recovery.cmdline.contains("single") && recovery.kernel == boot.kernel);
    }
    Ok(())
}

/// The systems themselves work: on plain QEMU's virtio disk they come up to a
/// login that lets root in, and power off.
#[test]
#[ignore = "builds images"]
fn systems_come_up() -> Result<()> {
    for image in all() {
        let scratch = Scratch::new()?;
        let path = image.get()?;
        let boot = Boot::from_image(&path, None)?;
        let (kernel, initrd) = boot.write_to(scratch.path())?;
        let append = with_append(&boot.cmdline, Some("root=/dev/vda1 console=ttyS0 panic=-1"));
        let mut machine = Machine::new(&kernel, initrd.as_deref(), &append);
        machine.memory_mib = 1024;
        machine.timeout = Some(Duration::from_secs(600));
        let drive = format!("file={},format=raw,if=virtio,snapshot=on", path.display());
        let qemu = Qemu { more: vec!["-drive".into(), drive], ..Qemu::default() };
        let (input, mut seen, mut step) = (Input::default(), String::new(), 0);
        let keyboard = input.clone();
        let say = "cat /proc/mounts; systemctl is-system-running --wait; poweroff\n".to_owned();
        let dialogue = [
            (format!("{HOSTNAME} login: "), "root\n".to_owned()),
            ("Password: ".to_owned(), format!("{PASSWORD}\n")),
            (format!("root@{HOSTNAME}:~# "), say),
        ];
        let outcome = qemu.run(&machine, &input, &mut |bytes| {
            seen.push_str(&String::from_utf8_lossy(bytes));
            if let Some((prompt, answer)) = dialogue.get(step)
                && seen.ends_with(prompt.as_str())
            {
                keyboard.send(answer.as_bytes());
                step += 1;
            }
        })?;
        let tail: Vec<_> = seen.lines().rev().take(40).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        ensure!(step == dialogue.len(), "{}: no login:\n{tail}", image.suite);
        ensure!(outcome.status == Status::POWER_OFF, "ended by {}", outcome.status.text());
        ensure!(seen.contains("/dev/vda1 / ext4 rw"), "the root is not writable:\n{tail}");
        ensure!(seen.lines().any(|l| l.trim() == "running"), "units have failed:\n{tail}");
    }
    Ok(())
}
