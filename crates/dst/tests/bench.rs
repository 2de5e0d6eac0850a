//! `dst bench` on the real thing: what it reports, what it refuses.

mod common;

use common::Lab;

#[test]
fn all_loads_report_figures_and_the_cpu_of_both_ends() {
    let lab = Lab::new();
    let server = lab.serve(&["scratch=memory:16M"]);
    let url = lab.url("scratch");
    let done = lab.dst(&[
        "--json",
        "bench",
        "--yes-destroy-data",
        "--time",
        "100ms",
        "--depth",
        "4",
        &url,
    ]);
    let report = done.ok().json();
    assert_eq!(report["size"], 16 << 20);
    let results = report["results"].as_array().unwrap();
    let names: Vec<_> = results
        .iter()
        .map(|result| result["rw"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["read", "write", "randread", "randwrite", "mixed"]);
    for result in results {
        let rw = result["rw"].as_str().unwrap();
        for (side, there) in [
            ("read", rw == "mixed" || rw.ends_with("read")),
            ("write", rw == "mixed" || rw.ends_with("write")),
        ] {
            let figures = &result[side];
            assert_eq!(figures.is_object(), there, "{result}");
            if there {
                assert!(figures["iops"].as_f64().unwrap() > 0.0);
                let latency = &figures["latency_us"];
                let at = |name: &str| latency[name].as_f64().unwrap();
                assert!(
                    at("p50") <= at("p99") && at("p99") <= at("p99.9"),
                    "{latency}"
                );
            }
        }
        assert!(result["client_cpu_percent"].is_f64());
        assert!(result["server_cpu_percent"].is_f64(), "{result}");
    }
    server.stop();
}

#[test]
fn without_the_flag_nothing_is_written() {
    let lab = Lab::new();
    std::fs::write(lab.path("disk.img"), vec![0x5a; 1 << 20]).unwrap();
    let server = lab.serve(&["disk.img"]);
    let url = lab.url("disk");
    for rw in ["write", "randwrite", "mixed"] {
        let done = lab.dst(&["bench", "--rw", rw, &url]).expect(2);
        assert!(done.err.contains("--yes-destroy-data"), "{done:?}");
    }
    let text = lab.dst(&["bench", "--time", "50ms", &url]).ok().out;
    assert!(text.contains("reads only"), "{text}");
    assert!(std::fs::read(lab.path("disk.img"))
        .unwrap()
        .iter()
        .all(|&byte| byte == 0x5a));
    server.stop();
}

#[test]
fn a_read_only_export_and_odd_block_sizes_are_refused() {
    let lab = Lab::new();
    std::fs::write(lab.path("disk.img"), vec![0; 1 << 20]).unwrap();
    let _server = lab.serve(&["--read-only", "--block-size", "4096", "disk.img"]);
    let url = lab.url("disk");
    lab.dst(&["bench", "--rw", "write", "--yes-destroy-data", &url])
        .expect(2);
    lab.dst(&["bench", "--rw", "read", "--bs", "512", &url])
        .expect(2);
    lab.dst(&["bench", "--rw", "read", "--bs", "2M", &url])
        .expect(2);
}
