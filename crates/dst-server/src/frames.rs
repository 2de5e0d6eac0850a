//! Frames that the driver itself puts together: refusals, ERROR, and whatever has only options.

use dst_engine::client::seal;
use dst_proto::{Header, Kind, Message, OptionError, Refusal, Status, HEADER_LEN};

/// A frame of `header` with the options that `options` writes.
pub(crate) fn frame(
    header: Header,
    options: impl FnOnce(&mut [u8]) -> Result<usize, OptionError>,
) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN + usize::from(dst_proto::MAX_OPTIONS)];
    // What does not fit is left out whole: an answer without its options is one the peer can still tell.
    let length = options(&mut out[HEADER_LEN..]).unwrap_or(0);
    let header = Header {
        options_len: length as u16,
        ..header
    };
    let length = seal(&header, &mut out);
    out.truncate(length);
    out
}

/// The answer that refuses a `kind`.
pub(crate) fn refusal(kind: Kind, status: Status, text: &str, wait_ms: Option<u32>) -> Vec<u8> {
    let header = Header::reply(kind, dst_proto::NO_SLOT, 0, status, Default::default());
    frame(header, |out| words(text, wait_ms).encode(out))
}

/// ERROR, sent before a stream is closed for a fault.
pub(crate) fn error(status: Status, text: &str) -> Vec<u8> {
    frame(Header::error(status), |out| words(text, None).encode(out))
}

fn words(text: &str, wait_ms: Option<u32>) -> Refusal<'_> {
    Refusal {
        message: Message::new(text),
        wait_ms,
    }
}
