//! An export gets another size while it is in use: who notices, and who may not.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{can_attach, mkfs, wait_until, Lab, Mount, Running};
use rustix::fs::FlockOperation;

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_mounted_device_grows_with_its_image_and_the_file_system_on_it_too() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = lab.serve(&["--size", "32M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    mkfs(&device.node);
    let mount = Mount::new(&device.node, lab.path("mnt"));
    std::fs::write(mount.point.join("before"), vec![7; 1 << 20]).unwrap();

    let done = lab.dst(&["resize", "disk.img", "+32M"]).ok();
    let server_pid = server.announced["pid"].to_string();
    assert!(done.out.contains(&server_pid), "{done:?}");
    wait_until("the new size", || {
        device.sysfs_number("size") * 512 == 64 << 20
    });
    let done = lab.dst(&["--json", "resize", &device.name]).ok();
    assert_eq!(done.json()["size"], 64 << 20);
    let report = lab.status(&device.name);
    assert_eq!(report["size"], 64 << 20);
    assert_eq!(report["device_size"], 64 << 20);
    // Growing ext4 while it is mounted takes CAP_SYS_RESOURCE, which containers lack: `vm/tests/resize.sh` does that.
    let point = mount.point.clone();
    drop(mount);
    let node = device.node.to_str().unwrap();
    run("/usr/sbin/e2fsck", &["-fy", node]);
    run("/usr/sbin/resize2fs", &[node]);
    std::fs::remove_dir(&point).unwrap();
    let mount = Mount::new(&device.node, point);
    std::fs::write(mount.point.join("after"), vec![8; 40 << 20]).unwrap();
    assert_eq!(
        std::fs::read(mount.point.join("before")).unwrap(),
        vec![7; 1 << 20]
    );
    drop(mount);
    lab.dst(&["detach", &device.name]).ok();
    server.stop();
    run("/usr/sbin/e2fsck", &["-fn", &lab.text("disk.img")]);
    assert_eq!(
        std::fs::metadata(lab.path("disk.img")).unwrap().len(),
        64 << 20
    );
    lab.assert_nothing_left();
}

/// Whether this process waits for a lock.
fn waits_for_a_lock(process: &Running) -> bool {
    let pid = process.child.id().to_string();
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let mut waiting = locks.lines().filter(|line| line.contains("->"));
    waiting.any(|line| line.split_whitespace().any(|word| word == pid))
}

#[test]
fn of_several_at_once_none_takes_back_what_another_has_done() {
    const MIB: u64 = 1 << 20;
    let lab = Lab::new();
    let image = std::fs::File::create(lab.path("disk.img")).unwrap();
    image.set_len(MIB).unwrap();
    // One that is about to change it.
    rustix::fs::fcntl_lock(&image, FlockOperation::LockExclusive).unwrap();
    let mut others: Vec<Running> = (0..4)
        .map(|_| Running::start(lab.command(&["resize", "disk.img", "+1M"])))
        .collect();
    wait_until("all to wait", || others.iter().all(waits_for_a_lock));
    image.set_len(10 * MIB).unwrap();
    drop(image);
    for other in &mut others {
        assert!(other.wait().success(), "{:?}", other.rest());
    }
    let size = std::fs::metadata(lab.path("disk.img")).unwrap().len();
    assert_eq!(size, 14 * MIB);
}

/// A loop device of the storage side's own.
struct Volume(PathBuf);

impl Volume {
    fn over(image: &str) -> Self {
        Self(run("/usr/sbin/losetup", &["--find", "--show", image]).into())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup")
            .arg("-d")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_volume_that_is_grown_underneath_reaches_the_device() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let image = lab.text("volume.img");
    run("/usr/bin/truncate", &["-s", "16M", &image]);
    let volume = Volume::over(&image);
    let node = volume.0.to_str().unwrap().to_owned();
    let server = lab.serve(&[&format!("disk={node}")]);
    let device = lab.attach("disk", "a", &[]);
    let refused = lab.dst(&["resize", &node, "32M"]).expect(16);
    assert!(refused.err.contains("its own tools"), "{refused:?}");
    let refused = lab
        .dst(&["resize", device.node.to_str().unwrap(), "32M"])
        .expect(2);
    assert!(refused.err.contains(&lab.url("disk")), "{refused:?}");
    run("/usr/bin/truncate", &["-s", "32M", &image]);
    run("/usr/sbin/losetup", &["-c", &node]);
    wait_until("the new size", || {
        device.sysfs_number("size") * 512 == 32 << 20
    });
    lab.dst(&["detach", &device.name]).ok();
    server.stop();
}

#[test]
fn what_is_served_does_not_shrink() {
    let lab = Lab::new();
    let server = lab.serve(&["--size", "8M", "disk.img"]);
    let size = || std::fs::metadata(lab.path("disk.img")).unwrap().len();
    let refused = lab.dst(&["resize", "disk.img", "4M"]).expect(2);
    assert!(refused.err.contains("--shrink"), "{refused:?}");
    let refused = lab.dst(&["resize", "--shrink", "disk.img", "4M"]).expect(8);
    assert!(refused.err.contains("another server"), "{refused:?}");
    assert_eq!(size(), 8 << 20);
    server.stop();
    lab.dst(&["resize", "--shrink", "disk.img", "4M"]).ok();
    assert_eq!(size(), 4 << 20);
    lab.dst(&["resize", "disk.img"]).expect(2);
    lab.dst(&["resize", "--shrink", "disk"]).expect(2);
}
