//! What a caller says beside the body, in headers `x-rewarm-NAME` or in query parameters `NAME`: some clients know only a
//! URL. A header goes before a parameter, and what the body says goes before both.
//!
//! | name | value |
//! | --- | --- |
//! | `variant` | the variant that scores; else routing decides |
//! | `routing-key` | requests with the same key go to the same variant; else the first sample's prompt takes its place |
//! | `priority` | `interactive`, `normal` (the default) or `background` |
//! | `truncation` | `reject` (the default), `left` or `right` |
//! | `expected-fingerprint` | 412 unless the variant has it |
//! | `timeout-ms` | 504 where the answer would come later |
//! | `request-id` | echoed |
//! | `rendered` | `true` or `false`: whether the prompt of `/rm` is, see there |
//!
//! A name that nobody knows is refused: a run whose `varient` went unnoticed would train on another reward.

use std::borrow::Cow;
use std::time::Duration;

use http::request::Parts;
use tokio::time::Instant;

use crate::engine::Priority;
use crate::service::call;
use crate::service::request::Options;
use crate::service::request::Received;
use crate::service::request::Request;
use crate::service::request::Target;
use crate::service::request::Violations;
use crate::service::status::ServiceError;
use crate::text::Truncation;

/// Of headers; parameters have none.
const PREFIX: &str = "x-rewarm-";

/// All names.
pub(in crate::service) const NAMES: [&str; 8] = [
    "variant",
    "routing-key",
    "priority",
    "truncation",
    "expected-fingerprint",
    "timeout-ms",
    "request-id",
    "rendered",
];

/// What was said, by whichever way; empty or none where nothing was.
#[derive(Clone, Debug, Default)]
pub(in crate::service) struct Asked {
    pub(in crate::service) variant: String,
    pub(in crate::service) routing_key: String,
    pub(in crate::service) request_id: String,
    pub(in crate::service) expected_fingerprint: String,
    pub(in crate::service) priority: Option<Priority>,
    pub(in crate::service) truncation: Option<Truncation>,
    /// Only bodies say it.
    pub(in crate::service) max_tokens: Option<usize>,
    pub(in crate::service) rendered: Option<bool>,
    pub(in crate::service) deadline: Option<Instant>,
}

impl Asked {
    /// Fails with every name that is not known, and every value that is none.
    pub(in crate::service) fn read(head: &Parts) -> Result<Self, ServiceError> {
        let mut asked = Self::default();
        let mut violations = Violations::default();
        for (name, value) in head.uri.query().map(parameters).into_iter().flatten() {
            // `routing_key` is what a Python programmer writes
            asked.take(&name, &name.to_ascii_lowercase().replace('_', "-"), &value, &mut violations);
        }
        for (header, value) in &head.headers {
            if let Some(name) = header.as_str().strip_prefix(PREFIX) {
                let value = String::from_utf8_lossy(value.as_bytes());
                asked.take(header.as_str(), name, value.trim(), &mut violations);
            }
        }
        violations.none()?;
        Ok(asked)
    }

    fn take(&mut self, field: &str, name: &str, value: &str, violations: &mut Violations) {
        violations.check_length(field, value);
        let mut one_of = |known: &str| {
            let shown: String = value.chars().take(32).collect();
            violations.add(field, format!("is {shown:?}: send {known}"));
        };
        match name {
            "variant" => value.clone_into(&mut self.variant),
            "routing-key" => value.clone_into(&mut self.routing_key),
            "request-id" => value.clone_into(&mut self.request_id),
            "expected-fingerprint" => value.clone_into(&mut self.expected_fingerprint),
            "priority" => match priority(value) {
                Some(priority) => self.priority = Some(priority),
                None => one_of("interactive, normal or background"),
            },
            "truncation" => match truncation(value) {
                Some(truncation) => self.truncation = Some(truncation),
                None => one_of("reject, left or right"),
            },
            "rendered" => match value {
                "true" => self.rendered = Some(true),
                "false" => self.rendered = Some(false),
                _ => one_of("true or false"),
            },
            "timeout-ms" => match value.parse() {
                Ok(ms @ 1..) => self.deadline = call::deadline_in(Duration::from_millis(ms)),
                _ => one_of("a whole number of milliseconds, at least 1"),
            },
            _ => violations.add(field, format!("is not known: there are {}", NAMES.join(", "))),
        }
    }

    /// A request for these samples; `all_or_none` as in [`Options`].
    pub(in crate::service) fn request(
        self,
        inputs: Vec<Received>,
        all_or_none: Option<&'static str>,
    ) -> Request {
        let options = Options {
            priority: self.priority.unwrap_or_default(),
            truncation: self.truncation.unwrap_or_default(),
            max_tokens: self.max_tokens,
            return_members: false,
            expected_fingerprint: Some(self.expected_fingerprint).filter(|expected| !expected.is_empty()),
            all_or_none,
        };
        let target = Target::new(self.variant, self.routing_key, inputs.first());
        Request { inputs, target, options }
    }
}

/// By its name.
pub(in crate::service) fn priority(name: &str) -> Option<Priority> {
    match name.to_ascii_lowercase().as_str() {
        "" | "normal" => Some(Priority::Normal),
        "interactive" => Some(Priority::Interactive),
        "background" => Some(Priority::Background),
        _ => None,
    }
}

/// By its name.
pub(in crate::service) fn truncation(name: &str) -> Option<Truncation> {
    match name.to_ascii_lowercase().as_str() {
        "" | "reject" => Some(Truncation::Reject),
        "left" => Some(Truncation::Left),
        "right" => Some(Truncation::Right),
        _ => None,
    }
}

/// Names and values of a query. Source: WHATWG URL, "application/x-www-form-urlencoded parsing".
fn parameters(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name).into_owned(), decoded(value).into_owned())
    })
}

fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = after.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let [high, low] = [digits[0], digits[1]].map(|digit| char::from(digit).to_digit(16));
            u8::try_from(high? * 16 + low?).ok()
        });
        bytes.push(match (escaped, first) {
            (Some(byte), _) => byte,
            (None, b'+') => b' ',
            (None, other) => *other,
        });
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str, headers: &[(&str, &str)]) -> Result<Asked, ServiceError> {
        let mut request = http::Request::post(format!("/classify?{query}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Asked::read(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn headers_go_before_parameters() {
        let asked = read(
            "variant=ens&routing_key=a%20b+c%&priority=background",
            &[("X-Rewarm-Variant", "warm"), ("x-rewarm-truncation", "left"), ("accept", "*/*")],
        )
        .unwrap();
        assert_eq!((asked.variant.as_str(), asked.routing_key.as_str()), ("warm", "a b c%"));
        assert_eq!((asked.priority, asked.truncation), (Some(Priority::Background), Some(Truncation::Left)));
        assert!(asked.deadline.is_none());
        assert!(read("timeout-ms=500", &[]).unwrap().deadline.is_some());
    }

    #[test]
    fn names_and_values_that_nobody_knows_are_refused_together() {
        let error = read("varient=ens&priority=soon", &[("x-rewarm-timeout-ms", "0")]).unwrap_err();
        let fields: Vec<String> = error.fields().into_iter().map(|field| field.field).collect();
        assert_eq!(fields, ["varient", "priority", "x-rewarm-timeout-ms"], "{error}");
        assert!(read(&format!("variant={}", "x".repeat(257)), &[]).is_err());
    }
}
