//! GRUB's `test`, also written `[`.

use super::eval::Script;
use crate::image::fs::Kind;
use crate::image::version;
use std::cmp::Ordering;

/// Parentheses and negations beyond this are no configuration.
const MAX_DEPTH: u32 = 32;

/// Whether the condition `args` holds. One that cannot be read does not.
pub(super) fn test(script: &Script<'_>, args: &[String]) -> bool {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let args = match args.as_slice() {
        [inner @ .., "]"] => inner,
        all => all,
    };
    let mut condition = Condition { script, args, at: 0, depth: 0 };
    condition.any().unwrap_or(false) && condition.at == args.len()
}

struct Condition<'a> {
    script: &'a Script<'a>,
    args: &'a [&'a str],
    at: usize,
    depth: u32,
}

impl<'a> Condition<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let arg = self.args.get(self.at).copied();
        self.at += usize::from(arg.is_some());
        arg
    }

    fn peek(&self, ahead: usize) -> Option<&'a str> {
        self.args.get(self.at + ahead).copied()
    }

    fn skip(&mut self, word: &str) -> bool {
        let there = self.peek(0) == Some(word);
        self.at += usize::from(there);
        there
    }

    fn any(&mut self) -> Option<bool> {
        let mut holds = self.all()?;
        while self.skip("-o") {
            let next = self.all()?;
            holds |= next;
        }
        Some(holds)
    }

    fn all(&mut self) -> Option<bool> {
        let mut holds = self.one()?;
        // Two conditions in a row must both hold, too.
        while self.peek(0).is_some_and(|w| !matches!(w, "-o" | ")")) {
            self.skip("-a");
            let next = self.one()?;
            holds &= next;
        }
        Some(holds)
    }

    fn one(&mut self) -> Option<bool> {
        if let Some(holds) = self.comparison() {
            return Some(holds);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let holds = match self.next()? {
            "!" => self.one().map(|holds| !holds),
            "(" => {
                let holds = self.any();
                self.skip(")").then_some(holds)?
            }
            "-n" => Some(self.next().is_some_and(|w| !w.is_empty())),
            "-z" => Some(self.next().is_none_or(str::is_empty)),
            what @ ("-e" | "-f" | "-d" | "-s") => {
                let file = self.script.file(self.next()?);
                let volume = file.volume.unwrap_or(self.script.home);
                let kind = self.script.world.kind(volume, &file.path);
                Some(match what {
                    "-e" => kind.is_some(),
                    "-d" => kind == Some(Kind::Dir),
                    "-s" => matches!(kind, Some(Kind::File(1..))),
                    _ => matches!(kind, Some(Kind::File(_))),
                })
            }
            word => Some(!word.is_empty()),
        };
        self.depth -= 1;
        holds
    }

    /// Two words with an operator between them.
    fn comparison(&mut self) -> Option<bool> {
        let (a, operator, b) = (self.peek(0)?, self.peek(1)?, self.peek(2)?);
        let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
        let numbers = number(a).cmp(&number(b));
        let holds = match operator {
            "=" | "==" => a == b,
            "!=" => a != b,
            "<" => a < b,
            "<=" => a <= b,
            ">" => a > b,
            ">=" => a >= b,
            "-eq" => numbers == Ordering::Equal,
            "-ne" => numbers != Ordering::Equal,
            "-lt" => numbers == Ordering::Less,
            "-le" => numbers != Ordering::Greater,
            "-gt" => numbers == Ordering::Greater,
            "-ge" => numbers != Ordering::Less,
            "-pgt" => version::compare(a, b) == Ordering::Greater,
            "-plt" => version::compare(a, b) == Ordering::Less,
            _ => return None,
        };
        self.at += 3;
        Some(holds)
    }
}
