//! A disk without room: refused in time where it can be known, else given up without a trace; and the gateway goes on
//! when there is room again.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::cloud::{BUCKET, dripping_form};
use crate::support::eventually;
use crate::support::fake_supabase::FakeSupabase;
use crate::support::gateway::{Gateway, cloud_settings};
use crate::support::media::webm;
use crate::support::raw_client::{RawClient, RawForm, chunked, exchange, upload, upload_head};
use crate::support::skip::skip_or_fail;
use crate::support::traces::assert_nothing_left;

#[tokio::test(flavor = "multi_thread")]
async fn too_little_room_is_said_before_the_body() {
    let gateway = Gateway::start(&[("storage.min_free", "900TiB")]).await;
    let mut client = RawClient::connect(&gateway.url).await;
    client.send(upload_head("s", "Content-Length: 1000\r\nExpect: 100-continue\r\n")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (507, "storage_full"));
    assert!(!answer.continued, "the body was asked for");
    assert_eq!(answer.header("retry-after"), Some("60"));
    assert_eq!(exchange(&gateway.url, upload("s", &RawForm::new().file("x").end())).await.status, 507);
    assert_nothing_left(&gateway, None).await;
    let ready = gateway.get("/readyz").await;
    assert_eq!(ready.status(), 503);
    gateway.stop().await;
}

/// A file system of a few megabytes, unmounted at the end.
struct SmallDisk {
    dir: Option<tempfile::TempDir>,
}

impl SmallDisk {
    /// `None` where this process may not mount.
    fn mount(suite: &str, megabytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            skip_or_fail(suite, "the right to mount a small file system");
            return None;
        }
        Some(Self { dir: Some(dir) })
    }

    fn path(&self) -> &Path {
        self.dir.as_ref().expect("mounted").path()
    }

    /// A gateway on it.
    async fn gateway(&self) -> Gateway {
        self.gateway_with(&[]).await
    }

    /// A gateway on it with further settings.
    async fn gateway_with(&self, more: &[(&str, &str)]) -> Gateway {
        let dir = tempfile::tempdir_in(self.path()).unwrap();
        let settings = [&[("storage.min_free", "0")], more].concat();
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Gateway::start_in(dir, settings.collect()).await
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all the room but `left` bytes.
    fn fill(&self, left: u64) {
        let ballast = usize::try_from(self.free() - left).unwrap();
        // A gateway that runs may have taken some of it meanwhile: then it is full as well.
        if let Err(error) = std::fs::write(self.path().join("ballast"), vec![0; ballast]) {
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        drop(self.dir.take());
    }
}

/// reliability 5
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_in_the_middle_costs_only_the_upload_that_does_not_fit() {
    let Some(disk) = SmallDisk::mount("disk_full", 24) else { return };
    let gateway = disk.gateway().await;
    let small = RawForm::new().file(webm(20_000, 1)).end();
    let large = RawForm::new().file(webm(40 << 20, 2)).end();
    // Announced: refused at once. Not announced: given up where it stops to fit.
    let known = exchange(&gateway.url, upload("large", &large)).await;
    assert_eq!((known.status, known.code().as_str()), (507, "storage_full"));
    let head = upload_head("large", "Transfer-Encoding: chunked\r\n");
    for _ in 0..3 {
        let mut client = RawClient::connect(&gateway.url).await;
        let answer = {
            client.send([head.as_bytes(), &chunked(&large, 100_000)].concat()).await;
            client.answer().await
        };
        assert_eq!((answer.status, answer.code().as_str()), (507, "storage_full"));
        assert_eq!(answer.header("retry-after"), Some("60"));
        eventually("the spool is empty again", async || {
            std::fs::read_dir(gateway.recordings_dir().join(".spool")).unwrap().count() == 0
        })
        .await;
        let answer = exchange(&gateway.url, upload("small", &small)).await;
        assert_eq!(answer.status, 200, "{:?}", answer.json());
    }
    assert_eq!(gateway.names("large").await, Vec::<String>::new());
    assert_eq!(gateway.names("small").await.len(), 3);
    drop(gateway.stop().await);
}

/// The file fits, its row does not: then it is not saved, and that is what is said. reliability 6
#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_the_row_nothing_is_called_saved() {
    let Some(disk) = SmallDisk::mount("disk_full", 16) else { return };
    let gateway = disk.gateway().await;
    let body = RawForm::new().file(webm(3000, 1)).end();
    let mut refused = 0;
    let mut saved = Vec::new();
    for left in [0, 4096, 8192, 12288, 16384, 20480, 32768] {
        disk.fill(left);
        for _ in 0..6 {
            let answer = exchange(&gateway.url, upload("full", &body)).await;
            match answer.status {
                200 => saved.push(answer.json()["filename"].as_str().unwrap().to_owned()),
                status => {
                    assert!([500, 503, 507].contains(&status), "{status} {}", answer.code());
                    refused += 1;
                }
            }
        }
        disk.make_room();
    }
    assert!(refused >= 6, "the disk was full");
    // As soon as there is room it goes on.
    let answer = exchange(&gateway.url, upload("full", &body)).await;
    assert_eq!(answer.status, 200, "{:?}", answer.json());
    saved.push(answer.json()["filename"].as_str().unwrap().to_owned());
    saved.sort();
    let files = std::fs::read_dir(gateway.recordings_dir().join("full")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, saved, "every saved one is there, and no other file");
    let mut listed = gateway.names("full").await;
    listed.sort();
    assert_eq!(listed, saved);
    let spool = gateway.recordings_dir().join(".spool");
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 0);
    // Names of refused uploads may stay reserved until the next start: there was no room to give them back.
    drop(gateway);
}

fn reserve(gateway: &Gateway) -> PathBuf {
    gateway.recordings_dir().join(".catalog/reserve")
}

/// Bytes that the reserve really takes.
fn reserve_bytes(gateway: &Gateway) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(reserve(gateway)).map_or(0, |facts| facts.blocks() * 512)
}

/// What is promised to an upload that sends slowly is not given to another, and it may go on to its end.
#[tokio::test(flavor = "multi_thread")]
async fn room_that_was_promised_is_not_given_away() {
    let Some(disk) = SmallDisk::mount("disk_full", 40) else { return };
    let gateway = disk.gateway_with(&[("storage.min_free", "8MiB")]).await;
    let bytes = webm(16 << 20, 1);
    let form = RawForm::new().file(&bytes).end();
    let request = upload("slow", &form);
    let mut slow = RawClient::connect(&gateway.url).await;
    // More than half: the last block may stay in memory.
    let sent = request.len() * 5 / 8;
    slow.send(&request[..sent]).await;
    eventually("it was let in", async || gateway.services.room.figures().unwrap().promised > 0).await;

    // About 40 - 4 (reserve) - 8 (mark) - 16 (promised) are left.
    let other = RawForm::new().file(webm(14 << 20, 2)).end();
    let head = upload_head("other", &format!("Content-Length: {}\r\nExpect: 100-continue\r\n", other.len()));
    let mut client = RawClient::connect(&gateway.url).await;
    client.send(&head).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (507, "storage_full"));
    assert!(!answer.continued && answer.header("retry-after") == Some("60"));
    assert_eq!(
        exchange(&gateway.url, upload("small", &RawForm::new().file(webm(5000, 3)).end())).await.status,
        200
    );
    let metrics = gateway.get("/metrics").await.text().await.unwrap();
    let figure = metrics.lines().find_map(|line| line.strip_prefix("gateway_disk_reserved_bytes ")).unwrap();
    assert!(figure.parse::<f64>().unwrap() > 4e6, "{figure}");

    // Another program takes all that was free, and the disk is below its mark: nothing new, but this one goes on.
    let half_is_here = async || gateway.services.room.figures().unwrap().promised < 9 << 20;
    eventually("half of it is on the disk", half_is_here).await;
    disk.fill(10 << 20);
    eventually("nothing new is let in", async || {
        let form = RawForm::new().file(webm(5000, 3)).end();
        exchange(&gateway.url, upload("small", &form)).await.status == 507
    })
    .await;
    let ready = gateway.get_json("/readyz").await;
    let check = ready["checks"].as_array().unwrap().iter().find(|check| check["name"] == "disk").unwrap();
    assert!(ready["status"] != "ready" && check["detail"].as_str().unwrap().contains("bytes)"), "{ready}");
    slow.send(&request[sent..]).await;
    let answer = slow.answer().await;
    assert_eq!(answer.status, 200, "{:?}", answer.json());
    let path = answer.json()["file_path"].as_str().unwrap().to_owned();
    assert!(gateway.bytes(&path).await == bytes);
    assert_eq!(gateway.services.room.figures().unwrap().promised, 0, "every promise is given back");
    disk.make_room();
    gateway.stop().await;
}

/// One that does not say how long it is ends at the mark, and the disk keeps what is to stay free.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_unknown_length_ends_at_the_mark_and_others_go_on() {
    let Some(disk) = SmallDisk::mount("disk_full", 32) else { return };
    let gateway = disk.gateway_with(&[("storage.min_free", "12MiB")]).await;
    let bytes = webm(2 << 20, 1);
    let form = RawForm::new().file(&bytes).end();
    let request = upload("known", &form);
    let mut known = RawClient::connect(&gateway.url).await;
    known.send(&request[..request.len() / 2]).await;
    eventually("it was let in", async || gateway.services.room.figures().unwrap().promised > 0).await;

    let (pieces, endless) = dripping_form();
    let answer =
        tokio::spawn(gateway.request("POST", "/recordings/upload/endless").multipart(endless).send());
    pieces.send(webm(1 << 20, 2)).unwrap();
    let mut least = disk.free();
    let mut sent = 0;
    while !answer.is_finished() && sent < 64 {
        // A client that may be refused goes away at any moment.
        let _ = pieces.send(vec![7; 1 << 20]);
        sent += 1;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        least = least.min(disk.free());
    }
    drop(pieces);
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.status(), 507);
    assert!(answer.headers().contains_key("retry-after"));
    assert!(least >= 12 << 20, "{least} bytes were left");
    known.send(&request[request.len() / 2..]).await;
    assert_eq!(known.answer().await.status, 200);
    assert_eq!(gateway.names("endless").await, Vec::<String>::new());
    eventually("every promise is given back", async || {
        gateway.services.room.figures().unwrap().promised == 0
    })
    .await;
    gateway.stop().await;
}

/// A tombstone needs room before the file gives any.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_on_a_full_disk_goes_and_stays_gone() {
    let Some(disk) = SmallDisk::mount("disk_full", 24) else { return };
    let gateway = disk.gateway().await;
    let mut paths = Vec::new();
    for n in 0..30 {
        let (status, answer) = gateway.upload(&format!("s{}", n % 3), webm(1000, n)).await;
        assert_eq!(status, 200);
        paths.push(answer["file_path"].as_str().unwrap().to_owned());
    }
    eventually("there is a reserve", async || reserve_bytes(&gateway) >= 4 << 20).await;
    disk.fill(0);
    for path in &paths[..10] {
        let (status, answer) = gateway.delete(&format!("/recordings/{path}")).await;
        assert_eq!(status, 200, "{answer}");
        assert!(!gateway.recordings_dir().join(path).exists());
    }
    assert_eq!(gateway.delete("/recordings/s1").await.0, 200, "a whole session");
    assert_eq!(reserve_bytes(&gateway), 0, "it was needed");
    disk.make_room();
    eventually("it is made again", async || reserve_bytes(&gateway) >= 4 << 20).await;
    let gateway = gateway.restart().await;
    assert!(gateway.names("s1").await.is_empty());
    let left = gateway.names("s0").await.len() + gateway.names("s2").await.len();
    let expected = paths[10..].iter().filter(|path| !path.starts_with("s1/")).count();
    assert_eq!(left, expected);
    gateway.stop().await;
}

/// It starts, and everything but an upload works.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_on_a_full_disk() {
    let Some(disk) = SmallDisk::mount("disk_full", 24) else { return };
    let gateway = disk.gateway().await;
    let bytes = webm(200_000, 1);
    let mut paths = Vec::new();
    for _ in 0..3 {
        let (_, answer) = gateway.upload("s", bytes.clone()).await;
        paths.push(answer["file_path"].as_str().unwrap().to_owned());
    }
    eventually("there is a reserve", async || reserve_bytes(&gateway) >= 4 << 20).await;
    let settings = vec![("storage.min_free".to_owned(), "1MiB".to_owned())];
    let dir = gateway.stop().await;
    disk.fill(0);
    let gateway = Gateway::start_in(dir, settings).await;
    // What the start did not need of the reserve somebody else takes.
    let more = std::fs::write(disk.path().join("more"), vec![0; usize::try_from(disk.free()).unwrap()]);
    // The gateway's background may have been faster with some of it.
    assert!(more.is_ok() || more.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
    assert_eq!(gateway.names("s").await.len(), 3);
    assert!(gateway.bytes(&paths[0]).await == bytes);
    let answer = exchange(&gateway.url, upload("s", &RawForm::new().file(webm(1000, 2)).end())).await;
    assert_eq!((answer.status, answer.code().as_str()), (507, "storage_full"));
    assert_eq!(gateway.get("/readyz").await.status(), 503);
    assert_eq!(gateway.get("/healthz").await.status(), 200);
    disk.make_room();
    std::fs::remove_file(disk.path().join("more")).unwrap();
    assert_eq!(gateway.delete(&format!("/recordings/{}", paths[0])).await.0, 200);
    assert_eq!(gateway.upload("s", bytes).await.0, 200);
    gateway.stop().await;
}

/// Work that waits is what makes room: a disk that is full because the cloud was away heals by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_drains_when_the_cloud_is_back() {
    let Some(disk) = SmallDisk::mount("disk_full", 24) else { return };
    let cloud = FakeSupabase::start().await;
    let settings = cloud_settings(&cloud);
    let settings: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    cloud.stop().await;
    let gateway = disk.gateway_with(&settings).await;
    let mut paths = Vec::new();
    for n in 0..8 {
        let (status, answer) = gateway.upload("s", webm(300_000, n)).await;
        assert_eq!((status, &answer["storage_type"]), (200, &"local".into()), "{answer}");
        paths.push(answer["file_path"].as_str().unwrap().to_owned());
    }
    disk.fill(0);
    cloud.restart_on_same_port().await;
    paths.sort();
    eventually("all of it is in the bucket", async || {
        let mut keys = cloud.keys(BUCKET);
        keys.sort();
        keys == paths && gateway.services.catalog.counts().await.unwrap().unsynced == 0
    })
    .await;
    eventually("nothing is left here", async || !gateway.recordings_dir().join("s").exists()).await;
    disk.make_room();
    gateway.stop().await;
}

/// What is cached is given up for an upload, and never taken in where an upload may need the room.
#[tokio::test(flavor = "multi_thread")]
async fn the_cache_gives_way_to_uploads() {
    let Some(disk) = SmallDisk::mount("disk_full", 48) else { return };
    let cloud = FakeSupabase::start().await;
    let mut settings = cloud_settings(&cloud);
    settings.extend(
        [("download.via", "proxy"), ("download.cache_bytes", "1GiB"), ("storage.min_free", "6MiB")]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    let settings: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let gateway = disk.gateway_with(&settings).await;
    let cached = || std::fs::read_dir(gateway.recordings_dir().join(".cache")).unwrap().count();
    let mut paths = Vec::new();
    for n in 0..4 {
        let (status, answer) = gateway.upload("s", webm(6 << 20, n)).await;
        assert_eq!((status, &answer["storage_type"]), (200, &"supabase".into()), "{answer}");
        paths.push(answer["file_path"].as_str().unwrap().to_owned());
    }
    for (n, path) in paths.iter().enumerate() {
        for _ in 0..2 {
            gateway.bytes(path).await;
        }
        // 48 - 4 (reserve) - 2 times 6 (the mark) - 8: room for three of them.
        eventually("it is cached", async || cached() == (n + 1).min(3)).await;
        gateway.settle().await;
    }
    assert_eq!(cached(), 3, "the fourth would take room that uploads may need");
    assert!(gateway.services.room.figures().unwrap().lacking() == 0);
    // Needs more than is free above the mark.
    let large = webm(22 << 20, 9);
    let (status, answer) = gateway.upload("s", large.clone()).await;
    assert_eq!(status, 200, "{answer}");
    assert!(cached() < 3, "the cache kept its room");
    assert!(gateway.bytes(answer["file_path"].as_str().unwrap()).await == large);
    // Somebody else fills the disk: the cache goes before the mark is reached.
    disk.fill(7 << 20);
    eventually("the cache is empty", async || cached() == 0).await;
    disk.make_room();
    gateway.stop().await;
}
