//! Runs a template.
//!
//! Statements write into a string, expressions have values. What calls itself is counted, statements,
//! expressions and macros together, so that no template reaches the end of a worker thread's stack.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use super::ast::{
    Args, Enter, Expr, For, Frame, Kind, Macro, Program, Slot, Step, StepKind, Stmt, StmtKind, Target,
};
use super::clock::strftime;
use super::given::{Given, text};
use super::meter::{Fault, Result, failed, reserve, spend};
use super::names::FUNCTIONS;
use super::printf::printf;
use super::show::str_of;
use super::value::{Cycler, Dict, Joiner, LoopState, MacroValue, Missing, Range, Scope, Seq, Value};
use super::{access, filters, methods, ops, predicates};

/// 2 MiB of stack hold three times as many in a build without optimisation. A macro that calls itself takes
/// some ten for each call.
const MOST_NESTED: usize = 300;

/// As the sandbox has it.
const MOST_IN_RANGE: usize = 100_000;

pub(super) type Variables<'v> = HashMap<&'v str, Value>;

/// Renders; `most_output` bounds the bytes that all writing, to the result and to variables, takes together.
pub(super) fn render<'p>(
    program: &'p Program,
    variables: &'p Variables<'p>,
    now: fn() -> SystemTime,
    most_output: usize,
) -> Result<String> {
    let mut renderer = Renderer {
        program,
        variables,
        now,
        output_left: most_output,
        depth: 0,
        captured: Vec::new(),
        namespaces: Vec::new(),
        changed: Vec::new(),
    };
    let scope = Scope::new(program.slots, None);
    renderer.enter(&program.frame, &scope);
    let mut out = String::new();
    renderer.block(&program.body, &scope, &mut out)?;
    Ok(out)
}

enum Flow {
    Next,
    Break,
    Continue,
}

struct Renderer<'p> {
    program: &'p Program,
    variables: &'p Variables<'p>,
    now: fn() -> SystemTime,
    output_left: usize,
    depth: usize,
    /// What could hold itself, emptied at the end.
    captured: Vec<Rc<Scope>>,
    namespaces: Vec<Rc<RefCell<Dict>>>,
    changed: Vec<Rc<LoopState>>,
}

impl Drop for Renderer<'_> {
    fn drop(&mut self) {
        // each is still held by its list while another is emptied: nothing is dropped from within
        for scope in &self.captured {
            drop(mem::take(&mut *scope.slots.borrow_mut()));
        }
        for namespace in &self.namespaces {
            namespace.borrow_mut().clear();
        }
        for state in &self.changed {
            drop(state.last_changed.take());
        }
    }
}

impl<'p> Renderer<'p> {
    fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MOST_NESTED {
            return failed("it calls itself too often, or is nested too deep");
        }
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
    }

    // --- variables

    fn get(scope: &Rc<Scope>, slot: Slot) -> Option<Value> {
        let mut scope = scope;
        for _ in 0..slot.hops {
            scope = scope.parent.as_ref()?;
        }
        scope.slots.borrow().get(usize::from(slot.index)).cloned().flatten()
    }

    fn put(scope: &Rc<Scope>, slot: Slot, value: Option<Value>) {
        // what was there is dropped when the borrow has ended
        let before =
            scope.slots.borrow_mut().get_mut(usize::from(slot.index)).map(|place| mem::replace(place, value));
        drop(before);
    }

    fn resolve(&self, name: &str) -> Option<Value> {
        let function = || FUNCTIONS.iter().find(|known| **known == name).map(|known| Value::Function(known));
        self.variables.get(name).cloned().or_else(function)
    }

    fn enter(&self, frame: &Frame, scope: &Rc<Scope>) {
        for (slot, enter) in &frame.enter {
            let value = match enter {
                Enter::Given => continue,
                Enter::Resolve(name) => self.resolve(name),
                Enter::Alias(outer) => Self::get(scope, *outer),
                Enter::Missing => None,
            };
            Self::put(scope, *slot, value);
        }
    }

    fn leave(frame: &Frame, scope: &Rc<Scope>) {
        for (slot, _) in &frame.enter {
            Self::put(scope, *slot, None);
        }
    }

    fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(_, slot) => Self::put(scope, *slot, Some(value)),
            Target::Attribute(name, slot, attribute) => match Self::get(scope, *slot) {
                Some(Value::Namespace(attributes)) => {
                    if attribute.starts_with('_') {
                        return failed(format!(
                            "{attribute:?} may not be set: its name begins with an underscore"
                        ));
                    }
                    attributes.borrow_mut().insert(Value::from(&**attribute), value)?;
                }
                _ => return failed(format!("cannot assign to an attribute of {name:?}: it is no namespace")),
            },
            Target::Tuple(targets, line) => {
                let mut items = value.iter().map_err(|fault| fault.at(*line))?;
                for target in targets {
                    let Some(item) = items.next()? else { return failed("not enough values to unpack") };
                    self.assign(target, item, scope)?;
                }
                if items.next()?.is_some() {
                    return failed("too many values to unpack");
                }
            }
        }
        Ok(())
    }

    // --- statements

    fn write(&mut self, text: &str, out: &mut String) -> Result<()> {
        reserve(text.len())?;
        match self.output_left.checked_sub(text.len()) {
            Some(left) => self.output_left = left,
            None => return failed("it writes too much text"),
        }
        out.push_str(text);
        Ok(())
    }

    fn block(&mut self, body: &'p [Stmt], scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        self.deeper(|this| {
            for stmt in body {
                match this.stmt(stmt, scope, out).map_err(|fault| fault.at(stmt.line))? {
                    Flow::Next => {}
                    flow => return Ok(flow),
                }
            }
            Ok(Flow::Next)
        })
    }

    fn stmt(&mut self, stmt: &'p Stmt, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        spend(1)?;
        match &stmt.kind {
            StmtKind::Data(text) => self.write(text, out).map(|()| Flow::Next),
            StmtKind::Print(printed) => self.print(printed, scope, out),
            StmtKind::If { branches, otherwise } => self.branch(branches, otherwise, scope, out),
            StmtKind::Set(target, value) => self.set(target, value, scope),
            StmtKind::SetBlock { target, filters, body, frame } => {
                self.captured_block(body, filters, frame, scope, |this, value| {
                    this.assign(target, value, scope)
                })
            }
            StmtKind::FilterBlock { filters, body, frame } => {
                self.captured_block(body, filters, frame, scope, |this, value| {
                    this.write(&str_of(&value)?, out)
                })
            }
            StmtKind::With { targets, body, frame } => self.with(targets, body, frame, scope, out),
            StmtKind::For(index) => self.for_loop(*index, scope, out),
            StmtKind::Macro(index) => {
                self.define_macro(*index, scope);
                Ok(Flow::Next)
            }
            StmtKind::CallBlock { index, call } => self.call_block(*index, call, scope, out),
            StmtKind::Generation(index) => self.generation(*index, scope, out),
            StmtKind::Break => Ok(Flow::Break),
            StmtKind::Continue => Ok(Flow::Continue),
        }
    }

    fn print(&mut self, printed: &'p Expr, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        let value = self.eval(printed, scope)?;
        self.write(&str_of(&value)?, out)?;
        Ok(Flow::Next)
    }

    fn branch(
        &mut self,
        branches: &'p [(Expr, Vec<Stmt>)],
        otherwise: &'p [Stmt],
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Result<Flow> {
        for (test, body) in branches {
            if self.eval(test, scope)?.is_true() {
                return self.block(body, scope, out);
            }
        }
        self.block(otherwise, scope, out)
    }

    fn set(&mut self, target: &Target, value: &'p Expr, scope: &Rc<Scope>) -> Result<Flow> {
        let value = self.eval(value, scope)?;
        self.assign(target, value, scope)?;
        Ok(Flow::Next)
    }

    fn with(
        &mut self,
        targets: &'p [(Target, Expr)],
        body: &'p [Stmt],
        frame: &Frame,
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Result<Flow> {
        self.enter(frame, scope);
        for (target, value) in targets {
            let value = self.eval(value, scope)?;
            self.assign(target, value, scope)?;
        }
        let flow = self.block(body, scope, out)?;
        Self::leave(frame, scope);
        Ok(flow)
    }

    fn define_macro(&mut self, index: usize, scope: &Rc<Scope>) {
        let it = &self.program.macros[index];
        let value = self.macro_value(index, Some(Arc::clone(&it.name)), scope);
        Self::put(scope, it.slot, Some(Value::Macro(value)));
    }

    fn generation(&mut self, index: usize, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        let body = self.macro_value(index, None, scope);
        let text = self.call_macro(&body, Given::default())?;
        self.write(&str_of(&text)?, out)?;
        Ok(Flow::Next)
    }

    /// A block whose text goes elsewhere; if a loop is left from within, it goes nowhere.
    fn captured_block(
        &mut self,
        body: &'p [Stmt],
        filters: &'p [Step],
        frame: &Frame,
        scope: &Rc<Scope>,
        then: impl FnOnce(&mut Self, Value) -> Result<()>,
    ) -> Result<Flow> {
        self.enter(frame, scope);
        let mut text = String::new();
        match self.block(body, scope, &mut text)? {
            Flow::Next => {}
            flow => return Ok(flow),
        }
        let mut value = Value::from(text);
        for step in filters {
            value = self.step(value, step, scope).map_err(|fault| fault.at(step.line))?;
        }
        then(self, value)?;
        Self::leave(frame, scope);
        Ok(Flow::Next)
    }

    // --- loops

    fn for_loop(&mut self, index: usize, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        let it = &self.program.loops[index];
        let iterable = self.eval(&it.iterable, scope)?;
        if it.is_recursive {
            let inner = Scope::new(it.slots, Some(Rc::clone(scope)));
            let mut text = String::new();
            self.run_loop(index, iterable, scope, &inner, 0, &mut text)?;
            self.write(&text, out)?;
            return Ok(Flow::Next);
        }
        self.run_loop(index, iterable, scope, scope, 0, out)
    }

    /// `around` is the scope that the loop stands in, `scope` that of its variables: another one, if the loop
    /// is recursive.
    fn run_loop(
        &mut self,
        index: usize,
        iterable: Value,
        around: &Rc<Scope>,
        scope: &Rc<Scope>,
        depth0: usize,
        out: &mut String,
    ) -> Result<Flow> {
        let it: &'p For = &self.program.loops[index];
        let filter = it.test.as_ref().map(|_| {
            let tested = Scope::new(it.test_slots, Some(Rc::clone(around)));
            self.enter(&it.test_frame, &tested);
            (index, tested)
        });
        let recurse = it.is_recursive.then(|| (index, Rc::clone(around)));
        let state = LoopState::new(iterable, filter, recurse, depth0)?;
        let mut was_completed = false;
        let mut flow = Flow::Next;
        while let Some(item) = self.next_item(&state)? {
            spend(1)?;
            self.assign(&it.target, item, scope)?;
            if let Some(slot) = it.loop_slot {
                Self::put(scope, slot, Some(Value::Loop(Rc::clone(&state))));
            }
            self.enter(&it.frame, scope);
            match self.block(&it.body, scope, out)? {
                Flow::Next => was_completed = true,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        Self::leave(&it.frame, scope);
        // jinja2 notes at the end of the body that there was one: after `continue` and `break` it was not
        if !was_completed && !it.otherwise.is_empty() {
            self.enter(&it.else_frame, scope);
            flow = self.block(&it.otherwise, scope, out)?;
            Self::leave(&it.else_frame, scope);
        }
        Ok(flow)
    }

    fn next_item(&mut self, state: &LoopState) -> Result<Option<Value>> {
        let peeked = state.after.take();
        let item = match peeked {
            Some(item) => Some(item),
            None => self.fetch(state)?,
        };
        if item.is_some() {
            state.index0.set(state.index0.get() + 1);
            let before = state.current.replace(item.clone());
            state.before.replace(before);
        }
        Ok(item)
    }

    /// The next item for which the loop's condition holds.
    fn fetch(&mut self, state: &LoopState) -> Result<Option<Value>> {
        loop {
            let item = state.items.borrow_mut().next()?;
            // once the length was asked for, the condition has been evaluated for all that is left
            let filter = state.filter.as_ref().filter(|_| state.length.get().is_none());
            let (Some(item), Some((index, scope))) = (&item, filter) else { return Ok(item) };
            let it = &self.program.loops[*index];
            if let (Some(test), Some(target)) = (&it.test, &it.test_target) {
                self.assign(target, item.clone(), scope)?;
                if self.eval(test, scope)?.is_true() {
                    return Ok(Some(item.clone()));
                }
            }
        }
    }

    fn peek(&mut self, state: &LoopState) -> Result<Option<Value>> {
        if state.after.borrow().is_none() {
            let item = self.fetch(state)?;
            state.after.replace(item);
        }
        Ok(state.after.borrow().clone())
    }

    fn loop_length(&mut self, state: &LoopState) -> Result<i128> {
        if let Some(length) = state.length.get() {
            return Ok(length as i128);
        }
        let length = match (&state.filter, state.iterable.len()) {
            (None, Some(length)) => length,
            _ => {
                let mut rest = Vec::new();
                while let Some(item) = self.fetch(state)? {
                    rest.push(item);
                }
                let length = rest.len()
                    + (state.index0.get() + 1) as usize
                    + usize::from(state.after.borrow().is_some());
                let rest = Value::list(rest)?;
                state.items.replace(rest.iter()?);
                length
            }
        };
        state.length.set(Some(length));
        Ok(length as i128)
    }

    fn loop_attribute(&mut self, state: &Rc<LoopState>, name: &str) -> Result<Option<Value>> {
        let index0 = state.index0.get();
        Ok(Some(match name {
            "index" => Value::Int(index0 + 1),
            "index0" => Value::Int(index0),
            "first" => Value::Bool(index0 == 0),
            "last" => Value::Bool(self.peek(state)?.is_none()),
            "length" => Value::Int(self.loop_length(state)?),
            "revindex" => Value::Int(self.loop_length(state)? - index0),
            "revindex0" => Value::Int(self.loop_length(state)? - index0 - 1),
            "depth" => Value::from(state.depth0 + 1),
            "depth0" => Value::from(state.depth0),
            "previtem" if index0 == 0 => Value::undefined("there is no previous item"),
            "previtem" => state.before.borrow().clone().unwrap_or(Value::None),
            "nextitem" => self.peek(state)?.unwrap_or_else(|| Value::undefined("there is no next item")),
            "cycle" => Value::Method(Rc::new((Value::Loop(Rc::clone(state)), "cycle"))),
            "changed" => Value::Method(Rc::new((Value::Loop(Rc::clone(state)), "changed"))),
            _ => return Ok(None),
        }))
    }

    fn loop_method(&mut self, state: &Rc<LoopState>, method: &str, given: Given) -> Result<Value> {
        if !given.kwargs.is_empty() {
            return failed(format!("loop.{method} takes no keyword arguments"));
        }
        if method == "cycle" {
            if given.args.is_empty() {
                return failed("no items for cycling given");
            }
            let place = state.index0.get().rem_euclid(given.args.len() as i128);
            return Ok(given.args[place as usize].clone());
        }
        let is_same = match &*state.last_changed.borrow() {
            Some(last) => ops::equal(&Value::tuple(last.clone())?, &Value::tuple(given.args.clone())?)?,
            None => false,
        };
        if !is_same {
            if !self.changed.iter().any(|known| Rc::ptr_eq(known, state)) {
                self.changed.push(Rc::clone(state));
            }
            let before = state.last_changed.replace(Some(given.args));
            drop(before);
        }
        Ok(Value::Bool(!is_same))
    }

    // --- expressions

    fn eval(&mut self, expr: &'p Expr, scope: &Rc<Scope>) -> Result<Value> {
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

    fn eval_all(&mut self, exprs: &'p [Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    // one function for each kind: a frame on the stack is as large as all that a function may ever need

    fn eval_nested(&mut self, expr: &'p Expr, scope: &Rc<Scope>) -> Result<Value> {
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

    fn postfix(&mut self, base: &'p Expr, steps: &'p [Step], scope: &Rc<Scope>) -> Result<Value> {
        let mut value = self.eval(base, scope)?;
        for step in steps {
            value = self.step(value, step, scope).map_err(|fault| fault.at(step.line))?;
        }
        Ok(value)
    }

    fn eval_dict(&mut self, pairs: &'p [(Expr, Expr)], scope: &Rc<Scope>) -> Result<Value> {
        let mut evaluated = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            evaluated.push((self.eval(key, scope)?, self.eval(value, scope)?));
        }
        Value::dict(evaluated)
    }

    fn eval_binary(
        &mut self,
        first: &'p Expr,
        rest: &'p [(&'static str, Expr)],
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let mut value = self.eval(first, scope)?;
        for (operator, operand) in rest {
            let operand = self.eval(operand, scope)?;
            value = match (&value, *operator) {
                (Value::Str(format), "%") => Value::from(printf(format, &operand)?),
                _ => ops::binary(operator, &value, &operand)?,
            };
        }
        Ok(value)
    }

    fn eval_compare(
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
    fn eval_logic(&mut self, operands: &'p [Expr], ends: bool, scope: &Rc<Scope>) -> Result<Value> {
        let mut value = Value::None;
        for operand in operands {
            value = self.eval(operand, scope)?;
            if value.is_true() == ends {
                break;
            }
        }
        Ok(value)
    }

    fn eval_if(
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

    fn step(&mut self, value: Value, step: &'p Step, scope: &Rc<Scope>) -> Result<Value> {
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

    fn attribute(&mut self, value: &Value, name: &Arc<str>) -> Result<Value> {
        if let Value::Loop(state) = value {
            let missing = || Value::Undefined(Missing::Attribute(Arc::clone(name)));
            return Ok(self.loop_attribute(state, name)?.unwrap_or_else(missing));
        }
        access::attribute(value, name)
    }

    fn item(&mut self, value: &Value, index: &'p Expr, scope: &Rc<Scope>) -> Result<Value> {
        let index = self.eval(index, scope)?;
        if let (Value::Loop(state), Value::Str(name)) = (value, &index) {
            let missing = || Value::undefined("`loop` has no such attribute, which so is undefined");
            return Ok(self.loop_attribute(state, name)?.unwrap_or_else(missing));
        }
        access::item(value, &index)
    }

    fn slice(
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

    fn given(&mut self, args: &'p Args, scope: &Rc<Scope>) -> Result<Given> {
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

    // --- calls

    fn call(&mut self, callee: &Value, given: Given) -> Result<Value> {
        match callee {
            Value::Macro(it) => self.call_macro(it, given),
            Value::Method(method) => match &method.0 {
                Value::Loop(state) => self.loop_method(state, method.1, given),
                owner => methods::call(owner, method.1, &given),
            },
            Value::Function(name) => self.call_function(name, given),
            Value::Loop(state) => self.call_loop(state, &given),
            Value::Joiner(it) => {
                given.none("a joiner")?;
                Ok(if it.used.replace(true) { it.separator.clone() } else { Value::from("") })
            }
            other => {
                other.check_defined()?;
                failed(format!("'{}' object is not callable", other.type_name()))
            }
        }
    }

    /// A recursive loop within itself.
    fn call_loop(&mut self, state: &LoopState, given: &Given) -> Result<Value> {
        let [iterable] = given.bind("loop", ["iterable"], 1)?;
        let Some((index, around)) = &state.recurse else {
            return failed("a loop that is called needs the word `recursive` in its head");
        };
        let inner = Scope::new(self.program.loops[*index].slots, Some(Rc::clone(around)));
        let (depth, iterable) = (state.depth0 + 1, iterable.expect("required"));
        let mut text = String::new();
        self.run_loop(*index, iterable, around, &inner, depth, &mut text)?;
        Ok(Value::from(text))
    }

    fn call_block(
        &mut self,
        index: usize,
        call: &'p Expr,
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Result<Flow> {
        let caller = Value::Macro(self.macro_value(index, None, scope));
        let Kind::Postfix(base, steps) = &call.kind else { unreachable!("the parser asked for a call") };
        let Some((Step { kind: StepKind::Call(args), line }, steps)) = steps.split_last() else {
            unreachable!("the parser asked for a call")
        };
        let mut callee = self.eval(base, scope)?;
        for step in steps {
            callee = self.step(callee, step, scope).map_err(|fault| fault.at(step.line))?;
        }
        let mut given = self.given(args, scope)?;
        if given.kwargs.iter().any(|(name, _)| &**name == "caller") {
            return failed("multiple values for keyword argument 'caller'");
        }
        given.kwargs.push(("caller".into(), caller));
        let value = self.call(&callee, given).map_err(|fault| fault.at(*line))?;
        self.write(&str_of(&value)?, out)?;
        Ok(Flow::Next)
    }

    fn macro_value(&mut self, index: usize, name: Option<Arc<str>>, scope: &Rc<Scope>) -> Rc<MacroValue> {
        let mut outward = Some(scope);
        while let Some(it) = outward.filter(|it| !it.is_captured.replace(true)) {
            self.captured.push(Rc::clone(it));
            outward = it.parent.as_ref();
        }
        Rc::new(MacroValue { index, name, scope: Rc::clone(scope) })
    }

    /// Arguments go to parameters as jinja2's `Macro.__call__` hands them out.
    fn call_macro(&mut self, value: &MacroValue, given: Given) -> Result<Value> {
        let it = &self.program.macros[value.index];
        let scope = Scope::new(it.slots, Some(Rc::clone(&value.scope)));
        self.bind_macro(it, given, &scope)?;
        let mut out = String::new();
        self.block(&it.body, &scope, &mut out)?;
        Ok(Value::from(out))
    }

    fn bind_macro(&mut self, it: &'p Macro, mut given: Given, scope: &Rc<Scope>) -> Result<()> {
        let count = it.parameters.len();
        let take = |given: &mut Given, name: &str| {
            let place = given.kwargs.iter().position(|(known, _)| &**known == name);
            place.map(|place| given.kwargs.remove(place).1)
        };
        let by_place = given.args.len().min(count);
        let mut given_values = Vec::with_capacity(count);
        for (place, parameter) in it.parameters.iter().enumerate() {
            given_values.push(match place < by_place {
                true => Some(given.args[place].clone()),
                false => take(&mut given, &parameter.name),
            });
        }
        if let Some(slot) = it.caller {
            let caller = take(&mut given, "caller").filter(|caller| !matches!(caller, Value::None));
            let caller = caller.unwrap_or_else(|| Value::undefined("no caller is defined"));
            Self::put(scope, slot, Some(caller));
        }
        match it.kwargs {
            Some(slot) => {
                let pairs = given.kwargs.drain(..).map(|(name, value)| (Value::from(&*name), value));
                Self::put(scope, slot, Some(Value::dict(pairs)?));
            }
            None => {
                // their names may come from a message, through **
                if !given.kwargs.is_empty() {
                    return failed(format!(
                        "macro {:?} was given a keyword argument it does not take",
                        it.name
                    ));
                }
            }
        }
        match it.varargs {
            Some(slot) => {
                let rest = given.args.get(count..).unwrap_or_default().to_vec();
                Self::put(scope, slot, Some(Value::tuple(rest)?));
            }
            None if given.args.len() > count => {
                return failed(format!("macro {:?} takes not more than {count} arguments", it.name));
            }
            None => {}
        }
        for (parameter, value) in it.parameters.iter().zip(&given_values) {
            Self::put(scope, parameter.slot, value.clone());
        }
        self.enter(&it.frame, scope);
        for (parameter, value) in it.parameters.iter().zip(given_values) {
            if value.is_none() {
                let value = match &parameter.default {
                    Some(default) => self.eval(default, scope)?,
                    None => Value::undefined("a parameter that was not provided is undefined"),
                };
                Self::put(scope, parameter.slot, Some(value));
            }
        }
        Ok(())
    }

    fn call_function(&mut self, name: &str, given: Given) -> Result<Value> {
        match name {
            "range" => {
                if given.args.is_empty() || !given.kwargs.is_empty() || given.args.len() > 3 {
                    return failed("range takes one to three arguments, by place");
                }
                let ints: Vec<i128> = given.args.iter().map(ops::int).collect::<Result<_>>()?;
                let (start, stop, step) = match ints.as_slice() {
                    [stop] => (0, *stop, 1),
                    [start, stop] => (*start, *stop, 1),
                    [start, stop, step, ..] => (*start, *stop, *step),
                    [] => unreachable!("one was asked for"),
                };
                let is_sane = [start, stop, step].iter().all(|int| int.unsigned_abs() < 1 << 64);
                if step == 0 || !is_sane {
                    return failed("range() needs a step that is not zero, and bounds below 2^64");
                }
                let range = Range { start, stop, step };
                if range.len() > MOST_IN_RANGE {
                    return failed(format!(
                        "range too big: the sandbox blocks ranges larger than {MOST_IN_RANGE}"
                    ));
                }
                Ok(Value::Range(range))
            }
            "dict" => {
                let pairs = dict_pairs("dict", given)?;
                Value::dict(pairs)
            }
            "namespace" => {
                let pairs = dict_pairs("namespace", given)?;
                let hidden = |key: &Value| matches!(key, Value::Str(key) if key.starts_with('_'));
                if pairs.iter().any(|(key, _)| hidden(key)) {
                    return failed("an attribute of a namespace may not begin with an underscore");
                }
                let namespace = Rc::new(RefCell::new(Dict::from_pairs(pairs)?));
                self.namespaces.push(Rc::clone(&namespace));
                Ok(Value::Namespace(namespace))
            }
            "cycler" => {
                if given.args.is_empty() || !given.kwargs.is_empty() {
                    return failed("at least one item has to be provided to cycler");
                }
                Ok(Value::Cycler(Rc::new(Cycler { items: Seq::new(given.args)?, place: Cell::new(0) })))
            }
            "joiner" => {
                let [separator] = given.bind("joiner", ["sep"], 0)?;
                let separator = separator.unwrap_or_else(|| Value::from(", "));
                Ok(Value::Joiner(Rc::new(Joiner { separator, used: Cell::new(false) })))
            }
            "raise_exception" => {
                let [message] = given.bind("raise_exception", ["message"], 1)?;
                let message = str_of(&message.expect("required"))?.chars().take(1000).collect();
                Err(Box::new(Fault::Refused(message)))
            }
            "strftime_now" => {
                let [format] = given.bind("strftime_now", ["format"], 1)?;
                let format = format.expect("required");
                Ok(Value::from(strftime(text(&format)?, (self.now)())?))
            }
            _ => failed(format!("the function {name:?} is not supported")),
        }
    }
}

/// What Python's `dict(..)` takes.
fn dict_pairs(function: &str, given: Given) -> Result<Vec<(Value, Value)>> {
    let mut pairs = Vec::new();
    match given.args.as_slice() {
        [] => {}
        [Value::Dict(dict)] => pairs.extend(dict.entries().iter().cloned()),
        [items] => {
            for pair in items.to_vec()? {
                match pair.to_vec()?.as_slice() {
                    [key, value] => pairs.push((key.clone(), value.clone())),
                    _ => return failed(format!("{function} needs pairs")),
                }
            }
        }
        _ => return failed(format!("{function} takes at most one argument by place")),
    }
    pairs.extend(given.kwargs.into_iter().map(|(name, value)| (Value::from(&*name), value)));
    Ok(pairs)
}
