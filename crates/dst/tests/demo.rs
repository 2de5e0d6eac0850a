//! `dst demo`: that it succeeds, and that nothing is left of it wherever it is interrupted.

mod common;

use std::path::Path;
use std::sync::RwLock;

use common::{can_attach, leftovers, wait_until, Lab, Running};
use rustix::process::Signal;

const NAME: &str = "demo-";

/// A new mount namespace holds the mounts of all demos that run at that moment: it is made while there are none.
static MOUNTS: RwLock<()> = RwLock::new(());

/// Asserts that the demo with this process id has left nothing on the machine.
#[track_caller]
fn assert_nothing_left(dir: &Path, pid: u32) {
    let (dir_text, name) = (dir.display().to_string(), format!("{NAME}{pid}"));
    wait_until("the end of everything", || {
        leftovers(&dir_text, &name).is_empty()
    });
    let left: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn start(lab: &Lab, arguments: &[&str]) -> (Running, std::path::PathBuf) {
    let dir = lab.path("demo");
    std::fs::create_dir(&dir).unwrap();
    let text = dir.display().to_string();
    let mut words = vec!["demo", "--size", "64M", "--dir", &text];
    words.extend(arguments);
    (Running::start(lab.command(&words)), dir)
}

#[test]
fn the_demo_succeeds_and_leaves_nothing() {
    if !can_attach() {
        return;
    }
    let _mounts = MOUNTS.read();
    let lab = Lab::new();
    let (mut demo, dir) = start(&lab, &["--json"]);
    let pid = demo.child.id();
    let (out, err) = demo.rest();
    assert!(demo.wait().success(), "{out}{err}");
    let summary: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(summary["verified"], true);
    assert_eq!(summary["kind"], "block-device");
    assert_eq!(summary["file_bytes"], 8 << 20);
    assert!(summary["reconnects"].as_u64().unwrap() >= 1, "{summary}");
    assert!(summary["outage_s"].as_f64().unwrap() > 1.0, "{summary}");
    assert!(summary["seconds"].as_f64().unwrap() < 60.0, "{summary}");
    drop(demo);
    assert_nothing_left(&dir, pid);
}

#[test]
fn kept_is_what_was_asked_to_be_kept_and_no_more() {
    if !can_attach() {
        return;
    }
    let _mounts = MOUNTS.read();
    let lab = Lab::new();
    let (mut demo, dir) = start(&lab, &["--keep"]);
    let pid = demo.child.id();
    let (out, err) = demo.rest();
    assert!(demo.wait().success(), "{out}{err}");
    let kept = std::fs::read_dir(&dir)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    assert!(out.contains(&format!("kept: {}", kept.display())), "{out}");
    assert!(kept.join("disk.img").exists() && kept.join("server.log").exists());
    drop(demo);
    std::fs::remove_dir_all(kept).unwrap();
    assert_nothing_left(&dir, pid);
}

/// Interrupts a demo after it has said `text`.
fn interrupted_after(text: &str, signals: usize) {
    if !can_attach() {
        return;
    }
    let _mounts = MOUNTS.read();
    // The demo does not wait: on a busy machine it may be through before it is interrupted.
    let code = (0..5)
        .map(|_| interrupt(text, signals))
        .find(|&code| code != Some(0));
    assert_eq!(code, Some(Some(130)));
}

/// Its exit code. Nothing of it is left, whichever that is.
fn interrupt(text: &str, signals: usize) -> Option<i32> {
    let lab = Lab::new();
    let (mut demo, dir) = start(&lab, &[]);
    let pid = demo.child.id();
    demo.read_until(text);
    for _ in 0..signals {
        demo.signal(Signal::INT);
    }
    let (out, err) = demo.rest();
    let code = demo.wait().code();
    assert!([Some(0), Some(130)].contains(&code), "{code:?} {out}{err}");
    drop(demo);
    assert_nothing_left(&dir, pid);
    code
}

#[test]
fn interrupted_while_attaching_nothing_is_left() {
    interrupted_after("serve  ", 1);
}

#[test]
fn interrupted_while_making_the_file_system_nothing_is_left() {
    interrupted_after("attach  ", 1);
}

#[test]
fn interrupted_while_writing_nothing_is_left() {
    interrupted_after("mount  ", 1);
}

#[test]
fn interrupted_while_the_server_is_dead_nothing_is_left() {
    interrupted_after("kill -9", 1);
}

#[test]
fn interrupted_while_going_on_nothing_is_left() {
    interrupted_after("serve    again", 1);
}

#[test]
fn interrupted_while_checking_nothing_is_left() {
    interrupted_after("unmount", 1);
}

#[test]
fn interrupted_while_attaching_anew_nothing_is_left() {
    interrupted_after("detach  ", 1);
}

#[test]
fn interrupted_twice_nothing_is_left() {
    interrupted_after("kill -9", 2);
}

#[test]
fn a_demo_that_can_not_start_its_server_says_why_and_leaves_nothing() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let dir = lab.path("demo");
    std::fs::create_dir(&dir).unwrap();
    // No multiple of the block size.
    let text = dir.display().to_string();
    let done = lab
        .dst(&["demo", "--size", "67108865", "--dir", &text])
        .expect(16);
    assert!(done.err.contains("multiple"), "{done:?}");
    assert!(std::fs::read_dir(&dir).unwrap().next().is_none());
    let done = lab.dst(&["demo", "--dir", &lab.text("missing")]);
    assert_ne!(done.code, Some(0));
    let deep = lab.path(&"d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let done = lab
        .dst(&["demo", "--dir", &deep.display().to_string()])
        .expect(2);
    assert!(done.err.contains("too long"), "{done:?}");
    assert!(std::fs::read_dir(&deep).unwrap().next().is_none());
}

/// In a mount namespace of its own, where `/dev/fuse` is for everybody as on a desktop.
#[test]
fn without_root_the_demo_uses_a_plain_file_and_leaves_nothing() {
    if !can_attach() {
        return;
    }
    let _alone = MOUNTS.write();
    let lab = Lab::new();
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(lab.path(""), open_to_all).unwrap();
    let program = lab.path("dst");
    std::fs::copy(env!("CARGO_BIN_EXE_dst"), &program).unwrap();
    let script = "set -e; mkdir dev demo home; chown 65534 demo home; mount -t tmpfs none dev
        mknod dev/fuse c 10 229; chmod 666 dev/fuse; mount --bind dev/fuse /dev/fuse
        umount -l dev; rmdir dev
        HOME=$PWD/home exec setpriv --reuid=65534 --regid=65534 --clear-groups \
            ./dst demo --json --size 64M --dir demo";
    let mut command = std::process::Command::new("unshare");
    command
        .args(["-m", "--propagation", "private", "sh", "-c", script])
        .current_dir(lab.path(""))
        .env_remove("XDG_RUNTIME_DIR");
    let mut demo = Running::start(command);
    let (out, err) = demo.rest();
    assert!(demo.wait().success(), "{out}{err}");
    let summary: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(summary["kind"], "file");
    assert_eq!(summary["verified"], true);
    assert!(summary["reconnects"].as_u64().unwrap() >= 1, "{summary}");
    let pid = demo.child.id();
    drop(demo);
    assert_nothing_left(&lab.path("demo"), pid);
}
