//! `dst serve --stdio` as a server of its own, which ends with the streams: for what nobody can come back to (`memory:`,
//! `null:`), and where streams can't be handed over.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};

use dst_net::{StdioStream, Stream};
use dst_server::Server;

use super::{announce, config, finish, prepare, start_failure, tell_notes, watch_signals};
use crate::cli::Serve;
use crate::exit::{Failure, Outcome};
use crate::render;

/// Serves on these streams until they end, or a signal comes.
///
/// # Errors
/// The server can't start, or could not make everything durable at the end.
pub fn run(options: &Serve, input: OwnedFd, output: OwnedFd) -> Outcome {
    let signals = prepare()?;
    let stream = StdioStream::new(input, output)
        .map_err(Failure::io("can't serve on the standard streams"))?;
    let (stream, ended) = Noticed::new(stream);
    let server = Server::start_with(config(options, Vec::new()), vec![Box::new(stream)])
        .map_err(start_failure)?;
    tell_notes(&server);
    render::note(&announce::announcement(options, &[], &server).text(options));
    watch_signals(signals, server.handle())?;
    // Nothing is ever sent: it ends with the stream.
    let _ = ended.recv();
    server.handle().drain();
    finish(server)
}

/// A stream whose end can be waited for.
struct Noticed {
    stream: StdioStream,
    _ended: Sender<()>,
}

impl Noticed {
    fn new(stream: StdioStream) -> (Self, Receiver<()>) {
        let (sender, receiver) = mpsc::channel();
        let noticed = Self {
            stream,
            _ended: sender,
        };
        (noticed, receiver)
    }
}

impl Stream for Noticed {
    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.fd()
    }

    fn write_fd(&self) -> BorrowedFd<'_> {
        self.stream.write_fd()
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.stream.read_vectored(bufs)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(bufs)
    }

    fn shutdown(&mut self) {
        self.stream.shutdown();
    }

    fn peer(&self) -> String {
        self.stream.peer()
    }

    fn is_local(&self) -> bool {
        self.stream.is_local()
    }

    fn is_trusted(&self) -> bool {
        self.stream.is_trusted()
    }
}
