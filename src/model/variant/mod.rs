//! A variant: from its configuration to a scorer, a tokenizer, and a fingerprint.
//!
//! ```text
//! config → members: files, opened and held against each other → models: weights → Scorer ┐
//!                                                             └→ fingerprint ────────────┴→ Variant, with its info
//! ```

mod config;
mod fingerprint;
mod info;
mod members;
mod models;

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

pub use config::Mode;
pub use config::VariantConfig;
use fingerprint::fingerprint;
pub use info::MemberInfo;
pub use info::VariantInfo;
use members::Member;
use members::findings;
use members::in_member;
pub use members::load_tokenizer;
use members::notes;
pub use members::open_files;
use members::open_members;
use members::tell;
use models::groups;
use models::load_family;
use models::plans;
use models::sources;
use models::unread;

use crate::checkpoint::Digest;
use crate::checkpoint::hex;
use crate::hub::Snapshot;
use crate::model::ModelError;
use crate::model::device::Cards;
use crate::model::device::Device;
use crate::model::device::Here;
use crate::model::device::Parts;
use crate::model::device::Placement;
use crate::model::device::Resolved;
use crate::model::memory;
use crate::model::plan::ModelPlan;
use crate::model::scorer::Scorer;
use crate::model::weights::TensorStore;
use crate::ops::cpu::Cpu;
use crate::ops::error::OpsError;
use crate::text::SampleTokenizer;
use crate::text::TextRule;
use crate::values::Format;

/// A loaded variant.
pub struct Variant {
    /// What is told of it.
    pub info: VariantInfo,
    /// Gives rewards.
    pub scorer: Scorer,
    /// Gives token ids; shared between variants with equal text files.
    pub tokenizer: Arc<SampleTokenizer>,
}

/// What can be told of a variant before its weights are read.
#[derive(Debug)]
pub struct Checked {
    /// How a prompt and a response become one sequence, if they do.
    pub text_rule: Option<TextRule>,
    /// Where it would be computed.
    pub resolved: Resolved,
}

/// Loads variants, and shares between them what is equal: tensors and tokenizers.
pub struct Loader {
    cards: Arc<dyn Cards>,
    store: TensorStore,
    /// By all that decides what they answer: the text, and what of it the model has rows for.
    tokenizers: HashMap<(Digest, usize, Option<usize>), Arc<SampleTokenizer>>,
    /// What is known to be in memory, or was found to fit there.
    counted: HashSet<Digest>,
}

/// Onto this machine's devices.
impl Default for Loader {
    fn default() -> Self {
        Self::onto(Arc::new(Here))
    }
}

impl Loader {
    /// Onto the CPU and these cards.
    pub fn onto(cards: Arc<dyn Cards>) -> Self {
        let (store, tokenizers, counted) = Default::default();
        Self { cards, store, tokenizers, counted }
    }

    /// Loads one variant. `progress` is told (bytes read, bytes in all) as often as something was read.
    pub fn load(
        &mut self,
        config: &VariantConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Variant, ModelError> {
        let resolved = self.resolve(config)?;
        tracing::info!(variant = config.name, asked = %config.device, device = %resolved, "device");
        let devices = resolved.devices;
        let Opened { mut members, plans } = open(config)?;
        for kinship in findings(&members)? {
            let path = members[kinship.member].path.display();
            tracing::warn!(variant = config.name, member = %path, "{}", kinship.finding);
        }

        let total: u64 = members.iter().map(|member| member.checkpoint.payload_bytes()).sum();
        let mut read = 0;
        let mut progress = |bytes: u64| {
            read += bytes;
            progress(read.min(total), total);
        };
        let stored_in_f16 = members.iter().any(|member| {
            let infos = member.checkpoint.names().filter_map(|name| member.checkpoint.info(name));
            infos.filter_map(|info| Format::of(info.dtype)).any(|format| format == Format::F16)
        });
        let dtype = config.dtype.format().unwrap_or_else(|| {
            let (dtype, why) = match &devices[0] {
                Device::Cpu => Cpu::preferred(stored_in_f16),
                Device::Card(_) if stored_in_f16 => (Format::F16, "the weights are f16".to_owned()),
                Device::Card(_) => {
                    (Format::Bf16, "of a card's fast precisions the one without overflow".to_owned())
                }
            };
            tracing::info!(variant = config.name, dtype = dtype.name(), why, "dtype auto");
            dtype
        });
        if let Device::Card(card) = &devices[0] {
            return Err(ModelError::Unsupported(format!("this build does not run models on {}", card.name)));
        }
        let needed = self.count_bytes(config, &members, &plans, dtype)?;
        let models = if config.mode == Mode::Ens { members.len() } else { 1 };
        memory::check(needed, memory::left(), models, dtype.name())
            .map_err(|error| in_member(&members[0].path, error.into()))?;
        let store = &mut self.store;
        let loaded = load_family(config, &members, &plans, Cpu::new(dtype), store, &mut progress)?;
        let left = vec![memory::left()];
        progress(total); // what was read of several copies or not at all counts as read

        let coefficients = config.coefficients();
        let infos: Vec<MemberInfo> = members
            .iter()
            .zip(&loaded.digests)
            .zip(&coefficients)
            .map(|((member, digest), &coefficient)| MemberInfo {
                path: member.path.display().to_string(),
                source: Snapshot::of(&member.path).map(|snapshot| snapshot.to_string()),
                coefficient,
                digest: hex(digest),
                calibration: member.manifest.calibration.filter(|_| config.mode == Mode::Ens),
            })
            .collect();
        let fingerprint = fingerprint(config, &members, &infos, &loaded.heads, dtype, &devices[0])?;
        let notes = notes(&members);
        let architecture = members[0].config.architecture.clone();
        // the members read the same tokens; none may get one that its embedding has no row for
        let narrowest = (0..members.len()).min_by_key(|&member| members[member].tokenizer.vocab_size());
        let tokenizer = members.swap_remove(narrowest.unwrap_or(0)).tokenizer;
        let key = (tokenizer.digest(), tokenizer.vocab_size(), tokenizer.type_vocab_size());
        let tokenizer = self.tokenizers.entry(key).or_insert_with(|| Arc::new(tokenizer)).clone();
        let (calibrations, reduction) = match config.mode {
            Mode::Warm => (vec![None], None),
            Mode::Ens => (infos.iter().map(|info| info.calibration).collect(), Some(config.reduction)),
        };
        let scorer = Scorer::new(loaded.family, calibrations, reduction);
        let info = VariantInfo {
            name: config.name.clone(),
            mode: config.mode,
            members: infos,
            reduction,
            dtype,
            placement: Placement { devices, parts: Parts::Copies, left },
            max_tokens: tokenizer.max_tokens(),
            fingerprint,
            architecture,
            pooling: loaded.heads[0].1,
            text_rule: tokenizer.rule(),
            notes,
        };
        Ok(Variant { info, scorer, tokenizer })
    }

    /// Bytes of the weights that loading will keep, on a CPU. A tensor that several models have, or an earlier variant,
    /// counts once; it is known by a few of its values, so that never more is counted than will be kept.
    fn count_bytes(
        &mut self,
        config: &VariantConfig,
        members: &[Member],
        plans: &[ModelPlan],
        dtype: Format,
    ) -> Result<u64, ModelError> {
        const SAMPLE: usize = 64;
        let width = if dtype == Format::Bf16 { 2 } else { 4 }; // f16 is widened when it is loaded
        let sources = sources(config, members);
        let groups = groups(config, &sources);
        let mut needed = 0;
        for (group, plan) in groups.iter().zip(plans) {
            for name in unread(plan, group) {
                let mut identity = blake3::Hasher::new();
                identity.update(dtype.name().as_bytes());
                for (checkpoint, coefficient) in *group {
                    identity.update(&coefficient.to_le_bytes());
                    if checkpoint.is_updated(&name) {
                        // a part of the sum would take the whole of a factor
                        identity.update(format!("{} {name}", checkpoint.dir().display()).as_bytes());
                    } else {
                        let sample = checkpoint.sample(&name, SAMPLE)?;
                        identity.update(format!("{:?} {:?}", sample.dtype, sample.shape).as_bytes());
                        identity.update(sample.values.bytes());
                    }
                }
                if self.counted.insert(*identity.finalize().as_bytes()) {
                    let shape = group[0].0.info(&name).map(|info| info.shape.as_slice());
                    needed += shape.unwrap_or_default().iter().product::<usize>() as u64 * width;
                }
            }
        }
        Ok(needed)
    }

    /// The devices that a variant's configuration means here.
    fn resolve(&self, config: &VariantConfig) -> Result<Resolved, ModelError> {
        Ok(config.device.resolve(&*self.cards).map_err(OpsError::from)?)
    }

    /// Checks everything that can be checked without reading weights: files, configs, tokenizers, shapes, devices. Returns
    /// what it found. The error has all that is wrong, with all members.
    pub fn check(&mut self, config: &VariantConfig) -> Result<Checked, ModelError> {
        let (tokenizers, mut problems) = self.checked_tokenizers(config);
        let resolved = self.resolve(config).map_err(|problem| problems.push(problem)).ok();
        ModelError::check(problems)?;
        let resolved = resolved.expect("what is not there is a problem");
        Ok(Checked { text_rule: tokenizers[0].1.rule(), resolved })
    }

    /// The tokenizers of the members that can be opened, and where they are from; and all that is wrong.
    pub(super) fn checked_tokenizers(
        &mut self,
        config: &VariantConfig,
    ) -> (Vec<(PathBuf, SampleTokenizer)>, Vec<ModelError>) {
        let (members, mut problems) = open_members(config);
        if problems.is_empty() {
            tell(config, &members);
        }
        if !members.is_empty()
            && let Err(found) = plans(config, &members)
        {
            problems.extend(found);
        }
        (members.into_iter().map(|member| (member.path, member.tokenizer)).collect(), problems)
    }
}

/// The files of a variant, and what is made of them.
struct Opened {
    members: Vec<Member>,
    /// Of each model.
    plans: Vec<ModelPlan>,
}

/// Opens all members; fails with all that is wrong, as far as it can be seen without reading weights.
fn open(config: &VariantConfig) -> Result<Opened, ModelError> {
    let (members, problems) = open_members(config);
    ModelError::check(problems)?;
    tell(config, &members);
    let plans = plans(config, &members).map_err(|problems| problems.into_iter().collect::<ModelError>())?;
    Ok(Opened { members, plans })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::slice;

    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn what_is_shared_takes_memory_once() {
        let path = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let count = |loader: &mut Loader, mode, dtype, members: &[PathBuf]| {
            let config = VariantConfig::new("v", mode, members.to_vec());
            let Opened { members, plans } = open(&config).unwrap();
            loader.count_bytes(&config, &members, &plans, dtype).unwrap()
        };
        let fresh = |mode, dtype, members: &[PathBuf]| count(&mut Loader::default(), mode, dtype, members);
        let one = path("models/llama");
        let payload = Checkpoint::open(&one).unwrap().payload_bytes();
        assert_eq!(
            fresh(Mode::Warm, Format::F32, slice::from_ref(&one)),
            payload,
            "stored in f32, all of it used"
        );
        assert_eq!(fresh(Mode::Warm, Format::Bf16, slice::from_ref(&one)), payload / 2);
        assert_eq!(fresh(Mode::Ens, Format::F32, &[one.clone(), one.clone()]), payload);

        // members of a family differ in all that was trained
        let [a, b] = ["evaluate/member-0", "evaluate/member-1"].map(path);
        let sizes = [&a, &b].map(|member| fresh(Mode::Warm, Format::F32, slice::from_ref(member)));
        let both = fresh(Mode::Ens, Format::F32, &[a.clone(), b.clone()]);
        assert!(sizes[0] < both && both <= sizes[0] + sizes[1], "{sizes:?} {both}");
        assert_eq!(fresh(Mode::Warm, Format::F32, &[a.clone(), b.clone()]), sizes[0]);
        let mut loader = Loader::default();
        assert_eq!(count(&mut loader, Mode::Ens, Format::F32, &[a.clone(), b.clone()]), both);
        assert_eq!(count(&mut loader, Mode::Warm, Format::F32, &[a]), 0, "it is there");
        assert!(count(&mut loader, Mode::Warm, Format::Bf16, &[b]) > 0, "in another precision");
    }
}
