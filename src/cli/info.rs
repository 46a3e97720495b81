//! `rewarm info`: what a checkpoint is, several are to each other, or a server serves.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Context;
use anyhow::ensure;
use clap::Args;

use crate::cli::AskArgs;
use crate::cli::fetch::Fetcher;
use crate::cli::load;
use crate::client;
use crate::config::VariantOptions;
use crate::model::variant::Loader;
use crate::model::variant::Mode;
use crate::offline::info;
use crate::telemetry;

/// Tells what a checkpoint is, how several of one family lie to each other, or what a server serves.
///
/// Of checkpoints, which are loaded for it: family, head, pooling, how texts are joined, limits, what they are stored in,
/// calibration, fingerprint, and what of it no file says. Of a server: the same, as it tells it.
#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// Checkpoints, directories or models of the hub; or the URL of one server.
    #[arg(value_name = "DIR|URL", required = true)]
    of: Vec<String>,
    /// What checkpoints were trained on, where they are LoRA adapters (PEFT directories).
    #[arg(long, value_name = "DIR")]
    base: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
}

pub(super) fn run(args: &InfoArgs) -> anyhow::Result<()> {
    telemetry::start(&telemetry::Config { level: telemetry::Level::warnings(), ..Default::default() });
    let is_url = |name: &String| name.starts_with("http://") || name.starts_with("https://");
    let told = if args.of.iter().any(is_url) {
        ensure!(args.of.len() == 1, "give the URL of one server, or checkpoints");
        client::describe(&args.ask.server(&args.of[0])?)?
            .iter()
            .map(|(name, lines)| section(name, lines))
            .collect()
    } else {
        of_checkpoints(args)?
    };
    write!(std::io::stdout(), "{told}").context("write the answer")
}

/// A heading, and lines below it that line up.
fn section(name: &str, lines: &[(&'static str, String)]) -> String {
    let mut text = format!("{name}\n");
    for (key, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(text, "  {key:<13} {value}"); // a string takes all
    }
    text
}

fn of_checkpoints(args: &InfoArgs) -> anyhow::Result<String> {
    let mut fetcher = Fetcher::default();
    let mut told = String::new();
    let mut places = Vec::new();
    let as_members = |members: &[String]| {
        let options = VariantOptions {
            mode: Some(Mode::Warm),
            members: Some(members.to_vec()),
            base: args.base.clone(),
            ..VariantOptions::default()
        };
        options.check_alone()
    };
    for member in &args.of {
        let mut config = as_members(std::slice::from_ref(member))?;
        (config.members, config.base) = fetcher.family(&config.members, config.base.as_deref())?;
        let told_of = load::load(&mut Loader::default(), &config).context("load it")?.info;
        let place = (config.members[0].clone(), config.base);
        told += &section(member, &info::describe(&place, &told_of)?);
        places.push(place);
    }
    if places.len() > 1 {
        let mut config = as_members(&args.of)?;
        config.members = places.iter().map(|(path, _)| path.clone()).collect();
        config.base = places[0].1.clone();
        told += "kinship\n";
        if let Err(problem) = Loader::default().check(&config) {
            let _ = writeln!(told, "  none: {:#}", anyhow::Error::from(problem));
            return Ok(told);
        }
        let findings = info::kin(&places)?;
        if findings.is_empty() {
            told += "  fine-tuned from one pretrain, and no two of them are the same\n";
        }
        for finding in findings {
            let _ = writeln!(
                told,
                "  member {} ({}) {}",
                finding.member, args.of[finding.member], finding.finding
            );
        }
    }
    Ok(told)
}
