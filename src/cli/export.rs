//! `keybearer export`: definitions made over the API, as YAML that `apply` accepts.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::instance::{self, Call, CallError, InstanceArguments};

/// Timeout of the request, whose response may be every definition of the store.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The connection [default: all that were made over the API]
    name: Option<String>,
    #[command(flatten)]
    instance: InstanceArguments,
}

pub fn export(arguments: &ExportArguments) -> ExitCode {
    let printed = arguments.definitions().and_then(|text| {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(CallError::Local(format!("the definitions cannot be written ({})", error.kind())))
            }
            _ => Ok(()),
        }
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => instance::fail(&arguments.instance, failed),
    }
}

impl ExportArguments {
    /// The definitions as YAML, or as JSON with `--json`.
    fn definitions(&self) -> Result<String, CallError> {
        let path: Vec<&str> = std::iter::once("connections").chain(self.name.as_deref()).collect();
        let (method, query, timeout) = (Method::GET, &[("format", "yaml")], EXPORT_TIMEOUT);
        let text = self.instance.instance()?.yaml(Call { method, path: &path, query, body: None, timeout })?;
        if !self.instance.json {
            return Ok(text);
        }
        let value: Value = serde_yaml::from_str(&text)
            .map_err(|error| CallError::Local(format!("the instance's export cannot be read: {error}")))?;
        Ok(format!("{value}\n"))
    }
}
