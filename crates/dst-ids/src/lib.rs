//! Random ids and secrets, and ids as text: as they stand in files, logs and reports.

use std::fmt::Write as _;

use rustix::io::Errno;
use rustix::rand::{getrandom, GetRandomFlags};

/// Fills all of `bytes` with the kernel's random numbers (getrandom(2)). Blocks only while the machine has not collected
/// enough to begin with, early in its boot.
///
/// # Errors
/// Those of the system call: a kernel without it, or one that forbids it.
pub fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut filled = 0;
    while filled < bytes.len() {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Random bytes.
///
/// # Panics
/// Where the system has none: nothing that needs a secret can go on without.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes).expect("the system has random numbers");
    bytes
}

/// Lower-case hexadecimal digits, two for each byte.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The bytes of exactly `N * 2` hexadecimal digits.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    // A sign would pass for a digit below.
    if digits.len() != N * 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_back() {
        let id: [u8; 16] = random();
        assert_eq!(from_hex(&hex(&id)), Some(id));
        assert_eq!(hex(&[0, 0x0a, 0xff]), "000aff");
        assert_eq!(from_hex("000AfF"), Some([0, 0x0a, 0xff]));
    }

    #[test]
    fn what_is_no_id_is_not_taken_for_one() {
        for text in ["", "0", "012", "01234", "0g", "+1+2", "é0"] {
            assert_eq!(from_hex::<2>(text), None, "{text}");
        }
    }

    #[test]
    fn two_ids_differ() {
        assert_ne!(random::<16>(), random::<16>());
    }

    #[test]
    fn more_than_one_call_brings_is_filled_whole() {
        let mut bytes = vec![0; 1 << 16];
        fill(&mut bytes).unwrap();
        // A page of zeroes by chance does not happen.
        assert!(bytes
            .chunks(4096)
            .all(|page| page.iter().any(|byte| *byte != 0)));
    }
}
