//! Transports: Unix sockets, TCP over IPv4 and IPv6, the standard streams of a command, several connections; each with data
//! and with a server that dies. (Networks that are cut are in `transports_net.rs`.)

use std::time::Duration;

use anyhow::{ensure, Context as _, Result};

use super::transports_net;
use crate::direct::{self, Pending};
use crate::lab::device::Device;
use crate::lab::server::Server;
use crate::lab::{sweep, Lab};
use crate::proxy::Proxy;
use crate::report::Report;
use crate::wait;

const SIZE: u64 = 64 << 20;
/// How long I/O may take to go on after a fault.
const RECOVERY: Duration = Duration::from_secs(60);

/// Runs the campaign.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    type Case = fn(&Lab) -> Result<()>;
    let cases: [(&str, Case); 6] = [
        ("a Unix socket", |lab| {
            over(lab, Server::unix(lab, "server.sock"), 1)
        }),
        ("TCP, IPv4", |lab| over(lab, Server::tcp(lab)?, 1)),
        ("TCP, IPv6", |lab| over(lab, Server::tcp6(lab)?, 1)),
        ("four connections", |lab| over(lab, Server::tcp(lab)?, 4)),
        ("four connections, of which some are cut", cut_some),
        ("the standard streams of a command", exec),
    ];
    for (name, case) in cases {
        if lab.plan.wants(name) {
            report.case(name, |_| case(lab));
        }
    }
    transports_net::run(lab, report);
    Ok(())
}

/// Writes and reads back in pieces of every size, in a thread.
pub fn work(device: &Device<'_>, seed: u64) -> Result<Pending<Result<()>>> {
    let file = direct::open(device.block(), true)?;
    Ok(Pending::start(move || {
        let mut rng = crate::rng::Rng::new(seed);
        let mut written = Vec::new();
        for at in 0..24_u64 {
            let len = [512, 4096, 65536, 1 << 20][rng.below(0..4) as usize];
            let offset = at * (2 << 20) + rng.below(0..1024) * 512;
            let data = rng.bytes(len);
            direct::write(&file, offset, &data)
                .with_context(|| format!("writing {len} at {offset}"))?;
            written.push((offset, data));
            if rng.one_in(5) {
                file.sync_all().context("flush")?;
            }
        }
        file.sync_all().context("flush")?;
        for (offset, data) in written {
            let read = direct::read(&file, offset, data.len())
                .with_context(|| format!("reading at {offset}"))?;
            ensure!(
                read[..] == data[..],
                "{} bytes at {offset} read differently",
                data.len()
            );
        }
        Ok(())
    }))
}

fn over(lab: &Lab, server: Server<'_>, connections: u16) -> Result<()> {
    let image = lab.image(&format!("{}.img", lab.unique("i")), SIZE)?;
    let mut server = server.with([format!("disk={}", image.display())]);
    server.start()?;
    let count = connections.to_string();
    let device = Device::attach(lab, &server.url("disk"), &["--connections", &count])?;
    if connections > 1 {
        let wanted = u64::from(connections);
        wait::until("all connections", RECOVERY, || {
            Ok(device.connections()? == wanted)
        })?;
    }
    work(&device, 1)?.outcome(RECOVERY)?.0?;
    // The server dies in the middle of it.
    let io = work(&device, 2)?;
    server.kill()?;
    server.start()?;
    io.outcome(RECOVERY)
        .context("after a restart of the server")?
        .0?;
    device.check_not_failed()?;
    device.detach()?;
    server.stop()
}

fn cut_some(lab: &Lab) -> Result<()> {
    let image = lab.image(&format!("{}.img", lab.unique("i")), SIZE)?;
    let mut server = Server::tcp(lab)?.with([format!("disk={}", image.display())]);
    server.start()?;
    let proxy = Proxy::start(server.addr())?;
    let device = Device::attach(lab, &proxy.url("disk"), &["--connections", "4"])?;
    wait::until("four connections", RECOVERY, || {
        Ok(device.connections()? == 4)
    })?;
    let mut rng = lab.rng(4);
    for round in 0..lab.plan.pick(40, 8) {
        let io = work(&device, 100 + round)?;
        proxy.cut_one(rng.next_u64() as usize, rng.below(0..300_000));
        if rng.one_in(3) {
            proxy.cut_one(rng.next_u64() as usize, rng.below(0..300_000));
        }
        io.outcome(RECOVERY)
            .with_context(|| format!("round {round}"))?
            .0?;
    }
    wait::until("four connections again", RECOVERY, || {
        Ok(device.connections()? == 4)
    })?;
    device.check_not_failed()?;
    device.detach()?;
    server.stop()
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                (b as char).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// As with ssh: the command, and with it the server, is started by the client, and again when it dies.
fn exec(lab: &Lab) -> Result<()> {
    let image = lab.image("exec.img", SIZE)?;
    let dst = lab.plan.dst.display();
    let state = lab.path("server-state");
    let script = format!(
        "DST_STATE_DIR={} exec {dst} serve --stdio disk={}",
        state.display(),
        image.display()
    );
    let url = format!(
        "dst+exec:///disk?command={}",
        encoded(&format!("sh -c '{script}'"))
    );
    let listed = lab
        .run_dst(&["list", "--json", &url], RECOVERY)?
        .expect_code(0)?
        .json()?;
    ensure!(
        listed["exports"][0]["name"] == "disk",
        "dst list shows {listed}"
    );
    let device = Device::attach(lab, &url, &[])?;
    work(&device, 1)?.outcome(RECOVERY)?.0?;
    for round in 0..3 {
        let io = work(&device, 2 + round)?;
        let serving = sweep::processes(lab.root())
            .into_iter()
            .filter(|(_, line)| line.contains("serve --stdio"));
        for (pid, _) in serving {
            let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        io.outcome(RECOVERY)
            .with_context(|| format!("after kill {round} of the command"))?
            .0?;
    }
    device.check_not_failed()?;
    device.detach()?;
    wait::until("the end of the command", RECOVERY, || {
        Ok(sweep::processes(lab.root()).is_empty())
    })
}
