//! Spoils bytes, JSON and texts, the same for a seed and a number everywhere.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;
use serde_json::json;

/// Random numbers.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(number);
        Self(random)
    }

    /// A whole number below `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.0.next_u64()) * end as u128) >> 64) as usize
    }

    /// One of them.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// Mostly 1, sometimes some more.
    fn few(&mut self) -> usize {
        1 + self.0.next_u64().trailing_zeros().min(6) as usize
    }
}

/// Numbers at which something ends.
const EDGES: [u64; 12] =
    [0, 1, 2, 127, 255, 65_535, 1 << 20, (1 << 31) - 1, u32::MAX as u64, 1 << 32, 1 << 62, u64::MAX];

/// Bytes with some bits, bytes or ranges changed, moved, doubled or lost.
pub(crate) fn bytes(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..random.few() {
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(8) {
            _ if bytes.is_empty() => bytes.push(random.below(256) as u8),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let other = random.below(bytes.len());
                let moved = original[other.min(original.len())..].iter().copied().take(8).collect::<Vec<_>>();
                bytes.splice(at..end, moved);
            }
            6 => {
                let edge = random.pick(&EDGES).to_le_bytes();
                let width = (end - at).min(*random.pick(&[1, 2, 4, 8]));
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            _ => bytes.insert(at, random.below(256) as u8),
        }
    }
    bytes
}

/// JSON with some of its values replaced, lost, doubled or swapped.
pub(crate) fn json(original: &Value, random: &mut Random) -> Value {
    let mut value = original.clone();
    for _ in 0..random.few() {
        let places = count(&value);
        let donor = nth(&value, random.below(places)).clone();
        let at = random.below(places);
        change(nth_mut(&mut value, at), donor, random);
    }
    value
}

fn change(value: &mut Value, donor: Value, random: &mut Random) {
    match (random.below(8), &mut *value) {
        (0 | 1, Value::Object(fields)) if !fields.is_empty() => {
            let key = fields.keys().nth(random.below(fields.len())).unwrap().clone();
            fields.shift_remove(&key);
        }
        (2, Value::Object(fields)) if !fields.is_empty() => {
            let key = fields.keys().nth(random.below(fields.len())).unwrap().clone();
            let moved = fields.shift_remove(&key).unwrap();
            fields.insert(text(&key, random), moved);
        }
        (0 | 1, Value::Array(items)) if !items.is_empty() => drop(items.remove(random.below(items.len()))),
        (2, Value::Array(items)) if !items.is_empty() => {
            let again = random.pick(items).clone();
            items.insert(random.below(items.len()), again);
        }
        (0..=3, Value::String(string)) => *string = text(string, random),
        (0..=3, Value::Number(number)) => {
            let number = number.as_f64().unwrap_or(0.0);
            *value = match random.below(6) {
                0 => json!((number as i64).saturating_add(1)),
                1 => json!((number as i64).saturating_sub(1)),
                2 => json!(-number),
                3 => json!(number * 1e9),
                4 => json!(number + 0.5),
                _ => json!(random.pick(&EDGES)),
            };
        }
        (4, _) => *value = donor,
        _ => *value = edge(random),
    }
}

fn edge(random: &mut Random) -> Value {
    match random.below(14) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(false),
        3 => json!(""),
        4 => json!([]),
        5 => json!({}),
        6 => json!(-1),
        7 => json!(1e308),
        8 => json!(1e-320),
        9 => json!("x".repeat(1 << random.below(14))),
        10 => (0..random.below(120)).fold(json!(0), |inner, _| json!([inner])),
        11 => json!(vec![0; random.below(200)]),
        _ => json!(random.pick(&EDGES)),
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    }
}

/// Counted in the order in which they are written.
fn nth(value: &Value, index: usize) -> &Value {
    let Some(mut index) = index.checked_sub(1) else { return value };
    for child in children(value) {
        let inside = count(child);
        if index < inside {
            return nth(child, index);
        }
        index -= inside;
    }
    value
}

fn nth_mut(value: &mut Value, index: usize) -> &mut Value {
    let Some(mut index) = index.checked_sub(1) else { return value };
    let place = children(value).into_iter().position(|child| {
        let inside = count(child);
        let is_here = index < inside;
        if !is_here {
            index -= inside;
        }
        is_here
    });
    match (value, place) {
        (Value::Array(items), Some(place)) => nth_mut(&mut items[place], index),
        (Value::Object(fields), Some(place)) => nth_mut(fields.values_mut().nth(place).unwrap(), index),
        (value, _) => value,
    }
}

/// A text, changed as [`bytes`] does, that is still UTF-8.
pub(crate) fn text(original: &str, random: &mut Random) -> String {
    match random.below(6) {
        0 => format!("{original}\u{0}\u{feff}é\u{1f600}"),
        1 => original.repeat(2 + random.below(30)),
        _ => String::from_utf8_lossy(&bytes(original.as_bytes(), random)).into_owned(),
    }
}

/// A program text: lines, and words between blanks and brackets, are lost, doubled, moved, or replaced by one of `words`.
pub(crate) fn program(original: &str, words: &[&str], random: &mut Random) -> String {
    let mut parts: Vec<&str> =
        original.split_inclusive([' ', '\n', '(', ')', '[', ']', '}', '|', '.']).collect();
    for _ in 0..random.few() {
        let at = random.below(parts.len());
        match random.below(7) {
            _ if parts.is_empty() => parts.push(*random.pick(words)),
            0 => drop(parts.remove(at)),
            1 => parts.insert(at, *random.pick(words)),
            2 => parts[at] = *random.pick(words),
            3 => {
                let other = random.below(parts.len());
                parts.swap(at, other);
            }
            4 => {
                let end = (at + 1 + random.below(12)).min(parts.len());
                let again = parts[at..end].to_vec();
                parts.splice(at..at, again);
            }
            5 => {
                let word = *random.pick(words);
                parts.splice(at..at, std::iter::repeat_n(word, 1 << random.below(12)));
            }
            _ => return text(&parts.concat(), random),
        }
    }
    parts.concat()
}
