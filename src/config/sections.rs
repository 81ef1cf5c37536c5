//! The sections of the configuration, except the cloud's: one struct per concern, typed values, how each is read.
//!
//! `config/default.toml` says what each setting is for and its default; units are in the types (`Duration`, sizes in
//! bytes). No defaults in here: they would be a second truth.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::Secret;
use super::reader::Reader;

/// Section `server`: the listener.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// Address or host name to listen on, without brackets.
    pub host: String,
    /// Port to listen on; 0 is any free one.
    pub port: u16,
    /// Name of this gateway that goes into file names; empty for none.
    pub node: String,
    /// Where the other gateways on the same catalogue reach this one; `None`: where it listens.
    pub advertise_url: Option<Url>,
    /// How long the head of a request may take.
    pub header_timeout: Duration,
    /// How long running uploads may go on after a stop signal.
    pub shutdown_grace: Duration,
    /// Most connections at once.
    pub max_connections: usize,
    /// Origins whose pages may call the gateway, as browsers write them; `*` for all.
    pub allowed_origins: Vec<String>,
}

impl ServerConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            host: r.text("server.host", host),
            port: r.whole("server.port", 0..=65535),
            node: r.text("server.node", node),
            advertise_url: r.optional("server.advertise_url", web_address),
            header_timeout: r.some_duration("server.header_timeout"),
            shutdown_grace: r.duration("server.shutdown_grace"),
            max_connections: r.whole("server.max_connections", 1..=1_000_000),
            allowed_origins: r.list("server.allowed_origins", origins),
        }
    }
}

/// Section `storage`: the local disk.
#[derive(Debug, Clone, PartialEq)]
pub struct StorageConfig {
    /// Folder of the local store, the spool and the catalogue.
    pub local_dir: PathBuf,
    /// Bytes of disk to leave free.
    pub min_free: u64,
}

impl StorageConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            local_dir: r.text("storage.local_dir", |text| match text.as_str() {
                "" => Err("must name a folder".into()),
                _ => Ok(text.into()),
            }),
            min_free: r.size("storage.min_free", 0),
        }
    }
}

/// Section `catalog`: what the gateway remembers.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogConfig {
    /// Address of the PostgreSQL database with the shared catalogue; `None` for the embedded one.
    pub url: Option<Secret>,
}

impl CatalogConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self { url: r.text("catalog.url", database) }
    }
}

fn database(text: String) -> Result<Option<Secret>, String> {
    if text.is_empty() || text == "sqlite" {
        return Ok(None);
    }
    match Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") && url.has_host() => Ok(Some(Secret::new(text))),
        _ => Err("must be like postgres://user:password@host:5432/database, or \"sqlite\" for the embedded catalogue".into()),
    }
}

/// Section `uploads`: what is taken from clients.
#[derive(Debug, Clone, PartialEq)]
pub struct UploadsConfig {
    /// Largest recording, in bytes.
    pub max_bytes: u64,
    /// Media types taken, in lower case: `type/subtype`, `type/*` or `*/*`.
    pub allowed_types: Vec<String>,
    /// How long a client may go without sending a byte.
    pub idle_timeout: Duration,
    /// Most uploads at once.
    pub max_concurrent: usize,
    /// How long after its client has gone a live upload is sealed.
    pub seal_after: Duration,
    /// How long an `Idempotency-Key` is remembered.
    pub idempotency_ttl: Duration,
}

impl UploadsConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            max_bytes: r.size("uploads.max_bytes", 1),
            allowed_types: r.list("uploads.allowed_types", media_types),
            idle_timeout: r.some_duration("uploads.idle_timeout"),
            max_concurrent: r.whole("uploads.max_concurrent", 1..=1_000_000),
            seal_after: r.some_duration("uploads.seal_after"),
            idempotency_ttl: r.some_duration("uploads.idempotency_ttl"),
        }
    }
}

/// Section `sync`: from the local disk to the cloud.
#[derive(Debug, Clone, PartialEq)]
pub struct SyncConfig {
    /// How often to look for recordings that wait.
    pub interval: Duration,
    /// Keep the local copy after sync.
    pub keep_local: bool,
    /// What must agree before a local copy may go.
    pub verify: SyncVerify,
    /// Most recordings on their way to the cloud at once.
    pub max_concurrent: usize,
    /// Most bytes per second of all of them together; 0 for no limit.
    pub max_rate: u64,
    /// How long jobs that are done can be looked at.
    pub keep_jobs: Duration,
}

/// How a cloud copy is compared before the local one is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncVerify {
    /// Its size.
    #[default]
    Size,
    /// Its size, and its ETag where that is an MD5.
    Etag,
    /// Every byte, read back.
    Read,
}

impl SyncConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        use SyncVerify::{Etag, Read, Size};
        Self {
            interval: r.some_duration("sync.interval"),
            keep_local: r.switch("sync.keep_local"),
            verify: r.choice("sync.verify", &[("size", Size), ("etag", Etag), ("read", Read)]),
            max_concurrent: r.whole("sync.max_concurrent", 1..=1000),
            max_rate: r.size("sync.max_rate", 0),
            keep_jobs: r.some_duration("sync.keep_jobs"),
        }
    }
}

/// Section `download`: how bytes are given out.
#[derive(Debug, Clone, PartialEq)]
pub struct DownloadConfig {
    /// How clients get bytes that are in the cloud.
    pub via: DownloadVia,
    /// Bytes of disk for cloud recordings that are played often through the gateway; 0 for none.
    pub cache_bytes: u64,
}

/// The way of bytes from the cloud to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DownloadVia {
    /// The client is sent to the cloud.
    #[default]
    Redirect,
    /// Through the gateway.
    Proxy,
}

impl DownloadConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        use DownloadVia::{Proxy, Redirect};
        Self {
            via: r.choice("download.via", &[("redirect", Redirect), ("proxy", Proxy)]),
            cache_bytes: r.size("download.cache_bytes", 0),
        }
    }
}

/// Section `auth`: who may use the gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthConfig {
    /// How requests are authenticated.
    pub mode: AuthMode,
}

/// How requests are authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuthMode {
    /// Not at all: whoever reaches the gateway may use it.
    #[default]
    None,
}

impl AuthConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        let mode = r.text("auth.mode", |text| match text.as_str() {
            "none" => Ok(AuthMode::None),
            _ => Err("must be \"none\": this version has no other mode".into()),
        });
        Self { mode }
    }
}

/// Section `log`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// Level, or comma separated `target=level` directives, as `tracing_subscriber::EnvFilter` takes them.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl LogConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        use LogFormat::{Auto, Json, Text};
        Self {
            level: r.text("log.level", log_level),
            format: r.choice("log.format", &[("auto", Auto), ("text", Text), ("json", Json)]),
        }
    }
}

/// An http or https address without anything that a base cannot have.
pub(super) fn web_address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or("must be a whole address that starts with https:// or http://")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not have a user name or password in it".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must end before ? and #".into());
    }
    Ok(url)
}

fn host(text: String) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&text);
    let named = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if named || bare.parse::<std::net::Ipv6Addr>().is_ok() {
        Ok(bare.to_owned())
    } else {
        Err("must be an address or host name alone, like 127.0.0.1, :: or localhost; the port is server.port"
            .into())
    }
}

fn node(text: String) -> Result<String, String> {
    let fits = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits && text.len() <= 32 { Ok(text) } else { Err("must be 1 to 32 of a-z 0-9 -".into()) }
}

fn media_types(types: Vec<String>) -> Result<Vec<String>, String> {
    // RFC 6838 section 4.2: what the two halves of a media type are made of.
    let token = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    let fits = |text: &String| match text.split_once('/') {
        Some(("*", "*")) => true,
        Some((kind, subtype)) => token(kind) && (subtype == "*" || token(subtype)),
        None => false,
    };
    if types.is_empty() {
        return Err("must name at least one type; \"*/*\" takes everything".into());
    }
    match types.iter().find(|text| !fits(text)) {
        Some(bad) => Err(format!("\"{bad}\" must be type/subtype, type/* or */*")),
        None => Ok(types.iter().map(|text| text.to_ascii_lowercase()).collect()),
    }
}

fn origins(given: Vec<String>) -> Result<Vec<String>, String> {
    let origin = |text: &String| match text.as_str() {
        "*" => Ok(text.clone()),
        text => match web_address(text) {
            Ok(url) if url.path() == "/" => Ok(url.origin().ascii_serialization()),
            _ => Err(format!("\"{text}\" must be scheme://host or scheme://host:port, or *")),
        },
    };
    given.iter().map(origin).collect()
}

/// `EnvFilter` takes a mistyped level for the name of a part and then logs nothing, so levels are checked here.
fn log_level(text: String) -> Result<String, String> {
    let level = |text: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(text))
    };
    let target = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
    };
    let fits = |directive: &str| match directive.split_once('=') {
        Some((part, wanted)) => target(part) && level(wanted),
        None => level(directive),
    };
    if text.split(',').map(str::trim).all(fits) {
        Ok(text)
    } else {
        Err("must be off, error, warn, info, debug or trace, or a list like \"info,recording_gateway=debug\""
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["127.0.0.1", "0.0.0.0", "::", "[::1]", "localhost", "rec.example.org"] {
            assert!(host(good.into()).is_ok(), "{good}");
        }
        assert_eq!(host("[::1]".into()).unwrap(), "::1");
        for bad in ["", "127.0.0.1:80", "http://localhost", "a b"] {
            assert!(host(bad.into()).unwrap_err().contains("server.port"), "{bad}");
        }
    }

    #[test]
    fn media_types_are_checked() {
        let types = |all: &[&str]| media_types(all.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(types(&["Audio/*", "video/webm", "*/*"]).unwrap(), ["audio/*", "video/webm", "*/*"]);
        assert!(types(&[]).unwrap_err().contains("at least one"));
        for bad in ["audio", "*/webm", "audio/", "/x", "audio/webm;codecs=opus"] {
            assert!(types(&["audio/*", bad]).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn origins_are_as_browsers_write_them() {
        let read = |text: &str| origins(vec![text.to_owned()]);
        assert_eq!(read("https://App.example.org:443/").unwrap(), ["https://app.example.org"]);
        assert_eq!(read("http://localhost:3000").unwrap(), ["http://localhost:3000"]);
        assert_eq!(read("*").unwrap(), ["*"]);
        for bad in ["app.example.org", "https://a.org/path", "https://*.a.org/x"] {
            assert!(read(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn levels_are_checked() {
        for good in ["info", "WARN", "info,recording_gateway::http=debug", "off"] {
            assert!(log_level(good.into()).is_ok(), "{good}");
        }
        for bad in ["inof", "", "info,", "recording_gateway=loud", "=debug"] {
            assert!(log_level(bad.into()).is_err(), "{bad}");
        }
    }
}
