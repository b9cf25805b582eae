//! `keybearer run`: runs the proxy until a signal.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use super::ConfigArguments;
use crate::app::{App, AppError, Source};
use crate::clock::Clock;
use crate::config;
use crate::store::StoreOpener;
use crate::tasks::Tasks;
use crate::telemetry::Logging;

pub fn run(arguments: &ConfigArguments) -> ExitCode {
    let (path, tasks) = (arguments.path(), Tasks::default());
    let opener = Arc::new(StoreOpener::new(Clock::system(), tasks.clone()));
    let loaded = match config::load(&path, opener.clone(), &[]) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return super::refuse(&path, &problems);
        }
    };
    let (logging, _flush_on_drop) = Logging::start(loaded.model.log);
    for warning in &loaded.warnings {
        tracing::warn!(problem = %warning, "configuration");
    }
    let result = App::build(loaded, opener, Some(Source { path, logging }), tasks).and_then(|app| {
        let runtime = control_runtime()?;
        let result = runtime.block_on(until_signalled(app));
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "keybearer failed");
            ExitCode::FAILURE
        }
    }
}

/// The runtime of the control plane: refreshers and the admin side never run on a worker.
pub fn control_runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).thread_name("control").enable_all().build()
}

/// Serves until the first SIGTERM or SIGINT, which starts a graceful shutdown; a second one exits at once.
pub async fn until_signalled(app: App) -> Result<(), AppError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (first, drain) = tokio::sync::oneshot::channel::<()>();
    let serve = app.serve(async {
        let _ = drain.await;
    });
    let signals = async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        let _ = first.send(());
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::warn!("second signal; exiting without draining");
    };
    tokio::select! {
        result = serve => result,
        () = signals => Ok(()),
    }
}
