//! The nbd driver's commands (`include/uapi/linux/nbd-netlink.h`, `nbd_genl_*` in `drivers/block/nbd.c`).
//!
//! - **A number of our own.** Without an index the kernel takes any device that is not in use, with whatever limits its last
//!   user left (before Linux 7 those of write zeroes stay), and one that a script may mean by its number. So a number is
//!   named that no device has yet, and the device is made for us and goes with us (`NBD_CFLAG_DESTROY_ON_DISCONNECT`).
//! - **No timeout** (`NBD_ATTR_TIMEOUT` 0): how long a request may take is the client's affair. A time here would make the
//!   kernel cut the connection while a server restarts.
//! - **No end of waiting for a lost connection** (`NBD_ATTR_DEAD_CONN_TIMEOUT`): requests that are with a dead agent wait in
//!   any case, until the device is disconnected or has a new connection; new ones do the same, instead of failing while those
//!   wait.
//! - **Not** `NBD_CFLAG_DISCONNECT_ON_CLOSE`: the first `mkfs` would take the device away.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::disk;
use super::netlink::{attributes, u32_in, Attributes, Family};
use crate::{Error, ErrorKind};

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_CLIENT_FLAGS: u16 = 6;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

const DESTROY_ON_DISCONNECT: u64 = 1;
/// Seconds: ten years. More could overflow in the kernel, which counts in ticks.
const FOR_EVER: u64 = 10 * 365 * 86400;
/// Numbers that others take, or that are still being given back, between our look and our claim before we give up.
const ATTEMPTS: u32 = 64;

/// What to make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Bytes.
    pub(super) size: u64,
    /// Bytes, 512 to a page.
    pub(super) block: u32,
    /// `NBD_FLAG_*`
    pub(super) flags: u64,
    /// What the device is known by.
    pub(super) identifier: &'a str,
}

/// The driver.
#[derive(Debug)]
pub(super) struct Driver(Family);

impl Driver {
    /// Looks for the driver. The kernel loads its module if it has it.
    ///
    /// # Errors
    /// `NotAvailable` if there is none.
    pub(super) fn find() -> Result<Driver, Error> {
        Family::find(FAMILY, VERSION)
            .map(Driver)
            .map_err(|errno| match errno {
                Errno::NOENT => Error::new(
                    ErrorKind::NotAvailable,
                    "this kernel has no nbd driver loaded",
                )
                .with_hint("load it with `modprobe nbd`, or use another --front-end"),
                Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => {
                    Error::io("this system has no generic netlink", errno)
                        .with_kind(ErrorKind::NotAvailable)
                }
                _ => Error::io("can't ask the kernel for the nbd driver", errno),
            })
    }

    /// Makes a device whose requests come out of the other end of `socket`. Returns its number.
    ///
    /// # Errors
    /// `Permission`, `NotAvailable`, `Io`. There is no device then.
    pub(super) fn connect(
        &mut self,
        socket: BorrowedFd<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<u32, Error> {
        let mut from = 0;
        for _ in 0..ATTEMPTS {
            let index = disk::free_number(from)?;
            match self
                .0
                .ask(CMD_CONNECT, &connect_attributes(index, socket, wanted))
            {
                Ok(answer) => {
                    let told = attributes(&answer)
                        .find(|(kind, _)| *kind == ATTR_INDEX)
                        .and_then(|(_, payload)| u32_in(payload));
                    return Ok(told.unwrap_or(index));
                }
                // In use since a moment, or on its way out.
                Err(Errno::BUSY | Errno::EXIST) => from = index + 1,
                // So it says of a number on its way out too. Where it has made a device, it is something else.
                Err(Errno::INVAL) if !disk::exists(index) => from = index + 1,
                Err(Errno::PERM) => {
                    return Err(Error::io("can't make an nbd device", Errno::PERM)
                        .with_hint("it takes root (CAP_SYS_ADMIN), and not that of a container"));
                }
                Err(errno) => return Err(Error::io("the nbd driver made no device", errno)),
            }
        }
        Err(Error::new(
            ErrorKind::NotAvailable,
            format!("the nbd driver refuses every number up to {from}"),
        )
        .with_hint("the kernel log says why"))
    }

    /// Takes a device away: what is under way and what comes fails, the number goes with the last one who closes it.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn disconnect(&mut self, index: u32) -> rustix::io::Result<()> {
        let which = Attributes::new().u32(ATTR_INDEX, index);
        match self.0.ask(CMD_DISCONNECT, &which) {
            // There is none, or it goes already.
            Ok(_) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Gives a device, whose connection is dead, another. Success says nothing of whether it has taken it: see `recover.rs`.
    ///
    /// # Errors
    /// The kernel's; EINVAL if the device is not connected any more, or another's.
    pub(super) fn reconnect(
        &mut self,
        index: u32,
        socket: BorrowedFd<'_>,
        identifier: &str,
    ) -> rustix::io::Result<()> {
        let change = Attributes::new()
            .u32(ATTR_INDEX, index)
            .text(ATTR_BACKEND_IDENTIFIER, identifier);
        let change = with_socket(change, socket);
        self.0.ask(CMD_RECONFIGURE, &change).map(drop)
    }

    /// Changes the size of a device. The kernel first waits until nothing is under way on it.
    ///
    /// # Errors
    /// The kernel's; EINVAL if the device is not connected any more, or another's.
    pub(super) fn resize(
        &mut self,
        index: u32,
        size: u64,
        identifier: &str,
    ) -> rustix::io::Result<()> {
        let change = Attributes::new()
            .u32(ATTR_INDEX, index)
            .u64(ATTR_SIZE_BYTES, size)
            .text(ATTR_BACKEND_IDENTIFIER, identifier);
        self.0.ask(CMD_RECONFIGURE, &change).map(drop)
    }
}

/// The attribute with the one connection that a device has.
fn with_socket(attributes: Attributes, socket: BorrowedFd<'_>) -> Attributes {
    let fd = u32::try_from(socket.as_raw_fd()).expect("descriptors are not negative");
    let item = Attributes::new().u32(SOCK_FD, fd);
    attributes.nested(ATTR_SOCKETS, &Attributes::new().nested(SOCK_ITEM, &item))
}

fn connect_attributes(index: u32, socket: BorrowedFd<'_>, wanted: &Wanted<'_>) -> Attributes {
    let attributes = Attributes::new()
        .u32(ATTR_INDEX, index)
        .u64(ATTR_SIZE_BYTES, wanted.size)
        .u64(ATTR_BLOCK_SIZE_BYTES, u64::from(wanted.block))
        .u64(ATTR_TIMEOUT, 0)
        .u64(ATTR_DEAD_CONN_TIMEOUT, FOR_EVER)
        .u64(ATTR_SERVER_FLAGS, wanted.flags)
        .u64(ATTR_CLIENT_FLAGS, DESTROY_ON_DISCONNECT)
        .text(ATTR_BACKEND_IDENTIFIER, wanted.identifier);
    with_socket(attributes, socket)
}
