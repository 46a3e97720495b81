//! `fp8` and `mxfp8`: FP8 with a scale for each block, as DeepSeek and Qwen publish it, and transformers' `FineGrainedFP8Config` writes.
//!
//! `X.weight` F8_E4M3 `[out, in]`; `X.weight_scale_inv` (also `X.scale`, `X.qscale_weight`) `[⌈out/b⌉, ⌈in/b⌉]`, one per row, or one; its bytes
//! are powers of two where it is stored as such. The name says "inverse", the value multiplies. INT8 in such a file is two FP4 codes a
//! byte, with a scale for 32 of them.
//!
//! The size of the blocks is the config's, so the last ones may be smaller. transformers 5.23 divides rows by rows of scales, which is
//! another size then, and refuses what does not divide.

use safetensors::Dtype;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::quantized::decode::Codes;
use crate::checkpoint::quantized::decode::Recipe;
use crate::checkpoint::quantized::floats;
use crate::checkpoint::quantized::scheme::Blocks;
use crate::checkpoint::quantized::scheme::Found;
use crate::checkpoint::quantized::scheme::Scheme;
use crate::checkpoint::quantized::scheme::Stored;
use crate::checkpoint::quantized::scheme::grid;
use crate::checkpoint::quantized::scheme::refused;
use crate::values::Format;

/// transformers' `weight_block_size`, where the config says none.
const BLOCK: [usize; 2] = [128, 128];
/// Of packed FP4, whatever the config says.
const FP4_BLOCK: [usize; 2] = [1, 32];

struct Fp8 {
    /// `None`: one scale for a tensor.
    block: Option<[usize; 2]>,
}

pub(super) fn parse(fields: &Fields<'_>) -> Result<Box<dyn Scheme>, String> {
    let block = match fields.0.contains_key("weight_block_size") {
        true => fields.optional::<[usize; 2]>("weight_block_size")?,
        false => Some(BLOCK),
    };
    if let Some(block) = block.filter(|block| block.contains(&0)) {
        return Err(format!("`weight_block_size` is {block:?}: expected two numbers above zero"));
    }
    Ok(Box::new(Fp8 { block }))
}

impl Fp8 {
    fn found(&self, name: &str, scale: &str, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
        let (info, scales) = (stored.part(name, name)?, stored.part(scale, name)?);
        let mut shape = info.shape.clone();
        let (codes, block) = match info.dtype {
            Dtype::F8_E5M2 => (Codes::bytes(floats::e5m2), self.block),
            Dtype::F8_E4M3 => (Codes::bytes(floats::e4m3), self.block),
            _ => {
                if let Some(last) = shape.last_mut() {
                    *last = last.saturating_mul(2);
                }
                (Codes::Nibbles { table: floats::E2M1, high_first: false }, Some(FP4_BLOCK))
            }
        };
        // `[experts, out, in]` has a grid of scales for each expert
        let fits = || match (&*shape, &*scales.shape) {
            ([rows, columns], of) => Some((1, grid(of, [*rows, *columns], block)?)),
            ([matrices, rows, columns], [count, of @ ..]) if count == matrices => {
                Some((*matrices, grid(of, [*rows, *columns], block)?))
            }
            _ => None,
        };
        let Some((matrices, [rows, columns, across])) = fits() else {
            let blocks = match block {
                Some([high, wide]) => {
                    format!("blocks of {high} by {wide} (`weight_block_size`), or one per row")
                }
                None => "one scale, or one per row".to_owned(),
            };
            let problem =
                format!("is {:?}, which are not the scales of `{name}` {shape:?} in {blocks}", scales.shape);
            return Err(refused(scale, problem));
        };
        let [.., of_rows, of_columns] = *shape else { unreachable!("it has two axes or three") };
        let recipe = Recipe {
            codes,
            matrices,
            rows: of_rows,
            columns: of_columns,
            is_turned: false,
            scaling: Box::new(Blocks { rows, columns, across }),
            format: Format::F32,
        };
        Ok(Found { name: name.to_owned(), shape, parts: vec![name.to_owned(), scale.to_owned()], recipe })
    }
}

impl Scheme for Fp8 {
    fn find(&self, stored: &mut Stored<'_>) -> Result<Vec<Found>, CheckpointError> {
        let mut found = Vec::new();
        for (name, info) in stored.ending("") {
            let is_codes = matches!(info.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::I8);
            // a scale may be stored in eight bits too
            if !is_codes || self.parts().iter().any(|end| name.ends_with(end)) {
                continue;
            }
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let names =
                [format!("{name}_scale_inv"), format!("{module}.scale"), format!("{module}.qscale_weight")];
            let Some(scale) = names.iter().find(|name| stored.get(name).is_some()) else {
                let other = format!("{module}.weight_scale");
                let why = match stored.get(&other) {
                    Some(_) => format!(
                        "`{other}` is the scale of another method, which transformers leaves out under `fp8`: say \
                         \"quant_method\": \"compressed-tensors\" or \"modelopt\" if one of them wrote it"
                    ),
                    None => format!("its scale is missing (`{}`)", names[0]),
                };
                return Err(refused(name, format!("is stored as {:?}, and {why}", info.dtype)));
            };
            let made = self.found(name, scale, stored)?;
            stored.take(&made.parts);
            found.push(made);
        }
        Ok(found)
    }

    fn parts(&self) -> &'static [&'static str] {
        &["_scale_inv", ".scale", ".qscale_weight", ".weight_scale"]
    }
}
