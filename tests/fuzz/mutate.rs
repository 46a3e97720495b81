//! Makes mutants of bytes, and of the JSON in them, from a seed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;
use serde_json::json;

/// Draws mutants, the same for a seed and a name everywhere.
pub(crate) struct Mutator(ChaCha8Rng);

impl Mutator {
    /// `name` tells the mutators of one seed apart.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        for (index, byte) in name.bytes().enumerate() {
            bytes[8 + index % 24] = bytes[8 + index % 24].wrapping_mul(31).wrapping_add(byte);
        }
        Self(ChaCha8Rng::from_seed(bytes))
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.0.next_u64() % limit.max(1) as u64) as usize
    }

    /// One mutant; of JSON mostly one that is JSON still.
    pub(crate) fn mutate(&mut self, original: &[u8], is_json: bool) -> Vec<u8> {
        let parsed = serde_json::from_slice::<Value>(original).ok();
        match parsed {
            Some(mut document) if is_json && self.below(4) > 0 || self.below(2) > 0 => {
                for _ in 0..=self.below(3) {
                    self.mutate_value(&mut document);
                }
                document.to_string().into_bytes()
            }
            _ => self.mutate_bytes(original),
        }
    }

    fn mutate_bytes(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..=self.below(4) {
            let length = bytes.len();
            let (from, to) = (self.below(length), self.below(length + 1));
            let (start, end) = (from.min(to), from.max(to));
            match self.below(7) {
                0 if length > 0 => bytes[from] ^= 1 << self.below(8),
                1 if length > 0 => bytes[from] = self.below(256) as u8,
                2 => bytes.truncate(end),
                3 => drop(bytes.drain(start..end)),
                4 => {
                    let copied = bytes[start..end].to_vec();
                    let at = self.below(length + 1);
                    bytes.splice(at..at, copied);
                }
                5 => {
                    let byte = b"[]{}\",:09-eE\\ \0\xff"[self.below(16)];
                    let many = [1, 1, 2, 200, 20_000][self.below(5)];
                    bytes.splice(start..start, vec![byte; many]);
                }
                _ if length > 1 => bytes.swap(from, to.min(length - 1)),
                _ => {}
            }
        }
        bytes
    }

    /// Replaces, removes, doubles or renames something somewhere.
    fn mutate_value(&mut self, value: &mut Value) {
        let goes_deeper = self.below(5) > 0;
        match value {
            Value::Object(fields) if goes_deeper && !fields.is_empty() => {
                let key = fields.keys().nth(self.below(fields.len())).cloned().unwrap_or_default();
                match self.below(10) {
                    0 => drop(fields.remove(&key)),
                    1 => {
                        let moved = fields.remove(&key).unwrap_or_default();
                        let other = fields.keys().nth(self.below(fields.len())).cloned();
                        fields.insert(other.unwrap_or_else(|| format!("{key}x")), moved);
                    }
                    2 => {
                        let copied = fields[&key].clone();
                        fields.insert(format!("{key}.1"), copied);
                    }
                    _ => self.mutate_value(&mut fields[&key]),
                }
            }
            Value::Array(values) if goes_deeper && !values.is_empty() => {
                let at = self.below(values.len());
                match self.below(8) {
                    0 => drop(values.remove(at)),
                    1 => values.insert(at, values[at].clone()),
                    _ => self.mutate_value(&mut values[at]),
                }
            }
            other => *other = self.odd(other),
        }
    }

    /// Something that somebody may write in the place of `value`.
    fn odd(&mut self, value: &Value) -> Value {
        let near = value.as_i64().unwrap_or(0);
        let text = value.as_str().unwrap_or("x").to_owned();
        match self.below(20) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(false),
            3 => json!(0),
            4 => json!(-1),
            5 => json!(near.wrapping_add(1)),
            6 => json!(near.wrapping_sub(1)),
            7 => json!(near.wrapping_mul(2)),
            8 => json!(u64::MAX),
            9 => json!(1_u64 << self.below(64)),
            10 => json!(i64::MAX),
            11 => json!(1e308),
            12 => json!(-1e-308),
            13 => json!(0.5),
            14 => json!(""),
            15 => json!([]),
            16 => json!({}),
            17 => json!([value, value]),
            18 => json!(format!("{text}{text}")),
            _ => json!(text.chars().rev().collect::<String>()),
        }
    }
}
