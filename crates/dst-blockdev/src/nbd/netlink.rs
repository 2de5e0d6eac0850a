//! Generic netlink: messages, their attributes, and a socket that asks and waits for the answer
//! (`include/uapi/linux/{netlink,genetlink}.h`, `Documentation/userspace-api/netlink/intro.rst`).
//!
//! All numbers are in the machine's own byte order. A message is `nlmsghdr` (16 bytes), `genlmsghdr` (4) and attributes, each
//! with a header of 4 bytes and padded to 4. Nothing that is read is trusted to be as long as it says.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `NLM_F_REQUEST | NLM_F_ACK`
const REQUEST_AND_ACK: u16 = 1 | 4;
/// `NLMSG_ERROR`: an errno, or 0 for "done".
const NLMSG_ERROR: u16 = 2;
/// `GENL_ID_CTRL`: the family that knows the others.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const MESSAGE_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_TYPE_MASK`: without the flags for nested attributes and byte order.
const TYPE_MASK: u16 = 0x3fff;
/// No answer that we ask for is longer.
const LONGEST_ANSWER: usize = 8192;

/// Attributes of a message to be sent.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Attributes {
        Attributes::default()
    }

    fn put(mut self, kind: u16, payload: &[u8]) -> Attributes {
        let len = u16::try_from(ATTRIBUTE_HEADER + payload.len())
            .expect("names and numbers are shorter than 64 KiB");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Attributes {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Attributes {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A string, which ends with a zero byte.
    pub(super) fn text(self, kind: u16, text: &str) -> Attributes {
        self.put(kind, &[text.as_bytes(), &[0]].concat())
    }

    pub(super) fn nested(self, kind: u16, inner: &Attributes) -> Attributes {
        self.put(kind, &inner.0)
    }
}

/// The attributes in `bytes`, as type and payload, up to the first that is malformed.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        let payload = rest.get(ATTRIBUTE_HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The number in an attribute.
pub(super) fn u32_in(payload: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(payload.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    u32_in(bytes.get(at..at + 4)?)
}

/// A message that came.
#[derive(Debug, PartialEq, Eq)]
struct Message<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// The messages in a datagram, up to the first that is malformed.
fn messages(bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = u32_at(rest, 0)? as usize;
        let message = Message {
            kind: u16_at(rest, 4)?,
            sequence: u32_at(rest, 8)?,
            payload: rest.get(MESSAGE_HEADER..len)?,
        };
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The bytes of a request.
fn request(
    family: u16,
    sequence: u32,
    command: u8,
    version: u8,
    attributes: &Attributes,
) -> Vec<u8> {
    let len = MESSAGE_HEADER + GENERIC_HEADER + attributes.0.len();
    let len = u32::try_from(len).expect("a request has a few attributes");
    let mut bytes = Vec::with_capacity(len as usize);
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // The kernel fills the port in.
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&[command, version, 0, 0]);
    bytes.extend_from_slice(&attributes.0);
    bytes
}

/// What a datagram says about the request with the number `sequence`.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Attributes, before the verdict.
    Attributes(Vec<u8>),
    /// The verdict.
    Done(Result<(), Errno>),
}

fn answers(datagram: &[u8], family: u16, sequence: u32) -> Vec<Answer> {
    messages(datagram)
        .filter(|message| message.sequence == sequence)
        .filter_map(|message| match message.kind {
            NLMSG_ERROR => {
                let code = u32_at(message.payload, 0)? as i32;
                Some(Answer::Done(match code {
                    0 => Ok(()),
                    code => Err(Errno::from_raw_os_error(code.saturating_neg())),
                }))
            }
            kind if kind == family => {
                let attributes = message.payload.get(GENERIC_HEADER..)?;
                Some(Answer::Attributes(attributes.to_vec()))
            }
            _ => None,
        })
        .collect()
}

/// A family of generic netlink, and a socket to talk to it.
///
/// A request is carried out by the kernel inside the call that sends it, however long that takes.
#[derive(Debug)]
pub(super) struct Family {
    socket: OwnedFd,
    id: u16,
    version: u8,
    sequence: u32,
}

impl Family {
    /// Finds the family `name`. The kernel tries to load a module for it if there is none.
    ///
    /// # Errors
    /// ENOENT if there is no such family.
    pub(super) fn find(name: &str, version: u8) -> rustix::io::Result<Family> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )?;
        // Connected to the kernel: nobody else's messages arrive.
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        let mut control = Family {
            socket,
            id: GENL_ID_CTRL,
            version: 1,
            sequence: 0,
        };
        let wanted = Attributes::new().text(CTRL_ATTR_FAMILY_NAME, name);
        let found = control.ask(CTRL_CMD_GETFAMILY, &wanted)?;
        let id = attributes(&found)
            .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
            .and_then(|(_, payload)| u16_at(payload, 0))
            .ok_or(Errno::PROTO)?;
        Ok(Family {
            id,
            version,
            ..control
        })
    }

    /// Has a command carried out; gives the attributes of the answer, none if there was nothing but the verdict.
    ///
    /// # Errors
    /// The verdict of the kernel.
    pub(super) fn ask(
        &mut self,
        command: u8,
        attributes: &Attributes,
    ) -> rustix::io::Result<Vec<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request(self.id, self.sequence, command, self.version, attributes);
        // A signal can only come before anything has happened, so asking again is asking once.
        rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, &bytes, SendFlags::empty()))?;
        let mut buffer = vec![0; LONGEST_ANSWER];
        let mut found = Vec::new();
        loop {
            let (len, _) = rustix::io::retry_on_intr(|| {
                rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty())
            })?;
            for answer in answers(
                buffer.get(..len).unwrap_or_default(),
                self.id,
                self.sequence,
            ) {
                match answer {
                    Answer::Attributes(attributes) => found = attributes,
                    Answer::Done(verdict) => return verdict.map(|()| found),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let inner = Attributes::new().u32(1, 7);
        let all = Attributes::new()
            .text(2, "nbd")
            .u64(3, u64::MAX)
            .nested(7, &inner)
            .text(10, "");
        assert_eq!(all.0.len() % 4, 0);
        let found: Vec<_> = attributes(&all.0).collect();
        assert_eq!(found.len(), 4);
        assert_eq!(found[0], (2, &b"nbd\0"[..]));
        assert_eq!(found[1].1, u64::MAX.to_ne_bytes());
        assert_eq!(
            attributes(found[2].1).next(),
            Some((1, &7_u32.to_ne_bytes()[..]))
        );
        assert_eq!(found[3], (10, &b"\0"[..]));
    }

    #[test]
    fn the_verdict_and_the_attributes_of_ones_own_request_are_found_among_others() {
        let attributes = Attributes::new().u32(1, 3);
        let mut datagram = request(0x20, 9, 1, 1, &attributes);
        datagram.extend(request(0x20, 8, 1, 1, &Attributes::new()));
        let mut verdict = request(NLMSG_ERROR, 9, 0, 0, &Attributes::new());
        verdict[16..20].copy_from_slice(&(-16_i32).to_ne_bytes());
        datagram.extend(verdict);
        assert_eq!(
            answers(&datagram, 0x20, 9),
            [
                Answer::Attributes(attributes.0),
                Answer::Done(Err(Errno::BUSY))
            ]
        );
    }

    #[test]
    fn this_kernel_knows_its_own_families_and_no_others() {
        assert!(Family::find("nlctrl", 2).is_ok());
        assert_eq!(Family::find("dst-no-such", 1).map(drop), Err(Errno::NOENT));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic_and_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(attributes(&bytes).count() <= bytes.len());
            prop_assert!(answers(&bytes, 2, 0).len() <= bytes.len());
        }

        #[test]
        fn cut_datagrams_give_a_part_of_what_was_in_them(cut in 0..200_usize) {
            let attributes = Attributes::new().text(2, "a name").u32(3, 1);
            let mut datagram = request(0x20, 1, 1, 1, &attributes);
            datagram.extend(request(NLMSG_ERROR, 1, 0, 0, &attributes));
            let whole = answers(&datagram, 0x20, 1);
            datagram.truncate(cut);
            prop_assert!(whole.starts_with(&answers(&datagram, 0x20, 1)));
        }
    }
}
