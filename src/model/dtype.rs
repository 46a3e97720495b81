//! What weights and activations are computed in, as people say it.

use std::fmt;

use candle_core::DType;
use serde::Deserialize;
use serde::Serialize;

use crate::ops::cpu::Isa;

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
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Auto => "auto",
        }
    }

    /// What `auto` means for weights that are stored in f16, or not, and why; the rest means itself.
    pub fn resolve(self, is_on_cpu: bool, stored_in_f16: bool) -> (Self, Option<String>) {
        if self != Self::Auto {
            return (self, None);
        }
        let isa = Isa::best();
        let (dtype, why) = match (is_on_cpu, stored_in_f16) {
            (true, true) => {
                (Self::F32, "the weights are f16, of which bf16 would drop three bits".to_owned())
            }
            (true, false) if isa.prefers_bf16() => (Self::Bf16, format!("the CPU has {}", isa.name())),
            (true, false) => (Self::F32, format!("the CPU ({}) is not faster in bf16", isa.name())),
            (false, true) => (Self::F16, "the weights are f16".to_owned()),
            (false, false) => {
                (Self::Bf16, "of the GPU's fast precisions the one without overflow".to_owned())
            }
        };
        (dtype, Some(why))
    }

    /// As tensors call it. Not of `auto`.
    pub fn tensor_dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::Auto => unreachable!("resolved before anything is loaded"),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
