//! Exit codes and the failures that lead to them. A script can tell from the code alone what went wrong; the text is for
//! people and says what to do.

use std::fmt::{self, Write as _};
use std::io;
use std::time::Duration;

use dst_client::OpenError;
use dst_net::Endpoint;
use dst_proto::Status;
use serde::{Deserialize, Serialize};

/// What went wrong, as a process exit code. The numbers are part of the command's interface and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Code {
    /// Something that has no code of its own.
    Other = 1,
    /// The command line or a URL is wrong.
    Usage = 2,
    /// The server can't be reached.
    Unreachable = 3,
    /// The server has no such export.
    NoExport = 4,
    /// Another client writes to the export.
    Busy = 5,
    /// The name is taken by another device.
    NameTaken = 6,
    /// This export is attached here already.
    AlreadyAttached = 7,
    /// The device is mounted or open.
    InUse = 8,
    /// The server does not admit this client.
    NotAdmitted = 9,
    /// Plaintext beyond this machine without `--insecure`.
    Insecure = 10,
    /// Not permitted by the system.
    Permission = 11,
    /// No front end works here.
    FrontEnd = 12,
    /// There is no such device.
    NoDevice = 13,
    /// Data could not be read or written, or was lost.
    Io = 14,
    /// The peer speaks no protocol or version that this one does.
    Protocol = 15,
    /// What was to be served can't be.
    Export = 16,
    /// The address to listen at is taken or not there.
    Address = 17,
    /// A program that is needed is not installed.
    MissingProgram = 18,
    /// What was read is not what was written.
    Mismatch = 19,
    /// The agent of a device does not answer.
    NotResponding = 20,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl Code {
    /// Every code with its meaning, in the order of the numbers, as `--help` lists them.
    pub const ALL: [(Code, &'static str); 21] = [
        (Code::Other, "another failure"),
        (Code::Usage, "wrong usage, or a malformed URL"),
        (Code::Unreachable, "the server can't be reached"),
        (Code::NoExport, "the server has no such export"),
        (Code::Busy, "another client writes to the export"),
        (Code::NameTaken, "the name is taken by another device"),
        (Code::AlreadyAttached, "the export is attached here already"),
        (Code::InUse, "the device is mounted or open"),
        (Code::NotAdmitted, "the server does not admit this client"),
        (Code::Insecure, "plaintext over a network needs --insecure"),
        (Code::Permission, "not permitted (usually: needs root)"),
        (Code::FrontEnd, "no front end can make a device here"),
        (Code::NoDevice, "there is no such device"),
        (
            Code::Io,
            "data could not be read or written, or the device failed",
        ),
        (
            Code::Protocol,
            "the other end speaks another protocol or version",
        ),
        (
            Code::Export,
            "the file or disk can't be served (missing, in use, wrong size)",
        ),
        (Code::Address, "can't listen at the address"),
        (Code::MissingProgram, "a program that is needed is missing"),
        (
            Code::Mismatch,
            "verification found bytes that were not written",
        ),
        (
            Code::NotResponding,
            "the agent of the device does not answer",
        ),
        (Code::Interrupted, "stopped by a signal"),
    ];

    /// The number.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// The part of `--help` that lists the codes.
#[must_use]
pub fn help() -> String {
    let mut text = String::from("Exit codes:\n    0  done\n");
    for (code, meaning) in Code::ALL {
        let _ = writeln!(text, "  {:>3}  {meaning}", code.number());
    }
    text.pop();
    text
}

/// A command that did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What sort of failure.
    pub code: Code,
    /// What happened, in a sentence without a full stop.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What commands return.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with a text.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failed system call: `.map_err(Failure::io("can't open x"))`.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |error| {
            let error = error.into();
            let code = match error.kind() {
                io::ErrorKind::PermissionDenied => Code::Permission,
                _ => Code::Other,
            };
            Self::new(code, format!("{what}: {error}"))
        }
    }

    /// A server that could not be used. `url` is what was asked for.
    #[must_use]
    pub fn from_open(url: &Endpoint, error: OpenError) -> Self {
        let message = error.to_string();
        let with = |code| Self::new(code, format!("{url}: {message}"));
        match error {
            OpenError::NoExportNamed => with(Code::Usage),
            OpenError::NoExport(_) => with(Code::NoExport),
            OpenError::Busy {
                wait,
                message: holder,
            } => with(Code::Busy).hint(busy_hint(wait, &holder, &crate::host_name())),
            OpenError::NotAdmitted(_) => with(Code::NotAdmitted),
            OpenError::Insecure(_) => with(Code::Insecure).hint(
                "or go through ssh: \
                 dst+exec:///EXPORT?command=ssh%20HOST%20dst%20serve%20--stdio%20PATH",
            ),
            OpenError::Unreachable { .. } => {
                with(Code::Unreachable).hint("is `dst serve` running there, and the address right?")
            }
            OpenError::Refused { status, .. } => with(match status {
                Status::PROTOCOL | Status::UNSUPPORTED | Status::INVALID => Code::Protocol,
                Status::DRAINING => Code::Unreachable,
                Status::READ_ONLY => Code::Usage,
                _ => Code::Other,
            }),
            OpenError::Incompatible(_) => with(Code::Protocol),
            OpenError::Unusable(_) => with(Code::Export),
            OpenError::NoMemory { .. } => {
                with(Code::Other).hint("a smaller --retain needs less memory")
            }
            OpenError::Io(_) => with(Code::Other),
        }
    }

    /// A signal asked to stop.
    #[must_use]
    pub fn interrupted() -> Self {
        Self::new(Code::Interrupted, "interrupted")
    }
}

/// What to do where another client writes. `holder` are the server's words, which begin with the name of that client's
/// machine, and `own` is the name of this one.
fn busy_hint(wait: Option<Duration>, holder: &str, own: &str) -> String {
    let again = wait.map_or_else(String::new, |wait| {
        format!("try again in {} s, ", wait.as_secs().max(1))
    });
    // Servers get no more of it.
    let own: String = own.chars().take(16).collect();
    let is_own = |rest: &str| rest.starts_with(" has it ") || rest.starts_with(" had it ");
    if !own.is_empty() && holder.strip_prefix(&own).is_some_and(is_own) {
        return format!(
            "{own} is the name of this machine, too: it may be a device of another user here, one with another \
             DST_RUNTIME_DIR, or one that was detached by force; {again}detach it, or attach it with --read-only"
        );
    }
    format!("{again}detach it there, or attach it here with --read-only")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n       {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<dst_blockdev::Error> for Failure {
    fn from(error: dst_blockdev::Error) -> Self {
        use dst_blockdev::ErrorKind;
        let code = match error.kind() {
            ErrorKind::NotAvailable | ErrorKind::NoLoopDevice | ErrorKind::Geometry => {
                Code::FrontEnd
            }
            ErrorKind::Permission => Code::Permission,
            ErrorKind::MissingProgram => Code::MissingProgram,
            ErrorKind::BadName => Code::Usage,
            ErrorKind::NameTaken => Code::NameTaken,
            ErrorKind::Busy => Code::InUse,
            _ => Code::Io,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_number_of_its_own_and_a_line_in_help() {
        let help = help();
        let mut last = 0;
        for (code, meaning) in Code::ALL {
            assert!(code.number() > last, "{code:?} is out of order");
            last = code.number();
            assert!(help.contains(&format!("{:>3}  {meaning}", code.number())));
        }
    }

    #[test]
    fn a_failure_survives_the_way_through_json() {
        let failure = Failure::new(Code::InUse, "disk is mounted at /mnt").hint("umount /mnt");
        let text = serde_json::to_string(&failure).unwrap();
        assert!(text.contains("\"in-use\""));
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
    }

    #[test]
    fn a_holder_with_the_name_of_this_machine_is_told_so() {
        let wait = Some(Duration::from_secs(7));
        let there = busy_hint(wait, "desktop has it attached for writing", "desk");
        assert!(
            there.starts_with("try again in 7 s, detach it there"),
            "{there}"
        );
        let here = busy_hint(wait, "desktop has it attached for writing", "desktop");
        assert!(
            here.contains("this machine") && here.contains("in 7 s"),
            "{here}"
        );
        let long = "a-name-of-sixteen-and-more";
        let here = busy_hint(None, "a-name-of-sixtee had it attached", long);
        assert!(here.contains("this machine"), "{here}");
    }

    #[test]
    fn a_refused_system_call_is_a_matter_of_permission() {
        let refused = Failure::io("open")(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(refused.code, Code::Permission);
        let other = Failure::io("open")(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(other.code, Code::Other);
    }
}
