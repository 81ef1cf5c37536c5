//! The audit as it is read, and the one kind of row that stands beside no change: a refused upload.
//!
//! Apart because refusals are noted as well as can be, never in the way of the answer and never faster than
//! [`Denials`] lets them: everybody can be refused as often as they like, and the rows stay for ever.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::{ServiceError, Services};
use crate::catalog::Change;
pub use crate::catalog::{Action, AuditEntry, AuditQuery};
use crate::domain::SessionId;
use crate::domain::page::{PageRequest, Position};
use crate::domain::recording::micros;
use crate::storage::chain;

/// Refusals that are noted at once after a quiet time.
const BURST: f64 = 10.0;
/// Refusals a second that are noted in the long run.
const A_SECOND: f64 = 1.0;
/// Characters of a refusal's sentence that are kept.
const DETAIL_CHARS: usize = 300;

/// One page of the audit.
#[derive(Debug)]
pub struct AuditPage {
    /// Newest first.
    pub rows: Vec<AuditEntry>,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
}

/// How many refusals may be noted now. Clones share it.
#[derive(Clone)]
pub struct Denials(Arc<Mutex<(f64, Instant)>>);

impl Default for Denials {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((BURST, Instant::now()))))
    }
}

impl Denials {
    fn admit(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, at) = &mut *state;
        *left = (*left + now.saturating_duration_since(*at).as_secs_f64() * A_SECOND).min(BURST);
        *at = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

impl Services {
    /// A page of the audit; `before` and `limit` of the query are the page's. Safe to drop.
    pub async fn list_audit(&self, query: AuditQuery, page: &PageRequest) -> Result<AuditPage, ServiceError> {
        let before = page.after.as_ref().map(|after| after.name.clone());
        let mut rows = self.catalog.audit(&AuditQuery { before, limit: page.limit + 1, ..query }).await?;
        let more = rows.len() > page.limit;
        rows.truncate(page.limit);
        let place = |row: &AuditEntry| Position { time_us: micros(row.at), name: row.id.clone() };
        let next_cursor = rows.last().filter(|_| more).map(|row| place(row).to_cursor());
        Ok(AuditPage { rows, next_cursor })
    }

    /// Notes beside the answer that an upload into this session was refused: `code` and `detail` as the client gets
    /// them. More than a few a second are only in the log.
    pub fn note_denied(&self, session: &SessionId, code: &str, detail: &str) {
        if !self.denials.admit(Instant::now()) {
            return;
        }
        let (services, session) = (self.clone(), session.clone());
        let detail: String = format!("{code}: {detail}").chars().take(DETAIL_CHARS).collect();
        self.tasks.spawn(async move {
            let change = Change {
                action: Action::Denied,
                session: &session,
                filename: None,
                before: None,
                after: None,
                detail: Some(&detail),
            };
            if let Err(error) = services.catalog.note(change, &services.origin).await {
                tracing::warn!(error = %chain(&error), "a refusal is not in the audit");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn refusals_cannot_flood_the_audit() {
        let denials = Denials::default();
        let start = Instant::now();
        let noted = |at: Duration| (0..1000).filter(|_| denials.admit(start + at)).count();
        assert_eq!(noted(Duration::ZERO), 10);
        assert_eq!(noted(Duration::from_millis(500)), 0);
        assert_eq!(noted(Duration::from_secs(3)), 3);
        assert_eq!(noted(Duration::from_secs(3600)), 10);
    }
}
