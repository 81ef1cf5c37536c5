//! What an earlier process left in the middle is settled before the first request.

use std::path::Path;
use std::time::Duration;

use recording_gateway::catalog::{Arrival, Origin, sqlite};
use recording_gateway::domain::{
    ContentDigest, Durability, GatewayId, ObjectKey, Recording, StoreKind, StoreSet,
};
use recording_gateway::service::verify::{Event, VerifyOptions};
use sha2::{Digest as _, Sha256};

use crate::support::gateway::Gateway;
use crate::support::media::webm;

/// A directory as a crash leaves it between the promise and the rename: the row is there, the bytes are in the spool.
async fn promised(gateway: &Gateway, name: &str, bytes: &[u8]) -> ObjectKey {
    let key = ObjectKey::parse(&format!("s/{name}.webm")).unwrap();
    let recording = Recording {
        key: key.clone(),
        size_bytes: bytes.len() as u64,
        sha256: Some(ContentDigest::from_bytes(Sha256::digest(bytes).into())),
        content_type: "video/webm".into(),
        original_filename: None,
        durability: Durability::Local,
        stores: StoreSet::only(StoreKind::Local),
        held_by: None,
        uploaded_at: time::macros::datetime!(2024-12-01 14:30:22 UTC),
        parked_reason: None,
        upload_id: format!("upload-of-{name}"),
    };
    let arrival = Arrival {
        recording: &recording,
        name_from: None,
        sync: false,
        parent: None,
        request: None,
        answer: &|_| String::new(),
    };
    gateway.services.catalog.commit(arrival, &Origin::gateway("test")).await.unwrap();
    key
}

/// Starts it again on its directory, with these files there.
async fn restart_with(gateway: Gateway, files: &[(&str, &[u8])]) -> Gateway {
    let recordings = gateway.recordings_dir();
    let dir = gateway.stop().await;
    for (name, bytes) in files {
        std::fs::create_dir_all(recordings.join(name).parent().unwrap()).unwrap();
        std::fs::write(recordings.join(name), bytes).unwrap();
    }
    Gateway::start_in(dir, Vec::new()).await
}

const SPOOLED: &str = ".spool/form-upload-of-whole";

/// reliability 1, 4
#[tokio::test(flavor = "multi_thread")]
async fn a_promised_upload_finds_its_place_and_an_unfinished_one_goes() {
    let gateway = Gateway::local().await;
    let bytes = webm(5000, 1);
    let whole = promised(&gateway, "whole", &bytes).await;
    let gateway = restart_with(gateway, &[(SPOOLED, &bytes), (".spool/form-nobodys", b"half")]).await;
    assert!(gateway.bytes(&whole.to_string()).await == bytes);
    assert_eq!(gateway.names("s").await, ["whole.webm"]);
    assert_eq!(std::fs::read_dir(gateway.recordings_dir().join(".spool")).unwrap().count(), 0);
    gateway.stop().await;
}

/// Somebody put a file where a promised recording belongs: neither is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_taken_costs_nobody_his_bytes() {
    let gateway = Gateway::local().await;
    let bytes = webm(5000, 1);
    let key = promised(&gateway, "whole", &bytes).await;
    let gateway = restart_with(gateway, &[(SPOOLED, &bytes), ("s/whole.webm", b"somebody else's")]).await;
    let recordings = gateway.recordings_dir();
    assert!(std::fs::read(recordings.join(SPOOLED)).unwrap() == bytes, "it waits");
    assert_eq!(std::fs::read(recordings.join("s/whole.webm")).unwrap(), b"somebody else's");
    std::fs::remove_file(recordings.join("s/whole.webm")).unwrap();
    assert_eq!(gateway.services.recover_spool().await.unwrap(), (1, 0));
    assert!(gateway.bytes(&key.to_string()).await == bytes);
    gateway.stop().await;
}

/// What is no recording's file has the place of a promised one: it does not count as that.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_of_a_recording_costs_nobody_his_bytes() {
    let bytes = webm(5000, 1);
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&other, &bytes).unwrap();
    let link = |place: &Path| std::os::unix::fs::symlink(&other, place).unwrap();
    let dir = |place: &Path| std::fs::create_dir(place).unwrap();
    let second_name = |place: &Path| {
        std::fs::write(place, &bytes).unwrap();
        std::fs::hard_link(place, place.with_extension("too")).unwrap();
    };
    let in_the_way: [&dyn Fn(&Path); 3] = [&link, &dir, &second_name];
    for put in in_the_way {
        let gateway = Gateway::local().await;
        let key = promised(&gateway, "whole", &bytes).await;
        let place = gateway.recordings_dir().join("s/whole.webm");
        std::fs::create_dir(place.parent().unwrap()).unwrap();
        put(&place);
        let gateway = restart_with(gateway, &[(SPOOLED, &bytes)]).await;
        assert!(std::fs::read(gateway.recordings_dir().join(SPOOLED)).unwrap() == bytes, "it waits");
        let at_once = VerifyOptions { settled_after: Duration::ZERO, ..VerifyOptions::default() };
        let (mut events, mut told) = (gateway.services.verify(at_once).unwrap(), false);
        while let Some(event) = events.recv().await {
            told |= matches!(event, Event::Finding(finding) if finding.what == "spool");
        }
        assert!(told, "a verification tells of it");
        std::fs::rename(&place, place.with_extension("away")).unwrap();
        assert_eq!(gateway.services.recover_spool().await.unwrap(), (1, 0));
        assert!(gateway.bytes(&key.to_string()).await == bytes);
        gateway.stop().await;
    }
}

/// Where renaming takes two steps, a crash may leave both names.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_both_names_has_found_its_place() {
    let gateway = Gateway::local().await;
    let bytes = webm(5000, 1);
    let key = promised(&gateway, "whole", &bytes).await;
    let (spooled, place) =
        (gateway.recordings_dir().join(SPOOLED), gateway.recordings_dir().join("s/whole.webm"));
    let dir = gateway.stop().await;
    std::fs::write(&spooled, &bytes).unwrap();
    std::fs::create_dir(place.parent().unwrap()).unwrap();
    std::fs::hard_link(&spooled, &place).unwrap();
    let gateway = Gateway::start_in(dir, Vec::new()).await;
    assert!(gateway.bytes(&key.to_string()).await == bytes);
    assert!(!spooled.exists());
    gateway.stop().await;
}

/// The embedded catalogue is one gateway's own, also when the file with its id was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_id_loses_nothing() {
    let gateway = Gateway::local().await;
    let bytes = webm(5000, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    let path = answer["file_path"].as_str().unwrap();
    std::fs::remove_file(gateway.recordings_dir().join(".catalog/gateway")).unwrap();
    let gateway = gateway.restart().await;
    assert!(gateway.bytes(path).await == bytes);
    assert_eq!(gateway.delete(&format!("/recordings/{path}")).await.0, 200);
    assert!(!gateway.recordings_dir().join(path).exists());
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("catalog.sqlite");
    let (catalog, new) = sqlite::open(&file, GatewayId("one".into())).await.unwrap();
    assert!(new);
    drop(catalog);
    assert!(!sqlite::open(&file, GatewayId("two".into())).await.unwrap().1);
    gateway.stop().await;
}
