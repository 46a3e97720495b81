//! `bitsandbytes`: NF4 and FP4 (QLoRA's), and LLM.int8().
//!
//! In 4 bits `X.weight` is bytes of two codes, the **high** nibble first, of all rows one after the other; each `blocksize` values have
//! one `X.weight.absmax`, across the ends of rows. `X.weight.quant_state.bitsandbytes__nf4` (or `__fp4`) is JSON in bytes: shape, the
//! type that was quantized, and, where scales are quantized in turn, what they are made of. What a code means is built into the
//! library; the `quant_map` beside it is not read there, nor here.
//!
//! In 8 bits `X.weight` is I8 `[out, in]`, and `X.SCB` F32 `[out]` the largest value of each row: q · SCB · (1/127), two products in `f32`.

use safetensors::Dtype;
use serde::Deserialize;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::quantized::decode::Codes;
use crate::checkpoint::quantized::decode::Groups;
use crate::checkpoint::quantized::decode::Part;
use crate::checkpoint::quantized::decode::Recipe;
use crate::checkpoint::quantized::decode::Scales;
use crate::checkpoint::quantized::decode::Scaling;
use crate::checkpoint::quantized::scheme::Found;
use crate::checkpoint::quantized::scheme::Scheme;
use crate::checkpoint::quantized::scheme::Stored;
use crate::checkpoint::quantized::scheme::format_of;
use crate::checkpoint::quantized::scheme::refused;
use crate::values::Format;

/// QLoRA's quantiles of the normal distribution. Source: Dettmers et al. 2023 (arXiv:2305.14314), appendix E.
#[expect(clippy::excessive_precision, reason = "as published")]
const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];
/// The library's own order, which is no other FP4's; the upper eight are the negative ones, but for zero.
const FP4: [f32; 8] = [0.0, 0.005_208_333_5, 2.0 / 3.0, 1.0, 1.0 / 3.0, 0.5, 1.0 / 6.0, 0.25];
/// Of a row's largest value, what an int8 step is.
const STEP: f32 = 1.0 / 127.0;
const STATE: &str = ".quant_state.bitsandbytes__";

struct BitsAndBytes;

pub(super) fn parse(_: &Fields<'_>) -> Result<Box<dyn Scheme>, String> {
    Ok(Box::new(BitsAndBytes))
}

/// What the blob says.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// The largest of each block; in turn codes, where they are nested.
#[derive(Debug)]
struct LargestOfBlocks {
    values: usize,
    blocksize: usize,
    nested: Option<Nested>,
}

#[derive(Clone, Copy, Debug)]
struct Nested {
    blocksize: usize,
    offset: f32,
}

impl Scaling for LargestOfBlocks {
    fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        let scale = match (self.nested, parts) {
            (Some(Nested { blocksize, offset }), [codes, map, largest]) => {
                let (map, largest) = (map.numbers()?, largest.numbers()?);
                let codes = codes.integers()?;
                let value = |(block, code): (usize, &i64)| {
                    let product = map.get(*code as usize)? * largest.get(block / blocksize)?;
                    Some(product + offset)
                };
                let scales: Option<Vec<f32>> = codes.iter().enumerate().map(value).collect();
                scales.ok_or_else(|| format!("`{}` needs more than `nested_absmax` has", parts[0].name))?
            }
            _ => parts[0].numbers()?,
        };
        Ok(Scales::blocks(1, self.blocksize, self.values.div_ceil(self.blocksize), scale))
    }
}

/// The largest of each row.
#[derive(Debug)]
struct LargestOfRows {
    columns: usize,
}

impl Scaling for LargestOfRows {
    fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        let scales = Scales::blocks(1, self.columns.max(1), 1, parts[0].numbers()?);
        Ok(Scales { columns: Groups::Of(self.columns.max(1)), then: Some(STEP), ..scales })
    }
}

fn in_four_bits(name: &str, kind: &str, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
    let blob = format!("{name}{STATE}{kind}");
    let state: State = serde_json::from_slice(stored.read(&blob)?.values.bytes())
        .map_err(|error| refused(&blob, format!("is no state of bitsandbytes: {error}")))?;
    let table = match &*state.quant_type {
        "nf4" => NF4,
        "fp4" => std::array::from_fn(|code| if code <= 8 { FP4[code % 8] } else { -FP4[code - 8] }),
        other => return Err(refused(&blob, format!("has `quant_type` `{other}`: read are nf4 and fp4"))),
    };
    let format = format_of(&state.dtype).ok_or_else(|| {
        refused(&blob, format!("has `dtype` `{}`: read are float32, bfloat16 and float16", state.dtype))
    })?;
    let count = state.shape.iter().try_fold(1_usize, |count, &axis| count.checked_mul(axis));
    let Some(count) = count.filter(|_| state.blocksize > 0) else {
        let problem = format!("has shape {:?} in blocks of {}", state.shape, state.blocksize);
        return Err(refused(&blob, problem));
    };
    let (absmax, map, of_nested) =
        (format!("{name}.absmax"), format!("{name}.nested_quant_map"), format!("{name}.nested_absmax"));
    let blocks = stored.part(&absmax, name)?;
    let mut parts = vec![name.to_owned(), absmax.clone()];
    let nested = match blocks.dtype {
        Dtype::U8 => {
            let (Some(blocksize @ 1..), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
                return Err(refused(
                    &blob,
                    "has no `nested_blocksize` and `nested_offset`, and scales that need them",
                ));
            };
            stored.part(&map, name)?;
            stored.part(&of_nested, name)?;
            parts.extend([map, of_nested]);
            Some(Nested { blocksize, offset: offset as f32 })
        }
        _ => None,
    };
    if blocks.shape.iter().product::<usize>() != count.div_ceil(state.blocksize) {
        return Err(refused(
            &absmax,
            format!("is {:?}, of {count} values in blocks of {}", blocks.shape, state.blocksize),
        ));
    }
    let recipe = Recipe {
        codes: Codes::Nibbles { table, high_first: true },
        matrices: 1,
        rows: 1,
        columns: count,
        is_turned: false,
        scaling: Box::new(LargestOfBlocks { values: count, blocksize: state.blocksize, nested }),
        format,
    };
    Ok(Found { name: name.to_owned(), shape: state.shape, parts, recipe })
}

fn in_eight_bits(module: &str, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
    let (name, scales) = (format!("{module}.weight"), format!("{module}.SCB"));
    let (codes, largest) = (stored.part(&name, &name)?, stored.part(&scales, &name)?);
    let [rows, columns] = *codes.shape else {
        return Err(refused(&name, format!("is {:?}: expected [out, in]", codes.shape)));
    };
    if codes.dtype != Dtype::I8 || largest.shape != [rows] {
        let problem = format!(
            "is {:?} of `{name}` {:?} {:?}: expected one for each row of I8",
            largest.shape, codes.dtype, codes.shape
        );
        return Err(refused(&scales, problem));
    }
    let layout = format!("{module}.weight_format");
    if stored.get(&layout).is_some() {
        let format = stored.read(&layout)?.integers().map_err(CheckpointError::Unsupported)?;
        if format.iter().any(|format| *format != 0) {
            return Err(refused(
                &layout,
                format!("is {format:?}: only rows (0) are read, as the library saves them today"),
            ));
        }
    }
    let recipe = Recipe {
        codes: Codes::int8(),
        matrices: 1,
        rows,
        columns,
        is_turned: false,
        scaling: Box::new(LargestOfRows { columns }),
        format: Format::F32,
    };
    Ok(Found { name: name.clone(), shape: vec![rows, columns], parts: vec![name, scales], recipe })
}

impl Scheme for BitsAndBytes {
    fn find(&self, stored: &mut Stored<'_>) -> Result<Vec<Found>, CheckpointError> {
        let mut found = Vec::new();
        for kind in ["nf4", "fp4"] {
            for (name, _) in stored.ending(&format!("{STATE}{kind}")) {
                let made = in_four_bits(name, kind, stored)?;
                stored.leave_out(format!("{name}{STATE}{kind}"));
                stored.leave_out(format!("{name}.quant_map"));
                found.push(made);
            }
        }
        for (module, _) in stored.ending(".SCB") {
            found.push(in_eight_bits(module, stored)?);
            stored.leave_out(format!("{module}.weight_format"));
        }
        found.iter().for_each(|made| stored.take(&made.parts));
        Ok(found)
    }

    fn parts(&self) -> &'static [&'static str] {
        &[".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format"]
    }
}
