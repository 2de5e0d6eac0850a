//! What a run does, on standard error, where `DST_FUZZ_TRACE` is set: to read what an input means.

use std::sync::OnceLock;

/// Whether to tell.
pub fn on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os("DST_FUZZ_TRACE").is_some())
}

/// Tells one event.
#[macro_export]
macro_rules! trace {
    ($($what:tt)*) => {
        if $crate::trace::on() {
            eprintln!($($what)*);
        }
    };
}
