//! `rewarm score`: opens files, loads models or connects, and shows how far it is.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::IsTerminal;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use anyhow::bail;

use crate::cli::ScoreArgs;
use crate::cli::load;
use crate::cli::progress;
use crate::client::Client;
use crate::config::VariantOptions;
use crate::model::variant::Loader;
use crate::offline::score;
use crate::offline::score::Backend;
use crate::offline::score::DEFAULT_BATCH_TOKENS;
use crate::offline::score::Local;
use crate::telemetry;

pub(super) fn run(args: ScoreArgs) -> anyhow::Result<()> {
    telemetry::start(&telemetry::Config { level: telemetry::Level::warnings(), ..Default::default() });
    let (input_path, output_path) = (args.input.clone(), args.output.clone());
    // Opened before anything slow: a wrong path is told at once.
    let (input, input_bytes) = open(&input_path)?;
    if is_one_file(&input_path, &output_path) {
        bail!("{} is both input and output: it would be emptied before it is read", input_path.display());
    }
    let output = create(&output_path)?;
    let mut backend = backend(args)?;

    let bar = progress::bytes("score");
    if let Some(bytes) = input_bytes {
        bar.set_length(bytes);
    }
    let summary = score::run(input, output, backend.as_mut(), &mut |read| bar.set_position(read))?;
    bar.finish_and_clear();
    if summary.failed > 0 {
        bail!("{} of {} lines have no reward", summary.failed, summary.lines);
    }
    Ok(())
}

fn backend(args: ScoreArgs) -> anyhow::Result<Box<dyn Backend>> {
    let truncation = args.truncation.into();
    if let Some(server) = &args.server {
        let variant = args.of_server.unwrap_or_default();
        return Ok(Box::new(Client::connect(&args.ask.server(server)?, variant, truncation)?));
    }
    let options = args.variant.options().context("name what scores: --model, --members or --server")?;
    let options = VariantOptions { dtype: args.dtype, device: args.device, ..options };
    let config = options.check_alone()?;
    let variant = load::load(&mut Loader::default().from_shelf(), &config).context("load the models")?;
    let max_batch_tokens = args.batch_tokens.unwrap_or(DEFAULT_BATCH_TOKENS) as usize;
    Ok(Box::new(Local { variant, truncation, max_batch_tokens }))
}

/// The input, and its size where it is known.
fn open(path: &Path) -> anyhow::Result<(Box<dyn BufRead>, Option<u64>)> {
    if path == Path::new("-") {
        if io::stdin().is_terminal() {
            // whoever typed no more would wait for ever
            let _ = writeln!(
                io::stderr(),
                "reads JSON lines from standard input, until Ctrl-D; --input FILE reads a file"
            );
        }
        return Ok((Box::new(io::stdin().lock()), None));
    }
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let bytes = file.metadata().ok().map(|metadata| metadata.len());
    Ok((Box::new(BufReader::new(file)), bytes))
}

/// Whether both are the same regular file, by whatever name.
fn is_one_file(input: &Path, output: &Path) -> bool {
    let identity = |path: &Path| {
        let metadata = std::fs::metadata(path).ok().filter(|_| path != Path::new("-"))?;
        metadata.is_file().then(|| (metadata.dev(), metadata.ino()))
    };
    identity(input).is_some() && identity(input) == identity(output)
}

fn create(path: &Path) -> anyhow::Result<Box<dyn Write>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufWriter::new(io::stdout().lock())));
    }
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    Ok(Box::new(BufWriter::new(file)))
}
