//! A fake Supabase project: a real loopback HTTP server that behaves as the recorded Storage server does.
//!
//! Apart from the suites, which all share it. Every behaviour comes from recordings of the real server (see
//! `contract_cases.json` and the suite `fake_contract` that replays them); nothing may be added from memory.
//!
//! The server runs on threads of its own, so a test that blocks does not stop it, and ends with its
//! [`FakeSupabase`], hung requests included.

#![allow(dead_code, unused_imports, reason = "a tool box: each suite takes what it needs")]

mod auth;
mod blob;
mod buckets;
mod change;
mod exchange;
mod faults;
mod form;
mod list;
mod log;
mod project;
mod read;
mod refusal;
mod resumable;
mod server;
mod sign;
mod upload;
mod wire;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use auth::{Policy, Right};
pub use blob::Bodies;
pub use faults::{Canned, Fault, FaultHandle, Matcher};
pub use log::SeenRequest;

use project::{Bucket, Description, Project};

/// The bucket every fake project starts with; it is public.
pub const DEFAULT_BUCKET: &str = "interview-recordings";

/// How a fake project is set up.
#[derive(Clone, Debug)]
pub struct FakeOptions {
    pub bodies: Bodies,
    /// Bytes; the size limit of the whole project.
    pub global_limit: u64,
    /// Bytes; the lower limit of standard uploads, which resumable ones do not have.
    pub standard_limit: Option<u64>,
    /// Seconds a signed upload URL lives.
    pub signed_upload_seconds: i64,
    /// The base of the Location of resumable uploads, when the server is configured with one.
    pub public_url: Option<String>,
    /// Whether that Location keeps the prefix `/storage/v1`; a bare server leaves it out.
    pub trust_forwarded_prefix: bool,
    /// How long an idle connection lives.
    pub keep_alive: Duration,
    /// When a connection whose upload was refused late, and which was not read to its end, is reset.
    pub late_refusal_reset: Duration,
    /// How long a closed connection still takes in what the client sends. `None` closes at once, which a client
    /// in the middle of a body sees as a broken pipe, often without the answer; the recordings do not tell which
    /// of the two the real server does.
    pub close_linger: Option<Duration>,
    /// Bytes the kernel may take in per connection before the server reads; `None` leaves it to the kernel.
    pub receive_buffer: Option<u32>,
}

impl Default for FakeOptions {
    fn default() -> Self {
        FakeOptions {
            bodies: Bodies::Keep,
            global_limit: 100 * 1024 * 1024 * 1024,
            standard_limit: None,
            signed_upload_seconds: 60,
            public_url: None,
            trust_forwarded_prefix: false,
            keep_alive: Duration::from_secs(61),
            late_refusal_reset: Duration::from_secs(62),
            close_linger: Some(Duration::from_secs(2)),
            receive_buffer: None,
        }
    }
}

/// A bucket to be made.
#[derive(Clone, Debug, Default)]
pub struct BucketSpec {
    pub name: String,
    pub public: bool,
    /// Bytes.
    pub file_size_limit: Option<u64>,
    pub allowed_mime_types: Option<Vec<String>>,
}

/// An object as a test sees it.
#[derive(Clone, Debug)]
pub struct StoredObject {
    /// Empty when bodies are discarded.
    pub bytes: Vec<u8>,
    /// Bytes.
    pub size: u64,
    /// MD5 of the content, in hexadecimal.
    pub md5: String,
    pub content_type: String,
    pub cache_control: String,
    /// The user's own metadata.
    pub metadata: Value,
    pub id: String,
    pub version: String,
    pub owner_id: Option<String>,
}

/// What the server's tasks share.
pub struct Shared {
    options: FakeOptions,
    project: Mutex<Project>,
    faults: faults::Faults,
    log: log::Log,
    open_uploads: AtomicUsize,
    open_connections: AtomicUsize,
}

/// One listening life of the server, between a start and a stop.
struct Life {
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The fake project.
pub struct FakeSupabase {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
    life: Mutex<Option<Life>>,
}

impl FakeSupabase {
    /// Starts on a random port of 127.0.0.1 with the default bucket.
    pub async fn start() -> Self {
        Self::start_with(FakeOptions::default()).await
    }

    pub async fn start_with(options: FakeOptions) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fake-supabase")
            .enable_all()
            .build()
            .expect("the fake cloud's threads start");
        let mut project = Project::default();
        project.buckets.push(Bucket::new(DEFAULT_BUCKET, true));
        let shared = Arc::new(Shared {
            options,
            project: Mutex::new(project),
            faults: faults::Faults::default(),
            log: log::Log::default(),
            open_uploads: AtomicUsize::new(0),
            open_connections: AtomicUsize::new(0),
        });
        let mut cloud = FakeSupabase {
            shared,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            runtime: Some(runtime),
            life: Mutex::new(None),
        };
        cloud.address = cloud.listen();
        cloud
    }

    /// `http://127.0.0.1:PORT`, the project's URL: storage is below `/storage/v1` and, as on a bare server, at the root.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn service_key(&self) -> String {
        auth::sign(&auth::role_claims("service_role", None, 10 * 365 * 86_400))
    }

    pub fn anon_key(&self) -> String {
        auth::sign(&auth::role_claims("anon", None, 10 * 365 * 86_400))
    }

    /// A service key that ended an hour ago.
    pub fn expired_key(&self) -> String {
        auth::sign(&auth::role_claims("service_role", None, -3600))
    }

    /// A service key signed with another project's secret.
    pub fn foreign_key(&self) -> String {
        auth::sign_wrongly(&auth::role_claims("service_role", None, 3600))
    }

    /// A signed-in user's token.
    pub fn user_key(&self, subject: &str) -> String {
        auth::sign(&auth::role_claims("authenticated", Some(subject), 3600))
    }

    /// A token with any claims.
    pub fn token(&self, claims: &Value) -> String {
        auth::sign(claims)
    }

    /// Makes a bucket; one of that name is replaced, its objects gone.
    pub fn create_bucket(&self, spec: BucketSpec) {
        let mut bucket = Bucket::new(&spec.name, spec.public);
        bucket.file_size_limit = spec.file_size_limit;
        bucket.allowed_mime_types = spec.allowed_mime_types;
        let mut project = self.project();
        project.buckets.retain(|other| other.name != spec.name);
        project.buckets.push(bucket);
    }

    pub fn delete_bucket(&self, name: &str) {
        self.project().buckets.retain(|bucket| bucket.name != name);
    }

    /// Lets a role other than the service role do something to objects.
    pub fn allow(&self, policy: Policy) {
        self.project().policies.push(policy);
    }

    /// Puts an object without a request. The bucket must exist.
    pub fn put_object(&self, bucket: &str, key: &str, bytes: &[u8], content_type: &str) {
        self.put_object_with(bucket, key, bytes, content_type, json!({}));
    }

    /// The same with the user's own metadata, as a late push would bring it.
    pub fn put_object_with(
        &self,
        bucket: &str,
        key: &str,
        bytes: &[u8],
        content_type: &str,
        user_metadata: Value,
    ) {
        let about = Description {
            content_type: content_type.to_owned(),
            cache_control: "no-cache".to_owned(),
            user_metadata,
            ..Description::default()
        };
        let blob = Arc::new(blob::Blob::of(bytes));
        let put = self.project().commit(bucket, key, project::new_id(), about, blob);
        put.map_err(|refusal| refusal.message).expect("the bucket exists");
    }

    pub fn object(&self, bucket: &str, key: &str) -> Option<StoredObject> {
        let row = self.project().row(bucket, key).cloned()?;
        Some(StoredObject {
            bytes: row.blob.read(0, row.blob.size).unwrap_or_default(),
            size: row.blob.size,
            md5: row.blob.md5.clone(),
            content_type: row.about.content_type,
            cache_control: row.about.cache_control,
            metadata: row.about.user_metadata,
            id: row.id,
            version: row.version,
            owner_id: row.about.owner_id,
        })
    }

    /// The keys of a bucket in byte order; none when it does not exist.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.project().bucket(bucket).map(|bucket| bucket.rows.keys().cloned().collect()).unwrap_or_default()
    }

    /// Removes an object without a request; says whether it was there.
    pub fn remove_object(&self, bucket: &str, key: &str) -> bool {
        self.project().bucket_mut(bucket).is_some_and(|bucket| bucket.rows.remove(key).is_some())
    }

    /// Every request since the start or the last [`forget_requests`](Self::forget_requests), in order of arrival.
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.shared.log.all()
    }

    pub fn forget_requests(&self) {
        self.shared.log.clear();
    }

    /// Uploads whose body is being received at this moment.
    pub fn open_uploads(&self) -> usize {
        self.shared.open_uploads.load(Ordering::SeqCst)
    }

    pub fn open_connections(&self) -> usize {
        self.shared.open_connections.load(Ordering::SeqCst)
    }

    /// `bucket/key` of every resumable upload that was created and not deleted, finished ones included.
    pub fn resumable_uploads(&self) -> Vec<String> {
        self.project().uploads.values().map(|upload| format!("{}/{}", upload.bucket, upload.key)).collect()
    }

    /// Forgets every resumable upload, as the server does when they expire.
    pub fn expire_resumable_uploads(&self) {
        self.project().uploads.clear();
    }

    /// Arms a fault. It stays until its times are used up, it is removed, or all are cleared.
    pub fn fault(&self, fault: Fault, on: Matcher) -> FaultHandle {
        self.shared.faults.arm(fault, on)
    }

    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Waits until `reached` holds, looking every few milliseconds.
    ///
    /// # Panics
    /// With `what` in the message, when it does not within `patience`.
    pub async fn wait_until(&self, what: &str, patience: Duration, reached: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + patience;
        while !reached(self) {
            assert!(Instant::now() < deadline, "waited {patience:?} in vain: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends every connection and stops listening: from now on connections are refused. What is stored stays.
    pub async fn stop(&self) {
        let life = self.life.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(life) = life {
            life.stop.cancel();
            life.tasks.close();
            life.tasks.wait().await;
        }
    }

    /// Listens again where it listened before; stops first if it still does.
    pub async fn restart_on_same_port(&self) {
        self.stop().await;
        self.listen();
    }

    fn project(&self) -> MutexGuard<'_, Project> {
        self.shared.project.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self) -> SocketAddr {
        let runtime = self.runtime.as_ref().expect("the threads end only with the fake");
        let _inside = runtime.enter();
        let listener = bind(self.address, self.shared.options.receive_buffer).expect("the port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let life = Life { stop: CancellationToken::new(), tasks: TaskTracker::new() };
        life.tasks.spawn(accept(self.shared.clone(), listener, life.stop.clone(), life.tasks.clone()));
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = Some(life);
        address
    }
}

impl Drop for FakeSupabase {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn bind(address: SocketAddr, receive_buffer: Option<u32>) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(address)?;
    socket.listen(1024)
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, stop: CancellationToken, tasks: TaskTracker) {
    loop {
        let stream = tokio::select! {
            _ = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
        };
        let _ = stream.set_nodelay(true);
        let (shared, stop) = (shared.clone(), stop.clone());
        tasks.spawn(async move {
            shared.open_connections.fetch_add(1, Ordering::SeqCst);
            let connection = wire::Connection::new(stream);
            tokio::select! {
                _ = stop.cancelled() => {}
                _ = server::serve(shared.clone(), connection) => {}
            }
            shared.open_connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}
