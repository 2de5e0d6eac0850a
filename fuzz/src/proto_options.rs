//! Options of every message: what decodes encodes, and what was encoded decodes to the same.

use dst_proto::option::Value;
use dst_proto::{
    options, Aborted, BlockStatus, Changed, Group, JoinRequest, Joined, ListReply, ListRequest,
    Listed, OpenRequest, Opened, OptionError, OptionReader, OptionWriter, Refusal, MAX_OPTIONS,
};

use crate::input::Input;

/// The first byte chooses between raw options and options put together one by one from the rest.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut area = Vec::new();
    if input.u8() & 1 == 0 {
        area.extend_from_slice(input.rest());
        area.truncate(usize::from(MAX_OPTIONS));
    } else {
        put_together(&mut input, &mut area);
    }
    messages(&area);
    one_by_one(&area);
}

/// Options with the padding right: number, length, flags and value of each from the input.
fn put_together(input: &mut Input<'_>, area: &mut Vec<u8>) {
    area.resize(usize::from(MAX_OPTIONS), 0);
    let mut out = OptionWriter::new(area);
    while !input.is_empty() {
        let kind = u16::from(input.u8());
        let kind = if kind < 64 { kind } else { kind << 7 & 0x7FFF };
        let form = input.u8();
        let len = usize::from(form & 0x3F) * if form & 0x40 != 0 { 17 } else { 1 };
        let value = input.bytes(len);
        let before = out.len();
        match out.put(kind, form & 0x80 != 0, &[value, &[]]) {
            Ok(()) => assert_eq!(out.len(), before + (value.len() + 4).next_multiple_of(8)),
            Err(error) => {
                assert_eq!((error, out.len()), (OptionError::Full, before));
                break;
            }
        }
    }
    let len = out.len();
    area.truncate(len);
}

/// What `encode` has written, decoded anew, is `$message`; and encoding needs no more room than there was.
macro_rules! there_and_back {
    ($area:expr, $type:ty) => {
        if let Ok(message) = <$type>::decode($area) {
            let mut out = vec![0xAA; usize::from(MAX_OPTIONS)];
            let len = message.encode(&mut out).expect("what fitted fits again");
            assert!(len % 8 == 0 && len <= usize::from(MAX_OPTIONS));
            assert_eq!(<$type>::decode(&out[..len]).as_ref(), Ok(&message));
            for short in [0, len / 2, len.saturating_sub(1)] {
                let fits = message.encode(&mut out[..short]).is_ok();
                assert!(!fits || short >= len);
            }
        }
    };
}

fn messages(area: &[u8]) {
    there_and_back!(area, OpenRequest);
    there_and_back!(area, Opened);
    there_and_back!(area, JoinRequest);
    there_and_back!(area, ListRequest);
    there_and_back!(area, Changed);
    there_and_back!(area, Aborted);
    if let Ok(refusal) = Refusal::decode(area) {
        let mut out = vec![0; usize::from(MAX_OPTIONS)];
        let len = refusal.encode(&mut out).expect("a refusal is short");
        assert_eq!(Refusal::decode(&out[..len]), Ok(refusal));
        assert!(refusal.message.as_str().len() <= 1024);
    }
    if let Ok(joined) = Joined::decode(area) {
        let mut out = vec![0; usize::from(MAX_OPTIONS)];
        let len = joined.encode(&mut out).expect("what fitted fits again");
        let again = Joined::decode(&out[..len]).expect("decodes");
        assert!(again.slots.clone().eq(joined.slots.clone()));
        assert_eq!(
            (again.export, again.geometry),
            (joined.export, joined.geometry)
        );
    }
    if let Ok(status) = BlockStatus::decode(area) {
        let mut out = vec![0; usize::from(MAX_OPTIONS)];
        let len = BlockStatus::encode_from(status.extents.clone(), &mut out).expect("fits");
        let again = BlockStatus::decode(&out[..len]).expect("decodes");
        assert!(again.extents.eq(status.extents.clone()));
        assert!(status.extents.clone().all(|extent| extent.length > 0));
    }
    if let Ok(list) = ListReply::decode(area) {
        let all: Vec<Listed<'_>> = list.collect();
        let mut rest = all.iter().copied().peekable();
        let mut out = vec![0; usize::from(MAX_OPTIONS)];
        let len = ListReply::encode(&mut rest, &mut out).expect("one always fits");
        assert!(rest.next().is_none(), "all came in one frame");
        assert!(ListReply::decode(&out[..len])
            .expect("decodes")
            .eq(all.iter().copied()));
        for listed in all {
            assert!(listed.name.as_str().len() <= 255 && !listed.name.as_str().contains('/'));
        }
    }
}

fn one_by_one(area: &[u8]) {
    let mut good = true;
    let mut critical = false;
    let mut whole = 0;
    for option in OptionReader::new(area) {
        assert!(good, "goes on after an error");
        match option {
            Ok(option) => {
                critical |= option.critical;
                whole += (option.value.len() + 4).next_multiple_of(8);
                if let Ok(group) = Group::read(option.value) {
                    let mut out = [0; 24];
                    group.write(&mut OptionWriter::new(&mut out)).expect("fits");
                    assert_eq!(out[4..20], *option.value);
                }
            }
            Err(error) => {
                assert_eq!(error, OptionError::Truncated);
                good = false;
            }
        }
    }
    assert!(whole <= area.len() && (!good || whole == area.len()));
    let none = options::check_none(area);
    assert_eq!(none.is_ok(), good && !critical);
    if let Err(error) = none {
        assert!(!error.status().is_ok() && !format!("{error}").is_empty());
    }
}
