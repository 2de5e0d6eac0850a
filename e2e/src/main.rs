//! End-to-end campaigns: the real `dst` binary, real block devices, real file systems, real faults.
//!
//! `cargo run --release -p e2e -- NAME [--short]` runs one campaign, `all --short` every one. Each prints one line that
//! begins with PASS or FAIL, with counts and the seed that repeats it, and leaves nothing behind: [`lab::sweep`] finds
//! everything that a campaign has made, after success, failure, panic and signals. (After SIGKILL: `e2e clean`.)
//!
//! With `--front-end` all devices of a campaign are of that front end. `plug` and `powercut` run in the guest, too, for the
//! kernel's ublk and nbd drivers: `vm/tests/campaign.sh`, with `--quick` where there is little time, and `--patience`, since an
//! emulated machine is slow.
//!
//! | file | subject |
//! | --- | --- |
//! | `campaigns/` | one file per campaign or part of one |
//! | `lab/` | servers, devices, file systems, namespaces, control groups |
//! | `proxy.rs`, `wire.rs` | faults between client and server; hand-made frames |
//! | `all.rs`, `results.rs` | every campaign in a process of its own; results that are kept |

mod all;
mod campaigns;
mod cli;
mod command;
mod direct;
mod fio;
mod hog;
mod interrupt;
mod lab;
mod proxy;
mod report;
mod results;
mod rng;
mod stress;
mod wait;
mod wire;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) if interrupt::asked() => ExitCode::from(130),
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::from(2)
        }
    }
}
