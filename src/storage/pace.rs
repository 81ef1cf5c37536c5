//! How fast transfers that nobody waits for may go, all of them together: no faster than the operator allows, and
//! slower while uploads of clients are on their way. Transfers of clients are never held.
//!
//! While clients send, the background gets a quarter of the rate it had without them, so it gives way on a slow line
//! as on a fast one, and never less than [`LEAST_SHARE`], so it never stands still.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, unfold};

/// Bytes per second beside clients that the background gets in any case.
pub const LEAST_SHARE: u64 = 256 << 10;
/// Bytes per second beside clients as long as it is not known how fast the line is.
const FIRST_SHARE: u64 = 4 << 20;
/// A pause between two pieces that is no sign of a slow line: nothing was being sent.
const GAP: Duration = Duration::from_secs(10);
/// Over how long a rate is measured at least.
const WINDOW: Duration = Duration::from_secs(1);

/// The rate of all background transfers. Clones share it.
#[derive(Clone)]
pub struct Pacer(Arc<Inner>);

struct Inner {
    /// Bytes per second; 0 for no limit.
    max_rate: u64,
    clients: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the next piece may go, if pieces are being held.
    free_at: Option<Instant>,
    measured: Meter,
}

/// The rate of the background while it was alone.
#[derive(Default)]
struct Meter {
    /// When the window began, its bytes so far, and when the last ones were counted.
    window: Option<(Instant, u64, Instant)>,
    /// Bytes per second in the last full window.
    rate: Option<u64>,
}

impl Meter {
    fn count(&mut self, bytes: u64, now: Instant) {
        let Some((began, so_far, _)) = self.window.filter(|(.., last)| now < *last + GAP) else {
            self.window = Some((now, 0, now));
            return;
        };
        let (elapsed, so_far) = (now - began, so_far + bytes);
        self.window = Some(if elapsed < WINDOW {
            (began, so_far, now)
        } else {
            self.rate = Some((so_far as f64 / elapsed.as_secs_f64()) as u64);
            (now, 0, now)
        });
    }
}

impl Pacer {
    /// At most `max_rate` bytes per second; 0 for no limit.
    pub fn new(max_rate: u64) -> Self {
        Self(Arc::new(Inner { max_rate, clients: AtomicUsize::new(0), state: Mutex::default() }))
    }

    /// Counts a client's transfer for as long as the returned value lives.
    pub fn client_transfer(&self) -> ClientTransfer {
        self.0.clients.fetch_add(1, Ordering::Relaxed);
        ClientTransfer(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Bytes per second that all background transfers may have now; `None` for no limit.
    fn rate(&self) -> Option<u64> {
        let max = Some(self.0.max_rate).filter(|rate| *rate > 0);
        if self.0.clients.load(Ordering::Relaxed) == 0 {
            return max;
        }
        let share = self.state().measured.rate.map_or(FIRST_SHARE, |alone| (alone / 4).max(LEAST_SHARE));
        Some(max.map_or(share, |max| max.min(share)))
    }

    /// Waits until `bytes` more may go. Without a limit there is no timer, only a count.
    async fn admit(&self, bytes: u64, rate: Option<u64>) {
        let now = Instant::now();
        let start = {
            let mut state = self.state();
            if self.0.clients.load(Ordering::Relaxed) == 0 {
                state.measured.count(bytes, now);
            } else {
                state.measured.window = None;
            }
            match rate {
                None => {
                    state.free_at = None;
                    return;
                }
                Some(rate) => {
                    let start = state.free_at.map_or(now, |at| at.max(now));
                    state.free_at = Some(start + Duration::from_secs_f64(bytes as f64 / rate as f64));
                    start
                }
            }
        };
        if start > now {
            tokio::time::sleep_until(start.into()).await;
        }
    }

    /// The bytes of `stream` at the allowed rate, in smaller pieces where that is low. The flag tells whether they are
    /// being held, so that nobody takes that for a network that stands still.
    pub fn pace<E: Send + 'static>(
        &self,
        stream: BoxStream<'static, Result<Bytes, E>>,
    ) -> (BoxStream<'static, Result<Bytes, E>>, Held) {
        let held = Held::default();
        let state = (self.clone(), stream, Bytes::new(), held.clone());
        let paced = unfold(state, |(pacer, mut stream, mut rest, held)| async move {
            if rest.is_empty() {
                rest = match stream.next().await? {
                    Ok(bytes) => bytes,
                    Err(error) => return Some((Err(error), (pacer, stream, rest, held))),
                };
            }
            let rate = pacer.rate();
            // A tenth of a second's worth, so that a low rate is a trickle and no series of bursts.
            let most =
                rate.map_or(usize::MAX, |rate| usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1024));
            let piece = rest.split_to(most.min(rest.len()));
            held.0.store(true, Ordering::Relaxed);
            pacer.admit(piece.len() as u64, rate).await;
            held.0.store(false, Ordering::Relaxed);
            Some((Ok(piece), (pacer, stream, rest, held)))
        });
        (paced.boxed(), held)
    }
}

/// Whether a paced stream is being held.
#[derive(Clone, Default)]
pub struct Held(Arc<AtomicBool>);

impl Held {
    /// Whether it is, now.
    pub fn now(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A client's transfer that is counted.
pub struct ClientTransfer(Pacer);

impl Drop for ClientTransfer {
    fn drop(&mut self) {
        self.0.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(count: usize) -> BoxStream<'static, Result<Bytes, ()>> {
        let block = Bytes::from(vec![7; 256 << 10]);
        futures_util::stream::iter(std::iter::repeat_n(Ok(block), count)).boxed()
    }

    async fn drain(pacer: &Pacer, count: usize) -> (u64, Duration) {
        let (mut stream, _) = pacer.pace(blocks(count));
        let (mut bytes, began) = (0, Instant::now());
        while let Some(piece) = stream.next().await {
            bytes += piece.unwrap().len() as u64;
        }
        (bytes, began.elapsed())
    }

    /// reliability 33: the drain has a cap, all transfers together.
    #[tokio::test]
    async fn transfers_together_keep_to_the_rate() {
        let pacer = Pacer::new(4 << 20);
        let began = Instant::now();
        let ((first, _), (second, _)) = tokio::join!(drain(&pacer, 4), drain(&pacer, 4));
        // 2 MiB at 4 MiB/s: half a second less the pieces that went first.
        assert_eq!(first + second, 2 << 20);
        assert!(began.elapsed() >= Duration::from_millis(350), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn without_a_limit_nothing_waits() {
        let pacer = Pacer::new(0);
        assert_eq!(pacer.rate(), None);
        let (bytes, took) = drain(&pacer, 4000).await;
        assert_eq!(bytes, 1000 << 20);
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(pacer.state().free_at.is_none());
    }

    #[test]
    fn the_background_gets_a_quarter_beside_clients_and_all_without() {
        let pacer = Pacer::new(0);
        let client = pacer.client_transfer();
        assert_eq!(pacer.rate(), Some(FIRST_SHARE), "nothing was measured");
        let start = Instant::now();
        for (i, rate) in [(0, 40 << 20), (1, 400 << 10)] {
            let start = start + Duration::from_secs(60 * i);
            for tenth in 0..=10 {
                pacer.state().measured.count(rate / 10, start + Duration::from_millis(100 * tenth));
            }
            let share = if i == 0 { 10 << 20 } else { LEAST_SHARE };
            assert_eq!(pacer.rate(), Some(share), "{rate} before");
        }
        let second = pacer.client_transfer();
        drop(client);
        assert!(pacer.rate().is_some());
        drop(second);
        assert_eq!(pacer.rate(), None);
        let capped = Pacer::new(1000);
        let _client = capped.client_transfer();
        assert_eq!(capped.rate(), Some(1000), "the operator's cap holds for the share too");
    }

    /// reliability 33: new uploads first, and still the background does not starve beside them.
    #[tokio::test]
    async fn beside_a_client_the_background_is_slow_and_moves() {
        let pacer = Pacer::new(0);
        let _client = pacer.client_transfer();
        let (bytes, took) = tokio::time::timeout(Duration::from_secs(20), drain(&pacer, 12)).await.unwrap();
        assert_eq!(bytes, 3 << 20);
        assert!(took >= Duration::from_millis(500), "{took:?}");
    }
}
