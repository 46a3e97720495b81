//! Expressions, by rising precedence.

use std::sync::Arc;

use super::super::TemplateError;
use super::super::ast::{Args, Expr, Kind, Slot, Step, StepKind};
use super::super::lexer::Token;
use super::super::value::Str;
use super::{Parser, Result};

impl Parser {
    /// One expression, or several with commas.
    pub(super) fn tuple(&mut self, with_if: bool, ends: &[&str]) -> Result<Expr> {
        let line = self.line();
        let item = |parser: &mut Self| match with_if {
            true => parser.expression(),
            false => parser.nested(Self::parse_or),
        };
        let (mut items, is_tuple) = self.with_commas(ends, item)?;
        match (items.pop(), is_tuple) {
            (None, false) => self.unexpected("an expression"),
            (Some(item), false) => Ok(item),
            (last, true) => {
                items.extend(last);
                Ok(Expr { line, kind: Kind::Tuple(items) })
            }
        }
    }

    /// Items up to a bracket, the end of the tag or one of these words, and whether there was a comma.
    pub(super) fn with_commas<T>(
        &mut self,
        ends: &[&str],
        item: impl Fn(&mut Self) -> Result<T>,
    ) -> Result<(Vec<T>, bool)> {
        let mut items = Vec::new();
        let mut has_comma = false;
        while !(matches!(self.peek(), Token::BlockEnd | Token::VariableEnd)
            || self.is_op(")")
            || ends.iter().any(|end| self.is_word(end)))
        {
            items.push(item(self)?);
            if !self.skip_op(",") {
                break;
            }
            has_comma = true;
        }
        Ok((items, has_comma))
    }

    pub(super) fn expression(&mut self) -> Result<Expr> {
        self.nested(Self::parse_conditional)
    }

    pub(super) fn parse_conditional(&mut self) -> Result<Expr> {
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

    pub(super) fn parse_or(&mut self) -> Result<Expr> {
        self.list_of(Self::parse_and, |parser| parser.skip_word("or"), Kind::Or)
    }

    pub(super) fn parse_and(&mut self) -> Result<Expr> {
        self.list_of(Self::parse_not, |parser| parser.skip_word("and"), Kind::And)
    }

    pub(super) fn list_of(
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

    pub(super) fn parse_not(&mut self) -> Result<Expr> {
        let line = self.line();
        if self.skip_word("not") {
            let operand = self.nested(Self::parse_not)?;
            return Ok(Expr { line, kind: Kind::Not(Box::new(operand)) });
        }
        self.parse_compare()
    }

    pub(super) fn parse_compare(&mut self) -> Result<Expr> {
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

    pub(super) fn parse_sum(&mut self) -> Result<Expr> {
        self.binary(Self::parse_concat, &["+", "-"])
    }

    pub(super) fn parse_concat(&mut self) -> Result<Expr> {
        self.list_of(Self::parse_product, |parser| parser.skip_op("~"), Kind::Concat)
    }

    pub(super) fn parse_product(&mut self) -> Result<Expr> {
        self.binary(Self::parse_power, &["*", "/", "//", "%"])
    }

    pub(super) fn parse_power(&mut self) -> Result<Expr> {
        self.binary(|parser| parser.parse_unary(true), &["**"])
    }

    pub(super) fn binary(
        &mut self,
        operand: fn(&mut Self) -> Result<Expr>,
        operators: &[&'static str],
    ) -> Result<Expr> {
        let line = self.line();
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(operator) = operators.iter().find(|operator| self.is_op(operator)) {
            self.next();
            rest.push((*operator, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr { line, kind: Kind::Binary(Box::new(first), rest) } })
    }

    pub(super) fn parse_unary(&mut self, with_filters: bool) -> Result<Expr> {
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

    pub(super) fn primary(&mut self) -> Result<Expr> {
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

    pub(super) fn items<T>(&mut self, end: &str, item: fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
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
    pub(super) fn postfix(&mut self) -> Result<Vec<Step>> {
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

    pub(super) fn subscript(&mut self) -> Result<StepKind> {
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

    pub(super) fn args(&mut self) -> Result<Args> {
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

    pub(super) fn filters_and_tests(&mut self, steps: &mut Vec<Step>) -> Result<()> {
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
    pub(super) fn filters(&mut self, mut is_begun: bool) -> Result<Vec<Step>> {
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

    pub(super) fn dotted_name(&mut self) -> Result<Arc<str>> {
        let mut name = self.name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.name()?).into();
        }
        Ok(name)
    }

    pub(super) fn test(&mut self) -> Result<StepKind> {
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
