//! Whether the gateway can take recordings, part by part, with what to do where it cannot.

use std::time::Duration;

use bytesize::ByteSize;

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
            Ok(Ok(counts)) => check("catalogue", Health::Ok, format!("{} recordings", counts.recordings)),
            Ok(Err(error)) => check("catalogue", Health::Unavailable, chain(&error)),
            Err(_) => check("catalogue", Health::Unavailable, "it does not answer".into()),
        };
        vec![self.disk_check(), spool, catalogue, self.cloud_check()]
    }

    fn disk_check(&self) -> Check {
        match self.free_bytes() {
            Ok(free) => {
                let short = free < self.rules.min_free_bytes;
                Check {
                    name: "disk",
                    health: if short { Health::Unavailable } else { Health::Ok },
                    detail: format!("{} free", ByteSize(free)),
                }
            }
            Err(error) => Check { name: "disk", health: Health::Unavailable, detail: chain(&error) },
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
