//! Boot Loader Specification entries: one small file each, in `loader/entries`
//! (UAPI Group Specifications, 1).

use super::fs::Kind;
use super::menu::{Action, Entry, Named, Recipe, World};
use super::version;

/// Where the files lie: on a /boot partition, on a root file system.
const PLACES: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];
/// Files beyond this many are not read.
const MAX_FILES: usize = 500;

/// The entries on `volume`, newest first. `variable` gives what GRUB's variables
/// hold: Fedora uses some in its entries.
pub fn entries(world: &dyn World, volume: usize, variable: &dyn Fn(&str) -> String) -> Vec<Entry> {
    for place in PLACES {
        let mut names = world.list(volume, place);
        names.retain(|name| name.ends_with(".conf"));
        names.truncate(MAX_FILES);
        names.sort_by(|a, b| version::compare(b, a));
        let read = |name: &String| {
            let path = format!("{place}/{name}");
            if !matches!(world.kind(volume, &path), Some(Kind::File(_))) {
                return None;
            }
            let text = world.text(volume, &path)?;
            entry(&text, name.trim_end_matches(".conf"), volume, variable)
        };
        let entries: Vec<_> = names.iter().filter_map(read).collect();
        if !entries.is_empty() {
            return entries;
        }
    }
    Vec::new()
}

fn entry(text: &str, id: &str, volume: usize, variable: &dyn Fn(&str) -> String) -> Option<Entry> {
    let (mut title, mut options) = (String::new(), Vec::new());
    let (mut kernel, mut initrds) = (None, Vec::new());
    let named = |path: &str| Named { volume: Some(volume), path: path.to_owned() };
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut title),
            "linux" => kernel = Some(named(value)),
            "initrd" => {
                initrds.extend(expand(value, variable).split_whitespace().map(named));
            }
            "options" => options.push(expand(value, variable)),
            _ => {}
        }
    }
    if title.is_empty() {
        id.clone_into(&mut title);
    }
    let cmdline = options.join(" ").trim().to_owned();
    let action = match kernel {
        Some(kernel) => Action::Linux(Recipe { kernel, initrds, cmdline }),
        None => Action::Other("an EFI program".into()),
    };
    Some(Entry { title, id: id.to_owned(), action })
}

/// Puts in what `$name` and `${name}` hold.
fn expand(text: &str, variable: &dyn Fn(&str) -> String) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (name, behind) = match after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            Some(braced) => braced,
            None => {
                let ours = |c: char| c.is_ascii_alphanumeric() || c == '_';
                after.split_at(after.find(|c| !ours(c)).unwrap_or(after.len()))
            }
        };
        if name.is_empty() {
            out.push('$');
        } else {
            out.push_str(&variable(name));
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}
