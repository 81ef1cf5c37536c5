//! What the resumable endpoint says on the wire and what it means (tus 1.0.0; contract, section 10): its headers, its
//! errors in plain text with true statuses, and the text by which an upload is found again. Never a request in here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};
use url::Url;

use super::wire::{UserMetadata, essence, kind_of, refusal};
use crate::domain::{ObjectKey, StoreKind};
use crate::storage::{Kind, ObjectMeta, StorageError};

/// What an upload is for. It is remembered beside its address and told to the server, and both must agree with what is
/// to be sent before an upload is continued.
#[derive(Serialize, Deserialize, PartialEq)]
pub(super) struct Purpose {
    key: String,
    size_bytes: u64,
    about: UserMetadata,
}

impl Purpose {
    pub(super) fn of(key: &ObjectKey, size_bytes: u64, meta: &ObjectMeta) -> Self {
        Self { key: key.to_string(), size_bytes, about: UserMetadata::of(meta) }
    }

    /// The value of `Upload-Metadata`. Without a content type the server would skip the bucket's list of types.
    pub(super) fn metadata(&self, bucket: &str, content_type: &str) -> String {
        let fields = [
            ("bucketName", bucket),
            ("objectName", &self.key),
            ("contentType", &essence(content_type.to_owned())),
            ("metadata", &self.about.to_json()),
        ];
        fields.map(|(name, value)| format!("{name} {}", STANDARD.encode(value))).join(",")
    }

    /// Whether the server's answer about an upload says that it is for this.
    pub(super) fn is_of(&self, headers: &HeaderMap, bucket: &str) -> bool {
        let about = field(headers, "metadata").and_then(|text| serde_json::from_str(&text).ok());
        number(headers, "upload-length") == Some(self.size_bytes)
            && field(headers, "bucketName").as_deref() == Some(bucket)
            && field(headers, "objectName").as_ref() == Some(&self.key)
            && about.as_ref() == Some(&self.about)
    }
}

/// Where an upload that was broken off is found again.
#[derive(Serialize, Deserialize)]
pub(super) struct Saved {
    /// Last part of its path.
    id: String,
    purpose: Purpose,
}

/// The text that remembers an upload.
pub(super) fn to_text(id: &str, purpose: Purpose) -> String {
    serde_json::to_string(&Saved { id: id.to_owned(), purpose }).expect("texts and numbers are JSON")
}

/// The upload of a text, if it is for `purpose`.
pub(super) fn from_text(text: &str, purpose: &Purpose) -> Option<String> {
    let saved: Saved = serde_json::from_str(text).ok()?;
    (saved.purpose == *purpose && is_id(&saved.id)).then_some(saved.id)
}

/// The upload that `Location` names. Only its last part counts: host, scheme and prefix are what the server believes
/// about itself, and not the way we reach it.
pub(super) fn id_in(headers: &HeaderMap) -> Option<String> {
    let location = headers.get("location")?.to_str().ok()?;
    let base = Url::parse("http://base").expect("it is an address");
    let url = base.join(location).ok()?;
    url.path_segments()?.next_back().filter(|id| is_id(id)).map(str::to_owned)
}

/// It goes into a path again, so it must be one part of one.
fn is_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~%=".contains(&byte);
    !id.is_empty() && id.len() <= 4096 && id.bytes().all(is_plain) && id.bytes().any(|byte| byte != b'.')
}

/// A header that is a number of bytes.
pub(super) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn field(headers: &HeaderMap, name: &str) -> Option<String> {
    let pairs = headers.get("upload-metadata")?.to_str().ok()?.split(',');
    let value = pairs.filter_map(|pair| pair.trim().split_once(' ')).find(|(key, _)| *key == name)?.1;
    String::from_utf8(STANDARD.decode(value).ok()?).ok()
}

/// Turns an error answer into ours. Only the trouble with tokens is told in JSON here; pages are a proxy's.
pub(super) fn tus_refusal(status: u16, body: &[u8], may_have_applied: bool) -> StorageError {
    let text = String::from_utf8_lossy(body);
    let message = text.trim();
    if message.starts_with(['{', '<']) {
        return refusal(status, body, may_have_applied);
    }
    let kind = match (status, message) {
        (404, "Bucket not found") => Kind::BucketMissing,
        (400, _) if message.starts_with("Invalid key") => Kind::InvalidKey,
        // Not the name is in the way, but what we believe the upload has.
        (409, "Upload-Offset conflict") => Kind::Unavailable,
        _ => kind_of(status, "", message),
    };
    let detail = format!("{} ({status})", message.chars().take(300).collect::<String>());
    StorageError::certain(StoreKind::Supabase, kind, detail).unknown_if(status >= 500 && may_have_applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn purpose(upload_id: &str, size: u64) -> Purpose {
        let meta = ObjectMeta {
            content_type: "video/webm; codecs=vp9".into(),
            upload_id: upload_id.into(),
            sha256: None,
            original_filename: Some("Gespräch.webm".into()),
        };
        Purpose::of(&ObjectKey::parse("s/a.webm").unwrap(), size, &meta)
    }

    #[test]
    fn only_the_last_part_of_a_location_counts() {
        for location in [
            "http://127.0.0.1:9/upload/resumable/YS9iL2M",
            "https://files.example:8443/storage/v1/upload/resumable/YS9iL2M?x=1",
            "/upload/resumable/YS9iL2M",
        ] {
            assert_eq!(id_in(&headers(&[("location", location)])).as_deref(), Some("YS9iL2M"), "{location}");
        }
        for nothing in ["http://h/upload/resumable/", "http://h/a/..", "http://h", "http://h/a;b", ""] {
            assert_eq!(id_in(&headers(&[("location", nothing)])), None, "{nothing}");
        }
        assert_eq!(id_in(&headers(&[])), None);
    }

    #[test]
    fn an_upload_is_found_again_for_the_same_bytes_only() {
        let text = to_text("YS9iL2M", purpose("one", 10));
        assert_eq!(from_text(&text, &purpose("one", 10)).as_deref(), Some("YS9iL2M"));
        assert_eq!(from_text(&text, &purpose("two", 10)), None);
        assert_eq!(from_text(&text, &purpose("one", 11)), None);
        assert_eq!(from_text("of an older version", &purpose("one", 10)), None);
        assert_eq!(from_text(&to_text("../a", purpose("one", 10)), &purpose("one", 10)), None);
    }

    #[test]
    fn what_the_server_says_of_an_upload_must_agree() {
        let ours = purpose("one", 10);
        let metadata = ours.metadata("bucket", "Video/WebM; codecs=vp9");
        assert!(metadata.contains(&format!("contentType {}", STANDARD.encode("video/webm"))));
        let answer =
            |length, metadata: &str| headers(&[("upload-length", length), ("upload-metadata", metadata)]);
        assert!(ours.is_of(&answer("10", &format!("{metadata},cacheControl bm8=")), "bucket"));
        assert!(!ours.is_of(&answer("11", &metadata), "bucket"), "another length");
        assert!(!ours.is_of(&answer("10", &metadata), "other"), "another bucket");
        assert!(!purpose("two", 10).is_of(&answer("10", &metadata), "bucket"), "another recording");
        assert!(!ours.is_of(&answer("10", "bucketName YnVja2V0"), "bucket"), "nothing said");
    }

    #[test]
    fn plain_text_errors_have_true_statuses() {
        let kind = |status, text: &str| tus_refusal(status, text.as_bytes(), false).kind;
        assert_eq!(kind(404, "Bucket not found"), Kind::BucketMissing);
        assert_eq!(kind(404, "The file for this url was not found\n"), Kind::NotFound);
        assert_eq!(kind(409, "The resource already exists"), Kind::AlreadyExists);
        assert_eq!(kind(409, "Upload-Offset conflict\n"), Kind::Unavailable);
        assert_eq!(kind(413, "Maximum size exceeded\n"), Kind::TooLarge);
        assert_eq!(kind(415, "mime type image/png is not supported"), Kind::TypeRefused);
        assert_eq!(kind(403, "new row violates row-level security policy"), Kind::Forbidden);
        assert_eq!(kind(500, "Something went wrong with that request\n"), Kind::Unavailable);
        assert_eq!(kind(503, "The database is currently in read-only mode."), Kind::Unavailable);
        assert_eq!(kind(429, ""), Kind::Throttled);
        let token =
            r#"{"statusCode":"403","code":"AccessDenied","message":"\"exp\" claim timestamp check failed"}"#;
        assert_eq!(kind(400, token), Kind::Unauthorized);
        assert_eq!(kind(502, "<html>Bad Gateway</html>"), Kind::Unavailable);
    }
}
