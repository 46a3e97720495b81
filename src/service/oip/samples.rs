//! From tensors to samples, in the order of their rows.

use crate::service::oip::tensors::Integers;
use crate::service::oip::tensors::Tensor;
use crate::service::oip::tensors::quoted;
use crate::service::request::Received;
use crate::service::request::Violations;
use crate::service::status::ServiceError;
use crate::text::Input;

/// What clients call token ids: Hugging Face's name, and NeMo's.
const IDS: [&str; 2] = ["input_ids", "tokens"];
const MASK: &str = "attention_mask";
const LENGTHS: [&str; 3] = ["sequence_lengths", "sequence_length", "lengths"];
const PROMPT: &str = "prompt";
const RESPONSE: &str = "response";
const TEXT: &str = "text";
/// Narrower ones hold no vocabulary, and would be larger once they are read.
const ID_TYPES: [&str; 4] = ["INT64", "INT32", "UINT32", "UINT64"];

/// What the tensors say is to be scored.
pub(super) struct Samples {
    pub(super) inputs: Vec<Received>,
    /// The name of the ids, where there are several rows and nothing says where each ends.
    pub(super) without_ends: Option<String>,
}

/// The tensors of a request, by what they are.
#[derive(Default)]
struct Found<'a> {
    ids: Option<&'a Tensor<'a>>,
    mask: Option<&'a Tensor<'a>>,
    lengths: Option<&'a Tensor<'a>>,
    prompt: Option<&'a Tensor<'a>>,
    response: Option<&'a Tensor<'a>>,
    text: Option<&'a Tensor<'a>>,
}

/// Refuses what is no batch of at most `max_samples` samples, naming the tensor.
pub(super) fn samples(tensors: &[Tensor<'_>], max_samples: usize) -> Result<Samples, ServiceError> {
    let mut violations = Violations::default();
    let found = find(tensors, &mut violations);
    violations.none()?;
    let inputs = match found {
        Found { ids: Some(ids), mask, lengths, prompt: None, response: None, text: None } => {
            return of_ids(ids, mask, lengths, max_samples);
        }
        Found { mask: Some(alone), .. } | Found { lengths: Some(alone), .. } => {
            return Err(ServiceError::field(alone.name, format!("goes with {}", IDS[0])));
        }
        Found { prompt: Some(prompt), response: Some(response), text: None, ids: None, .. } => {
            let (prompts, responses) = (texts(prompt, max_samples)?, texts(response, max_samples)?);
            if prompts.len() != responses.len() {
                let (ours, theirs) = (responses.len(), prompts.len());
                let problem = format!("has {ours} rows, and {} has {theirs}", prompt.name);
                return Err(ServiceError::field(response.name, problem));
            }
            let both = prompts.into_iter().zip(responses);
            both.map(|(prompt, response)| Input::Text { prompt, response }).collect::<Vec<_>>()
        }
        Found { text: Some(text), prompt: None, response: None, ids: None, .. } => {
            texts(text, max_samples)?.into_iter().map(Input::Formatted).collect()
        }
        _ => {
            let problem = "are not one of: text; prompt and response; input_ids, with attention_mask or \
                           sequence_lengths where rows are padded";
            return Err(ServiceError::field("inputs", problem));
        }
    };
    Ok(Samples { inputs: inputs.into_iter().map(Received::Input).collect(), without_ends: None })
}

fn find<'a>(tensors: &'a [Tensor<'a>], violations: &mut Violations) -> Found<'a> {
    let mut found = Found::default();
    for tensor in tensors {
        let place = match tensor.name {
            name if IDS.contains(&name) => &mut found.ids,
            name if LENGTHS.contains(&name) => &mut found.lengths,
            MASK => &mut found.mask,
            PROMPT => &mut found.prompt,
            RESPONSE => &mut found.response,
            TEXT => &mut found.text,
            name => {
                let known = "text, prompt, response, input_ids, attention_mask, sequence_lengths";
                violations.add("inputs", format!("{} is not known: the inputs are {known}", quoted(name)));
                continue;
            }
        };
        if let Some(other) = place.replace(tensor) {
            violations.add(tensor.name, format!("comes twice, first as {}", other.name));
        }
    }
    found
}

fn texts(tensor: &Tensor<'_>, max_samples: usize) -> Result<Vec<String>, ServiceError> {
    let texts = || {
        at_most(tensor.rows()?, max_samples)?;
        Ok(tensor.texts()?.into_iter().map(str::to_owned).collect())
    };
    texts().map_err(|problem: String| ServiceError::field(tensor.name, problem))
}

fn at_most(rows: usize, max_samples: usize) -> Result<(), String> {
    if rows <= max_samples {
        return Ok(());
    }
    Err(format!("has {rows} rows, the limit of samples is {max_samples}"))
}

/// Where a row of ids begins and ends.
enum Ends<'a> {
    /// All of it counts.
    Whole,
    Mask(Integers<'a>),
    Lengths(Integers<'a>),
}

fn of_ids(
    tensor: &Tensor<'_>,
    mask: Option<&Tensor<'_>>,
    lengths: Option<&Tensor<'_>>,
    max_samples: usize,
) -> Result<Samples, ServiceError> {
    let named = |of: &Tensor<'_>| {
        let name = of.name.to_owned();
        move |problem: String| ServiceError::field(name, problem)
    };
    let (rows, columns) = tensor.rows_and_columns().map_err(named(tensor))?;
    at_most(rows, max_samples).map_err(named(tensor))?;
    if !ID_TYPES.contains(&tensor.datatype) {
        let problem = format!("has datatype {}, where INT64 or INT32 is needed", quoted(tensor.datatype));
        return Err(ServiceError::field(tensor.name, problem));
    }
    let ids = tensor.integers().map_err(named(tensor))?;
    let (ends, of_ends) = match (mask, lengths) {
        (None, None) => (Ends::Whole, tensor),
        (Some(mask), None) if mask.shape == tensor.shape => {
            (Ends::Mask(mask.integers().map_err(named(mask))?), mask)
        }
        (Some(mask), None) => {
            let problem =
                format!("has shape {}, and {} has {}", mask.shown_shape(), tensor.name, tensor.shown_shape());
            return Err(ServiceError::field(mask.name, problem));
        }
        (None, Some(lengths)) => {
            let found = lengths.rows().map_err(named(lengths))?;
            if found != rows {
                let problem = format!("has {found} rows, and {} has {rows}", tensor.name);
                return Err(ServiceError::field(lengths.name, problem));
            }
            (Ends::Lengths(lengths.integers().map_err(named(lengths))?), lengths)
        }
        (Some(mask), Some(lengths)) => {
            let problem = format!("is there, and so is {}: send one of them", mask.name);
            return Err(ServiceError::field(lengths.name, problem));
        }
    };
    let mut inputs = Vec::with_capacity(rows);
    for row in 0..rows {
        let (from, to) = ends.of(row, columns).map_err(named(of_ends))?;
        let id = |column| {
            let id = ids.at(row * columns + column);
            u32::try_from(id)
                .map_err(|_| format!("has id {id} in row {row}, column {column}: no vocabulary has it"))
        };
        let ids = (from..to).map(id).collect::<Result<Vec<u32>, String>>().map_err(named(tensor))?;
        inputs.push(Received::Input(Input::TokenIds(ids)));
    }
    let is_open = matches!(ends, Ends::Whole) && rows > 1;
    Ok(Samples { inputs, without_ends: is_open.then(|| tensor.name.to_owned()) })
}

impl Ends<'_> {
    /// The first column of a row, and the one behind its last.
    fn of(&self, row: usize, columns: usize) -> Result<(usize, usize), String> {
        match self {
            Self::Whole => Ok((0, columns)),
            Self::Lengths(lengths) => {
                let length = lengths.at(row);
                let end = usize::try_from(length).ok().filter(|end| *end <= columns);
                end.map(|end| (0, end)).ok_or_else(|| {
                    format!("has length {length} in row {row}, where a row has {columns} columns")
                })
            }
            Self::Mask(mask) => {
                let (mut from, mut to) = (None, 0);
                for column in 0..columns {
                    match mask.at(row * columns + column) {
                        0 => {}
                        1 if to == column || from.is_none() => {
                            from.get_or_insert(column);
                            to = column + 1;
                        }
                        1 => {
                            return Err(format!(
                                "has a hole in row {row}, before column {column}: tokens are masked at the ends only"
                            ));
                        }
                        other => {
                            return Err(format!(
                                "has {other} in row {row}, column {column}, where 0 or 1 is needed"
                            ));
                        }
                    }
                }
                Ok((from.unwrap_or(0), to))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::oip::tensors::Elements;

    fn longs<'a>(name: &'a str, shape: &'a [i64], list: &'a [i64]) -> Tensor<'a> {
        Tensor { name, datatype: "INT64", shape, elements: Elements::Longs(list) }
    }

    fn texts<'a>(name: &'a str, shape: &'a [i64], list: &'a [String]) -> Tensor<'a> {
        Tensor { name, datatype: "BYTES", shape, elements: Elements::Texts(list) }
    }

    fn ids(tensors: &[Tensor<'_>]) -> Result<Vec<Vec<u32>>, String> {
        let samples = samples(tensors, 4).map_err(|error| error.to_string())?;
        let ids = |input| match input {
            Received::Input(Input::TokenIds(ids)) => ids,
            _ => panic!("these are not ids"),
        };
        Ok(samples.inputs.into_iter().map(ids).collect())
    }

    const SHAPE: [i64; 2] = [2, 3];

    #[test]
    fn padding_is_cut_where_a_mask_or_lengths_say_so() {
        let tokens = longs("input_ids", &SHAPE, &[1, 2, 0, 0, 0, 6]);
        let whole = ids(std::slice::from_ref(&tokens)).unwrap();
        assert_eq!(whole, [vec![1, 2, 0], vec![0, 0, 6]]);
        let mask = longs("attention_mask", &SHAPE, &[1, 1, 0, 0, 0, 1]);
        let tokens = longs("tokens", &SHAPE, &[1, 2, 0, 0, 0, 6]);
        assert_eq!(ids(&[mask, tokens]).unwrap(), [vec![1, 2], vec![6]]);
        let bools = [true, true, true, false, false, false];
        let mask = Tensor {
            name: "attention_mask",
            datatype: "BOOL",
            shape: &SHAPE,
            elements: Elements::Bools(&bools),
        };
        let tokens = longs("tokens", &SHAPE, &[1, 2, 3, -1, -1, -1]);
        assert_eq!(ids(&[tokens, mask]).unwrap(), [vec![1, 2, 3], vec![]]);
        for (shape, name) in [(&[2, 1][..], "sequence_lengths"), (&[2], "lengths")] {
            let tokens = longs("input_ids", &SHAPE, &[1, 2, 0, 4, 5, 6]);
            let lengths = longs(name, shape, &[2, 3]);
            assert_eq!(ids(&[tokens, lengths]).unwrap(), [vec![1, 2], vec![4, 5, 6]]);
        }
        assert_eq!(ids(&[longs("input_ids", &[0, 7], &[])]).unwrap(), [[0; 0]; 0]);
    }

    #[test]
    fn what_is_no_batch_is_refused_by_the_name_of_the_tensor() {
        let tokens = || longs("input_ids", &SHAPE, &[1, 2, 0, 0, 0, 6]);
        let five = ["a", "b", "c", "d", "e"].map(str::to_owned);
        let one = ["x".to_owned()];
        for (tensors, told) in [
            (vec![], "inputs: are not one of: text; prompt and response;"),
            (vec![tokens(), tokens()], "input_ids: comes twice"),
            (vec![tokens(), longs("tokens", &SHAPE, &[])], "tokens: comes twice, first as input_ids"),
            (vec![tokens(), texts("text", &[1], &one)], "inputs: are not one of"),
            (vec![texts("prompt", &[1], &one)], "inputs: are not one of"),
            (vec![longs("token_type_ids", &[1], &[0])], "inputs: \"token_type_ids\" is not known"),
            (vec![texts("text", &[1], &one), longs("lengths", &[1], &[1])], "lengths: goes with input_ids"),
            (vec![texts("text", &[5], &five)], "text: has 5 rows, the limit of samples is 4"),
            (vec![texts("text", &[1_000_000_000, 1], &one)], "has 1000000000 rows, the limit of samples"),
            (vec![texts("text", &[1, 2], &five[..2])], "has shape [1, 2], where [batch] or [batch, 1]"),
            (
                vec![texts("prompt", &[1], &one), texts("response", &[2], &five[..2])],
                "response: has 2 rows, and prompt has 1",
            ),
            (vec![longs("input_ids", &[6], &[0; 6])], "has shape [6], where [batch, tokens] is needed"),
            (vec![longs("input_ids", &[1_000_000_000, 0], &[])], "input_ids: has 1000000000 rows"),
            (vec![longs("input_ids", &[1, 2], &[3, -1])], "input_ids: has id -1 in row 0, column 1"),
            (
                vec![tokens(), longs("attention_mask", &SHAPE, &[1, 1, 0, 1, 0, 1])],
                "attention_mask: has a hole in row 1, before column 2",
            ),
            (
                vec![tokens(), longs("attention_mask", &SHAPE, &[1, 2, 0, 0, 0, 1])],
                "attention_mask: has 2 in row 0, column 1, where 0 or 1 is needed",
            ),
            (
                vec![tokens(), longs("attention_mask", &[3, 2], &[1; 6])],
                "attention_mask: has shape [3, 2], and input_ids has [2, 3]",
            ),
            (
                vec![tokens(), longs("lengths", &[2], &[4, 1])],
                "lengths: has length 4 in row 0, where a row has 3 columns",
            ),
            (vec![tokens(), longs("lengths", &[2], &[-1, 1])], "lengths: has length -1 in row 0"),
            (vec![tokens(), longs("lengths", &[3], &[1, 1, 1])], "lengths: has 3 rows, and input_ids has 2"),
            (
                vec![tokens(), longs("lengths", &[2], &[1, 1]), longs("attention_mask", &SHAPE, &[1; 6])],
                "lengths: is there, and so is attention_mask",
            ),
        ] {
            let error = samples(&tensors, 4).err().expect(told).to_string();
            assert!(error.contains(told), "{error}");
        }
        let narrow = Tensor { datatype: "INT16", ..tokens() };
        assert!(ids(&[narrow]).unwrap_err().contains("input_ids: has datatype \"INT16\""));
    }
}
