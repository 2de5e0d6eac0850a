//! The client's driver, and the device that it is for.

use dst_engine::client::{
    seal, user_slots, Config, Entry, Event, FailReason, Phase, Request, Retained, Session, Slot,
    Source, Take, Transmit, REPLAY_SLOTS,
};
use dst_engine::client::{Greeting, Names};
use dst_engine::rx::{Fault, Head, Receiver};
use dst_proto::{
    digest, Algorithm, ClientName, ExportName, Header, Holder, Kind, Limits, OpFlags, Role, Status,
    HEADER_LEN,
};

use super::disk::{Disk, Model, Open, BLOCK};
use super::wire::Wires;
use super::{Setup, LANES};
use crate::trace;

pub const USER: u16 = 5;
pub const SLOTS: u16 = USER + REPLAY_SLOTS + 1;

/// A request and its memory.
struct Memory {
    open: Open,
    bytes: Vec<u8>,
}

/// Where arriving payload goes.
enum Taking {
    Slot {
        slot: u16,
        at: usize,
        got: Vec<u8>,
        offset: u64,
    },
    Nowhere,
}

struct Conn {
    stream: u32,
    number: u32,
    rx: Receiver<Vec<u8>>,
    taking: Option<Taking>,
}

pub struct Device {
    session: Session<Vec<u64>>,
    slots: Vec<Slot>,
    retained: Retained<Vec<Entry>>,
    memory: Vec<Option<Memory>>,
    kept: Vec<Option<Vec<u8>>>,
    conns: [Option<Conn>; LANES as usize],
}

fn contents(value: u64, length: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(length as usize / 8)
}

impl Device {
    pub fn new(setup: &Setup) -> Device {
        let limits = Limits {
            slots: SLOTS,
            connections: LANES,
            max_payload: 4 * BLOCK as u32,
            window: 64,
            credit_bytes: 1 << 16,
        };
        let config = Config {
            writable: true,
            holder: Holder {
                identity: [1; 16],
                boot: [2; 16],
                instance: [3; 16],
            },
            limits,
            digests: if setup.digests {
                Algorithm::Crc32c.mask_bit()
            } else {
                Algorithm::None.mask_bit()
            },
            granule: 1024,
            deadline: setup.deadline.then_some(6_000_000_000),
            retries: 3,
        };
        Device {
            session: Session::new(config, vec![0; 1]),
            slots: vec![Slot::default(); usize::from(SLOTS)],
            retained: Retained::new(vec![Entry::default(); setup.retain], 16 * BLOCK),
            memory: std::iter::repeat_with(|| None)
                .take(usize::from(USER))
                .collect(),
            kept: vec![None; setup.retain],
            conns: [const { None }; LANES as usize],
        }
    }

    pub fn phase(&self) -> Phase {
        self.session.phase()
    }

    pub fn is_idle(&self) -> bool {
        self.memory.iter().all(Option::is_none)
    }

    /// What is not completed, for a message.
    pub fn open(&self) -> Vec<Request> {
        self.memory
            .iter()
            .flatten()
            .map(|memory| memory.open.request)
            .collect()
    }

    pub fn close(&mut self) {
        trace!("close");
        self.session.close();
    }

    pub fn fail(&mut self, reason: FailReason) {
        trace!("fail {reason:?}");
        self.session
            .fail(&mut self.slots, &mut self.retained, reason);
    }

    pub fn submit(&mut self, model: &mut Model, request: Request, now: u64) {
        let free = |at: &u16| self.slots[usize::from(*at)].is_free();
        let users = user_slots(self.session.limits().slots);
        let Some(at) = (0..users).find(free) else {
            return;
        };
        if matches!(self.phase(), Phase::Failed(_)) || self.session.geometry().is_none() {
            return;
        }
        let open = model.submit(request);
        trace!("submit {at} {request:?} value {}", open.value);
        let bytes = match request.kind {
            Kind::WRITE => contents(open.value, request.length),
            Kind::READ => vec![0xEE; request.length as usize],
            _ => Vec::new(),
        };
        let taken = self
            .session
            .submit(&mut self.slots, &mut self.retained, at, request, now);
        assert!(taken);
        self.memory[usize::from(at)] = Some(Memory { open, bytes });
    }

    pub fn wants(&self, index: u16) -> bool {
        self.session.wants_connection(index)
    }

    pub fn nth_connected(&self, nth: usize) -> Option<u16> {
        let there = (0..LANES).filter(|index| self.conns[usize::from(*index)].is_some());
        let there: Vec<u16> = there.collect();
        Some(there[nth.checked_rem(there.len())?])
    }

    pub fn connected(&mut self, index: u16, stream: u32, now: u64) {
        let number = self.session.handle_connected(index, now);
        let before = self.conns[usize::from(index)].replace(Conn {
            stream,
            number,
            rx: Receiver::new(vec![0; 1024 + 4096], Role::Server),
            taking: None,
        });
        assert!(before.is_none(), "wants a stream that is there");
    }

    pub fn lose(&mut self, model: &mut Model, wires: &mut Wires, disk: &Disk, index: u16) {
        if let Some(conn) = self.conns[usize::from(index)].take() {
            wires.client_leaves(conn.stream);
            self.session
                .handle_lost(&mut self.slots, &mut self.retained, index);
            self.events(model, wires, disk);
        }
    }

    pub fn timeout(&mut self, model: &mut Model, wires: &mut Wires, disk: &Disk, now: u64) {
        self.session
            .handle_timeout(&mut self.slots, &mut self.retained, now);
        self.events(model, wires, disk);
    }

    pub fn next_timeout(&self) -> Option<u64> {
        self.session.next_timeout()
    }

    pub fn events(&mut self, model: &mut Model, wires: &mut Wires, disk: &Disk) {
        for _ in 0..500 {
            let Some(event) = self.session.poll_event(&mut self.slots, &mut self.retained) else {
                return;
            };
            trace!("  client event {event:?}");
            match event {
                Event::Completed {
                    slot,
                    result,
                    retained,
                } => {
                    let memory = self.memory[usize::from(slot)].take();
                    let Memory { open, bytes } = memory.expect("completed and not there");
                    let Request { kind, flags, .. } = open.request;
                    match kind {
                        Kind::READ if result.is_ok() => {
                            let values: Vec<u64> =
                                bytes.chunks(BLOCK as usize).map(value).collect();
                            model.shown(&open, &values);
                        }
                        Kind::FLUSH if result.is_ok() => model.flushed(&open, disk),
                        _ if kind.is_write() => {
                            model.written(&open, result.is_ok());
                            if flags.contains(OpFlags::FUA) && result.is_ok() {
                                model.durable(&open, disk);
                            }
                        }
                        _ => {}
                    }
                    if let Some(at) = retained {
                        let before = self.kept[at].replace(bytes);
                        assert!(before.is_none(), "kept place {at} used twice");
                    }
                }
                Event::Released { index } => self.kept[index] = None,
                Event::Close { index, .. } => {
                    if let Some(conn) = self.conns[usize::from(index)].take() {
                        wires.client_leaves(conn.stream);
                        self.session
                            .handle_lost(&mut self.slots, &mut self.retained, index);
                    }
                }
                Event::Failed(reason) => {
                    let lossy = self.kept.is_empty();
                    let known = match reason {
                        FailReason::Forced | FailReason::SyncFailed => true,
                        FailReason::WritesLost => lossy,
                        FailReason::ReplayFailed(status) => status != Status::PROTOCOL,
                        _ => false,
                    };
                    assert!(known, "the device failed: {reason:?}");
                }
                Event::Opened { .. } | Event::Closed(_) => {}
                Event::Changed | Event::Draining { .. } => panic!("nobody has said so"),
                Event::Refused { status } => assert_ne!(status, Status::PROTOCOL),
            }
        }
        panic!("events without end");
    }

    pub fn transmit_all(&mut self, wires: &mut Wires) {
        for index in 0..LANES {
            for _ in 0..200 {
                if !self.transmit(wires, index) {
                    break;
                }
            }
        }
    }

    fn transmit(&mut self, wires: &mut Wires, index: u16) -> bool {
        let mut out = [0; 2048];
        let transmit =
            self.session
                .poll_transmit(&mut self.slots, &mut self.retained, index, &mut out);
        let Some(transmit) = transmit else {
            return false;
        };
        let conn = self.conns[usize::from(index)].as_ref().expect("a stream");
        let (stream, number) = (conn.stream, conn.number);
        match transmit {
            Transmit::Bytes(len) => {
                trace!(
                    "  client {index}: {:?}",
                    Header::decode(out.first_chunk().expect("whole"))
                );
                wires.client_sends(stream, &out[..len]);
            }
            Transmit::Write { header, payload } => {
                trace!("  client {index}: {header:?} from {:?}", payload.source);
                let length = payload.length as usize;
                let bytes = match payload.source {
                    Source::Slot => {
                        let memory = self.memory[usize::from(payload.slot)].as_ref();
                        &memory.expect("memory").bytes[..length]
                    }
                    Source::Retained { seq, from } => {
                        let kept = self.kept[self.retained.index(seq)].as_ref();
                        &kept.expect("kept bytes")[from as usize..][..length]
                    }
                };
                let area = &mut out[HEADER_LEN..][..header.digest_len as usize];
                let (algorithm, granule) = self.session.digest();
                assert!(digest::write(
                    algorithm,
                    granule,
                    payload.offset,
                    bytes,
                    area
                ));
                let len = seal(&header, &mut out);
                wires.client_sends(stream, &out[..len]);
                wires.client_sends(stream, bytes);
                self.session.handle_sent(
                    &mut self.slots,
                    &mut self.retained,
                    index,
                    number,
                    payload.slot,
                );
            }
        }
        true
    }

    /// Takes up to `len` bytes from a stream. Tells whether anything happened.
    pub fn receive(
        &mut self,
        model: &mut Model,
        wires: &mut Wires,
        disk: &Disk,
        stream: u32,
        len: usize,
        now: u64,
    ) -> bool {
        let mine = |conn: &Option<Conn>| conn.as_ref().is_some_and(|conn| conn.stream == stream);
        let index = self
            .conns
            .iter()
            .position(mine)
            .expect("a stream of this end") as u16;
        let Some(bytes) = wires.client_reads(stream, len) else {
            trace!("client: end of {index}");
            self.lose(model, wires, disk, index);
            return true;
        };
        if bytes.is_empty() {
            return false;
        }
        self.session.handle_alive(index, now);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            if self.conns[usize::from(index)].is_none() {
                break;
            }
            match self.take(wires, index, rest) {
                Ok(used) => rest = &rest[used..],
                Err(fault) => {
                    trace!("client: fault on {index}: {fault}");
                    assert!(
                        wires.is_damaged(stream),
                        "the client accuses the server: {fault}"
                    );
                    self.lose(model, wires, disk, index);
                    break;
                }
            }
            self.events(model, wires, disk);
        }
        true
    }

    fn take(&mut self, wires: &mut Wires, index: u16, bytes: &[u8]) -> Result<usize, Fault> {
        let conn = self.conns[usize::from(index)].as_mut().expect("there");
        let left = conn.rx.payload_left() as usize;
        if left > 0 {
            let used = left.min(bytes.len());
            if let Some(Taking::Slot { got, .. }) = &mut conn.taking {
                got.extend_from_slice(&bytes[..used]);
            }
            if conn.rx.payload_received(used as u32) {
                self.payload_done(index);
            }
            return Ok(used);
        }
        let (used, head) = conn.rx.feed(bytes)?;
        match head {
            None => {}
            Some(Head::Hello(_)) => self.greet(wires, index)?,
            Some(Head::Frame(header)) => self.frame(index, &header)?,
        }
        Ok(used)
    }

    fn greet(&mut self, wires: &mut Wires, index: u16) -> Result<(), Fault> {
        let conn = self.conns[usize::from(index)].as_mut().expect("there");
        let greeting = Greeting {
            hello: conn.rx.hello_bytes(),
            nonce: [conn.stream as u8; 16],
            binding: [0; 32],
        };
        let names = Names {
            export: ExportName::new("disk").expect("a name"),
            client: ClientName::new("fuzz").expect("a name"),
            implementation: "fuzz",
        };
        let mut out = [0; 2048];
        let len = self.session.handle_hello(
            &self.retained,
            index,
            conn.number,
            &greeting,
            &names,
            &mut out,
        )?;
        wires.client_sends(conn.stream, &out[..len]);
        Ok(())
    }

    fn frame(&mut self, index: u16, header: &Header) -> Result<(), Fault> {
        let conn = self.conns[usize::from(index)].as_mut().expect("there");
        trace!("client <- {index}: {header:?} {:?}", header.status());
        let options = conn.rx.options().to_vec();
        let number = conn.number;
        let taken = self.session.handle_frame(
            &mut self.slots,
            &mut self.retained,
            index,
            number,
            header,
            &options,
        )?;
        let conn = self.conns[usize::from(index)].as_mut().expect("there");
        if matches!(header.kind, Kind::OPEN | Kind::JOIN) && header.status().is_ok() {
            let (algorithm, granule) = self.session.digest();
            let max_payload = self.session.limits().max_payload;
            conn.rx.accept_payload(max_payload, algorithm, granule);
            conn.rx.forget_hello();
        }
        conn.taking = match taken {
            Take::Nothing | Take::Extents { .. } => None,
            Take::Discard => Some(Taking::Nowhere),
            Take::Payload { slot, at } => Some(Taking::Slot {
                slot,
                at: at as usize,
                got: Vec::new(),
                offset: header.offset,
            }),
        };
        Ok(())
    }

    fn payload_done(&mut self, index: u16) {
        let conn = self.conns[usize::from(index)].as_mut().expect("there");
        let Some(Taking::Slot {
            slot,
            at,
            got,
            offset,
        }) = conn.taking.take()
        else {
            return;
        };
        let (algorithm, granule) = self.session.digest();
        let good = digest::verify(algorithm, granule, offset, &got, conn.rx.digests());
        let memory = self.memory[usize::from(slot)]
            .as_mut()
            .expect("memory that is pinned");
        memory.bytes[at..at + got.len()].copy_from_slice(&got);
        let number = conn.number;
        self.session
            .payload_done(&mut self.slots, &mut self.retained, index, number, good);
    }
}

/// The number that a block holds.
fn value(block: &[u8]) -> u64 {
    let first = block.first_chunk::<8>().expect("a block");
    assert_eq!(block[8..], block[..block.len() - 8], "a torn block");
    u64::from_le_bytes(*first)
}
