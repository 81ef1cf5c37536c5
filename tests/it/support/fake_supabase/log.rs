//! What the server was asked, for tests to look at.
//!
//! Apart because it is the one part that only tests read. It changes no answer.

use std::sync::{Mutex, PoisonError};

use super::wire::Head;

/// One request as it came.
#[derive(Clone, Debug)]
pub struct SeenRequest {
    pub method: String,
    /// Path and query as sent.
    pub path: String,
    pub headers: Vec<(String, String)>,
    /// Bytes of the body the server has read.
    pub body_len: u64,
    /// The status it answered; `None` while it has not.
    pub status: Option<u16>,
}

impl SeenRequest {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The requests in order of arrival. `first` is the number of the oldest one kept.
#[derive(Default)]
pub struct Log(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    first: usize,
    requests: Vec<SeenRequest>,
}

impl Log {
    /// Notes a request and gives it a number.
    pub fn begin(&self, head: &Head) -> usize {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.requests.push(SeenRequest {
            method: head.method.clone(),
            path: head.target.clone(),
            headers: head.headers.clone(),
            body_len: 0,
            status: None,
        });
        kept.first + kept.requests.len() - 1
    }

    pub fn body(&self, number: usize, body_len: u64) {
        self.change(number, |request| request.body_len = body_len);
    }

    pub fn end(&self, number: usize, status: u16, body_len: u64) {
        self.change(number, |request| (request.status, request.body_len) = (Some(status), body_len));
    }

    pub fn all(&self) -> Vec<SeenRequest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).requests.clone()
    }

    pub fn clear(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.first += kept.requests.len();
        kept.requests.clear();
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut SeenRequest)) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = number.checked_sub(kept.first);
        if let Some(request) = place.and_then(|place| kept.requests.get_mut(place)) {
            change(request);
        }
    }
}
