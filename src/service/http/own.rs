//! `/rewarm/v1/score`: the contract's `ScoreRequest` and `ScoreResponse` as JSON, with errors by the sample, and
//! `/rewarm/v1/info`: its `GetServerInfo`.
//!
//! Names are the contract's, or protobuf's lowerCamel form of them; enums are names (`PRIORITY_BACKGROUND` or
//! `background`) or numbers; `token_ids` may be the bare list. A message of a conversation may be any that a chat template
//! reads, as it is. A field that nobody knows is refused, as protobuf's own readers of JSON do.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::proto;
use crate::service::budget::Room;
use crate::service::grpc::info;
use crate::service::grpc::request::Names;
use crate::service::grpc::request::check;
use crate::service::http::dialect::Activation;
use crate::service::http::dialect::Context;
use crate::service::http::dialect::Understood;
use crate::service::http::json::parse;
use crate::service::score::SampleFailure;
use crate::service::score::Score;
use crate::service::score::Scored;
use crate::service::state::State;
use crate::service::status::ServiceError;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    samples: Option<Vec<Sample>>,
    #[serde(alias = "requestId")]
    request_id: Option<String>,
    variant: Option<String>,
    #[serde(alias = "routingKey")]
    routing_key: Option<String>,
    priority: Option<Enum>,
    truncation: Option<Enum>,
    #[serde(alias = "returnMembers")]
    return_members: Option<bool>,
    #[serde(alias = "expectedFingerprint")]
    expected_fingerprint: Option<String>,
    #[serde(alias = "toolsJson")]
    tools_json: Option<String>,
    #[serde(alias = "chatTemplateKwargsJson")]
    chat_template_kwargs_json: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    id: Option<String>,
    text: Option<Text>,
    conversation: Option<Conversation>,
    formatted: Option<String>,
    #[serde(alias = "tokenIds")]
    token_ids: Option<TokenIds>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    prompt: Option<String>,
    response: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Conversation {
    messages: Option<Vec<Value>>,
    #[serde(alias = "toolsJson")]
    tools_json: Option<String>,
    #[serde(alias = "chatTemplateKwargsJson")]
    chat_template_kwargs_json: Option<String>,
}

/// A value of an enum, by name or number.
enum Enum {
    Name(String),
    Number(i32),
}

impl<'de> Deserialize<'de> for Enum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EnumVisitor;
        impl Visitor<'_> for EnumVisitor {
            type Value = Enum;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a name or a number")
            }

            fn visit_str<E>(self, name: &str) -> Result<Enum, E> {
                Ok(Enum::Name(name.to_owned()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Enum, E> {
                Ok(Enum::Number(number.try_into().unwrap_or(i32::MAX)))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Enum, E> {
                Ok(Enum::Number(number.try_into().unwrap_or(i32::MIN)))
            }
        }
        deserializer.deserialize_any(EnumVisitor)
    }
}

impl Enum {
    /// The number in the contract, if the name is known.
    fn number(&self, prefix: &str, find: impl Fn(&str) -> Option<i32>) -> Option<i32> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(name) => {
                let name = name.to_ascii_uppercase();
                find(&name).or_else(|| find(&format!("{prefix}{name}")))
            }
        }
    }
}

/// `{"ids": [..]}`, or the list alone.
struct TokenIds(Vec<u32>);

impl<'de> Deserialize<'de> for TokenIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdsVisitor;
        impl<'de> Visitor<'de> for IdsVisitor {
            type Value = TokenIds;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of token ids, alone or as `ids` of an object")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TokenIds, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(TokenIds(ids))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenIds, A::Error> {
                let mut ids = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "ids" => ids = map.next_value()?,
                        _ => return Err(serde::de::Error::unknown_field("", &["ids"])),
                    }
                }
                Ok(TokenIds(ids))
            }
        }
        deserializer.deserialize_any(IdsVisitor)
    }
}

/// `/rewarm/v1/score`.
pub(super) fn score(
    bytes: &[u8],
    mut context: Context,
    _room: &mut Room,
) -> Result<Understood, ServiceError> {
    let body: Body = parse(bytes)?;
    let mut number = |asked: &Option<Enum>, field, prefix, find: fn(&str) -> Option<i32>| match asked {
        None => 0,
        Some(asked) => asked.number(prefix, find).unwrap_or_else(|| {
            context.violations.add(field, "is not a name of the contract");
            0
        }),
    };
    let priority = number(&body.priority, "priority", "PRIORITY_", |name| {
        proto::Priority::from_str_name(name).map(|priority| priority as i32)
    });
    let truncation = number(&body.truncation, "truncation", "TRUNCATION_", |name| {
        proto::Truncation::from_str_name(name).map(|truncation| truncation as i32)
    });
    let mut samples = Vec::new();
    for (index, sample) in body.samples.unwrap_or_default().into_iter().enumerate() {
        samples.push(sample.contract(index, &mut context));
    }
    context.violations.none()?;

    let asked = context.asked;
    let or = |said: Option<String>, otherwise: &str| {
        said.filter(|said| !said.is_empty()).unwrap_or_else(|| otherwise.to_owned())
    };
    let message = proto::ScoreRequest {
        request_id: or(body.request_id, &asked.request_id),
        samples,
        variant: or(body.variant, &asked.variant),
        routing_key: or(body.routing_key, &asked.routing_key),
        priority,
        truncation,
        return_members: body.return_members.unwrap_or_default(),
        expected_fingerprint: or(body.expected_fingerprint, &asked.expected_fingerprint),
        tools_json: body.tools_json.unwrap_or_default(),
        chat_template_kwargs_json: body.chat_template_kwargs_json.unwrap_or_default(),
    };
    let (mut request, names) = check(message, context.max_samples, true)?;
    if let (None, Some(asked)) = (&body.priority, asked.priority) {
        request.options.priority = asked;
    }
    if let (None, Some(asked)) = (&body.truncation, asked.truncation) {
        request.options.truncation = asked;
    }
    let request_id = names.request.clone();
    Ok(Understood { request, request_id, write: Box::new(move |scored| answer(scored, &names)) })
}

impl Sample {
    fn contract(self, index: usize, context: &mut Context) -> proto::Sample {
        use proto::sample::Input;
        let text = self.text.map(|Text { prompt, response }| {
            let (prompt, response) = (prompt.unwrap_or_default(), response.unwrap_or_default());
            Input::Text(proto::Text { prompt, response })
        });
        let conversation = self.conversation.map(|conversation| {
            Input::Conversation(proto::Conversation {
                messages: conversation.messages.unwrap_or_default().into_iter().map(message).collect(),
                tools_json: conversation.tools_json.unwrap_or_default(),
                chat_template_kwargs_json: conversation.chat_template_kwargs_json.unwrap_or_default(),
            })
        });
        let ids = self.token_ids.map(|TokenIds(ids)| Input::TokenIds(proto::TokenIds { ids }));
        let mut given = [text, conversation, self.formatted.map(Input::Formatted), ids].into_iter().flatten();
        let input = given.next();
        if given.next().is_some() {
            context.violations.add(
                &format!("samples[{index}]"),
                "has several inputs: send one of text, conversation, formatted, token_ids",
            );
        }
        proto::Sample { id: self.id.unwrap_or_default(), input }
    }
}

/// A message of the contract, or any message as it is.
fn message(message: Value) -> proto::Message {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, default)]
    #[derive(Default)]
    struct Contract {
        role: String,
        content: String,
        json: String,
    }
    match Contract::deserialize(&message) {
        Ok(Contract { role, content, json }) => proto::Message { role, content, json },
        Err(_) => proto::Message { json: message.to_string(), ..Default::default() },
    }
}

fn answer(scored: &Scored, names: &Names) -> Value {
    let info = &scored.served.info;
    let result = |(id, result): (&String, &Result<Score, SampleFailure>)| match result {
        Ok(score) => json!({"id": id, "score": score_of(score)}),
        Err(SampleFailure { code, message }) => {
            json!({"id": id, "error": {"code": *code as i32, "message": message}})
        }
    };
    json!({
        "request_id": names.request,
        "results": names.samples.iter().zip(&scored.results).map(result).collect::<Value>(),
        "variant": info.name,
        "fingerprint": info.fingerprint,
        "timing": {
            "tokenize_seconds": scored.timing.tokenize.as_secs_f64(),
            "queue_seconds": scored.timing.queue.as_secs_f64(),
            "compute_seconds": scored.timing.compute.as_secs_f64(),
        },
    })
}

fn score_of(score: &Score) -> Value {
    let mut fields = Map::new();
    fields.insert("reward".to_owned(), Activation::Raw.of(score));
    if !score.member_rewards.is_empty() {
        let members = score.member_rewards.iter().map(|reward| f64::from(*reward));
        fields.insert("member_rewards".to_owned(), members.collect());
    }
    if let Some(std) = score.reward_std {
        fields.insert("reward_std".to_owned(), f64::from(std).into());
    }
    fields.insert("tokens".to_owned(), score.tokens.into());
    fields.insert("truncated_tokens".to_owned(), score.truncated_tokens.into());
    Value::Object(fields)
}

/// `/rewarm/v1/info`.
pub(super) fn info(state: &State) -> Result<Value, ServiceError> {
    let info = info::server(state)?;
    Ok(json!({
        "version": info.version,
        "variants": info.variants.into_iter().map(variant).collect::<Value>(),
        "routing": {"weights": info.routing.unwrap_or_default().weights},
        "max_samples_per_request": info.max_samples_per_request,
        "max_message_bytes": info.max_message_bytes,
        "max_in_flight_bytes": info.max_in_flight_bytes,
        "max_queue_tokens": info.max_queue_tokens,
    }))
}

fn variant(info: proto::VariantInfo) -> Value {
    let member = |member: proto::MemberInfo| {
        let calibration = member.calibration.map(|it| json!({"mean": it.mean, "std": it.std}));
        json!({
            "path": member.path,
            "source": member.source,
            "coefficient": member.coefficient,
            "digest": member.digest,
            "calibration": calibration,
        })
    };
    let device = |device: proto::Device| {
        json!({
            "name": device.name,
            "model": device.model,
            "memory_bytes": device.memory_bytes,
            "memory_left_bytes": device.memory_left_bytes,
        })
    };
    json!({
        "name": info.name,
        "mode": info.mode,
        "members": info.members.into_iter().map(member).collect::<Value>(),
        "reduction": info.reduction,
        "dtype": info.dtype,
        "device": info.device,
        "max_tokens": info.max_tokens,
        "fingerprint": info.fingerprint,
        "architecture": info.architecture,
        "pooling": info.pooling,
        "text_rule": info.text_rule,
        "notes": info.notes,
        "devices": info.devices.into_iter().map(device).collect::<Value>(),
    })
}
