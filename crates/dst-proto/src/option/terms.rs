//! Options that negotiate how a session works: LIMITS, DIGESTS, TIMES.

use super::super::digest::{granule_ok, Algorithm};
use super::super::options::{OptionError, OptionWriter};
use super::fixed::{put, read_fixed, Value};
use super::number;

/// LIMITS: the most of each that the client can use, or in a reply that the server grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Slots of the session, the one for FLUSH included; a server grants at most `MAX_SLOTS`.
    pub slots: u16,
    /// Connections of the session.
    pub connections: u16,
    /// Bytes of payload of one READ or WRITE.
    pub max_payload: u32,
    /// How far an id may be above the highest up to which all have finished.
    pub window: u32,
    /// Bytes of WRITE payload unanswered.
    pub credit_bytes: u32,
}

impl Limits {
    /// The smaller of each.
    pub fn min(&self, other: &Limits) -> Limits {
        Limits {
            slots: self.slots.min(other.slots),
            connections: self.connections.min(other.connections),
            max_payload: self.max_payload.min(other.max_payload),
            window: self.window.min(other.window),
            credit_bytes: self.credit_bytes.min(other.credit_bytes),
        }
    }
}

impl<'a> Value<'a> for Limits {
    const NUMBER: u16 = number::LIMITS;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(
            out,
            &[
                &self.slots.to_le_bytes(),
                &self.connections.to_le_bytes(),
                &self.max_payload.to_le_bytes(),
                &self.window.to_le_bytes(),
                &self.credit_bytes.to_le_bytes(),
            ],
        )
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| {
            Some(Limits {
                slots: take.u16()?,
                connections: take.u16()?,
                max_payload: take.u32()?,
                window: take.u32()?,
                credit_bytes: take.u32()?,
            })
        })
    }
}

/// DIGESTS in OPEN: what the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digests {
    /// Bit n: the algorithm with code n. Unknown bits mean nothing.
    pub mask: u32,
    /// Granule that the client prefers, in bytes.
    pub granule: u32,
}

impl Digests {
    /// Whether `algorithm` is among those accepted.
    pub fn accepts(&self, algorithm: Algorithm) -> bool {
        self.mask & algorithm.mask_bit() != 0
    }
}

impl<'a> Value<'a> for Digests {
    const NUMBER: u16 = number::DIGESTS;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(
            out,
            &[&self.mask.to_le_bytes(), &self.granule.to_le_bytes()],
        )
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        let digests = read_fixed(value, |take| {
            Some(Digests {
                mask: take.u32()?,
                granule: take.u32()?,
            })
        })?;
        if !granule_ok(digests.granule) {
            return Err(OptionError::Value(number::DIGESTS));
        }
        Ok(digests)
    }
}

/// DIGESTS in the reply: what the session uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DigestChoice {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The granule in bytes: a power of two, 512 to 65536.
    pub granule: u32,
}

impl<'a> Value<'a> for DigestChoice {
    const NUMBER: u16 = number::DIGESTS;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        let code = self.algorithm.code().to_le_bytes();
        put::<Self>(out, &[&code, &self.granule.to_le_bytes()])
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        // The same layout with another meaning of the first field, so the granule is checked there.
        let digests = Digests::read(value)?;
        let Some(algorithm) = Algorithm::from_code(digests.mask) else {
            return Err(OptionError::Value(number::DIGESTS));
        };
        Ok(DigestChoice {
            algorithm,
            granule: digests.granule,
        })
    }
}

/// TIMES, all in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Times {
    /// After this long without a received byte a side sends PING.
    pub keepalive_ms: u32,
    /// How long the server keeps a session without connections.
    pub session_ms: u32,
    /// After this long without a sign of life another client may take the lease.
    pub lease_ms: u32,
}

impl<'a> Value<'a> for Times {
    const NUMBER: u16 = number::TIMES;

    fn write(&self, out: &mut OptionWriter<'_>) -> Result<(), OptionError> {
        put::<Self>(
            out,
            &[
                &self.keepalive_ms.to_le_bytes(),
                &self.session_ms.to_le_bytes(),
                &self.lease_ms.to_le_bytes(),
            ],
        )
    }

    fn read(value: &'a [u8]) -> Result<Self, OptionError> {
        read_fixed(value, |take| {
            Some(Times {
                keepalive_ms: take.u32()?,
                session_ms: take.u32()?,
                lease_ms: take.u32()?,
            })
        })
    }
}
