//! The life of a device: attached, used, shown, refused, detached, and what is left of it.

mod common;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

use common::{can_attach, mkfs, wait_until, Lab, Mount, Running};
use rustix::process::Signal;

/// What `dst detach --force` promises.
const FORCE_TAKES: Duration = Duration::from_secs(5);

/// A block in memory as direct I/O wants it.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new(byte: u8) -> Self {
        Self(vec![byte; 8192])
    }

    fn bytes(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(4096);
        &mut self.0[start..start + 4096]
    }
}

/// Opens a file, made if need be, past the page cache.
fn open_direct(path: &std::path::Path) -> File {
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.custom_flags(direct).open(path).unwrap()
}

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
fn a_mounted_device_is_refused_and_goes_when_unmounted() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "64M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    mkfs(&device.node);
    let mount = Mount::new(&device.node, lab.path("mnt"));
    std::fs::write(mount.point.join("file"), "x").unwrap();
    let refused = lab.dst(&["detach", &device.name]).expect(8);
    assert!(refused.err.contains("mounted"), "{refused:?}");
    assert_eq!(
        std::fs::read_to_string(mount.point.join("file")).unwrap(),
        "x"
    );
    drop(mount);
    // By its node this time.
    wait_until("the detach", || {
        lab.dst(&["detach", device.node.to_str().unwrap()]).code == Some(0)
    });
    assert!(!device.agent_runs());
}

#[test]
fn force_removes_a_mounted_device_in_time_and_fails_its_io() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = lab.serve(&["--size", "64M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    mkfs(&device.node);
    let mount = Mount::new(&device.node, lab.path("mnt"));
    let mut file = File::create(mount.point.join("file")).unwrap();
    file.write_all(&[7; 4096]).unwrap();
    // With the server, and not flushed.
    let direct = open_direct(&mount.point.join("direct"));
    direct.write_all_at(Aligned::new(7).bytes(), 0).unwrap();
    drop(direct);
    assert!(lab.status(&device.name)["retained_bytes"].as_u64().unwrap() > 0);
    // The worst case: nobody answers.
    server.process.freeze();
    let start = Instant::now();
    lab.dst(&["detach", "--force", &device.name]).ok();
    assert!(start.elapsed() < FORCE_TAKES, "{:?}", start.elapsed());
    assert!(!device.agent_runs());
    assert!(file.sync_all().is_err());
    drop(file);
    drop(mount);
    server.process.thaw();
    drop(device);
    drop(server);
    lab.assert_nothing_left();
}

#[test]
fn force_ends_an_agent_that_hangs() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    device.signal_agent(Signal::STOP);
    assert_eq!(lab.status(&device.name)["state"], "not-responding");
    let start = Instant::now();
    let done = lab.dst(&["detach", "--force", &device.name]).ok();
    assert!(
        start.elapsed() < FORCE_TAKES + Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert!(done.out.contains("killed"), "{done:?}");
    assert!(!device.agent_runs());
    assert!(!device.node.is_symlink());
}

#[test]
fn leftovers_of_a_dead_agent_are_removed_by_detach_and_by_the_next_attach() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    for by_attach in [false, true] {
        let device = lab.attach("disk", "a", &[]);
        device.signal_agent(Signal::KILL);
        if by_attach {
            wait_until("the death of the agent", || {
                lab.status(&device.name)["state"] == "dead"
            });
        }
        if by_attach {
            let url = lab.url("disk");
            let again = lab.dst(&["attach", "--name", &device.name, &url]).ok();
            assert!(again.err.contains("dead agent"), "{again:?}");
            assert_eq!(lab.status(&device.name)["state"], "live");
            lab.dst(&["detach", &device.name]).ok();
        } else {
            let done = lab.dst(&["detach", &device.name]).ok();
            assert!(done.out.contains("removed"), "{done:?}");
        }
        assert!(!device.node.is_symlink());
        lab.dst(&["status", &device.name]).expect(13);
    }
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
fn a_detach_without_a_server_waits_and_can_be_left_waiting() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let arguments = ["--size", "16M", "disk.img"];
    let server = lab.serve(&arguments);
    let device = lab.attach("disk", "a", &[]);
    let file = open_direct(&device.node);
    file.write_all_at(Aligned::new(0x77).bytes(), 0).unwrap();
    drop(file);
    server.kill();
    let mut detach = Running::start(lab.command(&["detach", &device.name]));
    let mut line = String::new();
    let mut errors = std::io::BufReader::new(detach.child.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
    assert!(line.contains("waiting"), "{line}");
    detach.signal(Signal::INT);
    assert_eq!(detach.wait().code(), Some(130));
    assert_eq!(lab.status(&device.name)["state"], "detaching");

    let server = lab.serve(&arguments);
    wait_until("the end of the agent", || !device.agent_runs());
    lab.dst(&["status", &device.name]).expect(13);
    let image = std::fs::read(lab.path("disk.img")).unwrap();
    assert!(image[..4096].iter().all(|&byte| byte == 0x77));
    server.stop();
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
    // The same client only reads it twice.
    let second = lab.attach("disk", "b", &["--read-only"]);
    lab.dst(&["attach", "--name", &lab.name("c"), &url])
        .expect(7);
    lab.dst(&["detach", &device.name, &second.name]).ok();
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

#[test]
fn a_terminated_agent_detaches_unless_its_device_is_in_use() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = lab.serve(&["--size", "64M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    mkfs(&device.node);
    let mount = Mount::new(&device.node, lab.path("mnt"));
    device.signal_agent(Signal::TERM);
    let log = lab.path("run").join(&device.name).join("log");
    wait_until("the refusal", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("can't be removed now"))
    });
    assert_eq!(lab.status(&device.name)["state"], "live");
    std::fs::write(mount.point.join("file"), "x").unwrap();
    drop(mount);
    wait_until("the end of the agent", || {
        if device.agent_runs() {
            device.signal_agent(Signal::TERM);
        }
        !device.agent_runs()
    });
    server.stop();
    lab.dst(&["status", &device.name]).expect(13);
}
