//! What a client's session is given.

use super::super::proto::{Holder, Limits};

/// What the driver decides once for a device.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whether to ask for the right to write.
    pub writable: bool,
    /// Who writes: identity, boot id and instance.
    pub holder: Holder,
    /// What this end can use. `slots` is the length of the slot table; the server must grant all of them.
    pub limits: Limits,
    /// Digest algorithms that the driver can compute, as a mask of `1 << code`.
    pub digests: u32,
    /// Granule asked for, bytes.
    pub granule: u32,
    /// Nanoseconds after which a request fails; `None` to wait without limit.
    pub deadline: Option<u64>,
    /// Times that a request is sent again for a bad digest before it fails.
    pub retries: u8,
}
