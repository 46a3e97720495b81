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
mod placing;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use config::Mode;
pub use config::VariantConfig;
pub use fingerprint::FingerprintParts;
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
use models::LoadedFamily;
use models::load_family;
use models::plans;
use placing::Candidate;
use placing::Held;
use placing::Plan;

use crate::checkpoint::Digest;
use crate::checkpoint::hex;
use crate::hub::Snapshot;
use crate::model::ModelError;
use crate::model::device::Cards;
use crate::model::device::Device;
use crate::model::device::DeviceName;
use crate::model::device::Here;
use crate::model::device::Parts;
use crate::model::device::Placement;
use crate::model::device::Resolved;
use crate::model::memory;
use crate::model::plan::ModelPlan;
use crate::model::reference;
use crate::model::reference::ReferenceRewards;
use crate::model::scorer::Calibration;
use crate::model::scorer::Scorer;
use crate::model::shelf::Shelf;
use crate::model::weights::TensorStore;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::Cuda;
use crate::ops::error::OpsError;
use crate::text::SampleTokenizer;
use crate::text::TextRule;
use crate::values::Format;
use crate::values::reference::Reference;

/// A loaded variant.
pub struct Variant {
    /// What is told of it.
    pub info: VariantInfo,
    /// Gives rewards.
    pub scorer: Scorer,
    /// Give the same, on the other devices of its placement, if each has a copy.
    pub others: Vec<Scorer>,
    /// Gives token ids; shared between variants with equal text files.
    pub tokenizer: Arc<SampleTokenizer>,
    /// What it answered on the references of `rewarm calibrate`, as far as that is known.
    pub reference: Reference,
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
    /// What is known to be on a device, or was found to fit there.
    held: Held,
    /// Memory is made sure of for batches of so many tokens.
    batch_tokens: usize,
    /// Whether a list of devices means a copy for each.
    with_copies: bool,
    /// What was packed before.
    shelf: Option<Shelf>,
}

/// What a variant answered on the references, from what each member did, if all were measured.
fn reference_of(
    measured: &[Option<ReferenceRewards>],
    coefficients: &[f64],
    own_calibration: Option<Calibration>,
    scorer: &Scorer,
) -> Reference {
    let all: Option<Vec<ReferenceRewards>> = measured.iter().cloned().collect();
    let found = all.and_then(|all| reference::of_members(&all, coefficients, scorer));
    found.or_else(|| own_calibration.map(reference::of_calibration)).unwrap_or_default()
}

/// What a batch may have where nobody says.
const BATCH_TOKENS: usize = 16_384;

/// Onto this machine's devices.
impl Default for Loader {
    fn default() -> Self {
        Self::onto(Arc::new(Here))
    }
}

impl Loader {
    /// Onto the CPU and these cards.
    pub fn onto(cards: Arc<dyn Cards>) -> Self {
        let (store, tokenizers, held) = Default::default();
        Self { cards, store, tokenizers, held, batch_tokens: BATCH_TOKENS, with_copies: false, shelf: None }
    }

    /// For batches of so many tokens, on all devices that a list names at once; else a variant that fits one is only on the
    /// first.
    pub fn for_server(self, batch_tokens: usize) -> Self {
        Self { batch_tokens, with_copies: true, ..self }
    }

    /// Takes packed weights from the [shelf](crate::model::shelf) of this user, and puts there what is packed: for models that
    /// will be loaded again.
    pub fn from_shelf(self) -> Self {
        Self { shelf: Shelf::of_user(), ..self }
    }

    /// Loads one variant. `progress` is told (bytes read, bytes in all) as often as something was read.
    pub fn load(
        &mut self,
        config: &VariantConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Variant, ModelError> {
        let Opened { mut members, plans } = open(config)?;
        let resolved = self.resolve(config, &members)?;
        tracing::info!(variant = config.name, asked = %config.device, device = %resolved, "device");
        let devices = resolved.devices;
        if let Some(kept) = self.shelf.as_ref().and_then(Shelf::kept) {
            members.iter().for_each(|member| member.checkpoint.recall(kept));
        }
        for kinship in findings(config, &members, &plans)? {
            let path = members[kinship.member].path.display();
            tracing::warn!(variant = config.name, member = %path, "{}", kinship.finding);
        }

        let (dtype, why) = dtype_of(config, &members, &devices[0]);
        if let Some(why) = why {
            tracing::info!(variant = config.name, dtype = dtype.name(), why, "dtype auto");
        }
        if let (Device::Card(_), Format::F32) = (&devices[0], dtype) {
            tracing::info!(
                variant = config.name,
                "f32 on a card is the exact form, and several times slower than bf16"
            );
        }
        let weighed = placing::weigh(config, &members, &plans, dtype, &devices[0])?;
        let candidate = Candidate { config, members: &members, plans: &plans, dtype, weighed };
        let Plan { parts, on } = self.place(&candidate, devices)?;
        let weighed = candidate.weighed;

        let payload: u64 = members.iter().map(|member| member.checkpoint.payload_bytes()).sum();
        let total = if parts == Parts::Copies { payload * on.len() as u64 } else { payload };
        let mut read = 0;
        let mut progress = |bytes: u64| {
            read += bytes;
            progress(read.min(total), total);
        };
        let mut families = Vec::new();
        for (device, models) in &on {
            let takes = self.held.add(device, &weighed[models.clone()]);
            tracing::info!(variant = config.name, device = %device, models = models.len(), bytes = takes, "weights");
            let part = match config.mode {
                Mode::Warm => (&members[..], &plans[..]),
                Mode::Ens => (&members[models.clone()], &plans[models.clone()]),
            };
            families.push(self.load_onto(device, config, part, dtype, &mut progress)?);
        }
        progress(total); // what was read of several copies or not at all counts as read
        if let Some(kept) = self.shelf.as_ref().and_then(Shelf::kept) {
            for member in &members {
                // they are read again, then
                let noted = member.checkpoint.note(kept);
                let _ = noted.inspect_err(|error| tracing::debug!(%error, "digests cannot be noted"));
            }
        }
        let devices: Vec<Device> = on.into_iter().map(|(device, _)| device).collect();
        let left: Result<Vec<_>, _> =
            devices.iter().map(|device| placing::left_on(&*self.cards, device)).collect();
        let loaded = match parts {
            Parts::Copies => families,
            Parts::Members => vec![LoadedFamily::spread(families)],
        };
        let (heads, digests) = (&loaded[0].heads, &loaded[0].digests);

        let coefficients = config.coefficients();
        let infos: Vec<MemberInfo> = members
            .iter()
            .zip(digests)
            .zip(&coefficients)
            .map(|((member, digest), &coefficient)| MemberInfo {
                path: member.path.display().to_string(),
                source: Snapshot::of(&member.path).map(|snapshot| snapshot.to_string()),
                coefficient,
                digest: hex(digest),
                calibration: member.manifest.calibration.filter(|_| config.mode == Mode::Ens),
            })
            .collect();
        let measured = members.iter().map(|member| ReferenceRewards::load(&member.path));
        let measured = measured.collect::<Result<Vec<_>, _>>()?;
        let own_calibration = match &members[..] {
            [only] if config.mode == Mode::Warm => only.manifest.calibration,
            _ => None,
        };
        let (fingerprint, parts_of_it) = fingerprint(config, &members, &infos, heads, dtype, &devices[0])?;
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
        let pooling = heads[0].1;
        let mut scorers =
            loaded.into_iter().map(|loaded| Scorer::new(loaded.family, calibrations.clone(), reduction));
        let scorer = scorers.next().expect("there is at least one device");
        let reference = reference_of(&measured, &coefficients, own_calibration, &scorer);
        let others = scorers.collect();
        let info = VariantInfo {
            name: config.name.clone(),
            mode: config.mode,
            members: infos,
            reduction,
            dtype,
            placement: Placement { devices, parts, left: left? },
            max_tokens: tokenizer.max_tokens(),
            fingerprint,
            parts: parts_of_it,
            architecture,
            pooling,
            text_rule: tokenizer.rule(),
            notes,
        };
        Ok(Variant { info, scorer, others, tokenizer, reference })
    }

    /// Refuses variants that do not fit where they would go, alone or together, before any of them is read. Tells which
    /// one it is, if it is one.
    pub fn check_memory(&self, configs: &[VariantConfig]) -> Result<(), (Option<usize>, ModelError)> {
        let mut held = self.held.clone();
        let mut needs: Vec<(Device, Vec<(&str, u64)>)> = Vec::new();
        for (index, config) in configs.iter().enumerate() {
            let place = || {
                let Opened { members, plans } = open(config)?;
                let devices = self.resolve(config, &members)?.devices;
                let (dtype, _) = dtype_of(config, &members, &devices[0]);
                let weighed = placing::weigh(config, &members, &plans, dtype, &devices[0])?;
                let candidate = Candidate { config, members: &members, plans: &plans, dtype, weighed };
                let Plan { on, .. } = self.place(&candidate, devices)?;
                Ok((candidate.weighed, on))
            };
            let (weighed, on) = place().map_err(|problem| (Some(index), problem))?;
            for (device, models) in on {
                let bytes = held.add(&device, &weighed[models]);
                match needs.iter_mut().find(|(known, _)| *known == device) {
                    Some((_, needed)) => needed.push((&config.name, bytes)),
                    None => needs.push((device, vec![(&config.name, bytes)])),
                }
            }
        }
        for (device, needed) in needs {
            let card = matches!(device, Device::Card(_)).then(|| device.to_string());
            let left = placing::left_on(&*self.cards, &device).map_err(|problem| (None, problem))?;
            memory::check_together(&needed, left, card.as_deref())
                .map_err(|problem| (None, problem.into()))?;
        }
        Ok(())
    }

    /// Where the models of a variant go, by what is left.
    fn place(&self, candidate: &Candidate<'_>, mut devices: Vec<Device>) -> Result<Plan, ModelError> {
        if !self.with_copies && candidate.config.mode == Mode::Warm {
            devices.truncate(1);
        }
        let left = |device: Device| Ok((device.clone(), placing::left_on(&*self.cards, &device)?));
        let devices: Result<Vec<_>, ModelError> = devices.into_iter().map(left).collect();
        let mut plan = candidate
            .place(&devices?, &self.held, self.batch_tokens)
            .map_err(|error| in_member(&candidate.members[0].path, error.into()))?;
        if !self.with_copies && plan.parts == Parts::Copies {
            plan.on.truncate(1);
        }
        Ok(plan)
    }

    /// Loads some models of a variant onto a device.
    fn load_onto(
        &mut self,
        device: &Device,
        config: &VariantConfig,
        (members, plans): (&[Member], &[ModelPlan]),
        dtype: Format,
        progress: &mut dyn FnMut(u64),
    ) -> Result<LoadedFamily, ModelError> {
        let tokens = self.batch_tokens;
        let held = (&mut self.store, self.shelf.as_mut());
        match device {
            Device::Cpu => load_family(config, members, plans, Cpu::new(dtype), tokens, held, progress),
            Device::Card(card) => {
                let form = Cuda::new(placing::opened(&*self.cards, card.index)?, dtype);
                load_family(config, members, plans, form, tokens, held, progress)
            }
        }
    }

    /// The devices that a variant's configuration means here, for such members.
    fn resolve(&self, config: &VariantConfig, members: &[Member]) -> Result<Resolved, ModelError> {
        let on_cpu_alone = members
            .iter()
            .find_map(|member| Some((&member.config.model_type, member.config.backbone.on_cpu_alone()?)));
        match (on_cpu_alone, &config.device) {
            (Some((_, what)), DeviceName::Auto) => {
                let why = format!("{what} can be computed on a CPU alone");
                Ok(Resolved { devices: vec![Device::Cpu], why })
            }
            (Some((model_type, what)), DeviceName::Cuda(_)) => Err(ModelError::Unsupported(format!(
                "{model_type}: {what} cannot be computed on a card: set device = \"cpu\""
            ))),
            _ => Ok(config.device.resolve(&*self.cards).map_err(OpsError::from)?),
        }
    }

    /// Checks everything that can be checked without reading weights: files, configs, tokenizers, shapes, devices. Returns
    /// what it found. The error has all that is wrong, with all members.
    pub fn check(&mut self, config: &VariantConfig) -> Result<Checked, ModelError> {
        let (members, mut problems) = self.checked_members(config);
        let resolved = self.resolve(config, &members).map_err(|problem| problems.push(problem)).ok();
        ModelError::check(problems)?;
        let resolved = resolved.expect("what is not there is a problem");
        Ok(Checked { text_rule: members[0].tokenizer.rule(), resolved })
    }

    /// The tokenizers of the members that can be opened, and where they are from; and all that is wrong.
    pub(super) fn checked_tokenizers(
        &mut self,
        config: &VariantConfig,
    ) -> (Vec<(PathBuf, SampleTokenizer)>, Vec<ModelError>) {
        let (members, problems) = self.checked_members(config);
        (members.into_iter().map(|member| (member.path, member.tokenizer)).collect(), problems)
    }

    fn checked_members(&self, config: &VariantConfig) -> (Vec<Member>, Vec<ModelError>) {
        let (members, mut problems) = open_members(config);
        if problems.is_empty() {
            tell(config, &members);
        }
        if !members.is_empty()
            && let Err(found) = plans(config, &members)
        {
            problems.extend(found);
        }
        (members, problems)
    }
}

/// What a variant is computed in on a device, and why, if that was for us to say.
fn dtype_of(config: &VariantConfig, members: &[Member], device: &Device) -> (Format, Option<String>) {
    if let Some(dtype) = config.dtype.format() {
        return (dtype, None);
    }
    let stored_in_f16 = members.iter().any(|member| {
        let infos = member.checkpoint.names().filter_map(|name| member.checkpoint.info(name));
        infos.filter_map(|info| Format::of(info.dtype)).any(|format| format == Format::F16)
    });
    let (dtype, why) = match device {
        Device::Cpu => Cpu::preferred(stored_in_f16),
        Device::Card(_) => Cuda::preferred(stored_in_f16),
    };
    (dtype, Some(why))
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
            let weighed = placing::weigh(&config, &members, &plans, dtype, &Device::Cpu).unwrap();
            let needed = loader.held.needed(&Device::Cpu, &weighed);
            assert_eq!(loader.held.add(&Device::Cpu, &weighed), needed);
            needed
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
