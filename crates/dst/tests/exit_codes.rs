//! Every kind of failure has its own exit code and says what is wrong.

mod common;

use std::fs::File;

use common::{can_attach, Lab};

fn image(lab: &Lab, name: &str, size: u64) {
    File::create(lab.path(name)).unwrap().set_len(size).unwrap();
}

#[test]
fn wrong_usage_is_2() {
    let lab = Lab::new();
    for line in [
        "bogus",
        "attach",
        "attach storage/disk",
        "attach dst://storage",
        "attach dst://storage/-x",
        "attach dst://storage/a%20b",
        "attach dst://storage/x --name .x",
        "serve",
        "serve --block-size 1000 x",
        "serve --stdio --listen dst://x y",
        "serve --memory 1M x",
        "serve a=x a=y",
        "bench --rw write dst://storage/disk",
        "demo --size 1M",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let done = lab.dst(&words);
        if line == "serve a=x a=y" {
            // Found out by the server, whose first concern may be the missing files.
            assert!([Some(2), Some(16)].contains(&done.code), "{done:?}");
        } else {
            done.expect(2);
        }
    }
}

#[test]
fn wrong_usage_is_told_to_programs_too() {
    let lab = Lab::new();
    for words in [
        &["--json", "attach", "storage/disk"][..],
        &["status", "--jsonn", "--json"],
        &["--json"],
    ] {
        let done = lab.dst(words).expect(2);
        let told: serde_json::Value = serde_json::from_str(&done.err).unwrap();
        assert_eq!(told["error"]["code"], "usage", "{done:?}");
        let message = told["error"]["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.starts_with("error:"));
    }
    let help = lab.dst(&["--json", "--help"]).ok();
    assert!(help.out.contains("Usage"), "{help:?}");
}

#[test]
fn a_server_that_is_not_there_is_3() {
    let lab = Lab::new();
    let url = lab.url("disk");
    lab.dst(&["list", &url]).expect(3);
    lab.dst(&["bench", &url, "--time", "1s"]).expect(3);
    if can_attach() {
        let done = lab
            .dst(&["attach", "--connect-timeout", "200ms", &url])
            .expect(3);
        assert!(done.err.contains("dst serve"), "{done:?}");
        lab.assert_nothing_left();
    }
}

#[test]
fn an_export_that_is_not_there_is_4() {
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let url = lab.url("other");
    lab.dst(&["list", &url]).expect(4);
    lab.dst(&["bench", &url]).expect(4);
    if can_attach() {
        lab.dst(&["attach", &url]).expect(4);
    }
}

#[test]
fn an_export_that_another_client_writes_is_5_with_the_holder() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img"]);
    let _device = lab.attach("disk", "a", &[]);
    let (url, name) = (lab.url("disk"), lab.name("b"));
    // Where everything of the other client is apart, as on another machine.
    let mut command = lab.command(&["attach", "--name", &name, &url]);
    command
        .env("DST_STATE_DIR", lab.path("state-other"))
        .env("DST_RUNTIME_DIR", lab.path("run-other"));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(
        text.contains("writing") && text.contains("try again in"),
        "{text}"
    );
}

#[test]
fn a_taken_name_is_6_and_the_same_export_twice_is_7() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "16M", "disk.img", "other.img"]);
    let device = lab.attach("disk", "a", &[]);
    let done = lab
        .dst(&["attach", "--name", &device.name, &lab.url("other")])
        .expect(6);
    assert!(done.err.contains(&device.name), "{done:?}");
    for name in [device.name.as_str(), &lab.name("b")] {
        let done = lab
            .dst(&["attach", "--name", name, &lab.url("disk")])
            .expect(7);
        assert!(done.err.contains(device.node.to_str().unwrap()), "{done:?}");
    }
    let json = lab
        .dst(&[
            "--json",
            "attach",
            "--name",
            &device.name,
            &lab.url("other"),
        ])
        .expect(6);
    let error: serde_json::Value = serde_json::from_str(&json.err).unwrap();
    assert_eq!(error["error"]["code"], "name-taken");
}

#[test]
fn plaintext_over_a_network_is_10_on_both_ends() {
    let lab = Lab::new();
    image(&lab, "disk.img", 1 << 20);
    for url in ["dst://0.0.0.0:0", "dst://[::]:0", "dst://192.0.2.1:0"] {
        let state = lab.text("server");
        let done = lab
            .dst(&["serve", "--state-dir", &state, "--listen", url, "disk.img"])
            .expect(10);
        assert!(done.err.contains("--insecure"), "{done:?}");
    }
    if can_attach() {
        let done = lab.dst(&["attach", "dst://192.0.2.1/disk"]).expect(10);
        assert!(
            done.err.contains("--insecure") && done.err.contains("ssh"),
            "{done:?}"
        );
    }
}

#[test]
fn a_device_that_is_not_there_is_13() {
    let lab = Lab::new();
    let name = lab.name("a");
    lab.dst(&["detach", &name]).expect(13);
    lab.dst(&["detach", "--force", &name]).expect(13);
    lab.dst(&["detach", "/dev/null"]).expect(13);
    lab.dst(&["status", &name]).expect(13);
    lab.dst(&["detach", &name, "other"]).expect(13);
}

#[test]
fn what_can_not_be_served_is_16_with_the_reason() {
    let lab = Lab::new();
    image(&lab, "odd.img", 1_000_001);
    image(&lab, "empty.img", 0);
    image(&lab, "half.img", 512 * 3);
    std::fs::create_dir(lab.path("dir.img")).unwrap();
    let state = lab.text("server");
    for (arguments, word) in [
        (&["missing.img"][..], "--size"),
        (&["odd.img"][..], "multiple"),
        (&["empty.img"][..], "empty"),
        (&["--block-size", "4096", "half.img"][..], "multiple"),
        (&["dir.img"][..], "directory"),
        (&["--size", "0", "new.img"][..], "empty"),
        (&["--size", "1000", "new.img"][..], "multiple"),
    ] {
        let socket = format!("dst+unix://{}", lab.text("socket"));
        let mut words = vec!["serve", "--state-dir", &state, "--listen", &socket];
        words.extend(arguments);
        let done = lab.dst(&words).expect(16);
        assert!(done.err.contains(word), "{word} in {done:?}");
    }
    assert!(!lab.path("new.img").exists());
}

#[test]
fn a_file_that_another_server_serves_is_16() {
    let lab = Lab::new();
    let _server = lab.serve(&["--size", "1M", "disk.img"]);
    let socket = format!("dst+unix://{}", lab.text("other-socket"));
    let state = lab.text("other-server");
    let done = lab
        .dst(&[
            "serve",
            "--state-dir",
            &state,
            "--listen",
            &socket,
            "disk.img",
        ])
        .expect(16);
    assert!(done.err.contains("in use"), "{done:?}");
}

#[test]
fn an_address_that_is_taken_or_not_there_is_17() {
    let lab = Lab::new();
    image(&lab, "disk.img", 1 << 20);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("dst://{}", taken.local_addr().unwrap());
    let state = lab.text("server");
    for url in [taken.as_str(), "dst://127.0.0.1.invalid:0"] {
        let done = lab.dst(&[
            "serve",
            "--insecure",
            "--state-dir",
            &state,
            "--listen",
            url,
            "disk.img",
        ]);
        done.expect(17);
    }
}

#[test]
fn help_explains_every_command_and_lists_the_codes() {
    let lab = Lab::new();
    let help = lab.dst(&["--help"]).ok().out;
    assert!(
        help.contains("Exit codes") && help.contains("130"),
        "{help}"
    );
    for command in [
        "serve", "attach", "detach", "list", "status", "bench", "demo",
    ] {
        let help = lab.dst(&[command, "--help"]).ok().out;
        assert!(help.contains("Examples:"), "{help}");
    }
    lab.dst(&["--version"]).ok();
}
