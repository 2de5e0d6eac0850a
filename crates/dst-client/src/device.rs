//! The remote disk for programs: a [`Driver`] in a thread of its own.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dst_buf::{Buf, Pool};
use dst_net::{Endpoint, Interest, Waker};

use crate::{
    Completion, DeviceStatus, Driver, Extent, Geometry, IoError, Op, OpenError, Options, Reply,
    Request, USER_TOKEN,
};

/// What the device's thread is asked.
enum Order {
    /// A request, and where its completion goes.
    Submit(Op, u64, Sender<Completion>),
    Status(SyncSender<DeviceStatus>),
    /// Flush, end the session, stop.
    Close(SyncSender<io::Result<()>>),
    /// Stop at once.
    Abandon,
}

/// A remote disk. Methods can be called from any thread, and wait for as long as it takes to get an answer: without a
/// deadline in [`Options`], until the server is there again.
///
/// Offsets and lengths are multiples of [`Geometry::logical_block`]. Dropping it without [`Device::close`] ends it at once:
/// what was not flushed may be lost.
pub struct Device {
    orders: Sender<Order>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    geometry: Geometry,
    pool: Pool,
}

impl Device {
    /// Attaches the export that `url` names, for reading and writing, with the defaults of [`Options::new`]: on this
    /// machine only, since connections to others would not be encrypted.
    pub fn connect(url: &str) -> Result<Self, OpenError> {
        let endpoint: Endpoint = url
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Self::connect_with(Options::new(endpoint))
    }

    /// Attaches an export.
    pub fn connect_with(options: Options) -> Result<Self, OpenError> {
        let deadline = options.deadline;
        let driver = Driver::open(options)?;
        let geometry = driver.geometry();
        let pool = driver.pool().clone();
        let waker = Waker::new()?;
        driver
            .poller()
            .add(waker.fd(), USER_TOKEN, Interest::READ)?;
        let (orders, inbox) = mpsc::channel();
        let theirs = waker.clone();
        let thread = std::thread::Builder::new()
            .name("dst-device".to_owned())
            .spawn(move || Worker::new(driver, inbox, theirs, deadline).run())?;
        Ok(Self {
            orders,
            waker,
            thread: Some(thread),
            geometry,
            pool,
        })
    }

    /// What the disk looked like when it was attached.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A buffer for [`Device::write_buf`], with unspecified content.
    pub fn buffer(&self, length: usize) -> Buf {
        self.pool.get(length)
    }

    /// Fills `buf` from `offset` on.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let most = self.geometry.max_transfer as usize;
        let mut at = offset;
        for part in buf.chunks_mut(most) {
            let len = part.len() as u32;
            match self.wait_for(Op::Read { offset: at, len })? {
                Reply::Read(bytes) => part.copy_from_slice(&bytes),
                other => return Err(io::Error::other(format!("a read answered by {other:?}"))),
            }
            at += u64::from(len);
        }
        Ok(())
    }

    /// Writes `data` at `offset`. Done means acknowledged by the server; [`Device::flush`] makes it durable.
    pub fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let most = self.geometry.max_transfer as usize;
        let mut at = offset;
        for part in data.chunks(most) {
            self.write_buf(self.pool.copy_of(part), at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes a buffer at `offset` without copying it; at most [`Geometry::max_transfer`] bytes.
    pub fn write_buf(&self, data: Buf, offset: u64) -> io::Result<()> {
        let op = Op::Write {
            offset,
            data: data.share(),
            fua: false,
            barrier: false,
        };
        self.wait_for(op).map(drop)
    }

    /// Waits until everything written before survives a power loss of the server.
    pub fn flush(&self) -> io::Result<()> {
        self.wait_for(Op::Flush).map(drop)
    }

    /// Says that a range is no longer needed.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.wait_for(Op::Discard { offset, len }).map(drop)
    }

    /// Makes a range read as zeroes; its space may be given back.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let op = Op::WriteZeroes {
            offset,
            len,
            may_unmap: true,
            fast_only: false,
            fua: false,
        };
        self.wait_for(op).map(drop)
    }

    /// Which parts of a range hold data; may cover less than was asked, never nothing.
    pub fn block_status(&self, offset: u64, len: u64) -> io::Result<Vec<Extent>> {
        match self.wait_for(Op::BlockStatus { offset, len })? {
            Reply::Extents(extents) => Ok(extents),
            other => Err(io::Error::other(format!(
                "block status answered by {other:?}"
            ))),
        }
    }

    /// Hands in a request without waiting; its completion, with `request.tag`, goes to `completions`. For many at once.
    pub fn submit(&self, request: Request, completions: &Sender<Completion>) {
        let order = Order::Submit(request.op, request.tag, completions.clone());
        if self.order(order).is_err() {
            refuse(request.tag, completions);
        }
    }

    /// A snapshot of everything there is to tell.
    pub fn status(&self) -> io::Result<DeviceStatus> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.order(Order::Status(answer))?;
        answered.recv().map_err(|_| stopped())
    }

    /// Flushes and ends the session, so that another client may write at once.
    pub fn close(self) -> io::Result<()> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.order(Order::Close(answer))?;
        answered.recv().map_err(|_| stopped())?
    }

    fn wait_for(&self, op: Op) -> io::Result<Reply> {
        let (answer, answered) = mpsc::channel();
        self.order(Order::Submit(op, 0, answer))?;
        let completion = answered.recv().map_err(|_| stopped())?;
        completion.result.map_err(|error| {
            let kind = io::Error::from(error.errno()).kind();
            io::Error::new(kind, error)
        })
    }

    fn order(&self, order: Order) -> io::Result<()> {
        self.orders.send(order).map_err(|_| stopped())?;
        self.waker.wake();
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Gone already after `close`.
        let _ = self.order(Order::Abandon);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn refuse(tag: u64, completions: &Sender<Completion>) {
    // Whoever listens may be gone too: then nobody is left to be told.
    let _ = completions.send(Completion {
        tag,
        result: Err(IoError::Stopped),
    });
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the device has stopped")
}

/// The device's thread.
struct Worker {
    driver: Driver,
    inbox: Receiver<Order>,
    waker: Waker,
    waiting: HashMap<u64, (u64, Sender<Completion>)>,
    next_tag: u64,
    /// Where the outcome of closing goes, and the tag of the flush before it.
    closing: Option<(SyncSender<io::Result<()>>, u64)>,
    deadline: Option<Duration>,
    close_until: Option<Instant>,
}

impl Worker {
    fn new(
        driver: Driver,
        inbox: Receiver<Order>,
        waker: Waker,
        deadline: Option<Duration>,
    ) -> Self {
        Self {
            driver,
            inbox,
            waker,
            waiting: HashMap::new(),
            next_tag: 0,
            closing: None,
            deadline,
            close_until: None,
        }
    }

    /// Serves until told to stop; whoever still waits then is told so.
    fn run(mut self) {
        self.serve();
        for (_, (tag, answer)) in self.waiting.drain() {
            refuse(tag, &answer);
        }
        while let Ok(order) = self.inbox.try_recv() {
            if let Order::Submit(_, tag, answer) = order {
                refuse(tag, &answer);
            }
        }
    }

    fn serve(&mut self) {
        let (mut done, mut ready) = (Vec::new(), Vec::new());
        loop {
            let turn = match self.driver.turn(self.patience(), &mut done, &mut ready) {
                Ok(turn) => turn,
                // The event loop itself is broken: whoever waits hears that the device has stopped.
                Err(_) => return,
            };
            for completion in done.drain(..) {
                self.deliver(completion);
            }
            if let Some(closed) = turn.closed {
                return self.finish(closed.map_err(io::Error::other));
            }
            if let Some(reason) = turn.failed.filter(|_| self.closing.is_some()) {
                return self.finish(Err(io::Error::other(reason)));
            }
            if self.patience() == Some(Duration::ZERO) {
                return self.finish(Err(io::ErrorKind::TimedOut.into()));
            }
            ready.clear();
            self.waker.clear();
            while let Ok(order) = self.inbox.try_recv() {
                match order {
                    Order::Submit(op, tag, answer) => {
                        self.next_tag += 1;
                        self.waiting.insert(self.next_tag, (tag, answer));
                        self.driver.submit(Request {
                            tag: self.next_tag,
                            op,
                        });
                    }
                    Order::Status(answer) => {
                        // Who asked may have gone.
                        let _ = answer.send(self.driver.status());
                    }
                    Order::Close(answer) => {
                        self.next_tag += 1;
                        self.closing = Some((answer, self.next_tag));
                        self.close_until = self.deadline.map(|limit| Instant::now() + limit);
                        self.driver.submit(Request {
                            tag: self.next_tag,
                            op: Op::Flush,
                        });
                    }
                    Order::Abandon => return,
                }
            }
        }
    }

    fn deliver(&mut self, completion: Completion) {
        if let Some((tag, answer)) = self.waiting.remove(&completion.tag) {
            // Who asked may have gone.
            let _ = answer.send(Completion { tag, ..completion });
        } else if self
            .closing
            .as_ref()
            .is_some_and(|(_, tag)| *tag == completion.tag)
        {
            match completion.result {
                Ok(_) => self.driver.close(),
                Err(error) => self.finish(Err(io::Error::other(error))),
            }
        }
    }

    /// How long to sleep: closing has the deadline of a request.
    fn patience(&self) -> Option<Duration> {
        let until = self.close_until.filter(|_| self.closing.is_some())?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn finish(&mut self, outcome: io::Result<()>) {
        if let Some((answer, _)) = self.closing.take() {
            let _ = answer.send(outcome);
        }
    }
}
