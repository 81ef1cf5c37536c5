//! The cloud of the model test: a bucket in memory that fails as it is told, and the points at which a process may be
//! cut off. It keeps the trait's promise where it is not told otherwise; how the real one is spoken to is tested
//! elsewhere. Nothing here knows what the gateway promised.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use recording_gateway::domain::merge::StoredObject;
use recording_gateway::domain::{ObjectKey, SessionId, StoreKind};
use recording_gateway::spool::SpoolReader;
use recording_gateway::storage::local::LocalStore;
use recording_gateway::storage::{
    Background, Kind, ListScope, ObjectMeta, ObjectStore, OpenObject, Probe, StorageError,
};
use time::OffsetDateTime;
use tokio::sync::Notify;

/// How the cloud is until it is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    Fine,
    /// Nothing answers.
    Away,
    /// It can be read and takes nothing.
    ReadOnly,
    /// Objects cannot be looked at: what was sent cannot be confirmed.
    Blind,
    /// Lists fail.
    NoLists,
    /// Lists tell how it was when this began.
    StaleLists,
    /// Lists are empty.
    HidingLists,
    /// The credentials are refused.
    KeyRefused,
}

/// What the next upload meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutFault {
    /// It is refused; nothing is stored.
    Before,
    /// It is stored, the answer is an error.
    AfterStoring,
    /// A part is stored, the answer is success.
    Short,
    /// It is stored and nobody answers.
    HangAfterStoring,
    /// Nothing is stored and nobody answers.
    Hang,
    /// An error is answered, and the object lands so many steps later.
    Late(u8),
}

/// What the next deletion meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeleteFault {
    /// An error, and it is still there.
    Fails,
    /// An error, and it is gone.
    FailsAfterwards,
    /// Success, and it is still there: only of objects that a gateway sent. The adapter of a real store asks
    /// afterwards; this is one that is lied to even then.
    SaysOk,
}

#[derive(Clone)]
struct Held {
    object: StoredObject,
    bytes: Bytes,
}

struct State {
    objects: BTreeMap<ObjectKey, Held>,
    /// What lists tell while they are stale.
    stale: Vec<StoredObject>,
    weather: Weather,
    put: Option<PutFault>,
    delete: Option<DeleteFault>,
    /// Uploads that land so many steps from now.
    late: Vec<(u8, Held)>,
    /// The next upload waits at the gate before it stores, or after.
    gate: Option<bool>,
}

/// The bucket, which outlives every process that uses it.
pub struct Bucket {
    state: Mutex<State>,
    /// Everything works while the test looks.
    calm: AtomicBool,
    /// An upload stands at the gate.
    pub at_gate: Notify,
    /// Lets it through.
    pub through: Notify,
    /// The next file of a disk cannot be put in its place.
    pub no_place: AtomicBool,
}

impl Bucket {
    pub fn new() -> Arc<Self> {
        let state = State {
            objects: BTreeMap::new(),
            stale: Vec::new(),
            weather: Weather::Fine,
            put: None,
            delete: None,
            late: Vec::new(),
            gate: None,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            calm: AtomicBool::new(false),
            at_gate: Notify::new(),
            through: Notify::new(),
            no_place: AtomicBool::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn set_weather(&self, weather: Weather) {
        let mut state = self.state();
        state.stale = state.objects.values().map(|held| held.object.clone()).collect();
        state.weather = weather;
    }

    pub fn weather(&self) -> Weather {
        self.state().weather
    }

    pub fn next_put(&self, fault: Option<PutFault>) {
        self.state().put = fault;
    }

    pub fn next_delete(&self, fault: Option<DeleteFault>) {
        self.state().delete = fault;
    }

    pub fn set_gate(&self, gate: Option<bool>) {
        self.state().gate = gate;
    }

    pub fn calm(&self, calm: bool) {
        self.calm.store(calm, Ordering::SeqCst);
    }

    /// A step goes by: what was on its way lands when its time has come, or at once if `now`.
    pub fn step(&self, now: bool) {
        let mut state = self.state();
        for (key, held) in std::mem::take(&mut state.late).into_iter().map(|late| (late.0, late.1)) {
            match key.checked_sub(1).filter(|_| !now) {
                Some(left) => state.late.push((left, held)),
                None => {
                    state.objects.entry(held.object.key.clone()).or_insert(held);
                }
            }
        }
    }

    /// Somebody else's object.
    pub fn put_stranger(&self, key: &ObjectKey, bytes: Bytes) -> bool {
        let mut state = self.state();
        if state.objects.contains_key(key) {
            return false;
        }
        let held = held(key, bytes, None);
        state.objects.insert(key.clone(), held);
        true
    }

    pub fn bytes(&self, key: &ObjectKey) -> Option<Bytes> {
        self.state().objects.get(key).map(|held| held.bytes.clone())
    }

    pub fn objects(&self) -> Vec<(ObjectKey, Bytes)> {
        self.state().objects.iter().map(|(key, held)| (key.clone(), held.bytes.clone())).collect()
    }
}

fn held(key: &ObjectKey, bytes: Bytes, meta: Option<&ObjectMeta>) -> Held {
    let object = StoredObject {
        key: key.clone(),
        size_bytes: bytes.len() as u64,
        modified_at: OffsetDateTime::now_utc(),
        content_type: meta.map(|meta| meta.content_type.clone()),
        etag: None,
        sha256: meta.and_then(|meta| meta.sha256),
        original_filename: meta.and_then(|meta| meta.original_filename.clone()),
        upload_id: meta.map(|meta| meta.upload_id.clone()),
    };
    Held { object, bytes }
}

/// One process: it can be cut off at a point, after which it does nothing more.
pub struct Life {
    dead: AtomicBool,
    left: AtomicI64,
    pub cut: Notify,
}

impl Life {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { dead: AtomicBool::new(false), left: AtomicI64::new(i64::MAX), cut: Notify::new() })
    }

    /// It is cut off at the `points`th point from now.
    pub fn ends_after(&self, points: i64) {
        self.left.store(points, Ordering::SeqCst);
    }

    pub fn end(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    async fn point(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.end();
            self.cut.notify_one();
        }
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

/// The bucket as one process sees it.
pub struct ScriptedCloud {
    pub bucket: Arc<Bucket>,
    pub life: Arc<Life>,
}

fn error(kind: Kind, unknown: bool) -> StorageError {
    StorageError::certain(StoreKind::Supabase, kind, "scripted").unknown_if(unknown)
}

fn taken() -> StorageError {
    error(Kind::AlreadyExists, false)
}

impl ScriptedCloud {
    /// Whether a request gets through.
    fn admit(&self, writes: bool) -> Result<(), StorageError> {
        if self.bucket.calm.load(Ordering::SeqCst) {
            return Ok(());
        }
        match self.bucket.weather() {
            Weather::Away => Err(error(Kind::Unavailable, false)),
            Weather::KeyRefused => Err(error(Kind::Unauthorized, false)),
            Weather::ReadOnly if writes => Err(error(Kind::Unavailable, false)),
            _ => Ok(()),
        }
    }

    async fn store(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        meta: &ObjectMeta,
        background: bool,
    ) -> Result<(), StorageError> {
        self.life.point().await;
        self.admit(true)?;
        let mut bytes = Vec::new();
        let mut stream = source.follow().bytes;
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|e| error(Kind::SourceGone, false).because(e))?);
        }
        let gate = self.bucket.state().gate.take();
        if gate == Some(false) {
            self.wait_at_gate().await;
        }
        let fault = self.bucket.state().put.take();
        let mut whole = held(key, bytes.into(), Some(meta));
        // A store that does not answer is left by the adapter in the background, and by patience before a client.
        let unanswered = async || match background {
            true => error(Kind::Timeout, true),
            false => std::future::pending().await,
        };
        let stored = {
            let mut state = self.bucket.state();
            let is_taken = state.objects.contains_key(key);
            match fault {
                Some(PutFault::Before | PutFault::Hang) => Ok(()),
                Some(PutFault::Late(steps)) => {
                    state.late.push((steps, whole));
                    Ok(())
                }
                _ if is_taken => Err(taken()),
                Some(PutFault::Short) => {
                    whole.bytes.truncate(whole.bytes.len() / 2);
                    whole.object.size_bytes = whole.bytes.len() as u64;
                    state.objects.insert(key.clone(), whole);
                    Ok(())
                }
                _ => {
                    state.objects.insert(key.clone(), whole);
                    Ok(())
                }
            }
        };
        self.life.point().await;
        stored?;
        if gate == Some(true) {
            self.wait_at_gate().await;
        }
        match fault {
            Some(PutFault::Before) => Err(error(Kind::Unavailable, false)),
            Some(PutFault::AfterStoring | PutFault::Late(_)) => Err(error(Kind::Unavailable, true)),
            Some(PutFault::Hang | PutFault::HangAfterStoring) => Err(unanswered().await),
            _ => Ok(()),
        }
    }

    async fn wait_at_gate(&self) {
        self.bucket.at_gate.notify_one();
        self.bucket.through.notified().await;
    }

    fn look(&self, key: &ObjectKey) -> Result<Option<Held>, StorageError> {
        self.admit(false)?;
        if self.bucket.weather() == Weather::Blind && !self.bucket.calm.load(Ordering::SeqCst) {
            return Err(error(Kind::Timeout, false));
        }
        Ok(self.bucket.state().objects.get(key).cloned())
    }
}

#[async_trait]
impl ObjectStore for ScriptedCloud {
    fn kind(&self) -> StoreKind {
        StoreKind::Supabase
    }

    async fn put(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        _known_size: Option<u64>,
        meta: &ObjectMeta,
    ) -> Result<(), StorageError> {
        self.store(key, source, meta, false).await
    }

    async fn put_in_background(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        meta: &ObjectMeta,
        _background: Background<'_>,
    ) -> Result<(), StorageError> {
        self.store(key, source, meta, true).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<StoredObject>, StorageError> {
        self.life.point().await;
        Ok(self.look(key)?.map(|held| held.object))
    }

    async fn open(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<OpenObject>, StorageError> {
        self.life.point().await;
        Ok(self.look(key)?.map(|held| {
            let range = range.unwrap_or(0..held.object.size_bytes);
            let part = held.bytes.slice(range.start as usize..range.end as usize);
            OpenObject { object: held.object, bytes: futures_util::stream::iter([Ok(part)]).boxed() }
        }))
    }

    async fn list(&self, scope: &ListScope) -> Result<Vec<StoredObject>, StorageError> {
        self.life.point().await;
        self.admit(false)?;
        let state = self.bucket.state();
        let weather = if self.bucket.calm.load(Ordering::SeqCst) { Weather::Fine } else { state.weather };
        let mut listed = match weather {
            Weather::NoLists => return Err(error(Kind::Timeout, false)),
            Weather::HidingLists => Vec::new(),
            Weather::StaleLists => state.stale.clone(),
            _ => state.objects.values().map(|held| held.object.clone()).collect(),
        };
        for object in &mut listed {
            // A list does not tell what travels with an object.
            (object.sha256, object.original_filename, object.upload_id) = (None, None, None);
        }
        if let ListScope::Session(session) = scope {
            listed.retain(|object| object.key.session == *session);
        }
        Ok(listed)
    }

    async fn delete(&self, key: &ObjectKey) -> Result<bool, StorageError> {
        self.life.point().await;
        self.admit(true)?;
        let existed = {
            let mut state = self.bucket.state();
            let ours = state.objects.get(key).map(|held| held.object.upload_id.is_some());
            let fault = match (state.delete.take(), ours) {
                (Some(DeleteFault::SaysOk), Some(false)) => None,
                (fault, _) => fault,
            };
            match fault {
                Some(DeleteFault::Fails) => Err(error(Kind::Unavailable, true)),
                Some(DeleteFault::SaysOk) => Ok(ours.is_some()),
                Some(DeleteFault::FailsAfterwards) => {
                    state.objects.remove(key);
                    Err(error(Kind::Unavailable, true))
                }
                None => Ok(state.objects.remove(key).is_some()),
            }
        };
        self.life.point().await;
        existed
    }

    async fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StorageError> {
        self.life.point().await;
        self.admit(true)?;
        {
            let mut state = self.bucket.state();
            if state.objects.contains_key(to) {
                return Err(taken());
            }
            let mut held = state.objects.remove(from).ok_or_else(|| error(Kind::NotFound, false))?;
            held.object.key = to.clone();
            state.objects.insert(to.clone(), held);
        }
        self.life.point().await;
        Ok(())
    }

    async fn probe(&self) -> Result<Probe, StorageError> {
        self.admit(false).map(|()| Probe::default())
    }
}

/// The real local store, with points before and after each change and one fault; its others are made by failing the
/// system calls, elsewhere.
pub struct Disk {
    pub store: LocalStore,
    pub bucket: Arc<Bucket>,
    pub life: Arc<Life>,
}

#[async_trait]
impl ObjectStore for Disk {
    fn kind(&self) -> StoreKind {
        StoreKind::Local
    }

    async fn put(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        known_size: Option<u64>,
        meta: &ObjectMeta,
    ) -> Result<(), StorageError> {
        self.life.point().await;
        if self.bucket.no_place.swap(false, Ordering::SeqCst) {
            return Err(StorageError::certain(StoreKind::Local, Kind::Disk, "scripted"));
        }
        let put = self.store.put(key, source, known_size, meta).await;
        self.life.point().await;
        put
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<StoredObject>, StorageError> {
        self.store.head(key).await
    }

    async fn open(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<Option<OpenObject>, StorageError> {
        self.store.open(key, range).await
    }

    async fn list(&self, scope: &ListScope) -> Result<Vec<StoredObject>, StorageError> {
        self.store.list(scope).await
    }

    async fn names(&self, session: &SessionId) -> Result<Vec<ObjectKey>, StorageError> {
        self.store.names(session).await
    }

    async fn heads(&self, keys: &[ObjectKey]) -> Result<Vec<StoredObject>, StorageError> {
        self.store.heads(keys).await
    }

    async fn changed_at(&self, session: &SessionId) -> Result<Option<OffsetDateTime>, StorageError> {
        self.store.changed_at(session).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<bool, StorageError> {
        self.life.point().await;
        let deleted = self.store.delete(key).await;
        self.life.point().await;
        deleted
    }

    async fn rename(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), StorageError> {
        self.store.rename(from, to).await
    }

    async fn probe(&self) -> Result<Probe, StorageError> {
        self.store.probe().await
    }

    async fn source(&self, key: &ObjectKey) -> Result<Option<SpoolReader>, StorageError> {
        self.store.source(key).await
    }
}
