//! Attaching and detaching, over and over and in every order; agents that are killed; commands that are interrupted. What was
//! there before is there afterwards, and nothing else. (What is refused, and how, is in `lifecycle_refusals.rs`.)

use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use rustix::process::{kill_process, Pid, Signal};

use super::lifecycle_refusals;
use crate::command::{self, Running};
use crate::direct;
use crate::lab::device::{Device, ATTACH};
use crate::lab::server::Server;
use crate::lab::{sweep, Lab};
use crate::report::{say, Report};
use crate::wait;

const SIZE: u64 = 32 << 20;
const SOON: Duration = Duration::from_secs(20);
/// What `dst detach --force` promises.
const FORCED: Duration = Duration::from_secs(5);
/// What the demo may take after the build.
const DEMO: Duration = Duration::from_secs(60);

/// Runs the campaign.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    let mut exports = Vec::new();
    for name in ["a", "b", "c", "d"] {
        exports.push(format!(
            "{name}={}",
            lab.image(&format!("{name}.img"), SIZE)?.display()
        ));
    }
    let mut server = Server::tcp(lab)?.with(exports);
    server.start()?;
    let wants = |name: &str| lab.plan.wants(name);
    if wants("loops") {
        report.case("attach and detach in loops", |report| {
            loops(lab, report, &server)
        });
    }
    let cases: [(&str, Case); 8] = [
        ("attach lets go of its standard output", output_is_closed),
        ("several devices at once", several),
        ("of two attaches of one name one wins", race),
        (
            "a killed agent is dead in status and cleaned up",
            killed_agent,
        ),
        (
            "a stopped agent is given up, and ended by force",
            stopped_agent,
        ),
        ("Ctrl-C while attach waits for a server", interrupted_attach),
        ("attach --foreground until Ctrl-C", foreground),
        ("a server that drains under a device", drained),
    ];
    for (name, case) in cases {
        if wants(name) {
            run_case(lab, report, &server, name, case);
        }
    }
    lifecycle_refusals::run(lab, report, &server);
    report.case("the server has survived", |_| server.check_alive());
    report.case("the server stops", |_| server.stop());
    drop(server);
    if wants("demo") {
        report.case("dst demo", |_| demo(lab));
        for at in 0..lab.plan.pick(5, 2) {
            let millis = lab.rng(50 + at).below(200..6000);
            let name = format!("dst demo, Ctrl-C after {millis} ms");
            report.case(&name, |_| {
                interrupted_demo(lab, Duration::from_millis(millis))
            });
        }
    }
    Ok(())
}

/// A case of this campaign.
pub type Case = fn(&Lab, &Server<'_>) -> Result<()>;

/// Runs a case, after which nothing but the server may be there. What is there nevertheless is removed, so that the next case
/// does not fail for it.
pub fn run_case(lab: &Lab, report: &mut Report, server: &Server<'_>, name: &str, case: Case) {
    let passed = report.case(name, |_| {
        case(lab, server)?;
        nothing_left(lab, server)
    });
    if !passed {
        lab.save_logs();
        if let Ok(pid) = server.pid() {
            let mut found = sweep::find(lab.root());
            found
                .processes
                .retain(|(other, _)| *other != pid.as_raw_nonzero().get());
            found.remove();
        }
    }
}

/// # Errors
/// Something besides the server is still there.
pub fn nothing_left(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let own = server.pid()?.as_raw_nonzero().get();
    wait::until("nothing to be left", SOON, || {
        let mut found = sweep::find(lab.root());
        found.processes.retain(|(pid, _)| *pid != own);
        Ok(found.describe().is_empty())
    })
    .with_context(|| {
        let mut found = sweep::find(lab.root());
        found.processes.retain(|(pid, _)| *pid != own);
        found.describe().join(", ")
    })?;
    let run = lab.runtime_dir();
    let left =
        std::fs::read_dir(&run).map(|dir| dir.flatten().map(|e| e.file_name()).collect::<Vec<_>>());
    match left {
        Ok(left) if left.iter().any(|name| name != ".server") => {
            bail!("in {}: {left:?}", run.display())
        }
        _ => Ok(()),
    }
}

fn loops(lab: &Lab, report: &mut Report, server: &Server<'_>) -> Result<()> {
    let rounds = lab.plan.pick(50, 5);
    let start = Instant::now();
    for round in 0..rounds {
        let options: &[&str] = match round % 3 {
            0 => &[],
            1 => &["--connections", "3"],
            _ => &["--retain", "off", "--deadline", "20s"],
        };
        let device = Device::attach(lab, &server.url("a"), options)
            .with_context(|| format!("round {round}"))?;
        let file = direct::open(device.block(), true)?;
        let before = direct::read(&file, 4096, 4096)?;
        ensure!(
            before.iter().all(|b| *b == round as u8),
            "round {round}: what the last round wrote is not there"
        );
        direct::write(&file, 4096, &[round as u8 + 1; 4096])?;
        drop(file);
        device.detach().with_context(|| format!("round {round}"))?;
        report.count("attached-and-detached", 1);
    }
    say(&format!(
        "{:.2} s each",
        start.elapsed().as_secs_f64() / f64::from(rounds)
    ));
    let file = std::fs::File::options()
        .write(true)
        .open(lab.path("a.img"))?;
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 4096)?;
    nothing_left(lab, server)
}

/// A script that takes the node from attach's output must not wait for the agent.
fn output_is_closed(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let name = lab.unique("d");
    let mut child = lab
        .dst(["attach", &server.url("a"), "--name", &name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (mut out, mut err) = (
        child.stdout.take().context("piped")?,
        child.stderr.take().context("piped")?,
    );
    let read = direct::Pending::start(move || {
        let mut text = String::new();
        out.read_to_string(&mut text)?;
        err.read_to_string(&mut String::new())?;
        std::io::Result::Ok(text)
    });
    let ended = read.outcome(ATTACH).context("the end of attach's output");
    command::wait_for(&mut child, "attach", ATTACH)?;
    command::ok(&mut lab.dst(["detach", &name]), SOON)?;
    let text = ended?.0?;
    ensure!(
        text.trim() == format!("/dev/dst/{name}"),
        "attach printed {text:?}"
    );
    Ok(())
}

fn several(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let mut starting = Vec::new();
    for export in ["a", "b", "c", "d"] {
        let name = lab.unique("d");
        let attach =
            Running::start(&mut lab.dst(["attach", &server.url(export), "--name", &name]))?;
        starting.push((name, attach));
    }
    let mut devices = Vec::new();
    for (name, attach) in starting {
        devices.push(Device::adopt(lab, &name, attach.finish(ATTACH)?)?);
    }
    let mut blocks: Vec<_> = devices.iter().map(Device::block_name).collect();
    blocks.sort();
    blocks.dedup();
    ensure!(blocks.len() == 4, "four devices on {blocks:?}");
    // All at once again, in one command and by node as well as by name.
    let nodes: Vec<String> = devices
        .iter()
        .enumerate()
        .map(|(at, device)| match at % 2 {
            0 => device.name().to_owned(),
            _ => device.node().display().to_string(),
        })
        .collect();
    let mut args = vec!["detach"];
    args.extend(nodes.iter().map(String::as_str));
    command::ok(&mut lab.dst(&args), ATTACH)?;
    for device in &devices {
        device.check_gone()?;
    }
    // They are gone: nothing for their guards to do.
    devices.into_iter().for_each(std::mem::forget);
    Ok(())
}

fn race(lab: &Lab, server: &Server<'_>) -> Result<()> {
    for round in 0..lab.plan.pick(10, 2) {
        let name = lab.unique("d");
        let start = |export: &str| {
            Running::start(&mut lab.dst(["attach", &server.url(export), "--name", &name]))
        };
        let (one, two) = (start("a")?, start("b")?);
        let outputs = [one.finish(ATTACH)?, two.finish(ATTACH)?];
        let mut codes: Vec<_> = outputs.iter().map(|output| output.code).collect();
        codes.sort();
        let said: Vec<String> = outputs.iter().map(|output| output.said()).collect();
        command::run(&mut lab.dst(["detach", &name]), SOON)?
            .expect_code(0)
            .context("detach after the race")?;
        ensure!(
            codes == [Some(0), Some(6)],
            "round {round}: exit codes {codes:?}: {said:?}"
        );
    }
    Ok(())
}

fn killed_agent(lab: &Lab, server: &Server<'_>) -> Result<()> {
    for again in [false, true] {
        let device = Device::attach(lab, &server.url("b"), &[])?;
        let pid = Pid::from_raw(device.pid()).context("no pid")?;
        kill_process(pid, Signal::KILL)?;
        wait::until("the end of the agent", SOON, || Ok(!device.agent_alive()))?;
        // Its lock goes with the last of its threads, which may be a moment behind the first.
        wait::until("status to say dead", SOON, || {
            let (state, _) = device.state().context("status of a dead device")?;
            Ok(state == "dead")
        })?;
        let file = direct::open(device.block(), false)?;
        let read = direct::Pending::start(move || direct::read(&file, 0, 4096).map(|_| ()));
        ensure!(
            read.outcome(SOON)?.0.is_err(),
            "I/O without an agent succeeds"
        );
        if again {
            // A new attach of that name cleans up by itself.
            let name = device.name().to_owned();
            std::mem::forget(device);
            let attach = command::run(
                &mut lab.dst(["attach", &server.url("b"), "--name", &name]),
                ATTACH,
            )?;
            Device::adopt(lab, &name, attach)?.detach()?;
        } else {
            device.detach()?;
        }
    }
    Ok(())
}

/// A detach must not wait for ever for an agent that never answers; by force it ends it, and all I/O fails.
fn stopped_agent(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let mut device = Device::attach(lab, &server.url("b"), &[])?;
    let file = direct::open(device.block(), true)?;
    let pid = Pid::from_raw(device.pid()).context("no pid")?;
    kill_process(pid, Signal::STOP)?;
    let io = direct::Pending::start(move || {
        let write = direct::write(&file, 0, &[7; 4096]);
        (write, direct::read(&file, 4096, 4096).map(drop))
    });
    let given_up = command::run(&mut lab.dst(["detach", device.name()]), SOON)?.expect_code(20)?;
    ensure!(
        given_up.stderr.contains("--force"),
        "it does not say what to do: {}",
        given_up.said()
    );
    ensure!(device.agent_alive(), "a detach without --force ended it");
    io.still_pending_after(Duration::from_millis(100))?;
    let took = device.detach_by_force()?;
    ensure!(took < FORCED, "--force took {:.1} s", took.as_secs_f64());
    let ((write, read), _) = io.outcome(SOON)?;
    ensure!(
        write.is_err() && read.is_err(),
        "I/O succeeded that nobody served"
    );
    device.check_gone()?;
    // Its client may come back at once, and gives the lease back this time.
    Device::attach(lab, &server.url("b"), &[])?.detach()
}

fn interrupted_attach(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let name = lab.unique("d");
    server.freeze()?;
    let attach = Running::start(&mut lab.dst([
        "attach",
        &server.url("c"),
        "--name",
        &name,
        "--connect-timeout",
        "none",
    ]))?;
    let started = wait::until("the agent", SOON, || {
        Ok(lab.runtime_dir().join(&name).exists())
    });
    let signalled = started.and_then(|()| {
        let pid = Pid::from_raw(attach.pid() as i32).context("no pid")?;
        Ok(kill_process(pid, Signal::INT)?)
    });
    let output = attach.finish(SOON);
    server.thaw()?;
    signalled?;
    output?.expect_code(130)?;
    Ok(())
}

fn foreground(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let name = lab.unique("d");
    let attach = Running::start(&mut lab.dst([
        "attach",
        &server.url("c"),
        "--name",
        &name,
        "--foreground",
    ]))?;
    let node = std::path::Path::new("/dev/dst").join(&name);
    wait::until("the node", ATTACH, || Ok(node.exists()))?;
    direct::write(&direct::open(&node, true)?, 0, &[1; 4096])?;
    let pid = Pid::from_raw(attach.pid() as i32).context("no pid")?;
    kill_process(pid, Signal::INT)?;
    let output = attach.finish(ATTACH)?;
    ensure!(
        matches!(output.code, Some(0 | 130)),
        "it ended with {}: {}",
        output.ending(),
        output.said()
    );
    ensure!(
        std::fs::symlink_metadata(&node).is_err(),
        "the node is still there"
    );
    Ok(())
}

fn drained(lab: &Lab, _: &Server<'_>) -> Result<()> {
    let image = lab.image("drained.img", SIZE)?;
    let mut server = Server::tcp(lab)?.with([format!("disk={}", image.display())]);
    server.start()?;
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    let file = direct::open(device.block(), true)?;
    direct::write(&file, 0, &[5; 1 << 20])?;
    server.stop().context("SIGTERM with a device attached")?;
    // Flushed, without the client having asked for it.
    ensure!(
        std::fs::read(&image)?[..1 << 20] == [5; 1 << 20],
        "a drained server lost writes"
    );
    let io = direct::Pending::start(move || direct::write(&file, 0, &[6; 4096]));
    io.still_pending_after(Duration::from_secs(1))?;
    server.start()?;
    io.outcome(SOON)?
        .0
        .context("a write when the server was back")?;
    device.detach()?;
    server.stop()
}

fn demo_command(lab: &Lab) -> Result<(std::path::PathBuf, std::process::Command)> {
    let dir = lab.path(&lab.unique("demo"));
    std::fs::create_dir(&dir)?;
    let mut command = lab.dst(["demo", "--size", "512M", "--dir"]);
    command.arg(&dir);
    Ok((dir, command))
}

fn check_demo_gone(lab: &Lab, dir: &std::path::Path) -> Result<()> {
    wait::until("nothing to be left of the demo", SOON, || {
        Ok(sweep::find(lab.root()).describe().is_empty())
    })
    .with_context(|| sweep::find(lab.root()).describe().join(", "))?;
    let left: Vec<_> = std::fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    ensure!(left.is_empty(), "the demo left {left:?}");
    Ok(())
}

fn demo(lab: &Lab) -> Result<()> {
    let (dir, mut command) = demo_command(lab)?;
    let output = command::run(&mut command, DEMO * 2)?.expect_code(0)?;
    say(&format!("{:.1} s", output.took.as_secs_f64()));
    ensure!(
        output.took <= DEMO,
        "the demo took {:.0} s",
        output.took.as_secs_f64()
    );
    check_demo_gone(lab, &dir)
}

fn interrupted_demo(lab: &Lab, after: Duration) -> Result<()> {
    let (dir, mut command) = demo_command(lab)?;
    let demo = Running::start(&mut command)?;
    wait::let_pass(after)?;
    let pid = Pid::from_raw(demo.pid() as i32).context("no pid")?;
    kill_process(pid, Signal::INT)?;
    let output = demo.finish(SOON)?;
    ensure!(
        matches!(output.code, Some(0 | 130)),
        "it ended with {}: {}",
        output.ending(),
        output.said()
    );
    check_demo_gone(lab, &dir)
}
