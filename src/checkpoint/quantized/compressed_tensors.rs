//! `compressed-tensors`: what vLLM's llm-compressor writes.
//!
//! | tensors of X | value |
//! | --- | --- |
//! | `weight` F8_E4M3 or I8, `weight_scale` (one, one per row, blocks, groups), `weight_zero_point` | (q − z) · s, in the type of s |
//! | `weight_packed` I32: a stream of 1 to 8 bits per row, `weight_scale`, `weight_shape`, `weight_zero_point` packed *down* | the same |
//! | `weight_packed` U8: FP4, the low nibble first, `weight_scale` F8_E4M3 `[out, in/16]`, `weight_global_scale` | q · (s **÷** global), in bf16 |
//! | `weight_packed` U8, `weight_scale` U8 `[out, in/32]` | q · 2^(s − 127), in bf16 |
//!
//! Several groups of settings may be in one file: that of a module is the one that names it, by its name, by a pattern, or by its
//! class. transformers with `dequantize=True` takes the first for all of them.

use fancy_regex::Regex;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::quantized::decode::Codes;
use crate::checkpoint::quantized::decode::Part;
use crate::checkpoint::quantized::decode::Recipe;
use crate::checkpoint::quantized::decode::Scales;
use crate::checkpoint::quantized::decode::Scaling;
use crate::checkpoint::quantized::decode::words;
use crate::checkpoint::quantized::floats;
use crate::checkpoint::quantized::scheme::Affine;
use crate::checkpoint::quantized::scheme::Blocks;
use crate::checkpoint::quantized::scheme::Found;
use crate::checkpoint::quantized::scheme::Scheme;
use crate::checkpoint::quantized::scheme::Stored;
use crate::checkpoint::quantized::scheme::Zeros;
use crate::checkpoint::quantized::scheme::grid;
use crate::checkpoint::quantized::scheme::refused;
use crate::values::Format;

struct CompressedTensors {
    groups: Vec<Group>,
}

/// Settings of some modules.
struct Group {
    targets: Vec<Target>,
    bits: u32,
    /// Of scales, where there is more than one per row.
    block: Option<[usize; 2]>,
}

enum Target {
    Name(String),
    Pattern(Regex),
    /// A class of modules, which no file tells: any.
    Class,
}

pub(super) fn parse(fields: &Fields<'_>) -> Result<Box<dyn Scheme>, String> {
    let is_dense = |sparsity: &Value| {
        sparsity.is_null() || sparsity.get("format").is_none_or(|format| format == "dense")
    };
    fields.refuse_unless("sparsity_config", is_dense, "sparse weights are not read")?;
    let is_empty = |transforms: &Value| {
        transforms.is_null()
            || transforms.get("config_groups").unwrap_or(transforms).as_object().is_some_and(Map::is_empty)
    };
    fields.refuse_unless(
        "transform_config",
        is_empty,
        "transformed weights (QuIP, SpinQuant) are not read",
    )?;
    let groups: Map<String, Value> = fields.required("config_groups")?;
    let groups = groups.iter().map(|(name, group)| {
        Group::parse(group).map_err(|problem| format!("`config_groups.{name}`: {problem}"))
    });
    Ok(Box::new(CompressedTensors { groups: groups.collect::<Result<_, String>>()? }))
}

impl Group {
    fn parse(group: &Value) -> Result<Self, String> {
        let group = Fields(group.as_object().ok_or("expected settings")?);
        let targets: Vec<String> = group.required("targets")?;
        let weights = group.optional::<Map<String, Value>>("weights")?.unwrap_or_default();
        let weights = Fields(&weights);
        let bits = weights.optional("num_bits")?.unwrap_or(8);
        if !(1..=8).contains(&bits) {
            return Err(format!("`num_bits` is {bits}: expected 1 to 8"));
        }
        let block = weights.optional::<[usize; 2]>("block_structure")?;
        let group_size = weights.optional::<i64>("group_size")?.and_then(|size| usize::try_from(size).ok());
        let target = |target: String| -> Result<Target, String> {
            Ok(match target.strip_prefix("re:") {
                Some(pattern) => {
                    // as Python's re.match: from the start on
                    let regex = Regex::new(&format!("^(?:{pattern})"));
                    Target::Pattern(regex.map_err(|error| format!("`targets` has `{target}`: {error}"))?)
                }
                None if target.contains('.') || target.starts_with(char::is_lowercase) => {
                    Target::Name(target)
                }
                None => Target::Class,
            })
        };
        Ok(Self {
            targets: targets.into_iter().map(target).collect::<Result<_, _>>()?,
            bits,
            block: block.or(group_size.map(|size| [1, size])),
        })
    }

    /// How well it names a module: the least is best.
    fn rank(&self, module: &str) -> Result<Option<u8>, String> {
        let rank = |target: &Target| match target {
            Target::Name(name) => Ok((name == module).then_some(0)),
            Target::Pattern(regex) => match regex.is_match(module) {
                Ok(fits) => Ok(fits.then_some(1)),
                Err(error) => Err(format!("`targets` has the pattern `{regex}`: {error}")),
            },
            Target::Class => Ok(Some(2)),
        };
        let ranks = self.targets.iter().map(rank).collect::<Result<Vec<_>, String>>()?;
        Ok(ranks.into_iter().flatten().min())
    }
}

/// FP8 scales of groups, over one for the tensor.
#[derive(Debug)]
struct OverGlobal {
    across: usize,
}

impl Scaling for OverGlobal {
    fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        let global = parts[1].numbers()?[0];
        let scales = parts[0].numbers()?.into_iter().map(|scale| scale / global).collect();
        Ok(Scales::blocks(1, 16, self.across, scales))
    }
}

impl CompressedTensors {
    /// The settings that are about a module, the best first.
    fn of_module(&self, module: &str) -> Result<Vec<&Group>, CheckpointError> {
        let mut ranked = Vec::new();
        for group in &self.groups {
            if let Some(rank) = group.rank(module).map_err(CheckpointError::Unsupported)? {
                ranked.push((rank, group));
            }
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        match (&*self.groups, ranked.is_empty()) {
            ([only], true) => Ok(vec![only]), // whatever it is called: the tensors say that it is quantized
            _ => Ok(ranked.into_iter().map(|(_, group)| group).collect()),
        }
    }

    /// FP8 and whole bytes.
    fn bytes(&self, module: &str, info: &TensorInfo, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
        let [weight, scale, zero] =
            ["weight", "weight_scale", "weight_zero_point"].map(|end| format!("{module}.{end}"));
        let scales = stored.part(&scale, &weight)?;
        let codes = match info.dtype {
            Dtype::I8 => Codes::int8(),
            _ => Codes::bytes(floats::e4m3),
        };
        let [rows, columns] = *info.shape else {
            return Err(refused(&weight, format!("is {:?}: expected [out, in]", info.shape)));
        };
        let groups = self.of_module(module)?;
        let blocks = groups.iter().map(|group| group.block).chain([None]);
        let Some([high, wide, across]) =
            blocks.into_iter().find_map(|block| grid(&scales.shape, [rows, columns], block))
        else {
            let problem =
                format!("is {:?}, which are not the scales of `{weight}` {:?}", scales.shape, info.shape);
            return Err(refused(&scale, problem));
        };
        let mut parts = vec![weight.clone(), scale];
        let zeros = match stored.get(&zero) {
            None => Zeros::None,
            Some(zeros)
                if zeros.shape.iter().product::<usize>() == scales.shape.iter().product::<usize>() =>
            {
                parts.push(zero);
                Zeros::Plain
            }
            Some(zeros) => {
                return Err(refused(
                    &zero,
                    format!("is {:?}, and the scales {:?}", zeros.shape, scales.shape),
                ));
            }
        };
        let recipe = Recipe {
            codes,
            matrices: 1,
            rows,
            columns,
            is_turned: false,
            scaling: Box::new(Affine { blocks: Blocks { rows: high, columns: wide, across }, zeros }),
            format: format_with(scales),
        };
        Ok(Found { name: weight, shape: vec![rows, columns], parts, recipe })
    }

    /// Streams of bits.
    fn packed(&self, module: &str, info: &TensorInfo, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
        let weight = format!("{module}.weight");
        let [packed, scale, zero, shape] =
            ["packed", "scale", "zero_point", "shape"].map(|end| format!("{weight}_{end}"));
        let scales = stored.part(&scale, &weight)?;
        stored.part(&shape, &weight)?;
        let true_shape = stored.read(&shape)?.integers().map_err(CheckpointError::Unsupported)?;
        let ([high, wide], [rows, columns]) = (&*info.shape, &*true_shape) else {
            return Err(refused(
                &packed,
                format!("is {:?}, and `{shape}` {true_shape:?}: expected two axes", info.shape),
            ));
        };
        let sizes = [*rows, *columns].map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        let fits = |group: &&Group| {
            let [rows, columns] = sizes;
            let is_whole =
                rows == *high && columns.checked_mul(8).is_some() && words(columns, group.bits) == *wide;
            let grid = is_whole.then(|| grid(&scales.shape, sizes, group.block)).flatten();
            grid.map(|grid| (group.bits, grid))
        };
        let Some((bits, [high, wide, across])) = self.of_module(module)?.iter().find_map(fits) else {
            return Err(refused(
                &packed,
                format!(
                    "is {:?}, with `{scale}` {:?}: no group of `config_groups` that is about {module} has the bits and the group \
                     size of {true_shape:?} (`{shape}`)",
                    info.shape, scales.shape
                ),
            ));
        };
        let [rows, columns] = sizes;
        let mut parts = vec![packed, scale];
        let down = rows.div_ceil(high);
        let zeros = match stored.get(&zero) {
            None => Zeros::None,
            Some(zeros) if zeros.dtype == Dtype::I32 && zeros.shape == [words(down, bits), across] => {
                Zeros::Packed { bits, rows: down }
            }
            Some(zeros) if zeros.shape == scales.shape => Zeros::Plain,
            Some(zeros) => {
                let problem = format!(
                    "is {:?} {:?}: expected I32 {:?}, {bits} bits each",
                    zeros.dtype,
                    zeros.shape,
                    [words(down, bits), across]
                );
                return Err(refused(&zero, problem));
            }
        };
        if !matches!(zeros, Zeros::None) {
            parts.push(zero);
        }
        let recipe = Recipe {
            codes: Codes::Along { bits, offset: 1 << (bits - 1) },
            matrices: 1,
            rows,
            columns,
            is_turned: false,
            scaling: Box::new(Affine { blocks: Blocks { rows: high, columns: wide, across }, zeros }),
            format: format_with(scales),
        };
        Ok(Found { name: weight, shape: sizes.into(), parts, recipe })
    }

    /// FP4.
    fn fours(&self, module: &str, info: &TensorInfo, stored: &Stored<'_>) -> Result<Found, CheckpointError> {
        let weight = format!("{module}.weight");
        let [packed, scale, global] =
            ["packed", "scale", "global_scale"].map(|end| format!("{weight}_{end}"));
        let scales = stored.part(&scale, &weight)?;
        let [rows, half] = *info.shape else {
            return Err(refused(&packed, format!("is {:?}: expected [out, in/2]", info.shape)));
        };
        let columns = half.saturating_mul(2);
        let of_global = stored.get(&global);
        let size = if of_global.is_some() { 16 } else { 32 };
        let across = columns.div_ceil(size);
        let is_stored = |dtypes: &[Dtype]| dtypes.contains(&scales.dtype);
        let fits = scales.shape == [rows, across]
            && match of_global {
                Some(global) => is_stored(&[Dtype::F8_E4M3]) && global.shape.iter().product::<usize>() == 1,
                None => is_stored(&[Dtype::U8, Dtype::F8_E8M0]),
            };
        if !fits {
            return Err(refused(
                &scale,
                format!(
                    "is {:?} {:?}, which are not the scales of `{packed}` {:?}: NVFP4 has F8_E4M3 for each 16 values and one \
                     `weight_global_scale`, MXFP4 U8 for each 32; other formats are not read",
                    scales.dtype, scales.shape, info.shape
                ),
            ));
        }
        let scaling: Box<dyn Scaling> = match of_global {
            Some(_) => Box::new(OverGlobal { across }),
            None => Box::new(Blocks { rows: 1, columns: size, across }),
        };
        let recipe = Recipe {
            codes: Codes::Nibbles { table: floats::E2M1, high_first: false },
            matrices: 1,
            rows,
            columns,
            is_turned: false,
            scaling,
            format: Format::Bf16,
        };
        let parts = [packed, scale].into_iter().chain(of_global.map(|_| global)).collect();
        Ok(Found { name: weight, shape: vec![rows, columns], parts, recipe })
    }
}

/// What a product with these scales is rounded to; powers of two are bf16 there.
fn format_with(scales: &TensorInfo) -> Format {
    Format::of(scales.dtype).filter(|format| *format != Format::F64).unwrap_or(Format::Bf16)
}

impl Scheme for CompressedTensors {
    fn find(&self, stored: &mut Stored<'_>) -> Result<Vec<Found>, CheckpointError> {
        let mut found = Vec::new();
        let packed = stored.ending(".weight_packed").into_iter().map(|(module, info)| match info.dtype {
            Dtype::I32 => self.packed(module, info, stored),
            Dtype::U8 => self.fours(module, info, stored),
            dtype => Err(refused(
                &format!("{module}.weight_packed"),
                format!("is stored as {dtype:?}: expected I32 or U8"),
            )),
        });
        let bytes = stored.ending(".weight").into_iter().filter_map(|(module, info)| match info.dtype {
            Dtype::F8_E4M3 | Dtype::I8 => Some(self.bytes(module, info, stored)),
            _ => None,
        });
        for made in packed.chain(bytes).collect::<Vec<_>>() {
            let made = made?;
            stored.take(&made.parts);
            // which also says how large it is
            stored.leave_out(format!("{}_shape", made.name));
            found.push(made);
        }
        Ok(found)
    }

    fn parts(&self) -> &'static [&'static str] {
        &[
            ".weight_packed",
            ".weight_scale",
            ".weight_zero_point",
            ".weight_global_scale",
            ".weight_shape",
            ".weight_g_idx",
        ]
    }
}
