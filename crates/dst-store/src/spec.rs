//! What a user writes to name an export: `[NAME=]PATH`, `[NAME=]memory:10G`, `[NAME=]null:10G`,
//! `[NAME=]lossy:PATH[?seed=N&early=N&fail_sync=N]`.
//!
//! `PATH` is a regular file or a block device. A path that could be taken for something else is written with a slash
//! (`./memory:10G`, `./a=b`). The name left out is the file's, without its last extension, or `memory` or `null`.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::backend::Backend;
use crate::blockdev::open_block_device;
use crate::create::create_sparse;
use crate::file::open_file;
use crate::lossy::{LossyBackend, LossyOptions};
use crate::memory::MemoryBackend;
use crate::null::NullBackend;
use crate::open::{OpenError, OpenOptions};
use crate::size::{parse_size, ParseSizeError};

/// Bytes of an export's name at most.
pub const MAX_NAME: usize = 128;

/// An export as named by a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What clients call it: 1 to [`MAX_NAME`] of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`.
    pub name: String,
    /// Where its bytes are.
    pub source: Source,
}

/// Where the bytes of an export are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In a regular file or on a block device.
    Path(PathBuf),
    /// In memory, this many bytes.
    Memory(u64),
    /// Nowhere, this many bytes.
    Null(u64),
    /// In a file, with a cache that loses what was not flushed: for tests.
    Lossy(PathBuf, LossyOptions),
}

/// Why a text names no export.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSpecError {
    /// No path.
    #[error("{0:?} names no file or device")]
    NoPath(String),
    /// A name that can't be used, given or made from the path.
    #[error("{name:?} can't be the name of an export: 1 to {MAX_NAME} letters, digits, '.', '_' and '-', beginning with a letter, digit or '_'; choose one with NAME={rest}")]
    Name {
        /// The name.
        name: String,
        /// The rest of the text.
        rest: String,
    },
    /// No size where one is needed.
    #[error(transparent)]
    Size(#[from] ParseSizeError),
    /// An option of the test backend that does not exist, or with a value that is no number.
    #[error("lossy: unknown option {0:?}; there are seed=N, early=PERCENT and fail_sync=N")]
    LossyOption(String),
}

impl FromStr for Spec {
    type Err = ParseSpecError;

    fn from_str(text: &str) -> Result<Spec, ParseSpecError> {
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) if !name.contains(['/', ':']) => (Some(name), rest),
            _ => (None, text),
        };
        let (source, default_name) = parse_source(rest)?;
        let name = name.unwrap_or(&default_name);
        if !is_name(name) {
            return Err(ParseSpecError::Name {
                name: name.to_owned(),
                rest: rest.to_owned(),
            });
        }
        Ok(Spec {
            name: name.to_owned(),
            source,
        })
    }
}

fn parse_source(text: &str) -> Result<(Source, String), ParseSpecError> {
    let path = |text: &str| match Path::new(text).file_stem() {
        Some(stem) => Ok((PathBuf::from(text), stem.to_string_lossy().into_owned())),
        None => Err(ParseSpecError::NoPath(text.to_owned())),
    };
    match text.split_once(':') {
        Some(("memory", size)) => Ok((Source::Memory(parse_size(size)?), "memory".to_owned())),
        Some(("null", size)) => Ok((Source::Null(parse_size(size)?), "null".to_owned())),
        Some(("lossy", rest)) => {
            let (file, options) = rest.split_once('?').unwrap_or((rest, ""));
            let (file, name) = path(file)?;
            Ok((Source::Lossy(file, parse_lossy_options(options)?), name))
        }
        _ => path(text).map(|(path, name)| (Source::Path(path), name)),
    }
}

fn parse_lossy_options(text: &str) -> Result<LossyOptions, ParseSpecError> {
    let mut options = LossyOptions::default();
    for option in text.split('&').filter(|option| !option.is_empty()) {
        let unknown = || ParseSpecError::LossyOption(option.to_owned());
        let (key, value) = option.split_once('=').ok_or_else(unknown)?;
        let number: u64 = value.parse().map_err(|_| unknown())?;
        match key {
            "seed" => options.seed = Some(number),
            "early" if number <= 100 => options.early_percent = number as u32,
            "fail_sync" => options.fail_sync = number,
            _ => return Err(unknown()),
        }
    }
    Ok(options)
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MAX_NAME).contains(&name.len())
        && name.chars().all(allowed)
        && !name.starts_with(['.', '-'])
}

impl Spec {
    /// Opens the export, and with [`OpenOptions::create_size`] makes its file first if there is none. Blocks; up to 10 s if
    /// the lock of a dying server has to be waited for.
    ///
    /// # Errors
    /// Says what is wrong and, where something can be done, what.
    pub fn open(&self, options: &OpenOptions) -> Result<Box<dyn Backend>, OpenError> {
        let block = options.block_size.unwrap_or(512);
        match &self.source {
            Source::Memory(size) => Ok(Box::new(MemoryBackend::new(
                *size,
                block,
                options.read_only,
            )?)),
            Source::Null(size) => Ok(Box::new(NullBackend::new(*size, block, options.read_only)?)),
            Source::Path(path) => match kind(path, options)? {
                Kind::File => Ok(Box::new(open_file(path, options)?)),
                Kind::BlockDevice => Ok(Box::new(open_block_device(path, options)?)),
            },
            Source::Lossy(path, lossy) => match kind(path, options)? {
                Kind::File => Ok(Box::new(LossyBackend::open(path, lossy, options)?)),
                Kind::BlockDevice => Err(wrong_kind(
                    path,
                    "a block device; the test backend needs a file",
                )),
            },
        }
    }
}

enum Kind {
    File,
    BlockDevice,
}

/// What is under a path, after making it if that was asked.
fn kind(path: &Path, options: &OpenOptions) -> Result<Kind, OpenError> {
    let mut metadata = fs::metadata(path);
    if let (Err(error), Some(size)) = (&metadata, options.create_size) {
        if error.kind() == io::ErrorKind::NotFound && !options.read_only {
            let name = path.display().to_string();
            crate::open::check_geometry(&name, size, options.block_size.unwrap_or(512))?;
            create_sparse(path, size)?;
            metadata = fs::metadata(path);
        }
    }
    let file_type = match metadata {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::NotFound {
                path: path.display().to_string(),
            });
        }
        Err(error) => return Err(OpenError::io(format!("open {}", path.display()))(error)),
    };
    if file_type.is_file() {
        Ok(Kind::File)
    } else if file_type.is_block_device() {
        Ok(Kind::BlockDevice)
    } else if file_type.is_dir() {
        Err(wrong_kind(path, "a directory"))
    } else if file_type.is_char_device() {
        Err(wrong_kind(path, "a character device"))
    } else {
        Err(wrong_kind(path, "a socket or pipe"))
    }
}

fn wrong_kind(path: &Path, kind: &'static str) -> OpenError {
    OpenError::Kind {
        path: path.display().to_string(),
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> (String, Source) {
        let spec: Spec = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        (spec.name, spec.source)
    }

    #[test]
    fn paths_with_and_without_names() {
        let path = |path: &str| Source::Path(path.into());
        for (text, name, source) in [
            ("disk.img", "disk", path("disk.img")),
            ("/srv/vm.1.qcow", "vm.1", path("/srv/vm.1.qcow")),
            ("/dev/sdb", "sdb", path("/dev/sdb")),
            ("data=/dev/sdb", "data", path("/dev/sdb")),
            ("x=./a=b", "x", path("./a=b")),
            ("./a=b.img", "", path("")),
            ("my-disk_1=/a:b", "my-disk_1", path("/a:b")),
            ("m=./memory:10G", "m", path("./memory:10G")),
            ("memory:10G", "memory", Source::Memory(10 << 30)),
            ("fast=memory:1.5G", "fast", Source::Memory(3 << 29)),
            ("null:1T", "null", Source::Null(1 << 40)),
        ] {
            if name.is_empty() {
                assert!(matches!(
                    text.parse::<Spec>(),
                    Err(ParseSpecError::Name { .. })
                ));
            } else {
                assert_eq!(parse(text), (name.to_owned(), source), "{text}");
            }
        }
    }

    #[test]
    fn options_of_the_test_backend() {
        let options = |seed, early_percent, fail_sync| LossyOptions {
            seed,
            early_percent,
            fail_sync,
        };
        let default = LossyOptions::default();
        assert_eq!(
            parse("lossy:a.img"),
            ("a".to_owned(), Source::Lossy("a.img".into(), default))
        );
        assert_eq!(
            parse("t=lossy:/x/a.img?seed=5&early=10&fail_sync=3"),
            (
                "t".to_owned(),
                Source::Lossy("/x/a.img".into(), options(Some(5), 10, 3))
            )
        );
        for text in [
            "lossy:a?x=1",
            "lossy:a?seed",
            "lossy:a?early=101",
            "lossy:a?seed=-1",
        ] {
            assert!(
                matches!(text.parse::<Spec>(), Err(ParseSpecError::LossyOption(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn what_names_nothing_is_refused_with_a_hint() {
        for text in ["", "/", "..", "a=", "lossy:", "x=/"] {
            assert!(
                matches!(text.parse::<Spec>(), Err(ParseSpecError::NoPath(_))),
                "{text}"
            );
        }
        for text in ["=a", "a b.img", "-x=a", ".hidden", "ä=a", "disk 1.img"] {
            let error = text.parse::<Spec>().expect_err(text).to_string();
            assert!(error.contains("NAME="), "{error}");
        }
        assert!(matches!(
            "memory:".parse::<Spec>(),
            Err(ParseSpecError::Size(_))
        ));
        assert!(matches!(
            "null:10X".parse::<Spec>(),
            Err(ParseSpecError::Size(_))
        ));
    }

    #[test]
    fn every_source_opens_as_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img").display().to_string();
        let options = OpenOptions {
            create_size: Some(1 << 20),
            block_size: Some(4096),
            ..OpenOptions::default()
        };
        for (text, kind) in [
            ("memory:1M".to_owned(), "memory"),
            ("null:1M".to_owned(), "null"),
            (path.clone(), "file"),
            (format!("lossy:{path}?seed=4"), "lossy (seed 4), file"),
        ] {
            let backend = text.parse::<Spec>().unwrap().open(&options).unwrap();
            let info = backend.info();
            assert!(info.description.starts_with(kind), "{}", info.description);
            assert_eq!((info.size, info.logical_block), (1 << 20, 4096));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_names_are_usable(text in ".{0,40}") {
            if let Ok(spec) = text.parse::<Spec>() {
                prop_assert!(is_name(&spec.name));
            }
        }
    }
}
