//! The server as a whole: its threads, how to watch and how to stop it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::Arc;
use std::thread::JoinHandle;

use dst_buf::Pool;
use dst_net::{Endpoint, Listener, Stream, Waker};
use dst_proto::GeometryFlags;
use serde::Serialize;

use crate::budget::Budget;
use crate::config::{Config, StartError};
use crate::front::{Entrance, Front, Handed};
use crate::guard;
use crate::handover::desk::Desk;
use crate::port::{Directory, Message, Places, Port};
use crate::worker::Worker;

/// What an export is and who uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportInfo {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Logical block, bytes.
    pub logical_block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The client that writes, if one does.
    pub writer: Option<String>,
    /// Sessions, readers and the writer.
    pub sessions: usize,
}

/// What a stop came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Exports that are flushed and marked clean.
    pub clean: Vec<String>,
    /// Exports that are not, and why.
    pub unclean: Vec<(String, String)>,
}

/// Stops or watches a server from anywhere.
#[derive(Clone)]
pub struct Handle {
    ports: Arc<[Port]>,
    pub(crate) stop: Arc<AtomicBool>,
    front: Waker,
    pub(crate) desk: Waker,
    /// See [`Handle::expect_nobody`].
    pub(crate) expects_nobody: Arc<AtomicBool>,
}

impl Handle {
    /// Stops in order: no new sessions, clients are told, what is in flight is finished, everything is flushed.
    pub fn drain(&self) {
        self.stop.store(true, Ordering::Release);
        self.front.wake();
        self.desk.wake();
        for port in self.ports.iter() {
            port.send(Message::Drain);
        }
    }

    /// A server that ends when it is unused need not wait for a first stream.
    pub fn expect_nobody(&self) {
        self.expects_nobody.store(true, Ordering::Release);
        self.desk.wake();
    }

    /// The exports as they are now.
    pub fn exports(&self) -> Vec<ExportInfo> {
        let info = |port: &Port| {
            let listing = port.listing();
            ExportInfo {
                name: listing.name,
                size: listing.size,
                logical_block: listing.logical_block,
                read_only: listing.flags.contains(GeometryFlags::READ_ONLY),
                writer: (!listing.writer.is_empty()).then_some(listing.writer),
                sessions: listing.sessions,
            }
        };
        self.ports.iter().map(info).collect()
    }
}

/// What the threads of all exports share.
#[derive(Clone)]
pub(crate) struct Common {
    pub config: Arc<Config>,
    pub directory: Arc<Directory>,
    pub budget: Arc<Budget>,
    pub pool: Pool,
}

/// A server that runs. Dropping it does not stop it: [`Handle::drain`], then [`Server::wait`].
pub struct Server {
    handle: Handle,
    front: JoinHandle<()>,
    desk: Option<JoinHandle<()>>,
    workers: Vec<(String, JoinHandle<bool>)>,
    urls: Vec<String>,
    notes: Vec<String>,
}

impl Server {
    /// Opens and locks every export, listens, and serves from threads of its own.
    pub fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Vec::new())
    }

    /// As [`Server::start`], with streams that are there already: standard input and output, for example.
    pub fn start_with(config: Config, streams: Vec<Box<dyn Stream>>) -> Result<Self, StartError> {
        if config.memory < Config::LEAST_MEMORY {
            return Err(StartError::Memory(config.memory));
        }
        let config = Arc::new(config);
        let mut names = HashSet::new();
        for export in &config.exports {
            let name = &export.spec.name;
            if !names.insert(name) {
                let text = format!("two exports are named {name}; name them with NAME=PATH");
                return Err(StartError::Name(text));
            }
        }
        let writable: Vec<bool> = config.exports.iter().map(|e| !e.read_only).collect();
        let budget = Budget::new(config.memory, &writable);
        let common = Common {
            config: Arc::clone(&config),
            directory: Arc::default(),
            pool: Pool::new(usize::try_from(budget.cached()).unwrap_or(usize::MAX)),
            budget,
        };
        let mut ports = Vec::new();
        let mut workers = Vec::new();
        let mut notes = Vec::new();
        let mut ids = HashMap::new();
        for (index, export) in config.exports.iter().enumerate() {
            let waker = Waker::new()?;
            let (inbox, messages) = mpsc::channel();
            let (worker, listing) =
                Worker::open(index, export, common.clone(), messages, waker.clone())?;
            let name = export.spec.name.clone();
            // A copy of an image carries the original's id along: clients could not tell them apart.
            if let Some(other) = ids.insert(worker.export_id(), name.clone()) {
                return Err(StartError::SameId { name, other });
            }
            notes.extend(worker.note().map(|note| format!("export {name}: {note}")));
            ports.push(Port {
                name,
                file: worker.file(),
                inbox,
                waker,
                places: Places::default(),
                listing,
            });
            workers.push(worker);
        }
        let listeners = listen(&config)?;
        let urls = listeners.iter().map(|l| l.local_url()).collect();
        let ports: Arc<[Port]> = ports.into();
        let handle = Handle {
            ports: Arc::clone(&ports),
            stop: Arc::new(AtomicBool::new(false)),
            front: Waker::new()?,
            desk: Waker::new()?,
            expects_nobody: Arc::default(),
        };
        let (inbox, handed) = mpsc::channel();
        let desk = open_desk(&config, &ports, inbox, &handle, &mut notes)?;
        let mut front = Front::new(
            listeners,
            Arc::clone(&ports),
            common.directory,
            config.insecure,
            handed,
            handle.front.clone(),
            Arc::clone(&handle.stop),
        )?;
        for stream in streams {
            front.adopt(stream);
        }
        let workers = workers
            .into_iter()
            .zip(ports.iter())
            .map(|(worker, port)| {
                let thread = guard::spawn(&port.name, move || worker.run())?;
                Ok((port.name.clone(), thread))
            })
            .collect::<io::Result<_>>()?;
        let front = guard::spawn("front", move || front.run())?;
        let desk = desk.map(|desk| guard::spawn("handover", move || desk.run()));
        Ok(Self {
            handle,
            front,
            desk: desk.transpose()?,
            workers,
            urls,
            notes,
        })
    }

    /// To stop and watch it from elsewhere.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// URLs for clients on this machine, without an export; ports that the system chose are filled in.
    pub fn local_urls(&self) -> &[String] {
        &self.urls
    }

    /// What the person who runs the server should know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Waits until it has been stopped. A thread of it that fails before ends the process.
    pub fn wait(self) -> Summary {
        let mut summary = Summary::default();
        for (name, worker) in self.workers {
            match worker.join() {
                Ok(true) => summary.clean.push(name),
                Ok(false) => summary
                    .unclean
                    .push((name, "its last flush failed".to_owned())),
                Err(_) => summary
                    .unclean
                    .push((name, "its thread panicked".to_owned())),
            }
        }
        // These end by the flag.
        let _ = self.front.join();
        if let Some(desk) = self.desk {
            let _ = desk.join();
        }
        summary
    }
}

/// Opens the desk for streams that are handed over. A server that has other ways in can do without, and says so in `notes`.
fn open_desk(
    config: &Config,
    ports: &Arc<[Port]>,
    inbox: mpsc::Sender<Handed>,
    handle: &Handle,
    notes: &mut Vec<String>,
) -> Result<Option<Desk>, StartError> {
    let Some(hand_over) = config.hand_over.clone() else {
        return Ok(None);
    };
    let (dir, needed) = (
        hand_over.directory.display().to_string(),
        hand_over.ends_unused,
    );
    let front = Entrance {
        inbox,
        waker: handle.front.clone(),
    };
    match Desk::open(
        hand_over,
        &config.state_dir,
        Arc::clone(ports),
        front,
        handle.clone(),
    ) {
        Ok(desk) => Ok(Some(desk)),
        Err(source) if needed => Err(StartError::HandOver { dir, source }),
        Err(error) => {
            notes.push(format!(
                "`dst serve --stdio` can't use this server: {dir}: {error}"
            ));
            Ok(None)
        }
    }
}

/// Listens at every address, at none that strangers could reach unless that is meant.
fn listen(config: &Config) -> Result<Vec<Box<dyn Listener>>, StartError> {
    let open = |endpoint: &Endpoint| {
        if !config.insecure && !endpoint.transport().is_trusted() {
            return Err(StartError::Insecure(endpoint.to_string()));
        }
        endpoint.listen().map_err(|source| StartError::Listen {
            url: endpoint.to_string(),
            source,
        })
    };
    config.listen.iter().map(open).collect()
}
