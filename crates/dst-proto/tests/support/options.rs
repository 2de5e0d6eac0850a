//! Vectors of options, alone and as the options of a frame. Each option is one line: its name, then its fields.

use super::{fixed, hex, number, Stanza};
use dst_proto::option::{number as n, Nonce, Value, Wait};
use dst_proto::{
    Aborted, BlockStatus, Changed, ClientName, DigestChoice, Digests, Expect, ExportName,
    ExportState, Extent, ExtentKind, Extents, Geometry, GeometryFlags, Group, Holder, Join,
    JoinRequest, Joined, Limits, ListReply, ListRequest, Listed, Message, Mode, OpenRequest,
    Opened, OptionReader, OptionWriter, Outcome, Proof, Refusal, Retained, SessionGrant, SlotEntry,
    SlotState, Slots, Status, Times,
};

/// `key=value` pairs separated by spaces.
struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> &'a str {
        let pair = self
            .0
            .split(' ')
            .find_map(|p| p.strip_prefix(key)?.strip_prefix('='));
        pair.unwrap_or_else(|| panic!("no {key} in {:?}", self.0))
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> T {
        number(self.get(key))
    }
}

fn write(name: &str, text: &str, out: &mut OptionWriter<'_>) {
    let f = Fields(text);
    let list = || {
        text.split("; ")
            .filter(|entry| !entry.is_empty())
            .map(Fields)
    };
    match name {
        "EXPORT_NAME" => ExportName::new(text).unwrap().write(out),
        "NONCE" => Nonce(fixed(text)).write(out),
        "HOLDER" => Holder {
            identity: fixed(f.get("identity")),
            boot: fixed(f.get("boot")),
            instance: fixed(f.get("instance")),
        }
        .write(out),
        "MODE" => Mode::read(&[number(text)]).unwrap().write(out),
        "LIMITS" => Limits {
            slots: f.number("slots"),
            connections: f.number("connections"),
            max_payload: f.number("payload"),
            window: f.number("window"),
            credit_bytes: f.number("credit"),
        }
        .write(out),
        "DIGESTS" => Digests {
            mask: f.number("algorithms"),
            granule: f.number("granule"),
        }
        .write(out),
        "EXPECT" => Expect {
            export: fixed(f.get("export")),
            epoch: f.number("epoch"),
        }
        .write(out),
        "SESSION" => SessionGrant {
            number: f.number("number"),
            secret: fixed(f.get("secret")),
        }
        .write(out),
        "JOIN" => Join {
            session: f.number("session"),
            generation: f.number("generation"),
            index: f.number("index"),
        }
        .write(out),
        "PROOF" => Proof(fixed(text)).write(out),
        "EXPORT" => ExportState {
            id: fixed(f.get("id")),
            incarnation: fixed(f.get("incarnation")),
            epoch: f.number("epoch"),
        }
        .write(out),
        "GEOMETRY" => Geometry {
            size: f.number("size"),
            logical_block: f.number("logical"),
            physical_block: f.number("physical"),
            flags: GeometryFlags(f.number("flags")),
            discard_granularity: f.number("discard"),
            atomic_limit: f.number("atomic"),
            rollback_limit: f.number("rollback"),
        }
        .write(out),
        "SLOTS" => {
            let entries = list().map(|f| SlotEntry {
                id: f.number("id"),
                slot: f.number("slot"),
                state: match f.get("state") {
                    "1" => SlotState::InProgress,
                    "2" => SlotState::Done,
                    other => panic!("state {other}"),
                },
                status: Status(f.number("status")),
            });
            Slots::put(out, entries)
        }
        "MESSAGE" => Message::new(text).write(out),
        "TIMES" => Times {
            keepalive_ms: f.number("keepalive"),
            session_ms: f.number("session"),
            lease_ms: f.number("lease"),
        }
        .write(out),
        "RETAINED" => Retained {
            entries: f.number("entries"),
            bytes: f.number("bytes"),
        }
        .write(out),
        "EXTENTS" => {
            let entries = list().map(|f| Extent {
                length: f.number("length"),
                kind: match f.get("kind") {
                    "0" => ExtentKind::Data,
                    "1" => ExtentKind::Zeroes,
                    "2" => ExtentKind::Hole,
                    other => panic!("kind {other}"),
                },
            });
            Extents::put(out, entries)
        }
        "LISTED" => Listed {
            size: f.number("size"),
            logical_block: f.number("logical"),
            flags: GeometryFlags(f.number("flags")),
            name: ExportName::new(f.get("name")).unwrap(),
            writer: ClientName::new(f.get("writer")).unwrap(),
        }
        .write(out),
        "OUTCOME" => Outcome::from_code(number(text)).unwrap().write(out),
        "CLIENT" => ClientName::new(text).unwrap().write(out),
        "WAIT" => Wait(number(text)).write(out),
        "GROUP" => Group {
            id: f.number("id"),
            part: f.number("part"),
            last: f.number("last"),
        }
        .write(out),
        other => panic!("option {other}"),
    }
    .expect("the option fits");
}

fn read(kind: u16, value: &[u8]) -> String {
    fn of<'a, V: Value<'a>>(value: &'a [u8]) -> V {
        V::read(value).expect("a good value")
    }
    match kind {
        n::EXPORT_NAME => of::<ExportName>(value).as_str().into(),
        n::NONCE => hex(&of::<Nonce>(value).0),
        n::HOLDER => {
            let v: Holder = of(value);
            format!(
                "identity={} boot={} instance={}",
                hex(&v.identity),
                hex(&v.boot),
                hex(&v.instance)
            )
        }
        n::MODE => (of::<Mode>(value) as u8).to_string(),
        n::LIMITS => {
            let v: Limits = of(value);
            format!(
                "slots={} connections={} payload={} window={} credit={}",
                v.slots, v.connections, v.max_payload, v.window, v.credit_bytes
            )
        }
        n::DIGESTS => {
            let v: Digests = of(value);
            if let Ok(choice) = DigestChoice::read(value) {
                assert_eq!(
                    (choice.algorithm.code(), choice.granule),
                    (v.mask, v.granule)
                );
            }
            format!("algorithms={} granule={}", v.mask, v.granule)
        }
        n::EXPECT => {
            let v: Expect = of(value);
            format!("export={} epoch={}", hex(&v.export), v.epoch)
        }
        n::SESSION => {
            let v: SessionGrant = of(value);
            format!("number={} secret={}", v.number, hex(&v.secret))
        }
        n::JOIN => {
            let v: Join = of(value);
            format!(
                "session={} generation={} index={}",
                v.session, v.generation, v.index
            )
        }
        n::PROOF => hex(&of::<Proof>(value).0),
        n::EXPORT => {
            let v: ExportState = of(value);
            format!(
                "id={} incarnation={} epoch={}",
                hex(&v.id),
                hex(&v.incarnation),
                v.epoch
            )
        }
        n::GEOMETRY => {
            let v: Geometry = of(value);
            format!(
                "size={} logical={} physical={} flags={:#x} discard={} atomic={} rollback={}",
                v.size,
                v.logical_block,
                v.physical_block,
                v.flags.0,
                v.discard_granularity,
                v.atomic_limit,
                v.rollback_limit
            )
        }
        n::SLOTS => {
            let entry = |v: SlotEntry| {
                let state = v.state as u8;
                format!(
                    "id={} slot={} state={state} status={}",
                    v.id, v.slot, v.status.0
                )
            };
            of::<Slots>(value).map(entry).collect::<Vec<_>>().join("; ")
        }
        n::MESSAGE => of::<Message>(value).as_str().into(),
        n::TIMES => {
            let v: Times = of(value);
            format!(
                "keepalive={} session={} lease={}",
                v.keepalive_ms, v.session_ms, v.lease_ms
            )
        }
        n::RETAINED => {
            let v: Retained = of(value);
            format!("entries={} bytes={}", v.entries, v.bytes)
        }
        n::EXTENTS => {
            let entry = |v: Extent| format!("length={} kind={}", v.length, v.kind as u32);
            of::<Extents>(value)
                .map(entry)
                .collect::<Vec<_>>()
                .join("; ")
        }
        n::LISTED => {
            let v: Listed = of(value);
            format!(
                "size={} logical={} flags={:#x} name={} writer={}",
                v.size,
                v.logical_block,
                v.flags.0,
                v.name.as_str(),
                v.writer.as_str()
            )
        }
        n::OUTCOME => of::<Outcome>(value).code().to_string(),
        n::CLIENT => of::<ClientName>(value).as_str().into(),
        n::WAIT => of::<Wait>(value).0.to_string(),
        n::GROUP => {
            let v: Group = of(value);
            format!("id={} part={} last={}", v.id, v.part, v.last)
        }
        other => panic!("option {other}"),
    }
}

/// The options of `bytes`, one a line, and the bytes.
pub fn describe(name: &str, bytes: &[u8]) -> Stanza {
    let mut stanza = Stanza::new(name);
    for option in OptionReader::new(bytes) {
        let option = option.expect("well formed");
        assert_eq!(option.critical, option.kind == n::GROUP);
        stanza = stanza.with(n::name(option.kind), read(option.kind, option.value));
    }
    stanza.with("options", hex(bytes))
}

pub fn build(stanza: &Stanza) -> Vec<u8> {
    let mut bytes = vec![0xEE; 16384];
    let mut out = OptionWriter::new(&mut bytes);
    for (name, value) in stanza.lines.iter().filter(|(k, _)| k != "options") {
        write(name, value, &mut out);
    }
    let len = out.len();
    bytes.truncate(len);
    bytes
}

/// Decodes and encodes again as the message that the stanza is named for.
pub fn through_message(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0xEE; 16384];
    let message = name.split(',').next().unwrap();
    let len = match message {
        "OPEN" => OpenRequest::decode(bytes).unwrap().encode(&mut out),
        "reply to OPEN" => Opened::decode(bytes).unwrap().encode(&mut out),
        "JOIN" => JoinRequest::decode(bytes).unwrap().encode(&mut out),
        "reply to JOIN" => Joined::decode(bytes).unwrap().encode(&mut out),
        "LIST" => ListRequest::decode(bytes).unwrap().encode(&mut out),
        "reply to LIST" => {
            ListReply::encode(&mut ListReply::decode(bytes).unwrap().peekable(), &mut out)
        }
        "refusal" => Refusal::decode(bytes).unwrap().encode(&mut out),
        "CHANGED" => Changed::decode(bytes).unwrap().encode(&mut out),
        "reply to ABORT" => Aborted::decode(bytes).unwrap().encode(&mut out),
        "reply to BLOCK STATUS" => {
            BlockStatus::encode_from(BlockStatus::decode(bytes).unwrap().extents, &mut out)
        }
        other => panic!("message {other}"),
    };
    out.truncate(len.expect("the message fits"));
    out
}
