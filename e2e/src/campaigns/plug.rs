//! Pull the plug: fio writes at random and verifies, on ext4 and on XFS at the same time, while everything between the
//! device and the server goes wrong. No error may reach fio, the file system or the kernel's log; afterwards, through a fresh
//! attach and with nothing cached, every block, both file systems and both images are right.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::faults;
use crate::fio::{self, Job};
use crate::lab::device::Device;
use crate::lab::fsys::{self, Extent, Kind, Mount};
use crate::lab::kmsg::KernelLog;
use crate::lab::server::Server;
use crate::lab::{Lab, Plan};
use crate::proxy::Proxy;
use crate::report::{say, Report};
use crate::stress::{write_passes, Fio, Passes};

/// Bytes of an image.
fn size(plan: &Plan) -> u64 {
    plan.pick_of(512 << 20, 512 << 20, fsys::SMALL)
}

/// Bytes that one pass of fio writes.
fn pass(plan: &Plan) -> u64 {
    plan.pick_of(40 << 20, 40 << 20, 2 << 20)
}

struct Disk {
    kind: Kind,
    export: String,
    image: PathBuf,
}

/// The last pass that was written to each file.
type Written = Vec<Option<Job>>;

/// The files that fio writes in turn.
fn files(plan: &Plan, mount: &Mount) -> Vec<String> {
    let path = |n| fio::target(&mount.point().join(format!("file{n}")));
    (0..plan.pick_of(3, 3, 1)).map(path).collect()
}

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
        let image = lab.image(&format!("{export}.img"), size(&lab.plan))?;
        disks.push(Disk {
            kind,
            export,
            image,
        });
    }
    let exports = disks
        .iter()
        .map(|d| format!("{}={}", d.export, d.image.display()));
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
    let pass = pass(&lab.plan);
    let mut written = Vec::new();
    let injected = std::thread::scope(|scope| {
        let writers: Vec<_> = mounts
            .iter()
            .enumerate()
            .map(|(at, mount)| {
                let seed = lab.rng(10 + at as u64).next_u64() >> 33;
                let (over, files, fio) = (&over, files(&lab.plan, mount), Fio::of(lab));
                scope.spawn(move || write_passes(&fio, &files, pass, seed, over))
            })
            .collect();
        let (counts, result) = faults::inject(&faults, server, proxy, &mut rng);
        over.store(true, Ordering::Relaxed);
        for (what, n) in counts {
            report.count(what, n);
        }
        for (disk, writer) in disks.iter().zip(writers) {
            let (passes, result) = writer.join().unwrap_or_else(|_| {
                (
                    Passes::default(),
                    Err(anyhow::anyhow!("the thread panicked")),
                )
            });
            report.count("fio-passes", passes.count);
            written.push(passes.written);
            report.note(
                &format!("fio on {} met no error", disk.export),
                result,
                Duration::ZERO,
            );
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
    let fio = Fio::of(lab);
    for ((at, job), target) in written.iter().enumerate().zip(files(&lab.plan, &mount)) {
        let job = job
            .clone()
            .with_context(|| format!("file{at} was never finished"))?;
        let job = Job { target, ..job };
        fio.run(job.verify_only())
            .with_context(|| format!("verifying file{at}"))?;
        report.count("files-verified", 1);
    }
    mount.unmount()?;
    let extent = lab.plan.pick_of(Extent::Whole, Extent::Whole, Extent::Data);
    let hash = fsys::compare(device.block(), &disk.image, extent)?;
    say(&format!(
        "{} and its image: BLAKE3 {}",
        disk.export,
        &hash[..16]
    ));
    device.detach()
}
