//! The `/dev/fuse` descriptor: reads requests, writes answers, never blocks.
//!
//! One `readv` takes one request, scattered over the head (80 bytes, [`proto::PREFIX`]), an aligned pool buffer and a spill
//! area. The payload of a WRITE therefore lands aligned in a buffer that is handed on as it is, provided that the buffer
//! has the right size class; since most writes are as long as the one before, the class of the last write is what is
//! offered. A write of another class is copied once, into a buffer that fits, so that whoever keeps the bytes (retention)
//! never holds far more memory than there are bytes.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dst_buf::{Buf, Pool, Shared};
use rustix::event::EventfdFlags;
use rustix::io::{DupFlags, Errno};

use super::proto::{self, Header, Message};
use super::reply::{self, Body};

/// `FUSE_MIN_READ_BUFFER`: the kernel refuses to read into less.
const SMALLEST_READ: usize = 8192;

/// What a read gave.
#[derive(Debug)]
pub(super) enum Event {
    /// A request, and the payload of a WRITE.
    Request(Header, Message, Option<Shared>),
    /// Bytes that are no request; to be answered with an error if it is known whom.
    Malformed(Option<u64>),
    /// Nothing is there.
    Empty,
    /// The file system is unmounted or the connection was aborted.
    Closed,
}

/// An answer to one request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) unique: u64,
    /// The error, or the structure and data that follow the header.
    pub(super) result: Result<(Body, Option<Shared>), Errno>,
}

/// The descriptor and what reading needs.
#[derive(Debug)]
pub(super) struct Device {
    fd: OwnedFd,
    /// What takes the place of `fd` when the connection is cut; made beforehand, so that cutting can't fail.
    parking: OwnedFd,
    head: [u8; proto::PREFIX],
    /// Where the payload of the next write lands if it is of the class of the last one.
    offered: Option<Buf>,
    /// Length of `offered` when it is taken.
    class: usize,
    /// Where the rest of a longer one lands.
    spill: Box<[u8]>,
}

impl Device {
    /// `fd` must be non-blocking. `max_write` is what INIT will answer.
    pub(super) fn new(fd: OwnedFd, max_write: u32) -> io::Result<Device> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Device {
            fd,
            parking: rustix::event::eventfd(0, flags)?,
            head: [0; proto::PREFIX],
            offered: None,
            class: 4096,
            spill: vec![0; (max_write as usize).max(SMALLEST_READ)].into_boxed_slice(),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes one request.
    pub(super) fn read(&mut self, pool: &Pool) -> io::Result<Event> {
        let offered = self.offered.get_or_insert_with(|| pool.get(self.class));
        let total = loop {
            let mut parts = [
                IoSliceMut::new(&mut self.head),
                IoSliceMut::new(offered),
                IoSliceMut::new(&mut self.spill),
            ];
            match rustix::io::readv(&self.fd, &mut parts) {
                Ok(total) => break total,
                // ENOENT: the request was aborted while it was being copied; the next one is as good.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::AGAIN) => return Ok(Event::Empty),
                Err(Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => {
                    return Ok(Event::Closed)
                }
                Err(errno) => return Err(errno.into()),
            }
        };
        let head = self
            .head
            .get(..total.min(proto::PREFIX))
            .unwrap_or_default();
        match proto::parse(head, total) {
            Ok((header, message @ Message::Write { size, .. })) => {
                let payload = self.payload(size as usize, pool);
                Ok(Event::Request(header, message, payload))
            }
            Ok((header, message)) => Ok(Event::Request(header, message, None)),
            Err(malformed) => Ok(Event::Malformed(malformed.unique)),
        }
    }

    /// The payload of a write of `size` bytes that has just been read.
    fn payload(&mut self, size: usize, pool: &Pool) -> Option<Shared> {
        let mut offered = self.offered.take()?;
        // Classes are a factor of four apart: a payload of more than a quarter fits no smaller one.
        let fits = size <= offered.len();
        if fits && (offered.capacity() <= 4096 || size > offered.capacity() / 4) {
            offered.truncate(size);
            offered.shrink();
            return Some(offered.share());
        }
        let mut copy = pool.get(size);
        let (first, second) = copy.split_at_mut(size.min(offered.len()));
        first.copy_from_slice(offered.get(..first.len())?);
        second.copy_from_slice(self.spill.get(..second.len())?);
        self.class = copy.capacity().min(dst_buf::LARGEST_CLASS);
        if self.class == offered.capacity() {
            self.offered = Some(offered);
        }
        Some(copy.share())
    }

    /// Writes an answer. An answer to a request that the kernel has given up is no error. False: the connection is gone.
    pub(super) fn answer(&self, answer: &Answer) -> io::Result<bool> {
        match &answer.result {
            Err(errno) => {
                let header = reply::out_header(answer.unique, Some(*errno), 0);
                self.write(&[IoSlice::new(&header)])
            }
            Ok((body, data)) => {
                let data: &[u8] = data.as_deref().unwrap_or_default();
                let len = body.bytes().len() + data.len();
                let header = reply::out_header(answer.unique, None, len);
                self.write(&[
                    IoSlice::new(&header),
                    IoSlice::new(body.bytes()),
                    IoSlice::new(data),
                ])
            }
        }
    }

    /// Makes the kernel forget size and times of the file.
    pub(super) fn invalidate_attributes(&self) -> io::Result<bool> {
        let body = Body::invalidate_attributes();
        let header = reply::invalidate_header(body.bytes().len());
        self.write(&[IoSlice::new(&header), IoSlice::new(body.bytes())])
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<bool> {
        loop {
            return match rustix::io::writev(&self.fd, parts) {
                // ENOENT: interrupted or aborted meanwhile, or, for a notification, an inode nobody has looked at yet.
                // ENOMEM: the kernel has failed the request itself.
                Ok(_) | Err(Errno::NOENT | Errno::NOMEM) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN | Errno::PERM) => Ok(false),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Cuts the connection: the kernel fails every request that waits for an answer, and every later one, with an error.
    ///
    /// Closing the last descriptor of a connection is what aborts it (`fuse_dev_release`). The number stays taken, by an
    /// event descriptor that never becomes readable, so that nobody who still polls it meets a stranger.
    pub(super) fn abort(&mut self) {
        rustix::io::dup3(&self.parking, &mut self.fd, DupFlags::CLOEXEC)
            .expect("both descriptors are open and differ");
        self.offered = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that is a pipe: one write is one request if it is read whole.
    fn device(max_write: u32) -> (Device, OwnedFd) {
        let (read, write) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        (Device::new(read, max_write).unwrap(), write)
    }

    fn write_request(payload: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 40];
        body[16..20].copy_from_slice(&(payload.len() as u32).to_ne_bytes());
        body.extend_from_slice(payload);
        proto::tests::request(16, 2, &body)
    }

    #[test]
    fn payloads_of_changing_sizes_arrive_whole_aligned_and_in_fitting_memory() {
        let (mut device, kernel) = device(1 << 20);
        let pool = Pool::new(8 << 20);
        for size in [1, 512, 4096, 4097, 100, 65536, 65536, 70_000, 4096, 4096, 0] {
            let payload: Vec<u8> = (0..size).map(|i| (i * 7 + size) as u8).collect();
            rustix::io::write(&kernel, &write_request(&payload)).unwrap();
            let Event::Request(_, Message::Write { .. }, Some(got)) = device.read(&pool).unwrap()
            else {
                panic!("no write of {size}");
            };
            assert_eq!(got[..], payload[..]);
            assert_eq!(got.as_ptr() as usize % 4096, 0);
            assert!(got.held_bytes() <= (4 * size).max(4096), "{size}");
        }
        assert!(matches!(device.read(&pool).unwrap(), Event::Empty));
    }

    #[test]
    fn garbage_is_reported_and_the_next_request_is_read() {
        let (mut device, kernel) = device(4096);
        let pool = Pool::new(1 << 20);
        rustix::io::write(&kernel, &[0xff; 33]).unwrap();
        rustix::io::write(&kernel, &proto::tests::request(3, 4, &[0; 16])).unwrap();
        assert!(matches!(
            device.read(&pool).unwrap(),
            Event::Malformed(Some(u64::MAX))
        ));
        assert!(matches!(
            device.read(&pool).unwrap(),
            Event::Request(Header { unique: 4, .. }, Message::GetAttr, None)
        ));
    }

    #[test]
    fn an_aborted_device_keeps_its_number_and_gives_nothing() {
        use std::os::fd::AsRawFd;
        let (mut device, kernel) = device(4096);
        let before = device.fd().as_raw_fd();
        device.abort();
        assert_eq!(device.fd().as_raw_fd(), before);
        assert!(matches!(device.read(&Pool::new(0)).unwrap(), Event::Empty));
        assert!(rustix::io::write(&kernel, b"x").is_err());
    }
}
