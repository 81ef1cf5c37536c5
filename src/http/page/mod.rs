//! The page at `/` and its scripts, from inside the binary. No build tool, nothing from elsewhere; the content policy
//! holds it to that.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::Edge;
use super::problem::Problem;

const INDEX: &str = include_str!("index.html");

macro_rules! assets {
    ($($name:literal: $content_type:literal),* $(,)?) => {
        [$(($name, $content_type, include_bytes!($name) as &[u8])),*]
    };
}

static ASSETS: [(&str, &str, &[u8]); 16] = assets![
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "icons.svg": "image/svg+xml",
    "api.js": "text/javascript; charset=utf-8",
    "cloudward.js": "text/javascript; charset=utf-8",
    "dialogs.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "health.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "pagedlist.js": "text/javascript; charset=utf-8",
    "rows.js": "text/javascript; charset=utf-8",
    "shelf.js": "text/javascript; charset=utf-8",
    "transfer.js": "text/javascript; charset=utf-8",
    "uploads.js": "text/javascript; charset=utf-8",
    "words.js": "text/javascript; charset=utf-8",
];

/// The page.
pub(super) async fn get_page(State(edge): State<Edge>) -> Response {
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         media-src 'self' blob: {}; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        edge.settings.media_origin
    );
    let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'self'"));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, INDEX).into_response()
}

/// A script, a style sheet or a picture of the page.
pub(super) async fn get_asset(
    Path(name): Path<String>,
    headers: header::HeaderMap,
) -> Result<Response, Problem> {
    let found = ASSETS.iter().find(|(known, ..)| *known == name);
    let (_, content_type, bytes) = found.ok_or_else(|| Problem::of_status(StatusCode::NOT_FOUND))?;
    let etag = format!("\"{}\"", hex::encode(&Sha256::digest(bytes)[..12]));
    let fresh = headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == etag.as_bytes());
    let etag =
        HeaderValue::from_str(&etag).map_err(|_| Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ETAG, etag),
    ];
    Ok(if fresh {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else {
        (headers, *bytes).into_response()
    })
}
