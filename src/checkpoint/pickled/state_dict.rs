//! What a pickle made: a dictionary of tensors, each written as torch writes one; anything else by its name.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::pickle::Object;
use safetensors::Dtype;

use super::Storages;
use super::rewrite;
use crate::checkpoint::extent::Extent;

/// Of what `torch` does to a tensor when it is written: a parameter of a tensor, with a state.
const MAX_WRAPPERS: usize = 4;

/// A state dict, and nothing else.
pub(super) fn tensors(
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
