//! Jobs: what waits, runs, is parked or done; trying again and stopping; a sync of what is only here, and the parent of
//! a bulk load.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Edge;
use super::middleware::{Acting, ProblemView};
use super::paging::{PageQuery, one_of, plain, with_next_link};
use super::problem::Problem;
use super::views::time_text;
use crate::domain::SessionId;
use crate::service::jobs::{Children, JOB_KINDS, JobQuery, JobRecord, JobState, SyncPlan};

/// Bytes a JSON body may have.
const BODY_BYTES: usize = 16 << 10;

/// How far the parts of a job are.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub(super) struct ChildrenView {
    /// All of them
    total: u64,
    done: u64,
    parked: u64,
    /// Also by the deletion of their recording
    cancelled: u64,
}

impl From<Children> for ChildrenView {
    fn from(children: Children) -> Self {
        let Children { total, done, parked, cancelled } = children;
        Self { total, done, parked, cancelled }
    }
}

/// A job.
#[derive(Serialize, ToSchema)]
pub(super) struct JobView {
    id: String,
    /// `sync`, `delete`, `delete_local`, `delete_session`; with parts: `sync_all`, `sync_session`, `migration`
    kind: &'static str,
    /// `waiting`, `running`, `done`, `parked`, `cancelled`
    state: &'static str,
    session_id: Option<String>,
    filename: Option<String>,
    /// Tries so far
    attempts: i64,
    /// Why the last try failed, or why it is parked
    last_error: Option<String>,
    /// When it is tried next, if it waits; RFC 3339 UTC
    next_time: Option<String>,
    /// RFC 3339 UTC
    created_at: String,
    /// RFC 3339 UTC
    finished_at: Option<String>,
    /// The job it is a part of
    parent_id: Option<String>,
    /// The gateway that alone can do it
    gateway: Option<String>,
    /// Of a job that is done by its parts
    children: Option<ChildrenView>,
}

impl From<JobRecord> for JobView {
    fn from(job: JobRecord) -> Self {
        Self {
            kind: job.kind.name(),
            state: job.state.as_str(),
            session_id: job.kind.session().map(ToString::to_string),
            filename: job.kind.key().map(|key| key.filename.to_string()),
            id: job.id,
            attempts: job.attempts,
            last_error: job.last_error,
            next_time: job.run_at.map(time_text),
            created_at: time_text(job.created_at),
            finished_at: job.finished_at.map(time_text),
            parent_id: job.parent_id,
            gateway: job.gateway.map(|gateway| gateway.to_string()),
            children: job.children.map(ChildrenView::from),
        }
    }
}

/// Jobs.
#[derive(Serialize, ToSchema)]
pub(super) struct JobsView {
    /// Newest first
    jobs: Vec<JobView>,
    /// Null on the last page
    next_cursor: Option<String>,
}

/// Which jobs.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct JobsQuery {
    /// `waiting`, `running`, `done`, `parked` or `cancelled`
    state: Option<String>,
    /// `sync`, `delete`, `delete_local`, `delete_session`, `sync_all`, `sync_session` or `migration`
    kind: Option<String>,
    /// Only about this session
    session_id: Option<String>,
    /// Only the parts of this job
    parent: Option<String>,
}

/// List the jobs
#[utoipa::path(get, path = "/jobs", tag = "jobs", params(JobsQuery, PageQuery),
    responses((status = 200, description = "Newest first", body = JobsView)))]
pub(super) async fn list_jobs(
    State(edge): State<Edge>,
    Query(filters): Query<JobsQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let states = JobState::ALL.map(JobState::as_str).join(", ");
    let kind = |text: &str| JOB_KINDS.contains(&text).then(|| text.to_owned());
    let query = JobQuery {
        state: one_of("state", &filters.state, JobState::parse, &states)?,
        kind: one_of("kind", &filters.kind, kind, &JOB_KINDS.join(", "))?,
        session: filters.session_id.as_deref().map(SessionId::parse).transpose()?,
        parent: plain("parent", &filters.parent)?,
        ..JobQuery::default()
    };
    let found = edge.services.list_jobs(query, &page.parse()?).await?;
    let next = found.next_cursor.clone();
    let view = JobsView {
        jobs: found.rows.into_iter().map(JobView::from).collect(),
        next_cursor: found.next_cursor,
    };
    let filters = [
        ("state", &filters.state),
        ("kind", &filters.kind),
        ("session_id", &filters.session_id),
        ("parent", &filters.parent),
    ];
    Ok(with_next_link(Json(view), "/jobs", &filters, &page.limit, next.as_deref()))
}

/// One job
#[utoipa::path(get, path = "/jobs/{id}", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, description = "The job", body = JobView),
              (status = 404, description = "There is none", content_type = "application/problem+json", body = inline(ProblemView))))]
pub(super) async fn get_job(
    State(edge): State<Edge>,
    Path(id): Path<String>,
) -> Result<Json<JobView>, Problem> {
    Ok(Json(edge.services.get_job(&id).await?.into()))
}

/// Retry a job
///
/// Makes it due now, also a parked or cancelled one; of a job with parts, those that are not done.
#[utoipa::path(post, path = "/jobs/{id}/retry", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, description = "The job as it is now", body = JobView),
              (status = 404, description = "There is none", content_type = "application/problem+json", body = inline(ProblemView)),
              (status = 409, description = "It is done, or its recording is gone", content_type = "application/problem+json", body = inline(ProblemView))))]
pub(super) async fn retry_job(
    Acting(services): Acting,
    Path(id): Path<String>,
) -> Result<Json<JobView>, Problem> {
    Ok(Json(services.retry_job(&id).await?.into()))
}

/// Cancel a sync
///
/// Of a job with parts, those that are open. The recordings stay where they are and are shown as parked; a retry takes
/// them up again. A deletion cannot be cancelled.
#[utoipa::path(post, path = "/jobs/{id}/cancel", tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, description = "The job as it is now", body = JobView),
              (status = 404, description = "There is none", content_type = "application/problem+json", body = inline(ProblemView)),
              (status = 409, description = "It is not open, or it is a deletion", content_type = "application/problem+json", body = inline(ProblemView))))]
pub(super) async fn cancel_job(
    Acting(services): Acting,
    Path(id): Path<String>,
) -> Result<Json<JobView>, Problem> {
    Ok(Json(services.cancel_job(&id).await?.into()))
}

/// A job to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewJob {
    /// `migration`
    kind: String,
}

/// Begin a bulk load
///
/// Makes a job whose parts will be the syncs of uploads that carry its id in `Gateway-Job`. It is done whenever none of
/// them waits.
#[utoipa::path(post, path = "/jobs", tag = "jobs", request_body = NewJob,
    responses((status = 201, description = "The job", body = JobView),
              (status = 422, description = "Other jobs make themselves", content_type = "application/problem+json", body = inline(ProblemView))))]
pub(super) async fn create_job(Acting(services): Acting, body: Body) -> Result<Response, Problem> {
    let wanted: NewJob = parsed(&read(body).await?)?;
    if wanted.kind != "migration" {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "job_kind_invalid",
            "Only a job of the kind migration is made here; POST /sync makes a sync, and the others make themselves.",
        ));
    }
    let job = services.begin_migration().await?;
    let location = format!("/jobs/{}", job.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(JobView::from(job))).into_response())
}

/// What to sync; as the query or as the body.
#[derive(Default, Deserialize, ToSchema, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct SyncRequest {
    /// Only this session
    session_id: Option<String>,
    /// Say what would be sent and send nothing
    dry_run: Option<bool>,
    /// Also send what failed and waits for its next try; true unless said otherwise
    now: Option<bool>,
}

/// What a sync would send.
#[derive(Serialize, ToSchema)]
pub(super) struct SyncPlanView {
    dry_run: bool,
    session_id: Option<String>,
    /// Recordings that wait for the cloud
    count: u64,
    /// Their bytes
    bytes: u64,
    /// Recordings that are parked or whose sync was cancelled; they would be tried again
    parked: u64,
}

/// Sync now
///
/// Brings everything that only the disk has to the cloud, parked recordings too. Answers with a job whose parts are those
/// syncs; one that is open already is found again. It is done at once if nothing waits, or if what waits is part of
/// other jobs.
#[utoipa::path(post, path = "/sync", tag = "jobs", params(SyncRequest), request_body = Option<SyncRequest>,
    responses((status = 202, description = "The job", body = JobView),
              (status = 200, description = "Dry run: what would be sent", body = SyncPlanView),
              (status = 409, description = "No cloud is configured", content_type = "application/problem+json", body = inline(ProblemView))))]
pub(super) async fn start_sync(
    Acting(services): Acting,
    Query(query): Query<SyncRequest>,
    body: Body,
) -> Result<Response, Problem> {
    let body = read(body).await?;
    let wanted: SyncRequest =
        if body.trim_ascii().is_empty() { SyncRequest::default() } else { parsed(&body)? };
    let session = wanted.session_id.or(query.session_id);
    let session = session.as_deref().map(SessionId::parse).transpose()?;
    if wanted.dry_run.or(query.dry_run).unwrap_or(false) {
        let SyncPlan { count, bytes, parked } = services.plan_sync(session.as_ref()).await?;
        let session_id = session.map(|session| session.to_string());
        return Ok(Json(SyncPlanView { dry_run: true, session_id, count, bytes, parked }).into_response());
    }
    let now = wanted.now.or(query.now).unwrap_or(true);
    let job = services.sync_now(session.as_ref(), now).await?;
    let location = format!("/jobs/{}", job.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(JobView::from(job))).into_response())
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    axum::body::to_bytes(body, BODY_BYTES)
        .await
        .map_err(|_| Problem::of_status(StatusCode::PAYLOAD_TOO_LARGE))
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "json_invalid",
            format!("Send JSON as /docs shows it; this body is not: {error}."),
        )
    })
}
