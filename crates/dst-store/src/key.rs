//! Which file or device an export is on: what two processes on one machine that mean the same one agree on, whatever names
//! they know it by.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{fstat, major, minor, stat, FileType, Stat};

/// A file or device as the kernel knows it, for as long as it is there. Its text can be a file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKey {
    /// A regular file: `st_dev` and `st_ino`.
    File(u64, u64),
    /// A block device: `st_rdev`.
    Device(u64),
}

impl FileKey {
    /// That of an open file; `None` for what is neither a regular file nor a block device.
    ///
    /// # Errors
    /// What the system said.
    pub fn of(file: impl AsFd) -> io::Result<Option<Self>> {
        Ok(Self::from_stat(&fstat(file)?))
    }

    /// That of what a path leads to now.
    ///
    /// # Errors
    /// As [`FileKey::of`]; there may be nothing.
    pub fn of_path(path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::from_stat(&stat(path)?))
    }

    fn from_stat(stat: &Stat) -> Option<Self> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Some(Self::File(stat.st_dev, stat.st_ino)),
            FileType::BlockDevice => Some(Self::Device(stat.st_rdev)),
            _ => None,
        }
    }
}

impl fmt::Display for FileKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |device: u64| format!("{}-{}", major(device), minor(device));
        match *self {
            Self::File(device, inode) => write!(out, "file-{}-{inode}", place(device)),
            Self::Device(device) => write!(out, "device-{}", place(device)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn all_names_of_a_file_have_its_key_and_no_other_file_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("a"), "x").unwrap();
        fs::hard_link(at("a"), at("b")).unwrap();
        std::os::unix::fs::symlink(at("a"), at("c")).unwrap();
        fs::write(at("d"), "x").unwrap();
        let key = |name: &str| FileKey::of_path(&at(name)).unwrap().unwrap();
        let open = fs::File::open(at("a")).unwrap();
        assert_eq!(FileKey::of(&open).unwrap(), Some(key("a")));
        assert_eq!(key("a"), key("b"));
        assert_eq!(key("a"), key("c"));
        assert_ne!(key("a"), key("d"));
        assert!(key("a").to_string().starts_with("file-"));
        assert_eq!(FileKey::of_path(directory.path()).unwrap(), None);
        assert!(FileKey::of_path(&at("e")).is_err());
    }
}
