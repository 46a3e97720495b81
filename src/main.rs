//! Parses the command line, runs one command, prints one error line, chooses the exit code.

// candle allocates each output afresh; the system allocator returns that memory to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    rewarm::cli::run()
}
