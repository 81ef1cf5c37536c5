//! Whether the gateway can take recordings, part by part, with what to do where it cannot.

use std::time::Duration;

use bytesize::ByteSize;
use time::OffsetDateTime;

use crate::catalog::Counts;
pub use crate::catalog::JobTally;
use crate::domain::recording::micros;
use crate::service::Services;
use crate::storage::breaker::State;
use crate::storage::chain;

/// How one part is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Health {
    /// As it should be.
    Ok,
    /// Not there on purpose.
    Off,
    /// Recordings are safe, something is missing.
    Degraded,
    /// Recordings cannot be taken.
    Unavailable,
}

/// One part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// `spool`, `disk`, `catalogue`, `cloud`.
    pub name: &'static str,
    /// How it is.
    pub health: Health,
    /// One short sentence.
    pub detail: String,
}

impl Services {
    /// Looks at every part. Takes at most a few seconds. Safe to drop.
    pub async fn health(&self) -> Vec<Check> {
        let limit = Duration::from_secs(5);
        let spool = tokio::time::timeout(limit, self.stores.fallback().probe());
        let catalogue = tokio::time::timeout(limit, self.catalog.counts());
        let (spool, catalogue) = tokio::join!(spool, catalogue);
        let check = |name, health, detail: String| Check { name, health, detail };
        let spool = match spool {
            Ok(Ok(_)) => check("spool", Health::Ok, "takes files".into()),
            Ok(Err(error)) => check("spool", Health::Unavailable, chain(&error)),
            Err(_) => check("spool", Health::Unavailable, "the disk does not answer".into()),
        };
        let catalogue = match catalogue {
            Ok(Ok(counts)) => check("catalogue", Health::Ok, told(&counts)),
            Ok(Err(error)) => check("catalogue", Health::Unavailable, chain(&error)),
            Err(_) => check("catalogue", Health::Unavailable, "it does not answer".into()),
        };
        vec![self.disk_check(), spool, catalogue, self.cloud_check()]
    }

    fn disk_check(&self) -> Check {
        let check = |health, detail| Check { name: "disk", health, detail };
        let figures = match self.room.figures() {
            Ok(figures) => figures,
            Err(error) => return check(Health::Unavailable, chain(&error)),
        };
        let (free, mark) = (figures.free, ByteSize(figures.mark));
        let has = format!("{} free ({free} bytes)", ByteSize(free));
        if free < figures.mark {
            let detail =
                format!("{has}, {mark} have to stay free: new uploads are refused until there is room");
            check(Health::Unavailable, detail)
        } else if figures.lacking() > 0 {
            let promised = ByteSize(figures.promised);
            let detail = format!("{has}, {promised} of it promised to running uploads: new ones are refused");
            check(Health::Degraded, detail)
        } else {
            check(Health::Ok, has)
        }
    }

    fn cloud_check(&self) -> Check {
        let check = |health, detail: String| Check { name: "cloud", health, detail };
        match self.stores.primary_status() {
            None => check(Health::Off, "not configured; recordings stay on the local disk".into()),
            Some(status) => match (status.state, status.cause) {
                (State::Closed, cause) if status.probed.is_none() || cause.is_some() => {
                    check(Health::Degraded, cause.unwrap_or_else(|| "not reached yet".into()))
                }
                (State::Closed, _) => check(Health::Ok, format!("bucket {} answers", self.rules.bucket)),
                (_, cause) => check(Health::Degraded, cause.unwrap_or_else(|| "it failed".into())),
            },
        }
    }
}

/// What the catalogue knows, in half a sentence.
fn told(counts: &Counts) -> String {
    let mut text = format!("{} recordings", counts.recordings);
    if counts.unsynced > 0 {
        let age = Duration::from_secs(oldest_unsynced_seconds(counts) as u64);
        let bytes = ByteSize(counts.unsynced_bytes);
        text.push_str(&format!(
            ", {} ({bytes}) only on this disk, the oldest for {}",
            counts.unsynced,
            humantime::format_duration(age)
        ));
    }
    if counts.parked > 0 {
        text.push_str(&format!(", {} parked", counts.parked));
    }
    match counts.stuck_deletions {
        0 => {}
        1 => text.push_str(", 1 deletion does not succeed"),
        many => text.push_str(&format!(", {many} deletions do not succeed")),
    }
    text
}

/// Age of the oldest recording that only this disk has and that may go to the cloud; 0 without one.
pub fn oldest_unsynced_seconds(counts: &Counts) -> f64 {
    let now = micros(OffsetDateTime::now_utc());
    counts.oldest_unsynced_us.map_or(0.0, |at| now.saturating_sub(at).max(0) as f64 / 1e6)
}
