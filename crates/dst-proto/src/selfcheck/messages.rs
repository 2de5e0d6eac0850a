//! Options, the messages they make up, and the join proof.

use super::super::digest::Algorithm;
use super::super::flags::GeometryFlags;
use super::super::hello::{Hello, Role, HELLO_LEN};
use super::super::message::{
    Aborted, BlockStatus, Changed, JoinRequest, Joined, ListReply, ListRequest, OpenRequest,
    Opened, Refusal,
};
use super::super::option::{
    number, ClientName, DigestChoice, Digests, Expect, ExportName, ExportState, Extent, ExtentKind,
    Geometry, Holder, Join, Limits, Listed, Message, Mode, Proof, Retained, SessionGrant,
    SlotEntry, SlotState, Times,
};
use super::super::options::{check_none, OptionError, OptionWriter};
use super::super::proof::{self, Transcript, NO_BINDING};
use super::super::status::{Outcome, Status};
use super::check;

pub(super) fn run() -> Result<(), &'static str> {
    open()?;
    opened()?;
    join()?;
    joined()?;
    list()?;
    events()?;
    unknown_options()
}

const GEOMETRY: Geometry = Geometry {
    size: 10 << 30,
    logical_block: 512,
    physical_block: 4096,
    flags: GeometryFlags::DISCARD.union(GeometryFlags::FUA),
    discard_granularity: 4096,
    atomic_limit: 0,
    rollback_limit: 1 << 20,
};

const EXPORT: ExportState = ExportState {
    id: [1; 16],
    incarnation: [2; 16],
    epoch: 3,
};

const JOIN: Join = Join {
    session: 0x0123_4567_89AB_CDEF,
    generation: 7,
    index: 2,
};

#[inline(never)]
fn open() -> Result<(), &'static str> {
    let request = OpenRequest {
        name: ExportName::new("disk").ok_or("export name")?,
        nonce: [5; 16],
        mode: Mode::SoleWriter,
        limits: Limits {
            slots: 129,
            connections: 4,
            max_payload: 1 << 20,
            window: 65536,
            credit_bytes: 32 << 20,
        },
        digests: Digests {
            mask: 15,
            granule: 4096,
        },
        holder: Some(Holder {
            identity: [6; 16],
            boot: [7; 16],
            instance: [8; 16],
        }),
        client: ClientName::new("desk").ok_or("client name")?,
        expect: Some(Expect {
            export: [1; 16],
            epoch: 3,
        }),
        retained: Some(Retained {
            entries: 2,
            bytes: 8192,
        }),
    };
    let mut options = [0; 256];
    let len = request.encode(&mut options).map_err(OptionError::text)?;
    let back = OpenRequest::decode(options.get(..len).unwrap_or_default());
    check(back == Ok(request), "OPEN")?;
    let without_name = options.get(8..len).unwrap_or_default();
    check(
        OpenRequest::decode(without_name) == Err(OptionError::Missing(number::EXPORT_NAME)),
        "OPEN without a name",
    )
}

#[inline(never)]
fn opened() -> Result<(), &'static str> {
    let reply = Opened {
        session: SessionGrant {
            number: 1,
            secret: [9; 16],
        },
        export: EXPORT,
        geometry: GEOMETRY,
        limits: Limits {
            slots: 65,
            connections: 1,
            max_payload: 1 << 20,
            window: 4096,
            credit_bytes: 16 << 20,
        },
        digests: DigestChoice {
            algorithm: Algorithm::Crc64Nvme,
            granule: 4096,
        },
        times: Times {
            keepalive_ms: 5000,
            session_ms: 600_000,
            lease_ms: 30_000,
        },
    };
    let mut options = [0; 256];
    let len = reply.encode(&mut options).map_err(OptionError::text)?;
    let back = Opened::decode(options.get(..len).unwrap_or_default());
    check(back == Ok(reply), "reply to OPEN")
}

/// The proof of `JOIN` for the HELLOs and the secret in `join`.
const PROOF: [u8; 32] = [
    0x7E, 0x4B, 0xCB, 0x2B, 0x3E, 0x3B, 0xD3, 0xD1, 0xDD, 0x7E, 0xEF, 0x80, 0x9D, 0x23, 0x55, 0xC4,
    0x9B, 0xEF, 0x72, 0x8C, 0xFB, 0xCD, 0xEF, 0xCA, 0xA7, 0xEC, 0x70, 0xB3, 0x89, 0x2B, 0x38, 0xFD,
];

#[inline(never)]
fn join() -> Result<(), &'static str> {
    let mut server_hello = [0; HELLO_LEN];
    let mut client_hello = [0; HELLO_LEN];
    Hello::new(Role::Server, [1; 16], "dst").encode(&mut server_hello);
    Hello::new(Role::Client, [2; 16], "dst").encode(&mut client_hello);
    let transcript = Transcript {
        server_hello: &server_hello,
        client_hello: &client_hello,
        binding: &NO_BINDING,
    };
    let secret = [9; 16];
    let proof = proof::join_proof(&secret, &transcript, &JOIN).ok_or("length of HELLO")?;
    check(proof == Proof(PROOF), "join proof")?;
    check(
        proof::verify(&secret, &transcript, &JOIN, &proof),
        "join proof verified",
    )?;
    let later = Join {
        generation: 8,
        ..JOIN
    };
    check(
        !proof::verify(&secret, &transcript, &later, &proof),
        "join proof of another generation",
    )?;
    let request = JoinRequest {
        nonce: [1; 16],
        join: JOIN,
        proof,
    };
    let mut options = [0; 96];
    let len = request.encode(&mut options).map_err(OptionError::text)?;
    let back = JoinRequest::decode(options.get(..len).unwrap_or_default());
    check(back == Ok(request), "JOIN")
}

#[inline(never)]
fn joined() -> Result<(), &'static str> {
    let slots = [
        SlotEntry {
            id: 41,
            slot: 0,
            state: SlotState::Done,
            status: Status::NO_SPACE,
        },
        SlotEntry {
            id: 42,
            slot: 7,
            state: SlotState::InProgress,
            status: Status::OK,
        },
    ];
    let mut options = [0; 160];
    let len = Joined::encode_from(&EXPORT, &GEOMETRY, slots.iter().copied(), &mut options)
        .map_err(OptionError::text)?;
    let back = Joined::decode(options.get(..len).unwrap_or_default()).map_err(OptionError::text)?;
    let good = back.export == EXPORT && back.geometry == GEOMETRY && back.slots.clone().eq(slots);
    check(good, "reply to JOIN")?;
    let mut again = [0; 160];
    check(
        back.encode(&mut again) == Ok(len) && again == options,
        "reply to JOIN again",
    )
}

#[inline(never)]
fn list() -> Result<(), &'static str> {
    let request = ListRequest {
        client: ClientName::new("desk").ok_or("client name")?,
    };
    let mut options = [0; 80];
    let len = request.encode(&mut options).map_err(OptionError::text)?;
    let back = ListRequest::decode(options.get(..len).unwrap_or_default());
    check(back == Ok(request), "LIST")?;
    let listed = Listed {
        size: 1 << 30,
        logical_block: 4096,
        flags: GeometryFlags::READ_ONLY,
        name: ExportName::new("disk").ok_or("export name")?,
        writer: ClientName::default(),
    };
    // Two fit, the third goes into the next reply.
    let mut exports = [listed; 3].into_iter().peekable();
    for exports_of_one in [&[listed; 2][..], &[listed]] {
        let len = ListReply::encode(&mut exports, &mut options).map_err(OptionError::text)?;
        let options = options.get(..len).unwrap_or_default();
        let back = ListReply::decode(options).map_err(OptionError::text)?;
        let expected = exports_of_one.iter().copied();
        check(back.eq(expected), "reply to LIST")?;
    }
    Ok(())
}

#[inline(never)]
fn events() -> Result<(), &'static str> {
    let mut options = [0; 64];
    let refusal = Refusal {
        message: Message::new("in use"),
        wait_ms: Some(2500),
    };
    let len = refusal.encode(&mut options).map_err(OptionError::text)?;
    let back = Refusal::decode(options.get(..len).unwrap_or_default());
    check(back == Ok(refusal), "refusal")?;
    let changed = Changed { geometry: GEOMETRY };
    let len = changed.encode(&mut options).map_err(OptionError::text)?;
    let back = Changed::decode(options.get(..len).unwrap_or_default());
    check(back == Ok(changed), "CHANGED")?;
    let aborted = Aborted {
        outcome: Outcome::Undone,
    };
    let len = aborted.encode(&mut options).map_err(OptionError::text)?;
    let back = Aborted::decode(options.get(..len).unwrap_or_default());
    check(back == Ok(aborted), "reply to ABORT")?;
    let extent = Extent {
        length: 4096,
        kind: ExtentKind::Hole,
    };
    let len = BlockStatus::encode_from([extent; 2].into_iter(), &mut options)
        .map_err(OptionError::text)?;
    let back =
        BlockStatus::decode(options.get(..len).unwrap_or_default()).map_err(OptionError::text)?;
    check(back.extents.eq([extent; 2]), "reply to BLOCK STATUS")
}

#[inline(never)]
fn unknown_options() -> Result<(), &'static str> {
    let mut options = [0; 32];
    let mut out = OptionWriter::new(&mut options);
    out.put(999, false, &[b"abc", b"de"])
        .map_err(OptionError::text)?;
    let skipped = out.len();
    out.put(1000, true, &[]).map_err(OptionError::text)?;
    let len = out.len();
    let skippable = options.get(..skipped).unwrap_or_default();
    check(check_none(skippable).is_ok(), "unknown option")?;
    let all = options.get(..len).unwrap_or_default();
    check(
        check_none(all) == Err(OptionError::UnknownCritical(1000)),
        "unknown critical option",
    )?;
    let cut = options.get(..skipped.saturating_sub(8)).unwrap_or_default();
    check(
        check_none(cut) == Err(OptionError::Truncated),
        "truncated option",
    )
}
