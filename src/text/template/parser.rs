//! Tokens → tree, as jinja2's parser makes it, with `break` and `continue` and `{% generation %}`.
//!
//! The parser calls itself for what is nested, and so does everything that walks its tree; [`MOST_NESTED`]
//! keeps them all on the stack of a worker thread. What is only long (`a + b + c`, `a.b.c`, `elif`) is a list.

use std::sync::Arc;

use super::TemplateError;
use super::ast::{
    Args, Expr, For, Frame, Kind, Macro, Parameter, Program, Slot, Step, StepKind, Stmt, StmtKind, Target,
};
use super::lexer::{Token, tokenize};
use super::value::Str;

/// Brackets in brackets, and blocks in blocks: CPython compiles 100 brackets, and 20 loops, at most.
const MOST_NESTED: usize = 100;

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
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if matches!(self.peek(), Token::BlockEnd | Token::VariableEnd)
                || self.is_op(")")
                || ends.iter().any(|end| self.is_word(end))
            {
                break;
            }
            targets.push(self.nested(|parser| parser.target_item(with_attributes))?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
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

    // --- expressions

    /// One expression, or several with commas.
    fn tuple(&mut self, with_if: bool, ends: &[&str]) -> Result<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if matches!(self.peek(), Token::BlockEnd | Token::VariableEnd)
                || self.is_op(")")
                || ends.iter().any(|end| self.is_word(end))
            {
                break;
            }
            items.push(if with_if { self.expression()? } else { self.nested(Self::parse_or)? });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match (items.pop(), is_tuple) {
            (None, false) => self.unexpected("an expression"),
            (Some(item), false) => Ok(item),
            (last, true) => {
                items.extend(last);
                Ok(Expr { line, kind: Kind::Tuple(items) })
            }
        }
    }

    fn expression(&mut self) -> Result<Expr> {
        self.nested(Self::parse_conditional)
    }

    fn parse_conditional(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut then = self.parse_or()?;
        let mut conditions = 0;
        while self.skip_word("if") {
            conditions += 1;
            if conditions > 4 {
                return self.fail("more than four conditions in a row without `else`: use brackets");
            }
            let test = Box::new(self.parse_or()?);
            let otherwise = if self.skip_word("else") { Some(Box::new(self.expression()?)) } else { None };
            then = Expr { line, kind: Kind::If { test, then: Box::new(then), otherwise } };
        }
        Ok(then)
    }

    fn parse_or(&mut self) -> Result<Expr> {
        self.list_of(Self::parse_and, |parser| parser.skip_word("or"), Kind::Or)
    }

    fn parse_and(&mut self) -> Result<Expr> {
        self.list_of(Self::parse_not, |parser| parser.skip_word("and"), Kind::And)
    }

    fn list_of(
        &mut self,
        operand: fn(&mut Self) -> Result<Expr>,
        skip: fn(&mut Self) -> bool,
        kind: fn(Vec<Expr>) -> Kind,
    ) -> Result<Expr> {
        let line = self.line();
        let first = operand(self)?;
        if !skip(self) {
            return Ok(first);
        }
        let mut operands = vec![first, operand(self)?];
        while skip(self) {
            operands.push(operand(self)?);
        }
        Ok(Expr { line, kind: kind(operands) })
    }

    fn parse_not(&mut self) -> Result<Expr> {
        let line = self.line();
        if self.skip_word("not") {
            let operand = self.nested(Self::parse_not)?;
            return Ok(Expr { line, kind: Kind::Not(Box::new(operand)) });
        }
        self.parse_compare()
    }

    fn parse_compare(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.parse_sum()?;
        let mut rest = Vec::new();
        loop {
            let operator = match self.peek() {
                Token::Operator(operator @ ("==" | "!=" | "<" | "<=" | ">" | ">=")) => operator,
                Token::Name(word) if word == "in" => "in",
                Token::Name(word) if word == "not" && *self.look() == Token::Name("in".to_owned()) => {
                    self.next();
                    "not in"
                }
                _ => break,
            };
            self.next();
            rest.push((operator, self.parse_sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr { line, kind: Kind::Compare(Box::new(first), rest) } })
    }

    fn parse_sum(&mut self) -> Result<Expr> {
        self.binary(Self::parse_concat, &["+", "-"])
    }

    fn parse_concat(&mut self) -> Result<Expr> {
        self.list_of(Self::parse_product, |parser| parser.skip_op("~"), Kind::Concat)
    }

    fn parse_product(&mut self) -> Result<Expr> {
        self.binary(Self::parse_power, &["*", "/", "//", "%"])
    }

    fn parse_power(&mut self) -> Result<Expr> {
        self.binary(|parser| parser.parse_unary(true), &["**"])
    }

    fn binary(&mut self, operand: fn(&mut Self) -> Result<Expr>, operators: &[&'static str]) -> Result<Expr> {
        let line = self.line();
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(operator) = operators.iter().find(|operator| self.is_op(operator)) {
            self.next();
            rest.push((*operator, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr { line, kind: Kind::Binary(Box::new(first), rest) } })
    }

    fn parse_unary(&mut self, with_filters: bool) -> Result<Expr> {
        let line = self.line();
        let node = if self.skip_op("-") {
            Expr { line, kind: Kind::Neg(Box::new(self.nested(|parser| parser.parse_unary(false))?)) }
        } else if self.skip_op("+") {
            Expr { line, kind: Kind::Pos(Box::new(self.nested(|parser| parser.parse_unary(false))?)) }
        } else {
            self.primary()?
        };
        let mut steps = self.postfix()?;
        if with_filters {
            self.filters_and_tests(&mut steps)?;
        }
        Ok(with_steps(node, steps))
    }

    fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let kind = match self.next() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Kind::Bool(true),
                "false" | "False" => Kind::Bool(false),
                "none" | "None" => Kind::None,
                _ => Kind::Name(name.into(), Slot::default()),
            },
            Token::Str(mut text) => {
                while let Token::Str(more) = self.peek() {
                    text += more;
                    self.next();
                }
                Kind::Str(Str::new(text))
            }
            Token::Int(int) => Kind::Int(int),
            Token::Float(float) => Kind::Float(float),
            Token::Operator("(") => {
                if self.skip_op(")") {
                    return Ok(Expr { line, kind: Kind::Tuple(Vec::new()) });
                }
                let inner = self.tuple(true, &[])?;
                self.expect_op(")")?;
                // brackets end a chain: (a + b) + c, (a < b) < c
                return Ok(inner);
            }
            Token::Operator("[") => Kind::List(self.items("]", Self::expression)?),
            Token::Operator("{") => Kind::Dict(self.items("}", |parser| {
                let key = parser.expression()?;
                parser.expect_op(":")?;
                Ok((key, parser.expression()?))
            })?),
            _ => {
                self.at = self.at.saturating_sub(usize::from(*self.peek() != Token::End));
                return self.unexpected("an expression");
            }
        };
        Ok(Expr { line, kind })
    }

    fn items<T>(&mut self, end: &str, item: fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_op(end) {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.is_op(end) {
                break;
            }
            items.push(item(self)?);
        }
        self.expect_op(end)?;
        Ok(items)
    }

    /// `.a`, `[b]` and `(c)`.
    fn postfix(&mut self) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        loop {
            let line = self.line();
            let kind = if self.skip_op(".") {
                match self.next() {
                    Token::Name(name) => StepKind::Attribute(name.into()),
                    Token::Int(int) => StepKind::Item(Expr { line, kind: Kind::Int(int) }),
                    _ => return self.fail("expected a name or a number after \".\""),
                }
            } else if self.skip_op("[") {
                self.subscript()?
            } else if self.is_op("(") {
                StepKind::Call(self.args()?)
            } else {
                return Ok(steps);
            };
            steps.push(Step { line, kind });
        }
    }

    fn subscript(&mut self) -> Result<StepKind> {
        let line = self.line();
        let mut items = Vec::new();
        while !self.is_op("]") {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            let start = if self.is_op(":") { None } else { Some(self.expression()?) };
            if !self.skip_op(":") {
                items.push(start.expect("an expression, if it is no colon"));
                continue;
            }
            let ends = |parser: &Self| parser.is_op("]") || parser.is_op(",");
            let stop = if self.is_op(":") || ends(self) { None } else { Some(self.expression()?) };
            let step = if self.skip_op(":") && !ends(self) { Some(self.expression()?) } else { None };
            if !items.is_empty() || !self.is_op("]") {
                return self.fail("a slice among several subscripts");
            }
            self.next();
            return Ok(StepKind::Slice([start, stop, step].map(|part| part.map(Box::new))));
        }
        self.next();
        Ok(StepKind::Item(match items.len() {
            1 => items.remove(0),
            _ => Expr { line, kind: Kind::Tuple(items) },
        }))
    }

    fn args(&mut self) -> Result<Args> {
        let line = self.line();
        let mut args = Args::default();
        let misplaced = || Err(TemplateError::new(line, "an argument in the wrong place of a call"));
        self.expect_op("(")?;
        let mut is_first = true;
        while !self.is_op(")") {
            if !is_first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            is_first = false;
            if self.skip_op("*") {
                if args.rest.is_some() || args.rest_keywords.is_some() {
                    return misplaced();
                }
                args.rest = Some(Box::new(self.expression()?));
            } else if self.skip_op("**") {
                if args.rest_keywords.is_some() {
                    return misplaced();
                }
                args.rest_keywords = Some(Box::new(self.expression()?));
            } else if matches!(self.peek(), Token::Name(_)) && *self.look() == Token::Operator("=") {
                if args.rest_keywords.is_some() {
                    return misplaced();
                }
                let name = self.name()?;
                if args.keywords.iter().any(|(known, _)| *known == name) {
                    return self.fail(format!("keyword argument {name:?} given twice"));
                }
                self.next();
                args.keywords.push((name, self.expression()?));
            } else {
                if args.rest.is_some() || args.rest_keywords.is_some() || !args.keywords.is_empty() {
                    return misplaced();
                }
                args.positional.push(self.expression()?);
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }

    fn filters_and_tests(&mut self, steps: &mut Vec<Step>) -> Result<()> {
        loop {
            let line = self.line();
            if self.is_op("|") {
                steps.append(&mut self.filters(false)?);
            } else if self.skip_word("is") {
                let kind = self.test()?;
                steps.push(Step { line, kind });
            } else if self.is_op("(") {
                let kind = StepKind::Call(self.args()?);
                steps.push(Step { line, kind });
            } else {
                return Ok(());
            }
        }
    }

    /// `|a|b(c)`; the first bar is missing where a filter block begins.
    fn filters(&mut self, mut is_begun: bool) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        while is_begun || self.skip_op("|") {
            is_begun = false;
            let line = self.line();
            let name = self.dotted_name()?;
            let args = if self.is_op("(") { self.args()? } else { Args::default() };
            steps.push(Step { line, kind: StepKind::Filter(name, args) });
        }
        Ok(steps)
    }

    fn dotted_name(&mut self) -> Result<Arc<str>> {
        let mut name = self.name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.name()?).into();
        }
        Ok(name)
    }

    fn test(&mut self) -> Result<StepKind> {
        let is_negated = self.skip_word("not");
        let name = self.dotted_name()?;
        let has_argument = match self.peek() {
            Token::Name(word) => !["else", "or", "and"].contains(&word.as_str()),
            Token::Str(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Operator(operator) => ["[", "{"].contains(operator),
            _ => false,
        };
        let args = if self.is_op("(") {
            self.args()?
        } else if has_argument {
            if self.is_word("is") {
                return self.fail("tests cannot be chained with \"is\"");
            }
            let base = self.nested(Self::primary)?;
            let steps = self.postfix()?;
            Args { positional: vec![with_steps(base, steps)], ..Args::default() }
        } else {
            Args::default()
        };
        Ok(StepKind::Test { name, args, is_negated })
    }
}

fn with_steps(base: Expr, steps: Vec<Step>) -> Expr {
    if steps.is_empty() { base } else { Expr { line: base.line, kind: Kind::Postfix(Box::new(base), steps) } }
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
