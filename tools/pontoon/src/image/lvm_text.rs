//! The text of LVM2's metadata: sections of settings, which are strings, numbers or lists.

use anyhow::{Result, bail, ensure};

/// Sections in sections; there are four.
const MAX_DEPTH: usize = 16;

/// Something in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A number. None there is below zero matters here.
    Number(u64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A section.
    Section(Vec<(String, Node)>),
}

impl Node {
    /// A section's part of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Section(parts) = self else { return None };
        parts.iter().find(|(other, _)| other == name).map(|(_, node)| node)
    }

    /// The number of that name.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Self::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// The string of that name.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Self::as_text)
    }

    /// What a list holds; nothing, if it is none.
    #[must_use]
    pub fn items(&self) -> &[Self] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    /// The strings in the list of that name.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<&str> {
        self.get(name)
            .map(Self::items)
            .unwrap_or_default()
            .iter()
            .filter_map(Self::as_text)
            .collect()
    }

    fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The sections in a section.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Self)> {
        let parts: &[(String, Self)] = match self {
            Self::Section(parts) => parts,
            _ => &[],
        };
        let is_section = |(_, node): &&(String, Self)| matches!(node, Self::Section(_));
        parts.iter().filter(is_section).map(|(name, node)| (name.as_str(), node))
    }
}

/// Reads a text: the section without a name that all of it is.
///
/// # Errors
/// It is not of this form.
pub fn parse(text: &[u8]) -> Result<Node> {
    let mut reader = Reader { rest: text };
    let root = reader.section(0)?;
    reader.blank();
    ensure!(reader.rest.iter().all(|&byte| byte == 0), "there is a }} too many");
    Ok(root)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    /// Over white space and comments.
    fn blank(&mut self) {
        loop {
            self.rest = self.rest.trim_ascii_start();
            if self.rest.first() != Some(&b'#') {
                return;
            }
            let end = self.rest.iter().position(|&b| b == b'\n').unwrap_or(self.rest.len());
            self.rest = self.rest.get(end..).unwrap_or_default();
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.blank();
        self.rest.first().copied().filter(|&byte| byte != 0)
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.rest = self.rest.get(1..).unwrap_or_default();
        }
        found
    }

    fn word(&mut self) -> String {
        self.blank();
        let part = |b: &u8| b.is_ascii_alphanumeric() || b"_.+-/".contains(b);
        let end = self.rest.iter().position(|b| !part(b)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        String::from_utf8_lossy(word).into_owned()
    }

    /// A section's parts, up to its closing brace or the end.
    fn section(&mut self, depth: usize) -> Result<Node> {
        ensure!(depth < MAX_DEPTH, "sections are more than {MAX_DEPTH} deep");
        let mut parts = Vec::new();
        while self.peek().is_some_and(|byte| byte != b'}') {
            let name = self.word();
            ensure!(!name.is_empty(), "a name was expected");
            if self.take(b'{') {
                let section = self.section(depth + 1)?;
                ensure!(self.take(b'}'), "the section {name} has no end");
                parts.push((name, section));
            } else if self.take(b'=') {
                let value = self.value(depth + 1)?;
                parts.push((name, value));
            } else {
                bail!("{name} has no value");
            }
        }
        Ok(Node::Section(parts))
    }

    fn value(&mut self, depth: usize) -> Result<Node> {
        ensure!(depth < MAX_DEPTH, "lists are more than {MAX_DEPTH} deep");
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'[') => {
                self.take(b'[');
                let mut list = Vec::new();
                while !self.take(b']') {
                    list.push(self.value(depth + 1)?);
                    ensure!(self.take(b',') || self.peek() == Some(b']'), "a list has no end");
                }
                Ok(Node::List(list))
            }
            _ => {
                let word = self.word();
                let digits = word.strip_prefix('-').unwrap_or(&word);
                // Whole ones matter; a float is as good as none.
                let number = digits.split('.').next().unwrap_or_default().parse();
                let Ok(number) = number else { bail!("\"{word}\" is no value") };
                Ok(Node::Number(if word.starts_with('-') { 0 } else { number }))
            }
        }
    }

    fn string(&mut self) -> Result<Node> {
        let mut out = Vec::new();
        let mut bytes = self.rest.iter().enumerate().skip(1);
        while let Some((at, &byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Ok(Node::Text(String::from_utf8_lossy(&out).into_owned()));
                }
                b'\\' => out.extend(bytes.next().map(|(_, byte)| *byte)),
                byte => out.push(byte),
            }
        }
        bail!("a string has no end")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_are_read() {
        let root =
            parse(b"a = 1 # one\nb { c = [ \"x\", \"y\\\"\" ] d = [] e { f = -3 } }\ng = 1.5\n\0")
                .unwrap();
        assert_eq!(root.number("a"), Some(1));
        let b = root.get("b").unwrap();
        assert_eq!(b.list("c"), ["x", "y\""]);
        assert!(b.list("d").is_empty() && b.list("none").is_empty());
        assert_eq!(b.sections().map(|(name, _)| name).collect::<Vec<_>>(), ["e"]);
        for bad in ["a", "a =", "a = {", "a { b = 1", "a = [1 2]", "a = \"x", "a = x", "= 1", "}"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse("a{".repeat(100_000).as_bytes()).is_err());
        assert!(parse(format!("a={}", "[".repeat(100_000)).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_text(text in "([a-z]|=|\\{|\\}|\\[|\\]|,|\"|\\\\|[0-9]|\n|#| ){0,60}") {
            let _ = parse(text.as_bytes());
        }
    }
}
