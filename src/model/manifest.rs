//! `rewarm.json` beside a checkpoint: what its own files do not say about how it scores.
//!
//! ```json
//! {"pooling": "last_token", "text_rule": "concatenation", "max_tokens": 2048,
//!  "calibration": {"mean": 0.3, "std": 1.7}}
//! {"pad_token_id": 2, "text_end": "eos"}
//! ```
//!
//! The second line is for what trainers did and their files do not tell, see [`crate::model::origin`]. `label` and
//! `label_weights` say which of several labels are the reward, see [`crate::model::labels`].
//!
//! Every key is optional, as is the file. The calibration is `rewarm calibrate`'s.

use std::path::Path;

use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::write::replace_file;
use crate::disk;
use crate::model::ModelError;
use crate::model::labels::Label;
use crate::model::labels::LabelWeights;
use crate::model::pooling::Pooling;
use crate::model::scorer::Calibration;
use crate::text::TextEnd;
use crate::text::TextRule;

const FILE_NAME: &str = "rewarm.json";

/// The largest number of anything that a server can tell its callers: the wire has 32 bits for it.
pub const MAX_COUNT: usize = u32::MAX as usize;

/// The manifest of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manifest {
    /// Overrides what the head's origin implies.
    pub pooling: Option<Pooling>,
    /// Overrides the config's: the reward is read at the last token that is not this one.
    pub pad_token_id: Option<u32>,
    /// Overrides the chat template, or the family's rule.
    pub text_rule: Option<TextRule>,
    /// Overrides what the model's trainer did to the end of texts.
    pub text_end: Option<TextEnd>,
    /// The limit for the tokens of a sample, in place of the model's own; `max_tokens` of the user counts before it.
    /// It may lie beyond the positions that config.json declares if the model has rotary ones.
    pub max_tokens: Option<usize>,
    /// Which of several labels is the reward.
    pub label: Option<Label>,
    /// Or of which it is the sum.
    pub label_weights: Option<LabelWeights>,
    /// Applied to the member's rewards before an ensemble reduces them.
    pub calibration: Option<Calibration>,
}

impl Manifest {
    /// Reads the manifest of a checkpoint directory; all empty if there is none.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(FILE_NAME);
        let Some(text) = ModelError::read_if_there(&path, disk::SETTINGS_BYTES)? else {
            return Ok(Self::default());
        };
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| ModelError::config(&path, error))?;
        if let Some(Calibration { mean, std }) = manifest.calibration
            && !(mean.is_finite() && std.is_finite() && std > 0.0)
        {
            return Err(ModelError::config(
                &path,
                format!("`calibration` is mean {mean}, std {std}: both must be finite, and std above zero"),
            ));
        }
        match manifest.max_tokens {
            Some(0) => {
                return Err(ModelError::config(&path, "`max_tokens` is 0: expected a number above zero"));
            }
            Some(limit) if limit > MAX_COUNT => {
                let problem = format!("`max_tokens` is {limit}: the limit is {MAX_COUNT}");
                return Err(ModelError::config(&path, problem));
            }
            _ => {}
        }
        Ok(manifest)
    }

    /// Where it says nothing, what another one does.
    pub fn or(self, other: Self) -> Self {
        // the two say the same in two ways
        let (label, label_weights) = match (&self.label, &self.label_weights) {
            (None, None) => (other.label, other.label_weights),
            _ => (self.label, self.label_weights),
        };
        Self {
            label,
            label_weights,
            pooling: self.pooling.or(other.pooling),
            pad_token_id: self.pad_token_id.or(other.pad_token_id),
            text_rule: self.text_rule.or(other.text_rule),
            text_end: self.text_end.or(other.text_end),
            max_tokens: self.max_tokens.or(other.max_tokens),
            calibration: self.calibration.or(other.calibration),
        }
    }

    /// Puts a calibration into the manifest of a checkpoint directory, or takes it out. Its other keys stay as
    /// they are; a manifest with nothing in it is removed. Says whether anything changed.
    pub fn write_calibration(dir: &Path, calibration: Option<Calibration>) -> Result<bool, ModelError> {
        let path = dir.join(FILE_NAME);
        let mut fields: Map<String, Value> = match ModelError::read_if_there(&path, disk::SETTINGS_BYTES)? {
            Some(text) => serde_json::from_slice(&text).map_err(|error| ModelError::config(&path, error))?,
            None => Map::new(),
        };
        let before = fields.clone();
        match calibration {
            Some(calibration) => {
                let value = serde_json::to_value(calibration).expect("two numbers are JSON");
                fields.insert("calibration".to_owned(), value);
            }
            None => {
                fields.shift_remove("calibration");
            }
        }
        if fields == before {
            return Ok(false);
        }
        if fields.is_empty() {
            std::fs::remove_file(&path).map_err(|source| ModelError::write(&path, source))?;
        } else {
            replace_file(&path, format!("{:#}\n", Value::Object(fields)).as_bytes())?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calibration_is_written_beside_what_is_there_and_taken_out_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let calibration = |mean| Some(Calibration { mean, std: 1.234_567_89 });
        let write = |calibration| Manifest::write_calibration(dir.path(), calibration).unwrap();

        assert!(!write(None));
        assert!(!path.exists());
        assert!(write(calibration(1.0)) && !write(calibration(1.0)) && write(None));
        assert!(!path.exists(), "nothing is left in it");

        std::fs::write(&path, r#"{"text_rule": "concatenation", "max_tokens": 7}"#).unwrap();
        for mean in [-0.333_333_333, 5e-17] {
            assert!(write(calibration(mean)));
            let manifest = Manifest::load(dir.path()).unwrap();
            assert_eq!(manifest.calibration, calibration(mean));
            assert_eq!((manifest.max_tokens, manifest.text_rule), (Some(7), Some(TextRule::Concatenation)));
        }
        assert!(write(None));
        let left: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(left, serde_json::json!({"text_rule": "concatenation", "max_tokens": 7}));

        std::fs::write(&path, "[]").unwrap();
        let error = Manifest::write_calibration(dir.path(), calibration(1.0)).unwrap_err();
        assert!(error.to_string().contains(FILE_NAME), "{error}");
    }

    #[test]
    fn a_limit_that_a_server_could_not_tell_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for (limit, problem) in [
            (u64::from(u32::MAX), None),
            (0, Some("`max_tokens` is 0: expected a number above zero")),
            (1 << 32, Some("`max_tokens` is 4294967296: the limit is 4294967295")),
        ] {
            std::fs::write(&path, format!(r#"{{"max_tokens": {limit}}}"#)).unwrap();
            let told = Manifest::load(dir.path()).err().map(|error| error.to_string());
            match problem {
                None => assert_eq!(told, None),
                Some(problem) => {
                    assert!(told.as_ref().is_some_and(|told| told.contains(problem)), "{told:?}")
                }
            }
        }
    }
}
