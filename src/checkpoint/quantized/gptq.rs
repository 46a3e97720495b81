//! `gptq`: AutoGPTQ's and GPTQModel's files.
//!
//! `X.qweight` I32 `[in · bits / 32, out]`: a stream of bits down each column. `X.scales` `[groups, out]`, `X.qzeros` I32
//! `[groups, out · bits / 32]`, and `X.g_idx` I32 `[in]`, the group of each row, in any order (`desc_act`): rows are not sorted by it. Scales
//! are `f16`, whatever the file or the model, and so are weights before they become anything else.
//!
//! In the first version of the format (`checkpoint_format` "gptq", or nothing) zeros are stored one too small, and the library adds the
//! one **to whole words**: a zero of 15 in 4 bits carries into its neighbour, as it had borrowed from it. Of 3 bits, which straddle
//! words, each has its own.

use safetensors::Dtype;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::quantized::decode::Codes;
use crate::checkpoint::quantized::decode::Groups;
use crate::checkpoint::quantized::decode::Part;
use crate::checkpoint::quantized::decode::Recipe;
use crate::checkpoint::quantized::decode::Scales;
use crate::checkpoint::quantized::decode::Scaling;
use crate::checkpoint::quantized::decode::along;
use crate::checkpoint::quantized::decode::words;
use crate::checkpoint::quantized::scheme::Found;
use crate::checkpoint::quantized::scheme::Scheme;
use crate::checkpoint::quantized::scheme::Stored;
use crate::checkpoint::quantized::scheme::refused;
use crate::values::Format;

/// Widths of which 32 codes fill whole words in files of both versions.
const BITS: [u32; 4] = [2, 3, 4, 8];

struct Gptq {
    /// For files without `g_idx`; `None`: all rows are one group.
    group_size: Option<usize>,
    version: Version,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    /// Zeros are one too small.
    First,
    Second,
}

pub(super) fn parse(fields: &Fields<'_>) -> Result<Box<dyn Scheme>, String> {
    // as the library: the second name is the older one
    let format = match fields.optional::<String>("checkpoint_format")? {
        Some(format) => Some(format),
        None => fields.optional("format")?,
    };
    let version = match format.as_deref() {
        None | Some("gptq") => Version::First,
        Some("gptq_v2") => Version::Second,
        Some(other) => return Err(format!("`checkpoint_format` is `{other}`: read are gptq and gptq_v2")),
    };
    fields.refuse_unless(
        "pack_dtype",
        |dtype| dtype.is_null() || dtype == "int32",
        "codes are read in int32",
    )?;
    let group_size = fields.optional::<i64>("group_size")?;
    let group_size = match group_size {
        None | Some(-1) => None,
        Some(size @ 1..) => Some(size as usize),
        Some(size) => return Err(format!("`group_size` is {size}: expected -1, or a number above zero")),
    };
    Ok(Box::new(Gptq { group_size, version }))
}

/// Scales and zeros of groups of rows, and the group of each.
#[derive(Debug)]
struct OfRows {
    bits: u32,
    columns: usize,
    groups: usize,
    version: Version,
    /// Where no part says which.
    size: usize,
}

impl Scaling for OfRows {
    fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        let Self { bits, columns, groups, version, size } = *self;
        let mut zeros = parts[1].words();
        if let (Version::First, 2 | 4 | 8) = (version, bits) {
            let ones = u32::MAX / ((1 << bits) - 1); // one in each code
            zeros.iter_mut().for_each(|word| *word = word.wrapping_add(ones));
        }
        let mut zeros = along(&zeros, bits, groups, columns);
        if let (Version::First, 3) = (version, bits) {
            zeros.iter_mut().for_each(|zero| *zero = (*zero + 1) & 7);
        }
        let of_row = |group: i64| {
            usize::try_from(group).ok().filter(|group| *group < groups).ok_or_else(|| {
                format!("tensor `{}` names the group {group}, there are {groups}", parts[2].name)
            })
        };
        let rows = match parts.get(2) {
            Some(part) => Groups::Each(part.integers()?.into_iter().map(of_row).collect::<Result<_, _>>()?),
            None => Groups::Of(size),
        };
        Ok(Scales {
            scale: parts[0].halves()?,
            zero: zeros.into_iter().map(|zero| zero as f32).collect(),
            across: columns,
            rows,
            columns: Groups::Of(1),
            then: None,
        })
    }
}

impl Gptq {
    fn found(&self, module: &str, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
        let weight = format!("{module}.weight");
        let [codes, zeros, scale, order] =
            ["qweight", "qzeros", "scales", "g_idx"].map(|end| format!("{module}.{end}"));
        let (info, of_zeros, scales) =
            (stored.part(&codes, &weight)?, stored.part(&zeros, &weight)?, stored.part(&scale, &weight)?);
        let of_order = stored.get(&order);
        let are_words = [info, of_zeros].iter().all(|info| info.dtype == Dtype::I32);
        let ([packed, columns], [groups, wide], [of_scales, across]) =
            (&*info.shape, &*of_zeros.shape, &*scales.shape)
        else {
            return Err(refused(&codes, format!("is {:?}: it and its scales have two axes", info.shape)));
        };
        let (columns, groups) = (*columns, *groups);
        // widths may differ between the modules of one file, and the settings know of one
        let of_bits = |bits: u32| {
            let rows = packed.checked_mul(32)? / bits as usize;
            let size = self.group_size.unwrap_or(rows).max(1);
            let is_grouped = match of_order {
                Some(order) => order.dtype == Dtype::I32 && order.shape == [rows],
                None => rows.div_ceil(size) == groups,
            };
            let is_whole = words(columns, bits) == *wide && words(rows, bits) == *packed;
            (is_whole && is_grouped).then_some((bits, rows, size))
        };
        let fits = are_words && (*of_scales, *across) == (groups, columns);
        let Some((bits, rows, size)) = BITS.into_iter().find_map(of_bits).filter(|_| fits) else {
            return Err(refused(
                &codes,
                format!(
                    "is {:?} {:?}, with `{zeros}` {:?}, `{scale}` {:?} and `{order}` {:?}: no codes of 2, 3, 4 or 8 bits in \
                     groups of {:?} (`group_size`) are stored so",
                    info.dtype,
                    info.shape,
                    of_zeros.shape,
                    scales.shape,
                    of_order.map_or(&[][..], |order| &order.shape),
                    self.group_size
                ),
            ));
        };
        let recipe = Recipe {
            codes: Codes::Down { bits },
            matrices: 1,
            rows,
            columns,
            is_turned: true,
            scaling: Box::new(OfRows { bits, columns, groups, version: self.version, size }),
            format: Format::F16,
        };
        let parts = [codes, scale, zeros].into_iter().chain(of_order.map(|_| order)).collect();
        Ok(Found { name: weight, shape: vec![columns, rows], parts, recipe })
    }
}

impl Scheme for Gptq {
    fn find(&self, stored: &mut Stored<'_>) -> Result<Vec<Found>, CheckpointError> {
        let modules = stored.ending(".qweight").into_iter();
        let found = modules.map(|(module, _)| self.found(module, stored)).collect::<Result<Vec<_>, _>>()?;
        found.iter().for_each(|made| stored.take(&made.parts));
        Ok(found)
    }

    fn parts(&self) -> &'static [&'static str] {
        &[".qweight", ".qzeros", ".scales", ".g_idx"]
    }
}
