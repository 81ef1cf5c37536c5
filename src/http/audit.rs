//! The audit: who changed what, read-only.

use axum::Json;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use super::Edge;
use super::paging::{PageQuery, filter_invalid, one_of, plain, with_next_link};
use super::problem::Problem;
use super::views::time_text;
use crate::domain::SessionId;
use crate::domain::recording::micros;
use crate::service::audit::{Action, AuditEntry, AuditQuery};

/// A change.
#[derive(Serialize, ToSchema)]
pub(super) struct ChangeView {
    /// Sorted by time
    id: String,
    /// RFC 3339 UTC
    time: String,
    /// `uploaded`, `adopted`, `synced`, `parked`, `deleted`, `repaired`, `denied`
    action: &'static str,
    /// `anonymous` for a client, `gateway` for what it does by itself
    actor: String,
    /// The request's id, or what else made it happen
    request_id: String,
    session_id: String,
    /// Null for a whole session, and for an upload that was refused before it had a name
    filename: Option<String>,
    /// Hex
    sha256_before: Option<String>,
    /// Hex
    sha256_after: Option<String>,
    detail: Option<String>,
}

impl From<AuditEntry> for ChangeView {
    fn from(entry: AuditEntry) -> Self {
        Self {
            id: entry.id,
            time: time_text(entry.at),
            action: entry.action.as_str(),
            actor: entry.origin.actor,
            request_id: entry.origin.request_id,
            session_id: entry.session_id,
            filename: entry.filename,
            sha256_before: entry.before.map(|digest| digest.to_string()),
            sha256_after: entry.after.map(|digest| digest.to_string()),
            detail: entry.detail,
        }
    }
}

/// Changes.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditView {
    /// Newest first
    changes: Vec<ChangeView>,
    /// Null on the last page
    next_cursor: Option<String>,
}

/// Which changes.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ChangesQuery {
    /// `uploaded`, `adopted`, `synced`, `parked`, `deleted`, `repaired` or `denied`
    action: Option<String>,
    /// `anonymous` or `gateway`
    actor: Option<String>,
    session_id: Option<String>,
    filename: Option<String>,
    /// Not before this time (RFC 3339)
    since: Option<String>,
    /// Before this time (RFC 3339)
    until: Option<String>,
}

/// List the changes
///
/// Every change of a recording with who asked for it. Rows are only ever added; refused uploads are among them as far as
/// they do not come in floods.
#[utoipa::path(get, path = "/audit", tag = "operations", params(ChangesQuery, PageQuery),
    responses((status = 200, description = "Newest first", body = AuditView)))]
pub(super) async fn list_changes(
    State(edge): State<Edge>,
    Query(filters): Query<ChangesQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let actions = Action::ALL.map(Action::as_str).join(", ");
    let query = AuditQuery {
        action: one_of("action", &filters.action, Action::parse, &actions)?,
        actor: plain("actor", &filters.actor)?,
        session: filters.session_id.as_deref().map(SessionId::parse).transpose()?,
        filename: plain("filename", &filters.filename)?,
        since_us: moment("since", &filters.since)?,
        until_us: moment("until", &filters.until)?,
        ..AuditQuery::default()
    };
    let found = edge.services.list_audit(query, &page.parse()?).await?;
    let next = found.next_cursor.clone();
    let view = AuditView {
        changes: found.rows.into_iter().map(ChangeView::from).collect(),
        next_cursor: found.next_cursor,
    };
    let filters = [
        ("action", &filters.action),
        ("actor", &filters.actor),
        ("session_id", &filters.session_id),
        ("filename", &filters.filename),
        ("since", &filters.since),
        ("until", &filters.until),
    ];
    Ok(with_next_link(Json(view), "/audit", &filters, &page.limit, next.as_deref()))
}

fn moment(name: &str, text: &Option<String>) -> Result<Option<i64>, Problem> {
    let Some(text) = text else { return Ok(None) };
    match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(at) => Ok(Some(micros(at))),
        Err(_) => Err(filter_invalid(format!(
            "{name} is a time like 2024-12-01T14:30:22Z; a + in it is sent as %2B."
        ))),
    }
}
