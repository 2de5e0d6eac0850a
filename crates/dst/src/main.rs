//! The `dst` command: a disk on one machine, a block device on another.
//!
//! One file per subcommand; `cli.rs` says what they take, `exit.rs` how they fail.

mod again;
mod agent;
mod attach;
mod bench;
mod cli;
mod control;
mod demo;
mod detach;
mod exit;
mod leftovers;
mod list;
mod manual;
mod progress;
mod recover;
mod remedy;
mod render;
mod resize;
mod runtime_dir;
mod serve;
mod signals;
mod status;
mod udev;
mod values;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};
use crate::exit::{Code, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // A command line that can't be understood can still say that it is a program's.
        Err(error) if error.use_stderr() && std::env::args_os().any(|word| word == "--json") => {
            return fail(&misunderstood(&error), true);
        }
        Err(error) => error.exit(),
    };
    let done = match &cli.command {
        Command::Serve(options) => serve::run(options, cli.json),
        Command::Attach(options) => attach::run(options, cli.json),
        Command::Detach(options) => detach::run(options, cli.json),
        Command::List(options) => list::run(options, cli.json),
        Command::Status(options) => status::run(options, cli.json),
        Command::Resize(options) => resize::run(options, cli.json),
        Command::Bench(options) => bench::run(options, cli.json),
        Command::Demo(options) => demo::run(options, cli.json),
        Command::Completions(options) => manual::completions(options),
        Command::Man(options) => manual::run(options),
        Command::UdevInfo(options) => udev::run(options),
        Command::Agent(options) => agent::run_in_background(options),
        Command::StdioServer(options) => serve::run_in_background(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, cli.json),
    }
}

/// Says what has failed.
fn fail(failure: &Failure, json: bool) -> ExitCode {
    match json {
        true => render::note(&serde_json::json!({ "error": failure }).to_string()),
        false => render::note(&format!("dst: {failure}")),
    }
    ExitCode::from(failure.code.number())
}

/// What the parser says: the error in its first paragraph, then what may help.
fn misunderstood(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let (message, help) = text.split_once("\n\n").unwrap_or((&text, ""));
    let message = message.trim().trim_start_matches("error: ");
    let failure = Failure::new(Code::Usage, message);
    match help.trim() {
        "" => failure,
        help => failure.hint(help),
    }
}

/// The name of this machine.
fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
