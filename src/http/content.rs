//! `/content`: always the bytes, wherever they are. Ranges and conditions are judged here, not by the store, so that
//! they mean the same for both.

use std::ops::Range;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use time::OffsetDateTime;

use super::Edge;
use super::digest::format_sha256;
use super::disposition::{Disposition, content_disposition, inline_allowed};
use super::problem::Problem;
use super::range::{self, RangeDecision, http_date, not_modified, precondition_failed};
use super::recordings::object_key;
use crate::domain::StoreKind;
use crate::domain::merge::Listed;
use crate::service::HOP;

/// How a cloud copy is given out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// By sending the client to the cloud.
    Redirect,
    /// Through the gateway.
    Proxy,
}

/// Options of `/content`.
#[derive(Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ContentQuery {
    /// `redirect` or `proxy` for a cloud copy; the configuration decides if absent
    via: Option<String>,
}

impl ContentQuery {
    fn via(&self, default: Via) -> Result<Via, Problem> {
        match self.via.as_deref() {
            None => Ok(default),
            Some("redirect") => Ok(Via::Redirect),
            Some("proxy") => Ok(Via::Proxy),
            Some(_) => Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "via_invalid",
                "Set via to redirect or proxy, or leave it out.",
            )),
        }
    }
}

/// The bytes of a recording
///
/// One address for the recording's whole life. Takes Range, If-Range, If-None-Match and their kin.
#[utoipa::path(get, path = "/recordings/{session_id}/{filename}/content", tag = "recordings",
    params(("session_id" = String, Path), ("filename" = String, Path), ContentQuery,
           ("Range" = Option<String>, Header, description = "One range of bytes")),
    responses((status = 200, description = "The bytes", content_type = "application/octet-stream", body = String),
              (status = 206, description = "The bytes of the range", content_type = "application/octet-stream", body = String),
              (status = 304, description = "Not changed"),
              (status = 307, description = "The bytes are in the cloud"),
              (status = 404, description = "There is none", content_type = "application/problem+json", body = inline(super::middleware::ProblemView)),
              (status = 416, description = "No such range", content_type = "application/problem+json", body = inline(super::middleware::ProblemView))))]
pub(super) async fn get_recording_content(
    State(edge): State<Edge>,
    Path((session, filename)): Path<(String, String)>,
    Query(query): Query<ContentQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let via = query.via(edge.settings.via)?;
    is_for_this_gateway(&edge, &headers)?;
    let (found, store) = edge.services.locate(&object_key(&session, &filename)?).await?;
    if store == StoreKind::Supabase && via == Via::Redirect {
        let url = edge.services.cloud_url(&found.recording.key).await?;
        let location =
            HeaderValue::from_str(&url.url).map_err(|_| Problem::of_status(StatusCode::BAD_GATEWAY))?;
        // A later answer may be another: the local copy, or a newly signed address.
        let headers =
            [(header::LOCATION, location), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        return Ok((StatusCode::TEMPORARY_REDIRECT, headers).into_response());
    }
    let purpose = if method == Method::GET { Purpose::Play } else { Purpose::Ask };
    serve_content(&edge, found, store, &headers, purpose).await
}

/// Whether a gateway that sent the request meant this one: an address may have come to be another's.
pub(super) fn is_for_this_gateway(edge: &Edge, headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(HOP) {
        Some(id) if id.as_bytes() != edge.services.catalog.gateway_id().as_str().as_bytes() => {
            Err(other_gateway())
        }
        _ => Ok(()),
    }
}

fn other_gateway() -> Problem {
    let detail = "The request is for another gateway; leave the Gateway-Hop header out.";
    Problem::new(StatusCode::MISDIRECTED_REQUEST, "other_gateway", detail)
}

/// What the bytes are wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// To be shown.
    Play,
    /// To be saved rather than shown.
    Save,
    /// Only their head is.
    Ask,
}

/// Serves the bytes from `store`.
pub(super) async fn serve_content(
    edge: &Edge,
    found: Listed,
    store: StoreKind,
    request: &HeaderMap,
    purpose: Purpose,
) -> Result<Response, Problem> {
    let recording = &found.recording;
    if request.contains_key(HOP) && store == StoreKind::Local && recording.held_by.is_some() {
        // Whoever asks for another gateway believes that it is here; asking on could go round in circles.
        return Err(other_gateway());
    }
    let etag = recording.entity_tag();
    let modified = recording.uploaded_at;
    let field = |name: HeaderName| request.get(name).and_then(|value| value.to_str().ok());
    let (etag_of, modified_of) = (Some(etag.as_str()), Some(modified));
    if precondition_failed(field(header::IF_MATCH), field(header::IF_UNMODIFIED_SINCE), etag_of, modified_of)
    {
        return Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "precondition_failed",
            "The recording is not the one you have; ask again without the condition.",
        ));
    }
    let mut headers = content_headers(recording, &etag, modified, purpose == Purpose::Save);
    if not_modified(field(header::IF_NONE_MATCH), field(header::IF_MODIFIED_SINCE), etag_of, modified_of) {
        headers.remove(header::CONTENT_TYPE);
        headers.remove(header::CONTENT_DISPOSITION);
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let size = recording.size_bytes;
    let decision = range::decide(field(header::RANGE), field(header::IF_RANGE), size, etag_of, modified_of);
    let (status, range): (_, Option<Range<u64>>) = match decision {
        RangeDecision::Whole => (StatusCode::OK, None),
        RangeDecision::Partial { start, end_inclusive } => {
            let content_range = format!("bytes {start}-{end_inclusive}/{size}");
            headers.insert(header::CONTENT_RANGE, header_value(&content_range));
            (StatusCode::PARTIAL_CONTENT, Some(start..end_inclusive + 1))
        }
        RangeDecision::Unsatisfiable => {
            let detail = format!("Ask for a range within the {size} bytes there are.");
            return Err(Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", detail)
                .with_header(header::CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    let length = range.as_ref().map_or(size, |range| range.end - range.start);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let opened = edge.services.play(recording, store, range, purpose != Purpose::Ask).await?;
    if opened.object.size_bytes != size {
        return Err(crate::service::ServiceError::NotFound.into());
    }
    Ok((status, headers, Body::from_stream(opened.bytes)).into_response())
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn content_headers(
    recording: &crate::domain::Recording,
    etag: &str,
    modified: OffsetDateTime,
    attachment: bool,
) -> HeaderMap {
    let content_type = recording.content_type.as_str();
    let shown = inline_allowed(content_type);
    let disposition = if shown && !attachment { Disposition::Inline } else { Disposition::Attachment };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, header_value(content_type));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, header_value(etag));
    headers.insert(header::LAST_MODIFIED, header_value(&http_date(modified)));
    // The bytes never change, but they can be deleted: always ask.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache, no-transform"));
    let name = recording.key.filename.as_str();
    headers.insert(header::CONTENT_DISPOSITION, content_disposition(disposition, name));
    if let Some(digest) = recording.sha256 {
        headers
            .insert(HeaderName::from_static("repr-digest"), header_value(&format_sha256(digest.as_bytes())));
    }
    headers
}
