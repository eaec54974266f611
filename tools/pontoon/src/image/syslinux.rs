//! extlinux and its kin: `extlinux.conf`, `syslinux.cfg`, `isolinux.cfg`
//! (SYSLINUX, doc/syslinux.txt, "CONFIGURATION FILE").

use super::menu::{Action, Entry, Menu, Named, Recipe, World};

/// Files that include each other.
const MAX_DEPTH: u32 = 8;
/// Files that are included in all.
const MAX_FILES: u32 = 64;
/// Endings of programs for SYSLINUX itself.
const PROGRAMS: [&str; 7] = [".c32", ".cbt", ".com", ".0", ".bs", ".bss", ".bin"];

/// The menu of `text`, a file in `directory` of `volume`.
#[must_use]
pub fn menu(text: &str, world: &dyn World, volume: usize, directory: &str) -> Menu {
    let mut parser = Parser::new(world, volume, directory);
    parser.file(text, 0);
    parser.finish()
}

struct Parser<'a> {
    world: &'a dyn World,
    volume: usize,
    directory: &'a str,
    labels: Vec<Label>,
    default: String,
    /// Set by `menu default`, which a plain `default` does not override.
    menu_default: Option<String>,
    /// For labels without an `append` of their own.
    append: String,
    files: u32,
}

#[derive(Default)]
struct Label {
    name: String,
    title: Option<String>,
    kernel: Option<String>,
    program: Option<String>,
    initrd: Option<String>,
    append: Option<String>,
}

impl<'a> Parser<'a> {
    fn new(world: &'a dyn World, volume: usize, directory: &'a str) -> Self {
        Self {
            world,
            volume,
            directory,
            labels: Vec::new(),
            default: String::new(),
            menu_default: None,
            append: String::new(),
            files: 0,
        }
    }

    fn file(&mut self, text: &str, depth: u32) {
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let (keyword, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            self.line(&keyword.to_ascii_lowercase(), value.trim(), depth);
        }
    }

    fn line(&mut self, keyword: &str, value: &str, depth: u32) {
        match keyword {
            "include" => self.include(value, depth),
            "menu" => {
                let (what, value) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
                match (what.to_ascii_lowercase().as_str(), self.labels.last_mut()) {
                    ("include", _) => self.include(value.trim(), depth),
                    // A caret marks the letter that chooses the entry.
                    ("label", Some(l)) => l.title = Some(value.trim().replace('^', "")),
                    ("default", Some(label)) => self.menu_default = Some(label.name.clone()),
                    _ => {}
                }
            }
            "label" => self.labels.push(Label { name: value.to_owned(), ..Label::default() }),
            // With arguments, it is a command line without a label.
            "default" => value.clone_into(&mut self.default),
            "append" => match self.labels.last_mut() {
                Some(label) => label.append = Some(value.to_owned()),
                None => value.clone_into(&mut self.append),
            },
            _ => {
                let Some(label) = self.labels.last_mut() else { return };
                let value = Some(value.to_owned());
                match keyword {
                    "linux" => label.kernel = value,
                    "kernel" if is_program(value.as_deref()) => label.program = value,
                    "kernel" => label.kernel = value,
                    "initrd" => label.initrd = value,
                    "com32" | "boot" | "bss" | "pxe" | "fdimage" | "comboot" => {
                        label.program = value;
                    }
                    "localboot" => label.program = Some("the next boot loader".into()),
                    _ => {}
                }
            }
        }
    }

    fn include(&mut self, value: &str, depth: u32) {
        let name = value.split_whitespace().next().unwrap_or_default();
        self.files += 1;
        if depth < MAX_DEPTH && self.files <= MAX_FILES {
            let path = self.path(name);
            if let Some(text) = self.world.text(self.volume, &path) {
                self.file(&text, depth + 1);
            }
        }
    }

    /// Names are relative to the directory of the configuration.
    fn path(&self, name: &str) -> String {
        if name.starts_with('/') { name.to_owned() } else { format!("{}/{name}", self.directory) }
    }

    fn finish(self) -> Menu {
        let entries: Vec<_> = self.labels.iter().map(|label| self.entry(label)).collect();
        // What is to be booted may be a program that shows the menu.
        let named = |name: &&str| self.labels.iter().any(|l| l.name == *name);
        let default = self.menu_default.as_deref().or(Some(self.default.as_str()).filter(named));
        // A label that is a number is no place in the menu.
        let index = self.labels.iter().position(|l| Some(l.name.as_str()) == default);
        Menu { entries, default: index.unwrap_or(0).to_string() }
    }

    fn entry(&self, label: &Label) -> Entry {
        let title = label.title.clone().unwrap_or_else(|| label.name.clone());
        let named = |path: &str| Named { volume: Some(self.volume), path: self.path(path) };
        let append = match label.append.as_deref() {
            Some("-") => "",
            Some(own) => own,
            None => &self.append,
        };
        let (mut initrd, mut words) = (label.initrd.clone(), Vec::new());
        for word in append.split(' ').filter(|w| !w.is_empty()) {
            match word.strip_prefix("initrd=") {
                Some(files) => initrd = Some(files.to_owned()),
                None => words.push(word),
            }
        }
        let action = match (&label.kernel, &label.program) {
            (Some(kernel), _) => Action::Linux(Recipe {
                kernel: named(kernel),
                initrds: initrd.iter().flat_map(|f| f.split(',')).map(named).collect(),
                cmdline: words.join(" "),
            }),
            (None, Some(program)) => Action::Other(program.clone()),
            (None, None) => Action::Other("nothing".into()),
        };
        Entry { title, id: label.name.clone(), action }
    }
}

fn is_program(kernel: Option<&str>) -> bool {
    let kernel = kernel.unwrap_or_default().to_ascii_lowercase();
    PROGRAMS.iter().any(|ending| kernel.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fake::{Fake, default_of};

    fn read(text: &str) -> Menu {
        let included = "LABEL inc\n  LINUX ../vmlinuz-inc\n  APPEND root=/dev/xvda1\n";
        let loop_ = "include loop.cfg\ninclude loop.cfg\n";
        let files = [("/extlinux/inc.cfg", included), ("/extlinux/loop.cfg", loop_)];
        menu(text, &Fake::new(&files, &[]), 0, "/extlinux")
    }

    const TEXT: &str = "\
DEFAULT menu.c32
PROMPT 0
APPEND root=/dev/xvda1 ro
LABEL virt
  MENU LABEL Alpine ^Linux virt
  LINUX vmlinuz-virt
  INITRD initramfs-virt,/ucode.img
label two
  kernel /vmlinuz-2
  append initrd=/initrd-2 root=/dev/xvda1  quiet
  menu default
label bare
  kernel /vmlinuz-3
  append -
label tool
  kernel memdisk.c32
label disk
  localboot 0x80
include inc.cfg
include loop.cfg
";

    #[test]
    fn labels_and_what_they_inherit() {
        let menu = read(TEXT);
        assert_eq!(menu.entries.len(), 6);
        assert_eq!(default_of(&menu), "two | 0:/vmlinuz-2 | 0:/initrd-2 | root=/dev/xvda1 quiet");
        let with = |default: &str| default_of(&Menu { default: default.into(), ..menu.clone() });
        assert_eq!(
            with("virt"),
            "Alpine Linux virt | 0:/extlinux/vmlinuz-virt | \
             0:/extlinux/initramfs-virt,0:/ucode.img | root=/dev/xvda1 ro"
        );
        assert_eq!(with("bare"), "bare | 0:/vmlinuz-3 |  | ");
        assert_eq!(with("inc"), "inc | 0:/extlinux/../vmlinuz-inc |  | root=/dev/xvda1");
        assert_eq!(menu.entries[3].action, Action::Other("memdisk.c32".into()));
    }

    #[test]
    fn defaults() {
        let default = |text: &str| read(text).default;
        assert_eq!(default("default b\nlabel a\nlinux /a\nlabel b\nlinux /b\n"), "1");
        assert_eq!(default("label a\nlinux /a\ndefault 1\nlabel 1\nlinux /b\n"), "1");
        assert_eq!(default("default vesamenu.c32\nlabel a\nlinux /a\n"), "0");
        assert_eq!(default(""), "0");
    }
}
