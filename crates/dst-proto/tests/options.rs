//! Options and messages: whatever bytes come, decoding neither panics nor accepts what it can't encode again.

use dst_proto::options::check_none;
use dst_proto::{
    Aborted, BlockStatus, Changed, ClientName, Digests, Expect, ExportName, Holder, JoinRequest,
    Joined, Limits, ListReply, ListRequest, Mode, OpenRequest, Opened, OptionError, OptionReader,
    OptionWriter, Refusal, Retained,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Options that are well formed, of any numbers with any values.
fn any_options() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        vec(any::<u8>(), 0..64),
        // Lengths that known options have, and values that are more often small.
        (
            prop::sample::select(vec![1, 4, 8, 12, 16, 24, 32, 40, 48]),
            any::<u8>()
        )
            .prop_map(|(len, fill)| vec![fill % 3; len]),
    ];
    vec((0..34u16, any::<bool>(), value), 0..12).prop_map(|list| {
        let mut bytes = vec![0; 4096];
        let mut out = OptionWriter::new(&mut bytes);
        for (kind, critical, value) in list {
            out.put(kind, critical && value.len() % 4 == 0, &[&value])
                .unwrap();
        }
        let len = out.len();
        bytes.truncate(len);
        bytes
    })
}

/// Decodes `options` as everything; where that works, encodes again and finds the same.
fn decode_all(options: &[u8]) {
    let mut out = [0; 16384];
    let mut again = [0; 16384];
    macro_rules! check {
        ($message:ident) => {
            if let Ok(first) = $message::decode(options) {
                let len = first.encode(&mut out).unwrap();
                assert_eq!(len % 8, 0);
                let second = $message::decode(&out[..len]).unwrap();
                assert_eq!(second, first);
                assert_eq!(second.encode(&mut again), Ok(len));
                assert_eq!(out[..len], again[..len]);
            }
        };
    }
    check!(OpenRequest);
    check!(Opened);
    check!(JoinRequest);
    check!(Joined);
    check!(ListRequest);
    check!(Refusal);
    check!(Changed);
    check!(Aborted);
    if let Ok(list) = ListReply::decode(options) {
        let mut exports = list.clone().peekable();
        if let Ok(len) = ListReply::encode(&mut exports, &mut out) {
            assert!(ListReply::decode(&out[..len]).unwrap().eq(list));
        }
    }
    if let Ok(status) = BlockStatus::decode(options) {
        let len = BlockStatus::encode_from(status.extents.clone(), &mut out).unwrap();
        assert_eq!(BlockStatus::decode(&out[..len]), Ok(status));
    }
    let _ = check_none(options);
    for option in OptionReader::new(options).flatten() {
        assert!(option.kind < 1 << 15 && option.value.len() <= options.len());
    }
}

proptest! {
    #[test]
    fn any_bytes_as_options_are_survived(options in vec(any::<u8>(), 0..300)) {
        decode_all(&options);
    }

    #[test]
    fn any_well_formed_options_are_survived(options in any_options(), cut in 0..4096usize) {
        decode_all(&options);
        decode_all(&options[..cut.min(options.len())]);
    }

    #[test]
    fn an_open_comes_back_in_any_order_with_unknown_options_between(
        name in "[^/\\p{C}]{1,60}",
        client in "[^\\p{C}]{0,16}",
        holder in any::<Option<[u8; 16]>>(),
        numbers: (u16, u16, u32, u32, u32, u64),
        granule in 9..=16u32,
        extra in any::<bool>(),
        order in Just((0..9usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        prop_assume!(name != "." && name != "..");
        let request = OpenRequest {
            name: ExportName::new(&name).unwrap(),
            nonce: [7; 16],
            mode: if holder.is_some() { Mode::SoleWriter } else { Mode::ReadOnly },
            limits: Limits {
                slots: numbers.0,
                connections: numbers.1,
                max_payload: numbers.2,
                window: numbers.3,
                credit_bytes: numbers.4,
            },
            digests: Digests { mask: numbers.2, granule: 1 << granule },
            holder: holder.map(|identity| Holder { identity, boot: [1; 16], instance: [2; 16] }),
            client: ClientName::new(&client).unwrap(),
            expect: extra.then_some(Expect { export: [3; 16], epoch: numbers.5 }),
            retained: extra.then_some(Retained { entries: numbers.3, bytes: numbers.5 }),
        };
        let mut bytes = [0; 1024];
        let len = request.encode(&mut bytes).unwrap();
        prop_assert_eq!(OpenRequest::decode(&bytes[..len]), Ok(request));

        let options: Vec<_> = OptionReader::new(&bytes[..len]).map(Result::unwrap).collect();
        let mut shuffled = [0; 2048];
        let mut out = OptionWriter::new(&mut shuffled);
        for i in order {
            if let Some(option) = options.get(i) {
                out.put(option.kind, false, &[option.value]).unwrap();
                out.put(500 + i as u16, false, &[b"unknown"]).unwrap();
            }
        }
        let good = out.len();
        out.put(options[0].kind, false, &[options[0].value]).unwrap();
        let twice = out.len();
        prop_assert_eq!(OpenRequest::decode(&shuffled[..good]), Ok(request));
        let duplicate = OptionError::Duplicate(options[0].kind);
        prop_assert_eq!(OpenRequest::decode(&shuffled[..twice]), Err(duplicate));
    }

    #[test]
    fn a_full_writer_keeps_what_it_had(room in 0..200usize, lens in vec(0..40usize, 0..10)) {
        let mut bytes = vec![0xEE; room];
        let mut out = OptionWriter::new(&mut bytes);
        let mut written = Vec::new();
        for len in lens {
            let value = vec![1; len];
            let before = out.len();
            match out.put(9, false, &[&value]) {
                Ok(()) => written.push(value),
                Err(error) => {
                    prop_assert_eq!(error, OptionError::Full);
                    prop_assert_eq!(out.len(), before);
                }
            }
        }
        let used = out.len();
        prop_assert!(bytes[used..].iter().all(|b| *b == 0xEE));
        let read = OptionReader::new(&bytes[..used]).map(|o| o.unwrap().value.to_vec());
        prop_assert_eq!(read.collect::<Vec<_>>(), written);
    }
}

#[test]
fn export_names_that_could_be_paths_or_garble_a_terminal_are_refused() {
    let long = "x".repeat(256);
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        "/",
        "a\nb",
        "\u{1b}[1m",
        "\u{85}",
        "\0",
        &long,
    ] {
        assert!(ExportName::new(bad).is_none(), "{bad:?}");
    }
    for good in ["a", "...", ".a", "a b", "é", &long[..255]] {
        assert!(ExportName::new(good).is_some(), "{good:?}");
    }
}

#[test]
fn a_join_reply_has_room_for_every_slot() {
    use dst_proto::{
        ExportState, Geometry, GeometryFlags, SlotEntry, SlotState, Status, MAX_SLOTS,
    };
    let export = ExportState {
        id: [1; 16],
        incarnation: [2; 16],
        epoch: 3,
    };
    let geometry = Geometry {
        size: 1 << 30,
        logical_block: 512,
        physical_block: 512,
        flags: GeometryFlags::NONE,
        discard_granularity: 0,
        atomic_limit: 0,
        rollback_limit: 0,
    };
    let slots = (0..MAX_SLOTS).map(|slot| SlotEntry {
        id: u64::from(slot) + 1,
        slot,
        state: SlotState::Done,
        status: Status::OK,
    });
    let mut out = [0; 16384];
    let len = Joined::encode_from(&export, &geometry, slots.clone(), &mut out).unwrap();
    assert!(Joined::decode(&out[..len]).unwrap().slots.eq(slots));
}

#[test]
fn secrets_stay_out_of_debug_output() {
    let grant = dst_proto::SessionGrant {
        number: 5,
        secret: [0xAB; 16],
    };
    let text = format!("{grant:?}");
    assert!(
        text.contains('5') && !text.contains("171") && !text.contains("ab"),
        "{text}"
    );
}

#[test]
fn a_message_shown_has_no_control_characters() {
    let message = dst_proto::Message::new("a\u{1b}[2Jb\n");
    assert_eq!(message.to_string(), "a\u{FFFD}[2Jb\u{FFFD}");
    let cut = "é".repeat(600);
    assert_eq!(dst_proto::Message::new(&cut).as_str().len(), 1024);
}
