//! What udev is told of a device: `dst udev-info`, which `dist/udev/59-dst.rules` asks.
//!
//! The kernel's own events of a device come while it is being made, before it is written down what it is. So the agent lets
//! the kernel send another one when it is done ([`announce`]); what the rule finds then is whole.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::UdevInfo;
use crate::exit::{Code, Failure, Outcome};
use crate::render;
use crate::runtime_dir::{AgentInfo, DeviceDir, Life};

/// Runs it: prints properties, one `KEY=value` per line.
///
/// # Errors
/// The block device is none of those attached here.
pub fn run(options: &UdevInfo) -> Outcome {
    let node = &options.node;
    let found = DeviceDir::all().into_iter().find_map(|(dir, life)| {
        let info = dir.info().filter(|_| life == Life::Alive)?;
        let same = info.device.as_deref() == Some(node.as_path());
        (same && is_over(node, dir.path())).then_some(info)
    });
    let info = found.ok_or_else(|| {
        Failure::new(
            Code::NoDevice,
            format!("{} is no device of dst", node.display()),
        )
    })?;
    render::print(&properties(&info))
}

fn properties(info: &AgentInfo) -> String {
    let mut text = format!("DST_NAME={}\n", info.name);
    if let Some(id) = &info.export_id {
        // No ID_WWN and no ID_SCSI_*: those are what makes multipath take a disk for a path.
        text.push_str(&format!(
            "DST_EXPORT_ID={id}\nID_VENDOR=DST\nID_MODEL={}\nID_SERIAL=dst-{id}\nID_SERIAL_SHORT={id}\n",
            info.name
        ));
    }
    text
}

/// Whether a loop device still is over the file of the device whose directory is `dir`: its number outlives it. Other devices
/// go with their numbers.
fn is_over(node: &Path, dir: &Path) -> bool {
    let name = node.file_name().unwrap_or_default();
    if !name.to_string_lossy().starts_with("loop") {
        return true;
    }
    let backing = sysfs(node).join("loop/backing_file");
    fs::read_to_string(backing).is_ok_and(|file| Path::new(file.trim_end()).starts_with(dir))
}

fn sysfs(node: &Path) -> PathBuf {
    Path::new("/sys/class/block").join(node.file_name().unwrap_or_default())
}

/// The size of the block device `node` in bytes, as the kernel shows it.
#[must_use]
pub fn size(node: &Path) -> Option<u64> {
    let text = fs::read_to_string(sysfs(node).join("size")).ok()?;
    let sectors: u64 = text.trim().parse().ok()?;
    sectors.checked_mul(512)
}

/// Lets everybody who listens, udev above all, look at the block device `node` and its partitions again. Where nobody may ask
/// for that, nobody listens.
pub fn announce(node: &Path) {
    let disk = sysfs(node);
    let _ = fs::write(disk.join("uevent"), "change");
    let entries = fs::read_dir(&disk).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path().join("partition").exists()) {
        let _ = fs::write(entry.path().join("uevent"), "change");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udev_gets_a_name_and_an_id_that_stays() {
        let mut info = AgentInfo {
            name: "disk".into(),
            pid: 1,
            started: None,
            url: "dst://storage/disk".into(),
            read_only: false,
            node: None,
            device: None,
            export_id: Some("00ff".into()),
            settings: None,
        };
        let text = properties(&info);
        for line in ["DST_NAME=disk", "DST_EXPORT_ID=00ff", "ID_SERIAL=dst-00ff"] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("WWN"));
        info.export_id = None;
        assert_eq!(properties(&info), "DST_NAME=disk\n");
    }

    #[test]
    fn a_loop_device_over_another_file_is_not_the_device() {
        assert!(!is_over(
            Path::new("/dev/loop9999"),
            Path::new("/run/dst/x")
        ));
        assert!(is_over(Path::new("/dev/ublkb0"), Path::new("/run/dst/x")));
        assert_eq!(size(Path::new("/dev/loop9999")), None);
    }
}
