//! `rewarm init`: writes a configuration, with what an owner of members would want to know beside each line.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::cli::MANUALS;
use crate::cli::configuration;
use crate::cli::load;
use crate::config::ConfigError;
use crate::config::VariantOptions;
use crate::hub::HubId;
use crate::model::variant::Mode;
use crate::model::variant::VariantConfig;

/// Writes a configuration that serves members as WARM and as ENS, with a comment on every setting.
///
/// Members that are on this machine are looked at first: they must be of one family.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Checkpoints, or models of the hub, org/name or org/name@revision; one is served as it is.
    #[arg(value_name = "DIR", required = true)]
    members: Vec<String>,
    /// What they were trained on, where they are LoRA adapters (PEFT directories).
    #[arg(long, value_name = "DIR")]
    base: Option<String>,
    /// Where it goes, if nothing is there yet; - is standard output.
    #[arg(long, value_name = "FILE", default_value = "rewarm.toml")]
    output: PathBuf,
}

pub(super) fn run(args: &InitArgs) -> anyhow::Result<()> {
    let variants = variants(args)?;
    let are_here = |variant: &VariantConfig| {
        !variant.members.iter().chain(&variant.base).any(|path| HubId::of(path).is_some())
    };
    if variants.iter().all(are_here) {
        load::check(&variants)?;
    }
    let text = text(&variants, &args.output);
    if args.output == Path::new("-") {
        return write!(std::io::stdout(), "{text}").context("write the configuration");
    }
    let path = args.output.display();
    // another's work is not overwritten
    let file = File::create_new(&args.output);
    let mut file =
        file.with_context(|| format!("create {path}: name another with --output, or - for standard output"))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {path}"))?;
    for id in variants[0].members.iter().filter_map(|member| HubId::of(member)) {
        let _ = writeln!(
            std::io::stderr(),
            "{id} is no directory here: taken for a model of the hub, which was not looked at"
        );
    }
    writeln!(std::io::stdout(), "wrote {path}; serve it with: rewarm serve --config {path}")
        .context("say where it is")
}

fn variants(args: &InitArgs) -> Result<Vec<VariantConfig>, ConfigError> {
    let modes: &[Mode] = if args.members.len() > 1 { &[Mode::Warm, Mode::Ens] } else { &[Mode::Warm] };
    modes
        .iter()
        .map(|mode| {
            let members = args.members.clone();
            let base = args.base.clone();
            let options = VariantOptions {
                mode: Some(*mode),
                members: Some(members),
                base,
                ..VariantOptions::default()
            };
            options.check_alone()
        })
        .collect()
}

fn text(variants: &[VariantConfig], output: &Path) -> String {
    let config = if output == Path::new("-") { Path::new("rewarm.toml") } else { output }.display();
    let mut text = format!(
        "\
# Check this:    rewarm serve --config {config} --check
# Serve it:      rewarm serve --config {config}
# Change it:     send the process a SIGHUP: models are replaced without losing a request
#
# Lines that are commented out have the defaults, but for those that say that there is none. Every setting has a variable,
# too: see `rewarm serve --help`.
"
    );
    for variant in variants {
        let told = match variant.mode {
            Mode::Warm if variants.len() > 1 => {
                "the members' weights are averaged when they are loaded: one model, with the cost of one"
            }
            Mode::Warm => "one model",
            Mode::Ens => "every member scores, and their rewards become one: the cost of all of them",
        };
        let VariantConfig { name, mode, members, base, .. } = variant;
        let _ =
            write!(text, "\n# {name}: {told}\n[variants.{name}]\nmode = \"{}\"\nmembers = [\n", mode.name());
        for member in members {
            let _ = writeln!(text, "  {},", quoted(member));
        }
        text += "]\n";
        if let Some(base) = base {
            let _ = writeln!(text, "base = {}", quoted(base));
        }
        if *mode == Mode::Ens {
            text +=
                "# reduction = \"mean\" # or min, median, mean-std=0.5, uwo=0.5 (what disagreement costs)\n";
        }
        text += "# dtype = \"f32\"      # or bf16, f16, auto: bf16 where this machine is faster in it\n";
        text += "# device = \"auto\"    # or cpu, cuda, cuda:1: the first card that can, else the CPU\n";
        text += "# max_tokens = 4096  # in place of the model's own limit\n";
    }
    if variants.len() > 1 {
        text += "
# Which of them answers requests that name none: shares of the traffic. Rewards of two variants are not on one scale, unless
# `rewarm calibrate` has put them there: keep one at 0 until then.
[routing]
weights = { warm = 1, ens = 0 }
# shadow = { variant = \"ens\", fraction = 0.01 } # ens scores so many too, for metrics alone
";
    }
    for table in ["server", "batching", "log"] {
        let _ = write!(text, "\n{}", defaults(table));
    }
    text
}

/// An absolute path: the file may be moved. A model of the hub stays as it is.
fn quoted(path: &Path) -> String {
    let path = if HubId::of(path).is_some() {
        path.to_owned()
    } else {
        path.canonicalize().unwrap_or_else(|_| path.to_owned())
    };
    toml::Value::String(path.display().to_string()).to_string()
}

/// A table of the manual and those below it, each line commented out.
fn defaults(table: &str) -> String {
    let (_, manual) = MANUALS[0];
    let is_its = |heading: &str| heading.trim_start_matches('[').split([']', '.']).next() == Some(table);
    let mut is_inside = false;
    let mut lines = String::new();
    for line in configuration(manual).filter(|line| !line.is_empty()) {
        let line = &line[2..];
        if line.starts_with('[') {
            is_inside = is_its(line);
        }
        if is_inside {
            let _ = writeln!(lines, "# {}", line.replace("see below", "see rewarm serve --help"));
        }
    }
    lines
}
