//! One server per file: a lock on the open file description that does the I/O.
//!
//! `flock` belongs to the open file description, and a system call in flight holds a reference to that. So the lock of a
//! killed server ends only when its last write in flight has: a successor that has the lock can't be overtaken by it.
//!
//! The lock of a dying process is waited for, that of a live one hardly: only as long as it takes a device manager that
//! looks at a new disk under a lock of its own.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{flock, fstat, major, minor, FlockOperation};
use rustix::io::Errno;

use crate::open::OpenError;

/// How long a live holder is waited for.
const LIVE_PATIENCE: Duration = Duration::from_millis(500);
/// How long the last I/O of a dying holder is waited for.
const DYING_PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(10);

/// Takes the lock on the file open as `file`, for as long as that open file description exists. Blocks for up to 10 s.
///
/// # Errors
/// [`OpenError::InUse`] says by whom.
pub(crate) fn lock(file: BorrowedFd<'_>, path: &Path) -> Result<(), OpenError> {
    lock_within(file, path, DYING_PATIENCE)
}

fn lock_within(
    file: BorrowedFd<'_>,
    path: &Path,
    dying_patience: Duration,
) -> Result<(), OpenError> {
    let start = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(OpenError::io(format!("lock {}", path.display()))(error)),
        }
        let holder = holder(file);
        let patience = match holder {
            Holder::Live(_) => LIVE_PATIENCE,
            Holder::Dying(_) | Holder::Unknown => dying_patience,
        };
        if start.elapsed() >= patience {
            return Err(OpenError::InUse {
                path: path.display().to_string(),
                by: holder.describe(),
            });
        }
        std::thread::sleep(RETRY);
    }
}

/// Who holds a lock, as far as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Live(u32),
    /// Killed or gone; an operation of it is still in flight.
    Dying(u32),
    /// In another pid namespace, or already forgotten.
    Unknown,
}

impl Holder {
    fn describe(self) -> String {
        match self {
            Holder::Live(pid) => format!("by another server (process {pid})"),
            Holder::Dying(pid) => {
                format!("by another server (process {pid} has ended, but its last write is still in flight)")
            }
            Holder::Unknown => "by another server".to_owned(),
        }
    }
}

/// The live process that has the lock on the file open as `file`, as far as the kernel says.
pub(crate) fn live_holder(file: BorrowedFd<'_>) -> Option<u32> {
    match holder(file) {
        Holder::Live(pid) if pid > 0 => Some(pid),
        _ => None,
    }
}

fn holder(file: BorrowedFd<'_>) -> Holder {
    let (Ok(stat), Ok(locks)) = (fstat(file), fs::read_to_string("/proc/locks")) else {
        return Holder::Unknown;
    };
    let key = format!(
        "{:02x}:{:02x}:{}",
        major(stat.st_dev),
        minor(stat.st_dev),
        stat.st_ino
    );
    match find_pid(&locks, &key) {
        Some(pid) if is_live(pid) => Holder::Live(pid),
        Some(pid) => Holder::Dying(pid),
        None => Holder::Unknown,
    }
}

/// Finds the holder in the text of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 1234 fe:00:131 0 EOF`.
fn find_pid(locks: &str, key: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, pid, place) = (fields.next()?, fields.nth(2)?, fields.next()?);
        (kind == "FLOCK" && place == key).then(|| pid.parse().ok())?
    })
}

/// Whether a process runs, or could. The state is the first field after the command in parentheses.
fn is_live(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest.trim_start());
    !state.starts_with(['Z', 'X', 'x'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_holder_is_found_in_the_kernels_list() {
        let locks = "1: POSIX  ADVISORY  WRITE 5 fe:00:131 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 1234 fe:00:131 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 77 fe:00:131 0 EOF\n";
        assert_eq!(find_pid(locks, "fe:00:131"), Some(1234));
        assert_eq!(find_pid(locks, "fe:00:132"), None);
        assert_eq!(find_pid("nonsense", "fe:00:131"), None);
    }

    #[test]
    fn a_second_open_is_refused_and_told_who_holds_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = file.reopen().unwrap();
        lock(first.as_fd(), file.path()).unwrap();
        let second = file.reopen().unwrap();
        let error = lock(second.as_fd(), file.path()).unwrap_err().to_string();
        let expected = format!("in use by another server (process {})", std::process::id());
        assert!(error.contains(&expected), "{error}");
        drop(first);
        lock(second.as_fd(), file.path()).unwrap();
    }
}
