//! The commands that matter for a menu.

use super::eval::{Flow, Item, Pending, Script};
use super::lex::Word;
use super::parse::{Block, parse};
use super::{ScriptError, environment, test_command};
use crate::image::bls;
use crate::image::menu::Named;
use std::rc::Rc;

type Done = Result<Flow, ScriptError>;

/// Commands that do something to the screen, the keyboard or GRUB itself, none
/// of which is there; they succeed.
const NOTHING: [&str; 17] = [
    "echo",
    "export",
    "insmod",
    "rmmod",
    "save_env",
    "terminal_input",
    "terminal_output",
    "terminal",
    "serial",
    "loadfont",
    "play",
    "clear",
    "sleep",
    "password",
    "password_pbkdf2",
    "normal",
    "boot",
];

/// Commands that load something which is not Linux.
const OTHER_LOADERS: [&str; 14] = [
    "multiboot",
    "multiboot2",
    "module",
    "module2",
    "xen_hypervisor",
    "xen_module",
    "chainloader",
    "ntldr",
    "freedos",
    "kfreebsd",
    "knetbsd",
    "kopenbsd",
    "fwsetup",
    "plan9",
];

impl Script<'_> {
    pub(super) fn command(&mut self, words: &[Word], block: Option<&Rc<Block>>) -> Done {
        let words = self.expand(words)?;
        let Some((name, args)) = words.split_first() else {
            // Nothing was left of it, or a block by itself.
            return block.map_or(Ok(Flow::Next), |block| self.block(block));
        };
        if let Some(function) = self.functions.get(name).cloned() {
            self.call(&function, Some(args.to_vec()))?;
            return Ok(Flow::Next);
        }
        match name.as_str() {
            "return" => {
                self.ok = args.first().is_none_or(|code| code == "0");
                return Ok(Flow::Return);
            }
            "break" => return Ok(Flow::Break),
            "continue" => return Ok(Flow::Continue),
            "exit" | "halt" | "reboot" => return Ok(Flow::Return),
            "source" | "." | "configfile" | "legacy_configfile" | "extract_entries_source" => {
                self.source(args)?;
            }
            "eval" => {
                let block = parse(&args.join(" "))?;
                self.call(&block, None)?;
            }
            _ => self.ok = self.builtin(name, args, block),
        }
        Ok(Flow::Next)
    }

    /// Runs a command that does not change the flow; tells whether it succeeded.
    fn builtin(&mut self, name: &str, args: &[String], block: Option<&Rc<Block>>) -> bool {
        match name {
            "set" => {
                if let Some((name, value)) = args.first().and_then(|a| a.split_once('=')) {
                    self.set(name, value);
                }
            }
            "unset" => args.iter().for_each(|name| {
                self.variables.remove(name);
            }),
            "setparams" => self.words = args.to_vec(),
            "shift" => {
                let count = args.first().and_then(|n| n.parse().ok()).unwrap_or(1);
                self.words.drain(..usize::min(count, self.words.len()));
            }
            "true" => {}
            "false" => return false,
            "[" | "test" => return test_command::test(self, args),
            "menuentry" | "submenu" => return self.entry(name == "submenu", args, block),
            "load_env" => return self.load_env(args),
            "search" => return self.search(args),
            "search.fs_uuid" | "search.fs_label" | "search.file" => {
                return self.search_command(name, args);
            }
            "blscfg" => return self.blscfg(),
            "linux" | "linux16" | "linuxefi" => return self.linux(args),
            "initrd" | "initrd16" | "initrdefi" => {
                let files: Vec<_> = args.iter().map(|file| self.file(file)).collect();
                self.loaded.initrds = files;
            }
            _ if OTHER_LOADERS.contains(&name) => {
                self.loaded.other.get_or_insert_with(|| name.to_owned());
            }
            _ if NOTHING.contains(&name) => {}
            _ => match name.split_once('=') {
                Some((name, value)) => self.set(name, value),
                None => return false,
            },
        }
        true
    }

    /// `(device)/path`, or a path on `$root`.
    pub(super) fn file(&self, word: &str) -> Named {
        let (device, path) = match word.strip_prefix('(').and_then(|w| w.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (self.variable("root"), word),
        };
        Named { volume: volume(self.world, device), path: path.to_owned() }
    }

    /// The text of a file; what is on no known volume is looked for where the
    /// configuration is.
    fn text(&self, word: &str) -> Option<String> {
        let Named { volume, path } = self.file(word);
        self.world.text(volume.unwrap_or(self.home), &path)
    }

    fn source(&mut self, args: &[String]) -> Result<(), ScriptError> {
        let text = args.first().and_then(|file| self.text(file));
        self.ok = text.is_some();
        if let Some(text) = text {
            let block = parse(&text)?;
            self.call(&block, None)?;
        }
        Ok(())
    }

    fn linux(&mut self, args: &[String]) -> bool {
        let Some((kernel, args)) = args.split_first() else { return false };
        let args: Vec<_> = args.iter().map(|arg| quoted(arg)).collect();
        self.loaded.kernel = Some((self.file(kernel), args.join(" ")));
        self.loaded.initrds.clear();
        true
    }

    fn entry(&mut self, submenu: bool, args: &[String], block: Option<&Rc<Block>>) -> bool {
        const WITH_VALUE: [&str; 4] = ["--class", "--users", "--hotkey", "--source"];
        let (mut words, mut id) = (Vec::new(), String::new());
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--id" => id = args.next().cloned().unwrap_or_default(),
                "--unrestricted" => {}
                with if WITH_VALUE.contains(&with) => {
                    args.next();
                }
                with if with.starts_with("--") => {
                    id = with.strip_prefix("--id=").map_or(id, str::to_owned);
                }
                _ => words.push(arg.clone()),
            }
        }
        let (Some(body), Some(title)) = (block, words.first().cloned()) else { return false };
        let body = Rc::clone(body);
        // $1 within the entry is the title itself.
        self.items.push(Item::Pending(Pending { title, id, submenu, words, body }));
        true
    }

    fn load_env(&mut self, args: &[String]) -> bool {
        let mut file = "$prefix/grubenv".replace("$prefix", self.variable("prefix"));
        let mut wanted: Vec<&str> = Vec::new();
        let mut args = args.iter().map(String::as_str);
        while let Some(arg) = args.next() {
            match arg {
                "-f" | "--file" => file = args.next().unwrap_or_default().to_owned(),
                arg => match arg.strip_prefix("--file=") {
                    Some(name) => name.clone_into(&mut file),
                    None if arg.starts_with('-') => {}
                    None => wanted.push(arg),
                },
            }
        }
        let Some(text) = self.text(&file) else { return false };
        for (name, value) in environment(&text) {
            if wanted.is_empty() || wanted.contains(&name.as_str()) {
                self.set(&name, &value);
            }
        }
        true
    }

    fn search(&mut self, args: &[String]) -> bool {
        let (mut by, mut variable) = (By::File, None);
        let mut name = None;
        let mut args = args.iter().map(String::as_str).peekable();
        while let Some(arg) = args.next() {
            match arg {
                "-u" | "--fs-uuid" => by = By::Uuid,
                "-l" | "--label" | "--fs-label" => by = By::Label,
                "-f" | "--file" => by = By::File,
                "-s" | "--set" => variable = Some("root"),
                "-h" | "--hint" => {
                    args.next();
                }
                arg if arg.starts_with("--set=") => variable = arg.strip_prefix("--set="),
                arg if arg.starts_with('-') => {}
                arg => name = name.or(Some(arg)),
            }
        }
        let Some(volume) = name.and_then(|name| self.find(by, name)) else { return false };
        if let Some(variable) = variable {
            let device = self.world.device(volume);
            self.set(variable, &device);
        }
        true
    }

    /// `search.fs_uuid UUID root hints`, as in the script within GRUB's image.
    fn search_command(&mut self, name: &str, args: &[String]) -> bool {
        let by = match name {
            "search.fs_uuid" => By::Uuid,
            "search.fs_label" => By::Label,
            _ => By::File,
        };
        let Some(volume) = args.first().and_then(|name| self.find(by, name)) else { return false };
        let device = self.world.device(volume);
        self.set(args.get(1).map_or("root", String::as_str), &device);
        true
    }

    fn find(&self, by: By, name: &str) -> Option<usize> {
        match by {
            By::Uuid => self.world.by_uuid(name),
            By::Label => self.world.by_label(name),
            By::File => self.world.by_file(name),
        }
    }

    /// Fedora's command for a menu of Boot Loader Specification entries.
    fn blscfg(&mut self) -> bool {
        let root = volume(self.world, self.variable("root"));
        let homes = [root, Some(self.home)].into_iter().flatten();
        for home in homes {
            let entries = bls::entries(self.world, home, &|name| self.variable(name).to_owned());
            if !entries.is_empty() {
                self.items.extend(entries.into_iter().map(Item::Ready));
                return true;
            }
        }
        false
    }
}

#[derive(Clone, Copy)]
enum By {
    Uuid,
    Label,
    File,
}

/// The volume a device's name means: only the first disk is looked at.
fn volume(world: &dyn super::World, device: &str) -> Option<usize> {
    let (disk, partition) = match device.split_once(',') {
        Some((disk, partition)) => (disk, Some(partition)),
        // Xen's names: xen/xvda1.
        None => match device.strip_prefix("xen/xvda").filter(|rest| !rest.is_empty()) {
            Some(number) => ("hd0", Some(number)),
            None => (device, None),
        },
    };
    if !matches!(disk, "hd0" | "xen/xvda") {
        return None;
    }
    match partition {
        None => world.by_number(None),
        Some(name) => {
            let number = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
            world.by_number(Some(number.parse().ok()?))
        }
    }
}

/// A word of the command line as GRUB hands it to a kernel: in quotes if it has
/// blanks in it, with backslashes before quotes and backslashes.
fn quoted(word: &str) -> String {
    let mut escaped = String::new();
    let mut rest = word.chars();
    while let Some(c) = rest.next() {
        let hex = |s: &str| {
            let mut next = s.chars();
            next.next() == Some('x') && next.take(2).filter(char::is_ascii_hexdigit).count() == 2
        };
        if matches!(c, '"' | '\'') || (c == '\\' && !hex(rest.as_str())) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    if word.contains(' ') { format!("\"{escaped}\"") } else { escaped }
}
