//! Words of GRUB's scripting language (GRUB manual, "Writing full configuration
//! files directly").

use super::ScriptError;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// As it stands.
    Text { text: String, quoted: bool },
    /// A variable's value.
    Variable { name: String, quoted: bool },
}

/// A word: its parts, joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word(pub Vec<Part>);

impl Word {
    /// The word as it stands if it is neither quoted nor holds variables: only
    /// such words are keywords.
    pub fn keyword(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Text { text, quoted: false }] => Some(text),
            _ => None,
        }
    }

    fn push(&mut self, c: char, quoted: bool) {
        match self.0.last_mut() {
            Some(Part::Text { text, quoted: same }) if *same == quoted => text.push(c),
            _ => self.0.push(Part::Text { text: c.into(), quoted }),
        }
    }
}

/// What a script is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A word.
    Word(Word),
    /// The end of a line, or a semicolon.
    End,
    /// An opening brace.
    Open,
    /// A closing brace.
    Close,
}

/// Splits `text` into tokens with the lines they are on.
pub fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ScriptError> {
    let mut lexer =
        Lexer { chars: text.chars().peekable(), line: 1, word: None, tokens: Vec::new() };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    /// The word in the making; an empty one was quoted.
    word: Option<Word>,
    tokens: Vec<(usize, Token)>,
}

impl Lexer<'_> {
    fn run(&mut self) -> Result<(), ScriptError> {
        while let Some(c) = self.next() {
            match c {
                '\n' | ';' => self.emit(Token::End, usize::from(c == '\n')),
                '{' => self.emit(Token::Open, 0),
                '}' => self.emit(Token::Close, 0),
                '#' if self.word.is_none() => {
                    while self.chars.peek().is_some_and(|&c| c != '\n') {
                        self.next();
                    }
                }
                '\'' => self.single_quoted()?,
                '"' => self.double_quoted()?,
                '\\' => match self.next() {
                    // A line that goes on.
                    Some('\n') | None => {}
                    // An escaped letter is no keyword any more.
                    Some(c) => self.word().push(c, true),
                },
                '$' => self.variable(false)?,
                c if c.is_whitespace() => self.end_word(0),
                c => self.word().push(c, false),
            }
        }
        self.end_word(0);
        Ok(())
    }

    fn next(&mut self) -> Option<char> {
        let c = self.chars.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    fn word(&mut self) -> &mut Word {
        self.word.get_or_insert_default()
    }

    fn end_word(&mut self, lines_passed: usize) {
        if let Some(word) = self.word.take() {
            self.tokens.push((self.line - lines_passed, Token::Word(word)));
        }
    }

    fn emit(&mut self, token: Token, lines_passed: usize) {
        self.end_word(lines_passed);
        self.tokens.push((self.line - lines_passed, token));
    }

    fn unterminated(line: usize, what: &'static str) -> ScriptError {
        ScriptError { line, what }
    }

    fn single_quoted(&mut self) -> Result<(), ScriptError> {
        let line = self.line;
        self.word().0.push(Part::Text { text: String::new(), quoted: true });
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(c) => self.word().push(c, true),
                None => return Err(Self::unterminated(line, "a quote that does not end")),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<(), ScriptError> {
        let line = self.line;
        self.word().0.push(Part::Text { text: String::new(), quoted: true });
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('$') => self.variable(true)?,
                Some('\\') => match self.next() {
                    Some('\n') => {}
                    Some(c @ ('$' | '"' | '\\')) => self.word().push(c, true),
                    Some(c) => {
                        self.word().push('\\', true);
                        self.word().push(c, true);
                    }
                    None => return Err(Self::unterminated(line, "a quote that does not end")),
                },
                Some(c) => self.word().push(c, true),
                None => return Err(Self::unterminated(line, "a quote that does not end")),
            }
        }
    }

    /// Behind a `$`.
    fn variable(&mut self, quoted: bool) -> Result<(), ScriptError> {
        let line = self.line;
        let mut name = String::new();
        match self.chars.peek().copied() {
            Some('{') => {
                self.next();
                loop {
                    match self.next() {
                        Some('}') => break,
                        Some(c) if c != '\n' => name.push(c),
                        _ => return Err(Self::unterminated(line, "a ${ that does not end")),
                    }
                }
            }
            Some(c @ ('?' | '#' | '*' | '@')) => {
                self.next();
                name.push(c);
            }
            Some(c) if c.is_ascii_digit() => {
                self.next();
                name.push(c);
            }
            // A string to translate is a string.
            Some('"') if !quoted => return Ok(()),
            _ => {
                let ours = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
                while let Some(c) = self.chars.next_if(ours) {
                    name.push(c);
                }
                if name.is_empty() {
                    self.word().push('$', quoted);
                    return Ok(());
                }
            }
        }
        self.word().0.push(Part::Variable { name, quoted });
        Ok(())
    }
}
