//! `dst list`: what a server offers.

use dst_client::Listed;
use dst_store::format_size;
use serde_json::json;

use crate::cli::List;
use crate::exit::{Code, Failure, Outcome};
use crate::render::{self, Table};

/// Runs it.
///
/// # Errors
/// The server can't be asked, or has not the export that the URL names.
pub fn run(options: &List, json: bool) -> Outcome {
    let mut exports = dst_client::list(&options.url, options.insecure, &crate::host_name())
        .map_err(|error| Failure::from_open(&options.url, error))?;
    if let Some(wanted) = options.url.export() {
        exports.retain(|export| export.name == wanted);
        if exports.is_empty() {
            return Err(Failure::new(
                Code::NoExport,
                format!("{}: the server has no export of that name", options.url),
            ));
        }
    }
    if json {
        return render::json(&json!({ "exports": exports }));
    }
    if exports.is_empty() {
        return render::line("The server offers nothing.");
    }
    render::print(&table(&exports))
}

fn table(exports: &[Listed]) -> String {
    let mut table = Table::new(&["EXPORT", ">SIZE", "MODE", ">BLOCK", "WRITTEN BY"]);
    for export in exports {
        table.row([
            export.name.clone(),
            format_size(export.size),
            if export.read_only {
                "read-only"
            } else {
                "read-write"
            }
            .to_owned(),
            export.logical_block.to_string(),
            export.writer.clone().unwrap_or_default(),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_size_mode_block_size_and_writer() {
        let export = |name: &str, read_only, writer: Option<&str>| Listed {
            name: name.into(),
            size: 10 << 30,
            logical_block: 4096,
            read_only,
            writer: writer.map(str::to_owned),
        };
        let text = table(&[
            export("disk", false, Some("desktop")),
            export("iso", true, None),
        ]);
        assert_eq!(
            text,
            "EXPORT    SIZE  MODE        BLOCK  WRITTEN BY\n\
             disk    10 GiB  read-write   4096  desktop\n\
             iso     10 GiB  read-only    4096  -\n"
        );
    }
}
