//! Serving and listing: what is announced, ports, standard streams, signals.

mod common;

use std::fs::File;
use std::process::Command;

use common::{can_attach, Lab, Running, Server};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn a_list_shows_what_is_served_and_who_writes() {
    let lab = Lab::new();
    File::create(lab.path("iso.img"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let server = lab.serve(&[
        "--size",
        "16M",
        "--block-size",
        "4096",
        "disk.img",
        "x=memory:1M",
    ]);
    let url = format!("dst+unix://{}", lab.text("socket"));
    let listed = lab.dst(&["list", "--json", &url]).ok().json();
    assert_eq!(
        listed["exports"][0],
        json!({ "name": "disk", "size": 16 << 20, "logical_block": 4096, "read_only": false, "writer": null })
    );
    assert_eq!(listed["exports"][1]["name"], "x");
    let text = lab.dst(&["list", &url]).ok().out;
    assert!(
        text.contains("16 MiB") && text.contains("read-write"),
        "{text}"
    );
    let one = lab.dst(&["list", "--json", &lab.url("x")]).ok().json();
    assert_eq!(one["exports"].as_array().unwrap().len(), 1);
    if can_attach() {
        let device = lab.attach("disk", "a", &[]);
        let listed = lab.dst(&["list", "--json", &url]).ok().json();
        assert!(listed["exports"][0]["writer"].is_string(), "{listed}");
        lab.dst(&["detach", &device.name]).ok();
        let listed = lab.dst(&["list", "--json", &url]).ok().json();
        assert!(listed["exports"][0]["writer"].is_null(), "{listed}");
    }
    server.stop();
}

#[test]
fn what_a_loop_device_is_over_is_refused_with_what_to_do() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let image = lab.path("disk.img");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let set_up = Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&image)
        .output()
        .unwrap();
    let device = String::from_utf8(set_up.stdout).unwrap();
    let device = device.trim();
    let listening = format!("dst+unix://{}", lab.text("socket"));
    let through_a_pipe = format!(
        "dst+exec:///disk?command={}%20serve%20--stdio%20disk.img",
        env!("CARGO_BIN_EXE_dst")
    );
    let refused = [
        lab.dst(&["serve", "--listen", &listening, "disk.img"]),
        lab.dst(&["list", &through_a_pipe]),
    ];
    let gone = Command::new("losetup").args(["--detach", device]).status();
    assert!(gone.unwrap().success());
    let hint = format!("losetup -d {device}");
    for (done, code) in refused.into_iter().zip([16, 3]) {
        let done = done.expect(code);
        assert!(
            done.err.contains("in use by the loop device") && done.err.contains(&hint),
            "{done:?}"
        );
    }
}

#[test]
fn a_port_that_the_system_chose_is_announced_and_works() {
    let lab = Lab::new();
    let state = lab.text("server");
    let command = lab.command(&[
        "--json",
        "serve",
        "--state-dir",
        &state,
        "--listen",
        "dst://127.0.0.1:0",
        "--listen",
        "dst://[::1]:0",
        "memory:1M",
    ]);
    let server = Server::start(command);
    let urls = server.announced["exports"][0]["urls"].as_array().unwrap();
    assert_eq!(urls.len(), 2);
    for url in urls {
        let listed = lab
            .dst(&["list", "--json", url.as_str().unwrap()])
            .ok()
            .json();
        assert_eq!(listed["exports"][0]["name"], "memory");
    }
    server.stop();
}

#[test]
fn the_line_to_carry_over_is_printed() {
    let lab = Lab::new();
    let (state, socket) = (lab.text("server"), lab.url("disk"));
    let listen = socket.split('?').next().unwrap();
    let command = lab.command(&[
        "serve",
        "--state-dir",
        &state,
        "--size",
        "1M",
        "--listen",
        listen,
        "disk.img",
    ]);
    let mut process = Running::start(command);
    let text = process.read_until("dst attach");
    assert!(text.contains(&format!("dst attach '{socket}'")), "{text}");
    process.signal(Signal::INT);
    assert!(process.wait().success());
}

#[test]
fn a_command_of_its_own_serves_on_its_standard_streams() {
    let lab = Lab::new();
    File::create(lab.path("disk.img"))
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    let program = env!("CARGO_BIN_EXE_dst");
    let command = format!(
        "{program} serve --stdio --state-dir {} {}",
        lab.text("server"),
        lab.text("disk.img")
    );
    let url = format!("dst+exec:///disk?command={}", command.replace(' ', "%20"));
    let listed = lab.dst(&["list", "--json", &url]).ok().json();
    assert_eq!(listed["exports"][0]["name"], "disk");
    lab.assert_nothing_left();
    if can_attach() {
        let name = lab.name("a");
        lab.dst(&["attach", "--name", &name, &url]).ok();
        let node = std::path::Path::new("/dev/dst").join(&name);
        let file = File::options().write(true).open(node).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"through a pipe", 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        lab.dst(&["detach", &name]).ok();
        let image = std::fs::read(lab.path("disk.img")).unwrap();
        assert!(image.starts_with(b"through a pipe"));
        lab.assert_nothing_left();
    }
}

#[test]
fn standard_streams_that_are_no_channel_are_refused() {
    let lab = Lab::new();
    lab.dst(&["serve", "--stdio", "memory:1M"]).expect(2);
}

#[test]
fn a_second_signal_ends_a_server_that_can_not_drain() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let mut server = lab.serve(&["--size", "16M", "disk.img"]);
    server.process.signal(Signal::TERM);
    server.process.signal(Signal::TERM);
    // Whichever it was, it is over.
    let code = server.process.wait().code();
    assert!([Some(0), Some(130)].contains(&code), "{code:?}");
}
