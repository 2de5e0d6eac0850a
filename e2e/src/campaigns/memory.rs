//! Memory pressure: dd writes through the page cache to a file system on the device in a control group that has almost no
//! memory left: first with agent and server outside of it, then with the agent inside and the server elsewhere, as on a
//! network, then with everything inside. Nothing may deadlock, and what was written must be right.

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

/// Page faults that an agent may take meanwhile, for what is done once in a while.
const FAULTS: u64 = 64;

/// Runs the campaign.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let mib = lab.plan.pick(700, 160);
    for inside in [Inside::Writers, Inside::Agent, Inside::Server] {
        let name = inside.case();
        if let Some(why) = inside.impossible()? {
            report.skip(name, why);
        } else if lab.plan.wants(name) {
            report.case(name, |report| squeeze(lab, report, mib, inside));
        }
    }
    Ok(())
}

/// Who shares the little memory, each with those before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Inside {
    Writers,
    Agent,
    Server,
}

impl Inside {
    fn case(self) -> &'static str {
        match self {
            Inside::Writers => "writers in little memory",
            Inside::Agent => "writers and agent in little memory",
            Inside::Server => "everything in little memory",
        }
    }

    /// Why it can't pass here, whatever a program does.
    fn impossible(self) -> Result<Option<&'static str>> {
        // A server needs pages for its image. In groups of version 1 the kernel, in need of one, waits
        // (`try_charge_memcg`, `shrink_folio_list`, `folio_wait_writeback`) for whatever page of the group is just being
        // written out, be it to the device that this very server serves. Only PR_SET_IO_FLUSHER (CAP_SYS_RESOURCE) makes
        // it pass on; in groups of version 2 it never waits there. An agent needs no page of its own, and what it sends by
        // TCP is not charged to the group; by a Unix socket it is (`unix_stream_sendmsg`, `__alloc_skb`).
        let flag = rustix::process::configure_io_flusher_behavior(true).is_ok();
        Ok((self == Inside::Server && !flag && Cgroup::version()? == 1).then_some(
            "PR_SET_IO_FLUSHER is not permitted, and control groups of version 1 wait for pages on their way out",
        ))
    }

    /// The limit, and what something takes and keeps of it, in MiB. An agent locks 48 MiB besides its retention.
    fn sizes(self) -> (u64, u64) {
        match self {
            Inside::Writers => (48, 28),
            Inside::Agent => (160, 60),
            Inside::Server => (200, 70),
        }
    }
}

fn squeeze(lab: &Lab, report: &mut Report, mib: u64, inside: Inside) -> Result<()> {
    let (limit, hog) = inside.sizes();
    let group = Cgroup::with_memory(lab, limit << 20)?;
    let prefix = |who: Inside| match inside >= who {
        true => group.prefix(),
        false => Vec::new(),
    };
    let image = lab.image(&format!("{}.img", lab.unique("i")), SIZE)?;
    let mut server = Server::tcp(lab)?.with([format!("disk={}", image.display())]);
    server = server.under(&prefix(Inside::Server));
    server.start()?;
    let device = Device::attach_under(
        lab,
        &prefix(Inside::Agent),
        &server.url("disk"),
        &["--retain", "16M"],
    )?;
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
    let faults = process_faults(device.pid())?;
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
    let faults = process_faults(device.pid())? - faults;
    let rate = 2.0 * mib as f64 / start.elapsed().as_secs_f64();
    say(&format!(
        "{rate:.0} MiB/s, {} hits of the limit, peak {} MiB, {faults} page faults of the agent",
        group.hits() - hits,
        group.peak() >> 20
    ));
    if faults > FAULTS {
        bail!("the agent takes memory while it serves: {faults} page faults");
    }
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
        match inside {
            Inside::Writers => "MiB/s writers inside",
            Inside::Agent => "MiB/s agent inside",
            Inside::Server => "MiB/s all inside",
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

/// Page faults of a process so far, minor and major: fields 10 and 12 of `/proc/PID/stat`.
fn process_faults(pid: i32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(") ").context("a process without a name")?;
    let mut fields = rest.split(' ').skip(7).step_by(2);
    let mut number = || -> Result<u64> {
        let text = fields.next().context("a short /proc/PID/stat")?;
        Ok(text.parse()?)
    };
    Ok(number()? + number()?)
}
