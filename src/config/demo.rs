//! What is served without a configuration: the demo family, as it lies in the repository, else as the program carries it.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use rewarm_cuda::compile::cache_dir;

use crate::disk::write::write_whole;

/// The configuration; its paths are relative to [`folder`].
pub(super) const CONFIG: &str = include_str!("demo.toml");

/// Where a clone has the family, and the program puts it.
const PLACE: &str = "deploy/demo";

/// A file of a member: its path below [`PLACE`], and what it holds.
type Carried = (&'static str, &'static [u8]);

macro_rules! carried {
    ($($member:literal)*) => { [$(
        carried!($member, "config.json"),
        carried!($member, "model.safetensors"),
        carried!($member, "rewarm.golden.json"),
        carried!($member, "rewarm.json"),
        carried!($member, "tokenizer.json"),
        carried!($member, "tokenizer_config.json"),
    )*] };
    ($member:literal, $file:literal) => { (
        concat!($member, "/", $file),
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo/", $member, "/", $file)) as &[u8],
    ) };
}

/// What a checkpoint is made of, of each member.
static CARRIED: [Carried; 24] = carried!("member-0" "member-1" "member-2" "member-3");

/// The folder below which `deploy/demo` lies: the current one, or one above the program (a build in `target/`), or the one
/// in the cache to which the program writes its own. A file there that is not its own is written again.
///
/// # Errors
/// Where it cannot be written, and what to do.
pub(super) fn folder() -> Result<PathBuf, String> {
    let program = std::env::current_exe().ok();
    let above = program.iter().flat_map(|program| program.ancestors().skip(1)).map(Path::to_owned);
    let found = std::iter::once(PathBuf::new()).chain(above).find(|base| base.join(PLACE).is_dir());
    if let Some(found) = found {
        return Ok(found);
    }
    let advice = "REWARM_CACHE_DIR names another folder; or name a checkpoint with --model or --members, or a configuration with \
                  --config";
    let cache =
        cache_dir().ok_or_else(|| format!("the demo family has no place, for there is no home: {advice}"))?;
    // versions may differ in it, and run side by side
    let folder = cache.join(concat!("demo-", env!("CARGO_PKG_VERSION")));
    match write(&folder.join(PLACE)) {
        Ok(()) => Ok(folder),
        Err(error) => Err(format!("write the demo family to {}: {error}: {advice}", folder.display())),
    }
}

fn write(to: &Path) -> io::Result<()> {
    for (name, content) in CARRIED {
        let path = to.join(name);
        if fs::read(&path).is_ok_and(|found| found == content) {
            continue;
        }
        let folder = path.parent().expect("below the place");
        fs::create_dir_all(folder)?;
        write_whole(&path, content)?;
    }
    Ok(())
}
