//! A device in memory behind the real front end: one thread serves, as an agent does, the test drives from others.

#![allow(dead_code)] // Each test file uses its part.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dst_blockdev::{Choice, Config, Error, ErrorKind, FrontEnd, Node, NodeKind, Work};
use dst_buf::Pool;
use dst_client::{Completion, Extent, ExtentKind, Geometry, IoError, Op, Reply, Request};
use rustix::event::{epoll, EventfdFlags};

pub const MIB: u64 = 1 << 20;

pub fn geometry(size: u64, block: u32) -> Geometry {
    Geometry {
        size,
        logical_block: block,
        physical_block: block,
        max_transfer: 1 << 20,
        read_only: false,
        rotational: false,
        discard: true,
        discard_granularity: 4096,
        write_zeroes: true,
        write_cache: true,
        fua: true,
    }
}

/// What the device holds and what it was asked.
pub struct Memory {
    pub bytes: Vec<u8>,
    /// Requests by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// Bytes written since the last flush.
    pub unflushed: u64,
    /// Zeroing takes writing.
    pub slow_zeroes: bool,
    /// Answer nothing.
    pub hang: bool,
    /// Requests that were left without an answer.
    hanging: Vec<Request>,
}

impl Memory {
    pub fn count(&self, kind: &str) -> u64 {
        self.counts.get(kind).copied().unwrap_or(0)
    }

    /// Whether a request of this kind was left without an answer.
    pub fn hangs(&self, kind: &str) -> bool {
        self.hanging.iter().any(|request| {
            kind == match request.op {
                Op::Read { .. } => "read",
                Op::Write { .. } => "write",
                Op::Flush => "flush",
                _ => "other",
            }
        })
    }

    fn execute(&mut self, op: &Op, pool: &Pool) -> Result<Reply, IoError> {
        let size = self.bytes.len() as u64;
        let range = |offset: u64, len: u64| {
            let end = offset
                .checked_add(len)
                .filter(|end| *end <= size && len > 0);
            end.map(|end| offset as usize..end as usize)
                .ok_or(IoError::OutOfRange)
        };
        let (kind, reply) = match op {
            Op::Read { offset, len } => {
                let bytes = &self.bytes[range(*offset, u64::from(*len))?];
                let mut buf = pool.get(bytes.len());
                buf.copy_from_slice(bytes);
                ("read", Reply::Read(buf.share()))
            }
            Op::Write {
                offset, data, fua, ..
            } => {
                self.bytes[range(*offset, data.len() as u64)?].copy_from_slice(data);
                if *fua {
                    ("fua", Reply::Done)
                } else {
                    self.unflushed += data.len() as u64;
                    ("write", Reply::Done)
                }
            }
            Op::Flush => {
                self.unflushed = 0;
                ("flush", Reply::Done)
            }
            Op::Discard { .. } => ("discard", Reply::Done),
            Op::WriteZeroes {
                offset,
                len,
                may_unmap,
                fast_only,
                ..
            } => {
                if *fast_only && self.slow_zeroes {
                    return Err(IoError::Unsupported);
                }
                self.bytes[range(*offset, *len)?].fill(0);
                (if *may_unmap { "punch" } else { "zero" }, Reply::Done)
            }
            Op::BlockStatus { offset, len } => {
                let blocks = self.bytes[range(*offset, *len)?].chunks(4096);
                let extents = blocks.take(16).map(|block| Extent {
                    len: block.len() as u64,
                    kind: if block.iter().all(|b| *b == 0) {
                        ExtentKind::Hole
                    } else {
                        ExtentKind::Data
                    },
                });
                ("status", Reply::Extents(extents.collect()))
            }
        };
        *self.counts.entry(kind).or_default() += 1;
        Ok(reply)
    }
}

type Task = Box<dyn FnOnce(&mut dyn FrontEnd) + Send>;

/// A device under test.
pub struct Rig {
    pub name: String,
    pub memory: Arc<Mutex<Memory>>,
    /// Signalled after each batch of requests.
    progress: Arc<Condvar>,
    tasks: Option<Sender<Task>>,
    wake: Arc<OwnedFd>,
    server: Option<JoinHandle<()>>,
}

/// A name that no other test has.
pub fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test-{}-{next}", std::process::id())
}

pub fn config(name: &str, geometry: Geometry, node: NodeKind) -> Config {
    Config {
        name: name.to_owned(),
        geometry,
        node: Some(node),
        partitions: false,
        survives: false,
    }
}

impl Rig {
    /// Opens the front end and serves it, without starting it.
    pub fn open(config: &Config) -> Result<Rig, Error> {
        let front_end = dst_blockdev::open(Choice::Fuse, config)?;
        let memory = Arc::new(Mutex::new(Memory {
            bytes: vec![0; config.geometry.size as usize],
            counts: BTreeMap::new(),
            unflushed: 0,
            slow_zeroes: false,
            hang: false,
            hanging: Vec::new(),
        }));
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(wake.unwrap());
        let progress = Arc::new(Condvar::new());
        let (tasks, queue) = channel();
        let server = {
            let (memory, wake, progress) = (memory.clone(), wake.clone(), progress.clone());
            std::thread::spawn(move || serve(front_end, &memory, &progress, &wake, &queue))
        };
        Ok(Rig {
            name: config.name.clone(),
            memory,
            progress,
            tasks: Some(tasks),
            wake,
            server: Some(server),
        })
    }

    /// Opens and starts.
    pub fn start(config: &Config) -> (Rig, Node) {
        let rig = Rig::open(config).unwrap();
        let node = rig.run_start().unwrap();
        (rig, node)
    }

    pub fn run_start(&self) -> Result<Node, Error> {
        self.with(|front_end| front_end.start())()
    }

    /// Runs `task` on the thread that serves.
    pub fn with<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut dyn FrontEnd) -> T + Send + 'static,
    ) -> T {
        let (done, result) = channel();
        let task: Task = Box::new(move |front_end| {
            let _ = done.send(task(front_end));
        });
        self.tasks.as_ref().unwrap().send(task).unwrap();
        rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()).unwrap();
        result.recv().unwrap()
    }

    pub fn stop(&self, force: bool) -> Result<(), Error> {
        let work: Work<()> = self.with(move |front_end| front_end.stop(force));
        work()
    }

    pub fn in_use(&self) -> Option<String> {
        let work = self.with(|front_end| front_end.in_use());
        work().unwrap()
    }

    pub fn resize(&self, size: u64) -> Result<(), Error> {
        {
            let mut memory = self.memory.lock().unwrap();
            if size as usize > memory.bytes.len() {
                memory.bytes.resize(size as usize, 0);
            }
        }
        let work = self.with(move |front_end| front_end.resize(size));
        work?()
    }

    /// Waits until the device's state is as wanted, which requests bring about.
    pub fn wait_for(&self, wanted: impl Fn(&Memory) -> bool) {
        let mut memory = self.memory.lock().unwrap();
        while !wanted(&memory) {
            memory = self.progress.wait(memory).unwrap();
        }
    }

    pub fn count(&self, kind: &str) -> u64 {
        self.memory.lock().unwrap().count(kind)
    }

    /// Stops it as a user does and makes sure that nothing is left.
    pub fn finish(mut self) {
        let stopped = patiently(|| match self.stop(false) {
            Err(error) if error.kind() == ErrorKind::Busy => Err(error.to_string()),
            stopped => Ok(stopped),
        });
        stopped.unwrap();
        self.end();
        assert_nothing_left(&self.name);
    }

    /// Lets the serving thread drop the front end.
    pub fn end(&mut self) {
        self.tasks = None;
        rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()).unwrap();
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.server.is_some() {
            // A test failed: leave nothing, whatever hangs.
            let work = self.with(|front_end| front_end.stop(true));
            let _ = work();
            self.end();
        }
    }
}

/// The agent's loop.
fn serve(
    mut front_end: Box<dyn FrontEnd>,
    memory: &Mutex<Memory>,
    progress: &Condvar,
    wake: &OwnedFd,
    tasks: &Receiver<Task>,
) {
    let pool = Pool::new(64 << 20);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let readable = epoll::EventFlags::IN;
    epoll::add(
        &epoll,
        front_end.fd(),
        epoll::EventData::new_u64(0),
        readable,
    )
    .unwrap();
    epoll::add(&epoll, wake.as_fd(), epoll::EventData::new_u64(1), readable).unwrap();
    let mut registered = true;
    let mut requests: Vec<Request> = Vec::new();
    let mut more: Vec<Request> = Vec::new();
    let mut events = [epoll::Event {
        flags: readable,
        data: epoll::EventData::new_u64(0),
    }; 4];
    loop {
        match epoll::wait(&epoll, &mut events, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("{errno}"),
        }
        let _ = rustix::io::read(wake, &mut [0; 8]);
        loop {
            match tasks.try_recv() {
                Ok(task) => task(&mut *front_end),
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            }
        }
        front_end.take(&mut requests, &pool).unwrap();
        let mut memory = memory.lock().unwrap();
        while !requests.is_empty() {
            if memory.hang {
                memory.hanging.append(&mut requests);
                break;
            }
            // Last come, first served: nobody may count on an order.
            for request in requests.drain(..).rev() {
                let result = memory.execute(&request.op, &pool);
                let completion = Completion {
                    tag: request.tag,
                    result,
                };
                front_end.complete(completion, &mut more);
            }
            std::mem::swap(&mut requests, &mut more);
        }
        drop(memory);
        front_end.flush().unwrap();
        progress.notify_all();
        if front_end.stopped() && registered {
            // After a forced stop the descriptor has left the set by itself.
            let _ = epoll::delete(&epoll, front_end.fd());
            registered = false;
        }
    }
}

/// Tries until it succeeds. A program that another test is about to start has, for a moment, everything open that this
/// process has.
pub fn patiently<T>(mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(why) => assert!(Instant::now() < end, "{why}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command; it must succeed. Gives its standard output.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = try_run(program, args);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn try_run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Whether the tests that make block devices can run: they need root. Says so if not.
pub fn have_root() -> bool {
    let root = dst_blockdev::is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// No mount, loop device or node of that name is left.
pub fn assert_nothing_left(name: &str) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(name), "{mounts}");
    for entry in fs::read_dir("/sys/block").unwrap().flatten() {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        assert!(!file.contains(name), "{:?}: {file}", entry.path());
    }
    assert!(!Path::new("/dev/dst").join(name).is_symlink());
    let dir = dst_blockdev::runtime_root().join(name);
    assert!(
        !dir.exists(),
        "{:?}",
        fs::read_dir(&dir).map(|d| d.collect::<Vec<_>>())
    );
}

/// A value below `/sys/block/DISK/queue`.
pub fn queue(device: &Path, attribute: &str) -> String {
    let disk = device.file_name().unwrap();
    let path = Path::new("/sys/block")
        .join(disk)
        .join("queue")
        .join(attribute);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

/// Another process that serves a device, for tests that kill it or want another user: the test program itself, running
/// its ignored test `helper`.
pub struct Helper {
    pub child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Helper {
    pub fn start(command: &mut Command) -> Helper {
        let mut child = command
            .args([
                "--exact",
                "helper",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Helper { child, output }
    }

    /// The rest of the next line that begins with `say: `.
    pub fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "the helper ended");
            if let Some((_, said)) = line.trim_end().split_once("say: ") {
                return said.to_owned();
            }
        }
    }

    /// Closes its standard input and waits for a good end.
    pub fn finish(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

/// A directory that is unmounted and removed at the end.
pub struct MountPoint {
    pub path: PathBuf,
    mounted: bool,
}

impl MountPoint {
    pub fn mount(device: &Path) -> MountPoint {
        let path = tempfile::tempdir().unwrap().keep();
        run("mount", &[device.to_str().unwrap(), path.to_str().unwrap()]);
        MountPoint {
            path,
            mounted: true,
        }
    }

    pub fn unmount(mut self) {
        patiently(|| {
            let output = try_run("umount", &[self.path.to_str().unwrap()]);
            match output.status.success() {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            }
        });
        self.mounted = false;
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if self.mounted {
            try_run("umount", &["-l", self.path.to_str().unwrap()]);
        }
        let _ = fs::remove_dir(&self.path);
    }
}
