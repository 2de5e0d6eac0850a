//! What a poller has been told to watch of one stream, whose two directions may be two descriptors.

use std::io;
use std::os::fd::AsRawFd as _;

use crate::{Interest, Link, Poller};

/// One stream in a poller. It must be taken out by [`Watch::remove`] before its link is dropped.
#[derive(Debug)]
pub struct Watch {
    token: u64,
    write_token: u64,
    watched: Watched,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    /// One descriptor for both directions.
    Both(Interest),
    /// Two; that to read from only as long as anything is read, for its hang-up would be reported without end.
    Apart { read: bool, write: bool },
}

impl Watch {
    /// Has `poller` watch `link` for something to read under `token`. Events of the write side come under `write_token` where
    /// that is a descriptor of its own: its hang-up at any time, room to write while there is an interest in it.
    ///
    /// # Errors
    /// The poller can't watch it; nothing is left there.
    pub fn add(poller: &Poller, link: &Link, token: u64, write_token: u64) -> io::Result<Self> {
        poller.add(link.fd(), token, Interest::READ)?;
        let watched = if link.fd().as_raw_fd() == link.write_fd().as_raw_fd() {
            Watched::Both(Interest::READ)
        } else {
            if let Err(error) = poller.add(link.write_fd(), write_token, Interest::NONE) {
                poller.remove(link.fd())?;
                return Err(error);
            }
            Watched::Apart {
                read: true,
                write: false,
            }
        };
        Ok(Self {
            token,
            write_token,
            watched,
        })
    }

    /// Changes what `link` is watched for, if that is anything new. Once it is not read any more it never is again.
    ///
    /// # Errors
    /// The poller can't change it: the connection is of no more use.
    pub fn update(&mut self, poller: &Poller, link: &Link, interest: Interest) -> io::Result<()> {
        match &mut self.watched {
            Watched::Both(watched) => {
                if *watched != interest {
                    poller.modify(link.fd(), self.token, interest)?;
                    *watched = interest;
                }
            }
            Watched::Apart { read, write } => {
                if *read && !interest.read {
                    poller.remove(link.fd())?;
                    *read = false;
                }
                if *write != interest.write {
                    let wanted = Interest {
                        read: false,
                        write: interest.write,
                    };
                    poller.modify(link.write_fd(), self.write_token, wanted)?;
                    *write = interest.write;
                }
            }
        }
        Ok(())
    }

    /// Takes the stream back from `poller`.
    pub fn remove(&self, poller: &Poller, link: &Link) {
        // An error means that it is not there any more.
        let _ = poller.remove(link.fd());
        if let Watched::Apart { .. } = self.watched {
            let _ = poller.remove(link.write_fd());
        }
    }
}
