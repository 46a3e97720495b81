//! `awq`: activation-aware 4 bits, in the layout of its product kernel ("gemm").
//!
//! `X.qweight` I32 `[in, out/8]`, `X.qzeros` I32 `[in/g, out/8]`, `X.scales` `[in/g, out]`. The eight nibbles of a word are columns 0, 2, 4, 6, 1, 3,
//! 5, 7, the lowest first; zeros are as they are. Weights are `f16`, as the library's are in `f16` and `f32` models; in `bf16` ones it rounds
//! scales to that first.

use safetensors::Dtype;

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
use crate::checkpoint::quantized::scheme::refused;
use crate::values::Format;

/// Where the code of each of eight columns is in their word.
const NIBBLES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

struct Awq;

pub(super) fn parse(fields: &Fields<'_>) -> Result<Box<dyn Scheme>, String> {
    fields.refuse_unless(
        "version",
        |version| version.as_str().is_some_and(|version| version.eq_ignore_ascii_case("gemm")),
        "only \"gemm\" is read",
    )?;
    for key in ["bits", "w_bit"] {
        fields.refuse_unless(key, |bits| *bits == 4, "AWQ is read in 4 bits")?;
    }
    Ok(Box::new(Awq))
}

/// Scales and zeros of groups of rows.
#[derive(Debug)]
struct OfRows {
    size: usize,
    columns: usize,
}

impl Scaling for OfRows {
    fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        let of_word = |word: u32| NIBBLES.map(|nibble| (word >> (4 * nibble) & 15) as f32);
        Ok(Scales {
            scale: parts[0].halves()?,
            zero: parts[1].words().into_iter().flat_map(of_word).collect(),
            across: self.columns,
            rows: Groups::Of(self.size),
            columns: Groups::Of(1),
            then: None,
        })
    }
}

fn found(module: &str, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
    let weight = format!("{module}.weight");
    let [codes, zeros, scale] = ["qweight", "qzeros", "scales"].map(|end| format!("{module}.{end}"));
    let (info, of_zeros, scales) =
        (stored.part(&codes, &weight)?, stored.part(&zeros, &weight)?, stored.part(&scale, &weight)?);
    let fits = || {
        let ([rows, words], [groups, columns]) = (&*info.shape, &*scales.shape) else { return None };
        let fits = [info, of_zeros].iter().all(|info| info.dtype == Dtype::I32)
            && words.checked_mul(8) == Some(*columns)
            && of_zeros.shape == [*groups, *words]
            && *groups > 0
            && rows % groups == 0;
        fits.then_some((*rows, *columns, *groups))
    };
    let Some((rows, columns, groups)) = fits() else {
        return Err(refused(
            &scale,
            format!(
                "is {:?}, and `{zeros}` {:?}, which are not those of `{codes}` {:?} {:?}",
                scales.shape, of_zeros.shape, info.dtype, info.shape
            ),
        ));
    };
    let recipe = Recipe {
        codes: Codes::Mixed { nibbles: NIBBLES },
        matrices: 1,
        rows,
        columns,
        is_turned: true,
        scaling: Box::new(OfRows { size: (rows / groups).max(1), columns }),
        format: Format::F16,
    };
    Ok(Found { name: weight, shape: vec![columns, rows], parts: vec![codes, scale, zeros], recipe })
}

impl Scheme for Awq {
    fn find(&self, stored: &mut Stored<'_>) -> Result<Vec<Found>, CheckpointError> {
        let modules = stored.ending(".qweight").into_iter();
        let all = modules.map(|(module, _)| found(module, stored)).collect::<Result<Vec<_>, _>>()?;
        all.iter().for_each(|made| stored.take(&made.parts));
        Ok(all)
    }

    fn parts(&self) -> &'static [&'static str] {
        &[".qweight", ".qzeros", ".scales", ".g_idx"]
    }
}
