//! `dst bench`: measures an export through the client library, with no front end in between.
//!
//! | file | subject |
//! | --- | --- |
//! | `load.rs` | doing the I/O and timing it |
//! | `cpu.rs` | what it cost on both ends |
//! | `report.rs` | the figures |

mod cpu;
mod load;
mod report;

use dst_client::{Driver, Geometry, Options};
use dst_store::format_size;

use self::cpu::ServerCpu;
use self::load::{Load, Measured};
use crate::cli::{Bench, Workload};
use crate::exit::{Code, Failure, Outcome};
use crate::progress::Progress;
use crate::render;
use crate::signals::Signals;

/// Bytes of a request in sequential I/O unless told otherwise.
const SEQUENTIAL: u32 = 128 * 1024;

/// Bytes of a request in random I/O unless told otherwise.
const RANDOM: u32 = 4096;

/// Everything, in the order in which it is measured without `--rw`.
const SUITE: [Workload; 5] = [
    Workload::Read,
    Workload::Write,
    Workload::Randread,
    Workload::Randwrite,
    Workload::Mixed,
];

impl Workload {
    fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Randread)
    }

    fn is_random(self) -> bool {
        !matches!(self, Self::Read | Self::Write)
    }

    /// As on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Mixed => "mixed",
        }
    }
}

/// Runs it.
///
/// # Errors
/// The export can't be used that way, or a request failed.
pub fn run(options: &Bench, json: bool) -> Outcome {
    let workloads = workloads(options)?;
    let signals = Signals::install().map_err(Failure::io("can't take signals"))?;
    let writes = workloads.iter().any(|workload| workload.writes());
    let mut driver = Driver::open(client_options(options, !writes)?)
        .map_err(|error| Failure::from_open(&options.url, error))?;
    let geometry = driver.geometry();
    let loads = loads(options, &workloads, &geometry)?;

    let server = ServerCpu::find(&options.url);
    let progress = Progress::new(json);
    if !json {
        progress.line(&format!(
            "{}: {}, {} connection(s)",
            options.url,
            format_size(geometry.size),
            options.connections
        ));
        if !writes && options.rw.is_none() {
            progress.line("reads only; writes with --yes-destroy-data");
        }
    }
    let mut results: Vec<Measured> = Vec::new();
    let mut stopped = Ok(());
    for load in loads {
        progress.doing(load.describe());
        match load::run(&mut driver, load, &server, &signals.flag()) {
            Ok(measured) => results.push(measured),
            Err(failure) => {
                stopped = Err(failure);
                break;
            }
        }
    }
    load::close(&mut driver);
    drop(progress);
    // What was measured before a failure or a signal is as true as ever.
    if !results.is_empty() || stopped.is_ok() {
        match json {
            true => render::json(&report::json(options, &geometry, &results, &server))?,
            false => render::print(&report::text(&results, &server))?,
        }
    }
    stopped
}

/// What to measure.
fn workloads(options: &Bench) -> Outcome<Vec<Workload>> {
    match options.rw {
        Some(workload) if workload.writes() && !options.yes_destroy_data => Err(Failure::new(
            Code::Usage,
            format!(
                "--rw {} overwrites what {} holds",
                workload.name(),
                options.url
            ),
        )
        .hint("if that is what you want, say --yes-destroy-data")),
        Some(workload) => Ok(vec![workload]),
        None => Ok(SUITE
            .into_iter()
            .filter(|workload| options.yes_destroy_data || !workload.writes())
            .collect()),
    }
}

fn client_options(bench: &Bench, read_only: bool) -> Outcome<Options> {
    let mut options = Options::new(bench.url.clone());
    // Reads alone need no lease, so they can measure what somebody else writes to.
    options.read_only = read_only;
    options.connections = bench.connections;
    options.insecure = bench.insecure;
    options.depth = bench.depth;
    if let Some(retain) = bench.retain {
        options.retain = retain.0;
    }
    Ok(options)
}

/// The loads, each checked against what the export can do.
fn loads(options: &Bench, workloads: &[Workload], geometry: &Geometry) -> Outcome<Vec<Load>> {
    let usage = |text: String| Err(Failure::new(Code::Usage, text));
    let mut loads = Vec::new();
    for &workload in workloads {
        if workload.writes() && geometry.read_only {
            return usage(format!(
                "{} is read-only; measure it without writes",
                options.url
            ));
        }
        let usual = match workload.is_random() {
            true => RANDOM,
            false => SEQUENTIAL.min(geometry.max_transfer),
        };
        let block = options.bs.unwrap_or(usual);
        if block == 0 || !block.is_multiple_of(geometry.logical_block) {
            return usage(format!(
                "--bs {block} is no multiple of the logical block size, {}",
                geometry.logical_block
            ));
        }
        if block > geometry.max_transfer {
            return usage(format!(
                "--bs {block} is more than one request can carry, {}",
                format_size(u64::from(geometry.max_transfer))
            ));
        }
        if u64::from(block) > geometry.size {
            return usage(format!("--bs {block} is more than the export has"));
        }
        loads.push(Load {
            workload,
            block,
            depth: options.depth,
            time: options.time,
            read_percent: match workload {
                Workload::Read | Workload::Randread => 100,
                Workload::Write | Workload::Randwrite => 0,
                Workload::Mixed => options.read_percent,
            },
            size: geometry.size,
        });
    }
    Ok(loads)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn bench(line: &str) -> Bench {
        match Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
        {
            Command::Bench(bench) => bench,
            other => panic!("{other:?}"),
        }
    }

    fn geometry() -> Geometry {
        Geometry {
            size: 1 << 20,
            logical_block: 512,
            physical_block: 4096,
            max_transfer: 65536,
            read_only: false,
            rotational: false,
            discard: false,
            discard_granularity: 0,
            write_zeroes: false,
            write_cache: true,
            fua: true,
        }
    }

    #[test]
    fn writes_need_to_be_asked_for_in_so_many_words() {
        let reads = workloads(&bench("dst bench dst://s/d")).unwrap();
        assert_eq!(reads, [Workload::Read, Workload::Randread]);
        let all = workloads(&bench("dst bench dst://s/d --yes-destroy-data")).unwrap();
        assert_eq!(all, SUITE);
        for rw in ["write", "randwrite", "mixed"] {
            let line = format!("dst bench dst://s/d --rw {rw}");
            let refused = workloads(&bench(&line)).unwrap_err();
            assert_eq!(refused.code, Code::Usage);
            assert!(workloads(&bench(&format!("{line} --yes-destroy-data"))).is_ok());
        }
    }

    #[test]
    fn block_sizes_follow_the_workload_and_the_export() {
        let options = bench("dst bench dst://s/d --yes-destroy-data --read-percent 60");
        let loads = loads(&options, &SUITE, &geometry()).unwrap();
        let blocks: Vec<u32> = loads.iter().map(|load| load.block).collect();
        assert_eq!(blocks, [65536, 65536, 4096, 4096, 4096]);
        let percents: Vec<u8> = loads.iter().map(|load| load.read_percent).collect();
        assert_eq!(percents, [100, 0, 100, 0, 60]);
    }

    #[test]
    fn what_the_export_can_not_do_is_refused() {
        for line in [
            "dst bench dst://s/d --bs 100",
            "dst bench dst://s/d --bs 0",
            "dst bench dst://s/d --bs 128k",
        ] {
            assert!(
                loads(&bench(line), &[Workload::Read], &geometry()).is_err(),
                "{line}"
            );
        }
        let small = Geometry {
            size: 4096,
            ..geometry()
        };
        let options = bench("dst bench dst://s/d --bs 8k");
        assert!(loads(&options, &[Workload::Read], &small).is_err());
        let read_only = Geometry {
            read_only: true,
            ..geometry()
        };
        let options = bench("dst bench dst://s/d --yes-destroy-data");
        assert!(loads(&options, &[Workload::Write], &read_only).is_err());
    }
}
