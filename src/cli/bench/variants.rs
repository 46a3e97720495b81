//! Which models `rewarm bench` measures: from flags to checked variants.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use tempfile::TempDir;

use crate::bench::shape;
use crate::bench::shape::Shape;
use crate::cli::bench::between;
use crate::cli::fetch::Fetcher;
use crate::cli::load;
use crate::cli::progress;
use crate::config;
use crate::config::Overrides;
use crate::config::VariantOptions;
use crate::engine;
use crate::model::device::DeviceName;
use crate::model::dtype::Dtype;
use crate::model::variant::Loader;
use crate::model::variant::Mode;
use crate::model::variant::Variant;
use crate::model::variant::VariantConfig;
use crate::service;
use crate::service::Ports;

/// More members than this of a random shape only fill the disk.
const MAX_MEMBERS: usize = 64;

#[derive(Debug, Args)]
pub(super) struct VariantArgs {
    /// Checkpoints, each a variant of its own: Hugging Face directories, or models of the hub.
    #[arg(long, value_name = "DIR,DIR", value_delimiter = ',', group = "source")]
    model: Option<Vec<String>>,
    /// Checkpoints of one family, together: merged (WARM) beside an ensemble (ENS), or what --mode says.
    #[arg(long, value_name = "DIR,DIR", value_delimiter = ',', group = "source")]
    members: Option<Vec<String>>,
    /// A model of a known shape with random weights, in a temporary directory.
    #[arg(long, group = "source")]
    shape: Option<Shape>,
    /// The variants of a configuration, as `rewarm serve` reads it.
    #[arg(long, value_name = "FILE", group = "source")]
    config: Option<PathBuf>,
    /// With --shape: so many members, as with --members.
    #[arg(long, value_name = "N", requires = "shape", value_parser = between(1, MAX_MEMBERS))]
    num_members: Option<usize>,
    /// What becomes of members [default: both].
    #[arg(long, conflicts_with_all = ["model", "config"])]
    mode: Option<Mode>,
    /// What to compute in; several are measured beside each other [default: f32].
    #[arg(long, value_name = "DTYPE,DTYPE", value_delimiter = ',', conflicts_with = "config")]
    dtype: Option<Vec<Dtype>>,
    /// auto, cpu, cuda, cuda:N, or several cards with commas; auto is the first card that can, else the CPU [default: auto].
    #[arg(long, conflicts_with = "config", value_name = "DEVICE")]
    device: Option<DeviceName>,
    /// Only these of the variants [default: all].
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    pub(super) variant: Vec<String>,
}

/// What was asked for, checked.
pub(super) struct Chosen {
    /// The variants, and how a server in this process serves them: on free ports of loopback.
    pub(super) service: service::Config,
    /// Holds the checkpoints of a random shape; they are removed with it.
    pub(super) folder: Option<TempDir>,
}

impl VariantArgs {
    /// Checks what can be checked without reading weights, fetches models of a hub, and writes the checkpoints of a random shape.
    pub(super) fn choose(&self) -> anyhow::Result<Chosen> {
        if self.mode.is_some() && self.members.is_none() && self.shape.is_none() {
            bail!("--mode says what becomes of --members or of --shape: give one of them");
        }
        let mut folder = None;
        let mut service = match (&self.model, &self.members, self.shape) {
            (Some(models), _, _) => service_of(self.in_each_dtype(self.each_model(models)?)?),
            (_, Some(members), _) => service_of(self.in_each_dtype(self.ways(members, "")?)?),
            (_, _, Some(shape)) => {
                let dir = folder.insert(tempfile::tempdir().context("create a temporary directory")?);
                let members = write_shape(shape, self.num_members.unwrap_or(1), dir.path())?;
                service_of(self.in_each_dtype(self.ways(&members, shape.name())?)?)
            }
            (None, None, None) => self.configured()?,
        };
        service.ports = Ports::any();
        (service.drain_grace, service.drain_limit) = (Duration::ZERO, Duration::ZERO);
        keep(&mut service.models.variants, &self.variant)?;
        let mut fetcher = Fetcher::default();
        for variant in &mut service.models.variants {
            *variant = fetcher.variant(variant)?;
        }
        // Each request names its variant: routing only has to be valid.
        let names = service.models.variants.iter().map(|variant| (variant.name.clone(), 1.0));
        service.models.weights = names.collect();
        Ok(Chosen { service, folder })
    }

    /// Of the file, as they are; or the demo family, on the device and in the precisions that were asked for.
    fn configured(&self) -> anyhow::Result<service::Config> {
        let mut service =
            config::load(&Overrides { config: self.config.clone(), ..Default::default() })?.service;
        if self.config.is_none() {
            if let Some(device) = &self.device {
                service.models.variants.iter_mut().for_each(|variant| variant.device = device.clone());
            }
            service.models.variants = self.in_each_dtype(service.models.variants)?;
        }
        Ok(service)
    }

    fn each_model(&self, models: &[String]) -> anyhow::Result<Vec<VariantConfig>> {
        let mut taken = BTreeSet::new();
        let checked = |model: &String| {
            let name = unique(plain_name(model), &mut taken);
            self.check(
                &name,
                VariantOptions { mode: Some(Mode::Warm), model: Some(model.clone()), ..Default::default() },
            )
        };
        models.iter().map(checked).collect()
    }

    /// The members as WARM and as ENS, or as --mode says; a single one is just that model.
    fn ways(&self, members: &[String], name_of_one: &str) -> anyhow::Result<Vec<VariantConfig>> {
        let modes = match (self.mode, members) {
            (Some(mode), _) => vec![mode],
            (None, [_]) => vec![Mode::Warm],
            (None, _) => vec![Mode::Warm, Mode::Ens],
        };
        let is_plain = members.len() == 1 && self.mode.is_none() && !name_of_one.is_empty();
        let checked = |mode: Mode| {
            let name = if is_plain { name_of_one } else { mode.name() };
            self.check(
                name,
                VariantOptions { mode: Some(mode), members: Some(members.to_vec()), ..Default::default() },
            )
        };
        modes.into_iter().map(checked).collect()
    }

    fn check(&self, name: &str, options: VariantOptions) -> anyhow::Result<VariantConfig> {
        let options = VariantOptions { device: self.device.clone(), ..options };
        Ok(options.check(name, Path::new(""))?)
    }

    /// Each variant in each precision that was asked for; the name says which when there are several.
    fn in_each_dtype(&self, variants: Vec<VariantConfig>) -> anyhow::Result<Vec<VariantConfig>> {
        let Some(dtypes) = &self.dtype else { return Ok(variants) };
        if let Some(twice) = (1..dtypes.len()).find(|&index| dtypes[..index].contains(&dtypes[index])) {
            bail!("--dtype names {} twice: name it once", dtypes[twice].name());
        }
        let in_dtype = |variant: &VariantConfig, dtype: Dtype| {
            let suffix = if dtypes.len() > 1 { format!("-{}", dtype.name()) } else { String::new() };
            VariantConfig { name: format!("{}{suffix}", variant.name), dtype, ..variant.clone() }
        };
        Ok(variants
            .iter()
            .flat_map(|variant| dtypes.iter().map(move |&dtype| in_dtype(variant, dtype)))
            .collect())
    }
}

impl Chosen {
    /// Loads all variants into this process.
    pub(super) fn load(&self) -> anyhow::Result<Vec<Variant>> {
        self.load_with(&mut Loader::default())
    }

    /// As [`Self::load`], and leaves in `loader` what others may share.
    pub(super) fn load_with(&self, loader: &mut Loader) -> anyhow::Result<Vec<Variant>> {
        let load = |config: &VariantConfig| {
            load::load(loader, config).with_context(|| format!("load variant `{}`", config.name))
        };
        self.service.models.variants.iter().map(load).collect()
    }
}

fn write_shape(shape: Shape, num_members: usize, folder: &Path) -> anyhow::Result<Vec<String>> {
    let bar = progress::bytes(&format!("write {}", shape.name()));
    let members = (0..num_members)
        .map(|member| {
            bar.tick();
            let dir = folder.join(format!("member-{member}"));
            shape::write(&shape.config(), &dir, member as u64)?;
            Ok(dir.display().to_string())
        })
        .collect();
    bar.finish_and_clear();
    members
}

/// Keeps the variants of these names; all of them if there is no name.
fn keep(variants: &mut Vec<VariantConfig>, names: &[String]) -> anyhow::Result<()> {
    let there: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
    if let Some(name) = names.iter().find(|name| !there.contains(&name.as_str())) {
        bail!("--variant {name}: there is {}: name one of them", there.join(", "));
    }
    if !names.is_empty() {
        variants.retain(|variant| names.contains(&variant.name));
    }
    Ok(())
}

/// The last part of a path, in the letters that a variant's name may have.
fn plain_name(path: &str) -> String {
    let last = Path::new(path)
        .components()
        .next_back()
        .map(|part| part.as_os_str().to_string_lossy().to_lowercase());
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || letter == '_' { letter } else { '-' };
    let name: String = last.unwrap_or_default().chars().map(plain).take(48).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

/// `name`, or `name-2` and so on if it is taken.
fn unique(name: String, taken: &mut BTreeSet<String>) -> String {
    let mut candidate = name.clone();
    let mut number = 1;
    while !taken.insert(candidate.clone()) {
        number += 1;
        candidate = format!("{name}-{number}");
    }
    candidate
}

/// The defaults of a configuration file, around these variants.
fn service_of(variants: Vec<VariantConfig>) -> service::Config {
    service::Config {
        tls: None,
        tokens: None,
        ports: Ports::any(),
        access_log: 0.0,
        otlp: None,
        threads: None,
        limits: service::Limits::default(),
        engine: engine::Config::default(),
        connections: service::Connections::default(),
        drain_grace: Duration::ZERO,
        drain_limit: Duration::ZERO,
        reload: service::Reload::default(),
        models: service::Models { variants, weights: Default::default(), shadow: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_unique() {
        let mut taken = BTreeSet::new();
        let names: Vec<String> = ["a/SmolLM2.v1", "b/smollm2.v1/", ".", "/"]
            .into_iter()
            .map(|path| unique(plain_name(path), &mut taken))
            .collect();
        assert_eq!(names, ["smollm2-v1", "smollm2-v1-2", "-", "--2"]);
    }
}
