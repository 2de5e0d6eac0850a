//! `dst status`: the devices attached here. How it goes on showing them is in `watch.rs`.

use std::time::Duration;

use dst_store::format_size;
use serde_json::{json, Value};

use crate::cli::Status;
use crate::control::{Agent, DeviceReport};
use crate::exit::{Code, Failure, Outcome};
use crate::render::{self, Table};
use crate::runtime_dir::{DeviceDir, Life};
use crate::values::Watch;
use crate::{leftovers, remedy, watch};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs it.
///
/// # Errors
/// The one device asked for is not there.
pub fn run(options: &Status, json: bool) -> Outcome {
    let device = options.device.as_deref();
    match (&options.watch, device) {
        (None, device) => {
            let reports = reports(device)?;
            match json {
                true => render::json(&as_json(&reports)),
                false => render::print(&as_text(&reports, device)),
            }
        }
        (Some(Watch::Every(interval)), device) => watch::run(device, *interval, json),
        (Some(Watch::Device(device)), None) => watch::run(Some(device), watch::INTERVAL, json),
        (Some(Watch::Device(text)), Some(_)) => Err(Failure::new(
            Code::Usage,
            format!("{text:?} is no time to wait between two looks"),
        )
        .hint("write a whole number with ms, s, m or h, as in --watch 5s")),
    }
}

/// How every device is, or only the one asked for.
///
/// # Errors
/// That one is not there.
pub fn reports(device: Option<&str>) -> Outcome<Vec<DeviceReport>> {
    let devices = match device {
        Some(device) => vec![DeviceDir::find(device)?],
        None => DeviceDir::all(),
    };
    Ok(devices
        .iter()
        .map(|(dir, life)| report(dir, *life))
        .collect())
}

/// For programs. What is not known is null.
#[must_use]
pub fn as_json(reports: &[DeviceReport]) -> Value {
    let mut devices = json!(reports);
    let each = devices.as_array_mut().into_iter().flatten();
    for (device, report) in each.zip(reports) {
        if report.unsettled {
            device["retained_bytes"] = Value::Null;
            device["retained_writes"] = Value::Null;
        }
    }
    json!({ "devices": devices })
}

/// For people: one device in detail, several as a table.
#[must_use]
pub fn as_text(reports: &[DeviceReport], device: Option<&str>) -> String {
    match (device, reports) {
        (Some(_), [report]) => detail(report),
        (_, []) => "No devices are attached here.\n".to_owned(),
        (_, reports) => table(reports),
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
        // Nobody listens, and somebody has the lock.
        (Life::Alive, std::io::ErrorKind::ConnectionRefused) => (
            "settling",
            "its agent is dead, and another command makes safe what it had acknowledged, or goes on with it"
                .to_owned(),
        ),
        (Life::Alive, _) => ("not-responding", remedy::of_silent(dir, info.as_ref(), &error)),
        _ if dst_blockdev::recoverable(dir.name()) => (
            "waiting-for-recovery",
            format!(
                "agent dead, waiting for recovery: I/O waits until `dst attach --recover {}`",
                dir.name()
            ),
        ),
        _ => ("dead", remedy::of_dead(dir, info.as_ref())),
    };
    let retained = leftovers::retained(dir).filter(|_| life == Life::Dead);
    let settings = info.as_ref().and_then(|info| info.settings.clone());
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
        // What one that lives has not said it may retain.
        unsettled: match life {
            Life::Dead => retained.is_none() && leftovers::unsettled(dir),
            _ => state != "attaching" && info.as_ref().is_some_and(|info| !info.read_only),
        },
        retained_writes: retained.map_or(0, |(writes, _)| writes),
        retained_bytes: retained.map_or(0, |(_, bytes)| bytes),
        front_end: settings.map_or_else(String::new, |settings| settings.front_end),
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
            match report.unsettled {
                true => "?".to_owned(),
                false => format_size(report.retained_bytes),
            },
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

fn size_in_full(report: &DeviceReport) -> String {
    let in_full = |size| format!("{} ({} bytes)", format_size(size), render::count(size));
    let size = in_full(report.size);
    match report.device_size {
        0 => size,
        shown if shown == report.size => size,
        shown => format!("{size}, of which the device shows {}", in_full(shown)),
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
        (
            "front end",
            match report.queues {
                0 | 1 => report.front_end.clone(),
                queues => format!("{}, {queues} queues", report.front_end),
            },
        ),
        ("export", report.url.clone()),
        ("server", report.server.clone()),
        (
            "size",
            known(size_in_full(report)),
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
            match report.unsettled {
                true => "writes that are not safe on the server yet; how many is found out at the detach"
                    .to_owned(),
                // A dead agent's record tells.
                false if report.size == 0 && report.retained_writes == 0 => String::new(),
                false => format!(
                    "{} in {} writes, kept until the server has made them durable",
                    format_size(report.retained_bytes),
                    report.retained_writes
                ),
            },
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
    fn several_queues_are_told() {
        assert!(!detail(&report()).contains("queues"));
        let report = DeviceReport {
            front_end: "ublk".into(),
            queues: 4,
            ..report()
        };
        let text = detail(&report);
        assert!(text.contains("ublk, 4 queues"), "{text}");
    }

    #[test]
    fn a_device_that_could_not_follow_its_export_shows_both_sizes() {
        let report = DeviceReport {
            device_size: 1 << 20,
            ..report()
        };
        let text = detail(&report);
        assert!(
            text.contains("1 GiB") && text.contains("shows 1 MiB"),
            "{text}"
        );
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
        let left = DeviceReport {
            unsettled: true,
            ..dead
        };
        assert!(detail(&left).contains("not safe"));
        let row = table(std::slice::from_ref(&left));
        assert!(row.contains('?') && !row.contains("0 B"), "{row}");
        let json = as_json(&[left, report()]);
        assert!(json["devices"][0]["retained_bytes"].is_null());
        assert_eq!(json["devices"][1]["retained_bytes"], 65536);
    }
}
