//! The models of a variant: which members each is made from, and how it is loaded.

use std::sync::Arc;
use std::thread;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::Digest;
use crate::checkpoint::ahead::ReadAhead;
use crate::model::ModelError;
use crate::model::RewardModel;
use crate::model::ensemble::Ensemble;
use crate::model::layout;
use crate::model::plan::ModelPlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::scorer::Members;
use crate::model::scorer::Spread;
use crate::model::shelf::Shelf;
use crate::model::variant::config::Mode;
use crate::model::variant::config::VariantConfig;
use crate::model::variant::members::Member;
use crate::model::variant::members::in_member;
use crate::model::weights::OnShelf;
use crate::model::weights::TensorStore;
use crate::model::weights::Weights;
use crate::ops::Ops;
use crate::ops::Precision;

/// What is made of the members' weights, whatever form of the operations runs them.
pub(super) struct LoadedFamily {
    pub(super) family: Box<dyn Members>,
    /// Of each model.
    pub(super) heads: Vec<(HeadKind, Pooling)>,
    /// Of each member.
    pub(super) digests: Vec<Digest>,
}

impl LoadedFamily {
    /// Of families with some members each, in their order.
    pub(super) fn spread(families: Vec<Self>) -> Self {
        let (mut parts, mut heads, mut digests) = (Vec::new(), Vec::new(), Vec::new());
        for family in families {
            parts.push(family.family);
            heads.extend(family.heads);
            digests.extend(family.digests);
        }
        Self { family: Box::new(Spread::new(parts)), heads, digests }
    }
}

/// Of a variant with a shelf: one that finds a file damaged, one that writes it anew, one that maps it.
const MOST_LOADS: usize = 3;

/// Reads the weights, builds what the mode makes of them, and makes sure of what batches of so many tokens take.
pub(super) fn load_family<O: Ops>(
    config: &VariantConfig,
    members: &[Member],
    plans: &[ModelPlan],
    ops: O,
    batch_tokens: usize,
    (store, mut shelf): (&mut TensorStore, Option<&mut Shelf>),
    progress: &mut dyn FnMut(u64),
) -> Result<LoadedFamily, ModelError> {
    let ops = Arc::new(ops);
    let layout = shelf.as_ref().and_then(|_| ops.layout());
    let mut load = |store: &mut TensorStore, shelf: Option<&mut Shelf>| {
        let shelf = shelf.zip(layout.as_deref());
        load_models(config, members, plans, &ops, (store, shelf), &mut *progress)
    };
    let mut models = load(store, shelf.as_deref_mut())?;
    for _ in 1..MOST_LOADS {
        // what was packed is in a file now: in memory of our own it would be there twice
        if !shelf.as_deref_mut().is_some_and(|shelf| shelf.was_damaged() || shelf.finish()) {
            break;
        }
        drop(models);
        store.drop_unused();
        models = load(store, shelf.as_deref_mut())?;
    }
    let heads = models.iter().map(|loaded| (loaded.head, loaded.model.head().pooling())).collect();
    let digests = models.iter().flat_map(|loaded| loaded.digests.iter().copied()).collect();
    let family = Ensemble::new(ops, models.into_iter().map(|loaded| loaded.model).collect());
    let longest = members.iter().map(|member| member.tokenizer.max_tokens()).max().unwrap_or(batch_tokens);
    family.reserve(batch_tokens, longest)?;
    let (layers, of_members) = family.count_layers();
    if layers < of_members {
        tracing::info!(variant = config.name, layers, of_members, "members share layers");
    }
    Ok(LoadedFamily { family: Box::new(family), heads, digests })
}

/// A model, whose head it has, and the digests of the members it was made from.
struct LoadedModel<O: Ops> {
    model: RewardModel<O>,
    head: HeadKind,
    digests: Vec<Digest>,
}

/// The models of a variant.
fn load_models<O: Ops>(
    config: &VariantConfig,
    members: &[Member],
    plans: &[ModelPlan],
    ops: &Arc<O>,
    (store, mut shelf): (&mut TensorStore, Option<(&mut Shelf, &str)>),
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<LoadedModel<O>>, ModelError> {
    let sources = sources(config, members);
    let groups = groups(config, &sources);
    let mut models = Vec::with_capacity(groups.len());
    for ((group, plan), member) in groups.into_iter().zip(plans).zip(members) {
        let mut load = || {
            let shelf = shelf.as_mut().map(|(shelf, layout)| OnShelf { shelf, layout });
            // what is packed already is not read, where it is known what it is made of
            let to_read = match &shelf {
                Some(on) if !on.shelf.is_empty() => unknown(plan, group),
                _ => unread(plan, group),
            };
            let weights = Weights::new(plan, group, ops, Some(store), progress).from_shelf(shelf);
            thread::scope(|scope| {
                let ahead = ReadAhead::start(scope, group, to_read, Some(ops.format(Precision::Working)));
                let mut weights = weights.reading_ahead(Some(ahead));
                let model = RewardModel::load(&mut weights, plan, &member.config)?;
                Ok(LoadedModel { model, head: plan.head.kind, digests: weights.finish()? })
            })
        };
        models.push(load().map_err(|source| in_member(&member.path, source))?);
    }
    Ok(models)
}

/// What each member has, and its share.
pub(super) fn sources<'m>(config: &VariantConfig, members: &'m [Member]) -> Vec<(&'m Checkpoint, f64)> {
    members.iter().map(|member| &member.checkpoint).zip(config.coefficients()).collect()
}

/// What each model is made from.
pub(super) fn groups<'s, 'm>(
    config: &VariantConfig,
    sources: &'s [(&'m Checkpoint, f64)],
) -> Vec<&'s [(&'m Checkpoint, f64)]> {
    match config.mode {
        Mode::Warm => vec![sources],
        Mode::Ens => sources.chunks(1).collect(),
    }
}

/// The plans of a variant's models; the errors are all that can be found without reading weights, of each member.
pub(super) fn plans(config: &VariantConfig, members: &[Member]) -> Result<Vec<ModelPlan>, Vec<ModelError>> {
    let groups: Vec<&[Member]> = match config.mode {
        Mode::Warm => vec![members],
        Mode::Ens => members.chunks(1).collect(),
    };
    let (mut plans, mut problems) = (Vec::new(), Vec::new());
    for group in groups {
        let first = &group[0];
        let plan = layout::plan(&first.checkpoint, &first.config).and_then(|plan| {
            first.config.pooling(&plan.head)?;
            Ok(plan)
        });
        match plan {
            Ok(plan) => {
                let check = |member: &Member| {
                    let checked = layout::check(&plan, [&member.checkpoint]);
                    checked.err().map(|source| in_member(&member.path, source))
                };
                problems.extend(group.iter().filter_map(check));
                plans.push(plan);
            }
            Err(source) => problems.push(in_member(&first.path, source)),
        }
    }
    if problems.is_empty() { Ok(plans) } else { Err(problems) }
}

/// The tensors of a plan that were not read yet, in the order in which they are loaded.
pub(super) fn unread(plan: &ModelPlan, members: &[(&Checkpoint, f64)]) -> Vec<String> {
    without(plan, members, Checkpoint::read_digest)
}

/// Those of them whose digests are not known.
fn unknown(plan: &ModelPlan, members: &[(&Checkpoint, f64)]) -> Vec<String> {
    without(plan, members, Checkpoint::known_digest)
}

fn without(
    plan: &ModelPlan,
    members: &[(&Checkpoint, f64)],
    digest: impl Fn(&Checkpoint, &str) -> Option<Digest>,
) -> Vec<String> {
    let has_digest = |name: &str| members.iter().all(|(checkpoint, _)| digest(checkpoint, name).is_some());
    let names = plan.tensors.iter().map(|tensor| &tensor.name);
    names.filter(|name| !has_digest(name)).cloned().collect()
}
