//! The questions one gateway asks another on the same catalogue: for the bytes of a recording that only its disk has,
//! and to remove files of deleted recordings. Apart from the stores because it is none: nothing is put there, and what
//! a gateway holds is known from the catalogue alone.
//!
//! Addresses come from the catalogue, never from a request, and are never left: no redirects, no proxies. Each question
//! names in [`HOP`] whom it is for; who is asked so never asks another gateway in turn, so there are no loops, and an
//! address that has come to be somebody else's is found out.

use std::ops::Range;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{ETAG, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use url::Url;

use super::OpenObject;
use super::exact::exactly;
use crate::domain::{GatewayId, Recording, SessionId};

/// Marks a request as one gateway's to another; its value is the id of the one that is asked.
pub const HOP: &str = "gateway-hop";

/// How long a connection to another gateway may take to come about: they are close to each other.
const CONNECT: Duration = Duration::from_secs(3);
/// How long the head of an answer may take. A disk that was asleep takes a few seconds.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the removal of a session's files may take while a client waits. What takes longer is the work of a job.
const REMOVAL: Duration = Duration::from_secs(5);
/// How long the bytes may stand still.
const IDLE: Duration = Duration::from_secs(30);

/// Why another gateway did not do it.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// What it registered is no address for HTTP.
    #[error("{0:?} is no address of a gateway")]
    Address(String),
    /// There was no answer.
    #[error("it cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Late,
    /// It has no such recording, or it is another gateway.
    #[error("it answered {0}")]
    Refused(StatusCode),
    /// Its bytes are not the recording's.
    #[error("it sent other bytes than the recording's")]
    OtherBytes,
}

/// Speaks to other gateways. Clones share its connections.
#[derive(Clone)]
pub struct PeerClient {
    http: reqwest::Client,
}

impl PeerClient {
    /// A client that nobody has used.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new() -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            .http1_only()
            .pool_idle_timeout(Duration::from_secs(20))
            .build()?;
        Ok(Self { http })
    }

    /// Opens a recording on the disk of `gateway` at `address`, whole or a range within it. Without `plays` only
    /// whether it could be opened is asked, and there are no bytes. Safe to drop.
    pub async fn open(
        &self,
        gateway: &GatewayId,
        address: &str,
        recording: &Recording,
        range: Option<Range<u64>>,
        plays: bool,
    ) -> Result<OpenObject, PeerError> {
        let method = if plays { Method::GET } else { Method::HEAD };
        let key = &recording.key;
        let path = ["recordings", key.session.as_str(), key.filename.as_str(), "content"];
        let mut request = self.ask(method, gateway, address, &path)?.query(&[("via", "proxy")]);
        if let Some(range) = &range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        let response = answered(request, ANSWER).await?;
        let expected = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        if response.status() != expected {
            return Err(PeerError::Refused(response.status()));
        }
        let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
        let length = range.map_or(recording.size_bytes, |range| range.end - range.start);
        if tag != Some(recording.entity_tag().as_str())
            || (plays && response.content_length() != Some(length))
        {
            return Err(PeerError::OtherBytes);
        }
        let bytes = response.bytes_stream().map(|read| read.map_err(std::io::Error::other));
        let bytes = exactly(bytes, if plays { length } else { 0 }, IDLE);
        Ok(OpenObject { object: recording.into(), bytes })
    }

    /// Has `gateway` remove its files of deleted recordings of a session now, and note that in the catalogue. Safe to
    /// drop and to repeat.
    pub async fn finish_deletions(
        &self,
        gateway: &GatewayId,
        address: &str,
        session: &SessionId,
    ) -> Result<(), PeerError> {
        let path = ["gateway", "deletions", session.as_str()];
        let response = answered(self.ask(Method::POST, gateway, address, &path)?, REMOVAL).await?;
        if response.status().is_success() { Ok(()) } else { Err(PeerError::Refused(response.status())) }
    }

    fn ask(
        &self,
        method: Method,
        gateway: &GatewayId,
        address: &str,
        path: &[&str],
    ) -> Result<RequestBuilder, PeerError> {
        let wrong = || PeerError::Address(address.to_owned());
        let mut url = Url::parse(address).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong());
        }
        url.set_query(None);
        url.set_fragment(None);
        url.path_segments_mut().map_err(|()| wrong())?.pop_if_empty().extend(path);
        Ok(self.http.request(method, url).header(HOP, gateway.as_str()))
    }
}

async fn answered(request: RequestBuilder, within: Duration) -> Result<Response, PeerError> {
    let answer = tokio::time::timeout(within, request.send()).await.map_err(|_| PeerError::Late)?;
    answer.map_err(|error| match error.is_timeout() {
        true => PeerError::Late,
        false => PeerError::Unreachable(error.without_url()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_for_http_are_asked() {
        let client = PeerClient::new().unwrap();
        let (id, path) = (GatewayId("g".into()), ["recordings", "s", "März 1.webm", "content"]);
        let url = |address| {
            let asked = client.ask(Method::GET, &id, address, &path);
            asked.map(|request| request.build().unwrap().url().to_string())
        };
        let expected = "http://east:8000/recordings/s/M%C3%A4rz%201.webm/content";
        assert_eq!(url("http://east:8000").unwrap(), expected);
        assert_eq!(url("http://east:8000/").unwrap(), expected);
        assert!(url("https://example.org/gw").unwrap().starts_with("https://example.org/gw/recordings/s/"));
        for wrong in ["", "east:8000", "file:///etc/passwd", "ftp://east/", "unix:/run/x"] {
            assert!(matches!(url(wrong), Err(PeerError::Address(_))), "{wrong}");
        }
    }
}
