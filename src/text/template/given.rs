//! The arguments of a call, and how they become a function's parameters.

use std::sync::Arc;

use super::meter::{Result, failed};
use super::ops;
use super::value::{Str, Value};

#[derive(Default)]
pub(super) struct Given {
    pub(super) args: Vec<Value>,
    pub(super) kwargs: Vec<(Arc<str>, Value)>,
}

impl Given {
    /// Each parameter's value, by place or by name; the first `required` must be there. A name with a star in
    /// front can only be given by place.
    pub(super) fn bind<const N: usize>(
        &self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        if self.args.len() > N {
            return failed(format!("{function} takes at most {N} arguments, {} were given", self.args.len()));
        }
        let mut bound: [Option<Value>; N] = std::array::from_fn(|place| self.args.get(place).cloned());
        for (name, value) in &self.kwargs {
            match names.iter().position(|known| **known == **name) {
                Some(place) if bound[place].is_none() => bound[place] = Some(value.clone()),
                Some(_) => return failed(format!("{function} got two values for an argument")),
                // its name may come from a message, through **
                None => return failed(format!("{function} was given a keyword argument it does not take")),
            }
        }
        if let Some(place) = bound.iter().take(required).position(Option::is_none) {
            return failed(format!(
                "{function} misses its argument {:?}",
                names[place].trim_start_matches('*')
            ));
        }
        Ok(bound)
    }

    pub(super) fn none(&self, function: &str) -> Result<()> {
        self.bind(function, [], 0).map(|[]| ())
    }
}

/// A parameter that must be text.
pub(super) fn text(value: &Value) -> Result<&Str> {
    match value {
        Value::Str(text) => Ok(text),
        other => {
            other.check_defined()?;
            failed(format!("a str is needed, not '{}'", other.type_name()))
        }
    }
}

/// A parameter that may be missing.
pub(super) fn int_or(value: Option<&Value>, default: i128) -> Result<i128> {
    value.map_or(Ok(default), ops::int)
}

pub(super) fn is_given(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

/// `None` and a missing parameter are one.
pub(super) fn some(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}
