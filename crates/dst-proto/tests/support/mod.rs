//! The test vectors: their text format, and for each structure the way from fields to bytes and back.
//!
//! A file is a list of stanzas separated by empty lines; lines that begin with `#` are comments. The first line of a
//! stanza is `[name]`; each other is `key: value`. What the bytes are is always the last line, in hex.

// The example uses one half of this module, the tests the other.
#![allow(dead_code)]

pub mod cases;
pub mod digests;
pub mod frames;
pub mod hello;
pub mod invalid;
pub mod options;

use std::fmt::Write;

/// One vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Stanza {
    pub name: String,
    pub lines: Vec<(String, String)>,
}

impl Stanza {
    pub fn new(name: &str) -> Stanza {
        Stanza {
            name: name.into(),
            lines: Vec::new(),
        }
    }

    /// With one more line.
    pub fn with(mut self, key: &str, value: impl ToString) -> Stanza {
        self.lines.push((key.into(), value.to_string()));
        self
    }

    pub fn get(&self, key: &str) -> &str {
        match self.lines.iter().find(|(k, _)| k == key) {
            Some((_, value)) => value,
            None => panic!("[{}] has no line {key}", self.name),
        }
    }

    pub fn number<T: std::str::FromStr>(&self, key: &str) -> T {
        number(self.get(key))
    }

    pub fn bytes(&self, key: &str) -> Vec<u8> {
        unhex(self.get(key))
    }
}

/// All stanzas of a file.
pub fn parse(text: &str) -> Vec<Stanza> {
    let mut stanzas: Vec<Stanza> = Vec::new();
    for line in text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            stanzas.push(Stanza::new(name));
        } else {
            let (key, value) = line.split_once(':').expect("key: value");
            let stanza = stanzas.last_mut().expect("a stanza begins with [name]");
            stanza
                .lines
                .push((key.into(), value.strip_prefix(' ').unwrap_or(value).into()));
        }
    }
    stanzas
}

/// The text of a file.
pub fn print(comment: &str, stanzas: &[Stanza]) -> String {
    let mut text = String::new();
    for line in comment.lines() {
        writeln!(text, "# {line}").unwrap();
    }
    for stanza in stanzas {
        writeln!(text, "\n[{}]", stanza.name).unwrap();
        for (key, value) in &stanza.lines {
            writeln!(text, "{}", format!("{key}: {value}").trim_end()).unwrap();
        }
    }
    text
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len() % 2 == 0 && text.is_ascii(), "hex: {text}");
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
        .collect()
}

pub fn fixed<const N: usize>(text: &str) -> [u8; N] {
    unhex(text)
        .try_into()
        .expect("as many bytes as the field has")
}

/// Decimal, or hexadecimal with `0x`.
pub fn number<T: std::str::FromStr>(text: &str) -> T {
    let decimal = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16)
            .expect("hex number")
            .to_string(),
        None => text.to_string(),
    };
    match decimal.parse() {
        Ok(number) => number,
        Err(_) => panic!("not a number that fits: {text}"),
    }
}

/// `len` bytes, byte i being i mod 251.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Where the files are.
pub fn dir() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}
