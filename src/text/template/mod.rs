//! Messages → one string, through the checkpoint's chat template.
//!
//! A template is a Jinja program, and the model was trained on what Python's `jinja2` made of it, so the
//! result must be equal byte for byte: `jinja2` 3.1.6 as `transformers` sets it up (the sandbox that forbids
//! changing lists and mappings, `trim_blocks`, `lstrip_blocks`, loop controls, its own `tojson`,
//! `raise_exception`, `strftime_now`, `{% generation %}`). A template that this does not have all of is
//! refused when it is loaded, by name and line; one that loads renders what Python renders, or raises.
//!
//! ```text
//! source → lexer → parser → ast → scope (names → places) → check (what is not supported) → eval
//!                                                   methods · filters · predicates
//!                                                       printf · access · json · show · ops
//!                                                           value · meter
//! ```
//!
//! The variables are those that `apply_chat_template` passes: `messages`, `tools`, `documents`,
//! `add_generation_prompt`, the special tokens, and over all of these but the first two the caller's own
//! arguments (`chat_template_kwargs`).
//!
//! A template comes from whoever made the model and may be broken or hostile. Source, nesting, steps, memory,
//! output and time are bounded (`parser`, `meter`, `eval`), and an error never carries a message's text.
//!
//! `strftime_now` is the one thing that makes a reward depend on more than its sample: a template that asks
//! for today's date changes at midnight (UTC, so that all servers change at once).
//!
//! # Why not minijinja?
//!
//! It was here first. Its values and operators are its own: it compares a string with a number where Python
//! raises, finds the key `items` of a mapping where Python finds the method, prints 1e16 with all its digits,
//! and binds a macro's variables where the macro stands. None of these can be changed from outside, each is
//! another reward in silence, and its parser, compiler and `Drop` end the process for a template that is
//! nested deep enough.

mod access;
mod ast;
mod chars;
mod check;
mod clock;
#[cfg(test)]
mod differential;
mod eval;
mod filters;
mod given;
#[cfg(test)]
mod hostile;
mod json;
mod lexer;
mod meter;
mod methods;
mod names;
mod ops;
mod parser;
mod predicates;
mod printf;
mod scope;
mod show;
mod str_format;
mod value;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use serde_json::Value as Json;

use self::eval::Variables;
use self::meter::Fault;
use self::value::Value;
pub use super::files::SpecialTokens;
use super::{Conversation, Message, TextError};

/// The longest template of those that public packages carry has 60 KB.
const MOST_SOURCE: usize = 1 << 20;

/// Text written to the result and to variables, beside sixteen times the conversation's.
const MOST_OUTPUT: usize = 64 << 20;

/// A template that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the template: {reason}")]
pub struct TemplateError {
    line: u32,
    reason: String,
}

impl TemplateError {
    fn new(line: u32, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into() }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    program: ast::Program,
    special_tokens: SpecialTokens,
    now: fn() -> SystemTime,
}

impl ChatTemplate {
    /// Compiles `source`; the special tokens become its variables.
    ///
    /// Fails if the source is not a template, or uses what is not supported.
    pub fn new(source: &str, special_tokens: &SpecialTokens) -> Result<Self, TemplateError> {
        if source.len() > MOST_SOURCE {
            let reason = format!("it has {} bytes, the limit is {MOST_SOURCE}", source.len());
            return Err(TemplateError::new(1, reason));
        }
        let mut program = scope::resolve(parser::parse(source)?)?;
        check::check(&mut program)?;
        Ok(Self { program, special_tokens: special_tokens.clone(), now: SystemTime::now })
    }

    /// The same template with another clock for `strftime_now`.
    pub fn with_clock(self, now: fn() -> SystemTime) -> Self {
        Self { now, ..self }
    }

    /// Renders a conversation; its own arguments may ask for another `add_generation_prompt`.
    ///
    /// Fails if the template refuses it (`raise_exception`), makes a mistake, or never ends.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let Conversation { messages, tools, arguments } = conversation;
        let messages: Vec<_> = messages.iter().map(Message::for_template).collect();
        let fields = messages.iter().flatten();
        let tools = tools.as_deref().unwrap_or_default();
        let input_bytes = fields.map(|(_, value)| bytes_of(value)).sum::<usize>()
            + tools.iter().chain(arguments.values()).map(bytes_of).sum::<usize>();
        self.run(input_bytes, || {
            let mut variables = self.variables()?;
            variables.insert("documents", Value::None);
            variables.insert("add_generation_prompt", Value::Bool(add_generation_prompt));
            for (name, value) in arguments {
                variables.insert(name, Value::from_json(value)?);
            }
            let fields = |message: &Vec<(&str, &Json)>| -> meter::Result<Value> {
                let pairs =
                    message.iter().map(|(key, value)| Ok((Value::from(*key), Value::from_json(value)?)));
                Value::dict(pairs.collect::<meter::Result<Vec<_>>>()?)
            };
            variables
                .insert("messages", Value::list(messages.iter().map(fields).collect::<meter::Result<_>>()?)?);
            let tools = match conversation.tools {
                Some(_) => Value::list(tools.iter().map(Value::from_json).collect::<meter::Result<_>>()?)?,
                None => Value::None,
            };
            variables.insert("tools", tools);
            Ok(variables)
        })
    }

    /// The special tokens.
    fn variables(&self) -> meter::Result<Variables<'_>> {
        self.special_tokens
            .iter()
            .map(|(name, token)| Ok((name.as_str(), Value::from_json(token)?)))
            .collect()
    }

    fn run<'v>(
        &self,
        input_bytes: usize,
        variables: impl FnOnce() -> meter::Result<Variables<'v>>,
    ) -> Result<String, TextError> {
        meter::start(input_bytes);
        let most_output = MOST_OUTPUT.saturating_add(input_bytes.saturating_mul(16));
        // nothing here is known to panic; if something does, it is this sample's error and not the server's end
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            eval::render(&self.program, &variables()?, self.now, most_output)
        }));
        match rendered {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(fault)) => Err(match *fault {
                Fault::Refused(message) => TextError::TemplateRefused { message },
                Fault::Failed { reason, line } => {
                    TextError::TemplateFailed { reason: at_line(line, &reason) }
                }
                Fault::Exhausted { reason, line } => {
                    TextError::TemplateExhausted { reason: at_line(line, &reason) }
                }
            }),
            Err(_) => {
                Err(TextError::TemplateFailed { reason: "the renderer has a fault: report it".to_owned() })
            }
        }
    }
}

fn at_line(line: Option<u32>, reason: &str) -> String {
    line.map_or_else(|| reason.to_owned(), |line| format!("line {line} of the template: {reason}"))
}

/// About what a conversation holds.
fn bytes_of(json: &Json) -> usize {
    match json {
        Json::String(text) => text.len() + 64,
        Json::Array(items) => items.iter().map(bytes_of).sum::<usize>() + 64,
        Json::Object(map) => {
            map.iter().map(|(key, value)| key.len() + 128 + bytes_of(value)).sum::<usize>() + 64
        }
        _ => 64,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn render(source: &str) -> Result<String, TextError> {
        let tokens = BTreeMap::from([
            ("bos_token".to_owned(), json!("<s>")),
            ("image_token".to_owned(), json!("<image>")),
        ]);
        let messages = [Message::new("user", "  Hi <there> "), Message::new("assistant", "\x1cHé\n")];
        let template = ChatTemplate::new(source, &tokens)
            .map_err(|error| TextError::TemplateFailed { reason: error.to_string() })?;
        template
            .with_clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_721_995_200))
            .render(&messages.to_vec().into(), false)
    }

    /// The expected strings are those of jinja2 3.1.6, set up as in `transformers`.
    #[test]
    fn templates_mean_what_they_mean_in_python() {
        for (source, expected) in [
            ("{{ bos_token }}{{ eos_token }}{{ image_token }}", "<s><image>"),
            ("{{ messages[0].content | trim }}|{{ messages[1]['content'].strip() }}|", "Hi <there>|Hé|"),
            ("{{ missing | trim }}|{{ none | trim }}|{{ 'xax' | trim('x') }}", "|None|a"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "  Hi <there> "}"#),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            ("{{ none }} {{ true }} {{ 1.0 }} {{ [1, 'a'] }}", "None True 1.0 [1, 'a']"),
            ("{{ tools is none }} {{ documents is none }} {{ tools is defined }}", "True True True"),
            ("{{ missing }}{{ messages[0].tool_calls }}{{ missing is defined }}", "False"),
            ("{% if add_generation_prompt %}a{% endif %}\nb\n", "b"),
            ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
            (
                "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
                "user",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + loop.index0 %}\
                 {% endfor %}{{ ns.n }}",
                "1",
            ),
            ("{{ 'x' is sequence }} {{ messages[0] is sequence }} {{ 'x' is mapping }}", "True True False"),
            (
                "{{ messages[0].get('name', 'x') }} {{ 'a,b'.split(',')[-1] }} {{ 'ab'.startswith('a') }}",
                "x b True",
            ),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    /// `tests/reference/messages.py` made the expected strings, with `apply_chat_template` of transformers 5.23.0.
    #[test]
    fn tools_and_arguments_reach_the_template() {
        let conversation = |tools: &str, arguments: &str| {
            let messages = vec![Message::new("user", "hi")];
            let json = |text: &str| (!text.is_empty()).then(|| serde_json::from_str(text).unwrap());
            Conversation::new(messages, json(tools), json(arguments)).unwrap()
        };
        let render = |source, tools, arguments| {
            let tokens = BTreeMap::from([("bos_token".to_owned(), json!("<s>"))]);
            ChatTemplate::new(source, &tokens)
                .unwrap()
                .render(&conversation(tools, arguments), false)
                .unwrap()
        };
        let source =
            "{{ tools | tojson }} {{ documents }} {{ x }} {{ bos_token }} {{ add_generation_prompt }}";
        for (tools, arguments, expected) in [
            ("", "", "null None  <s> False"),
            ("[]", r#"{"x": 1, "bos_token": "<b>"}"#, "[] None 1 <b> False"),
            (
                r#"[{"b": 1.0, "a": {"d": 2, "c": null}}]"#,
                r#"{"documents": [{"text": "t"}], "add_generation_prompt": true}"#,
                r#"[{"b": 1.0, "a": {"d": 2, "c": null}}] [{'text': 't'}]  <s> True"#,
            ),
        ] {
            assert_eq!(render(source, tools, arguments), expected);
        }
    }

    #[test]
    fn generation_tags_print_their_body() {
        let plain =
            "{%- for m in messages %}\n  {%- if true -%}\n {{ m.role }}\n  {%- endif %}\nx\n{%- endfor %}";
        let tagged =
            plain.replace("{%- if true -%}", "{%- generation -%}").replace("endif", " endgeneration ");
        assert_eq!(render(&tagged).unwrap(), render(plain).unwrap());
        // what is set inside stays inside
        let source = "{% set a = 1 %}{%generation%}{% set a = 2 %}{{ a }}{%endgeneration%}{{ a }}";
        assert_eq!(render(source).unwrap(), "21");
    }

    #[test]
    fn raise_exception_carries_its_message() {
        for source in [
            "{{ raise_exception('roles must alternate: ' + messages[0].role) }}",
            "{% macro m() %}{{ raise_exception('roles must alternate: user') }}{% endmacro %}{{ m() }}",
        ] {
            match render(source) {
                Err(TextError::TemplateRefused { message }) => {
                    assert_eq!(message, "roles must alternate: user")
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_template_that_fails_is_an_error_without_the_messages() {
        for source in [
            "{{ missing.attribute }}",
            "{{ 1 + 'a' }}",
            "{{ messages | nosuchfilter }}",
            "{% include 'passwords' %}",
            "{{ dict(**messages[1]).x.y }}{{ 'x'.center(**{messages[0].content: 1}) }}",
            "{{ [1] | map(messages[0].content) | list }}",
            "{{ [1] | select(messages[0].content) | list }}",
            "{{ [{}] | map(attribute=messages[0].content) | sum }}",
            "{{ ('{' ~ messages[0].content ~ '}').format(1) }}",
            "{{ ('{0.' ~ messages[0].content ~ '.x}').format({}) }}",
            "{{ {}[messages[0].content].x }}",
            "{{ strftime_now('%Q') }}",
        ] {
            let error = render(source).unwrap_err();
            assert!(matches!(error, TextError::TemplateFailed { .. }), "{source}: {error}");
            assert!(!format!("{error:?}").contains("there"), "{error:?}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name_and_line() {
        for (source, named) in [
            ("a\n{{ [1] | random }}", "line 2 of the template: the filter \"random\""),
            ("{% if x %}\n{{ x | pprint }}{% endif %}", "line 2 of the template: the filter \"pprint\""),
            ("{{ lipsum() }}", "\"lipsum\""),
            ("{% if x %}{{ x.encode('utf-8') }}{% endif %}", "the method \"encode\""),
            ("{{ messages.append(1) }}", "the method \"append\""),
            ("{{ 'a'.nothing() }}", "a method \"nothing\""),
            ("{{ nothing() }}", "no function is named \"nothing\""),
            ("{{ 1 is nothing }}", "no test is named \"nothing\""),
            (
                "{% for m in messages %}\n\n{% include 'x' %}{% endfor %}",
                "line 3 of the template: {% include %}",
            ),
            ("{% block x %}{% endblock %}", "{% block %}"),
            ("{% do x %}", "unknown tag \"do\""),
            (
                "{% for x in y %}{% call m() %}\n{% break %}{% endcall %}{% endfor %}",
                "line 2 of the template: a break",
            ),
            ("{{ self.x() }}", "`self`"),
            ("{{ strftime_now('%Q') }}", "strftime_now"),
            ("{% if %}", "line 1 of the template: expected an expression, but the tag ends"),
            ("a {{ b\n c }}", "line 2 of the template: expected \"}}\", but there is \"c\""),
        ] {
            let error = ChatTemplate::new(source, &BTreeMap::new()).unwrap_err().to_string();
            assert!(error.contains(named), "{source}: {error}");
        }
    }
}
