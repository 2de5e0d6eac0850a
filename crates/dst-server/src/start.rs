//! An export as its thread finds it: the backend, what is remembered, the incarnation.
//!
//! The *clean* mark of the last stop stays where it is: a server that starts and serves nobody has changed nothing.
//! [`Worker::begin_serving`] takes it away before the first session is granted.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::Receiver as Inbox;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use dst_engine::server::{Entry, Export, ExportConfig as Rules, Record};
use dst_ids::{from_hex, hex, random};
use dst_net::{Interest, Poller, Waker};
use dst_proto::{HEADER_LEN, MAX_DIGEST_AREA};
use dst_store::{FileKey, OpenOptions, Source};

use crate::changes::Changes;
use crate::config::{ExportConfig, StartError};
use crate::drain::Drain;
use crate::port::{Listing, Message};
use crate::record::{RecordFile, Saved, SavedLease};
use crate::server::Common;
use crate::worker::{nanoseconds, Worker, BACKEND, CHANGES, REFRESH, WAKER};

/// Sessions of one export at once, those that end included. Memory is bounded apart; each takes a little of every turn.
const SESSIONS: usize = 256;

impl Worker {
    /// Opens the backend and reads what is remembered of the export. Answers the worker and what to tell of it.
    pub fn open(
        index: usize,
        export: &ExportConfig,
        common: Common,
        inbox: Inbox<Message>,
        waker: Waker,
    ) -> Result<(Self, Arc<Mutex<Listing>>), StartError> {
        let Common {
            config,
            directory,
            budget,
            pool,
        } = common;
        let name = export.spec.name.clone();
        let backend = export
            .spec
            .open(&OpenOptions {
                read_only: export.read_only,
                create_size: export.create_size,
                block_size: export.block_size,
                state_dir: Some(config.state_dir.clone()),
                runtime_dir: config.runtime_dir.clone(),
                ..OpenOptions::default()
            })
            .map_err(|source| StartError::Export {
                name: name.clone(),
                source,
            })?;
        let state_error = |source| StartError::State {
            name: name.clone(),
            dir: config.state_dir.display().to_string(),
            source,
        };
        let identity = backend.identity();
        let continuity = identity.continuity.map(|hash| hex(&hash));
        // Where the id dies with the process there is nothing to come back to.
        let file = match export.spec.source {
            Source::Memory(_) | Source::Null(_) => None,
            Source::Path(_) | Source::Lossy(..) => {
                Some(RecordFile::new(&config.state_dir, &identity.export_id).map_err(state_error)?)
            }
        };
        let before = match &file {
            Some(file) => file.load().map_err(state_error)?.unwrap_or_default(),
            None => Saved::default(),
        };
        let goes_on = before.clean || continuity.is_some() && continuity == before.continuity;
        let kept = from_hex(&before.incarnation).filter(|_| goes_on);
        let incarnation = kept.unwrap_or_else(random);
        let lease = before.lease.as_ref().and_then(SavedLease::record);
        // A gate that an earlier start closed is still closed.
        let fresh = kept.is_none() || before.replay_owed;
        let saved = Saved {
            name: name.clone(),
            incarnation: hex(&incarnation),
            continuity,
            replay_owed: fresh && lease.is_some_and(|lease| lease.held),
            ..before
        };
        // What can't be written now could not be when it matters.
        if let Some(file) = &file {
            file.store(&saved).map_err(state_error)?;
        }

        let poller = Poller::new()?;
        poller.add(waker.fd(), WAKER, Interest::READ)?;
        poller.add(backend.wake_fd(), BACKEND, Interest::READ)?;
        let changes = match &export.spec.source {
            // Without a watch a change is noticed a little later.
            Source::Path(path) | Source::Lossy(path, _) => Changes::of(path).ok(),
            Source::Memory(_) | Source::Null(_) => None,
        };
        if let Some(changes) = &changes {
            poller.add(changes.fd(), CHANGES, Interest::READ)?;
        }
        let rules = Rules {
            id: identity.export_id,
            incarnation,
            fresh,
            record: lease.unwrap_or(Record::NONE),
            read_only: backend.info().read_only,
            lease_time: nanoseconds(config.lease_time),
        };
        let table = vec![Entry::default(); SESSIONS].into_boxed_slice();
        let listing = Arc::new(Mutex::new(Listing {
            name,
            ..Listing::default()
        }));
        let worker = Self {
            index,
            config,
            backend,
            rules: Export::new(&rules, table, 0),
            members: BTreeMap::new(),
            keys: HashMap::new(),
            next_key: 1,
            remains: BTreeMap::new(),
            conns: BTreeMap::new(),
            next_conn: 0,
            asking: BTreeMap::new(),
            admitted_client: String::new(),
            directory,
            saved,
            record_file: file,
            poller,
            budget,
            pool,
            scratch: vec![0; HEADER_LEN + MAX_DIGEST_AREA as usize].into_boxed_slice(),
            done: Vec::new(),
            lost: Vec::new(),
            unfinished: Vec::new(),
            flush_wanted: false,
            drain: Drain::No,
            local_clients: false,
            listing: Arc::clone(&listing),
            inbox,
            waker,
            started: Instant::now(),
            next_refresh: REFRESH,
            changes,
        };
        worker.publish();
        Ok((worker, listing))
    }

    /// The id that stays with the export's content.
    pub fn export_id(&self) -> [u8; 16] {
        self.rules.state().id
    }

    /// The file or device that the export is on.
    pub fn file(&self) -> Option<FileKey> {
        self.backend.file()
    }

    /// What people should know about the export, if anything.
    pub fn note(&self) -> Option<String> {
        self.backend.identity().note
    }

    /// From here on a crash is no clean stop: the mark is durably gone. To be called before a session begins; false means that
    /// none may.
    pub(crate) fn begin_serving(&mut self) -> bool {
        if !self.saved.clean {
            return true;
        }
        self.saved.clean = false;
        let gone = self.save();
        self.saved.clean = !gone;
        gone
    }
}
