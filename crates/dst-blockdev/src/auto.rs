//! Which front end to use. Today there is one; `auto` tries each in the order of preference and says why none will do.

use std::fmt;
use std::str::FromStr;

use crate::fuse::{self, FuseFrontEnd};
use crate::{runtime, Config, Error, FrontEnd, NodeKind};

/// What the user may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The best one that this machine has.
    #[default]
    Auto,
    /// FUSE, with a loop device for root.
    Fuse,
}

impl Choice {
    /// All of them, for help texts.
    pub const ALL: [Choice; 2] = [Choice::Auto, Choice::Fuse];
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Choice::Auto => "auto",
            Choice::Fuse => "fuse",
        })
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        Choice::ALL
            .into_iter()
            .find(|choice| choice.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no front end: auto, fuse"))
    }
}

/// Whether a front end can be used here, before anything is made. `node` as in [`Config::node`].
///
/// # Errors
/// What is missing and what to do.
pub fn check(choice: Choice, node: Option<NodeKind>) -> Result<(), Error> {
    let kind = node.unwrap_or(if runtime::is_root() {
        NodeKind::BlockDevice
    } else {
        NodeKind::File
    });
    match choice {
        Choice::Auto | Choice::Fuse => fuse::check(kind),
    }
}

/// Opens a front end. What a dead one of the same name has left is removed first.
///
/// # Errors
/// What is missing and what to do; `NameTaken` if a live front end has the name.
pub fn open(choice: Choice, config: &Config) -> Result<Box<dyn FrontEnd>, Error> {
    match choice {
        Choice::Auto | Choice::Fuse => Ok(Box::new(FuseFrontEnd::open(config)?)),
    }
}

/// Removes what dead front ends of this name have left, of whatever kind. Returns what was there, in words.
///
/// # Errors
/// `NameTaken` if a live front end has the name; `Io` if something can't be removed.
pub fn cleanup_stale(name: &str) -> Result<Vec<String>, Error> {
    fuse::cleanup_stale(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for choice in Choice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("ublk".parse::<Choice>().is_err());
    }
}
