//! Two network namespaces with a cable between them that can be pulled.

use std::time::Duration;

use anyhow::Result;

use super::Lab;
use crate::command::{self, cmd};

const BOUND: Duration = Duration::from_secs(20);

/// Two namespaces joined by a veth pair: `server` with 10.77.0.1 and `client` with 10.77.0.2 (and fd77::1, fd77::2).
pub struct Network {
    server: String,
    client: String,
}

/// The name of the interface in both namespaces.
const LINK: &str = "cable";

impl Network {
    /// Makes both.
    ///
    /// # Errors
    /// This kernel or user can't.
    pub fn new(lab: &Lab) -> Result<Network> {
        let network = Network {
            server: lab.unique("s"),
            client: lab.unique("c"),
        };
        for name in [&network.server, &network.client] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        ip(&[
            "-n",
            &network.server,
            "link",
            "add",
            LINK,
            "type",
            "veth",
            "peer",
            "name",
            LINK,
            "netns",
            &network.client,
        ])?;
        for (name, host) in [(&network.server, 1), (&network.client, 2)] {
            ip(&[
                "-n",
                name,
                "addr",
                "add",
                &format!("10.77.0.{host}/24"),
                "dev",
                LINK,
            ])?;
            ip(&[
                "-n",
                name,
                "addr",
                "add",
                &format!("fd77::{host}/64"),
                "dev",
                LINK,
                "nodad",
            ])?;
            ip(&["-n", name, "link", "set", LINK, "up"])?;
            // An IPv6 address stays when the cable is pulled, as an IPv4 one does.
            let keep = format!("echo 1 > /proc/sys/net/ipv6/conf/{LINK}/keep_addr_on_down");
            command::ok(
                &mut cmd("ip", ["netns", "exec", name, "sh", "-c", &keep]),
                BOUND,
            )?;
        }
        Ok(network)
    }

    /// A command that runs the one behind it on the server's side.
    pub fn on_server(&self) -> Vec<String> {
        enter(&self.server)
    }

    /// The same on the client's side.
    pub fn on_client(&self) -> Vec<String> {
        enter(&self.client)
    }

    /// Pulls the cable, or puts it back.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn set_cable(&self, up: bool) -> Result<()> {
        ip(&[
            "-n",
            &self.server,
            "link",
            "set",
            LINK,
            if up { "up" } else { "down" },
        ])
    }

    /// Adds and removes IPv4 addresses of the server's side (`10.77.0.9`).
    ///
    /// # Errors
    /// `ip` fails.
    pub fn move_server(&self, from: &str, to: &str) -> Result<()> {
        move_address(&self.server, from, to)
    }

    /// The same of the client's side.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn move_client(&self, from: &str, to: &str) -> Result<()> {
        move_address(&self.client, from, to)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [&self.client, &self.server] {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// Removed first: to delete an address takes those along that were added after it in the same network.
fn move_address(space: &str, from: &str, to: &str) -> Result<()> {
    ip(&[
        "-n",
        space,
        "addr",
        "del",
        &format!("{from}/24"),
        "dev",
        LINK,
    ])?;
    ip(&["-n", space, "addr", "add", &format!("{to}/24"), "dev", LINK])
}

/// Only the network namespace: the mounts of an agent stay where everybody sees them.
fn enter(name: &str) -> Vec<String> {
    vec!["nsenter".to_owned(), format!("--net=/run/netns/{name}")]
}

fn ip(args: &[&str]) -> Result<()> {
    command::ok(&mut cmd("ip", args), BOUND)?;
    Ok(())
}
