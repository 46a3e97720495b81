//! Parses the command line, runs one command, prints one error line, chooses the exit code.

use std::io::Write;
use std::process::ExitCode;

use rewarm::cli;
use rewarm::cli::Cli;

// candle allocates each output afresh; the system allocator returns that memory to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::typed().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `eprintln`, which panics when nobody reads: the exit code still tells.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(cli::exit_code(&error))
        }
    }
}
