//! `keybearer demo`: the whole flow with nothing else installed.

use std::process::ExitCode;

use clap::Args;

use super::run::{control_runtime, until_signalled};
use crate::demo::Demo;
use crate::model::{Log, LogFormat, LogLevel};
use crate::telemetry::Logging;

#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Exit after one request: 0 if the API accepted the token
    #[arg(long)]
    once: bool,
    /// Present this client secret instead of the correct one, to see a refusal
    #[arg(long, value_name = "TEXT")]
    client_secret: Option<String>,
}

pub fn demo(arguments: &DemoArguments) -> ExitCode {
    let (_, _flush_on_drop) = Logging::start(Log { level: LogLevel::Warn, format: LogFormat::Text, ..Log::default() });
    let result = control_runtime().map_err(|error| error.to_string()).and_then(|runtime| {
        let accepted = runtime.block_on(show(arguments));
        runtime.shutdown_background();
        accepted
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn show(arguments: &DemoArguments) -> Result<bool, String> {
    let (demo, app) = Demo::build(arguments.client_secret.as_deref())?;
    if !arguments.once {
        demo.keep_showing();
        until_signalled(app).await.map_err(|error| error.to_string())?;
        println!("\nBye.");
        return Ok(true);
    }
    let (done, end) = tokio::sync::oneshot::channel::<()>();
    let serve = app.serve(async {
        let _ = end.await;
    });
    let once = async {
        let accepted = demo.one_request().await;
        let _ = done.send(());
        accepted
    };
    let (served, accepted) = tokio::join!(serve, once);
    served.map_err(|error| error.to_string())?;
    Ok(accepted)
}
