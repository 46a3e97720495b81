//! Which hidden states a head reads, and whose head it is, which decides that where nobody says.

use serde::Deserialize;
use serde::Serialize;

/// Hidden states → one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The mean over tokens.
    Mean,
    /// The last token, whatever it is.
    LastToken,
    /// The rightmost token that is not the padding token: transformers' rule. With pad == eos it stops before the eos.
    LastNonPad,
    /// The first end-of-sequence token.
    FirstEos,
}

impl Pooling {
    /// As in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::LastToken => "last_token",
            Self::LastNonPad => "last_non_pad",
            Self::FirstEos => "first_eos",
        }
    }
}

/// Where a checkpoint's head comes from; decides the default pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// transformers' `score` of the decoders.
    Score,
    /// OpenRLHF's `value_head_prefix`.
    OpenRlhf,
    /// TRL's `v_head.summary`.
    TrlValueHead,
    /// A linear layer named `v_head`.
    ValueHead,
    /// transformers' `classifier` of the encoders.
    Classifier,
}

impl HeadKind {
    /// Whether it is that of transformers' `*ForSequenceClassification`.
    pub fn is_native(self) -> bool {
        match self {
            Self::Score | Self::Classifier => true,
            Self::OpenRlhf | Self::TrlValueHead | Self::ValueHead => false,
        }
    }
}
