//! Tests of the URLs.

use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Endpoint {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn refused(text: &str) -> UrlError {
    text.parse::<Endpoint>().expect_err(text)
}

fn tcp(host: &str, port: u16) -> Address {
    Address::Tcp {
        host: host.to_owned(),
        port,
    }
}

#[test]
fn tcp_urls_with_and_without_port_and_export() {
    assert_eq!(
        parse("dst://storage/disk"),
        Endpoint::new(tcp("storage", 7789), Some("disk")).unwrap()
    );
    assert_eq!(*parse("dst://10.0.0.1:99/a").address(), tcp("10.0.0.1", 99));
    assert_eq!(parse("dst://storage").export(), None);
    assert_eq!(parse("dst://storage/").export(), None);
    assert_eq!(parse("dst://storage/vm/a%20b").export(), Some("vm/a b"));
    assert_eq!(*parse("dst://0.0.0.0:7789").address(), tcp("0.0.0.0", 7789));
}

#[test]
fn ipv6_addresses_stand_in_brackets_and_may_have_a_zone() {
    assert_eq!(*parse("dst://[::1]:7790/x").address(), tcp("::1", 7790));
    assert_eq!(*parse("dst://[::]").address(), tcp("::", 7789));
    assert_eq!(
        *parse("dst://[fe80::1%25eth0]/x").address(),
        tcp("fe80::1%eth0", 7789)
    );
    assert_eq!(
        parse("dst://[fe80::1%eth0]/x"),
        parse("dst://[fe80::1%25eth0]/x")
    );
    assert!(matches!(refused("dst://::1/x"), UrlError::BadHost(_)));
    assert!(matches!(refused("dst://[::1/x"), UrlError::BadHost(_)));
    assert!(matches!(refused("dst://[::1]7789/x"), UrlError::BadHost(_)));
    assert!(matches!(refused("dst://[storage]/x"), UrlError::BadHost(_)));
}

#[test]
fn unix_urls_carry_a_path_and_an_export() {
    let url = parse("dst+unix:///path/to.sock?export=NAME");
    assert_eq!(
        *url.address(),
        Address::Unix {
            path: "/path/to.sock".into()
        }
    );
    assert_eq!(url.export(), Some("NAME"));
    assert_eq!(parse("dst+unix:///run/x.sock").export(), None);
    assert!(matches!(
        refused("dst+unix://run/x.sock"),
        UrlError::BadSocketPath(_)
    ));
    assert!(matches!(
        refused("dst+unix:///"),
        UrlError::BadSocketPath(_)
    ));
    assert!(matches!(
        refused(&format!("dst+unix:///{}", "x".repeat(107))),
        UrlError::BadSocketPath(_)
    ));
    assert!(matches!(
        refused("dst+unix:///x?export="),
        UrlError::BadExport(_)
    ));
    assert!(matches!(
        refused("dst+unix:///x?exprot=a"),
        UrlError::UnknownOption { .. }
    ));
    assert!(matches!(
        refused("dst+unix:///x?export=a&export=b"),
        UrlError::DoubledOption(_)
    ));
}

#[test]
fn exec_urls_carry_a_command_that_splits_into_words() {
    let url = parse(EXAMPLE_EXEC);
    assert_eq!(url.export(), Some("disk"));
    assert_eq!(
        url.address().words(),
        ["ssh", "storage", "dst", "serve", "--stdio", "disk.img"]
    );
    assert_eq!(
        parse("dst+exec:///?command=a%20'b%20c'+%22d%22")
            .address()
            .words(),
        ["a", "b c+d"],
        "quotes group, `+` is itself"
    );
    assert!(matches!(
        refused("dst+exec:///disk"),
        UrlError::BadCommand(_)
    ));
    assert!(matches!(
        refused("dst+exec:///disk?command="),
        UrlError::BadCommand(_)
    ));
    assert!(matches!(
        refused("dst+exec:///disk?command='a"),
        UrlError::BadCommand(_)
    ));
    assert!(matches!(
        refused("dst+exec:///disk?command=a%00b"),
        UrlError::BadCommand(_)
    ));
    assert!(matches!(
        refused("dst+exec://host/disk?command=a"),
        UrlError::ExecHost
    ));
}

#[test]
fn errors_show_the_right_form() {
    assert!(refused("storage/disk")
        .to_string()
        .contains("dst://storage/disk"));
    assert!(refused("storage:7789/disk").to_string().contains("dst://"));
    assert!(refused("nbd://storage/disk")
        .to_string()
        .contains("unknown scheme `nbd://`"));
    assert!(refused("dst://root@storage/disk")
        .to_string()
        .contains("without `root@`"));
    assert!(refused("dst://storage:http/disk")
        .to_string()
        .contains("`http` is no port"));
    assert!(refused("dst://storage/a b").to_string().contains("%20"));
    assert!(refused("dst://storage/a#b").to_string().contains("%23"));
}

#[test]
fn what_is_no_host_port_or_name_is_refused() {
    for text in [
        "dst://",
        "dst:///disk",
        "dst://:7789/x",
        "dst://a..b/x",
        "dst://10.1/x",
        "dst://1.2.3.456/x",
    ] {
        assert!(matches!(refused(text), UrlError::BadHost(_)), "{text}");
    }
    for text in [
        "dst://h:/x",
        "dst://h:65536/x",
        "dst://h:+1/x",
        "dst://h:-1/x",
    ] {
        assert!(matches!(refused(text), UrlError::BadPort(_)), "{text}");
    }
    for text in ["dst://h/%2", "dst://h/%zz", "dst://h/%ff", "dst://h/%+1"] {
        assert!(matches!(refused(text), UrlError::BadEncoding(_)), "{text}");
    }
    assert!(matches!(refused("dst://h/%00"), UrlError::BadExport(_)));
    assert!(matches!(
        refused(&format!("dst://h/{}", "x".repeat(256))),
        UrlError::BadExport(_)
    ));
    assert!(matches!(
        refused("dst://h/x?read-only=1"),
        UrlError::UnknownOption { .. }
    ));
}

#[test]
fn a_server_does_not_listen_at_an_export_or_a_command() {
    assert!(parse("dst://127.0.0.1:0/disk").listen().is_err());
    assert!(parse(EXAMPLE_EXEC)
        .with_export(None)
        .unwrap()
        .listen()
        .is_err());
}

fn addresses() -> impl Strategy<Value = Address> {
    prop_oneof![
        (
            "[a-z][a-z0-9_-]{0,20}(\\.[a-z][a-z0-9]{0,5}){0,3}",
            any::<u16>()
        )
            .prop_map(|(host, port)| tcp(&host, port)),
        (any::<std::net::Ipv4Addr>(), any::<u16>())
            .prop_map(|(host, port)| tcp(&host.to_string(), port)),
        (any::<Ipv6Addr>(), "(%[a-z0-9.]{1,8})?", any::<u16>())
            .prop_map(|(host, zone, port)| tcp(&format!("{host}{zone}"), port)),
        proptest::collection::vec(1u8.., 0..105).prop_map(|mut path| {
            path.insert(0, b'/');
            path.push(b's');
            Address::Unix {
                path: PathBuf::from(OsString::from_vec(path)),
            }
        }),
        "[^\\x00'\"\\\\#]{0,40}".prop_map(|rest| Address::Exec {
            command: format!("x{rest}")
        }),
    ]
}

proptest! {
    #[test]
    fn parsing_any_text_never_panics(text in ".*") {
        let _ = text.parse::<Endpoint>();
    }

    #[test]
    fn parsing_text_that_looks_like_a_url_never_panics(
        text in "dst(\\+unix|\\+exec)?://[a-z\\[\\]:%@/?&=0-9.+'\"\\\\]{0,40}"
    ) {
        if let Ok(endpoint) = text.parse::<Endpoint>() {
            prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
        }
    }

    #[test]
    fn display_and_parse_are_inverse(address in addresses(), export in proptest::option::of("\\PC{1,60}")) {
        let endpoint = Endpoint::new(address, export.as_deref());
        prop_assume!(endpoint.is_ok());
        let endpoint = endpoint.unwrap();
        prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
    }
}
