//! Recordings and sessions: info, lists, downloads' addresses, deletion.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete};

use super::Edge;
use super::content::{Purpose, is_for_this_gateway, serve_content};
use super::middleware::Acting;
use super::paging::{PageQuery, with_next_link};
use super::problem::Problem;
use super::views::{
    DeletionView, DownloadView, RecordingView, RecordingsView, SessionDeletionView, SessionsView, pending,
    time_text,
};
use crate::domain::merge::Listed;
use crate::domain::{Filename, ObjectKey, SessionId, StoreKind};
use crate::service::delete::Deletion;

pub(super) fn object_key(session: &str, filename: &str) -> Result<ObjectKey, Problem> {
    Ok(ObjectKey::new(SessionId::parse(session)?, Filename::parse(filename)?))
}

/// List the sessions
#[utoipa::path(get, path = "/recordings", tag = "recordings", params(PageQuery),
    responses((status = 200, description = "The session with the newest recording first", body = SessionsView)))]
pub(super) async fn list_sessions(
    State(edge): State<Edge>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    let page = query.parse()?;
    let view = SessionsView::from(edge.services.list_sessions(&page).await?);
    let next = view.next_cursor.clone();
    Ok(with_next_link(Json(view), "/recordings", &[], &query.limit, next.as_deref()))
}

/// Newest recording of a session
#[utoipa::path(get, path = "/recordings/{session_id}", tag = "recordings",
    params(("session_id" = String, Path)),
    responses((status = 200, description = "The newest recording", body = RecordingView),
              (status = 404, description = "The session has none", content_type = "application/problem+json", body = inline(super::middleware::ProblemView))))]
pub(super) async fn get_newest_recording(
    State(edge): State<Edge>,
    Path(session): Path<String>,
) -> Result<Json<RecordingView>, Problem> {
    let found = edge.services.find_newest(&SessionId::parse(&session)?).await?;
    Ok(Json(RecordingView::of(&edge, found)))
}

/// Recordings of a session
///
/// Local and cloud copies as one list. When the cloud cannot be asked, what is known, with `degraded: true`.
#[utoipa::path(get, path = "/recordings/{session_id}/list", tag = "recordings",
    params(("session_id" = String, Path), PageQuery),
    responses((status = 200, description = "Newest first", body = RecordingsView)))]
pub(super) async fn list_recordings(
    State(edge): State<Edge>,
    Path(session): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    let session = SessionId::parse(&session)?;
    let page = query.parse()?;
    let page = edge.services.list_recordings(&session, &page).await?;
    let view = RecordingsView::of(&edge, session.to_string(), page);
    let next = view.next_cursor.clone();
    Ok(with_next_link(Json(view), &format!("/recordings/{session}/list"), &[], &query.limit, next.as_deref()))
}

/// One recording
#[utoipa::path(get, path = "/recordings/{session_id}/{filename}", tag = "recordings",
    params(("session_id" = String, Path), ("filename" = String, Path)),
    responses((status = 200, description = "The recording", body = RecordingView),
              (status = 404, description = "There is none", content_type = "application/problem+json", body = inline(super::middleware::ProblemView))))]
pub(super) async fn get_recording(
    State(edge): State<Edge>,
    Path((session, filename)): Path<(String, String)>,
) -> Result<Json<RecordingView>, Problem> {
    let found = edge.services.find(&object_key(&session, &filename)?).await?;
    Ok(Json(RecordingView::of(&edge, found)))
}

/// Download the newest recording
///
/// JSON with its address when it is in Supabase, the bytes when it is local.
#[utoipa::path(get, path = "/recordings/{session_id}/download", tag = "recordings",
    params(("session_id" = String, Path)),
    responses((status = 200, description = "In the cloud: its address. Local: the bytes", content((DownloadView = "application/json"), (String = "application/octet-stream")))))]
pub(super) async fn download_newest_recording(
    State(edge): State<Edge>,
    Path(session): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let found = edge.services.find_newest(&SessionId::parse(&session)?).await?;
    download(&edge, found, &headers).await
}

/// Download a recording
///
/// JSON with its address when it is in Supabase, the bytes when it is local.
#[utoipa::path(get, path = "/recordings/{session_id}/{filename}/download", tag = "recordings",
    params(("session_id" = String, Path), ("filename" = String, Path)),
    responses((status = 200, description = "In the cloud: its address. Local: the bytes", content((DownloadView = "application/json"), (String = "application/octet-stream")))))]
pub(super) async fn download_recording(
    State(edge): State<Edge>,
    Path((session, filename)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let found = edge.services.find(&object_key(&session, &filename)?).await?;
    download(&edge, found, &headers).await
}

async fn download(edge: &Edge, found: Listed, headers: &HeaderMap) -> Result<Response, Problem> {
    if found.missing {
        return Err(crate::service::ServiceError::NotFound.into());
    }
    if !found.recording.stores.supabase {
        return serve_content(edge, found, StoreKind::Local, headers, Purpose::Save).await;
    }
    let url = match edge.services.cloud_url(&found.recording.key).await {
        Ok(url) => url,
        // A cloud that cannot sign now does not keep what is here from anybody.
        Err(_) if found.recording.stores.local => {
            return serve_content(edge, found, StoreKind::Local, headers, Purpose::Save).await;
        }
        Err(error) => return Err(error.into()),
    };
    let signed = url.expires_at.is_some();
    let view = DownloadView {
        storage_type: StoreKind::Supabase.as_str(),
        public_url: (!signed).then(|| url.url.clone()),
        file_path: found.recording.key.to_string(),
        file_size: found.recording.size_bytes,
        signed_url: signed.then_some(url.url),
        expires_at: url.expires_at.map(time_text),
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(view)).into_response())
}

/// Delete a recording
///
/// From both stores. 202 when the cloud cannot be reached: the recording is gone from every answer at once, and from
/// the cloud as soon as it can be.
#[utoipa::path(delete, path = "/recordings/{session_id}/{filename}", tag = "recordings",
    params(("session_id" = String, Path), ("filename" = String, Path)),
    responses((status = 200, description = "Gone", body = DeletionView),
              (status = 202, description = "Gone from every answer, a store is still to confirm", body = DeletionView),
              (status = 404, description = "There is none", content_type = "application/problem+json", body = inline(super::middleware::ProblemView))))]
pub(super) async fn delete_recording(
    Acting(services): Acting,
    Path((session, filename)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let key = object_key(&session, &filename)?;
    let deletion = services.delete_recording(&key).await?;
    let status = if deletion.pending.is_empty() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let view = DeletionView {
        success: true,
        message: deletion_message(&deletion, &filename),
        filename,
        pending: pending(deletion.pending),
    };
    Ok((status, Json(view)).into_response())
}

/// Deletes a file that was dropped in under a name that is a question here. It can be seen in the list alone, so it is not
/// in the description.
pub(super) fn delete_named(name: &'static str) -> MethodRouter<Edge> {
    delete(move |acting: Acting, Path(session): Path<String>| {
        delete_recording(acting, Path((session, name.to_owned())))
    })
}

fn place(store: StoreKind) -> &'static str {
    match store {
        StoreKind::Supabase => "Supabase",
        StoreKind::Local => "local storage",
    }
}

fn deletion_message(deletion: &Deletion, name: &str) -> String {
    let done = deletion.deleted_from.iter().map(|s| format!("Recording deleted from {}: {name}", place(s)));
    let pending = deletion.pending.iter().map(|s| format!("Deletion from {} is pending: {name}", place(s)));
    // Supabase's pending sentence comes last: clients read the end of the message.
    let mut sentences: Vec<String> = done.collect();
    sentences.extend(pending.collect::<Vec<_>>().into_iter().rev());
    if sentences.is_empty() {
        return format!("Recording deleted: {name}");
    }
    sentences.join(" ")
}

/// Another gateway on the same catalogue deleted recordings of which this one has the files. Only for gateways, so
/// it is not in the description; whoever calls it changes nothing that would not happen anyway.
pub(super) async fn finish_deletions(
    State(edge): State<Edge>,
    Path(session): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    is_for_this_gateway(&edge, &headers)?;
    edge.services.finish_deletions_here(&SessionId::parse(&session)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Delete a session
///
/// All its recordings, from both stores.
#[utoipa::path(delete, path = "/recordings/{session_id}", tag = "recordings",
    params(("session_id" = String, Path)),
    responses((status = 200, description = "Gone", body = SessionDeletionView),
              (status = 202, description = "Gone from every answer, a store is still to confirm", body = SessionDeletionView),
              (status = 404, description = "There is nothing to delete", content_type = "application/problem+json", body = inline(super::middleware::ProblemView))))]
pub(super) async fn delete_session(
    Acting(services): Acting,
    Path(session): Path<String>,
) -> Result<Response, Problem> {
    let session = SessionId::parse(&session)?;
    let deletion = services.delete_session(&session).await?;
    let done = deletion.pending.is_empty();
    let count = deletion.count;
    let what = if count == 1 { "1 recording".to_owned() } else { format!("{count} recordings") };
    let mut message = format!("Session deleted, {what}: {session}");
    for store in deletion.pending.iter() {
        message.push_str(&format!(" Deletion from {} is pending: {session}", place(store)));
    }
    let view = SessionDeletionView {
        success: true,
        message,
        session_id: session.to_string(),
        deleted_count: count,
        pending: pending(deletion.pending),
    };
    Ok((if done { StatusCode::OK } else { StatusCode::ACCEPTED }, Json(view)).into_response())
}
