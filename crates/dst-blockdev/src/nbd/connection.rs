//! The socket pair between the driver and whoever serves it, and how it is cut from outside.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

/// Bytes under way on the socket, each way, before the sender has to wait.
const BUFFER: usize = 4 << 20;

/// Our end, which does not block, and the driver's, which does.
///
/// # Errors
/// Out of descriptors.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, drivers) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    for socket in [&ours, &drivers] {
        // A smaller one only means more waiting.
        let _ = set_socket_send_buffer_size_force(socket, BUFFER);
    }
    Ok((ours, drivers))
}

/// Whether nobody has the other end.
pub(super) fn is_alone(ours: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(ours, PollFlags::IN)];
    let at_once = Timespec::default();
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&at_once))).is_ok()
        && fds[0].revents().contains(PollFlags::HUP)
}

/// What the kernel knows a socket by.
///
/// # Errors
/// None that is known.
pub(super) fn inode(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

/// Ends the connection of the socket with this inode, which `process` has, whatever that is doing: whoever waits at either end
/// goes on, with an error. Without `process` it is looked for in all of them. Returns whether there was one.
///
/// It takes the right to trace those processes, which root has.
pub(super) fn cut(inode: u64, process: Option<Pid>) -> bool {
    match process {
        Some(pid) => cut_of(pid, inode),
        None => {
            let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
            let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            let cut = numbers
                .filter_map(Pid::from_raw)
                .map(|pid| cut_of(pid, inode));
            cut.fold(false, |any, cut| any | cut)
        }
    }
}

/// As [`cut`], where one process has it.
fn cut_of(pid: Pid, inode: u64) -> bool {
    let target = format!("socket:[{inode}]");
    let mut cut = false;
    // Fails for one that has ended, or is another user's.
    let entries = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
    for entry in entries.into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == target.as_str()) {
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            cut |= number.is_some_and(|number| cut_in(pid, number, inode).is_ok());
        }
    }
    cut
}

/// As [`cut_of`], given where the socket was seen.
fn cut_in(pid: Pid, number: i32, wanted: u64) -> io::Result<()> {
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let socket = rustix::process::pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
    // Process and number may have become others' meanwhile.
    if inode(&socket)? == wanted {
        rustix::net::shutdown(&socket, Shutdown::Both)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_nobody_has_is_told_from_one_that_somebody_has() {
        let (ours, drivers) = pair().unwrap();
        assert!(!is_alone(&ours));
        let also = drivers.try_clone().unwrap();
        drop(drivers);
        assert!(!is_alone(&ours));
        drop(also);
        assert!(is_alone(&ours));
    }

    #[test]
    fn a_connection_is_cut_by_the_number_of_its_socket_and_no_other_is() {
        let (ours, drivers) = pair().unwrap();
        let (others, _kept) = pair().unwrap();
        let number = inode(&ours).unwrap();
        assert!(cut(number, None));
        assert!(is_alone(&ours) && is_alone(&drivers) && !is_alone(&others));
        drop(ours);
        assert!(!cut(number, None));
    }

    #[test]
    fn it_is_cut_in_the_process_that_is_named_and_not_looked_for_elsewhere() {
        let (ours, _drivers) = pair().unwrap();
        let number = inode(&ours).unwrap();
        let mut other = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        assert!(!cut(number, Some(Pid::from_child(&other))));
        assert!(!is_alone(&ours));
        assert!(cut(number, Some(rustix::process::getpid())));
        assert!(is_alone(&ours));
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
