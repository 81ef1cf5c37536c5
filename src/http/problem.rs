//! The one place where failures become HTTP: status, stable code, and a sentence that tells the person what to do
//! (RFC 9457, `application/problem+json`). Each status is used for one kind of reader's action:
//!
//! | status | who acts | meaning |
//! | --- | --- | --- |
//! | 400, 415, 422 | the sender changes the request | it is malformed, of the wrong type, or breaks a rule |
//! | 404, 405 | the sender looks for another address | there is nothing, or not this verb |
//! | 409 | the sender waits, or asks for something else | the same request is still running; things are not so that it can be done |
//! | 421 | another gateway | it asked the wrong one |
//! | 412, 416 | the sender asks again | a precondition or range does not hold |
//! | 413, 431 | the sender sends less | over a limit that the sentence names |
//! | 408, 429, 503 | the sender tries again later | `Retry-After` says when, where it is known |
//! | 502, 504 | the operator looks at the cloud | the cloud failed and no copy is here |
//! | 507 | the operator makes room | the disk is full |
//! | 500 | we mend it | a defect, or a disk that fails |
//!
//! The problem travels in the response's extensions; a middleware writes the body, with the request id, and logs it
//! once.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytesize::ByteSize;

use super::digest::DigestFieldError;
use super::multipart::FormError;
use crate::domain::NameError;
use crate::domain::page::PageError;
use crate::service::ServiceError;
use crate::storage::chain;

/// A failed request.
#[derive(Clone, Debug)]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable, snake_case.
    pub code: &'static str,
    /// One sentence: what to do.
    pub detail: String,
    /// Further headers, like `Retry-After`.
    pub headers: Vec<(header::HeaderName, HeaderValue)>,
    /// The whole chain of causes, for the log only.
    pub cause: Option<String>,
}

impl Problem {
    /// A problem without further headers.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), headers: Vec::new(), cause: None }
    }

    /// Adds a header.
    pub fn with_header(mut self, name: header::HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    fn retry_after(self, seconds: u32) -> Self {
        self.with_header(header::RETRY_AFTER, &seconds.to_string())
    }

    fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        self.cause = Some(chain(error));
        self
    }

    /// What a status says that some layer below gave without a word.
    pub fn of_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => {
                ("route_not_found", "There is nothing at this address; /docs shows what there is.")
            }
            StatusCode::METHOD_NOT_ALLOWED => (
                "method_not_allowed",
                "This address does not take that method; the Allow header names those it takes.",
            ),
            StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "Send a smaller body."),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                ("unsupported_media_type", "Send the body in the type that /docs shows.")
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                ("headers_too_large", "Send fewer or shorter headers; together they may have 64 KiB.")
            }
            StatusCode::INTERNAL_SERVER_ERROR => {
                ("internal_error", "The gateway failed; tell its operator the request id.")
            }
            _ => ("bad_request", "The request could not be read; compare it with what /docs shows."),
        };
        Self::new(status, code, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.headers_mut().extend(self.headers.clone());
        response.extensions_mut().insert(self);
        response
    }
}

impl From<NameError> for Problem {
    fn from(error: NameError) -> Self {
        let code = match error {
            NameError::Session => "session_id_invalid",
            NameError::ReservedSession => "session_id_reserved",
            NameError::RecordingType => "recording_type_invalid",
            NameError::Filename => "filename_invalid",
        };
        let sentence = error.to_string();
        let mut chars = sentence.chars();
        let first = chars.next().map(|c| c.to_ascii_uppercase()).unwrap_or_default();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, format!("{first}{}.", chars.as_str()))
    }
}

impl From<PageError> for Problem {
    fn from(error: PageError) -> Self {
        let code = match error {
            PageError::Limit => "limit_invalid",
            PageError::Cursor => "cursor_invalid",
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, format!("The {error}.").replace("The this", "This"))
    }
}

impl From<FormError> for Problem {
    fn from(error: FormError) -> Self {
        let (status, code) = match error {
            FormError::NotAForm => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "form_required"),
            _ => (StatusCode::BAD_REQUEST, "form_invalid"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<DigestFieldError> for Problem {
    fn from(error: DigestFieldError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "digest_field_invalid", error.to_string())
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        use StatusCode as S;
        let problem = |status, code, detail: &str| Self::new(status, code, detail);
        let made = match &error {
            ServiceError::Name(name) => return name.clone().into(),
            ServiceError::NotFound => problem(
                S::NOT_FOUND,
                "recording_not_found",
                "There is no such recording; GET /recordings/{session_id}/list shows those there are.",
            ),
            ServiceError::EmptySession => problem(
                S::NOT_FOUND,
                "session_not_found",
                "This session has no recordings; GET /recordings shows the sessions there are.",
            ),
            ServiceError::TooLarge { limit_bytes } => Self::new(
                S::PAYLOAD_TOO_LARGE,
                "recording_too_large",
                format!("Send at most {} ({limit_bytes} bytes) a recording.", ByteSize(*limit_bytes)),
            ),
            ServiceError::Empty => {
                problem(S::UNPROCESSABLE_ENTITY, "recording_empty", "Send a file that has at least one byte.")
            }
            ServiceError::TypeNotAllowed { content_type } => Self::new(
                S::UNSUPPORTED_MEDIA_TYPE,
                "recording_type_not_allowed",
                format!("Send a recording of a type that is taken here; this one is {content_type}."),
            ),
            ServiceError::DigestMismatch => problem(
                S::UNPROCESSABLE_ENTITY,
                "digest_mismatch",
                "Send the recording again: what arrived does not have the digest that was announced. Nothing was stored.",
            ),
            ServiceError::StorageFull => problem(
                S::INSUFFICIENT_STORAGE,
                "storage_full",
                "The gateway's disk is full and nothing was changed; try again when its operator made room, and keep the recording until then.",
            )
            .retry_after(60),
            ServiceError::SpoolUnusable(_) => problem(
                S::SERVICE_UNAVAILABLE,
                "spool_unavailable",
                "The gateway's disk takes no files now; keep the recording, try again later, and tell the gateway's operator.",
            )
            .retry_after(30),
            ServiceError::Busy => problem(
                S::SERVICE_UNAVAILABLE,
                "too_many_uploads",
                "Too many uploads are running; send this one again in a few seconds.",
            )
            .retry_after(5),
            ServiceError::RequestRunning => problem(
                S::CONFLICT,
                "idempotency_key_in_use",
                "A request with this Idempotency-Key is still running; wait for its answer or ask again in a few seconds.",
            )
            .retry_after(5),
            ServiceError::RequestDiffers => problem(
                S::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "This Idempotency-Key was used for another recording; send this one under a key of its own.",
            ),
            ServiceError::JobNotFound => problem(
                S::NOT_FOUND,
                "job_not_found",
                "There is no such job; GET /jobs shows those there are. Jobs that ended long ago are forgotten.",
            ),
            ServiceError::JobFixed(why) => problem(S::CONFLICT, "job_not_changeable", why),
            ServiceError::NoSuchLoad => problem(
                S::UNPROCESSABLE_ENTITY,
                "load_unknown",
                "Send the id of a migration job in Gateway-Job, as POST /jobs answers it, or leave the header out.",
            ),
            ServiceError::NoCloud => problem(
                S::CONFLICT,
                "cloud_not_configured",
                "No cloud is configured, so there is nothing to sync with; its operator has to set SUPABASE_URL and a key.",
            ),
            ServiceError::TooManyListeners => problem(
                S::SERVICE_UNAVAILABLE,
                "too_many_listeners",
                "Too many are following events; ask again later, or ask the lists instead.",
            )
            .retry_after(15),
            ServiceError::VerifyRunning => problem(
                S::CONFLICT,
                "verify_running",
                "Another verification is running; start this one when it is done.",
            )
            .retry_after(60),
            ServiceError::Cloud(_) => problem(
                S::BAD_GATEWAY,
                "cloud_unavailable",
                "The cloud cannot be asked now and no copy is here; try again later.",
            )
            .retry_after(10),
            ServiceError::Peer { node, url, .. } => {
                let name = if node.is_empty() { url.clone() } else { format!("{node} ({url})") };
                let detail = format!(
                    "Only the gateway {name} has this recording, and it does not give it now; try again when that gateway is back."
                );
                Self::new(S::SERVICE_UNAVAILABLE, "peer_unavailable", detail).retry_after(10)
            }
            ServiceError::Disk(_) => problem(
                S::INTERNAL_SERVER_ERROR,
                "disk_failed",
                "The gateway's disk failed; keep the recording and tell the gateway's operator the request id.",
            ),
            ServiceError::Catalog(_) => problem(
                S::SERVICE_UNAVAILABLE,
                "catalogue_unavailable",
                "The gateway's catalogue cannot be used; keep the recording and try again later.",
            )
            .retry_after(10),
            ServiceError::Unexpected => Self::of_status(S::INTERNAL_SERVER_ERROR),
        };
        made.caused_by(&error)
    }
}
