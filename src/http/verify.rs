//! `POST /verify`: a verification, told line by line while it works. Apart from `operations`, whose answers are small
//! and at once.

use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::middleware::Acting;
use super::problem::Problem;
use crate::domain::SessionId;
use crate::service::verify::{Event, Finding, Progress, Summary, Treated, VerifyOptions, Word};

/// A body that says what to verify is shorter.
const MAX_BODY_BYTES: usize = 64 << 10;

/// What to verify; in the query or as JSON, which wins.
#[derive(Deserialize, Default, utoipa::IntoParams, ToSchema)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyQuery {
    /// Only this session
    session_id: Option<String>,
    /// `known` (default): sizes, upload ids, digests that travel with objects; `read`: every copy is read
    digests: Option<String>,
    /// Do what can be done without losing anything
    repair: Option<bool>,
    /// Forget recordings whose bytes no store has
    forget_lost: Option<bool>,
}

impl VerifyQuery {
    fn over(self, other: Self) -> Self {
        Self {
            session_id: self.session_id.or(other.session_id),
            digests: self.digests.or(other.digests),
            repair: self.repair.or(other.repair),
            forget_lost: self.forget_lost.or(other.forget_lost),
        }
    }

    fn options(self) -> Result<VerifyOptions, Problem> {
        let read = match self.digests.as_deref() {
            None | Some("known") => false,
            Some("read") => true,
            Some(_) => return Err(invalid("Say digests=known or digests=read.")),
        };
        Ok(VerifyOptions {
            session: self.session_id.as_deref().map(SessionId::parse).transpose()?,
            read,
            repair: self.repair.unwrap_or_default(),
            forget_lost: self.forget_lost.unwrap_or_default(),
            ..VerifyOptions::default()
        })
    }
}

fn invalid(detail: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "verify_invalid", detail)
}

/// One line of the answer.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum VerifyLine {
    /// How far it is
    Progress(ProgressView),
    /// A difference
    Finding(FindingView),
    /// The last line
    Summary(SummaryView),
    /// The last line if it could not go on
    Failed { detail: String },
}

#[derive(Serialize, ToSchema)]
pub(super) struct ProgressView {
    sessions: u64,
    sessions_total: u64,
    /// Looked at so far
    recordings: u64,
    /// Read for digests
    bytes_read: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct FindingView {
    /// `missing`, `different`, `unknown`, `orphaned`
    word: &'static str,
    /// `recording`, `object`, `file`, `job`, `directory`, `spool`
    what: &'static str,
    session_id: Option<String>,
    filename: Option<String>,
    /// `supabase` or `local`; null for both or none
    store: Option<&'static str>,
    detail: String,
    /// No store has its bytes
    lost: bool,
    /// The catalogue's digest, hex
    expected_sha256: Option<String>,
    /// The digest that was read, hex
    found_sha256: Option<String>,
    /// `found`: a repair would put it right; `repaired`; `left`
    treated: &'static str,
    /// What was done, or why it stays
    because: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct FoundView {
    missing: u64,
    different: u64,
    unknown: u64,
    orphaned: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct SummaryView {
    #[serde(flatten)]
    progress: ProgressView,
    found: FoundView,
    repaired: u64,
    /// Differences that are still there
    remaining: u64,
    /// Recordings that no store has
    lost: u64,
    /// Copies on other gateways' disks, or in a cloud that did not answer
    not_checkable: u64,
    /// Recordings that changed whenever they were looked at
    in_motion: u64,
    /// The cloud did not answer every question
    degraded: bool,
    /// Why
    unavailable: Option<String>,
}

impl From<Progress> for ProgressView {
    fn from(progress: Progress) -> Self {
        let Progress { sessions, sessions_total, recordings, bytes_read } = progress;
        Self { sessions, sessions_total, recordings, bytes_read }
    }
}

impl From<Finding> for FindingView {
    fn from(finding: Finding) -> Self {
        let (treated, because) = match finding.treated {
            Treated::Found => ("found", None),
            Treated::Repaired(how) => ("repaired", Some(how)),
            Treated::Left(why) => ("left", Some(why)),
        };
        Self {
            word: finding.word.as_str(),
            what: finding.what,
            session_id: finding.session.map(|session| session.to_string()),
            filename: finding.name,
            store: finding.store.map(|store| store.as_str()),
            detail: finding.detail,
            lost: finding.lost,
            expected_sha256: finding.expected.map(|digest| digest.to_string()),
            found_sha256: finding.found.map(|digest| digest.to_string()),
            treated,
            because,
        }
    }
}

impl From<Summary> for SummaryView {
    fn from(summary: Summary) -> Self {
        let of = |word| {
            Word::ALL.iter().zip(summary.found).find(|(w, _)| **w == word).map_or(0, |(_, count)| count)
        };
        Self {
            progress: summary.progress.into(),
            found: FoundView {
                missing: of(Word::Missing),
                different: of(Word::Different),
                unknown: of(Word::Unknown),
                orphaned: of(Word::Orphaned),
            },
            repaired: summary.repaired,
            remaining: summary.remaining(),
            lost: summary.lost,
            not_checkable: summary.not_checkable,
            in_motion: summary.in_motion,
            degraded: summary.cloud_unavailable.is_some(),
            unavailable: summary.cloud_unavailable,
        }
    }
}

fn line(event: Event) -> Bytes {
    let line = match event {
        Event::Progress(progress) => VerifyLine::Progress(progress.into()),
        Event::Finding(finding) => VerifyLine::Finding((*finding).into()),
        Event::Summary(summary) => VerifyLine::Summary((*summary).into()),
        Event::Failed(detail) => VerifyLine::Failed { detail },
    };
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// Verify
///
/// Compares catalogue, bucket and local disk and tells each difference, one JSON object a line, while it works; the
/// last line sums up. Nothing is changed unless `repair` or `forget_lost` says so. One at a time; it stops when the
/// client goes away or reads nothing for a minute.
#[utoipa::path(post, path = "/verify", tag = "operations", params(VerifyQuery),
    request_body(content = inline(Option<VerifyQuery>), content_type = "application/json"),
    responses((status = 200, description = "Lines of JSON", content_type = "application/x-ndjson", body = inline(VerifyLine)),
              (status = 409, description = "Another one is running", content_type = "application/problem+json", body = inline(super::middleware::ProblemView)),
              (status = 422, description = "It is not clear what to verify", content_type = "application/problem+json", body = inline(super::middleware::ProblemView))))]
pub(super) async fn verify(
    Acting(services): Acting,
    Query(query): Query<VerifyQuery>,
    body: Body,
) -> Result<Response, Problem> {
    let body = axum::body::to_bytes(body, MAX_BODY_BYTES)
        .await
        .map_err(|_| Problem::of_status(StatusCode::PAYLOAD_TOO_LARGE))?;
    let said: VerifyQuery = match body.is_empty() {
        true => VerifyQuery::default(),
        false => serde_json::from_slice(&body).map_err(|_| {
            invalid(
                "Send a JSON object with session_id, digests, repair and forget_lost, each of them optional.",
            )
        })?,
    };
    let events = services.verify(said.over(query).options()?)?;
    let lines = unfold(events, |mut events| async move {
        let event = events.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line(event)), events))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(lines)).into_response())
}
