//! Pull the plug: fio writes at random and verifies, on ext4 and on XFS at the same time, while everything between the
//! device and the server goes wrong. No error may reach fio, the file system or the kernel's log; afterwards, through a fresh
//! attach and with nothing cached, every block, both file systems and both images are right.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::faults;
use crate::command::cmd;
use crate::fio::{self, Job};
use crate::lab::device::Device;
use crate::lab::fsys::{self, Kind, Mount};
use crate::lab::kmsg::KernelLog;
use crate::lab::server::Server;
use crate::lab::Lab;
use crate::proxy::Proxy;
use crate::report::{say, Report};

/// Bytes of each image; XFS takes no less than 300 MiB.
const SIZE: u64 = 512 << 20;
/// Bytes that one pass of fio writes.
const PASS: u64 = 40 << 20;
/// Files that fio writes in turn.
const FILES: u64 = 3;
/// Bound on one pass: the longest outage and then some.
const PASS_BOUND: Duration = Duration::from_secs(600);

struct Disk {
    kind: Kind,
    export: String,
    image: PathBuf,
}

/// The last pass that was written to each file.
type Written = Vec<Option<Job>>;

/// Runs the campaign.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let mut disks = Vec::new();
    for kind in [Kind::Ext4, Kind::Xfs] {
        if !lab.plan.wants(kind.name()) {
            continue;
        }
        if !fsys::supports(kind)? {
            report.skip(kind.name(), "this kernel has it not");
            continue;
        }
        let export = kind.name().to_owned();
        let image = lab.image(&format!("{export}.img"), SIZE)?;
        disks.push(Disk { kind, export, image });
    }
    let exports = disks.iter().map(|d| format!("{}={}", d.export, d.image.display()));
    let mut server = Server::tcp(lab)?.with(exports);
    server.start()?;
    let proxy = Proxy::start(server.addr())?;
    let mut log = KernelLog::from_now();

    let written = pull(lab, report, &disks, &mut server, &proxy, &mut log)?;
    for (disk, written) in disks.iter().zip(&written) {
        let name = format!("{} is right through a fresh attach", disk.export);
        report.case(&name, |report| verify(lab, report, disk, written, &server));
    }
    report.count("server-starts", server.starts());
    report.count("connections", proxy.accepted());
    report.case("the server drains", |_| server.stop());
    Ok(())
}

/// I/O under faults. Gives what was written.
fn pull(
    lab: &Lab,
    report: &mut Report,
    disks: &[Disk],
    server: &mut Server<'_>,
    proxy: &Proxy,
    log: &mut KernelLog,
) -> Result<Vec<Written>> {
    let mut devices = Vec::new();
    let mut mounts = Vec::new();
    for disk in disks {
        let device = Device::attach(lab, &proxy.url(&disk.export), &[])?;
        disk.kind.make(device.block())?;
        mounts.push(Mount::new(lab, disk.kind, device.block(), "")?);
        devices.push(device);
    }
    let names: Vec<String> = devices.iter().map(Device::block_name).collect();
    let mut rng = lab.rng(1);
    let faults = faults::schedule(&lab.plan, &mut rng);
    say(&format!("{} faults on {names:?}", faults.len()));

    let over = AtomicBool::new(false);
    let mut written = Vec::new();
    let injected = std::thread::scope(|scope| {
        let writers: Vec<_> = disks
            .iter()
            .zip(&mounts)
            .enumerate()
            .map(|(at, (disk, mount))| {
                let seed = lab.rng(10 + at as u64).next_u64() >> 33;
                let point = mount.point().to_owned();
                let (over, name, lab) = (&over, &disk.export, Shared::of(lab));
                scope.spawn(move || write_passes(&lab, &point, name, seed, over))
            })
            .collect();
        let (counts, result) = faults::inject(&faults, server, proxy, &mut rng);
        over.store(true, Ordering::Relaxed);
        for (what, n) in counts {
            report.count(what, n);
        }
        for (disk, writer) in disks.iter().zip(writers) {
            let (passes, files, result) = writer.join().unwrap_or_else(|_| {
                (0, Written::new(), Err(anyhow::anyhow!("the thread panicked")))
            });
            report.count("fio-passes", passes);
            written.push(files);
            report.note(&format!("fio on {} met no error", disk.export), result, Duration::ZERO);
        }
        result
    });
    report.case("I/O went on after every fault", |_| injected);
    report.case("no device has failed", |report| {
        for device in &devices {
            device.check_not_failed()?;
            report.count("reconnects", device.number("reconnects")?);
            report.count("replayed", device.number("replayed")?);
        }
        Ok(())
    });
    report.case("unmounted and detached in good order", |_| {
        for mount in mounts {
            mount.unmount()?;
        }
        for device in devices {
            device.detach()?;
        }
        Ok(())
    });
    report.case("no error in the kernel's log", |_| log.check(&names));
    Ok(written)
}

/// What the threads need of the laboratory, which itself stays with its thread.
struct Shared {
    mark: Vec<(std::ffi::OsString, std::ffi::OsString)>,
}

impl Shared {
    fn of(lab: &Lab) -> Shared {
        let mut command = cmd("true", [""; 0]);
        lab.mark(&mut command);
        let mark = command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())));
        Shared { mark: mark.collect() }
    }

    fn run(&self, mut command: Command) -> Result<serde_json::Value> {
        command.envs(self.mark.iter().cloned());
        fio::run(&mut command, PASS_BOUND)
    }
}

/// One pass of fio after the other, until all faults are over; what each file holds at the end.
fn write_passes(
    lab: &Shared,
    point: &std::path::Path,
    name: &str,
    seed: u64,
    over: &AtomicBool,
) -> (u64, Written, Result<()>) {
    let mut written = vec![None; FILES as usize];
    let mut passes = 0;
    while passes < FILES || !over.load(Ordering::Relaxed) {
        let file = passes % FILES;
        let job = Job {
            target: fio::target(&point.join(format!("file{file}"))),
            size: PASS,
            block: [4096, 16384, 65536][(passes % 3) as usize],
            depth: 16,
            seed: seed + passes,
        };
        let result = lab
            .run(job.write_and_verify())
            .with_context(|| format!("pass {passes} on {name}"));
        if let Err(error) = result {
            return (passes, written, Err(error));
        }
        written[file as usize] = Some(job);
        passes += 1;
    }
    (passes, written, Ok(()))
}

/// Nothing cached, a new device, a new mount: fio's verification, the file-system check, and the image byte by byte.
fn verify(
    lab: &Lab,
    report: &mut Report,
    disk: &Disk,
    written: &Written,
    server: &Server<'_>,
) -> Result<()> {
    fsys::drop_caches()?;
    let device = Device::attach(lab, &server.url(&disk.export), &[])?;
    disk.kind.check(device.block())?;
    let mount = Mount::new(lab, disk.kind, device.block(), "")?;
    let shared = Shared::of(lab);
    for (at, job) in written.iter().enumerate() {
        let mut job = job.clone().with_context(|| format!("file{at} was never finished"))?;
        job.target = fio::target(&mount.point().join(format!("file{at}")));
        shared.run(job.verify_only()).with_context(|| format!("verifying file{at}"))?;
        report.count("files-verified", 1);
    }
    mount.unmount()?;
    let hash = fsys::compare(device.block(), &disk.image)?;
    say(&format!("{} and its image: BLAKE3 {}", disk.export, &hash[..16]));
    device.detach()
}
