//! Small regular duties: asking the cloud how it is and what it takes, taking in files that operators drop, folding
//! metrics.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::runtime::metrics;
use crate::service::Services;
use crate::storage::breaker::State;
use crate::storage::chain;

/// How often the cloud is asked while all is well.
const PROBE_EVERY: Duration = Duration::from_secs(300);

/// Runs until the process stops, a turn every few seconds.
pub async fn run_upkeep(services: Services, interval: Duration) {
    let stopping = services.tasks.stopping().clone();
    let mut last_probe: Option<Instant> = None;
    let (mut answered, mut was_closed) = (false, false);
    loop {
        metrics::upkeep();
        let status = services.stores.primary_status();
        let troubled = status.as_ref().is_some_and(|s| s.probed.is_none() || s.state != State::Closed);
        if status.is_some() && (troubled || last_probe.is_none_or(|at| at.elapsed() >= PROBE_EVERY)) {
            last_probe = Some(Instant::now());
            let probed = services.stores.probe_primary().await;
            if let Err(error) = &probed {
                tracing::debug!(error = %chain(error), "the cloud was asked how it is");
            }
            let is_back = probed.is_ok() && !answered;
            answered = probed.is_ok();
            if is_back {
                hurry(&services).await;
            }
        }
        let closed = status.is_some_and(|status| status.state == State::Closed);
        if closed && !was_closed {
            hurry(&services).await;
        }
        was_closed = closed;
        tokio::select! {
            () = tokio::time::sleep(interval.min(Duration::from_secs(5))) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// The cloud is back: what was put off for minutes while it was away need not wait longer.
async fn hurry(services: &Services) {
    let now = i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
    match services.catalog.hurry_jobs(now).await {
        Ok(()) => services.bell.notify_one(),
        Err(error) => tracing::warn!(error = %chain(&error), "what waits for the cloud waits its time"),
    }
}

/// Looks for recordings that the catalogue does not know, at start and every `interval` after.
pub async fn take_in_unknown(services: Services, interval: Duration) {
    let stopping = services.tasks.stopping().clone();
    loop {
        let looked = tokio::select! {
            looked = services.adopt_unknown() => looked,
            () = stopping.cancelled() => return,
        };
        if let Err(error) = looked {
            tracing::warn!(error = %chain(&error), "looking for unknown recordings failed");
        }
        tokio::select! {
            () = tokio::time::sleep(interval.max(Duration::from_secs(60))) => {}
            () = stopping.cancelled() => return,
        }
    }
}
