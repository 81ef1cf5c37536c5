//! What operators and machines ask: alive, ready, figures, build.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use crate::runtime::metrics;
use crate::service::health::{Health, JobTally, oldest_unsynced_seconds};
use crate::storage::breaker::State as Breaker;

/// Whether the gateway lives.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthView {
    status: &'static str,
}

/// Alive
#[utoipa::path(get, path = "/healthz", tag = "operations",
    responses((status = 200, description = "The process answers", body = HealthView)))]
pub(super) async fn get_health() -> Json<HealthView> {
    Json(HealthView { status: "ok" })
}

/// One part of the gateway.
#[derive(Serialize, ToSchema)]
pub(super) struct CheckView {
    /// `disk`, `spool`, `catalogue`, `cloud`
    name: &'static str,
    /// `ok`, `off`, `degraded`, `unavailable`
    status: &'static str,
    detail: String,
}

/// Whether recordings can be taken.
#[derive(Serialize, ToSchema)]
pub(super) struct ReadinessView {
    /// `ready`; `degraded`: recordings are safe, something is missing; `unavailable`
    status: &'static str,
    checks: Vec<CheckView>,
}

/// Ready to take recordings
#[utoipa::path(get, path = "/readyz", tag = "operations",
    responses((status = 200, description = "Recordings can be taken", body = ReadinessView),
              (status = 503, description = "They cannot", body = ReadinessView)))]
pub(super) async fn get_readiness(State(edge): State<Edge>) -> Response {
    let mut checks: Vec<CheckView> = Vec::new();
    let mut worst = Health::Ok;
    for check in edge.services.health().await {
        worst = worst.max(check.health);
        let status = match check.health {
            Health::Ok => "ok",
            Health::Off => "off",
            Health::Degraded => "degraded",
            Health::Unavailable => "unavailable",
        };
        checks.push(CheckView { name: check.name, status, detail: check.detail });
    }
    if edge.services.tasks.stopping().is_cancelled() {
        worst = Health::Unavailable;
        checks.push(CheckView { name: "process", status: "unavailable", detail: "it is stopping".into() });
    }
    let (code, status) = match worst {
        Health::Ok | Health::Off => (StatusCode::OK, "ready"),
        Health::Degraded => (StatusCode::OK, "degraded"),
        Health::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    // Written as it is, also with 503: a probe reads it, and so does the page.
    let mut response = (StatusCode::OK, Json(ReadinessView { status, checks })).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    *response.status_mut() = code;
    response.extensions_mut().insert(super::OwnBody);
    response
}

/// Figures for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "Text format of Prometheus", body = String, content_type = "text/plain")))]
pub(super) async fn get_metrics(State(edge): State<Edge>) -> Response {
    if let Ok(counts) = edge.services.catalog.counts().await {
        metrics::set_gauge("gateway_recordings", counts.recordings as f64);
        metrics::set_gauge("gateway_unsynced_recordings", counts.unsynced as f64);
        metrics::set_gauge("gateway_unsynced_bytes", counts.unsynced_bytes as f64);
        metrics::set_gauge("gateway_unsynced_oldest_seconds", oldest_unsynced_seconds(&counts));
        metrics::set_gauge("gateway_parked_recordings", counts.parked as f64);
        metrics::set_gauge("gateway_jobs_waiting", counts.jobs as f64);
        metrics::set_gauge("gateway_stuck_deletions", counts.stuck_deletions as f64);
        for (kind, jobs) in JobTally::KINDS.into_iter().zip(counts.by_kind) {
            metrics::set_unfinished(kind, jobs.open, jobs.parked);
        }
    }
    if let Ok(figures) = edge.services.room.figures() {
        metrics::set_gauge("gateway_disk_free_bytes", figures.free as f64);
        metrics::set_gauge("gateway_disk_reserved_bytes", figures.promised as f64);
    }
    metrics::set_gauge("gateway_cache_bytes", edge.services.cache.bytes() as f64);
    if let Some(status) = edge.services.stores.primary_status() {
        let state = match status.state {
            Breaker::Closed => 0.0,
            Breaker::HalfOpen => 1.0,
            Breaker::Open => 2.0,
        };
        metrics::set_gauge("gateway_cloud_breaker_state", state);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render()).into_response()
}

/// The build.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionView {
    name: &'static str,
    version: &'static str,
}

/// Build
#[utoipa::path(get, path = "/version", tag = "operations",
    responses((status = 200, description = "Name and version", body = VersionView)))]
pub(super) async fn get_version() -> Json<VersionView> {
    Json(VersionView { name: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION") })
}

/// What a client should know before it sends.
#[derive(Serialize, ToSchema)]
pub(super) struct LimitsView {
    /// Largest recording, in bytes
    max_bytes: u64,
    /// Media types that are taken
    allowed_types: Vec<String>,
    /// Null without a cloud
    bucket: Option<String>,
    cloud_configured: bool,
    version: &'static str,
}

/// What is taken
///
/// Limits that a page or script can check before it sends a file.
#[utoipa::path(get, path = "/config.json", tag = "operations",
    responses((status = 200, description = "Limits", body = LimitsView)))]
pub(super) async fn get_limits(State(edge): State<Edge>) -> Json<LimitsView> {
    let cloud_configured = edge.services.stores.has_primary();
    Json(LimitsView {
        max_bytes: edge.services.rules.max_bytes,
        allowed_types: edge.settings.allowed_types.clone(),
        bucket: cloud_configured.then(|| edge.services.rules.bucket.clone()),
        cloud_configured,
        version: env!("CARGO_PKG_VERSION"),
    })
}
