//! A switch for Ctrl-C, for commands that can end early with what they have.

use anyhow::Context;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::offline::Stop;

/// 128 and the number of SIGINT, as a shell says it.
const EXIT_SIGINT: i32 = 128 + 2;

/// A switch that Ctrl-C and SIGTERM set; a second one ends the program.
pub(super) fn on_signal() -> anyhow::Result<Stop> {
    on_signal_or(|| {})
}

/// As [`on_signal`], with what a second one shall do before it ends the program.
pub(super) fn on_signal_or(at_the_end: impl Fn() + Send + 'static) -> anyhow::Result<Stop> {
    let stop = Stop::default();
    let switch = stop.clone();
    let waiting = "wait for Ctrl-C";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(waiting)?;
    // Before the thread starts: whoever presses Ctrl-C from here on is heard.
    let (mut interrupts, mut terminations) = {
        let _runtime = runtime.enter();
        (signal(SignalKind::interrupt()).context(waiting)?, signal(SignalKind::terminate()).context(waiting)?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            for is_second in [false, true] {
                tokio::select! {
                    _ = interrupts.recv() => {}
                    _ = terminations.recv() => {}
                }
                if is_second {
                    at_the_end();
                    std::process::exit(EXIT_SIGINT);
                }
                switch.set();
            }
        });
    });
    Ok(stop)
}
