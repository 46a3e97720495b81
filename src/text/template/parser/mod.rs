//! Tokens → tree, as jinja2's parser makes it, with `break` and `continue` and `{% generation %}`.
//!
//! The parser calls itself for what is nested, and so does everything that walks its tree; [`MOST_NESTED`]
//! keeps them all on the stack of a trial's thread. What is only long (`a + b + c`, `a.b.c`, `elif`) is a list.

mod expressions;

use std::sync::Arc;

use super::TemplateError;
use super::ast::{For, Frame, Kind, Macro, Parameter, Program, Slot, Step, StepKind, Stmt, StmtKind, Target};
use super::lexer::{Token, tokenize};

/// Brackets in brackets, and blocks in blocks: CPython compiles 100 brackets, and 20 loops, at most, and templates that
/// people write have a dozen. Each takes up to 17 KB of stack in a build without optimisation, and a trial has 1 MiB.
const MOST_NESTED: usize = 40;

const TAGS_OF_OTHERS: [&str; 6] = ["include", "import", "from", "extends", "block", "autoescape"];

pub(super) fn parse(source: &str) -> Result<Program, TemplateError> {
    let tokens = tokenize(source)?;
    let mut parser = Parser { tokens, at: 0, depth: 0, program: Program::default() };
    let body = parser.body(&[])?;
    parser.program.body = body;
    Ok(parser.program)
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
    depth: usize,
    program: Program,
}

type Result<T, E = TemplateError> = std::result::Result<T, E>;

impl Parser {
    // --- tokens

    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn look(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn is_op(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Operator(it) if *it == operator)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Name(it) if it == word)
    }

    fn skip_op(&mut self, operator: &str) -> bool {
        let is_there = self.is_op(operator);
        if is_there {
            self.next();
        }
        is_there
    }

    fn skip_word(&mut self, word: &str) -> bool {
        let is_there = self.is_word(word);
        if is_there {
            self.next();
        }
        is_there
    }

    fn expect_op(&mut self, operator: &str) -> Result<()> {
        match self.skip_op(operator) {
            true => Ok(()),
            false => self.unexpected(&format!("{operator:?}")),
        }
    }

    fn expect(&mut self, token: &Token, what: &str) -> Result<()> {
        if self.peek() == token {
            self.next();
            return Ok(());
        }
        self.unexpected(what)
    }

    fn name(&mut self) -> Result<Arc<str>> {
        match self.peek() {
            Token::Name(name) => {
                let name = name.as_str().into();
                self.next();
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T> {
        let seen = match self.peek() {
            Token::End => "the template ends".to_owned(),
            Token::Name(name) => format!("there is {name:?}"),
            Token::Operator(operator) => format!("there is {operator:?}"),
            Token::Str(_) => "there is a string".to_owned(),
            Token::Int(_) | Token::Float(_) => "there is a number".to_owned(),
            Token::BlockEnd | Token::VariableEnd => "the tag ends".to_owned(),
            Token::BlockBegin | Token::VariableBegin | Token::Data(_) => "a tag begins".to_owned(),
        };
        self.fail(format!("expected {expected}, but {seen}"))
    }

    fn fail<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(TemplateError::new(self.line(), reason))
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > MOST_NESTED {
            return self
                .fail(format!("nested more than {MOST_NESTED} deep: take it apart with `set` or a macro"));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    // --- statements

    /// Statements up to one of the end tags, whose name is the next token then.
    fn body(&mut self, ends: &[&str]) -> Result<Vec<Stmt>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Data(text) => body.push(Stmt { line, kind: StmtKind::Data(text.into()) }),
                Token::VariableBegin => {
                    let printed = self.tuple(true, &[])?;
                    self.expect(&Token::VariableEnd, "\"}}\"")?;
                    body.push(Stmt { line, kind: StmtKind::Print(printed) });
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_word(end)) {
                        return Ok(body);
                    }
                    self.nested(|parser| parser.statement(&mut body))?;
                    self.expect(&Token::BlockEnd, "\"%}\"")?;
                }
                Token::End if ends.is_empty() => return Ok(body),
                Token::End => {
                    return self.fail(format!("the template ends before {{% {} %}}", ends[ends.len() - 1]));
                }
                other => unreachable!("{other:?} outside of a tag"),
            }
        }
    }

    /// The rest of an opening tag and its body; the name of the end tag is skipped, and returned.
    fn block(&mut self, ends: &[&'static str]) -> Result<(Vec<Stmt>, &'static str)> {
        self.skip_op(":");
        self.expect(&Token::BlockEnd, "\"%}\"")?;
        let body = self.body(ends)?;
        let end = ends.iter().find(|end| self.is_word(end)).expect("the body ended there");
        self.next();
        Ok((body, end))
    }

    fn statement(&mut self, body: &mut Vec<Stmt>) -> Result<()> {
        let line = self.line();
        let tag = self.name()?;
        let kind = match &*tag {
            "if" => self.parse_if()?,
            "for" => self.parse_for(line)?,
            "set" => self.parse_set()?,
            "with" => self.parse_with()?,
            "macro" => self.parse_macro(line)?,
            "call" => self.parse_call_block(line)?,
            "filter" => {
                let filters = self.filters(true)?;
                StmtKind::FilterBlock {
                    filters,
                    body: self.block(&["endfilter"])?.0,
                    frame: Frame::default(),
                }
            }
            "generation" => {
                let body = self.block(&["endgeneration"])?.0;
                StmtKind::Generation(self.add_macro(line, "caller".into(), Vec::new(), body))
            }
            "print" => {
                while *self.peek() != Token::BlockEnd {
                    let printed = self.expression()?;
                    body.push(Stmt { line, kind: StmtKind::Print(printed) });
                    if *self.peek() != Token::BlockEnd {
                        self.expect_op(",")?;
                    }
                }
                return Ok(());
            }
            "break" => StmtKind::Break,
            "continue" => StmtKind::Continue,
            other if TAGS_OF_OTHERS.contains(&other) => {
                return Err(TemplateError::new(
                    line,
                    format!("{{% {other} %}} is not supported: a chat template is one file without blocks"),
                ));
            }
            other => {
                let reason =
                    format!("unknown tag {other:?}: jinja2 as transformers sets it up does not know it");
                return Err(TemplateError::new(line, reason));
            }
        };
        body.push(Stmt { line, kind });
        Ok(())
    }

    fn parse_if(&mut self) -> Result<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            let (body, end) = self.block(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match end {
                "elif" => {}
                "else" => return Ok(StmtKind::If { branches, otherwise: self.block(&["endif"])?.0 }),
                _ => return Ok(StmtKind::If { branches, otherwise: Vec::new() }),
            }
        }
    }

    fn parse_for(&mut self, line: u32) -> Result<StmtKind> {
        let target = self.target(&["in"], false)?;
        if !self.skip_word("in") {
            return self.unexpected("\"in\"");
        }
        let iterable = self.tuple(false, &["recursive"])?;
        let test = if self.skip_word("if") { Some(self.expression()?) } else { None };
        let is_recursive = self.skip_word("recursive");
        let (body, end) = self.block(&["endfor", "else"])?;
        let otherwise = if end == "else" { self.block(&["endfor"])?.0 } else { Vec::new() };
        let test_target = test.is_some().then(|| target.again());
        self.program.loops.push(For {
            line,
            target,
            iterable,
            test,
            is_recursive,
            body,
            otherwise,
            frame: Frame::default(),
            else_frame: Frame::default(),
            loop_slot: None,
            test_target,
            test_frame: Frame::default(),
            test_slots: 0,
            slots: 0,
        });
        Ok(StmtKind::For(self.program.loops.len() - 1))
    }

    fn parse_set(&mut self) -> Result<StmtKind> {
        let target = self.target(&[], true)?;
        if self.skip_op("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filters = self.filters(false)?;
        Ok(StmtKind::SetBlock { target, filters, body: self.block(&["endset"])?.0, frame: Frame::default() })
    }

    fn parse_with(&mut self) -> Result<StmtKind> {
        let mut targets = Vec::new();
        while *self.peek() != Token::BlockEnd {
            if !targets.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(&[], false)?;
            self.expect_op("=")?;
            targets.push((target, self.expression()?));
        }
        Ok(StmtKind::With { targets, body: self.block(&["endwith"])?.0, frame: Frame::default() })
    }

    fn signature(&mut self) -> Result<Vec<Parameter>> {
        let mut parameters: Vec<Parameter> = Vec::new();
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.assignable_name()?;
            let default = if self.skip_op("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.iter().any(|parameter| parameter.default.is_some()) {
                return self.fail("non-default argument follows default argument");
            }
            if parameters.iter().any(|parameter| parameter.name == name) {
                return self.fail(format!("duplicate argument {name:?} of a macro"));
            }
            parameters.push(Parameter { name, slot: Slot::default(), default });
        }
        self.expect_op(")")?;
        Ok(parameters)
    }

    fn add_macro(&mut self, line: u32, name: Arc<str>, parameters: Vec<Parameter>, body: Vec<Stmt>) -> usize {
        self.program.macros.push(Macro {
            line,
            name,
            slot: Slot::default(),
            parameters,
            body,
            frame: Frame::default(),
            caller: None,
            kwargs: None,
            varargs: None,
            slots: 0,
        });
        self.program.macros.len() - 1
    }

    fn parse_macro(&mut self, line: u32) -> Result<StmtKind> {
        let name = self.assignable_name()?;
        let parameters = self.signature()?;
        let body = self.block(&["endmacro"])?.0;
        Ok(StmtKind::Macro(self.add_macro(line, name, parameters, body)))
    }

    fn parse_call_block(&mut self, line: u32) -> Result<StmtKind> {
        let parameters = if self.is_op("(") { self.signature()? } else { Vec::new() };
        let call = self.expression()?;
        let is_call = matches!(&call.kind, Kind::Postfix(_, steps)
            if matches!(steps.last(), Some(Step { kind: StepKind::Call(_), .. })));
        if !is_call {
            return Err(TemplateError::new(line, "expected a call after {% call %}"));
        }
        let body = self.block(&["endcall"])?.0;
        Ok(StmtKind::CallBlock { index: self.add_macro(line, "caller".into(), parameters, body), call })
    }

    fn assignable_name(&mut self) -> Result<Arc<str>> {
        if let Token::Name(name) = self.peek()
            && is_constant(name)
        {
            return self.fail(format!("can't assign to {name:?}"));
        }
        self.name()
    }

    /// What `set`, `for` and `with` assign to.
    fn target(&mut self, ends: &[&str], with_attributes: bool) -> Result<Target> {
        let line = self.line();
        let item = |parser: &mut Self| parser.nested(|parser| parser.target_item(with_attributes));
        let (mut targets, is_tuple) = self.with_commas(ends, item)?;
        match (targets.pop(), is_tuple) {
            (None, false) => self.unexpected("something to assign to"),
            (Some(target), false) => Ok(target),
            (last, true) => {
                targets.extend(last);
                Ok(Target::Tuple(targets, line))
            }
        }
    }

    fn target_item(&mut self, with_attributes: bool) -> Result<Target> {
        if self.skip_op("(") {
            // jinja2 takes any expression in brackets and refuses what is no name
            let target = self.target(&[], false)?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.assignable_name()?;
        if with_attributes && self.skip_op(".") {
            return Ok(Target::Attribute(name, Slot::default(), self.name()?));
        }
        Ok(Target::Name(name, Slot::default()))
    }
}

fn is_constant(name: &str) -> bool {
    ["true", "false", "none", "True", "False", "None"].contains(&name)
}

impl Target {
    /// The same names, whose places are not known yet.
    fn again(&self) -> Self {
        match self {
            Self::Name(name, _) => Self::Name(Arc::clone(name), Slot::default()),
            Self::Attribute(name, _, attribute) => {
                Self::Attribute(Arc::clone(name), Slot::default(), Arc::clone(attribute))
            }
            Self::Tuple(targets, line) => Self::Tuple(targets.iter().map(Self::again).collect(), *line),
        }
    }
}
