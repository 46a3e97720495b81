//! PyTorch's own files, `pytorch_model.bin` and the like: tensors, and nothing else.
//!
//! ```text
//! a zip: archive/data.pkl   a pickle: a dictionary of names and of what makes each tensor: type, shape, steps, storage
//!        archive/data/0     a storage: values, not compressed, read from the file as those of safetensors are
//! ```
//!
//! A pickle is a program. candle's unpickler follows it without calling anything: what it would have called is an object
//! that tells the name ([`Object`]). This module looks at what came out and accepts PyTorch's own ways to write
//! a tensor, by their names; anything else is refused by its name.
//!
//! # Why not candle's reader of tensors?
//!
//! `PthTensors` (candle 0.11.1) leaves out what it does not understand, with a line on standard error at most: a parameter
//! that has attributes, tensors of integers or booleans, and whatever else the file holds. It reads no tensor whose
//! values are in steps, ignores that a view is negated, opens the file anew for each tensor, and panics where an
//! argument is missing. So it is the unpickler alone that is used, one instruction at a time, each looked at before: candle takes
//! a dictionary's instruction for an empty dictionary's, believes any length, shifts bits away in long numbers, and copies
//! what a pickle remembers as often as it says.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use candle_core::pickle::Object;
use candle_core::pickle::Stack;
use safetensors::Dtype;
use zip::CompressionMethod;
use zip::ZipArchive;

use crate::checkpoint::extent::Extent;

/// Of `data.pkl`; that of a thousand tensors has two hundred kilobytes.
const MAX_PICKLE_BYTES: u64 = 32 << 20;
/// Objects that are looked at, over all instructions; a thousand tensors are some fifty thousand.
const MAX_VISITS: usize = 1 << 23;
/// Of objects in objects; a parameter of a state dict is eight deep.
const MAX_DEPTH: usize = 64;
/// Of what `torch` does to a tensor when it is written: a parameter of a tensor, with a state.
const MAX_WRAPPERS: usize = 4;
/// How a file begins that torch wrote before 1.6: a pickle of a number that says so.
const LEGACY_START: &[u8] = &[0x80, 0x02, 0x8a, 0x0a];
const ZIP_START: &[u8] = b"PK\x03\x04";

/// What a file holds.
pub(super) struct Pickled {
    /// Offsets are from the beginning of the file.
    pub(super) tensors: BTreeMap<String, Extent>,
    /// All that decided about them.
    pub(super) header: Vec<u8>,
}

/// Where storages are in the file, by their names in the archive.
type Storages = BTreeMap<String, (u64, u64)>;

/// Reads what a file of PyTorch holds, but for the values.
pub(super) fn read(file: &File, path: &Path) -> Result<Pickled, String> {
    let mut start = [0; 4];
    let is_read = file.read_exact_at(&mut start, 0).is_ok();
    if is_read && start == LEGACY_START {
        return Err(format!(
            "is in the form that torch wrote before version 1.6: write it again with {}",
            rewrite(path, "")
        ));
    }
    if !is_read || start != ZIP_START {
        return Err("is no file of PyTorch, or damaged: copy or save it again".to_owned());
    }
    let damaged = |error: &dyn std::fmt::Display| {
        format!("{error}: the file is truncated or damaged, copy or save it again")
    };
    let mut archive = ZipArchive::new(file).map_err(|error| damaged(&error))?;
    let mut storages = Storages::new();
    let mut pickles = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| damaged(&error))?;
        let name = entry.name().map_err(|error| damaged(&error))?.into_owned();
        if name.contains("/code/") || name.ends_with("/constants.pkl") {
            return Err(
                "is a program (TorchScript), not weights: save the model's state_dict instead".to_owned()
            );
        }
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!(
                "holds `{name}` compressed, as torch never writes weights: write it again with {}",
                rewrite(path, "")
            ));
        }
        let begins = entry.data_start().ok_or_else(|| damaged(&"an entry begins nowhere"))?;
        if name.ends_with("/data.pkl") {
            pickles.push(name.clone());
        }
        storages.insert(name, (begins, entry.size()));
    }
    let name = match pickles.as_slice() {
        [only] => only,
        _ => return Err(format!("holds {} files data.pkl: expected one", pickles.len())),
    };
    let root = name.trim_end_matches("data.pkl");
    // nothing is compressed, so an entry is a part of the file
    let content = |name: &str, limit: u64| {
        let Some((begins, size)) = storages.get(name) else { return Ok(None) };
        if *size > limit {
            return Err(format!("holds `{name}` of {size} bytes, the limit is {limit}"));
        }
        let mut bytes = vec![0; *size as usize];
        file.read_exact_at(&mut bytes, *begins).map_err(|error| damaged(&error))?;
        Ok(Some(bytes))
    };
    let order = content(&format!("{root}byteorder"), 16)?.unwrap_or_else(|| b"little".to_vec());
    if order != b"little" {
        return Err(format!("its byte order is `{}`: expected `little`", String::from_utf8_lossy(&order)));
    }
    let pickle = content(name, MAX_PICKLE_BYTES)?.unwrap_or_default();
    let mut header = format!("{storages:?}").into_bytes();
    header.extend_from_slice(&pickle);
    let tensors = tensors(unpickle(&pickle)?, root, &storages, path)?;
    Ok(Pickled { tensors, header })
}

/// Follows the pickle.
fn unpickle(pickle: &[u8]) -> Result<Object, String> {
    let mut stack = Stack::empty();
    let mut rest = pickle;
    let mut visits = 0;
    let wrong = |what: String| format!("its pickle {what}: save it again with torch, tensors only");
    loop {
        // what is remembered is copied, as often as it is said
        let is_copied = matches!(rest, [b'q' | b'r' | b'h' | b'j', ..]);
        match rest {
            [0x8a, length, ..] if *length > 8 => {
                return Err(wrong(format!("has a number of {length} bytes")));
            }
            [b'X', a, b, c, d, text @ ..] if u32::from_le_bytes([*a, *b, *c, *d]) as usize > text.len() => {
                return Err(wrong("ends in a text".to_owned()));
            }
            // candle takes it for `}`
            [b'd', ..] => return Err(wrong("makes a dictionary as no torch does".to_owned())),
            [0x95 | 0x8c | 0x94, ..] => {
                return Err(wrong("has a newer protocol than torch's own (`pickle_protocol`)".to_owned()));
            }
            _ => {}
        }
        let is_done =
            stack.read(&mut rest).map_err(|error| wrong(format!("cannot be followed ({error})")))?;
        let depth = stack.stack().last().map_or(Ok(0), |last| depth(last, is_copied, &mut visits));
        if depth? > MAX_DEPTH {
            return Err(wrong(format!("has objects in objects, deeper than {MAX_DEPTH}")));
        }
        if is_done {
            return stack.finalize().map_err(|error| wrong(format!("makes nothing ({error})")));
        }
    }
}

/// How deep an object is, and one more visit for each part of it.
fn depth(object: &Object, is_copied: bool, visits: &mut usize) -> Result<usize, String> {
    let mut waiting = vec![(object, 1)];
    let mut deepest = 0;
    // each value was looked at on its own when it was made
    let is_growing = matches!(object, Object::Dict(_) | Object::List(_)) && !is_copied;
    while let Some((object, depth)) = waiting.pop() {
        *visits += 1;
        if *visits > MAX_VISITS {
            return Err(format!("its pickle makes more than {MAX_VISITS} objects: no model has so many"));
        }
        deepest = deepest.max(depth);
        if depth > MAX_DEPTH {
            break;
        }
        let inner = depth + 1;
        match object {
            Object::Dict(pairs) if is_growing && depth == 1 => {
                waiting
                    .extend(pairs.last().into_iter().flat_map(|(key, value)| [(key, inner), (value, inner)]));
            }
            Object::List(values) if is_growing && depth == 1 => {
                waiting.extend(values.last().map(|value| (value, inner)));
            }
            Object::Dict(pairs) => {
                waiting.extend(pairs.iter().flat_map(|(key, value)| [(key, inner), (value, inner)]));
            }
            Object::List(values) | Object::Tuple(values) => {
                waiting.extend(values.iter().map(|value| (value, inner)))
            }
            Object::Reduce { callable, args } | Object::Build { callable, args } => {
                waiting.extend([(&**callable, inner), (&**args, inner)]);
            }
            Object::PersistentLoad(id) => waiting.push((id, inner)),
            _ => {}
        }
    }
    Ok(deepest)
}

/// A state dict, and nothing else.
fn tensors(
    object: Object,
    root: &str,
    storages: &Storages,
    path: &Path,
) -> Result<BTreeMap<String, Extent>, String> {
    let Object::Dict(pairs) = object else {
        return Err(format!("holds {}, not a dictionary of tensors (a state_dict)", describe(&object)));
    };
    // the versions of a module's parts, which torch adds to its state dict as an attribute
    let pairs: Vec<(Object, Object)> =
        pairs.into_iter().filter(|(key, value)| !is_metadata(key, value)).collect();
    let inner = |(_, value): &&(Object, Object)| matches!(value, Object::Dict(inner) if inner.iter().any(|(_, value)| is_tensor(value)));
    if let Some((Object::Unicode(name), Object::Dict(inner))) = pairs.iter().find(inner) {
        return Err(nested(name, inner, &pairs, path));
    }
    let mut tensors = BTreeMap::new();
    for (key, value) in &pairs {
        let Object::Unicode(name) = key else {
            return Err(format!("holds a tensor whose name is {}", describe(key)));
        };
        let tensor = tensor(value, root, storages, MAX_WRAPPERS).map_err(|problem| {
            format!("`{name}` is {problem}: only tensors are read, save the state_dict alone")
        })?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("holds `{name}` twice"));
        }
    }
    Ok(tensors)
}

fn is_metadata(key: &Object, value: &Object) -> bool {
    matches!((key, value), (Object::Unicode(name), Object::Dict(_)) if name == "_metadata")
}

/// Or something else that torch makes.
fn is_tensor(object: &Object) -> bool {
    match object {
        Object::Reduce { callable, .. } => {
            matches!(&**callable, Object::Class { module_name, .. } if module_name.starts_with("torch."))
        }
        _ => false,
    }
}

/// What a training saves.
fn nested(name: &str, inner: &[(Object, Object)], all: &[(Object, Object)], path: &Path) -> String {
    let others = all.iter().filter_map(|(key, _)| match key {
        Object::Unicode(other) if other != name => Some(format!("`{other}`")),
        _ => None,
    });
    let mut others: Vec<String> = others.collect();
    others.sort_unstable();
    others.truncate(5);
    let beside = if others.is_empty() { String::new() } else { format!(" (beside {})", others.join(", ")) };
    format!(
        "holds a dictionary of {} under `{name}`{beside}, as trainings save it: if those are the weights, write them \
         alone, {}",
        inner.len(),
        rewrite(path, &format!("['{}']", name.escape_default()))
    )
}

/// One value of a state dict. The error tells what it is instead.
fn tensor(object: &Object, root: &str, storages: &Storages, wrappers: usize) -> Result<Extent, String> {
    let Object::Reduce { callable, args } = object else { return Err(describe(object)) };
    let (Object::Class { module_name, class_name }, Object::Tuple(args)) = (&**callable, &**args) else {
        return Err(describe(object));
    };
    let class = |object: &Object| match object {
        Object::Class { module_name, class_name } => format!("{module_name}.{class_name}"),
        _ => String::new(),
    };
    match (module_name.as_str(), class_name.as_str(), args.as_slice()) {
        (
            "torch._utils",
            "_rebuild_tensor_v2",
            [storage, offset, shape, strides, _requires_grad, _hooks, flags @ ..],
        ) => {
            // a conjugated or negated view
            if !flags.iter().all(|flags| matches!(flags, Object::Dict(flags) if flags.is_empty())) {
                return Err("a view whose values are changed when they are read".to_owned());
            }
            strided(storage, offset, (shape, strides), root, storages)
        }
        // with whatever attributes
        ("torch._utils", "_rebuild_parameter", [data, _requires_grad, _hooks])
        | ("torch._utils", "_rebuild_parameter_with_state", [data, _requires_grad, _hooks, _])
            if wrappers > 0 =>
        {
            tensor(data, root, storages, wrappers - 1)
        }
        ("torch._tensor", "_rebuild_from_type_v2", [rebuild, of_class, args, _state])
            if wrappers > 0
                && ["torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"]
                    .contains(&class(of_class).as_str()) =>
        {
            let inner = Object::Reduce { callable: Box::new(rebuild.clone()), args: Box::new(args.clone()) };
            tensor(&inner, root, storages, wrappers - 1)
        }
        ("torch._tensor", "_rebuild_from_type_v2", [_, of_class, ..]) => {
            Err(format!("a {}", class(of_class)))
        }
        _ => Err(describe(object)),
    }
}

fn strided(
    storage: &Object,
    offset: &Object,
    (shape, strides): (&Object, &Object),
    root: &str,
    storages: &Storages,
) -> Result<Extent, String> {
    let odd = || "a tensor that is not written as torch writes it".to_owned();
    let Object::PersistentLoad(id) = storage else { return Err(odd()) };
    let Object::Tuple(id) = &**id else { return Err(odd()) };
    let [
        Object::Unicode(kind),
        class @ Object::Class { class_name, .. },
        Object::Unicode(key),
        _device,
        count,
    ] = id.as_slice()
    else {
        return Err(odd());
    };
    let dtype = match class_name.as_str() {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return Err(format!("a tensor of a type that is not read, {}", describe(class))),
    };
    let size = dtype.bitsize() / 8;
    let (shape, strides) = (numbers(shape).ok_or_else(odd)?, numbers(strides).ok_or_else(odd)?);
    let (offset, count) = (number(offset).ok_or_else(odd)?, number(count).ok_or_else(odd)?);
    if kind != "storage" || shape.len() != strides.len() {
        return Err(odd());
    }
    let Some(&(begins, bytes)) = storages.get(&format!("{root}data/{key}")) else {
        return Err(format!("a tensor whose values ({root}data/{key}) are not in the file"));
    };
    let too_short = || format!("a tensor that is larger than its values ({root}data/{key})");
    if count.checked_mul(size).is_none_or(|needed| needed as u64 != bytes) {
        return Err(too_short());
    }
    let start = offset
        .checked_mul(size)
        .and_then(|offset| offset.checked_add(begins as usize))
        .ok_or_else(too_short)?;
    let extent = Extent::new(dtype, shape, strides, start).ok_or_else(too_short)?;
    if extent.end() as u64 > begins + bytes {
        return Err(too_short());
    }
    Ok(extent)
}

fn numbers(object: &Object) -> Option<Vec<usize>> {
    match object {
        Object::Tuple(values) => values.iter().map(number).collect(),
        _ => None,
    }
}

fn number(object: &Object) -> Option<usize> {
    match object {
        Object::Int(value) => usize::try_from(*value).ok(),
        Object::Long(value) => usize::try_from(*value).ok(),
        _ => None,
    }
}

/// In words, with the names that it has.
fn describe(object: &Object) -> String {
    match object {
        Object::Class { module_name, class_name } => {
            format!("the class {module_name}.{class_name}").escape_debug().to_string()
        }
        Object::Reduce { callable, .. } | Object::Build { callable, .. } => match &**callable {
            Object::Class { module_name, class_name } => {
                format!("an object of {module_name}.{class_name}").escape_debug().to_string()
            }
            other => describe(other),
        },
        Object::Int(_) | Object::Long(_) | Object::Float(_) => "a number".to_owned(),
        Object::Unicode(_) => "a text".to_owned(),
        Object::Bool(_) => "a truth value".to_owned(),
        Object::None => "nothing (None)".to_owned(),
        Object::Tuple(_) | Object::List(_) => "a list".to_owned(),
        Object::Dict(_) => "a dictionary".to_owned(),
        Object::Mark | Object::PersistentLoad(_) => "no object".to_owned(),
    }
}

/// The command that writes a part of a file in today's form.
fn rewrite(path: &Path, part: &str) -> String {
    format!(
        "`python -c \"import torch; torch.save(torch.load('{}', map_location='cpu', weights_only=True){part}, \
         'OUT/{}')\"`",
        path.display(),
        path.file_name().unwrap_or_default().display()
    )
}
