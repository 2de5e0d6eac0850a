//! Peers that mean harm. While a good client works on its device, others say to the server what no client may say
//! (`hostile_frames.rs`, `hostile_session.rs`, `hostile_replay.rs`) or behave as no client may (`hostile_peers.rs`): the server stays up, its memory
//! stays bounded, the good client notices nothing. Then the other direction: servers that mean harm (`hostile_server.rs`).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use super::{hostile_frames, hostile_peers, hostile_replay, hostile_server, hostile_session};
use crate::lab::device::Device;
use crate::lab::kmsg::KernelLog;
use crate::lab::server::{resident, Server};
use crate::lab::Lab;
use crate::report::{say, Report};
use crate::rng::Rng;
use crate::stress::{write_passes, Fio};

const SIZE: u64 = 64 << 20;
/// Resident memory of the server beyond which it is not bounded: all sessions and guests with full buffers are less.
const MEMORY: u64 = 1 << 30;
/// Bytes of the export that hostile clients write to.
pub const SCRATCH: u64 = 16 << 20;

/// What the cases need.
pub struct Target {
    /// The server.
    pub addr: SocketAddr,
    /// Random numbers of this case.
    pub rng: Rng,
    /// The short form.
    pub short: bool,
}

/// A case: how it is named and what it does.
pub type Case = (&'static str, fn(&mut Target) -> Result<()>);

/// Runs the campaign.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    if !lab
        .plan
        .only
        .as_deref()
        .is_some_and(|only| only.contains("server:"))
    {
        against_server(lab, report)?;
    }
    hostile_server::run(lab, report);
    Ok(())
}

fn against_server(lab: &Lab, report: &mut Report) -> Result<()> {
    let export = |name: &str, size| -> Result<String> {
        Ok(format!(
            "{name}={}",
            lab.image(&format!("{name}.img"), size)?.display()
        ))
    };
    let exports = [export("good", SIZE)?, export("scratch", SCRATCH)?];
    // Sessions that are left behind expire soon, or the cases would use them up.
    let mut server =
        Server::tcp(lab)?
            .with(exports)
            .with(["--session-time", "5s", "--lease-time", "5s"]);
    server.start()?;
    let mut read_only = Server::tcp(lab)?.with(["--read-only".to_owned(), export("ro", SCRATCH)?]);
    read_only.start()?;
    let device = Device::attach(lab, &server.url("good"), &[])?;
    let mut log = KernelLog::from_now();
    let reconnects = device.number("reconnects")?;

    let over = AtomicBool::new(false);
    let peak = AtomicU64::new(0);
    let pid = server.pid()?;
    let idle = server.resident()?;
    let fio = Fio::of(lab);
    let disk = [device.block().display().to_string()];
    let seed = lab.rng(1).next_u64() >> 33;
    std::thread::scope(|scope| {
        let good = scope.spawn(|| write_passes(&fio, &disk, 24 << 20, seed, &over));
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if let Ok(bytes) = resident(pid) {
                    peak.fetch_max(bytes, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let cases = hostile_frames::CASES
            .iter()
            .chain(hostile_session::CASES)
            .chain(hostile_replay::CASES)
            .chain(hostile_peers::CASES);
        for (at, (name, case)) in cases.enumerate() {
            if !lab.plan.wants(name) {
                continue;
            }
            let mut target = Target {
                addr: server.addr(),
                rng: lab.rng(100 + at as u64),
                short: lab.plan.short(),
            };
            let start = Instant::now();
            let result = case(&mut target).and_then(|()| server.check_alive());
            report.note(name, result, start.elapsed());
            report.count("hostile-cases", 1);
        }
        report.case("client: writes to a read-only export", |_| {
            hostile_session::read_only_export(read_only.addr())
        });
        over.store(true, Ordering::Relaxed);
        let (passes, result) = good.join().unwrap_or_else(|_| {
            (
                Default::default(),
                Err(anyhow::anyhow!("the thread panicked")),
            )
        });
        report.count("good-client-passes", passes.count);
        report.note("good client: fio met no error", result, Duration::ZERO);
    });
    report.case("good client: it has not noticed", |_| {
        device.check_not_failed()?;
        let now = device.number("reconnects")?;
        ensure!(
            now == reconnects,
            "it had to reconnect {} times",
            now - reconnects
        );
        log.check(&[device.block_name()])
    });
    report.case("client: the server's memory stayed bounded", |report| {
        let (peak, now) = (peak.load(Ordering::Relaxed), server.resident()?);
        say(&format!(
            "server: {} MiB idle, {} MiB at most, {} MiB now",
            idle >> 20,
            peak >> 20,
            now >> 20
        ));
        report.figure("server MiB peak", peak >> 20);
        report.figure("server MiB after", now >> 20);
        ensure!(peak < MEMORY, "{} MiB at the peak", peak >> 20);
        Ok(())
    });
    report.case(
        "good client: detached in good order, both servers stop",
        |_| {
            device.detach()?;
            server.stop()?;
            read_only.stop()
        },
    );
    Ok(())
}
