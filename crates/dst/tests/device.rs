//! A device in use: what it stores and shows, and what becomes of its requests when something fails under it.

mod common;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use common::direct::{open_direct, Aligned};
use common::{can_attach, wait_until, Lab, Mount};

#[test]
fn a_device_stores_bytes_shows_itself_and_leaves_nothing() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    assert_eq!(
        device.node,
        std::path::Path::new("/dev/dst").join(&device.name)
    );
    assert_eq!(device.ready["kind"], "block-device");

    let mut file = File::options()
        .read(true)
        .write(true)
        .open(&device.node)
        .unwrap();
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), 16 << 20);
    file.write_all_at(b"bytes that stay", 12_345).unwrap();
    file.sync_all().unwrap();
    drop(file);

    let report = lab.status(&device.name);
    for (field, value) in [
        ("state", "live"),
        ("front_end", "fuse"),
        ("kind", "block-device"),
        ("url", lab.url("disk").as_str()),
        ("node", device.node.to_str().unwrap()),
    ] {
        assert_eq!(report[field], value, "{field}");
    }
    assert_eq!(report["size"], 16 << 20);
    assert_eq!(report["queues"], 1);
    for field in [
        "pid",
        "in_flight",
        "queued",
        "retained_bytes",
        "retained_writes",
        "reconnects",
        "replayed",
        "attached_s",
        "session",
        "epoch",
    ] {
        assert!(report[field].is_u64(), "{field}: {report}");
    }
    for field in ["reads", "writes", "read_bytes", "written_bytes"] {
        assert!(report["totals"][field].is_u64(), "{field}: {report}");
        assert!(report["rates"][field].is_f64(), "{field}: {report}");
    }
    assert!(report["totals"]["written_bytes"].as_u64().unwrap() >= 4096);
    assert!(lab.dst(&["status"]).ok().out.contains(&device.name));

    let text = lab.dst(&["detach", &device.name]).ok().out;
    assert!(text.contains("is detached"), "{text}");
    assert!(!device.agent_runs());
    assert!(!device.node.is_symlink());
    assert!(lab.dst(&["status", &device.name]).expect(13).out.is_empty());
    let mut image = vec![0; 15];
    File::open(lab.path("disk.img"))
        .unwrap()
        .read_exact_at(&mut image, 12_345)
        .unwrap();
    assert_eq!(image, b"bytes that stay");
    server.stop();
    lab.assert_nothing_left();
}

#[test]
fn io_waits_for_a_killed_server_and_goes_on_with_the_next() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let arguments = ["--size", "16M", "disk.img"];
    let server = lab.serve(&arguments);
    let device = lab.attach("disk", "a", &[]);
    server.kill();
    let node = device.node.clone();
    let writer = std::thread::spawn(move || {
        let file = File::options().write(true).open(node).unwrap();
        file.write_all_at(&[9; 4096], 4096).unwrap();
        file.sync_all()
    });
    wait_until("a request that waits", || {
        let report = lab.status(&device.name);
        report["state"] == "reconnecting"
            && report["in_flight"].as_u64().unwrap() + report["queued"].as_u64().unwrap() > 0
    });
    let _server = lab.serve(&arguments);
    writer.join().unwrap().unwrap();
    wait_until("the connection", || {
        lab.status(&device.name)["state"] == "live"
    });
    assert!(lab.status(&device.name)["reconnects"].as_u64().unwrap() >= 1);
    lab.dst(&["detach", &device.name]).ok();
}

#[test]
fn a_deadline_fails_requests_and_later_ones_work_again() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &["--deadline", "500ms"]);
    let mut file = open_direct(&device.node);
    server.process.freeze();
    let mut block = Aligned::new(0);
    let error = file.read_exact(block.bytes()).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    server.process.thaw();
    wait_until("a read", || {
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_exact(block.bytes()).is_ok()
    });
    drop(file);
    assert!(lab.status(&device.name)["expired"].as_u64().unwrap() >= 1);
    lab.dst(&["detach", &device.name]).ok();
}

#[test]
fn a_front_end_removed_from_outside_fails_the_device_until_it_is_detached() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts
        .lines()
        .find(|line| line.contains(&device.name))
        .unwrap();
    // The connection has the number of the mount's device.
    let (_, number) = mount.split(' ').nth(2).unwrap().split_once(':').unwrap();
    let control = lab.path("fusectl");
    std::fs::create_dir(&control).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &control, "fusectl", flags, None).unwrap();
    let _control = Mount {
        point: control.clone(),
    };
    std::fs::write(control.join(number).join("abort"), "1").unwrap();

    wait_until("the failure", || {
        lab.status(&device.name)["state"] == "failed"
    });
    let message = lab.status(&device.name)["message"].clone();
    assert!(
        message.as_str().unwrap().contains("from outside"),
        "{message}"
    );
    lab.dst(&["detach", &device.name]).ok();
    assert!(!device.node.is_symlink());
    assert!(!device.agent_runs());
}
