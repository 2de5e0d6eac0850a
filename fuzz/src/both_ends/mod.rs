//! A client and a server, joined by streams in memory that are cut, delayed, and damaged, over a disk that forgets what was
//! not flushed. Neither accuses the other; what the device shows is what a disk may show; FLUSH tells the truth; and where
//! nothing goes wrong any more everything comes to its end.
//!
//! * [`device`]: the client's driver;
//! * [`server`]: the server's driver, with its [`handshake`] and its [`backend`];
//! * [`wire`]: the streams;
//! * [`disk`]: the medium, and what the device may show of it.

mod backend;
mod device;
mod disk;
mod handshake;
mod server;
mod wire;

use dst_engine::client::{FailReason, Phase, Request};
use dst_proto::{Kind, OpFlags, Status};

use crate::input::Input;
use crate::trace;
use device::Device;
use disk::{Disk, Model, BLOCK, BLOCKS};
use server::Server;
use wire::Wires;

const STEPS: u32 = 600;
/// Connections of the session.
const LANES: u16 = 2;

/// What both ends are set up with.
#[derive(Clone, Copy, Debug)]
struct Setup {
    retain: usize,
    deadline: bool,
    digests: bool,
    credit_bytes: u32,
    piece: u32,
}

struct World {
    device: Device,
    server: Server,
    disk: Disk,
    model: Model,
    wires: Wires,
    now: u64,
}

/// The first byte configures both ends; then each step is a few bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let form = input.u8();
    let setup = Setup {
        retain: [24, 4, 12, 0][usize::from(form & 3)],
        deadline: form & 4 != 0,
        digests: form & 8 != 0,
        credit_bytes: if form & 16 != 0 { 4096 } else { 1 << 16 },
        piece: if form & 32 != 0 { 512 } else { 1 << 16 },
    };
    let mut world = World {
        device: Device::new(&setup),
        server: Server::new(setup),
        disk: Disk::new(),
        model: Model::new(),
        wires: Wires::default(),
        now: 1,
    };
    // A device is there from the first session on.
    world.fair(20);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
        world.turn();
    }
    world.finish();
}

impl World {
    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        let nth = usize::from(op >> 5);
        match op & 31 {
            0..=6 => self.submit(input),
            7..=9 => {
                let len = usize::from(input.u8()) * 8;
                self.deliver_up(nth, len);
            }
            10..=12 => {
                let len = usize::from(input.u8()) * 8;
                self.deliver_down(nth, len);
            }
            13 | 14 => {
                let form = input.u8();
                for _ in 0..=form % 4 {
                    self.complete(usize::from(form / 4), Status::OK);
                }
            }
            15 => {
                let status = input.pick(&[Status::IO, Status::NO_SPACE, Status::SYNC_FAILED]);
                self.complete(nth, status);
            }
            16 => self.cut_by_client(nth),
            17 => self.cut_by_server(nth),
            18 => _ = self.connect(),
            19 | 20 => self.pass(u64::from(input.u8()) * [1_000_000, 20_000_000][nth % 2]),
            21 => self.pass_to_timeout(),
            // Without digests nobody would notice.
            22 if self.server.setup.digests => self.damage(nth, input),
            23 => self.restart(input.u8()),
            24 => self.power_loss(input),
            25 => _ = self.server.persisted(true, self.now),
            26 => _ = self.server.persisted(!input.one_in(3), self.now),
            27 => self.server.session_credit(input.u8()),
            28 => {
                if input.u8() == 255 {
                    self.device.fail(FailReason::Forced);
                }
            }
            _ => _ = self.fair(1 + nth),
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let kinds = [
            Kind::WRITE,
            Kind::READ,
            Kind::WRITE,
            Kind::READ,
            Kind::WRITE,
            Kind::FLUSH,
            Kind::WRITE_ZEROES,
            Kind::DISCARD,
        ];
        let form = input.u8();
        let kind = kinds[usize::from(form & 7)];
        let place = input.u8();
        let at = u64::from(place) % BLOCKS;
        let blocks = (u64::from(place / 32) % 4 + 1).min(BLOCKS - at);
        let fua = form & 0x18 == 0x18 && kind.op_flags().contains(OpFlags::FUA);
        let flags = OpFlags::NONE
            .with(OpFlags::BARRIER, form & 0x60 == 0x60)
            .with(OpFlags::FUA, fua);
        let (offset, length) = match kind {
            Kind::FLUSH => (0, 0),
            _ => (at * BLOCK, blocks * BLOCK),
        };
        let request = Request {
            kind,
            flags,
            offset,
            length,
        };
        self.device.submit(&mut self.model, request, self.now);
    }

    /// Whatever the engines have to say without anything else happening.
    fn turn(&mut self) {
        self.device
            .events(&mut self.model, &mut self.wires, &self.disk);
        self.server.turn(&mut self.wires, &mut self.disk, self.now);
        self.device.transmit_all(&mut self.wires);
        self.server.transmit_all(&mut self.wires);
        self.server.turn(&mut self.wires, &mut self.disk, self.now);
    }

    fn deliver_up(&mut self, nth: usize, len: usize) -> bool {
        let Some(stream) = self.wires.nth_for_server(nth) else {
            return false;
        };
        let moved = self
            .server
            .receive(&mut self.wires, &mut self.disk, stream, len, self.now);
        self.turn();
        moved
    }

    fn deliver_down(&mut self, nth: usize, len: usize) -> bool {
        let Some(stream) = self.wires.nth_for_client(nth) else {
            return false;
        };
        let moved = self.device.receive(
            &mut self.model,
            &mut self.wires,
            &self.disk,
            stream,
            len,
            self.now,
        );
        self.turn();
        moved
    }

    fn complete(&mut self, nth: usize, status: Status) -> bool {
        let done = self.server.complete(&mut self.disk, nth, status, self.now);
        self.turn();
        done
    }

    fn connect(&mut self) -> bool {
        let mut connected = false;
        for index in 0..LANES {
            if self.device.wants(index) {
                let stream = self.wires.open();
                trace!("connect {index} as stream {stream}");
                self.device.connected(index, stream, self.now);
                self.server.accept(&mut self.wires, stream);
                connected = true;
            }
        }
        self.turn();
        connected
    }

    /// The client gives a stream up; the server hears of it when it has read what was under way.
    fn cut_by_client(&mut self, nth: usize) {
        if let Some(index) = self.device.nth_connected(nth) {
            trace!("cut by the client: {index}");
            self.device
                .lose(&mut self.model, &mut self.wires, &self.disk, index);
            self.turn();
        }
    }

    fn cut_by_server(&mut self, nth: usize) {
        if let Some(stream) = self.wires.nth_at_server(nth) {
            trace!("cut by the server: stream {stream}");
            self.server.lose(&mut self.wires, stream, self.now);
            self.turn();
        }
    }

    fn pass(&mut self, by: u64) {
        self.now += by;
        trace!("time {}", self.now);
        self.device
            .timeout(&mut self.model, &mut self.wires, &self.disk, self.now);
        self.server.timeout(self.now);
        self.turn();
    }

    fn pass_to_timeout(&mut self) {
        let due = [self.device.next_timeout(), self.server.next_timeout()];
        let due = due.into_iter().flatten().min().unwrap_or(self.now);
        self.pass(due.saturating_sub(self.now).min(40_000_000_000));
    }

    /// One bit of what is under way flips.
    fn damage(&mut self, nth: usize, input: &mut Input<'_>) {
        let (at, bit) = (usize::from(input.u16()), input.u8() % 8);
        self.wires.damage(nth, at, bit);
    }

    /// The server's process dies and is started again; what the system's cache holds stays.
    fn restart(&mut self, form: u8) {
        trace!("restart");
        self.server.die(&mut self.wires, &mut self.disk, form);
        self.server.start(false, form & 1 != 0, self.now);
        self.turn();
    }

    fn power_loss(&mut self, input: &mut Input<'_>) {
        trace!("power loss");
        let form = input.u8();
        self.server.die(&mut self.wires, &mut self.disk, form);
        let lost = input.u32();
        self.disk.lose(u64::from(lost) | u64::from(lost) << 32);
        self.server.start(true, form & 1 != 0, self.now);
        self.turn();
    }

    /// Everything that is possible happens, so many times.
    fn fair(&mut self, rounds: usize) -> bool {
        let mut busy = false;
        for _ in 0..rounds {
            busy = self.connect();
            for _ in 0..8 {
                let up = self.deliver_up(0, usize::MAX);
                let down = self.deliver_down(0, usize::MAX);
                busy |= up || down;
                if !up && !down {
                    break;
                }
            }
            while self.complete(0, Status::OK) {
                busy = true;
            }
            busy |= self.server.persisted(true, self.now);
            self.turn();
            if !busy {
                break;
            }
        }
        busy
    }

    /// Nothing goes wrong any more.
    fn finish(&mut self) {
        trace!("--- finish");
        self.settle();
        if matches!(self.device.phase(), Phase::Failed(_)) {
            return;
        }
        // What the device shows now is checked as it is read; then all of it is made durable.
        let mut at = 0;
        while at < BLOCKS {
            let request = Request {
                kind: Kind::READ,
                flags: OpFlags::NONE,
                offset: at * BLOCK,
                length: 4 * BLOCK,
            };
            self.device.submit(&mut self.model, request, self.now);
            self.settle();
            at += 4;
        }
        let flush = Request {
            kind: Kind::FLUSH,
            flags: OpFlags::NONE,
            offset: 0,
            length: 0,
        };
        self.device.submit(&mut self.model, flush, self.now);
        self.settle();
        if matches!(self.device.phase(), Phase::Failed(_)) {
            return;
        }
        self.device.close();
        for _ in 0..100 {
            if matches!(self.device.phase(), Phase::Closed | Phase::Failed(_)) {
                return;
            }
            if !self.fair(4) {
                self.pass(1_000_000_000);
            }
        }
        panic!("CLOSE is never answered: {:?}", self.device.phase());
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            let busy = self.fair(4);
            if self.device.is_idle() {
                return;
            }
            if !busy {
                self.pass(1_000_000_000);
            }
        }
        let phase = self.device.phase();
        panic!(
            "requests that never come to an end: {phase:?} {:?}",
            self.device.open()
        );
    }
}
