//! The laboratory of one campaign: a directory, names, ports and the `dst` binary. Everything that the campaign starts or
//! makes can be traced back to the directory, so that [`sweep`] finds it whatever has happened to the campaign.

pub mod cgroup;
pub mod device;
pub mod fsys;
pub mod kmsg;
pub mod netns;
pub mod server;
pub mod sweep;

use std::cell::Cell;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};

use crate::command::{self, Output};
use crate::interrupt;
use crate::rng::Rng;

/// The variable that marks every process of a campaign with its directory.
pub const MARK: &str = "DST_E2E_ROOT";

/// Directories of campaigns begin so.
pub const PREFIX: &str = "/tmp/dste2e.";

/// How much of a campaign is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// All of it.
    Full,
    /// For every change.
    Short,
    /// For every change on an emulated machine: each kind of fault that there is time for, once or twice.
    Quick,
}

impl Form {
    /// As it stands in results.
    pub fn name(self) -> &'static str {
        match self {
            Form::Full => "full",
            Form::Short => "short",
            Form::Quick => "quick",
        }
    }
}

/// What makes the block devices of a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FrontEnd {
    /// What `dst attach` takes of itself.
    Auto,
    /// A file of a FUSE file system with a loop device.
    Fuse,
    /// The kernel's ublk driver.
    Ublk,
    /// The kernel's nbd driver.
    Nbd,
}

impl FrontEnd {
    /// As `dst attach` and `dst status` call it; `None` where it was not asked for.
    pub fn name(self) -> Option<&'static str> {
        match self {
            FrontEnd::Auto => None,
            FrontEnd::Fuse => Some("fuse"),
            FrontEnd::Ublk => Some("ublk"),
            FrontEnd::Nbd => Some("nbd"),
        }
    }
}

/// How a campaign is to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How much of it.
    pub form: Form,
    /// The front end of every device: as `dst attach --front-end` has it.
    pub front_end: FrontEnd,
    /// What all random choices come from.
    pub seed: u64,
    /// The binary under test.
    pub dst: PathBuf,
    /// Leave the directory there.
    pub keep: bool,
    /// Only cases whose name contains this.
    pub only: Option<String>,
}

impl Plan {
    /// Whether less than all of it is run.
    pub fn short(&self) -> bool {
        self.form != Form::Full
    }

    /// One of two numbers, by the form.
    pub fn pick<T>(&self, full: T, short: T) -> T {
        if self.short() {
            short
        } else {
            full
        }
    }

    /// One of three numbers, by the form.
    pub fn pick_of<T>(&self, full: T, short: T, quick: T) -> T {
        match self.form {
            Form::Full => full,
            Form::Short => short,
            Form::Quick => quick,
        }
    }

    #[cfg(test)]
    pub fn for_test(form: Form) -> Plan {
        Plan {
            form,
            front_end: FrontEnd::Auto,
            seed: 1,
            dst: "dst".into(),
            keep: false,
            only: None,
        }
    }

    /// Whether a case was asked for.
    pub fn wants(&self, case: &str) -> bool {
        self.only.as_deref().is_none_or(|only| case.contains(only))
    }
}

/// See the [module](self). Sweeps when it is dropped.
pub struct Lab {
    root: PathBuf,
    /// How to run.
    pub plan: Plan,
    serial: Cell<u32>,
    next_port: Cell<u16>,
    finished: Cell<bool>,
}

impl Lab {
    /// Makes the directory.
    ///
    /// # Errors
    /// It can't be made; the binary is not there; not root.
    pub fn new(plan: &Plan) -> Result<Lab> {
        if !rustix::process::geteuid().is_root() {
            bail!("campaigns need root: they make block devices and mount them");
        }
        let dst = std::fs::canonicalize(&plan.dst).with_context(|| {
            format!(
                "no binary at {}: build it with `cargo build --release -p dst`, or give --dst PATH",
                plan.dst.display()
            )
        })?;
        // Random, and not from the seed: two runs of one seed must not meet.
        let mut id = [0; 4];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        let root = PathBuf::from(format!("{PREFIX}{:08x}", u32::from_le_bytes(id)));
        std::fs::create_dir(&root).with_context(|| format!("can't make {}", root.display()))?;
        std::fs::write(root.join("owner"), std::process::id().to_string())?;
        std::os::unix::fs::symlink(&dst, root.join(sweep::DST))?;
        interrupt::set_root(Some(root.clone()));
        // Below the ephemeral range, or the port of a killed server may be taken by somebody's connection.
        let first = 20_000 + (u16::from_le_bytes([id[0], id[1]]) % 11_000);
        Ok(Lab {
            root,
            plan: Plan {
                dst,
                ..plan.clone()
            },
            serial: Cell::new(0),
            next_port: Cell::new(first),
            finished: Cell::new(false),
        })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The `DST_RUNTIME_DIR` of everything here.
    pub fn runtime_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Random numbers for one part of the campaign.
    pub fn rng(&self, part: u64) -> Rng {
        Rng::new(self.plan.seed).fork(part)
    }

    /// A name that nothing else on this machine has: for devices, namespaces, control groups.
    pub fn unique(&self, base: &str) -> String {
        let serial = self.serial.get();
        self.serial.set(serial + 1);
        format!("{}{base}{serial}", self.id())
    }

    /// What all unique names begin with.
    pub fn id(&self) -> String {
        unique_prefix(&self.root)
    }

    /// A TCP port that nobody listens at.
    ///
    /// # Errors
    /// None is free.
    pub fn port(&self) -> Result<u16> {
        for _ in 0..1000 {
            let port = self.next_port.get();
            let next = if port >= 31_999 { 20_000 } else { port + 1 };
            self.next_port.set(next);
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
        }
        bail!("no free port");
    }

    /// The binary under test, with this laboratory's environment. Whatever it attaches gets the front end of the plan.
    pub fn dst<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let mut command = Command::new(&self.plan.dst);
        command.args(args);
        if command.get_args().next() == Some("attach".as_ref()) {
            command.args(self.attach_options());
        }
        self.mark(&mut command);
        command
    }

    /// Options that every attach gets.
    pub fn attach_options(&self) -> impl Iterator<Item = &'static str> {
        let front_end = self.plan.front_end.name();
        front_end.into_iter().flat_map(|name| ["--front-end", name])
    }

    /// Another program, marked as belonging here.
    pub fn program<I, S>(&self, program: &str, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let mut command = command::cmd(program, args);
        self.mark(&mut command);
        command
    }

    /// Gives a command this laboratory's environment.
    pub fn mark(&self, command: &mut Command) {
        command
            .env(MARK, &self.root)
            .env("DST_RUNTIME_DIR", self.runtime_dir())
            .env("DST_STATE_DIR", self.path("client-state"))
            .env("LC_ALL", "C");
    }

    /// Runs `dst` with these arguments to its end.
    ///
    /// # Errors
    /// It can't be run or does not end.
    pub fn run_dst(&self, args: &[&str], bound: Duration) -> Result<Output> {
        command::run(&mut self.dst(args), bound)
    }

    /// A sparse file.
    ///
    /// # Errors
    /// It can't be made.
    pub fn image(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.path(name);
        let file = std::fs::File::create(&path)
            .with_context(|| format!("can't make {}", path.display()))?;
        file.set_len(size)
            .with_context(|| format!("can't make {} {size} bytes long", path.display()))?;
        Ok(path)
    }

    /// The end of a campaign that has cleaned up after itself: whatever is still there is an error. It is swept in any case.
    ///
    /// # Errors
    /// Names what was left behind.
    pub fn finish(&self) -> Result<()> {
        self.finished.set(true);
        let left = sweep::find(&self.root).describe();
        self.clean(!left.is_empty());
        if left.is_empty() {
            return Ok(());
        }
        bail!("left behind: {}", left.join(", "));
    }

    /// Keeps the logs, for a campaign that failed.
    pub fn save_logs(&self) {
        sweep::save_logs(&self.root);
    }

    fn clean(&self, logs: bool) {
        if logs {
            sweep::save_logs(&self.root);
        }
        if self.plan.keep {
            sweep::find(&self.root).remove();
            eprintln!("e2e: kept {}", self.root.display());
        } else {
            sweep::sweep(&self.root);
        }
        interrupt::set_root(None);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.finished.get() {
            self.clean(true);
        }
    }
}

/// What names made by the laboratory in this directory begin with.
fn unique_prefix(root: &Path) -> String {
    let id = root.extension().unwrap_or_default().to_string_lossy();
    format!("e2e{id}")
}
