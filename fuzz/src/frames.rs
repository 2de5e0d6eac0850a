//! Frames and HELLOs as they stand on the wire, with their CRCs right.

use dst_engine::frame::seal;
use dst_proto::{Header, Hello, Role, HEADER_LEN, HELLO_LEN};

/// The HELLO of this implementation.
pub fn hello(role: Role, nonce: u8) -> [u8; HELLO_LEN] {
    let mut out = [0; HELLO_LEN];
    Hello::new(role, [nonce; 16], "fuzz").encode(&mut out);
    out
}

/// A frame without its payload. The lengths of options and digests in the header are set.
pub fn frame(header: &Header, options: &[u8], digests: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    out.extend_from_slice(options);
    out.extend_from_slice(digests);
    let header = Header {
        options_len: options.len() as u16,
        digest_len: digests.len() as u32,
        ..*header
    };
    let length = seal(&header, &mut out);
    assert_eq!(length, out.len());
    out
}

/// A frame with options that `encode` writes.
pub fn with_options(header: &Header, encode: impl FnOnce(&mut [u8]) -> usize) -> Vec<u8> {
    let mut options = vec![0; 16384];
    let length = encode(&mut options);
    frame(header, &options[..length], &[])
}
