//! The FUSE front end without a loop device: a file that takes any byte count, on the real kernel, as root and without.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};

use common::{
    assert_nothing_left, config, fresh_name, geometry, have_root, run, try_run, Helper, Rig, MIB,
};
use dst_blockdev::{ErrorKind, Node, NodeKind};
use dst_client::Geometry;
use rustix::fs::FallocateFlags;

const FILE: NodeKind = NodeKind::File;

fn start(geometry: Geometry) -> (Rig, Node) {
    Rig::start(&config(&fresh_name(), geometry, FILE))
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + n / 251) as u8).collect()
}

#[test]
fn any_byte_count_is_written_and_read_back() {
    if !have_root() {
        return;
    }
    for block in [512, 4096] {
        let (rig, node) = start(geometry(16 * MIB, block));
        assert_eq!(node.kind, FILE);
        assert_eq!(fs::metadata(&node.path).unwrap().len(), 16 * MIB);
        let file = open(&node.path);
        let mut model = vec![0; 16 * MIB as usize];
        for (offset, len) in [
            (0, 1),
            (511, 2),
            (4095, 4098),
            (1_000_003, 3_333_333),
            (1_000_000, 7),
            (8 << 20, 1 << 20),
            ((16 << 20) - 100, 100),
        ] {
            let bytes = pattern(len);
            file.write_all_at(&bytes, offset as u64).unwrap();
            model[offset..offset + len].copy_from_slice(&bytes);
        }
        assert!(rig.memory.lock().unwrap().bytes == model);
        let mut back = vec![0; 5_000_001];
        file.read_exact_at(&mut back, 999_999).unwrap();
        assert!(back == model[999_999..999_999 + 5_000_001]);
        drop(file);
        assert!(fs::read(&node.path).unwrap() == model);
        rig.finish();
    }
}

#[test]
fn writers_of_neighbouring_bytes_do_not_lose_each_others() {
    if !have_root() {
        return;
    }
    let (rig, node) = start(geometry(MIB, 4096));
    // Each thread owns every eighth group of 37 bytes, so that they share all blocks.
    const GROUP: usize = 37;
    let groups = 200_000 / GROUP;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let path = &node.path;
            scope.spawn(move || {
                let file = open(path);
                for group in (thread..groups).step_by(8) {
                    let bytes = [thread as u8 + 1; GROUP];
                    file.write_all_at(&bytes, (group * GROUP) as u64).unwrap();
                }
            });
        }
    });
    let bytes = fs::read(&node.path).unwrap();
    for group in 0..groups {
        let expected = [(group % 8) as u8 + 1; GROUP];
        assert_eq!(
            bytes[group * GROUP..(group + 1) * GROUP],
            expected,
            "{group}"
        );
    }
    rig.finish();
}

#[test]
fn tools_that_copy_files_work_on_it() {
    if !have_root() {
        return;
    }
    let (rig, node) = start(geometry(4 * MIB, 512));
    let path = node.path.to_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, pattern(4 * MIB as usize)).unwrap();
    let image = image.to_str().unwrap();
    // Opens with O_TRUNC, which a disk ignores.
    run("cp", &[image, path]);
    run("cmp", &[image, path]);
    run(
        "dd",
        &[
            &format!("if={image}"),
            &format!("of={path}"),
            "bs=1000",
            "skip=1",
            "seek=3",
            "count=7",
            "conv=notrunc,fsync",
        ],
    );
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes[3000..10_000], pattern(8000)[1000..]);
    // Until it is full, then ENOSPC, as with a disk.
    let full = try_run("dd", &["if=/dev/zero", &format!("of={path}"), "bs=999999"]);
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(
        said.contains("No space left on device") && said.contains("4194304 bytes"),
        "{said}"
    );
    run("mkfs.ext4", &["-q", "-F", path]);
    run("fsck.ext4", &["-f", "-n", path]);
    rig.finish();
}

#[test]
fn fsync_flushes_close_does_not_and_synchronous_writes_are_fua() {
    if !have_root() {
        return;
    }
    let (rig, node) = start(geometry(MIB, 512));
    let file = open(&node.path);
    file.write_all_at(&[1; 100], 0).unwrap();
    for count in 1..=3 {
        file.sync_all().unwrap();
        assert_eq!(rig.count("flush"), count);
        file.sync_data().unwrap();
        drop(file.try_clone().unwrap());
        assert_eq!(rig.count("flush"), count + 1);
        rig.memory.lock().unwrap().counts.insert("flush", count);
    }
    drop(file);
    let flushes = rig.count("flush");
    const O_DSYNC: i32 = 0o10000;
    let synchronous = OpenOptions::new()
        .write(true)
        .custom_flags(O_DSYNC)
        .open(&node.path)
        .unwrap();
    synchronous.write_all_at(&[2; 512], 0).unwrap();
    synchronous.write_all_at(&[3; 5], 7).unwrap();
    assert_eq!((rig.count("fua"), rig.count("flush")), (2, flushes));
    drop(synchronous);
    rig.finish();
}

#[test]
fn holes_are_punched_and_found() {
    if !have_root() {
        return;
    }
    let (rig, node) = start(geometry(MIB, 4096));
    rig.memory.lock().unwrap().bytes.fill(0xEE);
    let mut file = open(&node.path);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 5000, 100_000).unwrap();
    let zero = FallocateFlags::ZERO_RANGE;
    rustix::fs::fallocate(&file, zero, 300_001, 3).unwrap();
    let mut expected = vec![0xEE; MIB as usize];
    expected[5000..105_000].fill(0);
    expected[300_001..300_004].fill(0);
    assert!(rig.memory.lock().unwrap().bytes == expected);

    let seek = |at, whence: fn(u64) -> rustix::fs::SeekFrom| rustix::fs::seek(&file, whence(at));
    use rustix::fs::SeekFrom as At;
    assert_eq!(seek(0, At::Hole).unwrap(), 8192);
    assert_eq!(seek(8192, At::Data).unwrap(), 102_400);
    assert_eq!(seek(102_400, At::Hole).unwrap(), MIB);
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), MIB);
    // What can't be done is refused, and the rest goes on working.
    let allocate = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4096);
    assert_eq!(allocate.unwrap_err(), rustix::io::Errno::OPNOTSUPP);
    rustix::fs::fallocate(&file, punch, 0, 4096).unwrap();
    drop(file);
    rig.finish();
}

#[test]
fn truncation_is_refused_or_ignored_and_a_resize_shows() {
    if !have_root() {
        return;
    }
    let (rig, node) = start(geometry(MIB, 4096));
    let file = open(&node.path);
    assert_eq!(file.set_len(4096).unwrap_err().raw_os_error(), Some(22));
    assert!(file.set_len(2 * MIB).is_err());
    file.set_len(0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), MIB);
    rig.resize(2 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 * MIB);
    file.write_all_at(b"end", 2 * MIB - 3).unwrap();
    assert!(rig.memory.lock().unwrap().bytes.ends_with(b"end"));
    drop(file);
    rig.finish();
}

#[test]
fn a_read_only_file_can_only_be_read() {
    if !have_root() {
        return;
    }
    let (rig, node) = start(Geometry {
        read_only: true,
        ..geometry(MIB, 512)
    });
    assert_eq!(fs::metadata(&node.path).unwrap().mode() & 0o777, 0o400);
    let refused = OpenOptions::new().write(true).open(&node.path);
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(30));
    assert_eq!(fs::read(&node.path).unwrap().len(), MIB as usize);
    rig.finish();
}

#[test]
fn an_open_file_is_not_taken_away_without_force() {
    if !have_root() {
        return;
    }
    let (rig, node) = start(geometry(MIB, 512));
    let mut holder = Command::new("tail")
        .args(["-f", "/dev/stdin"])
        .stdin(File::open(&node.path).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let who = rig.in_use().unwrap();
    assert!(who.contains(&holder.id().to_string()), "{who}");
    assert_eq!(rig.stop(false).unwrap_err().kind(), ErrorKind::Busy);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(rig.in_use(), None);

    // Open here, where the search does not look.
    let mut file = open(&node.path);
    assert_eq!(rig.stop(false).unwrap_err().kind(), ErrorKind::Busy);
    let mut rig = rig;
    rig.stop(true).unwrap();
    rig.end();
    assert!(file.read(&mut [0; 512]).is_err());
    assert!(file.write_all_at(&[0; 512], 0).is_err());
    drop(file);
    assert_nothing_left(&rig.name);
}

/// Runs `helper` below as user nobody with an own run-time directory.
fn as_nobody(name: &str) -> (Helper, tempfile::TempDir) {
    const NOBODY: u32 = 65534;
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build directory may be closed to others.
    let program = dir.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    std::os::unix::fs::chown(&run, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new(&program);
    command
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .env("XDG_RUNTIME_DIR", &run)
        .env("DST_TEST_NAME", name);
    (Helper::start(&mut command), dir)
}

/// `/dev/fuse` for everybody, as it is on most systems, while it lives.
struct FuseForAll {
    before: fs::Permissions,
    _alone: MutexGuard<'static, ()>,
}

impl FuseForAll {
    fn open() -> FuseForAll {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        let before = fs::metadata("/dev/fuse").unwrap().permissions();
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        FuseForAll {
            before,
            _alone: alone,
        }
    }
}

impl Drop for FuseForAll {
    fn drop(&mut self) {
        fs::set_permissions("/dev/fuse", self.before.clone()).unwrap();
    }
}

fn have_fusermount() -> bool {
    let there = Path::new("/usr/bin/fusermount3").exists();
    if !there {
        eprintln!("skipped: needs fusermount3 (package fuse3)");
    }
    there
}

#[test]
fn without_root_a_user_gets_a_file_of_his_own() {
    if !have_root() || !have_fusermount() {
        return;
    }
    let _fuse = FuseForAll::open();
    let name = fresh_name();
    let (mut helper, _dir) = as_nobody(&name);
    let path = helper.hear();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(&path)).unwrap();
    assert!(line.contains("nosuid,nodev"), "{line}");
    // Not even root may look into another user's file system.
    assert!(File::open(&path).is_err());
    assert_eq!(helper.hear(), "written and read");
    helper.finish();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&path));
    assert!(!Path::new(&path).exists());
}

#[test]
fn without_root_a_killed_agent_is_cleaned_up_by_the_next() {
    if !have_root() || !have_fusermount() {
        return;
    }
    let _fuse = FuseForAll::open();
    let name = fresh_name();
    let (mut helper, dir) = as_nobody(&name);
    let path = helper.hear();
    helper.child.kill().unwrap();
    helper.child.wait().unwrap();
    assert!(fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .contains(&path));
    let mut command = Command::new(dir.path().join("test"));
    command
        .uid(65534)
        .gid(65534)
        .env("XDG_RUNTIME_DIR", dir.path().join("run"))
        .env("DST_TEST_NAME", &name);
    let mut next = Helper::start(&mut command);
    assert_eq!(next.hear(), path);
    assert_eq!(next.hear(), "written and read");
    next.finish();
    assert!(!fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .contains(&path));
}

/// Not a test: serves a file as the user that runs it, until its standard input ends.
#[test]
#[ignore = "run by other tests"]
fn helper() {
    let Ok(name) = std::env::var("DST_TEST_NAME") else {
        return;
    };
    let missing = dst_blockdev::prepare_agent(false).missing;
    let error = dst_blockdev::check(Default::default(), Some(NodeKind::BlockDevice)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    let mut config = config(&name, geometry(MIB, 4096), FILE);
    config.node = None;
    let (rig, node) = Rig::start(&config);
    println!("say: {}", node.path.display());
    println!("missing: {missing:?}");
    let file = open(&node.path);
    let bytes = pattern(100_001);
    file.write_all_at(&bytes, 77).unwrap();
    let mut back = vec![0; bytes.len()];
    file.read_exact_at(&mut back, 77).unwrap();
    assert!(bytes == back);
    file.sync_all().unwrap();
    assert_eq!(rig.count("flush"), 1);
    drop(file);
    println!("say: written and read");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    rig.finish();
}
