//! What an agent needs of memory while it serves: nothing that it did not have before.

mod common;

use std::io::{Seek as _, Write as _};

use common::{can_attach, mkfs, Lab, Mount};

/// Page faults that may be: of the first call of a function, of a status query.
const FEW: u64 = 64;

/// Minor and major page faults of a process so far: fields 10 and 12 of `/proc/PID/stat` (proc_pid_stat(5)).
fn faults(pid: u64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = text.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    fields[7].parse::<u64>().unwrap() + fields[9].parse::<u64>().unwrap()
}

/// Bytes of memory that a process has locked.
fn locked(pid: u64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

/// Every size of request, far more bytes than the retention holds, from the first write on.
#[test]
fn an_agent_takes_no_page_fault_however_much_is_written_through_it() {
    if !can_attach() {
        return;
    }
    let lab = Lab::new();
    let server = lab.serve(&["--size", "512M", "disk.img"]);
    let device = lab.attach("disk", "a", &["--retain", "16M"]);
    let pid = lab.status(&device.name)["pid"].as_u64().unwrap();
    if locked(pid) == 0 {
        eprintln!("skipped: memory can't be locked here");
        lab.dst(&["detach", &device.name]).ok();
        return;
    }
    assert!(locked(pid) > 64 << 20, "{} bytes locked", locked(pid));
    let before = faults(pid);
    mkfs(&device.node);
    let mount = Mount::new(&device.node, lab.path("mnt"));
    let mut file = std::fs::File::create(mount.point.join("file")).unwrap();
    let megabyte = vec![7; 1 << 20];
    for round in 0..3 {
        file.rewind().unwrap();
        for _ in 0..64 {
            file.write_all(&megabyte).unwrap();
        }
        if round == 1 {
            file.sync_all().unwrap();
        }
    }
    for number in 0..200_usize {
        let small = &megabyte[..number * 100];
        std::fs::write(mount.point.join(format!("small-{number}")), small).unwrap();
    }
    file.sync_all().unwrap();
    drop((file, mount));
    let taken = faults(pid) - before;
    assert!(taken < FEW, "{taken} page faults");
    lab.dst(&["detach", &device.name]).ok();
    server.stop();
    lab.assert_nothing_left();
}
