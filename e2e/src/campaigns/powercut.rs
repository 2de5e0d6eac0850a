//! Power cuts: the test backend drops or tears whatever was not flushed each time its server is killed, while files on ext4
//! and on XFS are written and fsynced. Nobody may notice: no error, not a byte lost for the client, whose retention brings everything
//! back. On some of the cuts the image itself is looked at before the server is back: what was fsynced is there without any
//! help. With `--retain off` a loss must be an error, for ever.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{bail, Context as _, Result};

use super::writer::{check_durable, Model, Writer};
use crate::command::{self, cmd};
use crate::direct::{self, Pending};
use crate::lab::device::Device;
use crate::lab::fsys::{self, Kind, Mount};
use crate::lab::kmsg::KernelLog;
use crate::lab::server::Server;
use crate::lab::Lab;
use crate::report::{say, Report};
use crate::rng::Rng;
use crate::wait;

/// Threads, each with files of its own.
const WRITERS: usize = 3;
const FILES: usize = 4;
/// How long after a cut writing may take to go on.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long a request that should fail at once may take.
const SOON: Duration = Duration::from_secs(30);

/// Runs the campaign.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let cuts: u64 = lab.plan.pick_of(100, 10, 3);
    // Nothing that depends on the front end: not in the quick form.
    let few = lab.plan.pick_of(25, 3, 0);
    let run = |part, name, kind, rounds| Run {
        name,
        kind,
        rounds,
        options: &[],
        fail_sync: 0,
        part,
    };
    let runs = [
        run(0, "power cuts", Kind::Ext4, cuts),
        run(3, "power cuts on XFS", Kind::Xfs, cuts),
        // Where retention is full again and again, and several connections lose their session at once.
        Run {
            options: &["--retain", "1M", "--connections", "3"],
            ..run(1, "power cuts, little retention", Kind::Ext4, few)
        },
        // The server lives on; a sync fails and takes with it what was not flushed.
        Run {
            fail_sync: 9,
            ..run(2, "syncs that fail", Kind::Ext4, few)
        },
    ];
    for run in &runs {
        if run.rounds == 0 || !lab.plan.wants(run.name) {
            continue;
        }
        if !fsys::supports(run.kind)? {
            report.skip(run.name, "this kernel has it not");
            continue;
        }
        say(&format!("{}: {} rounds", run.name, run.rounds));
        retained(lab, report, run)?;
    }
    if lab.plan.wants("retention off") {
        report.case("retention off: what was flushed survives", |_| {
            nothing_lost(lab)
        });
        report.case(
            "retention off: a loss fails the device, and it says why",
            |_| lost(lab),
        );
    }
    Ok(())
}

/// One run with writers.
struct Run {
    name: &'static str,
    kind: Kind,
    rounds: u64,
    options: &'static [&'static str],
    /// Every so-manieth sync fails; then nothing is killed. 0: none.
    fail_sync: u64,
    /// Makes its random numbers others than those of the other runs.
    part: u64,
}

fn spec(image: &Path, rng: &mut Rng, fail_sync: u64) -> String {
    let (seed, early) = (rng.next_u64() >> 1, [0, 30, 70][rng.below(0..3) as usize]);
    format!(
        "disk=lossy:{}?seed={seed}&early={early}&fail_sync={fail_sync}",
        image.display()
    )
}

fn retained(lab: &Lab, report: &mut Report, run: &Run) -> Result<()> {
    let size = lab.plan.pick_of(256 << 20, 256 << 20, fsys::SMALL);
    let image = lab.image(&format!("cut{}.img", run.part), size)?;
    let mut rng = lab.rng(1 + run.part * 1000);
    let export = spec(&image, &mut rng, run.fail_sync);
    let mut server = Server::tcp(lab)?.with([export.clone()]);
    server.start()?;
    let device = Device::attach(lab, &server.url("disk"), run.options)?;
    run.kind.make(device.block())?;
    let mount = Mount::new(lab, run.kind, device.block(), "")?;
    let mut log = KernelLog::from_now();

    let writers = (0..WRITERS).map(|n| Writer::new(&mount.point().join(format!("w{n}")), FILES));
    let writers = writers.collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    let mut cutter = Cutter {
        lab,
        server: &mut server,
        kind: run.kind,
        export,
        image: &image,
        writers: &writers,
        rng,
    };
    let cut = std::thread::scope(|scope| {
        let threads: Vec<_> = writers
            .iter()
            .enumerate()
            .map(|(n, writer)| {
                let (mut rng, stop) = (lab.rng(100 + n as u64 + run.part * 1000), &stop);
                scope.spawn(move || writer.work(&mut rng, stop))
            })
            .collect();
        let mut result = Ok(());
        for round in 1..=run.rounds {
            let check = round % lab.plan.pick_of(5, 3, 2) == 0;
            result = match run.fail_sync {
                0 => cutter.cut(report, check),
                _ => cutter.go_on(run.fail_sync * 2),
            }
            .with_context(|| format!("round {round} of {}", run.rounds));
            if result.is_err() {
                break;
            }
            report.count(
                if run.fail_sync == 0 {
                    "power-cuts"
                } else {
                    "sync-failures"
                },
                1,
            );
        }
        stop.store(true, Ordering::Relaxed);
        if result.is_err() {
            // The writers may hang in I/O: only without the device do they end.
            let _ = device.run_detach(&["--force"]);
        }
        for thread in threads {
            let wrote = thread
                .join()
                .unwrap_or_else(|_| bail!("the thread panicked"));
            report.note(
                &format!("{}: a writer met no error", run.name),
                wrote,
                Duration::ZERO,
            );
        }
        result
    });
    let name = |what: &str| format!("{}: {what}", run.name);
    let whole = report.case(&name("writing went on after each"), |_| cut);
    let sum = |count: fn(&Writer) -> &AtomicU64| {
        writers
            .iter()
            .map(|w| count(w).load(Ordering::Relaxed))
            .sum()
    };
    report.count("fsyncs", sum(|w| &w.fsyncs));
    report.count("writes", sum(|w| &w.writes));
    if !whole {
        return Ok(());
    }
    report.case(
        &name("the device has not failed and has replayed"),
        |report| {
            device.check_not_failed()?;
            let (replayed, fresh) = (device.number("replayed")?, device.number("fresh_sessions")?);
            report.count("replayed", replayed);
            // In a few rounds it may be that every cut came right after a flush; in many it is not.
            let enough = run.rounds >= 10;
            if replayed == 0 && enough || fresh == 0 {
                bail!("{replayed} replayed in {fresh} new sessions: nothing was ever lost");
            }
            Ok(())
        },
    );
    let block = device.block_name();
    report.case(&name("unmounted and detached in good order"), |_| {
        mount.unmount()?;
        device.detach()
    });
    report.case(&name("no error in the kernel's log"), |_| {
        log.check(&[block])
    });
    report.case(
        &name("a fresh attach shows everything that was written"),
        |report| {
            fsys::drop_caches()?;
            let device = Device::attach(lab, &server.url("disk"), &[])?;
            run.kind.check(device.block())?;
            let mount = Mount::new(lab, run.kind, device.block(), "ro")?;
            for (n, writer) in writers.iter().enumerate() {
                let checked = writer.check_latest(&mount.point().join(format!("w{n}")))?;
                report.count("sectors-verified", checked);
            }
            mount.unmount()?;
            device.detach()
        },
    );
    match run.fail_sync {
        0 => server.stop(),
        // The last sync of all may be one of those that fail, and then the server says so.
        _ => server.kill(),
    }
}

/// What cuts the power.
struct Cutter<'a, 'l> {
    lab: &'a Lab,
    server: &'a mut Server<'l>,
    kind: Kind,
    /// The server's argument.
    export: String,
    image: &'a Path,
    writers: &'a [Writer],
    rng: Rng,
}

impl Cutter<'_, '_> {
    /// Cuts the power, looks at the image if told to, and waits until the writers go on.
    fn cut(&mut self, report: &mut Report, check: bool) -> Result<()> {
        wait::let_pass(self.rng.millis(80..500))?;
        let before: Vec<_> = self.writers.iter().map(|w| w.models(false)).collect();
        self.server.kill()?;
        if check {
            let checked = check_image(self.lab, self.kind, self.image, &before, self.writers)?;
            report.count("images-checked", 1);
            report.count("durable-sectors", checked);
        }
        let new = spec(self.image, &mut self.rng, 0);
        self.server.replace_arg(&self.export, &new);
        self.export = new;
        self.server.start()?;
        self.go_on(4)
    }

    /// Waits until so many more fsyncs are done.
    fn go_on(&self, fsyncs: u64) -> Result<()> {
        let done = || {
            self.writers
                .iter()
                .map(|w| w.fsyncs.load(Ordering::Relaxed))
                .sum::<u64>()
        };
        let before = done();
        wait::until(
            "fsyncs to go on",
            RECOVERY,
            || Ok(done() >= before + fsyncs),
        )
    }
}

/// What is on the disk after the cut, in a copy: the journal is replayed by mounting it, fsck is clean, and every fsynced
/// sector is there.
fn check_image(
    lab: &Lab,
    kind: Kind,
    image: &Path,
    before: &[Vec<Option<Model>>],
    writers: &[Writer],
) -> Result<u64> {
    let copy = lab.path("after-cut.img");
    let minute = Duration::from_secs(60);
    command::ok(
        cmd("cp", ["--sparse=always", "--reflink=auto"])
            .arg(image)
            .arg(&copy),
        minute,
    )?;
    let mount = Mount::new(lab, kind, &copy, kind.copy_options())?;
    let mut checked = 0;
    for (n, (writer, before)) in writers.iter().zip(before).enumerate() {
        let dir = mount.point().join(format!("w{n}"));
        // A file whose fsync waits for the server is not known now; then what was known before has to do.
        let after = writer.models(false);
        let after: Vec<_> = after
            .into_iter()
            .zip(before)
            .map(|(a, b)| a.or_else(|| unbounded(b)))
            .collect();
        checked +=
            check_durable(&dir, before, &after).context("on the disk after the power cut")?;
    }
    mount.unmount()?;
    let loop_gone = || {
        let backing = crate::lab::sweep::loops(lab.root());
        Ok(!backing.iter().any(|name| {
            let file = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
            file.is_ok_and(|file| file.contains("after-cut.img"))
        }))
    };
    wait::until("the loop device of the copy to go", SOON, loop_gone)?;
    kind.check(&copy)
        .context("after the power cut and a replay of the journal")?;
    std::fs::remove_file(&copy)?;
    Ok(checked)
}

/// A file that is locked may be under replacement: any later id is possible.
fn unbounded(before: &Option<Model>) -> Option<Model> {
    before.clone().map(Model::with_any_successor)
}

/// Without retention, a power cut after a flush loses nothing, and the device goes on.
fn nothing_lost(lab: &Lab) -> Result<()> {
    let image = lab.image("flushed.img", 64 << 20)?;
    let mut rng = lab.rng(2);
    let export = spec(&image, &mut rng, 0);
    let mut server = Server::tcp(lab)?.with([export]);
    server.start()?;
    let device = Device::attach(lab, &server.url("disk"), &["--retain", "off"])?;
    let file = direct::open(device.block(), true)?;
    let data = rng.bytes(1 << 20);
    direct::write(&file, 0, &data)?;
    file.sync_all().context("flush")?;
    server.kill()?;
    server.start()?;
    let read = Pending::start(move || direct::read(&file, 0, 1 << 20).map(|read| *read == *data));
    let (same, _) = read.outcome(SOON)?;
    if !same.context("reading after the restart")? {
        bail!("what was flushed is not there after the power cut");
    }
    device.check_not_failed()?;
    device.detach()?;
    server.stop()
}

/// Without retention, after a cut with unflushed writes: the next FLUSH fails, and all I/O after it.
fn lost(lab: &Lab) -> Result<()> {
    let image = lab.image("lost.img", 64 << 20)?;
    let mut rng = lab.rng(3);
    let export = spec(&image, &mut rng, 0);
    let mut server = Server::tcp(lab)?.with([export]);
    server.start()?;
    let mut device = Device::attach(lab, &server.url("disk"), &["--retain", "off"])?;
    let file = direct::open(device.block(), true)?;
    direct::write(&file, 0, &rng.bytes(1 << 20)).context("the write before the cut")?;
    server.kill()?;
    server.start()?;
    let flush = Pending::start(move || file.sync_all());
    let (flushed, _) = flush.outcome(SOON).context("the FLUSH after the cut")?;
    if flushed.is_ok() {
        bail!("FLUSH succeeded although unflushed writes were lost");
    }
    for write in [false, true] {
        let file = direct::open(device.block(), true)?;
        let io = Pending::start(move || match write {
            true => direct::write(&file, 8192, &[1; 4096]),
            false => direct::read(&file, 8192, 4096).map(|_| ()),
        });
        let (done, _) = io.outcome(SOON).context("I/O after the failed FLUSH")?;
        if done.is_ok() {
            bail!("I/O (write: {write}) succeeded on a device that lost writes");
        }
    }
    let (state, message) = device.state()?;
    say(&format!("state {state}: {message}"));
    if state != "failed" || !message.contains("lost") {
        bail!("dst status says {state}: {message:?}, not that writes were lost");
    }
    device.detach_by_force()?;
    device.check_gone()?;
    server.stop()
}
