//! What commands print: aligned tables, numbers for people, JSON. A reader that goes away (`| head`) is no failure.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde::Serialize;

use crate::exit::{Failure, Outcome};

/// Prints to standard output and flushes it.
///
/// # Errors
/// It can't be written to, other than by its reader being gone.
pub fn print(text: &str) -> Outcome {
    print_while_read(text).map(drop)
}

/// As [`print()`]; says whether somebody still reads.
///
/// # Errors
/// As [`print()`].
pub fn print_while_read(text: &str) -> Outcome<bool> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::io("can't write to standard output")(error)),
    }
}

/// Prints a line.
///
/// # Errors
/// As [`print()`].
pub fn line(text: &str) -> Outcome {
    print(&format!("{text}\n"))
}

/// Prints a line to standard error; nobody is there to tell if that fails.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a value as JSON, indented.
///
/// # Errors
/// As [`print()`].
pub fn json(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::io("can't make JSON")(io::Error::from(error)))?;
    line(&text)
}

/// Columns that line up. The first row is the heading.
#[derive(Debug)]
pub struct Table {
    /// Per column: to the right, for numbers.
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading; columns whose heading starts with `>` are aligned to the right.
    #[must_use]
    pub fn new(heading: &[&str]) -> Self {
        let strip = |text: &&str| text.strip_prefix('>').unwrap_or(text).to_owned();
        Self {
            right: heading.iter().map(|text| text.starts_with('>')).collect(),
            rows: vec![heading.iter().map(strip).collect()],
        }
    }

    /// Adds a row; empty cells are shown as `-`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| match cell.is_empty() {
            true => "-".to_owned(),
            false => cell,
        });
        self.rows.push(cells.collect());
    }

    /// The text, one line per row.
    #[must_use]
    pub fn text(&self) -> String {
        let mut widths = vec![0; self.right.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                // Writing to a string does not fail.
                let _ = match right {
                    true => write!(line, "{cell:>width$}  "),
                    false => write!(line, "{cell:<width$}  "),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `name: value` lines that line up. Empty values are left out.
#[must_use]
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        let name = format!("{name}:");
        let _ = writeln!(text, "{name:<width$} {value}");
    }
    text
}

/// A number with thousands separated: `12,345`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes per second: `12.3 MiB/s`.
#[must_use]
pub fn throughput(bytes_per_second: f64) -> String {
    format!("{:.1} MiB/s", bytes_per_second / f64::from(1 << 20))
}

/// A duration in seconds for people: `5 s`, `3 min`, `2 h 5 min`, `3 d 4 h`.
#[must_use]
pub fn seconds(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Nanoseconds as microseconds or milliseconds: `85 µs`, `1.25 ms`.
#[must_use]
pub fn latency(nanos: u64) -> String {
    match nanos {
        0..1_000_000 => format!("{:.0} µs", nanos as f64 / 1e3),
        _ => format!("{:.2} ms", nanos as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_empty_cells_show() {
        let mut table = Table::new(&["NAME", ">SIZE", "WRITER"]);
        table.row(["disk".into(), "1 GiB".into(), String::new()]);
        table.row(["größer".into(), "512 B".into(), "x".into()]);
        assert_eq!(
            table.text(),
            "NAME     SIZE  WRITER\ndisk    1 GiB  -\ngrößer  512 B  x\n"
        );
    }

    #[test]
    fn fields_line_up_and_empty_ones_are_left_out() {
        let text = fields(&[
            ("a", "1".into()),
            ("long", "2".into()),
            ("none", String::new()),
        ]);
        assert_eq!(text, "a:    1\nlong: 2\n");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(throughput(1_572_864.0), "1.5 MiB/s");
        assert_eq!(seconds(119), "119 s");
        assert_eq!(seconds(125), "2 min");
        assert_eq!(seconds(7500), "2 h 5 min");
        assert_eq!(seconds(200_000), "2 d 7 h");
        assert_eq!(latency(85_400), "85 µs");
        assert_eq!(latency(1_254_000), "1.25 ms");
    }
}
