//! Sparse memory: bytes from 0 to a size, allocated in chunks when written.
//!
//! Invariant: a chunk that is not there reads as zeroes; of the last chunk, bytes beyond the size are never touched.

use crate::request::{Extent, ExtentKind, StoreError};

/// Bytes in a chunk.
const CHUNK: usize = 64 << 10;
/// Chunks in a directory: so a directory stands for 32 MiB and 15 TiB take a table of 4 MiB.
const PER_DIRECTORY: usize = 512;
/// Extents in one answer.
const MAX_EXTENTS: usize = 256;

type Directory = [Option<Vec<u8>>; PER_DIRECTORY];

/// See the [module](self). The caller checks ranges.
pub(crate) struct Chunks {
    directories: Vec<Option<Box<Directory>>>,
}

/// The part of a range that lies in one chunk.
struct Piece {
    chunk: u64,
    start: usize,
    len: usize,
}

impl Chunks {
    pub(crate) fn new(size: u64) -> Chunks {
        let count = size.div_ceil((CHUNK * PER_DIRECTORY) as u64) as usize;
        Chunks {
            directories: std::iter::repeat_with(|| None).take(count).collect(),
        }
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut rest = buf;
        for piece in pieces(offset, rest.len() as u64) {
            let (now, later) = rest.split_at_mut(piece.len);
            match self.chunk(piece.chunk) {
                Some(chunk) => now.copy_from_slice(&chunk[piece.start..piece.start + piece.len]),
                None => now.fill(0),
            }
            rest = later;
        }
    }

    /// # Errors
    /// No memory for a chunk.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let mut rest = data;
        for piece in pieces(offset, data.len() as u64) {
            let (now, later) = rest.split_at(piece.len);
            let chunk = self.chunk_to_write(piece.chunk)?;
            chunk[piece.start..piece.start + piece.len].copy_from_slice(now);
            rest = later;
        }
        Ok(())
    }

    /// Makes a range read as zeroes, from its start on, and frees the chunks that are all in it. Stops after `max_chunks`
    /// chunks that were there; answers how many bytes are done.
    pub(crate) fn clear(&mut self, offset: u64, len: u64, max_chunks: usize) -> u64 {
        let mut pieces = pieces(offset, len);
        let mut touched = 0;
        while touched < max_chunks {
            let Some(piece) = pieces.next() else {
                return len;
            };
            let (directory, index) = place(piece.chunk);
            let Some(entries) = &mut self.directories[directory] else {
                pieces.skip_directory(directory);
                continue;
            };
            if entries[index].is_some() {
                touched += 1;
            }
            if piece.len == CHUNK {
                entries[index] = None;
            } else if let Some(chunk) = &mut entries[index] {
                chunk[piece.start..piece.start + piece.len].fill(0);
            }
        }
        pieces.offset - offset
    }

    /// Runs of data and holes from `offset` on.
    pub(crate) fn extents(&self, offset: u64, len: u64) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut pieces = pieces(offset, len);
        loop {
            let start = pieces.offset;
            let Some(piece) = pieces.next() else {
                return extents;
            };
            let (directory, index) = place(piece.chunk);
            let kind = match &self.directories[directory] {
                None => {
                    pieces.skip_directory(directory);
                    ExtentKind::Hole
                }
                Some(entries) if entries[index].is_none() => ExtentKind::Hole,
                Some(_) => ExtentKind::Data,
            };
            let len = pieces.offset - start;
            if let Some(last) = extents.last_mut().filter(|last| last.kind == kind) {
                last.len += len;
            } else if extents.len() < MAX_EXTENTS {
                extents.push(Extent { len, kind });
            } else {
                return extents;
            }
        }
    }

    fn chunk(&self, chunk: u64) -> Option<&[u8]> {
        let (directory, index) = place(chunk);
        self.directories[directory].as_ref()?[index].as_deref()
    }

    fn chunk_to_write(&mut self, chunk: u64) -> Result<&mut [u8], StoreError> {
        let (directory, index) = place(chunk);
        let entries = self.directories[directory]
            .get_or_insert_with(|| Box::new([const { None }; PER_DIRECTORY]));
        let entry = &mut entries[index];
        if entry.is_none() {
            let mut memory = Vec::new();
            memory
                .try_reserve_exact(CHUNK)
                .map_err(|_| StoreError::NoSpace)?;
            memory.resize(CHUNK, 0);
            *entry = Some(memory);
        }
        entry.as_deref_mut().ok_or(StoreError::NoSpace)
    }
}

fn place(chunk: u64) -> (usize, usize) {
    let per = PER_DIRECTORY as u64;
    ((chunk / per) as usize, (chunk % per) as usize)
}

/// Cuts a range at the borders of chunks.
struct Pieces {
    offset: u64,
    end: u64,
}

fn pieces(offset: u64, len: u64) -> Pieces {
    Pieces {
        offset,
        end: offset + len,
    }
}

impl Pieces {
    /// Leaves out the rest of a directory.
    fn skip_directory(&mut self, directory: usize) {
        let next = (directory as u64 + 1) * (PER_DIRECTORY * CHUNK) as u64;
        self.offset = self.offset.max(next).min(self.end);
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.offset == self.end {
            return None;
        }
        let start = (self.offset % CHUNK as u64) as usize;
        let len = (self.end - self.offset).min((CHUNK - start) as u64) as usize;
        let piece = Piece {
            chunk: self.offset / CHUNK as u64,
            start,
            len,
        };
        self.offset += len as u64;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chunks_come_with_the_first_write_and_go_when_cleared_in_full() {
        let mut chunks = Chunks::new(15 << 40);
        let middle = 7 << 40;
        chunks.write(middle, &[1; 4096]).unwrap();
        let hole = |len| Extent {
            len,
            kind: ExtentKind::Hole,
        };
        let data = |len| Extent {
            len,
            kind: ExtentKind::Data,
        };
        assert_eq!(
            chunks.extents(middle - 4096, 256 << 10),
            [
                hole(4096),
                data(64 << 10),
                hole((256 << 10) - 4096 - (64 << 10))
            ]
        );
        assert_eq!(chunks.clear(middle, 32 << 10, 1), 32 << 10);
        assert_eq!(
            chunks.extents(middle, 4096),
            [data(4096)],
            "only part was cleared"
        );
        chunks.write(0, &[1; 4096]).unwrap();
        let first = chunks.clear(0, 15 << 40, 1);
        assert_eq!(first, 64 << 10, "it stops after one chunk");
        assert_eq!(
            chunks.clear(first, (15 << 40) - first, 2),
            (15 << 40) - first
        );
        assert_eq!(chunks.extents(middle, 4096), [hole(4096)]);
    }

    proptest! {
        #[test]
        fn it_shows_what_a_plain_array_shows(
            ops in proptest::collection::vec((0usize..3, 0u64..300_000, 0usize..200_000, any::<u8>()), 1..20)
        ) {
            let size = 400_000usize;
            let mut chunks = Chunks::new(size as u64);
            let mut model = vec![0u8; size];
            for (what, offset, len, byte) in ops {
                let len = len.min(size - offset as usize);
                let range = offset as usize..offset as usize + len;
                match what {
                    0 => {
                        chunks.write(offset, &vec![byte; len]).unwrap();
                        model[range].fill(byte);
                    }
                    1 => {
                        prop_assert_eq!(chunks.clear(offset, len as u64, usize::MAX), len as u64);
                        model[range].fill(0);
                    }
                    _ => {
                        let mut buf = vec![0xee; len];
                        chunks.read(offset, &mut buf);
                        prop_assert_eq!(&buf[..], &model[range]);
                        let covered: u64 = chunks.extents(offset, len as u64).iter().map(|e| e.len).sum();
                        prop_assert_eq!(covered, len as u64);
                    }
                }
            }
        }
    }
}
