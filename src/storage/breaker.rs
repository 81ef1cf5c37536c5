//! A circuit breaker: after several failures in a row the primary is left alone for a while, so that a dead cloud
//! does not cost every upload its patience. A pure state machine; the caller brings the time.
//!
//! Closed → (failures in a row, or one that names a lasting cause) → open for a pause → half-open: one caller at a
//! time may try → closed on success, open again with twice the pause on failure.

use std::time::{Duration, Instant};

/// Longest pause between two tries.
pub const MAX_PAUSE: Duration = Duration::from_secs(300);

/// Whether a request may be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Go ahead.
    Go,
    /// Go ahead: this is the one try after a pause.
    Try,
    /// Leave the store alone.
    Refused,
}

/// The state as operators see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Requests pass.
    Closed,
    /// One request is trying.
    HalfOpen,
    /// Requests are refused.
    Open,
}

/// The breaker.
#[derive(Debug)]
pub struct Breaker {
    threshold: u32,
    first_pause: Duration,
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    cause: String,
    until: Instant,
    pause: Duration,
    /// Until when the store asked to be left alone.
    asked_until: Option<Instant>,
    /// When the running try began; it counts as failed if nobody reports within a pause.
    trying_since: Option<Instant>,
}

impl Open {
    fn is_being_tried(&self, now: Instant) -> bool {
        self.trying_since.is_some_and(|since| now < since + self.pause.max(Duration::from_secs(60)))
    }
}

impl Breaker {
    /// Opens after `threshold` failures in a row, first for `first_pause`.
    pub fn new(threshold: u32, first_pause: Duration) -> Self {
        Self { threshold: threshold.max(1), first_pause, failures: 0, open: None }
    }

    /// May a request be made now? [`Admission::Try`] takes the one place there is.
    pub fn admit(&mut self, now: Instant) -> Admission {
        let Some(open) = &mut self.open else { return Admission::Go };
        if now < open.until || open.is_being_tried(now) {
            return Admission::Refused;
        }
        open.trying_since = Some(now);
        Admission::Try
    }

    /// Whether [`admit`](Self::admit) would let a request pass, without taking the place of a try.
    pub fn would_admit(&self, now: Instant) -> bool {
        self.open.as_ref().is_none_or(|open| now >= open.until && !open.is_being_tried(now))
    }

    /// Whether the store itself said that it wants to be left alone now.
    pub fn is_asked_to_wait(&self, now: Instant) -> bool {
        self.open.as_ref().and_then(|open| open.asked_until).is_some_and(|until| now < until)
    }

    /// A request ended without saying anything about the store: its place, if it was a try, is free again.
    pub fn gave_up(&mut self) {
        if let Some(open) = &mut self.open {
            open.trying_since = None;
        }
    }

    /// A request succeeded. Returns whether that closed the breaker.
    pub fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }

    /// A request failed in a way that blames the store. `lasting` opens at once: wrong credentials do not get right
    /// by asking again. `asked` is how long the store wants to be left alone: it is, at once and for that long, however
    /// long the pause would be. Returns whether that opened the breaker.
    pub fn failed(&mut self, now: Instant, cause: &str, lasting: bool, asked: Option<Duration>) -> bool {
        self.failures = self.failures.saturating_add(1);
        let asked_until = asked.map(|wait| now + wait);
        match &mut self.open {
            Some(open) => {
                if open.trying_since.take().is_some() {
                    open.pause = (open.pause * 2).min(MAX_PAUSE);
                    open.until = now + open.pause;
                }
                open.until = asked_until.map_or(open.until, |until| until.max(open.until));
                open.asked_until = open.asked_until.max(asked_until);
                open.cause = cause.to_owned();
                false
            }
            None if lasting || asked.is_some() || self.failures >= self.threshold => {
                let pause = self.first_pause;
                // Fewer failures than usual open it for as long as was asked for and no longer.
                let until = match asked_until {
                    Some(until) if !lasting && self.failures < self.threshold => until,
                    Some(until) => until.max(now + pause),
                    None => now + pause,
                };
                self.open =
                    Some(Open { cause: cause.to_owned(), until, pause, asked_until, trying_since: None });
                true
            }
            None => false,
        }
    }

    /// The state at `now`.
    pub fn state(&self, now: Instant) -> State {
        match &self.open {
            None => State::Closed,
            Some(open) if open.trying_since.is_some() || now >= open.until => State::HalfOpen,
            Some(_) => State::Open,
        }
    }

    /// Why it is open.
    pub fn cause(&self) -> Option<&str> {
        self.open.as_ref().map(|open| open.cause.as_str())
    }

    /// How long until the next try is allowed.
    pub fn retry_after(&self, now: Instant) -> Option<Duration> {
        self.open.as_ref().map(|open| open.until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let (mut breaker, t) = (Breaker::new(3, PAUSE), Instant::now());
        for _ in 0..5 {
            assert!(!breaker.failed(t, "500", false, None));
            assert!(!breaker.failed(t, "500", false, None));
            assert!(!breaker.succeeded());
        }
        breaker.failed(t, "500", false, None);
        breaker.failed(t, "500", false, None);
        assert!(breaker.failed(t, "500", false, None));
        assert_eq!(breaker.admit(t), Admission::Refused);
        assert_eq!(breaker.cause(), Some("500"));
    }

    #[test]
    fn a_lasting_cause_opens_at_once() {
        let (mut breaker, t) = (Breaker::new(3, PAUSE), Instant::now());
        assert!(breaker.failed(t, "key rejected", true, None));
        assert_eq!(breaker.state(t), State::Open);
    }

    #[test]
    fn one_try_at_a_time_and_the_pause_doubles() {
        let (mut breaker, t) = (Breaker::new(1, PAUSE), Instant::now());
        breaker.failed(t, "down", false, None);
        let t = t + PAUSE;
        assert!(!breaker.would_admit(t - Duration::from_millis(1)) && breaker.would_admit(t));
        assert_eq!(breaker.admit(t), Admission::Try);
        assert_eq!(breaker.admit(t), Admission::Refused, "the place is taken");
        assert!(!breaker.would_admit(t), "asking takes no place and finds none");
        breaker.failed(t, "still down", false, None);
        assert_eq!(breaker.admit(t + PAUSE), Admission::Refused);
        let t = t + 2 * PAUSE;
        assert_eq!(breaker.admit(t), Admission::Try);
        assert!(breaker.succeeded());
        assert_eq!(breaker.admit(t), Admission::Go);
        assert_eq!(breaker.state(t), State::Closed);
    }

    #[test]
    fn a_try_that_was_given_up_frees_its_place_and_changes_nothing_else() {
        let (mut breaker, t) = (Breaker::new(1, PAUSE), Instant::now());
        breaker.failed(t, "down", false, None);
        assert_eq!(breaker.admit(t + PAUSE), Admission::Try);
        breaker.gave_up();
        assert_eq!(breaker.cause(), Some("down"));
        assert_eq!(breaker.admit(t + PAUSE), Admission::Try);
    }

    #[test]
    fn late_failures_of_old_requests_do_not_prolong_the_pause() {
        let (mut breaker, t) = (Breaker::new(1, PAUSE), Instant::now());
        breaker.failed(t, "down", false, None);
        for second in 1..9 {
            breaker.failed(t + Duration::from_secs(second), "down", false, None);
        }
        assert_eq!(breaker.admit(t + PAUSE), Admission::Try);
    }

    #[test]
    fn a_try_that_never_reports_gives_its_place_back() {
        let (mut breaker, t) = (Breaker::new(1, PAUSE), Instant::now());
        breaker.failed(t, "down", false, None);
        assert_eq!(breaker.admit(t + PAUSE), Admission::Try);
        assert_eq!(breaker.admit(t + PAUSE + Duration::from_secs(60)), Admission::Try);
    }

    #[test]
    fn the_pause_is_bounded() {
        let (mut breaker, mut t) = (Breaker::new(1, PAUSE), Instant::now());
        breaker.failed(t, "down", false, None);
        for _ in 0..20 {
            t += MAX_PAUSE;
            assert_eq!(breaker.admit(t), Admission::Try);
            breaker.failed(t, "down", false, None);
        }
        assert_eq!(breaker.retry_after(t), Some(MAX_PAUSE));
    }

    /// reliability 22: what a 429 or 503 asks for is given.
    #[test]
    fn a_store_that_asks_for_time_gets_it() {
        let (mut breaker, t) = (Breaker::new(3, PAUSE), Instant::now());
        let minute = Duration::from_secs(60);
        assert!(breaker.failed(t, "429", false, Some(minute)), "one is enough");
        assert_eq!(breaker.retry_after(t), Some(minute));
        assert_eq!(breaker.admit(t + PAUSE), Admission::Refused);
        assert!(breaker.is_asked_to_wait(t + PAUSE) && !breaker.is_asked_to_wait(t + minute));
        // Others that were under way are told the same, or longer.
        breaker.failed(t, "429", false, Some(2 * minute));
        breaker.failed(t, "500", false, None);
        assert_eq!(breaker.retry_after(t), Some(2 * minute));
        assert!(breaker.is_asked_to_wait(t + minute), "for the longest time that was asked for");
        assert_eq!(breaker.admit(t + 2 * minute), Admission::Try);
        assert!(breaker.succeeded());
        assert!(breaker.failed(t, "429", false, Some(Duration::from_secs(1))));
        assert_eq!(breaker.retry_after(t), Some(Duration::from_secs(1)), "not longer than asked");
    }
}
