//! What schemes have in common: they look for parts among a checkpoint's tensors as they are [`Stored`], and say of what, and how, the
//! tensors that are meant are made.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::quantized::decode::Part;
use crate::checkpoint::quantized::decode::Recipe;
use crate::checkpoint::quantized::decode::Scales;
use crate::checkpoint::quantized::decode::Scaling;
use crate::checkpoint::quantized::decode::down;
use crate::checkpoint::quantized::floats;
use crate::values::Format;
use crate::values::Values;

/// What a part that must be known before the weights are read may take: settings, shapes.
const SMALL: usize = 64 << 10;

/// A tensor that is made of others.
#[derive(Debug)]
pub(in crate::checkpoint) struct Found {
    /// What it is called where nothing is quantized.
    pub(in crate::checkpoint) name: String,
    /// And its shape there.
    pub(in crate::checkpoint) shape: Vec<usize>,
    /// The codes first.
    pub(in crate::checkpoint) parts: Vec<String>,
    pub(in crate::checkpoint) recipe: Recipe,
}

/// What finds the tensors of a scheme.
pub(super) trait Scheme {
    /// The tensors that are made of others. Fails by the name of one whose parts are missing or do not fit.
    fn find(&self, stored: &mut Stored<'_>) -> Result<Vec<Found>, CheckpointError>;

    /// How parts' names end. One that is left over would change rewards if it were left out, and is refused.
    fn parts(&self) -> &'static [&'static str];
}

/// Headers, and small tensors when they are asked for.
pub(in crate::checkpoint) struct Stored<'a> {
    infos: BTreeMap<&'a str, &'a TensorInfo>,
    read: &'a dyn Fn(&str) -> Result<Part, CheckpointError>,
    metadata: &'a dyn Fn(&str) -> Option<&'a str>,
    taken: BTreeSet<String>,
    surplus: BTreeSet<String>,
}

/// A tensor that cannot be read as what is meant.
pub(super) fn refused(name: &str, problem: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Unsupported(format!("tensor `{name}` {problem}"))
}

impl<'a> Stored<'a> {
    /// Of these, of which `read` gives the values, and `metadata` what headers say beside.
    pub(in crate::checkpoint) fn new(
        infos: BTreeMap<&'a str, &'a TensorInfo>,
        read: &'a dyn Fn(&str) -> Result<Part, CheckpointError>,
        metadata: &'a dyn Fn(&str) -> Option<&'a str>,
    ) -> Self {
        Self { infos, read, metadata, taken: BTreeSet::new(), surplus: BTreeSet::new() }
    }

    /// All whose names end so, with what is before it.
    pub(super) fn ending(&self, end: &str) -> Vec<(&'a str, &'a TensorInfo)> {
        let stem = |(name, info): (&&'a str, &&'a TensorInfo)| Some((name.strip_suffix(end)?, *info));
        self.infos.iter().filter_map(stem).collect()
    }

    /// One that may be there.
    pub(super) fn get(&self, name: &str) -> Option<&'a TensorInfo> {
        self.infos.get(name).copied()
    }

    /// One that must be there.
    pub(super) fn part(&self, name: &str, of: &str) -> Result<&'a TensorInfo, CheckpointError> {
        self.get(name).ok_or_else(|| refused(of, format!("is quantized, and `{name}` is missing")))
    }

    /// The values of a small one.
    pub(super) fn read(&self, name: &str) -> Result<Part, CheckpointError> {
        let info = self.get(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.to_owned() })?;
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        if bytes > SMALL {
            return Err(refused(name, format!("has {bytes} bytes: expected settings of at most {SMALL}")));
        }
        (self.read)(name)
    }

    /// What a header says of a name.
    pub(super) fn metadata(&self, name: &str) -> Option<&'a str> {
        (self.metadata)(name)
    }

    /// These make others.
    pub(super) fn take(&mut self, parts: &[String]) {
        self.taken.extend(parts.iter().cloned());
    }

    /// This is needed by nobody, if it is there.
    pub(super) fn leave_out(&mut self, name: String) {
        if self.infos.contains_key(&*name) {
            self.surplus.insert(name);
        }
    }

    pub(super) fn surplus(&self) -> impl Iterator<Item = &str> {
        self.surplus.iter().map(String::as_str)
    }

    /// Those that are neither.
    pub(super) fn left(&self) -> impl Iterator<Item = &'a str> {
        self.infos.keys().copied().filter(|name| !self.taken.contains(*name) && !self.surplus.contains(*name))
    }

    /// Refuses a tensor that is there already, or whose codes are not as many as its shape says.
    pub(super) fn check(&self, made: &Found) -> Result<(), CheckpointError> {
        let Found { name, shape, parts, recipe } = made;
        if self.infos.contains_key(&**name) && !self.taken.contains(name) {
            return Err(refused(name, format!("is there as it is, and quantized (`{}`)", parts[0])));
        }
        let info = self.part(&parts[0], name)?;
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        match recipe.code_bytes() {
            Some(needed) if needed == bytes => Ok(()),
            needed => Err(refused(
                &parts[0],
                format!(
                    "has {bytes} bytes of codes ({:?} {:?}), of which {shape:?} needs {}",
                    info.dtype,
                    info.shape,
                    needed.map_or("more than there can be".to_owned(), |needed| needed.to_string())
                ),
            )),
        }
    }
}

impl Part {
    /// As floats, whatever they are stored as.
    pub(super) fn numbers(&self) -> Result<Vec<f32>, String> {
        let of_bytes =
            |value: fn(u8) -> f32| Ok(self.values.bytes().iter().map(|&code| value(code)).collect());
        match (&self.values, self.dtype) {
            (Values::Other(_), Dtype::F8_E4M3) => of_bytes(floats::e4m3),
            (Values::Other(_), Dtype::F8_E5M2) => of_bytes(floats::e5m2),
            (Values::Other(_), Dtype::F8_E8M0) => of_bytes(floats::e8m0),
            (Values::Other(_), dtype) => {
                Err(format!("tensor `{}` is stored as {dtype:?}: expected floats", self.name))
            }
            (values, _) => {
                let mut numbers = vec![0.0; values.count()];
                values.to_f32s(0..numbers.len(), &mut numbers);
                Ok(numbers)
            }
        }
    }

    /// Of bytes that are powers of two, or floats.
    pub(super) fn numbers_or_powers(&self) -> Result<Vec<f32>, String> {
        match self.dtype {
            Dtype::U8 => Ok(self.values.bytes().iter().map(|&code| floats::e8m0(code)).collect()),
            _ => self.numbers(),
        }
    }

    /// Rounded to `f16`.
    pub(super) fn halves(&self) -> Result<Vec<f32>, String> {
        let numbers = self.numbers()?;
        Ok(numbers.into_iter().map(|number| f16::from_f32(number).to_f32()).collect())
    }

    /// Whole numbers.
    pub(super) fn integers(&self) -> Result<Vec<i64>, String> {
        let bytes = self.values.bytes();
        fn all<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> i64) -> Vec<i64> {
            bytes.as_chunks().0.iter().map(|bytes| of(*bytes)).collect()
        }
        match self.dtype {
            Dtype::U8 => Ok(all(bytes, |[byte]| byte.into())),
            Dtype::I8 => Ok(all(bytes, |[byte]| (byte as i8).into())),
            Dtype::I16 => Ok(all(bytes, |bytes| i16::from_le_bytes(bytes).into())),
            Dtype::I32 => Ok(all(bytes, |bytes| i32::from_le_bytes(bytes).into())),
            Dtype::I64 => Ok(all(bytes, i64::from_le_bytes)),
            dtype => Err(format!("tensor `{}` is stored as {dtype:?}: expected whole numbers", self.name)),
        }
    }

    /// Words of bits.
    pub(super) fn words(&self) -> Vec<u32> {
        self.values.bytes().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }
}

/// How scales of this shape lie over a matrix: the rows and columns of each, and how many are beside each other. `blocks` are
/// their sizes, where settings tell.
pub(super) fn grid(
    scales: &[usize],
    [rows, columns]: [usize; 2],
    blocks: Option<[usize; 2]>,
) -> Option<[usize; 3]> {
    let whole = [rows.max(1), columns.max(1)];
    let fits = |[high, wide]: [usize; 2]| {
        high > 0 && wide > 0 && *scales == [rows.div_ceil(high), columns.div_ceil(wide)]
    };
    let size = match scales {
        _ if blocks.is_some_and(fits) => blocks?,
        [] | [1] | [1, 1] => whole,
        [count] if *count == rows => [1, whole[1]],
        [count, 1] if *count == rows => [1, whole[1]],
        _ => return None,
    };
    Some([size[0], size[1], columns.div_ceil(size[1])])
}

/// Scales that multiply blocks of a matrix, of which [`grid`] tells.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) across: usize,
}

impl Scaling for Blocks {
    fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        Ok(Scales::blocks(self.rows, self.columns, self.across, parts[0].numbers_or_powers()?))
    }
}

/// Whole numbers in groups, with zeros.
#[derive(Debug)]
pub(super) struct Affine {
    pub(super) blocks: Blocks,
    pub(super) zeros: Zeros,
}

#[derive(Debug)]
pub(super) enum Zeros {
    /// There are none.
    None,
    /// One beside each scale, as it is.
    Plain,
    /// So many bits each, down the rows, and so many rows of scales.
    Packed { bits: u32, rows: usize },
}

impl Scaling for Affine {
    fn scales(&self, parts: &[Part]) -> Result<Scales, String> {
        let mut scales = self.blocks.scales(parts)?;
        scales.zero = match self.zeros {
            Zeros::None => Vec::new(),
            Zeros::Plain => parts[1].integers()?.into_iter().map(|zero| zero as f32).collect(),
            Zeros::Packed { bits, rows } => {
                let offset = 1 << (bits - 1);
                let zeros = down(&parts[1].words(), bits, rows, self.blocks.across);
                zeros.into_iter().map(|zero| (zero as i32 - offset) as f32).collect()
            }
        };
        Ok(scales)
    }
}

/// What a config of PyTorch names.
pub(super) fn format_of(dtype: &str) -> Option<Format> {
    [Format::F32, Format::Bf16, Format::F16].into_iter().find(|format| format.torch_name() == dtype)
}
