//! Sizes in bytes as people write them: `4096`, `512M`, `10G`, `1.5T`.

use std::fmt;

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no size: {why}; write bytes (4096) or a number with K, M, G, T or P (512M, 1.5T)"
)]
pub struct ParseSizeError {
    text: String,
    why: &'static str,
}

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// Reads a size in bytes. Units are powers of 1024, in either case, `iB` may follow (`10GiB`). A fraction needs a unit and
/// is rounded down to a multiple of 4096 bytes, so that it can be the size of a disk.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, ParseSizeError> {
    let fail = |why| ParseSizeError {
        text: text.to_owned(),
        why,
    };
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => None,
        unit => {
            let (letter, rest) = unit.split_at(unit.chars().next().map_or(0, char::len_utf8));
            let known = UNITS.iter().find(|(name, _)| letter.starts_with(*name));
            match (known, rest) {
                (Some((_, shift)), "" | "B" | "IB") => Some(*shift),
                _ => return Err(fail("unknown unit")),
            }
        }
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    if whole.is_empty() {
        return Err(fail("it does not start with a digit"));
    }
    let whole: u64 = whole.parse().map_err(|_| fail("too large"))?;
    let bytes = whole
        .checked_mul(1 << shift.unwrap_or(0))
        .ok_or_else(|| fail("too large"))?;
    let Some(fraction) = fraction else {
        return Ok(bytes);
    };
    let Some(shift) = shift else {
        return Err(fail("a fraction needs a unit"));
    };
    if fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return Err(fail("one to nine digits after one point"));
    }
    let numerator: u64 = fraction.parse().map_err(|_| fail("not a number"))?;
    let denominator = 10u128.pow(fraction.len() as u32);
    let part = (u128::from(numerator) << shift) / denominator;
    let part = u64::try_from(part).map_err(|_| fail("too large"))?;
    let sum = bytes.checked_add(part).ok_or_else(|| fail("too large"))?;
    Ok(sum - sum % 4096)
}

/// Writes a size for people: `10 GiB`, `1.5 GiB`, `512 B`; at most one decimal, rounded down.
pub fn format_size(bytes: u64) -> String {
    SizeText(bytes).to_string()
}

struct SizeText(u64);

impl fmt::Display for SizeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().rev().find(|(_, shift)| self.0 >> shift > 0);
        let Some((name, shift)) = unit else {
            return write!(f, "{} B", self.0);
        };
        let whole = self.0 >> shift;
        let rest = self.0 & ((1 << shift) - 1);
        // At most 10 * 2^50: no overflow.
        match (rest * 10) >> shift {
            0 => write!(f, "{whole} {name}iB"),
            tenths => write!(f, "{whole}.{tenths} {name}iB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512b", 512),
            ("64K", 64 << 10),
            ("512M", 512 << 20),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("10GB", 10 << 30),
            ("10GiB", 10 << 30),
            ("15T", 15 << 40),
            ("1.5T", 3 << 39),
            ("0.5K", 0),
            ("1.3G", 1_395_864_371 / 4096 * 4096),
            ("8P", 8 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_hint() {
        for text in [
            "",
            "G",
            "-1",
            "1.5",
            "1.G",
            ".5G",
            "1.2.3G",
            "10X",
            "10GG",
            "1 G",
            "16777216T",
            "99999999999999999999",
            "1.0123456789G",
            "10é",
        ] {
            let error = parse_size(text).expect_err(text);
            assert!(error.to_string().contains("512M"), "{error}");
        }
    }

    #[test]
    fn sizes_are_written_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (4096, "4 KiB"),
            (1536 << 20, "1.5 GiB"),
            (10 << 30, "10 GiB"),
            ((10 << 30) - 1, "9.9 GiB"),
            (15 << 40, "15 TiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn whole_numbers_with_units_are_exact(number in 0u64..10_000, unit in 0usize..5) {
            let (name, shift) = UNITS[unit];
            let expected = number.checked_mul(1 << shift);
            prop_assert_eq!(parse_size(&format!("{number}{name}")).ok(), expected);
        }

        #[test]
        fn any_number_of_bytes_can_be_written(bytes: u64) {
            prop_assert!(format_size(bytes).ends_with('B'));
        }
    }
}
