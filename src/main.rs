//! Parses the command line, runs one command, prints one error line, chooses the exit code.

use std::process::ExitCode;

use clap::Parser;
use rewarm::cli::Cli;

// candle allocates each output afresh; the system allocator returns that memory to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
