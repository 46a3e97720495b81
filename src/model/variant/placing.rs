//! Onto which devices the models of a variant go, by what their weights take and what is left there.
//!
//! On a list of cards, a variant that fits one of them has a copy on each. If it does not, the members of an ensemble are
//! spread over them, as many on each as on the next.
//!
//! What is refused is what cannot fit: weights alone. Memory for activations is made sure of when they are loaded.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use rewarm_cuda::device::Device as Opened;

use crate::checkpoint::Digest;
use crate::model::ModelError;
use crate::model::device::Cards;
use crate::model::device::Device;
use crate::model::device::Parts;
use crate::model::memory;
use crate::model::memory::TooLarge;
use crate::model::plan::ModelPlan;
use crate::model::variant::config::Mode;
use crate::model::variant::config::VariantConfig;
use crate::model::variant::members::Member;
use crate::model::variant::models::groups;
use crate::model::variant::models::sources;
use crate::model::variant::models::unread;
use crate::ops::error::OpsError;
use crate::values::Format;

/// A tensor that a device keeps, by what is in it, and its bytes there.
pub(super) type Weighed = (Digest, u64);

/// What each model of a variant keeps on a device of some kind: a tensor that several have is one. It is known by a few of
/// its values, so that never more is counted than will be kept.
pub(super) fn weigh(
    config: &VariantConfig,
    members: &[Member],
    plans: &[ModelPlan],
    dtype: Format,
    device: &Device,
) -> Result<Vec<Vec<Weighed>>, ModelError> {
    const SAMPLE: usize = 64;
    let width = match (device, dtype) {
        (_, Format::Bf16) | (Device::Card(_), Format::F16) => 2,
        _ => 4, // a CPU widens f16 when it is loaded
    };
    let sources = sources(config, members);
    let weigh = |(group, plan): (&[(&_, f64)], &ModelPlan)| {
        let mut weighed = Vec::new();
        for name in unread(plan, group) {
            let mut identity = blake3::Hasher::new();
            identity.update(dtype.name().as_bytes());
            for (checkpoint, coefficient) in group {
                let checkpoint: &crate::checkpoint::Checkpoint = checkpoint;
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
            let shape = group[0].0.info(&name).map(|info| info.shape.as_slice());
            let count = shape.unwrap_or_default().iter().product::<usize>() as u64;
            weighed.push((*identity.finalize().as_bytes(), count * width));
        }
        Ok(weighed)
    };
    groups(config, &sources).into_iter().zip(plans).map(weigh).collect()
}

/// What devices hold already, or will.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(HashSet<(String, Digest)>);

impl Held {
    /// Adds what some models keep on a device, and returns the bytes that this takes.
    pub(super) fn add(&mut self, device: &Device, models: &[Vec<Weighed>]) -> u64 {
        let name = device.name();
        let new = models.iter().flatten().filter(|(digest, _)| self.0.insert((name.clone(), *digest)));
        new.map(|(_, bytes)| bytes).sum()
    }

    /// The bytes that this would take.
    pub(super) fn needed(&self, device: &Device, models: &[Vec<Weighed>]) -> u64 {
        let (name, mut seen) = (device.name(), HashSet::new());
        let is_new = |digest: &Digest| !self.0.contains(&(name.clone(), *digest));
        let new = models.iter().flatten().filter(|(digest, _)| is_new(digest) && seen.insert(*digest));
        new.map(|(_, bytes)| bytes).sum()
    }
}

/// Where the models of a variant go.
pub(super) struct Plan {
    pub(super) parts: Parts,
    /// Each device with the models that it gets.
    pub(super) on: Vec<(Device, Range<usize>)>,
}

/// Bytes that are left of a device, where somebody tells.
pub(super) fn left_on(cards: &dyn Cards, device: &Device) -> Result<Option<u64>, ModelError> {
    match device {
        Device::Cpu => Ok(memory::left()),
        Device::Card(card) => {
            let free = cards.open(card.index).and_then(|opened| opened.free()).map_err(OpsError::from)?;
            Ok(Some(free))
        }
    }
}

/// A variant that looks for its place.
pub(super) struct Candidate<'a> {
    pub(super) config: &'a VariantConfig,
    pub(super) members: &'a [Member],
    pub(super) plans: &'a [ModelPlan],
    pub(super) dtype: Format,
    /// What each of its models keeps.
    pub(super) weighed: Vec<Vec<Weighed>>,
}

impl Candidate<'_> {
    /// Room for the activations of batches of so many tokens: about what a forward takes, to decide between a copy and a
    /// share.
    fn activations(&self, batch_tokens: usize) -> u64 {
        let widest = |(plan, member): (&ModelPlan, &Member)| {
            let shapes = plan.tensors.iter().filter_map(|tensor| member.checkpoint.info(&tensor.name));
            let inside = shapes.filter(|info| info.shape.len() == 2).map(|info| {
                let (outputs, inputs) = (info.shape[0], info.shape[1]);
                // a vocabulary is looked up, not computed
                if outputs > 8 * inputs { inputs } else { outputs.max(inputs) }
            });
            inside.max().unwrap_or(0)
        };
        let widest = self.plans.iter().zip(self.members).map(widest).max().unwrap_or(0);
        // what a batch is made of, which is there twice while the next one is sent ahead
        let sections = 64 * batch_tokens + (8 << 10);
        // of the widest rows a few are held at once, in two bytes or four
        (16 * widest * batch_tokens + sections) as u64
    }

    /// Refuses what does not fit on a device with so many bytes left.
    fn check(
        &self,
        device: &Device,
        left: Option<u64>,
        models: Range<usize>,
        held: &Held,
    ) -> Result<(), TooLarge> {
        let needed = held.needed(device, &self.weighed[models.clone()]);
        let card = matches!(device, Device::Card(_)).then(|| device.to_string());
        memory::check(needed, left, models.len(), self.dtype.name(), card.as_deref())
    }

    /// Decides for devices, on each of which so many bytes are left. Fails with what does not fit where.
    pub(super) fn place(
        &self,
        devices: &[(Device, Option<u64>)],
        held: &Held,
        batch_tokens: usize,
    ) -> Result<Plan, TooLarge> {
        let all = 0..self.weighed.len();
        let room = self.activations(batch_tokens);
        let has_room = |(device, left): &(Device, Option<u64>)| {
            left.is_none_or(|left| held.needed(device, &self.weighed) + room <= left)
        };
        let can_be_spread = devices.len() > 1 && all.len() > 1 && self.config.mode == Mode::Ens;
        let (parts, count) = match can_be_spread && !devices.iter().all(has_room) {
            false => (Parts::Copies, devices.len()),
            true => (Parts::Members, devices.len().min(all.len())),
        };
        let share = |index: usize| match parts {
            Parts::Copies => all.clone(),
            Parts::Members => index * all.len() / count..(index + 1) * all.len() / count,
        };
        let mut on = Vec::new();
        for (index, (device, left)) in devices.iter().take(count).enumerate() {
            self.check(device, *left, share(index), held)?;
            on.push((device.clone(), share(index)));
        }
        Ok(Plan { parts, on })
    }
}

/// The card of a device.
pub(super) fn opened(cards: &dyn Cards, index: usize) -> Result<Arc<Opened>, ModelError> {
    Ok(cards.open(index).map_err(OpsError::from)?)
}
