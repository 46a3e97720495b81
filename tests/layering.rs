//! The picture in `src/lib.rs`: a use points down, or it is a mistake; and within a room no files use each other in a
//! circle.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

/// Each room with the rooms that it uses, apart from itself. `main.rs` and `lib.rs` may use all.
const USES: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "bench",
            "canary",
            "checkpoint",
            "client",
            "config",
            "disk",
            "engine",
            "hub",
            "model",
            "offline",
            "ops",
            "service",
            "telemetry",
            "text",
            "values",
        ],
    ),
    (
        "config",
        &[
            "checkpoint",
            "disk",
            "engine",
            "hub",
            "model",
            "offline",
            "service",
            "telemetry",
            "text",
            "values",
        ],
    ),
    ("telemetry", &[]),
    ("service", &["disk", "engine", "metrics", "model", "ops", "pem", "proto", "text", "values"]),
    ("canary", &["client"]),
    ("client", &["bench", "disk", "model", "offline", "pem", "proto", "text"]),
    ("bench", &["model", "offline", "ops", "text"]),
    ("offline", &["checkpoint", "disk", "hub", "learn", "merge", "model", "ops", "text", "values"]),
    ("learn", &["checkpoint", "disk", "merge", "model", "ops", "text", "values"]),
    ("engine", &["metrics", "model", "ops"]),
    ("model", &["checkpoint", "disk", "hub", "merge", "ops", "text", "values"]),
    ("merge", &["checkpoint", "values"]),
    ("hub", &["checkpoint", "disk", "pem"]),
    ("checkpoint", &["disk", "values"]),
    ("ops", &["values"]),
    ("metrics", &["values"]),
    ("values", &[]),
    ("text", &["disk"]),
    ("pem", &["disk"]),
    ("disk", &[]),
    ("proto", &[]),
];

/// Crates that a room must not name: tensors stay below `service`, gRPC and async above `model` and `offline`.
const MUST_NOT_NAME: &[(&str, &[&str])] = &[
    ("service", &["candle_core", "candle_nn", "rewarm_kernels"]),
    ("engine", &["candle_core", "candle_nn", "rewarm_kernels", "tonic"]),
    ("model", &["tonic", "tokio", "rewarm_kernels"]),
    ("learn", &["tonic", "tokio", "rewarm_kernels"]),
    ("ops", &["tonic", "tokio"]),
    ("hub", &["tonic", "tokio", "rewarm_kernels"]),
    ("checkpoint", &["tonic", "tokio", "rewarm_kernels"]),
    ("merge", &["tonic", "tokio"]),
    ("offline", &["rewarm_kernels", "tonic", "tokio"]),
    ("text", &["candle_core", "candle_nn", "rewarm_kernels", "tonic", "tokio"]),
];

/// The names of a module from `src` down: `["model", "variant"]`.
type Module = Vec<String>;

/// What a file says outside of comments and tests.
struct File {
    name: String,
    /// With their numbers.
    lines: Vec<(usize, String)>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All modules of the library. `cuda` and `kernels` are crates of their own, which cannot name ours.
fn modules() -> BTreeMap<Module, File> {
    let mut modules = BTreeMap::new();
    read_folder(&root().join("src"), &mut modules);
    assert!(modules.len() > 150, "{}", modules.len());
    modules
}

fn read_folder(folder: &Path, modules: &mut BTreeMap<Module, File>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let in_src = path.strip_prefix(root().join("src")).unwrap();
        if path.is_dir()
            && ![Path::new("cuda"), Path::new("kernels")].contains(&in_src)
            && !path.ends_with("tests")
        {
            read_folder(&path, modules);
        }
        if path.extension().is_none_or(|extension| extension != "rs") || path.ends_with("tests.rs") {
            continue;
        }
        let module = in_src.with_extension("");
        let mut module: Module = module.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        module.pop_if(|last| last == "mod");
        if ["main", "lib"].contains(&module[0].as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = (1..).zip(text.lines()).take_while(|(_, line)| *line != "#[cfg(test)]");
        let lines = lines.filter(|(_, line)| !line.trim_start().starts_with("//"));
        let lines = lines.map(|(number, line)| (number, line.to_owned())).collect();
        modules.insert(module, File { name: in_src.display().to_string(), lines });
    }
}

/// What each module uses, and a place where it does so.
fn uses(modules: &BTreeMap<Module, File>) -> BTreeMap<(Module, Module), String> {
    let mut uses = BTreeMap::new();
    for (module, file) in modules {
        for (number, line) in &file.lines {
            let absolute = paths_after(line, "crate::").map(|path| (0, path));
            let relative = paths_after(line, "super::").map(|path| {
                let ups = 1 + path.iter().take_while(|name| *name == "super").count();
                (module.len().saturating_sub(ups), path[ups - 1..].to_vec())
            });
            for (kept, path) in absolute.chain(relative) {
                let mut used: Module = [&module[..kept], &path].concat();
                while !used.is_empty() && !modules.contains_key(&used) {
                    used.pop();
                }
                if !used.is_empty() && used != *module {
                    uses.entry((module.clone(), used)).or_insert_with(|| format!("{}:{number}", file.name));
                }
            }
        }
    }
    uses
}

/// The names in each path that begins so.
fn paths_after<'a>(line: &'a str, prefix: &'a str) -> impl Iterator<Item = Vec<String>> + 'a {
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    // of `super::super::x` the first is enough
    let starts = line.match_indices(prefix).filter(move |(at, _)| !line[..*at].ends_with(prefix));
    starts.map(move |(at, _)| {
        let names = line[at + prefix.len()..].split("::").map_while(move |name| {
            let end = name.find(|character| !is_name(character)).unwrap_or(name.len());
            (end > 0).then(|| (name[..end].to_owned(), end == name.len()))
        });
        let mut path = Vec::new();
        for (name, goes_on) in names {
            path.push(name);
            if !goes_on {
                break;
            }
        }
        path
    })
}

#[test]
fn a_use_points_down_and_each_permission_is_used() {
    let modules = modules();
    let uses = uses(&modules);
    let mut mistakes = Vec::new();
    let mut unused: BTreeSet<(&str, &str)> =
        USES.iter().flat_map(|(room, used)| used.iter().map(|used| (*room, *used))).collect();
    for ((by, used), place) in &uses {
        let (by, used) = (by[0].as_str(), used[0].as_str());
        let may_use = list(USES, by).unwrap_or_else(|| panic!("{by} is not in the picture"));
        if by != used && !may_use.contains(&used) {
            mistakes.push(format!("{place} uses {used}"));
        }
        unused.remove(&(by, used));
    }
    mistakes.extend(unused.iter().map(|(by, used)| format!("{by} may use {used}, and does not")));
    let above = |room: &str| USES.iter().position(|(name, _)| *name == room).unwrap();
    for (room, used) in USES {
        let ups = used.iter().filter(|used| above(used) < above(room));
        mistakes.extend(ups.map(|used| format!("{used} stands above {room} in the list, and is used by it")));
    }
    for (module, file) in &modules {
        for named in list(MUST_NOT_NAME, &module[0]).unwrap_or_default() {
            let lines = file.lines.iter().filter(|(_, line)| line.contains(&format!("{named}::")));
            mistakes.extend(lines.map(|(number, _)| format!("{}:{number} names {named}", file.name)));
        }
        // `crate::{a, b}` hides rooms from this test: one module per line
        let hidden = file.lines.iter().filter(|(_, line)| line.contains("crate::{"));
        mistakes.extend(hidden.map(|(number, _)| format!("{}:{number} names several rooms", file.name)));
    }
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

/// In each folder the files and folders are taken as one each; what `mod.rs` defines is everybody's.
#[test]
fn no_files_use_each_other_in_a_circle() {
    let mut folders: BTreeMap<Module, BTreeMap<(String, String), String>> = BTreeMap::new();
    for ((by, used), place) in uses(&modules()) {
        let common = by.iter().zip(&used).take_while(|(one, other)| one == other).count();
        if let (Some(one), Some(other)) = (by.get(common), used.get(common)) {
            let folder = folders.entry(by[..common].to_vec()).or_default();
            folder.entry((one.clone(), other.clone())).or_insert(place);
        }
    }
    let mut circles = Vec::new();
    for (folder, mut edges) in folders {
        // whoever uses none, or is used by none, is in no circle
        loop {
            let before = edges.len();
            let using: BTreeSet<String> = edges.keys().map(|(by, _)| by.clone()).collect();
            let used: BTreeSet<String> = edges.keys().map(|(_, used)| used.clone()).collect();
            edges.retain(|(by, to), _| using.contains(to) && used.contains(by));
            if edges.len() == before {
                break;
            }
        }
        let edges = edges.iter().map(|((by, used), place)| format!("  {by} → {used} ({place})"));
        let edges: Vec<String> = edges.collect();
        if !edges.is_empty() {
            circles.push(format!("in `{}`:\n{}", folder.join("::"), edges.join("\n")));
        }
    }
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

fn list(table: &[(&str, &'static [&'static str])], room: &str) -> Option<&'static [&'static str]> {
    table.iter().find(|(name, _)| *name == room).map(|(_, list)| *list)
}
