//! The proof of JOIN: that a client knows the secret of the session it joins (PROTOCOL.md section 6.3).

use super::blake3::Hasher;
use super::bytes::Fill;
use super::hello::HELLO_MAX;
use super::option::{Join, Proof};

const CONTEXT: &[u8] = b"DST1 join proof";

/// The channel binding where there is no TLS.
pub const NO_BINDING: [u8; 32] = [0; 32];

/// What a proof covers beside the secret.
#[derive(Clone, Copy, Debug)]
pub struct Transcript<'a> {
    /// The server's HELLO exactly as it was sent, at most `HELLO_MAX` bytes.
    pub server_hello: &'a [u8],
    /// The client's HELLO exactly as it was sent, at most `HELLO_MAX` bytes.
    pub client_hello: &'a [u8],
    /// The channel's exporter value, or `NO_BINDING`.
    pub binding: &'a [u8; 32],
}

/// The proof for `join`; none if a HELLO is longer than one can be.
pub fn join_proof(secret: &[u8; 16], transcript: &Transcript<'_>, join: &Join) -> Option<Proof> {
    let hellos = [transcript.server_hello, transcript.client_hello];
    if hellos.iter().any(|hello| hello.len() > HELLO_MAX) {
        return None;
    }
    let mut key = [0; 32];
    Fill::new(&mut key).put(secret).zeroes();
    let mut hasher = Hasher::keyed(&key);
    let value = join.to_bytes();
    let parts = [
        CONTEXT,
        transcript.server_hello,
        transcript.client_hello,
        transcript.binding,
        &value,
    ];
    for part in parts {
        hasher.update(part).ok()?;
    }
    Some(Proof(hasher.finish()))
}

/// Whether `proof` is the one for `join`, in a time that doesn't tell where they differ.
pub fn verify(secret: &[u8; 16], transcript: &Transcript<'_>, join: &Join, proof: &Proof) -> bool {
    match join_proof(secret, transcript, join) {
        Some(right) => equal(&right.0, &proof.0),
        None => false,
    }
}

/// Whether two secrets are the same, in a time that doesn't tell where they differ.
pub fn equal<const N: usize>(a: &[u8; N], b: &[u8; N]) -> bool {
    let mut differing = 0;
    for (x, y) in a.iter().zip(b) {
        // Hidden from the optimiser, which could otherwise end the loop early.
        differing |= core::hint::black_box(x ^ y);
    }
    core::hint::black_box(differing) == 0
}
