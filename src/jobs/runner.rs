//! Takes jobs one after the other, the oldest first, keeps their lease while they run, and puts back what did not work. It
//! wakes when the bell rings, and looks every few seconds in any case for what has become due.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use crate::catalog::{Job, Work};
use crate::domain::backoff;
use crate::domain::recording::micros;
use crate::runtime::metrics;
use crate::service::Services;
use crate::service::work::Tried;
use crate::storage::chain;

/// How long a job is ours after we last said so. A gateway that vanished leaves its jobs to others after this long.
pub(super) const LEASE: Duration = Duration::from_secs(120);
/// How often we say so at least; also how soon a job that was cancelled, deleted or taken over is dropped.
const RENEWED_EVERY: Duration = Duration::from_secs(30);
/// How often to look for jobs whose time has come.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What became of the time spent on a job.
#[derive(PartialEq, Eq)]
enum Next {
    /// The next one may follow at once.
    Go,
    /// Nothing can be done now.
    Wait,
}

/// Runs until the process stops. Several may run at once. `interval` is the first pause of a job that failed.
pub async fn run_jobs(services: Services, interval: Duration, work: Work) {
    let stopping = services.tasks.stopping().clone();
    let mut rings = services.bell.subscribe();
    loop {
        while !stopping.is_cancelled() {
            match services.claim_job(now_us(), micros_of(LEASE), work).await {
                Ok(Some(job)) => {
                    if run_one(&services, &job, interval).await == Next::Wait {
                        break;
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
            () = tokio::time::sleep(interval.min(LOOK_EVERY)) => {}
            () = stopping.cancelled() => return,
        }
    }
}

async fn run_one(services: &Services, job: &Job, interval: Duration) -> Next {
    let kind = job.kind.name();
    let _running = metrics::job_running(kind);
    let tried = tokio::select! {
        tried = services.try_job(job) => tried,
        () = lease_lost(services, job, interval) => {
            tracing::info!(job.kind = kind, job.id = %job.id, "a job was taken away while it ran; it is dropped");
            services.drop_job(job).await;
            metrics::job_tried(kind, "dropped");
            return Next::Go;
        }
        // Broken off: the next start tries again, and this was no try.
        () = services.tasks.stopping().cancelled() => Tried::NotNow,
    };
    let (outcome, noted) = match tried {
        Tried::Done => ("done", services.catalog.complete_job(job).await),
        Tried::Parked => {
            tracing::warn!(job.kind = kind, job.id = %job.id, "a recording cannot go to the cloud; it stays here");
            ("parked", services.catalog.complete_job(job).await)
        }
        Tried::NotNow => {
            if let Err(error) = services.catalog.release_job(job).await {
                tracing::warn!(job.kind = kind, job.id = %job.id, error = %chain(&error), "a job waits until its lease is over");
            }
            return Next::Wait;
        }
        Tried::Again(setback) => {
            let pause = backoff::pause(job.attempt, interval, chance());
            let pause = pause.max(setback.at_least.unwrap_or_default());
            let run_at = now_us().saturating_add(micros_of(pause));
            tracing::info!(
                job.kind = kind, job.id = %job.id, job.attempt, reason = setback.reason,
                pause_ms = pause.as_millis() as u64, "a job is tried again later"
            );
            // Before it waits, so that nobody hurries it against the cloud's wish.
            services.put_off.heed(&setback);
            let noted = services.catalog.postpone_job(job, run_at, &setback.reason).await;
            // After that, so that whoever hurries what waits finds this one waiting.
            services.put_off.note(&setback);
            ("failed", noted)
        }
    };
    metrics::job_tried(kind, outcome);
    services.tell_job(&job.id).await;
    if let Err(error) = noted {
        tracing::error!(job.kind = kind, job.id = %job.id, error = %chain(&error), "a job's end could not be noted; it will run again");
        return Next::Wait;
    }
    Next::Go
}

/// Keeps the lease; ends when it is lost, or may be because the catalogue does not answer.
async fn lease_lost(services: &Services, job: &Job, interval: Duration) {
    let every = interval.clamp(Duration::from_secs(1), RENEWED_EVERY);
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(every).await;
        let asked = Instant::now();
        match services.catalog.renew_job(job, now_us().saturating_add(micros_of(LEASE))).await {
            Ok(true) => renewed = asked,
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(job.id = %job.id, error = %chain(&error), "a job's lease could not be renewed");
                if renewed.elapsed() + every >= LEASE {
                    return;
                }
            }
        }
    }
}

/// Any number from 0 to 1. The hasher's keys are random, and others for each of them.
fn chance() -> f64 {
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}

fn now_us() -> i64 {
    micros(OffsetDateTime::now_utc())
}

fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_any_number_from_0_to_1() {
        let some: Vec<f64> = (0..1000).map(|_| chance()).collect();
        assert!(some.iter().all(|c| (0.0..=1.0).contains(c)));
        let mean = some.iter().sum::<f64>() / 1000.0;
        assert!((0.4..0.6).contains(&mean), "{mean}");
    }
}
