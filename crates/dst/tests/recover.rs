//! An agent is killed under load, and the server loses power before anything was flushed: what had been acknowledged is there
//! nevertheless, once the device has been detached or attached anew; and a successor goes on with it. (That the device itself goes
//! on takes a front end that survives: `vm/tests/recover.sh`.)

mod common;

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::direct::{open_direct, Aligned};
use common::{can_attach, wait_until, Device, Lab, Running, Server};
use dst_client::recover::Leftovers;
use dst_client::{Completion, Driver, Op, Options, Reply, Request};
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

/// Goes on with the session of the dead agent of `device`, as a successor does; what it has not answered is nobody's any more.
fn take_over(lab: &Lab, device: &Device<'_>) -> Driver {
    let left = Leftovers::find(&lab.path("run").join(&device.name))
        .unwrap()
        .expect("a record");
    let (writes, bytes) = left.retained().unwrap();
    let mut options = Options::new(lab.url("disk").parse().unwrap());
    options.retain = Some(64 << 20);
    let driver = left.take_over(options).unwrap();
    let status = driver.status();
    assert_eq!(
        (status.retained_entries, status.retained_bytes),
        (writes, bytes)
    );
    driver
}

/// Hands requests in, and waits until `enough` of them are answered.
fn drive(driver: &mut Driver, requests: Vec<Request>, enough: usize) -> Vec<Completion> {
    for request in requests {
        driver.submit(request);
    }
    let (mut done, mut ready) = (Vec::new(), Vec::new());
    let end = Instant::now() + common::LONG;
    while done.len() < enough {
        assert!(Instant::now() < end, "{} of {enough}", done.len());
        let turn = driver.turn(Some(Duration::from_millis(100)), &mut done, &mut ready);
        assert_eq!(turn.unwrap().failed, None);
    }
    done
}

/// Whoever takes over is killed in the middle as well, and the server loses power twice: nothing that anyone of them had
/// acknowledged is lost, and what was read stays true. Needs no front end that survives.
#[test]
fn successors_that_are_killed_in_turn_lose_nothing_that_any_of_them_acknowledged() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let mut server = serve(&lab);
    let device = lab.attach("disk", "a", &[]);
    let mut acknowledged = write_until_killed(&device);
    for round in 0..4 {
        let mut driver = take_over(&lab, &device);
        if round % 2 == 1 {
            server.kill();
            server = serve(&lab);
        }
        let mut requests: Vec<Request> = (0..acknowledged)
            .map(|at| Request {
                tag: at as u64,
                op: Op::Read {
                    offset: (at * BLOCK) as u64,
                    len: BLOCK as u32,
                },
            })
            .collect();
        for completion in drive(&mut driver, std::mem::take(&mut requests), acknowledged) {
            let Ok(Reply::Read(bytes)) = completion.result else {
                panic!("{completion:?}");
            };
            let wanted = fill(completion.tag as usize);
            assert!(bytes.iter().all(|byte| *byte == wanted), "{round}");
        }
        // Some more are under way when it dies: those that are answered count.
        let more = (BLOCKS - acknowledged).min(200);
        for at in acknowledged..acknowledged + more {
            let mut data = driver.pool().get(BLOCK);
            data.fill(fill(at));
            requests.push(Request {
                tag: at as u64,
                op: Op::Write {
                    offset: (at * BLOCK) as u64,
                    data: data.share(),
                    fua: false,
                    barrier: false,
                },
            });
        }
        let done = drive(&mut driver, requests, more / 2);
        let mut answered: Vec<usize> = done.iter().map(|done| done.tag as usize).collect();
        answered.sort_unstable();
        // As far as there is no gap.
        while answered.binary_search(&acknowledged).is_ok() {
            acknowledged += 1;
        }
        // Nothing is closed on the way out: as after a SIGKILL, but for the sockets, which end the same way.
        drop(driver);
    }
    server.kill();
    let server = serve(&lab);
    lab.dst(&["detach", &device.name]).ok();
    server.kill();
    assert_eq!(missing(&lab, acknowledged), 0, "of {acknowledged}");
}

#[test]
fn what_can_not_be_recovered_is_refused_and_left_as_it_is() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let _server = serve(&lab);
    let unknown = lab.dst(&["attach", "--recover", &lab.name("none")]);
    assert_eq!(unknown.code, Some(13), "{unknown:?}");
    let device = lab.attach("disk", "a", &[]);
    let refused = lab.dst(&["attach", "--recover", &device.name]).expect(1);
    assert!(refused.err.contains("can't do without"), "{refused:?}");
    assert_eq!(lab.status(&device.name)["state"], "live");
    let acknowledged = write_until_killed(&device);
    let record = lab.path("run").join(&device.name).join("record");
    let refused = lab.dst(&["attach", "--recover", &device.name]).expect(13);
    assert!(refused.err.contains("dst detach"), "{refused:?}");
    assert!(record.exists() && lab.status(&device.name)["state"] == "dead");
    let done = lab.dst(&["detach", &device.name]).ok();
    assert!(
        done.out.contains("are safe on the server now"),
        "{acknowledged} {done:?}"
    );
}
