//! The HTTP edge: requests in, use cases called, answers out. Nothing below knows HTTP.

mod audit;
mod content;
pub mod digest;
pub mod disposition;
mod events;
mod jobs;
mod middleware;
pub mod multipart;
pub mod openapi;
mod operations;
mod page;
mod paging;
pub mod problem;
pub mod range;
mod recordings;
pub mod server;
mod uploads;
mod verify;
mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, header};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

pub use self::content::Via;
use self::problem::Problem;
use crate::service::Services;
pub use crate::service::audit::Action;
pub use crate::service::jobs::{JOB_KINDS, JobState};

/// What every handler works with.
#[derive(Clone)]
pub struct Edge {
    /// The use cases.
    pub services: Services,
    /// What the configuration lays down for the edge.
    pub settings: Arc<Settings>,
}

/// What the configuration lays down for the edge.
#[derive(Clone, Debug)]
pub struct Settings {
    /// An upload whose client sends nothing for this long is given up.
    pub upload_idle_timeout: Duration,
    /// How cloud copies are given out.
    pub via: Via,
    /// Media types that are taken, as clients are told.
    pub allowed_types: Vec<String>,
    /// Where cloud copies are played from; goes into the page's content policy.
    pub media_origin: String,
    /// Origins whose pages may call the gateway; `*` for all.
    pub allowed_origins: Vec<String>,
}

/// Marks an error answer that brings its own body.
#[derive(Clone)]
struct OwnBody;

/// All routes with their layers.
pub fn router(edge: Edge) -> Router {
    let cors = cors(&edge.settings.allowed_origins);
    let (described, document) = openapi::routes().split_for_parts();
    let document: Arc<str> = document.to_pretty_json().expect("a document made of literals is JSON").into();
    let openapi_json = get(move || {
        let document = document.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], document.to_string()) }
    });
    described
        .route("/openapi.json", openapi_json)
        .route("/gateway/deletions/{session_id}", post(recordings::finish_deletions))
        .route("/recordings/{session_id}/list", recordings::delete_named("list"))
        .route("/recordings/{session_id}/download", recordings::delete_named("download"))
        .route("/", get(page::get_page))
        .route("/assets/{name}", get(page::get_asset))
        .merge(docs())
        .fallback(|| async { Problem::of_status(StatusCode::NOT_FOUND) })
        .method_not_allowed_fallback(|| async { Problem::of_status(StatusCode::METHOD_NOT_ALLOWED) })
        .layer(DefaultBodyLimit::disable())
        .layer(tower::util::option_layer(cors))
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(axum::middleware::from_fn_with_state(edge.clone(), middleware::observe))
        .with_state(edge)
}

/// What pages on other origins may do; `None`: nothing, and no answers to their browsers' questions.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let expose = ["content-range", "etag", "link", "location", "repr-digest", "retry-after", "x-request-id"];
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(expose.map(header::HeaderName::from_static))
        .max_age(Duration::from_secs(600));
    match origins {
        [] => None,
        _ if origins.iter().any(|origin| origin == "*") => Some(layer.allow_origin(AllowOrigin::any())),
        _ => {
            let origins = origins.iter().filter_map(|origin| origin.parse().ok());
            Some(layer.allow_origin(AllowOrigin::list(origins)))
        }
    }
}

/// Swagger UI out of the binary; it styles itself inline, so it has a policy of its own.
fn docs() -> Router<Edge> {
    let swagger = utoipa_swagger_ui::SwaggerUi::new("/docs")
        .config(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none"));
    Router::new().merge(swagger).layer(axum::middleware::map_response(async |mut response: axum::response::Response| {
        let policy = "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; \
                      img-src 'self' data:; connect-src 'self'; font-src 'self'; frame-ancestors 'none'";
        let value = header::HeaderValue::from_static(policy);
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, value);
        response
    }))
}
