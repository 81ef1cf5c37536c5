//! The official JavaScript client against the fake.
//!
//! Apart because it needs node and `npm ci` in `tests/js`; without them the suite is skipped by name.

use std::path::Path;
use std::process::Command;

use crate::support::fake_supabase::FakeSupabase;
use crate::support::skip::skip_or_fail;

#[tokio::test]
async fn the_official_client_finds_nothing_odd() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/js");
    if Command::new("node").arg("--version").output().is_err() {
        return skip_or_fail("storage_js", "node");
    }
    if !scripts.join("node_modules/@supabase/storage-js").exists() {
        return skip_or_fail("storage_js", "tests/js/node_modules (npm ci in tests/js)");
    }
    let cloud = FakeSupabase::start().await;
    let run = Command::new("node")
        .arg(scripts.join("storage-js.mjs"))
        .args([cloud.url(), cloud.service_key(), cloud.anon_key(), cloud.expired_key()])
        .output()
        .expect("node starts");
    let told = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{told}");
    assert!(told.contains("storage-js: every check passed"), "{told}");
    // The client went in by the hosted project's door.
    assert!(cloud.requests().iter().all(|request| request.path.starts_with("/storage/v1/")));
}
