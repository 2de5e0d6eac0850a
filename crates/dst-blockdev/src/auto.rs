//! Which front end to use. `auto` takes ublk where it works, else FUSE, else nbd, and says why none will do.
//!
//! ublk is the shortest way, shows the disk as it is, and its devices survive the death of their agent ([`recover`]). In one
//! case users are worse off with it: an agent that is stuck in the kernel can be cut off from a FUSE device but not from a ublk
//! one (see [`abort`]). Its module is loaded if need be, as the kernel does by itself for FUSE and loop devices.
//!
//! nbd comes last although it shows the disk more exactly than FUSE does, and survives its agent: the driver's resize can hold
//! up the whole machine if the server goes away, or the agent is killed, in that very moment (see `nbd/mod.rs`). So it is
//! there for who asks for it, and for machines with nothing else; `auto` does not have its module loaded either.

use std::fmt;
use std::str::FromStr;

use crate::fuse::{self, FuseFrontEnd};
use crate::nbd::{self, NbdFrontEnd};
use crate::ublk::{self, UblkFrontEnd};
use crate::{module, runtime, Config, Error, ErrorKind, FrontEnd, NodeKind};

/// What the user may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The best one that works on this machine: see the module.
    #[default]
    Auto,
    /// The kernel's ublk driver, for root.
    Ublk,
    /// FUSE, with a loop device for root.
    Fuse,
    /// The kernel's nbd driver, for root.
    Nbd,
}

impl Choice {
    /// All of them, for help texts.
    pub const ALL: [Choice; 4] = [Choice::Auto, Choice::Ublk, Choice::Fuse, Choice::Nbd];
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Choice::Auto => "auto",
            Choice::Ublk => "ublk",
            Choice::Fuse => "fuse",
            Choice::Nbd => "nbd",
        })
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        Choice::ALL
            .into_iter()
            .find(|choice| choice.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no front end: auto, ublk, fuse, nbd"))
    }
}

/// Whether a front end can be used here, before anything is made. Returns which, never `Auto`. `node` as in [`Config::node`].
/// The driver's module is loaded if that is needed, and if it is allowed.
///
/// # Errors
/// What is missing and what to do.
pub fn check(choice: Choice, node: Option<NodeKind>) -> Result<Choice, Error> {
    let kind = kind_of(node);
    match choice {
        Choice::Ublk => check_ublk(kind)?,
        Choice::Fuse => fuse::check(kind)?,
        Choice::Nbd => nbd::check(kind)?,
        Choice::Auto => return best(kind),
    }
    Ok(choice)
}

/// As [`ublk::check`], once more with the module loaded where it is missing.
fn check_ublk(kind: NodeKind) -> Result<(), Error> {
    ublk::check(kind).or_else(|missing| {
        let may_help = kind == NodeKind::BlockDevice && missing.kind() == ErrorKind::NotAvailable;
        match may_help && module::load(ublk::MODULE) {
            true => ublk::check(kind),
            false => Err(missing),
        }
    })
}

/// The first in the module's order that works, which is never `Auto`.
///
/// # Errors
/// What FUSE lacks, and what ublk lacks as advice.
fn best(kind: NodeKind) -> Result<Choice, Error> {
    first(
        kind,
        || check_ublk(kind),
        || fuse::check(kind),
        || nbd::is_loaded() && nbd::check(kind).is_ok(),
    )
}

/// As [`best`], of these.
fn first(
    kind: NodeKind,
    ublk: impl FnOnce() -> Result<(), Error>,
    fuse: impl FnOnce() -> Result<(), Error>,
    nbd: impl FnOnce() -> bool,
) -> Result<Choice, Error> {
    // The others make block devices only.
    if kind == NodeKind::File {
        return fuse().map(|()| Choice::Fuse);
    }
    let Err(no_ublk) = ublk() else {
        return Ok(Choice::Ublk);
    };
    let Err(no_fuse) = fuse() else {
        return Ok(Choice::Fuse);
    };
    if nbd() {
        return Ok(Choice::Nbd);
    }
    let advice = no_fuse
        .hint()
        .map_or_else(String::new, |hint| format!("{hint}; "));
    Err(no_fuse.with_hint(format!("{advice}nor is there ublk: {no_ublk}")))
}

fn kind_of(node: Option<NodeKind>) -> NodeKind {
    node.unwrap_or(if runtime::is_root() {
        NodeKind::BlockDevice
    } else {
        NodeKind::File
    })
}

/// Opens a front end. What a dead one of the same name has left is removed first.
///
/// # Errors
/// What is missing and what to do; `NameTaken` if a live front end has the name.
pub fn open(choice: Choice, config: &Config) -> Result<Box<dyn FrontEnd>, Error> {
    let choice = match choice {
        Choice::Auto => best(kind_of(config.node))?,
        chosen => chosen,
    };
    // The dead one may have been of another kind.
    cleanup_stale(&config.name)?;
    Ok(match choice {
        Choice::Ublk => Box::new(UblkFrontEnd::open(config)?),
        Choice::Nbd => Box::new(NbdFrontEnd::open(config)?),
        Choice::Auto | Choice::Fuse => Box::new(FuseFrontEnd::open(config)?),
    })
}

/// Takes over the device that a dead front end of this name has left: same node, and the requests that it had not answered
/// come again. `None`: none is left that can be taken over, and nothing was changed.
///
/// The device goes on waiting until the work of [`FrontEnd::start`] is done. Until then, dropping the front end leaves the
/// device as it was found, for another recovery; so does the death of this process, at any time.
///
/// # Errors
/// It can't be taken over now, and is as it was. `NameTaken` if a live front end has the name; `Geometry` if the device has
/// another shape than `config` says.
pub fn recover(config: &Config) -> Result<Option<Box<dyn FrontEnd>>, Error> {
    if let Some(front) = UblkFrontEnd::recover(config)? {
        return Ok(Some(Box::new(front)));
    }
    if let Some(front) = NbdFrontEnd::recover(config)? {
        return Ok(Some(Box::new(front)));
    }
    Ok(None)
}

/// Whether a dead front end of this name has left a device that [`recover`] can take over, as far as that can be told by
/// looking.
#[must_use]
pub fn recoverable(name: &str) -> bool {
    ublk::recoverable(name) || nbd::recoverable(name)
}

/// Who uses the device that a dead front end of this name has left and that [`recover`] can take over, in words. Does no I/O
/// on it, which would wait for the recovery.
///
/// # Errors
/// `Io`
pub fn user_of_recoverable(name: &str) -> Result<Option<String>, Error> {
    match ublk::user_of_recoverable(name)? {
        Some(who) => Ok(Some(who)),
        None => nbd::user_of_recoverable(name),
    }
}

/// Removes what dead front ends of this name have left, of whatever kind. Returns what was there, in words.
///
/// # Errors
/// `NameTaken` if a live front end has the name; `Io` if something can't be removed.
pub fn cleanup_stale(name: &str) -> Result<Vec<String>, Error> {
    let mut cleaned = ublk::cleanup_stale(name)?;
    cleaned.extend(nbd::cleanup_stale(name)?);
    cleaned.extend(fuse::cleanup_stale(name)?);
    Ok(cleaned)
}

/// Cuts off the device of this name, whoever serves it and whatever that process is doing: every request that waits fails with
/// an I/O error, and every later one. For an agent that waits in the kernel for its own device, and so can't be killed before.
/// False: there is nothing that had to be cut, or a ublk device, whose requests fail when its agent ends and not before.
///
/// # Errors
/// The kernel offers no way to it, or not to this user, or has not done it in time.
pub fn abort(name: &str) -> Result<bool, Error> {
    let (nbd, fuse) = (nbd::abort(name), fuse::abort(name));
    Ok(nbd? | fuse?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for choice in Choice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("iscsi".parse::<Choice>().is_err());
    }

    #[test]
    fn auto_takes_ublk_where_it_works_then_fuse_then_nbd() {
        let works = |yes: bool| match yes {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::NotAvailable, "it is missing")),
        };
        for (has, expected) in [
            ([true, true, true], Some(Choice::Ublk)),
            ([true, false, false], Some(Choice::Ublk)),
            ([false, true, true], Some(Choice::Fuse)),
            ([false, false, true], Some(Choice::Nbd)),
            ([false, false, false], None),
        ] {
            let [ublk, fuse, nbd] = has;
            let chosen = |kind| first(kind, || works(ublk), || works(fuse), || nbd).ok();
            assert_eq!(chosen(NodeKind::BlockDevice), expected, "{has:?}");
            let file = fuse.then_some(Choice::Fuse);
            assert_eq!(chosen(NodeKind::File), file, "{has:?}");
        }
    }
}
