//! LoRA adapters, as PEFT saves them: what they change in the weights of the base that they were trained on.
//!
//! ```text
//! adapter_config.json, names and shapes → Settings → Changes: tensor → whole | low rank
//! weight = base + scale · B·A, in f64         scale = alpha / rank, or alpha / √rank (rslora)
//! ```
//!
//! [`Checkpoint`](crate::checkpoint::Checkpoint) applies the changes while it reads, so that everything above it
//! (merging, serving, digests) sees ordinary weights: an average of adapters is the average of their products, never the
//! product of their averages. Nothing is rounded before the sum is.
//!
//! What would change rewards in a way that we do not follow (DoRA, biases of the update, initialisations that change the
//! base) is refused by name; a tensor that we do not know is never left out in silence.

mod settings;
mod targets;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use rayon::prelude::*;
use safetensors::tensor::TensorInfo;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::IGNORED_PREFIXES;
pub(super) use crate::checkpoint::lora::settings::Settings;
use crate::checkpoint::lora::targets::is_or_ends_with;
use crate::disk;
use crate::values::Format;
use crate::values::Values;

const CONFIG_FILE: &str = "adapter_config.json";
/// Where an adapter's tensors are: the first that is there.
pub const WEIGHTS_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// What stands before the base model's own names in an adapter's.
const PREFIX: &str = "base_model.model.";

/// What is wrong with a base that nobody was trained on.
pub const NO_ADAPTER: &str = "base is for LoRA adapters: none of the members is one";

/// Whether a directory is an adapter and not a model.
pub fn is_adapter(dir: &Path) -> bool {
    disk::is_there(&dir.join(CONFIG_FILE))
}

/// The adapter's tensors.
pub(super) fn weights_file(dir: &Path) -> Result<PathBuf, CheckpointError> {
    let found = WEIGHTS_FILES.iter().map(|name| dir.join(name)).find(|path| disk::is_there(path));
    found.ok_or_else(|| CheckpointError::NoCheckpoint {
        path: dir.to_owned(),
        problem: format!(
            "holds no {}: save the adapter again, `model.save_pretrained(DIR)` with peft",
            WEIGHTS_FILES[0]
        ),
    })
}

/// What an adapter changes.
#[derive(Debug)]
pub(super) struct Changes {
    /// What to put before all names of the base, to name its tensors as the adapter does.
    pub(super) prefix: String,
    /// By name.
    pub(super) tensors: BTreeMap<String, Change>,
}

/// What an adapter does to one tensor; both, for an embedding that PEFT saved with its update.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Change {
    /// Takes its place: a name in the adapter.
    pub(super) whole: Option<String>,
    /// Is added to it.
    pub(super) low_rank: Option<LowRank>,
}

/// An update `scale · B·A`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct LowRank {
    /// The name of `[rank, input]` in the adapter.
    pub(super) a: String,
    /// The name of `[output, rank]`.
    pub(super) b: String,
    pub(super) scale: f64,
    /// Of an embedding: `(B·A)ᵀ` is added.
    pub(super) is_transposed: bool,
}

impl Settings {
    /// What the adapter's tensors change in a base with tensors of these shapes.
    pub(super) fn read(
        &self,
        stored: &BTreeMap<String, TensorInfo>,
        base: &BTreeMap<&str, &[usize]>,
    ) -> Result<Changes, CheckpointError> {
        let path = weights_file(&self.dir)?;
        self.sort(stored, base).map_err(|problem| CheckpointError::config(&path, problem))
    }

    fn sort(
        &self,
        stored: &BTreeMap<String, TensorInfo>,
        base: &BTreeMap<&str, &[usize]>,
    ) -> Result<Changes, String> {
        let roles = stored
            .keys()
            .map(|name| role(name).map(|(layer, role)| (name, layer, role)))
            .collect::<Result<Vec<_>, _>>()?;
        let prefix = find_prefix(roles.iter().map(|(_, name, role)| (name, role)), base);
        let in_base = |name: &str| find(name.strip_prefix(&prefix).unwrap_or(name), base);
        let mut tensors: BTreeMap<String, Change> = BTreeMap::new();
        let mut updated: BTreeSet<String> = BTreeSet::new();
        for (stored_name, name, role) in roles {
            let stored_name = stored_name.clone();
            let found = in_base(&name).map(|found| format!("{prefix}{found}"));
            match role {
                // what the adapter replaces, which peft saves with some biases
                Role::Unused => {}
                Role::Whole => {
                    // a head that the base lacks; a tensor that no model asks for is refused later
                    let change = tensors.entry(found.unwrap_or(name)).or_default();
                    // peft then saves the same tensor twice, once by the name of its wrapper
                    let known = change.whole.get_or_insert_with(|| stored_name.clone());
                    if stored_name.len() < known.len() {
                        *known = stored_name;
                    }
                }
                Role::A { .. } | Role::B => {
                    let found = found.ok_or_else(|| format!("updates `{name}`, which the base lacks"))?;
                    let low_rank = tensors.entry(found).or_default().low_rank.get_or_insert_default();
                    let layer = name.trim_end_matches(".weight");
                    if let Role::A { is_embedding } = role {
                        self.check_rank(layer, &stored_name, &stored[&stored_name].shape)?;
                        low_rank.is_transposed = is_embedding;
                        low_rank.scale = self.scale(layer)?;
                        low_rank.a = stored_name;
                    } else {
                        low_rank.b = stored_name;
                    }
                    updated.insert(layer.to_owned());
                }
            }
        }
        for (name, Change { whole, low_rank }) in &tensors {
            let below = match whole {
                Some(whole) => stored[whole].shape.as_slice(),
                None => base[name.strip_prefix(&prefix).unwrap_or(name)],
            };
            if let Some(low_rank) = low_rank {
                low_rank.check(name, stored, below)?;
            }
        }
        self.check_targets(&updated, &layers(&updated, &prefix, base))?;
        self.check_saved(&tensors, &prefix, base)?;
        Ok(Changes { prefix, tensors })
    }

    /// As peft does: its layers have the rank that the config says, and take no other.
    fn check_rank(&self, layer: &str, stored: &str, shape: &[usize]) -> Result<(), String> {
        let rank = self.rank(layer)?;
        if shape.first() == Some(&rank) && rank > 0 {
            return Ok(());
        }
        Err(format!(
            "{CONFIG_FILE} says rank {rank} for `{layer}` (`r`, `rank_pattern`), and `{stored}` is stored as {shape:?}, of \
             rank {}: they are not of one training run, take both files from the same save",
            shape.first().copied().unwrap_or(0)
        ))
    }

    /// The layers that the config targets are those that have an update. peft would leave out what it does not target, and
    /// what is missing, with a warning.
    fn check_targets(&self, updated: &BTreeSet<String>, layers: &[String]) -> Result<(), String> {
        let Some(targets) = &self.targets else { return Ok(()) };
        for layer in updated {
            if !targets.contain(layer)? {
                return Err(format!(
                    "stores an update of `{layer}`, which {CONFIG_FILE} does not target (`target_modules`, \
                     `exclude_modules`, `layers_to_transform`, `modules_to_save`): peft would leave it out"
                ));
            }
        }
        for layer in layers {
            if !updated.contains(layer) && targets.contain(layer)? {
                return Err(format!(
                    "lacks the update of `{layer}`, which {CONFIG_FILE} targets (`target_modules`): the adapter is not whole"
                ));
            }
        }
        Ok(())
    }

    /// Of each module that shall be saved whole, and that there is, something is stored: peft fails otherwise.
    fn check_saved(
        &self,
        tensors: &BTreeMap<String, Change>,
        prefix: &str,
        base: &BTreeMap<&str, &[usize]>,
    ) -> Result<(), String> {
        for name in base.keys() {
            let name = format!("{prefix}{name}");
            let is_of = |saved: &&String| {
                name.match_indices('.').any(|(dot, _)| is_or_ends_with(&name[..dot], saved))
            };
            let is_stored = || tensors.get(&name).is_some_and(|change| change.whole.is_some());
            if let Some(saved) = self.saved.iter().find(is_of).filter(|_| !is_ignored(&name) && !is_stored())
            {
                return Err(format!(
                    "lacks `{name}`, though {CONFIG_FILE} says that `{saved}` was trained (`modules_to_save`): the adapter \
                     is not whole"
                ));
            }
        }
        Ok(())
    }
}

/// Names of the base's linear layers and embeddings, as the adapter names them.
fn layers(updated: &BTreeSet<String>, prefix: &str, base: &BTreeMap<&str, &[usize]>) -> Vec<String> {
    // an adapter of a backbone alone lacks what the base's names begin with
    let cut = updated.iter().find_map(|layer| {
        let weight = format!("{layer}.weight");
        let name = weight.strip_prefix(prefix).unwrap_or(&weight);
        find(name, base).map(|found| found[..found.len() - name.len()].to_owned())
    });
    let cut = cut.unwrap_or_default();
    base.iter()
        .filter(|(name, shape)| shape.len() == 2 && !is_ignored(name))
        .filter_map(|(name, _)| {
            let layer = name.strip_prefix(&cut)?.strip_suffix(".weight")?;
            Some(format!("{prefix}{layer}"))
        })
        .collect()
}

/// What reward models may lack that bases have: language-model heads, and poolers.
fn is_ignored(name: &str) -> bool {
    IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || name.contains("pooler.")
}

impl LowRank {
    fn check(&self, name: &str, stored: &BTreeMap<String, TensorInfo>, base: &[usize]) -> Result<(), String> {
        let factor = |factor: &str, which: &str| {
            let info =
                stored.get(factor).ok_or_else(|| format!("the update of `{name}` lacks its lora_{which}"))?;
            if Format::of(info.dtype).is_none() {
                return Err(format!(
                    "`{factor}` is stored as {:?}: supported are F64, F32, F16 and BF16",
                    info.dtype
                ));
            }
            Ok(info.shape.as_slice())
        };
        let (a, b) = (factor(&self.a, "A")?, factor(&self.b, "B")?);
        let product = match (a, b) {
            ([rank, input], [output, other]) if rank == other && self.is_transposed => {
                Some([*input, *output])
            }
            ([rank, input], [output, other]) if rank == other => Some([*output, *input]),
            _ => None,
        };
        if product.is_none_or(|product| product != base || product.contains(&0)) {
            return Err(format!(
                "the update of `{name}` has the factors {b:?} and {a:?}, which do not fit the base's {base:?}"
            ));
        }
        Ok(())
    }
}

/// What a tensor of an adapter is for.
enum Role {
    A { is_embedding: bool },
    B,
    Whole,
    Unused,
}

/// The tensor of the base that a tensor of an adapter is about, as the adapter names it.
fn role(stored: &str) -> Result<(String, Role), String> {
    let unknown = |why: &str| format!("tensor `{stored}` is not one that we know: {why}");
    let name = stored.strip_prefix(PREFIX).ok_or_else(|| unknown("its name does not start as peft's do"))?;
    if name.split('.').any(|part| part == "original_module") {
        return Ok((name.to_owned(), Role::Unused));
    }
    // peft's wrappers, and the adapter's own name in state that was not saved by peft
    let mut parts: Vec<&str> = Vec::new();
    let mut after_wrapper = false;
    for part in name.split('.') {
        let is_wrapper = ["base_layer", "modules_to_save"].contains(&part);
        let is_factor = part.starts_with("lora_");
        if !(is_wrapper || after_wrapper && part == "default") {
            parts.push(part);
        }
        after_wrapper = is_wrapper || is_factor;
    }
    let Some(at) = parts.iter().position(|part| part.starts_with("lora_")) else {
        return Ok((parts.join("."), Role::Whole));
    };
    let role = match parts[at..] {
        ["lora_A", "weight"] => Role::A { is_embedding: false },
        ["lora_embedding_A"] => Role::A { is_embedding: true },
        ["lora_B", "weight"] | ["lora_embedding_B"] => Role::B,
        ["lora_magnitude_vector", ..] => return Err(unknown("DoRA is not supported")),
        _ => return Err(unknown("only lora_A and lora_B are supported")),
    };
    Ok((format!("{}.weight", parts[..at].join(".")), role))
}

/// What an adapter's names have before those of a base that was saved without its head.
fn find_prefix<'r>(
    roles: impl Iterator<Item = (&'r String, &'r Role)>,
    base: &BTreeMap<&str, &[usize]>,
) -> String {
    for (name, _) in roles.filter(|(_, role)| matches!(role, Role::A { .. } | Role::B)) {
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(dot, _)| dot + 1));
        if let Some(start) = starts.into_iter().find(|start| base.contains_key(&name[*start..])) {
            return name[..start].to_owned();
        }
    }
    String::new()
}

/// The tensor of the base: by its name, or, for adapters of a backbone alone, the only one that ends with it.
fn find<'b>(name: &str, base: &BTreeMap<&'b str, &[usize]>) -> Option<&'b str> {
    if let Some((found, _)) = base.get_key_value(name) {
        return Some(found);
    }
    let end = format!(".{name}");
    let mut ending = base.keys().filter(|found| found.ends_with(&end));
    ending.next().filter(|_| ending.next().is_none()).copied()
}

/// `sum = base + scale · B·A`, or with `(B·A)ᵀ`; `[rows, columns]` is the shape of the base.
///
/// Each value is `base + scale · Σ b·a`, summed in the order of the rank.
pub(super) fn add(
    base: &Values,
    a: &Values,
    b: &Values,
    scale: f64,
    is_transposed: bool,
    shape: &[usize],
    sum: &mut [f64],
) {
    let [rows, columns] = shape else { unreachable!("factors fit their base, which has two dimensions") };
    let (a, b) = (a.widened(), b.widened());
    // in either case row · column: `[rows, rank]` and `[rank, columns]`
    let rank = a.len() / if is_transposed { *rows } else { *columns };
    let (left, right) = match is_transposed {
        true => (transposed(&a, rank, *rows), transposed(&b, *columns, rank)),
        false => (b, a),
    };
    sum.par_chunks_mut((*columns).max(1)).enumerate().for_each_init(
        || vec![0.0; *columns],
        |product, (row, sum)| {
            product.fill(0.0);
            for (left, right) in
                left[row * rank..(row + 1) * rank].iter().zip(right.chunks_exact((*columns).max(1)))
            {
                product.iter_mut().zip(right).for_each(|(product, right)| *product += left * right);
            }
            base.to_f64s(row * columns..(row + 1) * columns, sum);
            sum.iter_mut().zip(product).for_each(|(sum, product)| *sum += scale * *product);
        },
    );
}

/// `[rows, columns]` → `[columns, rows]`.
fn transposed(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}
