//! The figures of a benchmark, as a table and as JSON.

use std::time::Duration;

use dst_client::Geometry;
use dst_store::format_size;
use serde::Serialize;

use super::cpu::ServerCpu;
use super::load::{Measured, Side};
use crate::cli::Bench;
use crate::render::{self, Table};

/// The figures of reads or writes.
#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    operations: u64,
    iops: f64,
    mib_per_second: f64,
    latency_us: Latency,
}

/// Microseconds.
#[derive(Debug, PartialEq, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct Result {
    rw: &'static str,
    block_size: u32,
    depth: u16,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write: Option<Figures>,
    /// Milliseconds until all writes were durable.
    #[serde(skip_serializing_if = "Option::is_none")]
    flush_ms: Option<f64>,
    /// Percent of one CPU.
    client_cpu_percent: f64,
    /// Percent of one CPU; null where it can't be seen.
    server_cpu_percent: Option<f64>,
}

/// Everything, for JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    url: String,
    size: u64,
    logical_block: u32,
    connections: u16,
    /// Why the server's CPU time is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_cpu_not_seen: Option<&'static str>,
    results: Vec<Result>,
}

fn figures(side: &Side, block: u32, elapsed: Duration) -> Option<Figures> {
    let operations = side.latency.len();
    if operations == 0 {
        return None;
    }
    let iops = operations as f64 / elapsed.as_secs_f64().max(1e-9);
    let at = |quantile| side.latency.value_at_quantile(quantile) as f64 / 1e3;
    Some(Figures {
        operations,
        iops,
        mib_per_second: iops * f64::from(block) / f64::from(1 << 20),
        latency_us: Latency {
            mean: side.latency.mean() / 1e3,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: side.latency.max() as f64 / 1e3,
        },
    })
}

fn percent(cpu: Duration, elapsed: Duration) -> f64 {
    100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64().max(1e-9)
}

fn result(measured: &Measured) -> Result {
    let load = &measured.load;
    Result {
        rw: load.workload.name(),
        block_size: load.block,
        depth: load.depth,
        seconds: measured.elapsed.as_secs_f64(),
        read: figures(&measured.reads, load.block, measured.elapsed),
        write: figures(&measured.writes, load.block, measured.elapsed),
        flush_ms: measured.flush.map(|flush| flush.as_secs_f64() * 1e3),
        client_cpu_percent: percent(measured.client_cpu, measured.elapsed),
        server_cpu_percent: measured
            .server_cpu
            .map(|cpu| percent(cpu, measured.elapsed)),
    }
}

/// For JSON.
#[must_use]
pub fn json(options: &Bench, geometry: &Geometry, all: &[Measured], server: &ServerCpu) -> Report {
    Report {
        url: options.url.to_string(),
        size: geometry.size,
        logical_block: geometry.logical_block,
        connections: options.connections,
        server_cpu_not_seen: match server {
            ServerCpu::Process(_) => None,
            ServerCpu::NotSeen(why) => Some(why),
        },
        results: all.iter().map(result).collect(),
    }
}

/// For people.
#[must_use]
pub fn text(all: &[Measured], server: &ServerCpu) -> String {
    let mut table = Table::new(&[
        "LOAD",
        "",
        ">BLOCK",
        ">DEPTH",
        ">IOPS",
        ">MiB/s",
        ">P50",
        ">P99",
        ">P99.9",
        ">CPU HERE",
        ">CPU SERVER",
    ]);
    let micros = |us: f64| render::latency((us * 1e3) as u64);
    for result in all.iter().map(result) {
        for (side, figures) in [("read", &result.read), ("write", &result.write)] {
            let Some(figures) = figures else {
                continue;
            };
            table.row([
                result.rw.to_owned(),
                side.to_owned(),
                format_size(u64::from(result.block_size)),
                result.depth.to_string(),
                render::count(figures.iops.round() as u64),
                format!("{:.1}", figures.mib_per_second),
                micros(figures.latency_us.p50),
                micros(figures.latency_us.p99),
                micros(figures.latency_us.p999),
                format!("{:.0} %", result.client_cpu_percent),
                result
                    .server_cpu_percent
                    .map_or_else(|| "n/a".to_owned(), |cpu| format!("{cpu:.0} %")),
            ]);
        }
    }
    let mut text = table.text();
    for result in all.iter().map(result) {
        if let Some(flush) = result.flush_ms {
            text.push_str(&format!(
                "{}: durable after another {flush:.1} ms\n",
                result.rw
            ));
        }
    }
    text.push_str("CPU in percent of one core");
    match server {
        ServerCpu::Process(pid) => text.push_str(&format!("; the server is process {pid}\n")),
        ServerCpu::NotSeen(why) => text.push_str(&format!("; n/a for the server: {why}\n")),
    }
    text
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::bench::load::Load;
    use crate::cli::Workload;

    fn side(latencies: &[u64]) -> Side {
        let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        for &nanos in latencies {
            latency.saturating_record(nanos);
        }
        Side { latency }
    }

    fn measured() -> Measured {
        Measured {
            load: Load {
                workload: Workload::Mixed,
                block: 4096,
                depth: 32,
                time: Duration::from_secs(2),
                read_percent: 70,
                size: 1 << 30,
            },
            elapsed: Duration::from_secs(2),
            reads: side(&[100_000; 512]),
            writes: side(&[2_000_000]),
            flush: Some(Duration::from_millis(7)),
            client_cpu: Duration::from_secs(1),
            server_cpu: None,
        }
    }

    #[test]
    fn figures_follow_from_counts_and_time() {
        let measured = measured();
        let reads = figures(&measured.reads, 4096, measured.elapsed).unwrap();
        assert_eq!(reads.operations, 512);
        assert_eq!(reads.iops, 256.0);
        assert_eq!(reads.mib_per_second, 1.0);
        assert!((reads.latency_us.p999 - 100.0).abs() < 0.2);
        assert_eq!(figures(&side(&[]), 4096, measured.elapsed), None);
        assert_eq!(percent(measured.client_cpu, measured.elapsed), 50.0);
    }

    #[test]
    fn what_can_not_be_seen_is_not_invented() {
        let text = text(
            &[measured()],
            &ServerCpu::NotSeen("it is on another machine"),
        );
        assert!(text.contains("n/a"), "{text}");
        assert!(text.contains("it is on another machine"), "{text}");
        let json = serde_json::to_value(result(&measured())).unwrap();
        assert!(json["server_cpu_percent"].is_null());
        assert_eq!(json["read"]["iops"], 256.0);
        assert_eq!(json["flush_ms"], 7.0);
    }
}
