//! Two servers never serve one file, not even when one of them has just been killed: with real processes and a file system
//! that is frozen, so that a write is held in flight. Needs root for the latter.
#![allow(missing_docs)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{image, image_in, is_root, open, options, run, Driver, Loop, Mount, ENGINES};
use dst_store::{EngineChoice, OpenError, OpenOptions};
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;

const PATH: &str = "DST_TEST_LOCK_PATH";
const ENGINE: &str = "DST_TEST_LOCK_ENGINE";

/// A second process that serves a file: this very program, running [`second_process`]. Killed when dropped.
struct Second {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Second {
    fn start(path: &Path, engine: EngineChoice) -> Second {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "second_process",
                "--nocapture",
                "--include-ignored",
            ])
            .env(PATH, path)
            .env(ENGINE, format!("{engine:?}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut second = Second { child, said };
        second.expect("serving");
        second
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            let n = self.said.read_line(&mut line).unwrap();
            assert!(n > 0, "the second process ended without saying {word}");
        }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
    }

    /// Waits until one of its threads sits in the kernel and can't be interrupted.
    fn wait_until_stuck(&self) {
        let tasks = format!("/proc/{}/task", self.child.id());
        loop {
            for task in fs::read_dir(&tasks).unwrap() {
                let stat =
                    fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
                if stat
                    .rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('D'))
                {
                    return;
                }
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test by itself: what the second process does.
#[test]
#[ignore = "run by the other tests as a second process"]
fn second_process() {
    let Ok(path) = std::env::var(PATH) else {
        return;
    };
    let engine = match std::env::var(ENGINE).as_deref() {
        Ok("Threads") => EngineChoice::Threads,
        _ => EngineChoice::Uring,
    };
    let mut disk: Driver = open(Path::new(&path), &options(engine)).unwrap();
    println!("serving");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let op = disk.write_op(4096, &[9; 4096], false);
    disk.submit(1, op);
    disk.backend.kick();
    println!("submitted");
    disk.finish();
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn a_file_served_by_a_live_process_is_refused_and_its_process_named() {
    let (_directory, path) = image(1 << 20);
    let second = Second::start(&path, EngineChoice::Uring);
    let error = open(&path, &OpenOptions::default()).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }));
    let expected = format!("in use by another server (process {})", second.child.id());
    assert!(error.to_string().contains(&expected), "{error}");
}

#[test]
fn a_killed_process_leaves_no_lock_behind() {
    for engine in ENGINES {
        let (_directory, path) = image(1 << 20);
        let mut second = Second::start(&path, engine);
        second.tell("write");
        second.expect("submitted");
        drop(second);
        open(&path, &options(engine)).unwrap();
    }
}

#[test]
fn a_killed_process_leaves_no_claim_on_its_device_behind() {
    if !is_root("a_killed_process_leaves_no_claim_on_its_device_behind") {
        return;
    }
    for engine in ENGINES {
        let (_directory, path) = image(64 << 20);
        let device = Loop::new(&path);
        let mut second = Second::start(device.path(), engine);
        let error = open(device.path(), &OpenOptions::default()).err().unwrap();
        let expected = format!("(process {})", second.child.id());
        assert!(error.to_string().contains(&expected), "{error}");
        second.tell("write");
        second.expect("submitted");
        drop(second);
        open(device.path(), &options(engine)).unwrap();
    }
}

#[test]
fn the_lock_of_a_killed_process_lasts_as_long_as_its_write_in_flight() {
    if !is_root("the_lock_of_a_killed_process_lasts_as_long_as_its_write_in_flight") {
        return;
    }
    for engine in ENGINES {
        let (_outer, outer) = image(64 << 20);
        let device = Loop::new(&outer);
        run("mkfs.ext4", &["-q", &device.device]);
        let mount = Mount::device(&device.device);
        let (directory, path) = image_in(Some(mount.path()), 1 << 20);
        let mut second = Second::start(&path, engine);

        let frozen = Frozen::new(&mount);
        second.tell("write");
        second.expect("submitted");
        second.wait_until_stuck();
        second.child.kill().unwrap();

        let file = File::open(&path).unwrap();
        let attempt = flock(&file, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(
            attempt,
            Err(Errno::WOULDBLOCK),
            "the write is still in flight"
        );
        drop(file);
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| open(&path, &options(engine)));
            drop(frozen);
            let mut disk = opened
                .join()
                .unwrap()
                .expect("the lock ends with the write");
            let seen = disk.read(4096, 4096).unwrap();
            assert!(seen == [9; 4096] || seen == [0; 4096]);
            disk.write(4096, &[3; 4096]).unwrap();
            drop(second);
            assert_eq!(
                disk.read(4096, 4096).unwrap(),
                [3; 4096],
                "nothing comes late"
            );
        });
        drop(directory);
    }
}

/// A frozen file system: writes to it wait in the kernel. Thawed when dropped.
struct Frozen(String);

impl Frozen {
    fn new(mount: &Mount) -> Frozen {
        let path = mount.path().to_str().unwrap().to_owned();
        run("fsfreeze", &["--freeze", &path]);
        Frozen(path)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", &self.0]);
    }
}
