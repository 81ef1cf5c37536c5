//! Where a transfer that was broken off is taken up again: the place that remembers it belongs to the caller, because
//! it has to outlive the process; what is remembered belongs to the store.

use std::sync::Mutex;

use async_trait::async_trait;

use super::pace::Pacer;

/// A place for one line of text about one transfer. The text is the store's own; it names the recording it is for, so
/// that a stale one is never continued for other bytes. It holds no credentials.
#[async_trait]
pub trait ResumePoint: Send + Sync {
    /// What was saved last; `None` if nothing was, or if it cannot be read: the transfer then begins anew.
    async fn load(&self) -> Option<String>;

    /// Remembers `at` in place of what was there, or forgets it. A failure to save costs no more than beginning anew.
    async fn save(&self, at: Option<&str>);
}

/// A point that lives as long as the call: tries within it continue, a later one begins anew.
#[derive(Default)]
pub struct ForThisCall(Mutex<Option<String>>);

#[async_trait]
impl ResumePoint for ForThisCall {
    async fn load(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    async fn save(&self, at: Option<&str>) {
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = at.map(str::to_owned);
    }
}

/// How a transfer that nobody waits for is made.
#[derive(Clone, Copy)]
pub struct Background<'a> {
    /// Where it was broken off.
    pub resume: &'a dyn ResumePoint,
    /// How fast it may go.
    pub pacer: &'a Pacer,
    /// Told whenever the store has taken a part for good, long before the end: it is there, whatever becomes of the rest.
    pub accepted: &'a (dyn Fn() + Send + Sync),
}
