//! Rotary position embedding: which angle each pair of a head's dimensions turns by at each position.
//!
//! Follows `modeling_rope_utils.py` of transformers in `f32`, since at position 8,000 one unit in the last
//! place of a frequency is half a thousandth of a radian.
//!
//! # How long a text may be
//!
//! There is no table of positions that ends: transformers computes texts of any length. What a model was made for is in its
//! file, in two conventions: `max_position_embeddings` counts the stretched length (Llama 3.1), or it was left
//! at the length of the pretraining, and the scaling says how much longer (Qwen's YaRN). [`RopeConfig::max_positions`] takes
//! the larger of the two, and `max_tokens` of the manifest or of the user may go beyond it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use serde::Serialize;
use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::ops::batch::PackedBatch;
use crate::ops::batch::Segment;
use crate::ops::inputs::AngleTable;
use crate::ops::inputs::Angles;

/// Which angles.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RopeConfig {
    /// How many columns of a head turn.
    pub head_dim: usize,
    /// Base of the wavelengths.
    pub theta: f64,
    /// How they are stretched for long texts.
    pub scaling: RopeScaling,
    /// How what is turned grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth: Option<RopeGrowth>,
}

/// Ministral-3's queries grow with their positions: by `1 + beta · ln(1 + ⌊position / original⌋)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RopeGrowth {
    /// How fast.
    pub beta: f64,
    /// Length of the pretraining.
    pub original_max_positions: usize,
}

impl RopeGrowth {
    /// Reads it from the rope's parameters, which must have it.
    pub(super) fn parse(fields: &Fields<'_>) -> Result<Self, String> {
        let none = Map::new();
        let rope = Fields(RopeConfig::parameters(fields)?.map_or(&none, |(_, rope)| rope));
        Ok(Self {
            beta: rope.required("llama_4_scaling_beta")?,
            original_max_positions: rope.required("original_max_position_embeddings")?,
        })
    }

    fn factor(self, position: usize) -> f32 {
        let Self { beta, original_max_positions } = self;
        let steps = (position / original_max_positions.max(1)) as f32;
        1.0 + beta as f32 * (1.0 + steps).ln()
    }
}

/// How the wavelengths are stretched for texts longer than those of the pretraining.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Nothing turns: for what only [grows](RopeConfig::growth).
    Still,
    /// All by one factor.
    Linear {
        /// How much longer.
        factor: f64,
    },
    /// By sequences longer than the model was made for only: the base grows with their length.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// The length above which it grows.
        max_positions: usize,
    },
    /// Long wavelengths by a factor, short ones not, between them a ramp (Llama 3.1).
    Llama3 {
        /// How much longer.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are not.
        high_freq_factor: f64,
        /// Length of the pretraining.
        original_max_positions: usize,
    },
    /// Like it, with the ramp over dimensions, and larger scores (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// How much longer.
        factor: f64,
        /// Factor on sine and cosine.
        attention_factor: f64,
        /// Dimensions that turn more often than this within the original length are not stretched.
        beta_fast: f64,
        /// Dimensions that turn less often than this are.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
        /// Length of the pretraining.
        original_max_positions: usize,
    },
    /// Each wavelength by a factor of its own, of two sets: one for short texts, one for long ones (Ding et al.
    /// 2024, arXiv:2402.13753).
    Longrope {
        /// How much longer.
        factor: f64,
        /// Factor on sine and cosine.
        attention_factor: f64,
        /// One per pair of dimensions, for texts up to the original length.
        short: Vec<f64>,
        /// For longer ones, at all of their positions.
        long: Vec<f64>,
        /// Length of the pretraining.
        original_max_positions: usize,
    },
}

/// What a class takes for what a file does not say.
#[derive(Clone, Copy)]
pub(super) struct RopeDefaults {
    /// Width of a head.
    pub(super) head_dim: usize,
    /// `max_position_embeddings`, as the file says it.
    pub(super) max_positions: usize,
    /// The key beside `rope_parameters` that says the base of the wavelengths, and its default.
    pub(super) theta: (&'static str, f64),
    /// Of classes that turn a part of each head: the key beside `rope_parameters` that says which share, and its default.
    pub(super) share: Option<(&'static str, f64)>,
}

/// The key that parameters stand under, and they.
type Placed<'f> = (&'static str, &'f Map<String, Value>);

impl RopeConfig {
    /// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (transformers 4).
    ///
    /// Where both are there, a `rope_scaling` that is neither null nor empty replaces all of `rope_parameters`, its
    /// `rope_theta` too. A `rope_theta` inside counts before the one beside, and that before the class's default.
    pub(super) fn parse(fields: &Fields<'_>, defaults: RopeDefaults) -> Result<Self, String> {
        match Self::parameters(fields)? {
            Some((place, parameters)) => Self::read(fields, place, &Fields(parameters), defaults),
            None => Self::read(fields, "rope_parameters", &Fields(&Map::new()), defaults),
        }
    }

    /// HunYuan's: a `dynamic` one that has an `alpha` stretches the base by it, once for texts of all lengths.
    pub(super) fn with_alpha(self, fields: &Fields<'_>) -> Result<Self, String> {
        let alpha = match (&self.scaling, Self::parameters(fields)?) {
            (RopeScaling::Dynamic { .. }, Some((_, rope))) => {
                Fields(rope).number("alpha", |alpha| alpha >= 0.0)?.filter(|alpha| *alpha > 0.0)
            }
            _ => None,
        };
        let Some(alpha) = alpha else { return Ok(self) };
        let width = self.head_dim as f64;
        let theta = self.theta * alpha.powf(width / (width - 2.0));
        Ok(Self { theta, scaling: RopeScaling::None, ..self })
    }

    /// DeepSeek's factor on scores, of a rope that is scaled in whatever way and has an `mscale_all_dim`.
    pub(super) fn score_factor(fields: &Fields<'_>) -> Result<f64, String> {
        let Some((_, rope)) = Self::parameters(fields)? else { return Ok(1.0) };
        let rope = Fields(rope);
        let all = rope.optional::<f64>("mscale_all_dim")?.filter(|all| *all != 0.0);
        match all.filter(|_| Self::kind(&rope).is_ok_and(|kind| kind != "default")) {
            Some(all) => Ok(mscale(rope.required("factor")?, all).powi(2)),
            None => Ok(1.0),
        }
    }

    fn kind(rope: &Fields<'_>) -> Result<String, String> {
        match rope.0.contains_key("rope_type") {
            true => rope.required("rope_type"),
            false => rope.or_default("type", "default".to_owned()),
        }
    }

    /// Where they are, and they.
    fn parameters<'f>(fields: &Fields<'f>) -> Result<Option<Placed<'f>>, String> {
        for place in ["rope_scaling", "rope_parameters"] {
            let Some(parameters) = object(fields, place)?.filter(|found| !found.is_empty()) else { continue };
            if let Some((layer_type, _)) = parameters.iter().find(|(_, value)| value.is_object()) {
                return Err(format!("`{place}` differs by layer (`{layer_type}`): not supported"));
            }
            return Ok(Some((place, parameters)));
        }
        Ok(None)
    }

    /// The same for one of the `layer_types` of classes that have a rope for each, by its name in `rope_parameters`.
    /// `is_scaled`: a `rope_scaling` of transformers 4, which tells no layer types, is of this one.
    pub(super) fn parse_of(
        layer_type: &str,
        is_scaled: bool,
        fields: &Fields<'_>,
        defaults: RopeDefaults,
    ) -> Result<Self, String> {
        const PLACE: &str = "rope_parameters";
        let by_type = object(fields, PLACE)?.cloned().unwrap_or_default();
        if let Some((key, _)) = by_type.iter().find(|(_, value)| !value.is_object() && !value.is_null()) {
            return Err(format!(
                "`{PLACE}` has `{key}` beside layer types: expected one set of them for each type"
            ));
        }
        let mut parameters = match object(&Fields(&by_type), layer_type)? {
            Some(parameters) => parameters.clone(),
            // of which a `type` of transformers 4 says nothing else
            None => Map::from_iter([("rope_type".to_owned(), "default".into())]),
        };
        if let Some(scaling) = object(fields, "rope_scaling")?.filter(|_| is_scaled) {
            parameters.extend(scaling.clone());
        }
        let mut beside = fields.0.clone();
        beside.remove("original_max_position_embeddings"); // not read for layer types
        Self::read(&Fields(&beside), PLACE, &Fields(&parameters), defaults)
    }

    fn read(
        fields: &Fields<'_>,
        place: &str,
        rope: &Fields<'_>,
        RopeDefaults { head_dim, max_positions, theta: (theta_key, default_theta), share }: RopeDefaults,
    ) -> Result<Self, String> {
        let theta: f64 = match rope.0.contains_key("rope_theta") {
            true => rope.required("rope_theta")?,
            false => fields.or_default(theta_key, default_theta)?,
        };
        let original = || match fields.0.contains_key("original_max_position_embeddings") {
            true => fields.required::<usize>("original_max_position_embeddings"),
            false => rope.or_default("original_max_position_embeddings", max_positions),
        };
        let kind = Self::kind(rope)?;
        let turning = match share {
            Some((key, default)) => {
                let share = match rope.0.contains_key("partial_rotary_factor") {
                    true => rope.required("partial_rotary_factor")?,
                    false => fields.or_default(key, default)?,
                };
                (head_dim as f64 * share) as usize
            }
            None => {
                for place in [fields, rope] {
                    let share = place.optional::<f64>("partial_rotary_factor")?;
                    // "default" ignores it
                    if let Some(share) = share.filter(|share| kind != "default" && *share != 1.0) {
                        return Err(format!("`partial_rotary_factor` is {share}: only 1.0 is supported"));
                    }
                }
                head_dim
            }
        };
        // Of an odd number Phi-3, GLM, GPT-NeoX and Nemotron turn one column more, at wavelengths of the odd number; Phi,
        // StableLM, Persimmon and GPT-J fail in transformers 5.23. No published model has one.
        if turning == 0 || turning > head_dim || !turning.is_multiple_of(2) {
            return Err(format!(
                "rotary embedding turns pairs of columns, and {turning} of the {head_dim} of a head are to turn: expected an \
                 even number up to that"
            ));
        }
        let head_dim = turning;
        let factor = || rope.required::<f64>("factor").map_err(|problem| format!("`{place}`: {problem}"));
        let scaling = match kind.as_str() {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "dynamic" => RopeScaling::Dynamic { factor: factor()?, max_positions },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: rope.required("low_freq_factor")?,
                high_freq_factor: rope.required("high_freq_factor")?,
                original_max_positions: original()?,
            },
            "yarn" => parse_yarn(rope, original()?, max_positions)?,
            "longrope" => parse_longrope(rope, original()?, max_positions, head_dim)?,
            other => {
                return Err(format!(
                    "rope type `{other}` is not supported: supported are default, linear, dynamic, llama3, yarn and \
                     longrope"
                ));
            }
        };
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(format!("`{theta_key}` is {theta}: expected a number above one"));
        }
        let rope = Self { head_dim, theta, scaling, growth: None };
        rope.check()?;
        Ok(rope)
    }

    /// Refuses numbers that no angle can be computed with.
    fn check(&self) -> Result<(), String> {
        type Named<'a, T> = &'a [(&'static str, T)];
        let (numbers, lengths): (Named<'_, f64>, Named<'_, usize>) = match self.scaling {
            RopeScaling::None | RopeScaling::Still => (&[], &[]),
            RopeScaling::Linear { factor } => (&[("factor", factor)], &[]),
            RopeScaling::Dynamic { factor, max_positions } => {
                (&[("factor", factor)], &[("max_position_embeddings", max_positions)])
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => (
                &[
                    ("factor", factor),
                    ("low_freq_factor", low_freq_factor),
                    ("high_freq_factor", high_freq_factor),
                ],
                &[("original_max_position_embeddings", original_max_positions)],
            ),
            RopeScaling::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                original_max_positions,
                ..
            } => (
                &[
                    ("factor", factor),
                    ("attention_factor", attention_factor),
                    ("beta_fast", beta_fast),
                    ("beta_slow", beta_slow),
                ],
                &[("original_max_position_embeddings", original_max_positions)],
            ),
            RopeScaling::Longrope { factor, attention_factor, original_max_positions, .. } => (
                &[("factor", factor), ("attention_factor", attention_factor)],
                &[("original_max_position_embeddings", original_max_positions)],
            ),
        };
        if let RopeScaling::Longrope { short, long, .. } = &self.scaling
            && let Some(value) = short.iter().chain(long).find(|value| !(**value > 0.0 && value.is_finite()))
        {
            return Err(format!("a factor of longrope is {value}: expected a finite number above zero"));
        }
        if let Some((key, value)) = numbers.iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            return Err(format!("`{key}` of the rope is {value}: expected a finite number above zero"));
        }
        if let Some((key, _)) = lengths.iter().find(|(_, length)| *length == 0) {
            return Err(format!("`{key}` of the rope is 0: expected a number above zero"));
        }
        if matches!(self.scaling, RopeScaling::Dynamic { .. }) && self.head_dim <= 2 {
            return Err(format!("`head_dim` is {}: dynamic rope needs more than 2", self.head_dim));
        }
        Ok(())
    }

    /// The longest text that the model was made for; `declared` is `max_position_embeddings`.
    pub fn max_positions(&self, declared: usize) -> usize {
        let stretched = match self.scaling {
            RopeScaling::None | RopeScaling::Still => 0.0,
            // these have no original length of their own
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. } => declared as f64 * factor,
            RopeScaling::Llama3 { factor, original_max_positions, .. }
            | RopeScaling::Yarn { factor, original_max_positions, .. }
            | RopeScaling::Longrope { factor, original_max_positions, .. } => {
                original_max_positions as f64 * factor
            }
        };
        declared.max(stretched as usize)
    }

    /// Frequencies `[head_dim / 2]` in radians per position, for a sequence of `tokens`.
    fn frequencies(&self, tokens: usize) -> Vec<f32> {
        let dim = self.head_dim as f64;
        let unscaled = |theta: f64| -> Vec<f32> {
            (0..self.head_dim / 2)
                .map(|pair| 1.0 / power(theta, (2 * pair) as f32 / self.head_dim as f32))
                .collect()
        };
        match self.scaling {
            RopeScaling::None => unscaled(self.theta),
            RopeScaling::Still => vec![0.0; self.head_dim / 2],
            RopeScaling::Linear { factor } => {
                unscaled(self.theta).iter().map(|f| f / factor as f32).collect()
            }
            RopeScaling::Dynamic { factor, max_positions } => {
                let stretch =
                    factor * tokens.max(max_positions) as f64 / max_positions as f64 - (factor - 1.0);
                unscaled(self.theta * stretch.powf(dim / (dim - 2.0)))
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let original = original_max_positions as f32;
                let (longest, shortest) =
                    (original / low_freq_factor as f32, original / high_freq_factor as f32);
                let stretch = |frequency: f32| {
                    let wavelength = std::f32::consts::TAU / frequency;
                    // in this order: the two may cross
                    if wavelength > longest {
                        frequency / factor as f32
                    } else if wavelength < shortest {
                        frequency
                    } else {
                        let smooth = (original / wavelength - low_freq_factor as f32)
                            / (high_freq_factor - low_freq_factor) as f32;
                        (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                    }
                };
                unscaled(self.theta).into_iter().map(stretch).collect()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_positions, .. } => {
                // the dimension that turns `rotations` times within the original length
                let dimension = |rotations: f64| {
                    dim * (original_max_positions as f64 / (rotations * std::f64::consts::TAU)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001; // as in transformers: a ramp of no length would divide by zero
                }
                (0..self.head_dim / 2)
                    .map(|pair| {
                        let wave = power(self.theta, (2 * pair) as f32 / self.head_dim as f32);
                        let ramp = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                        1.0 / (factor as f32 * wave) * ramp + 1.0 / wave * (1.0 - ramp)
                    })
                    .collect()
            }
            RopeScaling::Longrope { ref short, ref long, original_max_positions, .. } => {
                let factors = if tokens > original_max_positions { long } else { short };
                (0..self.head_dim / 2)
                    .zip(factors)
                    .map(|(pair, &factor)| {
                        let wave = power(self.theta, (2 * pair) as f32 / self.head_dim as f32);
                        1.0 / (factor as f32 * wave)
                    })
                    .collect()
            }
        }
    }

    fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Longrope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }
}

/// An object, where there is one.
fn object<'f>(fields: &Fields<'f>, key: &str) -> Result<Option<&'f Map<String, Value>>, String> {
    match fields.0.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(found)) => Ok(Some(found)),
        Some(other) => Err(format!("`{key}` is {other}: expected an object")),
    }
}

fn mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

fn parse_yarn(
    rope: &Fields<'_>,
    original_max_positions: usize,
    max_positions: usize,
) -> Result<RopeScaling, String> {
    let factor = match rope.0.get("factor") {
        Some(Value::Null) => max_positions as f64 / original_max_positions as f64,
        _ => rope.required("factor")?,
    };
    let attention_factor = match rope.optional("attention_factor")? {
        Some(attention_factor) => attention_factor,
        None => match (rope.optional::<f64>("mscale")?, rope.optional::<f64>("mscale_all_dim")?) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => mscale(factor, one) / mscale(factor, all),
            _ => mscale(factor, 1.0),
        },
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: rope.optional("beta_fast")?.filter(|&beta| beta != 0.0).unwrap_or(32.0),
        beta_slow: rope.optional("beta_slow")?.filter(|&beta| beta != 0.0).unwrap_or(1.0),
        truncate: rope.optional("truncate")?.unwrap_or(true),
        original_max_positions,
    })
}

fn parse_longrope(
    rope: &Fields<'_>,
    original_max_positions: usize,
    max_positions: usize,
    head_dim: usize,
) -> Result<RopeScaling, String> {
    let factors = |key: &str| -> Result<Vec<f64>, String> {
        let factors: Vec<f64> = rope.required(key)?;
        if factors.len() != head_dim / 2 {
            return Err(format!(
                "`{key}` has {} factors, `head_dim` {head_dim} needs half as many",
                factors.len()
            ));
        }
        Ok(factors)
    };
    let factor = match rope.optional("factor")? {
        Some(factor) => factor,
        None => max_positions as f64 / original_max_positions as f64,
    };
    let attention_factor = match rope.optional("attention_factor")? {
        Some(attention_factor) => attention_factor,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + f64::ln(factor) / (original_max_positions as f64).ln()).sqrt(),
    };
    Ok(RopeScaling::Longrope {
        factor,
        attention_factor,
        short: factors("short_factor")?,
        long: factors("long_factor")?,
        original_max_positions,
    })
}

/// `base ** exponent`, rounded once to `f32`.
fn power(base: f64, exponent: f32) -> f32 {
    base.powf(f64::from(exponent)) as f32
}

/// Cosines and sines, computed once and grown as longer sequences come.
#[derive(Debug)]
pub struct RopeTable {
    config: RopeConfig,
    grown: Mutex<Arc<AngleTable>>,
}

impl RopeTable {
    /// Which angles.
    pub fn config(&self) -> &RopeConfig {
        &self.config
    }

    /// An empty table.
    pub fn new(config: RopeConfig) -> Self {
        let none = AngleTable { pairs: config.head_dim / 2, ..AngleTable::default() };
        Self { config, grown: Mutex::new(Arc::new(none)) }
    }

    fn extend(&self, table: &mut AngleTable, frequencies: &[f32], positions: Range<usize>) {
        let RopeConfig { growth, .. } = self.config;
        for position in positions {
            let factor =
                self.config.attention_factor() * growth.map_or(1.0, |growth| growth.factor(position));
            for &frequency in frequencies {
                let angle = f64::from(position as f32 * frequency);
                table.cos.push(angle.cos() as f32 * factor);
                table.sin.push(angle.sin() as f32 * factor);
            }
        }
    }

    /// Of so many positions at least. Whoever has a smaller one keeps it.
    fn up_to(&self, end: usize) -> Arc<AngleTable> {
        let mut table = self.grown.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = table.cos.len() / table.pairs;
        if grown < end {
            let mut larger = AngleTable::clone(&table);
            self.extend(&mut larger, &self.config.frequencies(0), grown..end.next_power_of_two());
            *table = Arc::new(larger);
        }
        table.clone()
    }

    /// The angles of all rows of a batch.
    pub fn packed(&self, batch: &PackedBatch) -> Angles {
        let segments = batch.segments();
        let longest = segments.iter().map(Segment::end_position).max().unwrap_or(0);
        if !self.depends_on_length(longest) {
            let positions = |of: &Segment| of.first_position as u32..of.end_position() as u32;
            let of_rows = segments.iter().flat_map(positions).collect();
            return Angles { table: self.up_to(longest), of_rows, stays: true };
        }
        // a long sequence under dynamic scaling and the like has angles of its own
        let mut table = AngleTable { pairs: self.config.head_dim / 2, ..AngleTable::default() };
        for segment in segments {
            let end = segment.end_position();
            let is_own = self.depends_on_length(end);
            debug_assert!(!is_own || segment.parent.is_none(), "such a sequence shares no prefix");
            let frequencies = self.config.frequencies(if is_own { end } else { 0 });
            self.extend(&mut table, &frequencies, segment.first_position..end);
        }
        Angles::of_batch(table)
    }

    /// Whether the angles of a sequence of so many tokens are not those of a shorter one.
    pub fn depends_on_length(&self, tokens: usize) -> bool {
        match &self.config.scaling {
            RopeScaling::Dynamic { max_positions, .. } => tokens > *max_positions,
            RopeScaling::Longrope { short, long, original_max_positions, .. } => {
                short != long && tokens > *original_max_positions
            }
            _ => false,
        }
    }
}
