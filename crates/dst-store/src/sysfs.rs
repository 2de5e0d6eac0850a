//! What `/sys` says about the disk behind a device number. Everything is optional: there may be no `/sys`, and file systems
//! without a device of their own (btrfs, tmpfs, network) have device numbers that it does not know.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// A disk or partition in `/sys`.
pub(crate) struct SysDisk {
    /// Of the device itself.
    device: PathBuf,
    /// Of the whole disk; the same as `device` unless that is a partition.
    disk: PathBuf,
}

impl SysDisk {
    pub(crate) fn find(major: u32, minor: u32) -> Option<SysDisk> {
        let device = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        let disk = match device.join("partition").exists() {
            true => device.parent()?.to_owned(),
            false => device.clone(),
        };
        Some(SysDisk { device, disk })
    }

    /// An attribute of the queue, as a number; 0 if it is not there.
    pub(crate) fn queue(&self, attribute: &str) -> u64 {
        number(&self.disk.join("queue").join(attribute)).unwrap_or(0)
    }

    /// Where a partition begins and how long it is; empty for a whole disk.
    pub(crate) fn place(&self) -> String {
        match self.device == self.disk {
            true => String::new(),
            false => ["partition", "start", "size"]
                .map(|name| text(&self.device.join(name)).unwrap_or_default())
                .join(" "),
        }
    }

    /// Something that stays with the medium wherever it is plugged in: world-wide name, serial number, UUID of a mapping or
    /// an array. None for disks that have nothing of the kind.
    pub(crate) fn permanent_name(&self) -> Option<String> {
        let names = [
            "wwid",
            "device/wwid",
            "dm/uuid",
            "md/uuid",
            "device/serial",
            "serial",
        ];
        let name = names.iter().find_map(|name| {
            let text = text(&self.disk.join(name))?;
            (!text.is_empty()).then(|| format!("{name} {text}"))
        })?;
        Some(format!("{name} {}", self.place()))
    }

    /// Where it is plugged in, or what it is made of: the next best thing to a permanent name.
    pub(crate) fn position(&self) -> String {
        let made_of = text(&self.disk.join("loop/backing_file"));
        let place = self.place();
        match made_of {
            Some(file) => format!("loop {file} {place}"),
            None => format!("{} {place}", self.disk.display()),
        }
    }
}

/// The loop device that is over a file and may write to it, as far as its name tells. One that was set up in another mount
/// namespace, or over another name of the file, is not found, and one of another namespace can seem to be over this file. The
/// device is not asked: opening it may wait for whoever serves its own file.
pub(crate) fn loop_over(file: &Path) -> Option<PathBuf> {
    let full = fs::canonicalize(file).ok()?;
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    disks.into_iter().find_map(|disk| {
        let over = fs::read(disk.path().join("loop/backing_file")).ok()?;
        let same = over.strip_suffix(b"\n") == Some(full.as_os_str().as_bytes());
        let writes = number(&disk.path().join("ro")) != Some(1);
        (same && writes).then(|| Path::new("/dev").join(disk.file_name()))
    })
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}
