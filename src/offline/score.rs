//! `rewarm score`: JSON lines in, JSON lines out, in the same order.
//!
//! ```text
//! lines → chunk of samples → Backend: this process's models, or a server → one line each
//! ```
//!
//! A chunk is what is held in memory at a time. A bad line, or a sample without a reward, becomes a line with
//! an `error`, and the run goes on; the count of those is the result.

use std::io::BufRead;
use std::io::Read;
use std::io::Write;

use anyhow::Context;
use anyhow::anyhow;
use rayon::iter::IntoParallelRefIterator;
use rayon::iter::ParallelIterator;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::model::fill;
use crate::model::scorer::Reward;
use crate::model::scorer::Scorer;
use crate::model::variant::Variant;
use crate::ops::batch::Sequence;
use crate::text::Conversation;
use crate::text::Input;
use crate::text::SampleTokenizer;
use crate::text::Truncation;
use crate::text::conversation::messages;
use crate::text::lines;
use crate::text::lines::explain;

/// A batch takes samples up to this many tokens, where nothing else is said.
pub const DEFAULT_BATCH_TOKENS: u32 = 16_384;
/// Samples in a chunk: enough that sorting by length fills the batches well.
const CHUNK_SAMPLES: usize = 1024;
/// Bytes of lines in a chunk, roughly: long texts make short chunks.
const CHUNK_BYTES: usize = 32 << 20;
/// A longer line is an error: more than any model's context.
const MAX_LINE_BYTES: u64 = 32 << 20;

/// What gives samples their rewards.
pub trait Backend {
    /// One outcome for each of `inputs`, in their order; an `Err` inside is that sample's own, in words. Fails
    /// when no sample can be scored any more.
    fn score(&mut self, inputs: Vec<Input>) -> anyhow::Result<Vec<Result<Scored, String>>>;
}

/// The reward of one sample, and what it was computed from.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The reward; finite.
    pub reward: Reward,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Tokens that were dropped to fit.
    pub truncated_tokens: usize,
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lines that were not blank.
    pub lines: usize,
    /// Those among them that got an error instead of a reward.
    pub failed: usize,
}

/// Scores all lines of `input`. `progress` is told how many bytes were read, after each chunk.
pub fn run(
    mut input: impl BufRead,
    mut output: impl Write,
    backend: &mut dyn Backend,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<Summary> {
    let mut summary = Summary::default();
    lines::begin(&mut input).context("read the input")?;
    let mut lines = Lines { input: &mut input, number: 0, bytes_read: 0 };
    loop {
        let chunk = lines.next_chunk().context("read the input")?;
        if chunk.is_empty() {
            output.flush().context("write the output")?;
            return Ok(summary);
        }
        let mut ids = Vec::with_capacity(chunk.len());
        let mut inputs = Vec::with_capacity(chunk.len());
        let mut problems = Vec::with_capacity(chunk.len());
        for Line { id, input } in chunk {
            ids.push(id);
            match input {
                Ok(input) => {
                    inputs.push(input);
                    problems.push(None);
                }
                Err(problem) => problems.push(Some(problem)),
            }
        }
        let mut scored = if inputs.is_empty() { Vec::new() } else { backend.score(inputs)? }.into_iter();
        for (id, problem) in ids.into_iter().zip(problems) {
            let outcome = match problem {
                Some(problem) => Err(problem),
                None => scored.next().context("the backend owes an outcome for each sample")?,
            };
            summary.lines += 1;
            summary.failed += usize::from(outcome.is_err());
            serde_json::to_writer(&mut output, &OutputLine::new(id, outcome)).context("write the output")?;
            output.write_all(b"\n").context("write the output")?;
        }
        output.flush().context("write the output")?;
        progress(lines.bytes_read);
    }
}

/// All samples of such lines; fails at the first line that has none.
pub fn read_inputs(mut input: impl BufRead) -> anyhow::Result<Vec<Input>> {
    lines::begin(&mut input).context("read the lines")?;
    let mut lines = Lines { input: &mut input, number: 0, bytes_read: 0 };
    let mut inputs = Vec::new();
    loop {
        let chunk = lines.next_chunk().context("read the lines")?;
        if chunk.is_empty() {
            return Ok(inputs);
        }
        for Line { id, input } in chunk {
            inputs.push(input.map_err(|problem| anyhow!("line {id}: {problem}"))?);
        }
    }
}

// ---- lines ----

/// A line as written by the user. Exactly one of the four forms must be there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputLine {
    id: Option<Value>,
    prompt: Option<String>,
    response: Option<String>,
    messages: Option<Value>,
    tools: Option<Value>,
    chat_template_kwargs: Option<Value>,
    formatted: Option<String>,
    token_ids: Option<Vec<u32>>,
}

/// A line that was read: its id, and what to score or why it cannot be.
struct Line {
    id: Value,
    input: Result<Input, String>,
}

impl Line {
    fn parse(number: u64, text: &[u8]) -> Self {
        // serde would also read the fields from an array, in their order.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Self { id: number.into(), input: Err("the line is not a JSON object".to_owned()) };
        }
        let parsed: Result<InputLine, _> = serde_json::from_slice(text);
        let line = match parsed {
            Ok(line) => line,
            Err(error) => {
                let problem = match std::str::from_utf8(text) {
                    Ok(text) => explain(text, &error),
                    Err(_) => error.to_string(),
                };
                return Self { id: number.into(), input: Err(problem) };
            }
        };
        let id = match line.id {
            None => number.into(),
            Some(id @ (Value::String(_) | Value::Number(_))) => id,
            Some(_) => {
                return Self {
                    id: number.into(),
                    input: Err("id is neither a string nor a number".to_owned()),
                };
            }
        };
        let input = match (line.prompt, line.response, line.messages, line.formatted, line.token_ids) {
            (None, None, Some(turns), None, None) => messages(turns, "messages")
                .and_then(|turns| Conversation::new(turns, line.tools, line.chat_template_kwargs))
                .map(Input::Conversation),
            _ if line.tools.is_some() || line.chat_template_kwargs.is_some() => {
                Err("tools and chat_template_kwargs go with messages".to_owned())
            }
            (Some(prompt), Some(response), None, None, None) => Ok(Input::Text { prompt, response }),
            (None, None, None, Some(text), None) => Ok(Input::Formatted(text)),
            (None, None, None, None, Some(ids)) => Ok(Input::TokenIds(ids)),
            _ => Err("give exactly one of prompt with response, messages, formatted, token_ids".to_owned()),
        };
        Self { id, input }
    }
}

struct Lines<'a, R> {
    input: &'a mut R,
    /// Of the last line read; the first is 1.
    number: u64,
    bytes_read: u64,
}

impl<R: BufRead> Lines<'_, R> {
    /// The next lines that are not blank; none at the end.
    fn next_chunk(&mut self) -> std::io::Result<Vec<Line>> {
        let mut chunk = Vec::new();
        let mut chunk_bytes = 0;
        let mut text = Vec::new();
        while chunk.len() < CHUNK_SAMPLES && chunk_bytes < CHUNK_BYTES {
            text.clear();
            let read = self.input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text)?;
            if read == 0 {
                break;
            }
            self.number += 1;
            self.bytes_read += read as u64;
            chunk_bytes += read;
            if read as u64 == MAX_LINE_BYTES && text.last() != Some(&b'\n') {
                self.bytes_read += self.input.skip_until(b'\n')? as u64;
                let problem = format!("the line is longer than {MAX_LINE_BYTES} bytes");
                chunk.push(Line { id: self.number.into(), input: Err(problem) });
            } else if !text.iter().all(u8::is_ascii_whitespace) {
                chunk.push(Line::parse(self.number, &text));
            }
        }
        Ok(chunk)
    }
}

/// `f32`s go out with the fewest digits that read back as the same number.
#[derive(Serialize)]
#[serde(untagged)]
enum OutputLine {
    Scored {
        id: Value,
        reward: f32,
        tokens: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        truncated_tokens: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        member_rewards: Option<Vec<f32>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reward_std: Option<f32>,
    },
    Failed {
        id: Value,
        error: String,
    },
}

impl OutputLine {
    fn new(id: Value, outcome: Result<Scored, String>) -> Self {
        match outcome {
            Ok(Scored {
                reward: Reward { reward, member_rewards, reward_std },
                tokens,
                truncated_tokens,
            }) => {
                Self::Scored {
                    id,
                    reward,
                    tokens,
                    truncated_tokens: Some(truncated_tokens).filter(|dropped| *dropped > 0),
                    // One merged model's members are gone: its one reward is already there.
                    member_rewards: reward_std.is_some().then_some(member_rewards),
                    reward_std,
                }
            }
            Err(error) => Self::Failed { id, error },
        }
    }
}

// ---- the models of this process ----

/// Scores with a variant loaded into this process.
pub struct Local {
    /// What scores.
    pub variant: Variant,
    /// What to do with samples that are too long.
    pub truncation: Truncation,
    /// A batch takes samples up to this many tokens; a longer sample goes alone.
    pub max_batch_tokens: usize,
}

impl Backend for Local {
    fn score(&mut self, inputs: Vec<Input>) -> anyhow::Result<Vec<Result<Scored, String>>> {
        let tokenizer: &SampleTokenizer = &self.variant.tokenizer;
        let tokenized: Vec<_> =
            inputs.par_iter().map(|input| tokenizer.tokenize(input, self.truncation)).collect();
        let mut outcomes: Vec<Result<Scored, String>> = Vec::with_capacity(tokenized.len());
        let (mut places, mut sequences) = (Vec::new(), Vec::new());
        for (index, sample) in tokenized.into_iter().enumerate() {
            match sample {
                Ok(sample) => {
                    places.push((index, sample.truncated_tokens));
                    sequences.push(Sequence { token_ids: sample.token_ids, type_ids: sample.type_ids });
                    outcomes.push(Err("not scored".to_owned()));
                }
                Err(error) => outcomes.push(Err(error.to_string())),
            }
        }
        let rewards = self.rewards(&sequences);
        for (((index, truncated_tokens), sequence), reward) in places.into_iter().zip(&sequences).zip(rewards)
        {
            let tokens = sequence.token_ids.len();
            outcomes[index] = reward.map(|reward| Scored { reward, tokens, truncated_tokens });
        }
        Ok(outcomes)
    }
}

impl Local {
    /// The reward of each sequence, in their order; an `Err` inside is that sequence's own, in words.
    pub(super) fn rewards(&self, sequences: &[Sequence]) -> Vec<Result<Reward, String>> {
        // Neighbours in length make batches that are full, and stay below the budget.
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(sequences[index].token_ids.len()));
        let sorted: Vec<&Sequence> = order.iter().map(|&index| &sequences[index]).collect();
        let mut outcomes = vec![Err("not scored".to_owned()); sequences.len()];
        let lengths = sorted.iter().map(|sequence| sequence.token_ids.len());
        for run in fill::runs(lengths, self.max_batch_tokens) {
            let of_run = rewards(&self.variant.scorer, &sorted[run.clone()]);
            for (&index, reward) in order[run].iter().zip(of_run) {
                outcomes[index] = reward;
            }
        }
        outcomes
    }
}

/// Scores a batch; when that fails, its halves, so that a sample the model fails on fails alone.
fn rewards(scorer: &Scorer, sequences: &[&Sequence]) -> Vec<Result<Reward, String>> {
    match scorer.score(sequences, true) {
        Ok(rewards) => rewards.into_iter().map(finite).collect(),
        Err(error) if sequences.len() == 1 => vec![Err(error.to_string())],
        Err(_) => {
            let (left, right) = sequences.split_at(sequences.len() / 2);
            let mut outcomes = rewards(scorer, left);
            outcomes.extend(rewards(scorer, right));
            outcomes
        }
    }
}

fn finite(reward: Reward) -> Result<Reward, String> {
    if reward.reward.is_finite() {
        Ok(reward)
    } else {
        Err(format!("the reward is not finite ({})", reward.reward))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reward of a text is its length in characters divided by ten; "bad" has none.
    struct Lengths {
        chunks: Vec<usize>,
    }

    impl Backend for Lengths {
        fn score(&mut self, inputs: Vec<Input>) -> anyhow::Result<Vec<Result<Scored, String>>> {
            self.chunks.push(inputs.len());
            let score = |input| match input {
                Input::Formatted(text) if text == "bad" => Err("no".to_owned()),
                Input::Formatted(text) => Ok(Scored {
                    reward: Reward {
                        reward: text.chars().count() as f32 / 10.0,
                        member_rewards: vec![0.1, 0.2],
                        reward_std: text.contains("ens").then_some(0.05),
                    },
                    tokens: text.len(),
                    truncated_tokens: text.matches("cut").count(),
                }),
                other => Err(format!("{other:?}")),
            };
            Ok(inputs.into_iter().map(score).collect())
        }
    }

    fn score_lines(input: &[u8]) -> (String, Summary, Vec<usize>) {
        let mut backend = Lengths { chunks: Vec::new() };
        let mut output = Vec::new();
        let summary = run(input, &mut output, &mut backend, &mut |_| {}).unwrap();
        (String::from_utf8(output).unwrap(), summary, backend.chunks)
    }

    #[test]
    fn each_line_gets_its_line_and_bad_ones_do_not_stop_the_run() {
        struct Case {
            line: &'static [u8],
            output: &'static str,
        }
        let cases = [
            Case { line: br#"{"formatted":"a"}"#, output: r#"{"id":1,"reward":0.1,"tokens":1}"# },
            Case {
                line: br#"{"id":"x","formatted":"abc"}"#,
                output: r#"{"id":"x","reward":0.3,"tokens":3}"#,
            },
            Case { line: br#"{"id":7.5,"formatted":"bad"}"#, output: r#"{"id":7.5,"error":"no"}"# },
            Case {
                line: br#"{"formatted":"ens cut"}"#,
                output: r#"{"id":4,"reward":0.7,"tokens":7,"truncated_tokens":1,"member_rewards":[0.1,0.2],"reward_std":0.05}"#,
            },
            Case { line: b"{", output: r#"{"id":5,"error":"EOF while parsing an object at line "# },
            Case {
                line: b"{\"formatted\":\"\xff\"}",
                output: r#"{"id":6,"error":"invalid unicode code point"#,
            },
            Case { line: br#"{"prompt":"p"}"#, output: r#"{"id":7,"error":"give exactly one of "# },
            Case {
                line: br#"{"id":"k","formatted":"f","token_ids":[1]}"#,
                output: r#"{"id":"k","error":"give exactly"#,
            },
            Case {
                line: br#"{"formatted":"f","colour":1}"#,
                output: r#"{"id":9,"error":"unknown field `colour`"#,
            },
            Case { line: br#"{"id":[1],"formatted":"f"}"#, output: r#"{"id":10,"error":"id is neither"# },
            Case {
                line: br#"{"token_ids":[-1]}"#,
                output: r#"{"id":11,"error":"invalid value: integer `-1`"#,
            },
            Case { line: br#"{"token_ids":[1,2]}"#, output: r#"{"id":12,"error":"TokenIds([1, 2])"# },
            Case { line: br#"[1]"#, output: r#"{"id":13,"error":"the line is not"# },
            Case {
                line: br#"{"messages":[{"role":"user","content":"a\u0000b"}]}"#,
                output: r#"{"id":14,"error":"Conversation(Conversation { messages: [Message("#,
            },
        ];
        let input: Vec<u8> = cases.iter().flat_map(|case| [case.line, b"\n"].concat()).collect();
        let (output, summary, _) = score_lines(&input);
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines.len(), cases.len(), "{output}");
        for (case, line) in cases.iter().zip(lines) {
            assert!(line.starts_with(case.output), "{line} does not start with {}", case.output);
        }
        assert_eq!(summary, Summary { lines: 14, failed: 11 });
    }

    #[test]
    fn blank_lines_count_as_lines_but_are_not_samples() {
        let (output, summary, _) = score_lines(b"\n \r\n{\"formatted\":\"a\"}");
        assert_eq!(output, "{\"id\":3,\"reward\":0.1,\"tokens\":1}\n");
        assert_eq!(summary, Summary { lines: 1, failed: 0 });
    }

    #[test]
    fn a_long_input_is_scored_in_chunks_and_in_order() {
        let input: String =
            (0..2500).map(|index| format!("{{\"id\":{index},\"formatted\":\"x\"}}\n")).collect();
        let (output, summary, chunks) = score_lines(input.as_bytes());
        let ids: Vec<i64> = output
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_i64().unwrap())
            .collect();
        assert_eq!(ids, (0..2500).collect::<Vec<i64>>());
        assert_eq!((summary.lines, chunks), (2500, vec![1024, 1024, 452]));
    }

    #[test]
    fn rewards_keep_every_digit_they_need() {
        for reward in [0.1_f32, 1.0 / 3.0, f32::MIN_POSITIVE, -1.234_567_9e-8, 16_777_217.0, f32::MAX] {
            let scored = Scored {
                reward: Reward { reward, member_rewards: vec![], reward_std: None },
                tokens: 1,
                truncated_tokens: 0,
            };
            let line = serde_json::to_string(&OutputLine::new(1.into(), Ok(scored))).unwrap();
            let read: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(read["reward"].as_f64().unwrap() as f32, reward, "{line}");
        }
    }
}
