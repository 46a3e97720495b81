//! To come.

/// To come.
pub fn run() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
