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

use engine::selfcheck::Workspace;

/// Fresh memory for the checks, made by the compiler.
static FRESH: Workspace = Workspace::new();

/// A loaded module whose checks have passed; it has nothing else to do.
struct SelfCheck;

impl kernel::Module for SelfCheck {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        check("proto", proto::selfcheck::run())?;
        let mut memory = workspace()?;
        check("engine", engine::selfcheck::run(&mut memory))?;
        pr_info!("dst: selfcheck ok\n");
        Ok(Self)
    }
}

/// Memory for the checks, which is too large for the stack.
fn workspace() -> Result<KBox<Workspace>> {
    let mut memory = KBox::<Workspace>::new_uninit(GFP_KERNEL)?;
    // SAFETY: both are memory for one `Workspace`, and not the same. The copy is a workspace in its own right, since one owns
    // nothing beside its own bytes and borrows nothing; so from here on the box is initialised.
    Ok(unsafe {
        memory
            .as_mut_ptr()
            .copy_from_nonoverlapping(&raw const FRESH, 1);
        memory.assume_init()
    })
}

/// Tells the kernel log what failed and makes it the error that `insmod` sees.
fn check(part: &str, result: core::result::Result<(), &'static str>) -> Result {
    result.map_err(|reason| {
        pr_err!("dst: selfcheck of {part} failed: {reason}\n");
        EINVAL
    })
}
