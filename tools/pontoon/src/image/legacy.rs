//! GRUB legacy's `menu.lst` or `grub.conf`, as PvGrub and pygrub read it, too.

use super::menu::{Action, Entry, Menu, Named, Recipe, World};

/// The menu of `text`, a file in `directory` of `volume`.
#[must_use]
pub fn menu(text: &str, world: &dyn World, volume: usize, directory: &str) -> Menu {
    let mut menu = Menu::default();
    let mut entry: Option<Draft> = None;
    for line in text.lines().map(str::trim) {
        // Between the command and its value stand blanks, or an equals sign.
        let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
        let (command, value) = line.split_at(end);
        let value = value.trim_start_matches(|c: char| c.is_whitespace() || c == '=').trim_end();
        match (command, &mut entry) {
            ("", _) => {}
            (comment, _) if comment.starts_with('#') => {}
            ("title", _) => {
                menu.entries.extend(entry.take().map(Draft::finish));
                let root = Some(volume);
                entry = Some(Draft { title: value.to_owned(), root, ..Draft::default() });
            }
            ("default", None) => value.clone_into(&mut menu.default),
            (command, Some(draft)) => draft.line(command, value, world),
            _ => {}
        }
    }
    menu.entries.extend(entry.map(Draft::finish));
    if menu.default == "saved" {
        // `savedefault` writes the number to the first line of a file.
        let saved = world.text(volume, &format!("{directory}/default")).unwrap_or_default();
        let number = saved.lines().next().unwrap_or_default().trim();
        menu.default = number.parse::<usize>().unwrap_or(0).to_string();
    }
    menu
}

/// An entry in the making.
#[derive(Default)]
struct Draft {
    title: String,
    root: Option<usize>,
    /// The kernel and its command line.
    kernel: Option<(Named, String)>,
    modules: Vec<(Named, String)>,
    initrds: Vec<Named>,
    other: Option<String>,
}

impl Draft {
    fn line(&mut self, command: &str, value: &str, world: &dyn World) {
        match command {
            "root" | "rootnoverify" => self.root = volume(value, world),
            // Debian's: the file system's UUID.
            "uuid" => self.root = world.by_uuid(value),
            "kernel" => {
                let mut value = value;
                // GRUB's own options come first.
                while value.starts_with("--") {
                    value = value.split_once(char::is_whitespace).map_or("", |(_, v)| v.trim());
                }
                self.kernel = Some(self.file(value, world));
            }
            "module" | "modulenounzip" => self.modules.push(self.file(value, world)),
            "initrd" => {
                let files = value.split_whitespace().map(|f| self.file(f, world).0);
                self.initrds = files.collect();
            }
            "chainloader" | "configfile" => self.other = Some(command.to_owned()),
            _ => {}
        }
    }

    /// A path and what stands behind it.
    fn file(&self, value: &str, world: &dyn World) -> (Named, String) {
        let (path, args) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
        let (on, path) = match path.split_once(')') {
            Some((device, path)) if device.starts_with('(') => (volume(device, world), path),
            _ => (self.root, path),
        };
        (Named { volume: on, path: path.to_owned() }, args.trim().to_owned())
    }

    fn finish(self) -> Entry {
        let Self { title, kernel, modules, initrds, other, .. } = self;
        let mut modules = modules.into_iter();
        // With modules, the kernel is Xen and the first module is what it starts.
        let (kernel, initrds) = match modules.next() {
            Some(linux) => (Some(linux), modules.map(|(file, _)| file).collect()),
            None => (kernel, initrds),
        };
        let action = match (kernel, other) {
            (Some((kernel, cmdline)), _) => Action::Linux(Recipe { kernel, initrds, cmdline }),
            (None, Some(other)) => Action::Other(other),
            (None, None) => Action::Other("nothing".into()),
        };
        Entry { title, id: String::new(), action }
    }
}

/// `(hd0,1` is the second partition of the first disk.
fn volume(device: &str, world: &dyn World) -> Option<usize> {
    let inner = device.trim_start_matches('(').trim_end_matches(')');
    match inner.split_once(',') {
        None if inner == "hd0" => world.by_number(None),
        Some(("hd0", number)) => {
            let number = number.split(',').next()?.trim().parse::<u32>().ok()?;
            world.by_number(Some(number.checked_add(1)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fake::{Fake, default_of};

    const TEXT: &str = "\
# menu.lst
default=1
timeout 5
color cyan/blue white/blue

title  Debian GNU/Linux, kernel 2.6.26-2-xen-amd64
root   (hd0,0)
kernel /vmlinuz-2.6.26-2-xen-amd64 root=/dev/xvda2 ro console=hvc0
initrd /initrd.img-2.6.26-2-xen-amd64
savedefault

title CentOS (2.6.18-398.el5xen)
	root (hd0,1)
	kernel --no-mem-option (hd0,0)/vmlinuz-2.6.18-398.el5xen ro root=LABEL=/ xencons=hvc
	initrd /boot/initrd-2.6.18-398.el5xen.img

title Xen 3.0.3
	uuid 4007
	kernel /boot/xen.gz-3.0.3 dom0_mem=512M
	module /boot/vmlinuz-2.6.18-xen root=/dev/sda1 ro
	module /boot/initrd-2.6.18-xen.img
title Other
	chainloader +1
";

    fn read(text: &str, saved: &'static str) -> Menu {
        let world = Fake::new(&[("/grub/default", saved)], &[]);
        menu(text, &world, 0, "/grub")
    }

    #[test]
    fn entries_of_all_kinds() {
        let all = read(TEXT, "");
        assert_eq!(all.entries.len(), 4);
        assert_eq!(
            default_of(&all),
            "CentOS (2.6.18-398.el5xen) | 0:/vmlinuz-2.6.18-398.el5xen | \
             1:/boot/initrd-2.6.18-398.el5xen.img | ro root=LABEL=/ xencons=hvc"
        );
        let first = default_of(&read(&TEXT.replace("default=1", "default 0"), ""));
        assert!(first.ends_with("| root=/dev/xvda2 ro console=hvc0"), "{first}");
        let xen = default_of(&read(&TEXT.replace("default=1", "default\t2"), ""));
        assert_eq!(
            xen,
            "Xen 3.0.3 | 1:/boot/vmlinuz-2.6.18-xen | 1:/boot/initrd-2.6.18-xen.img | root=/dev/sda1 ro"
        );
        assert_eq!(all.entries[3].action, Action::Other("chainloader".into()));
    }

    #[test]
    fn saved_defaults() {
        let text = TEXT.replace("default=1", "default saved");
        assert_eq!(read(&text, "2\n#\n#\n").default, "2");
        assert_eq!(read(&text, "garbage").default, "0");
    }
}
