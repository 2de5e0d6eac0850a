//! What users type: URLs, exports, sizes. What parses, written and parsed again, is the same.

use dst_net::url::{Address, Endpoint};
use dst_store::{format_size, parse_size, Source, Spec};

/// The first byte chooses the parser, the rest is the text.
pub fn run(data: &[u8]) {
    let Some((which, text)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    match which % 6 {
        0 => url(&text),
        1 => url(&format!("dst://{text}")),
        2 => url(&format!("dst+unix://{text}")),
        3 => url(&format!("dst+exec:///{text}")),
        4 => spec(&text),
        _ => size(&text),
    }
}

fn url(text: &str) {
    let endpoint = match text.parse::<Endpoint>() {
        Ok(endpoint) => endpoint,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let written = endpoint.to_string();
    assert_eq!(
        written.parse::<Endpoint>().as_ref(),
        Ok(&endpoint),
        "{written}"
    );
    assert!(written.is_ascii() && !written.contains(|c: char| c.is_ascii_control() || c == ' '));
    let again = Endpoint::new(endpoint.address().clone(), endpoint.export());
    assert_eq!(again.as_ref(), Ok(&endpoint), "its parts make it");
    match endpoint.address() {
        Address::Tcp { host, .. } => {
            assert!(
                !host.is_empty() && !host.contains(['/', '@', '[', ']']),
                "{host:?}"
            );
        }
        Address::Unix { path } => {
            assert!(path.is_absolute() && path.as_os_str().len() <= 107);
            assert!(!path.as_os_str().as_encoded_bytes().contains(&0));
        }
        Address::Exec { .. } => assert!(!endpoint.address().words().is_empty()),
    }
    if let Some(export) = endpoint.export() {
        assert!((1..=255).contains(&export.len()) && !export.chars().any(char::is_control));
        let without = endpoint.with_export(None).expect("an address alone");
        assert_eq!(without.with_export(Some(export)), Ok(endpoint.clone()));
    }
}

fn spec(text: &str) {
    match text.parse::<Spec>() {
        Ok(spec) => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!((1..=128).contains(&spec.name.len()) && spec.name.chars().all(allowed));
            assert!(!spec.name.starts_with(['.', '-']));
            if let Source::Path(path) = &spec.source {
                // The name in front makes no difference to the source, where there is none yet.
                let named = format!("n={text}");
                if !text.contains('=') && !path.as_os_str().is_empty() {
                    let named: Spec = named.parse().expect("a name in front");
                    assert_eq!((named.name.as_str(), &named.source), ("n", &spec.source));
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn size(text: &str) {
    match parse_size(text) {
        Ok(bytes) => {
            assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
            let written = format_size(bytes);
            let short: String = written.chars().filter(|c| *c != ' ').collect();
            let again = parse_size(&short).expect("what is written for people can be read");
            assert!(again <= bytes, "rounded down: {written}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
