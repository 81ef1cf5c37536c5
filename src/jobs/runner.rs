//! Takes jobs one after the other, deletions first, then the oldest, and puts back what did not work. It wakes when the
//! bell rings, when a job is due, and every `interval` in any case.

use std::time::Duration;

use time::OffsetDateTime;

use crate::catalog::{Job, Work};
use crate::domain::recording::micros;
use crate::runtime::metrics;
use crate::service::Services;
use crate::service::sync::Tried;
use crate::storage::chain;

/// How long a job is ours. A job that takes longer may be tried by another gateway too, which does no harm: every
/// step asks what is there before it changes anything.
const LEASE: Duration = Duration::from_secs(3600);
/// Longest pause between two tries of one job.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Runs until the process stops.
pub async fn run_jobs(services: Services, interval: Duration, work: Work) {
    let stopping = services.tasks.stopping().clone();
    let mut rings = services.bell.subscribe();
    loop {
        while !stopping.is_cancelled() {
            let now = micros(OffsetDateTime::now_utc());
            match services.claim_job(now, micros_of(LEASE), work).await {
                Ok(Some(job)) => {
                    tokio::select! {
                        () = run_one(&services, &job, interval) => {}
                        // Broken off: its lease is given back, the next start tries again.
                        () = stopping.cancelled() => {
                            let _ = services.catalog.postpone_job(&job, now, "the gateway was stopped").await;
                        }
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(error = %chain(&error), "background work cannot be read from the catalogue");
                    break;
                }
            }
        }
        tokio::select! {
            _ = rings.changed() => {}
            () = tokio::time::sleep(interval) => {}
            () = stopping.cancelled() => return,
        }
    }
}

async fn run_one(services: &Services, job: &Job, interval: Duration) {
    let kind = job.kind.name();
    let (outcome, noted) = match services.try_job(job).await {
        Tried::Done => ("done", services.catalog.complete_job(job).await),
        Tried::Parked => {
            tracing::warn!(job.kind = kind, job.id = %job.id, "the cloud will not take a recording; it stays here");
            ("parked", services.catalog.complete_job(job).await)
        }
        Tried::Again(reason) => {
            let pause = pause_before(job.attempt, interval);
            tracing::info!(job.kind = kind, job.id = %job.id, job.attempt, reason, "a job is tried again later");
            let run_at = micros(OffsetDateTime::now_utc()).saturating_add(micros_of(pause));
            ("failed", services.catalog.postpone_job(job, run_at, &reason).await)
        }
    };
    metrics::job_tried(kind, outcome);
    services.tell_job(&job.id).await;
    if let Err(error) = noted {
        tracing::error!(job.kind = kind, job.id = %job.id, error = %chain(&error), "a job's end could not be noted; it will run again");
    }
}

/// The interval, doubled with each try.
fn pause_before(attempt: i64, interval: Duration) -> Duration {
    let doublings = u32::try_from(attempt.clamp(1, 16) - 1).unwrap_or(0);
    interval.saturating_mul(1 << doublings).min(LONGEST_PAUSE.max(interval))
}

fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let seconds = |attempt| pause_before(attempt, Duration::from_secs(30)).as_secs();
        assert_eq!([1, 2, 3, 5, 6, 60, i64::MAX].map(seconds), [30, 60, 120, 480, 600, 600, 600]);
    }
}
