//! Which options make up the options of which frame. Each message is encoded to and decoded from the options as a whole.
//!
//! Decoding skips options that the message doesn't define, refuses them if they are critical, refuses one that occurs
//! twice, and refuses the message if one is missing that it must have.

mod events;
mod join;
mod list;
mod open;

pub use events::{Aborted, BlockStatus, Changed, Refusal};
pub use join::{JoinRequest, Joined};
pub use list::{ListReply, ListRequest};
pub use open::{OpenRequest, Opened};

use super::option::Value;
use super::options::OptionError;

/// Takes an option's value into its place, which must be empty.
fn set<'a, V: Value<'a>>(place: &mut Option<V>, value: &'a [u8]) -> Result<(), OptionError> {
    if place.is_some() {
        return Err(OptionError::Duplicate(V::NUMBER));
    }
    *place = Some(V::read(value)?);
    Ok(())
}

/// The value of an option that must be there.
fn must<'a, V: Value<'a>>(place: Option<V>) -> Result<V, OptionError> {
    place.ok_or(OptionError::Missing(V::NUMBER))
}
