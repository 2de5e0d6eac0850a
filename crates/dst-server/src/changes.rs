//! Noticing at once that somebody has changed an export's file, as `dst resize` does: the times of the file are set, which
//! nothing on the way of a request does. Whoever changes the size otherwise is noticed by looking ([`crate::worker`]).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

/// A watch on one file.
pub(crate) struct Changes {
    events: OwnedFd,
}

impl Changes {
    /// Watches the file at `path`.
    ///
    /// # Errors
    /// The user has no watch left.
    pub fn of(path: &Path) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, path, WatchFlags::ATTRIB)?;
        Ok(Self { events })
    }

    /// Readable when the file has changed since [`Changes::clear`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Forgets what has been noticed.
    pub fn clear(&self) {
        let mut room = [MaybeUninit::uninit(); 512];
        let mut reader = Reader::new(&self.events, &mut room);
        while reader.next().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{poll, PollFd, PollFlags, Timespec};

    fn noticed(changes: &Changes) -> bool {
        let fd = changes.fd();
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn a_resize_is_noticed_and_writing_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let changes = Changes::of(file.path()).unwrap();
        io::Write::write_all(&mut file.as_file(), &[1; 512]).unwrap();
        assert!(!noticed(&changes));
        let more = dst_store::NewSize::By(4096);
        dst_store::resize::resize(file.path(), more, false).unwrap();
        assert!(noticed(&changes));
        changes.clear();
        assert!(!noticed(&changes));
    }
}
