//! What forwards run on, for whoever reports how long they took.

use std::fmt;

use serde::Serialize;

use crate::ops::cpu::Isa;

/// The machine that a run was on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// As it calls itself; "unknown" where it does not.
    pub cpu_model: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Threads of the forward.
    pub threads: usize,
    /// Instruction sets that matter to a forward.
    pub isa: Vec<&'static str>,
    /// What our kernels compute with: the best of them, unless `REWARM_ISA` says another.
    pub kernels: &'static str,
    /// For example "linux x86_64".
    pub platform: String,
    /// Whether this program was built with optimisations: figures of one that was not mean nothing.
    pub is_optimised: bool,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu_model: model.map_or("unknown", |(_, model)| model).to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            isa: isa(),
            kernels: Isa::best().name(),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            is_optimised: !cfg!(debug_assertions),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu_model, cpus, threads, isa, kernels, platform, is_optimised } = self;
        write!(
            f,
            "{cpu_model}, {cpus} CPUs, {threads} threads, {platform} {}; kernels {kernels}",
            isa.join(" ")
        )?;
        f.write_str(if *is_optimised { "" } else { "; NOT OPTIMISED: build with --release" })
    }
}

#[cfg(target_arch = "x86_64")]
fn isa() -> Vec<&'static str> {
    let features = [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", std::is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", std::is_x86_feature_detected!("avx512fp16")),
    ];
    // Rust cannot ask for the matrix unit yet; the kernel can.
    let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let amx = ["amx_bf16", "amx_int8"]
        .into_iter()
        .filter(|name| cpu_info.split_whitespace().any(|word| word == *name));
    features.into_iter().filter(|(_, is_here)| *is_here).map(|(name, _)| name).chain(amx).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn isa() -> Vec<&'static str> {
    Vec::new()
}
