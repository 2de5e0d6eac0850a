//! HELLO: any bytes, and such whose CRC is right, against the table of PROTOCOL.md section 2.

use dst_proto::{crc32c, Hello, HelloError, Role, HELLO_LEN, HELLO_MAX};

use crate::input::Input;

/// The first byte says whether the CRC is put right, the rest is the stream.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let fix = input.u8() & 1 != 0;
    let mut bytes = input.rest().to_vec();

    // What is wrong is wrong from some byte on; what is needed never changes once it is known.
    let mut known: Option<usize> = None;
    let mut refused: Option<HelloError> = None;
    for end in 0..=bytes.len().min(HELLO_MAX) {
        match Hello::needed(&bytes[..end]) {
            Ok(needed) => {
                assert!(refused.is_none(), "accepted after a refusal");
                assert!(needed <= HELLO_MAX);
                assert!(
                    known.is_none_or(|known| known <= needed),
                    "needs less than before"
                );
                known = Some(needed);
            }
            Err(error) => {
                assert!(refused.is_none_or(|before| before == error));
                refused = Some(error);
            }
        }
    }

    if let (true, Ok(needed)) = (fix, Hello::needed(&bytes)) {
        bytes.resize(needed.max(HELLO_LEN), 0);
        let end = bytes.len() - 4;
        let crc = crc32c::of(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
    }
    let Ok(hello) = Hello::decode(&bytes) else {
        return;
    };
    check_fields(&hello, &bytes);

    let mut again = [0; HELLO_LEN];
    hello.encode(&mut again);
    assert_eq!(Hello::decode(&again), Ok(hello));
    assert_eq!(again[11..HELLO_LEN - 4].len(), 81);
    assert!(hello.name().len() <= 40 && !hello.name().chars().any(char::is_control));

    for role in [Role::Client, Role::Server] {
        let ours = Hello::new(role, [1; 16], "fuzz");
        let agreed = Hello::negotiate(&ours, &hello);
        assert_eq!(agreed, Hello::negotiate(&hello, &ours));
        match agreed {
            Ok(agreed) => {
                assert_ne!(role, hello.role);
                assert!((hello.lowest..=hello.highest).contains(&agreed.version));
                assert_eq!(agreed.version, 1);
                assert_eq!(agreed.features, 0);
                assert_eq!(hello.required, 0);
            }
            Err(error) => {
                let versions = (hello.lowest..=hello.highest).contains(&1);
                let fits = role != hello.role && versions && hello.required == 0;
                assert!(!fits, "{error} where all fits");
            }
        }
    }
}

fn check_fields(hello: &Hello, bytes: &[u8]) {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(usize::from(u16_at(8)), bytes.len());
    assert!(bytes.len().is_multiple_of(8) && (HELLO_LEN..=HELLO_MAX).contains(&bytes.len()));
    assert_eq!(hello.role as u8, bytes[10]);
    assert_eq!((hello.lowest, hello.highest), (u16_at(12), u16_at(14)));
    assert_eq!((hello.offered, hello.required), (u64_at(16), u64_at(24)));
    assert_eq!(hello.required & !hello.offered, 0);
    assert_eq!(hello.nonce[..], bytes[32..48]);
    assert_eq!(hello.name[..], bytes[48..88]);
}
