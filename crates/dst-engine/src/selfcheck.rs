//! Checks of this build of the engine, for the kernel module to run at load and for tests.
//!
//! A client, whose frames are put together here, talks to a server's session over memory: the connection is cut after a
//! WRITE was executed and before its answer was sent; a resumed one learns the outcome, and the write is not executed again.
//! Everything is small: no value on the stack is longer than 512 bytes.

use super::proto::{
    digest, frame, Algorithm, Credit, DigestChoice, Geometry, GeometryFlags, Header, Hello, Holder,
    Kind, Limits, OpFlags, Outcome, Role, SlotState, Status, HEADER_LEN, HELLO_LEN, NO_SLOT,
};
use super::rx::{Head, Receiver};
use super::server::{Config, ConnId, Execute, Lane, Record, Session, Slot, Take, Transmit};
use super::window::IdWindow;

type Checked = Result<(), &'static str>;
type Server<'m> = Session<&'m mut [u64], &'m mut [Lane]>;

const GRANULE: u32 = 4096;
const BLOCK: u32 = 512;
const SLOTS: u16 = 3;
const FLUSH_SLOT: u16 = 2;
const FIRST: ConnId = ConnId(1);
const SECOND: ConnId = ConnId(2);

/// Runs them; the text says which failed.
pub fn run() -> Checked {
    window()?;
    lease()?;
    exchange()
}

fn window() -> Checked {
    let mut window = IdWindow::new([0u64; 1]);
    let finished = window.finish(2) && window.floor() == 0 && window.finish(1);
    ensure(
        finished && window.floor() == 2 && !window.finish(67),
        "the floor does not follow the ids that have finished",
    )
}

fn lease() -> Checked {
    let holder = |instance| Holder {
        instance: [instance; 16],
        ..Record::NONE.holder
    };
    let first = Record::NONE.granted_to(&holder(1));
    let again = first.released().granted_to(&holder(1));
    let other = first.granted_to(&holder(2));
    ensure(
        again == first && other.epoch > first.epoch,
        "the epoch does not tell one holder from the next",
    )
}

fn exchange() -> Checked {
    let mut bits = [0; 1];
    let mut lanes = [Lane::default(), Lane::default()];
    let mut slots: [Slot; SLOTS as usize] = core::array::from_fn(|_| Slot::default());
    let mut server = Session::new(
        config(),
        bits.as_mut_slice(),
        lanes.as_mut_slice(),
        &mut slots,
        FIRST,
        0,
    );
    write_arrives(&mut server, &mut slots)?;
    let executed = write_executes(&mut server, &mut slots)?;
    server.conn_lost(&mut slots, FIRST, 1);
    resume(&mut server, &mut slots, &executed)?;
    read_is_answered(&mut server, &mut slots)?;
    abort_is_answered(&mut server, &mut slots)?;
    server.settle(&mut slots, Status::SESSION_LOST);
    ensure(server.settled(), "a session at rest is not settled")
}

fn config() -> Config {
    Config {
        number: 1,
        geometry: Geometry {
            size: 1 << 20,
            logical_block: BLOCK,
            physical_block: BLOCK,
            flags: GeometryFlags::NONE,
            discard_granularity: 0,
            atomic_limit: 0,
            rollback_limit: 0,
        },
        limits: Limits {
            slots: SLOTS,
            connections: 2,
            max_payload: 4096,
            window: 64,
            credit_bytes: 4096,
        },
        writable: true,
        digests: DigestChoice {
            algorithm: Algorithm::Crc32c,
            granule: GRANULE,
        },
        piece: super::server::PIECE,
        keepalive: 1 << 30,
        session_time: 1 << 40,
    }
}

/// A WRITE of one block, id 1 in slot 0.
fn write(attempt: u8) -> Header {
    Header {
        attempt,
        slot: 0,
        id: 1,
        offset: u64::from(BLOCK),
        length: u64::from(BLOCK),
        payload_len: BLOCK,
        ..Header::new(Kind::WRITE)
    }
}

/// HELLO and a WRITE go through a receiver in parts, and the payload with its digests is what was sent.
fn write_arrives(server: &mut Server<'_>, slots: &mut [Slot]) -> Checked {
    let data = [0x5a; BLOCK as usize];
    let mut digests = [0; 8];
    let mut header = write(0);
    let digested = digest::write(
        Algorithm::Crc32c,
        GRANULE,
        header.offset,
        &data,
        &mut digests,
    );
    ensure(digested, "a payload can't be digested")?;
    header.digest_len = 8;
    header.area_crc = frame::area_crc(&[], &digests);

    let mut receiver = Receiver::new([0; HELLO_LEN + 8], Role::Client);
    receiver.accept_payload(4096, Algorithm::Crc32c, GRANULE);
    let mut hello = [0; HELLO_LEN];
    Hello::new(Role::Client, [1; 16], "selfcheck").encode(&mut hello);
    let mut head = [0; HEADER_LEN];
    header.encode(&mut head);
    feed(&mut receiver, &hello)?;
    let arrived = feed(&mut receiver, &head)?.or(feed(&mut receiver, &digests)?);
    let Some(Head::Frame(arrived)) = arrived else {
        return Err("a frame does not come through");
    };
    let take = server.handle_request(slots, FIRST, &arrived, receiver.options(), 1);
    let wanted = take == Ok(Take::Payload { slot: 0 }) && server.payload_wanted(FIRST);
    ensure(wanted, "a WRITE is not taken")?;
    let area = receiver.digests();
    let good = digest::verify(Algorithm::Crc32c, GRANULE, arrived.offset, &data, area);
    ensure(
        good && receiver.payload_received(BLOCK),
        "a good payload is refused",
    )?;
    server.payload_done(slots, FIRST, good);
    Ok(())
}

/// Feeds `bytes` in two parts; gives the head that they complete.
fn feed<const N: usize>(
    receiver: &mut Receiver<[u8; N]>,
    bytes: &[u8],
) -> Result<Option<Head>, &'static str> {
    let (first, second) = bytes.split_at_checked(7).unwrap_or((bytes, &[]));
    let mut last = None;
    for part in [first, second] {
        let (used, head) = receiver.feed(part).map_err(|fault| fault.text)?;
        ensure(used == part.len(), "bytes are left over")?;
        last = head.or(last);
    }
    Ok(last)
}

fn write_executes(server: &mut Server<'_>, slots: &mut [Slot]) -> Result<Execute, &'static str> {
    let execute = server
        .poll_execute(slots)
        .ok_or("a WRITE is not executed")?;
    let as_sent = execute.kind == Kind::WRITE && execute.offset == u64::from(BLOCK);
    ensure(as_sent, "another WRITE is executed than was sent")?;
    server.executed(slots, execute.slot, execute.id, Status::OK);
    Ok(execute)
}

fn resume(server: &mut Server<'_>, slots: &mut [Slot], executed: &Execute) -> Checked {
    let stale = server.join(slots, SECOND, 0, 1, 0, 2);
    ensure(
        stale == Err(Status::STALE_GENERATION),
        "an old connection is let in again",
    )?;
    let joined = server.join(slots, SECOND, 0, 2, 0, 3);
    ensure(joined.is_ok(), "a new connection is not let in")?;
    let mut entries = server.slot_entries(slots, 0);
    let entry = entries.next().ok_or("an outcome is not kept")?;
    let kept = entry.id == executed.id && entry.state == SlotState::Done;
    ensure(
        kept && entry.status.is_ok() && entries.next().is_none(),
        "another outcome is kept than there was",
    )?;
    let again = server.handle_request(slots, SECOND, &write(1), &[], 4);
    let once = again == Ok(Take::Discard) && server.poll_execute(slots).is_none();
    ensure(once, "a WRITE is executed twice")?;
    let reply = reply(server, slots)?;
    ensure(
        reply.id == executed.id && reply.status().is_ok(),
        "a WRITE sent again is not answered",
    )
}

/// The next reply without options, as a client would decode it.
fn reply(server: &mut Server<'_>, slots: &mut [Slot]) -> Result<Header, &'static str> {
    let mut out = [0; 128];
    let Some(Transmit::Bytes(HEADER_LEN)) = server.poll_reply(slots, SECOND, &mut out) else {
        return Err("no reply");
    };
    let head = out.first_chunk().ok_or("no reply")?;
    let header = Header::decode(head).map_err(|error| error.text())?;
    ensure(header.reply, "something else than a reply")?;
    Ok(header)
}

/// A barrier waits for the READ before it, whose bytes stay with the driver.
fn read_is_answered(server: &mut Server<'_>, slots: &mut [Slot]) -> Checked {
    let flush = Header {
        slot: FLUSH_SLOT,
        id: 3,
        op_flags: OpFlags::BARRIER,
        ..Header::new(Kind::FLUSH)
    };
    let read = Header {
        slot: 1,
        id: 2,
        offset: 0,
        length: 4096,
        ..Header::new(Kind::READ)
    };
    for header in [flush, read] {
        let take = server.handle_request(slots, SECOND, &header, &[], 5);
        ensure(take == Ok(Take::Nothing), "a request is not taken")?;
    }
    let first = server.poll_execute(slots).map(|execute| execute.id);
    ensure(first == Some(2), "a barrier does not wait")?;
    server.executed(slots, 1, 2, Status::OK);
    let mut out = [0; 128];
    let Some(Transmit::Data { header, piece }) = server.poll_reply(slots, SECOND, &mut out) else {
        return Err("a READ is not answered");
    };
    let whole = piece.from == 0 && piece.len == 4096 && piece.last && !header.more;
    ensure(
        whole && header.digest_len == 8,
        "a READ is answered in part",
    )?;
    let second = server.poll_execute(slots).map(|execute| execute.id);
    ensure(second == Some(3), "a barrier waits for ever")?;
    server.executed(slots, flush.slot, 3, Status::OK);
    let reply = reply(server, slots)?;
    let credit = Credit {
        requests: FLUSH_SLOT,
        bytes: 4096,
    };
    ensure(reply.credit() == credit, "the credit is not told")
}

fn abort_is_answered(server: &mut Server<'_>, slots: &mut [Slot]) -> Checked {
    let abort = Header {
        slot: 1,
        id: 4,
        ..Header::new(Kind::ABORT)
    };
    let take = server.handle_request(slots, SECOND, &abort, &[], 6);
    ensure(take == Ok(Take::Nothing), "an ABORT is not taken")?;
    let mut out = [0; 128];
    let Some(Transmit::Bytes(len)) = server.poll_reply(slots, SECOND, &mut out) else {
        return Err("an ABORT is not answered");
    };
    let options = out.get(HEADER_LEN..len).unwrap_or_default();
    let outcome = super::proto::Aborted::decode(options).map(|aborted| aborted.outcome);
    ensure(
        outcome == Ok(Outcome::NeverExecuted),
        "an ABORT has another outcome than it must",
    )?;
    let late = Header {
        slot: 1,
        id: 4,
        length: 4096,
        ..Header::new(Kind::READ)
    };
    let take = server.handle_request(slots, SECOND, &late, &[], 7);
    let ignored = take == Ok(Take::Nothing) && server.poll_execute(slots).is_none();
    ensure(ignored, "an aborted request is executed after all")?;
    let nowhere = Header {
        slot: NO_SLOT,
        ..late
    };
    let fault = server.handle_request(slots, SECOND, &nowhere, &[], 8);
    ensure(fault.is_err(), "a slot that does not exist is taken")
}

fn ensure(good: bool, otherwise: &'static str) -> Checked {
    if good {
        Ok(())
    } else {
        Err(otherwise)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_build_passes() {
        assert_eq!(super::run(), Ok(()));
    }
}
