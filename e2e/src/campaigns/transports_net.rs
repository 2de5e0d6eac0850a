//! Networks that are cut: server and client in namespaces of their own, a cable that is pulled, addresses that change.

use std::time::Duration;

use anyhow::{ensure, Context as _, Result};

use super::transports::work;
use crate::command;
use crate::lab::device::{Device, ATTACH};
use crate::lab::netns::Network;
use crate::lab::server::Server;
use crate::lab::Lab;
use crate::report::Report;
use crate::wait;

const SIZE: u64 = 64 << 20;
const PORT: u16 = 7789;
/// How long I/O may take to go on after the network is back: the silence has to be noticed, and backoff to end.
const RECOVERY: Duration = Duration::from_secs(90);

/// Runs the cases.
pub fn run(lab: &Lab, report: &mut Report) {
    let cables: [(&str, &str); 2] = [
        ("a cable pulled, IPv4", "10.77.0.1"),
        ("a cable pulled, IPv6", "[fd77::1]"),
    ];
    for (name, host) in cables {
        if lab.plan.wants(name) {
            report.case(name, |_| cable(lab, host));
        }
    }
    type Case = fn(&Lab) -> Result<()>;
    let cases: [(&str, Case); 3] = [
        ("the client's address changes", client_moves),
        ("the server's address changes behind its name", server_moves),
        (
            "plaintext over a network is refused unless asked for",
            insecure,
        ),
    ];
    for (name, case) in cases {
        if lab.plan.wants(name) {
            report.case(name, |_| case(lab));
        }
    }
}

fn server<'l>(lab: &'l Lab, network: &Network, listen: &str) -> Result<Server<'l>> {
    let image = lab.image(&format!("{}.img", lab.unique("i")), SIZE)?;
    let prefix = network.on_server();
    // Ready is who answers LIST, asked from the other side.
    let mut ask = network.on_client();
    let dst = lab.plan.dst.display().to_string();
    ask.extend([
        dst,
        "list".into(),
        "--insecure".into(),
        format!("dst://10.77.0.1:{PORT}"),
    ]);
    let url = format!("dst://{listen}:{PORT}");
    let server = Server::elsewhere(lab, &url, &prefix, ask);
    Ok(server.with(["--insecure".to_owned(), format!("disk={}", image.display())]))
}

fn cable(lab: &Lab, host: &str) -> Result<()> {
    let network = Network::new(lab)?;
    let mut server = server(lab, &network, "[::]")?;
    server.start()?;
    let url = format!("dst://{host}:{PORT}/disk");
    let device = Device::attach_under(
        lab,
        &network.on_client(),
        &url,
        &["--insecure", "--connections", "2"],
    )?;
    work(&device, 1)?.outcome(RECOVERY)?.0?;
    let mut rng = lab.rng(7);
    for round in 0..lab.plan.pick(6, 2) {
        let io = work(&device, 2 + round)?;
        network.set_cable(false)?;
        // Shorter and longer than it takes to notice that the peer is silent.
        wait::let_pass(rng.millis(
            1000..if round % 2 == 0 {
                3000
            } else {
                lab.plan.pick(30_000, 12_000)
            },
        ))?;
        network.set_cable(true)?;
        io.outcome(RECOVERY)
            .with_context(|| format!("cut {round}"))?
            .0?;
    }
    device.check_not_failed()?;
    device.detach()?;
    server.stop()
}

fn client_moves(lab: &Lab) -> Result<()> {
    let network = Network::new(lab)?;
    let mut server = server(lab, &network, "[::]")?;
    server.start()?;
    let url = format!("dst://10.77.0.1:{PORT}/disk");
    let device = Device::attach_under(lab, &network.on_client(), &url, &["--insecure"])?;
    let mut at = "10.77.0.2".to_owned();
    for round in 0..lab.plan.pick(4, 1) {
        let io = work(&device, 10 + round)?;
        let next = format!("10.77.0.{}", 20 + round);
        network.move_client(&at, &next)?;
        at = next;
        io.outcome(RECOVERY)
            .with_context(|| format!("move {round}"))?
            .0?;
    }
    device.check_not_failed()?;
    device.detach()?;
    server.stop()
}

/// The name stays, the address behind it becomes another. Name resolution is the file that the client's side sees as
/// `/etc/hosts`.
fn server_moves(lab: &Lab) -> Result<()> {
    let network = Network::new(lab)?;
    let mut server = server(lab, &network, "[::]")?;
    server.start()?;
    let hosts = lab.path("hosts");
    std::fs::write(&hosts, "10.77.0.1 storage\n")?;
    let mut prefix = network.on_client();
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    prefix.extend(
        [
            "unshare",
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            &script,
            "sh",
        ]
        .map(str::to_owned),
    );
    let url = format!("dst://storage:{PORT}/disk");
    let device = Device::attach_under(lab, &prefix, &url, &["--insecure"])?;
    work(&device, 1)?.outcome(RECOVERY)?.0?;
    let mut at = "10.77.0.1".to_owned();
    for round in 0..lab.plan.pick(3, 1) {
        let next = format!("10.77.0.{}", 40 + round);
        let io = work(&device, 2 + round)?;
        network.move_server(&at, &next)?;
        // The old address answers nobody for a while; then the name says the new one.
        wait::let_pass(Duration::from_millis(1500))?;
        std::fs::write(&hosts, format!("{next} storage\n"))?;
        at = next;
        io.outcome(RECOVERY)
            .with_context(|| format!("move {round}"))?
            .0?;
    }
    // A name that can't be resolved for a while: the last good address is used.
    let io = work(&device, 9)?;
    std::fs::write(&hosts, "127.0.0.1 localhost\n")?;
    server.kill()?;
    server.start_without_waiting()?;
    io.outcome(RECOVERY)
        .context("with a name that can't be resolved")?
        .0?;
    device.check_not_failed()?;
    device.detach()?;
    server.stop()
}

fn insecure(lab: &Lab) -> Result<()> {
    let network = Network::new(lab)?;
    let mut server = server(lab, &network, "[::]")?;
    server.start()?;
    let url = format!("dst://10.77.0.1:{PORT}/disk");
    for command in ["attach", "list", "bench"] {
        let mut args = network.on_client();
        args.extend([
            lab.plan.dst.display().to_string(),
            command.to_owned(),
            url.clone(),
        ]);
        let output =
            command::run(&mut lab.program(&args[0], &args[1..]), ATTACH)?.expect_code(10)?;
        ensure!(
            output.stderr.contains("--insecure"),
            "`{command}` does not say how: {}",
            output.said()
        );
    }
    server.stop()
}
