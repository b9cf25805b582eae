//! The binary; see `keybearer::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    keybearer::cli::main()
}
