//! `POST /recordings/upload/{session_id}`: a form becomes an upload. The bytes go on as they come; what the fields
//! mean is decided as soon as it can be, not when the form is over.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use sha2::{Digest as _, Sha256};

use super::Edge;
use super::digest::parse_sha256;
use super::middleware::Acting;
use super::multipart::{FormReader, Limits, PartHead, ReadError, boundary};
use super::problem::Problem;
use super::views::UploadView;
use crate::domain::{ContentDigest, RecordingType, SessionId};
use crate::service::Services;
use crate::service::upload::{FileHead, Incoming, Landed, Receipt, UploadOptions};

/// Bytes of text fields, and of files in fields that are not ours, that are read past.
const OTHER_FIELD_BYTES: usize = 1 << 20;
/// Longest text of `recording_type` that is looked at.
const TYPE_BYTES: usize = 256;

/// Refusals that go into the audit: what was sent breaks a rule. The others are mistakes in the request, or the
/// gateway's own trouble.
const DENIED: [&str; 4] =
    ["recording_too_large", "recording_type_not_allowed", "digest_mismatch", "idempotency_key_reused"];

/// The form.
#[derive(utoipa::ToSchema)]
#[allow(dead_code)] // describes the body; the handler reads it as a stream
pub(super) struct UploadForm {
    /// The file
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    recording: String,
    /// What kind of recording it is: 1 to 32 of a-z 0-9 _ -
    #[schema(default = "session")]
    recording_type: Option<String>,
}

/// Upload a recording
///
/// Streams a form's file into the session. Kept on the gateway's disk when the cloud cannot take it.
#[utoipa::path(post, path = "/recordings/upload/{session_id}", tag = "recordings",
    params(
        ("session_id" = String, Path, description = "1 to 128 of A-Z a-z 0-9 . _ -, not starting with a dot"),
        ("Idempotency-Key" = Option<String>, Header, description = "A repeat under the same key gets the first answer"),
        ("Repr-Digest" = Option<String>, Header, description = "sha-256 of the recording (RFC 9530); a mismatch stores nothing"),
        ("Content-Digest" = Option<String>, Header, description = "sha-256 of the request's body (RFC 9530); a mismatch stores nothing"),
        ("Gateway-Job" = Option<String>, Header, description = "Id of a migration job (`POST /jobs`) that the recording's sync is to be a part of"),
        ("Prefer" = Option<String>, Header, description = "respond-async: answer 202 as soon as the recording is safe at the gateway"),
    ),
    request_body(content = inline(UploadForm), content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "Stored", body = UploadView),
        (status = 202, description = "Safe at the gateway, the cloud follows", body = UploadView),
        (status = "4XX", description = "Nothing was stored", content_type = "application/problem+json", body = inline(super::middleware::ProblemView)),
        (status = 507, description = "The gateway's disk is full; nothing was stored", content_type = "application/problem+json", body = inline(super::middleware::ProblemView)),
    ))]
pub(super) async fn upload_recording(
    State(edge): State<Edge>,
    Acting(services): Acting,
    Path(session): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let session = SessionId::parse(&session)?;
    let received = receive_form(&edge, &services, session.clone(), headers, body).await;
    if let Err(problem) = &received
        && DENIED.contains(&problem.code)
    {
        services.note_denied(&session, problem.code, &problem.detail);
    }
    let receipt = received?;
    let status = if receipt.landed == Landed::Early { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(UploadView::of(receipt))).into_response())
}

async fn receive_form(
    edge: &Edge,
    services: &Services,
    session: SessionId,
    headers: HeaderMap,
    body: Body,
) -> Result<Receipt, Problem> {
    let content_type = text(&headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
    let boundary = boundary(content_type)?;
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_encoding_unsupported",
            "Send the form without Content-Encoding; recordings are stored as they are.",
        ));
    }
    let request_bytes =
        text(&headers, header::CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok());
    let expected_body = digest_field(&headers, "content-digest")?;
    let options = UploadOptions {
        request_bytes,
        idempotency_key: idempotency_key(&headers)?,
        expected_digest: digest_field(&headers, "repr-digest")?,
        respond_async: prefers_async(&headers),
        // What cannot be read is no job either.
        parent_job: headers.get("gateway-job").map(|id| id.to_str().unwrap_or_default().to_owned()),
    };
    // They are pieces of what was read first, which would stay in memory as long as they do.
    drop(headers);
    let mut incoming = services.begin_upload(session, options).await?;

    let hasher = expected_body.map(|_| Arc::new(Mutex::new(Sha256::new())));
    let stream = body_stream(body, edge.settings.upload_idle_timeout, hasher.clone());
    let mut form = FormReader::new(stream, &boundary, Limits::default());
    let mut others = Vec::new();
    let mut skipped = 0;
    while let Some(part) = form.next_part().await? {
        match part.name.as_str() {
            "recording" => {
                if incoming.has_file() {
                    return Err(Problem::new(
                        StatusCode::BAD_REQUEST,
                        "recording_twice",
                        "Send one file a request; this form has the field recording twice.",
                    ));
                }
                // Only where the type came first can nothing else be expected behind the file.
                let expected_bytes = request_bytes
                    .filter(|_| incoming.has_recording_type())
                    .and_then(|n| form.expected_part_len(n));
                receive_file(&mut incoming, &mut form, part, expected_bytes).await?;
            }
            "recording_type" => {
                let text = read_text(&mut form, TYPE_BYTES).await?;
                // An empty field is one that somebody left empty.
                if !text.is_empty() {
                    incoming.recording_type(RecordingType::parse(&text)?);
                }
            }
            other => {
                others.push(other.chars().take(40).collect::<String>());
                skipped = skip(&mut form, skipped).await?;
            }
        }
    }
    if !incoming.has_file() {
        return Err(no_file(&others));
    }
    if let (Some(expected), Some(hasher)) = (expected_body, hasher) {
        let digest: [u8; 32] = hasher.lock().unwrap_or_else(|e| e.into_inner()).clone().finalize().into();
        if digest != *expected.as_bytes() {
            return Err(crate::service::ServiceError::DigestMismatch.into());
        }
    }
    Ok(incoming.finish().await?)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The digest of an RFC 9530 field; several lines of it are one list.
fn digest_field(headers: &HeaderMap, name: &str) -> Result<Option<ContentDigest>, Problem> {
    let lines: Vec<&str> =
        headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("\u{fffd}")).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    Ok(parse_sha256(&lines.join(", "))?.map(ContentDigest::from_bytes))
}

/// The key as a structured string or bare, 1 to 255 visible characters.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().unwrap_or_default().trim();
    let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    if key.is_empty() || key.len() > 255 || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "idempotency_key_invalid",
            "Send an Idempotency-Key of 1 to 255 visible ASCII characters, or none.",
        ));
    }
    Ok(Some(key.to_owned()))
}

/// RFC 7240.
fn prefers_async(headers: &HeaderMap) -> bool {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    preferences.flat_map(|line| line.split(',')).any(|preference| {
        preference.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("respond-async"))
    })
}

fn no_file(others: &[String]) -> Problem {
    let detail = if others.is_empty() {
        "Send the file in a form field named recording; this form has no file.".to_owned()
    } else {
        format!("Send the file in a form field named recording; this form has only: {}.", others.join(", "))
    };
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "recording_missing", detail)
}

type FrameResult = Result<Bytes, io::Error>;

/// The body's frames; a client that sends nothing for `idle` is given up.
fn body_stream(
    body: Body,
    idle: Duration,
    hasher: Option<Arc<Mutex<Sha256>>>,
) -> impl Stream<Item = FrameResult> + Unpin + Send {
    let frames = body.into_data_stream();
    Box::pin(futures_util::stream::unfold(frames, move |mut frames| {
        let hasher = hasher.clone();
        async move {
            let frame = match tokio::time::timeout(idle, frames.next()).await {
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
                Ok(None) => return None,
                Ok(Some(frame)) => frame.map_err(io::Error::other),
            };
            if let (Ok(bytes), Some(hasher)) = (&frame, &hasher) {
                hasher.lock().unwrap_or_else(|e| e.into_inner()).update(bytes);
            }
            Some((frame, frames))
        }
    }))
}

impl From<ReadError<io::Error>> for Problem {
    fn from(error: ReadError<io::Error>) -> Self {
        match error {
            ReadError::Form(error) => error.into(),
            ReadError::Stream(error) if error.kind() == io::ErrorKind::TimedOut => Self::new(
                StatusCode::REQUEST_TIMEOUT,
                "upload_stalled",
                "No byte came for too long; send the recording again. Nothing was stored.",
            ),
            ReadError::Stream(error) => Self {
                cause: Some(error.to_string()),
                ..Self::new(
                    StatusCode::BAD_REQUEST,
                    "body_broken_off",
                    "The request's body broke off; send the recording again. Nothing was stored.",
                )
            },
        }
    }
}

async fn receive_file<S>(
    incoming: &mut Incoming,
    form: &mut FormReader<S>,
    part: PartHead,
    expected_bytes: Option<u64>,
) -> Result<(), Problem>
where
    S: Stream<Item = FrameResult> + Unpin,
{
    let expected_digest = match digest_field(&part.headers, "content-digest")? {
        Some(digest) => Some(digest),
        None => digest_field(&part.headers, "repr-digest")?,
    };
    incoming.begin_file(FileHead {
        declared_type: part.content_type,
        client_filename: part.filename.filter(|name| !name.is_empty()),
        expected_bytes,
        expected_digest,
    })?;
    while let Some(bytes) = form.chunk().await? {
        incoming.push(&bytes).await?;
    }
    Ok(())
}

async fn read_text<S>(form: &mut FormReader<S>, most: usize) -> Result<String, Problem>
where
    S: Stream<Item = FrameResult> + Unpin,
{
    let mut text = Vec::new();
    while let Some(bytes) = form.chunk().await? {
        if text.len() + bytes.len() > most {
            return Err(crate::domain::NameError::RecordingType.into());
        }
        text.extend_from_slice(&bytes);
    }
    String::from_utf8(text).map_err(|_| crate::domain::NameError::RecordingType.into())
}

async fn skip<S>(form: &mut FormReader<S>, mut skipped: usize) -> Result<usize, Problem>
where
    S: Stream<Item = FrameResult> + Unpin,
{
    while let Some(bytes) = form.chunk().await? {
        skipped += bytes.len();
        if skipped > OTHER_FIELD_BYTES {
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "form_field_too_large",
                format!(
                    "Send the file in the field recording; other fields may have {OTHER_FIELD_BYTES} bytes together."
                ),
            ));
        }
    }
    Ok(skipped)
}
