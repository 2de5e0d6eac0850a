//! `dst status --watch`: shows the same again and again. On a terminal each view replaces the one before; elsewhere one
//! follows the other. Ends on a signal, when nobody reads any more, or when the one device asked for is gone.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant, SystemTime};

use crate::exit::{Failure, Outcome};
use crate::render;
use crate::signals::Signals;
use crate::status;

/// Pause between two looks unless another is asked for.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Agents have something else to do.
const SHORTEST: Duration = Duration::from_millis(100);

/// The cursor goes to the upper left corner; what was there is overwritten line by line, so nothing flickers.
const HOME: &str = "\x1b[H";
/// The rest of the line.
const CLEAR_LINE: &str = "\x1b[K";
/// Everything below.
const CLEAR_BELOW: &str = "\x1b[J";
/// Everything.
const CLEAR_ALL: &str = "\x1b[2J";

/// Shows `device`, or all of them, until a signal comes.
///
/// # Errors
/// The one device asked for is not there, or no more.
pub fn run(device: Option<&str>, interval: Duration, json: bool) -> Outcome {
    let interval = interval.max(SHORTEST);
    let signals = Signals::install().map_err(Failure::io("can't take signals"))?;
    let terminal = !json && io::stdout().is_terminal();
    let mut first = true;
    let mut next = Instant::now();
    loop {
        let reports = status::reports(device)?;
        let text = match json {
            true => line_of_json(&reports, SystemTime::now()),
            false => status::as_text(&reports, device),
        };
        let text = match (terminal, json) {
            (true, _) => screen(&text, first),
            (false, false) => format!("{text}\n"),
            (false, true) => text,
        };
        if !render::print_while_read(&text)? {
            return Ok(());
        }
        first = false;
        // Looks that took too long are left out.
        next = (next + interval).max(Instant::now());
        if signals.wait_until(next) {
            return Ok(());
        }
    }
}

/// One view as a terminal gets it.
fn screen(text: &str, first: bool) -> String {
    let start = if first { CLEAR_ALL } else { "" };
    let lines = text.replace('\n', &format!("{CLEAR_LINE}\n"));
    format!("{start}{HOME}{lines}{CLEAR_BELOW}")
}

/// One view as an object with `time`, in seconds since 1970, in one line.
fn line_of_json(reports: &[crate::control::DeviceReport], now: SystemTime) -> String {
    let mut value = status::as_json(reports);
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    // A clock before 1970 is wrong, and nobody's to repair here.
    let millis = since.map_or(0, |since| since.as_millis());
    value["time"] = serde_json::json!(millis as f64 / 1e3);
    format!("{value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::DeviceReport;

    #[test]
    fn a_view_leaves_nothing_of_the_one_before() {
        let text = screen("a\nb\n", false);
        assert_eq!(text, "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        assert!(screen("a\n", true).starts_with("\x1b[2J\x1b[H"));
    }

    #[test]
    fn a_view_in_json_is_one_line_with_the_time() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let text = line_of_json(&[DeviceReport::default()], now);
        assert_eq!(text.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["time"], 1.5);
        assert_eq!(value["devices"].as_array().unwrap().len(), 1);
    }
}
