//! The link `/dev/dst/NAME` that leads to a device whatever its number is.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind};

/// Where the links are.
pub const NODE_DIR: &str = "/dev/dst";

/// Makes the link of `name` in `dir` lead to `target`. A link that is there is replaced only if `ours` says of what it
/// leads to that it is nobody's or this very device.
///
/// # Errors
/// `NameTaken` if something else is there.
pub(crate) fn place(
    dir: &Path,
    name: &str,
    target: &Path,
    ours: impl Fn(&Path) -> bool,
) -> Result<PathBuf, Error> {
    let path = dir.join(name);
    let failed = |error| Error::io(format!("can't make {}", path.display()), error);
    // The directory may go with somebody's last link just after it was made.
    let made = (0..100).find_map(|_| {
        let made = fs::create_dir_all(dir).and_then(|()| symlink(target, &path));
        match made {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            made => Some(made),
        }
    });
    match made.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into())) {
        Ok(()) => return Ok(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    match fs::read_link(&path) {
        Ok(old) if ours(&old) => {
            fs::remove_file(&path).map_err(failed)?;
            symlink(target, &path).map_err(failed)?;
            Ok(path)
        }
        _ => Err(Error::new(
            ErrorKind::NameTaken,
            format!("{} is there already and not ours", path.display()),
        )
        .with_hint("remove it or choose another name with --name")),
    }
}

/// Removes the link if it still leads to `target`; and the directory when it was the last. Never fails: what is not
/// there need not be removed.
pub(crate) fn remove(path: &Path, target: &Path) {
    if fs::read_link(path).is_ok_and(|old| old == target) {
        let _ = fs::remove_file(path);
        if let Some(dir) = path.parent() {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_replaced_when_stale_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("dst");
        let first = Path::new("/dev/loop77");
        let path = place(&dir, "x", first, |_| false).unwrap();
        let second = Path::new("/dev/loop78");
        place(&dir, "x", second, |old| old == first).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), second);
        remove(&path, first);
        assert!(path.is_symlink());
        remove(&path, second);
        assert!(!dir.exists());
    }

    #[test]
    fn a_foreign_link_or_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = Path::new("/dev/loop77");
        symlink("/dev/sda", dir.path().join("link")).unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        for name in ["link", "file"] {
            let error = place(dir.path(), name, target, |old| old == target).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NameTaken);
        }
        assert_eq!(
            fs::read_link(dir.path().join("link")).unwrap(),
            Path::new("/dev/sda")
        );
    }
}
