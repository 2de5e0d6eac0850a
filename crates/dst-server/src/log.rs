//! What threads have to tell the person who runs the server: lines on standard error.

use std::fmt::Arguments;
use std::io::{self, Write as _};

/// Writes a line. Where standard error takes none (a full disk, a closed pipe) there is nobody to tell, and the export goes
/// on: `eprintln!` would panic.
pub(crate) fn line(text: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "dst: {text}");
}
