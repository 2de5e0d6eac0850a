//! Everything that `dst` has to refuse, each with its exit code and a text that says what is wrong.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{ensure, Context as _, Result};

use super::lifecycle::{run_case, Case};
use crate::command::{self, Output};
use crate::lab::device::{Device, ATTACH};
use crate::lab::fsys::{Kind, Mount};
use crate::lab::server::Server;
use crate::lab::Lab;
use crate::report::Report;

/// Runs the cases.
pub fn run(lab: &Lab, report: &mut Report, server: &Server<'_>) {
    let cases: [(&str, Case); 9] = [
        ("refused: attaching twice", twice),
        ("refused: a name already taken", name_taken),
        ("refused: an export that is not there", no_export),
        (
            "refused: a second writer, while readers are let in",
            second_writer,
        ),
        ("refused: detaching what is mounted or open", in_use),
        ("refused: a server that is not there", unreachable),
        ("refused: what is no device, no URL, no option", nonsense),
        ("refused: an address that is taken", address_taken),
        ("list and status say what is there", listing),
    ];
    for (name, case) in cases {
        if lab.plan.wants(name) {
            run_case(lab, report, server, name, case);
        }
    }
}

/// Runs `dst` and expects this exit code and, in what it says, these words.
fn refuses(lab: &Lab, args: &[&str], code: i32, words: &[&str]) -> Result<Output> {
    let output = lab.run_dst(args, ATTACH)?.expect_code(code)?;
    let said = output.stderr.to_lowercase();
    for word in words {
        ensure!(
            said.contains(word),
            "`{}` does not say {word:?}: {}",
            output.line,
            output.said()
        );
    }
    ensure!(
        !said.contains("panicked"),
        "`{}` panics: {}",
        output.line,
        output.said()
    );
    Ok(output)
}

fn twice(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let url = server.url("a");
    let device = Device::attach(lab, &url, &[])?;
    refuses(
        lab,
        &["attach", &url, "--name", device.name()],
        7,
        &[device.name()],
    )?;
    refuses(
        lab,
        &["attach", &url, "--name", &lab.unique("d")],
        7,
        &["attached"],
    )?;
    device.check_not_failed()?;
    device.detach()
}

fn name_taken(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let device = Device::attach(lab, &server.url("a"), &[])?;
    refuses(
        lab,
        &["attach", &server.url("b"), "--name", device.name()],
        6,
        &[device.name()],
    )?;
    device.check_not_failed()?;
    device.detach()
}

fn no_export(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let name = lab.unique("d");
    refuses(
        lab,
        &["attach", &server.url("nothing"), "--name", &name],
        4,
        &["export"],
    )?;
    Ok(())
}

fn second_writer(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let url = server.url("a");
    let device = Device::attach(lab, &url, &[])?;
    let name = lab.unique("d");
    // Another machine, as far as the server can tell: another identity.
    let other = |args: &[&str]| -> Result<Output> {
        let mut command = lab.dst(args);
        command.env("DST_STATE_DIR", lab.path("other-state"));
        command.env("DST_RUNTIME_DIR", lab.path("other-run"));
        command::run(&mut command, ATTACH)
    };
    let refused = other(&["attach", &url, "--name", &name])?.expect_code(5)?;
    ensure!(
        refused.stderr.to_lowercase().contains("writ"),
        "it says {}",
        refused.said()
    );
    let reader = other(&["attach", &url, "--name", &name, "--read-only"])?.expect_code(0)?;
    let node = PathBuf::from(reader.stdout.trim());
    let read = crate::direct::read(&crate::direct::open(&node, false)?, 0, 4096).map(|_| ());
    other(&["detach", &name])?.expect_code(0)?;
    read.context("reading while another writes")?;
    device.check_not_failed()?;
    device.detach()?;
    // The lease was given back: now the other may write.
    other(&["attach", &url, "--name", &name])?.expect_code(0)?;
    other(&["detach", &name])?.expect_code(0)?;
    Ok(())
}

fn in_use(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let device = Device::attach(lab, &server.url("d"), &[])?;
    Kind::Ext4.make(device.block())?;
    let mount = Mount::new(lab, Kind::Ext4, device.block(), "")?;
    let point = mount.point().display().to_string();
    refuses(lab, &["detach", device.name()], 8, &["mounted", &point])?;
    std::fs::write(mount.point().join("x"), b"still works")?;
    mount.unmount()?;
    let open = std::fs::File::open(device.block())?;
    refuses(lab, &["detach", device.name()], 8, &["open"])?;
    drop(open);
    device.check_not_failed()?;
    device.detach()
}

fn unreachable(lab: &Lab, _: &Server<'_>) -> Result<()> {
    let port = lab.port()?;
    let url = format!("dst://127.0.0.1:{port}/a");
    let name = lab.unique("d");
    let attach = ["attach", &url, "--name", &name, "--connect-timeout", "2s"];
    let output = refuses(lab, &attach, 3, &["127.0.0.1"])?;
    ensure!(
        output.took < Duration::from_secs(8),
        "it took {:.1} s",
        output.took.as_secs_f64()
    );
    refuses(lab, &["list", &url], 3, &[])?;
    let socket = format!("dst+unix://{}?export=a", lab.path("no.sock").display());
    refuses(
        lab,
        &[
            "attach",
            &socket,
            "--name",
            &name,
            "--connect-timeout",
            "2s",
        ],
        3,
        &[],
    )?;
    let command = "dst+exec:///a?command=false";
    refuses(
        lab,
        &[
            "attach",
            command,
            "--name",
            &name,
            "--connect-timeout",
            "2s",
        ],
        3,
        &[],
    )?;
    Ok(())
}

fn nonsense(lab: &Lab, server: &Server<'_>) -> Result<()> {
    refuses(lab, &["detach", "never-was"], 13, &["never-was"])?;
    refuses(lab, &["detach", "/dev/null"], 13, &[])?;
    refuses(lab, &["status", "never-was"], 13, &[])?;
    for args in [
        &["attach", "storage/disk"][..],
        &["attach", "http://storage/disk"],
        &["attach", "dst://storage:99999/disk"],
        &["attach", "dst://127.0.0.1/"],
        &["attach", &server.url("a"), "--name", "../x"],
        &["attach", &server.url("a"), "--name", ""],
        &["attach", &server.url("a"), "--deadline", "soon"],
        &["serve"],
        &["serve", "--block-size", "1000", "x"],
        &["no-such-command"],
    ] {
        refuses(lab, args, 2, &[]).with_context(|| args.join(" "))?;
    }
    Ok(())
}

fn address_taken(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let image = lab.image("more.img", 1 << 20)?;
    let export = format!("more={}", image.display());
    refuses(
        lab,
        &["serve", "--listen", server.base_url(), &export],
        17,
        &["in use"],
    )?;
    refuses(
        lab,
        &[
            "serve",
            "--listen",
            "dst://198.51.100.7",
            "--insecure",
            &export,
        ],
        17,
        &["198.51.100.7"],
    )?;
    // Not only for oneself, and in plain text: not without being told to.
    refuses(
        lab,
        &["serve", "--listen", "dst://0.0.0.0:1", &export],
        10,
        &["--insecure"],
    )?;
    Ok(())
}

fn listing(lab: &Lab, server: &Server<'_>) -> Result<()> {
    let none = lab
        .run_dst(&["status", "--json"], ATTACH)?
        .expect_code(0)?
        .json()?;
    ensure!(
        none["devices"].as_array().is_some_and(Vec::is_empty),
        "status without devices: {none}"
    );
    let device = Device::attach(lab, &server.url("a"), &["--front-end", "fuse"])?;
    let listed = lab
        .run_dst(&["list", "--json", server.base_url()], ATTACH)?
        .expect_code(0)?
        .json()?;
    let exports = listed["exports"]
        .as_array()
        .or(listed.as_array())
        .context("no exports in dst list")?;
    ensure!(exports.len() == 4, "dst list shows {listed}");
    let of = |name: &str| {
        exports
            .iter()
            .find(|e| e["name"] == name)
            .context("an export is missing")
    };
    ensure!(of("a")?["size"] == 32 << 20, "dst list shows {listed}");
    ensure!(
        of("a")?["writer"].is_string() && !of("b")?["writer"].is_string(),
        "writers in {listed}"
    );
    let status = device.status()?;
    ensure!(
        status["state"] == "connected" || status["state"] == "live",
        "state: {status}"
    );
    ensure!(status["front_end"] == "fuse", "front end: {status}");
    for text in [
        &["status"][..],
        &["status", device.name()],
        &["list", &server.url("a")],
    ] {
        let output = lab.run_dst(text, ATTACH)?.expect_code(0)?;
        ensure!(
            output.stdout.contains('a'),
            "`{}` printed {}",
            output.line,
            output.said()
        );
    }
    device.detach()
}
