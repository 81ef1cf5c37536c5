//! `GET /events`: what happens, as server-sent events (WHATWG HTML, section 9.2).

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Edge;
use super::jobs::JobView;
use super::middleware::ProblemView;
use super::problem::Problem;
use super::views::store_names;
use crate::domain::SessionId;
use crate::service::events::{Event, Heard, UploadStep};

/// A comment is sent after so much silence, so that nobody on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a client waits before it connects again.
const RETRY: Duration = Duration::from_secs(2);

/// Data of an `upload` event.
#[derive(Serialize, ToSchema)]
pub(super) struct UploadEventView {
    upload_id: String,
    session_id: String,
    /// `begun`, `receiving` (once a second at most), `kept`, `failed`
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    received_bytes: Option<u64>,
    /// Of one that is kept, like the following
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_size: Option<u64>,
    /// `supabase` or `local`
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    durability: Option<String>,
    /// Why it failed
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Data of a `sync` event.
#[derive(Serialize, ToSchema)]
pub(super) struct SyncEventView {
    session_id: String,
    filename: String,
    job_id: String,
    /// `waiting`, `running`, `done`, `parked`, `cancelled`
    state: &'static str,
    attempts: i64,
    /// Why the last try failed, or why it is parked
    error: Option<String>,
}

/// Data of a `deletion` event.
#[derive(Serialize, ToSchema)]
pub(super) struct DeletionEventView {
    session_id: String,
    /// Null for the whole session
    filename: Option<String>,
    /// `pending` or `done`; gone from every answer in either
    state: &'static str,
    /// Stores that have not confirmed it yet
    pending: Vec<&'static str>,
}

/// Data of a `health` event: nothing. `GET /readyz` says how it is.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthEventView {}

/// Which events.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only of this session
    session_id: Option<String>,
}

/// Follow what happens
///
/// Server-sent events of this gateway: `upload`, `sync`, `job` (a job as `GET /jobs/{id}` shows it), `deletion`,
/// `health` (ask `/readyz`), and `reset`:
/// something was missed, load again what you show. Each is sent after the change it tells of and has an `id`; a client
/// that comes back with `Last-Event-ID` gets a `reset` if anything happened meanwhile. Other gateways on the same catalogue
/// have events of their own.
#[utoipa::path(get, path = "/events", tag = "operations",
    params(EventsQuery, ("Last-Event-ID" = Option<String>, Header, description = "The last id that was heard")),
    responses((status = 200, description = "Events, until somebody ends the connection; data is JSON", content_type = "text/event-stream",
               body = EventData),
              (status = 503, description = "Too many listen", content_type = "application/problem+json", body = inline(ProblemView))))]
pub(super) async fn get_events(
    State(edge): State<Edge>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let session = query.session_id.as_deref().map(SessionId::parse).transpose()?;
    let last_heard = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let listener = edge.services.listen(session, last_heard)?;
    let frames = stream::unfold(listener, async |mut listener| {
        let heard = listener.next().await?;
        Some((Ok::<_, Infallible>(frame(heard)), listener))
    });
    let mut response = Sse::new(frames).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would collect the events otherwise.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

/// Data of one event.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum EventData {
    Upload(UploadEventView),
    Sync(SyncEventView),
    Job(JobView),
    Deletion(DeletionEventView),
    Health(HealthEventView),
}

fn frame(heard: Heard) -> Frame {
    let (id, event) = match heard {
        // Without data it is no event to the client's program, but its browser keeps the id.
        Heard::At(id) => return Frame::default().retry(RETRY).id(id),
        Heard::Reset(id) => return Frame::default().retry(RETRY).event("reset").id(id).data("{}"),
        Heard::Told(id, event) => (id, event),
    };
    let (name, data) = data_of(&event);
    let data = serde_json::to_string(&data).expect("a view is JSON");
    Frame::default().event(name).id(id).data(data)
}

fn data_of(event: &Event) -> (&'static str, EventData) {
    match event.clone() {
        Event::Upload { upload_id, session, step } => {
            let mut view = UploadEventView {
                upload_id,
                session_id: session.to_string(),
                state: "begun",
                received_bytes: None,
                filename: None,
                file_size: None,
                storage_type: None,
                durability: None,
                error: None,
            };
            match step {
                UploadStep::Begun => {}
                UploadStep::Receiving { received_bytes } => {
                    (view.state, view.received_bytes) = ("receiving", Some(received_bytes));
                }
                UploadStep::Kept(receipt) => {
                    view.state = "kept";
                    view.filename = Some(receipt.filename);
                    view.file_size = Some(receipt.file_size);
                    view.storage_type = Some(receipt.storage_type);
                    view.durability = Some(receipt.durability);
                }
                UploadStep::Failed { reason } => (view.state, view.error) = ("failed", Some(reason)),
            }
            ("upload", EventData::Upload(view))
        }
        Event::Sync { key, job_id, state, attempts, error } => {
            let (session_id, filename) = (key.session.to_string(), key.filename.to_string());
            let state = state.as_str();
            ("sync", EventData::Sync(SyncEventView { session_id, filename, job_id, state, attempts, error }))
        }
        Event::Health => ("health", EventData::Health(HealthEventView {})),
        Event::Job(job) => ("job", EventData::Job(job.into())),
        Event::Deletion { session, filename, pending } => {
            let view = DeletionEventView {
                session_id: session.to_string(),
                filename: filename.map(|name| name.to_string()),
                state: if pending.is_empty() { "done" } else { "pending" },
                pending: store_names(pending),
            };
            ("deletion", EventData::Deletion(view))
        }
    }
}
