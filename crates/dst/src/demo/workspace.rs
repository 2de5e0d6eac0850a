//! Everything that a demo makes outside of its own memory, and how it is taken away again: after success, failure, a signal
//! and a panic alike.
//!
//! What may be there is noted before it is made, so that nothing is missed when making it is interrupted; taking away what
//! is not there does no harm.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;
use serde::Deserialize;

use super::child::{self, Ran, Runner};
use super::tree::Progress as TreeProgress;
use crate::control::DeviceReport;
use crate::exit::{Code, Failure, Outcome};

/// Limit of each step, far beyond what it takes: a demo that hangs must say so.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How long the steps of cleaning up may take before force is used.
const GENTLE: Duration = Duration::from_secs(5);

/// How long others may hold a device that is to go.
const BUSY: Duration = Duration::from_secs(10);

/// Longest path of a Unix socket.
const LONGEST_SOCKET: usize = 107;

/// The export's name.
const EXPORT: &str = "demo";

/// What the server says when it is up.
#[derive(Debug, Deserialize)]
struct Announced {
    exports: Vec<AnnouncedExport>,
}

#[derive(Debug, Deserialize)]
struct AnnouncedExport {
    urls: Vec<String>,
}

/// What `dst attach --json` says.
#[derive(Debug, Clone, Deserialize)]
pub struct Attached {
    /// The path to use.
    pub node: PathBuf,
    /// What it leads to.
    pub device: PathBuf,
    /// `block-device` or `file`.
    pub kind: String,
    /// The kind of front end.
    pub front_end: String,
}

/// See the module.
pub struct Workspace<'a> {
    runner: Runner<'a>,
    dir: PathBuf,
    keep: bool,
    size: u64,
    name: String,
    server: Option<Child>,
    attached: bool,
    mounted: bool,
    /// Of the work that uses the mount.
    pub progress: Arc<TreeProgress>,
    cleaned: bool,
}

impl<'a> Workspace<'a> {
    /// Makes the directory.
    ///
    /// # Errors
    /// It can't be made, or sockets in it would have too long a name.
    pub fn new(runner: Runner<'a>, base: Option<&Path>, size: u64, keep: bool) -> Outcome<Self> {
        let base = base.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let base = fs::canonicalize(&base).map_err(Failure::io(format!(
            "can't use the directory {}",
            base.display()
        )))?;
        let dir = tempfile::Builder::new()
            .prefix("dst-demo-")
            .tempdir_in(&base)
            .map_err(Failure::io(format!(
                "can't make a directory in {}",
                base.display()
            )))?
            .keep();
        let workspace = Self {
            runner,
            dir,
            keep,
            size,
            name: format!("demo-{}", std::process::id()),
            server: None,
            attached: false,
            mounted: false,
            progress: Arc::default(),
            cleaned: false,
        };
        let socket = workspace
            .runtime_dir()
            .join(&workspace.name)
            .join("control");
        if socket.as_os_str().len() > LONGEST_SOCKET {
            return Err(Failure::new(
                Code::Usage,
                format!("{} is too long a path for sockets", base.display()),
            )
            .hint("choose a shorter one with --dir"));
        }
        Ok(workspace)
    }

    /// What waits for things here.
    pub fn runner(&self) -> &Runner<'a> {
        &self.runner
    }

    /// The directory of everything.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The disk image.
    pub fn image(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// Where the file system is mounted, or its files are where it is not.
    pub fn mount_point(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn server_log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// This program, with everything it keeps inside the directory.
    fn dst(&self, arguments: &[&str]) -> Outcome<Command> {
        let program = std::env::current_exe().map_err(Failure::io("can't find this program"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("DST_RUNTIME_DIR", self.runtime_dir())
            .env("DST_STATE_DIR", self.dir.join("state"));
        Ok(command)
    }

    /// Runs this program; a failure is passed on with its code.
    fn dst_to_end(&self, runner: &Runner<'_>, arguments: &[&str]) -> Outcome<Ran> {
        let mut words = vec!["--json"];
        words.extend(arguments);
        let ran = runner.run(&mut self.dst(&words)?, LIMIT)?;
        if ran.status.success() {
            return Ok(ran);
        }
        let failure = ran.errors.lines().find_map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            serde_json::from_value(value.get("error")?.clone()).ok()
        });
        Err(failure.unwrap_or_else(|| {
            let words = arguments.join(" ");
            Failure::new(
                Code::Other,
                format!("dst {words} failed: {}", ran.errors.trim()),
            )
        }))
    }

    /// Starts the server on the image, made if need be, and waits until it is up. Returns the URL of its export.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_server(&mut self) -> Outcome<String> {
        let what = "can't start the server";
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.server_log())
            .map_err(Failure::io(what))?;
        let socket = self.dir.join("socket");
        let (size, listen) = (
            self.size.to_string(),
            format!("dst+unix://{}", encoded(&socket)),
        );
        let export = format!("{EXPORT}={}", self.image().display());
        let arguments = [
            "--json", "serve", "--size", &size, "--listen", &listen, &export,
        ];
        let mut child = self
            .dst(&arguments)?
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(Failure::io(what))?;
        let output = child.stdout.take();
        self.server = Some(child);
        let mut output = BufReader::new(output.ok_or_else(|| Failure::new(Code::Other, what))?);
        self.runner
            .wait_for(output.get_ref().as_fd(), LIMIT, "starting the server")?;
        let mut line = String::new();
        output.read_line(&mut line).map_err(Failure::io(what))?;
        let announced: Option<Announced> = serde_json::from_str(&line).ok();
        let url = announced.and_then(|all| all.exports.into_iter().next()?.urls.into_iter().next());
        url.ok_or_else(|| {
            let log = fs::read_to_string(self.server_log()).unwrap_or_default();
            Failure::new(
                Code::Export,
                format!("the server did not start: {}", log.trim()),
            )
        })
    }

    /// Kills the server without a warning.
    ///
    /// # Errors
    /// It is not there.
    pub fn kill_server(&mut self) -> Outcome {
        let mut child = self
            .server
            .take()
            .ok_or_else(|| Failure::new(Code::Other, "there is no server to kill"))?;
        let killed = child.kill().and_then(|()| child.wait());
        killed
            .map(drop)
            .map_err(Failure::io("can't kill the server"))
    }

    /// Asks the server to end and waits until it has.
    ///
    /// # Errors
    /// It did not end in good order.
    pub fn stop_server(&mut self) -> Outcome {
        let Some(child) = &self.server else {
            return Ok(());
        };
        let pid = rustix::process::Pid::from_child(child);
        let process = child::pidfd(child).map_err(Failure::io("can't wait for the server"))?;
        rustix::process::kill_process(pid, Signal::TERM)
            .map_err(Failure::io("can't stop the server"))?;
        self.runner
            .wait_for(process.as_fd(), LIMIT, "stopping the server")?;
        let status = self.server.take().map(|mut child| child.wait());
        match status {
            Some(Ok(status)) if status.success() => Ok(()),
            other => Err(Failure::new(
                Code::Other,
                format!("the server did not end in good order: {other:?}"),
            )),
        }
    }

    /// Attaches the export.
    ///
    /// # Errors
    /// That of `dst attach`.
    pub fn attach(&mut self, url: &str) -> Outcome<Attached> {
        self.attached = true;
        let ran = self.dst_to_end(&self.runner, &["attach", "--name", &self.name, url])?;
        serde_json::from_str(&ran.output).map_err(|error| {
            Failure::new(
                Code::Other,
                format!("dst attach said {}: {error}", ran.output),
            )
        })
    }

    /// How the device is.
    ///
    /// # Errors
    /// That of `dst status`.
    pub fn status(&self) -> Outcome<DeviceReport> {
        #[derive(Deserialize)]
        struct Devices {
            devices: Vec<DeviceReport>,
        }
        let ran = self.dst_to_end(&self.runner, &["status", &self.name])?;
        let parsed: Option<Devices> = serde_json::from_str(&ran.output).ok();
        parsed
            .and_then(|all| all.devices.into_iter().next())
            .ok_or_else(|| Failure::new(Code::Other, format!("dst status said {}", ran.output)))
    }

    /// Detaches the device.
    ///
    /// # Errors
    /// That of `dst detach`.
    pub fn detach(&mut self) -> Outcome {
        let until = Instant::now() + BUSY;
        loop {
            match self.dst_to_end(&self.runner, &["detach", &self.name]) {
                // Somebody may look at every disk that comes and goes.
                Err(failure) if failure.code == Code::InUse && Instant::now() < until => {}
                done => {
                    done?;
                    self.attached = false;
                    return Ok(());
                }
            }
        }
    }

    /// Mounts the file system on `node`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mount(&mut self, node: &Path, read_only: bool) -> Outcome {
        let (node, point) = (node.to_path_buf(), self.mount_point());
        fs::create_dir_all(&point).map_err(Failure::io("can't make the mount point"))?;
        let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
        flags.set(MountFlags::RDONLY, read_only);
        self.mounted = true;
        self.runner.block("mounting", LIMIT, move || {
            Ok(rustix::mount::mount(node, point, "ext4", flags, None)?)
        })
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unmount(&mut self) -> Outcome {
        unmount(&self.runner, &self.mount_point(), LIMIT)?;
        self.mounted = false;
        Ok(())
    }

    /// Takes everything away. After a failure force is used where gentleness does not lead to the end.
    ///
    /// # Errors
    /// Something is left, and what.
    pub fn clean_up(&mut self) -> Outcome {
        if std::mem::replace(&mut self.cleaned, true) {
            return Ok(());
        }
        // A second signal ends the gentle part; nothing ends the rest.
        let gentle = self.runner.steadfast(false);
        let firm = self.runner.steadfast(true);
        self.progress.stop.store(true, Ordering::Relaxed);

        let serving = self
            .server
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        if serving && gentle.all_done(GENTLE) {
            if self.mounted && unmount(&gentle, &self.mount_point(), GENTLE).is_ok() {
                self.mounted = false;
            }
            if self.attached && !self.mounted && self.detach_with(&gentle, GENTLE, &[]) {
                self.attached = false;
            }
        }
        if self.attached && self.detach_with(&firm, 2 * GENTLE, &["--force"]) {
            self.attached = false;
        }
        // Requests fail now, so that whoever waited for one goes on.
        let _ = firm.all_done(GENTLE);
        if self.mounted {
            let _ = unmount(&firm, &self.mount_point(), GENTLE);
        }
        if let Some(mut child) = self.server.take() {
            child::end(&mut child, GENTLE);
        }
        self.remove_files()
    }

    /// Whether there is no device any more.
    fn detach_with(&self, runner: &Runner<'_>, limit: Duration, flags: &[&str]) -> bool {
        let mut words = vec!["detach", &self.name];
        words.extend(flags);
        let ran = self
            .dst(&words)
            .and_then(|mut command| runner.run(&mut command, limit));
        let gone = [Some(0), Some(i32::from(Code::NoDevice.number()))];
        ran.is_ok_and(|ran| gone.contains(&ran.status.code()))
    }

    /// Removes the directory; never what is mounted inside it.
    fn remove_files(&self) -> Outcome {
        for mount in mounts_below(&self.dir) {
            let _ = rustix::mount::unmount(mount.as_path(), UnmountFlags::DETACH);
        }
        let left = mounts_below(&self.dir);
        if let Some(mount) = left.first() {
            return Err(Failure::new(
                Code::Other,
                format!(
                    "{} could not be unmounted; it and {} are left",
                    mount.display(),
                    self.dir.display()
                ),
            ));
        }
        if self.keep {
            return Ok(());
        }
        fs::remove_dir_all(&self.dir)
            .map_err(Failure::io(format!("can't remove {}", self.dir.display())))
    }
}

impl Drop for Workspace<'_> {
    /// For panics: everything else has cleaned up before.
    fn drop(&mut self) {
        let _ = self.clean_up();
    }
}

/// Unmounts; waits for a moment where somebody (a desktop that looks at new disks) holds it.
fn unmount(runner: &Runner<'_>, point: &Path, limit: Duration) -> Outcome {
    let mut tries = 0;
    loop {
        let at = point.to_path_buf();
        let done = runner.block("unmounting", limit, move || {
            match rustix::mount::unmount(at, UnmountFlags::empty()) {
                // Not mounted, or no longer.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(true),
                Err(rustix::io::Errno::BUSY) => Ok(false),
                done => done.map(|()| true).map_err(io::Error::from),
            }
        })?;
        if done {
            return Ok(());
        }
        tries += 1;
        if tries == 50 {
            return Err(Failure::new(
                Code::InUse,
                format!("{} is in use", point.display()),
            ));
        }
        runner.sleep(Duration::from_millis(100))?;
    }
}

/// Mount points inside `dir`, innermost first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // Field 5 of proc_pid_mountinfo(5); the directory has no characters that would be escaped there but spaces, maybe.
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(dir))
        .collect();
    found.reverse();
    found
}

/// A path in a URL: only what may stand there as it is.
fn encoded(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        // Writing to a string does not fail.
        let _ = match plain {
            true => write!(text, "{}", char::from(byte)),
            false => write!(text, "%{byte:02X}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded_for_urls() {
        assert_eq!(encoded(Path::new("/tmp/a b/ü")), "/tmp/a%20b/%C3%BC");
    }

    #[test]
    fn mounts_are_seen_below_a_directory_only() {
        assert!(mounts_below(Path::new("/")).contains(&PathBuf::from("/")));
        assert!(mounts_below(Path::new("/no/such/place")).is_empty());
    }
}
