//! Models of a hub that a command names become directories, before anything else looks at them: a bar on a terminal.

use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::ensure;

use crate::checkpoint::lora;
use crate::cli::progress;
use crate::hub;
use crate::hub::Hub;
use crate::hub::HubId;
use crate::hub::Settings;
use crate::model::ModelError;
use crate::model::variant::VariantConfig;

/// How often the log tells how far a download is.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Fetches each model once, so that all who name a branch get one commit of it.
#[derive(Default)]
pub(super) struct Fetcher {
    /// As soon as it is asked for: most commands name directories only.
    hub: Option<Hub>,
    fetched: HashMap<HubId, PathBuf>,
}

impl Fetcher {
    /// A directory, for what [`hub::place`] made of a name.
    pub(super) fn dir(&mut self, path: &Path) -> anyhow::Result<PathBuf> {
        let Some(id) = HubId::of(path) else { return Ok(path.to_owned()) };
        if let Some(dir) = self.fetched.get(&id) {
            return Ok(dir.clone());
        }
        let hub = match &self.hub {
            Some(hub) => hub,
            None => self.hub.insert(Hub::new(Settings::from_env()?)?),
        };
        let bar = progress::bytes(&format!("fetch {id}"));
        let mut told = Instant::now();
        let dir = hub.fetch(&id, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                tracing::info!(model = %id, bytes = done, of = total, "fetching from the hub");
            }
        });
        bar.finish_and_clear();
        let dir =
            dir.with_context(|| format!("`{id}`, taken for a model of the hub and not for a directory"))?;
        self.fetched.insert(id, dir.clone());
        Ok(dir)
    }

    /// What a flag names: a directory, or a model of the hub.
    pub(super) fn named(&mut self, named: &Path) -> anyhow::Result<PathBuf> {
        self.dir(&hub::place(named, Path::new("")).map_err(anyhow::Error::msg)?)
    }

    /// Members and what they were trained on, where the configuration was checked before they were here.
    pub(super) fn family(
        &mut self,
        members: &[PathBuf],
        base: Option<&Path>,
    ) -> anyhow::Result<(Vec<PathBuf>, Option<PathBuf>)> {
        let members = members.iter().map(|member| self.dir(member)).collect::<Result<Vec<_>, _>>()?;
        let base = base.map(|base| self.dir(base)).transpose()?;
        ensure!(base.is_none() || members.iter().any(|member| lora::is_adapter(member)), lora::NO_ADAPTER);
        Ok((members, base))
    }

    /// The same variant with directories only; fails with all that cannot be had.
    pub(super) fn variant(&mut self, config: &VariantConfig) -> Result<VariantConfig, ModelError> {
        let refused = |error: anyhow::Error| ModelError::Refused(format!("{error:#}"));
        let named = config.members.iter().chain(&config.base);
        let missing = named.filter_map(|path| Some(refused(self.dir(path).err()?)));
        ModelError::check(missing.collect())?;
        let (members, base) = self.family(&config.members, config.base.as_deref()).map_err(refused)?;
        Ok(VariantConfig { members, base, ..config.clone() })
    }
}
