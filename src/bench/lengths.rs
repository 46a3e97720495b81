//! `--lengths`: how long the samples are.
//!
//! ```text
//! 128x32         32 samples of 128 tokens
//! 16..512x64     64 samples of 16 to 512 tokens, log-uniform: as many between 16 and 32 as between 256 and 512
//! FILE           JSON lines as `rewarm score` reads them, or one length a line
//! ```
//!
//! Lengths without a text get random token ids: a forward costs the same whatever the tokens are.

use std::fmt;
use std::io::BufReader;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use anyhow::ensure;

use crate::bench::noise::Noise;
use crate::offline::score;
use crate::text::Input;
use crate::text::lines;

/// More than fit into memory as samples of any length is a slip of the finger.
const MAX_SAMPLES: usize = 1_000_000;
/// Longer than any model's context is, too.
const MAX_TOKENS: usize = 1 << 20;

/// All samples of a round are held in memory: 1 GiB of ids.
pub const MAX_ROUND_TOKENS: usize = 1 << 28;

/// `--lengths`, as typed.
#[derive(Clone, Debug, PartialEq)]
pub enum LengthsArg {
    /// So many samples between two lengths.
    Spread {
        /// Tokens of the shortest; at least 1.
        shortest: usize,
        /// Tokens of the longest; at least `shortest`.
        longest: usize,
        /// How many; at least 1.
        samples: usize,
    },
    /// Recorded ones.
    File(PathBuf),
}

impl FromStr for LengthsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_spread = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || b".x".contains(&byte));
        let Some((lengths, samples)) = text.split_once('x').filter(|_| is_spread(text)) else {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            return match is_number || text.is_empty() {
                true => Err(format!("say how many samples too, for example {text:0>3}x32")),
                false => Ok(Self::File(text.into())),
            };
        };
        let (shortest, longest) = lengths.split_once("..").unwrap_or((lengths, lengths));
        let shortest = number(shortest, "tokens", MAX_TOKENS)?;
        let longest = number(longest, "tokens", MAX_TOKENS)?;
        let samples = number(samples, "samples", MAX_SAMPLES)?;
        if longest < shortest {
            return Err(format!("{shortest}..{longest} runs backwards: write {longest}..{shortest}"));
        }
        Ok(Self::Spread { shortest, longest, samples })
    }
}

fn number(text: &str, what: &str, limit: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=limit).contains(&number) => Ok(number),
        _ => Err(format!(
            "`{text}` {what}: expected 1 to {limit}, as in 128x32 (32 samples of 128 tokens) or 16..512x64"
        )),
    }
}

impl fmt::Display for LengthsArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spread { shortest, longest, samples } if shortest == longest => {
                write!(f, "{shortest}x{samples}")
            }
            Self::Spread { shortest, longest, samples } => write!(f, "{shortest}..{longest}x{samples}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What to measure with, before it is known which token ids the models take.
#[derive(Clone, Debug, PartialEq)]
pub enum Lengths {
    /// Tokens of each sample.
    Tokens(Vec<usize>),
    /// Samples as they are.
    Recorded(Vec<Input>),
}

impl LengthsArg {
    /// Draws the lengths, or reads the file.
    pub fn read(&self, seed: u64) -> anyhow::Result<Lengths> {
        let lengths = match self {
            Self::Spread { shortest, longest, samples } => {
                let mut noise = Noise::new(seed);
                let draw = |_| log_uniform(&mut noise, *shortest, *longest);
                Lengths::Tokens((0..*samples).map(draw).collect())
            }
            Self::File(path) => {
                let name = path.display();
                let bytes = std::fs::read(path).with_context(|| {
                    format!("--lengths {name}: neither lengths such as 128x32 or 16..512x64, nor a file")
                })?;
                parse_file(&bytes).with_context(|| format!("--lengths {name}"))?
            }
        };
        if let Lengths::Tokens(tokens) = &lengths {
            let tokens: usize = tokens.iter().sum();
            ensure!(
                tokens <= MAX_ROUND_TOKENS,
                "--lengths {self}: {tokens} tokens in all, the limit is {MAX_ROUND_TOKENS}: ask for fewer samples"
            );
        }
        Ok(lengths)
    }
}

fn log_uniform(noise: &mut Noise, shortest: usize, longest: usize) -> usize {
    let (low, high) = ((shortest as f64).ln(), (longest as f64).ln());
    let length = (low + noise.unit() * (high - low)).exp().round() as usize;
    length.clamp(shortest, longest)
}

fn parse_file(mut bytes: &[u8]) -> anyhow::Result<Lengths> {
    lines::begin(&mut bytes)?;
    let lengths = if bytes.trim_ascii_start().first() == Some(&b'{') {
        Lengths::Recorded(score::read_inputs(BufReader::new(bytes))?)
    } else {
        let text = std::str::from_utf8(bytes).context("neither JSON lines nor numbers")?;
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
        let length = |(line, text): (usize, &str)| {
            number(text.trim(), "tokens", MAX_TOKENS)
                .map_err(|problem| anyhow::anyhow!("line {line}: {problem}"))
        };
        Lengths::Tokens(lines.map(length).collect::<anyhow::Result<_>>()?)
    };
    let samples = match &lengths {
        Lengths::Tokens(lengths) => lengths.len(),
        Lengths::Recorded(inputs) => inputs.len(),
    };
    ensure!(
        samples > 0,
        "there is no sample in it: give JSON lines as `rewarm score` reads them, or one length a line"
    );
    ensure!(samples <= MAX_SAMPLES, "{samples} samples, the limit is {MAX_SAMPLES}: give fewer lines");
    Ok(lengths)
}

impl Lengths {
    /// The longest sample whose length is known.
    pub fn longest(&self) -> usize {
        match self {
            Self::Tokens(lengths) => lengths.iter().copied().max().unwrap_or(0),
            Self::Recorded(_) => 0,
        }
    }

    /// The samples; where only lengths are known, with random token ids below `vocab_size`.
    pub fn inputs(&self, vocab_size: usize, seed: u64) -> Vec<Input> {
        match self {
            Self::Tokens(lengths) => {
                let mut noise = Noise::new(!seed);
                lengths.iter().map(|&tokens| random_ids(&mut noise, tokens, vocab_size)).collect()
            }
            Self::Recorded(inputs) => inputs.clone(),
        }
    }
}

/// A sample of random token ids.
pub(super) fn random_ids(noise: &mut Noise, tokens: usize, vocab_size: usize) -> Input {
    let bound = u32::try_from(vocab_size).unwrap_or(u32::MAX);
    Input::TokenIds((0..tokens).map(|_| noise.below(bound)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(text: &str) -> Vec<usize> {
        match text.parse::<LengthsArg>().unwrap().read(7).unwrap() {
            Lengths::Tokens(lengths) => lengths,
            Lengths::Recorded(inputs) => panic!("{inputs:?}"),
        }
    }

    #[test]
    fn lengths_are_read_as_written() {
        assert_eq!(lengths("128x3"), [128; 3]);
        let mixed = lengths("16..512x400");
        assert_eq!(mixed.len(), 400);
        assert!(mixed.iter().all(|tokens| (16..=512).contains(tokens)), "{mixed:?}");
        // Log-uniform: each doubling has a fifth of the samples, here 80 give or take five standard deviations.
        for low in [16, 32, 64, 128, 256] {
            let of_doubling = mixed.iter().filter(|tokens| (low..2 * low).contains(*tokens)).count();
            assert!((40..=120).contains(&of_doubling), "{of_doubling} from {low}");
        }
        assert_eq!(mixed, lengths("16..512x400"), "a seed is a seed");
        for text in ["128x32", "16..512x64", "some/file.jsonl"] {
            assert_eq!(text.parse::<LengthsArg>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_lengths_are_refused_with_the_limit_and_the_fix() {
        let cases = [
            ("0x4", "`0` tokens: expected 1 to 1048576, as in 128x32"),
            ("128x0", "`0` samples: expected 1 to 1000000"),
            ("128x", "`` samples: expected 1 to 1000000"),
            ("16..x4", "`` tokens: expected"),
            ("9999999x4", "`9999999` tokens: expected 1 to 1048576"),
            ("512..16x4", "512..16 runs backwards: write 16..512"),
            ("1x2x3", "`2x3` samples: expected"),
            ("128", "say how many samples too, for example 128x32"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<LengthsArg>().unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        let error = "1000x999999".parse::<LengthsArg>().unwrap().read(0).unwrap_err().to_string();
        assert!(error.contains("999999000 tokens in all, the limit is 268435456: ask for fewer"), "{error}");
        let error = format!("{:#}", LengthsArg::File("nowhere.jsonl".into()).read(0).unwrap_err());
        assert!(error.starts_with("--lengths nowhere.jsonl: neither lengths such as 128x32"), "{error}");
    }

    #[test]
    fn a_file_has_lengths_or_samples() {
        assert_eq!(parse_file(b"12\n\n 7\r\n").unwrap(), Lengths::Tokens(vec![12, 7]));
        let recorded = parse_file(b"\n{\"formatted\":\"a\"}\n{\"token_ids\":[1,2]}\n").unwrap();
        let inputs = vec![Input::Formatted("a".to_owned()), Input::TokenIds(vec![1, 2])];
        assert_eq!(recorded, Lengths::Recorded(inputs));
        let error = |bytes: &[u8]| format!("{:#}", parse_file(bytes).unwrap_err());
        assert!(error(b"12\nx\n").starts_with("line 2: `x` tokens: expected 1 to"), "{}", error(b"12\nx\n"));
        assert!(error(b"{\"formatted\":\"a\"}\n{\"a\":1}\n").starts_with("line 2: unknown field `a`"));
        assert!(error(b" \n").starts_with("there is no sample in it"));
    }

    #[test]
    fn random_samples_are_the_same_for_a_seed_and_below_the_vocabulary() {
        let lengths = Lengths::Tokens(vec![5, 300]);
        let inputs = lengths.inputs(50, 3);
        assert_eq!(inputs, lengths.inputs(50, 3));
        assert_ne!(inputs, lengths.inputs(50, 4));
        let Input::TokenIds(ids) = &inputs[1] else { panic!("{inputs:?}") };
        assert_eq!(ids.len(), 300);
        assert!(ids.iter().all(|id| *id < 50) && ids.iter().any(|id| *id > 40), "{ids:?}");
    }
}
