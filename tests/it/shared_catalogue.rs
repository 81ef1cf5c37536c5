//! Several gateways on one catalogue in PostgreSQL: each shows, serves and deletes what the others hold; and what they
//! do when that catalogue fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::join_all;
use recording_gateway::domain::ObjectKey;
use reqwest::Response;
use reqwest::multipart::Form;
use serde_json::Value;
use url::Url;

use crate::support::cloud::{BUCKET, rows};
use crate::support::eventually;
use crate::support::fake_supabase::{FakeSupabase, Fault, Matcher};
use crate::support::gateway::{Gateway, cloud_settings, file_part};
use crate::support::media::webm;
use crate::support::postgres::{self, OwnServer};

use self::line::{Break, Line};

mod gone;
mod line;

type Settings<'a> = &'a [(&'a str, &'a str)];

async fn gateway(url: &Url, node: &str, cloud: Option<&FakeSupabase>, more: Settings<'_>) -> Gateway {
    let mut settings = cloud.map(cloud_settings).unwrap_or_default();
    let own = [("catalog.url", url.as_str()), ("server.node", node), ("sync.interval", "1s")];
    settings.extend(own.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    Gateway::start_in(tempfile::tempdir().unwrap(), settings).await
}

/// Keeps a recording there and returns its path and bytes.
async fn keep(gateway: &Gateway, session: &str, len: usize, seed: u64) -> (String, Vec<u8>) {
    let bytes = webm(len, seed);
    let (status, answer) = gateway.upload(session, bytes.clone()).await;
    assert_eq!(status, 200, "{answer}");
    (answer["file_path"].as_str().unwrap().to_owned(), bytes)
}

/// What an answer says to a client, without what differs from request to request.
async fn told(response: Response) -> (u16, BTreeMap<String, String>, Vec<u8>) {
    let headers = response.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    let mut headers: BTreeMap<String, String> = headers.collect();
    headers.remove("date");
    headers.remove("x-request-id");
    let mut told = (response.status().as_u16(), headers, response.bytes().await.unwrap().to_vec());
    if told.1.get("content-type").is_some_and(|kind| kind == "application/problem+json") {
        told.2 = Vec::new();
    }
    told
}

/// Lists of a session and of all sessions, as text.
async fn lists(gateway: &Gateway, session: &str) -> [String; 2] {
    let text = async |path: String| gateway.get(&path).await.text().await.unwrap();
    [text(format!("/recordings/{session}/list")).await, text("/recordings".into()).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_disk_has_is_read_through_every_gateway() {
    let Some(url) = postgres::database("reading through another gateway").await else { return };
    let (east, west) = (gateway(&url, "east", None, &[]).await, gateway(&url, "west", None, &[]).await);
    let (path, bytes) = keep(&east, "s", 3_000_000, 1).await;
    let tag = format!("\"{}\"", crate::support::media::sha256(&bytes));
    let conditions: [&[(&str, &str)]; 9] = [
        &[],
        &[("range", "bytes=0-99")],
        &[("range", "bytes=1000000-")],
        &[("range", "bytes=-5")],
        &[("range", "bytes=9000000-")],
        &[("range", "bytes=0-99"), ("if-range", &tag)],
        &[("range", "bytes=0-99"), ("if-range", "\"other\"")],
        &[("if-none-match", &tag)],
        &[("if-match", "\"other\"")],
    ];
    for suffix in ["/content", "/content?via=redirect", "/download", ""] {
        for method in ["GET", "HEAD"] {
            for condition in conditions {
                let ask = async |gateway: &Gateway| {
                    let mut request = gateway.request(method, &format!("/recordings/{path}{suffix}"));
                    for (name, value) in condition {
                        request = request.header(*name, *value);
                    }
                    told(request.send().await.unwrap()).await
                };
                let (here, there) = (ask(&east).await, ask(&west).await);
                assert!(here == there, "{method} {suffix} {condition:?}: {:?} {:?}", here.1, there.1);
            }
        }
    }
    assert!(west.bytes(&path).await == bytes);
    assert_eq!(told(west.get("/recordings/s/download").await).await.2, bytes);
    assert_eq!(lists(&east, "s").await, lists(&west, "s").await);
    assert!(!west.recordings_dir().join(&path).exists(), "nothing is kept on the way");
    east.stop().await;
    west.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_away_is_named_and_its_recordings_are_shown() {
    let Some(url) = postgres::database("another gateway that is away").await else { return };
    let (east, west) = (gateway(&url, "east", None, &[]).await, gateway(&url, "west", None, &[]).await);
    let (path, bytes) = keep(&east, "s", 50_000, 1).await;
    let (away, before) = (east.url.clone(), lists(&east, "s").await);
    // A file that the row does not mean: the same name and size on the other disk.
    let file = west.recordings_dir().join(&path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, vec![7; bytes.len()]).unwrap();
    assert!(west.bytes(&path).await == bytes, "never the file of the same name");
    let (dir, settings) = east.crash().await;
    for method in ["GET", "HEAD"] {
        for suffix in ["content", "download"] {
            let response =
                west.request(method, &format!("/recordings/{path}/{suffix}")).send().await.unwrap();
            assert_eq!(response.status(), 503, "{method} {suffix}");
            assert_eq!(response.headers()["retry-after"], "10");
            if method == "GET" {
                let problem: Value = response.json().await.unwrap();
                assert_eq!(problem["code"], "peer_unavailable", "{problem}");
                let detail = problem["detail"].as_str().unwrap();
                assert!(detail.contains("east") && detail.contains(&away), "{detail}");
            }
        }
    }
    assert_eq!(lists(&west, "s").await, before);
    assert_eq!(west.get(&format!("/recordings/{path}")).await.status(), 200);
    // Back, on another port.
    let east = Gateway::start_in(dir, settings).await;
    assert!(west.bytes(&path).await == bytes);
    east.stop().await;
    west.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_asks_in_circles_nor_by_any_address() {
    let Some(url) = postgres::database("gateways that ask in circles").await else { return };
    let quiet: Settings<'_> = &[("sync.interval", "1h")];
    let (east, west) = (gateway(&url, "east", None, quiet).await, gateway(&url, "west", None, quiet).await);
    let (path, bytes) = keep(&east, "s", 5000, 1).await;
    assert!(west.bytes(&path).await == bytes);
    let content = format!("/recordings/{path}/content");
    let hop = async |gateway: &Gateway, id: &str| {
        let response = gateway.request("GET", &content).header("gateway-hop", id).send().await.unwrap();
        response.status().as_u16()
    };
    let id = |gateway: &Gateway| gateway.services.catalog.gateway_id().to_string();
    assert_eq!(hop(&east, &id(&east)).await, 200);
    assert_eq!(hop(&west, &id(&west)).await, 421, "who is asked asks nobody");
    assert_eq!(hop(&west, &id(&east)).await, 421, "meant for another");
    // Addresses that lead to the wrong gateway, back to itself, or nowhere.
    let stranger = Gateway::local().await;
    for wrong in
        [west.url.as_str(), &stranger.url, "ftp://127.0.0.1/", "file:///etc/passwd", "", "http://[::1]:1/"]
    {
        east.services.catalog.register("east", wrong).await.unwrap();
        assert_eq!(west.get(&content).await.status(), 503, "{wrong}");
        let (_, answer) = (west.get(&content).await.status(), lists(&west, "s").await);
        assert!(answer[0].contains(&path));
    }
    // One that answers with something else under the same name.
    let other = stranger.recordings_dir().join(&path);
    std::fs::create_dir_all(other.parent().unwrap()).unwrap();
    std::fs::write(&other, webm(5000, 2)).unwrap();
    east.services.catalog.register("east", &stranger.url).await.unwrap();
    assert_eq!(west.get(&content).await.status(), 503);
    east.services.catalog.register("east", &format!("{}/", east.url)).await.unwrap();
    assert!(west.bytes(&path).await == bytes);
    for gateway in [east, west, stranger] {
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_disk_has_is_deleted_at_once() {
    let Some(url) = postgres::database("deleting through another gateway").await else { return };
    let cloud = FakeSupabase::start().await;
    let keep_local: Settings<'_> = &[("sync.keep_local", "true"), ("supabase.patience", "20s")];
    let east = gateway(&url, "east", Some(&cloud), keep_local).await;
    let west = gateway(&url, "west", Some(&cloud), keep_local).await;
    cloud.fault(Fault::internal_error(), Matcher::any());
    let mut kept = Vec::new();
    for seed in 0..5 {
        let session = if seed == 0 { "one" } else { "many" };
        kept.push(keep(&east, session, 4000, seed).await.0);
    }
    cloud.clear_faults();
    eventually("all are in both places", async || cloud.keys(BUCKET).len() == 5).await;
    eventually("and the rows say so", async || {
        rows(&west, "one")
            .await
            .iter()
            .chain(&rows(&west, "many").await)
            .all(|row| row["stores"] == serde_json::json!(["supabase", "local"]))
    })
    .await;
    let file = |path: &str| east.recordings_dir().join(path);
    let name = kept[0].rsplit('/').next().unwrap();
    let (status, answer) = west.delete(&format!("/recordings/{}", kept[0])).await;
    assert_eq!((status, &answer["pending"]), (200, &Value::Null), "{answer}");
    let message =
        format!("Recording deleted from Supabase: {name} Recording deleted from local storage: {name}");
    assert_eq!(answer["message"], message);
    assert!(!file(&kept[0]).exists(), "gone when the answer is there");
    let (status, answer) = west.delete("/recordings/many").await;
    assert_eq!((status, &answer["deleted_count"]), (200, &4.into()), "{answer}");
    assert!(kept.iter().all(|path| !file(path).exists()) && cloud.keys(BUCKET).is_empty());
    for gateway in [&east, &west] {
        assert_eq!(gateway.get_json("/recordings").await["total_count"], 0);
        assert_eq!(gateway.delete(&format!("/recordings/{}", kept[0])).await.0, 404);
    }
    assert_eq!(east.services.catalog.counts().await.unwrap().jobs, 0, "nothing is left to do");
    east.stop().await;
    west.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_while_its_gateway_is_away_goes_when_it_is_back() {
    let Some(url) = postgres::database("deleting while a gateway is away").await else { return };
    let (east, west) = (gateway(&url, "east", None, &[]).await, gateway(&url, "west", None, &[]).await);
    let (path, _) = keep(&east, "s", 4000, 1).await;
    let (other, _) = keep(&east, "t", 4000, 2).await;
    let (dir, settings) = east.crash().await;
    let (status, answer) = west.delete(&format!("/recordings/{path}")).await;
    assert_eq!((status, &answer["pending"]), (202, &serde_json::json!(["local"])), "{answer}");
    let name = path.rsplit('/').next().unwrap();
    assert_eq!(answer["message"], format!("Deletion from local storage is pending: {name}"));
    let (status, answer) = west.delete("/recordings/t").await;
    assert_eq!((status, &answer["pending"]), (202, &serde_json::json!(["local"])), "{answer}");
    assert_eq!(west.get_json("/recordings").await["total_count"], 0);
    assert_eq!(west.get(&format!("/recordings/{path}/content")).await.status(), 404);
    assert!(dir.path().join("recordings").join(&path).exists());
    assert_eq!(west.delete(&format!("/recordings/{path}")).await.0, 202, "asked again, still pending");
    let east = Gateway::start_in(dir, settings).await;
    assert_eq!(east.get_json("/recordings").await["total_count"], 0);
    for path in [&path, &other] {
        let file = east.recordings_dir().join(path);
        eventually("the file goes", async || !file.exists()).await;
    }
    eventually("it is confirmed", async || west.delete(&format!("/recordings/{path}")).await.0 == 404).await;
    east.stop().await;
    west.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_delete_the_same_at_once_leave_no_file() {
    let Some(url) = postgres::database("two gateways that delete the same").await else { return };
    let gateways = [
        gateway(&url, "a", None, &[]).await,
        gateway(&url, "b", None, &[]).await,
        gateway(&url, "c", None, &[]).await,
    ];
    for seed in 0..12 {
        let (path, _) = keep(&gateways[0], "s", 3000, seed).await;
        let target = format!("/recordings/{path}");
        let answers = join_all(gateways.iter().map(|gateway| gateway.delete(&target))).await;
        assert!(answers.iter().any(|(status, _)| *status < 300), "{answers:?}");
        assert!(answers.iter().all(|(status, _)| matches!(status, 200 | 202 | 404)), "{answers:?}");
        let file = gateways[0].recordings_dir().join(&path);
        eventually("the file is gone", async || !file.exists()).await;
        let key = ObjectKey::parse(&path).unwrap();
        eventually("and that is confirmed", async || {
            gateways[1].services.catalog.tombstone(&key).await.unwrap().unwrap().pending.is_empty()
        })
        .await;
    }
    for gateway in gateways {
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_gateways_come_and_go_and_nothing_is_lost_doubled_or_brought_back() {
    let Some(url) = postgres::database("three gateways that come and go").await else { return };
    let cloud = FakeSupabase::start().await;
    let start = async || gateway(&url, "", Some(&cloud), &[("supabase.patience", "1s")]).await;
    let mut gateways = vec![start().await, start().await, start().await];
    let (mut stored, mut deleted) = (BTreeMap::new(), BTreeSet::new());
    for round in 0..4u64 {
        if round % 2 == 1 {
            cloud.fault(Fault::internal_error(), Matcher::any());
        } else {
            cloud.clear_faults();
        }
        // All at once, to one session, in one second.
        let uploads = (0..18u64).map(|n| keep(&gateways[n as usize % 3], "s", 3000, round * 100 + n));
        for (path, bytes) in join_all(uploads).await {
            assert!(stored.insert(path.clone(), bytes).is_none(), "{path} was given twice");
        }
        let shown: BTreeSet<String> = stored.keys().cloned().collect();
        for gateway in &gateways {
            let listed = rows(gateway, "s").await.into_iter();
            let listed: BTreeSet<String> =
                listed.map(|row| row["file_path"].as_str().unwrap().to_owned()).collect();
            assert_eq!(listed, shown);
        }
        // Deleted through whoever is next, while one crashes and comes back.
        let doomed: Vec<String> = stored.keys().step_by(4).cloned().collect();
        let (dir, settings) = gateways.remove(0).crash().await;
        let deletions = doomed.iter().enumerate().map(|(n, path)| {
            let gateway = &gateways[n % 2];
            async move { (path, gateway.delete(&format!("/recordings/{path}")).await) }
        });
        for (path, (status, answer)) in join_all(deletions).await {
            assert!(matches!(status, 200 | 202), "{answer}");
            stored.remove(path);
            deleted.insert(path.clone());
        }
        gateways.push(Gateway::start_in(dir, settings).await);
    }
    cloud.clear_faults();
    eventually("everything is in the bucket, once", async || {
        cloud.keys(BUCKET).into_iter().eq(stored.keys().cloned())
    })
    .await;
    for (path, bytes) in &stored {
        assert!(cloud.object(BUCKET, path).unwrap().bytes == *bytes, "{path}");
        for gateway in &gateways {
            assert!(gateway.bytes(path).await == *bytes, "{path}");
        }
    }
    eventually("every local copy is gone", async || {
        let files = gateways.iter().map(|gateway| gateway.recordings_dir().join("s"));
        files.filter_map(|dir| std::fs::read_dir(dir).ok()).all(|dir| dir.count() == 0)
    })
    .await;
    for gateway in gateways {
        for path in &deleted {
            assert_eq!(gateway.get(&format!("/recordings/{path}/content")).await.status(), 404);
        }
        gateway.stop().await;
    }
}

/// Sends a recording under a key again and again until it is kept, as a careful client does. Returns its path.
async fn insist(gateway: &Gateway, key: &str, bytes: &[u8]) -> String {
    let mut kept = None;
    eventually("the upload is kept", async || {
        let form = Form::new().part("recording", file_part(bytes.to_vec(), "a.webm", "video/webm"));
        let request = gateway.request("POST", "/recordings/upload/s").header("idempotency-key", key);
        let response = request.multipart(form).send().await.unwrap();
        let status = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        match status {
            200 => kept = Some(answer["file_path"].as_str().unwrap().to_owned()),
            503 => assert_eq!(answer["code"], "catalogue_unavailable", "{answer}"),
            409 => assert_eq!(answer["code"], "idempotency_key_in_use", "{answer}"),
            _ => panic!("{status}: {answer}"),
        }
        kept.is_some()
    })
    .await;
    kept.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_that_goes_away_and_comes_back_costs_nothing_that_was_promised() {
    let Some(mut server) = OwnServer::start("a PostgreSQL that is stopped").await else { return };
    let url = server.database().await;
    let (east, west) = (gateway(&url, "east", None, &[]).await, gateway(&url, "west", None, &[]).await);
    let (path, bytes) = keep(&east, "s", 5000, 1).await;
    server.stop().await;
    let (status, answer) = east.upload("s", webm(5000, 2)).await;
    assert_eq!((status, &answer["code"]), (503, &"catalogue_unavailable".into()), "{answer}");
    let response = west.get("/recordings/s/list").await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let ready = west.get("/readyz").await;
    assert_eq!(ready.status(), 503);
    let parts: Value = ready.json().await.unwrap();
    assert!(parts.to_string().contains("catalogue"), "{parts}");
    assert_eq!(west.get("/healthz").await.status(), 200);
    let (status, answer) = west.delete(&format!("/recordings/{path}")).await;
    assert_eq!((status, &answer["code"]), (503, &"catalogue_unavailable".into()), "{answer}");
    server.start_again().await;
    eventually("they are ready again", async || {
        east.get("/readyz").await.status() == 200 && west.get("/readyz").await.status() == 200
    })
    .await;
    assert_eq!(rows(&west, "s").await.len(), 1, "what was refused is not there");
    assert!(west.bytes(&path).await == bytes);
    assert_eq!(keep(&west, "s", 5000, 3).await.1.len(), 5000);
    assert_eq!(east.delete(&format!("/recordings/{path}")).await.0, 200);
    east.stop().await;
    west.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_killed_under_load_cost_nothing() {
    let Some(url) = postgres::database("PostgreSQL connections that are killed").await else { return };
    let gateways = Arc::new([gateway(&url, "east", None, &[]).await, gateway(&url, "west", None, &[]).await]);
    let killer = tokio::spawn(async move {
        let admin = sqlx::PgPool::connect(url.as_str()).await.unwrap();
        // Not for ever: on a slow machine nobody would come to an end between two.
        for _ in 0..100 {
            let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE datname = current_database() AND pid <> pg_backend_pid()";
            let _ = sqlx::query(kill).execute(&admin).await;
            tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        }
    });
    let uploads = (0..40u64).map(|n| {
        let gateways = gateways.clone();
        async move {
            let bytes = webm(3000, n);
            let path = insist(&gateways[n as usize % 2], &format!("k{n}"), &bytes).await;
            (path, bytes)
        }
    });
    let stored: BTreeMap<String, Vec<u8>> = join_all(uploads).await.into_iter().collect();
    killer.await.unwrap();
    assert_eq!(stored.len(), 40, "each under a name of its own");
    settled(&gateways[..], &stored).await;
}

/// What was promised is there, readable through each gateway, and nothing else is; no upload is left half-way.
async fn settled(gateways: &[Gateway], stored: &BTreeMap<String, Vec<u8>>) {
    for gateway in gateways {
        eventually("the list is what was promised", async || {
            let response = gateway.get("/recordings/s/list?limit=1000").await;
            let list: Value = response.json().await.unwrap();
            let Some(rows) = list["recordings"].as_array() else { return false };
            let paths: BTreeSet<&str> = rows.iter().map(|row| row["file_path"].as_str().unwrap()).collect();
            rows.iter().all(|row| row["missing"] == false)
                && paths.len() == rows.len()
                && paths.into_iter().eq(stored.keys().map(String::as_str))
        })
        .await;
        for (path, bytes) in stored {
            assert!(gateway.bytes(path).await == *bytes, "{path}");
        }
        eventually("no file is left in the spool", async || {
            std::fs::read_dir(gateway.recordings_dir().join(".spool")).unwrap().count() == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_neither_lost_nor_doubled() {
    let Some(url) = postgres::database("PostgreSQL commits whose answer is lost").await else { return };
    let line = Line::start(url.port().unwrap());
    let mut through = url.clone();
    through.set_port(Some(line.port())).unwrap();
    let east = gateway(&through, "east", None, &[]).await;
    let mut stored = BTreeMap::new();
    let breaks = [Break::BeforeCommit, Break::AfterCommit, Break::AfterCommitForGood];
    // An upload makes a few transactions; others are the gateway's own at the same moment.
    for (n, kind) in (0..4).flat_map(|nth| breaks.map(|kind| (nth, kind))) {
        line.break_at(n, kind);
        let bytes = webm(3000, stored.len() as u64);
        let key = format!("{kind:?}{n}");
        let client = insist(&east, &key, &bytes);
        // For good: until the gateway has found it down, if it breaks at all.
        let mender = async {
            line.was_found_down().await;
            line.mend();
            std::future::pending().await
        };
        let path = tokio::select! {
            path = client => path,
            () = mender => unreachable!("it waits for the client"),
        };
        line.mend();
        assert!(stored.insert(path.clone(), bytes).is_none(), "{path} was given twice");
    }
    assert!(line.cuts() >= 8, "the line broke {} times", line.cuts());
    settled(std::slice::from_ref(&east), &stored).await;
    // Deletions alike.
    for (n, kind) in (0..3).flat_map(|nth| [Break::BeforeCommit, Break::AfterCommit].map(|kind| (nth, kind)))
    {
        let path = stored.keys().next().unwrap().clone();
        line.break_at(n, kind);
        eventually("it is deleted", async || {
            let (status, answer) = east.delete(&format!("/recordings/{path}")).await;
            assert!(matches!(status, 200 | 202 | 404 | 503), "{answer}");
            status == 200 || status == 404
        })
        .await;
        line.mend();
        stored.remove(&path);
        let file = east.recordings_dir().join(&path);
        eventually("its file is gone", async || !file.exists()).await;
    }
    settled(std::slice::from_ref(&east), &stored).await;
    let east = east.restart().await;
    settled(std::slice::from_ref(&east), &stored).await;
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_will_do() {
    let Some(url) = postgres::database("PostgreSQL behind a pooler").await else { return };
    let Some(pooled) = postgres::pooled("PostgreSQL behind a pooler", &url).await else { return };
    // The first one migrates, the others wait for it.
    let (east, west, north) = tokio::join!(
        gateway(&pooled, "east", None, &[]),
        gateway(&pooled, "west", None, &[]),
        gateway(&pooled, "north", None, &[])
    );
    let gateways = [east, west, north];
    let uploads = (0..45u64).map(|n| keep(&gateways[n as usize % 3], "s", 3000, n));
    let mut stored: BTreeMap<String, Vec<u8>> = join_all(uploads).await.into_iter().collect();
    assert_eq!(stored.len(), 45);
    settled(&gateways[..], &stored).await;
    let doomed: Vec<String> = stored.keys().step_by(3).cloned().collect();
    let deletions = doomed.iter().enumerate().map(|(n, path)| {
        let gateway = &gateways[n % 3];
        async move { gateway.delete(&format!("/recordings/{path}")).await }
    });
    for (status, answer) in join_all(deletions).await {
        assert_eq!(status, 200, "{answer}");
    }
    stored.retain(|path, _| !doomed.contains(path));
    settled(&gateways[..], &stored).await;
    for gateway in gateways {
        gateway.stop().await;
    }
}
