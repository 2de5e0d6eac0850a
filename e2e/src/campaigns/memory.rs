//! Memory pressure: dd writes through the page cache to a file system on the device in a control group that has almost no
//! memory left, first with agent and server outside of it, then with everything inside. Nothing may deadlock, and what was
//! written must be right.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use crate::command::{self, Running};
use crate::lab::cgroup::Cgroup;
use crate::lab::device::Device;
use crate::lab::fsys::{self, Kind, Mount};
use crate::lab::kmsg::KernelLog;
use crate::lab::server::Server;
use crate::lab::Lab;
use crate::report::{say, Report};
use crate::wait;

const SIZE: u64 = 2 << 30;
/// Bound on one dd. It needs a few seconds where nothing is wrong.
const BOUND: Duration = Duration::from_secs(120);

/// Runs the campaign.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let mib = lab.plan.pick(700, 160);
    let names = [
        ("writers in little memory", false),
        ("everything in little memory", true),
    ];
    for (name, all) in names {
        // Without it an agent that allocates under pressure waits for the writing out of pages that only it can write: the
        // deadlock that the flag was made for. It needs CAP_SYS_RESOURCE.
        if all && rustix::process::configure_io_flusher_behavior(true).is_err() {
            report.skip(name, "PR_SET_IO_FLUSHER is not permitted on this machine");
            continue;
        }
        if lab.plan.wants(name) {
            report.case(name, |report| squeeze(lab, report, mib, all));
        }
    }
    Ok(())
}

fn squeeze(lab: &Lab, report: &mut Report, mib: u64, all: bool) -> Result<()> {
    // Inside with them, agent and server lock tens of MiB, of buffers and retained writes.
    let (limit, hog) = if all { (200, 90) } else { (48, 28) };
    let group = Cgroup::with_memory(lab, limit << 20)?;
    let inside = if all { group.prefix() } else { Vec::new() };
    let image = lab.image(&format!("{}.img", lab.unique("i")), SIZE)?;
    let mut server = Server::tcp(lab)?.with([format!("disk={}", image.display())]);
    if all {
        server = server.under(&inside);
    }
    server.start()?;
    let device = Device::attach_under(lab, &inside, &server.url("disk"), &["--retain", "16M"])?;
    Kind::Ext4.make(device.block())?;
    let mount = Mount::new(lab, Kind::Ext4, device.block(), "")?;
    let mut log = KernelLog::from_now();

    let source = lab.path("source");
    if !source.exists() {
        std::fs::write(&source, lab.rng(1).bytes((mib << 20) as usize))?;
    }
    let start_inside = |program: &Path, args: &[String]| -> Result<Running> {
        let prefix = group.prefix();
        let mut command = lab.program(&prefix[0], &prefix[1..]);
        Running::start(command.arg(program).args(args))
    };
    let own = std::env::current_exe()?;
    let mut hog = start_inside(&own, &["hog".into(), (hog << 20).to_string()])?;
    let hits = group.hits();
    let copy = |to: &Path| -> Result<Running> {
        let args = [
            format!("if={}", source.display()),
            format!("of={}", to.display()),
            "bs=1M".into(),
            "conv=fsync".into(),
        ];
        start_inside(Path::new("dd"), &args)
    };
    let start = Instant::now();
    let files = [mount.point().join("a"), mount.point().join("b")];
    let both = files
        .iter()
        .map(|file| copy(file))
        .collect::<Result<Vec<_>>>()?;
    for dd in both {
        dd.finish(BOUND)
            .context("dd under memory pressure")?
            .expect_code(0)?;
    }
    let rate = 2.0 * mib as f64 / start.elapsed().as_secs_f64();
    say(&format!(
        "{rate:.0} MiB/s, {} hits of the limit, peak {} MiB",
        group.hits() - hits,
        group.peak() >> 20
    ));
    if group.hits() == hits {
        bail!("the limit was never hit: no memory pressure");
    }
    if hog.has_ended()? {
        // Killed for the benefit of the others, which is what its score asks for; but pressure there was.
        report.count("hogs-killed", 1);
    }
    hog.kill();
    report.count("limit-hits", group.hits() - hits);
    report.figure(
        if all {
            "MiB/s all inside"
        } else {
            "MiB/s writers inside"
        },
        rate.round(),
    );

    fsys::drop_caches()?;
    for file in &files {
        let mut cmp = lab.program("cmp", [&source, file]);
        command::ok(&mut cmp, BOUND).context("what was written under memory pressure")?;
        report.count("files-verified", 1);
    }
    device.check_not_failed()?;
    server
        .check_alive()
        .context("the server under memory pressure")?;
    let names = [device.block_name()];
    mount.unmount()?;
    Kind::Ext4.check(device.block())?;
    device.detach()?;
    log.check(&names)?;
    server.stop()?;
    drop(server);
    wait::until("the end of all processes", Duration::from_secs(10), || {
        Ok(crate::lab::sweep::processes(lab.root()).is_empty())
    })?;
    group.remove()
}
