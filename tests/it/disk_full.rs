//! A disk without room: refused in time where it can be known, else given up without a trace; and the gateway goes on
//! when there is room again.

use std::path::Path;
use std::process::Command;

use crate::support::eventually;
use crate::support::gateway::Gateway;
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
        let dir = tempfile::tempdir_in(self.path()).unwrap();
        Gateway::start_in(dir, vec![("storage.min_free".into(), "0".into())]).await
    }

    /// Takes all the room but `left` bytes.
    fn fill(&self, left: u64) {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        std::fs::write(self.path().join("ballast"), vec![0; usize::try_from(free - left).unwrap()]).unwrap();
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
