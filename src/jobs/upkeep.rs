//! Small regular duties: asking the cloud how it is and what it takes, taking in files that operators drop, tending the
//! disk, folding metrics.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::domain::recording::micros;
use crate::runtime::metrics;
use crate::service::Services;
use crate::storage::breaker::State;
use crate::storage::chain;

/// How often the cloud is asked while all is well.
const PROBE_EVERY: Duration = Duration::from_secs(300);

/// How often the whole bucket is listed for objects of deleted recordings.
const PURGE_EVERY: Duration = Duration::from_secs(600);

/// Runs until the process stops, a turn every few seconds.
pub async fn run_upkeep(services: Services, interval: Duration) {
    let stopping = services.tasks.stopping().clone();
    let mut last_probe: Option<Instant> = None;
    let (mut answered, mut was_closed, mut short) = (false, false, false);
    loop {
        metrics::upkeep();
        short = services.tend_disk(short).await;
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
    match services.catalog.hurry_jobs(micros(OffsetDateTime::now_utc())).await {
        Ok(()) => services.bell.send_replace(()),
        Err(error) => tracing::warn!(error = %chain(&error), "what waits for the cloud waits its time"),
    }
}

/// Looks for what the catalogue does not know: once for what the bucket holds, every
/// `interval` for what operators dropped on the local disk, and now and then for objects that landed after their
/// recording was deleted.
pub async fn look_around(services: Services, interval: Duration) {
    let stopping = services.tasks.stopping().clone();
    let mut last_purge: Option<Instant> = None;
    if let Err(error) = services.queue_unsynced().await {
        tracing::warn!(error = %chain(&error), "what waits for the cloud could not be queued");
    }
    loop {
        let look = async {
            services.catalog.register(&services.rules.node, &services.rules.advertised_url).await?;
            services.settle_unsure().await?;
            services.settle_abandoned().await?;
            services.adopt_cloud_once().await?;
            if services.stores.has_primary() && last_purge.is_none_or(|at| at.elapsed() >= PURGE_EVERY) {
                services.delete_late_pushes().await?;
                last_purge = Some(Instant::now());
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
