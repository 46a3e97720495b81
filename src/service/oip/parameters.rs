//! The parameters of a request.

use std::fmt;
use std::time::Duration;

use crate::engine::Priority;
use crate::service::oip::tensors::quoted;
use crate::service::request::Violations;
use crate::text::Truncation;

/// A value, as both forms have it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Parameter<'a> {
    Bool(bool),
    Integer(i64),
    /// With a fraction, or not finite.
    Number(f64),
    Text(&'a str),
    /// An object, a list, or nothing.
    Other,
}

/// What the parameters say that are known here.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    pub(super) timeout: Option<Duration>,
    pub(super) priority: Priority,
    pub(super) truncation: Truncation,
    pub(super) return_members: bool,
    pub(super) request_id: String,
    pub(super) routing_key: String,
    pub(super) expected_fingerprint: String,
}

impl Parameters {
    pub(super) fn read(given: &[(&str, Parameter<'_>)], violations: &mut Violations) -> Self {
        let mut read = Self::default();
        for &(name, value) in given {
            let problem = match name {
                "timeout" => read.set_timeout(value),
                "priority" => read.set_priority(value),
                "truncation" => read.set_truncation(value),
                "return_members" => match value {
                    Parameter::Bool(value) => {
                        read.return_members = value;
                        Ok(())
                    }
                    _ => Err("true or false"),
                },
                "request_id" => set_text(&mut read.request_id, value),
                "routing_key" => set_text(&mut read.routing_key, value),
                "expected_fingerprint" => set_text(&mut read.expected_fingerprint, value),
                _ => Ok(()),
            };
            if let Err(needed) = problem {
                violations
                    .add(&format!("parameters.{name}"), format!("is {value}, where {needed} is needed"));
            }
        }
        violations.check_length("parameters.request_id", &read.request_id);
        violations.check_length("parameters.routing_key", &read.routing_key);
        violations.check_length("parameters.expected_fingerprint", &read.expected_fingerprint);
        read
    }

    fn set_timeout(&mut self, value: Parameter<'_>) -> Result<(), &'static str> {
        self.timeout = match value {
            Parameter::Integer(0) => None,
            Parameter::Integer(value) => match u64::try_from(value) {
                Ok(micros) => Some(Duration::from_micros(micros)),
                Err(_) => return Err("a whole number of microseconds, or 0 for none,"),
            },
            _ => return Err("a whole number of microseconds, or 0 for none,"),
        };
        Ok(())
    }

    fn set_priority(&mut self, value: Parameter<'_>) -> Result<(), &'static str> {
        self.priority = match value {
            Parameter::Integer(0 | 2) => Priority::Normal,
            Parameter::Integer(1) => Priority::Interactive,
            Parameter::Integer(3..) => Priority::Background,
            _ => return Err("a whole number, 1 for the most urgent and 0 for the default,"),
        };
        Ok(())
    }

    fn set_truncation(&mut self, value: Parameter<'_>) -> Result<(), &'static str> {
        self.truncation = match value {
            Parameter::Text("reject") => Truncation::Reject,
            Parameter::Text("left") => Truncation::Left,
            Parameter::Text("right") => Truncation::Right,
            _ => return Err("\"reject\", \"left\" or \"right\""),
        };
        Ok(())
    }
}

fn set_text(text: &mut String, value: Parameter<'_>) -> Result<(), &'static str> {
    let Parameter::Text(value) = value else { return Err("a string") };
    value.clone_into(text);
    Ok(())
}

impl fmt::Display for Parameter<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(formatter),
            Self::Integer(value) => value.fmt(formatter),
            Self::Number(value) => write!(formatter, "{value:?}"),
            Self::Text(value) => formatter.write_str(&quoted(value)),
            Self::Other => formatter.write_str("neither a string nor a number"),
        }
    }
}

/// Refuses the parameters of a tensor that ask for what is not here.
pub(super) fn refuse(name: &str, has: impl Fn(&str) -> bool, violations: &mut Violations) {
    for refused in ["shared_memory_region", "classification"].into_iter().filter(|refused| has(refused)) {
        violations.add(name, format!("has the parameter {refused}, which is not here"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tritons_numbers_are_our_priorities() {
        for (number, expected) in [
            (0, Some(Priority::Normal)),
            (1, Some(Priority::Interactive)),
            (2, Some(Priority::Normal)),
            (3, Some(Priority::Background)),
            (i64::MAX, Some(Priority::Background)),
            (-1, None),
        ] {
            let mut violations = Violations::default();
            let read = Parameters::read(&[("priority", Parameter::Integer(number))], &mut violations);
            let read = violations.none().map(|()| read.priority);
            assert_eq!(read.ok(), expected, "{number}");
        }
    }

    #[test]
    fn a_parameter_of_another_kind_is_named() {
        let long = "x".repeat(300);
        for (name, value, told) in [
            ("timeout", Parameter::Number(f64::NAN), "parameters.timeout: is NaN, where a whole number of"),
            ("timeout", Parameter::Integer(-5), "is -5"),
            ("timeout", Parameter::Text("5"), "is \"5\""),
            ("priority", Parameter::Number(1.5), "parameters.priority: is 1.5"),
            (
                "truncation",
                Parameter::Text("middle"),
                "is \"middle\", where \"reject\", \"left\" or \"right\"",
            ),
            ("return_members", Parameter::Integer(1), "is 1, where true or false is needed"),
            ("routing_key", Parameter::Other, "is neither a string nor a number, where a string is needed"),
            ("routing_key", Parameter::Text(&long), "has 300 bytes, the limit is 256"),
        ] {
            let mut violations = Violations::default();
            Parameters::read(&[("unknown", Parameter::Other), (name, value)], &mut violations);
            let error = violations.none().unwrap_err().to_string();
            assert!(error.contains(told), "{name}: {error}");
        }
    }
}
