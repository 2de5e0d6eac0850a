//! Values of options as people write them: durations (`30s`, `5m`, `none`), sizes that may be `off`.

use std::time::Duration;

use dst_store::parse_size;

/// A time limit; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<Duration>);

/// A number of bytes; `None` is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub Option<u64>);

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// Reads a duration: a whole number with `ms`, `s`, `m` or `h`; a bare number is seconds.
///
/// # Errors
/// Says what a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = if unit.is_empty() { "s" } else { unit };
    let scale = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, scale)| scale);
    match (number.parse::<u64>(), scale) {
        (Ok(number), Some(scale)) => number
            .checked_mul(*scale)
            .map(Duration::from_millis)
            .ok_or_else(|| format!("{text:?} is too long")),
        _ => Err(format!(
            "{text:?} is no duration: write a whole number with ms, s, m or h, as in 30s"
        )),
    }
}

/// Reads a duration greater than zero.
///
/// # Errors
/// As [`parse_duration`].
pub fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("it must be more than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// Reads a time limit: a duration, or `none`.
///
/// # Errors
/// As [`parse_duration`].
pub fn parse_limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => parse_positive_duration(text)
            .map(|limit| Limit(Some(limit)))
            .map_err(|e| format!("{e}, or none")),
    }
}

/// What may follow `--watch`: nothing has to, so that what follows may be the device as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watch {
    /// How often to look.
    Every(Duration),
    /// No duration, so it is a device.
    Device(String),
}

/// Reads what follows `--watch`.
///
/// # Errors
/// A duration of zero.
pub fn parse_watch(text: &str) -> Result<Watch, String> {
    match parse_duration(text) {
        Ok(_) => parse_positive_duration(text).map(Watch::Every),
        Err(_) => Ok(Watch::Device(text.to_owned())),
    }
}

/// Reads a size, or `off`.
///
/// # Errors
/// Says what a size looks like.
pub fn parse_bytes_or_off(text: &str) -> Result<Bytes, String> {
    match text {
        "off" => Ok(Bytes(None)),
        text => parse_size(text)
            .map(|bytes| Bytes(Some(bytes)))
            .map_err(|e| format!("{e}, or off")),
    }
}

/// Reads a size as `u32`, for block sizes.
///
/// # Errors
/// Says what a size looks like.
pub fn parse_block(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|e| e.to_string())?;
    u32::try_from(bytes).map_err(|_| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("30s", 30_000),
            ("5m", 300_000),
            ("250ms", 250),
            ("2h", 7_200_000),
            ("7", 7000),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for bad in [
            "",
            "s",
            "1.5s",
            "-1s",
            "5 m",
            "5d",
            "none",
            "99999999999999999999s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_duration("18446744073709551615h").is_err());
    }

    #[test]
    fn what_follows_watch_is_a_time_or_a_device() {
        let every = |millis| Ok(Watch::Every(Duration::from_millis(millis)));
        assert_eq!(parse_watch("2"), every(2000));
        assert_eq!(parse_watch("500ms"), every(500));
        for device in ["disk", "/dev/dst/disk", "5disk"] {
            assert_eq!(parse_watch(device), Ok(Watch::Device(device.to_owned())));
        }
        assert!(parse_watch("0").is_err());
    }

    #[test]
    fn limits_and_sizes_can_be_switched_off() {
        assert_eq!(parse_limit("none"), Ok(Limit(None)));
        assert_eq!(parse_limit("5s"), Ok(Limit(Some(Duration::from_secs(5)))));
        assert!(parse_limit("0s").is_err());
        assert_eq!(parse_bytes_or_off("off"), Ok(Bytes(None)));
        assert_eq!(parse_bytes_or_off("256M"), Ok(Bytes(Some(256 << 20))));
        assert!(parse_bytes_or_off("of").is_err());
        assert_eq!(parse_block("4k"), Ok(4096));
        assert!(parse_block("4G").is_err());
    }
}
