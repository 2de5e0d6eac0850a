//! Requests past the page cache.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A block in memory as direct I/O wants it.
pub struct Aligned(Vec<u8>);

impl Aligned {
    /// A block full of this byte.
    pub fn new(byte: u8) -> Self {
        Self(vec![byte; 8192])
    }

    /// The block.
    pub fn bytes(&mut self) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(4096);
        &mut self.0[start..start + 4096]
    }
}

/// Opens a file, made if need be, past the page cache.
pub fn open_direct(path: &Path) -> File {
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.custom_flags(direct).open(path).unwrap()
}
