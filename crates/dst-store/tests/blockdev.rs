//! The block device backend on real loop devices. Needs root.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::{image, is_root, open, options, pattern, run, Loop, Mount, ENGINES};
use dst_store::{Extent, ExtentKind, OpenError, OpenOptions, StoreError};

const MIB: u64 = 1 << 20;

#[test]
fn a_block_device_is_served_and_what_is_flushed_is_on_it() {
    if !is_root("a_block_device_is_served_and_what_is_flushed_is_on_it") {
        return;
    }
    for engine in ENGINES {
        let (_directory, path) = image(16 * MIB);
        let device = Loop::new(&path);
        let mut disk = open(device.path(), &options(engine)).unwrap();
        let info = disk.backend.info();
        assert_eq!((info.size, info.logical_block), (16 * MIB, 512));
        let data = pattern(3, 1 << 20);
        disk.write(MIB, &data).unwrap();
        disk.write_fua(3 * MIB, &data[..4096]).unwrap();
        assert_eq!(disk.read(MIB, 1 << 20).unwrap(), data);
        disk.flush().unwrap();
        let image = fs::read(&path).unwrap();
        assert_eq!(&image[1 << 20..2 << 20], &data);
        assert_eq!(&image[3 << 20..(3 << 20) + 4096], &data[..4096]);
        let all = Extent {
            len: 16 * MIB,
            kind: ExtentKind::Data,
        };
        assert_eq!(disk.extents(0, 16 * MIB).unwrap(), [all]);
        assert_eq!(disk.write(16 * MIB, &[0; 512]), Err(StoreError::OutOfRange));
    }
}

#[test]
fn a_file_under_a_loop_device_is_not_served_for_writing() {
    if !is_root("a_file_under_a_loop_device_is_not_served_for_writing") {
        return;
    }
    let (_directory, path) = image(16 * MIB);
    let device = Loop::new(&path);
    let refused = match open(&path, &OpenOptions::default()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("served under {}", device.path().display()),
    };
    let expected = format!("in use by the loop device {},", device.path().display());
    assert!(refused.contains(&expected), "{refused}");
    let reading = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    drop(open(&path, &reading).unwrap());
    drop(device);
    drop(open(&path, &OpenOptions::default()).unwrap());
}

#[test]
fn discards_and_zeroes_reach_the_device() {
    if !is_root("discards_and_zeroes_reach_the_device") {
        return;
    }
    for engine in ENGINES {
        let (_directory, path) = image(16 * MIB);
        let device = Loop::new(&path);
        let mut disk = open(device.path(), &options(engine)).unwrap();
        assert!(disk.backend.info().discard && disk.backend.info().fast_zeroes);
        disk.write(0, &vec![7; 16 << 20]).unwrap();
        disk.flush().unwrap();
        let full = fs::metadata(&path).unwrap().blocks();
        disk.discard(0, 4 * MIB).unwrap();
        disk.zero(4 * MIB, 4 * MIB, true, true).unwrap();
        disk.flush().unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() < full - 4096);
        disk.zero(8 * MIB, 4 * MIB, false, false).unwrap();
        assert_eq!(disk.read(0, 12 << 20).unwrap(), vec![0; 12 << 20]);
        assert_eq!(disk.read(12 * MIB, 4096).unwrap(), [7; 4096]);
    }
}

#[test]
fn a_device_with_4096_byte_blocks_announces_them() {
    if !is_root("a_device_with_4096_byte_blocks_announces_them") {
        return;
    }
    let (_directory, path) = image(16 * MIB);
    let device = Loop::with(&["--sector-size", "4096"], &path);
    let disk = open(device.path(), &OpenOptions::default()).unwrap();
    let info = disk.backend.info();
    assert_eq!((info.logical_block, info.physical_block), (4096, 4096));
    drop(disk);
    let smaller = OpenOptions {
        block_size: Some(512),
        ..OpenOptions::default()
    };
    let error = open(device.path(), &smaller).err().unwrap().to_string();
    assert!(error.contains("the device's own is 4096"), "{error}");
}

#[test]
fn a_device_with_a_file_system_is_refused_while_mounted_and_served_after() {
    if !is_root("a_device_with_a_file_system_is_refused_while_mounted_and_served_after") {
        return;
    }
    let (_directory, path) = image(32 * MIB);
    let device = Loop::new(&path);
    run("mkfs.ext4", &["-q", &device.device]);
    let mount = Mount::device(&device.device);
    fs::write(mount.path().join("file"), pattern(9, 1 << 20)).unwrap();
    let error = open(device.path(), &OpenOptions::default()).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("mounted"), "{error}");
    drop(mount);

    for engine in ENGINES {
        let mut disk = open(device.path(), &options(engine)).unwrap();
        let superblock = disk.read(1024, 1024).unwrap();
        assert_eq!(superblock[56..58], [0x53, 0xef], "ext4's magic number");
        let content = disk.read(0, 32 << 20).unwrap();
        disk.write(0, &content).unwrap();
        disk.flush().unwrap();
        let second = open(device.path(), &OpenOptions::default()).err().unwrap();
        assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    }
    run("fsck.ext4", &["-f", "-n", &device.device]);
    let mount = Mount::device(&device.device);
    assert_eq!(
        fs::read(mount.path().join("file")).unwrap(),
        pattern(9, 1 << 20)
    );
}

#[test]
fn a_device_that_grows_is_picked_up() {
    if !is_root("a_device_that_grows_is_picked_up") {
        return;
    }
    let (_directory, path) = image(16 * MIB);
    let device = Loop::new(&path);
    let mut disk = open(device.path(), &OpenOptions::default()).unwrap();
    assert_eq!(disk.backend.refresh().unwrap(), None);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(24 * MIB).unwrap();
    run("losetup", &["--set-capacity", &device.device]);
    assert_eq!(disk.backend.refresh().unwrap(), Some(24 * MIB));
    disk.write(20 * MIB, &[1; 4096]).unwrap();
    disk.flush().unwrap();
}

#[test]
fn a_device_attached_anew_is_no_continuation() {
    if !is_root("a_device_attached_anew_is_no_continuation") {
        return;
    }
    let (directory, path) = image(16 * MIB);
    let options = OpenOptions {
        state_dir: Some(directory.path().join("state")),
        ..OpenOptions::default()
    };
    let device = Loop::new(&path);
    let identity = || open(device.path(), &options).unwrap().backend.identity();
    let first = identity();
    assert!(first.continuity.is_some());
    assert!(first.note.as_ref().unwrap().contains("no serial number"));
    assert_eq!(identity(), first, "a restart of the server is");
    drop(device);
    let device = Loop::new(&path);
    let again = open(device.path(), &options).unwrap().backend.identity();
    assert_eq!(again.export_id, first.export_id, "the same image");
    assert_ne!(again.continuity, first.continuity);
}

#[test]
fn a_read_error_of_the_device_fails_that_read_only() {
    if !is_root("a_read_error_of_the_device_fails_that_read_only") {
        return;
    }
    for engine in ENGINES {
        let (_directory, path) = image(16 * MIB);
        fs::write(&path, vec![5; 16 << 20]).unwrap();
        let device = Loop::new(&path);
        let mut disk = open(device.path(), &options(engine)).unwrap();
        assert_eq!(disk.read(0, 4096).unwrap(), [5; 4096]);
        // The device keeps its size, its image ends before: what is beyond can't be read.
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(4 * MIB).unwrap();
        let bad = disk.read_op(12 * MIB, 65536);
        disk.submit(1, bad);
        let good = disk.read_op(MIB, 65536);
        disk.submit(2, good);
        let done = disk.finish();
        assert_eq!(
            done[0].result.as_ref().unwrap_err(),
            &StoreError::Io(rustix::io::Errno::IO)
        );
        assert!(done[1].result.is_ok());
    }
}
