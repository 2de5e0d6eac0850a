//! Side by side with nbdkit, in one run on one machine: the same load against `dst serve` and nbdkit, over memory and over a
//! file in the page cache, in turn and several times. Only the ratios mean anything. Then fio on the block device.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{ensure, Context as _, Result};
use serde_json::{json, Value};

use crate::command;
use crate::fio;
use crate::lab::device::Device;
use crate::lab::server::Server;
use crate::lab::Lab;
use crate::report::Report;
use crate::wait;

const SIZE: u64 = 1 << 30;
const BOUND: Duration = Duration::from_secs(120);

/// What is measured: name for both, of `dst bench`, of fio, bytes, depth, and whether requests per second or MiB/s count.
struct Load {
    name: &'static str,
    rw: &'static str,
    block: u32,
    depth: u16,
    iops: bool,
}

const LOADS: [Load; 4] = [
    Load {
        name: "random reads 4 KiB, depth 32",
        rw: "randread",
        block: 4096,
        depth: 32,
        iops: true,
    },
    Load {
        name: "random writes 4 KiB, depth 32",
        rw: "randwrite",
        block: 4096,
        depth: 32,
        iops: true,
    },
    Load {
        name: "reads 128 KiB, depth 16",
        rw: "read",
        block: 131_072,
        depth: 16,
        iops: false,
    },
    Load {
        name: "writes 128 KiB, depth 16",
        rw: "write",
        block: 131_072,
        depth: 16,
        iops: false,
    },
];

/// Runs the comparison.
pub fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    if command::run(&mut command::cmd("nbdkit", ["--version"]), BOUND).is_err() {
        report.skip("nbdkit", "not installed");
        return Ok(());
    }
    let file = lab.path("bench.img");
    let peer_file = lab.path("bench-peer.img");
    // Both made in the same way: how a file was written decides how large the folios of the page cache are, and with them what
    // a small write costs.
    let content = lab.rng(1).bytes(SIZE as usize);
    for file in [&file, &peer_file] {
        std::fs::write(file, &content).context("the file in the page cache")?;
    }
    drop(content);
    let mut table = Vec::new();
    for (backend, dst_spec, plugin) in [
        (
            "memory",
            "disk=memory:1G".to_owned(),
            vec!["memory".to_owned(), "1G".to_owned()],
        ),
        (
            "file",
            format!("disk={}", file.display()),
            vec!["file".to_owned(), peer_file.display().to_string()],
        ),
    ] {
        let name = format!("dst and nbdkit over {backend}");
        if lab.plan.wants(&name) {
            report.case(&name, |report| {
                compare(lab, report, &mut table, backend, &dst_spec, &plugin)
            });
        }
    }
    if lab.plan.wants("fio on the block device") {
        report.case("fio on the block device", |_| {
            on_device(lab, &mut table, &file)
        });
    }
    for row in &table {
        println!("{}", row["text"].as_str().unwrap_or_default());
    }
    report.figure("table", table);
    Ok(())
}

/// nbdkit on a Unix socket.
struct Peer(Child);

impl Peer {
    fn start(lab: &Lab, socket: &Path, plugin: &[String]) -> Result<Peer> {
        let mut command = lab.program("nbdkit", ["-f", "-U"]);
        command.arg(socket).args(plugin);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let peer = Peer(child);
        wait::until("nbdkit", BOUND, || {
            Ok(std::os::unix::net::UnixStream::connect(socket).is_ok())
        })?;
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The better of some rounds, taken in turn so that busy neighbours meet both.
fn compare(
    lab: &Lab,
    report: &mut Report,
    table: &mut Vec<Value>,
    backend: &str,
    spec: &str,
    plugin: &[String],
) -> Result<()> {
    let mut server = Server::unix(lab, &format!("bench-{backend}.sock")).with([spec.to_owned()]);
    server.start()?;
    let socket = lab.path(&format!("nbd-{backend}.sock"));
    let _peer = Peer::start(lab, &socket, plugin)?;
    let seconds = lab.plan.pick(5, 2);
    for load in &LOADS {
        let (mut ours, mut theirs) = (0.0_f64, 0.0_f64);
        for _ in 0..lab.plan.pick(3, 1) {
            ours = ours.max(dst_bench(lab, &server.url("disk"), load, seconds)?);
            theirs = theirs.max(nbd_fio(lab, &socket, load, seconds)?);
            report.count("measurements", 2);
        }
        ensure!(
            ours > 0.0 && theirs > 0.0,
            "{}: {ours} and {theirs}",
            load.name
        );
        row(
            table, backend, load.name, "dst", ours, "nbdkit", theirs, load.iops,
        );
    }
    // A whole copy by each one's own best tool for it.
    let copy = command::ok(&mut nbdcopy(lab, &socket), BOUND)?;
    let rate = (SIZE >> 20) as f64 / copy.took.as_secs_f64();
    let ours = dst_bench(
        lab,
        &server.url("disk"),
        &Load {
            name: "",
            rw: "read",
            block: 262_144,
            depth: 64,
            iops: false,
        },
        seconds,
    )?;
    row(
        table,
        backend,
        "whole disk (dst bench 256 KiB depth 64, nbdcopy)",
        "dst",
        ours,
        "nbdcopy",
        rate,
        false,
    );
    server.stop()
}

#[allow(clippy::too_many_arguments)]
fn row(
    table: &mut Vec<Value>,
    backend: &str,
    load: &str,
    a: &str,
    one: f64,
    b: &str,
    two: f64,
    iops: bool,
) {
    let unit = if iops { "requests/s" } else { "MiB/s" };
    let text = format!(
        "{backend:8} {load:50} {a} {one:>9.0} {b} {two:>9.0} {unit:10} {:.2} x",
        one / two
    );
    table.push(json!({
        "backend": backend, "load": load, "unit": unit, a: one.round(), b: two.round(),
        "ratio": (one / two * 100.0).round() / 100.0, "text": text,
    }));
}

fn nbdcopy(lab: &Lab, socket: &Path) -> std::process::Command {
    let mut command = lab.program("nbdcopy", ["--connections=1"]);
    command.arg(format!("nbd+unix:///?socket={}", socket.display()));
    command.arg("null:");
    command
}

fn dst_bench(lab: &Lab, url: &str, load: &Load, seconds: u64) -> Result<f64> {
    let (bs, depth, time) = (
        load.block.to_string(),
        load.depth.to_string(),
        format!("{seconds}s"),
    );
    let args = [
        "bench",
        "--json",
        "--yes-destroy-data",
        "--rw",
        load.rw,
        "--bs",
        &bs,
        "--depth",
        &depth,
        "--time",
        &time,
        url,
    ];
    let json = lab.run_dst(&args, BOUND)?.expect_code(0)?.json()?;
    let result = &json["results"][0];
    let side = if load.rw.ends_with("read") {
        &result["read"]
    } else {
        &result["write"]
    };
    let figure = if load.iops { "iops" } else { "mib_per_second" };
    side[figure]
        .as_f64()
        .with_context(|| format!("no {figure} in {json}"))
}

fn fio_figure(job: &Value, load: &Load) -> f64 {
    let side = if load.rw.ends_with("read") {
        "read"
    } else {
        "write"
    };
    match load.iops {
        true => fio::figure(job, side, "iops"),
        false => fio::figure(job, side, "bw_bytes") / f64::from(1 << 20),
    }
}

fn fio_load(lab: &Lab, load: &Load, seconds: u64) -> std::process::Command {
    let mut command = lab.program(
        "fio",
        ["--name=bench", "--output-format=json", "--time_based=1"],
    );
    command
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--rw={}", load.rw))
        .arg(format!("--bs={}", load.block))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--size={SIZE}"));
    command
}

fn nbd_fio(lab: &Lab, socket: &Path, load: &Load, seconds: u64) -> Result<f64> {
    let mut command = fio_load(lab, load, seconds);
    command
        .arg("--ioengine=nbd")
        .arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    Ok(fio_figure(&fio::run(&mut command, BOUND)?, load))
}

/// The whole way, through loop and FUSE, against a loop device straight over the same file.
fn on_device(lab: &Lab, table: &mut Vec<Value>, file: &Path) -> Result<()> {
    let mut server = Server::unix(lab, "device.sock").with([format!("disk={}", file.display())]);
    server.start()?;
    let device = Device::attach(lab, &server.url("disk"), &[])?;
    let seconds = lab.plan.pick(5, 2);
    for load in &LOADS {
        let mut command = fio_load(lab, load, seconds);
        command
            .args(["--ioengine=libaio", "--direct=1"])
            .arg(format!("--filename={}", device.block().display()));
        let rate = fio_figure(&fio::run(&mut command, BOUND)?, load);
        let unit = if load.iops { "requests/s" } else { "MiB/s" };
        let text = format!(
            "{:8} {:50} dst {rate:>9.0} {unit}",
            device.block_name(),
            load.name
        );
        table.push(json!({"backend": "fuse and loop", "load": load.name, "unit": unit, "dst": rate.round(), "text": text}));
    }
    device.detach()?;
    server.stop()
}
