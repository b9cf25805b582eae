//! The program: parse arguments, call the command, turn its result into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    keybearer::cli::main()
}
