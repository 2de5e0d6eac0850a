//! Marks that say nothing any more, and their removal.
//!
//! Without a mark the next start of an export is a new incarnation, which is always right, only dearer. So any mark may go
//! but one that is in use, and one that says of this boot that a sync was cut short: whoever serves that export next has to
//! see to the page cache. What goes, lest they pile up where exports come and go:
//!
//! - marks of another boot: the boot id is in the continuity hash, and no page cache outlives its boot;
//! - marks in the form of another version: who opens one makes it anew, whatever it says;
//! - quiet ones whose export is no longer where it was when it was served last.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::{COUNT_AT, MAGIC, PLACE_AT, SIZE};

/// What marks of all versions begin with.
const FAMILY: &[u8] = b"dstsync";

/// What all names of marks begin with.
pub(crate) const PREFIX: &str = "sync-";

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A boot id is a UUID in text.
const BOOT_LEN: usize = 36;
const PLACE_LEN: usize = SIZE - PLACE_AT;
/// Boot id, `st_dev`, `st_ino`, length of the path.
const FIXED_LEN: usize = BOOT_LEN + 8 + 8 + 2;

/// Where the export of a mark was, and in which boot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    boot: [u8; BOOT_LEN],
    device: u64,
    inode: u64,
    /// Empty if it is not known.
    path: PathBuf,
}

impl Place {
    /// The place of an export that is there now.
    pub(super) fn of(export: &Path) -> Place {
        let path = fs::canonicalize(export).unwrap_or_default();
        let meta = fs::metadata(&path).ok();
        Place {
            boot: boot_id(),
            device: meta.as_ref().map_or(0, MetadataExt::dev),
            inode: meta.as_ref().map_or(0, MetadataExt::ino),
            // One that is too long is not known.
            path: match meta.is_some() && path.as_os_str().len() <= PLACE_LEN - FIXED_LEN {
                true => path,
                false => PathBuf::new(),
            },
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let path = self.path.as_os_str().as_bytes();
        let length = u16::try_from(path.len()).unwrap_or(0);
        let mut bytes = self.boot.to_vec();
        bytes.extend_from_slice(&self.device.to_le_bytes());
        bytes.extend_from_slice(&self.inode.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(path);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Place> {
        let (boot, rest) = bytes.split_first_chunk()?;
        let (device, rest) = rest.split_first_chunk()?;
        let (inode, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let path = rest.get(..usize::from(u16::from_le_bytes(*length)))?;
        Some(Place {
            boot: *boot,
            device: u64::from_le_bytes(*device),
            inode: u64::from_le_bytes(*inode),
            path: OsString::from_vec(path.to_vec()).into(),
        })
    }

    /// Whether the export certainly is there no more.
    fn is_deserted(&self) -> bool {
        if self.path.as_os_str().is_empty() {
            return false;
        }
        match fs::metadata(&self.path) {
            Ok(now) => (now.dev(), now.ino()) != (self.device, self.inode),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// All zeroes if it can't be read.
fn boot_id() -> [u8; BOOT_LEN] {
    let text = fs::read(BOOT_ID).unwrap_or_default();
    text.first_chunk().copied().unwrap_or([0; BOOT_LEN])
}

/// Removes the stale marks in `directory`. What can't be looked at or removed stays.
pub(crate) fn remove_stale(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let named = entry.file_name();
        if named.as_bytes().starts_with(PREFIX.as_bytes()) {
            let _ = remove_if_stale(&entry.path());
        }
    }
}

fn remove_if_stale(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // One in use is locked. The lock is held until it is removed, so that nobody begins to use it meanwhile.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    match is_stale(&file)? {
        true => fs::remove_file(path),
        false => Ok(()),
    }
}

fn is_stale(file: &File) -> io::Result<bool> {
    let mut bytes = [0; SIZE];
    file.read_exact_at(&mut bytes, 0)?;
    if bytes.starts_with(FAMILY) && !bytes.starts_with(&MAGIC) {
        return Ok(true);
    }
    let count = bytes[COUNT_AT..COUNT_AT + 4] != [0; 4];
    let place = Place::decode(&bytes[PLACE_AT..]).filter(|_| bytes.starts_with(&MAGIC));
    Ok(place.is_some_and(|place| place.boot != boot_id() || !count && place.is_deserted()))
}

#[cfg(test)]
mod tests {
    use super::super::SyncMark;
    use super::*;

    /// A directory with an export and its mark, which `begun` syncs have not ended.
    fn left_by_a_server(begun: usize) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let export = directory.path().join("disk.img");
        fs::write(&export, "x").unwrap();
        let mark = SyncMark::open(directory.path(), "sync-1", &export).unwrap();
        (0..begun).for_each(|_| mark.begin());
        let path = directory.path().join("sync-1");
        (directory, export, path)
    }

    #[test]
    fn a_quiet_mark_goes_with_its_export() {
        let (directory, export, mark) = left_by_a_server(0);
        remove_stale(directory.path());
        assert!(mark.exists());
        fs::remove_file(&export).unwrap();
        remove_stale(directory.path());
        assert!(!mark.exists());
    }

    #[test]
    fn another_file_in_the_place_of_the_export_is_not_the_export() {
        let (directory, export, mark) = left_by_a_server(0);
        let other = directory.path().join("other");
        fs::write(&other, "y").unwrap();
        fs::rename(&other, &export).unwrap();
        remove_stale(directory.path());
        assert!(!mark.exists());
    }

    #[test]
    fn a_mark_that_says_that_a_sync_was_cut_short_stays_until_that_is_seen_to() {
        let (directory, export, mark) = left_by_a_server(1);
        fs::remove_file(&export).unwrap();
        remove_stale(directory.path());
        assert!(mark.exists());
        let opened = SyncMark::open(directory.path(), "sync-1", &export).unwrap();
        assert!(opened.was_cut_short());
    }

    #[test]
    fn every_mark_of_another_boot_goes() {
        let (directory, _export, mark) = left_by_a_server(1);
        let file = OpenOptions::new().write(true).open(&mark).unwrap();
        file.write_all_at(b"another boot", PLACE_AT as u64).unwrap();
        remove_stale(directory.path());
        assert!(!mark.exists());
    }

    #[test]
    fn a_mark_of_another_version_goes_unless_it_is_in_use() {
        let (directory, _export, mark) = left_by_a_server(1);
        let file = OpenOptions::new().write(true).open(&mark).unwrap();
        file.write_all_at(b"dstsync1", 0).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        remove_stale(directory.path());
        assert!(mark.exists());
        drop(file);
        remove_stale(directory.path());
        assert!(!mark.exists());
    }

    #[test]
    fn a_mark_in_use_and_what_is_no_mark_stay() {
        let (directory, export, mark) = left_by_a_server(0);
        let used = SyncMark::open(directory.path(), "sync-1", &export).unwrap();
        fs::remove_file(&export).unwrap();
        fs::write(directory.path().join("sync-2"), "short").unwrap();
        fs::write(directory.path().join("other"), [0; SIZE]).unwrap();
        remove_stale(directory.path());
        assert!(mark.exists());
        drop(used);
        remove_stale(directory.path());
        assert!(!mark.exists());
        assert!(directory.path().join("sync-2").exists());
        assert!(directory.path().join("other").exists());
    }

    #[test]
    fn a_place_survives_its_encoding_and_no_bytes_are_taken_for_one_that_is_not_whole() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::of(directory.path());
        assert!(!place.is_deserted());
        let bytes = place.encode();
        assert_eq!(Place::decode(&bytes), Some(place));
        for cut in 0..bytes.len() {
            assert_eq!(Place::decode(&bytes[..cut]), None);
        }
    }
}
