//! Decisions taken from the bytes of a fuzz input. Where they have run out, every decision is 0.

/// The part of an input that has not been used.
#[derive(Debug)]
pub struct Input<'d> {
    rest: &'d [u8],
}

impl<'d> Input<'d> {
    /// Over a whole input.
    pub fn new(data: &'d [u8]) -> Self {
        Input { rest: data }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'d [u8] {
        std::mem::take(&mut self.rest)
    }

    /// The next `len` bytes, or fewer at the end.
    pub fn bytes(&mut self, len: usize) -> &'d [u8] {
        let (bytes, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Below `limit`, from one byte; 0 for a limit of 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.u8()).checked_rem(limit).unwrap_or(0)
    }

    /// True for one byte value in `times`, never for 0.
    pub fn one_in(&mut self, times: u8) -> bool {
        self.u8() % times == times - 1
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
