//! Quantized checkpoints: what libraries store in 8 bits and less is read as the tensors that are meant.
//!
//! ```text
//! X.weight (codes), X.weight_scale_inv, … ─ scheme ─▶ X.weight: [out, in] in f32, bf16 or f16
//! ```
//!
//! Nothing above knows of it: plans, merges and trainings find the plain tensors by their names. Which scheme it is
//! `quantization_config` says (in `config.json`, or, for ModelOpt, `hf_quant_config.json`); which modules are quantized the tensors
//! say themselves, for lists of exceptions are wrong in files that people share. What a scheme does not know stays as it is
//! stored, and the model's plan refuses it by name.
//!
//! # What is meant
//!
//! The product in `f32`, rounded once, to the type in which the scheme itself computes: that of the scale (compressed-tensors), the
//! one that was quantized (bitsandbytes, torchao), `f16` (GPTQ, AWQ); and where that is whatever the model is served in, to none
//! before that (FP8). Each was compared with its library bit for bit (`tests/reference/quantized.py`). Where a library gives
//! several results, drops scales, or rounds activations too, the files decide, not the library's arithmetic of the day.

mod awq;
mod bitsandbytes;
mod compressed_tensors;
mod decode;
mod floats;
mod fp8;
mod gptq;
mod modelopt;
mod mxfp4;
mod scheme;
mod torchao;

use std::path::Path;

use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::Fields;
pub(super) use crate::checkpoint::quantized::decode::Part;
pub(super) use crate::checkpoint::quantized::decode::Recipe;
pub(super) use crate::checkpoint::quantized::scheme::Found;
use crate::checkpoint::quantized::scheme::Scheme;
pub(super) use crate::checkpoint::quantized::scheme::Stored;
use crate::checkpoint::quantized::scheme::refused;
use crate::disk;

/// Where a config says how it is quantized.
const KEY: &str = "quantization_config";
/// Where ModelOpt says it, if it does not say it there too.
pub const MODELOPT: &str = "hf_quant_config.json";

/// Reads a scheme's settings.
type Parse = fn(&Fields<'_>) -> Result<Box<dyn Scheme>, String>;

/// By `quant_method`.
const SCHEMES: [(&str, Parse); 9] = [
    ("fp8", fp8::parse),
    ("mxfp8", fp8::parse),
    ("compressed-tensors", compressed_tensors::parse),
    ("bitsandbytes", bitsandbytes::parse),
    ("gptq", gptq::parse),
    ("awq", awq::parse),
    ("mxfp4", mxfp4::parse),
    ("torchao", torchao::parse),
    ("modelopt", modelopt::parse),
];

/// What activations and caches are scaled by where they are quantized too, which they are not here.
const OF_ACTIVATIONS: [&str; 12] = [
    ".activation_scale",
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".k_zero_point",
    ".v_zero_point",
    ".kv_scale",
];

/// How a checkpoint is quantized.
pub(super) struct Settings {
    method: String,
    scheme: Box<dyn Scheme>,
}

/// What becomes of a checkpoint's tensors.
pub(super) struct Dequantized {
    /// Tensors that are made of others.
    pub(super) found: Vec<Found>,
    /// Tensors that nothing needs.
    pub(super) unused: Vec<String>,
    /// In words.
    pub(super) note: String,
}

impl Settings {
    /// Of a directory; `None` where its config tells of none.
    pub(super) fn of(dir: &Path) -> Result<Option<Self>, CheckpointError> {
        let path = dir.join("config.json");
        let fields = read(&path)?.unwrap_or_default();
        let of_text = fields.get("text_config").and_then(|text| text.get(KEY));
        let settings = match fields.get(KEY).filter(|own| !own.is_null()).or(of_text) {
            None | Some(Value::Null) => match read(&dir.join(MODELOPT))? {
                Some(_) => Map::from_iter([("quant_method".to_owned(), "modelopt".into())]),
                None => return Ok(None),
            },
            Some(Value::Object(settings)) => settings.clone(),
            Some(other) => {
                return Err(CheckpointError::config(&path, format!("`{KEY}` is {other}: expected settings")));
            }
        };
        Self::parse(&Fields(&settings)).map(Some).map_err(|problem| CheckpointError::config(&path, problem))
    }

    fn parse(fields: &Fields<'_>) -> Result<Self, String> {
        let is_set = |key: &str| fields.0.get(key).and_then(Value::as_bool).unwrap_or(false);
        let method = match is_set("load_in_4bit") || is_set("load_in_8bit") {
            true => "bitsandbytes".to_owned(), // whatever the method says, as transformers has it
            false => fields
                .required::<String>("quant_method")
                .map_err(|problem| format!("{problem} in `{KEY}`"))?,
        };
        let known = SCHEMES.iter().find(|(name, _)| *name == method);
        let Some((_, parse)) = known else {
            let names: Vec<&str> = SCHEMES.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "`quant_method` of `{KEY}` is `{method}`: read are {}. Load it with the library that wrote it, and save it \
                 dequantized (model.dequantize().save_pretrained(OUT) where transformers can)",
                names.join(", ")
            ));
        };
        Ok(Self { scheme: parse(fields).map_err(|problem| format!("{problem} (in `{KEY}`)"))?, method })
    }

    /// Finds what is quantized among a checkpoint's tensors.
    pub(super) fn find(&self, mut stored: Stored<'_>) -> Result<Dequantized, CheckpointError> {
        let found = self.scheme.find(&mut stored)?;
        for made in &found {
            stored.check(made)?;
        }
        let mut unused: Vec<String> = stored.surplus().map(str::to_owned).collect();
        for name in stored.left() {
            if OF_ACTIVATIONS.iter().any(|end| name.ends_with(end)) {
                unused.push(name.to_owned());
            } else if let Some(end) = self.scheme.parts().iter().find(|end| name.ends_with(**end)) {
                let problem = format!(
                    "is left over: nothing that it belongs to is quantized as `{}` has it, so weights would go without \
                     their `{}`",
                    self.method,
                    end.trim_start_matches('.')
                );
                return Err(refused(name, problem));
            }
        }
        let note = match found.len() {
            0 => format!(
                "config.json tells of weights in {}, and none are: they are read as they are",
                self.method
            ),
            count => format!(
                "{count} tensors are quantized ({}) and read dequantized; activations are not quantized",
                self.method
            ),
        };
        Ok(Dequantized { found, unused, note })
    }
}

/// Makes a config that of plain weights.
pub fn make_plain(config: &mut Map<String, Value>) {
    config.shift_remove(KEY);
    if let Some(Value::Object(text)) = config.get_mut("text_config") {
        text.shift_remove(KEY);
    }
}

fn read(path: &Path) -> Result<Option<Map<String, Value>>, CheckpointError> {
    let text = disk::read_if_there(path, disk::SETTINGS_BYTES)
        .map_err(|source| CheckpointError::read(path, source))?;
    // what is no JSON is told by whoever reads all of it
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}
