//! What happens when a sync fails, on a device that really fails: a loop device over a tmpfs that is full. Needs root.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use common::{image_in, is_root, open, options, run, Driver, Loop, Mount, ENGINES};
use dst_store::{EngineChoice, Op, OpenOptions, StoreError};
use rustix::fs::{fallocate, FallocateFlags};

const MIB: usize = 1 << 20;

/// A device whose image has room for 4 MiB of its 64.
struct FullDisk {
    // In the order in which they have to go.
    device: Loop,
    image: tempfile::TempDir,
    path: PathBuf,
    mount: Mount,
}

impl FullDisk {
    fn new() -> FullDisk {
        FullDisk::with_room("4M")
    }

    fn with_room(size: &str) -> FullDisk {
        let mount = Mount::tmpfs(size);
        let (image, path) = image_in(Some(mount.path()), 64 << 20);
        let device = Loop::new(&path);
        FullDisk {
            device,
            image,
            path,
            mount,
        }
    }

    /// What the disk holds from its start, past all caches.
    fn content(&self, len: usize) -> Vec<u8> {
        let mut content = vec![0; len];
        let image = fs::File::open(&self.path).unwrap();
        image.read_exact_at(&mut content, 0).unwrap();
        content
    }

    /// Takes the space of every block that holds `byte` only, so that it reads as zeroes, and leaves no room to write it
    /// again. Says how many blocks that were.
    fn take_blocks_of(&self, byte: u8) -> usize {
        let image = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
            .unwrap();
        let mut block = [0; 4096];
        let mut taken = 0;
        for at in (0..64 << 20).step_by(block.len()) {
            image.read_exact_at(&mut block, at).unwrap();
            if block == [byte; 4096] {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&image, mode, at, 4096).unwrap();
                taken += 1;
            }
        }
        let used = rustix::fs::statvfs(self.mount.path()).unwrap();
        let size = (used.f_blocks - used.f_bfree) * used.f_frsize;
        let path = self.mount.path().to_str().unwrap();
        run("mount", &["-o", &format!("remount,size={size}"), path]);
        taken
    }

    fn open(&self, engine: EngineChoice) -> Driver {
        assert!(self.image.path().exists());
        open(self.device.path(), &options(engine)).unwrap()
    }

    fn make_room(&self) {
        let path = self.mount.path().to_str().unwrap();
        run("mount", &["-o", "remount,size=128M", path]);
    }
}

#[test]
fn the_kernel_tells_only_one_of_two_syncs_about_lost_writes() {
    if !is_root("the_kernel_tells_only_one_of_two_syncs_about_lost_writes") {
        return;
    }
    let full = FullDisk::new();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(full.device.path())
        .unwrap();
    file.write_all_at(&vec![1; 32 * MIB], 0).unwrap();
    assert!(rustix::fs::fdatasync(file.as_fd()).is_err());
    rustix::fs::fdatasync(file.as_fd()).expect("this is the behaviour that the sync rule is about");
}

#[test]
fn of_two_flushes_at_once_none_succeeds_when_writes_were_lost() {
    if !is_root("of_two_flushes_at_once_none_succeeds_when_writes_were_lost") {
        return;
    }
    for engine in ENGINES {
        for flushes in [2, 5] {
            let full = FullDisk::new();
            let mut disk = full.open(engine);
            disk.write(0, &vec![1; 32 * MIB]).unwrap();
            for token in 0..flushes {
                disk.submit(token, Op::Flush);
            }
            let done = disk.finish();
            for completion in &done {
                let error = completion.result.as_ref().unwrap_err();
                assert_eq!(error, &StoreError::SyncFailed, "flush {}", completion.token);
            }
            assert_eq!(disk.flush(), Err(StoreError::SyncFailed), "and none later");
        }
    }
}

#[test]
fn after_a_fua_that_fails_first_no_flush_succeeds_before_a_new_incarnation_and_replay() {
    if !is_root(
        "after_a_fua_that_fails_first_no_flush_succeeds_before_a_new_incarnation_and_replay",
    ) {
        return;
    }
    for engine in ENGINES {
        let full = FullDisk::new();
        let mut disk = full.open(engine);
        let data = vec![7; 32 * MIB];
        disk.write(0, &data).unwrap();
        assert_eq!(disk.write_fua(0, &data), Err(StoreError::SyncFailed));
        assert_eq!(disk.flush(), Err(StoreError::SyncFailed));
        assert_eq!(
            disk.write_fua(40 << 20, &[1; 4096]),
            Err(StoreError::SyncFailed)
        );
        let id = disk.backend.identity().export_id;

        full.make_room();
        assert_eq!(
            disk.flush(),
            Err(StoreError::SyncFailed),
            "room alone brings nothing back"
        );
        disk.backend.new_incarnation();
        disk.write(0, &data).unwrap();
        disk.flush().unwrap();
        disk.write_fua(40 << 20, &[1; 4096]).unwrap();
        assert_eq!(disk.backend.identity().export_id, id);
        drop(disk);
        let mut disk = full.open(engine);
        assert_eq!(disk.read(0, 32 * MIB).unwrap(), data);
    }
}

#[test]
fn a_new_incarnation_of_a_device_reads_what_the_device_holds() {
    if !is_root("a_new_incarnation_of_a_device_reads_what_the_device_holds") {
        return;
    }
    for engine in ENGINES {
        let full = FullDisk::new();
        let mut disk = full.open(engine);
        let written = vec![9; 32 * MIB];
        disk.write(0, &written).unwrap();
        assert_eq!(disk.flush(), Err(StoreError::SyncFailed));
        assert_eq!(disk.read(0, 32 * MIB).unwrap(), written, "so far");
        disk.backend.new_incarnation();
        // All at once, so that they wait for the cache to be dropped.
        for token in 0..32 {
            let read = disk.read_op(token * MIB as u64, MIB);
            disk.submit(token, read);
        }
        let content = full.content(32 * MIB);
        assert_ne!(content, written);
        for (completion, content) in disk.finish().iter().zip(content.chunks(MIB)) {
            match completion.result.as_ref().unwrap() {
                dst_store::Outcome::Read(buf) => assert!(buf[..] == *content),
                other => panic!("{other:?}"),
            }
        }
        disk.flush().expect("no error is left over");
    }
}

#[test]
fn a_new_incarnation_of_a_file_reads_what_its_file_system_holds() {
    if !is_root("a_new_incarnation_of_a_file_reads_what_its_file_system_holds") {
        return;
    }
    for engine in ENGINES {
        let full = FullDisk::with_room("128M");
        // Without a journal, so that the file system goes on when its data can't be written.
        let arguments = [
            "-q",
            "-b",
            "4096",
            "-O",
            "^has_journal",
            &full.device.device,
        ];
        run("mkfs.ext4", &arguments);
        let mount = Mount::device(&full.device.device);
        let (_directory, path) = image_in(Some(mount.path()), 16 << 20);
        let mut disk = open(&path, &options(engine)).unwrap();
        disk.write(0, &vec![0xd7; 16 * MIB]).unwrap();
        disk.flush().unwrap();
        run("sync", &["-f", mount.path().to_str().unwrap()]);
        assert_eq!(full.take_blocks_of(0xd7), 16 * MIB / 4096);

        let written = vec![0xe8; 16 * MIB];
        disk.write(0, &written).unwrap();
        assert_eq!(disk.flush(), Err(StoreError::SyncFailed));
        assert_eq!(disk.read(0, 16 * MIB).unwrap(), written, "so far");
        disk.backend.new_incarnation();
        assert!(disk.read(0, 16 * MIB).unwrap() == vec![0; 16 * MIB]);
    }
}

#[test]
fn a_process_after_one_that_died_of_a_failed_sync_reads_what_the_device_holds() {
    if !is_root("a_process_after_one_that_died_of_a_failed_sync_reads_what_the_device_holds") {
        return;
    }
    let full = FullDisk::new();
    let directory = tempfile::tempdir().unwrap();
    let options = OpenOptions {
        state_dir: Some(directory.path().to_owned()),
        ..OpenOptions::default()
    };
    let written = vec![9; 32 * MIB];
    let mut disk = open(full.device.path(), &options).unwrap();
    disk.write(0, &written).unwrap();
    assert_eq!(disk.flush(), Err(StoreError::SyncFailed));
    let before = disk.backend.identity();
    // Holds the device, and so its page cache, while nobody serves it.
    let _other = fs::File::open(full.device.path()).unwrap();
    drop(disk);
    let mut disk = open(full.device.path(), &options).unwrap();
    assert_ne!(disk.backend.identity().continuity, before.continuity);
    assert!(disk.read(0, 32 * MIB).unwrap() == full.content(32 * MIB));
}
