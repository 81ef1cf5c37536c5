//! What the suites share: the gateway under test, its clients and the fake cloud.

pub mod cloud;
pub mod fake_supabase;
pub mod gateway;
pub mod ledger;
pub mod media;
pub mod postgres;
pub mod process;
pub mod raw_client;
pub mod rig;
pub mod shim;
pub mod skip;
pub mod traces;
pub mod wire_proxy;

use std::time::{Duration, Instant};

/// How long a test waits for a state at most. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a file look as if it had been there for a while: fresh ones may still be being copied.
pub fn aged(file: &std::path::Path) {
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(120)).unwrap();
}

/// Waits until `reached` says so; fails the test when it takes too long.
pub async fn eventually(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached().await {
        assert!(Instant::now() < deadline, "not reached in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
