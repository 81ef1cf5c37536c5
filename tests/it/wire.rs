//! The gateway behind a wire that is broken in every way we know: whatever was answered with success can be read, byte
//! for byte, and once the wire is well everything is in the bucket, once.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::support::cloud::{BUCKET, rows};
use crate::support::eventually;
use crate::support::fake_supabase::FakeSupabase;
use crate::support::gateway::Gateway;
use crate::support::media::webm;
use crate::support::wire_proxy::{Wire, WireProxy};

/// Failures that open no breaker.
const NEVER: &str = "1000";

/// A recording that was answered with success.
struct Kept {
    session: String,
    path: String,
    bytes: Vec<u8>,
}

/// A gateway whose way to the cloud leads through the proxy; objects of 1 MiB and more are synced in pieces.
struct Line {
    cloud: FakeSupabase,
    proxy: WireProxy,
    gateway: Gateway,
    /// Whether what waits is pushed; a line whose breaker opens has the product do that.
    hurries: bool,
}

impl Line {
    /// `failures` in a row open the breaker, whose pauses grow: few tests have time for them.
    async fn start(failures: &str) -> Self {
        let cloud = FakeSupabase::start().await;
        let proxy = WireProxy::start(cloud.address());
        let url = proxy.url();
        let settings = [
            ("supabase.url", url.as_str()),
            ("supabase.patience", "1s"),
            ("supabase.idle_timeout", "1s"),
            ("supabase.list_timeout", "1s"),
            ("supabase.resumable_from", "1MiB"),
            ("supabase.breaker_failures", failures),
            ("sync.interval", "200ms"),
        ];
        let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
        Self { cloud, proxy, gateway, hurries: failures == NEVER }
    }

    /// Uploads one recording of each size, each of which must be answered with success, wherever it is.
    async fn upload(&self, session: &str, sizes: &[usize]) -> Vec<Kept> {
        let mut kept = Vec::new();
        for (seed, size) in sizes.iter().enumerate() {
            let bytes = webm(*size, seed as u64);
            let (status, answer) = self.gateway.upload(session, bytes.clone()).await;
            assert_eq!(status, 200, "{answer}");
            let path = answer["file_path"].as_str().unwrap().to_owned();
            kept.push(Kept { session: session.to_owned(), path, bytes });
        }
        kept
    }

    /// Every one is whole where it counts: here, or in the bucket. At no moment is it in neither.
    fn assert_safe(&self, kept: &[Kept]) {
        for one in kept {
            // In this order: a copy goes from here to there, never back.
            let here = std::fs::read(self.gateway.recordings_dir().join(&one.path));
            let is_here = here.is_ok_and(|bytes| bytes == one.bytes);
            let is_there = || self.cloud.object(BUCKET, &one.path).is_some_and(|o| o.bytes == one.bytes);
            assert!(is_here || is_there(), "{} is in neither place whole", one.path);
        }
    }

    /// What was put off after failures is due now, as it is when the cloud is found to be back.
    async fn hurry(&self) {
        if !self.hurries {
            return;
        }
        let now = i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000).unwrap();
        self.gateway.services.catalog.hurry_jobs(now).await.unwrap();
        self.gateway.services.bell.send_replace(());
    }

    /// Everything gets to the bucket, once, and is read as it was sent.
    async fn drains(&self, kept: &[Kept]) {
        self.gateway.settle().await;
        eventually("everything is in the bucket and nothing is here", async || {
            self.assert_safe(kept);
            self.hurry().await;
            let counts = self.gateway.services.catalog.counts().await.unwrap();
            counts.unsynced == 0 && counts.jobs == 0
        })
        .await;
        let mut expected: Vec<&str> = kept.iter().map(|one| one.path.as_str()).collect();
        expected.sort_unstable();
        assert_eq!(self.cloud.keys(BUCKET), expected, "each once and nothing else");
        for one in kept {
            assert!(!self.gateway.recordings_dir().join(&one.path).exists(), "{} is still here", one.path);
            assert!(self.cloud.object(BUCKET, &one.path).unwrap().bytes == one.bytes, "{}", one.path);
            assert!(self.gateway.bytes(&one.path).await == one.bytes, "{}", one.path);
            let rows = rows(&self.gateway, &one.session).await;
            let of_it: Vec<_> = rows.iter().filter(|row| row["file_path"] == one.path).collect();
            assert_eq!(of_it.len(), 1);
            assert_eq!(of_it[0]["stores"], serde_json::json!(["supabase"]), "{}", one.path);
        }
    }
}

/// Uploads and syncs behind a wire that becomes `wire`, then well again.
async fn behind(wire: Wire) {
    let line = Line::start(NEVER).await;
    // One that is to be synced when the wire breaks, and then some that are uploaded while it is broken.
    line.proxy.refuse();
    let mut kept = line.upload("before", &[3_000_000]).await;
    line.proxy.accept_again().await;
    line.proxy.becomes(wire);
    kept.extend(line.upload("during", &[2000, 400_000, 3_000_000]).await);
    line.assert_safe(&kept);
    for one in &kept {
        // What is here is served from here, however the wire is.
        if line.gateway.recordings_dir().join(&one.path).exists() {
            assert!(line.gateway.bytes(&one.path).await == one.bytes, "{wire:?}: {}", one.path);
        }
    }
    if breaks(wire) {
        eventually("the sync ran into it", async || {
            line.assert_safe(&kept);
            line.hurry().await;
            // Pieces get through a wire that breaks late, so all may arrive before the fourth break.
            let counts = line.gateway.services.catalog.counts().await.unwrap();
            line.proxy.broken() >= 4 || (line.proxy.broken() >= 1 && counts.unsynced == 0)
        })
        .await;
    }
    line.proxy.becomes(Wire::Well);
    line.drains(&kept).await;
    line.gateway.stop().await;
}

/// Whether connections do not survive it.
fn breaks(wire: Wire) -> bool {
    !matches!(wire, Wire::Well | Wire::Latency(_) | Wire::Bandwidth(_))
}

async fn behind_all(wires: &[Wire]) {
    let mut running: FuturesUnordered<_> = wires.iter().map(|wire| behind(*wire)).collect();
    while running.next().await.is_some() {}
}

/// reliability 32: a slow line slows nobody but itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_wire() {
    behind_all(&[Wire::Latency(Duration::from_millis(30)), Wire::Bandwidth(300_000)]).await;
}

/// reliability 27: resets anywhere, in questions and answers, and connections of the pool that are dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_resets() {
    behind_all(&[
        Wire::ResetUp(0),
        Wire::ResetUp(100),
        Wire::ResetUp(300_000),
        Wire::ResetUp(2_000_000),
        Wire::ResetDown(0),
        Wire::ResetDown(40),
        Wire::StalePool,
    ])
    .await;
}

/// reliability 20: a black hole, before and in the middle of a body; and a connection that is closed half.
#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_swallows() {
    behind_all(&[Wire::BlackHole(0), Wire::BlackHole(500_000), Wire::HalfClose(0), Wire::HalfClose(500_000)])
        .await;
}

/// reliability 21, 25, 26: answers that are cut, and answers that say the opposite of what was done.
#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_lies() {
    behind_all(&[Wire::Truncate(1), Wire::Truncate(120), Wire::Lie(200), Wire::Lie(500), Wire::Lie(503)])
        .await;
}

/// reliability 19, 33: the cloud is away for the whole run and back at its end: everything drains, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_is_away_for_the_whole_run() {
    let line = Line::start("3").await;
    line.proxy.refuse();
    let mut kept = Vec::new();
    for session in 0..4 {
        kept.extend(line.upload(&format!("s{session}"), &[1500, 20_000, 150_000, 1_200_000, 30_000]).await);
    }
    for one in &kept {
        assert!(line.gateway.bytes(&one.path).await == one.bytes, "{}", one.path);
    }
    // Long enough for the syncs to have failed more than once.
    eventually("the cloud is left alone", async || !line.gateway.services.stores.primary_takes_writes())
        .await;
    assert!(line.cloud.keys(BUCKET).is_empty());
    line.proxy.accept_again().await;
    line.drains(&kept).await;
    let created = |path: &str| {
        let requests = line.cloud.requests();
        let sent = requests.iter().filter(|r| r.method == "POST" && r.path.ends_with(path));
        sent.filter(|r| r.status == Some(200)).count()
    };
    for one in kept.iter().filter(|one| one.bytes.len() < 1 << 20) {
        assert_eq!(created(&one.path), 1, "{} was sent more than once", one.path);
    }
    line.gateway.stop().await;
}

/// reliability 19, 21, 27: a wire that is another one every moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_wire_that_keeps_changing() {
    let line = Line::start(NEVER).await;
    let mut kept = Vec::new();
    let wires = [
        Wire::ResetUp(200_000),
        Wire::Lie(500),
        Wire::StalePool,
        Wire::Truncate(60),
        Wire::Well,
        Wire::HalfClose(100_000),
        Wire::ResetDown(10),
        Wire::Lie(200),
    ];
    for (turn, wire) in wires.into_iter().enumerate() {
        line.proxy.becomes(wire);
        kept.extend(line.upload(&format!("s{turn}"), &[100_000, 1_300_000]).await);
        line.assert_safe(&kept);
    }
    line.proxy.becomes(Wire::Well);
    line.drains(&kept).await;
    line.gateway.stop().await;
}

/// reliability 19: a name that nobody knows, and a server that does not speak TLS.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_leads_nowhere() {
    let cloud = FakeSupabase::start().await;
    let no_tls = cloud.url().replace("http://", "https://");
    for url in ["http://nowhere.invalid", &no_tls] {
        let settings = [
            ("supabase.url", url),
            ("supabase.key", "key"),
            ("supabase.patience", "1s"),
            ("supabase.connect_timeout", "1s"),
            ("supabase.breaker_pause", "60s"),
            ("sync.interval", "200ms"),
        ];
        let gateway = Gateway::start(&settings).await;
        let bytes = webm(300_000, 1);
        let (status, answer) = gateway.upload("s", bytes.clone()).await;
        assert_eq!((status, &answer["storage_type"]), (200, &serde_json::json!("local")), "{url}: {answer}");
        assert!(gateway.bytes(answer["file_path"].as_str().unwrap()).await == bytes);
        eventually("it is left alone after a few", async || !gateway.services.stores.primary_takes_writes())
            .await;
        let status = gateway.services.stores.primary_status().unwrap();
        let cause = status.cause.unwrap_or_default();
        assert!(cause.starts_with("supabase: "), "{url}: it is named: {cause}");
        assert_eq!(gateway.services.catalog.counts().await.unwrap().jobs, 1, "{url}: it is scheduled");
        gateway.stop().await;
    }
    assert!(cloud.keys(BUCKET).is_empty());
}
