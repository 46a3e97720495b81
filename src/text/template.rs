//! Messages → one string, through the checkpoint's chat template.
//!
//! A template is a Jinja program, and the model was trained on what Python's `jinja2` made of it, so the
//! result must be equal byte for byte. minijinja runs the program; `python` adds what it lacks; the
//! variables are those that `apply_chat_template` of `transformers` passes: `messages`, `tools`,
//! `documents`, `add_generation_prompt`, the special tokens, and over all of these but the first two the caller's
//! own arguments (`chat_template_kwargs`). An undefined variable prints as
//! nothing, and its attributes are an error, as with jinja2's default.
//!
//! A template comes from whoever made the model and may be broken or hostile. It has fuel for some millions
//! of steps, which bounds its time and its memory, and a recursion limit; it reads no files.
//!
//! `strftime_now` is the one thing that makes a reward depend on more than its sample: a template that asks
//! for today's date changes at midnight (UTC, so that all servers change at once).

use std::error::Error as _;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};

pub use super::files::SpecialTokens;
use super::{Conversation, Message, TextError, python};

/// One fuel is an instruction or 64 bytes of data. Every template of `tests/text.rs` renders 32 MiB or a
/// hundred thousand messages with it; the hostile ones we tried were stopped within 2 s (x86-64, 2 cores).
const FUEL: u64 = 10_000_000;

/// A macro that calls itself costs ten or more per call; no real template goes deeper than a few.
const RECURSION_LIMIT: usize = 200;

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles `source`; the special tokens become its variables.
    ///
    /// Fails if the source is not a template.
    pub fn new(source: &str, special_tokens: &SpecialTokens) -> Result<Self, Box<Error>> {
        let mut environment = Environment::new();
        environment.set_debug(false); // an error must not carry the messages
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("trim", python::trim);
        environment.add_test("sequence", python::is_sequence);
        environment.add_function("raise_exception", raise_exception);
        for (name, token) in special_tokens {
            environment.add_global(name.clone(), Value::from(Serde(token)));
        }
        environment.add_template_owned("chat", rename_generation_tags(source))?;
        Ok(Self { environment }.with_clock(SystemTime::now))
    }

    /// The same template with another clock for `strftime_now`.
    pub fn with_clock(mut self, now: fn() -> SystemTime) -> Self {
        let strftime_now = move |format: &str| python::strftime(format, now());
        self.environment.add_function("strftime_now", strftime_now);
        self
    }

    /// Renders a conversation; its own arguments may ask for another `add_generation_prompt`.
    ///
    /// Fails if the template refuses it (`raise_exception`), makes a mistake, or never ends.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let template = self.environment.get_template("chat").expect("added when it was made");
        let Conversation { messages, tools, arguments } = conversation;
        let messages: Vec<_> = messages.iter().map(Message::for_template).collect();
        let defaults = context! { documents => (), add_generation_prompt };
        let rest = context! { ..Value::from(Serde(arguments)), ..defaults }; // the first one counts
        let variables = context! { messages => Serde(messages), tools => Serde(tools), ..rest };
        template.render(variables).map_err(|error| match refusal(&error) {
            Some(message) => TextError::TemplateRefused { message },
            None => TextError::TemplateFailed { reason: error.to_string() },
        })
    }
}

/// What a template said through `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: &Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message.to_string())))
}

fn refusal(error: &Error) -> Option<String> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(Refusal(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        cause = error.source();
    }
    None
}

/// `{% generation %}` marks what a trainer computes its loss on, and prints its body unchanged. To us it is
/// `{% with %}`: the same scope, and the same rules for the white space around it.
fn rename_generation_tags(source: &str) -> String {
    const RENAMED: [(&str, &str); 2] = [("generation", "with"), ("endgeneration", "endwith")];
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        for (name, replacement) in RENAMED {
            let Some(after) = word.strip_prefix(name) else { continue };
            if after.trim_start().trim_start_matches(['-', '+']).starts_with("%}") {
                out.push_str(&tag[..tag.len() - word.len()]);
                out.push_str(replacement);
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread;
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn render(source: &str) -> Result<String, TextError> {
        let tokens = BTreeMap::from([
            ("bos_token".to_owned(), json!("<s>")),
            ("additional_special_tokens".to_owned(), json!(["<a>", "<b>"])),
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
            ("{{ bos_token }}{{ eos_token }}{{ additional_special_tokens[1] }}", "<s><b>"),
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
        for untouched in
            ["{{ generation }}", "{% if generation %}", "{% generations %}", "{%", "generation %}"]
        {
            assert_eq!(rename_generation_tags(untouched), untouched);
        }
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
            "{{ strftime_now('%Q') }}",
        ] {
            let error = render(source).unwrap_err();
            assert!(matches!(error, TextError::TemplateFailed { .. }), "{source}: {error}");
            assert!(!format!("{error:?}").contains("there"), "{error:?}");
        }
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let hostile = [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% set n = namespace(s='x') %}{% for a in range(99999) %}{% set n.s = n.s + n.s %}{% endfor %}",
            "{{ 'x' * 99999999999 }}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        ];
        // the stack of a worker thread, not that of main
        let stopped = thread::spawn(move || hostile.map(|source| render(source).is_err())).join().unwrap();
        assert_eq!(stopped, [true; 4]);
    }
}
