//! What Supabase Storage says on the wire and what it means: JSON shapes, error bodies, keys in paths. Facts are from
//! the recorded contract (server 1.11.2); section numbers refer to it. The server answers HTTP 400 for nearly every
//! handled error and puts the true status, as text, into the body (section 2).

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};

use crate::domain::merge::StoredObject;
use crate::domain::recording::to_microseconds;
use crate::domain::{ContentDigest, ObjectKey, SessionId, StoreKind};
use crate::storage::{Kind, ObjectMeta, StorageError};

/// Everything but the characters that need no escape in a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `session_id/filename`, each part percent-encoded.
pub(super) fn key_path(key: &ObjectKey) -> String {
    format!("{}/{}", segment(key.session.as_str()), segment(key.filename.as_str()))
}

/// One path segment, percent-encoded.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// An error body, shape 1 or 2 of section 2: `statusCode` may be text or a number, `code` may be absent.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorBody {
    #[serde(rename = "statusCode")]
    status_code: serde_json::Value,
    code: String,
    error: String,
    message: String,
}

/// Turns an error answer into ours. `may_have_applied`: whether the request, if it was carried out in spite of a
/// server-side error, has changed something.
pub(super) fn refusal(status: u16, body: &[u8], may_have_applied: bool) -> StorageError {
    let Ok(parsed) = serde_json::from_slice::<ErrorBody>(body) else {
        return no_json(status, may_have_applied);
    };
    let true_status = match &parsed.status_code {
        serde_json::Value::String(text) => text.parse().unwrap_or(status),
        serde_json::Value::Number(number) => {
            number.as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(status)
        }
        _ => status,
    };
    let message = if parsed.message.is_empty() { parsed.error } else { parsed.message };
    let kind = kind_of(true_status, &parsed.code, &message);
    let detail = format!("{} ({true_status} {})", message.chars().take(300).collect::<String>(), parsed.code);
    // Section 2: these are the failures on the server's side; only after them is the outcome open.
    let server_side = matches!(kind, Kind::Unavailable | Kind::Timeout) || true_status >= 500;
    StorageError::certain(StoreKind::Supabase, kind, detail).unknown_if(server_side && may_have_applied)
}

/// A proxy's error page, or something that is no Supabase at all.
fn no_json(status: u16, may_have_applied: bool) -> StorageError {
    let (kind, detail) = match status {
        401 => (Kind::Unauthorized, "the credentials were refused (401)".to_owned()),
        413 => {
            (Kind::TooLarge, "something in front of Supabase refuses bodies of this size (413)".to_owned())
        }
        429 => (Kind::Throttled, "asked to slow down (429)".to_owned()),
        502..=504 => (Kind::Unavailable, format!("a proxy in front of Supabase answered {status}")),
        _ => (Kind::Nonsense, format!("answered {status} with something that is not JSON")),
    };
    StorageError::certain(StoreKind::Supabase, kind, detail).unknown_if(status >= 500 && may_have_applied)
}

/// How long the answer asks to be left alone: seconds or a date (RFC 9110, section 10.2.3). A date that is over, or
/// anything that is neither, asks for nothing.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = OffsetDateTime::parse(text, &Rfc2822).ok()?;
    Duration::try_from(at - OffsetDateTime::now_utc()).ok()
}

pub(super) fn kind_of(status: u16, code: &str, message: &str) -> Kind {
    match code {
        "NoSuchKey" => return Kind::NotFound,
        "NoSuchBucket" => return Kind::BucketMissing,
        "KeyAlreadyExists" | "ResourceAlreadyExists" | "BucketAlreadyExists" => return Kind::AlreadyExists,
        "EntityTooLarge" => return Kind::TooLarge,
        "InvalidMimeType" => return Kind::TypeRefused,
        "InvalidKey" => return Kind::InvalidKey,
        "InvalidJWT" | "InvalidSignature" => return Kind::Unauthorized,
        "SlowDown" => return Kind::Throttled,
        "DatabaseTimeout" => return Kind::Timeout,
        _ => {}
    }
    match status {
        401 => Kind::Unauthorized,
        // One code for a bad token and for a policy that says no; the message tells them apart (section 2).
        403 if is_token_trouble(message) => Kind::Unauthorized,
        403 => Kind::Forbidden,
        404 if message == "The related resource does not exist" => Kind::BucketMissing,
        404 => Kind::NotFound,
        409 => Kind::AlreadyExists,
        413 => Kind::TooLarge,
        415 => Kind::TypeRefused,
        423 | 429 => Kind::Throttled,
        400 if message.contains("authorization") => Kind::Unauthorized,
        500.. => Kind::Unavailable,
        _ => Kind::Refused,
    }
}

fn is_token_trouble(message: &str) -> bool {
    ["claim", "signature verification", "JWS", "JWT", "jwt"].iter().any(|word| message.contains(word))
}

/// `GET /bucket/{id}` (section 3).
#[derive(Deserialize)]
pub(super) struct BucketBody {
    pub(super) public: bool,
    #[serde(default)]
    pub(super) file_size_limit: Option<u64>,
    #[serde(default)]
    pub(super) allowed_mime_types: Option<Vec<String>>,
}

/// `POST /bucket` (section 3).
#[derive(Serialize)]
pub(super) struct NewBucketBody<'a> {
    pub(super) id: &'a str,
    pub(super) name: &'a str,
    pub(super) public: bool,
}

/// `GET /object/info/...` (section 6).
#[derive(Deserialize)]
pub(super) struct InfoBody {
    size: u64,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    etag: Option<String>,
    #[serde(default)]
    metadata: Option<UserMetadata>,
    #[serde(default)]
    last_modified: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
}

/// What the gateway leaves with an object (`x-metadata`, section 5). Other clients' metadata may hold anything.
#[derive(Serialize, Deserialize, Default, PartialEq)]
#[serde(default)]
pub(super) struct UserMetadata {
    #[serde(deserialize_with = "text_or_nothing", skip_serializing_if = "Option::is_none")]
    upload_id: Option<String>,
    #[serde(deserialize_with = "text_or_nothing", skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(deserialize_with = "text_or_nothing", skip_serializing_if = "Option::is_none")]
    original_filename: Option<String>,
}

fn text_or_nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    })
}

impl UserMetadata {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("three texts are JSON")
    }

    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self {
            upload_id: Some(meta.upload_id.clone()),
            sha256: meta.sha256.map(|digest| digest.to_string()),
            // All request headers together may have 16 KB (section 1).
            original_filename: meta.original_filename.as_ref().map(|name| name.chars().take(255).collect()),
        }
    }
}

impl InfoBody {
    pub(super) fn into_object(self, key: ObjectKey) -> StoredObject {
        let metadata = self.metadata.unwrap_or_default();
        StoredObject {
            key,
            size_bytes: self.size,
            modified_at: parse_time(self.last_modified.as_deref().or(self.created_at.as_deref())),
            content_type: self.content_type.map(essence),
            etag: self.etag,
            sha256: metadata.sha256.as_deref().and_then(ContentDigest::from_hex),
            original_filename: metadata.original_filename,
            upload_id: metadata.upload_id,
        }
    }
}

/// `POST /object/list-v2/{bucket}` (section 8).
#[derive(Serialize)]
pub(super) struct ListQuery<'a> {
    pub(super) prefix: &'a str,
    pub(super) limit: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cursor: Option<&'a str>,
    /// Folders instead of what is in them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) with_delimiter: bool,
}

/// One page of a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListBody {
    pub(super) has_next: bool,
    #[serde(default)]
    pub(super) next_cursor: Option<String>,
    pub(super) objects: Vec<ListedObject>,
    #[serde(default)]
    folders: Vec<ListedFolder>,
}

/// A folder of a list with delimiter; its name ends in a slash.
#[derive(Deserialize)]
struct ListedFolder {
    name: String,
}

impl ListBody {
    /// The last name in their order.
    pub(super) fn last_name(&self) -> Option<&str> {
        let folders = self.folders.iter().map(|folder| folder.name.as_str());
        folders.chain(self.objects.iter().map(|object| object.name.as_str())).max()
    }

    /// The folders that can be sessions.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> {
        self.folders.iter().filter_map(|folder| SessionId::parse(folder.name.trim_end_matches('/')).ok())
    }
}

/// A row of a list.
#[derive(Deserialize)]
pub(super) struct ListedObject {
    name: String,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    metadata: Option<ListedMetadata>,
}

#[derive(Deserialize)]
struct ListedMetadata {
    #[serde(default, rename = "eTag")]
    etag: Option<String>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    mimetype: Option<String>,
    #[serde(default, rename = "lastModified")]
    last_modified: Option<String>,
}

impl ListedObject {
    /// `None` for objects that are no recordings: other depths, other names.
    pub(super) fn into_object(self) -> Option<StoredObject> {
        let metadata = self.metadata?;
        Some(StoredObject {
            key: ObjectKey::parse(&self.name)?,
            size_bytes: metadata.size?,
            modified_at: parse_time(metadata.last_modified.as_deref().or(self.created_at.as_deref())),
            content_type: metadata.mimetype.map(essence),
            etag: metadata.etag,
            sha256: None,
            original_filename: None,
            upload_id: None,
        })
    }
}

/// `POST /object/sign/...` (section 7).
#[derive(Deserialize)]
pub(super) struct SignedBody {
    #[serde(rename = "signedURL")]
    pub(super) signed_url: String,
}

/// `POST /object/move` (section 9).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MoveBody<'a> {
    pub(super) bucket_id: &'a str,
    pub(super) source_key: String,
    pub(super) destination_key: String,
}

pub(super) fn essence(content_type: String) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A time that cannot be read is the oldest there is: the object is listed all the same, last.
fn parse_time(text: Option<&str>) -> OffsetDateTime {
    text.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok())
        .map_or(OffsetDateTime::UNIX_EPOCH, |at| to_microseconds(at.to_offset(time::UtcOffset::UTC)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Outcome;

    fn kind(status: u16, body: &str) -> (Kind, Outcome) {
        let error = refusal(status, body.as_bytes(), true);
        (error.kind, error.outcome)
    }

    /// reliability 23
    #[test]
    fn the_body_decides_not_the_status() {
        use Outcome::{NotApplied, Unknown};
        let body = |status: &str, code: &str, message: &str| {
            format!(r#"{{"statusCode":"{status}","error":"x","message":"{message}","code":"{code}"}}"#)
        };
        let cases = [
            (400, body("404", "NoSuchKey", "Object not found"), (Kind::NotFound, NotApplied)),
            (400, body("404", "NoSuchBucket", "Bucket not found"), (Kind::BucketMissing, NotApplied)),
            (400, body("409", "KeyAlreadyExists", "exists"), (Kind::AlreadyExists, NotApplied)),
            (400, body("413", "EntityTooLarge", "too large"), (Kind::TooLarge, NotApplied)),
            (400, body("415", "InvalidMimeType", "mime"), (Kind::TypeRefused, NotApplied)),
            (400, body("400", "InvalidKey", "key"), (Kind::InvalidKey, NotApplied)),
            (
                400,
                body("403", "AccessDenied", "signature verification failed"),
                (Kind::Unauthorized, NotApplied),
            ),
            (
                400,
                body("403", "AccessDenied", "\\\"exp\\\" claim timestamp check failed"),
                (Kind::Unauthorized, NotApplied),
            ),
            (
                400,
                body("403", "AccessDenied", "new row violates row-level security policy"),
                (Kind::Forbidden, NotApplied),
            ),
            (400, body("503", "DatabaseReadOnly", "read-only"), (Kind::Unavailable, Unknown)),
            (429, body("429", "SlowDown", "slow"), (Kind::Throttled, NotApplied)),
            (500, body("500", "InternalError", "oops"), (Kind::Unavailable, Unknown)),
            (544, body("544", "DatabaseTimeout", "timeout"), (Kind::Timeout, Unknown)),
            (502, "<html>Bad Gateway</html>".to_owned(), (Kind::Unavailable, Unknown)),
            (200, "<html>hotel wifi</html>".to_owned(), (Kind::Nonsense, NotApplied)),
            (
                404,
                r#"{"message":"Route not found","error":"Not Found","statusCode":404}"#.to_owned(),
                (Kind::NotFound, NotApplied),
            ),
        ];
        for (status, body, expected) in cases {
            assert_eq!(kind(status, &body), expected, "{status} {body}");
        }
    }

    /// reliability 22
    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let asked = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            let error = StorageError::certain(StoreKind::Supabase, Kind::Throttled, "slow down");
            error.retry_after(retry_after(&headers)).retry_after.map(|wait| wait.as_secs())
        };
        assert_eq!(asked("7"), Some(7));
        assert_eq!(asked("864000"), Some(3600), "nobody is believed for longer than an hour");
        let date = |ahead: time::Duration| {
            let at = (OffsetDateTime::now_utc() + ahead).format(&Rfc2822).unwrap();
            asked(&at.replace("+0000", "GMT"))
        };
        assert!((55..=60).contains(&date(time::Duration::minutes(1)).unwrap()));
        assert_eq!(date(time::Duration::days(3)), Some(3600));
        for nothing in ["-1", "soon", "Sun, 06 Nov 1994 08:49:37 GMT", ""] {
            assert_eq!(asked(nothing), None, "{nothing}");
        }
        let refused = StorageError::certain(StoreKind::Supabase, Kind::TooLarge, "too large");
        assert_eq!(refused.retry_after(Some(Duration::from_secs(5))).retry_after, None);
    }

    #[test]
    fn other_clients_metadata_may_hold_anything() {
        let info: InfoBody = serde_json::from_str(
            r#"{"size":5,"metadata":{"upload_id":7,"take":1,"sha256":"zz"},"last_modified":"2026-11-21T02:34:35.107Z"}"#,
        )
        .unwrap();
        let object = info.into_object(ObjectKey::parse("s/a.webm").unwrap());
        assert_eq!((object.upload_id, object.sha256), (None, None));
        assert_eq!(object.modified_at.millisecond(), 107);
    }
}
