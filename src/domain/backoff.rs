//! How long to wait before something that failed is tried again: longer after each try, and never all at the same
//! moment. Pure: the caller brings the chance.

use std::time::Duration;

/// Longest pause between two tries of one job.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The pause after the try with this number, counted from 1: `first`, doubled with each try up to [`LONGEST_PAUSE`] (or
/// `first`, if that is longer), of which half is certain and half is chance. `chance` is from 0 to 1.
pub fn pause(attempt: i64, first: Duration, chance: f64) -> Duration {
    let doublings = u32::try_from(attempt.clamp(1, 31) - 1).unwrap_or(0);
    let whole = first.saturating_mul(1 << doublings).min(LONGEST_PAUSE.max(first));
    // Half of it in any case: without that some would come back at once, and again and again.
    whole / 2 + (whole / 2).mul_f64(chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let seconds = |attempt| pause(attempt, Duration::from_secs(30), 1.0).as_secs();
        assert_eq!([1, 2, 3, 5, 6, 60, i64::MAX].map(seconds), [30, 60, 120, 480, 600, 600, 600]);
        let least = |attempt| pause(attempt, Duration::from_secs(30), 0.0).as_secs();
        assert_eq!([i64::MIN, 0, 1, 2, 60].map(least), [15, 15, 15, 30, 300]);
        assert_eq!(
            pause(9, Duration::from_secs(3600), 1.0).as_secs(),
            3600,
            "a longer interval is the bound"
        );
    }

    proptest! {
        #[test]
        fn between_half_and_all_and_never_shorter_with_more_tries(
            attempt: i64,
            first_ms in 1u64..86_400_000,
            chance in 0.0f64..=1.0,
        ) {
            let first = Duration::from_millis(first_ms);
            let (at, least, most) = (pause(attempt, first, chance), pause(attempt, first, 0.0), pause(attempt, first, 1.0));
            prop_assert!(least <= at && at <= most && most <= LONGEST_PAUSE.max(first));
            prop_assert!(least >= first / 2 && most <= least * 2 + Duration::from_nanos(1));
            prop_assert!(pause(attempt.saturating_add(1), first, chance) >= at);
        }

        #[test]
        fn what_failed_together_does_not_come_back_together(attempt in 1i64..100, a in 0.0f64..0.4, b in 0.6f64..1.0) {
            let first = Duration::from_secs(30);
            prop_assert!(pause(attempt, first, b) - pause(attempt, first, a) >= first / 10);
        }
    }
}
