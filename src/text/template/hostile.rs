//! Templates that would take the process with them are stopped, and what they held is let go.

use std::collections::BTreeMap;
use std::thread;

use super::{ChatTemplate, meter};

fn render(source: &str) -> Result<String, String> {
    let template = ChatTemplate::new(source, &BTreeMap::new()).map_err(|error| error.to_string())?;
    template
        .render(&vec![crate::text::Message::new("user", "Hi")].into(), false)
        .map_err(|error| error.to_string())
}

/// Each is stopped on half of the stack of a worker thread, as in a trial, when loaded or when rendered.
fn stopped(sources: Vec<String>) -> Vec<String> {
    let run = move || {
        sources
            .into_iter()
            .filter_map(|source| {
                let began = std::time::Instant::now();
                let error = render(&source).err().map(|error| error.to_string());
                let shown: String = source.chars().take(100).collect();
                let seconds = began.elapsed().as_secs();
                (error.is_none() || seconds > 30).then(|| format!("{shown} after {seconds} s: {error:?}"))
            })
            .collect()
    };
    thread::Builder::new().stack_size(1 << 20).spawn(run).unwrap().join().unwrap()
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let survived = stopped(
        [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% macro m(n) %}{% if true %}{{ [m(n)] | join | upper }}{% endif %}{% endmacro %}{{ m(1) }}",
            "{% macro m() %}{% call m() %}{% endcall %}{% endmacro %}{{ m() }}",
            "{% macro m() %}{% set x %}{% filter upper %}{{ (1 + (2 * (3 if m() else 4))) }}{% endfilter %}{% endset %}{% endmacro %}{{ m() }}",
            "{% for x in [1] recursive %}{% for y in [2] %}{{ loop }}{{ [[1]] }}{% endfor %}{{ loop([1]) }}{% endfor %}",
        ]
        .map(str::to_owned)
        .to_vec(),
    );
    assert!(survived.is_empty(), "{survived:#?}");
}

#[test]
fn a_template_that_takes_memory_is_stopped() {
    let growing = |first: &str, next: &str| {
        format!(
            "{{% set n = namespace(v={first}) %}}{{% for a in range(99999) %}}{{% set n.v = {next} %}}{{% endfor %}}{{{{ n.v | length }}}}"
        )
    };
    let mut sources = vec![
        growing("'x'", "n.v + n.v"),
        growing("'x'", "n.v ~ n.v"),
        growing("'ab'", "n.v | replace('a', 'aa')  | replace('b', n.v)"),
        growing("'x'", "[n.v, n.v] | join(n.v)"),
        growing("'x'", "n.v.join([n.v, n.v])"),
        growing("'x'", "'%s%s' % (n.v, n.v)"),
        growing("'x'", "'{0}{0}'.format(n.v)"),
        growing("[1]", "n.v + n.v"),
        growing("[1]", "n.v * 2"),
        growing("[1]", "[n.v]"),
        growing("[1]", "(n.v, 1)"),
        growing("[1]", "{'a': n.v}"),
        growing("[1]", "[n.v] | map('list')"),
        growing("[1]", "[n.v, n.v] | tojson"),
        growing("'x'", "[n.v, n.v] | string"),
        growing("'x'", "n.v | center(n.v | length * 2)"),
        growing("[1]", "n.v | batch(n.v | length * 2, 0) | first"),
    ];
    for expression in [
        "'x' * 99999999999",
        "[1] * 99999999999",
        "(1,) * 999999999999999999999999",
        "'x' | center(99999999999)",
        "'x'.ljust(99999999999)",
        "'x'.zfill(99999999999)",
        "'a\nb' | indent(99999999999)",
        "[1] | tojson(indent=99999999999)",
        "'\t'.expandtabs(99999999999)",
        "'%99999999999d' % 1",
        "'%.99999999999f' % 1",
        "'%*d' % (99999999999, 1)",
        "'{:>99999999999}'.format(1)",
        "'{:.99999999999f}'.format(1.0)",
        "[1] | batch(99999999999, 0) | list",
        "[1] | slice(99999999999) | list",
        "range(99999999999) | list",
        "9 ** 9 ** 9",
        "2 ** 9999999999999999999",
        "('x' * 9999999).replace('', 'y' * 99999)",
        "('x' * 9999999) | list",
        "1.5 | round(99999999999)",
    ] {
        sources.push(format!("{{{{ {expression} }}}}"));
    }
    let survived = stopped(sources);
    assert!(survived.is_empty(), "{survived:#?}");
}

#[test]
fn a_template_that_is_nested_too_deep_is_refused_before_it_is_compiled() {
    let many = |text: &str| text.repeat(50_000);
    let wrapped =
        |open: &str, inner: &str, close: &str| format!("{{{{ {}{inner}{} }}}}", many(open), many(close));
    let mut sources = Vec::new();
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("{1:", "}"),
        ("not ", ""),
        ("-", ""),
        ("x(", ")"),
        ("x[", "]"),
        ("x|d(", ")"),
        ("x is eq(", ")"),
        ("1 if x else ", ""),
        ("", " if 1"),
        ("x(a=", ")"),
        ("(1 + ", ")"),
    ] {
        sources.push(wrapped(open, "1", close));
    }
    for (open, close) in [
        ("{% if x %}", "{% endif %}"),
        ("{% for x in y %}", "{% endfor %}"),
        ("{% macro m() %}", "{% endmacro %}"),
        ("{% set x %}", "{% endset %}"),
        ("{% filter upper %}", "{% endfilter %}"),
        ("{% with %}", "{% endwith %}"),
        ("{% generation %}", "{% endgeneration %}"),
        ("{% call m() %}", "{% endcall %}"),
        ("{% if x %}{% else %}", "{% endif %}"),
    ] {
        let few = 9_000;
        sources.push(open.repeat(few) + &close.repeat(few));
    }
    sources.push(format!("{{% set {}x{} = 1 %}}", many("("), many(")")));
    sources.push("{{ 1 }}".repeat(200_000)); // too long
    let survived = stopped(sources);
    assert!(survived.is_empty(), "{survived:#?}");
}

#[test]
fn what_is_only_long_is_no_matter() {
    let chain = |first: &str, more: &str| format!("{{{{ {first}{} }}}}", more.repeat(5_000));
    let sources = [
        chain("1", " + 1"),
        chain("'a'", " ~ ''"),
        chain("'a'", "|upper"),
        chain("'a'", ".strip()"),
        chain("1", " or 0"),
        chain("1", " < 2 > 1"),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}a".repeat(5_000)),
    ];
    let run = || sources.map(|source| render(&source).map(|text| text.len()));
    let lengths = thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
    for length in lengths {
        length.unwrap();
    }
}

/// A scope that holds a macro that holds the scope, a namespace in itself, and chains of them.
#[test]
fn what_holds_itself_is_let_go() {
    let before = meter::live_bytes();
    for source in [
        "{% set n = namespace(a='x' * 9999) %}{% set n.n = n %}{% set n.l = [n] %}",
        "{% macro m() %}{{ m }}{% endmacro %}{% set n = namespace(m=m, x='x' * 9999) %}{{ m() }}",
        "{% set n = namespace(v=none) %}{% for a in range(20000) %}{% set n.v = namespace(v=n.v) %}{% endfor %}",
        "{% macro o(v) %}{% macro i() %}{{ v }}{% endmacro %}{% set n.f = i %}{% endmacro %}\
         {% set n = namespace(f=none) %}{% for a in range(5000) %}{{ o(n.f) }}{% endfor %}",
        "{% set n = namespace(v=none) %}{% for a in range(100) %}{% for b in [n.v] %}{% set n.v = loop %}\
         {% if loop.changed(loop) %}{% endif %}{% endfor %}{% endfor %}",
    ] {
        let source = source.to_owned();
        render(&source).unwrap();
        assert!(meter::live_bytes() <= before, "{source}");
    }
}
