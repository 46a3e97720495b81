//! Mappings, and what may be a key of one.

use std::collections::HashMap;
use std::rc::Rc;

use super::super::meter::{Held, Result, failed, spend};
use super::{Value, nested};

/// A mapping, in the order in which its keys came.
#[derive(Default)]
pub(in crate::text::template) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    /// Key → place; a small mapping is searched without.
    index: HashMap<Key, usize>,
    pub(super) depth: u16,
    held: Option<Held>,
}

/// A hashable value; numbers that are equal are one key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(in crate::text::template) enum Key {
    Undefined,
    None,
    Int(i128),
    Float(u64),
    Str(Box<str>),
    Tuple(Vec<Key>),
    /// Something that equals only itself.
    Identity(usize),
}

impl Key {
    /// Fails for what Python calls unhashable.
    pub(in crate::text::template) fn of(value: &Value) -> Result<Self> {
        Ok(match value {
            Value::Undefined(_) => Self::Undefined,
            Value::None => Self::None,
            Value::Bool(bool) => Self::Int(i128::from(*bool)),
            Value::Int(int) => Self::Int(*int),
            Value::Float(float) if float.fract() == 0.0 && float.abs() < 1e38 => Self::Int(*float as i128),
            Value::Float(float) => Self::Float(float.to_bits()),
            Value::Str(text) => Self::Str(text.as_str().into()),
            Value::Tuple(items) | Value::Group(items) => {
                spend(items.len() as u64)?;
                Self::Tuple(items.iter().map(Self::of).collect::<Result<_>>()?)
            }
            Value::Range(range) => {
                Self::Identity((range.start ^ (range.stop << 20) ^ (range.step << 40)) as usize)
            }
            Value::Iter(items, _) => Self::Identity(Rc::as_ptr(items) as usize),
            Value::Macro(it) => Self::Identity(Rc::as_ptr(it) as usize),
            Value::Namespace(it) => Self::Identity(Rc::as_ptr(it) as usize),
            _ => return failed(format!("unhashable type: '{}'", value.type_name())),
        })
    }
}

/// From here on a mapping has an index.
const SMALL: usize = 12;

impl Dict {
    pub(in crate::text::template) fn from_pairs(
        pairs: impl IntoIterator<Item = (Value, Value)>,
    ) -> Result<Self> {
        let mut dict = Self::default();
        for (key, value) in pairs {
            dict.insert(key, value)?;
        }
        dict.seal()?;
        Ok(dict)
    }

    fn seal(&mut self) -> Result<()> {
        self.depth = nested(self.entries.iter().flat_map(|(key, value)| [key, value]))?;
        self.held = Some(Held::new(self.entries.len() * 2 * size_of::<Value>() + 96));
        Ok(())
    }

    pub(in crate::text::template) fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        spend(1)?;
        match self.place(&key)? {
            Some(place) => self.entries[place].1 = value,
            None => {
                if self.entries.len() >= SMALL {
                    if self.index.is_empty() {
                        for (place, (key, _)) in self.entries.iter().enumerate() {
                            self.index.insert(Key::of(key)?, place);
                        }
                    }
                    self.index.insert(Key::of(&key)?, self.entries.len());
                }
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    fn place(&self, key: &Value) -> Result<Option<usize>> {
        if let Value::Str(text) = key
            && self.index.is_empty()
        {
            return Ok(self.place_of_str(text));
        }
        let wanted = Key::of(key)?;
        if !self.index.is_empty() {
            return Ok(self.index.get(&wanted).copied());
        }
        Ok(self.entries.iter().position(|(key, _)| Key::of(key).is_ok_and(|key| key == wanted)))
    }

    fn place_of_str(&self, text: &str) -> Option<usize> {
        self.entries.iter().position(|(key, _)| matches!(key, Value::Str(key) if key.as_str() == text))
    }

    /// Fails if the key is unhashable.
    pub(in crate::text::template) fn get(&self, key: &Value) -> Result<Option<&Value>> {
        Ok(self.place(key)?.map(|place| &self.entries[place].1))
    }

    pub(in crate::text::template) fn get_str(&self, key: &str) -> Option<&Value> {
        let place = match self.index.is_empty() {
            true => self.place_of_str(key)?,
            false => *self.index.get(&Key::Str(key.into()))?,
        };
        Some(&self.entries[place].1)
    }

    pub(in crate::text::template) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub(in crate::text::template) fn clear(&mut self) {
        *self = Self::default();
    }
}
