//! Running a script.

use super::ScriptError;
use super::lex::{Part, Word};
use super::parse::{Block, Statement};
use crate::image::menu::{Action, Entry, Menu, Named, Recipe, World};
use std::collections::HashMap;
use std::rc::Rc;

/// Commands a script may run in all: a thousand entries do not need so many.
const MAX_STEPS: u32 = 20_000;
/// Functions and files within each other.
const MAX_CALLS: u32 = 16;
/// Bytes of a value or a command's words.
const MAX_BYTES: usize = 64 << 10;
/// Menus within each other.
const MAX_MENUS: u32 = 8;

/// How a block of statements ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
    Return,
}

/// An entry whose block was not run yet.
pub(super) struct Pending {
    pub title: String,
    pub id: String,
    pub submenu: bool,
    /// Its own words, `$1` and on within it.
    pub words: Vec<String>,
    pub body: Rc<Block>,
}

/// What is on a menu so far.
pub(super) enum Item {
    Pending(Pending),
    Ready(Entry),
}

/// What the commands so far would start.
#[derive(Default)]
pub(super) struct Loaded {
    pub kernel: Option<(Named, String)>,
    pub initrds: Vec<Named>,
    pub other: Option<String>,
}

/// A script in progress.
pub(super) struct Script<'a> {
    pub world: &'a dyn World,
    pub home: usize,
    pub variables: HashMap<String, String>,
    pub functions: HashMap<String, Rc<Block>>,
    pub words: Vec<String>,
    pub items: Vec<Item>,
    pub loaded: Loaded,
    /// Whether the last command succeeded.
    pub ok: bool,
    pub calls: u32,
    steps: u32,
}

type Done<T> = Result<T, ScriptError>;

fn stop<T>(what: &'static str) -> Done<T> {
    Err(ScriptError { line: 0, what })
}

/// Features GRUB tells its scripts of as `feature_*` variables.
const FEATURES: [&str; 9] = [
    "chainloader_bpb",
    "menuentry_id",
    "menuentry_options",
    "default_font_path",
    "all_video_module",
    "platform_search_hint",
    "timeout_style",
    "nativedisk_cmd",
    "200_final",
];

pub(super) fn run(block: Block, world: &dyn World, volume: usize, path: &str) -> Done<Menu> {
    let root = world.device(volume);
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let mut variables: HashMap<String, String> =
        FEATURES.iter().map(|f| (format!("feature_{f}"), "y".to_owned())).collect();
    for (name, value) in [
        ("root", root.clone()),
        ("prefix", format!("({root}){directory}")),
        ("config_directory", format!("({root}){directory}")),
        ("config_file", format!("({root}){path}")),
        ("grub_cpu", "x86_64".into()),
        ("grub_platform", "xen".into()),
    ] {
        variables.insert(name.into(), value);
    }
    let mut script = Script {
        world,
        home: volume,
        variables,
        functions: HashMap::new(),
        words: Vec::new(),
        items: Vec::new(),
        loaded: Loaded::default(),
        ok: true,
        calls: 0,
        steps: 0,
    };
    script.block(&block)?;
    let default = script.variable("default").to_owned();
    let mut entries = script.entries(0)?;
    // A script may boot without a menu.
    if entries.is_empty() && (script.loaded.kernel.is_some() || script.loaded.other.is_some()) {
        let action = action(std::mem::take(&mut script.loaded));
        entries.push(Entry { title: "the script's own".into(), id: String::new(), action });
    }
    Ok(Menu { entries, default })
}

fn action(loaded: Loaded) -> Action {
    match loaded {
        Loaded { other: Some(other), .. } => Action::Other(other),
        Loaded { kernel: Some((kernel, cmdline)), initrds, .. } => {
            Action::Linux(Recipe { kernel, initrds, cmdline })
        }
        Loaded { .. } => Action::Other("nothing".into()),
    }
}

impl Script<'_> {
    pub(super) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Runs the blocks of the entries found so far, each with variables of its
    /// own.
    fn entries(&mut self, depth: u32) -> Done<Vec<Entry>> {
        let mut entries = Vec::new();
        for item in std::mem::take(&mut self.items) {
            let pending = match item {
                Item::Ready(entry) => {
                    entries.push(entry);
                    continue;
                }
                Item::Pending(pending) => pending,
            };
            let Pending { title, id, submenu, words, body } = pending;
            let variables = self.variables.clone();
            let outer = std::mem::take(&mut self.loaded);
            self.words = words;
            self.set("chosen", &title);
            self.block(&body)?;
            let action = if !submenu {
                action(std::mem::take(&mut self.loaded))
            } else if depth < MAX_MENUS {
                Action::Submenu(self.entries(depth + 1)?)
            } else {
                return stop("menus nested too deeply");
            };
            self.items.clear();
            self.words.clear();
            self.loaded = outer;
            self.variables = variables;
            entries.push(Entry { title, id, action });
        }
        Ok(entries)
    }

    pub(super) fn block(&mut self, block: &Block) -> Done<Flow> {
        for statement in block {
            match self.statement(statement)? {
                Flow::Next => {}
                other => return Ok(other),
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, statement: &Statement) -> Done<Flow> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return stop("the script does not come to an end");
        }
        match statement {
            Statement::Command { words, block } => self.command(words, block.as_ref()),
            Statement::Function { name, body } => {
                self.functions.insert(name.clone(), Rc::clone(body));
                self.ok = true;
                Ok(Flow::Next)
            }
            Statement::If { arms, otherwise } => {
                for (condition, body) in arms {
                    self.block(condition)?;
                    if self.ok {
                        return self.block(body);
                    }
                }
                self.ok = true;
                self.block(otherwise)
            }
            Statement::For { name, words, body } => {
                for value in self.expand(words)? {
                    self.set(name, &value);
                    match self.block(body)? {
                        Flow::Break => break,
                        Flow::Return => return Ok(Flow::Return),
                        Flow::Next | Flow::Continue => {}
                    }
                }
                Ok(Flow::Next)
            }
            Statement::While { until, condition, body } => loop {
                self.block(condition)?;
                if self.ok == *until {
                    self.ok = true;
                    return Ok(Flow::Next);
                }
                match self.block(body)? {
                    Flow::Break => return Ok(Flow::Next),
                    Flow::Return => return Ok(Flow::Return),
                    Flow::Next | Flow::Continue => {}
                }
                self.steps += 1;
                if self.steps > MAX_STEPS {
                    return stop("the script does not come to an end");
                }
            },
        }
    }

    /// Words with their variables' values. Values outside of quotes are split at
    /// blanks; a word that comes to nothing is none, unless quotes are in it.
    pub(super) fn expand(&self, words: &[Word]) -> Done<Vec<String>> {
        let mut expanded = Vec::new();
        let mut bytes = 0;
        for word in words {
            let mut current: Option<String> = None;
            for part in &word.0 {
                match part {
                    Part::Text { text, .. } => {
                        bytes += text.len();
                        current.get_or_insert_default().push_str(text);
                    }
                    Part::Variable { name, quoted } => {
                        let value = self.value(name);
                        bytes += value.len();
                        if *quoted {
                            current.get_or_insert_default().push_str(&value);
                        } else {
                            split(&value, &mut current, &mut expanded);
                        }
                    }
                }
                if bytes > MAX_BYTES {
                    return stop("a command too long");
                }
            }
            expanded.extend(current);
        }
        Ok(expanded)
    }

    fn value(&self, name: &str) -> String {
        match name {
            "?" => u32::from(!self.ok).to_string(),
            "#" => self.words.len().to_string(),
            "@" | "*" => self.words.join(" "),
            _ => match name.parse::<usize>() {
                Ok(n) => {
                    let word = n.checked_sub(1).and_then(|n| self.words.get(n));
                    word.cloned().unwrap_or_default()
                }
                Err(_) => self.variable(name).to_owned(),
            },
        }
    }

    /// Calls a function, or runs another file, with words of its own.
    pub(super) fn call(&mut self, block: &Block, words: Option<Vec<String>>) -> Done<()> {
        self.calls += 1;
        if self.calls > MAX_CALLS {
            return stop("calls nested too deeply");
        }
        let outer = words.map(|words| std::mem::replace(&mut self.words, words));
        self.block(block)?;
        if let Some(outer) = outer {
            self.words = outer;
        }
        self.calls -= 1;
        Ok(())
    }
}

/// Adds `value` to the word in the making, beginning new ones at blanks.
fn split(value: &str, current: &mut Option<String>, words: &mut Vec<String>) {
    for c in value.chars() {
        if c.is_whitespace() {
            words.extend(current.take());
        } else {
            current.get_or_insert_default().push(c);
        }
    }
}
