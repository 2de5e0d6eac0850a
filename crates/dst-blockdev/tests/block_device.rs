//! The FUSE front end with a loop device on top, on the real kernel, as root.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use common::{config, fresh_name, geometry, have_root, queue, run, try_run, MountPoint, Rig, MIB};
use dst_blockdev::{ErrorKind, NodeKind};
use dst_client::Geometry;

const BLOCK_DEVICE: NodeKind = NodeKind::BlockDevice;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a file system, writes, syncs and checks it.
fn try_file_system(size: u64, block: u32, make: &[&str], check: &[&str]) {
    let (rig, node) = Rig::start(&config(&fresh_name(), geometry(size, block), BLOCK_DEVICE));
    assert_eq!(node.path, Path::new("/dev/dst").join(&rig.name));
    assert_eq!(fs::canonicalize(&node.path).unwrap(), node.device);
    assert_eq!(node.notes, Vec::<String>::new());
    let on_device = |command: &[&str]| {
        let arguments = [&command[1..], &[text(&node.path)]].concat();
        run(command[0], &arguments);
    };
    on_device(make);
    let mount = MountPoint::mount(&node.path);
    let content = vec![0x5A; 3 * MIB as usize + 17];
    for n in 0..8 {
        let mut file = File::create(mount.path.join(format!("file{n}"))).unwrap();
        file.write_all(&content).unwrap();
        let before = rig.count("flush");
        file.sync_all().unwrap();
        assert!(rig.count("flush") > before, "fsync returned before a flush");
    }
    mount.unmount();
    on_device(check);
    let mount = MountPoint::mount(&node.path);
    for n in 0..8 {
        assert!(fs::read(mount.path.join(format!("file{n}"))).unwrap() == content);
    }
    mount.unmount();
    rig.finish();
}

#[test]
fn ext4_lives_on_it_and_fsync_reaches_the_device_with_512_and_4096_byte_blocks() {
    if !have_root() {
        return;
    }
    for block in [512, 4096] {
        let check = ["fsck.ext4", "-f", "-n"];
        try_file_system(64 * MIB, block, &["mkfs.ext4", "-q"], &check);
    }
}

#[test]
fn xfs_lives_on_it_and_fsync_reaches_the_device_with_512_and_4096_byte_blocks() {
    if !have_root() {
        return;
    }
    if !Path::new("/usr/sbin/mkfs.xfs").exists() {
        eprintln!("skipped: needs xfsprogs");
        return;
    }
    for block in [512, 4096] {
        try_file_system(320 * MIB, block, &["mkfs.xfs", "-q"], &["xfs_repair", "-n"]);
    }
}

#[test]
fn discard_and_zeroing_reach_the_device_and_read_as_zeroes() {
    if !have_root() {
        return;
    }
    let config = config(&fresh_name(), geometry(8 * MIB, 512), BLOCK_DEVICE);
    let (rig, node) = Rig::start(&config);
    rig.memory.lock().unwrap().bytes.fill(0xEE);

    run(
        "blkdiscard",
        &["-o", "1048576", "-l", "1048576", text(&node.path)],
    );
    assert_eq!(rig.count("punch"), 1);
    // BLKZEROOUT, which keeps the space, and PUNCH_HOLE on the device, which gives it back.
    run(
        "blkdiscard",
        &["-z", "-o", "3145728", "-l", "1048576", text(&node.path)],
    );
    assert_eq!((rig.count("zero"), rig.count("punch")), (1, 1));
    run(
        "fallocate",
        &["-p", "-o", "5242880", "-l", "1048576", text(&node.path)],
    );
    assert_eq!((rig.count("zero"), rig.count("punch")), (1, 2));
    assert_eq!((rig.count("write"), rig.count("discard")), (0, 0));
    {
        let memory = rig.memory.lock().unwrap();
        for (mib, block) in memory.bytes.chunks(MIB as usize).enumerate() {
            let expected = if [1, 3, 5].contains(&mib) { 0 } else { 0xEE };
            assert!(block.iter().all(|b| *b == expected), "MiB {mib}");
        }
    }
    rig.finish();
}

#[test]
fn the_limits_are_those_of_the_geometry() {
    if !have_root() {
        return;
    }
    let plain = geometry(8 * MIB, 512);
    let (rig, node) = Rig::start(&config(&fresh_name(), plain, BLOCK_DEVICE));
    let disk = node.device.clone();
    for (attribute, expected) in [
        ("logical_block_size", "512"),
        ("write_cache", "write back"),
        ("rotational", "0"),
        ("max_sectors_kb", "1024"),
        ("discard_granularity", "4096"),
    ] {
        assert_eq!(queue(&disk, attribute), expected, "{attribute}");
    }
    assert_ne!(queue(&disk, "discard_max_bytes"), "0");
    let dio = format!(
        "/sys/block/{}/loop/dio",
        disk.file_name().unwrap().to_str().unwrap()
    );
    assert_eq!(fs::read_to_string(dio).unwrap(), "1\n");
    rig.finish();

    let other = Geometry {
        physical_block: 8192,
        rotational: true,
        discard: false,
        discard_granularity: 0,
        write_cache: false,
        max_transfer: 128 << 10,
        ..geometry(8 * MIB, 4096)
    };
    let (rig, node) = Rig::start(&config(&fresh_name(), other, BLOCK_DEVICE));
    for (attribute, expected) in [
        ("logical_block_size", "4096"),
        ("rotational", "1"),
        ("max_sectors_kb", "128"),
        ("discard_max_bytes", "0"),
    ] {
        assert_eq!(queue(&node.device, attribute), expected, "{attribute}");
    }
    // Loop devices have one block size for both.
    assert_eq!(node.notes.len(), 1, "{:?}", node.notes);
    // Zeroing still works, by writing.
    rig.memory.lock().unwrap().bytes.fill(1);
    run("blkdiscard", &["-z", text(&node.path)]);
    assert!(rig.memory.lock().unwrap().bytes.iter().all(|b| *b == 0));
    assert_eq!((rig.count("punch"), rig.count("zero")), (0, 0));
    rig.finish();
}

#[test]
fn a_device_whose_server_has_no_fast_zeroes_loses_discard_and_nothing_else() {
    if !have_root() {
        return;
    }
    let (rig, node) = Rig::start(&config(&fresh_name(), geometry(8 * MIB, 512), BLOCK_DEVICE));
    {
        let mut memory = rig.memory.lock().unwrap();
        memory.bytes.fill(1);
        memory.slow_zeroes = true;
    }
    // A discard is advice: that it came to nothing is no error, but the device stops announcing it.
    run("blkdiscard", &[text(&node.path)]);
    assert_eq!(queue(&node.device, "discard_max_bytes"), "0");
    assert!(rig.memory.lock().unwrap().bytes.iter().all(|b| *b == 1));
    run("blkdiscard", &["-z", text(&node.path)]);
    assert!(rig.memory.lock().unwrap().bytes.iter().all(|b| *b == 0));
    assert_eq!(rig.count("punch"), 0);
    rig.finish();
}

#[test]
fn a_disk_that_rotates_is_read_ahead_as_far_as_others() {
    if !have_root() {
        return;
    }
    let rotates = Geometry {
        rotational: true,
        ..geometry(8 * MIB, 512)
    };
    let (rig, node) = Rig::start(&config(&fresh_name(), rotates, BLOCK_DEVICE));
    assert_eq!(queue(&node.device, "rotational"), "1");
    assert_eq!(queue(&node.device, "read_ahead_kb"), "1024");
    rig.finish();
}

#[test]
fn limits_of_one_device_do_not_stay_with_the_number_of_the_loop_device() {
    if !have_root() {
        return;
    }
    let odd = Geometry {
        rotational: true,
        discard: false,
        write_cache: false,
        max_transfer: 64 << 10,
        ..geometry(8 * MIB, 512)
    };
    let (rig, node) = Rig::start(&config(&fresh_name(), odd, BLOCK_DEVICE));
    rig.finish();
    // Whether or not it gets the same number.
    let (rig, second) = Rig::start(&config(&fresh_name(), geometry(8 * MIB, 512), BLOCK_DEVICE));
    assert_eq!(second.notes, Vec::<String>::new());
    for attribute in ["write_cache", "max_sectors_kb", "discard_max_bytes"] {
        let (first, second) = (
            queue(&node.device, attribute),
            queue(&second.device, attribute),
        );
        eprintln!("{attribute}: {first}, {second}");
    }
    assert_eq!(queue(&second.device, "write_cache"), "write back");
    assert_eq!(queue(&second.device, "max_sectors_kb"), "1024");
    assert_ne!(queue(&second.device, "discard_max_bytes"), "0");
    rig.finish();
}

#[test]
fn a_read_only_device_says_so_and_takes_no_write() {
    if !have_root() {
        return;
    }
    let read_only = Geometry {
        read_only: true,
        ..geometry(8 * MIB, 512)
    };
    let (rig, node) = Rig::start(&config(&fresh_name(), read_only, BLOCK_DEVICE));
    assert_eq!(run("blockdev", &["--getro", text(&node.path)]).trim(), "1");
    let of = format!("of={}", text(&node.path));
    let dd = [
        "if=/dev/zero",
        &of,
        "bs=4096",
        "count=1",
        "oflag=direct",
        "conv=notrunc",
    ];
    assert!(!try_run("dd", &dd).status.success());
    assert_eq!(rig.count("write"), 0);
    let mut bytes = [1; 4096];
    File::open(&node.path)
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    assert_eq!(bytes, [0; 4096]);
    rig.finish();
}

#[test]
fn a_larger_size_shows_while_it_is_mounted_and_a_smaller_one_is_refused() {
    if !have_root() {
        return;
    }
    let (rig, node) = Rig::start(&config(
        &fresh_name(),
        geometry(32 * MIB, 4096),
        BLOCK_DEVICE,
    ));
    run("mkfs.ext4", &["-q", text(&node.path)]);
    let mount = MountPoint::mount(&node.path);
    fs::write(mount.path.join("before"), "x").unwrap();
    rig.resize(96 * MIB).unwrap();
    let size = run("blockdev", &["--getsize64", text(&node.path)]);
    assert_eq!(size.trim(), (96 * MIB).to_string());
    for bad in [32 * MIB, 96 * MIB + 512] {
        let error = rig.resize(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Geometry, "{error}");
    }
    assert_eq!(fs::read(mount.path.join("before")).unwrap(), b"x");
    mount.unmount();
    // Growing the file system while it is mounted takes a capability that root may lack in a container.
    run("fsck.ext4", &["-f", "-p", text(&node.path)]);
    run("resize2fs", &[text(&node.path)]);
    let mount = MountPoint::mount(&node.path);
    let content = vec![7; 60 * MIB as usize];
    fs::write(mount.path.join("after"), &content).unwrap();
    mount.unmount();
    run("fsck.ext4", &["-f", "-n", text(&node.path)]);
    let mount = MountPoint::mount(&node.path);
    assert!(fs::read(mount.path.join("after")).unwrap() == content);
    mount.unmount();
    rig.finish();
}

#[test]
fn many_jobs_at_once_read_back_what_they_wrote() {
    if !have_root() {
        return;
    }
    let (rig, node) = Rig::start(&config(
        &fresh_name(),
        geometry(64 * MIB, 512),
        BLOCK_DEVICE,
    ));
    let filename = format!("--filename={}", text(&node.path));
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("fio")
        .current_dir(dir.path())
        .args([
            &filename,
            "--direct=1",
            "--ioengine=libaio",
            "--verify=crc32c",
        ])
        .args([
            "--verify_fatal=1",
            "--size=8M",
            "--offset_increment=8M",
            "--numjobs=8",
        ])
        .args([
            "--iodepth=16",
            "--rw=randwrite",
            "--bsrange=512-256k",
            "--fsync=64",
        ])
        .args(["--name=verify", "--group_reporting", "--thread"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let memory = rig.memory.lock().unwrap();
    assert!(memory.count("write") > 0 && memory.count("flush") > 0);
    drop(memory);
    rig.finish();
}
