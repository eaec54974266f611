//! The language of xl's configurations: assignments of strings, numbers and lists, a line
//! each or divided by semicolons (libxlu: `tools/libs/util/libxlu_cfg_l.l`, `libxlu_cfg_y.y`).
//!
//! xm read Python, of which this is what configurations mostly use. What else a Python
//! program could say is an error with its line.

use anyhow::{Result, anyhow, bail};
use std::iter::Peekable;
use std::str::CharIndices;

/// Lists inside lists; the keys there are take one or two.
const MAX_DEPTH: usize = 16;

/// What a setting may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string, or a number as it is written.
    Text(String),
    /// A list.
    List(Vec<Value>),
}

/// An assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// What is set.
    pub name: String,
    /// To what.
    pub value: Value,
    /// The line it begins on, from 1.
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a str),
    Text(String),
    Assign,
    Add,
    Comma,
    Open,
    Close,
    Semicolon,
    Newline,
    End,
}

/// Reads a configuration: its settings in their order, `+=` put together, each name once, with the
/// value that was assigned last.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub fn parse(file: &[u8]) -> Result<Vec<Setting>> {
    let text = std::str::from_utf8(file).map_err(|e| {
        let good = file.get(..e.valid_up_to()).unwrap_or_default();
        let line = 1 + good.iter().filter(|&&byte| byte == b'\n').count();
        anyhow!("line {line}: not text in UTF-8")
    })?;
    let mut parser = Parser { lexer: Lexer::new(text), token: Token::End, line: 1 };
    parser.advance()?;
    let mut settings: Vec<Setting> = Vec::new();
    while parser.token != Token::End {
        if parser.skip(&[Token::Newline, Token::Semicolon])? {
            continue;
        }
        let (setting, adds) = parser.assignment()?;
        store(&mut settings, setting, adds)?;
        if !matches!(parser.token, Token::Newline | Token::Semicolon | Token::End) {
            return Err(parser.unexpected("the end of the line"));
        }
    }
    Ok(settings)
}

fn store(settings: &mut Vec<Setting>, mut new: Setting, adds: bool) -> Result<()> {
    let Some(at) = settings.iter().position(|old| old.name == new.name) else {
        settings.push(new);
        return Ok(());
    };
    let old = settings.remove(at);
    if adds {
        new.value = match (old.value, new.value) {
            (Value::Text(old), Value::Text(new)) => Value::Text(old + &new),
            (Value::List(old), Value::List(new)) => Value::List([old, new].concat()),
            _ => bail!("line {}: += of a list and a string to {}", new.line, new.name),
        };
    }
    settings.push(new);
    Ok(())
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    line: usize,
}

impl<'a> Parser<'a> {
    /// On to the next token; the one it was at.
    fn advance(&mut self) -> Result<Token<'a>> {
        let (line, token) = self.lexer.next()?;
        self.line = line;
        Ok(std::mem::replace(&mut self.token, token))
    }

    /// Goes over tokens of these kinds; whether there was one.
    fn skip(&mut self, kinds: &[Token<'_>]) -> Result<bool> {
        let mut any = false;
        while kinds.contains(&self.token) {
            self.advance()?;
            any = true;
        }
        Ok(any)
    }

    fn unexpected(&self, wanted: &str) -> anyhow::Error {
        let found = match &self.token {
            Token::Name(name) => format!("\"{name}\""),
            Token::Text(_) => "a value".into(),
            Token::Assign => "=".into(),
            Token::Add => "+=".into(),
            Token::Comma => "a comma".into(),
            Token::Open => "[".into(),
            Token::Close => "]".into(),
            Token::Semicolon => "a semicolon".into(),
            Token::Newline => "the end of the line".into(),
            Token::End => "the end of the file".into(),
        };
        anyhow!("line {}: {wanted} was expected, there is {found}", self.line)
    }

    fn assignment(&mut self) -> Result<(Setting, bool)> {
        let line = self.line;
        let Token::Name(name) = self.token else { return Err(self.unexpected("a name")) };
        self.advance()?;
        let adds = match self.token {
            Token::Assign => false,
            Token::Add => true,
            // `import os`, `def f():`, `if x:`
            Token::Name(_) => bail!(
                "line {line}: \"{name}\" is no assignment: programs in Python, as xm took them, are not run"
            ),
            _ => return Err(self.unexpected("=")),
        };
        self.advance()?;
        let value = self.value(0)?;
        Ok((Setting { name: name.to_owned(), value, line }, adds))
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        if self.token == Token::Open {
            return self.list(depth);
        }
        if !matches!(self.token, Token::Text(_)) {
            return Err(self.unexpected("a value"));
        }
        match self.advance()? {
            Token::Text(text) => Ok(Value::Text(text)),
            _ => Err(self.unexpected("a value")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value> {
        if depth >= MAX_DEPTH {
            bail!("line {}: lists inside of lists, more than {MAX_DEPTH} deep", self.line);
        }
        self.advance()?;
        let mut list = Vec::new();
        self.skip(&[Token::Newline])?;
        while self.token != Token::Close {
            list.push(self.value(depth + 1)?);
            self.skip(&[Token::Newline])?;
            if self.token == Token::Comma {
                self.advance()?;
                self.skip(&[Token::Newline])?;
            } else if self.token != Token::Close {
                return Err(self.unexpected("a comma or ]"));
            }
        }
        self.advance()?;
        Ok(Value::List(list))
    }
}

struct Lexer<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    line: usize,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, chars: text.char_indices().peekable(), line: 1 }
    }

    /// All from `start` on that is `more`, the character at `start` being taken.
    fn word(&mut self, start: usize, more: fn(char) -> bool) -> &'a str {
        while self.chars.next_if(|&(_, c)| more(c)).is_some() {}
        let end = self.chars.peek().map_or(self.text.len(), |&(at, _)| at);
        self.text.get(start..end).unwrap_or_default()
    }

    /// The next token and its line.
    fn next(&mut self) -> Result<(usize, Token<'a>)> {
        loop {
            let line = self.line;
            let Some((at, c)) = self.chars.next() else { return Ok((line, Token::End)) };
            let token = match c {
                ' ' | '\t' | '\r' => continue,
                '#' => {
                    self.word(at, |c| c != '\n');
                    continue;
                }
                '\n' => {
                    self.line += 1;
                    Token::Newline
                }
                ',' => Token::Comma,
                '[' => Token::Open,
                ']' => Token::Close,
                ';' => Token::Semicolon,
                '=' => Token::Assign,
                '+' if self.chars.next_if(|&(_, c)| c == '=').is_some() => Token::Add,
                'a'..='z' => {
                    Token::Name(self.word(at, |c| matches!(c, '.' | '_' | '0'..='9' | 'a'..='z')))
                }
                '0'..='9' => Token::Text(
                    self.word(at, |c| matches!(c, '0'..='9' | 'a'..='f' | 'x')).to_owned(),
                ),
                '\'' | '"' => Token::Text(self.quoted(c)?),
                '+' | '-' | '.' | '(' | ')' | ':' | '*' | '%' | '{' => bail!(
                    "line {line}: '{c}' has no meaning here: programs in Python, as xm took them, are not run"
                ),
                c => bail!("line {line}: '{}' has no meaning here", c.escape_default()),
            };
            return Ok((line, token));
        }
    }

    /// The string behind a quotation mark.
    fn quoted(&mut self, mark: char) -> Result<String> {
        let line = self.line;
        let open = || anyhow!("line {line}: a string without its closing {mark}");
        let mut out = String::new();
        loop {
            let (_, c) = self.chars.next().ok_or_else(open)?;
            match c {
                '\n' => return Err(open()),
                '\\' => {
                    let (_, escaped) =
                        self.chars.next().filter(|&(_, c)| c != '\n').ok_or_else(open)?;
                    self.escape(escaped, &mut out)?;
                }
                c if c == mark => return Ok(out),
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self, c: char, out: &mut String) -> Result<()> {
        let plain = match c {
            '"' | '\'' | '\\' => c,
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            'x' => self.number(None, 16, 2, 2)?,
            // xl calls them octal and reads them as decimal numbers.
            '0'..='7' => self.number(Some(c), 10, 1, 3)?,
            // As xl does: it leaves both characters out.
            _ => return Ok(()),
        };
        out.push(plain);
        Ok(())
    }

    fn number(&mut self, first: Option<char>, base: u32, least: u32, most: u32) -> Result<char> {
        let mut value = first.and_then(|c| c.to_digit(base)).unwrap_or(0);
        let mut digits = u32::from(first.is_some());
        while digits < most {
            let Some((_, c)) = self.chars.next_if(|&(_, c)| c.is_digit(base)) else { break };
            value = value * base + c.to_digit(base).unwrap_or(0);
            digits += 1;
        }
        // One byte; those above ASCII would be half a character.
        let c = char::from_u32(value).filter(char::is_ascii);
        match c.filter(|&c| digits >= least && c != '\0') {
            Some(c) => Ok(c),
            None => bail!("line {}: no character has that number", self.line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(value: &str) -> Value {
        Value::Text(value.into())
    }

    #[test]
    fn configurations_are_read() {
        let file = b"# a guest\nname = 'web'\nmemory=0x200 ; vcpus = 2 # two\n\
            disk = [ 'a,b' ,\n\n # one more\n \"c\\\"\\x41\\065\\n\", ]\r\nvif=[]\nx.y_1 = [[1],['2']]\nextra='a'\nextra += ' b'";
        let settings = parse(file).unwrap();
        let found: Vec<_> = settings.iter().map(|s| (s.name.as_str(), &s.value, s.line)).collect();
        let (disk, deep) = (
            Value::List(vec![text("a,b"), text("c\"AA\n")]),
            Value::List(vec![Value::List(vec![text("1")]), Value::List(vec![text("2")])]),
        );
        let expected = [
            ("name", &text("web"), 2),
            ("memory", &text("0x200"), 3),
            ("vcpus", &text("2"), 3),
            ("disk", &disk, 4),
            ("vif", &Value::List(vec![]), 8),
            ("x.y_1", &deep, 9),
            ("extra", &text("a b"), 11),
        ];
        assert_eq!(found, expected);
        assert_eq!(parse(b"").unwrap(), []);
        assert_eq!(parse(b"# nothing").unwrap(), []);
        assert_eq!(parse(b"a=1\na=2").unwrap()[0].value, text("2"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (file, line, said) in [
            (&b"a=1\nb"[..], 2, "= was expected, there is the end of the file"),
            (b"a 1", 1, "= was expected, there is a value"),
            (b"import os\n", 1, "Python"),
            (b"\n\nmemory = 2 * 512", 3, "Python"),
            (b"a = (1)", 1, "Python"),
            (b"a = \"b\nc\"", 1, "closing"),
            (b"a = 'b", 1, "closing"),
            (b"a = 'b\\", 1, "closing"),
            (b"a = '\\xg'", 1, "no character"),
            (b"a = '\\377'", 1, "no character"),
            (b"a = [ 'b'\n 'c' ]", 2, "a comma or ]"),
            (b"a = [ 'b',\n", 2, "a value was expected, there is the end of the file"),
            (b"a = [ , ]", 1, "a value was expected, there is a comma"),
            (b"a = ]", 1, "a value was expected, there is ]"),
            (b"a =\n", 1, "a value was expected, there is the end of the line"),
            (b"a = 1 2", 1, "the end of the line was expected"),
            (b"A = 1", 1, "'A' has no meaning"),
            (b"a = 1\nb = \xff", 2, "UTF-8"),
            (b"a = 1\na += [1]", 2, "+= of a list and a string"),
            (b"a = b", 1, "a value was expected, there is \"b\""),
        ] {
            let error = parse(file).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("line {line}: ")) && error.contains(said),
                "{error}"
            );
        }
        let deep = format!("a = {}", "[".repeat(100_000));
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().contains("deep"));
    }

    proptest! {
        #[test]
        fn any_bytes(file in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&file);
        }

        #[test]
        fn any_configuration(file in "([a-z]{1,3}|=|\\+=|'[a-z\\\\]*'|[0-9]|\\[|\\]|,|;|\n|#| ){0,40}") {
            for setting in parse(file.as_bytes()).unwrap_or_default() {
                prop_assert!(setting.line >= 1);
            }
        }

        #[test]
        fn strings_come_back(strings in prop::collection::vec("[ -~]{0,20}", 0..5)) {
            let quoted: Vec<String> =
                strings.iter().map(|s| format!("'{}'", s.replace('\\', "\\\\").replace('\'', "\\'"))).collect();
            let file = format!("list = [ {} ]", quoted.join(", "));
            let settings = parse(file.as_bytes()).unwrap();
            let expected = Value::List(strings.into_iter().map(Value::Text).collect());
            prop_assert_eq!(&settings[0].value, &expected);
        }
    }
}
