//! Whether weights fit into the memory that is left, before any of them is read.
//!
//! A process that takes more than there is gets no error: the system ends it, and with it the models that it serves. So
//! the bytes that loading will keep are counted, from the headers, and held against what the machine and the process's
//! control groups (versions 1 and 2) have left. What is refused is only what cannot fit: rows that a model keeps for
//! itself, batches, and what files take in the page cache are not counted, and tensors that are shared count once.

use std::path::Path;

/// Bytes that a process may still take before the system or a control group ends one; `None` where nobody tells.
pub fn left() -> Option<u64> {
    left_below(Path::new("/"))
}

/// The weights do not fit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct TooLarge(String);

/// Refuses weights of `needed` bytes for so many models in `dtype` where fewer are `left`: on a card, or in memory.
pub fn check(
    needed: u64,
    left: Option<u64>,
    models: usize,
    dtype: &'static str,
    card: Option<&str>,
) -> Result<(), TooLarge> {
    let Some(left) = left.filter(|left| needed > *left) else { return Ok(()) };
    let of_what = if models == 1 { "the model".to_owned() } else { format!("{models} models") };
    let (needed, left) = (gigabytes(needed), gigabytes(left));
    let mut problem = format!("the weights of {of_what} take {needed} in {dtype}, and ");
    problem += &match card {
        None => format!("{left} of memory are left: the system would end the process. Give it more memory"),
        Some(card) => format!("{card} has {left} left. Take a larger card"),
    };
    // a CPU widens f16
    if dtype == "f32" || (card.is_none() && dtype == "f16") {
        problem += ", or set dtype = \"bf16\", which takes half";
    }
    if models > 1 {
        if card.is_some() {
            problem += ", or a list of devices, among which members are spread";
        }
        problem += ", or mode = \"warm\", which keeps one model of them all";
    }
    Err(TooLarge(problem))
}

/// Refuses weights of several variants, of so many bytes each, that do not fit together where so many bytes are `left`.
pub fn check_together(needed: &[(&str, u64)], left: Option<u64>, card: Option<&str>) -> Result<(), TooLarge> {
    let total: u64 = needed.iter().map(|(_, bytes)| bytes).sum();
    let Some(left) = left.filter(|left| total > *left) else { return Ok(()) };
    let each: Vec<String> =
        needed.iter().map(|(name, bytes)| format!("{name} {}", gigabytes(*bytes))).collect();
    let (total, left) = (gigabytes(total), gigabytes(left));
    let place = match card {
        None => format!("{left} of memory are left"),
        Some(card) => format!("{card} has {left} left"),
    };
    Err(TooLarge(format!(
        "the weights of the variants take {total} together ({}), and {place}: serve fewer of them, or give each devices of its own, \
         or set dtype = \"bf16\" where it is f32",
        each.join(", ")
    )))
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// The same of a system whose files are below `root`.
fn left_below(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|text| Some(line(&text, "MemAvailable:")? << 10));
    let mut least = machine;
    for group in read("proc/self/cgroup").unwrap_or_default().lines() {
        // "0::/path" of version 2, "4:cpu,memory:/path" of version 1
        let mut fields = group.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, files) = match controllers {
            "" => ("sys/fs/cgroup", &V2),
            them if them.split(',').any(|it| it == "memory") => ("sys/fs/cgroup/memory", &V1),
            _ => continue,
        };
        // those around it have limits too; in a container the path may be one of the host's, and the mount its own group
        for path in Path::new(path.trim_start_matches('/')).ancestors() {
            let folder = root.join(mount).join(path);
            least = [least, left_in(&folder, files)].into_iter().flatten().min();
        }
    }
    least
}

/// Names of a control group's files, and of the parts of the last.
struct Files {
    limit: &'static str,
    used: &'static str,
    /// Of the page cache, which is given back when memory is wanted.
    cache: [&'static str; 2],
}

const V2: Files =
    Files { limit: "memory.max", used: "memory.current", cache: ["active_file ", "inactive_file "] };
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: ["total_active_file ", "total_inactive_file "],
};

/// `None`: there is no group, or no limit.
fn left_in(group: &Path, files: &Files) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let limit = number(&read(files.limit)?)?;
    let used = number(&read(files.used)?)?;
    let stat = read("memory.stat").unwrap_or_default();
    let cache: u64 = files.cache.iter().filter_map(|key| line(&stat, key)).sum();
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn line(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| number(line.strip_prefix(key)?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is left on a system with these files.
    fn left_with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        left_below(root.path())
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal: 64 kB\nMemFree: 1 kB\nMemAvailable:   32 kB\n");

    #[test]
    fn the_least_of_the_machine_and_the_groups_is_left() {
        let v2 = ("proc/self/cgroup", "0::/a.slice/b.service\n");
        let stat = "anon 5\nfile 9\nactive_file 1000\ninactive_file 2000\n";
        let own = [
            ("sys/fs/cgroup/a.slice/b.service/memory.max", "20000\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.current", "8000\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.stat", stat),
        ];
        let above =
            [("sys/fs/cgroup/a.slice/memory.max", "9000"), ("sys/fs/cgroup/a.slice/memory.current", "8000")];
        assert_eq!(left_with(&[]), None);
        assert_eq!(left_with(&[MACHINE]), Some(32 << 10));
        assert_eq!(left_with(&[&[MACHINE, v2], &own[..]].concat()), Some(20_000 - 5000));
        assert_eq!(left_with(&[&[MACHINE, v2], &own[..], &above[..]].concat()), Some(1000));
        let unlimited = ("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n");
        assert_eq!(left_with(&[&[MACHINE, v2], &own[1..], &[unlimited]].concat()), Some(32 << 10));
        // a container: the path is the host's, the limit at the mount is the container's
        let container = [("sys/fs/cgroup/memory.max", "7000"), ("sys/fs/cgroup/memory.current", "7001")];
        assert_eq!(left_with(&[&[MACHINE, v2], &container[..]].concat()), Some(0));
        // version 1, where no limit is a large number
        let v1 = ("proc/self/cgroup", "9:cpu:/x\n4:hugetlb,memory:/docker/1\n0::/\n");
        let group = |limit| {
            [
                ("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", limit),
                ("sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "10000"),
                ("sys/fs/cgroup/memory/docker/1/memory.stat", "inactive_file 1\ntotal_inactive_file 4000\n"),
            ]
        };
        assert_eq!(left_with(&[&[MACHINE, v1], &group("16000")[..]].concat()), Some(10_000));
        assert_eq!(left_with(&[&[MACHINE, v1], &group("9223372036854771712")[..]].concat()), Some(32 << 10));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers_and_the_ways_out() {
        assert_eq!(check(100, None, 1, "f32", None), Ok(()));
        assert_eq!(check(100, Some(100), 1, "f32", None), Ok(()));
        let (needed, left) = (28_000_000_000, Some(16_000_000_000));
        let error = |models, dtype| check(needed, left, models, dtype, None).unwrap_err().to_string();
        let one = error(1, "f32");
        assert!(
            one.starts_with("the weights of the model take 28.0 GB in f32, and 16.0 GB of memory are left"),
            "{one}"
        );
        assert!(one.ends_with("Give it more memory, or set dtype = \"bf16\", which takes half"), "{one}");
        assert!(error(1, "bf16").ends_with("Give it more memory"), "{}", error(1, "bf16"));
        let several = error(6, "bf16");
        assert!(several.contains("the weights of 6 models take 28.0 GB"), "{several}");
        assert!(several.ends_with(", or mode = \"warm\", which keeps one model of them all"), "{several}");
        let card = check(needed, left, 2, "bf16", Some("cuda:0 (H100, 85.0 GB)")).unwrap_err().to_string();
        assert!(card.contains("28.0 GB in bf16, and cuda:0 (H100, 85.0 GB) has 16.0 GB left"), "{card}");
        assert!(card.contains("a list of devices"), "{card}");

        let variants = [("warm", 16_400_000_000), ("ens", 65_500_000_000)];
        assert_eq!(check_together(&variants, Some(81_900_000_000), None), Ok(()));
        let together =
            check_together(&variants, Some(79_100_000_000), Some("cuda:0")).unwrap_err().to_string();
        let numbers = "take 81.9 GB together (warm 16.4 GB, ens 65.5 GB), and cuda:0 has 79.1 GB left";
        assert!(together.contains(numbers), "{together}");
    }
}
