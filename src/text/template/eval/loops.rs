//! Loops, and the variable `loop`.

use std::rc::Rc;

use super::super::ast::For;
use super::super::given::Given;
use super::super::meter::{Result, failed, spend};
use super::super::ops;
use super::super::value::{LoopState, Scope, Value};
use super::{Flow, Renderer};

impl<'p> Renderer<'p> {
    pub(super) fn for_loop(&mut self, index: usize, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
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
    pub(super) fn run_loop(
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

    pub(super) fn next_item(&mut self, state: &LoopState) -> Result<Option<Value>> {
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
    pub(super) fn fetch(&mut self, state: &LoopState) -> Result<Option<Value>> {
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

    pub(super) fn peek(&mut self, state: &LoopState) -> Result<Option<Value>> {
        if state.after.borrow().is_none() {
            let item = self.fetch(state)?;
            state.after.replace(item);
        }
        Ok(state.after.borrow().clone())
    }

    pub(super) fn loop_length(&mut self, state: &LoopState) -> Result<i128> {
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

    pub(super) fn loop_attribute(&mut self, state: &Rc<LoopState>, name: &str) -> Result<Option<Value>> {
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

    pub(super) fn loop_method(&mut self, state: &Rc<LoopState>, method: &str, given: Given) -> Result<Value> {
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
}
