//! `rewarm merge`: members → one checkpoint, tensor by tensor.
//!
//! ```text
//! members (checkpoints, or adapters over a base) → check → for each tensor: read, compare, average, round once, write
//!                                                            → config, tokenizer, template, provenance → one rename
//! ```
//!
//! Members are compared while they are averaged, so that each is read once; while one tensor is averaged, the next is read
//! and digested and the one before is written. So in memory are three tensors of each member (one of the base), and three
//! averages. Whatever is told at the end is also in [`PROVENANCE`], with every tensor's part of it.

mod config_file;
pub mod greedy;
pub mod report;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::sync_channel;
use std::thread;

use anyhow::Context;
use anyhow::bail;
use safetensors::Dtype;
use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::IGNORED_PREFIXES;
use crate::checkpoint::IGNORED_SUFFIXES;
use crate::checkpoint::ahead::ReadAhead;
use crate::checkpoint::hex;
use crate::checkpoint::write::CheckpointWriter;
use crate::checkpoint::write::TensorSpec;
use crate::checkpoint::write::check_target;
use crate::disk;
use crate::merge;
use crate::merge::experts::misplaced;
use crate::merge::kinship::Kinship;
use crate::merge::kinship::kinship;
use crate::merge::likeness::Likeness;
use crate::model::ModelError;
use crate::model::compatible;
use crate::model::config::CheckpointConfig;
use crate::model::layout;
use crate::model::manifest::Manifest;
use crate::model::plan::ModelPlan;
use crate::model::plan::Part;
use crate::model::variant;
use crate::offline::merge::greedy::Greedy;
use crate::offline::merge::report::LikenessTotals;
use crate::offline::merge::report::MemberReport;
use crate::offline::merge::report::Report;
use crate::offline::merge::report::Rounding;
use crate::text::SampleTokenizer;
use crate::text::TextEnd;
use crate::text::compare;
use crate::values::Format;
use crate::values::Values;

/// The file beside the weights that says what they were made from.
pub const PROVENANCE: &str = "rewarm-merge.json";

/// Keys of `rewarm.json` that say how a model scores. Others are about one member's own weights: its calibration and
/// rewards are not those of the merge.
const KEPT_MANIFEST_KEYS: [&str; 7] =
    ["pooling", "pad_token_id", "text_rule", "text_end", "max_tokens", "label", "label_weights"];

/// What is merged, and into what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Checkpoint directories, or adapters over `base`; at least one.
    pub members: Vec<PathBuf>,
    /// What adapters were trained on, and what task vectors are measured from.
    pub base: Option<PathBuf>,
    /// One per member, summing to 1 (checked by the caller); equal when absent.
    pub coefficients: Option<Vec<f64>>,
    /// Absent: the widest that the members are stored in.
    pub dtype: Option<Format>,
    /// Where the merged checkpoint appears.
    pub output: PathBuf,
    /// A larger one is cut into files of at most this size.
    pub max_shard_bytes: u64,
}

/// Members that were checked and can be merged.
pub struct Merge {
    options: Options,
    members: Vec<Member>,
    base: Option<Checkpoint>,
    plan: ModelPlan,
    tensors: Tensors,
    warnings: Vec<String>,
}

struct Member {
    path: PathBuf,
    checkpoint: Checkpoint,
    manifest: Manifest,
    config: CheckpointConfig,
}

/// What becomes of the members' tensors.
#[derive(Debug, Default)]
struct Tensors {
    averaged: Vec<String>,
    /// Constants and tensors of whole numbers: the first member's.
    copied: Vec<String>,
    /// A language model's head, where an adapter made a reward model of its base.
    left_out: Vec<String>,
}

impl Merge {
    /// Opens members and checks all that can be checked without reading all their weights. Fails, by name, where they
    /// cannot be averaged, or where something is at the output already.
    pub fn open(options: Options) -> anyhow::Result<Self> {
        check_target(&options.output)?;
        let base = options.base.as_deref();
        let members = options
            .members
            .iter()
            .map(|path| Member::open(path, base))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let refused = members[1..]
            .iter()
            .filter_map(|member| compatible::check_member(&members[0].part(), &member.part()).err());
        ModelError::check(refused.collect())?;
        let first = &members[0];
        let plan = checked_plan(first).with_context(|| format!("check {}", first.path.display()))?;
        let base = base.map(Checkpoint::open).transpose().context("open the base")?;
        let tensors = Tensors::sort(&members, &plan);
        let texts = check_texts(&members)?;
        let mut warnings = warnings(&members, &texts, &tensors)?;
        let checkpoints: Vec<_> = members.iter().map(|member| &member.checkpoint).collect();
        for finding in misplaced(&checkpoints, &plan.expert_tensors())? {
            warnings.push(told(&members, finding));
        }
        Ok(Self { options, members, base, plan, tensors, warnings })
    }

    /// What is odd about the members, in words.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Averages and writes. `progress` is told (bytes read, bytes in all) after each tensor, and answers whether to go
    /// on: if not, or if anything fails, nothing is left at the output.
    pub fn write(
        mut self,
        greedy: Option<Greedy>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> anyhow::Result<Report> {
        let dtype = self.options.dtype.unwrap_or_else(|| widest(&self.members));
        let share = 1.0 / self.members.len() as f64;
        let coefficients =
            self.options.coefficients.clone().unwrap_or_else(|| vec![share; self.members.len()]);
        let specs = self.specs(dtype);
        let bytes = specs.iter().map(TensorSpec::bytes).sum();
        let mut writer = CheckpointWriter::create(&self.options.output, specs, self.options.max_shard_bytes)?;
        let averaged = self.average(&coefficients, dtype, &mut writer, progress)?;

        let first = &self.members[0];
        writer.add_json(
            "config.json",
            &config_file::merged(&first.checkpoint, &first.config, self.plan.head.kind, dtype)?,
        )?;
        writer.copy_text_files(first.checkpoint.text_dir())?;
        if let Some(manifest) = merged_manifest(first)? {
            writer.add_json("rewarm.json", &manifest)?;
        }
        let rounding = Rounding::new(&averaged, &coefficients, self.base.is_some(), dtype.name());
        self.warnings.extend(rounding.warning());
        let members = self
            .members
            .iter()
            .zip(&coefficients)
            .map(|(member, coefficient)| member.report(*coefficient, &self.plan))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let report = Report {
            rewarm_version: env!("CARGO_PKG_VERSION"),
            output: self.options.output.clone(),
            members,
            base: self.options.base.clone(),
            dtype: dtype.name(),
            dtype_was_chosen: self.options.dtype.is_none(),
            stored: stored_formats(&self.members)
                .into_iter()
                .map(|format| format!("{:?}", Dtype::from(format)))
                .collect(),
            averaged: self.tensors.averaged.len(),
            copied: std::mem::take(&mut self.tensors.copied),
            left_out: std::mem::take(&mut self.tensors.left_out),
            bytes,
            warnings: self.warnings,
            greedy,
            totals: LikenessTotals::new(&averaged, &coefficients, self.base.is_some()),
            rounding,
            matrices: averaged.matrices,
        };
        writer.add_json(PROVENANCE, &serde_json::to_value(&report)?)?;
        writer.finish()?;
        Ok(report)
    }

    fn specs(&self, dtype: Format) -> Vec<TensorSpec> {
        let first = &self.members[0].checkpoint;
        let spec = |name: &String| {
            let info = first.info(name).expect("the names are the checkpoint's");
            let dtype = if self.tensors.copied.contains(name) { info.dtype } else { dtype.into() };
            TensorSpec { name: name.clone(), dtype, shape: info.shape.clone() }
        };
        self.tensors.averaged.iter().chain(&self.tensors.copied).map(spec).collect()
    }

    /// Reads, compares, averages and writes one tensor after the other: the next is read while one is averaged, and
    /// written while another is.
    fn average(
        &self,
        coefficients: &[f64],
        dtype: Format,
        writer: &mut CheckpointWriter,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> anyhow::Result<Averages> {
        let first = &self.members[0].checkpoint;
        let checkpoints = self.members.iter().map(|member| &member.checkpoint);
        let sources: Vec<(&Checkpoint, f64)> = checkpoints.zip(coefficients.iter().copied()).collect();
        let mut averages = Averages::new(sources.len());
        thread::scope(|scope| {
            let ahead = ReadAhead::start(scope, &sources, self.tensors.averaged.clone(), None);
            let (sender, averaged) = sync_channel::<(&String, Values)>(1);
            let to_write = &mut *writer;
            let writing = scope.spawn(move || {
                averaged.into_iter().try_for_each(|(name, average)| {
                    to_write.write(name, &average)?;
                    first.give_back(average);
                    Ok::<_, CheckpointError>(())
                })
            });
            let outcome = self.average_read(&sources, dtype, ahead, &mut averages, sender, progress);
            // what could not be written is why nothing more was averaged
            writing.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            outcome
        })?;
        for name in &self.tensors.copied {
            let tensor = first.read(name)?;
            writer.write_bytes(name, tensor.dtype, tensor.values.bytes())?;
        }
        Ok(averages)
    }

    /// Compares and averages what was read, and hands it on, until nobody takes it any more.
    fn average_read<'m>(
        &'m self,
        sources: &'m [(&'m Checkpoint, f64)],
        dtype: Format,
        mut ahead: ReadAhead<'m>,
        averages: &mut Averages,
        to_write: SyncSender<(&'m String, Values)>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> anyhow::Result<()> {
        let first = sources[0].0;
        let total = sources.iter().map(|(checkpoint, _)| checkpoint.payload_bytes()).sum();
        let mut read = 0;
        for name in &self.tensors.averaged {
            let tensors = ahead.take(name).expect("read in this order, until one cannot be read");
            let tensors = tensors.with_context(|| format!("read `{name}`"))?;
            let shape = tensors[0].0.shape;
            let base = self.base.as_ref().and_then(|base| Some((base, counterpart(base, name, shape)?)));
            let base_values = base.map(|(base, name)| base.read(name)).transpose()?;

            let digests = sources
                .iter()
                .map(|(checkpoint, _)| checkpoint.digest(name))
                .collect::<Result<Vec<_>, _>>()?;
            // as at load: the average of equal tensors is that tensor, exactly
            let shares: Vec<f64> = match digests.iter().all(|digest| *digest == digests[0]) {
                true => vec![1.0],
                false => sources.iter().map(|(_, coefficient)| *coefficient).collect(),
            };
            let reference = base_values.as_ref().map(|base| &base.values);
            let room = |dtype, size| first.room(dtype, size);
            let compared = merge::compare_and_average(name, &tensors, &shares, reference, dtype, room);
            let compared =
                compared.with_context(|| match merge::source_at_fault(&tensors[..shares.len()]) {
                    Some(member) => format!("read member {member} ({})", self.members[member].path.display()),
                    None => format!("average `{name}`"),
                })?;
            averages.squared_rounding_error += compared.squared_rounding_error;
            averages.add(name, shape, compared.likeness, base_values.is_some(), is_of_head(&self.plan, name));
            if to_write.send((name, compared.average)).is_err() {
                return Ok(()); // told by the writer
            }

            for ((tensor, _), (checkpoint, _)) in tensors.into_iter().zip(sources) {
                checkpoint.give_back(tensor.values);
            }
            if let (Some(values), Some((base, _))) = (base_values, base) {
                base.give_back(values.values);
            }
            let sizes = sources.iter().filter_map(|(checkpoint, _)| checkpoint.info(name));
            read += sizes.map(|info| (info.data_offsets.1 - info.data_offsets.0) as u64).sum::<u64>();
            if !progress(read, total) {
                bail!("interrupted: nothing was written to {}", self.options.output.display());
            }
        }
        Ok(())
    }
}

impl Member {
    fn open(path: &Path, base: Option<&Path>) -> anyhow::Result<Self> {
        let (checkpoint, manifest, config) =
            variant::open_files(path, base).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { path: path.to_owned(), checkpoint, manifest, config })
    }

    fn part(&self) -> compatible::Candidate<'_> {
        let Self { path, checkpoint, manifest, config } = self;
        compatible::Candidate { path, checkpoint, manifest, config }
    }

    fn report(&self, coefficient: f64, plan: &ModelPlan) -> anyhow::Result<MemberReport> {
        let used: BTreeSet<&String> = plan.tensors.iter().map(|tensor| &tensor.name).collect();
        let digest = self.checkpoint.digest_of(used)?;
        Ok(MemberReport {
            path: self.path.clone(),
            is_adapter: self.checkpoint.base().is_some(),
            coefficient,
            digest: hex(&digest),
        })
    }
}

fn checked_plan(member: &Member) -> Result<ModelPlan, ModelError> {
    let plan = layout::plan(&member.checkpoint, &member.config)?;
    layout::check(&plan, [&member.checkpoint])?;
    Ok(plan)
}

fn is_of_head(plan: &ModelPlan, name: &str) -> bool {
    let found = plan.tensors.iter().find(|tensor| tensor.name == name);
    found.is_some_and(|tensor| matches!(tensor.part, Part::Dense | Part::Output))
}

impl Tensors {
    fn sort(members: &[Member], plan: &ModelPlan) -> Self {
        let mut sorted = Self::default();
        // the config will say that it is a reward model, in which transformers does not expect the other head
        let is_converted =
            config_file::is_converted(&members[0].checkpoint, &members[0].config, plan.head.kind);
        for name in members[0].checkpoint.names() {
            let is_used = plan.tensors.iter().any(|tensor| tensor.name == name);
            let is_number = |member: &Member| {
                member.checkpoint.info(name).is_some_and(|info| Format::of(info.dtype).is_some())
            };
            let is_constant = IGNORED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
            let into = if is_converted && IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                &mut sorted.left_out
            } else if !is_used && (is_constant || !members.iter().all(is_number)) {
                &mut sorted.copied
            } else {
                &mut sorted.averaged
            };
            into.push(name.to_owned());
        }
        sorted
    }
}

/// What was found while tensors were averaged.
#[derive(Debug)]
pub(super) struct Averages {
    /// Of all tensors.
    all: Likeness,
    /// Of those that the base has too.
    in_base: Likeness,
    /// Of 2-D tensors.
    two_dimensional: Likeness,
    head: Likeness,
    matrices: BTreeMap<String, Vec<report::Pair>>,
    /// Averaged tensors that the base lacks.
    not_in_base: usize,
    squared_rounding_error: f64,
    num_members: usize,
}

impl Averages {
    fn new(num_members: usize) -> Self {
        let nothing = || Likeness::of_nothing(num_members);
        Self {
            all: nothing(),
            in_base: nothing(),
            two_dimensional: nothing(),
            head: nothing(),
            matrices: BTreeMap::new(),
            not_in_base: 0,
            squared_rounding_error: 0.0,
            num_members,
        }
    }

    fn add(&mut self, name: &str, shape: &[usize], likeness: Likeness, is_in_base: bool, is_head: bool) {
        self.all.add(&likeness);
        match is_in_base {
            true => self.in_base.add(&likeness),
            false => self.not_in_base += 1,
        }
        if is_head {
            self.head.add(&likeness);
        }
        if shape.len() == 2 {
            self.two_dimensional.add(&likeness);
            self.matrices.insert(name.to_owned(), report::pairs(&likeness, self.num_members));
        }
    }
}

/// The tensor of the base that a member's was trained from; one of the two may have been saved without its head, and then
/// its names lack their first part.
fn counterpart<'b>(base: &'b Checkpoint, name: &str, shape: &[usize]) -> Option<&'b str> {
    let is_alike = |other: &&str| {
        let ends = |long: &str, short: &str| {
            long.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        (ends(name, other) || ends(other, name)) && base.info(other).is_some_and(|info| info.shape == shape)
    };
    let mut alike = base.names().filter(is_alike);
    if base.info(name).is_some_and(|info| info.shape == shape) {
        return base.names().find(|other| *other == name);
    }
    alike.next().filter(|_| alike.next().is_none())
}

fn stored_formats(members: &[Member]) -> Vec<Format> {
    let mut formats = Vec::new();
    for member in members {
        let infos = member.checkpoint.names().filter_map(|name| member.checkpoint.info(name));
        for format in infos.filter_map(|info| Format::of(info.dtype)) {
            if !formats.contains(&format) {
                formats.push(format);
            }
        }
    }
    formats
}

/// What holds the values of all members: f16 and bf16 only hold their own.
fn widest(members: &[Member]) -> Format {
    match stored_formats(members).as_slice() {
        [format @ (Format::F16 | Format::Bf16)] => *format,
        _ => Format::F32,
    }
}

/// In what each member's texts differ from the first one's where they make the same tokens; `None` of one without a tokenizer.
/// Refuses members that make other tokens.
fn check_texts(members: &[Member]) -> anyhow::Result<Vec<Option<Vec<String>>>> {
    let first = tokenizer(&members[0])?;
    let mut differences = vec![first.as_ref().map(|_| Vec::new())];
    for member in &members[1..] {
        // two at a time: of a large vocabulary each takes some hundred megabytes
        let own = tokenizer(member)?;
        differences.push(match (&first, &own) {
            (Some(first), Some(own)) => {
                compatible::check_tokens((&members[0].path, first), (&member.path, own))?;
                Some(compare::differences(first, own)?)
            }
            _ => own.map(|_| Vec::new()),
        });
    }
    Ok(differences)
}

/// What is odd about members that can be merged; `texts` tells in what their texts differ.
fn warnings(
    members: &[Member],
    texts: &[Option<Vec<String>>],
    tensors: &Tensors,
) -> anyhow::Result<Vec<String>> {
    let first = &members[0];
    let mut warnings = Vec::new();
    if texts[0].is_none() {
        warnings
            .push(format!("{} has no tokenizer: the merge will score token ids only", first.path.display()));
    }
    for (index, member) in members.iter().enumerate().skip(1) {
        let mut warn =
            |what: String| warnings.push(format!("member {index} ({}) {what}", member.path.display()));
        let manifest = |member: &Member| (member.manifest.text_rule, member.manifest.max_tokens);
        match &texts[index] {
            Some(differences) if texts[0].is_some() => {
                for difference in differences {
                    warn(format!("differs in its texts from member 0, whose are used: {difference}"));
                }
            }
            Some(_) => warn("has a tokenizer, and member 0 has none".to_owned()),
            None if texts[0].is_some() => warn("has no tokenizer: that of member 0 is used".to_owned()),
            None if manifest(member) != manifest(first) => {
                warn("has another `text_rule` or `max_tokens` than member 0, whose is used".to_owned());
            }
            None => {}
        }
        if !compatible::are_stored_alike(&first.checkpoint, &member.checkpoint) {
            warn(
                "is stored in another precision than member 0: the merge is as exact as the coarser one"
                    .to_owned(),
            );
        }
        if member.manifest.calibration != first.manifest.calibration {
            warn("has another calibration than member 0: the merge has none, calibrate it".to_owned());
        }
        for name in &tensors.copied {
            if first.checkpoint.digest(name)? != member.checkpoint.digest(name)? {
                warn(format!(
                    "differs from member 0 in `{name}`, which is copied from member 0 and not averaged"
                ));
            }
        }
    }
    let checkpoints: Vec<_> = members.iter().map(|member| &member.checkpoint).collect();
    for kinship in kinship(&checkpoints)? {
        warnings.push(told(members, kinship));
    }
    Ok(warnings)
}

fn told(members: &[Member], Kinship { member, finding }: Kinship) -> String {
    format!("member {member} ({}) {finding}", members[member].path.display())
}

/// What of a member's manifest is true of the merge, and what only the files of its trainer tell, which are not copied;
/// `None` if nothing.
fn merged_manifest(first: &Member) -> anyhow::Result<Option<Value>> {
    let mut fields = Map::new();
    for dir in first.checkpoint.base().into_iter().chain([first.path.as_path()]) {
        let path = dir.join("rewarm.json");
        let read = disk::read_if_there(&path, disk::SETTINGS_BYTES);
        if let Some(text) = read.with_context(|| format!("read {}", path.display()))? {
            let own: Map<String, Value> =
                serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
            fields.extend(own); // an adapter's before its base's
        }
    }
    fields.retain(|key, _| KEPT_MANIFEST_KEYS.contains(&key.as_str()));
    if let Some(tokenizer) = tokenizer(first)?
        && tokenizer.end() == TextEnd::Eos
    // OpenRLHF's is known by the head, which stays
    {
        fields.insert("text_end".to_owned(), serde_json::to_value(tokenizer.end())?);
        fields.insert("text_rule".to_owned(), serde_json::to_value(tokenizer.rule())?);
    }
    Ok((!fields.is_empty()).then_some(Value::Object(fields)))
}

/// A member's, if it has one.
fn tokenizer(member: &Member) -> anyhow::Result<Option<SampleTokenizer>> {
    let has_tokenizer = member.checkpoint.text_dir().join("tokenizer.json").is_file();
    let load = || variant::load_tokenizer(&member.checkpoint, &member.manifest, &member.config, None);
    Ok(has_tokenizer.then(load).transpose()?)
}
