//! The disk `ublkbN`, as sysfs and `/dev` show it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use dst_client::Geometry;

use super::abi::SECTOR;
use super::params;
use crate::{usage, Error, ErrorKind};

/// How long to wait for `/dev/ublkbN` to be there. Where devtmpfs makes it, it is there at once.
const NODE: Duration = Duration::from_secs(5);

/// Where the driver's devices are, whether they have a disk or not.
const DEVICES: &str = "/sys/class/ublk-char";

/// The disk of the device with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) id: u32,
}

impl Disk {
    /// `ublkb3`
    pub(super) fn name(self) -> String {
        format!("ublkb{}", self.id)
    }

    /// `/dev/ublkb3`
    pub(super) fn path(self) -> PathBuf {
        Path::new("/dev").join(self.name())
    }

    fn sysfs(self) -> PathBuf {
        Path::new("/sys/block").join(self.name())
    }

    /// Whether it has appeared and not gone.
    pub(super) fn exists(self) -> bool {
        self.sysfs().exists()
    }

    fn attribute(self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.sysfs().join(name)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Its size in bytes.
    pub(super) fn size(self) -> Option<u64> {
        let sectors: u64 = self.attribute("size")?.parse().ok()?;
        sectors.checked_mul(SECTOR)
    }

    /// Whether requests are with the driver.
    pub(super) fn has_requests(self) -> bool {
        usage::has_requests(&self.name())
    }

    /// Its logical block size in bytes.
    pub(super) fn logical_block(self) -> Option<u32> {
        self.attribute("queue/logical_block_size")?.parse().ok()
    }

    /// Whether writes to it are refused.
    pub(super) fn is_read_only(self) -> bool {
        self.attribute("ro").is_some_and(|text| text != "0")
    }

    /// Waits for the node, and makes sure that it is this disk and as it was asked for.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn check(self, geometry: &Geometry) -> Result<(), Error> {
        let wrong = |what: &str| Error::new(ErrorKind::Io, format!("{} {what}", self.name()));
        if self.size() != Some(geometry.size) || self.is_read_only() != geometry.read_only {
            return Err(wrong("did not take over the geometry"));
        }
        self.check_node()
    }

    /// Waits for the node, and makes sure that it is this disk.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn check_node(self) -> Result<(), Error> {
        let wrong = |what: &str| Error::new(ErrorKind::Io, format!("{} {what}", self.name()));
        let number = self.attribute("dev");
        let since = Instant::now();
        loop {
            if let Ok(meta) = fs::metadata(self.path()) {
                let device = meta.rdev();
                let device = format!(
                    "{}:{}",
                    rustix::fs::major(device),
                    rustix::fs::minor(device)
                );
                return if meta.file_type().is_block_device() && number == Some(device) {
                    Ok(())
                } else {
                    Err(wrong("has a node in /dev that is not its own"))
                };
            }
            if since.elapsed() >= NODE {
                return Err(wrong("has no node in /dev")
                    .with_hint("the kernel makes it in devtmpfs; a container needs it passed in"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sets what is not among the driver's parameters. The kernel waits with that until every request is answered, so it is
    /// nothing for a disk that is in use.
    pub(super) fn tune(self) {
        let queue = self.sysfs().join("queue");
        // What is refused shows in `differences`; a number of requests that is, costs a delay when the agent dies.
        let _ = fs::write(
            queue.join("read_ahead_kb"),
            params::READ_AHEAD_KIB.to_string(),
        );
        let _ = fs::write(queue.join("nr_requests"), params::REQUESTS.to_string());
    }

    /// Tells in words what differs from the geometry.
    pub(super) fn differences(self, geometry: &Geometry, transfer: u32) -> Vec<String> {
        let mut notes = Vec::new();
        for (attribute, wanted, meaning) in params::announced(geometry, transfer) {
            match self.attribute(&format!("queue/{attribute}")) {
                Some(shown) if shown == wanted => {}
                Some(shown) => notes.push(format!("{meaning} is {shown}, not {wanted}")),
                None => notes.push(format!("{meaning} is not known, and should be {wanted}")),
            }
        }
        notes
    }
}

/// Whether the driver is there.
pub(super) fn driver_is_there() -> bool {
    Path::new(DEVICES).exists()
}

/// The numbers of all ublk devices, with or without a disk.
pub(super) fn all() -> Vec<u32> {
    let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix("ublkc")?.parse().ok()
        })
        .collect()
}

/// Whether a link leads to a ublk disk that is not there, so that it may be replaced or removed.
pub(super) fn is_dangling(target: &Path) -> bool {
    let number = target
        .to_str()
        .and_then(|text| text.strip_prefix("/dev/ublkb"))
        .and_then(|number| number.parse().ok());
    number.is_some_and(|id| !Disk { id }.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_ublk_disks_that_are_gone_dangle() {
        assert!(is_dangling(Path::new("/dev/ublkb4000000")));
        for other in [
            "/dev/ublkb",
            "/dev/ublkc3",
            "/dev/loop4000000",
            "/dev/sda",
            "ublkb3",
        ] {
            assert!(!is_dangling(Path::new(other)), "{other}");
        }
    }
}
