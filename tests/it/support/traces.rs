//! What uploads leave behind: the one check that a refused or broken one left nothing at all.

use recording_gateway::storage::ListScope;

use super::eventually;
use super::fake_supabase::{DEFAULT_BUCKET, FakeSupabase};
use super::gateway::Gateway;

/// Uploads that may run at once in every test gateway.
const SLOTS: usize = 2000;

/// Waits until no upload is under way.
pub async fn quiet(gateway: &Gateway) {
    eventually("no upload is under way", async || gateway.services.upload_slots.available_permits() == SLOTS)
        .await;
    gateway.settle().await;
}

/// No file, no row, no reserved name, no spool file, no object.
pub async fn assert_nothing_left(gateway: &Gateway, cloud: Option<&FakeSupabase>) {
    quiet(gateway).await;
    let view = gateway.services.catalog.view(&ListScope::Everything).await.unwrap();
    assert!(view.recordings.is_empty(), "rows are left: {:?}", view.recordings);
    let mut entries: Vec<_> = std::fs::read_dir(gateway.recordings_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    entries.sort();
    assert_eq!(entries, [".catalog", ".spool"], "files are left");
    if let Some(cloud) = cloud {
        eventually("the cloud received no more", async || cloud.open_uploads() == 0).await;
        assert_eq!(cloud.keys(DEFAULT_BUCKET), Vec::<String>::new(), "objects are left");
    }
}
