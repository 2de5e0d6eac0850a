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
/// The longest request, in KiB. The driver announces 32 MiB; one that can't be set is lived with, see `queue.rs`.
const LIMIT: &str = "max_sectors_kb";
/// After how many milliseconds the driver looks at a request that is not answered. It sends one again then that went out on a
/// connection that has been replaced: so this is how long a recovery takes at most. All it does with others is to log a line
/// for each (`nbd_xmit_timeout` in `drivers/block/nbd.c`, without a timeout of its own), so it should not be short either.
/// The driver's default is 30 s.
const IO_TIMEOUT: &str = "io_timeout";
/// See [`IO_TIMEOUT`].
const RESENT: Duration = Duration::from_secs(10);
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

    /// What the kernel knows it by.
    pub(super) fn identifier(&self) -> &str {
        &self.identifier
    }

    fn sysfs(&self) -> PathBuf {
        Path::new(SYS_BLOCK).join(self.name())
    }

    /// Whether the number still is this device.
    pub(super) fn is_ours(&self) -> bool {
        backend(self.index).as_deref() == Some(&self.identifier)
    }

    /// What it shows.
    ///
    /// # Errors
    /// sysfs can't be read, or says something else than Linux does.
    pub(super) fn shown(&self) -> Result<Shown, Error> {
        Shown::read(&self.sysfs())
            .map_err(|e| Error::io(format!("can't read what {} shows", self.name()), e))
    }

    /// How long the driver takes at most to send requests again that went out on a connection that has been replaced.
    pub(super) fn resent(&self) -> Duration {
        let queue = self.sysfs().join("queue");
        let set = get(&queue, IO_TIMEOUT).and_then(|text| text.parse().ok());
        // The kernel rounds its timers up to seconds.
        set.map_or(RESENT, Duration::from_millis) + Duration::from_secs(2)
    }

    /// Waits for a moment until a device that was disconnected is gone, which it is not before everybody has closed it.
    pub(super) fn wait_until_gone(&self) {
        let since = Instant::now();
        while self.is_ours() && since.elapsed() < GOING {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sets what can be set, and says what still differs from the geometry. `longest`: bytes of the longest request.
    pub(super) fn apply(&self, geometry: &Geometry, longest: u32) -> Vec<String> {
        apply(&self.sysfs().join("queue"), geometry, longest)
    }

    /// What differs from the geometry.
    pub(super) fn differences(&self, geometry: &Geometry) -> Vec<String> {
        let queue = self.sysfs().join("queue");
        differences(geometry, |attribute| get(&queue, attribute))
    }
}

/// What a device shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    /// Bytes.
    pub(super) size: u64,
    /// Bytes of a logical block.
    pub(super) block: u32,
    pub(super) read_only: bool,
    /// It is flushed.
    pub(super) cache: bool,
    pub(super) fua: bool,
}

impl Shown {
    fn read(sysfs: &Path) -> io::Result<Shown> {
        let text = |attribute: &str| fs::read_to_string(sysfs.join(attribute));
        let number = |attribute: &str| -> io::Result<u64> {
            text(attribute)?.trim().parse().map_err(io::Error::other)
        };
        Ok(Shown {
            // In sectors, whatever the block size.
            size: number("size")?.saturating_mul(512),
            block: u32::try_from(number("queue/logical_block_size")?).map_err(io::Error::other)?,
            read_only: number("ro")? == 1,
            cache: text("queue/write_cache")?.trim() == "write back",
            fua: number("queue/fua")? == 1,
        })
    }
}

/// An attribute of a disk's queue.
fn get(queue: &Path, attribute: &str) -> Option<String> {
    let text = fs::read_to_string(queue.join(attribute)).ok()?;
    Some(text.trim().to_owned())
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

fn apply(queue: &Path, geometry: &Geometry, longest: u32) -> Vec<String> {
    let get = |attribute: &str| get(queue, attribute);
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
            IO_TIMEOUT,
            RESENT.as_millis().to_string(),
            "the time in ms until requests are sent again to a successor of this agent",
        ),
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
    notes.extend(differences(geometry, get));
    notes
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
    use super::*;
    use crate::geometry::tests::geometry;

    const FRESH: [(&str, &str); 10] = [
        ("scheduler", "none [mq-deadline]"),
        ("max_hw_sectors_kb", "32768"),
        ("write_zeroes_max_bytes", "4294966784"),
        ("max_sectors_kb", "1280"),
        ("io_timeout", "30000"),
        ("read_ahead_kb", "128"),
        ("rotational", "1"),
        ("logical_block_size", "512"),
        ("discard_max_bytes", "4294966784"),
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
        let notes = apply(dir.path(), &geometry(), 1 << 20);
        // A plain file does not put the chosen one in brackets.
        assert_eq!(notes, ["the I/O scheduler can't be switched off"]);
        for (attribute, value) in [
            ("scheduler", "none"),
            ("max_sectors_kb", "1024"),
            ("io_timeout", "10000"),
            ("read_ahead_kb", "1024"),
            ("rotational", "0"),
        ] {
            let text = fs::read_to_string(dir.path().join(attribute)).unwrap();
            assert_eq!(text.trim(), value, "{attribute}");
        }
    }

    #[test]
    fn what_can_not_be_set_is_said() {
        let dir = queue(&FRESH[1..]);
        for attribute in [LIMIT, IO_TIMEOUT] {
            let path = dir.path().join(attribute);
            fs::remove_file(&path).unwrap();
            // Takes no writing, as a read-only /sys.
            fs::create_dir(&path).unwrap();
        }
        let notes = apply(dir.path(), &geometry(), 1 << 20);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].contains("not 1024") && notes[1].contains("not 10000"));
    }

    #[test]
    fn what_a_disk_shows_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("queue")).unwrap();
        assert!(Shown::read(dir.path()).is_err());
        for (attribute, text) in [
            ("size", "2048"),
            ("ro", "0"),
            ("queue/logical_block_size", "4096"),
            ("queue/write_cache", "write back"),
            ("queue/fua", "1"),
        ] {
            fs::write(dir.path().join(attribute), format!("{text}\n")).unwrap();
        }
        let shown = Shown {
            size: 1 << 20,
            block: 4096,
            read_only: false,
            cache: true,
            fua: true,
        };
        assert_eq!(Shown::read(dir.path()).unwrap(), shown);
    }

    #[test]
    fn a_limit_on_requests_lower_than_ours_stays() {
        let mut low = FRESH;
        low[1].1 = "512";
        let dir = queue(&low);
        apply(dir.path(), &geometry(), 1 << 20);
        let text = fs::read_to_string(dir.path().join(LIMIT)).unwrap();
        assert_eq!(text, "512");
    }

    #[test]
    fn what_an_old_driver_can_not_show_is_said() {
        let mut old = FRESH;
        old[0].1 = "[none]";
        old[2].1 = "0";
        let dir = queue(&old);
        let geometry = Geometry {
            physical_block: 4096,
            discard: false,
            ..geometry()
        };
        let notes = apply(dir.path(), &geometry, 1 << 20);
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
