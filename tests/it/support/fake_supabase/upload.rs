//! Standard uploads: raw and multipart, plain and by signed URL, in the server's order of checks.
//!
//! Apart because the order is the point: what is refused early drains the body, what is refused late leaves it
//! unread on a connection that claims to live on. Resumable uploads have their own rules and file.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::auth::Who;
use super::blob::{Blob, BlobWriter, Mark};
use super::buckets::is_mime_type;
use super::exchange::Exchange;
use super::faults::Effects;
use super::form::{Form, FormError};
use super::project::{Bucket, Description, check_backend, check_bucket_name, check_key, new_id};
use super::refusal::{self, Refusal, Reply, Stop};
use super::wire::Answer;

/// A multipart metadata field over this is dropped silently.
const MAX_FIELD_BYTES: usize = 1024 * 1024;
/// Fields behind a file part are only seen when the file is small. The recordings say: seen behind 16 bytes, lost
/// behind 4 MB; where between lies the edge is the fake's choice.
const LATE_FIELDS_BYTES: u64 = 64 * 1024;

/// Who uploads what where, and whether it may replace.
pub struct Target {
    pub who: Who,
    pub bucket: String,
    pub key: String,
    pub upsert: bool,
    /// By signed URL the answer holds the key alone.
    pub signed: bool,
}

/// Bytes on their way into a blob, with what a fault does to them.
pub struct Intake {
    writer: BlobWriter,
    keep: u64,
    received: u64,
}

impl Intake {
    pub fn new(writer: BlobWriter, effects: Effects) -> Self {
        Intake { writer, keep: effects.keep_bytes.unwrap_or(u64::MAX), received: 0 }
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = self.keep.saturating_sub(self.received).min(bytes.len() as u64);
        self.writer.write(&bytes[..room as usize])?;
        self.received += bytes.len() as u64;
        Ok(())
    }

    /// Takes over what a later request's fault says about keeping.
    pub fn limit_to(&mut self, effects: Effects) {
        if let Some(bytes) = effects.keep_bytes {
            self.keep = self.received + bytes;
        }
    }

    pub fn mark(&self) -> (u64, Mark) {
        (self.received, self.writer.mark())
    }

    pub fn rewind(&mut self, mark: (u64, Mark)) -> io::Result<()> {
        self.received = mark.0;
        self.writer.rewind(mark.1)
    }

    pub fn finish(self) -> Blob {
        self.writer.finish()
    }
}

/// Counts a body being received for as long as it lives.
pub struct Open<'a>(&'a AtomicUsize);

impl<'a> Open<'a> {
    pub fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Open(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// `POST` and `PUT` on `/object/{bucket}/{key}`.
pub async fn plain(x: &mut Exchange<'_>, bucket: String, key: String) -> Reply {
    let who = x.who()?;
    let upsert = x.upsert() || x.head.method == "PUT";
    receive(x, Target { who, bucket, key, upsert, signed: false }).await
}

pub async fn receive(x: &mut Exchange<'_>, target: Target) -> Reply {
    let cloud = x.cloud.clone();
    let _open = Open::new(&cloud.open_uploads);
    check_bucket_name(&target.bucket)?;
    let bucket = x.project().bucket(&target.bucket).cloned_head().ok_or_else(refusal::no_bucket)?;
    let limits = [Some(cloud.options.global_limit), cloud.options.standard_limit, bucket.file_size_limit];
    let limit = limits.into_iter().flatten().min().unwrap_or(u64::MAX);
    let content_type = x.header("content-type").unwrap_or("application/octet-stream").to_owned();
    if content_type.starts_with("multipart/form-data") {
        return multipart(x, &target, &bucket, limit, &content_type).await;
    }
    raw(x, &target, &bucket, limit, content_type).await
}

async fn raw(
    x: &mut Exchange<'_>,
    target: &Target,
    bucket: &Bucket,
    limit: u64,
    content_type: String,
) -> Reply {
    let length = x.header("content-length").and_then(|text| text.parse::<u64>().ok());
    check_type(bucket, &target.key, &content_type)?;
    if length.is_some_and(|length| length > limit) || (is_placeholder(&target.key) && length.unwrap_or(0) > 0)
    {
        return Err(refusal::too_large().into());
    }
    if let Some(robots) = x.header("x-robots-tag") {
        check_robots(robots)?;
    }
    let about = Description {
        content_type,
        cache_control: x.header("cache-control").unwrap_or("no-cache").to_owned(),
        robots: x.header("x-robots-tag").map(str::to_owned),
        user_metadata: metadata_header(x.header("x-metadata")),
        owner_id: target.who.subject.clone(),
    };
    let version = late_checks(x, target)?;
    let mut intake = Intake::new(BlobWriter::new(x.cloud.options.bodies), x.effects);
    while let Some(piece) = x.connection.read_body().await? {
        intake.write(&piece)?;
    }
    commit(x, target, version, about, intake)
}

async fn multipart(
    x: &mut Exchange<'_>,
    target: &Target,
    bucket: &Bucket,
    limit: u64,
    content_type: &str,
) -> Reply {
    let mut form =
        Form::new(content_type).ok_or_else(|| refusal::invalid_request("Multipart: Boundary not found"))?;
    let mut fields = Fields::default();
    let part = loop {
        let part = form
            .next(x.connection)
            .await
            .map_err(|error| unreadable(error, "Unexpected end of multipart data"))?;
        match part {
            None => return Err(refusal::invalid_request("No content provided").into()),
            Some(part) if part.filename.is_some() => break part,
            Some(part) => fields.read(x, &mut form, &part.name).await?,
        }
    };
    let part_type = part.content_type.unwrap_or_else(|| "text/plain".to_owned());
    let declared_type = fields.content_type.clone().unwrap_or(part_type);
    check_type(bucket, &target.key, &declared_type).map_err(Refusal::late)?;
    let version = late_checks(x, target)?;
    let mut intake = Intake::new(BlobWriter::new(x.cloud.options.bodies), x.effects);
    let limit = if is_placeholder(&target.key) { 0 } else { limit };
    let cut = |error| unreadable(error, "Request stream closed before upload could begin");
    while let Some(piece) = form.data(x.connection).await.map_err(cut)? {
        if intake.received <= limit {
            intake.write(&piece)?;
        }
    }
    if intake.received <= LATE_FIELDS_BYTES {
        while let Ok(Some(part)) = form.next(x.connection).await {
            if part.filename.is_none() {
                fields.read(x, &mut form, &part.name).await?;
            }
        }
    }
    while x.connection.read_body().await?.is_some() {}
    if intake.received > limit {
        return Err(refusal::too_large().into());
    }
    let about = Description {
        content_type: declared_type,
        cache_control: fields
            .cache_control
            .map_or("no-cache".to_owned(), |seconds| format!("max-age={seconds}")),
        robots: None,
        user_metadata: fields.metadata,
        owner_id: target.who.subject.clone(),
    };
    commit(x, target, version, about, intake)
}

/// The text fields of a form that mean something.
struct Fields {
    cache_control: Option<String>,
    content_type: Option<String>,
    metadata: Value,
}

impl Default for Fields {
    fn default() -> Self {
        Fields { cache_control: None, content_type: None, metadata: json!({}) }
    }
}

impl Fields {
    async fn read(&mut self, x: &mut Exchange<'_>, form: &mut Form, name: &str) -> Result<(), Stop> {
        let text = form.text(x.connection, MAX_FIELD_BYTES).await;
        let Some(text) = text.map_err(|error| unreadable(error, "Unexpected end of multipart data"))? else {
            return Ok(());
        };
        match name {
            "cacheControl" => self.cache_control = Some(text),
            "contentType" => self.content_type = Some(text),
            "metadata" | "userMetadata" => {
                if let Ok(value @ Value::Object(_)) = serde_json::from_str(&text) {
                    self.metadata = value;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn unreadable(error: FormError, message: &str) -> Stop {
    match error {
        FormError::Truncated => refusal::invalid_request(message).into(),
        FormError::Gone => Stop::Gone,
    }
}

/// Key syntax, policy and duplicate, then what the backend cannot hold. The new version's id comes out.
fn late_checks(x: &Exchange<'_>, target: &Target) -> Result<String, Refusal> {
    let version = new_id();
    check_key(&target.key).map_err(Refusal::late)?;
    x.project().may_create(&target.who, &target.bucket, &target.key, target.upsert).map_err(Refusal::late)?;
    check_backend("stub/storage-single-tenant", &target.bucket, &target.key, &version)
        .map_err(Refusal::late)?;
    Ok(version)
}

fn commit(x: &Exchange<'_>, target: &Target, version: String, about: Description, intake: Intake) -> Reply {
    let path = format!("{}/{}", target.bucket, target.key);
    let id = if x.effects.store_nothing {
        new_id()
    } else {
        let blob = Arc::new(intake.finish());
        x.project().commit(&target.bucket, &target.key, version, about, blob)?.id
    };
    Ok(Answer::json(200, &if target.signed { json!({"Key": path}) } else { json!({"Key": path, "Id": id}) }))
}

fn is_placeholder(key: &str) -> bool {
    key.ends_with(".emptyFolderPlaceholder")
}

fn check_type(bucket: &Bucket, key: &str, content_type: &str) -> Result<(), Refusal> {
    if !is_mime_type(content_type) {
        return Err(refusal::mime_header());
    }
    if !is_placeholder(key) && !bucket.takes(content_type) {
        return Err(refusal::mime_type(content_type));
    }
    Ok(())
}

fn check_robots(value: &str) -> Result<(), Refusal> {
    let known =
        ["all", "noindex", "nofollow", "none", "noarchive", "nosnippet", "noimageindex", "notranslate"];
    for rule in value.split(',').map(str::trim) {
        if !known.contains(&rule) {
            return Err(refusal::robots(rule));
        }
    }
    Ok(())
}

/// Base64 of a JSON object; anything else is dropped silently.
pub fn metadata_header(value: Option<&str>) -> Value {
    let decoded = value.and_then(|text| STANDARD.decode(text).ok());
    match decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        Some(object @ Value::Object(_)) => object,
        _ => json!({}),
    }
}

/// A bucket's own settings without its rows.
trait ClonedHead {
    fn cloned_head(self) -> Option<Bucket>;
}

impl ClonedHead for Option<&Bucket> {
    fn cloned_head(self) -> Option<Bucket> {
        let bucket = self?;
        let mut head = Bucket::new(&bucket.name, bucket.public);
        head.file_size_limit = bucket.file_size_limit;
        head.allowed_mime_types = bucket.allowed_mime_types.clone();
        Some(head)
    }
}
