//! Finds and removes everything that belongs to a campaign, by the campaign's directory: processes (marked in their
//! environment), mounts and loop devices below it, links in `/dev/dst`, control groups and network namespaces with its name.
//!
//! The order matters: servers and agents die first, so that I/O on their devices fails and whoever hangs in it can end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{kill_process, Pid, Signal};

/// In a campaign's directory, a link to its `dst`.
pub const DST: &str = "dst";

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Processes with their command lines.
    pub processes: Vec<(i32, String)>,
    /// Mount points, in the order of mounting.
    pub mounts: Vec<PathBuf>,
    /// Of those that are FUSE, the minor number of the connection.
    fuse: Vec<String>,
    /// Loop devices, by name.
    pub loops: Vec<String>,
    /// Links in `/dev/dst`.
    pub links: Vec<PathBuf>,
    /// Directories of control groups.
    pub cgroups: Vec<PathBuf>,
    /// Network namespaces, by name.
    pub namespaces: Vec<String>,
}

/// Looks for what belongs to the campaign in `root`.
pub fn find(root: &Path) -> Found {
    let prefix = super::unique_prefix(root);
    let named = |dir: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect()
    };
    let mut cgroups = Vec::new();
    for dir in [
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/unified",
    ] {
        cgroups.extend(named(dir));
    }
    Found {
        processes: processes(root),
        mounts: mounts(root).into_iter().map(|m| m.point).collect(),
        fuse: mounts(root).into_iter().filter_map(|m| m.fuse).collect(),
        loops: loops(root),
        links: named("/dev/dst"),
        cgroups,
        namespaces: named("/run/netns")
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect(),
    }
}

/// Removes everything of a campaign, its directory too. Returns what there was, besides the directory.
pub fn sweep(root: &Path) -> Vec<String> {
    // A process that was just being started may have been missed: once more until nothing is found.
    let mut swept = Vec::new();
    detach(root);
    for _ in 0..5 {
        let found = find(root);
        let text = found.describe();
        if text.is_empty() {
            break;
        }
        swept.extend(text);
        found.remove();
    }
    let _ = fs::remove_dir_all(root);
    swept
}

/// Detaches by force what has a directory of its own below `root`. A device of the nbd driver would outlive its agent and
/// keep every process waiting that uses it.
fn detach(root: &Path) {
    let run = root.join("run");
    for entry in fs::read_dir(&run).into_iter().flatten().flatten() {
        let _ = Command::new(root.join(DST))
            .args(["detach", "--force"])
            .arg(entry.file_name())
            .env("DST_RUNTIME_DIR", &run)
            .output();
    }
}

impl Found {
    /// In words.
    pub fn describe(&self) -> Vec<String> {
        let mut text = Vec::new();
        let processes = self.processes.iter();
        text.extend(processes.map(|(pid, line)| format!("process {pid} ({line})")));
        text.extend(self.mounts.iter().map(|m| format!("mount {}", m.display())));
        text.extend(self.loops.iter().map(|l| format!("loop device {l}")));
        text.extend(self.links.iter().map(|l| format!("link {}", l.display())));
        text.extend(
            self.cgroups
                .iter()
                .map(|c| format!("cgroup {}", c.display())),
        );
        let namespaces = self.namespaces.iter();
        text.extend(namespaces.map(|n| format!("network namespace {n}")));
        text
    }

    /// Removes it.
    pub fn remove(&self) {
        for (pid, _) in &self.processes {
            if let Some(pid) = Pid::from_raw(*pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        // An agent that waits in the kernel for I/O on its own device (memory pressure does that) can't die before.
        self.abort_fuse();
        let start = Instant::now();
        let gone = |pid: &i32| !alive(*pid);
        while !self.processes.iter().all(|(pid, _)| gone(pid))
            && start.elapsed() < Duration::from_secs(10)
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        for mount in self.mounts.iter().rev() {
            let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
        }
        for name in &self.loops {
            let _ = Command::new("losetup")
                .args(["-d", &format!("/dev/{name}")])
                .output();
        }
        for link in &self.links {
            let _ = fs::remove_file(link);
        }
        for group in &self.cgroups {
            let _ = fs::remove_dir(group);
        }
        for name in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }

    /// Aborts the FUSE connections of mounts (Documentation/filesystems/fuse, "Aborting a filesystem connection").
    fn abort_fuse(&self) {
        if self.fuse.is_empty() {
            return;
        }
        let Ok(control) = tempfile::tempdir() else {
            return;
        };
        let flags = MountFlags::empty();
        if rustix::mount::mount("fusectl", control.path(), "fusectl", flags, None).is_err() {
            return;
        }
        for minor in &self.fuse {
            let _ = fs::write(control.path().join(minor).join("abort"), "1");
        }
        let _ = rustix::mount::unmount(control.path(), UnmountFlags::DETACH);
    }
}

/// Neither gone nor a zombie that only waits for its parent.
fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(')')?.1.trim_start().starts_with('Z')))
        .is_some_and(|zombie| !zombie)
}

/// Processes with the mark of this directory in their environment.
pub fn processes(root: &Path) -> Vec<(i32, String)> {
    let mark = format!("{}={}\0", super::MARK, root.display());
    let mark = mark.as_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if pid as u32 == std::process::id() || !environ.windows(mark.len()).any(|w| w == mark) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line: Vec<_> = line
            .split(|b| *b == 0)
            .map(String::from_utf8_lossy)
            .collect();
        found.push((pid, line.join(" ").trim().to_owned()));
    }
    found
}

/// One mount.
struct Mounted {
    point: PathBuf,
    fuse: Option<String>,
}

/// Mounts below the directory (proc(5), `/proc/pid/mountinfo`).
fn mounts(root: &Path) -> Vec<Mounted> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (_, minor) = fields.nth(2)?.split_once(':')?;
            let point = PathBuf::from(fields.nth(1)?);
            let is_fuse = line.split_once(" - ")?.1.starts_with("fuse");
            point.starts_with(root).then(|| Mounted {
                point,
                fuse: is_fuse.then(|| minor.to_owned()),
            })
        })
        .collect()
}

/// Loop devices over files below the directory.
pub fn loops(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        if backing.is_ok_and(|file| Path::new(file.trim()).starts_with(root)) {
            found.push(name);
        }
    }
    found
}

/// Copies the logs of servers and agents out of a campaign's directory, and says where they are.
pub fn save_logs(root: &Path) {
    let Some(name) = root.file_name() else {
        return;
    };
    let to = Path::new("/tmp/dst-e2e-logs").join(name);
    let mut saved = 0;
    let mut save = |path: &Path, name: String| {
        if fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0)
            && fs::create_dir_all(&to).is_ok()
            && fs::copy(path, to.join(name)).is_ok()
        {
            saved += 1;
        }
    };
    let entries = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    for path in entries(root) {
        if path.extension().is_some_and(|e| e == "log") {
            save(
                &path,
                path.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    for dir in entries(&root.join("run")) {
        let device = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        save(&dir.join("log"), format!("agent-{device}.log"));
    }
    if saved > 0 {
        eprintln!("e2e: logs are in {}", to.display());
    }
}

/// Sweeps what campaigns have left whose process is gone (it was killed by SIGKILL). Returns what there was.
pub fn sweep_abandoned() -> Vec<String> {
    let mut swept = Vec::new();
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let root = entry.path();
        let owner = fs::read_to_string(root.join("owner"));
        let owner = owner.ok().and_then(|pid| pid.trim().parse().ok());
        let ours = root.to_string_lossy().starts_with(super::PREFIX);
        if ours && owner.is_some_and(|pid| !alive(pid)) {
            swept.push(format!("directory {}", root.display()));
            swept.extend(sweep(&root));
        }
    }
    swept
}
