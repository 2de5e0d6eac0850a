//! A laboratory for the real binary: a directory of its own, servers and devices that are gone when the test is, whatever
//! becomes of it.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod direct;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Longest time for anything that should happen at once, on a very busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Whether devices can be made here; says so if not.
pub fn can_attach() -> bool {
    match dst_blockdev::check(dst_blockdev::Choice::Fuse, None) {
        Ok(_) if dst_blockdev::is_root() => true,
        Ok(_) => {
            eprintln!("skipped: not root");
            false
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// Waits until `done`.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A directory with everything of one test inside.
pub struct Lab {
    dir: tempfile::TempDir,
    /// Its devices begin with this.
    prefix: String,
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect(0)
    }

    /// Its standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Lab {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new()
            .prefix("dst-test-")
            .tempdir()
            .unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            dir,
            prefix: format!("t{}-{number}", std::process::id()),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A device name that no other test has.
    pub fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// The program, with everything it keeps inside the directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dst"));
        command
            .args(arguments)
            .env("DST_RUNTIME_DIR", self.path("run"))
            .env("DST_STATE_DIR", self.path("state"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        let attaches = arguments.iter().find(|word| !word.starts_with('-')) == Some(&"attach");
        let is_settled = |word: &&str| ["--recover", "--front-end"].contains(word);
        if attaches && !arguments.iter().any(is_settled) {
            // What becomes of FUSE's devices is what these tests are about, whatever else this machine has.
            command.args(["--front-end", "fuse"]);
        }
        command
    }

    pub fn dst(&self, arguments: &[&str]) -> Done {
        Done::from(self.command(arguments).output().unwrap())
    }

    /// As [`Lab::dst`], as another client: with an identity of its own.
    pub fn dst_as(&self, who: &str, arguments: &[&str]) -> Done {
        let state = self.path(&format!("state-{who}"));
        let mut command = self.command(arguments);
        Done::from(command.env("DST_STATE_DIR", state).output().unwrap())
    }

    /// A server at a Unix socket, with these further arguments.
    #[track_caller]
    pub fn serve(&self, arguments: &[&str]) -> Server {
        let socket = format!("dst+unix://{}", self.text("socket"));
        let state = self.text("server");
        let mut words = vec![
            "--json",
            "serve",
            "--state-dir",
            &state,
            "--listen",
            &socket,
        ];
        words.extend(arguments);
        Server::start(self.command(&words))
    }

    /// URL of an export of [`Lab::serve`].
    pub fn url(&self, export: &str) -> String {
        format!("dst+unix://{}?export={export}", self.text("socket"))
    }

    /// Attaches under a name of this lab's.
    #[track_caller]
    pub fn attach(&self, export: &str, name: &str, arguments: &[&str]) -> Device<'_> {
        let (url, name) = (self.url(export), self.name(name));
        let mut words = vec!["--json", "attach", "--name", &name, &url];
        words.extend(arguments);
        // Made first: what an attach leaves that fails halfway is taken away too.
        let mut device = Device {
            lab: self,
            name: name.clone(),
            node: PathBuf::new(),
            pid: 0,
            ready: Value::Null,
        };
        device.ready = self.dst(&words).ok().json();
        device.node = PathBuf::from(device.ready["node"].as_str().unwrap());
        device.pid = i32::try_from(device.ready["pid"].as_i64().unwrap()).unwrap();
        device
    }

    /// The report of one device.
    #[track_caller]
    pub fn status(&self, name: &str) -> Value {
        self.dst(&["status", "--json", name]).ok().json()["devices"][0].clone()
    }

    /// Nothing of this lab's is left: no mount, no loop device, no process.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let dir = self.dir.path().display().to_string();
        wait_until("the end of everything", || {
            leftovers(&dir, &self.prefix).is_empty()
        });
    }
}

/// What there is on this machine that mentions one of the two.
pub fn leftovers(dir: &str, prefix: &str) -> Vec<String> {
    let mentions = |text: &str| text.contains(dir) || text.contains(prefix);
    let mut found = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| mentions(line))
            .map(str::to_owned),
    );
    for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let backing = entry.path().join("loop/backing_file");
        let backing = std::fs::read_to_string(backing).unwrap_or_default();
        if mentions(&backing) {
            found.push(format!("{}: {backing}", entry.path().display()));
        }
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if pid != std::process::id() && mentions(&line) {
            found.push(format!("{pid}: {line}"));
        }
    }
    for node in std::fs::read_dir("/dev/dst")
        .into_iter()
        .flatten()
        .flatten()
    {
        if mentions(&node.path().display().to_string()) {
            found.push(node.path().display().to_string());
        }
    }
    found
}

/// A process that is gone when this is.
pub struct Running {
    pub child: Child,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child }
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether it has installed a handler for this signal.
    pub fn takes(&self, signal: Signal) -> bool {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        // Signal 1 is the lowest bit.
        mask.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
    }

    /// Stops every thread of it, and returns when they have stopped.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_until("the stop of every thread", || {
            std::fs::read_dir(&tasks).unwrap().flatten().all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(')')
                    .is_none_or(|(_, rest)| rest.starts_with(" T"))
            })
        });
    }

    /// Undoes [`Running::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("the end of a process", || {
            self.child.try_wait().unwrap().is_some()
        });
        self.child.wait().unwrap()
    }

    /// Reads standard output up to a line that contains `text`.
    #[track_caller]
    pub fn read_until(&mut self, text: &str) -> String {
        let mut lines = BufReader::with_capacity(1, self.child.stdout.as_mut().unwrap());
        let mut all = String::new();
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() == 0 {
                let mut errors = String::new();
                let _ = self
                    .child
                    .stderr
                    .as_mut()
                    .unwrap()
                    .read_to_string(&mut errors);
                panic!("no {text:?} in {all:?}; {errors}");
            }
            all.push_str(&line);
            if line.contains(text) {
                return all;
            }
        }
    }

    /// The rest of both outputs.
    pub fn rest(&mut self) -> (String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        let _ = self.child.stdout.as_mut().unwrap().read_to_string(&mut out);
        let _ = self.child.stderr.as_mut().unwrap().read_to_string(&mut err);
        (out, err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that is up.
pub struct Server {
    pub process: Running,
    /// What it said.
    pub announced: Value,
}

impl Server {
    #[track_caller]
    pub fn start(command: Command) -> Self {
        let mut process = Running::start(command);
        let line = process.read_until("{");
        Self {
            process,
            announced: serde_json::from_str(&line).unwrap(),
        }
    }

    pub fn kill(mut self) {
        self.process.child.kill().unwrap();
        self.process.child.wait().unwrap();
    }

    /// Ends it by SIGTERM and asserts that it ends well.
    #[track_caller]
    pub fn stop(mut self) {
        self.process.signal(Signal::TERM);
        let status = self.process.wait();
        assert!(status.success(), "{status}: {:?}", self.process.rest());
    }
}

/// A device that is gone when this is.
pub struct Device<'a> {
    lab: &'a Lab,
    pub name: String,
    pub node: PathBuf,
    /// Of the agent.
    pub pid: i32,
    /// What `dst attach` said.
    pub ready: Value,
}

impl Device<'_> {
    /// The loop device's directory in sysfs.
    pub fn sysfs(&self) -> PathBuf {
        let device = std::fs::canonicalize(&self.node).unwrap();
        Path::new("/sys/block").join(device.file_name().unwrap())
    }

    pub fn sysfs_number(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(self.sysfs().join(name)).unwrap();
        text.trim().parse().unwrap()
    }

    pub fn signal_agent(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_raw(self.pid).unwrap(), signal).unwrap();
    }

    /// Whether the agent's process is there and no zombie.
    pub fn agent_runs(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.starts_with(" Z"))
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let _ = self
            .lab
            .command(&["detach", "--force", &self.name])
            .output();
    }
}

/// A mount that is gone when this is.
pub struct Mount {
    pub point: PathBuf,
}

impl Mount {
    /// Mounts ext4.
    #[track_caller]
    pub fn new(node: &Path, point: PathBuf) -> Self {
        std::fs::create_dir_all(&point).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(node, &point, "ext4", flags, None).unwrap();
        Self { point }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Makes ext4.
#[track_caller]
pub fn mkfs(node: &Path) {
    let status = Command::new("/usr/sbin/mkfs.ext4")
        .arg("-qF")
        .arg(node)
        .status()
        .unwrap();
    assert!(status.success());
}
