//! Resumable uploads (tus 1.0.0) at `/upload/resumable`, with and without a signed token.
//!
//! Apart because nothing of the REST shapes holds here: answers are plain text with real statuses, and errors on
//! a PATCH close the connection. Signed tokens are made elsewhere.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, watch};

use super::auth::{self, Who};
use super::blob::BlobWriter;
use super::exchange::Exchange;
use super::project::{Description, check_backend, check_bucket_name, check_key, new_id};
use super::refusal::{self, Refusal, Reply, Stop};
use super::sign;
use super::upload::{Intake, Open};
use super::wire::{After, Answer, Content};

const TEXT: &str = "text/plain;charset=UTF-8";
const OFFSET_TYPE: &str = "application/offset+octet-stream";
const HEADERS: &str = "Authorization, Content-Type, Location, Tus-Extension, Tus-Max-Size, Tus-Resumable, Tus-Version, \
    Upload-Concat, Upload-Defer-Length, Upload-Length, Upload-Metadata, Upload-Offset, X-HTTP-Method-Override, \
    X-Requested-With, X-Forwarded-Host, X-Forwarded-Proto, Forwarded,";

/// One upload that was created and not deleted; finished ones stay and can be asked for.
pub struct Resumable {
    pub bucket: String,
    pub key: String,
    version: String,
    metadata: String,
    about: Description,
    /// How many newcomers wait for the request that holds `progress`.
    waiting: watch::Sender<usize>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    length: Option<u64>,
    offset: u64,
    intake: Option<Intake>,
    finished: bool,
}

impl Resumable {
    /// Takes the upload for one request. A request that has it is told to stop: one at a time, the newest wins.
    async fn take(&self) -> MutexGuard<'_, Progress> {
        if let Ok(progress) = self.progress.try_lock() {
            return progress;
        }
        self.waiting.send_modify(|count| *count += 1);
        let progress = self.progress.lock().await;
        self.waiting.send_modify(|count| *count -= 1);
        progress
    }
}

/// Any method on `/upload/resumable[/sign][/{id}]`; `None` is a route that does not exist.
pub async fn handle(x: &mut Exchange<'_>) -> Option<Reply> {
    let rest = x.path.strip_prefix("/upload/resumable")?.to_owned();
    let (signed, rest) = match rest.strip_prefix("/sign") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => (true, rest.to_owned()),
        _ => (false, rest),
    };
    let id = rest.trim_start_matches('/').to_owned();
    let reply = match (x.head.method.as_str(), id.as_str()) {
        ("OPTIONS", _) => Ok(options(x)),
        ("POST", "") => create(x, signed).await,
        ("HEAD", id) if !id.is_empty() => offset(x, signed, id).await,
        ("PATCH", id) if !id.is_empty() => append(x, signed, id).await,
        ("DELETE", id) if !id.is_empty() => terminate(x, signed, id).await,
        _ => return None,
    };
    Some(reply)
}

/// An answer in plain text; the recorded ones before any upload is looked at lack the CORS header.
fn text(status: u16, message: &str) -> Answer {
    Answer::text(status, TEXT, message).with("tus-resumable", "1.0.0")
}

fn refused(status: u16, message: &str) -> Stop {
    Stop::Answered(Box::new(text(status, message).with("access-control-allow-origin", "*")))
}

fn refused_early(status: u16, message: &str) -> Stop {
    Stop::Answered(Box::new(text(status, message)))
}

/// A REST refusal in the words and with the status of these routes.
fn plainly(refusal: Refusal) -> Stop {
    refused(refusal.status, &refusal.message)
}

/// After errors on a PATCH the connection ends.
fn closing(stop: Stop) -> Stop {
    match stop {
        Stop::Answered(mut answer) => {
            answer.after = After::Close;
            Stop::Answered(answer)
        }
        other => other,
    }
}

fn options(x: &Exchange<'_>) -> Answer {
    Answer::new(204)
        .with(
            "access-control-allow-headers",
            format!("{HEADERS} Authorization, X-Upsert, Upload-Expires, ApiKey, x-signature"),
        )
        .with("access-control-allow-methods", "POST, HEAD, PATCH, OPTIONS, DELETE")
        .with("access-control-allow-origin", "*")
        .with("access-control-expose-headers", HEADERS)
        .with("access-control-max-age", "86400")
        .with("tus-extension", "creation,creation-with-upload,creation-defer-length,termination,expiration")
        .with("tus-max-size", x.cloud.options.global_limit.to_string())
        .with("tus-resumable", "1.0.0")
        .with("tus-version", "1.0.0")
}

/// The bearer, or the claims of the upload token on the signed variant.
fn bearer(x: &Exchange<'_>, signed: bool) -> Result<(Who, Option<Value>), Stop> {
    if !signed {
        let who = auth::bearer(x.header("authorization").unwrap_or_default())?;
        return Ok((who, None));
    }
    let token = x.header("x-signature").ok_or_else(|| refused(400, "Missing x-signature header"))?;
    let claims = sign::upload_claims(token).map_err(|message| refused(400, message))?;
    let who = Who { subject: claims["owner"].as_str().map(str::to_owned), ..Who::service() };
    Ok((who, Some(claims)))
}

/// The protocol version and the syntax of the headers.
fn check_headers(x: &Exchange<'_>) -> Result<(), Stop> {
    match x.header("tus-resumable") {
        None => return Err(refused_early(412, "Tus-Resumable Required\n")),
        Some("1.0.0") => {}
        Some(_) => return Err(refused_early(400, "Invalid tus-resumable\n")),
    }
    for name in ["upload-length", "upload-offset"] {
        if x.header(name).is_some_and(|value| value.parse::<u64>().is_err()) {
            return Err(refused_early(400, &format!("Invalid {name}\n")));
        }
    }
    if x.header("upload-metadata").is_some_and(|value| parse_metadata(value).is_none()) {
        return Err(refused_early(400, "Invalid upload-metadata\n"));
    }
    if x.head.method == "PATCH" && x.header("content-type").is_some_and(|value| value != OFFSET_TYPE) {
        return Err(refused_early(400, "Invalid content-type\n"));
    }
    Ok(())
}

fn number(x: &Exchange<'_>, name: &str) -> Option<u64> {
    x.header(name).and_then(|value| value.parse().ok())
}

/// Keys with their decoded values; `None` when a value is not base64.
fn parse_metadata(header: &str) -> Option<Vec<(String, Option<String>)>> {
    let mut pairs = Vec::new();
    for pair in header.split(',').map(str::trim) {
        let (key, value) = pair.split_once(' ').map_or((pair, None), |(key, value)| (key, Some(value)));
        let value = match value {
            None => None,
            Some(value) => Some(String::from_utf8(STANDARD.decode(value).ok()?).ok()?),
        };
        pairs.push((key.to_owned(), value));
    }
    Some(pairs)
}

async fn create(x: &mut Exchange<'_>, signed: bool) -> Reply {
    let (who, claims) = bearer(x, signed)?;
    check_headers(x)?;
    if x.header("upload-concat").is_some() {
        let message =
            "Concatenation extension is not (yet) supported. Disable parallel uploads in the tus client.\n";
        return Err(refused(501, message));
    }
    let length = number(x, "upload-length");
    if length.is_some() == x.header("upload-defer-length").is_some() {
        return Err(refused(400, "Upload-Length or Upload-Defer-Length header required\n"));
    }
    let header = x.header("upload-metadata").ok_or_else(|| refused(400, "Metadata header is required"))?;
    let mut pairs = parse_metadata(header).unwrap_or_default();
    let field = |name: &str| {
        pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone().unwrap_or_default())
    };
    let (bucket_name, key) =
        (field("bucketName").unwrap_or_default(), field("objectName").unwrap_or_default());
    let content_type = field("contentType");
    let metadata = field("metadata").and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let cache_control = match field("cacheControl").and_then(|text| text.parse::<u64>().ok()) {
        Some(seconds) => format!("max-age={seconds}"),
        None => "no-cache".to_owned(),
    };
    check_bucket_name(&bucket_name).map_err(plainly)?;
    check_key(&key).map_err(plainly)?;
    if claims.as_ref().is_some_and(|claims| !sign::claims_fit(claims, &bucket_name, &key)) {
        return Err(refused(400, "Invalid signature"));
    }
    let upsert = upserts(x, claims.as_ref());
    {
        let project = x.project();
        let bucket = project.bucket(&bucket_name).ok_or_else(|| plainly(refusal::no_bucket()))?;
        let limit = bucket.file_size_limit.unwrap_or(u64::MAX).min(x.cloud.options.global_limit);
        if length.is_some_and(|length| length > limit) {
            return Err(refused(413, "Maximum size exceeded\n"));
        }
        if let Some(mime) = content_type.as_deref().filter(|mime| !bucket.takes(mime)) {
            return Err(plainly(refusal::mime_type(mime)));
        }
        project.may_create(&who, &bucket_name, &key, upsert).map_err(plainly)?;
    }
    let version = new_id();
    check_backend("storage-single-tenant", &bucket_name, &key, &version)
        .map_err(|refusal| closing(plainly(refusal)))?;
    match pairs.iter_mut().find(|(key, _)| key == "cacheControl") {
        Some((_, value)) => *value = Some(cache_control.clone()),
        None => pairs.push(("cacheControl".to_owned(), Some(cache_control.clone()))),
    }
    let shown: Vec<String> = pairs
        .iter()
        .map(|(key, value)| match value {
            Some(value) => format!("{key} {}", STANDARD.encode(value)),
            None => key.clone(),
        })
        .collect();
    let upload = Arc::new(Resumable {
        bucket: bucket_name,
        key,
        metadata: shown.join(","),
        about: Description {
            content_type: content_type.unwrap_or_else(|| "application/octet-stream".to_owned()),
            cache_control,
            robots: None,
            user_metadata: metadata.unwrap_or(Value::Null),
            owner_id: who.subject.clone(),
        },
        waiting: watch::Sender::new(0),
        progress: Mutex::new(Progress {
            length,
            intake: Some(Intake::new(BlobWriter::new(x.cloud.options.bodies), x.effects)),
            ..Progress::default()
        }),
        version,
    });
    let id = URL_SAFE_NO_PAD.encode(format!("{}/{}/{}", upload.bucket, upload.key, upload.version));
    x.project().uploads.insert(id.clone(), upload.clone());
    let mut answer = Answer::new(201)
        .with("access-control-allow-origin", "*")
        .with("content-type", TEXT)
        .with("location", location(x, signed, &id))
        .with("tus-resumable", "1.0.0");
    answer.content = Content::EmptyChunked;
    let mut progress = upload.take().await;
    if x.header("content-type") == Some(OFFSET_TYPE) {
        receive(x, &upload, &mut progress).await?;
        answer = answer.with("upload-offset", progress.offset.to_string());
    }
    if finish(x, &upload, &mut progress)? {
        answer = answer.with("tus-complete", "1");
    }
    Ok(answer)
}

fn upserts(x: &Exchange<'_>, claims: Option<&Value>) -> bool {
    x.upsert() || claims.is_some_and(|claims| claims["upsert"] == json!(true))
}

/// Host and scheme come from the request or its forwarded headers; the path prefix only when that is trusted.
fn location(x: &Exchange<'_>, signed: bool, id: &str) -> String {
    let path = format!("/upload/resumable/{}{id}", if signed { "sign/" } else { "" });
    if let Some(public) = &x.cloud.options.public_url {
        return format!("{public}{path}");
    }
    let scheme = x.header("x-forwarded-proto").unwrap_or("http");
    let host = x.header("x-forwarded-host").or(x.header("host")).unwrap_or("localhost");
    let port = x.header("x-forwarded-port").map(|port| format!(":{port}")).unwrap_or_default();
    let prefix = match x.cloud.options.trust_forwarded_prefix {
        true => x.header("x-forwarded-prefix").unwrap_or(x.prefix),
        false => "",
    };
    format!("{scheme}://{host}{port}{prefix}{path}")
}

/// The upload of an id: 400 when it is none, 404 when unknown.
fn known(x: &Exchange<'_>, id: &str) -> Result<Arc<Resumable>, Stop> {
    let decoded = URL_SAFE_NO_PAD.decode(id).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if decoded.is_none_or(|text| text.matches('/').count() < 2) {
        return Err(refused(400, "Invalid upload id"));
    }
    let unknown = || refused(404, "The file for this url was not found\n");
    x.project().uploads.get(id).cloned().ok_or_else(unknown)
}

fn check_claims(claims: Option<&Value>, upload: &Resumable) -> Result<(), Stop> {
    match claims {
        Some(claims) if !sign::claims_fit(claims, &upload.bucket, &upload.key) => {
            Err(refused(400, "Invalid signature"))
        }
        _ => Ok(()),
    }
}

async fn offset(x: &mut Exchange<'_>, signed: bool, id: &str) -> Reply {
    let (_, claims) = bearer(x, signed)?;
    check_headers(x)?;
    let upload = known(x, id)?;
    check_claims(claims.as_ref(), &upload)?;
    let progress = upload.take().await;
    let answer = text(200, "")
        .with("access-control-allow-origin", "*")
        .with("cache-control", "no-store")
        .with("upload-metadata", upload.metadata.clone())
        .with("upload-offset", progress.offset.to_string());
    Ok(match progress.length {
        Some(length) => answer.with("upload-length", length.to_string()),
        None => answer.with("upload-defer-length", "1"),
    })
}

async fn append(x: &mut Exchange<'_>, signed: bool, id: &str) -> Reply {
    let (who, claims) = bearer(x, signed)?;
    check_headers(x)?;
    append_checked(x, &who, claims.as_ref(), id).await.map_err(closing)
}

async fn append_checked(x: &mut Exchange<'_>, who: &Who, claims: Option<&Value>, id: &str) -> Reply {
    if x.header("content-type").is_none() {
        return Err(refused(403, "Content-Type header required\n"));
    }
    let offset = number(x, "upload-offset").ok_or_else(|| refused(403, "Upload-Offset header required\n"))?;
    let upload = known(x, id)?;
    check_claims(claims, &upload)?;
    let upsert = upserts(x, claims);
    x.project().may_create(who, &upload.bucket, &upload.key, upsert).map_err(plainly)?;
    let mut progress = upload.take().await;
    // Asked again: the request before this one may have finished the upload meanwhile.
    x.project().may_create(who, &upload.bucket, &upload.key, upsert).map_err(plainly)?;
    if progress.offset != offset || progress.finished {
        return Err(refused(409, "Upload-Offset conflict\n"));
    }
    if progress.length.is_none() {
        progress.length = number(x, "upload-length");
    }
    let cut_short = receive(x, &upload, &mut progress).await?;
    let mut answer = Answer::new(204)
        .with("access-control-allow-origin", "*")
        .with("tus-resumable", "1.0.0")
        .with("upload-offset", progress.offset.to_string());
    if cut_short {
        return Ok(answer.after(After::Close));
    }
    if finish(x, &upload, &mut progress)? {
        answer = answer.with("tus-complete", "1");
    }
    Ok(answer)
}

/// Reads the body into the upload. A break keeps what came, a body beyond the length keeps nothing of it; true
/// says that a newcomer cut the request short.
async fn receive(x: &mut Exchange<'_>, upload: &Resumable, progress: &mut Progress) -> Result<bool, Stop> {
    let cloud = x.cloud.clone();
    let _open = Open::new(&cloud.open_uploads);
    let limit = {
        let project = x.project();
        let of_bucket = project.bucket(&upload.bucket).and_then(|bucket| bucket.file_size_limit);
        of_bucket.unwrap_or(u64::MAX).min(x.cloud.options.global_limit)
    };
    if progress.length.is_some_and(|length| length > limit) {
        return Err(refused(413, "Maximum size exceeded\n"));
    }
    let room = progress.length.unwrap_or(limit).saturating_sub(progress.offset);
    if number(x, "content-length").is_some_and(|length| length > room) {
        return Err(refused(413, "upload's size exceeded\n"));
    }
    let Some(intake) = &mut progress.intake else { return Ok(false) };
    intake.limit_to(x.effects);
    let before = (progress.offset, intake.mark());
    let mut newcomers = upload.waiting.subscribe();
    loop {
        let piece = tokio::select! {
            biased;
            piece = x.connection.read_body() => piece?,
            _ = newcomers.wait_for(|count| *count > 0) => return Ok(true),
        };
        let Some(piece) = piece else { return Ok(false) };
        if progress.offset - before.0 + piece.len() as u64 > room {
            progress.offset = before.0;
            intake.rewind(before.1)?;
            return Err(refused(413, "Maximum size exceeded\n"));
        }
        intake.write(&piece)?;
        progress.offset += piece.len() as u64;
    }
}

/// Makes the object appear once the last byte is there.
fn finish(x: &Exchange<'_>, upload: &Resumable, progress: &mut Progress) -> Result<bool, Stop> {
    if progress.finished || progress.length != Some(progress.offset) {
        return Ok(false);
    }
    progress.finished = true;
    let Some(intake) = progress.intake.take().filter(|_| !x.effects.store_nothing) else { return Ok(true) };
    let blob = Arc::new(intake.finish());
    let (version, about) = (upload.version.clone(), upload.about.clone());
    x.project().commit(&upload.bucket, &upload.key, version, about, blob).map_err(plainly)?;
    Ok(true)
}

async fn terminate(x: &mut Exchange<'_>, signed: bool, id: &str) -> Reply {
    let (who, claims) = bearer(x, signed)?;
    check_headers(x)?;
    let upload = known(x, id)?;
    check_claims(claims.as_ref(), &upload)?;
    x.project()
        .may_create(&who, &upload.bucket, &upload.key, upserts(x, claims.as_ref()))
        .map_err(plainly)?;
    let progress = upload.take().await;
    if progress.finished {
        return Err(refused(409, "The resource already exists"));
    }
    x.project().uploads.remove(id);
    Ok(Answer::new(204).with("access-control-allow-origin", "*").with("tus-resumable", "1.0.0"))
}
