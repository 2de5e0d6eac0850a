//! Where an export is, or where a server listens: the URLs of DST.
//!
//! | form | meaning |
//! | --- | --- |
//! | `dst://host[:port][/export]` | TCP; the port is 7789 unless given; IPv6 addresses in brackets |
//! | `dst+unix:///path/to.sock[?export=NAME]` | a Unix socket, by absolute path |
//! | `dst+exec:///[export]?command=COMMAND` | the standard streams of a command |
//!
//! To listen, the same forms without an export (`dst+exec` can't listen). Everything but ASCII letters, digits and
//! `-._~/` in an export name, a path or a command is percent-encoded (RFC 3986); `+` stands for itself. A port of 0
//! asks for any free one when listening. [`Endpoint`] is the parsed form; its `Display` and `FromStr` are inverse.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::exec::ExecTransport;
use crate::tcp::{TcpListener, TcpTransport};
use crate::unix::{UnixListener, UnixTransport};
use crate::{Listener, Transport};

/// The TCP port of DST when a URL names none.
pub const DEFAULT_PORT: u16 = 7789;

/// Longest export name that a URL may carry, in bytes.
pub const MAX_EXPORT_NAME: usize = 255;

/// Longest path of a Unix socket, in bytes (`sun_path` of `linux/un.h` less the final zero).
pub const MAX_SOCKET_PATH: usize = 107;

/// Longest host name, in bytes (RFC 1035, section 2.3.4, as text without the final dot).
const MAX_HOST_NAME: usize = 253;

const EXAMPLE_TCP: &str = "dst://storage/disk";
const EXAMPLE_UNIX: &str = "dst+unix:///run/dst.sock?export=disk";
const EXAMPLE_EXEC: &str =
    "dst+exec:///disk?command=ssh%20storage%20dst%20serve%20--stdio%20disk.img";

/// The part of a URL that says how to get there, without the export.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `dst://`: a TCP connection.
    Tcp {
        /// Name or address, without brackets; an IPv6 address may carry a zone (`fe80::1%eth0`).
        host: String,
        /// TCP port, host byte order.
        port: u16,
    },
    /// `dst+unix://`: a Unix stream socket.
    Unix {
        /// Absolute path of the socket.
        path: PathBuf,
    },
    /// `dst+exec://`: a command whose standard input and output are the channel.
    Exec {
        /// The command line, split into words by [`Address::words`].
        command: String,
    },
}

/// A parsed URL: an address and, where one was given, the name of an export.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    address: Address,
    export: Option<String>,
}

/// Why a text is not a URL of DST. The message says what is wrong and shows the right form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No `scheme://` at all.
    #[error("`{0}` has no scheme: write `dst://HOST/EXPORT`, for example `{EXAMPLE_TCP}`, `{EXAMPLE_UNIX}` or `{EXAMPLE_EXEC}`")]
    NoScheme(String),
    /// A scheme that is not one of the three.
    #[error("unknown scheme `{0}://`: known are `dst://` ({EXAMPLE_TCP}), `dst+unix://` ({EXAMPLE_UNIX}) and `dst+exec://` ({EXAMPLE_EXEC})")]
    UnknownScheme(String),
    /// A character that has to be percent-encoded.
    #[error(
        "the character {0:?} must be percent-encoded in a URL (a space is `%20`, `#` is `%23`)"
    )]
    RawCharacter(char),
    /// `%` without two hexadecimal digits, or bytes that make no text.
    #[error("broken percent-encoding in `{0}`: `%` takes two hexadecimal digits (`%20` is a space, `%25` is `%`) and the result must be UTF-8")]
    BadEncoding(String),
    /// The host part can't be a host.
    #[error("`{0}` is no host: give a name, an IPv4 address or an IPv6 address in brackets, as in `{EXAMPLE_TCP}` or `dst://[fd00::1]:7789/disk`")]
    BadHost(String),
    /// `user@host`.
    #[error("a URL of DST has no user name: write `{EXAMPLE_TCP}`, without `{0}@`")]
    UserName(String),
    /// The port is no number from 0 to 65535.
    #[error("`{0}` is no port: give a number from 0 to 65535, as in `dst://storage:7789/disk`")]
    BadPort(String),
    /// The export name can't be one.
    #[error(
        "`{0}` is no export name: it has 1 to {MAX_EXPORT_NAME} bytes and no control characters"
    )]
    BadExport(String),
    /// The socket path can't be one.
    #[error("`{0}` is no socket path: it is absolute and has at most {MAX_SOCKET_PATH} bytes, as in `{EXAMPLE_UNIX}` (three slashes)")]
    BadSocketPath(String),
    /// `dst+exec` without a slash, or with a host.
    #[error("`dst+exec` takes no host: three slashes, the export, then the command, as in `{EXAMPLE_EXEC}`")]
    ExecHost,
    /// `dst+exec` without a command, or with one that is no list of words.
    #[error(
        "`{0}` is no command: `dst+exec` needs one, with balanced quotes, as in `{EXAMPLE_EXEC}`"
    )]
    BadCommand(String),
    /// An option that this scheme does not have.
    #[error("unknown option `{option}` for `{scheme}://`: {known}")]
    UnknownOption {
        /// The option's name as given.
        option: String,
        /// The scheme that it was given to.
        scheme: &'static str,
        /// What this scheme does take.
        known: &'static str,
    },
    /// An option given more than once.
    #[error("the option `{0}` is given more than once")]
    DoubledOption(String),
}

impl Address {
    /// The words of the command of a `dst+exec` address, split as a POSIX shell would (quotes, backslashes, comments)
    /// but with nothing expanded; empty for other addresses.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Exec { command } => shlex::split(command).unwrap_or_default(),
            Self::Tcp { .. } | Self::Unix { .. } => Vec::new(),
        }
    }
}

impl Endpoint {
    /// An endpoint from its parts, checked by the rules of the URL.
    pub fn new(address: Address, export: Option<&str>) -> Result<Self, UrlError> {
        match &address {
            Address::Tcp { host, .. } => check_host(host, host.contains(':'))?,
            Address::Unix { path } => check_socket_path(path)?,
            Address::Exec { command } => check_command(command)?,
        }
        if let Some(name) = export {
            check_export(name)?;
        }
        Ok(Self {
            address,
            export: export.map(str::to_owned),
        })
    }

    /// How to get there.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The export that the URL names.
    pub fn export(&self) -> Option<&str> {
        self.export.as_deref()
    }

    /// The same address with another export, or none.
    pub fn with_export(&self, export: Option<&str>) -> Result<Self, UrlError> {
        Self::new(self.address.clone(), export)
    }

    /// The transport that connects to this address.
    pub fn transport(&self) -> Arc<dyn Transport> {
        match &self.address {
            Address::Tcp { host, port } => Arc::new(TcpTransport::new(host, *port)),
            Address::Unix { path } => Arc::new(UnixTransport::new(path)),
            Address::Exec { .. } => Arc::new(ExecTransport::new(self.address.words())),
        }
    }

    /// Starts to listen at this address. An export in the URL is an error, as is `dst+exec`: there
    /// `dst serve --stdio` is the server.
    pub fn listen(&self) -> io::Result<Box<dyn Listener>> {
        if let Some(name) = &self.export {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a server listens at an address, not at an export: leave `{name}` out of `{self}`"),
            ));
        }
        match &self.address {
            Address::Tcp { host, port } => Ok(Box::new(TcpListener::bind(host, *port)?)),
            Address::Unix { path } => Ok(Box::new(UnixListener::bind(path)?)),
            Address::Exec { .. } => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "nothing can listen at `dst+exec`: the command itself runs `dst serve --stdio`",
            )),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = self.export.as_deref();
        match &self.address {
            Address::Tcp { host, port } => {
                match host.split_once('%') {
                    Some((address, zone)) => write!(f, "dst://[{address}%25{zone}]:{port}")?,
                    None if host.contains(':') => write!(f, "dst://[{host}]:{port}")?,
                    None => write!(f, "dst://{host}:{port}")?,
                }
                if let Some(name) = export {
                    f.write_char('/')?;
                    encode(f, name.as_bytes())?;
                }
                Ok(())
            }
            Address::Unix { path } => {
                f.write_str("dst+unix://")?;
                encode(f, path.as_os_str().as_bytes())?;
                if let Some(name) = export {
                    f.write_str("?export=")?;
                    encode(f, name.as_bytes())?;
                }
                Ok(())
            }
            Address::Exec { command } => {
                f.write_str("dst+exec:///")?;
                encode(f, export.unwrap_or_default().as_bytes())?;
                f.write_str("?command=")?;
                encode(f, command.as_bytes())
            }
        }
    }
}

impl FromStr for Endpoint {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| UrlError::NoScheme(text.to_owned()))?;
        if let Some(c) = rest
            .chars()
            .find(|&c| c == '#' || c.is_whitespace() || c.is_control())
        {
            return Err(UrlError::RawCharacter(c));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        match scheme {
            "dst" => parse_tcp(place, query),
            "dst+unix" => parse_unix(place, query),
            "dst+exec" => parse_exec(place, query),
            _ => Err(UrlError::UnknownScheme(scheme.to_owned())),
        }
    }
}

fn parse_tcp(place: &str, query: &str) -> Result<Endpoint, UrlError> {
    let [] = options(query, "dst", [], "it has none")?;
    let (authority, name) = place.split_once('/').unwrap_or((place, ""));
    if let Some((user, _)) = authority.rsplit_once('@') {
        return Err(UrlError::UserName(user.to_owned()));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(inner) => {
            let (host, after) = inner
                .split_once(']')
                .ok_or_else(|| UrlError::BadHost(authority.to_owned()))?;
            let port = match after {
                "" => None,
                _ => Some(
                    after
                        .strip_prefix(':')
                        .ok_or_else(|| UrlError::BadHost(authority.to_owned()))?,
                ),
            };
            // RFC 6874 writes the zone's `%` as `%25`; people write it as it is.
            (host.replacen("%25", "%", 1), port)
        }
        None => match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(UrlError::BadHost(authority.to_owned()))
            }
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (authority.to_owned(), None),
        },
    };
    check_host(&host, authority.starts_with('['))?;
    let port = port.map_or(Ok(DEFAULT_PORT), parse_port)?;
    Endpoint::new(Address::Tcp { host, port }, export_name(name)?.as_deref())
}

fn parse_unix(place: &str, query: &str) -> Result<Endpoint, UrlError> {
    let [name] = options(query, "dst+unix", ["export"], "it has `export=NAME`")?;
    let path = PathBuf::from(OsString::from_vec(decode(place)?));
    let export = match name {
        Some("") => return Err(UrlError::BadExport(String::new())),
        Some(name) => export_name(name)?,
        None => None,
    };
    Endpoint::new(Address::Unix { path }, export.as_deref())
}

fn parse_exec(place: &str, query: &str) -> Result<Endpoint, UrlError> {
    let [command] = options(query, "dst+exec", ["command"], "it has `command=COMMAND`")?;
    let name = place.strip_prefix('/').ok_or(UrlError::ExecHost)?;
    let command = decode_text(command.unwrap_or_default())?;
    Endpoint::new(Address::Exec { command }, export_name(name)?.as_deref())
}

/// The values of the options of `known` in `query`, still percent-encoded; any other option is an error.
fn options<'a, const N: usize>(
    query: &'a str,
    scheme: &'static str,
    known: [&str; N],
    help: &'static str,
) -> Result<[Option<&'a str>; N], UrlError> {
    let mut values = [None; N];
    for option in query.split('&').filter(|o| !o.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let place = known
            .iter()
            .zip(&mut values)
            .find(|(name, _)| **name == key);
        let Some((_, slot)) = place else {
            return Err(UrlError::UnknownOption {
                option: key.to_owned(),
                scheme,
                known: help,
            });
        };
        if slot.replace(value).is_some() {
            return Err(UrlError::DoubledOption(key.to_owned()));
        }
    }
    Ok(values)
}

fn parse_port(text: &str) -> Result<u16, UrlError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| UrlError::BadPort(text.to_owned()))
}

fn export_name(encoded: &str) -> Result<Option<String>, UrlError> {
    if encoded.is_empty() {
        return Ok(None);
    }
    decode_text(encoded).map(Some)
}

fn check_export(name: &str) -> Result<(), UrlError> {
    if name.is_empty() || name.len() > MAX_EXPORT_NAME || name.chars().any(char::is_control) {
        return Err(UrlError::BadExport(name.to_owned()));
    }
    Ok(())
}

/// `bracketed`: it stood in brackets, so only an IPv6 address will do.
fn check_host(host: &str, bracketed: bool) -> Result<(), UrlError> {
    let good = if bracketed {
        let (address, zone) = host.split_once('%').unwrap_or((host, "0"));
        let zone_good = !zone.is_empty()
            && zone
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
        zone_good && address.parse::<Ipv6Addr>().is_ok()
    } else {
        let characters = host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        // Only digits and dots: an address or nothing; resolvers read `10.1` as 10.0.0.1.
        let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let labels = host.strip_suffix('.').unwrap_or(host);
        !labels.is_empty()
            && host.len() <= MAX_HOST_NAME
            && characters
            && labels.split('.').all(|l| !l.is_empty() && l.len() <= 63)
            && (!numeric || host.parse::<IpAddr>().is_ok())
    };
    good.then_some(())
        .ok_or_else(|| UrlError::BadHost(host.to_owned()))
}

fn check_socket_path(path: &Path) -> Result<(), UrlError> {
    let bytes = path.as_os_str().as_bytes();
    let names_file = bytes.last().is_some_and(|&b| b != b'/');
    if path.is_absolute() && names_file && bytes.len() <= MAX_SOCKET_PATH && !bytes.contains(&0) {
        return Ok(());
    }
    Err(UrlError::BadSocketPath(path.display().to_string()))
}

fn check_command(command: &str) -> Result<(), UrlError> {
    let words = if command.contains('\0') {
        None
    } else {
        shlex::split(command)
    };
    match words {
        Some(words) if words.first().is_some_and(|program| !program.is_empty()) => Ok(()),
        _ => Err(UrlError::BadCommand(command.to_owned())),
    }
}

/// Writes `bytes` percent-encoded: unreserved characters of RFC 3986 and `/` as they are.
fn encode(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            f.write_char(char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

fn decode(text: &str) -> Result<Vec<u8>, UrlError> {
    let broken = || UrlError::BadEncoding(text.to_owned());
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            bytes
                .next()
                .and_then(|b| char::from(b).to_digit(16))
                .ok_or_else(broken)
        };
        let value = digit()? * 16 + digit()?;
        out.push(u8::try_from(value).map_err(|_| broken())?);
    }
    Ok(out)
}

fn decode_text(text: &str) -> Result<String, UrlError> {
    String::from_utf8(decode(text)?).map_err(|_| UrlError::BadEncoding(text.to_owned()))
}

#[cfg(test)]
mod tests;
