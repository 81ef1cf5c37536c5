//! Large objects on their way to the cloud by its resumable endpoint: what is continued, what is begun anew, and that
//! the server's word about its offset is the only one that counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use recording_gateway::domain::{ContentDigest, ObjectKey, StoreKind};
use recording_gateway::spool::{Spool, SpoolReader};
use recording_gateway::storage::memory::MemoryStore;
use recording_gateway::storage::pace::Pacer;
use recording_gateway::storage::supabase::{Access, SupabaseStore};
use recording_gateway::storage::tiered::{Deadline, PrimaryError, TieredStore, Waiting};
use recording_gateway::storage::{
    Background, ForThisCall, Kind, ObjectMeta, ObjectStore, Outcome, ResumePoint, StorageError,
};

use crate::support::cloud::{BUCKET, reaches_the_bucket, rows, seen_uploads, uploads};
use crate::support::eventually;
use crate::support::fake_supabase::{
    BucketSpec, Canned, FakeOptions, FakeSupabase, Fault, Matcher, SeenRequest,
};
use crate::support::gateway::Gateway;
use crate::support::media::{sha256, webm};
use crate::support::wire_proxy::{Wire, WireProxy};

const KEY: &str = "s/talk.webm";
const MIB: u64 = 1 << 20;

/// A store whose every object from 1 MiB on goes by the resumable endpoint, in requests of `PATCH` bytes.
struct Bench {
    cloud: FakeSupabase,
    store: Arc<SupabaseStore>,
    spool: Spool,
    point: ForThisCall,
    _dir: tempfile::TempDir,
}

const PATCH: u64 = 3 * MIB;

impl Bench {
    async fn start() -> Self {
        Self::with(FakeSupabase::start().await, PATCH, None)
    }

    fn with(cloud: FakeSupabase, patch_bytes: u64, proxy: Option<&WireProxy>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().join(".spool")).unwrap();
        let base = format!("{}/storage/v1", proxy.map_or(cloud.url(), WireProxy::url));
        let access = Access {
            base: url::Url::parse(&base).unwrap(),
            key: cloud.service_key(),
            bucket: BUCKET.to_owned(),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(20),
            question_timeout: Duration::from_secs(20),
            resumable_from: MIB,
            patch_bytes,
        };
        let store = Arc::new(SupabaseStore::new(access, true, None).unwrap());
        Self { cloud, store, spool, point: ForThisCall::default(), _dir: dir }
    }

    async fn source(&self, bytes: &[u8]) -> SpoolReader {
        let mut writer = self.spool.create(&uuid::Uuid::now_v7().to_string()).unwrap();
        writer.push(bytes).await.unwrap();
        writer.finish().await.unwrap().publish()
    }

    /// One try.
    async fn put(&self, bytes: &[u8], upload_id: &str) -> Result<(), StorageError> {
        let (source, about) = (self.source(bytes).await, meta(bytes, upload_id));
        let background = Background { resume: &self.point, pacer: &Pacer::new(0), accepted: &|| {} };
        self.store.put_in_background(&key(), &source, &about, background).await
    }

    fn tiered(&self, pacer: Pacer) -> TieredStore {
        let local = Arc::new(MemoryStore::new(StoreKind::Local));
        let (patience, breaker) = (Duration::from_secs(30), (10, Duration::from_secs(1)));
        let primary: Arc<dyn ObjectStore> = self.store.clone();
        TieredStore::new(Some(primary), local, patience, breaker, patience, pacer)
    }

    async fn push(&self, stores: &TieredStore, bytes: &[u8]) -> Result<(), PrimaryError> {
        let (source, about) = (self.source(bytes).await, meta(bytes, "one"));
        let size = Some(bytes.len() as u64);
        stores.put_primary(&key(), &source, size, &about, Waiting::Nobody(Some(&self.point))).await
    }

    fn seen(&self, method: &str) -> Vec<SeenRequest> {
        resumable_requests(&self.cloud, method)
    }

    fn assert_stored(&self, bytes: &[u8]) {
        assert_eq!(self.cloud.keys(BUCKET), [KEY]);
        assert!(self.cloud.object(BUCKET, KEY).unwrap().bytes == bytes, "other bytes than were sent");
    }
}

fn resumable_requests(cloud: &FakeSupabase, method: &str) -> Vec<SeenRequest> {
    let wanted = |r: &SeenRequest| r.method == method && r.path.contains("/upload/resumable");
    cloud.requests().into_iter().filter(wanted).collect()
}

fn received(patches: &[SeenRequest]) -> u64 {
    patches.iter().map(|request| request.body_len).sum()
}

fn key() -> ObjectKey {
    ObjectKey::parse(KEY).unwrap()
}

fn meta(bytes: &[u8], upload_id: &str) -> ObjectMeta {
    ObjectMeta {
        content_type: "video/webm".into(),
        upload_id: upload_id.into(),
        sha256: ContentDigest::from_hex(&sha256(bytes)),
        original_filename: Some("Gespräch März.webm".into()),
    }
}

fn patches() -> Matcher {
    Matcher::any().method("PATCH").path("/upload/resumable/")
}

fn questions() -> Matcher {
    Matcher::any().method("HEAD").path("/upload/resumable/")
}

fn assert_is(error: &StorageError, kind: Kind, outcome: Outcome) {
    assert_eq!((error.kind, error.outcome), (kind, outcome), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_ones_go_in_pieces_and_small_ones_in_one_request_with_the_same_about_them() {
    let bench = Bench::start().await;
    let large = webm(8_000_000, 1);
    bench.put(&large, "one").await.unwrap();
    bench.assert_stored(&large);
    assert_eq!(bench.seen("POST").len(), 1);
    let lengths: Vec<u64> = bench.seen("PATCH").iter().map(|request| request.body_len).collect();
    assert_eq!(lengths, [PATCH, PATCH, 8_000_000 - 2 * PATCH], "bounded, and nothing twice");
    assert_eq!(bench.seen("HEAD").len(), 0, "nothing was in doubt");
    assert_eq!(bench.point.load().await, None, "what is finished is not continued");
    let of_large = bench.cloud.object(BUCKET, KEY).unwrap();

    let bench = Bench::start().await;
    bench.put(&webm(1_000_000, 1), "one").await.unwrap();
    assert_eq!((bench.seen("POST").len(), seen_uploads(&bench.cloud).len()), (0, 1));
    let of_small = bench.cloud.object(BUCKET, KEY).unwrap();
    let about = |o: &crate::support::fake_supabase::StoredObject| {
        let mut metadata = o.metadata.clone();
        assert!(metadata.as_object_mut().unwrap().remove("sha256").is_some());
        (o.content_type.clone(), o.cache_control.clone(), metadata)
    };
    assert_eq!(about(&of_large), about(&of_small));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_the_server_believes_in_is_not_believed() {
    let options =
        FakeOptions { public_url: Some("https://files.example/x".into()), ..FakeOptions::default() };
    let bench = Bench::with(FakeSupabase::start_with(options).await, PATCH, None);
    let bytes = webm(4_000_000, 1);
    bench.put(&bytes, "one").await.unwrap();
    bench.assert_stored(&bytes);
    assert!(bench.seen("PATCH").iter().all(|request| request.path.starts_with("/storage/v1/upload/")));
}

/// reliability 27: a reset in the middle costs what was on its way, however often.
#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_the_line_broke() {
    let cloud = FakeSupabase::start().await;
    let proxy = WireProxy::start(cloud.address());
    let bench = Bench::with(cloud, 64 * MIB, Some(&proxy));
    let bytes = webm(20 << 20, 1);
    proxy.becomes(Wire::ResetUp(3 * MIB));
    bench.push(&bench.tiered(Pacer::new(0)), &bytes).await.unwrap();
    bench.assert_stored(&bytes);
    assert!(proxy.broken() >= 6, "{}", proxy.broken());
    assert_eq!(bench.seen("POST").len(), 1, "it was begun once");
    assert_eq!(received(&bench.seen("PATCH")), 20 * MIB, "nothing was sent that had arrived");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_call_goes_on_where_an_earlier_one_gave_up() {
    let cloud = FakeSupabase::start().await;
    let proxy = WireProxy::start(cloud.address());
    let bench = Bench::with(cloud, PATCH, Some(&proxy));
    let bytes = webm(8_000_000, 1);
    // Two pieces arrive, then nothing does.
    let dead = bench.cloud.fault(Fault::internal_error(), patches().skip(2));
    let error = bench.put(&bytes, "one").await.unwrap_err();
    assert_is(&error, Kind::Unavailable, Outcome::NotApplied);
    assert!(bench.cloud.object(BUCKET, KEY).is_none(), "nothing is visible before the last byte");
    assert!(bench.point.load().await.is_some());
    dead.remove();
    bench.cloud.forget_requests();
    bench.put(&bytes, "one").await.unwrap();
    bench.assert_stored(&bytes);
    assert_eq!(bench.seen("POST").len(), 0, "it was not begun anew");
    assert_eq!(received(&bench.seen("PATCH")), 8_000_000 - 2 * PATCH);
}

/// reliability 24, 25: the answer to the last piece is lost; the offset says that it arrived, and so does a repeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_last_answer_is_asked_about() {
    for question_fails in [false, true] {
        let bench = Bench::start().await;
        let bytes = webm(4_000_000, 1);
        bench.cloud.fault(Fault::StoredThenReset, patches().skip(1).times(1));
        if question_fails {
            bench.cloud.fault(Fault::internal_error(), questions().times(1));
            let error = bench.put(&bytes, "one").await.unwrap_err();
            assert_is(&error, Kind::Unavailable, Outcome::Unknown);
        }
        bench.put(&bytes, "one").await.unwrap();
        bench.assert_stored(&bytes);
        assert_eq!(received(&bench.seen("PATCH")), 4_000_000, "it is not sent again");
        assert_eq!(bench.point.load().await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_point_the_name_tells_that_it_arrived() {
    let bench = Bench::start().await;
    let bytes = webm(4_000_000, 1);
    let stores = bench.tiered(Pacer::new(0));
    bench.put(&bytes, "one").await.unwrap();
    // As after a crash between the last answer and the row: the point is gone, the object is there.
    bench.push(&stores, &bytes).await.unwrap();
    let refused = bench.seen("POST").last().unwrap().status;
    assert_eq!(refused, Some(409));
    // The same name with other bytes is somebody else's.
    bench.cloud.put_object(BUCKET, KEY, &webm(4_000_000, 2), "video/webm");
    assert!(bench.push(&stores, &bytes).await.unwrap_err().name_is_taken());
    assert!(bench.cloud.object(BUCKET, KEY).unwrap().bytes == webm(4_000_000, 2), "never overwritten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_for_less_than_was_sent_is_taken_at_its_word() {
    let bench = Bench::with(FakeSupabase::start().await, 64 * MIB, None);
    let bytes = webm(8_000_000, 1);
    bench.cloud.fault(Fault::SlowRead(400_000), patches().times(1));
    let asking = async {
        eventually("a piece is being received", async || {
            bench.cloud.open_uploads() == 1 && bench.seen("PATCH").len() == 1
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // A question of somebody else cuts the running request short, which then answers 204 with what it has.
        let path = bench.seen("PATCH")[0].path.clone();
        let asked = reqwest::Client::new()
            .head(format!("{}{path}", bench.cloud.url()))
            .header("tus-resumable", "1.0.0")
            .header("authorization", format!("Bearer {}", bench.cloud.service_key()))
            .send();
        assert_eq!(asked.await.unwrap().status(), 200);
    };
    let (stored, ()) = tokio::join!(bench.put(&bytes, "one"), asking);
    stored.unwrap();
    bench.assert_stored(&bytes);
    let sent = bench.seen("PATCH");
    assert!(sent.len() >= 2 && sent[0].status == Some(204) && sent[0].body_len < 8_000_000, "{sent:?}");
    assert_eq!(bench.seen("POST").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_upload_is_begun_anew() {
    // Found when it is continued, and found while it is being sent.
    let bench = Bench::start().await;
    let bytes = webm(8_000_000, 1);
    let dead = bench.cloud.fault(Fault::internal_error(), patches().skip(1));
    bench.put(&bytes, "one").await.unwrap_err();
    dead.remove();
    bench.cloud.expire_resumable_uploads();
    bench.put(&bytes, "one").await.unwrap();
    bench.assert_stored(&bytes);

    let bench = Bench::start().await;
    let gone = Fault::resumable_refusal(410, "The file for this url has expired\n");
    bench.cloud.fault(gone.clone(), patches().times(1));
    bench.cloud.fault(gone, questions().times(1));
    let stores = bench.tiered(Pacer::new(0));
    bench.push(&stores, &bytes).await.unwrap();
    bench.assert_stored(&bytes);
    assert_eq!(bench.seen("POST").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_of_other_bytes_is_not_continued() {
    let bench = Bench::start().await;
    let (old, new) = (webm(8_000_000, 1), webm(8_000_000, 2));
    let dead = bench.cloud.fault(Fault::internal_error(), patches().skip(1));
    bench.put(&old, "old").await.unwrap_err();
    let of_old = bench.point.load().await.unwrap();
    bench.put(&new, "new").await.unwrap_err();
    let of_new = bench.point.load().await.unwrap();
    dead.remove();
    // A text that claims to be for the new one and leads to the old one's upload: the server tells.
    let id = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["id"].clone();
    let forged = of_new.replace(id(&of_new).as_str().unwrap(), id(&of_old).as_str().unwrap());
    for point in [of_old, forged, "{}".into(), "not ours".into()] {
        bench.point.save(Some(&point)).await;
        bench.cloud.forget_requests();
        bench.put(&new, "new").await.unwrap();
        bench.assert_stored(&new);
        assert_eq!(received(&bench.seen("PATCH")), 8_000_000, "all of it: {point}");
        bench.cloud.remove_object(BUCKET, KEY);
    }
}

/// reliability 24: the name was taken while the upload was under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_meanwhile_is_not_overwritten() {
    let bench = Bench::start().await;
    let bytes = webm(8_000_000, 1);
    let dead = bench.cloud.fault(Fault::internal_error(), patches().skip(1));
    bench.put(&bytes, "one").await.unwrap_err();
    dead.remove();
    bench.cloud.put_object(BUCKET, KEY, b"theirs", "video/webm");
    let error = bench.put(&bytes, "one").await.unwrap_err();
    assert_is(&error, Kind::AlreadyExists, Outcome::NotApplied);
    bench.assert_stored(b"theirs");
    assert_eq!(bench.point.load().await, None);
}

/// reliability 29: the limit is told before a byte is sent, and the type list is not skipped.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_bucket_refuses_is_refused_before_a_byte_is_sent() {
    let bench = Bench::start().await;
    let spec = BucketSpec {
        name: BUCKET.into(),
        public: true,
        file_size_limit: Some(3_000_000),
        allowed_mime_types: Some(vec!["video/webm".into()]),
    };
    bench.cloud.create_bucket(spec);
    let error = bench.put(&webm(3_000_001, 1), "one").await.unwrap_err();
    assert_is(&error, Kind::TooLarge, Outcome::NotApplied);
    let (source, mut about) = (bench.source(&webm(2_000_000, 1)).await, meta(b"", "one"));
    let background = Background { resume: &bench.point, pacer: &Pacer::new(0), accepted: &|| {} };
    about.content_type = "audio/ogg".into();
    let error = bench.store.put_in_background(&key(), &source, &about, background).await.unwrap_err();
    assert_is(&error, Kind::TypeRefused, Outcome::NotApplied);
    assert_eq!(bench.seen("PATCH").len(), 0);
    // Parameters of a type match no entry of such a list.
    about.content_type = "video/webm; codecs=vp9".into();
    bench.store.put_in_background(&key(), &source, &about, background).await.unwrap();
    assert_eq!(bench.cloud.object(BUCKET, KEY).unwrap().content_type, "video/webm");
}

/// reliability 29: single requests have a lower limit than the bucket; below the bucket's it is not parked.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_one_request_goes_in_pieces() {
    let options = FakeOptions { standard_limit: Some(500_000), ..FakeOptions::default() };
    let bench = Bench::with(FakeSupabase::start_with(options).await, PATCH, None);
    let bytes = webm(900_000, 1);
    bench.put(&bytes, "one").await.unwrap();
    bench.assert_stored(&bytes);
    assert_eq!((seen_uploads(&bench.cloud).len(), bench.seen("PATCH").len()), (1, 1));
}

/// reliability 28: a key that stops working does not cost what had arrived.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_no_reason_to_begin_anew() {
    let bench = Bench::start().await;
    let bytes = webm(8_000_000, 1);
    let dead = bench.cloud.fault(Fault::expired_key(), Matcher::any().skip(2));
    let error = bench.put(&bytes, "one").await.unwrap_err();
    assert_is(&error, Kind::Unauthorized, Outcome::NotApplied);
    let error = bench.put(&bytes, "one").await.unwrap_err();
    assert_is(&error, Kind::Unauthorized, Outcome::NotApplied);
    dead.remove();
    bench.put(&bytes, "one").await.unwrap();
    bench.assert_stored(&bytes);
    assert_eq!(bench.seen("POST").len(), 1, "it was begun once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_endpoint_gets_one_request() {
    let bench = Bench::start().await;
    let no_route = serde_json::json!({"message": "Route POST:/upload/resumable not found", "error": "Not Found",
        "statusCode": 404});
    let creations = Matcher::any().method("POST").path("/upload/resumable");
    bench.cloud.fault(Fault::Status(Canned::json(404, &no_route)), creations);
    let bytes = webm(4_000_000, 1);
    bench.put(&bytes, "one").await.unwrap();
    bench.assert_stored(&bytes);
    assert_eq!(seen_uploads(&bench.cloud).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_long_bodies_gets_shorter_ones() {
    let bench = Bench::with(FakeSupabase::start().await, 64 * MIB, None);
    let page = Canned::raw(413, "text/html", "<html>413 Request Entity Too Large</html>");
    bench.cloud.fault(Fault::EarlyStatus(page), patches().times(1));
    let bytes = webm(20 << 20, 1);
    bench.put(&bytes, "one").await.unwrap();
    bench.assert_stored(&bytes);
    let lengths: Vec<u64> = bench.seen("PATCH").iter().skip(1).map(|request| request.body_len).collect();
    assert_eq!(lengths, [16 * MIB, 4 * MIB]);
}

/// reliability 21: failures in the middle are repeated, pages are not parsed, and what arrived stays.
#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_server_are_repeated_from_where_it_is() {
    let page = |status| Fault::Status(Canned::raw(status, "text/html", "<html>no</html>"));
    let faults = [
        Fault::internal_error(),
        Fault::bad_gateway(),
        Fault::resumable_refusal(500, "Something went wrong with that request\n"),
        Fault::resumable_refusal(503, "The database is currently in read-only mode."),
        Fault::slow_down(None),
        Fault::ResetAfterRequestBytes(1000),
        page(200),
        page(504),
    ];
    for fault in faults {
        let bench = Bench::start().await;
        let stores = bench.tiered(Pacer::new(0));
        let bytes = webm(8_000_000, 1);
        let armed = bench.cloud.fault(fault.clone(), patches().skip(1).times(1));
        bench.push(&stores, &bytes).await.unwrap_or_else(|error| panic!("{fault:?}: {error:?}"));
        bench.assert_stored(&bytes);
        assert_eq!((armed.hits(), bench.seen("POST").len()), (1, 1), "{fault:?}");
    }
}

/// reliability 26: the endpoint says that all is there, and it is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_is_none_is_found_out() {
    for fault in [Fault::SaidStoredButShort(1000), Fault::SaidStoredButNothing] {
        let bench = Bench::start().await;
        let stores = bench.tiered(Pacer::new(0));
        let bytes = webm(4_000_000, 1);
        let armed = bench.cloud.fault(fault, patches().skip(1).times(1));
        bench.push(&stores, &bytes).await.unwrap();
        bench.assert_stored(&bytes);
        assert_eq!(armed.hits(), 1);
    }
}

/// reliability 22: 429 and 503 with Retry-After are obeyed, by small objects and by pieces of large ones.
#[tokio::test(flavor = "multi_thread")]
async fn the_cloud_is_left_alone_for_as_long_as_it_asks() {
    let busy = Canned::raw(503, "text/html", "<html>busy</html>").retry_after(3);
    for (fault, on) in [(Fault::slow_down(Some(3)), uploads()), (Fault::Status(busy), patches())] {
        let bench = Bench::start().await;
        let (bytes, stores) = (
            webm(if on.method.as_deref() == Some("PATCH") { 4_000_000 } else { 5000 }, 1),
            bench.tiered(Pacer::new(0)),
        );
        let armed = bench.cloud.fault(fault, on.times(1));
        let refused = Instant::now();
        let error = bench.push(&stores, &bytes).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)), "whoever repeats it can know");
        assert!(!stores.primary_takes_writes(), "one such answer is enough");
        assert!(matches!(bench.push(&stores, &bytes).await, Err(PrimaryError::LeftAlone { .. })));
        eventually("it may be tried again", async || stores.primary_takes_writes()).await;
        assert!(refused.elapsed() >= Duration::from_secs(3));
        bench.push(&stores, &bytes).await.unwrap();
        assert_eq!(armed.hits(), 1);
        bench.assert_stored(&bytes);
    }
}

/// reliability 33: what is caught up on has a cap, and gives way to uploads without standing still.
#[tokio::test(flavor = "multi_thread")]
async fn the_background_keeps_to_its_rate_and_gives_way_to_clients() {
    let timed = async |bench: &Bench, stores: &TieredStore, len: usize| {
        let began = Instant::now();
        bench.push(stores, &webm(len, 1)).await.unwrap();
        bench.assert_stored(&webm(len, 1));
        bench.cloud.remove_object(BUCKET, KEY);
        began.elapsed()
    };
    let bench = Bench::start().await;
    let capped = bench.tiered(Pacer::new(4 * MIB));
    for len in [900_000, 2_000_000] {
        let least = Duration::from_secs_f64(0.7 * len as f64 / (4 * MIB) as f64);
        let took = timed(&bench, &capped, len).await;
        assert!(took >= least, "{len} bytes in {took:?}");
    }
    // A client is sending, slowly, all the while.
    let stores = bench.tiered(Pacer::new(0));
    let (mut writer, other) = (
        bench.spool.create(&uuid::Uuid::now_v7().to_string()).unwrap(),
        ObjectKey::parse("s/live.webm").unwrap(),
    );
    writer.push(&webm(600_000, 3)).await.unwrap();
    let (live, about) = (writer.reader(), meta(b"", "live"));
    let deadline = Deadline::default();
    let put = stores.put_primary(&other, &live, None, &about, Waiting::Client(&deadline));
    let beside = async {
        let took = timed(&bench, &stores, 3_000_000).await;
        assert!(took >= Duration::from_millis(400), "it gives way: {took:?}");
        drop(writer);
    };
    let (gone, ()) = tokio::join!(put, beside);
    assert!(gone.is_err());
    eventually("nobody is in the way any more", async || {
        timed(&bench, &stores, 3_000_000).await < Duration::from_millis(400)
    })
    .await;
}

/// reliability 27: through the whole gateway, a line that breaks every few MiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_recording_is_synced_over_a_line_that_keeps_breaking() {
    let cloud = FakeSupabase::start().await;
    let proxy = WireProxy::start(cloud.address());
    let settings = [
        ("supabase.url", proxy.url()),
        ("supabase.resumable_from", "1MiB".into()),
        ("supabase.breaker_failures", "100".into()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let gateway = Gateway::with_cloud_and(&cloud, &settings).await;
    proxy.refuse();
    let bytes = webm(24 << 20, 1);
    let (_, answer) = gateway.upload("s", bytes.clone()).await;
    assert_eq!(answer["storage_type"], "local");
    let path = answer["file_path"].as_str().unwrap();
    proxy.accept_again().await;
    proxy.becomes(Wire::ResetUp(4 * MIB));
    eventually("it is in the bucket", async || cloud.object(BUCKET, path).is_some()).await;
    assert_eq!(resumable_requests(&cloud, "POST").len(), 1, "it was begun once");
    assert_eq!(received(&resumable_requests(&cloud, "PATCH")), 24 * MIB, "nothing was sent twice");
    assert!(proxy.broken() >= 5, "{}", proxy.broken());
    proxy.becomes(Wire::Well);
    reaches_the_bucket(&gateway, &cloud, path, &bytes).await;
    assert_eq!(rows(&gateway, "s").await.len(), 1);
    gateway.stop().await;
}
