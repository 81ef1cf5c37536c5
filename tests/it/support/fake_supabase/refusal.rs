//! The error answers of the storage server: one constructor per recorded refusal, and their shapes.
//!
//! Apart so that every message and code stands in one place. Nothing here decides when to refuse.

use serde_json::json;

use super::wire::{After, Answer};

/// Why a request got no answer of its own.
pub enum Stop {
    Refused(Refusal),
    /// An answer already in its final shape (resumable uploads, routes before the handlers).
    Answered(Box<Answer>),
    /// The client is gone: nobody to answer.
    Gone,
}

impl From<std::io::Error> for Stop {
    fn from(_: std::io::Error) -> Self {
        Stop::Gone
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

pub type Reply = Result<Answer, Stop>;

/// A handled error: what the body says, and what the connection does afterwards.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The status inside the body; the HTTP status follows from it.
    pub status: u16,
    pub error: String,
    pub message: String,
    pub code: String,
    pub after: After,
}

impl Refusal {
    fn new(status: u16, error: &str, message: impl Into<String>, code: &str) -> Self {
        let (error, message, code) = (error.to_owned(), message.into(), code.to_owned());
        Refusal { status, error, message, code, after: After::Drain }
    }

    /// The same refusal, after which the server never reads the rest of the body.
    pub fn late(mut self) -> Self {
        self.after = After::StopReading;
        self
    }

    pub fn closing(mut self) -> Self {
        self.after = After::Close;
        self
    }

    /// REST routes flatten handled errors to 400, except 416, 429, 500, 544 and an oversized JSON body.
    pub fn answer(&self) -> Answer {
        let status = match self.status {
            416 | 429 | 500 | 544 => self.status,
            413 if self.error == "FastifyError" => 413,
            _ => 400,
        };
        let body = json!({"statusCode": self.status.to_string(), "error": self.error, "message": self.message,
            "code": self.code});
        Answer::json(status, &body).after(self.after)
    }
}

/// A violated schema: `message` in the validator's words.
pub fn schema(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "Error", message, "InvalidRequest")
}

pub fn invalid_request(message: &str) -> Refusal {
    Refusal::new(400, "InvalidRequest", message, "InvalidRequest")
}

pub fn unreadable_json(status: u16, message: &str) -> Refusal {
    let code = if status == 413 { "EntityTooLarge" } else { "InvalidRequest" };
    Refusal::new(status, "FastifyError", message, code).closing()
}

pub fn no_bucket() -> Refusal {
    Refusal::new(404, "Bucket not found", "Bucket not found", "NoSuchBucket")
}

pub fn no_key() -> Refusal {
    Refusal::new(404, "not_found", "Object not found", "NoSuchKey")
}

pub fn no_related() -> Refusal {
    Refusal::new(404, "InvalidRequest", "The related resource does not exist", "InvalidRequest")
}

pub fn access_denied(message: &str) -> Refusal {
    Refusal::new(403, "Unauthorized", message, "AccessDenied")
}

pub fn policy() -> Refusal {
    access_denied("new row violates row-level security policy")
}

/// A duplicate; `code` is KeyAlreadyExists, ResourceAlreadyExists or BucketAlreadyExists.
pub fn duplicate(code: &str) -> Refusal {
    Refusal::new(409, "Duplicate", "The resource already exists", code)
}

pub fn bucket_not_empty() -> Refusal {
    Refusal::new(409, "ResourceNotEmpty", "The bucket you tried to delete is not empty", "ResourceNotEmpty")
}

pub fn bucket_name() -> Refusal {
    Refusal::new(400, "Invalid Input", "Bucket name invalid", "InvalidBucketName")
}

pub fn invalid_key(key: &str) -> Refusal {
    Refusal::new(400, "InvalidKey", format!("Invalid key: {key}"), "InvalidKey")
}

pub fn too_large() -> Refusal {
    Refusal::new(413, "Payload too large", "The object exceeded the maximum allowed size", "EntityTooLarge")
}

pub fn mime_type(mime: &str) -> Refusal {
    Refusal::new(415, "invalid_mime_type", format!("mime type {mime} is not supported"), "InvalidMimeType")
}

pub fn mime_header() -> Refusal {
    Refusal::new(415, "invalid_mime_type", "Invalid Content-Type header", "InvalidMimeType")
}

pub fn robots(value: &str) -> Refusal {
    let message = format!("Invalid X-Robots-Tag header: Invalid X-Robots-Tag rule: \"{value}\"");
    Refusal::new(400, "invalid_x_robots_tag", message, "InvalidRequest")
}

pub fn invalid_jwt(message: &str) -> Refusal {
    Refusal::new(400, "InvalidJWT", message, "InvalidJWT")
}

pub fn invalid_signature(message: &str) -> Refusal {
    Refusal::new(400, "InvalidSignature", message, "InvalidSignature")
}

pub fn invalid_parameter(what: &str) -> Refusal {
    Refusal::new(400, "InvalidParameter", format!("Invalid Parameter {what}"), "InvalidParameter")
}

pub fn invalid_range() -> Refusal {
    Refusal::new(416, "invalid_range", "invalid range provided", "InvalidRange")
}

pub fn internal() -> Refusal {
    Refusal::new(500, "Internal", "Internal Server Error", "InternalError")
}

pub fn database(sqlstate: &str) -> Refusal {
    Refusal::new(500, "DatabaseError", format!("database error, code: {sqlstate}"), "DatabaseError")
}

pub fn database_read_only() -> Refusal {
    let message = "The database is currently in read-only mode. Please try again later.";
    Refusal::new(503, "DatabaseReadOnly", message, "DatabaseReadOnly")
}

pub fn database_timeout() -> Refusal {
    Refusal::new(544, "DatabaseTimeout", "The connection to the database timed out", "DatabaseTimeout")
}

pub fn slow_down() -> Refusal {
    Refusal::new(429, "too_many_connections", "Too many connections issued to the database", "SlowDown")
}

/// The answer of the router itself: below `/object` in the handled shape, elsewhere with a number for a status.
pub fn no_route(method: &str, path: &str) -> Answer {
    let message = format!("Route {method}:{path} not found");
    if path == "/object" || path.starts_with("/object/") {
        let body =
            json!({"statusCode": "404", "error": "Not Found", "message": message, "code": "InvalidRequest"});
        return Answer::text(404, "application/json", &body.to_string());
    }
    Answer::json(404, &json!({"message": message, "error": "Not Found", "statusCode": 404}))
}

pub fn bad_url(path: &str) -> Answer {
    let message = format!("'{path}' is not a valid url component");
    let body =
        json!({"error": "Bad Request", "code": "FST_ERR_BAD_URL", "message": message, "statusCode": 400});
    Answer::text(400, "application/json", &body.to_string())
}

pub fn bad_request_line() -> Answer {
    let body = json!({"error": "Bad Request", "message": "Client Error", "statusCode": 400});
    Answer::text(400, "application/json", &body.to_string()).after(After::Close)
}

pub fn headers_too_large() -> Answer {
    let body = json!({"error": "Request Header Fields Too Large",
        "message": "Exceeded maximum allowed HTTP header size", "statusCode": 431});
    Answer::text(431, "application/json", &body.to_string()).after(After::Close)
}
