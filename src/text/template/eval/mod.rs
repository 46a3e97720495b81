//! Runs a template.
//!
//! Statements write into a string, expressions have values. What calls itself is counted, statements,
//! expressions and macros together, so that no template reaches the end of a worker thread's stack.

mod calls;
mod expressions;
mod loops;

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use super::ast::{Enter, Expr, Frame, Program, Slot, Step, Stmt, StmtKind, Target};
use super::given::Given;
use super::meter::{Result, failed, reserve, spend};
use super::names::FUNCTIONS;
use super::show::str_of;
use super::value::{Dict, LoopState, Scope, Value};

/// A build without optimisation takes some 900 KB of stack for so many. A macro that calls itself takes
/// some ten for each call.
const MOST_NESTED: usize = 300;

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
}
