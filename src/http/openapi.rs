//! The OpenAPI document, made from the handlers, and `/docs`, which shows it without the internet.

use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Edge, audit, content, events, jobs, operations, recordings, uploads, verify};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Recording Gateway",
        description = "Takes recordings from browsers and scripts into Supabase Storage, or onto the local disk when the cloud cannot be had, without losing one. Errors are `application/problem+json` (RFC 9457) with a stable `code`.",
        license(name = "MIT", identifier = "MIT")
    ),
    tags((name = "recordings", description = "Upload, list, play, delete"), (name = "jobs", description = "What waits for the cloud, and what was done"), (name = "operations", description = "Health, figures, changes, events"))
)]
struct Document;

/// Every described route.
pub(super) fn routes() -> OpenApiRouter<Edge> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(uploads::upload_recording))
        .routes(routes!(recordings::list_sessions))
        .routes(routes!(recordings::get_newest_recording, recordings::delete_session))
        .routes(routes!(recordings::list_recordings))
        .routes(routes!(recordings::download_newest_recording))
        .routes(routes!(recordings::get_recording, recordings::delete_recording))
        .routes(routes!(recordings::download_recording))
        .routes(routes!(content::get_recording_content))
        .routes(routes!(jobs::list_jobs, jobs::create_job))
        .routes(routes!(jobs::get_job))
        .routes(routes!(jobs::retry_job))
        .routes(routes!(jobs::cancel_job))
        .routes(routes!(jobs::start_sync))
        .routes(routes!(audit::list_changes))
        .routes(routes!(events::get_events))
        .routes(routes!(operations::get_health))
        .routes(routes!(operations::get_readiness))
        .routes(routes!(operations::get_metrics))
        .routes(routes!(operations::get_version))
        .routes(routes!(operations::get_limits))
        .routes(routes!(verify::verify))
}

/// The document as JSON text.
pub fn document() -> String {
    routes().into_openapi().to_pretty_json().expect("a document made of literals is JSON")
}
