//! What happens when a sync fails, on a device that really fails: a loop device over a tmpfs that is full. Needs root.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::fd::AsFd;

use common::{image_in, is_root, open, options, run, Driver, Loop, Mount, ENGINES};
use dst_store::{EngineChoice, Op, StoreError};

const MIB: usize = 1 << 20;

/// A device whose image has room for 4 MiB of its 64.
struct FullDisk {
    // In the order in which they have to go.
    device: Loop,
    image: tempfile::TempDir,
    mount: Mount,
}

impl FullDisk {
    fn new() -> FullDisk {
        let mount = Mount::tmpfs("4M");
        let (image, path) = image_in(Some(mount.path()), 64 << 20);
        let device = Loop::new(&path);
        FullDisk {
            device,
            image,
            mount,
        }
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
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; 32 * MIB], 0).unwrap();
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
