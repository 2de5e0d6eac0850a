//! Detaching: refused, waiting, by force, by a signal, and after the agent has died.

mod common;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use common::direct::{open_direct, Aligned};
use common::{can_attach, mkfs, wait_until, Lab, Mount, Running};
use rustix::process::Signal;

/// What `dst detach --force` promises.
const FORCE_TAKES: Duration = Duration::from_secs(5);

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
fn an_agent_that_hangs_is_given_up_and_ended_by_force() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    let file = open_direct(&device.node);
    device.signal_agent(Signal::STOP);
    let status = lab.status(&device.name);
    assert_eq!(status["state"], "not-responding");
    // What it retains can't be told, and is not called nothing.
    assert_eq!(status["unsettled"], true);
    let message = status["message"].as_str().unwrap();
    let process = format!("process {}", device.pid);
    assert!(
        message.contains(&process) && message.contains("makes safe"),
        "{message}"
    );
    // Without a record nothing is.
    let run = lab.path("run").join(&device.name);
    std::fs::rename(run.join("record"), run.join("away")).unwrap();
    let message = lab.status(&device.name)["message"].to_string();
    assert!(
        message.contains("are lost") && !message.contains("makes safe"),
        "{message}"
    );
    std::fs::rename(run.join("away"), run.join("record")).unwrap();
    let io = std::thread::spawn(move || file.write_all_at(Aligned::new(1).bytes(), 0));
    let given_up = lab.dst(&["detach", &device.name]).expect(20);
    assert!(given_up.err.contains("--force"), "{given_up:?}");
    assert!(device.agent_runs() && !io.is_finished());

    let start = Instant::now();
    let done = lab.dst(&["detach", "--force", &device.name]).ok();
    assert!(start.elapsed() < FORCE_TAKES, "{:?}", start.elapsed());
    assert!(done.out.contains("killed"), "{done:?}");
    assert!(io.join().unwrap().is_err());
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
