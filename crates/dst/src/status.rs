//! `dst status`: the devices attached here.

use std::time::Duration;

use dst_store::format_size;
use serde_json::json;

use crate::cli::Status;
use crate::control::{Agent, DeviceReport};
use crate::exit::Outcome;
use crate::render::{self, Table};
use crate::runtime_dir::{DeviceDir, Life};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs it.
///
/// # Errors
/// The one device asked for is not there.
pub fn run(options: &Status, json: bool) -> Outcome {
    let devices = match &options.device {
        Some(device) => vec![DeviceDir::find(device)?],
        None => DeviceDir::all(),
    };
    let reports: Vec<DeviceReport> = devices
        .iter()
        .map(|(dir, life)| report(dir, *life))
        .collect();
    if json {
        return render::json(&json!({ "devices": reports }));
    }
    match (&options.device, reports.as_slice()) {
        (Some(_), [report]) => render::print(&detail(report)),
        (_, []) => render::line("No devices are attached here."),
        (_, reports) => render::print(&table(reports)),
    }
}

/// Asks the agent; where it does not answer, what can be told without it.
fn report(dir: &DeviceDir, life: Life) -> DeviceReport {
    let asked = match life {
        Life::Alive => Agent::status(&dir.control(), PATIENCE),
        _ => Err(std::io::ErrorKind::NotConnected.into()),
    };
    let error = match asked {
        Ok(report) => return report,
        Err(error) => error,
    };
    let info = dir.info();
    let attaching = info.as_ref().is_some_and(|info| info.node.is_none());
    let (state, message) = match (life, error.kind()) {
        (Life::Alive, std::io::ErrorKind::NotFound) if attaching => ("attaching", String::new()),
        (Life::Alive, _) => (
            "not-responding",
            format!(
                "its agent does not answer: {error}; `dst detach --force {}` removes it",
                dir.name()
            ),
        ),
        _ => (
            "dead",
            format!(
                "its agent was killed; `dst detach {}` makes what it had acknowledged safe on the server, and cleans up",
                dir.name()
            ),
        ),
    };
    DeviceReport {
        name: dir.name().to_owned(),
        state: state.to_owned(),
        message: Some(message).filter(|message| !message.is_empty()),
        url: info
            .as_ref()
            .map_or_else(String::new, |info| info.url.clone()),
        pid: info.as_ref().map_or(0, |info| info.pid),
        read_only: info.as_ref().is_some_and(|info| info.read_only),
        node: info.as_ref().and_then(|info| info.node.clone()),
        device: info.as_ref().and_then(|info| info.device.clone()),
        ..DeviceReport::default()
    }
}

fn rate_text(operations: f64, bytes: f64) -> String {
    match operations {
        0.0 => String::new(),
        _ => format!(
            "{}/s {}",
            render::count(operations.round() as u64),
            render::throughput(bytes)
        ),
    }
}

fn table(reports: &[DeviceReport]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "NODE",
        ">SIZE",
        "STATE",
        "FRONT END",
        "SERVER",
        ">IN FLIGHT",
        ">RETAINED",
        ">READ",
        ">WRITE",
        ">RECONNECTS",
    ]);
    for report in reports {
        table.row([
            report.name.clone(),
            report
                .node
                .as_ref()
                .map_or_else(String::new, |node| node.display().to_string()),
            size_text(report.size),
            report.state.clone(),
            report.front_end.clone(),
            if report.server.is_empty() {
                &report.url
            } else {
                &report.server
            }
            .clone(),
            report.in_flight.to_string(),
            format_size(report.retained_bytes),
            rate_text(report.rates.reads, report.rates.read_bytes),
            rate_text(report.rates.writes, report.rates.written_bytes),
            report.reconnects.to_string(),
        ]);
    }
    let mut text = table.text();
    for report in reports {
        if let Some(message) = &report.message {
            text.push_str(&format!("{}: {message}\n", report.name));
        }
    }
    text
}

fn size_text(size: u64) -> String {
    match size {
        0 => String::new(),
        size => format_size(size),
    }
}

/// Everything about one device.
fn detail(report: &DeviceReport) -> String {
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_ref()
            .map_or_else(String::new, |path| path.display().to_string())
    };
    let known = |text: String| {
        if report.size == 0 {
            String::new()
        } else {
            text
        }
    };
    let if_any = |number: u64, what: &str| match number {
        0 => String::new(),
        number => format!("{} {what}", render::count(number)),
    };
    let mut fields = vec![
        ("name", report.name.clone()),
        ("state", report.state.clone()),
        ("why", report.message.clone().unwrap_or_default()),
        ("node", path(&report.node)),
        ("device", path(&report.device)),
        ("front end", report.front_end.clone()),
        ("export", report.url.clone()),
        ("server", report.server.clone()),
        (
            "size",
            known(format!(
                "{} ({} bytes)",
                format_size(report.size),
                render::count(report.size)
            )),
        ),
        (
            "blocks",
            known(format!(
                "{} logical, {} physical",
                report.logical_block, report.physical_block
            )),
        ),
        (
            "mode",
            if report.read_only {
                "read-only"
            } else {
                "read-write"
            }
            .to_owned(),
        ),
        (
            "attached",
            known(format!(
                "{} ago, agent {}",
                render::seconds(report.attached_s),
                report.pid
            )),
        ),
        (
            "session",
            known(format!(
                "{}, epoch {}, incarnation {}",
                report.session, report.epoch, report.incarnation
            )),
        ),
        (
            "connections",
            known(format!(
                "{} of {}",
                report.connections[0], report.connections[1]
            )),
        ),
        (
            "in flight",
            known(format!("{}, {} queued", report.in_flight, report.queued)),
        ),
        (
            "retained",
            known(format!(
                "{} in {} writes, kept until the server has made them durable",
                format_size(report.retained_bytes),
                report.retained_writes
            )),
        ),
        (
            "reading",
            rate_text(report.rates.reads, report.rates.read_bytes),
        ),
        (
            "writing",
            rate_text(report.rates.writes, report.rates.written_bytes),
        ),
        (
            "read",
            known(format!(
                "{} in {} requests",
                format_size(report.totals.read_bytes),
                render::count(report.totals.reads)
            )),
        ),
        (
            "written",
            known(format!(
                "{} in {} requests",
                format_size(report.totals.written_bytes),
                render::count(report.totals.writes)
            )),
        ),
        ("reconnects", known(report.reconnects.to_string())),
        ("sent again", if_any(report.resent, "requests")),
        (
            "replayed",
            if_any(report.replayed, "writes that the server may have lost"),
        ),
        (
            "expired",
            if_any(report.expired, "requests at their deadline"),
        ),
        (
            "damaged",
            if_any(report.bad_digests, "payloads, sent again"),
        ),
        (
            "suspects",
            if_any(
                report.suspects,
                "requests that broke connections, sent one at a time",
            ),
        ),
        ("failed", if_any(report.errors, "requests")),
    ];
    fields.extend(report.notes.iter().map(|note| ("note", note.clone())));
    render::fields(&fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Rates, Totals};

    fn report() -> DeviceReport {
        DeviceReport {
            name: "disk".into(),
            state: "live".into(),
            url: "dst://storage:7789/disk".into(),
            server: "dst://storage:7789/disk".into(),
            front_end: "fuse".into(),
            node: Some("/dev/dst/disk".into()),
            size: 1 << 30,
            connections: [1, 1],
            in_flight: 3,
            retained_bytes: 65536,
            retained_writes: 2,
            reconnects: 4,
            totals: Totals {
                reads: 7,
                ..Totals::default()
            },
            rates: Rates {
                reads: 1234.4,
                read_bytes: 5_056_102.4,
                ..Rates::default()
            },
            ..DeviceReport::default()
        }
    }

    #[test]
    fn the_table_has_what_the_issue_asks_for() {
        let text = table(&[report()]);
        for part in [
            "disk",
            "/dev/dst/disk",
            "1 GiB",
            "live",
            "fuse",
            "storage:7789",
            "3",
            "64 KiB",
            "1,234/s 4.8 MiB/s",
            "4",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn why_a_device_failed_is_said_in_words() {
        let failed = DeviceReport {
            state: "failed".into(),
            message: Some("the server now has another disk under this name".into()),
            ..report()
        };
        for text in [table(std::slice::from_ref(&failed)), detail(&failed)] {
            assert!(
                text.contains("failed") && text.contains("another disk"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_dead_device_shows_no_invented_figures() {
        let dead = DeviceReport {
            name: "disk".into(),
            state: "dead".into(),
            ..DeviceReport::default()
        };
        let text = detail(&dead);
        assert!(
            !text.contains("retained") && !text.contains("connections"),
            "{text}"
        );
    }
}
