//! `dst status --watch`, and what status says of a device whose agent is dead.

mod common;

use std::os::unix::fs::FileExt as _;

use common::direct::{open_direct, Aligned};
use common::{can_attach, wait_until, Lab, Running};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn a_watch_in_json_gives_a_line_per_look_and_ends_well_on_ctrl_c() {
    let lab = Lab::new();
    let mut watch = Running::start(lab.command(&["status", "--json", "--watch", "100ms"]));
    for _ in 0..3 {
        let line = watch.read_until("\n");
        let value: Value = serde_json::from_str(&line).unwrap();
        assert!(value["time"].as_f64().unwrap() > 1e9, "{line}");
        assert!(value["devices"].as_array().unwrap().is_empty(), "{line}");
    }
    watch.signal(Signal::INT);
    // Else the pipe may be full.
    watch.rest();
    assert!(watch.wait().success());
}

#[test]
fn a_watch_ends_when_nobody_reads_or_the_device_is_not_there() {
    let lab = Lab::new();
    let mut watch = Running::start(lab.command(&["status", "--watch"]));
    watch.read_until("No devices");
    drop(watch.child.stdout.take());
    assert!(watch.wait().success());
    lab.dst(&["status", "--watch", "disk"]).expect(13);
    lab.dst(&["status", "disk", "--watch", "1s"]).expect(13);
    lab.dst(&["status", "disk", "--watch", "soon"]).expect(2);
}

#[test]
fn a_watch_of_a_device_ends_with_it() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    let arguments = ["status", "--json", &device.name, "--watch", "100ms"];
    let mut watch = Running::start(lab.command(&arguments));
    watch.read_until("\"state\":\"live\"");
    lab.dst(&["detach", &device.name]).ok();
    watch.rest();
    assert_eq!(watch.wait().code(), Some(13));
}

#[test]
fn a_dead_agents_writes_are_counted_or_a_question_but_no_zero() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    let file = open_direct(&device.node);
    file.write_all_at(Aligned::new(5).bytes(), 0).unwrap();
    device.signal_agent(Signal::KILL);
    wait_until("the death of the agent", || {
        lab.status(&device.name)["state"] == "dead"
    });
    drop(file);
    let report = lab.status(&device.name);
    assert_eq!(report["retained_bytes"], 4096, "{report}");
    let text = lab.dst(&["status"]).ok().out;
    assert!(text.contains(" 4 KiB "), "{text}");
    let text = lab.dst(&["status", &device.name]).ok().out;
    assert!(text.contains("4 KiB in 1 writes"), "{text}");
    // Nobody can tell how much it is.
    std::fs::write(lab.path("run").join(&device.name).join("record"), "").unwrap();
    let report = lab.status(&device.name);
    assert!(report["retained_bytes"].is_null(), "{report}");
    let text = lab.dst(&["status"]).ok().out;
    assert!(text.contains(" ? "), "{text}");
}

#[test]
fn what_detach_removes_is_said_also_where_the_server_is_away() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = lab.serve(&["--size", "16M", "disk.img"]);
    let device = lab.attach("disk", "a", &[]);
    let file = open_direct(&device.node);
    file.write_all_at(Aligned::new(5).bytes(), 0).unwrap();
    device.signal_agent(Signal::KILL);
    wait_until("the death of the agent", || {
        lab.status(&device.name)["state"] == "dead"
    });
    drop(file);
    server.kill();
    let refused = lab.dst(&["detach", &device.name]).expect(3);
    assert!(
        refused.err.contains("removed all the same: "),
        "{refused:?}"
    );
    assert!(refused.err.contains("loop"), "{refused:?}");
}
