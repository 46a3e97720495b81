//! Calls: macros, call blocks, recursive loops, global functions.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::super::ast::{Expr, Kind, Macro, Step, StepKind};
use super::super::clock::strftime;
use super::super::given::{Given, text};
use super::super::meter::{Fault, Result, failed};
use super::super::show::str_of;
use super::super::value::{Cycler, Dict, Joiner, LoopState, MacroValue, Range, Scope, Seq, Value};
use super::super::{methods, ops};
use super::{Flow, Renderer};

/// As the sandbox has it.
const MOST_IN_RANGE: usize = 100_000;

impl<'p> Renderer<'p> {
    pub(super) fn call(&mut self, callee: &Value, given: Given) -> Result<Value> {
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
    pub(super) fn call_loop(&mut self, state: &LoopState, given: &Given) -> Result<Value> {
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

    pub(super) fn call_block(
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

    pub(super) fn macro_value(
        &mut self,
        index: usize,
        name: Option<Arc<str>>,
        scope: &Rc<Scope>,
    ) -> Rc<MacroValue> {
        let mut outward = Some(scope);
        while let Some(it) = outward.filter(|it| !it.is_captured.replace(true)) {
            self.captured.push(Rc::clone(it));
            outward = it.parent.as_ref();
        }
        Rc::new(MacroValue { index, name, scope: Rc::clone(scope) })
    }

    /// Arguments go to parameters as jinja2's `Macro.__call__` hands them out.
    pub(super) fn call_macro(&mut self, value: &MacroValue, given: Given) -> Result<Value> {
        let it = &self.program.macros[value.index];
        let scope = Scope::new(it.slots, Some(Rc::clone(&value.scope)));
        self.bind_macro(it, given, &scope)?;
        let mut out = String::new();
        self.block(&it.body, &scope, &mut out)?;
        Ok(Value::from(out))
    }

    pub(super) fn bind_macro(&mut self, it: &'p Macro, mut given: Given, scope: &Rc<Scope>) -> Result<()> {
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

    pub(super) fn call_function(&mut self, name: &str, given: Given) -> Result<Value> {
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
