//! Who uses a block device: mounts, swap, stacked devices, open descriptors. For texts and for refusing a detach.
//!
//! To be called from a thread that does not serve the device: the O_EXCL probe opens it.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::mountinfo;

/// A disk or a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    device: (u32, u32),
    /// Its directory in sysfs.
    sysfs: PathBuf,
}

/// Who uses the disk `name` (`loop3`) or a partition of it; the first that is found.
///
/// # Errors
/// sysfs or procfs can't be read, or the device can't be opened.
pub(crate) fn of_disk(name: &str) -> std::io::Result<Option<String>> {
    if let Some(who) = of_waiting_disk(name)? {
        return Ok(Some(who));
    }
    let path = Path::new("/dev").join(name);
    match rustix::fs::open(
        &path,
        OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(_) => Ok(None),
        // Mounted where this process can't see it, or claimed by a driver.
        Err(Errno::BUSY) => Ok(Some("in exclusive use".to_owned())),
        Err(errno) => Err(errno.into()),
    }
}

/// Who uses a disk that nobody seems to have open.
pub(crate) const REQUESTS_WAIT: &str = "waited for by requests that are not answered";

/// Whether requests are with the driver of this disk.
pub(crate) fn has_requests(name: &str) -> bool {
    fs::read_to_string(format!("/sys/block/{name}/inflight"))
        .is_ok_and(|text| text.split_whitespace().any(|count| count != "0"))
}

/// As [`of_disk`], as far as that can be told without opening the disk: nobody serves it, and opening it may do I/O.
///
/// # Errors
/// sysfs or procfs can't be read.
pub(crate) fn of_waiting_disk(name: &str) -> std::io::Result<Option<String>> {
    let parts = parts(name)?;
    let is_ours = |device: (u32, u32)| parts.iter().any(|part| part.device == device);

    for mount in mountinfo::of_machine()? {
        // Some file systems (btrfs) show a device number of their own, the source still names the disk.
        if is_ours(mount.device) || device_of(&mount.source).is_some_and(is_ours) {
            return Ok(Some(format!("mounted at {}", mount.point.display())));
        }
    }
    for line in fs::read_to_string("/proc/swaps")
        .unwrap_or_default()
        .lines()
    {
        let path = line.split_whitespace().next().unwrap_or_default();
        if device_of(Path::new(path)).is_some_and(is_ours) {
            return Ok(Some("used as swap".to_owned()));
        }
    }
    for part in &parts {
        let holders = part.sysfs.join("holders");
        if let Some(holder) = fs::read_dir(holders).into_iter().flatten().flatten().next() {
            let holder = holder.file_name();
            return Ok(Some(format!("held by {}", holder.to_string_lossy())));
        }
    }
    Ok(opened_by(is_ours))
}

/// A process other than this that has `path` open or mapped as a descriptor.
pub(crate) fn file_opened_by(path: &Path) -> Option<String> {
    find_descriptor(|target| target == path)
}

/// A process other than this that has one of the devices open.
fn opened_by(is_ours: impl Fn((u32, u32)) -> bool) -> Option<String> {
    find_descriptor(|target| target.starts_with("/dev/") && device_of(target).is_some_and(&is_ours))
}

/// The first process other than this with a descriptor whose target matches. Sees only what it may see: all processes
/// as root, the user's own otherwise.
fn find_descriptor(matches: impl Fn(&Path) -> bool) -> Option<String> {
    let own = std::process::id();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"));
        let mut targets = descriptors
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok());
        if pid != own && targets.any(|target| matches(&target)) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("open in process {pid} ({})", name.trim()));
        }
    }
    None
}

/// The disk and its partitions.
fn parts(name: &str) -> std::io::Result<Vec<Part>> {
    let disk = Path::new("/sys/block").join(name);
    let read = |sysfs: PathBuf| -> Option<Part> {
        let text = fs::read_to_string(sysfs.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(Part {
            device: (major.parse().ok()?, minor.parse().ok()?),
            sysfs,
        })
    };
    let mut parts: Vec<Part> = read(disk.clone()).into_iter().collect();
    for entry in fs::read_dir(&disk)?.flatten() {
        let entry_name = entry.file_name().to_string_lossy().into_owned();
        if entry_name.starts_with(name) && entry.path().join("partition").exists() {
            parts.extend(read(entry.path()));
        }
    }
    Ok(parts)
}

/// The number of the block device at `path`. No device is opened.
fn device_of(path: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    if !path.starts_with("/dev") {
        return None;
    }
    let meta = fs::metadata(path).ok()?;
    let number = meta.rdev();
    meta.file_type()
        .is_block_device()
        .then(|| (rustix::fs::major(number), rustix::fs::minor(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_found_by_its_path_in_another_process() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(file_opened_by(file.path()), None);
        let input = fs::File::open(file.path()).unwrap();
        let mut child = std::process::Command::new("tail")
            .args(["-f", "/dev/stdin"])
            .stdin(input)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let who = file_opened_by(file.path()).unwrap();
        assert!(who.contains(&child.id().to_string()), "{who}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
