//! Every path: what answers it, and what a reader must know of it. The router, `/openapi.json`, the list in a 404, the
//! table of docs/pages/trainers.md and the one above are made from it, or held to it. What is below `/v2` has a table of its own in
//! oip/rest.rs, which the same documents are made from.

use crate::metrics::Method;
use crate::service::http::classify;
use crate::service::http::dialect::Read;
use crate::service::http::own;
use crate::service::http::pages;
use crate::service::http::pages::Page;
use crate::service::http::pairs;
use crate::service::http::tei;
use crate::service::http::trainers;

/// One thing that is asked, by whatever path.
pub(super) struct Route {
    pub(super) paths: &'static [&'static str],
    pub(super) what: &'static str,
    pub(super) kind: Kind,
}

/// Paths that another file answers: the Open Inference Protocol's. `{name}` stands for one part of a path.
pub(in crate::service) struct Elsewhere {
    pub(in crate::service) verb: &'static str,
    pub(in crate::service) paths: &'static [&'static str],
    pub(in crate::service) what: &'static str,
    /// With POST; in JSON.
    pub(in crate::service) request: Option<&'static str>,
    /// The same keys and kinds of values; none: it is always refused.
    pub(in crate::service) answer: Option<&'static str>,
}

/// How it is asked.
pub(super) enum Kind {
    /// With GET.
    Page {
        page: Page,
        /// Of an answer: the same keys and kinds of values.
        answer: &'static str,
    },
    /// With GET: the document that describes all routes.
    OpenApi,
    /// With POST: what a model reads of samples.
    Tokens { request: &'static str, answer: &'static str },
    /// With POST.
    Score { method: Method, read: Read, dialects: &'static [Dialect] },
}

/// One way to ask for rewards.
pub(super) struct Dialect {
    /// Whose it is.
    pub(super) of: &'static str,
    /// The field that tells it.
    pub(super) told_by: &'static str,
    /// What is added to texts before they are tokenized.
    pub(super) special_tokens: &'static str,
    pub(super) answer_in_short: &'static str,
    /// A request, in JSON.
    pub(super) request: &'static str,
    /// Its answer: the same keys and kinds of values.
    pub(super) answer: &'static str,
}

impl Route {
    pub(super) fn verb(&self) -> &'static str {
        match self.kind {
            Kind::Page { .. } | Kind::OpenApi => "GET",
            Kind::Score { .. } | Kind::Tokens { .. } => "POST",
        }
    }
}

/// The route of a path; a slash at its end means nothing.
pub(super) fn find(path: &str) -> Option<&'static Route> {
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    ROUTES.iter().find(|route| route.paths.contains(&path))
}

const NEVER: &str = "never";
const DEFAULT: &str = "`add_special_tokens`, true by default";
const ALWAYS: &str = "always";
const RULE: &str = "by the model's text rule";

/// All of them.
pub(super) const ROUTES: &[Route] = &[
    Route {
        paths: &["/rewarm/v1/score"],
        what: "Scores samples: the gRPC call in JSON, with errors by the sample",
        kind: Kind::Score {
            method: Method::HttpScore,
            read: own::score,
            dialects: &[Dialect {
                of: "rewarm",
                told_by: "`samples`",
                special_tokens: "as over gRPC",
                answer_in_short: "`results[].score.reward`",
                request: r#"{"samples": [{"id": "a", "text": {"prompt": "What happened?", "response": "I won the lottery."}}, {"id": "b", "formatted": "I broke my leg."}, {"id": "c", "token_ids": {"ids": [2, 5, 3]}}], "priority": "background", "return_members": true}"#,
                answer: r#"{"request_id": "", "results": [{"id": "a", "score": {"reward": 1.25, "member_rewards": [1.25], "tokens": 12, "truncated_tokens": 0}}], "variant": "warm", "fingerprint": "..", "timing": {"tokenize_seconds": 0.001, "queue_seconds": 0.001, "compute_seconds": 0.01}}"#,
            }],
        },
    },
    Route {
        paths: &["/get_reward"],
        what: "OpenRLHF's remote reward model",
        kind: Kind::Score {
            method: Method::GetReward,
            read: trainers::get_reward,
            dialects: &[Dialect {
                of: "OpenRLHF",
                told_by: "`query`",
                special_tokens: NEVER,
                answer_in_short: "`rewards[]`",
                request: r#"{"query": ["What happened? I won the lottery."], "prompts": ["What happened?"], "labels": [null]}"#,
                answer: r#"{"rewards": [1.25]}"#,
            }],
        },
    },
    Route {
        paths: &["/classify", "/v1/classify"],
        what: "One reward for each text, as vLLM and SGLang answer",
        kind: Kind::Score {
            method: Method::Classify,
            read: classify::classify,
            dialects: &[
                Dialect {
                    of: "vLLM (verl)",
                    told_by: "`input` or `messages`",
                    special_tokens: DEFAULT,
                    answer_in_short: "`data[].probs[0]`",
                    request: r#"{"model": "any", "input": ["I won the lottery.", "I broke my leg."], "use_activation": false}"#,
                    answer: r#"{"id": "classify-1", "object": "list", "created": 1, "model": "warm", "data": [{"index": 0, "label": "LABEL_0", "probs": [1.25], "num_classes": 1}], "usage": {"prompt_tokens": 12, "total_tokens": 12, "completion_tokens": 0}}"#,
                },
                Dialect {
                    of: "SGLang",
                    told_by: "`text` or `input_ids`",
                    special_tokens: ALWAYS,
                    answer_in_short: "`[].embedding[0]`",
                    request: r#"{"model": "any", "text": ["I won the lottery.", "I broke my leg."]}"#,
                    answer: r#"[{"embedding": [1.25], "meta_info": {"id": "reward-1", "prompt_tokens": 12}}]"#,
                },
            ],
        },
    },
    Route {
        paths: &["/pooling"],
        what: "One reward for each text, as vLLM answers",
        kind: Kind::Score {
            method: Method::Pooling,
            read: classify::pooling,
            dialects: &[Dialect {
                of: "vLLM",
                told_by: "`input` or `messages`",
                special_tokens: DEFAULT,
                answer_in_short: "`data[].data[0]`",
                request: r#"{"input": "I won the lottery.", "add_special_tokens": false}"#,
                answer: r#"{"id": "pool-1", "object": "list", "created": 1, "model": "warm", "data": [{"index": 0, "object": "pooling", "data": [1.25]}], "usage": {"prompt_tokens": 12, "total_tokens": 12, "completion_tokens": 0}}"#,
            }],
        },
    },
    Route {
        paths: &["/score", "/v1/score"],
        what: "One reward for each pair of texts, as vLLM answers",
        kind: Kind::Score {
            method: Method::PairScore,
            read: pairs::score,
            dialects: &[Dialect {
                of: "vLLM",
                told_by: "`queries` and `documents` or `items`; `data_1`, `data_2`; `text_1`, `text_2`",
                special_tokens: RULE,
                answer_in_short: "`data[].score`",
                request: r#"{"text_1": "What happened?", "text_2": ["I won the lottery.", "I broke my leg."]}"#,
                answer: r#"{"id": "score-1", "object": "list", "created": 1, "model": "warm", "data": [{"index": 0, "object": "score", "score": 1.25}], "usage": {"prompt_tokens": 12, "total_tokens": 12, "completion_tokens": 0}}"#,
            }],
        },
    },
    Route {
        paths: &["/rerank", "/v1/rerank", "/v2/rerank"],
        what: "Documents by falling reward, as vLLM and TEI answer",
        kind: Kind::Score {
            method: Method::Rerank,
            read: pairs::rerank,
            dialects: &[
                Dialect {
                    of: "vLLM",
                    told_by: "`documents`",
                    special_tokens: RULE,
                    answer_in_short: "`results[].relevance_score`",
                    request: r#"{"query": "What happened?", "documents": ["I broke my leg.", "I won the lottery."], "top_n": 1}"#,
                    answer: r#"{"id": "rerank-1", "model": "warm", "usage": {"prompt_tokens": 12, "total_tokens": 12, "completion_tokens": 0}, "results": [{"index": 1, "document": {"text": "I won the lottery."}, "relevance_score": 1.25}]}"#,
                },
                Dialect {
                    of: "TEI",
                    told_by: "`texts`",
                    special_tokens: RULE,
                    answer_in_short: "`[].score`",
                    request: r#"{"query": "What happened?", "texts": ["I broke my leg.", "I won the lottery."], "raw_scores": true}"#,
                    answer: r#"[{"index": 1, "score": 1.25}]"#,
                },
            ],
        },
    },
    Route {
        paths: &["/v1/embeddings"],
        what: "One reward for each text, as SGLang answers for a reward model",
        kind: Kind::Score {
            method: Method::Embeddings,
            read: classify::embeddings,
            dialects: &[Dialect {
                of: "SGLang (verl)",
                told_by: "`input`",
                special_tokens: ALWAYS,
                answer_in_short: "`data[].embedding[0]`",
                request: r#"{"model": "any", "input": "I won the lottery."}"#,
                answer: r#"{"object": "list", "model": "warm", "data": [{"object": "embedding", "index": 0, "embedding": [1.25]}], "usage": {"prompt_tokens": 12, "total_tokens": 12, "completion_tokens": 0}}"#,
            }],
        },
    },
    Route {
        paths: &["/rm"],
        what: "slime's remote reward model",
        kind: Kind::Score {
            method: Method::Rm,
            read: trainers::rm,
            dialects: &[Dialect {
                of: "slime",
                told_by: "`prompt` and `response`",
                special_tokens: "a rendered prompt: never; else by the model's text rule",
                answer_in_short: "a bare number",
                request: r#"{"prompt": "What happened?", "response": "I won the lottery.", "label": null}"#,
                answer: "1.25",
            }],
        },
    },
    Route {
        paths: &["/v1/score/evaluation"],
        what: "LLaMA-Factory's reward model API",
        kind: Kind::Score {
            method: Method::Evaluation,
            read: trainers::evaluation,
            dialects: &[Dialect {
                of: "LLaMA-Factory",
                told_by: "`messages`",
                special_tokens: NEVER,
                answer_in_short: "`scores[]`",
                request: r#"{"model": "model", "messages": ["What happened? I won the lottery."]}"#,
                answer: r#"{"id": "scoreval-1", "object": "score.evaluation", "model": "warm", "scores": [1.25]}"#,
            }],
        },
    },
    Route {
        paths: &["/predict", "/"],
        what: "One reward for each text or pair, as TEI answers",
        kind: Kind::Score {
            method: Method::Predict,
            read: tei::predict,
            dialects: &[Dialect {
                of: "TEI, huggingface_hub",
                told_by: "`inputs`",
                special_tokens: "always; of a pair by the model's text rule",
                answer_in_short: "`[][].score`",
                request: r#"{"inputs": [["I won the lottery."], ["What happened?", "I broke my leg."]], "raw_scores": true}"#,
                answer: r#"[[{"label": "LABEL_0", "score": 1.25}]]"#,
            }],
        },
    },
    Route {
        paths: &["/rewarm/v1/tokens"],
        what: "What the model reads of samples: the rendered text and its tokens, with the body of /rewarm/v1/score; nothing is scored",
        kind: Kind::Tokens {
            request: r#"{"samples": [{"text": {"prompt": "What happened?", "response": "I won the lottery."}}], "truncation": "left"}"#,
            answer: r#"{"results": [{"rendered": "[CLS] what happened? [SEP] i won the lottery. [SEP]", "tokens": ["[CLS]"], "token_ids": [2], "truncated_tokens": 0}], "variant": "warm", "fingerprint": ".."}"#,
        },
    },
    Route {
        paths: &["/health"],
        what: "Whether callers should come: 200, or 503",
        kind: Kind::Page { page: pages::health, answer: r#"{"status": "ready"}"# },
    },
    Route {
        paths: &["/rewarm/v1/info"],
        what: "What is served: the gRPC call GetServerInfo in JSON",
        kind: Kind::Page {
            page: pages::info,
            answer: r#"{"version": "0.1.0", "variants": [{"name": "warm", "mode": "warm", "members": [{"path": "..", "source": "", "coefficient": 1.0, "digest": "..", "calibration": null}], "reduction": "", "dtype": "f32", "device": "cpu", "max_tokens": 512, "fingerprint": "..", "architecture": "..", "pooling": "cls", "text_rule": "sentence_pair", "notes": [".."], "devices": [{"name": "cpu", "model": "", "memory_bytes": 0, "memory_left_bytes": 1}]}], "routing": {"weights": {"warm": 1.0}}, "max_samples_per_request": 1024, "max_message_bytes": 33554432, "max_in_flight_bytes": 536870912, "max_queue_tokens": 1048576}"#,
        },
    },
    Route {
        paths: &["/v1/models"],
        what: "The variants, as OpenAI's clients ask for models",
        kind: Kind::Page {
            page: pages::models,
            answer: r#"{"object": "list", "data": [{"id": "warm", "object": "model", "created": 1, "owned_by": "rewarm", "root": "..", "max_model_len": 512, "fingerprint": ".."}]}"#,
        },
    },
    Route {
        paths: &["/info"],
        what: "TEI's account of the model",
        kind: Kind::Page {
            page: pages::tei_info,
            answer: r#"{"model_id": "..", "model_sha": "..", "model_dtype": "float32", "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}, "max_input_length": 512, "max_client_batch_size": 1024, "auto_truncate": false, "version": "0.1.0", "variant": "warm", "fingerprint": ".."}"#,
        },
    },
    Route { paths: &["/openapi.json"], what: "This interface, as OpenAPI describes it", kind: Kind::OpenApi },
];

/// The rows that documentation has of the dialects.
#[cfg(test)]
fn rows() -> Vec<String> {
    let mut rows = Vec::new();
    for route in ROUTES {
        let Kind::Score { dialects, .. } = &route.kind else { continue };
        let paths: Vec<String> = route.paths.iter().map(|path| format!("`{path}`")).collect();
        for Dialect { of, told_by, special_tokens, answer_in_short, .. } in *dialects {
            let paths = paths.join(", ");
            rows.push(format!("| {paths} | {of} | {told_by} | {special_tokens} | {answer_in_short} |"));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::budget::Budget;
    use crate::service::http::dialect::Context;
    use crate::service::http::options::Asked;
    use crate::service::request::Violations;

    #[test]
    fn the_tables_that_people_read_have_every_dialect() {
        let module = include_str!("mod.rs");
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pages/trainers.md")).unwrap();
        for row in rows() {
            assert!(module.contains(&format!("//! {row}\n")), "the module's docs lack\n{row}");
            assert!(page.contains(&format!("{row}\n")), "docs/pages/trainers.md lacks\n{row}");
        }
    }

    /// Whatever a body is, it is read or refused: nothing in it ends the thread that reads it.
    #[test]
    fn no_body_makes_a_reader_panic() {
        const LETTERS: &[u8] = br#""[]{},:0-e\u9n "#;
        let budget = Budget::new(1 << 20);
        let mut num_read = 0;
        for route in ROUTES {
            let Kind::Score { read, dialects, .. } = &route.kind else { continue };
            for request in dialects.iter().map(|dialect| dialect.request.as_bytes()) {
                let mut bodies = vec![request.to_vec()];
                for (place, letter) in (0..request.len()).zip(LETTERS.iter().cycle()) {
                    let mut body = request.to_vec();
                    body[place] = *letter;
                    bodies.extend([request[..place].to_vec(), body]);
                }
                for body in bodies {
                    let context = Context {
                        asked: Asked::default(),
                        max_samples: 2,
                        max_bytes: 100,
                        variants: vec!["warm".to_owned()],
                        violations: Violations::default(),
                    };
                    num_read += usize::from(read(&body, context, &mut budget.room().unwrap()).is_ok());
                }
            }
        }
        assert!(num_read > 100, "{num_read}");
    }

    #[test]
    fn a_path_is_found_with_and_without_a_slash_behind_it() {
        for path in ["/classify", "/classify/", "/v1/classify"] {
            assert_eq!(find(path).unwrap().paths[0], "/classify");
        }
        assert_eq!(find("/").unwrap().paths[0], "/predict");
        assert!(find("/Classify").is_none() && find("//classify").is_none());
    }
}
