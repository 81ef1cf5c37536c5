//! Two gateways with names of their own on one bucket: neither loses or overwrites what the other brings.

use std::collections::BTreeSet;

use crate::support::cloud::{BUCKET, rows, uploads};
use crate::support::eventually;
use crate::support::fake_supabase::{FakeSupabase, Fault, Matcher};
use crate::support::gateway::Gateway;
use crate::support::media::webm;

async fn pair(cloud: &FakeSupabase) -> (Gateway, Gateway) {
    let patient = ("supabase.patience", "20s");
    let east = Gateway::with_cloud_and(cloud, &[("server.node", "east"), patient]).await;
    let west = Gateway::with_cloud_and(cloud, &[("server.node", "west"), patient]).await;
    (east, west)
}

async fn upload(gateway: &Gateway, len: usize, seed: u64) -> (String, Vec<u8>) {
    let bytes = webm(len, seed);
    let (status, answer) = gateway.upload("s", bytes.clone()).await;
    assert_eq!(status, 200, "{answer}");
    (answer["file_path"].as_str().unwrap().to_owned(), bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_uploads_to_one_session_are_all_there_for_both() {
    let cloud = FakeSupabase::start().await;
    let (east, west) = pair(&cloud).await;
    let each = |gateway, from: u64| {
        futures_util::future::join_all(
            (from..from + 12).map(move |seed| upload(gateway, 3000 + seed as usize, seed)),
        )
    };
    let (mut stored, more) = tokio::join!(each(&east, 0), each(&west, 100));
    stored.extend(more);
    let names: BTreeSet<String> = stored.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(names.len(), 24, "every name is another");
    assert_eq!(names.iter().filter(|path| path.contains("_east")).count(), 12);
    assert!(names.iter().eq(&cloud.keys(BUCKET)));
    for gateway in [&east, &west] {
        let listed: BTreeSet<String> =
            gateway.names("s").await.iter().map(|name| format!("s/{name}")).collect();
        assert_eq!(listed, names);
        for (path, bytes) in &stored {
            assert!(gateway.bytes(path).await == *bytes, "{path}");
        }
    }
    east.stop().await;
    west.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_deletes_the_other_cannot_serve() {
    let cloud = FakeSupabase::start().await;
    let (east, west) = pair(&cloud).await;
    let (by_east, _) = upload(&east, 5000, 1).await;
    let (by_west, bytes) = upload(&west, 6000, 2).await;
    assert_eq!(east.delete(&format!("/recordings/{by_west}")).await.0, 200);
    assert_eq!(cloud.keys(BUCKET), [by_east.as_str()]);
    // Gone for the one that deleted it.
    assert_eq!(east.names("s").await.len(), 1);
    // The other promised it and did not delete it: it shows the loss instead of hiding it, and serves nothing.
    let lost = rows(&west, "s").await.into_iter().find(|row| row["file_path"] == by_west.as_str()).unwrap();
    assert_eq!((&lost["missing"], &lost["stores"]), (&true.into(), &serde_json::json!([])), "{lost}");
    assert_eq!(west.get(&format!("/recordings/{by_west}/content?via=proxy")).await.status(), 404);
    assert_eq!(west.get(&format!("/recordings/{by_west}/download")).await.status(), 404);
    // It does not bring it back, and its row can be deleted.
    let west = west.restart().await;
    assert_eq!(cloud.keys(BUCKET), [by_east.as_str()]);
    assert_eq!(west.delete(&format!("/recordings/{by_west}")).await.0, 200);
    assert_eq!(west.names("s").await.len(), 1);
    drop(bytes);
    east.stop().await;
    west.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_both_kept_while_the_cloud_was_away_arrives_from_both() {
    let cloud = FakeSupabase::start().await;
    let (east, west) = pair(&cloud).await;
    cloud.fault(Fault::internal_error(), uploads());
    let ((one, one_bytes), (two, two_bytes)) = tokio::join!(upload(&east, 5000, 1), upload(&west, 5000, 2));
    assert_ne!(one, two);
    cloud.fault(Fault::internal_error(), Matcher::any());
    cloud.clear_faults();
    eventually("both are in the bucket", async || cloud.keys(BUCKET).len() == 2).await;
    assert!(cloud.object(BUCKET, &one).unwrap().bytes == one_bytes);
    assert!(cloud.object(BUCKET, &two).unwrap().bytes == two_bytes);
    for gateway in [&east, &west] {
        eventually("each lists both as the cloud's", async || {
            let rows = rows(gateway, "s").await;
            rows.len() == 2 && rows.iter().all(|row| row["storage_type"] == "supabase")
        })
        .await;
    }
    east.stop().await;
    west.stop().await;
}
