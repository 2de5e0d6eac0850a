//! The carrier's side: offering a stream to whoever serves a file.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    recv, sendmsg, sockopt, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::process::geteuid;

use super::place::Place;
use super::{Answer, Request, ENDED, MAGIC, PACKET};

/// A desk takes this long at most, even where others stand before it.
const ANSWER: Duration = Duration::from_secs(10);

/// What became of an offer.
#[derive(Debug)]
pub enum Offered {
    /// Nobody is there, or who was there has just ended: another server may have the file by now.
    Nobody,
    /// The server does not take it, and why.
    Refused(String),
    /// It is served.
    Taken(Carrier),
}

/// A stream that a server has taken.
#[derive(Debug)]
pub struct Carrier {
    socket: OwnedFd,
    server: u32,
}

impl Carrier {
    /// The server's process.
    #[must_use]
    pub fn server(&self) -> u32 {
        self.server
    }

    /// Waits for the end of the stream; whether the server has closed it in order. If not, the server has gone.
    #[must_use]
    pub fn wait(&self) -> bool {
        let mut packet = [0; ENDED.len()];
        loop {
            return match recv(&self.socket, &mut packet[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                Ok((length, _)) => packet.get(..length) == Some(ENDED),
                Err(_) => false,
            };
        }
    }
}

/// Offers a stream, of which the two descriptors may be one socket, to the server of the first export that is asked for. Where
/// it is taken the descriptors here are of no more use and should be closed.
///
/// # Errors
/// The directory can't be used, or what listens there is not this user's.
pub fn offer(
    directory: &Path,
    request: &Request,
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
) -> io::Result<Offered> {
    let Some(first) = request.exports.first() else {
        return Ok(Offered::Nobody);
    };
    let place = match Place::open(directory) {
        Ok(place) => place,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Offered::Nobody),
        Err(error) => return Err(error),
    };
    let Some(socket) = place.connect(&first.key, ANSWER)? else {
        return Ok(Offered::Nobody);
    };
    if sockopt::socket_peercred(&socket)?.uid != geteuid() {
        let text = "the server that listens there is another user's";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER))?;
    let mut packet = MAGIC.to_vec();
    serde_json::to_writer(&mut packet, request)?;
    if packet.len() > PACKET {
        return Ok(Offered::Refused("too many exports for one stream".into()));
    }
    let fds = [input, output];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let answer = sendmsg(
        &socket,
        &[IoSlice::new(&packet)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .and_then(|_| receive(socket.as_fd()));
    let answer = match answer {
        Ok(bytes) => bytes,
        // It ended before it had looked.
        Err(Errno::PIPE | Errno::CONNRESET) => return Ok(Offered::Nobody),
        Err(errno) => return Err(errno.into()),
    };
    match serde_json::from_slice(&answer) {
        Ok(Answer::Taken(server)) => {
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, None)?;
            Ok(Offered::Taken(Carrier { socket, server }))
        }
        Ok(Answer::Refused(why)) => Ok(Offered::Refused(why)),
        Err(_) if answer.is_empty() => Ok(Offered::Nobody),
        Err(error) => Err(error.into()),
    }
}

/// One packet; empty at the end.
fn receive(socket: BorrowedFd<'_>) -> rustix::io::Result<Vec<u8>> {
    let mut packet = vec![0; PACKET];
    let (length, _) =
        rustix::io::retry_on_intr(|| recv(socket, &mut packet[..], RecvFlags::empty()))?;
    packet.truncate(length);
    Ok(packet)
}
