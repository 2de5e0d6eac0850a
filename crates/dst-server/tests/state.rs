//! What is kept on disk between two servers.

mod raw;

use std::fs::{self, File};
use std::path::Path;

use dst_proto::Status;
use raw::{start, Raw};

fn records(dir: &Path) -> Vec<serde_json::Value> {
    let Ok(entries) = fs::read_dir(dir.join("state/exports")) else {
        return Vec::new();
    };
    let read = |path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    entries.map(|entry| read(entry.unwrap().path())).collect()
}

fn record(dir: &Path) -> serde_json::Value {
    let mut all = records(dir);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn the_clean_mark_stays_until_somebody_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let image = dir.join("disk.img");
    File::create_new(&image).unwrap().set_len(1 << 20).unwrap();
    let image = image.to_str().unwrap();
    let server = start(dir, &[image]).unwrap();
    server.handle().drain();
    assert_eq!(server.wait().clean, ["disk"]);
    let before = record(dir);
    assert_eq!(before["clean"], true);

    let missing = dir.join("missing.img");
    assert!(start(dir, &[image, missing.to_str().unwrap()]).is_err());
    assert_eq!(record(dir)["clean"], true);

    for instance in [None, Some(1)] {
        let server = start(dir, &[image]).unwrap();
        assert_eq!(record(dir)["clean"], true);
        let mut client = Raw::connect(dir);
        client.ask("disk", instance);
        assert_eq!(client.next().status(), Status::OK);
        assert_eq!(record(dir)["clean"], false);
        server.handle().drain();
        assert_eq!(server.wait().clean, ["disk"]);
    }
    assert_eq!(record(dir)["clean"], true);
    assert_eq!(record(dir)["incarnation"], before["incarnation"]);
}

#[test]
fn exports_that_end_with_the_process_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &["memory:1M", "null:1M"]).unwrap();
    for export in ["memory", "null"] {
        let mut client = Raw::connect(dir.path());
        client.ask(export, Some(1));
        assert_eq!(client.next().status(), Status::OK);
    }
    server.handle().drain();
    assert_eq!(server.wait().clean, ["memory", "null"]);
    assert!(records(dir.path()).is_empty());
}
