//! Small regular duties: asking the cloud how it is and what it takes, taking in files that operators drop, tending the
//! disk, forgetting old jobs, folding metrics.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::runner::LEASE;
use crate::domain::recording::micros;
use crate::runtime::metrics;
use crate::service::events::Health;
use crate::service::rebuild::Seen;
use crate::service::{ServiceError, Services};
use crate::storage::breaker::State;
use crate::storage::chain;

/// How often the cloud is asked while all is well.
const PROBE_EVERY: Duration = Duration::from_secs(300);

/// How often the whole bucket is listed for objects of deleted recordings.
const PURGE_EVERY: Duration = Duration::from_secs(600);

/// How often other gateways are told that this one still is there.
const SEEN_EVERY: Duration = Duration::from_secs(20);

/// How often recordings are looked for that wait for the cloud and have no job.
const QUEUE_EVERY: Duration = Duration::from_secs(600);

/// How often jobs are looked for that a clock which was ahead put off for long.
const CLOCK_EVERY: Duration = Duration::from_secs(60);

/// How often old jobs are forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(600);

/// Runs until the process stops, a turn every few seconds. Jobs that ended longer than `keep_jobs` ago are forgotten.
pub async fn run_upkeep(services: Services, interval: Duration, keep_jobs: Duration) {
    let stopping = services.tasks.stopping().clone();
    let (mut last_probe, mut last_expiry): (Option<Instant>, Option<Instant>) = (None, None);
    let (mut last_seen, mut last_clock): (Option<Instant>, Option<Instant>) = (None, None);
    let (mut answered, mut was_closed, mut took_writes, mut short) = (false, false, false, false);
    let is_due = |last: Option<Instant>, every: Duration| last.is_none_or(|at| at.elapsed() >= every);
    loop {
        metrics::upkeep();
        short = services.tend_disk(short).await;
        // Not in `look_around`, where one look may take long.
        if is_due(last_seen, SEEN_EVERY) {
            last_seen = Some(Instant::now());
            if let Err(error) = services.catalog.still_here().await {
                tracing::debug!(error = %chain(&error), "other gateways do not know that this one is there");
            }
        }
        if is_due(last_clock, CLOCK_EVERY.min(interval)) {
            last_clock = Some(Instant::now());
            if let Err(error) = services.heed_the_clock(interval, LEASE).await {
                tracing::warn!(error = %chain(&error), "what a wrong clock put off stays so");
            }
        }
        if is_due(last_expiry, EXPIRE_EVERY.min(keep_jobs)) {
            last_expiry = Some(Instant::now());
            let before = micros(OffsetDateTime::now_utc() - keep_jobs);
            if let Err(error) = services.catalog.expire_jobs(before).await {
                tracing::warn!(error = %chain(&error), "old jobs stay in the catalogue");
            }
        }
        let status = services.stores.primary_status();
        let troubled = status.as_ref().is_some_and(|s| s.probed.is_none() || s.state != State::Closed);
        if let Some(status) = &status
            && (troubled || is_due(last_probe, PROBE_EVERY))
            && !services.stores.primary_wants_rest()
        {
            last_probe = Some(Instant::now());
            let probed = services.stores.probe_primary().await;
            if let Err(error) = &probed {
                tracing::debug!(error = %chain(error), "the cloud was asked how it is");
            }
            let is_back = probed.is_ok() && !answered;
            answered = probed.is_ok();
            if let (Ok(now), Some(before)) = (&probed, &status.probed)
                && (&now.max_object_bytes, &now.allowed_types)
                    != (&before.max_object_bytes, &before.allowed_types)
            {
                tracing::info!("the bucket takes other recordings now; what it refused is tried again");
                if let Err(error) = services.queue_refused().await {
                    tracing::warn!(error = %chain(&error), "what the cloud refused stays parked");
                }
            }
            if is_back {
                services.hurry_jobs().await;
            }
        }
        let closed = status.is_some_and(|status| status.state == State::Closed);
        if closed && !was_closed {
            services.hurry_jobs().await;
        }
        was_closed = closed;
        // After a pause the cloud is tried by the oldest job: there may be no upload for hours.
        let takes_writes = services.stores.primary_takes_writes();
        if takes_writes && !took_writes {
            services.bell.send_replace(());
        }
        took_writes = takes_writes;
        services.events.look_at(Health { cloud: closed, short });
        tokio::select! {
            () = tokio::time::sleep(interval.min(Duration::from_secs(5))) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// Looks every `interval` for what the catalogue does not know or was not told: files that operators dropped on the
/// local disk, and what a lost answer or a crash left.
pub async fn look_around(services: Services, interval: Duration) {
    let (mut seen, mut last_queued) = (Seen::default(), Instant::now());
    if let Err(error) = services.queue_unsynced().await {
        tracing::warn!(error = %chain(&error), "what waits for the cloud could not be queued");
    }
    if let Err(error) = services.close_parents().await {
        tracing::warn!(error = %chain(&error), "jobs whose parts are all over still count as running");
    }
    loop {
        let look = async {
            services.catalog.register(&services.rules.node, &services.rules.advertised_url).await?;
            services.settle_unsure().await?;
            services.settle_abandoned().await?;
            if last_queued.elapsed() >= QUEUE_EVERY {
                last_queued = Instant::now();
                services.queue_forgotten().await?;
            }
            services.adopt_changed(&mut seen).await.map(|_| ())
        };
        if turn(&services, interval, look).await.is_break() {
            return;
        }
    }
}

/// Goes through the whole bucket: once for what the catalogue does not know, and now and then for objects that landed
/// after their recording was deleted. A large one takes hours, for which nothing else waits.
pub async fn look_into_bucket(services: Services, interval: Duration) {
    if !services.stores.has_primary() {
        return;
    }
    let (mut taken_in, mut last_purge) = (false, None::<Instant>);
    loop {
        let look = async {
            // Neither waits for what keeps the other from its end.
            let adopted = if taken_in { Ok(true) } else { services.adopt_cloud_once().await };
            if last_purge.is_none_or(|at| at.elapsed() >= PURGE_EVERY) {
                services.delete_late_pushes().await?;
                last_purge = Some(Instant::now());
            }
            taken_in = adopted?;
            Ok(())
        };
        if turn(&services, interval, look).await.is_break() {
            return;
        }
    }
}

/// One look and the pause after it; a break when the process stops.
async fn turn(
    services: &Services,
    pause: Duration,
    look: impl Future<Output = Result<(), ServiceError>>,
) -> ControlFlow<()> {
    let stopping = services.tasks.stopping();
    let looked = tokio::select! {
        looked = look => looked,
        () = stopping.cancelled() => return ControlFlow::Break(()),
    };
    if let Err(error) = looked {
        tracing::warn!(error = %chain(&error), "looking for unknown recordings failed");
    }
    tokio::select! {
        () = tokio::time::sleep(pause) => ControlFlow::Continue(()),
        () = stopping.cancelled() => ControlFlow::Break(()),
    }
}
