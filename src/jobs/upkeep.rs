//! Small regular duties: asking the cloud how it is and what it takes, taking in files that operators drop, folding
//! metrics.

use std::time::{Duration, Instant};

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
    loop {
        metrics::upkeep();
        let status = services.stores.primary_status();
        let troubled = status.as_ref().is_some_and(|s| s.probed.is_none() || s.state != State::Closed);
        if status.is_some() && (troubled || last_probe.is_none_or(|at| at.elapsed() >= PROBE_EVERY)) {
            last_probe = Some(Instant::now());
            match services.stores.probe_primary().await {
                // What waits for the cloud need not wait longer.
                Ok(_) if troubled => services.bell.notify_one(),
                Ok(_) => {}
                Err(error) => tracing::debug!(error = %chain(&error), "the cloud was asked how it is"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(interval.min(Duration::from_secs(5))) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Takes in what the catalogue does not know: once what the bucket holds if the catalogue is new, then every
/// `interval` what operators dropped on the local disk.
pub async fn take_in_unknown(services: Services, interval: Duration, new_catalogue: bool) {
    let stopping = services.tasks.stopping().clone();
    let mut cloud_to_do = new_catalogue && services.stores.has_primary();
    if services.stores.has_primary()
        && let Err(error) = services.catalog.queue_unsynced().await
    {
        tracing::warn!(error = %chain(&error), "what waits for the cloud could not be queued");
    }
    loop {
        let look = async {
            if cloud_to_do && services.adopt_cloud().await?.is_some() {
                cloud_to_do = false;
            }
            services.adopt_local().await
        };
        let looked = tokio::select! {
            looked = look => looked,
            () = stopping.cancelled() => return,
        };
        if let Err(error) = looked {
            tracing::warn!(error = %chain(&error), "looking for unknown recordings failed");
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = stopping.cancelled() => return,
        }
    }
}
