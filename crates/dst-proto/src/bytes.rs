//! Taking little-endian fields from a byte slice and putting them into one, without any panic path.

/// The part of a slice that has not been taken yet.
pub(super) struct Take<'a> {
    rest: &'a [u8],
}

impl<'a> Take<'a> {
    #[inline]
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Take { rest: bytes }
    }

    /// What is left.
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `N` bytes, or none if there are fewer.
    #[inline(always)]
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    /// The next `len` bytes as a slice.
    #[inline]
    pub(super) fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    #[inline(always)]
    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    #[inline(always)]
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline(always)]
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline(always)]
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// The part of a buffer that has not been filled yet.
///
/// Made for buffers whose size is known to be the sum of the fields: what doesn't fit is left out.
pub(super) struct Fill<'b> {
    rest: &'b mut [u8],
}

impl<'b> Fill<'b> {
    #[inline]
    pub(super) fn new(bytes: &'b mut [u8]) -> Self {
        Fill { rest: bytes }
    }

    /// Puts `bytes` next.
    #[inline(always)]
    pub(super) fn put(&mut self, bytes: &[u8]) -> &mut Self {
        let rest = core::mem::take(&mut self.rest);
        match rest.split_at_mut_checked(bytes.len()) {
            Some((head, tail)) => {
                for (to, from) in head.iter_mut().zip(bytes) {
                    *to = *from;
                }
                self.rest = tail;
            }
            None => self.rest = &mut [],
        }
        self
    }

    /// Puts zeroes to the end.
    #[inline]
    pub(super) fn zeroes(&mut self) {
        core::mem::take(&mut self.rest).fill(0);
    }
}

/// `len` rounded up to a multiple of 8; none if that overflows.
#[inline]
pub(super) fn padded(len: usize) -> Option<usize> {
    Some(len.checked_add(7)? & !7)
}
