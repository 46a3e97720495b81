//! The OpenAPI document, made from the table of routes. `tests/doors.rs` sends each of its examples.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::service::http::options::NAMES;
use crate::service::http::table::Dialect;
use crate::service::http::table::Elsewhere;
use crate::service::http::table::Kind;
use crate::service::http::table::ROUTES;

/// The document.
pub(super) fn document(elsewhere: &[&Elsewhere]) -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        for path in route.paths {
            let operation = match &route.kind {
                Kind::Page { answer, .. } => json!({
                    "summary": route.what,
                    "responses": responses(&[("answer", answer)]),
                }),
                Kind::Tokens { request, answer } => json!({
                    "summary": route.what,
                    "parameters": parameters(),
                    "requestBody": {"required": true, "content": {"application/json": only(request)}},
                    "responses": responses(&[("answer", answer)]),
                }),
                Kind::OpenApi => json!({"summary": route.what, "responses": responses(&[])}),
                Kind::Score { dialects, .. } => json!({
                    "summary": route.what,
                    "parameters": parameters(),
                    "requestBody": {"required": true, "content": {"application/json": body(dialects)}},
                    "responses": responses(
                        &dialects.iter().map(|dialect| (dialect.of, dialect.answer)).collect::<Vec<_>>()
                    ),
                }),
            };
            let verb = route.verb().to_ascii_lowercase();
            paths.insert((*path).to_owned(), Value::Object(Map::from_iter([(verb, operation)])));
        }
    }
    for route in elsewhere {
        for path in route.paths {
            let operation = operation(route, path);
            let verb = route.verb.to_ascii_lowercase();
            paths.insert((*path).to_owned(), Value::Object(Map::from_iter([(verb, operation)])));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "rewarm",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Rewards are raw logits: an activation is applied only where a request asks for it by name. \
                 Fields that a dialect does not know are ignored, but for /rewarm/v1/score.",
        },
        "paths": paths,
        "components": {"schemas": {"Error": error()}},
    })
}

/// Of a path with parts that stand for something.
fn operation(route: &Elsewhere, path: &str) -> Value {
    let parts = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let part = |name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
    let mut operation = Map::from_iter([
        ("summary".to_owned(), json!(route.what)),
        ("parameters".to_owned(), parts.map(part).collect()),
    ]);
    if let Some(request) = route.request {
        let body = json!({"content": {"application/json": only(request)}});
        operation.insert("requestBody".to_owned(), body);
    }
    let mut responses = match route.answer {
        Some(answer) => responses(&[("answer", answer)]),
        None => responses(&[]),
    };
    if let (None, Some(responses)) = (route.answer, responses.as_object_mut()) {
        responses.remove("200");
    }
    operation.insert("responses".to_owned(), responses);
    Value::Object(operation)
}

fn parameters() -> Value {
    let parameter = |name: &&str| {
        let what = format!("Also as the header x-rewarm-{name}, which goes before it.");
        json!({"name": name, "in": "query", "description": what, "schema": {"type": "string"}})
    };
    NAMES.iter().map(parameter).collect()
}

/// Of a path with one kind of request.
fn only(request: &str) -> Value {
    let request = parsed(request);
    json!({"schema": schema(&request), "examples": {"request": {"value": request}}})
}

fn body(dialects: &[Dialect]) -> Value {
    let examples = dialects.iter().map(|dialect| {
        let Dialect { of, told_by, special_tokens, answer_in_short, request, .. } = dialect;
        let summary = format!("{of}: told by {told_by}");
        let what = format!("Special tokens added: {special_tokens}. The reward: {answer_in_short}.");
        let example = json!({"summary": summary, "description": what, "value": parsed(request)});
        ((*of).to_owned(), example)
    });
    let schemas: Vec<Value> = dialects.iter().map(|dialect| schema(&parsed(dialect.request))).collect();
    json!({"schema": {"anyOf": schemas}, "examples": Map::from_iter(examples)})
}

fn responses(answers: &[(&str, &str)]) -> Value {
    let examples = answers.iter().map(|(of, answer)| ((*of).to_owned(), json!({"value": parsed(answer)})));
    let schemas: Vec<Value> = answers.iter().map(|(_, answer)| schema(&parsed(answer))).collect();
    let good = match answers {
        [] => json!({"schema": {"type": "object"}}),
        _ => json!({"schema": {"anyOf": schemas}, "examples": Map::from_iter(examples)}),
    };
    let bad = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}});
    let mut responses = Map::new();
    responses.insert(
        "200".to_owned(),
        json!({"description": "The answer.", "content": {"application/json": good}}),
    );
    for (status, what) in [
        ("400", "A malformed request, or a sample that has no reward, by its name."),
        ("412", "The variant has another fingerprint than the expected one."),
        ("413", "The body is larger than the server takes."),
        ("415", "Another content than JSON, or another encoding than gzip."),
        ("500", "A reward was not finite, or a defect of the server."),
        ("503", "Full, loading or draining: again, after Retry-After."),
        ("504", "The deadline passed."),
    ] {
        responses.insert(status.to_owned(), json!({"description": what, "content": bad}));
    }
    Value::Object(responses)
}

fn error() -> Value {
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "string"},
            "code": {"type": "string"},
            "fields": {"type": "array", "items": {"type": "object", "properties": {
                "field": {"type": "string"}, "problem": {"type": "string"},
            }}},
            "samples": {"type": "array", "items": {"type": "object", "properties": {
                "index": {"type": "integer"}, "field": {"type": "string"}, "problem": {"type": "string"},
            }}},
            "retry_after_seconds": {"type": "number"},
        },
    })
}

/// What an example shows.
fn schema(example: &Value) -> Value {
    match example {
        Value::Null => json!({}),
        Value::Bool(_) => json!({"type": "boolean"}),
        Value::Number(number) if number.is_f64() => json!({"type": "number"}),
        Value::Number(_) => json!({"type": "integer"}),
        Value::String(_) => json!({"type": "string"}),
        Value::Array(items) => match items.first() {
            None => json!({"type": "array"}),
            Some(first) => json!({"type": "array", "items": schema(first)}),
        },
        Value::Object(fields) => {
            let properties = fields.iter().map(|(name, value)| (name.clone(), schema(value)));
            json!({"type": "object", "properties": Map::from_iter(properties)})
        }
    }
}

fn parsed(example: &str) -> Value {
    serde_json::from_str(example).expect("examples are JSON")
}
