//! What is written down about a device, so that a later process can take away what a dead one has left: a random number
//! in the file `ublk` of the run-time directory.
//!
//! The driver keeps the same number with the device (`ublksrv_flags`, which it never looks at). So a device is known for
//! ours whatever its own number is: that is free for others once the device is gone. The file is written before the device
//! is made and removed after it was deleted, so none is ever forgotten.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::rand::GetRandomFlags;

use super::control::Control;
use super::disk;
use crate::Error;

const FILE: &str = "ublk";

/// What tells a device of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(u64);

impl Mark {
    /// A new one, written down in `dir`.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn create(dir: &Path) -> Result<Mark, Error> {
        let path = dir.join(FILE);
        let mark = Mark(random().map_err(|e| Error::io("can't get a random number", e))?);
        // The directory is nobody else's.
        fs::File::create(&path)
            .and_then(|mut file| writeln!(file, "{:016x}", mark.0))
            .map_err(|e| Error::io(format!("can't write {}", path.display()), e))?;
        Ok(mark)
    }

    /// The one that is written down in `dir`, if there is one.
    pub(super) fn find(dir: &Path) -> Option<Mark> {
        let text = fs::read_to_string(path(dir)).ok()?;
        u64::from_str_radix(text.trim_end(), 16).ok().map(Mark)
    }

    /// Nothing is left that this tells.
    pub(super) fn remove(dir: &Path) {
        let _ = fs::remove_file(path(dir));
    }

    /// For the driver to keep.
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// Whether the device `id` is there and has this mark.
    ///
    /// # Errors
    /// As [`Control::info`].
    pub(super) fn is_on(self, control: &mut Control, id: u32) -> Result<bool, Error> {
        let info = control.info(id)?;
        Ok(info.is_some_and(|info| info.ublksrv_flags == self.0))
    }

    /// The numbers of the devices that have it.
    ///
    /// # Errors
    /// As [`Control::info`].
    pub(super) fn devices(self, control: &mut Control) -> Result<Vec<u32>, Error> {
        let mut found = Vec::new();
        for id in disk::all() {
            if self.is_on(control, id)? {
                found.push(id);
            }
        }
        Ok(found)
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// A random number, not 0: that is what other programs leave there.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_again_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mark::find(dir.path()), None);
        let mark = Mark::create(dir.path()).unwrap();
        assert_ne!(mark.bits(), 0);
        assert_eq!(Mark::find(dir.path()), Some(mark));
        assert_ne!(Mark::create(dir.path()).unwrap(), mark);
        fs::write(dir.path().join(FILE), "rubbish").unwrap();
        assert_eq!(Mark::find(dir.path()), None);
        Mark::remove(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
