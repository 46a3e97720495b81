//! What a shell and `man` want of the command line.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use clap::Command;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::cli::MANUALS;

/// Prints completions for a shell: `rewarm completions bash > /etc/bash_completion.d/rewarm`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Writes the manual's pages, `rewarm.1` and one for each command.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// A folder, for example /usr/local/share/man/man1.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut visible(), "rewarm", &mut script);
    std::io::stdout().write_all(&script).context("write the completions")
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<()> {
    let mut command = visible().disable_help_subcommand(true);
    command.build();
    page(&command, "rewarm", &args.folder)
}

/// Without the commands that are between two processes.
fn visible() -> Command {
    let all = Cli::command();
    let is_shown = |command: &&Command| !command.is_hide_set();
    let commands: Vec<Command> = all.get_subcommands().filter(is_shown).cloned().collect();
    Command::new("rewarm")
        .version(env!("CARGO_PKG_VERSION"))
        .about(all.get_about().cloned().unwrap_or_default())
        .subcommands(commands)
}

/// The page of a command, and those of its own commands.
fn page(command: &Command, name: &str, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    Man::new(command.clone()).title(name.to_uppercase()).render(&mut page).context("render the page")?;
    if let Some((_, manual)) = MANUALS.iter().find(|(of, _)| name == format!("rewarm-{of}")) {
        // lines as they are: a configuration may be cut out of them
        page.extend_from_slice(b".SH CONFIGURATION\n.nf\n");
        for line in manual.lines() {
            let line = line.replace('\\', "\\e").replace('-', "\\-");
            // a line that begins so would be a request
            let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
            page.extend_from_slice(format!("{guard}{line}\n").as_bytes());
        }
        page.extend_from_slice(b".fi\n");
    }
    let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.write_all(&page).with_context(|| format!("write {}", path.display()))?;
    for inner in command.get_subcommands() {
        self::page(inner, &format!("{name}-{}", inner.get_name()), folder)?;
    }
    Ok(())
}
