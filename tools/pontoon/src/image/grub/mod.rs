//! GRUB 2: `grub.cfg` is a script, and is run as one.
//!
//! The script is run far enough to know the menu: variables, conditions,
//! functions, further files, `search` and the environment block are followed;
//! what has to do with screens, modules and keyboards is not. Then each entry's
//! block is run to see what it would start. A command that is not known fails,
//! as it does in a GRUB without its module.
//!
//! `$grub_platform` is `xen`: a PV guest's GRUB would be PvGrub.

mod commands;
mod eval;
mod lex;
mod parse;
mod test_command;

use super::menu::{Menu, World};
use std::fmt;

/// What is wrong with a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptError {
    /// On which line.
    pub line: usize,
    /// What.
    pub what: &'static str,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ScriptError {}

/// The menu of the script `text`, which is `path` on `volume`.
pub fn menu(text: &str, world: &dyn World, volume: usize, path: &str) -> Result<Menu, ScriptError> {
    eval::run(parse::parse(text)?, world, volume, path)
}

/// Variables of an environment block: 1024 bytes, a line each, backslashes
/// escape line ends and themselves (GRUB manual, "The GRUB environment block").
#[must_use]
pub fn environment(block: &str) -> Vec<(String, String)> {
    if !block.starts_with("# GRUB Environment Block\n") {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut line = String::new();
    let mut chars = block.chars();
    let mut take = |line: &mut String| {
        if let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            found.push((name.to_owned(), value.to_owned()));
        }
        line.clear();
    };
    while let Some(c) = chars.next() {
        match c {
            '\n' => take(&mut line),
            '\\' => line.extend(chars.next()),
            c => line.push(c),
        }
    }
    found
}

#[cfg(test)]
mod tests;
