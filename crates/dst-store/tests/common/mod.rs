//! Drives a backend as a server would, but one step at a time; and makes and removes the disks that the tests need.
#![allow(dead_code, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use dst_buf::Pool;
use dst_store::{
    Backend, Completion, EngineChoice, Extent, Op, OpenError, OpenOptions, Outcome, Request, Spec,
    StoreError,
};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

/// Both ways to make system calls.
pub const ENGINES: [EngineChoice; 2] = [EngineChoice::Uring, EngineChoice::Threads];

pub fn options(engine: EngineChoice) -> OpenOptions {
    OpenOptions {
        engine,
        ..OpenOptions::default()
    }
}

pub fn open(path: &Path, options: &OpenOptions) -> Result<Driver, OpenError> {
    let spec: Spec = format!("x={}", path.display()).parse().unwrap();
    spec.open(options).map(Driver::new)
}

/// A file of `size` bytes in a directory of its own.
pub fn image(size: u64) -> (tempfile::TempDir, PathBuf) {
    image_in(None, size)
}

pub fn image_in(parent: Option<&Path>, size: u64) -> (tempfile::TempDir, PathBuf) {
    let directory = match parent {
        Some(parent) => tempfile::tempdir_in(parent).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let path = directory.path().join("disk.img");
    dst_store::create_sparse(&path, size).unwrap();
    (directory, path)
}

pub struct Driver {
    pub backend: Box<dyn Backend>,
    pub pool: Pool,
}

impl Driver {
    pub fn new(backend: Box<dyn Backend>) -> Driver {
        Driver {
            backend,
            pool: Pool::new(16 << 20),
        }
    }

    pub fn submit(&mut self, token: u64, op: Op) {
        self.backend.submit(Request { token, op });
    }

    /// Starts what was submitted and waits for all of it.
    pub fn finish(&mut self) -> Vec<Completion> {
        self.backend.kick();
        let mut done = Vec::new();
        while self.backend.in_flight() > 0 {
            self.wait_readable();
            self.backend.poll(&mut done);
        }
        done.sort_by_key(|completion| completion.token);
        done
    }

    pub fn wait_readable(&self) {
        let mut fds = [PollFd::from_borrowed_fd(
            self.backend.wake_fd(),
            PollFlags::IN,
        )];
        let guard = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&guard)) {
            Ok(0) => panic!("requests are in flight and the wake descriptor stays silent"),
            // io_uring completions interrupt; the caller looks and waits again.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("{error}"),
        }
    }

    pub fn is_readable(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(
            self.backend.wake_fd(),
            PollFlags::IN,
        )];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    pub fn call(&mut self, op: Op) -> Result<Outcome, StoreError> {
        self.submit(9, op);
        let mut done = self.finish();
        assert_eq!((done.len(), done[0].token), (1, 9));
        done.remove(0).result
    }

    pub fn write_op(&self, offset: u64, bytes: &[u8], fua: bool) -> Op {
        let data = self.pool.copy_of(bytes).share();
        Op::Write { offset, data, fua }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let op = self.write_op(offset, bytes, false);
        self.call(op).map(|_| ())
    }

    pub fn write_fua(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let op = self.write_op(offset, bytes, true);
        self.call(op).map(|_| ())
    }

    pub fn read_op(&self, offset: u64, len: usize) -> Op {
        let mut buf = self.pool.get(len);
        // What is not overwritten shows.
        buf.fill(0xa5);
        Op::Read { offset, buf }
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let op = self.read_op(offset, len);
        self.call(op).map(|outcome| match outcome {
            Outcome::Read(buf) => {
                assert_eq!(buf.len(), len);
                buf.to_vec()
            }
            other => panic!("a read answers with its buffer, not {other:?}"),
        })
    }

    pub fn flush(&mut self) -> Result<(), StoreError> {
        self.call(Op::Flush).map(|_| ())
    }

    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.call(Op::Discard { offset, len }).map(|_| ())
    }

    pub fn zero(
        &mut self,
        offset: u64,
        len: u64,
        may_unmap: bool,
        fast_only: bool,
    ) -> Result<(), StoreError> {
        let op = Op::WriteZeroes {
            offset,
            len,
            may_unmap,
            fast_only,
            fua: false,
        };
        self.call(op).map(|_| ())
    }

    pub fn extents(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>, StoreError> {
        self.call(Op::BlockStatus { offset, len })
            .map(|outcome| match outcome {
                Outcome::Extents(extents) => extents,
                other => panic!("{other:?}"),
            })
    }
}

/// Bytes that differ from block to block.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512) as u8 ^ seed).collect()
}

/// Whether this test may mount and make loop devices. Says why not, if not.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("{test}: skipped, it makes mounts and loop devices and so needs root");
    }
    root
}

/// Runs a command that has to succeed, and gives its output.
pub fn run(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command} {arguments:?}: {errors}{text}"
    );
    text
}

/// Unmounts when dropped.
pub struct Mount {
    pub directory: tempfile::TempDir,
}

impl Mount {
    pub fn tmpfs(size: &str) -> Mount {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let path = directory.path().to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &options, "dst-test", path]);
        Mount { directory }
    }

    pub fn device(device: &str) -> Mount {
        let directory = tempfile::tempdir().unwrap();
        run("mount", &[device, directory.path().to_str().unwrap()]);
        Mount { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let path = self.path().to_str().unwrap();
        let plain = Command::new("umount").arg(path).status();
        if !plain.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").args(["-l", path]).status();
        }
    }
}

/// A loop device, detached when dropped.
pub struct Loop {
    pub device: String,
}

impl Loop {
    pub fn new(image: &Path) -> Loop {
        Loop::with(&[], image)
    }

    pub fn with(arguments: &[&str], image: &Path) -> Loop {
        let mut all = vec!["--find", "--show"];
        all.extend(arguments);
        all.push(image.to_str().unwrap());
        Loop {
            device: run("losetup", &all),
        }
    }

    pub fn path(&self) -> &Path {
        Path::new(&self.device)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .args(["--detach", &self.device])
            .status();
    }
}
