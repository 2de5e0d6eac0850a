//! Attaching: what a device is like, who gets it, and what an attach that does not succeed leaves.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use common::{can_attach, Lab, Running};
use rustix::process::Signal;

#[test]
fn block_sizes_and_read_only_reach_the_device() {
    if !can_attach() {
        return;
    }
    for (size, read_only) in [("512", false), ("4096", false), ("4096", true)] {
        let lab = Lab::new();
        File::create(lab.path("disk.img"))
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        let mut arguments = vec!["--block-size", size, "disk.img"];
        if read_only {
            arguments.push("--read-only");
        }
        let server = lab.serve(&arguments);
        assert_eq!(server.announced["exports"][0]["read_only"], read_only);
        let device = lab.attach("disk", "a", &[]);
        let announced: u64 = size.parse().unwrap();
        assert_eq!(device.sysfs_number("queue/logical_block_size"), announced);
        assert_eq!(device.sysfs_number("ro"), u64::from(read_only));
        assert_eq!(device.sysfs_number("size"), (16 << 20) / 512);
        assert_eq!(device.ready["read_only"], read_only);
        lab.dst(&["detach", &device.name]).ok();
    }
}

#[test]
fn readers_and_a_writer_of_one_export_have_room_on_one_machine_and_a_second_writer_has_not() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let reader = lab.attach("disk", "r", &["--read-only"]);
    let writer = lab.attach("disk", "w", &[]);
    let disk = File::options().write(true).open(&writer.node).unwrap();
    disk.write_all_at(&[1; 4096], 0).unwrap();
    disk.sync_all().unwrap();
    let another = lab.attach("disk", "s", &["--read-only"]);
    let mut found = [0; 4096];
    let file = File::open(&another.node).unwrap();
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [1; 4096]);
    // Its lease is the writer's own, whoever else comes.
    disk.write_all_at(&[2; 4096], 4096).unwrap();
    disk.sync_all().unwrap();
    drop((disk, file));
    let url = lab.url("disk");
    let second = lab.name("x");
    lab.dst(&["attach", &url, "--name", &second]).expect(7);
    assert_eq!(reader.sysfs_number("ro"), 1);
    assert_eq!(writer.sysfs_number("ro"), 0);
    assert_eq!(another.sysfs_number("ro"), 1);
    lab.dst(&["detach", &reader.name, &writer.name, &another.name])
        .ok();
}

#[test]
fn a_read_only_attach_of_a_writable_export_refuses_writes() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &["--read-only"]);
    assert_eq!(device.sysfs_number("ro"), 1);
    let file = File::options().write(true).open(&device.node);
    let written = file.and_then(|file| {
        file.write_all_at(&[1; 4096], 0)
            .and_then(|()| file.sync_all())
    });
    assert!(written.is_err());
    // Somebody else may write meanwhile.
    let url = lab.url("disk");
    let arguments = [
        "bench",
        "--rw",
        "write",
        "--time",
        "50ms",
        "--yes-destroy-data",
        &url,
    ];
    lab.dst_as("other", &arguments).ok();
    lab.dst(&["detach", &device.name]).ok();
}

#[test]
fn of_two_attaches_at_once_one_wins_and_the_other_is_told() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = lab.serve(&["--size", "16M", "disk.img"]);
    let (url, name) = (lab.url("disk"), lab.name("a"));
    let start = || Running::start(lab.command(&["attach", "--name", &name, &url]));
    let mut both = [start(), start(), start()];
    let mut codes: Vec<_> = both
        .iter_mut()
        .map(|one| one.wait().code().unwrap())
        .collect();
    codes.sort_unstable();
    assert_eq!(codes[0], 0, "{codes:?}");
    assert!(
        codes[1..].iter().all(|code| [6, 7].contains(code)),
        "{codes:?}"
    );
    assert_eq!(lab.status(&name)["state"], "live");
    lab.dst(&["detach", &name]).ok();
    drop(both);
    server.stop();
    lab.assert_nothing_left();
}

#[test]
fn in_the_foreground_a_signal_detaches() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = lab.serve(&["--size", "16M", "disk.img"]);
    let (url, name) = (lab.url("disk"), lab.name("a"));
    let command = lab.command(&["attach", "--foreground", "--name", &name, &url]);
    let mut process = Running::start(command);
    process.read_until("/dev/dst/");
    assert_eq!(lab.status(&name)["state"], "live");
    process.signal(Signal::INT);
    assert!(process.wait().success(), "{:?}", process.rest());
    drop(process);
    server.stop();
    lab.assert_nothing_left();
}

#[test]
fn interrupting_an_attach_leaves_nothing() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    // Somebody who takes connections and says nothing.
    let socket = std::os::unix::net::UnixListener::bind(lab.path("socket")).unwrap();
    let (url, name) = (lab.url("disk"), lab.name("a"));
    let command = lab.command(&["attach", "--connect-timeout", "none", "--name", &name, &url]);
    let mut attach = Running::start(command);
    let _connection = socket.accept().unwrap();
    assert_eq!(lab.status(&name)["state"], "attaching");
    lab.dst(&["attach", "--name", &name, &url]).expect(7);
    attach.signal(Signal::INT);
    assert_eq!(attach.wait().code(), Some(130));
    drop(attach);
    lab.dst(&["status", &name]).expect(13);
    lab.assert_nothing_left();
}

#[test]
fn an_agent_that_dies_while_attaching_is_reported() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let socket = std::os::unix::net::UnixListener::bind(lab.path("socket")).unwrap();
    let (url, name) = (lab.url("disk"), lab.name("a"));
    let command = lab.command(&["attach", "--connect-timeout", "none", "--name", &name, &url]);
    let mut attach = Running::start(command);
    let _connection = socket.accept().unwrap();
    let pid = lab.status(&name)["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(attach.wait().code(), Some(1));
    let (_, errors) = attach.rest();
    assert!(
        errors.contains("died") && errors.contains("attaches"),
        "{errors}"
    );
    drop(attach);
    lab.dst(&["status", &name]).expect(13);
    lab.assert_nothing_left();
}
