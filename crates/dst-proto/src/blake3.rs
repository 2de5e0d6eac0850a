//! BLAKE3 in portable form: hash, keyed hash, and a streaming hasher.
//!
//! Written for inputs up to `MAX_INPUT` bytes (a granule of 64 KiB with its seed, the transcript of a join proof). The bound
//! keeps the stack of chaining values at 8 entries and the whole state under 512 bytes, so that it fits on a kernel
//! stack. Drivers with vector instructions use those for payloads.
//!
//! State: `chunk` takes input; a full chunk is closed only when more input comes, since the last one is hashed
//! differently. `stack` holds the chaining values of complete subtrees, largest first; their sizes are the set bits of
//! `chunks`, the number of closed chunks.

/// Most bytes that one hash takes: 256 chunks.
pub const MAX_INPUT: usize = 256 * CHUNK_LEN;

/// Bytes of a hash and of a key.
pub const LEN: usize = 32;

const BLOCK_LEN: usize = 64;
const CHUNK_LEN: usize = 1024;
const BLOCKS_IN_CHUNK: u8 = (CHUNK_LEN / BLOCK_LEN) as u8;
/// 255 closed chunks at most: eight set bits.
const STACK: usize = 8;

const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

type Words = [u32; 8];
type Block = [u32; 16];

const IV: Words = [
    0x6A09_E667,
    0xBB67_AE85,
    0x3C6E_F372,
    0xA54F_F53A,
    0x510E_527F,
    0x9B05_688C,
    0x1F83_D9AB,
    0x5BE0_CD19,
];

/// The input was longer than `MAX_INPUT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl core::fmt::Display for TooLong {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("input too long for this BLAKE3")
    }
}

impl core::error::Error for TooLong {}

/// The hash of `input`.
pub fn hash(input: &[u8]) -> Result<[u8; LEN], TooLong> {
    let mut hasher = Hasher::new();
    hasher.update(input)?;
    Ok(hasher.finish())
}

/// The keyed hash of `input`.
pub fn keyed_hash(key: &[u8; LEN], input: &[u8]) -> Result<[u8; LEN], TooLong> {
    let mut hasher = Hasher::keyed(key);
    hasher.update(input)?;
    Ok(hasher.finish())
}

/// A hash over input that comes in pieces.
#[derive(Clone)]
pub struct Hasher {
    key: Words,
    flags: u8,
    chunk: Chunk,
    stack: [Words; STACK],
    /// Entries of `stack` in use.
    height: u8,
    /// Closed chunks, and so the number of the one that takes input.
    chunks: u8,
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher {
    /// For the plain hash.
    pub fn new() -> Hasher {
        Hasher::start(IV, 0)
    }

    /// For the keyed hash.
    pub fn keyed(key: &[u8; LEN]) -> Hasher {
        let mut words = [0; 8];
        load(&mut words, key);
        Hasher::start(words, KEYED_HASH)
    }

    fn start(key: Words, flags: u8) -> Hasher {
        Hasher {
            key,
            flags,
            chunk: Chunk::new(key),
            stack: [[0; 8]; STACK],
            height: 0,
            chunks: 0,
        }
    }

    /// Forgets the input, not the key.
    pub fn reset(&mut self) {
        self.chunk = Chunk::new(self.key);
        self.height = 0;
        self.chunks = 0;
    }

    /// Appends `input`. After `TooLong` the hash is of no use.
    pub fn update(&mut self, input: &[u8]) -> Result<(), TooLong> {
        let mut rest = input;
        while !rest.is_empty() {
            if self.chunk.is_full() {
                self.close_chunk()?;
            }
            rest = self.chunk.update(rest, self.chunks, self.flags);
        }
        Ok(())
    }

    /// Closes the full chunk, for which there must be an entry on the stack, and begins the next.
    fn close_chunk(&mut self) -> Result<(), TooLong> {
        let closed = self.chunks.checked_add(1).ok_or(TooLong)?;
        let mut value = self.chunk.last(self.chunks, self.flags).chain();
        // Every trailing zero of the count is a pair of equal subtrees to join.
        for _ in 0..closed.trailing_zeros() {
            let left = self.pop().ok_or(TooLong)?;
            value = self.parent(&left, &value).chain();
        }
        let top = self
            .stack
            .get_mut(usize::from(self.height))
            .ok_or(TooLong)?;
        *top = value;
        self.height = self.height.saturating_add(1);
        self.chunks = closed;
        self.chunk = Chunk::new(self.key);
        Ok(())
    }

    fn pop(&mut self) -> Option<Words> {
        self.height = self.height.checked_sub(1)?;
        self.stack.get(usize::from(self.height)).copied()
    }

    fn parent(&self, left: &Words, right: &Words) -> Node {
        let mut block = [0; 16];
        for (to, from) in block.iter_mut().zip(left.iter().chain(right)) {
            *to = *from;
        }
        Node {
            value: self.key,
            block,
            counter: 0,
            len: BLOCK_LEN as u8,
            flags: self.flags | PARENT,
        }
    }

    /// The hash of everything so far.
    pub fn finish(&self) -> [u8; LEN] {
        let mut node = self.chunk.last(self.chunks, self.flags);
        let used = self.stack.iter().take(usize::from(self.height));
        for left in used.rev() {
            node = self.parent(left, &node.chain());
        }
        node.flags |= ROOT;
        store(&node.chain())
    }
}

impl core::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Key and chaining values stay out of logs.
        f.write_str("Hasher")
    }
}

/// The chunk that takes input.
#[derive(Clone)]
struct Chunk {
    value: Words,
    block: [u8; BLOCK_LEN],
    /// Bytes in `block`.
    len: u8,
    /// Blocks compressed into `value`.
    blocks: u8,
}

impl Chunk {
    fn new(key: Words) -> Chunk {
        Chunk {
            value: key,
            block: [0; BLOCK_LEN],
            len: 0,
            blocks: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.blocks == BLOCKS_IN_CHUNK.wrapping_sub(1) && usize::from(self.len) == BLOCK_LEN
    }

    /// Takes input up to the end of the chunk; gives back the rest. A full block is compressed only when more comes.
    fn update<'a>(&mut self, input: &'a [u8], counter: u8, flags: u8) -> &'a [u8] {
        let mut rest = input;
        while !rest.is_empty() && !self.is_full() {
            if usize::from(self.len) == BLOCK_LEN {
                self.value = self.node(counter, flags).chain();
                self.blocks = self.blocks.wrapping_add(1);
                self.block = [0; BLOCK_LEN];
                self.len = 0;
            }
            let room = self
                .block
                .get_mut(usize::from(self.len)..)
                .unwrap_or_default();
            let taken = room.len().min(rest.len());
            for (to, from) in room.iter_mut().zip(rest) {
                *to = *from;
            }
            // At most 64, so nothing is cut.
            self.len = self.len.wrapping_add(taken as u8);
            rest = rest.get(taken..).unwrap_or_default();
        }
        rest
    }

    fn node(&self, counter: u8, flags: u8) -> Node {
        let mut block = [0; 16];
        load(&mut block, &self.block);
        let start = if self.blocks == 0 { CHUNK_START } else { 0 };
        Node {
            value: self.value,
            block,
            counter,
            len: self.len,
            flags: flags | start,
        }
    }

    /// The chunk as it would be if no more came.
    fn last(&self, counter: u8, flags: u8) -> Node {
        let mut node = self.node(counter, flags);
        node.flags |= CHUNK_END;
        node
    }
}

/// One compression yet to be done: of a block of a chunk, or of a parent.
struct Node {
    value: Words,
    block: Block,
    counter: u8,
    len: u8,
    flags: u8,
}

impl Node {
    fn chain(&self) -> Words {
        compress(&self.value, &self.block, self.counter, self.len, self.flags)
    }
}

fn load(words: &mut [u32], bytes: &[u8]) {
    let mut rest = bytes;
    for word in words {
        let Some((head, tail)) = rest.split_first_chunk::<4>() else {
            return;
        };
        *word = u32::from_le_bytes(*head);
        rest = tail;
    }
}

fn store(words: &Words) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let of_words = words.iter().flat_map(|word| word.to_le_bytes());
    for (to, from) in bytes.iter_mut().zip(of_words) {
        *to = from;
    }
    bytes
}

macro_rules! mix {
    ($v:ident, $a:literal, $b:literal, $c:literal, $d:literal, $x:expr, $y:expr) => {
        $v[$a] = $v[$a].wrapping_add($v[$b]).wrapping_add($x);
        $v[$d] = ($v[$d] ^ $v[$a]).rotate_right(16);
        $v[$c] = $v[$c].wrapping_add($v[$d]);
        $v[$b] = ($v[$b] ^ $v[$c]).rotate_right(12);
        $v[$a] = $v[$a].wrapping_add($v[$b]).wrapping_add($y);
        $v[$d] = ($v[$d] ^ $v[$a]).rotate_right(8);
        $v[$c] = $v[$c].wrapping_add($v[$d]);
        $v[$b] = ($v[$b] ^ $v[$c]).rotate_right(7);
    };
}

#[inline(always)]
fn round(v: &mut Block, m: &Block) {
    mix!(v, 0, 4, 8, 12, m[0], m[1]);
    mix!(v, 1, 5, 9, 13, m[2], m[3]);
    mix!(v, 2, 6, 10, 14, m[4], m[5]);
    mix!(v, 3, 7, 11, 15, m[6], m[7]);
    mix!(v, 0, 5, 10, 15, m[8], m[9]);
    mix!(v, 1, 6, 11, 12, m[10], m[11]);
    mix!(v, 2, 7, 8, 13, m[12], m[13]);
    mix!(v, 3, 4, 9, 14, m[14], m[15]);
}

#[inline(always)]
fn permute(m: &Block) -> Block {
    [
        m[2], m[6], m[3], m[10], m[7], m[0], m[4], m[13], m[1], m[11], m[12], m[5], m[9], m[14],
        m[15], m[8],
    ]
}

fn compress(value: &Words, block: &Block, counter: u8, len: u8, flags: u8) -> Words {
    let h = value;
    let mut v: Block = [
        h[0],
        h[1],
        h[2],
        h[3],
        h[4],
        h[5],
        h[6],
        h[7],
        IV[0],
        IV[1],
        IV[2],
        IV[3],
        u32::from(counter),
        // The high half of the counter: `MAX_INPUT` keeps it 0.
        0,
        u32::from(len),
        u32::from(flags),
    ];
    let mut m = *block;
    round(&mut v, &m);
    for _ in 0..6 {
        m = permute(&m);
        round(&mut v, &m);
    }
    [
        v[0] ^ v[8],
        v[1] ^ v[9],
        v[2] ^ v[10],
        v[3] ^ v[11],
        v[4] ^ v[12],
        v[5] ^ v[13],
        v[6] ^ v[14],
        v[7] ^ v[15],
    ]
}
