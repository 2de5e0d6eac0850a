//! An nbd device as sysfs shows it, and what of it can be set there.
//!
//! The file `backend` is there while a device is configured by netlink, and holds the identifier that it was connected with
//! (Linux 5.14). `pid` is of no use: it is the thread that asked for the connection. A number may be somebody else's at any
//! time after its device is gone, so every step first looks at the identifier.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use dst_client::Geometry;

use crate::{Error, ErrorKind};

const SYS_BLOCK: &str = "/sys/block";
/// How long to wait for a device to go once it is disconnected, before saying that it will.
const GOING: Duration = Duration::from_secs(1);
/// The attribute with the longest request in KiB.
const LIMIT: &str = "max_sectors_kb";
/// How far to read ahead, in KiB: a remote disk wants more under way than a local one, whose default is 128.
const READ_AHEAD_KIB: u32 = 1024;

/// The device with a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) index: u32,
    identifier: String,
}

impl Disk {
    pub(super) fn new(index: u32, identifier: &str) -> Disk {
        Disk {
            index,
            identifier: identifier.to_owned(),
        }
    }

    /// `nbd3`
    pub(super) fn name(&self) -> String {
        format!("nbd{}", self.index)
    }

    /// `/dev/nbd3`
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/dev").join(self.name())
    }

    fn sysfs(&self) -> PathBuf {
        Path::new(SYS_BLOCK).join(self.name())
    }

    /// Whether the number still is this device.
    pub(super) fn is_ours(&self) -> bool {
        backend(self.index).as_deref() == Some(&self.identifier)
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.sysfs().join("size"))?;
        let sectors: u64 = text.trim().parse().map_err(io::Error::other)?;
        Ok(sectors * 512)
    }

    /// Whether it refuses writes.
    pub(super) fn is_read_only(&self) -> bool {
        fs::read_to_string(self.sysfs().join("ro")).is_ok_and(|text| text.trim() == "1")
    }

    /// Waits for a moment until a device that was disconnected is gone, which it is not before everybody has closed it.
    pub(super) fn wait_until_gone(&self) {
        let since = Instant::now();
        while self.is_ours() && since.elapsed() < GOING {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sets what can be set, and says what still differs from the geometry. `longest`: bytes of the longest request.
    ///
    /// # Errors
    /// `NotAvailable` if longer requests would come, all of which would fail.
    pub(super) fn apply(&self, geometry: &Geometry, longest: u32) -> Result<Vec<String>, Error> {
        apply(&self.sysfs().join("queue"), geometry, longest)
    }
}

/// The identifier of a device that is connected.
fn backend(index: u32) -> Option<String> {
    let text = fs::read_to_string(format!("{SYS_BLOCK}/nbd{index}/backend")).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// The devices that are connected with an identifier.
pub(super) fn connected(identifier: &str) -> Vec<Disk> {
    let entries = fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let index = number(entry.file_name().to_str()?)?;
            let disk = Disk::new(index, identifier);
            disk.is_ours().then_some(disk)
        })
        .collect()
}

/// Whether a number is some device's, connected or not.
pub(super) fn exists(index: u32) -> bool {
    Path::new(&format!("{SYS_BLOCK}/nbd{index}")).exists()
}

/// The lowest number from `from` on that no device has.
pub(super) fn free_number(from: u32) -> Result<u32, Error> {
    (from..=i32::MAX as u32)
        .find(|index| !exists(*index))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotAvailable,
                "there is no number left for an nbd device",
            )
        })
}

/// Whether a link to `target` may be replaced: it leads to the place of an nbd device that is not connected.
pub(super) fn replaceable(target: &Path) -> bool {
    let name = target.strip_prefix("/dev").ok().and_then(Path::to_str);
    name.and_then(number)
        .is_some_and(|index| backend(index).is_none())
}

/// The 3 of `nbd3`, but nothing of `nbd3p1`.
fn number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("nbd")?;
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

fn apply(queue: &Path, geometry: &Geometry, longest: u32) -> Result<Vec<String>, Error> {
    let get = |attribute: &str| -> Option<String> {
        let text = fs::read_to_string(queue.join(attribute)).ok()?;
        Some(text.trim().to_owned())
    };
    let mut notes = Vec::new();
    // No scheduler: there is no head to be moved; and with one, Linux before 6.15 can send a request, whose sending a signal
    // has interrupted, on under another tag than it began with (`nbd_sched_pending_work` of later ones).
    if get("scheduler").is_some_and(|text| !text.contains("[none]")) {
        let _ = fs::write(queue.join("scheduler"), "none");
        if get("scheduler").is_some_and(|text| !text.contains("[none]")) {
            notes.push("the I/O scheduler can't be switched off".to_owned());
        }
    }
    let hardware = get("max_hw_sectors_kb").and_then(|text| text.parse().ok());
    let most = hardware.unwrap_or(u32::MAX).min(longest / 1024);
    for (attribute, value, meaning) in [
        (LIMIT, most.to_string(), "the largest request in KiB"),
        (
            "read_ahead_kb",
            READ_AHEAD_KIB.to_string(),
            "the read-ahead in KiB",
        ),
        (
            "rotational",
            u32::from(geometry.rotational).to_string(),
            "\"rotational\"",
        ),
    ] {
        if get(attribute).as_deref() == Some(&value) {
            continue;
        }
        let _ = fs::write(queue.join(attribute), &value);
        let after = get(attribute).unwrap_or_default();
        if after != value {
            notes.push(format!("{meaning} is {after}, not {value}"));
        }
    }
    let limit = get(LIMIT).unwrap_or_default();
    if !limit
        .parse::<u32>()
        .is_ok_and(|limit| limit <= longest / 1024)
    {
        let path = queue.join(LIMIT);
        let what = format!(
            "{} can't be set to {most}: it is {limit:?}, and requests of that size would fail",
            path.display()
        );
        return Err(Error::new(ErrorKind::NotAvailable, what)
            .with_hint("/sys must be writable; or use another --front-end"));
    }
    notes.extend(differences(geometry, get));
    Ok(notes)
}

/// What the driver shows otherwise than the geometry has it.
fn differences(geometry: &Geometry, get: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut notes = Vec::new();
    let block = geometry.logical_block;
    if get("logical_block_size").is_some_and(|shown| shown != block.to_string()) {
        let shown = get("logical_block_size").unwrap_or_default();
        notes.push(format!("the logical block size is {shown}, not {block}"));
    }
    if geometry.physical_block > block {
        notes.push(format!(
            "the physical block size of {} is shown as {block}: nbd devices have only one",
            geometry.physical_block
        ));
    }
    let writable = !geometry.read_only;
    for (attribute, there, name) in [
        ("discard_max_bytes", geometry.discard && writable, "discard"),
        (
            "write_zeroes_max_bytes",
            geometry.write_zeroes && writable,
            "write zeroes",
        ),
    ] {
        let shown = get(attribute).is_some_and(|text| text != "0");
        match (there, shown) {
            (true, false) => notes.push(format!(
                "{name} is not announced: this kernel's nbd has none"
            )),
            (false, true) => notes.push(format!("{name} is announced but refused")),
            _ => {}
        }
    }
    let cached = get("write_cache").is_some_and(|text| text == "write back");
    if geometry.write_cache && writable && !cached {
        notes.push("the write cache is not announced, so nothing is ever flushed".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::super::tests::geometry;
    use super::*;

    const FRESH: [(&str, &str); 9] = [
        ("scheduler", "none [mq-deadline]"),
        ("max_hw_sectors_kb", "32768"),
        ("max_sectors_kb", "1280"),
        ("read_ahead_kb", "128"),
        ("rotational", "1"),
        ("logical_block_size", "512"),
        ("discard_max_bytes", "4294966784"),
        ("write_zeroes_max_bytes", "4294966784"),
        ("write_cache", "write back"),
    ];

    fn queue(attributes: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in attributes {
            fs::write(dir.path().join(name), format!("{value}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn what_can_be_set_is_set() {
        let dir = queue(&FRESH);
        let notes = apply(dir.path(), &geometry(), 1 << 20).unwrap();
        // A plain file does not put the chosen one in brackets.
        assert_eq!(notes, ["the I/O scheduler can't be switched off"]);
        for (attribute, value) in [
            ("scheduler", "none"),
            ("max_sectors_kb", "1024"),
            ("read_ahead_kb", "1024"),
            ("rotational", "0"),
        ] {
            let text = fs::read_to_string(dir.path().join(attribute)).unwrap();
            assert_eq!(text.trim(), value, "{attribute}");
        }
    }

    #[test]
    fn a_limit_on_requests_that_can_not_be_set_is_an_error() {
        let dir = queue(&FRESH);
        let limit = dir.path().join(LIMIT);
        fs::remove_file(&limit).unwrap();
        // Takes no writing, as a read-only /sys.
        fs::create_dir(&limit).unwrap();
        let error = apply(dir.path(), &geometry(), 1 << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAvailable);
        assert!(error.to_string().contains(LIMIT), "{error}");
    }

    #[test]
    fn a_limit_on_requests_lower_than_ours_stays() {
        let mut low = FRESH;
        low[1].1 = "512";
        let dir = queue(&low);
        apply(dir.path(), &geometry(), 1 << 20).unwrap();
        let text = fs::read_to_string(dir.path().join(LIMIT)).unwrap();
        assert_eq!(text, "512");
    }

    #[test]
    fn what_an_old_driver_can_not_show_is_said() {
        let mut old = FRESH;
        old[0].1 = "[none]";
        old[7].1 = "0";
        let dir = queue(&old);
        let geometry = Geometry {
            physical_block: 4096,
            discard: false,
            ..geometry()
        };
        let notes = apply(dir.path(), &geometry, 1 << 20).unwrap();
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes[0].contains("physical"), "{notes:?}");
        assert!(
            notes[1].contains("discard is announced but refused"),
            "{notes:?}"
        );
        assert!(
            notes[2].contains("write zeroes is not announced"),
            "{notes:?}"
        );
    }

    #[test]
    fn numbers_of_disks_are_told_from_those_of_partitions() {
        assert_eq!(number("nbd12"), Some(12));
        for name in ["nbd", "nbd1p1", "nbdx", "loop1", "nbd99999999999"] {
            assert_eq!(number(name), None, "{name}");
        }
        assert!(!replaceable(Path::new("/dev/loop1")));
        assert!(replaceable(Path::new("/dev/nbd123456")));
    }
}
