//! A real server and the client library, over real sockets, on memory and files.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use dst_client::{Device, Op, OpenError, Options, Reply, Request};
use dst_net::Endpoint;
use dst_server::{Config, ExportConfig, Handle, Server, Summary};

struct Running {
    server: Option<Server>,
    handle: Handle,
    url: String,
    dir: tempfile::TempDir,
}

fn start_in(dir: tempfile::TempDir, specs: &[&str]) -> Running {
    let exports = specs
        .iter()
        .map(|spec| ExportConfig {
            spec: spec.parse().unwrap(),
            read_only: false,
            block_size: None,
            create_size: None,
        })
        .collect();
    let socket = dir.path().join("dst.sock");
    let listen = format!("dst+unix://{}", socket.display());
    let mut config = Config::new(
        exports,
        vec![listen.parse().unwrap()],
        dir.path().join("state"),
    );
    config.lease_time = Duration::from_secs(3600);
    let server = Server::start(config).unwrap();
    let url = server.local_urls()[0].clone();
    Running {
        handle: server.handle(),
        server: Some(server),
        url,
        dir,
    }
}

fn start(specs: &[&str]) -> Running {
    start_in(tempfile::tempdir().unwrap(), specs)
}

impl Running {
    fn options(&self, export: &str) -> Options {
        let endpoint: Endpoint = self.url.parse().unwrap();
        Options::new(endpoint.with_export(Some(export)).unwrap())
    }

    fn attach(&self, export: &str) -> Device {
        Device::connect_with(self.options(export)).unwrap()
    }

    fn stop(mut self) -> (Summary, tempfile::TempDir) {
        self.handle.drain();
        let summary = self.server.take().unwrap().wait();
        (summary, self.dir)
    }
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[test]
fn what_is_written_is_read_back_in_all_sizes() {
    let running = start(&["memory:16M"]);
    let disk = running.attach("memory");
    assert_eq!(disk.geometry().size, 16 << 20);
    for (seed, (offset, length)) in [(0, 512), (4096, 4096), (8704, 70_144), (1 << 20, 3 << 20)]
        .into_iter()
        .enumerate()
    {
        let data = pattern(seed as u8, length);
        disk.write_at(&data, offset).unwrap();
        let mut back = vec![0; length];
        disk.read_at(&mut back, offset).unwrap();
        assert!(back == data, "{length} bytes at {offset}");
    }
    disk.flush().unwrap();
    disk.close().unwrap();
    let (summary, _) = running.stop();
    assert_eq!(summary.clean, ["memory"]);
}

#[test]
fn zeroes_discard_and_block_status_work_on_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    make_image(&image, 4 << 20);
    let running = start_in(dir, &[image.to_str().unwrap()]);
    let disk = running.attach("disk");
    disk.write_at(&pattern(1, 1 << 20), 0).unwrap();
    disk.write_zeroes(65536, 65536).unwrap();
    disk.discard(131_072, 65536).unwrap();
    let mut back = vec![1; 65536];
    disk.read_at(&mut back, 65536).unwrap();
    assert!(back.iter().all(|byte| *byte == 0));
    let extents = disk.block_status(0, 4 << 20).unwrap();
    assert!(extents.len() > 1, "{extents:?}");
    disk.close().unwrap();
    running.stop();
}

fn make_image(path: &Path, size: u64) {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    file.set_len(size).unwrap();
}

#[test]
fn many_requests_at_once_over_several_connections() {
    let running = start(&["memory:16M"]);
    let mut options = running.options("memory");
    options.connections = 4;
    let disk = Device::connect_with(options).unwrap();
    let (sender, completions) = std::sync::mpsc::channel();
    const COUNT: u64 = 4000;
    for tag in 0..COUNT {
        let mut data = disk.buffer(4096);
        data.copy_from_slice(&pattern(tag as u8, 4096));
        let op = Op::Write {
            offset: tag * 4096,
            data: data.share(),
            fua: tag % 7 == 0,
            barrier: tag % 97 == 0,
        };
        disk.submit(Request { tag, op }, &sender);
    }
    for _ in 0..COUNT {
        assert!(completions.recv().unwrap().result.is_ok());
    }
    for tag in 0..COUNT {
        let op = Op::Read {
            offset: tag * 4096,
            len: 4096,
        };
        disk.submit(Request { tag, op }, &sender);
    }
    for _ in 0..COUNT {
        let completion = completions.recv().unwrap();
        match completion.result.unwrap() {
            Reply::Read(bytes) => assert!(bytes[..] == pattern(completion.tag as u8, 4096)),
            other => panic!("{other:?}"),
        }
    }
    disk.close().unwrap();
    running.stop();
}

#[test]
fn one_writer_at_a_time_and_readers_beside_it() {
    let running = start(&["memory:1M"]);
    let mut first = running.options("memory");
    first.name = "first".into();
    let disk = Device::connect_with(first).unwrap();
    match Device::connect_with(running.options("memory")) {
        Err(OpenError::Busy { message, .. }) => assert!(message.contains("first"), "{message}"),
        other => panic!("{:?}", other.err()),
    }
    let mut reader = running.options("memory");
    reader.read_only = true;
    let reader = Device::connect_with(reader).unwrap();
    disk.write_at(&pattern(3, 512), 0).unwrap();
    let mut back = [0; 512];
    reader.read_at(&mut back, 0).unwrap();
    assert_eq!(back[..], pattern(3, 512));
    assert!(reader.write_at(&back, 0).is_err());
    let endpoint: Endpoint = running.url.parse().unwrap();
    let listed = dst_client::list(&endpoint, false, "me").unwrap();
    assert_eq!(listed[0].writer.as_deref(), Some("first"));
    disk.close().unwrap();
    running.attach("memory").close().unwrap();
    reader.close().unwrap();
    running.stop();
}

/// The last sync of all is that of CLOSE. Which one it is depends on what else syncs: so each is the one that fails.
#[test]
fn a_sync_that_fails_at_the_end_does_not_keep_the_lease() {
    for failing in 3..9 {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        make_image(&image, 1 << 20);
        let spec = format!("disk=lossy:{}?early=0&fail_sync={failing}", image.display());
        let running = start_in(dir, &[&spec]);
        let disk = running.attach("disk");
        disk.write_at(&pattern(1, 512), 0).unwrap();
        disk.close().unwrap();
        // Another one, which an unreleased lease would keep out for an hour.
        let next = running.attach("disk");
        let mut back = [0; 512];
        next.read_at(&mut back, 0).unwrap();
        assert_eq!(back[..], pattern(1, 512), "{failing}");
        next.close().unwrap();
        running.stop();
    }
}

#[test]
fn a_reader_flushes_without_its_server() {
    let running = start(&["memory:1M"]);
    let mut options = running.options("memory");
    options.read_only = true;
    let reader = Device::connect_with(options).unwrap();
    let (_, dir) = running.stop();
    reader.flush().unwrap();
    drop((reader, dir));
}

#[test]
fn an_export_that_is_not_there_is_said_so() {
    let running = start(&["memory:1M"]);
    match Device::connect_with(running.options("other")) {
        Err(OpenError::NoExport(_)) => {}
        other => panic!("{:?}", other.err()),
    }
    running.stop();
}

#[test]
fn a_device_outlives_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    make_image(&image, 4 << 20);
    let spec = image.to_str().unwrap().to_owned();
    let mut running = start_in(dir, &[&spec]);
    let disk = running.attach("disk");
    for round in 0..3 {
        disk.write_at(&pattern(round, 8192), 4096).unwrap();
        let (summary, dir) = running.stop();
        assert_eq!(summary.clean, ["disk"]);
        running = start_in(dir, &[&spec]);
        let mut back = vec![0; 8192];
        disk.read_at(&mut back, 4096).unwrap();
        assert!(back == pattern(round, 8192));
        disk.flush().unwrap();
    }
    let status = disk.status().unwrap();
    assert_eq!(status.fresh_sessions, 3);
    disk.close().unwrap();
    running.stop();
}

#[test]
fn another_disk_under_the_same_name_is_not_taken_for_the_first() {
    let mut running = start(&["memory:1M"]);
    let disk = running.attach("memory");
    disk.write_at(&pattern(1, 512), 0).unwrap();
    let (_, dir) = running.stop();
    running = start_in(dir, &["memory:1M"]);
    let mut back = [0; 512];
    assert!(disk.read_at(&mut back, 0).is_err());
    let status = disk.status().unwrap();
    assert_eq!(status.state, "failed");
    running.stop();
}
