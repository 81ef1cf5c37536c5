//! The fake's database: buckets, object rows, policies, unfinished resumable uploads, and the rules that read them.
//!
//! Apart from the routes, which only translate between HTTP and this. Nothing about requests may be known here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;
use uuid::Uuid;

use super::auth::{Policy, Right, Who};
use super::blob::Blob;
use super::refusal::{self, Refusal};
use super::resumable::Resumable;

const ISO_MS: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
/// IMF-fixdate, RFC 9110 section 5.6.7.
pub const HTTP_DATE: &[FormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

pub fn iso(at: OffsetDateTime) -> String {
    at.format(ISO_MS).expect("the format has no failing part")
}

pub fn http_date(at: OffsetDateTime) -> String {
    at.format(HTTP_DATE).expect("the format has no failing part")
}

pub fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// What an upload says about its object.
#[derive(Clone, Debug, Default)]
pub struct Description {
    pub content_type: String,
    pub cache_control: String,
    pub robots: Option<String>,
    /// The user's own metadata: an object, or null for resumable uploads that brought none.
    pub user_metadata: Value,
    pub owner_id: Option<String>,
}

/// One object row with its bytes.
#[derive(Clone)]
pub struct Row {
    pub id: String,
    pub version: String,
    pub about: Description,
    pub blob: Arc<Blob>,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

impl Row {
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.blob.md5)
    }

    fn system_metadata(&self) -> Value {
        json!({"eTag": self.etag(), "size": self.blob.size, "mimetype": self.about.content_type,
            "cacheControl": self.about.cache_control, "lastModified": iso(self.updated_at),
            "contentLength": self.blob.size, "httpStatusCode": 200})
    }

    /// The row as lists show it, under the name the list gives it.
    pub fn listed(&self, name: &str) -> Value {
        json!({"name": name, "id": self.id, "updated_at": iso(self.updated_at), "created_at": iso(self.created_at),
            "last_accessed_at": iso(self.created_at), "metadata": self.system_metadata()})
    }

    /// The row as delete and copy show it.
    pub fn full(&self, bucket: &str, key: &str) -> Value {
        let mut row = self.listed(key);
        row["bucket_id"] = json!(bucket);
        row["owner"] = json!("");
        row["owner_id"] = json!(self.about.owner_id.clone().unwrap_or_default());
        row["version"] = json!(self.version);
        row["user_metadata"] = self.about.user_metadata.clone();
        row
    }

    pub fn info(&self, bucket: &str, key: &str) -> Value {
        json!({"id": self.id, "name": key, "version": self.version, "bucket_id": bucket, "size": self.blob.size,
            "content_type": self.about.content_type, "cache_control": self.about.cache_control, "etag": self.etag(),
            "metadata": self.about.user_metadata, "last_modified": iso(self.updated_at),
            "created_at": iso(self.created_at)})
    }
}

/// One bucket with its rows in byte order.
#[derive(Clone)]
pub struct Bucket {
    pub name: String,
    pub public: bool,
    pub file_size_limit: Option<u64>,
    pub allowed_mime_types: Option<Vec<String>>,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
    pub rows: BTreeMap<String, Row>,
}

impl Bucket {
    pub fn new(name: &str, public: bool) -> Self {
        let now = OffsetDateTime::now_utc();
        Bucket {
            name: name.to_owned(),
            public,
            file_size_limit: None,
            allowed_mime_types: None,
            created_at: now,
            updated_at: now,
            rows: BTreeMap::new(),
        }
    }

    pub fn shown(&self) -> Value {
        json!({"id": self.name, "name": self.name, "owner": "", "public": self.public,
            "file_size_limit": self.file_size_limit, "allowed_mime_types": self.allowed_mime_types,
            "created_at": iso(self.created_at), "updated_at": iso(self.updated_at)})
    }

    /// Whether the type list takes this content type: exact text or `type/*`, case-sensitive, parameters included.
    pub fn takes(&self, mime: &str) -> bool {
        let Some(allowed) = &self.allowed_mime_types else { return true };
        allowed.iter().any(|entry| match entry.strip_suffix("/*") {
            Some(family) => mime.split('/').next() == Some(family),
            None => entry == mime,
        })
    }
}

/// Everything the server remembers.
#[derive(Default)]
pub struct Project {
    /// In the order of their creation, as lists show them.
    pub buckets: Vec<Bucket>,
    pub policies: Vec<Policy>,
    pub uploads: HashMap<String, Arc<Resumable>>,
}

impl Project {
    pub fn bucket(&self, name: &str) -> Option<&Bucket> {
        self.buckets.iter().find(|bucket| bucket.name == name)
    }

    pub fn bucket_mut(&mut self, name: &str) -> Option<&mut Bucket> {
        self.buckets.iter_mut().find(|bucket| bucket.name == name)
    }

    pub fn row(&self, bucket: &str, key: &str) -> Option<&Row> {
        self.bucket(bucket)?.rows.get(key)
    }

    pub fn may(&self, who: &Who, right: Right, bucket: &str, key: &str) -> bool {
        who.is_service() || self.policies.iter().any(|policy| policy.covers(who, right, bucket, key))
    }

    /// The row if it is there and this bearer may see it.
    pub fn visible(&self, who: &Who, bucket: &str, key: &str) -> Option<&Row> {
        self.row(bucket, key).filter(|_| self.may(who, Right::Select, bucket, key))
    }

    /// Policy and duplicate, as asked before the first byte is stored.
    /// Replacing needs the select and update rights too, even for a new key.
    pub fn may_create(&self, who: &Who, bucket: &str, key: &str, upsert: bool) -> Result<(), Refusal> {
        let rights: &[Right] =
            if upsert { &[Right::Insert, Right::Select, Right::Update] } else { &[Right::Insert] };
        if !rights.iter().all(|right| self.may(who, *right, bucket, key)) {
            return Err(refusal::policy());
        }
        if !upsert && self.row(bucket, key).is_some() {
            return Err(refusal::duplicate("KeyAlreadyExists"));
        }
        Ok(())
    }

    /// Makes the object appear, or replaces it, in one step. The id and birth of a replaced row stay.
    pub fn commit(
        &mut self,
        bucket: &str,
        key: &str,
        version: String,
        about: Description,
        blob: Arc<Blob>,
    ) -> Result<Row, Refusal> {
        let now = OffsetDateTime::now_utc();
        let rows = &mut self.bucket_mut(bucket).ok_or_else(refusal::no_related)?.rows;
        let (id, created_at) = match rows.get(key) {
            Some(old) => (old.id.clone(), old.created_at),
            None => (new_id(), now),
        };
        let row = Row { id, version, about, blob, created_at, updated_at: now };
        rows.insert(key.to_owned(), row.clone());
        Ok(row)
    }
}

fn is_key_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_/!.*'() &$@=;:+,?-".contains(c)
}

/// The syntax of object keys.
pub fn check_key(key: &str) -> Result<(), Refusal> {
    if key.is_empty() || !key.chars().all(is_key_character) {
        return Err(refusal::invalid_key(key));
    }
    Ok(())
}

/// What the database and the file backend refuse although the syntax is fine. `root` is the internal path.
pub fn check_backend(root: &str, bucket: &str, key: &str, version: &str) -> Result<(), Refusal> {
    if key.len() > 3900 {
        return Err(refusal::internal());
    }
    if key.len() > 2700 {
        return Err(refusal::database("54000"));
    }
    if key.split('/').any(|segment| segment == "." || segment == "..") {
        let path = format!("{root}/{bucket}/{key}/{version} contains dot path segment");
        return Err(refusal::invalid_key(&path));
    }
    if key.split('/').any(|segment| segment.len() > 255) {
        return Err(refusal::internal());
    }
    Ok(())
}

/// The syntax of bucket names: 1 to 100 characters of the key set without a slash, no outer spaces.
pub fn check_bucket_name(name: &str) -> Result<(), Refusal> {
    let fine = (1..=100).contains(&name.len())
        && name.trim() == name
        && name.chars().all(|c| c != '/' && is_key_character(c));
    if fine { Ok(()) } else { Err(refusal::bucket_name()) }
}
