//! Reading a test guest's console.

use pontoon::outcome::Outcome;

/// A guest's console, cut into what the init script marked.
#[derive(Clone, Debug, Default)]
pub struct Transcript {
    /// All of it, for messages.
    pub text: String,
    marks: Vec<(String, String)>,
    /// The kernel log at warning level and above, raw lines.
    pub log: Option<Vec<String>>,
}

impl Transcript {
    /// Reads an outcome's console.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Self {
        Self::parse(&outcome.console_text())
    }

    /// Reads console text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut me = Self { text: text.to_owned(), ..Self::default() };
        let mut open = false;
        for line in text.lines() {
            match line.strip_prefix("@@ ") {
                Some("log begin") => {
                    open = true;
                    me.log = Some(Vec::new());
                }
                Some("log end") => open = false,
                Some(mark) => {
                    let (name, value) = mark.split_once(' ').unwrap_or((mark, ""));
                    me.marks.push((name.to_owned(), value.trim().to_owned()));
                }
                None if open => me.log.get_or_insert_default().push(line.to_owned()),
                None => {}
            }
        }
        // A section without its end was cut off: not to be trusted.
        if open {
            me.log = None;
        }
        me
    }

    /// What the guest said about `name`.
    #[must_use]
    pub fn mark(&self, name: &str) -> Option<&str> {
        self.marks.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Bytes of ring 0's stacks that were used at most, of those there are: with `pontoon.log=info`, when
    /// the guest has ended.
    #[must_use]
    pub fn stack(&self) -> Option<(u64, u64)> {
        let mut lines = self.text.lines();
        let said = lines.find_map(|line| line.trim().strip_prefix("pontoon: stack: "))?;
        let (used, rest) = said.split_once(" of ")?;
        Some((used.parse().ok()?, rest.split(' ').next()?.parse().ok()?))
    }

    /// The last lines of the console.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines: Vec<_> = self.text.lines().collect();
        lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_log_are_found() {
        let t = Transcript::parse(
            "noise\n@@ init 6.1\n@@ log begin\n<4>[ 1.0] x\n@@ log end\n@@ end\n",
        );
        assert_eq!(t.mark("init"), Some("6.1"));
        assert_eq!(t.mark("end"), Some(""));
        assert_eq!(t.mark("stress"), None);
        assert_eq!(t.log, Some(vec!["<4>[ 1.0] x".to_owned()]));
    }

    #[test]
    fn what_is_said_of_stacks() {
        let t = Transcript::parse("pontoon: stack: 9656 of 16384 bytes used at most\r\n");
        assert_eq!(t.stack(), Some((9656, 16384)));
        assert_eq!(Transcript::parse("pontoon: stack: some\n").stack(), None);
    }

    #[test]
    fn a_log_cut_off_is_none() {
        assert_eq!(Transcript::parse("@@ log begin\n<4>[ 1.0] x\n").log, None);
    }
}
