//! What an agent is to serve, and how: what was given on the command line, and for a device that is taken over, what the dead
//! agent has written down.

use std::time::Duration;

use dst_blockdev::Choice;
use dst_net::Endpoint;

use crate::cli::Attach;
use crate::exit::{Code, Failure, Outcome};
use crate::runtime_dir::DeviceDir;
use crate::values::{Bytes, Limit};

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The device's name.
    pub name: String,
    /// The device is there and waits: its agent is dead.
    pub recovers: bool,
    /// The export.
    pub url: Endpoint,
    /// How it is to reach the system.
    pub front_end: Choice,
    /// When requests fail that are not answered.
    pub deadline: Limit,
    /// Connections.
    pub connections: u16,
    /// Refuse writes.
    pub read_only: bool,
    /// How much of acknowledged writes is kept; the usual amount unless given.
    pub retain: Option<Bytes>,
    /// How long to try to reach the server before there is a device.
    pub connect_timeout: Limit,
    /// Allow plaintext over a network.
    pub insecure: bool,
}

impl Plan {
    /// What `options` ask for.
    ///
    /// # Errors
    /// There is no export or no name, or nothing that could be taken over.
    pub fn of(options: &Attach) -> Outcome<Self> {
        match (&options.recover, &options.url) {
            (Some(name), _) => Self::of_dead(options, name),
            (None, Some(url)) => Self::of_new(options, url),
            (None, None) => Err(Failure::new(Code::Usage, "no export is named")),
        }
    }

    fn of_new(options: &Attach, url: &Endpoint) -> Outcome<Self> {
        Ok(Self {
            name: device_name(url, options.name.as_deref())?,
            recovers: false,
            url: url.clone(),
            front_end: options.front_end,
            deadline: options.deadline.unwrap_or(Limit(None)),
            connections: options.connections.unwrap_or(1),
            read_only: options.read_only,
            retain: options.retain,
            connect_timeout: options.connect_timeout,
            insecure: options.insecure,
        })
    }

    /// As the agent of `name` ran, but for what `options` say.
    fn of_dead(options: &Attach, name: &str) -> Outcome<Self> {
        let unknown = |what: &str| {
            Failure::new(
                Code::Other,
                format!("the agent of {name} can't be succeeded: {what}"),
            )
        };
        let dir = DeviceDir::own(name);
        let info = dir
            .info()
            .ok_or_else(|| unknown("it has written nothing down"))?;
        let settings = info
            .settings
            .ok_or_else(|| unknown("an older version of dst wrote down too little"))?;
        let url = info.url.parse();
        let front_end = settings.front_end.parse();
        let then = settings.deadline_ms.map(Duration::from_millis);
        Ok(Self {
            name: name.to_owned(),
            recovers: true,
            url: url.map_err(|_| unknown("what it has written down names no export"))?,
            front_end: front_end.map_err(|why: String| unknown(&why))?,
            deadline: options.deadline.unwrap_or(Limit(then)),
            connections: options.connections.unwrap_or(settings.connections),
            read_only: info.read_only,
            retain: Some(Bytes(settings.retain)),
            connect_timeout: options.connect_timeout,
            insecure: options.insecure || settings.insecure,
        })
    }
}

/// The name as given, or the export's.
fn device_name(url: &Endpoint, given: Option<&str>) -> Outcome<String> {
    let Some(export) = url.export() else {
        return Err(Failure::new(Code::Usage, format!("{url} names no export"))
            .hint(format!("`dst list {url}` shows what the server has")));
    };
    let name = given.unwrap_or(export);
    if dst_blockdev::valid_name(name) {
        return Ok(name.to_owned());
    }
    Err(Failure::new(
        Code::Usage,
        format!("{name:?} can't be the name of a device"),
    )
    .hint("give one with --name: letters, digits, '.', '_' and '-'"))
}
