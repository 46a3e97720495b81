//! What a checkpoint is, and several are to each other, in lines for people.

use std::path::Path;
use std::path::PathBuf;

use crate::checkpoint::Checkpoint;
use crate::merge::kinship::Kinship;
use crate::merge::kinship::kinship;
use crate::model::config::CheckpointConfig;
use crate::model::layout;
use crate::model::manifest::Manifest;
use crate::model::origin;
use crate::model::variant::VariantInfo;
use crate::text::TextRule;

/// A checkpoint on this machine, and its base if it is an adapter.
pub type Place = (PathBuf, Option<PathBuf>);

/// What there is to tell, by name.
pub type Lines = Vec<(&'static str, String)>;

/// What there is to tell of a checkpoint; `info` is of the variant that it alone is. Empty where there is nothing.
pub fn describe(place: &Place, info: &VariantInfo) -> anyhow::Result<Lines> {
    let checkpoint = open(place)?;
    let manifest = Manifest::load(checkpoint.dir())?;
    let config_dir: &Path = checkpoint.dir_of("config.json");
    let mut config = CheckpointConfig::load(&config_dir.join("config.json"), &manifest)?;
    origin::settle(&checkpoint, &manifest, &mut config)?;
    let plan = layout::plan(&checkpoint, &config)?;
    let tensors = || checkpoint.names().filter_map(|name| checkpoint.info(name));
    let mut stored: Vec<String> =
        tensors().map(|tensor| format!("{:?}", tensor.dtype).to_lowercase()).collect();
    stored.sort();
    stored.dedup();
    let values: usize = tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let member = &info.members[0];
    let calibration = match manifest.calibration {
        Some(calibration) => format!("mean {}, std {}", calibration.mean, calibration.std),
        None => "none".to_owned(),
    };
    Ok(vec![
        ("family", config.model_type.clone()),
        ("architecture", info.architecture.clone()),
        ("head", serde_json::to_value(plan.head.kind)?.as_str().unwrap_or_default().to_owned()),
        ("pooling", info.pooling.name().to_owned()),
        ("text rule", TextRule::name_of(info.text_rule).to_owned()),
        ("limit", format!("{} tokens", info.max_tokens)),
        ("stored", format!("{values} values in {}", stored.join(", "))),
        ("calibration", calibration),
        ("source", member.source.clone().unwrap_or_default()),
        ("weights", member.digest.clone()),
        ("fingerprint", info.fingerprint.clone()),
        ("notes", info.notes.join("; ")),
    ])
}

/// What is odd about them as members of one family; nothing where all is well.
pub fn kin(places: &[Place]) -> anyhow::Result<Vec<Kinship>> {
    let opened: Vec<Checkpoint> = places.iter().map(open).collect::<anyhow::Result<_>>()?;
    Ok(kinship(&opened.iter().collect::<Vec<_>>())?)
}

fn open((path, base): &Place) -> anyhow::Result<Checkpoint> {
    Ok(Checkpoint::open_over(path, base.as_deref())?)
}
