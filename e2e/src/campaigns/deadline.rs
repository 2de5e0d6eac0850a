//! A device whose server is away: it waits for ever unless told otherwise, fails each request at its deadline and works again
//! afterwards, and goes at once when it is detached by force, whatever hangs in it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};
use rustix::io::Errno;

use crate::command::{self, Running};
use crate::direct::{self, Pending};
use crate::lab::device::Device;
use crate::lab::fsys::{Kind, Mount};
use crate::lab::server::Server;
use crate::lab::{sweep, Lab};
use crate::report::Report;
use crate::wait;

const SIZE: u64 = 64 << 20;
/// The deadline that is tested.
const DEADLINE: Duration = Duration::from_secs(5);
/// How much later than its deadline a request may fail on a busy machine.
const LATE: Duration = Duration::from_secs(4);
/// How long I/O may take to work again once the server is back.
const RECOVERY: Duration = Duration::from_secs(30);
/// What `dst detach --force` may take, promised by the command.
const FORCE: Duration = Duration::from_secs(5);

type Case = fn(&Lab) -> Result<()>;

/// Runs the campaign.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let cases: [(&str, Case); 8] = [
        ("without a deadline I/O waits and is then done", waits),
        (
            "each request fails at its deadline, later ones work",
            deadline,
        ),
        ("a frozen server counts as away", frozen),
        ("detach --force with hung I/O", force_hung),
        (
            "detach --force of a mounted file system with dirty pages",
            force_mounted,
        ),
        ("detach --force with a live server", force_live),
        ("detach --force of an agent that hangs", force_hung_agent),
        (
            "detach without a server waits for it",
            detach_without_server,
        ),
    ];
    for (name, case) in cases {
        if lab.plan.wants(name) {
            report.case(name, |_| case(lab));
        }
    }
    Ok(())
}

fn setup<'l>(lab: &'l Lab, options: &[&str]) -> Result<(Server<'l>, Device<'l>)> {
    let image = lab.image(&format!("{}.img", lab.unique("i")), SIZE)?;
    let mut server = Server::tcp(lab)?.with([format!("disk={}", image.display())]);
    server.start()?;
    let device = Device::attach(lab, &server.url("disk"), options)?;
    Ok((server, device))
}

fn read_later(device: &Path, offset: u64) -> Result<Pending<std::io::Result<()>>> {
    let file = direct::open(device, false)?;
    Ok(Pending::start(move || {
        direct::read(&file, offset, 4096).map(|_| ())
    }))
}

fn write_later(device: &Path, offset: u64, byte: u8) -> Result<Pending<std::io::Result<()>>> {
    let file = direct::open(device, true)?;
    Ok(Pending::start(move || {
        direct::write(&file, offset, &[byte; 4096])
    }))
}

fn flush_later(device: &Path) -> Result<Pending<std::io::Result<()>>> {
    let file = direct::open(device, true)?;
    Ok(Pending::start(move || file.sync_all()))
}

fn waits(lab: &Lab) -> Result<()> {
    let (mut server, device) = setup(lab, &[])?;
    server.kill()?;
    let read = read_later(device.block(), 0)?;
    let write = write_later(device.block(), 8192, 7)?;
    let flush = flush_later(device.block())?;
    // No bound on how long it waits can be tested; that it is far beyond every time in the protocol's liveness can.
    let time = Duration::from_secs(lab.plan.pick(90, 8));
    for (what, io) in [("read", &read), ("write", &write), ("flush", &flush)] {
        io.still_pending_after(time)
            .with_context(|| format!("a {what} without a server"))?;
    }
    let (state, _) = device.state()?;
    if state == "failed" || state == "connected" {
        bail!("the state without a server is {state}");
    }
    server.start()?;
    for (what, io) in [("read", read), ("write", write), ("flush", flush)] {
        let (done, _) = io.outcome(RECOVERY).with_context(|| what.to_owned())?;
        done.with_context(|| format!("the {what}, when the server was back"))?;
    }
    device.detach()?;
    server.stop()
}

/// # Errors
/// It did not fail with EIO, or not at its deadline.
fn check_expired(what: &str, io: Pending<std::io::Result<()>>) -> Result<()> {
    let (done, took) = io
        .outcome(DEADLINE + LATE)
        .with_context(|| what.to_owned())?;
    let Err(error) = done else {
        bail!("a {what} succeeded without a server");
    };
    if error.raw_os_error() != Some(Errno::IO.raw_os_error()) {
        bail!("a {what} failed with {error}, not EIO");
    }
    // The clock of the device starts a moment after that of this program, and both are coarse.
    if took + Duration::from_millis(100) < DEADLINE {
        bail!("a {what} failed after {:.2} s already", took.as_secs_f64());
    }
    Ok(())
}

fn deadline(lab: &Lab) -> Result<()> {
    let (mut server, device) = setup(lab, &["--deadline", "5s"])?;
    server.kill()?;
    let block = device.block();
    for round in 0..lab.plan.pick(4, 1) {
        // At once and a while later: each has a clock of its own.
        let first = [
            ("read", read_later(block, 0)?),
            ("write", write_later(block, 8192, 7)?),
        ];
        wait::let_pass(Duration::from_millis(1500))?;
        let second = [
            ("later read", read_later(block, 1 << 20)?),
            ("later write", write_later(block, 2 << 20, 8)?),
        ];
        for (what, io) in first.into_iter().chain(second) {
            check_expired(what, io).with_context(|| format!("round {round}"))?;
        }
    }
    server.start()?;
    works_again(block)?;
    device.check_not_failed()?;
    // And once more: one deadline leaves nothing behind that would spoil the next.
    server.kill()?;
    check_expired("read", read_later(block, 4096)?)?;
    server.start()?;
    works_again(block)?;
    device.detach()?;
    server.stop()
}

/// Writes, flushes and reads back, at first with errors perhaps, until the device has found the server.
fn works_again(block: &Path) -> Result<()> {
    let file = direct::open(block, true)?;
    let block = block.to_owned();
    let try_all = move || -> std::io::Result<bool> {
        direct::write(&file, 64 << 10, &[9; 8192])?;
        file.sync_all()?;
        Ok(direct::read(&file, 64 << 10, 8192)?.iter().all(|b| *b == 9))
    };
    let work = Pending::start(move || {
        let start = Instant::now();
        loop {
            match try_all() {
                Err(_) if start.elapsed() < RECOVERY => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                done => return done,
            }
        }
    });
    let (done, _) = work.outcome(RECOVERY * 2)?;
    if !done.with_context(|| format!("{} after the server was back", block.display()))? {
        bail!("what was written is not what was read");
    }
    Ok(())
}

fn frozen(lab: &Lab) -> Result<()> {
    let (mut server, device) = setup(lab, &["--deadline", "5s"])?;
    server.freeze()?;
    let io = [
        ("read", read_later(device.block(), 0)?),
        ("write", write_later(device.block(), 8192, 3)?),
    ];
    for (what, io) in io {
        check_expired(what, io)?;
    }
    server.thaw()?;
    works_again(device.block())?;
    device.check_not_failed()?;
    device.detach()?;
    server.stop()
}

fn force_hung(lab: &Lab) -> Result<()> {
    let (mut server, mut device) = setup(lab, &[])?;
    let opener = std::fs::File::open(device.block())?;
    server.kill()?;
    let hung: Vec<_> = (0..8)
        .map(|n| match n % 3 {
            0 => read_later(device.block(), n << 16),
            1 => write_later(device.block(), n << 16, 1),
            _ => flush_later(device.block()),
        })
        .collect::<Result<_>>()?;
    for io in &hung {
        io.still_pending_after(Duration::from_secs(1))?;
    }
    let took = device.detach_by_force()?;
    if took > FORCE {
        bail!("detach --force took {:.1} s", took.as_secs_f64());
    }
    let start = Instant::now();
    for io in hung {
        let (done, _) = io.outcome(FORCE).context("hung I/O after detach --force")?;
        if done.is_ok() {
            bail!("hung I/O succeeded although the device was detached by force");
        }
    }
    if start.elapsed() > FORCE {
        bail!(
            "hung I/O ended {:.1} s after detach --force",
            start.elapsed().as_secs_f64()
        );
    }
    device.check_gone()?;
    // The node goes when its last opener closes, and not before: the same name must not become another disk under it.
    drop(opener);
    loop_device_goes(lab, &device.block_name())
}

/// Waits until a loop device is no longer one of ours.
fn loop_device_goes(lab: &Lab, name: &str) -> Result<()> {
    let gone = || Ok(!sweep::loops(lab.root()).iter().any(|found| found == name));
    wait::until(&format!("the end of {name}"), FORCE, gone)
}

fn force_mounted(lab: &Lab) -> Result<()> {
    let (mut server, mut device) = setup(lab, &[])?;
    Kind::Ext4.make(device.block())?;
    let mount = Mount::new(lab, Kind::Ext4, device.block(), "")?;
    let path = mount.point().join("dirty");
    std::fs::write(&path, vec![5; 4 << 20])?;
    command::ok(lab.program("sync", ["-f"]).arg(&path), RECOVERY)?;
    server.kill()?;
    // In place, so that the file system has everything at hand that it needs to take it; if not, it may wait.
    let dirty = Pending::start(move || {
        let file = std::fs::File::options().write(true).open(&path)?;
        std::os::unix::fs::FileExt::write_all_at(&file, &[6; 1 << 20], 0)
    });
    let sync = lab.program("sync", ["-f"]).arg(mount.point()).spawn();
    let refused = device.run_detach(&[])?;
    if refused.code != Some(8) {
        bail!(
            "detach of a mounted device ended with {}, not exit code 8",
            refused.ending()
        );
    }
    let took = device.detach_by_force()?;
    if took > FORCE {
        bail!("detach --force took {:.1} s", took.as_secs_f64());
    }
    let _ = dirty
        .outcome(RECOVERY)
        .context("a buffered write that was under way at detach --force")?;
    let mut sync = sync?;
    let status = command::wait_for(&mut sync, "sync", Duration::from_secs(20))
        .context("a sync that hung before detach --force")?;
    if status.success() {
        bail!("sync succeeded although nothing was written");
    }
    // The file system has lost its disk; taking it away must work nevertheless.
    let umount = command::run(
        &mut lab.program("umount", [mount.point()]),
        Duration::from_secs(30),
    )?;
    umount
        .expect_code(0)
        .context("umount after detach --force")?;
    device.check_gone()?;
    loop_device_goes(lab, &device.block_name())
}

fn force_live(lab: &Lab) -> Result<()> {
    let (mut server, mut device) = setup(lab, &[])?;
    let opener = std::fs::File::open(device.block())?;
    let refused = device.run_detach(&[])?;
    if refused.code != Some(8) {
        bail!(
            "detach of an open device ended with {}, not exit code 8",
            refused.ending()
        );
    }
    let took = device.detach_by_force()?;
    if took > FORCE {
        bail!("detach --force took {:.1} s", took.as_secs_f64());
    }
    device.check_gone()?;
    drop(opener);
    loop_device_goes(lab, &device.block_name())?;
    // The writer's lease must not outlive the device: the next attach is not kept waiting.
    Device::attach(lab, &server.url("disk"), &[])?.detach()?;
    server.stop()
}

/// The agent itself does nothing any more, as when it waits in the kernel for ever.
fn force_hung_agent(lab: &Lab) -> Result<()> {
    let (mut server, mut device) = setup(lab, &[])?;
    let agent = rustix::process::Pid::from_raw(device.pid()).context("no pid")?;
    rustix::process::kill_process(agent, rustix::process::Signal::STOP)?;
    let read = read_later(device.block(), 0)?;
    let (state, _) = device.state()?;
    if state != "not-responding" {
        bail!("a device whose agent is stopped is {state}");
    }
    let took = device.detach_by_force()?;
    if took > FORCE {
        bail!("detach --force took {:.1} s", took.as_secs_f64());
    }
    if read.outcome(FORCE).context("a read that hung")?.0.is_ok() {
        bail!("a read succeeded without an agent");
    }
    device.check_gone()?;
    loop_device_goes(lab, &device.block_name())?;
    server.stop()
}

/// A detach must not claim success with writes unflushed. It says what it waits for, and is done when the server is back.
fn detach_without_server(lab: &Lab) -> Result<()> {
    let (mut server, device) = setup(lab, &[])?;
    let file = direct::open(device.block(), true)?;
    direct::write(&file, 0, &[1; 4096])?;
    drop(file);
    server.kill()?;
    let mut detach = Running::start(&mut lab.dst(["detach", device.name()]))?;
    wait::let_pass(Duration::from_secs(lab.plan.pick(15, 4)))?;
    if detach.has_ended()? {
        let output = detach.finish(RECOVERY)?;
        bail!(
            "detach without a server ended with {}: {}",
            output.ending(),
            output.said()
        );
    }
    server.start()?;
    let output = detach.finish(RECOVERY)?.expect_code(0)?;
    if !output.stderr.contains("waiting") {
        bail!("detach waited without saying so: {}", output.said());
    }
    device.check_gone()?;
    // It is gone: nothing for its guard to do.
    std::mem::forget(device);
    server.stop()
}
