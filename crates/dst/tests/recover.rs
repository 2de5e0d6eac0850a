//! An agent is killed under load, and the server loses power before anything was flushed: what had been acknowledged is there
//! nevertheless, once the device has been detached or attached anew.

mod common;

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::direct::{open_direct, Aligned};
use common::{can_attach, wait_until, Device, Lab, Running, Server};
use rustix::process::Signal;

const BLOCKS: usize = 2048;
const BLOCK: usize = 4096;

/// What block `at` is written with.
fn fill(at: usize) -> u8 {
    (at % 251 + 1) as u8
}

/// A server whose disk forgets at a kill what was not flushed.
fn serve(lab: &Lab) -> Server {
    let image = lab.path("disk.img");
    if !image.exists() {
        let file = std::fs::File::create(&image).unwrap();
        file.set_len((BLOCKS * BLOCK) as u64).unwrap();
    }
    let spec = format!("disk=lossy:{}?early=10", image.display());
    lab.serve(&[&spec])
}

/// Writes block after block until the agent, killed in the middle, takes the device along. Tells how many were acknowledged.
fn write_until_killed(device: &Device<'_>) -> usize {
    let acknowledged = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = open_direct(&device.node);
            for at in 0..BLOCKS {
                let mut block = Aligned::new(fill(at));
                if file
                    .write_all_at(block.bytes(), (at * BLOCK) as u64)
                    .is_err()
                {
                    return;
                }
                acknowledged.store(at + 1, Ordering::SeqCst);
            }
        });
        wait_until("some writes", || acknowledged.load(Ordering::SeqCst) >= 300);
        device.signal_agent(Signal::KILL);
    });
    wait_until("the death of the agent", || !device.agent_runs());
    acknowledged.load(Ordering::SeqCst)
}

/// How many of the first `count` blocks are not on the medium of a server that has lost power.
fn missing(lab: &Lab, count: usize) -> usize {
    let file = std::fs::File::open(lab.path("disk.img")).unwrap();
    let mut block = vec![0; BLOCK];
    (0..count)
        .filter(|at| {
            file.read_exact_at(&mut block, (at * BLOCK) as u64).unwrap();
            block.iter().any(|byte| *byte != fill(*at))
        })
        .count()
}

#[test]
fn what_a_killed_agent_had_acknowledged_survives_power_loss_of_the_server_if_it_is_detached() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = serve(&lab);
    let device = lab.attach("disk", "a", &[]);
    let acknowledged = write_until_killed(&device);
    server.kill();
    // Without a server nothing is given up.
    let refused = lab.dst(&["detach", &device.name]).expect(3);
    assert!(
        refused.err.contains("could not be made safe"),
        "{refused:?}"
    );
    let refused = lab.dst(&["attach", "--name", &device.name, &lab.url("disk")]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    let server = serve(&lab);
    let done = lab.dst(&["detach", &device.name]).ok();
    assert!(done.out.contains("are safe on the server now"), "{done:?}");
    server.kill();
    assert_eq!(missing(&lab, acknowledged), 0, "of {acknowledged}");
    lab.dst(&["status", &device.name]).expect(13);
}

#[test]
fn an_attach_under_the_same_name_settles_a_session_that_the_server_still_knows() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = serve(&lab);
    let device = lab.attach("disk", "a", &[]);
    let acknowledged = write_until_killed(&device);
    let again = lab
        .dst(&["attach", "--name", &device.name, &lab.url("disk")])
        .ok();
    assert!(
        again.err.contains("are safe on the server now"),
        "{again:?}"
    );
    server.kill();
    assert_eq!(missing(&lab, acknowledged), 0, "of {acknowledged}");
}

#[test]
fn force_gives_up_what_was_not_flushed() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = serve(&lab);
    let device = lab.attach("disk", "a", &[]);
    let acknowledged = write_until_killed(&device);
    server.kill();
    let done = lab.dst(&["--json", "detach", "--force", &device.name]).ok();
    assert_eq!(done.json()["detached"][0]["lost"], true, "{done:?}");
    assert!(done.out.contains("may be lost"), "{done:?}");
    // Else the others show nothing.
    assert!(missing(&lab, acknowledged) > 0);
}

#[test]
fn without_retention_a_flush_makes_safe_what_the_server_still_has() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = serve(&lab);
    let device = lab.attach("disk", "a", &["--retain", "off"]);
    let acknowledged = write_until_killed(&device);
    let done = lab.dst(&["--json", "detach", &device.name]).ok();
    assert_eq!(done.json()["detached"][0]["lost"], false, "{done:?}");
    server.kill();
    assert_eq!(missing(&lab, acknowledged), 0, "of {acknowledged}");
}

#[test]
fn without_retention_a_power_cut_of_the_server_is_told_as_a_loss() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = serve(&lab);
    let device = lab.attach("disk", "a", &["--retain", "off"]);
    write_until_killed(&device);
    server.kill();
    // That nobody is there to be asked is no proof either.
    let mut waiting = Running::start(lab.command(&["detach", &device.name]));
    wait_until("signals to be taken", || waiting.takes(Signal::INT));
    waiting.signal(Signal::INT);
    assert_eq!(waiting.wait().code(), Some(130));
    let _server = serve(&lab);
    let done = lab.dst(&["--json", "detach", &device.name]).expect(14);
    assert_eq!(done.json()["detached"][0]["lost"], true, "{done:?}");
    assert!(done.err.contains("may be lost"), "{done:?}");
    lab.dst(&["status", &device.name]).expect(13);
}

#[test]
fn a_record_that_can_not_be_used_now_is_kept() {
    use std::os::unix::fs::PermissionsExt as _;
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = serve(&lab);
    let device = lab.attach("disk", "a", &[]);
    let acknowledged = write_until_killed(&device);
    let record = lab.path("run").join(&device.name).join("record");
    let refused = |why: &str| {
        for command in [
            &["detach", &device.name][..],
            &["attach", "--name", &device.name, &lab.url("disk")],
        ] {
            let done = lab.dst(command).expect(1);
            assert!(done.err.contains(why), "{done:?}");
            assert!(done.err.contains("--force"), "{done:?}");
            assert!(record.exists());
        }
    };
    let allow = |mode| {
        std::fs::set_permissions(&record, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(0o666);
    refused("others may write to it");
    allow(0o600);
    // Its layout is the second word.
    let file = std::fs::File::options().write(true).open(&record).unwrap();
    file.write_all_at(&99_u64.to_le_bytes(), 8).unwrap();
    refused("layout 99");
    // Nor does an attach under another name pass it by.
    let other = lab.name("other");
    let done = lab.dst(&["attach", "--name", &other, &lab.url("disk")]);
    assert_eq!(done.code, Some(7), "{done:?}");
    file.write_all_at(&1_u64.to_le_bytes(), 8).unwrap();
    lab.dst(&["detach", &device.name]).ok();
    server.kill();
    assert_eq!(missing(&lab, acknowledged), 0, "of {acknowledged}");
}
