//! The directories of devices with their sockets, logs and locks.
//!
//! A device NAME has the directory ROOT/NAME. Its agent keeps there:
//!
//! | file | meaning |
//! | --- | --- |
//! | `agent.lock` | locked as long as the agent lives; who holds it may change the rest |
//! | `agent.json` | what the agent serves; there from its start to its clean end |
//! | `control` | its socket |
//! | `log` | its log, bounded |
//! | `record` | what a successor needs to make safe what the agent had acknowledged ([`dst_client::record`]) |
//!
//! So a device is *alive* if `agent.lock` is held, *dead* if it is not and `agent.json` is there (the agent was killed,
//! its leftovers wait for the next attach or detach of that name, and its device perhaps for a successor), and otherwise not
//! there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::control::Agent;
use crate::exit::{Code, Failure, Outcome};

/// Times that a lock is tried before it counts as held by an agent.
const LOOKS: u32 = 10;
/// How long the lock of an agent that has been killed is waited for: it goes with the last of its threads.
const DYING: Duration = Duration::from_secs(2);
/// Between two looks at a lock.
const LOOK: Duration = Duration::from_millis(5);

/// Where root's devices are.
const SYSTEM_ROOT: &str = "/run/dst";

/// The directories in which devices of interest to this user may be: its own first, then root's.
#[must_use]
pub fn roots() -> Vec<PathBuf> {
    let own = dst_blockdev::runtime_root();
    let mut roots = vec![own];
    let overridden = std::env::var_os("DST_RUNTIME_DIR").is_some_and(|dir| !dir.is_empty());
    if !overridden && !dst_blockdev::is_root() {
        roots.push(PathBuf::from(SYSTEM_ROOT));
    }
    roots
}

/// What an agent serves, for others to read without asking it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// The device's name.
    pub name: String,
    /// Process id of the agent.
    pub pid: u32,
    /// When that process was started, in clock ticks since the boot: tells it from another that got its number.
    #[serde(default)]
    pub started: Option<u64>,
    /// The URL, in its canonical form.
    pub url: String,
    /// Whether it was attached read-only.
    pub read_only: bool,
    /// The node, once there is one.
    #[serde(default)]
    pub node: Option<PathBuf>,
    /// What the node leads to, once there is one.
    #[serde(default)]
    pub device: Option<PathBuf>,
    /// The export's id, hexadecimal, once there is a device.
    #[serde(default)]
    pub export_id: Option<String>,
    /// What it runs with, for a successor.
    #[serde(default)]
    pub settings: Option<Settings>,
}

/// What an agent runs with and its successor will, besides what is in its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The kind of front end.
    pub front_end: String,
    /// When requests fail that are not answered, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// Connections.
    pub connections: u16,
    /// Most bytes of writes that it keeps; `None`: it keeps none.
    pub retain: Option<u64>,
    /// Plaintext is allowed beyond this machine.
    pub insecure: bool,
}

/// The directory of one device. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDir {
    name: String,
    path: PathBuf,
}

/// The lock of one device's directory; let go by dropping it, or by the kernel when the process dies.
#[derive(Debug)]
pub struct AgentLock {
    _file: File,
}

/// How a device is, judged by its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// An agent holds the lock.
    Alive,
    /// An agent was there and has left things behind.
    Dead,
    /// Nothing is there.
    Absent,
}

impl DeviceDir {
    /// The directory of the device `name` of this user, as it would be.
    #[must_use]
    pub fn own(name: &str) -> Self {
        Self::at(&dst_blockdev::runtime_root(), name)
    }

    fn at(root: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: root.join(name),
        }
    }

    /// Makes the directory of the device `name` of this user.
    ///
    /// # Errors
    /// A malformed name, or a place that belongs to somebody else.
    pub fn create(name: &str) -> Outcome<Self> {
        // Another device that is removed right now may take the directory above with it.
        let path = dst_blockdev::runtime_dir(name).or_else(|_| dst_blockdev::runtime_dir(name))?;
        Ok(Self {
            name: name.to_owned(),
            path,
        })
    }

    /// Every device that is alive or dead, by name, this user's first.
    #[must_use]
    pub fn all() -> Vec<(Self, Life)> {
        let mut found = Vec::new();
        for root in roots() {
            let mut names: Vec<String> = fs::read_dir(&root)
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| dst_blockdev::valid_name(name))
                .collect();
            names.sort();
            let devices = names.iter().map(|name| Self::at(&root, name));
            found.extend(
                devices
                    .map(|dir| (dir.life(), dir))
                    .filter(|(life, _)| *life != Life::Absent)
                    .map(|(life, dir)| (dir, life)),
            );
        }
        found
    }

    /// The device that `text` means: a name, or the path of a node.
    ///
    /// # Errors
    /// `NoDevice`.
    pub fn find(text: &str) -> Outcome<(Self, Life)> {
        let all = Self::all();
        let by_path = || {
            let wanted = fs::canonicalize(text).ok()?;
            let leads_there =
                |path: PathBuf| fs::canonicalize(path).is_ok_and(|path| path == wanted);
            all.iter().find(|(dir, _)| {
                let info = dir.info();
                let paths = info.map_or([None, None], |info| [info.node, info.device]);
                paths.into_iter().flatten().any(leads_there)
            })
        };
        let found = if text.contains('/') {
            // A node that is dangling still names its device.
            let named = text.strip_prefix(dst_blockdev::NODE_DIR).and_then(|rest| {
                let name = rest.strip_prefix('/')?;
                all.iter().find(|(dir, _)| dir.name == name)
            });
            by_path().or(named)
        } else {
            all.iter().find(|(dir, _)| dir.name == text)
        };
        found.cloned().ok_or_else(|| {
            Failure::new(Code::NoDevice, format!("there is no device {text}"))
                .hint("`dst status` shows the devices attached here")
        })
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the agent.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.path.join("control")
    }

    /// The log of the agent.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("agent.lock")
    }

    fn info_path(&self) -> PathBuf {
        self.path.join("agent.json")
    }

    /// Takes the lock; `None` if an agent holds it. The directory must exist.
    ///
    /// # Errors
    /// The lock file can't be opened.
    pub fn lock(&self) -> io::Result<Option<AgentLock>> {
        let mut looks = 0;
        let since = Instant::now();
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(self.lock_path())?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                // Somebody who only looks ([`DeviceDir::life`]) holds it for a moment.
                Err(rustix::io::Errno::WOULDBLOCK) if looks < LOOKS || self.is_dying(since) => {
                    looks += 1;
                    std::thread::sleep(LOOK);
                    continue;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
            // The one who held it may have removed the file meanwhile; then this lock keeps nobody out.
            let held = file.metadata()?.ino();
            match fs::metadata(self.lock_path()) {
                Ok(now) if now.ino() == held => return Ok(Some(AgentLock { _file: file })),
                _ => {}
            }
        }
    }

    /// How the device is. What can't be looked at because it is another user's counts as alive if it is a device.
    #[must_use]
    pub fn life(&self) -> Life {
        let since = Instant::now();
        let locked = match File::open(self.lock_path()) {
            Ok(file) => loop {
                let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)
                    == Err(rustix::io::Errno::WOULDBLOCK);
                if !locked || !self.is_dying(since) {
                    break locked;
                }
                std::thread::sleep(LOOK);
            },
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        };
        match (locked, self.info_path().exists()) {
            (true, _) => Life::Alive,
            (false, true) => Life::Dead,
            (false, false) => Life::Absent,
        }
    }

    /// Whether a lock that is held is only that of an agent which has ended, and of which some thread has not yet. Not for longer
    /// than a moment after `since`: there may be processes that can't be seen from here.
    fn is_dying(&self, since: Instant) -> bool {
        let agent = self.info().map(|info| info.pid);
        agent.is_some_and(has_ended) && since.elapsed() < DYING
    }

    /// What the agent serves or served.
    #[must_use]
    pub fn info(&self) -> Option<AgentInfo> {
        serde_json::from_slice(&fs::read(self.info_path()).ok()?).ok()
    }

    /// Writes down what the agent serves, in one step.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn set_info(&self, info: &AgentInfo) -> io::Result<()> {
        let new = self.path.join("agent.json.new");
        let text = serde_json::to_vec(info).map_err(io::Error::other)?;
        fs::write(&new, text)?;
        fs::rename(new, self.info_path())
    }

    /// Removes what an agent and its front end keep here, and the directory, and the one above if it was the last. `lock` is
    /// let go at the end; as long as it is held no other front end can come up here.
    pub fn remove(&self, lock: AgentLock) {
        let file = |name: &str| self.path.join(name);
        // What is not there need not be removed, and what is still in use (the mount point) stays.
        let _ = fs::remove_dir(file("disk"));
        let _ = dst_client::record::remove(&self.path);
        for path in [
            self.control(),
            self.log(),
            self.info_path(),
            file("agent.json.new"),
            file("front-end.lock"),
            self.lock_path(),
        ] {
            let _ = fs::remove_file(path);
        }
        let _ = fs::remove_dir(&self.path);
        if let Some(root) = self.path.parent() {
            let _ = fs::remove_dir(root);
        }
        drop(lock);
    }

    /// Takes away what the front end of a dead agent has left behind, in words; nothing if none was there. Whoever waits for an
    /// answer of that device gets an error now. `lock` is proof that the agent is dead.
    ///
    /// # Errors
    /// Something can't be removed.
    pub fn clean_up_front_end(&self, _lock: &AgentLock) -> Outcome<Vec<String>> {
        Ok(dst_blockdev::cleanup_stale(&self.name)?)
    }

    /// Takes away what a dead agent has left behind, the front end's things and the record too, in words; nothing if none
    /// was there. `lock` is proof that the agent is dead. Its directory stays.
    ///
    /// # Errors
    /// Something can't be removed.
    pub fn clean_up_after_death(&self, lock: &AgentLock) -> Outcome<Vec<String>> {
        let left = self.info();
        let mut removed = self.clean_up_front_end(lock)?;
        dst_client::record::remove(&self.path)
            .map_err(Failure::io("can't remove the record of a dead agent"))?;
        if let Some(info) = left {
            removed.insert(
                0,
                format!("the directory of the dead agent, process {}", info.pid),
            );
            for path in [self.control(), self.info_path()] {
                let _ = fs::remove_file(path);
            }
        }
        Ok(removed)
    }

    /// The process that has the agent's socket, or else holds the lock, as the kernel tells it. A stopped one too.
    #[must_use]
    pub fn agent_pid(&self) -> Option<Pid> {
        let listens = Agent::connect(&self.control()).and_then(|agent| agent.pid());
        listens.ok().or_else(|| self.lock_holder())
    }

    /// Whether `pid` is the process that wrote down that it is the agent here.
    #[must_use]
    pub fn is_agent(&self, pid: Pid) -> bool {
        let pid = pid.as_raw_nonzero().get();
        self.info().is_some_and(|info| {
            let same = info.started.is_none() || info.started == start_time(pid);
            i32::try_from(info.pid) == Ok(pid) && same
        })
    }

    fn lock_holder(&self) -> Option<Pid> {
        let file = fs::metadata(self.lock_path()).ok()?;
        let device = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
        let locks = fs::read_to_string("/proc/locks").ok()?;
        Pid::from_raw(holder_of(device, file.ino(), &locks)?)
    }

    /// The last lines of the log, at most `count`.
    #[must_use]
    pub fn last_log_lines(&self, count: usize) -> Vec<String> {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let start = lines.len().saturating_sub(count);
        lines[start..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect()
    }
}

/// The process that has the file with this device and inode flocked, from the text of `/proc/locks`, where the device is in
/// hexadecimal: `3: FLOCK  ADVISORY  WRITE 1234 fe:00:56789 0 EOF`.
fn holder_of((major, minor): (u32, u32), inode: u64, locks: &str) -> Option<i32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields.as_slice() else {
            return None;
        };
        let mut parts = file.split(':');
        let mut number = |radix| u64::from_str_radix(parts.next()?, radix).ok();
        let same = number(16) == Some(major.into())
            && number(16) == Some(minor.into())
            && number(10) == Some(inode);
        same.then(|| pid.parse().ok())?
    })
}

/// Whether a process is no more, but perhaps for some of its threads, and for being waited for.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_none_or(|state| state.starts_with(['Z', 'X']))
}

/// When a process was started, in clock ticks since the boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)). The name, field
/// 2, may hold anything, so fields are counted from its closing parenthesis.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_in(root: &Path) -> DeviceDir {
        let dir = DeviceDir::at(root, "disk");
        fs::create_dir_all(&dir.path).unwrap();
        dir
    }

    fn info() -> AgentInfo {
        AgentInfo {
            name: "disk".into(),
            pid: 77,
            started: None,
            url: "dst://storage:7789/disk".into(),
            read_only: false,
            node: None,
            device: None,
            export_id: None,
            settings: None,
        }
    }

    #[test]
    fn a_device_is_alive_while_locked_then_dead_then_absent() {
        let root = tempfile::tempdir().unwrap();
        let dir = dir_in(root.path());
        assert_eq!(dir.life(), Life::Absent);
        let lock = dir.lock().unwrap().unwrap();
        assert!(dir.lock().unwrap().is_none());
        assert_eq!(dir.life(), Life::Alive);
        dir.set_info(&info()).unwrap();
        assert_eq!(dir.info(), Some(info()));
        drop(lock);
        assert_eq!(dir.life(), Life::Dead);
        dir.remove(dir.lock().unwrap().unwrap());
        assert_eq!(dir.life(), Life::Absent);
        assert!(
            !root.path().exists(),
            "the last device takes the root with it"
        );
        fs::create_dir_all(root.path()).unwrap();
    }

    #[test]
    fn the_lock_of_a_dead_agent_that_has_not_gone_yet_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let dir = dir_in(root.path());
        let lock = dir.lock().unwrap().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let mut info = info();
        info.pid = child.id();
        dir.set_info(&info).unwrap();
        // A zombie from here on, until it is waited for.
        while !has_ended(info.pid) {
            std::thread::sleep(LOOK);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(20 * LOOK);
                drop(lock);
            });
            assert_eq!(dir.life(), Life::Dead);
            assert!(dir.lock().unwrap().is_some());
        });
        child.wait().unwrap();
        assert!(has_ended(info.pid) && !has_ended(std::process::id()));
    }

    #[test]
    fn a_lock_of_a_removed_file_is_not_taken_for_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let dir = dir_in(root.path());
        let old = dir.lock().unwrap().unwrap();
        fs::remove_file(dir.lock_path()).unwrap();
        let new = dir.lock().unwrap();
        assert!(new.is_some());
        drop(old);
        assert!(dir.lock().unwrap().is_none());
    }

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let root = tempfile::tempdir().unwrap();
        let dir = dir_in(root.path());
        let _lock = dir.lock().unwrap().unwrap();
        assert_eq!(dir.lock_holder(), Some(rustix::process::getpid()));
        assert_eq!(dir.agent_pid(), Some(rustix::process::getpid()));
        let text = "1: POSIX  ADVISORY  WRITE 5 fe:00:9 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 6 fe:00:9 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 7 fe:00:9 0 EOF\n";
        assert_eq!(holder_of((0xfe, 0), 9, text), Some(7));
        assert_eq!(holder_of((0xfe, 0), 8, text), None);
        // The same number of a file elsewhere.
        assert_eq!(holder_of((0xfe, 1), 9, text), None);
        assert_eq!(holder_of((0xfd, 0), 9, text), None);
    }

    #[test]
    fn only_the_process_that_is_written_down_is_the_agent() {
        let root = tempfile::tempdir().unwrap();
        let dir = dir_in(root.path());
        let me = rustix::process::getpid();
        assert!(!dir.is_agent(me));
        dir.set_info(&info()).unwrap();
        assert!(!dir.is_agent(me));
        let mut mine = info();
        mine.pid = std::process::id();
        dir.set_info(&mine).unwrap();
        assert!(dir.is_agent(me));
        let started = start_time(me.as_raw_nonzero().get());
        assert!(started.is_some());
        mine.started = started;
        dir.set_info(&mine).unwrap();
        assert!(dir.is_agent(me));
        mine.started = started.map(|ticks| ticks + 1);
        dir.set_info(&mine).unwrap();
        assert!(!dir.is_agent(me));
    }

    #[test]
    fn only_the_last_lines_of_a_log_are_shown() {
        let root = tempfile::tempdir().unwrap();
        let dir = dir_in(root.path());
        assert!(dir.last_log_lines(2).is_empty());
        fs::write(dir.log(), "a\nb\nc\n").unwrap();
        assert_eq!(dir.last_log_lines(2), ["b", "c"]);
    }
}
