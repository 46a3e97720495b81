//! In what a number is written: the one type for files, memory, settings and forms of the operations.

use std::fmt;

use half::bf16;
use half::f16;
use safetensors::Dtype;
use serde::Deserialize;
use serde::Serialize;

/// A format of numbers that we compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// 64-bit floats: read, and summed in; neither kept nor written.
    #[value(skip)]
    #[serde(skip)]
    F64,
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
}

impl Format {
    /// Of a tensor in a file; `None` for those that are no numbers to compute with.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F64 => Some(Self::F64),
            Dtype::F32 => Some(Self::F32),
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F16 => Some(Self::F16),
            _ => None,
        }
    }

    /// As in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// As in a checkpoint's `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The least number that is too large: rounded, it is infinite.
    pub fn overflows_from(self) -> f64 {
        match self {
            Self::F64 => f64::INFINITY,
            Self::F32 => f64::from_bits(0x47ef_ffff_f000_0000), // half a step above the largest, as the others
            Self::Bf16 => f64::from(f32::from_bits(0x7f7f_8000)),
            Self::F16 => 65_520.0,
        }
    }

    /// The nearest that it holds, rounded once.
    pub fn round(self, exact: f64) -> f64 {
        match self {
            Self::F64 => exact,
            Self::F32 => f64::from(exact as f32),
            Self::Bf16 => bf16::from_f32(super::round::round_to_odd(exact)).into(),
            Self::F16 => f16::from_f32(super::round::round_to_odd(exact)).into(),
        }
    }
}

impl From<Format> for Dtype {
    fn from(format: Format) -> Self {
        match format {
            Format::F64 => Self::F64,
            Format::F32 => Self::F32,
            Format::Bf16 => Self::BF16,
            Format::F16 => Self::F16,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
