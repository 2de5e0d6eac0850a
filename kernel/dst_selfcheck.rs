// SPDX-License-Identifier: GPL-2.0

//! Shows that the wire format and the engine work in a kernel: runs their self-checks when it is
//! loaded and refuses to load if one fails.
//!
//! The two modules are the sources of the crates `dst-proto` and `dst-engine`, unchanged.

use kernel::prelude::*;

#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../crates/dst-proto/src/modules.rs"]
mod proto;

#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../crates/dst-engine/src/modules.rs"]
mod engine;

module! {
    type: SelfCheck,
    name: "dst_selfcheck",
    authors: ["The DST authors"],
    description: "Self-checks of the DST wire format and engine",
    license: "GPL",
}

/// A loaded module whose checks have passed; it has nothing else to do.
struct SelfCheck;

impl kernel::Module for SelfCheck {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        check("proto", proto::selfcheck::run())?;
        check("engine", engine::selfcheck::run())?;
        pr_info!("dst: selfcheck ok\n");
        Ok(Self)
    }
}

/// Tells the kernel log what failed and makes it the error that `insmod` sees.
fn check(part: &str, result: core::result::Result<(), &'static str>) -> Result {
    result.map_err(|reason| {
        pr_err!("dst: selfcheck of {part} failed: {reason}\n");
        EINVAL
    })
}
