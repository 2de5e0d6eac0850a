//! `dst demo`: everything at once on one machine, with proof.
//!
//! Serves a new image, attaches it, makes ext4 on it, writes a tree of files, kills the server in the middle and starts it
//! again, checks the file system, detaches, attaches anew and verifies every byte. It does so with the commands that a user
//! would type; only writing and verifying the files is done here.
//!
//! As root the device is a block device and gets mounted. Without root it is a file: the same tree gets into it by
//! `mkfs.ext4 -d` and out of it by `debugfs`.
//!
//! | file | subject |
//! | --- | --- |
//! | `tree.rs` | files whose content is known |
//! | `workspace.rs` | what is made and taken away again |
//! | `child.rs` | waiting for programs and blocking work |
//! | `tools.rs` | the programs needed |

mod child;
mod tools;
mod tree;
mod workspace;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dst_store::format_size;
use serde::Serialize;

use self::child::Runner;
use self::tools::Tools;
use self::tree::Tree;
use self::workspace::{Attached, Workspace, LIMIT};
use crate::cli::Demo;
use crate::exit::{Code, Failure, Outcome};
use crate::progress::Progress;
use crate::render;
use crate::signals::Signals;

/// Smallest disk that ext4 with a journal and the tree fit on.
const SMALLEST: u64 = 64 << 20;

/// Most bytes in files: enough to show, little enough for a minute on a slow machine.
const MOST: u64 = 128 << 20;

/// The same without a mount: `mkfs.ext4 -d` writes block by block.
const MOST_UNMOUNTED: u64 = 32 << 20;

/// How long the server stays dead.
const OUTAGE: Duration = Duration::from_millis(1500);

/// How often the progress of blocking work is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What the files are made from.
const SEED: u64 = 2008;

/// What it came to.
#[derive(Debug, Default, Serialize)]
struct Summary {
    node: String,
    device: String,
    kind: String,
    front_end: String,
    disk_bytes: u64,
    files: usize,
    file_bytes: u64,
    /// Bytes written to the device when the server was killed.
    killed_after_bytes: u64,
    /// Seconds without a server.
    outage_s: f64,
    reconnects: u64,
    replayed: u64,
    write_mib_per_second: f64,
    verify_mib_per_second: f64,
    fsck: String,
    verified: bool,
    seconds: f64,
}

/// Runs it.
///
/// # Errors
/// A step failed, or a signal came. Everything is cleaned up then, too.
pub fn run(options: &Demo, json: bool) -> Outcome {
    if options.size < SMALLEST {
        return Err(Failure::new(
            Code::Usage,
            format!("--size must be {} at least", format_size(SMALLEST)),
        ));
    }
    let signals = Signals::install().map_err(Failure::io("can't take signals"))?;
    let progress = Progress::new(json);
    let start = Instant::now();
    let runner = Runner::new(&signals);
    dst_blockdev::check(dst_blockdev::Choice::Auto, None)?;
    let tools = Tools::get(&runner, &progress)?;
    let mut workspace = Workspace::new(runner, options.dir.as_deref(), options.size, options.keep)?;
    let shown = Script {
        workspace: &mut workspace,
        tools: &tools,
        progress: &progress,
        step: 0,
        summary: Summary {
            disk_bytes: options.size,
            ..Summary::default()
        },
    }
    .play();
    progress.doing("cleaning up");
    let cleaned = workspace.clean_up();
    let mut summary = shown?;
    cleaned?;
    summary.seconds = start.elapsed().as_secs_f64();
    if options.keep {
        progress.line(&format!("kept: {}", workspace.dir().display()));
    }
    if json {
        return render::json(&summary);
    }
    progress.line(&format!(
        "\nEvery byte of {} files ({}) is right, on {} (a {} over {}); write {}, read {}; {:.0} s in all.",
        summary.files,
        format_size(summary.file_bytes),
        summary.node,
        kind_text(&summary.kind),
        summary.front_end,
        render::throughput(summary.write_mib_per_second * f64::from(1 << 20)),
        render::throughput(summary.verify_mib_per_second * f64::from(1 << 20)),
        summary.seconds
    ));
    Ok(())
}

/// `block-device` as people write it.
fn kind_text(kind: &str) -> String {
    kind.replace('-', " ")
}

/// The steps.
struct Script<'a, 'b> {
    workspace: &'a mut Workspace<'b>,
    tools: &'a Tools,
    progress: &'a Progress,
    step: u32,
    summary: Summary,
}

impl Script<'_, '_> {
    fn say(&mut self, text: &str) {
        self.step += 1;
        self.progress.line(&format!("{:>2}. {text}", self.step));
    }

    fn play(mut self) -> Outcome<Summary> {
        self.progress.doing("starting the server");
        let url = self.workspace.start_server()?;
        self.say(&format!(
            "serve    a new sparse image of {}, {}",
            format_size(self.summary.disk_bytes),
            self.workspace.image().display()
        ));
        let attached = self.attach(&url)?;
        let mounts = attached.kind == "block-device";
        let most = if mounts { MOST } else { MOST_UNMOUNTED };
        let tree = Tree::plan(SEED, (self.summary.disk_bytes / 8).min(most));
        self.summary.files = tree.files();
        self.summary.file_bytes = tree.bytes();
        let outage = match mounts {
            true => self.fill_mounted(&attached, &tree)?,
            false => self.fill_bare_file(&attached, &tree)?,
        };
        self.summary.outage_s = outage.as_secs_f64();
        self.check(&attached.node)?;

        self.progress.doing("detaching");
        self.workspace.detach()?;
        self.say("detach   the device is gone");
        let attached = self.attach(&url)?;
        match mounts {
            true => self.verify_mounted(&attached, &tree)?,
            false => self.verify_bare_file(&attached, &tree)?,
        }
        self.progress.doing("detaching and stopping the server");
        self.workspace.detach()?;
        self.workspace.stop_server()?;
        self.say("detach   the device is gone, the server has ended in good order");
        Ok(self.summary)
    }

    fn attach(&mut self, url: &str) -> Outcome<Attached> {
        self.progress.doing(format!("attaching {url}"));
        let attached = self.workspace.attach(url)?;
        let leads_to = match attached.node == attached.device {
            true => String::new(),
            false => format!(" -> {}", attached.device.display()),
        };
        self.say(&format!(
            "attach   {}{leads_to} (a {} over {})",
            attached.node.display(),
            kind_text(&attached.kind),
            attached.front_end
        ));
        self.summary.node = attached.node.display().to_string();
        self.summary.device = attached.device.display().to_string();
        self.summary.kind.clone_from(&attached.kind);
        self.summary.front_end.clone_from(&attached.front_end);
        Ok(attached)
    }

    /// Makes a file system, mounts it, and writes the tree while the server is killed and started again. Returns how long it
    /// was away.
    fn fill_mounted(&mut self, attached: &Attached, tree: &Tree) -> Outcome<Duration> {
        self.progress.doing("making a file system");
        let mut mkfs = Command::new(&self.tools.mkfs);
        mkfs.arg("-q").arg("-F").arg(&attached.node);
        self.workspace.runner().succeed(&mut mkfs, LIMIT)?;
        self.say("mkfs     ext4");
        self.workspace.mount(&attached.node, false)?;
        self.say(&format!(
            "mount    at {}",
            self.workspace.mount_point().display()
        ));

        let (point, state) = (
            self.workspace.mount_point(),
            Arc::clone(&self.workspace.progress),
        );
        let files = tree.clone();
        let start = Instant::now();
        let writing = self.workspace.runner().start("writing files", move || {
            files.write(&point, &state)?;
            rustix::fs::syncfs(std::fs::File::open(&point)?)?;
            Ok(())
        })?;
        let state = Arc::clone(&self.workspace.progress);
        let written = || state.bytes.load(Ordering::Relaxed);
        while written() < tree.bytes() / 2 && !writing.is_done() {
            self.show_writing(written(), tree);
            self.workspace.runner().sleep(LOOK)?;
        }
        let outage = self.interrupt_service(written())?;
        while !writing.is_done() {
            self.show_writing(written(), tree);
            if start.elapsed() > LIMIT + outage {
                break;
            }
            self.workspace.runner().sleep(LOOK)?;
        }
        self.workspace
            .runner()
            .finish(writing, Duration::from_secs(1))?;
        self.show_written(tree, start.elapsed().saturating_sub(outage))?;
        self.progress.doing("unmounting");
        self.workspace.unmount()?;
        self.say("unmount");
        Ok(outage)
    }

    fn show_writing(&self, written: u64, tree: &Tree) {
        self.progress.doing(format!(
            "writing files: {} of {}",
            format_size(written),
            format_size(tree.bytes())
        ));
    }

    fn show_written(&mut self, tree: &Tree, time: Duration) -> Outcome {
        let status = self.workspace.status()?;
        self.summary.reconnects = status.reconnects;
        self.summary.replayed = status.replayed;
        let rate = tree.bytes() as f64 / time.as_secs_f64().max(1e-9);
        self.summary.write_mib_per_second = rate / f64::from(1 << 20);
        self.say(&format!(
            "write    {} files, {}, all on the server's disk: {}; {} reconnect(s), {} write(s) replayed",
            tree.files(),
            format_size(tree.bytes()),
            render::throughput(rate),
            status.reconnects,
            status.replayed
        ));
        Ok(())
    }

    /// Kills the server, lets some time pass, and starts it again.
    fn interrupt_service(&mut self, written: u64) -> Outcome<Duration> {
        self.workspace.kill_server()?;
        let start = Instant::now();
        self.summary.killed_after_bytes = written;
        self.say(&format!(
            "kill -9  the server, after {} were written; I/O waits",
            format_size(written)
        ));
        self.progress.doing("the server is dead, I/O waits");
        self.workspace.runner().sleep(OUTAGE)?;
        self.workspace.start_server()?;
        self.progress.doing("the server is back, reconnecting");
        let until = start + LIMIT;
        while self.workspace.status()?.state != "live" {
            if Instant::now() > until {
                return Err(Failure::new(
                    Code::Io,
                    "the device did not come back with its server",
                ));
            }
            self.workspace.runner().sleep(LOOK)?;
        }
        let outage = start.elapsed();
        self.say(&format!(
            "serve    again; I/O goes on after {:.1} s without a server",
            outage.as_secs_f64()
        ));
        Ok(outage)
    }

    /// Puts the tree into a file system without mounting it, while the server is killed and started again.
    fn fill_bare_file(&mut self, attached: &Attached, tree: &Tree) -> Outcome<Duration> {
        self.progress
            .line("    (no root: no block device and no mount; mkfs.ext4 copies the files in)");
        let source = self.workspace.dir().join("tree");
        let (files, state, root) = (
            tree.clone(),
            Arc::clone(&self.workspace.progress),
            source.clone(),
        );
        self.workspace
            .runner()
            .block("making files", LIMIT, move || files.write(&root, &state))?;

        let mut mkfs = Command::new(&self.tools.mkfs);
        mkfs.args(["-q", "-F", "-b", "4096"])
            .arg("-d")
            .arg(&source)
            .arg(&attached.node);
        let start = Instant::now();
        let filling = self.workspace.runner().start("mkfs.ext4 -d", move || {
            let output = mkfs.output()?;
            match output.status.success() {
                true => Ok(()),
                false => Err(std::io::Error::other(
                    String::from_utf8_lossy(&output.stderr).into_owned(),
                )),
            }
        })?;
        let mut written = 0;
        while written < tree.bytes() / 2 && !filling.is_done() {
            written = self.workspace.status()?.totals.written_bytes;
            self.show_writing(written, tree);
            self.workspace.runner().sleep(LOOK)?;
        }
        let outage = self.interrupt_service(written)?;
        self.workspace.runner().finish(filling, LIMIT)?;
        self.show_written(tree, start.elapsed().saturating_sub(outage))?;
        Ok(outage)
    }

    fn check(&mut self, node: &Path) -> Outcome {
        self.progress.doing("checking the file system");
        let mut fsck = Command::new(&self.tools.fsck);
        fsck.arg("-f").arg("-n").arg(node);
        let output = self.workspace.runner().succeed(&mut fsck, LIMIT)?;
        let verdict = output.lines().last().unwrap_or_default().trim().to_owned();
        // Its last line starts with the path, which says nothing new.
        let verdict = verdict
            .split_once(": ")
            .map_or(verdict.clone(), |(_, rest)| rest.to_owned());
        self.say(&format!("fsck     clean: {verdict}"));
        self.summary.fsck = verdict;
        Ok(())
    }

    fn verify_mounted(&mut self, attached: &Attached, tree: &Tree) -> Outcome {
        self.workspace.mount(&attached.node, true)?;
        let point = self.workspace.mount_point();
        self.verify(&point, tree)?;
        self.workspace.unmount()
    }

    fn verify_bare_file(&mut self, attached: &Attached, tree: &Tree) -> Outcome {
        self.progress.doing("reading the files out");
        let copy = self.workspace.mount_point();
        std::fs::create_dir_all(&copy).map_err(Failure::io("can't make a directory"))?;
        let mut debugfs = Command::new(&self.tools.debugfs);
        debugfs
            .arg("-R")
            .arg(format!("rdump / \"{}\"", copy.display()))
            .arg(&attached.node);
        self.workspace.runner().succeed(&mut debugfs, LIMIT)?;
        self.verify(&copy, tree)
    }

    fn verify(&mut self, root: &Path, tree: &Tree) -> Outcome {
        self.progress.doing("verifying every byte");
        let state = Arc::clone(&self.workspace.progress);
        state.bytes.store(0, Ordering::Relaxed);
        let (files, root) = (tree.clone(), root.to_path_buf());
        let start = Instant::now();
        let verifying = move || files.verify(&root, &state);
        self.workspace
            .runner()
            .block("verifying", LIMIT, verifying)?;
        let rate = tree.bytes() as f64 / start.elapsed().as_secs_f64().max(1e-9);
        self.summary.verify_mib_per_second = rate / f64::from(1 << 20);
        self.summary.verified = true;
        self.say(&format!(
            "verify   every byte of {} files, {}: {}",
            tree.files(),
            format_size(tree.bytes()),
            render::throughput(rate)
        ));
        Ok(())
    }
}
