//! The command line.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

use crate::campaigns::{self, Campaign};
use crate::lab::{sweep, Form, FrontEnd, Plan};
use crate::{all, hog, interrupt, wait};

/// End-to-end campaigns of DST on real devices. Needs root.
#[derive(Debug, Parser)]
#[command(name = "e2e", max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every campaign but bench-peers, each in a process of its own
    All(All),
    /// Removes what a campaign has left that was killed by SIGKILL
    Clean,
    /// Takes memory and holds it; started by the memory campaign
    #[command(hide = true)]
    Hog {
        /// Bytes.
        bytes: u64,
    },
    #[command(flatten)]
    Campaign(Campaigns),
}

/// The campaigns.
#[derive(Debug, Subcommand)]
enum Campaigns {
    /// fio on ext4 and XFS while the server is killed, connections are cut, the server hangs and is gone for minutes
    Plug(Common),
    /// Power cuts of the server while files are written and fsynced
    Powercut(Common),
    /// No server: waiting for ever, deadlines, detach by force
    Deadline(Common),
    /// Little memory
    Memory(Common),
    /// Sizes, block sizes, read-only, images that are replaced or grow
    Autoconf(Common),
    /// Peers that mean harm, in both directions
    Hostile(Common),
    /// Attaching and detaching, in every wrong way too; nothing stays behind
    Lifecycle(Common),
    /// Unix, TCP, exec, several connections, cut cables, changed addresses
    Transports(Common),
    /// Side by side with nbdkit
    BenchPeers(Common),
}

/// Options of every campaign.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// The short form, for every change
    #[arg(long)]
    pub short: bool,
    /// A form that is shorter still, for emulated machines
    #[arg(long, conflicts_with = "short")]
    pub quick: bool,
    /// What makes the block devices
    #[arg(long, value_enum, default_value_t = FrontEnd::Auto)]
    pub front_end: FrontEnd,
    /// How many times slower than others this machine may be before what is slow counts as hanging
    #[arg(long, value_name = "TIMES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub patience: u32,
    /// The binary under test; the newest of the target directory unless given
    #[arg(long, value_name = "PATH")]
    pub dst: Option<PathBuf>,
    /// What all random choices come from; a fresh one unless given
    #[arg(long)]
    pub seed: Option<u64>,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Leave the campaign's directory there
    #[arg(long)]
    pub keep: bool,
}

/// Options of `all`.
#[derive(Debug, Args)]
pub struct All {
    #[command(flatten)]
    common: Common,
    /// The full form (the default without --short)
    #[arg(long, conflicts_with_all = ["short", "quick"])]
    full: bool,
    /// Keep results in this file, and skip what it says this commit has passed
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
}

impl Common {
    fn plan(&self) -> Result<Plan> {
        wait::set_patience(self.patience);
        let seed = match self.seed {
            Some(seed) => seed,
            None => {
                let mut bytes = [0; 4];
                rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
                u64::from(u32::from_le_bytes(bytes))
            }
        };
        let dst = match &self.dst {
            Some(path) => path.clone(),
            None => beside_this_binary()?,
        };
        Ok(Plan {
            form: match (self.quick, self.short) {
                (true, _) => Form::Quick,
                (_, true) => Form::Short,
                _ => Form::Full,
            },
            front_end: self.front_end,
            seed,
            dst,
            keep: self.keep,
            only: self.only.clone(),
        })
    }
}

/// `dst` in the directory of this program, where cargo puts both.
fn beside_this_binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("can't find this program")?;
    Ok(own.with_file_name("dst"))
}

impl Cli {
    /// Does what was asked; false if a campaign failed.
    ///
    /// # Errors
    /// It could not even begin.
    pub fn run(self) -> Result<bool> {
        let (campaign, common): (Campaign, Common) = match self.command {
            Command::Clean => {
                for swept in sweep::sweep_abandoned() {
                    println!("removed {swept}");
                }
                return Ok(true);
            }
            Command::Hog { bytes } => hog::take_and_hold(bytes),
            Command::All(all) => {
                interrupt::install()?;
                let plan = all.common.plan()?;
                return all::run(&plan, all.resume.as_deref(), all.common.json);
            }
            Command::Campaign(which) => match which {
                Campaigns::Plug(common) => (campaigns::PLUG, common),
                Campaigns::Powercut(common) => (campaigns::POWERCUT, common),
                Campaigns::Deadline(common) => (campaigns::DEADLINE, common),
                Campaigns::Memory(common) => (campaigns::MEMORY, common),
                Campaigns::Autoconf(common) => (campaigns::AUTOCONF, common),
                Campaigns::Hostile(common) => (campaigns::HOSTILE, common),
                Campaigns::Lifecycle(common) => (campaigns::LIFECYCLE, common),
                Campaigns::Transports(common) => (campaigns::TRANSPORTS, common),
                Campaigns::BenchPeers(common) => (campaigns::BENCH_PEERS, common),
            },
        };
        interrupt::install()?;
        let plan = common.plan()?;
        let outcome = campaigns::run(&campaign, &plan)?;
        if common.json {
            println!("{}", serde_json::to_string_pretty(&outcome)?);
        } else {
            for failed in &outcome.failed {
                println!("  {failed}");
            }
        }
        eprintln!("{}", outcome.line());
        if !common.json {
            println!("{}", outcome.line());
        }
        Ok(outcome.pass)
    }
}
