//! Boot menus: what a boot loader's configuration offers, and the choice.

use super::fs::Kind;
use anyhow::{Result, bail};

/// A file as a configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The volume meant, where the configuration says so and there is such a one.
    pub volume: Option<usize>,
    /// The path on it.
    pub path: String,
}

/// What it takes to start a Linux kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The kernel.
    pub kernel: Named,
    /// Its initrds, which are joined in this order.
    pub initrds: Vec<Named>,
    /// Its command line.
    pub cmdline: String,
}

/// What choosing an entry leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A kernel.
    Linux(Recipe),
    /// A further menu.
    Submenu(Vec<Entry>),
    /// Something that is not started here, in a few words.
    Other(String),
}

/// An entry of a menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it is shown.
    pub title: String,
    /// Another name, by which a default may mean it; may be empty.
    pub id: String,
    /// What it does.
    pub action: Action,
}

/// A menu.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Menu {
    /// Its entries.
    pub entries: Vec<Entry>,
    /// The one to take, in GRUB's way: a number, a title or an id; behind `>` an
    /// entry of the sub-menu. Empty for the first one.
    pub default: String,
}

/// An entry that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<'a> {
    /// Titles, outermost menu first, joined by `>`.
    pub title: String,
    /// What to boot.
    pub recipe: &'a Recipe,
    /// Why it is another entry than the configuration's default, if it is.
    pub instead: Option<String>,
}

/// What parsers of configurations may ask of a disk. Volumes are its volumes by
/// their places.
pub trait World {
    /// The volume with this UUID.
    fn by_uuid(&self, uuid: &str) -> Option<usize>;
    /// The volume with this label.
    fn by_label(&self, label: &str) -> Option<usize>;
    /// The first volume with a file of this path.
    fn by_file(&self, path: &str) -> Option<usize>;
    /// The volume of this number, or without a number that is the whole disk.
    fn by_number(&self, number: Option<u32>) -> Option<usize>;
    /// The volume's name as GRUB has it.
    fn device(&self, volume: usize) -> String;
    /// What is at a path, links followed.
    fn kind(&self, volume: usize, path: &str) -> Option<Kind>;
    /// A configuration file.
    fn text(&self, volume: usize, path: &str) -> Option<String>;
    /// Names in a directory.
    fn list(&self, volume: usize, path: &str) -> Vec<String>;
}

impl Menu {
    /// The entry to boot: `wanted`, a number, title or id as in
    /// [`default`](Self::default) or a title anywhere in the menu, else the
    /// default, else the first that boots Linux.
    pub fn choose(&self, wanted: Option<&str>) -> Result<Chosen<'_>> {
        if let Some(wanted) = wanted {
            let path = pick(&self.entries, wanted, true).or_else(|| self.anywhere(wanted));
            let Some(path) = path else {
                bail!("there is no entry \"{wanted}\" among {}", self.listing());
            };
            return match self.at(&path) {
                Some((title, Action::Linux(recipe))) => Ok(Chosen { title, recipe, instead: None }),
                Some((title, Action::Other(what))) => {
                    bail!("the entry \"{title}\" starts {what}, not a Linux kernel")
                }
                _ => bail!("\"{wanted}\" is a menu without entries"),
            };
        }
        let path =
            pick(&self.entries, &self.default, false).or_else(|| pick(&self.entries, "0", false));
        let default = path.and_then(|path| self.at(&path));
        let instead = match default {
            Some((title, Action::Linux(recipe))) => {
                return Ok(Chosen { title, recipe, instead: None });
            }
            Some((title, Action::Other(what))) => {
                format!("the default entry \"{title}\" starts {what}")
            }
            _ => "the default entry does not exist".to_owned(),
        };
        for (path, _) in self.flat() {
            if let Some((title, Action::Linux(recipe))) = self.at(&path) {
                return Ok(Chosen { title, recipe, instead: Some(instead) });
            }
        }
        bail!("no entry of its boot menu starts a Linux kernel: {}", self.listing())
    }

    /// Follows places from the outermost menu on; joins the titles.
    fn at(&self, path: &[usize]) -> Option<(String, &Action)> {
        let mut entries = &self.entries;
        let mut titles = Vec::new();
        let mut action = None;
        for &index in path {
            let entry = entries.get(index)?;
            titles.push(entry.title.as_str());
            action = Some(&entry.action);
            if let Action::Submenu(inner) = &entry.action {
                entries = inner;
            }
        }
        Some((titles.join(">"), action?))
    }

    fn anywhere(&self, wanted: &str) -> Option<Vec<usize>> {
        let mut all = self.flat().into_iter();
        all.find(|(_, entry)| entry.title == wanted || entry.id == wanted).map(|(path, _)| path)
    }

    /// All entries that are no menus, with their places.
    fn flat(&self) -> Vec<(Vec<usize>, &Entry)> {
        fn add<'a>(entries: &'a [Entry], above: &[usize], all: &mut Vec<(Vec<usize>, &'a Entry)>) {
            for (index, entry) in entries.iter().enumerate() {
                let path = [above, &[index]].concat();
                match &entry.action {
                    Action::Submenu(inner) => add(inner, &path, all),
                    _ => all.push((path, entry)),
                }
            }
        }
        let mut all = Vec::new();
        add(&self.entries, &[], &mut all);
        all
    }

    /// The entries in one line, with the numbers that choose them.
    #[must_use]
    pub fn listing(&self) -> String {
        let line = |(path, entry): (Vec<usize>, &Entry)| {
            let numbers: Vec<_> = path.iter().map(ToString::to_string).collect();
            format!("{} \"{}\"", numbers.join(">"), entry.title)
        };
        let all: Vec<_> = self.flat().into_iter().map(line).collect();
        if all.is_empty() { "no entries at all".into() } else { all.join(", ") }
    }
}

/// Places of the entry that `spec` means. Behind a sub-menu's name, what does not
/// exist is its first entry, as in GRUB, unless `strict`.
fn pick(entries: &[Entry], spec: &str, strict: bool) -> Option<Vec<usize>> {
    let (head, rest) = split_spec(spec);
    let index = match head.parse::<usize>() {
        Ok(number) => Some(number).filter(|&n| n < entries.len()),
        Err(_) if head.is_empty() => (!entries.is_empty()).then_some(0),
        Err(_) => entries.iter().position(|e| e.title == head || e.id == head),
    }?;
    let mut path = vec![index];
    if let Some(Action::Submenu(inner)) = entries.get(index).map(|e| &e.action) {
        let found = pick(inner, rest, strict);
        path.extend(found.or_else(|| pick(inner, "", strict).filter(|_| !strict))?);
    }
    Some(path)
}

/// Splits at the first `>`; a doubled one is part of a title.
fn split_spec(spec: &str) -> (String, &str) {
    let mut head = String::new();
    let mut chars = spec.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '>' && chars.next_if(|(_, next)| *next == '>').is_none() {
            return (head, spec.get(at + 1..).unwrap_or_default());
        }
        head.push(c);
    }
    (head, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(title: &str) -> Entry {
        let kernel = Named { volume: None, path: format!("/{title}") };
        let recipe = Recipe { kernel, initrds: Vec::new(), cmdline: String::new() };
        Entry { title: title.into(), id: format!("id-{title}"), action: Action::Linux(recipe) }
    }

    fn menu(default: &str) -> Menu {
        let inner = vec![linux("b"), linux("c > d")];
        let submenu =
            Entry { title: "more".into(), id: String::new(), action: Action::Submenu(inner) };
        let xen = Entry {
            title: "Xen".into(),
            id: String::new(),
            action: Action::Other("multiboot".into()),
        };
        Menu { entries: vec![linux("a"), submenu, xen], default: default.into() }
    }

    fn chosen(default: &str, wanted: Option<&str>) -> String {
        menu(default).choose(wanted).map_or_else(|e| format!("error: {e}"), |c| c.title)
    }

    #[test]
    fn defaults_are_followed() {
        assert_eq!(chosen("", None), "a");
        assert_eq!(chosen("0", None), "a");
        assert_eq!(chosen("1", None), "more>b");
        assert_eq!(chosen("1>1", None), "more>c > d");
        assert_eq!(chosen("more>c >> d", None), "more>c > d");
        assert_eq!(chosen("more>id-b", None), "more>b");
        assert_eq!(chosen("id-a", None), "a");
        assert_eq!(chosen("gone", None), "a");
        assert_eq!(chosen("7", None), "a");
        assert_eq!(chosen("1>gone", None), "more>b");
    }

    #[test]
    fn what_is_wanted_must_exist() {
        assert_eq!(chosen("0", Some("1>0")), "more>b");
        assert_eq!(chosen("0", Some("id-b")), "more>b");
        assert_eq!(chosen("0", Some("c > d")), "more>c > d");
        assert_eq!(chosen("0", Some("1")), "more>b");
        assert!(chosen("0", Some("1>2")).contains("no entry"));
        assert!(chosen("0", Some("9")).contains("1>1 \"c > d\""));
        assert!(chosen("0", Some("Xen")).contains("starts multiboot"));
    }

    #[test]
    fn a_default_that_is_no_linux_is_said() {
        let menu = menu("2");
        let chosen = menu.choose(None).unwrap();
        assert_eq!(chosen.title, "a");
        assert!(chosen.instead.unwrap().contains("Xen"));
        assert!(Menu::default().choose(None).unwrap_err().to_string().contains("no entries"));
    }
}
