//! Expressions and what follows them.

use std::rc::Rc;
use std::sync::Arc;

use super::super::ast::{Args, Expr, Kind, Step, StepKind};
use super::super::given::{Given, text};
use super::super::meter::{Result, failed, spend};
use super::super::printf::format_text;
use super::super::value::{Missing, Scope, Value};
use super::super::{access, filters, ops, predicates};
use super::Renderer;

impl<'p> Renderer<'p> {
    pub(super) fn eval(&mut self, expr: &'p Expr, scope: &Rc<Scope>) -> Result<Value> {
        spend(1)?;
        match &expr.kind {
            Kind::None => Ok(Value::None),
            Kind::Bool(bool) => Ok(Value::Bool(*bool)),
            Kind::Int(int) => Ok(Value::Int(*int)),
            Kind::Float(float) => Ok(Value::Float(*float)),
            Kind::Str(text) => Ok(Value::Str(text.clone())),
            Kind::Name(name, slot) => {
                Ok(Self::get(scope, *slot)
                    .unwrap_or_else(|| Value::Undefined(Missing::Name(Arc::clone(name)))))
            }
            _ => self.deeper(|this| this.eval_nested(expr, scope)).map_err(|fault| fault.at(expr.line)),
        }
    }

    pub(super) fn eval_all(&mut self, exprs: &'p [Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    // one function for each kind: a frame on the stack is as large as all that a function may ever need

    pub(super) fn eval_nested(&mut self, expr: &'p Expr, scope: &Rc<Scope>) -> Result<Value> {
        match &expr.kind {
            Kind::Postfix(base, steps) => self.postfix(base, steps, scope),
            Kind::List(items) => self.eval_all(items, scope).and_then(Value::list),
            Kind::Tuple(items) => self.eval_all(items, scope).and_then(Value::tuple),
            Kind::Concat(items) => self.eval_all(items, scope).and_then(|values| ops::concat(&values)),
            Kind::Dict(pairs) => self.eval_dict(pairs, scope),
            Kind::Not(operand) => self.eval(operand, scope).map(|value| Value::Bool(!value.is_true())),
            Kind::Neg(operand) => self.eval(operand, scope).and_then(|value| ops::negate(&value)),
            Kind::Pos(operand) => self.eval(operand, scope).and_then(|value| ops::plus(&value)),
            Kind::Binary(first, rest) => self.eval_binary(first, rest, scope),
            Kind::Compare(first, rest) => self.eval_compare(first, rest, scope),
            Kind::And(operands) => self.eval_logic(operands, false, scope),
            Kind::Or(operands) => self.eval_logic(operands, true, scope),
            Kind::If { test, then, otherwise } => self.eval_if(test, then, otherwise.as_deref(), scope),
            _ => unreachable!("constants and names have been evaluated"),
        }
    }

    pub(super) fn postfix(&mut self, base: &'p Expr, steps: &'p [Step], scope: &Rc<Scope>) -> Result<Value> {
        let mut value = self.eval(base, scope)?;
        for step in steps {
            value = self.step(value, step, scope).map_err(|fault| fault.at(step.line))?;
        }
        Ok(value)
    }

    pub(super) fn eval_dict(&mut self, pairs: &'p [(Expr, Expr)], scope: &Rc<Scope>) -> Result<Value> {
        let mut evaluated = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            evaluated.push((self.eval(key, scope)?, self.eval(value, scope)?));
        }
        Value::dict(evaluated)
    }

    pub(super) fn eval_binary(
        &mut self,
        first: &'p Expr,
        rest: &'p [(&'static str, Expr)],
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let mut value = self.eval(first, scope)?;
        for (operator, operand) in rest {
            let operand = self.eval(operand, scope)?;
            value = match (&value, *operator) {
                (Value::Str(format), "%") => format_text(format, &operand)?,
                _ => ops::binary(operator, &value, &operand)?,
            };
        }
        Ok(value)
    }

    pub(super) fn eval_compare(
        &mut self,
        first: &'p Expr,
        rest: &'p [(&'static str, Expr)],
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let mut left = self.eval(first, scope)?;
        for (operator, operand) in rest {
            let right = self.eval(operand, scope)?;
            if !ops::compare(operator, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// The operand that decides: the first one that is true, or that is not.
    pub(super) fn eval_logic(
        &mut self,
        operands: &'p [Expr],
        ends: bool,
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let mut value = Value::None;
        for operand in operands {
            value = self.eval(operand, scope)?;
            if value.is_true() == ends {
                break;
            }
        }
        Ok(value)
    }

    pub(super) fn eval_if(
        &mut self,
        test: &'p Expr,
        then: &'p Expr,
        otherwise: Option<&'p Expr>,
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let is_true = self.eval(test, scope)?.is_true();
        match (is_true, otherwise) {
            (true, _) => self.eval(then, scope),
            (false, Some(otherwise)) => self.eval(otherwise, scope),
            (false, None) => Ok(Value::undefined("an inline if without else was false, and so is undefined")),
        }
    }

    pub(super) fn step(&mut self, value: Value, step: &'p Step, scope: &Rc<Scope>) -> Result<Value> {
        spend(1)?;
        match &step.kind {
            StepKind::Attribute(name) => self.attribute(&value, name),
            StepKind::Item(index) => self.item(&value, index, scope),
            StepKind::Slice(parts) => self.slice(&value, parts, scope),
            StepKind::Call(args) => self.given(args, scope).and_then(|given| self.call(&value, given)),
            StepKind::Filter(name, args) => {
                self.given(args, scope).and_then(|given| filters::call(name, &value, &given))
            }
            StepKind::Test { name, args, is_negated } => self
                .given(args, scope)
                .and_then(|given| predicates::call(name, &value, &given))
                .map(|is_so| Value::Bool(is_so != *is_negated)),
        }
    }

    pub(super) fn attribute(&mut self, value: &Value, name: &Arc<str>) -> Result<Value> {
        if let Value::Loop(state) = value {
            let missing = || Value::Undefined(Missing::Attribute(Arc::clone(name)));
            return Ok(self.loop_attribute(state, name)?.unwrap_or_else(missing));
        }
        access::attribute(value, name)
    }

    pub(super) fn item(&mut self, value: &Value, index: &'p Expr, scope: &Rc<Scope>) -> Result<Value> {
        let index = self.eval(index, scope)?;
        if let (Value::Loop(state), Value::Str(name)) = (value, &index) {
            let missing = || Value::undefined("`loop` has no such attribute, which so is undefined");
            return Ok(self.loop_attribute(state, name)?.unwrap_or_else(missing));
        }
        access::item(value, &index)
    }

    pub(super) fn slice(
        &mut self,
        value: &Value,
        parts: &'p [Option<Box<Expr>>; 3],
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let mut bounds = [None, None, None];
        for (bound, part) in bounds.iter_mut().zip(parts) {
            *bound = part.as_ref().map(|part| self.eval(part, scope)).transpose()?;
        }
        ops::slice(value, bounds)
    }

    pub(super) fn given(&mut self, args: &'p Args, scope: &Rc<Scope>) -> Result<Given> {
        let mut given = Given { args: self.eval_all(&args.positional, scope)?, kwargs: Vec::new() };
        for (name, value) in &args.keywords {
            given.kwargs.push((Arc::clone(name), self.eval(value, scope)?));
        }
        if let Some(rest) = &args.rest {
            given.args.extend(self.eval(rest, scope)?.to_vec()?);
        }
        if let Some(rest) = &args.rest_keywords {
            let Value::Dict(dict) = self.eval(rest, scope)? else {
                return failed("argument after ** must be a mapping");
            };
            for (key, value) in dict.entries() {
                let key: Arc<str> = text(key)?.as_str().into();
                if given.kwargs.iter().any(|(known, _)| *known == key) {
                    return failed("multiple values for a keyword argument");
                }
                given.kwargs.push((key, value.clone()));
            }
        }
        Ok(given)
    }
}
