//! `rewarm.json` beside a checkpoint: what its own files do not say about how it scores.
//!
//! ```json
//! {"pooling": "last_token", "text_rule": "concatenation", "max_tokens": 2048,
//!  "calibration": {"mean": 0.3, "std": 1.7}}
//! ```
//!
//! Every key is optional, as is the file.

use std::path::Path;

use serde::Deserialize;

use crate::model::ModelError;
use crate::model::scorer::Calibration;
use crate::model::variant::Pooling;
use crate::text::TextRule;

/// The manifest of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manifest {
    /// Overrides what the head's origin implies.
    pub pooling: Option<Pooling>,
    /// Overrides the chat template, or the family's rule.
    pub text_rule: Option<TextRule>,
    /// Lowers the model's own limit.
    pub max_tokens: Option<usize>,
    /// Applied to the member's rewards before an ensemble reduces them.
    pub calibration: Option<Calibration>,
}

impl Manifest {
    /// Reads the manifest of a checkpoint directory; all empty if there is none.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("rewarm.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ModelError::read(&path, source)),
        };
        let manifest: Self = serde_json::from_str(&text).map_err(|error| ModelError::config(&path, error))?;
        if let Some(Calibration { mean, std }) = manifest.calibration
            && !(mean.is_finite() && std.is_finite() && std > 0.0)
        {
            return Err(ModelError::config(
                &path,
                format!("`calibration` is mean {mean}, std {std}: both must be finite, and std above zero"),
            ));
        }
        if manifest.max_tokens == Some(0) {
            return Err(ModelError::config(&path, "`max_tokens` is 0: expected a number above zero"));
        }
        Ok(manifest)
    }
}
