//! Typed access to the settings of a checkpoint; errors name the field and the value.

use serde_json::Map;
use serde_json::Value;

/// A JSON object.
#[derive(Clone, Copy)]
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl Fields<'_> {
    /// A field that must be there.
    pub fn required<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T, String> {
        self.optional(key)?.ok_or_else(|| format!("`{key}` is missing"))
    }

    /// A field that may be absent or null.
    pub fn optional<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| format!("`{key}` is {value}: {error}")),
        }
    }

    /// A field that may be absent, and may not be null.
    pub fn or_default<T: serde::de::DeserializeOwned>(&self, key: &str, default: T) -> Result<T, String> {
        match self.0.get(key) {
            None => Ok(default),
            Some(Value::Null) => Err(format!("`{key}` is null: expected a value")),
            Some(_) => self.required(key),
        }
    }

    /// A size from 1 to this limit, or absent.
    pub fn size(&self, key: &str, default: usize, limit: usize) -> Result<usize, String> {
        match self.0.get(key) {
            Some(Value::Null) => Err(format!("`{key}` is null: expected a number")),
            _ => Ok(self.optional_size(key, limit)?.unwrap_or(default)),
        }
    }

    /// A size from 1 to this limit, or absent, or null.
    pub fn optional_size(&self, key: &str, limit: usize) -> Result<Option<usize>, String> {
        match self.optional(key)? {
            Some(0) => Err(format!("`{key}` is 0: expected a number above zero")),
            Some(value) if value > limit => Err(format!("`{key}` is {value}: the limit is {limit}")),
            value => Ok(value),
        }
    }

    /// A finite number that is acceptable, or absent.
    pub fn number_or(&self, key: &str, default: f64, accept: impl Fn(f64) -> bool) -> Result<f64, String> {
        match self.0.get(key) {
            Some(Value::Null) => Err(format!("`{key}` is null: expected a number")),
            _ => Ok(self.number(key, accept)?.unwrap_or(default)),
        }
    }

    /// A finite number that is acceptable, or absent, or null.
    pub fn number(&self, key: &str, accept: impl Fn(f64) -> bool) -> Result<Option<f64>, String> {
        match self.optional::<f64>(key)? {
            Some(value) if !(value.is_finite() && accept(value)) => {
                Err(format!("`{key}` is {value}: the model cannot be computed with it"))
            }
            value => Ok(value),
        }
    }

    /// A field that, where it is there, must be acceptable.
    pub fn refuse_unless(&self, key: &str, accept: impl Fn(&Value) -> bool, why: &str) -> Result<(), String> {
        match self.0.get(key) {
            Some(value) if !accept(value) => Err(format!("`{key}` is {value}: {why}")),
            _ => Ok(()),
        }
    }
}
