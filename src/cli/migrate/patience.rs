//! Waiting for a gateway that is away, busy or full: what is worth waiting for, how long, and until when.
//!
//! Apart because everything that is asked of the gateway during a migration waits by the same rules. A refusal that waiting
//! does not change is never repeated.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio_util::sync::CancellationToken;

use crate::cli::client::ClientError;
use crate::cli::print;

const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why a file did not get to its end.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is this file's own; the others go on.
    File(String),
    /// The gateway was waited for in vain; nothing else can be done either.
    Away(String),
    /// Somebody asked to stop.
    Stopped,
}

/// The rules, and whoever can end the waiting.
pub(super) struct Patience {
    /// The longest wait for one thing.
    pub most: Duration,
    pub stop: CancellationToken,
    pub bar: ProgressBar,
    /// Whether it was told that the gateway is being waited for; one sentence for all that wait.
    told: Cell<bool>,
}

/// The waiting for one thing.
#[derive(Default)]
pub(super) struct Waited {
    since: Option<Instant>,
    pauses: u32,
}

impl Patience {
    pub fn new(most: Duration, stop: CancellationToken, bar: ProgressBar) -> Self {
        Self { most, stop, bar, told: Cell::new(false) }
    }

    /// Asks until there is an answer, or a failure that waiting does not change.
    pub async fn ask<T>(&self, mut ask: impl AsyncFnMut() -> anyhow::Result<T>) -> Result<T, Trouble> {
        let mut waited = Waited::default();
        loop {
            match ask().await {
                Ok(answer) => {
                    self.told.set(false);
                    return Ok(answer);
                }
                Err(error) => self.pause(&mut waited, &error).await?,
            }
        }
    }

    /// Waits as long as this failure asks for.
    ///
    /// # Errors
    /// If waiting does not help, has helped for too long, or is to stop.
    pub async fn pause(&self, waited: &mut Waited, error: &anyhow::Error) -> Result<(), Trouble> {
        let sentence = format!("{error:#}");
        let Some(asked) = worth_waiting(error) else { return Err(Trouble::File(sentence)) };
        let since = *waited.since.get_or_insert_with(Instant::now);
        let left = self.most.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Err(Trouble::Away(sentence));
        }
        let growing = SHORTEST_PAUSE.saturating_mul(1 << waited.pauses.min(10)).min(LONGEST_PAUSE);
        waited.pauses += 1;
        if waited.pauses > 1 && !self.told.replace(true) {
            let most = humantime::format_duration(self.most);
            self.bar.suspend(|| print::complain(format_args!("{sentence}; trying again for up to {most}")));
        }
        tokio::select! {
            () = self.stop.cancelled() => Err(Trouble::Stopped),
            () = tokio::time::sleep(asked.max(growing).min(left)) => Ok(()),
        }
    }
}

/// How long the gateway asked to be left alone, if the failure is one that may pass: it is being restarted, its disk is
/// full, it has too much to do, the connection broke.
fn worth_waiting(error: &anyhow::Error) -> Option<Duration> {
    match error.downcast_ref::<ClientError>()? {
        ClientError::Unreachable(_) | ClientError::Broken(_) => Some(Duration::ZERO),
        // What stands before a gateway that is being restarted.
        ClientError::Stranger { status, .. } => {
            matches!(status.as_u16(), 502..=504).then_some(Duration::ZERO)
        }
        ClientError::Problem { status, code, retry_after, .. } => {
            let passes = matches!(status, 408 | 429 | 503 | 507)
                || matches!(code.as_deref(), Some("body_broken_off" | "idempotency_key_in_use"));
            passes.then_some(retry_after.unwrap_or_default())
        }
        ClientError::Moved { .. } => None,
    }
}
