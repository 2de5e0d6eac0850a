//! The medium under the test backend's volatile layer: what survives a power cut. Blocking calls, made on its own thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{fallocate, fdatasync, FallocateFlags};
use rustix::io::{pread, pwrite, Errno};

use crate::chunks::Chunks;
use crate::request::StoreError;

/// See the [module](self).
pub(crate) enum Medium {
    File(Arc<OwnedFd>),
    Memory(Chunks),
}

impl Medium {
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let file = match self {
            Medium::File(file) => file,
            Medium::Memory(chunks) => {
                chunks.read(offset, buf);
                return Ok(());
            }
        };
        let mut filled = 0;
        while filled < buf.len() {
            match pread(file, &mut buf[filled..], offset + filled as u64) {
                Ok(0) => return Err(StoreError::Truncated),
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(StoreError::from_errno(error)),
            }
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let file = match self {
            Medium::File(file) => file,
            Medium::Memory(chunks) => return chunks.write(offset, data),
        };
        let mut written = 0;
        while written < data.len() {
            match pwrite(&*file, &data[written..], offset + written as u64) {
                Ok(0) => return Err(StoreError::Io(Errno::IO)),
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(StoreError::from_errno(error)),
            }
        }
        Ok(())
    }

    /// Makes a range read as zeroes, by a hole where the file system has them.
    pub(crate) fn clear(&mut self, offset: u64, len: u64) -> Result<(), StoreError> {
        let file = match self {
            Medium::File(file) => file,
            Medium::Memory(chunks) => {
                chunks.clear(offset, len, usize::MAX);
                return Ok(());
            }
        };
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&*file, mode, offset, len) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(StoreError::from_errno(error)),
        }
        let zeroes = [0; 64 << 10];
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(zeroes.len() as u64);
            self.write(offset + done, &zeroes[..piece as usize])?;
            done += piece;
        }
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        match self {
            Medium::File(file) => fdatasync(file).map_err(|_| StoreError::SyncFailed),
            Medium::Memory(_) => Ok(()),
        }
    }
}
