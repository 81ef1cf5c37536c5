//! One request being answered: its path, its bearer, its JSON, and the way to the project.
//!
//! Apart because every route starts with the same questions. No route's own rules may be here.

use std::sync::{Arc, MutexGuard, PoisonError};

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::Shared;
use super::auth::{self, Who};
use super::faults::Effects;
use super::project::Project;
use super::refusal::{self, Refusal, Stop};
use super::wire::{Connection, Head};

const MAX_JSON_BYTES: u64 = 1024 * 1024;

/// A request and the connection it came on.
pub struct Exchange<'c> {
    pub cloud: &'c Arc<Shared>,
    pub connection: &'c mut Connection,
    pub head: Head,
    /// The path without query and without the hosted prefix, still percent-encoded.
    pub path: String,
    pub query: String,
    /// `/storage/v1` when the request came as to a hosted project, else empty.
    pub prefix: &'static str,
    pub effects: Effects,
}

impl<'c> Exchange<'c> {
    pub fn new(
        cloud: &'c Arc<Shared>,
        connection: &'c mut Connection,
        head: Head,
        effects: Effects,
    ) -> Exchange<'c> {
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let (path, query) = (path.to_owned(), query.to_owned());
        let (path, prefix) = match path.strip_prefix("/storage/v1") {
            Some(rest) if rest.starts_with('/') => (rest.to_owned(), "/storage/v1"),
            _ => (path, ""),
        };
        Exchange { cloud, connection, head, path, query, prefix, effects }
    }

    pub fn project(&self) -> MutexGuard<'c, Project> {
        self.cloud.project.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub fn is_head(&self) -> bool {
        self.head.method == "HEAD"
    }

    /// Only the exact lower-case word counts.
    pub fn upsert(&self) -> bool {
        self.header("x-upsert") == Some("true")
    }

    /// The bearer of routes that demand a token.
    pub fn who(&self) -> Result<Who, Refusal> {
        let missing = || refusal::schema("headers must have required property 'authorization'");
        auth::known(auth::bearer(self.header("authorization").ok_or_else(missing)?)?)
    }

    /// The bearer of routes that also serve strangers: a bad token counts as none.
    pub fn who_if_valid(&self) -> Option<Who> {
        self.header("authorization").and_then(|value| auth::bearer(value).ok())
    }

    /// A query parameter, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// The body as the server's parser sees it: JSON when declared so, else null or text.
    pub async fn json(&mut self) -> Result<Value, Stop> {
        let too_large = || refusal::unreadable_json(413, "Request body is too large");
        let declared = self.header("content-length").and_then(|value| value.parse::<u64>().ok());
        if declared.is_some_and(|length| length > MAX_JSON_BYTES) {
            return Err(too_large().into());
        }
        let mut bytes = Vec::new();
        while let Some(piece) = self.connection.read_body().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > MAX_JSON_BYTES {
                return Err(too_large().into());
            }
        }
        if !self.header("content-type").is_some_and(|value| value.starts_with("application/json")) {
            return Ok(match bytes.is_empty() {
                true => Value::Null,
                false => Value::String(String::from_utf8_lossy(&bytes).into_owned()),
            });
        }
        if bytes.is_empty() {
            let message = "Body cannot be empty when content-type is set to 'application/json'";
            return Err(refusal::unreadable_json(400, message).into());
        }
        serde_json::from_slice(&bytes).map_err(|_| {
            let message = "Body is not valid JSON but content-type is set to 'application/json'";
            refusal::unreadable_json(400, message).into()
        })
    }

    /// The body as a JSON object with these properties.
    pub async fn object(&mut self, required: &[&str]) -> Result<Value, Stop> {
        let body = self.json().await?;
        if !body.is_object() {
            return Err(refusal::schema("body must be object").into());
        }
        for name in required {
            if body.get(name).is_none() {
                return Err(refusal::schema(format!("body must have required property '{name}'")).into());
            }
        }
        Ok(body)
    }
}

/// Undoes percent-encoding; `None` for a bad escape.
pub fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        let digits = bytes.get(at + 1..at + 3)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
    }
    percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
}

/// Splits `bucket/key` and decodes both; `None` when there is no slash. Escapes were checked by the router.
pub fn bucket_and_key(path: &str) -> Option<(String, String)> {
    let (bucket, key) = path.split_once('/')?;
    Some((decode(bucket)?, decode(key)?))
}
