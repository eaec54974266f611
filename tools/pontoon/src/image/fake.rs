//! A disk for the parsers' tests: files by volume and path.

use super::fs::Kind;
use super::menu::{Action, Entry, Menu, Recipe, World};

/// Volumes: number, UUID, label, files.
pub struct Fake(pub Vec<FakeVolume>);

pub struct FakeVolume {
    pub number: Option<u32>,
    pub uuid: &'static str,
    pub label: &'static str,
    pub files: Vec<(&'static str, &'static str)>,
}

impl Fake {
    /// A GPT disk: /boot on partition 1, the root file system on partition 2.
    pub fn new(
        boot: &[(&'static str, &'static str)],
        root: &[(&'static str, &'static str)],
    ) -> Self {
        let volume = |number, uuid, label, files: &[(&'static str, &'static str)]| FakeVolume {
            number: Some(number),
            uuid,
            label,
            files: files.to_vec(),
        };
        Self(vec![volume(1, "b007", "BOOT", boot), volume(2, "4007", "root", root)])
    }
}

impl World for Fake {
    fn by_uuid(&self, uuid: &str) -> Option<usize> {
        self.0.iter().position(|v| v.uuid == uuid)
    }
    fn by_label(&self, label: &str) -> Option<usize> {
        self.0.iter().position(|v| v.label == label)
    }
    fn by_file(&self, path: &str) -> Option<usize> {
        (0..self.0.len()).find(|&v| self.text(v, path).is_some())
    }
    fn by_number(&self, number: Option<u32>) -> Option<usize> {
        self.0.iter().position(|v| v.number == number)
    }
    fn device(&self, volume: usize) -> String {
        format!("hd0,gpt{}", volume + 1)
    }
    fn kind(&self, volume: usize, path: &str) -> Option<Kind> {
        self.text(volume, path).map(|text| Kind::File(text.len() as u64))
    }
    fn text(&self, volume: usize, path: &str) -> Option<String> {
        let (_, text) = self.0[volume].files.iter().find(|(name, _)| *name == path)?;
        Some((*text).to_owned())
    }
    fn list(&self, volume: usize, path: &str) -> Vec<String> {
        let below = |name: &str| Some(name.strip_prefix(path)?.strip_prefix('/')?.to_owned());
        let mut names: Vec<_> = self.0[volume].files.iter().filter_map(|(n, _)| below(n)).collect();
        names.sort();
        names
    }
}

/// The recipe of an entry that has one.
pub fn recipe(entry: &Entry) -> &Recipe {
    match &entry.action {
        Action::Linux(recipe) => recipe,
        other => panic!("{}: {other:?}", entry.title),
    }
}

/// What the default of a menu boots, in a line: title, files with their volumes'
/// places, command line.
pub fn default_of(menu: &Menu) -> String {
    let chosen = menu.choose(None).unwrap();
    let named = |n: &super::menu::Named| match n.volume {
        Some(volume) => format!("{volume}:{}", n.path),
        None => format!("?:{}", n.path),
    };
    let initrds: Vec<_> = chosen.recipe.initrds.iter().map(named).collect();
    format!(
        "{} | {} | {} | {}",
        chosen.title,
        named(&chosen.recipe.kernel),
        initrds.join(","),
        chosen.recipe.cmdline
    )
}
