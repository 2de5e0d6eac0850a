//! What `dst serve` says once the server runs: what it serves, and the lines to carry to the other side.

use std::net::IpAddr;

use dst_net::url::DEFAULT_PORT;
use dst_net::{Address, Endpoint};
use dst_server::Server;
use dst_store::{format_size, Source};
use serde::Serialize;

use crate::cli::Serve;

/// What is said once the server runs.
#[derive(Debug, Serialize)]
pub struct Announcement {
    /// Process id.
    pid: u32,
    /// URLs without an export, for clients on this machine.
    listening: Vec<String>,
    exports: Vec<Announced>,
    /// Whether `attach` needs `--insecure`.
    #[serde(skip)]
    from_afar: bool,
}

#[derive(Debug, Serialize)]
struct Announced {
    name: String,
    size: u64,
    block_size: u32,
    read_only: bool,
    /// Where its bytes are.
    source: String,
    /// The URLs to carry to the other side.
    urls: Vec<String>,
}

/// What there is to say of a server that was started with these options and listens at these addresses.
#[must_use]
pub fn announcement(options: &Serve, listen: &[Endpoint], server: &Server) -> Announcement {
    let local = server.local_urls().to_vec();
    let carried: Vec<Endpoint> = listen
        .iter()
        .zip(&local)
        .filter_map(|(asked, local)| carried(asked, local, &crate::host_name()))
        .collect();
    let served = server.handle().exports().into_iter().zip(&options.exports);
    let exports = served.map(|(export, spec)| Announced {
        urls: carried
            .iter()
            .filter_map(|endpoint| endpoint.with_export(Some(&export.name)).ok())
            .map(|endpoint| short_url(&endpoint))
            .collect(),
        name: export.name,
        size: export.size,
        block_size: export.logical_block,
        read_only: export.read_only,
        source: source_text(&spec.source),
    });
    Announcement {
        pid: std::process::id(),
        listening: local,
        exports: exports.collect(),
        from_afar: options.insecure && listen.iter().any(|endpoint| !is_local(endpoint)),
    }
}

impl Announcement {
    /// In words.
    #[must_use]
    pub fn text(&self, options: &Serve) -> String {
        let mut text = String::new();
        for export in &self.exports {
            let mode = if export.read_only {
                "read-only"
            } else {
                "read-write"
            };
            text.push_str(&format!(
                "serving {}: {}, {mode}, {} byte blocks, {}\n",
                export.name,
                format_size(export.size),
                export.block_size,
                export.source
            ));
        }
        if options.stdio {
            return text.trim_end().to_owned();
        }
        let here_only = match self.from_afar {
            true => "",
            false => " (on this machine only)",
        };
        text.push_str(&format!("\nto attach{here_only}:\n"));
        let flag = if self.from_afar { "--insecure " } else { "" };
        for export in &self.exports {
            if let Some(url) = export.urls.first() {
                text.push_str(&format!("  dst attach {flag}{}\n", quoted(url)));
            }
        }
        if !self.from_afar && options.listen.is_empty() {
            text.push_str(
                "from other machines: --insecure lets them in without encryption, or let them come through ssh:\n  \
                 dst attach 'dst+exec:///NAME?command=ssh%20HOST%20dst%20serve%20--stdio%20PATH'\n",
            );
        }
        text
    }
}

fn source_text(source: &Source) -> String {
    match source {
        Source::Path(path) => path.display().to_string(),
        Source::Memory(_) => "memory, gone when the server ends".to_owned(),
        Source::Null(_) => "null: what is written is lost".to_owned(),
        Source::Lossy(path, _) => format!("{} (loses what is not flushed)", path.display()),
    }
}

/// Whether only this machine can come in there.
fn is_local(endpoint: &Endpoint) -> bool {
    match endpoint.address() {
        Address::Tcp { host, .. } => {
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        Address::Unix { .. } | Address::Exec { .. } => true,
    }
}

/// The address to carry to the other side: with this machine's name in place of "any address", and the port that the system
/// chose.
fn carried(asked: &Endpoint, local: &str, host_name: &str) -> Option<Endpoint> {
    let local: Endpoint = local.parse().ok()?;
    match (asked.address(), local.address()) {
        (Address::Tcp { host, .. }, Address::Tcp { port, .. }) => {
            let any = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
            let host = if any { host_name } else { host };
            let address = Address::Tcp {
                host: host.to_owned(),
                port: *port,
            };
            Endpoint::new(address, None).ok().or(Some(local))
        }
        _ => Some(local),
    }
}

/// Without the port where it is the usual one.
fn short_url(endpoint: &Endpoint) -> String {
    let text = endpoint.to_string();
    match endpoint.address() {
        Address::Tcp { port, .. } if *port == DEFAULT_PORT => {
            text.replacen(&format!(":{DEFAULT_PORT}/"), "/", 1)
        }
        _ => text,
    }
}

/// In quotes if a shell would see more in it than text.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/:%+@,".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn the_url_to_carry_has_the_hosts_name_and_the_real_port() {
        for (asked, local, url) in [
            (
                "dst://[::]:0",
                "dst://[::1]:4711",
                "dst://storage:4711/disk",
            ),
            (
                "dst://0.0.0.0",
                "dst://127.0.0.1:7789",
                "dst://storage/disk",
            ),
            (
                "dst://10.0.0.1",
                "dst://10.0.0.1:7789",
                "dst://10.0.0.1/disk",
            ),
            ("dst://[::1]:0", "dst://[::1]:99", "dst://[::1]:99/disk"),
            (
                "dst+unix:///run/x.sock",
                "dst+unix:///run/x.sock",
                "dst+unix:///run/x.sock?export=disk",
            ),
        ] {
            let carried = carried(&endpoint(asked), local, "storage").unwrap();
            let carried = carried.with_export(Some("disk")).unwrap();
            assert_eq!(short_url(&carried), url, "{asked}");
        }
    }

    #[test]
    fn urls_are_quoted_where_a_shell_would_read_more_into_them() {
        assert_eq!(quoted("dst://storage/disk"), "dst://storage/disk");
        assert_eq!(quoted("dst+unix:///a?export=b"), "'dst+unix:///a?export=b'");
        assert_eq!(quoted("dst://[::1]/a"), "'dst://[::1]/a'");
        assert_eq!(quoted("a'b"), r"'a'\''b'");
    }

    #[test]
    fn loopback_and_unix_sockets_are_this_machines_only() {
        for (url, local) in [
            ("dst://127.0.0.1", true),
            ("dst://localhost", true),
            ("dst://[::1]", true),
            ("dst+unix:///x", true),
            ("dst://[::]", false),
            ("dst://storage", false),
        ] {
            assert_eq!(is_local(&endpoint(url)), local, "{url}");
        }
    }
}
