//! Scripted faults: what can go wrong, on which requests, how often.
//!
//! Apart from the server loop, which carries them out. Nothing here touches a connection.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::refusal::{self, Refusal};
use super::wire::{After, Answer};

/// An answer written by the test instead of the server.
#[derive(Clone, Debug)]
pub struct Canned {
    pub status: u16,
    pub content_type: String,
    pub body: String,
    /// Seconds, for a Retry-After header.
    pub retry_after: Option<u64>,
    /// How long the answer waits.
    pub delay: Duration,
}

impl Canned {
    pub fn raw(status: u16, content_type: &str, body: impl Into<String>) -> Self {
        let (content_type, body) = (content_type.to_owned(), body.into());
        Canned { status, content_type, body, retry_after: None, delay: Duration::ZERO }
    }

    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Canned::raw(status, "application/json; charset=utf-8", body.to_string())
    }

    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub fn answer(&self) -> Answer {
        let mut answer = Answer::text(self.status, &self.content_type, &self.body);
        if self.content_type == "text/plain;charset=UTF-8" {
            answer = answer.with("access-control-allow-origin", "*").with("tus-resumable", "1.0.0");
        }
        match self.retry_after {
            Some(seconds) => answer.with("retry-after", seconds.to_string()),
            None => answer,
        }
    }
}

impl From<Refusal> for Canned {
    fn from(refusal: Refusal) -> Self {
        let body = serde_json::json!({"statusCode": refusal.status.to_string(), "error": refusal.error,
            "message": refusal.message, "code": refusal.code});
        Canned::json(refusal.answer().status, &body)
    }
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Reads the whole request, stores nothing, answers this.
    Status(Canned),
    /// Answers this at once, without the body, and closes: a proxy in front that gave up.
    EarlyStatus(Canned),
    /// Does its work, then waits before answering.
    Delay(Duration),
    /// Accepts the request and reads nothing of its body, ever.
    BlackHole,
    /// Reads everything, stores nothing, never answers.
    ReadThenHang,
    /// Resets the connection once so many bytes of the body have come (or the body has ended).
    ResetAfterRequestBytes(u64),
    /// Sends half of the answer's content, then closes.
    HalfBody,
    /// Does its work, answers 500.
    StoredButError,
    /// Does its work, resets the connection instead of answering.
    StoredThenReset,
    /// Answers success but keeps only so many bytes.
    SaidStoredButShort(u64),
    /// Answers success but keeps nothing.
    SaidStoredButNothing,
    /// Reads the request's body at this many bytes per second (what the kernel's buffers take comes on top).
    SlowRead(u64),
    /// Does its work, answers 200 with JSON that ends in the middle.
    GarbageJson,
    /// Answers success to a delete and deletes nothing.
    DeleteSaysOkButKeeps,
    /// Lists only the first half and says there is no more.
    TruncatedList,
}

impl Fault {
    /// The plain 500 of a broken disk or database.
    pub fn internal_error() -> Self {
        Fault::Status(refusal::internal().into())
    }

    /// A proxy's page.
    pub fn bad_gateway() -> Self {
        let page =
            "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>";
        Fault::Status(Canned::raw(502, "text/html", page))
    }

    /// 429 with or without Retry-After.
    pub fn slow_down(retry_after: Option<u64>) -> Self {
        let mut canned = Canned::from(refusal::slow_down());
        canned.retry_after = retry_after;
        Fault::Status(canned)
    }

    /// HTTP 400 that says "503" inside and is worth a retry.
    pub fn database_read_only() -> Self {
        Fault::Status(refusal::database_read_only().into())
    }

    /// HTTP 544.
    pub fn database_timeout() -> Self {
        Fault::Status(refusal::database_timeout().into())
    }

    /// Plain text with a real status, as the resumable routes answer.
    pub fn resumable_refusal(status: u16, message: &str) -> Self {
        Fault::Status(Canned::raw(status, "text/plain;charset=UTF-8", message))
    }

    /// HTTP 400 that says "403" inside: refused by policy.
    pub fn policy_refusal() -> Self {
        Fault::Status(refusal::policy().into())
    }

    /// HTTP 400 that says "403" inside: the key has expired.
    pub fn expired_key() -> Self {
        Fault::Status(refusal::access_denied("\"exp\" claim timestamp check failed").into())
    }
}

/// Which requests a fault hits; the first armed fault that matches is the one carried out.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    pub method: Option<String>,
    pub path_contains: Option<String>,
    /// How many requests it hits; `None` is all.
    pub times: Option<u32>,
    /// How many matching requests pass unharmed first.
    pub skip: u32,
}

impl Matcher {
    pub fn any() -> Self {
        Matcher::default()
    }

    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// A part of the path and query as sent.
    pub fn path(mut self, part: &str) -> Self {
        self.path_contains = Some(part.to_owned());
        self
    }

    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    fn matches(&self, method: &str, target: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
            && self.path_contains.as_deref().is_none_or(|part| target.contains(part))
    }
}

struct Armed {
    id: u64,
    fault: Fault,
    matcher: Matcher,
    hits: Arc<AtomicU32>,
}

/// The armed faults in the order of their arming.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<(u64, Vec<Armed>)>>);

impl Faults {
    pub fn arm(&self, fault: Fault, matcher: Matcher) -> FaultHandle {
        let hits = Arc::new(AtomicU32::new(0));
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        armed.0 += 1;
        let id = armed.0;
        armed.1.push(Armed { id, fault, matcher, hits: hits.clone() });
        FaultHandle { id, hits, faults: self.clone() }
    }

    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clear();
    }

    /// The fault for this request, counted as a hit.
    pub fn pick(&self, method: &str, target: &str) -> Option<Fault> {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in &mut armed.1 {
            let spent = entry.matcher.times == Some(entry.hits.load(Ordering::SeqCst));
            if spent || !entry.matcher.matches(method, target) {
                continue;
            }
            if entry.matcher.skip > 0 {
                entry.matcher.skip -= 1;
                continue;
            }
            entry.hits.fetch_add(1, Ordering::SeqCst);
            return Some(entry.fault.clone());
        }
        None
    }
}

/// An armed fault. Dropping this leaves it armed.
pub struct FaultHandle {
    id: u64,
    hits: Arc<AtomicU32>,
    faults: Faults,
}

impl FaultHandle {
    /// How many requests it has hit.
    pub fn hits(&self) -> u32 {
        self.hits.load(Ordering::SeqCst)
    }

    pub fn remove(self) {
        self.faults.0.lock().unwrap_or_else(PoisonError::into_inner).1.retain(|armed| armed.id != self.id);
    }
}

/// What a fault changes inside a handler.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effects {
    /// Only so many bytes of an upload are kept.
    pub keep_bytes: Option<u64>,
    pub store_nothing: bool,
    pub delete_keeps: bool,
    pub truncate_list: bool,
}

impl Effects {
    pub fn of(fault: Option<&Fault>) -> Self {
        let mut effects = Effects::default();
        match fault {
            Some(Fault::SaidStoredButShort(bytes)) => effects.keep_bytes = Some(*bytes),
            Some(Fault::SaidStoredButNothing) => effects.store_nothing = true,
            Some(Fault::DeleteSaysOkButKeeps) => effects.delete_keeps = true,
            Some(Fault::TruncatedList) => effects.truncate_list = true,
            _ => {}
        }
        effects
    }
}

/// The answer after a fault had its way with it.
pub fn spoiled(answer: Answer, fault: Option<&Fault>) -> Answer {
    match fault {
        Some(Fault::StoredButError) if answer.status < 300 => refusal::internal().answer(),
        Some(Fault::GarbageJson) if answer.status < 300 => {
            Answer::json(200, &serde_json::Value::Null).body("{\"Key\": \"interview-reco")
        }
        Some(Fault::HalfBody) => answer.after(After::Close),
        _ => answer,
    }
}
