//! How a block device of the FUSE front end ends: in use, by force, with its agent; on the real kernel, as root.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{symlink, FileExt};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{
    assert_nothing_left, config, fresh_name, geometry, have_root, run, try_run, Helper, MountPoint,
    Rig, MIB,
};
use dst_blockdev::{ErrorKind, NodeKind};

const BLOCK_DEVICE: NodeKind = NodeKind::BlockDevice;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_device_in_use_says_by_whom_and_stays() {
    if !have_root() {
        return;
    }
    let (rig, node) = Rig::start(&config(
        &fresh_name(),
        geometry(32 * MIB, 512),
        BLOCK_DEVICE,
    ));
    run("mkfs.ext4", &["-q", text(&node.path)]);
    assert_eq!(rig.in_use(), None);

    let mount = MountPoint::mount(&node.path);
    let who = rig.in_use().unwrap();
    assert!(who.contains(text(&mount.path)), "{who}");
    let error = rig.stop(false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    fs::write(mount.path.join("still"), "works").unwrap();
    mount.unmount();

    // Open in another process, mounted nowhere.
    let device = File::open(&node.path).unwrap();
    let mut holder = Command::new("cat")
        .stdin(Stdio::from(
            OpenOptions::new().read(true).open("/dev/zero").unwrap(),
        ))
        .stdout(Stdio::null())
        .stderr(Stdio::from(device))
        .spawn()
        .unwrap();
    let who = rig.in_use().unwrap();
    assert!(who.contains(&holder.id().to_string()), "{who}");
    assert_eq!(rig.stop(false).unwrap_err().kind(), ErrorKind::Busy);
    holder.kill().unwrap();
    holder.wait().unwrap();

    // In this very process, which the search leaves out: the loop driver knows, and forgets that it was to go.
    let device = File::open(&node.path).unwrap();
    assert_eq!(rig.stop(false).unwrap_err().kind(), ErrorKind::Busy);
    drop(device);
    run("fsck.ext4", &["-f", "-n", text(&node.path)]);
    rig.finish();
}

#[test]
fn what_was_written_through_the_page_cache_is_written_back_before_the_device_goes() {
    if !have_root() {
        return;
    }
    let (mut rig, node) = Rig::start(&config(&fresh_name(), geometry(8 * MIB, 512), BLOCK_DEVICE));
    let device = OpenOptions::new().write(true).open(&node.path).unwrap();
    device.write_all_at(&[9; 100_000], 12_345).unwrap();
    drop(device);
    rig.stop(false).unwrap();
    let memory = rig.memory.lock().unwrap();
    assert!(memory.bytes[12_345..112_345].iter().all(|b| *b == 9));
    assert_eq!(memory.unflushed, 0);
    drop(memory);
    rig.end();
    assert_nothing_left(&rig.name);
}

#[test]
fn a_mount_that_somebody_took_away_does_not_lose_the_device() {
    if !have_root() {
        return;
    }
    let (mut rig, node) = Rig::start(&config(&fresh_name(), geometry(8 * MIB, 512), BLOCK_DEVICE));
    let point = dst_blockdev::runtime_root().join(&rig.name).join("disk");
    run("umount", &["-l", text(&point)]);
    let device = OpenOptions::new().write(true).open(&node.path).unwrap();
    device.write_all_at(&[9; 5000], 100).unwrap();
    assert!(rig.stop(false).is_err(), "it is open");
    drop(device);
    rig.stop(false).unwrap();
    assert_eq!(rig.memory.lock().unwrap().bytes[100..5100], [9; 5000]);
    rig.end();
    assert_nothing_left(&rig.name);
}

#[test]
fn a_forced_stop_ends_hanging_requests_with_an_error_and_needs_nobody_to_serve() {
    if !have_root() {
        return;
    }
    let (mut rig, node) = Rig::start(&config(&fresh_name(), geometry(8 * MIB, 512), BLOCK_DEVICE));
    rig.memory.lock().unwrap().hang = true;
    let input = format!("if={}", text(&node.path));
    let output = format!("of={}", text(&node.path));
    let spawn = |args: &[&str]| {
        Command::new("dd")
            .args(args)
            .env("LC_ALL", "C")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let readers = [
        spawn(&[&input, "of=/dev/null", "iflag=direct", "bs=1M"]),
        spawn(&[
            "if=/dev/zero",
            &output,
            "oflag=direct",
            "bs=64K",
            "conv=nocreat",
        ]),
    ];
    rig.wait_for(|memory| memory.hangs("read") && memory.hangs("write"));
    rig.stop(true).unwrap();
    for reader in readers {
        let output = reader.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(said.contains("Input/output error"), "{said}");
    }
    rig.end();
    assert_nothing_left(&rig.name);
}

#[test]
fn a_forced_stop_of_a_mounted_device_leaves_a_node_that_goes_with_the_mount() {
    if !have_root() {
        return;
    }
    let (mut rig, node) = Rig::start(&config(
        &fresh_name(),
        geometry(32 * MIB, 512),
        BLOCK_DEVICE,
    ));
    run("mkfs.ext4", &["-q", text(&node.path)]);
    let mount = MountPoint::mount(&node.path);
    rig.stop(true).unwrap();
    rig.end();
    let mut failed = File::create(mount.path.join("x")).and_then(|mut file| {
        file.write_all(&[1; 8192])?;
        file.sync_all()
    });
    if failed.is_ok() {
        failed = File::open(&mount.path).and_then(|dir| dir.sync_all());
    }
    assert!(failed.is_err());
    let disk = node.device.file_name().unwrap().to_str().unwrap();
    let backing = format!("/sys/block/{disk}/loop/backing_file");
    assert!(Path::new(&backing).exists());
    mount.unmount();
    // Its last opener was the mount.
    assert!(!Path::new(&backing).exists());
    assert_nothing_left(&rig.name);
}

#[test]
fn a_start_that_hangs_ends_with_a_forced_stop() {
    if !have_root() {
        return;
    }
    let name = fresh_name();
    let mut config = config(&name, geometry(8 * MIB, 512), BLOCK_DEVICE);
    config.partitions = true;
    let rig = Rig::open(&config).unwrap();
    // The loop driver flushes the file first thing.
    rig.memory.lock().unwrap().hang = true;
    let start = rig.with(|front_end| front_end.start());
    let starter = std::thread::spawn(start);
    rig.wait_for(|memory| memory.hangs("flush"));
    let mut rig = rig;
    rig.stop(true).unwrap();
    // The driver does not mind a failed flush: the start may have got through before the stop.
    let _ = starter.join().unwrap();
    rig.end();
    assert_nothing_left(&name);
}

#[test]
fn partitions_show_when_wanted_and_one_that_is_mounted_counts_as_use() {
    if !have_root() {
        return;
    }
    let name = fresh_name();
    let mut config = config(&name, geometry(32 * MIB, 512), BLOCK_DEVICE);
    config.partitions = true;
    let rig = Rig::open(&config).unwrap();
    {
        // One partition of type 0x83 from sector 2048 on (MBR).
        let mut memory = rig.memory.lock().unwrap();
        let entry = &mut memory.bytes[446..462];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&2048_u32.to_le_bytes());
        entry[12..16].copy_from_slice(&32768_u32.to_le_bytes());
        memory.bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    }
    let node = rig.run_start().unwrap();
    // The kernel need not know this kind of table.
    let partition = format!("{}p1", text(&node.device));
    if !Path::new(&partition).exists() {
        run("addpart", &[text(&node.device), "1", "2048", "32768"]);
    }
    run("mkfs.ext4", &["-q", &partition]);
    let mount = MountPoint::mount(Path::new(&partition));
    let who = rig.in_use().unwrap();
    assert!(who.contains(text(&mount.path)), "{who}");
    assert_eq!(rig.stop(false).unwrap_err().kind(), ErrorKind::Busy);
    mount.unmount();
    rig.finish();
}

#[test]
fn a_name_is_used_once_at_a_time() {
    if !have_root() {
        return;
    }
    let config = config(&fresh_name(), geometry(8 * MIB, 512), BLOCK_DEVICE);
    let (rig, _) = Rig::start(&config);
    let error = Rig::open(&config).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NameTaken, "{error}");
    let error = dst_blockdev::cleanup_stale(&config.name).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NameTaken, "{error}");
    rig.finish();
}

#[test]
fn a_foreign_node_of_that_name_stays_and_nothing_else_does() {
    if !have_root() {
        return;
    }
    let config = config(&fresh_name(), geometry(8 * MIB, 512), BLOCK_DEVICE);
    let foreign = Path::new("/dev/dst").join(&config.name);
    fs::create_dir_all("/dev/dst").unwrap();
    symlink("/dev/null", &foreign).unwrap();
    let mut rig = Rig::open(&config).unwrap();
    let error = rig.run_start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NameTaken, "{error}");
    rig.end();
    assert_eq!(fs::read_link(&foreign).unwrap(), Path::new("/dev/null"));
    fs::remove_file(&foreign).unwrap();
    assert_nothing_left(&config.name);
}

#[test]
fn what_a_killed_agent_leaves_fails_at_once_and_is_cleaned_up() {
    if !have_root() {
        return;
    }
    let name = fresh_name();
    let mut helper =
        Helper::start(Command::new(std::env::current_exe().unwrap()).env("DST_TEST_NAME", &name));
    let device = helper.hear();
    let link = Path::new("/dev/dst").join(&name);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new(&device));
    helper.child.kill().unwrap();
    helper.child.wait().unwrap();

    let input = format!("if={device}");
    let read = try_run("dd", &[&input, "of=/dev/null", "iflag=direct", "count=1"]);
    let said = String::from_utf8_lossy(&read.stderr).into_owned();
    assert!(said.contains("Input/output error"), "{said}");
    let cleaned = dst_blockdev::cleanup_stale(&name).unwrap();
    assert_eq!(cleaned.len(), 2, "{cleaned:?}");
    assert_eq!(
        dst_blockdev::cleanup_stale(&name).unwrap(),
        Vec::<String>::new()
    );
    assert_nothing_left(&name);
}

#[test]
fn a_new_agent_takes_the_name_of_a_killed_one() {
    if !have_root() {
        return;
    }
    let name = fresh_name();
    let mut helper =
        Helper::start(Command::new(std::env::current_exe().unwrap()).env("DST_TEST_NAME", &name));
    helper.hear();
    helper.child.kill().unwrap();
    helper.child.wait().unwrap();
    let (rig, node) = Rig::start(&config(&name, geometry(8 * MIB, 512), BLOCK_DEVICE));
    run(
        "dd",
        &[
            "if=/dev/zero",
            &format!("of={}", text(&node.path)),
            "bs=1M",
            "count=1",
        ],
    );
    rig.finish();
}

/// Not a test: serves a device until its standard input ends, for tests that kill it.
#[test]
#[ignore = "run by other tests"]
fn helper() {
    let Ok(name) = std::env::var("DST_TEST_NAME") else {
        return;
    };
    let missing = dst_blockdev::prepare_agent(true).missing;
    let (rig, node) = Rig::start(&config(&name, geometry(8 * MIB, 512), BLOCK_DEVICE));
    println!("say: {}", node.device.display());
    println!("missing: {missing:?}");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    rig.finish();
}
