//! Why a device could not be made, changed or removed: a kind for exit codes, a text for people, and what to do.

use std::fmt;
use std::io;

/// What sort of thing went wrong. One per way in which a user would react differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The kernel lacks the front end, or its module is not loaded.
    NotAvailable,
    /// The caller may not do this.
    Permission,
    /// A helper program is not installed.
    MissingProgram,
    /// There is no loop device, or no free one.
    NoLoopDevice,
    /// The name is malformed.
    BadName,
    /// The name is taken by a live device or by something that is not ours.
    NameTaken,
    /// The device is mounted or open.
    Busy,
    /// The geometry can't be shown by this front end.
    Geometry,
    /// The front end was stopped meanwhile.
    Stopped,
    /// A system call failed in a way that has no better kind.
    Io,
}

/// An error of a front end.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    hint: Option<String>,
    source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error {
            kind,
            what: what.into(),
            hint: None,
            source: None,
        }
    }

    /// An error of kind `Io`, or of a better one where the errno says so.
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Error {
        let source = source.into();
        let kind = match source.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            io::ErrorKind::ResourceBusy => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        Error {
            kind,
            what: what.into(),
            hint: None,
            source: Some(source),
        }
    }

    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.kind = kind;
        self
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// The kind, for exit codes.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the user can do about it, if that is known. `Display` includes it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_cause_and_advice() {
        let error = Error::io("can't open /dev/fuse", io::Error::from_raw_os_error(13))
            .with_hint("become root");
        assert_eq!(error.kind(), ErrorKind::Permission);
        assert_eq!(
            error.to_string(),
            "can't open /dev/fuse: Permission denied (os error 13) (become root)"
        );
    }
}
