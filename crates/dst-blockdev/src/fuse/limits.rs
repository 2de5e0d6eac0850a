//! What the loop device announces (`/sys/block/loopN/queue`, Documentation/ABI/stable/sysfs-block), made equal to the
//! device's geometry as far as the kernel lets us.
//!
//! The loop driver over a FUSE file announces by itself: the block size it was configured with, as logical and physical
//! size; a write-back cache unless it is read-only; no FUA (the block layer then writes and flushes); discard and write
//! zeroes of up to 4 GiB with `f_bsize` as granularity; requests of up to 1280 KiB; not rotational.
//!
//! A value set here stays with the *number* of the loop device, for whoever uses it next. So what is set is put back at
//! the end ([`Saved`]), and nothing is set that would hurt a stranger should we die before: a device without a volatile
//! cache is not marked "write through", since the next disk on that number would never be flushed (its flushes are
//! answered at once by the front end instead); and discard is turned off by refusing one, which the driver remembers only
//! until the device is detached. (A `discard_max_bytes` of 0 could not even be put back: Linux 6.18 then takes the
//! granularity for 0 and refuses every other value.)

use std::fs;
use std::path::Path;

use dst_client::Geometry;
use rustix::fs::{FallocateFlags, Mode, OFlags};

/// How far to read ahead, in KiB: a remote disk wants more under way than a local one, whose default is 128.
const READ_AHEAD_KIB: u32 = 1024;

/// What attributes were before.
#[derive(Debug, Default)]
pub(super) struct Saved(Vec<(&'static str, String)>);

impl Saved {
    /// Puts everything back, as far as that is possible: what was set last, first.
    pub(super) fn restore(&self, disk: &Path) {
        for (attribute, value) in self.0.iter().rev() {
            let _ = fs::write(disk.join("queue").join(attribute), value);
        }
    }
}

/// Makes the loop driver know that there are no holes to be punched, by having one refused. For a front end that refuses
/// them all; the device's content is not touched.
pub(super) fn refuse_holes(device: &Path, block: u32) {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(node) = rustix::fs::open(device, flags, Mode::empty()) {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = rustix::fs::fallocate(&node, punch, 0, u64::from(block));
    }
}

/// Whether holes can be punched, as `Ops::fallocate` has it.
pub(super) fn has_holes(geometry: &Geometry) -> bool {
    geometry.discard && geometry.write_zeroes
}

/// Sets what can be set. Returns what was there before, and what still differs, in words.
///
/// `transfer`: the largest request of the file system below, in bytes.
pub(super) fn apply(disk: &Path, geometry: &Geometry, transfer: u32) -> (Saved, Vec<String>) {
    let queue = Queue {
        dir: &disk.join("queue"),
    };
    let mut saved = Saved::default();
    let mut notes = Vec::new();
    let mut want = |attribute: &'static str, value: &str, meaning: &str| {
        let before = queue.get(attribute).unwrap_or_default();
        if before == value {
            return;
        }
        let _ = fs::write(queue.dir.join(attribute), value);
        let after = queue.get(attribute).unwrap_or_default();
        if after != value {
            notes.push(format!("{meaning} is {after}, not {value}"));
        }
        saved.0.push((attribute, before));
    };
    // One request of the disk is one of the file system, not one and a quarter.
    let most = queue.number("max_hw_sectors_kb").unwrap_or(u64::MAX);
    let most = most.min(u64::from(transfer / 1024));
    want(
        "max_sectors_kb",
        &most.to_string(),
        "the largest request in KiB",
    );
    let read_ahead = READ_AHEAD_KIB.to_string();
    want("read_ahead_kb", &read_ahead, "the read-ahead in KiB");
    let rotational = if geometry.rotational { "1" } else { "0" };
    want("rotational", rotational, "\"rotational\"");
    // To which the kernel (6.18) has answered by reading ahead two requests of the largest size.
    want("read_ahead_kb", &read_ahead, "the read-ahead in KiB");
    if geometry.write_cache && !geometry.read_only {
        // Somebody may have left "write through" behind.
        want("write_cache", "write back", "the write cache");
    }
    if has_holes(geometry) && !geometry.read_only {
        if queue.number("discard_max_bytes").unwrap_or(0) == 0 {
            notes.push("discard is not announced".to_owned());
        }
    } else if !geometry.read_only && queue.number("discard_max_bytes").unwrap_or(0) != 0 {
        notes.push("discard is announced but refused".to_owned());
    }
    if queue.number("logical_block_size") != Some(u64::from(geometry.logical_block)) {
        let is = queue.get("logical_block_size").unwrap_or_default();
        notes.push(format!(
            "the logical block size is {is}, not {}",
            geometry.logical_block
        ));
    }
    if geometry.physical_block > geometry.logical_block {
        notes.push(format!(
            "the physical block size of {} is shown as {}: loop devices have only one",
            geometry.physical_block, geometry.logical_block
        ));
    }
    (saved, notes)
}

/// The directory of a queue's attributes.
struct Queue<'a> {
    dir: &'a Path,
}

impl Queue<'_> {
    fn get(&self, attribute: &str) -> Option<String> {
        let text = fs::read_to_string(self.dir.join(attribute)).ok()?;
        Some(text.trim().to_owned())
    }

    fn number(&self, attribute: &str) -> Option<u64> {
        self.get(attribute)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::geometry;

    fn disk(attributes: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("queue")).unwrap();
        for (name, value) in attributes {
            fs::write(dir.path().join("queue").join(name), format!("{value}\n")).unwrap();
        }
        dir
    }

    const LOOP: [(&str, &str); 7] = [
        ("max_hw_sectors_kb", "1280"),
        ("max_sectors_kb", "1280"),
        ("read_ahead_kb", "128"),
        ("rotational", "0"),
        ("write_cache", "write back"),
        ("discard_max_bytes", "4294966784"),
        ("logical_block_size", "512"),
    ];

    fn value(dir: &tempfile::TempDir, attribute: &str) -> String {
        let text = fs::read_to_string(dir.path().join("queue").join(attribute)).unwrap();
        text.trim().to_owned()
    }

    #[test]
    fn what_is_set_is_put_back() {
        let dir = disk(&LOOP);
        let geometry = Geometry {
            rotational: true,
            ..geometry()
        };
        let (saved, notes) = apply(dir.path(), &geometry, 1 << 20);
        assert_eq!(notes, Vec::<String>::new());
        assert_eq!(value(&dir, "max_sectors_kb"), "1024");
        assert_eq!(value(&dir, "read_ahead_kb"), "1024");
        assert_eq!(value(&dir, "rotational"), "1");
        saved.restore(dir.path());
        for (attribute, before) in LOOP {
            assert_eq!(value(&dir, attribute), before);
        }
    }

    #[test]
    fn what_a_former_user_of_the_number_has_left_is_undone() {
        let mut left = LOOP;
        left[4].1 = "write through";
        let dir = disk(&left);
        let (_, notes) = apply(dir.path(), &geometry(), 1 << 20);
        assert_eq!(notes, Vec::<String>::new());
        assert_eq!(value(&dir, "write_cache"), "write back");
    }

    #[test]
    fn a_device_without_a_cache_leaves_no_number_behind_that_is_never_flushed() {
        let dir = disk(&LOOP);
        let geometry = Geometry {
            write_cache: false,
            ..geometry()
        };
        apply(dir.path(), &geometry, 1 << 20);
        assert_eq!(value(&dir, "write_cache"), "write back");
    }

    #[test]
    fn what_can_not_be_shown_is_said() {
        let dir = disk(&LOOP);
        let geometry = Geometry {
            logical_block: 4096,
            physical_block: 8192,
            discard: false,
            ..geometry()
        };
        let (_, notes) = apply(dir.path(), &geometry, 1 << 20);
        assert_eq!(notes.len(), 3, "{notes:?}");
    }
}
