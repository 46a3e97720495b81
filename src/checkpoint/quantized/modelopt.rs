//! `modelopt`: NVIDIA's FP8 and NVFP4.
//!
//! FP8 is `X.weight` F8_E4M3 with one `X.weight_scale`, or one per row. NVFP4 is `X.weight` U8 `[out, in/2]`, the low nibble first, with
//! `X.weight_scale` F8_E4M3 `[out, in/16]` and one `X.weight_scale_2`, which **multiplies** (compressed-tensors' divides). transformers 5.23
//! knows neither: of the first it leaves scales out with a warning, and the second it cannot load.

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::quantized::decode::Codes;
use crate::checkpoint::quantized::decode::Part;
use crate::checkpoint::quantized::decode::Recipe;
use crate::checkpoint::quantized::decode::Scales;
use crate::checkpoint::quantized::decode::Scaling;
use crate::checkpoint::quantized::floats;
use crate::checkpoint::quantized::scheme::Blocks;
use crate::checkpoint::quantized::scheme::Found;
use crate::checkpoint::quantized::scheme::Scheme;
use crate::checkpoint::quantized::scheme::Stored;
use crate::checkpoint::quantized::scheme::grid;
use crate::checkpoint::quantized::scheme::refused;
use crate::values::Format;

/// Values of NVFP4 that have one scale.
const BLOCK: usize = 16;

struct ModelOpt;

pub(super) fn parse(_: &Fields<'_>) -> Result<Box<dyn Scheme>, String> {
    Ok(Box::new(ModelOpt))
}

/// Scales of blocks, times one for the tensor.
#[derive(Debug)]
struct TimesGlobal {
    across: usize,
}

impl Scaling for TimesGlobal {
    fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        let global = parts[1].numbers()?[0];
        let scales = parts[0].numbers()?.into_iter().map(|scale| scale * global).collect();
        Ok(Scales::blocks(1, BLOCK, self.across, scales))
    }
}

fn found(module: &str, info: &TensorInfo, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
    let weight = format!("{module}.weight");
    let [scale, global] = ["scale", "scale_2"].map(|end| format!("{weight}_{end}"));
    let scales = stored.part(&scale, &weight)?;
    let [rows, stored_columns] = *info.shape else {
        return Err(refused(&weight, format!("is {:?}: expected two axes", info.shape)));
    };
    let of_fours = info.dtype == Dtype::U8;
    let columns = if of_fours { stored_columns.saturating_mul(2) } else { stored_columns };
    let across = columns.div_ceil(BLOCK);
    let grid = match of_fours {
        true => {
            (scales.dtype == Dtype::F8_E4M3 && scales.shape == [rows, across]).then_some([1, BLOCK, across])
        }
        false => grid(&scales.shape, [rows, columns], None),
    };
    let Some([high, wide, across]) = grid else {
        let problem = format!(
            "is {:?} {:?}, which are not the scales of `{weight}` {:?} {:?}: read are FP8 with one scale or one per row, and NVFP4 with \
             F8_E4M3 for each 16 values",
            scales.dtype, scales.shape, info.dtype, info.shape
        );
        return Err(refused(&scale, problem));
    };
    let mut parts = vec![weight.clone(), scale];
    let (codes, scaling): (Codes, Box<dyn Scaling>) = match of_fours {
        true => {
            let of_global = stored.part(&global, &weight)?;
            if of_global.shape.iter().product::<usize>() != 1 {
                return Err(refused(&global, format!("is {:?}: expected one number", of_global.shape)));
            }
            parts.push(global);
            let mut table = floats::E2M1;
            table[8] = 0.0; // as its own table has it
            (Codes::Nibbles { table, high_first: false }, Box::new(TimesGlobal { across }))
        }
        false => (Codes::bytes(floats::e4m3), Box::new(Blocks { rows: high, columns: wide, across })),
    };
    let recipe = Recipe { codes, matrices: 1, rows, columns, is_turned: false, scaling, format: Format::F32 };
    Ok(Found { name: weight, shape: vec![rows, columns], parts, recipe })
}

impl Scheme for ModelOpt {
    fn find(&self, stored: &mut Stored<'_>) -> Result<Vec<Found>, CheckpointError> {
        let mut all = Vec::new();
        for (module, info) in stored.ending(".weight") {
            if matches!(info.dtype, Dtype::F8_E4M3 | Dtype::U8) {
                let made = found(module, info, stored)?;
                stored.take(&made.parts);
                all.push(made);
            }
        }
        Ok(all)
    }

    fn parts(&self) -> &'static [&'static str] {
        &[".weight_scale", ".weight_scale_2", ".pre_quant_scale"]
    }
}
