//! What weights and activations are computed in, as people say it.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::values::Format;

/// What the weights and activations are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
    /// bf16 where this machine is faster in it and the weights are not f16; else f32, on a GPU f16.
    Auto,
}

impl Dtype {
    /// As in configuration files.
    pub fn name(self) -> &'static str {
        self.format().map_or("auto", Format::name)
    }

    /// Unless it is `auto`.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::F32 => Some(Format::F32),
            Self::Bf16 => Some(Format::Bf16),
            Self::F16 => Some(Format::F16),
            Self::Auto => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
