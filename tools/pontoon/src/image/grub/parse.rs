//! Statements of GRUB's scripting language.

use super::ScriptError;
use super::lex::{Token, Word, tokens};
use std::rc::Rc;

/// Nesting beyond this is no configuration.
const MAX_DEPTH: usize = 32;

/// Statements, one after the other.
pub type Block = Vec<Statement>;

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// A command, and the block in braces that may follow its words.
    Command { words: Vec<Word>, block: Option<Rc<Block>> },
    /// Conditions and what they guard; what is left.
    If { arms: Vec<(Block, Block)>, otherwise: Block },
    /// `for name in words`.
    For { name: String, words: Vec<Word>, body: Block },
    /// `while`, or `until`.
    While { until: bool, condition: Block, body: Block },
    /// A function's definition.
    Function { name: String, body: Rc<Block> },
}

/// Parses a script.
pub fn parse(text: &str) -> Result<Block, ScriptError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let block = parser.block(&[])?;
    match parser.tokens.get(parser.at) {
        None => Ok(block),
        Some((line, _)) => Err(ScriptError { line: *line, what: "a brace too many" }),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn error<T>(&self, what: &'static str) -> Result<T, ScriptError> {
        let line = self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(line, _)| *line);
        Err(ScriptError { line, what })
    }

    fn keyword(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => word.keyword(),
            _ => None,
        }
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
    }

    /// Statements up to one of the keywords `until`, a closing brace or the end,
    /// which are left.
    fn block(&mut self, until: &[&str]) -> Result<Block, ScriptError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.error("blocks nested too deeply");
        }
        let mut block = Vec::new();
        loop {
            self.skip_ends();
            match self.peek() {
                None | Some(Token::Close) => break,
                _ if self.keyword().is_some_and(|k| until.contains(&k)) => break,
                _ => block.push(self.statement()?),
            }
        }
        self.depth -= 1;
        Ok(block)
    }

    fn statement(&mut self) -> Result<Statement, ScriptError> {
        match self.keyword() {
            Some("if") => self.conditional(),
            Some("for") => self.each(),
            Some(word @ ("while" | "until")) => {
                let until = word == "until";
                self.at += 1;
                let condition = self.block(&["do"])?;
                self.expect("do")?;
                let body = self.block(&["done"])?;
                self.expect("done")?;
                Ok(Statement::While { until, condition, body })
            }
            Some("function") => {
                self.at += 1;
                let name = self.name()?;
                self.skip_ends();
                let body = Rc::new(self.braces()?);
                Ok(Statement::Function { name, body })
            }
            Some("then" | "elif" | "else" | "fi" | "do" | "done") => {
                self.error("a keyword out of place")
            }
            _ => self.command(),
        }
    }

    fn command(&mut self) -> Result<Statement, ScriptError> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        let block = match self.peek() {
            Some(Token::Open) => Some(Rc::new(self.braces()?)),
            _ => None,
        };
        Ok(Statement::Command { words, block })
    }

    fn braces(&mut self) -> Result<Block, ScriptError> {
        if self.peek() != Some(&Token::Open) {
            return self.error("an opening brace is missing");
        }
        self.at += 1;
        let block = self.block(&[])?;
        if self.peek() != Some(&Token::Close) {
            return self.error("a closing brace is missing");
        }
        self.at += 1;
        Ok(block)
    }

    fn conditional(&mut self) -> Result<Statement, ScriptError> {
        let mut arms = Vec::new();
        let mut otherwise = Vec::new();
        // Past "if", then past each "elif".
        self.at += 1;
        loop {
            let condition = self.block(&["then"])?;
            self.expect("then")?;
            arms.push((condition, self.block(&["elif", "else", "fi"])?));
            match self.keyword() {
                Some("elif") => self.at += 1,
                Some("else") => {
                    self.at += 1;
                    otherwise = self.block(&["fi"])?;
                    break;
                }
                _ => break,
            }
        }
        self.expect("fi")?;
        Ok(Statement::If { arms, otherwise })
    }

    fn each(&mut self) -> Result<Statement, ScriptError> {
        self.at += 1;
        let name = self.name()?;
        self.expect("in")?;
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        self.skip_ends();
        self.expect("do")?;
        let body = self.block(&["done"])?;
        self.expect("done")?;
        Ok(Statement::For { name, words, body })
    }

    fn name(&mut self) -> Result<String, ScriptError> {
        let Some(name) = self.keyword().map(str::to_owned) else {
            return self.error("a name is missing");
        };
        self.at += 1;
        Ok(name)
    }

    fn expect(&mut self, keyword: &'static str) -> Result<(), ScriptError> {
        if self.keyword() != Some(keyword) {
            return self.error(match keyword {
                "then" => "\"then\" is missing",
                "fi" => "\"fi\" is missing",
                "in" => "\"in\" is missing",
                "do" => "\"do\" is missing",
                _ => "\"done\" is missing",
            });
        }
        self.at += 1;
        Ok(())
    }
}
