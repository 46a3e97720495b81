//! `torchao`: PyTorch's own, as transformers saves it in safetensors.
//!
//! `X._weight_qdata` I8 or F8, `X._weight_scale`, and for whole numbers `X._weight_zero_point`; the header's metadata say of `X.weight` what kind of
//! tensor they make, how large the blocks of a scale are, and the type that was quantized, to which (q − z) · s is rounded. Fewer bits than
//! eight are stored one code a byte too.

use safetensors::Dtype;
use serde::Deserialize;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::quantized::decode::Codes;
use crate::checkpoint::quantized::decode::Recipe;
use crate::checkpoint::quantized::floats;
use crate::checkpoint::quantized::scheme::Affine;
use crate::checkpoint::quantized::scheme::Blocks;
use crate::checkpoint::quantized::scheme::Found;
use crate::checkpoint::quantized::scheme::Scheme;
use crate::checkpoint::quantized::scheme::Stored;
use crate::checkpoint::quantized::scheme::Zeros;
use crate::checkpoint::quantized::scheme::format_of;
use crate::checkpoint::quantized::scheme::grid;
use crate::checkpoint::quantized::scheme::refused;

/// Kinds of tensors whose parts these are.
const KINDS: [&str; 3] = ["Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor"];

struct TorchAo;

pub(super) fn parse(_: &Fields<'_>) -> Result<Box<dyn Scheme>, String> {
    Ok(Box::new(TorchAo))
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "_data")]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    block_size: Option<[usize; 2]>,
    dtype: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "_data")]
    name: String,
}

fn found(module: &str, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
    let weight = format!("{module}.weight");
    let [codes, scale, zero] = ["qdata", "scale", "zero_point"].map(|end| format!("{module}._weight_{end}"));
    let (info, scales) = (stored.part(&codes, &weight)?, stored.part(&scale, &weight)?);
    let settings = stored.metadata(&weight).ok_or_else(|| {
        refused(&codes, "is quantized, and the metadata of the file do not tell how: save the model again with transformers")
    })?;
    let kind: Kind = serde_json::from_str(settings)
        .map_err(|error| refused(&weight, format!("has metadata that are not torchao's: {error}")))?;
    let (true, Some(Data { block_size: Some(block), dtype: Some(dtype) })) =
        (KINDS.contains(&&*kind.kind), kind.data)
    else {
        let kinds = KINDS.join(", ");
        return Err(refused(
            &weight,
            format!("is of the kind {}, or not told of whole: read are {kinds}", kind.kind),
        ));
    };
    let format = format_of(&dtype.name).ok_or_else(|| {
        refused(&weight, format!("was {}: read are float32, bfloat16 and float16", dtype.name))
    })?;
    let table = match info.dtype {
        Dtype::I8 => Codes::int8(),
        Dtype::F8_E4M3 => Codes::bytes(floats::e4m3),
        Dtype::F8_E5M2 => Codes::bytes(floats::e5m2),
        other => return Err(refused(&codes, format!("is stored as {other:?}: read are I8 and F8"))),
    };
    let of_zeros = stored.get(&zero);
    let fits = || {
        let [rows, columns] = *info.shape else { return None };
        let grid = grid(&scales.shape, [rows, columns], Some(block))?;
        of_zeros.is_none_or(|zeros| zeros.shape == scales.shape).then_some(([rows, columns], grid))
    };
    let Some(([rows, columns], [high, wide, across])) = fits() else {
        return Err(refused(
            &scale,
            format!(
                "is {:?}, and its zeros {:?}, which are not those of `{codes}` {:?} in blocks of {block:?}",
                scales.shape,
                of_zeros.map(|zeros| &zeros.shape),
                info.shape
            ),
        ));
    };
    let zeros = if of_zeros.is_some() { Zeros::Plain } else { Zeros::None };
    let recipe = Recipe {
        codes: table,
        matrices: 1,
        rows,
        columns,
        is_turned: false,
        scaling: Box::new(Affine { blocks: Blocks { rows: high, columns: wide, across }, zeros }),
        format,
    };
    let parts = [codes, scale].into_iter().chain(of_zeros.map(|_| zero)).collect();
    Ok(Found { name: weight, shape: vec![rows, columns], parts, recipe })
}

impl Scheme for TorchAo {
    fn find(&self, stored: &mut Stored<'_>) -> Result<Vec<Found>, CheckpointError> {
        let modules = stored.ending("._weight_qdata").into_iter();
        let all = modules.map(|(module, _)| found(module, stored)).collect::<Result<Vec<_>, _>>()?;
        all.iter().for_each(|made| stored.take(&made.parts));
        Ok(all)
    }

    fn parts(&self) -> &'static [&'static str] {
        &["._weight_qdata", "._weight_scale", "._weight_zero_point"]
    }
}
