//! `mxfp4`: GPT-OSS's experts.
//!
//! `X_blocks` U8 `[experts, out, in/32, 16]`, two FP4 codes a byte, the low nibble first, and `X_scales` U8 `[experts, out, in/32]`, powers of two,
//! make `X` `[experts, in, out]`: in memory these experts have their inputs first. Powers are added to exponents, so the largest, 2^128, is
//! no infinity of its own: half of it is a number.

use safetensors::Dtype;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::quantized::decode::Codes;
use crate::checkpoint::quantized::decode::Part;
use crate::checkpoint::quantized::decode::Recipe;
use crate::checkpoint::quantized::decode::Scales;
use crate::checkpoint::quantized::decode::Scaling;
use crate::checkpoint::quantized::floats;
use crate::checkpoint::quantized::scheme::Found;
use crate::checkpoint::quantized::scheme::Scheme;
use crate::checkpoint::quantized::scheme::Stored;
use crate::checkpoint::quantized::scheme::refused;
use crate::values::Format;

/// Values that have one scale.
const BLOCK: usize = 32;

struct Mxfp4;

pub(super) fn parse(_: &Fields<'_>) -> Result<Box<dyn Scheme>, String> {
    Ok(Box::new(Mxfp4))
}

#[derive(Debug)]
struct Powers {
    across: usize,
}

impl Scaling for Powers {
    fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        // halves, and then twice: 2^128 is no f32
        let half = |code: &u8| match code {
            0 => f32::from_bits(1 << 21),
            _ => floats::e8m0(code - 1),
        };
        let scales = parts[0].values.bytes().iter().map(half).collect();
        Ok(Scales { then: Some(2.0), ..Scales::blocks(1, BLOCK, self.across, scales) })
    }
}

fn found(name: &str, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
    let [blocks, scales] = ["blocks", "scales"].map(|end| format!("{name}_{end}"));
    let (info, of_scales) = (stored.part(&blocks, name)?, stored.part(&scales, name)?);
    let [matrices, rows, across, half] = *info.shape else {
        return Err(refused(&blocks, format!("is {:?}: expected [experts, out, in/32, 16]", info.shape)));
    };
    let fits = half * 2 == BLOCK
        && of_scales.shape == [matrices, rows, across]
        && [info, of_scales].iter().all(|info| info.dtype == Dtype::U8);
    if !fits {
        return Err(refused(
            &scales,
            format!(
                "is {:?} {:?}, which are not the scales of `{blocks}` {:?} {:?}",
                of_scales.dtype, of_scales.shape, info.dtype, info.shape
            ),
        ));
    }
    let columns = across.saturating_mul(BLOCK);
    let recipe = Recipe {
        codes: Codes::Nibbles { table: floats::E2M1, high_first: false },
        matrices,
        rows,
        columns,
        is_turned: true,
        scaling: Box::new(Powers { across }),
        format: Format::Bf16, // exactly, but for infinities, which are refused like any
    };
    Ok(Found {
        name: name.to_owned(),
        shape: vec![matrices, columns, rows],
        parts: vec![blocks, scales],
        recipe,
    })
}

impl Scheme for Mxfp4 {
    fn find(&self, stored: &mut Stored<'_>) -> Result<Vec<Found>, CheckpointError> {
        let names = stored.ending("_blocks").into_iter();
        let all = names.map(|(name, _)| found(name, stored)).collect::<Result<Vec<_>, _>>()?;
        all.iter().for_each(|made| stored.take(&made.parts));
        Ok(all)
    }

    fn parts(&self) -> &'static [&'static str] {
        &["_blocks", "_scales"]
    }
}
