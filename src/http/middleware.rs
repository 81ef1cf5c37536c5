//! What happens to every request: an id, a span, a log line, metrics, problem bodies, safe headers, and the rest of a
//! refused body drained so that its sender can read the answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use serde::Serialize;
use tracing::Instrument;

use super::problem::Problem;
use super::{Edge, OwnBody};
use crate::runtime::metrics;
use crate::runtime::tasks::Tasks;
use crate::service::Services;

/// Who asks, as long as there are no keys.
const ANONYMOUS: &str = "anonymous";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes the headers of a request may have together. Checked here for HTTP/1, whose reader knows no limit but its
/// buffer, which uploads want large.
pub(super) const MAX_HEADER_BYTES: usize = 64 << 10;
/// How much of a refused body is read on, and for how long: a browser reads the answer only when it has sent
/// everything, and loses it when the connection breaks before.
const DRAIN_BYTES: u64 = 256 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// RFC 9457 with our two extensions.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct ProblemView<'a> {
    /// A URI that names the kind of problem.
    r#type: String,
    /// The status in words.
    title: &'a str,
    /// The status again.
    status: u16,
    /// One sentence: what to do.
    detail: &'a str,
    /// Stable name of the problem.
    code: &'a str,
    /// Also in the x-request-id header and in the log.
    request_id: &'a str,
}

/// The request's id, for the audit.
#[derive(Clone)]
struct RequestId(String);

/// The use cases on behalf of this request: what they change carries its id.
pub(super) struct Acting(pub(super) Services);

impl FromRequestParts<Edge> for Acting {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, edge: &Edge) -> Result<Self, Infallible> {
        let id = parts.extensions.get::<RequestId>().map(|id| id.0.as_str());
        Ok(Self(edge.services.for_client(ANONYMOUS, id.unwrap_or_default())))
    }
}

/// The outermost layer.
pub(super) async fn observe(State(edge): State<Edge>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", request.id = %id);
    let started = Instant::now();

    let mut request = drained(request, &edge.services.tasks);
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = if header_bytes(request.headers()) > MAX_HEADER_BYTES {
        Problem::of_status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE).into_response()
    } else {
        next.run(request).instrument(span.clone()).await
    };

    let _entered = span.enter();
    let took = started.elapsed();
    let status = response.status();
    let own_body = response.extensions_mut().remove::<OwnBody>().is_some();
    if (status.is_client_error() || status.is_server_error()) && !own_body {
        let problem =
            response.extensions_mut().remove::<Problem>().unwrap_or_else(|| Problem::of_status(status));
        log_problem(&problem);
        response = write_problem(&problem, response, &id);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let headers = response.headers_mut();
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    headers.entry(header::REFERRER_POLICY).or_insert(HeaderValue::from_static("no-referrer"));
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox"));
    let elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(http.method = %method, http.path = path, http.status = status.as_u16(), elapsed_ms, "answered");
    metrics::request_answered(method.to_string(), route, status.as_u16(), took);
    response
}

/// A caller's id is kept if it is harmless, so that its logs and ours can be joined.
fn request_id(headers: &HeaderMap) -> String {
    let harmless = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok()).filter(harmless);
    given.map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

fn log_problem(problem: &Problem) {
    let (code, detail) = (problem.code, problem.detail.as_str());
    match &problem.cause {
        Some(cause) if problem.status.is_server_error() => tracing::error!(code, cause, "{detail}"),
        Some(cause) => tracing::info!(code, cause, "{detail}"),
        None => tracing::info!(code, "{detail}"),
    }
}

fn write_problem(problem: &Problem, from: Response, request_id: &str) -> Response {
    let view = ProblemView {
        r#type: format!("urn:recording-gateway:problem:{}", problem.code),
        title: problem.status.canonical_reason().unwrap_or("Error"),
        status: problem.status.as_u16(),
        detail: &problem.detail,
        code: problem.code,
        request_id,
    };
    let body = serde_json::to_vec(&view).unwrap_or_default();
    let (mut parts, _) = from.into_parts();
    // A HEAD answer keeps its length and has no body: the server sees to that.
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    parts.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Response::from_parts(parts, Body::from(body))
}

/// A panic somewhere below became this answer.
pub(super) fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> Response {
    Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR).into_response()
}

fn drained(request: Request, tasks: &Tasks) -> Request {
    let awaits_permission = request.headers().contains_key(header::EXPECT);
    let tasks = tasks.clone();
    request.map(|body| {
        if body.is_end_stream() {
            return body;
        }
        Body::new(DrainedBody { body: Some(body), tasks, untouched: awaits_permission })
    })
}

/// A request body whose rest is read in the background when the handler lets go of it.
struct DrainedBody {
    body: Option<Body>,
    tasks: Tasks,
    /// Nothing was read and the client waits for the permission to send: reading would give it.
    untouched: bool,
}

impl http_body::Body for DrainedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.untouched = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for DrainedBody {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        if self.untouched || body.is_end_stream() {
            return;
        }
        self.tasks.spawn(async move {
            let drain = async {
                let mut left = DRAIN_BYTES;
                while let Some(Ok(frame)) = body.frame().await {
                    let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64))
                    else {
                        break;
                    };
                    left = rest;
                }
            };
            let _ = tokio::time::timeout(DRAIN_TIME, drain).await;
        });
    }
}
