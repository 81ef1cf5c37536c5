//! Two stores in two roles: the primary, which may be away, and the fallback, which is the local disk. The one place
//! that decides when the primary is asked, how long it may take, and when it is left alone.
//!
//! Reads and writes have a breaker each: a bucket that lists well may still refuse every upload.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::breaker::{Admission, Breaker, State};
use super::pace::Pacer;
use super::push::push;
use super::{
    Background, ForThisCall, Kind, ListScope, ObjectMeta, ObjectStore, Outcome, Page, Probe, ResumePoint,
    Retry, StorageError, chain,
};
use crate::domain::merge::StoredObject;
use crate::domain::{ObjectKey, SessionId, StoreKind};
use crate::spool::SpoolReader;

/// A transfer whose last block left longer ago is not moving.
const STILL_MOVING: Duration = Duration::from_secs(1);

/// The two stores.
pub struct TieredStore {
    primary: Option<Primary>,
    fallback: Arc<dyn ObjectStore>,
    signed_url_ttl: Duration,
    pacer: Pacer,
}

struct Primary {
    store: Arc<dyn ObjectStore>,
    reads: Mutex<Breaker>,
    writes: Mutex<Breaker>,
    probed: Mutex<Option<Probe>>,
    /// Why the last probe told nothing.
    hidden: Mutex<Option<String>>,
    /// How long a completed upload may wait for the primary.
    patience: Duration,
}

/// Why the primary did not take or give something.
#[derive(Debug, thiserror::Error)]
pub enum PrimaryError {
    /// No primary is configured.
    #[error("no cloud is configured")]
    NotConfigured,
    /// The breaker is open.
    #[error("the cloud is left alone for a while: {cause}")]
    LeftAlone {
        /// What opened the breaker.
        cause: String,
    },
    /// It was asked and failed.
    #[error("the cloud failed")]
    Failed(#[from] StorageError),
}

impl PrimaryError {
    /// Whether the object may have arrived nevertheless.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Failed(error) => error.outcome,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same may work a little later.
    pub fn may_heal(&self) -> bool {
        match self {
            Self::NotConfigured => false,
            Self::LeftAlone { .. } => true,
            Self::Failed(error) => error.blames_store(),
        }
    }

    /// A reason that will not go away by waiting: the object has to be parked.
    pub fn parks(&self) -> Option<&str> {
        match self {
            Self::Failed(error) if error.retry() == Retry::Never && error.kind != Kind::AlreadyExists => {
                Some(&error.detail)
            }
            _ => None,
        }
    }

    /// Whether the object is over a size limit.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Failed(error) if error.kind == Kind::TooLarge)
    }

    /// Whether the object is there with other bytes than it should have.
    pub fn is_mismatch(&self) -> bool {
        matches!(self, Self::Failed(error) if error.kind == Kind::Mismatch)
    }

    /// How long the primary said it wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failed(error) => error.retry_after,
            _ => None,
        }
    }

    /// Whether the name is taken by somebody else's object.
    pub fn name_is_taken(&self) -> bool {
        matches!(self, Self::Failed(error) if error.kind == Kind::AlreadyExists)
    }
}

/// Who waits for a transfer to the primary.
#[derive(Clone, Copy)]
pub enum Waiting<'a> {
    /// A client: the transfers that share this have `patience` together after the source is complete.
    Client(&'a Deadline),
    /// Nobody, and the source is complete: it takes the time it takes, as long as bytes move, goes at the pace of the
    /// background, and continues where this says that an earlier one was broken off. Without a point it continues
    /// within the call only.
    Nobody(Option<&'a dyn ResumePoint>),
}

/// Until when a client waits: known as soon as its transfer sees that the source is complete.
#[derive(Default)]
pub struct Deadline(OnceLock<tokio::time::Instant>);

/// Both stores' objects of a scope.
pub struct Listing {
    /// The primary's; an error if it could not be asked.
    pub primary: Result<Vec<StoredObject>, PrimaryError>,
    /// The fallback's.
    pub fallback: Result<Vec<StoredObject>, StorageError>,
}

/// Where a cloud copy can be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectUrl {
    /// The address.
    pub url: String,
    /// When it stops working; `None` if it does not.
    pub expires_at: Option<OffsetDateTime>,
}

/// How the primary is, for operators.
#[derive(Clone, Debug)]
pub struct PrimaryStatus {
    /// The worse of the two breakers.
    pub state: State,
    /// Why it is open, or why it could not be asked what it takes.
    pub cause: Option<String>,
    /// What it takes, if it could be asked yet.
    pub probed: Option<Probe>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Leave to ask the primary. Dropped without a report, as when the caller went away, it says nothing about the store.
struct Leave<'a> {
    breaker: &'a Mutex<Breaker>,
    /// The one try after a pause, which others wait for, until it has said something.
    is_try: AtomicBool,
    reported: bool,
}

impl<'a> Leave<'a> {
    fn ask(breaker: &'a Mutex<Breaker>) -> Result<Self, PrimaryError> {
        let mut state = lock(breaker);
        match state.admit(Instant::now()) {
            admission @ (Admission::Go | Admission::Try) => {
                let is_try = AtomicBool::new(admission == Admission::Try);
                Ok(Self { breaker, is_try, reported: false })
            }
            Admission::Refused => Err(left_alone(&state)),
        }
    }

    /// The store has taken a part. If others wait for this try, they need not wait for the rest, which may take hours; who is
    /// no try waits with the good news until the end, for failures before it count in a row.
    fn accepted(&self) {
        if self.is_try.swap(false, Ordering::Relaxed) && lock(self.breaker).succeeded() {
            tracing::info!("the cloud is back");
        }
    }

    /// The breaker was told already.
    fn was_reported(mut self) {
        self.reported = true;
    }

    /// Tells the breaker what came of the request.
    fn report(mut self, error: Option<&StorageError>) {
        self.reported = !error.is_some_and(StorageError::says_nothing);
        match error {
            Some(error) if error.blames_store() => {
                failed(self.breaker, error);
            }
            Some(error) if error.says_nothing() => {}
            // A store that answers is there, also if it says no to this object.
            _ if lock(self.breaker).succeeded() => tracing::info!("the cloud is back"),
            _ => {}
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.reported && self.is_try.load(Ordering::Relaxed) {
            lock(self.breaker).gave_up();
        }
    }
}

fn left_alone(breaker: &Breaker) -> PrimaryError {
    PrimaryError::LeftAlone { cause: breaker.cause().unwrap_or("it failed").to_owned() }
}

/// Counts a failure and says whether the breaker is still closed.
fn failed(breaker: &Mutex<Breaker>, error: &StorageError) -> bool {
    let (cause, now) = (chain(error), Instant::now());
    let mut breaker = lock(breaker);
    if breaker.failed(now, &cause, error.retry() == Retry::AfterChange, error.retry_after) {
        tracing::warn!(cause, "the cloud is left alone for a while");
    }
    breaker.state(now) == State::Closed
}

async fn asked<T>(
    breaker: &Mutex<Breaker>,
    request: impl Future<Output = Result<T, StorageError>>,
) -> Result<T, PrimaryError> {
    let leave = Leave::ask(breaker)?;
    let result = request.await;
    leave.report(result.as_ref().err());
    Ok(result?)
}

impl TieredStore {
    /// Puts the two in their roles. `failures` in a row open the breaker, first for `pause`; `pacer` holds transfers
    /// that nobody waits for.
    pub fn new(
        primary: Option<Arc<dyn ObjectStore>>,
        fallback: Arc<dyn ObjectStore>,
        patience: Duration,
        (failures, pause): (u32, Duration),
        signed_url_ttl: Duration,
        pacer: Pacer,
    ) -> Self {
        let breaker = || Mutex::new(Breaker::new(failures, pause));
        let primary = primary.map(|store| Primary {
            store,
            reads: breaker(),
            writes: breaker(),
            probed: Mutex::default(),
            hidden: Mutex::default(),
            patience,
        });
        Self { primary, fallback, signed_url_ttl, pacer }
    }

    /// Whether there is a primary at all.
    pub fn has_primary(&self) -> bool {
        self.primary.is_some()
    }

    /// The fallback.
    pub fn fallback(&self) -> &dyn ObjectStore {
        &*self.fallback
    }

    fn primary(&self) -> Result<&Primary, PrimaryError> {
        self.primary.as_ref().ok_or(PrimaryError::NotConfigured)
    }

    /// Whether a write to the primary would be tried now: there is one, and it is not left alone, and nobody is just
    /// finding out whether it is back.
    pub fn primary_takes_writes(&self) -> bool {
        self.primary.as_ref().is_some_and(|p| lock(&p.writes).would_admit(Instant::now()))
    }

    /// Why the primary would not be asked for anything now; `None` if it would be.
    pub fn primary_left_alone(&self) -> Option<PrimaryError> {
        let Some(primary) = &self.primary else { return Some(PrimaryError::NotConfigured) };
        let reads = lock(&primary.reads);
        (!reads.would_admit(Instant::now())).then(|| left_alone(&reads))
    }

    /// Whether the primary said that it wants to be left alone, and that time is not over.
    pub fn primary_wants_rest(&self) -> bool {
        let now = Instant::now();
        let wants_rest = |breaker: &Mutex<Breaker>| lock(breaker).is_asked_to_wait(now);
        self.primary.as_ref().is_some_and(|p| wants_rest(&p.reads) || wants_rest(&p.writes))
    }

    /// Stores and confirms an object in the primary, following `source` while it grows. Safe to drop: the outcome is
    /// then unknown.
    pub async fn put_primary(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        known_size: Option<u64>,
        meta: &ObjectMeta,
        waiting: Waiting<'_>,
    ) -> Result<(), PrimaryError> {
        let primary = self.primary()?;
        let for_this_call = ForThisCall::default();
        let leave = Leave::ask(&primary.writes)?;
        let accepted = || leave.accepted();
        let (background, _client) = match waiting {
            Waiting::Client(_) => (None, Some(self.pacer.client_transfer())),
            Waiting::Nobody(resume) => {
                let resume = resume.unwrap_or(&for_this_call);
                (Some(Background { resume, pacer: &self.pacer, accepted: &accepted }), None)
            }
        };
        let go_on = |error: &StorageError| failed(&primary.writes, error);
        let store = &*primary.store;
        let mut judged = true;
        let pushed = tokio::select! {
            pushed = push(store, key, source, known_size, meta, background, go_on) => pushed,
            over = out_of_patience(source, primary.patience, waiting) => Err(match over {
                Over::Patience => {
                    let detail = format!("was not done {:?} after the last byte", primary.patience);
                    let error = StorageError::certain(store.kind(), Kind::Timeout, detail).unknown_if(true);
                    // Bytes that still move say that the line is slow for this recording, not that the cloud is away.
                    judged = !source.is_followed(STILL_MOVING);
                    if judged {
                        failed(&primary.writes, &error);
                    }
                    error
                }
                Over::Abandoned => StorageError::certain(store.kind(), Kind::SourceGone, "the upload was abandoned"),
            }),
        };
        // Failures that blame the store were counted as they happened.
        if !judged {
            // Nothing was found out: if this was the one try after a pause, its place is free again.
            drop(leave);
        } else if pushed.as_ref().is_err_and(StorageError::blames_store) {
            leave.was_reported();
        } else {
            leave.report(pushed.as_ref().err());
        }
        Ok(pushed?)
    }

    /// Gives an object in the primary another name and confirms it.
    pub async fn rename_primary(&self, from: &ObjectKey, to: &ObjectKey) -> Result<(), PrimaryError> {
        let primary = self.primary()?;
        let rename = async {
            match primary.store.rename(from, to).await {
                Err(error) if error.outcome == Outcome::Unknown => {
                    match (primary.store.head(to).await?, primary.store.head(from).await?) {
                        (Some(_), None) => Ok(()),
                        _ => Err(error),
                    }
                }
                done => done,
            }
        };
        asked(&primary.writes, rename).await
    }

    /// Stores an object in the fallback.
    pub async fn put_fallback(
        &self,
        key: &ObjectKey,
        source: &SpoolReader,
        meta: &ObjectMeta,
    ) -> Result<(), StorageError> {
        self.fallback.put(key, source, None, meta).await
    }

    /// Lists both at once.
    pub async fn list(&self, scope: &ListScope) -> Listing {
        let primary = async {
            let primary = self.primary()?;
            asked(&primary.reads, primary.store.list(scope)).await
        };
        let (primary, fallback) = tokio::join!(primary, self.fallback.list(scope));
        Listing { primary, fallback }
    }

    /// The sessions of the primary.
    pub async fn primary_sessions(&self) -> Result<BTreeSet<SessionId>, PrimaryError> {
        let primary = self.primary()?;
        asked(&primary.reads, primary.store.sessions()).await
    }

    /// The primary's objects of a scope, a page at a time.
    pub async fn primary_page(
        &self,
        scope: &ListScope,
        after: Option<&str>,
    ) -> Result<Page<StoredObject>, PrimaryError> {
        let primary = self.primary()?;
        asked(&primary.reads, primary.store.list_page(scope, after)).await
    }

    /// The sessions of the primary, a page at a time.
    pub async fn primary_session_page(&self, after: Option<&str>) -> Result<Page<SessionId>, PrimaryError> {
        let primary = self.primary()?;
        asked(&primary.reads, primary.store.session_page(after)).await
    }

    /// Asks both for one object, as a listing of at most one.
    pub async fn look(&self, key: &ObjectKey) -> Listing {
        let primary = async { Ok(self.head_primary(key).await?.into_iter().collect()) };
        let fallback = async { Ok(self.fallback.head(key).await?.into_iter().collect()) };
        let (primary, fallback) = tokio::join!(primary, fallback);
        Listing { primary, fallback }
    }

    /// Asks the primary for one object.
    pub async fn head_primary(&self, key: &ObjectKey) -> Result<Option<StoredObject>, PrimaryError> {
        let primary = self.primary()?;
        asked(&primary.reads, primary.store.head(key)).await
    }

    /// Opens an object in the primary.
    pub async fn open_primary(
        &self,
        key: &ObjectKey,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<Option<super::OpenObject>, PrimaryError> {
        let primary = self.primary()?;
        asked(&primary.reads, primary.store.open(key, range)).await
    }

    /// Deletes from the primary and confirms it. `false` if there was nothing.
    pub async fn delete_primary(&self, key: &ObjectKey) -> Result<bool, PrimaryError> {
        let primary = self.primary()?;
        asked(&primary.writes, primary.store.delete(key)).await
    }

    /// Asks the primary what it takes, and remembers the answer.
    pub async fn probe_primary(&self) -> Result<Probe, PrimaryError> {
        let primary = self.primary()?;
        let leave = Leave::ask(&primary.reads)?;
        let probed = primary.store.probe().await;
        let hidden = probed.as_ref().err().filter(|error| error.kind == Kind::BucketMissing);
        *lock(&primary.hidden) = hidden.map(|error| chain(error));
        // A key may use a bucket that it may not see: that it sees none says nothing of reading objects.
        if hidden.is_none() {
            leave.report(probed.as_ref().err());
        }
        let probe = probed?;
        *lock(&primary.probed) = Some(probe.clone());
        Ok(probe)
    }

    /// How the primary is; `None` without one.
    pub fn primary_status(&self) -> Option<PrimaryStatus> {
        let primary = self.primary.as_ref()?;
        let now = Instant::now();
        let (reads, writes) = (lock(&primary.reads), lock(&primary.writes));
        let worse = if writes.state(now) != State::Closed { &writes } else { &reads };
        Some(PrimaryStatus {
            state: worse.state(now),
            cause: worse.cause().map(str::to_owned).or_else(|| lock(&primary.hidden).clone()),
            probed: lock(&primary.probed).clone(),
        })
    }

    /// Where anybody can read the cloud copy; `None` in a private bucket.
    pub fn public_url(&self, key: &ObjectKey) -> Option<String> {
        self.primary.as_ref()?.store.public_url(key)
    }

    /// Where the cloud copy can be read: its public address, or one made for this answer.
    pub async fn url(&self, key: &ObjectKey) -> Result<ObjectUrl, PrimaryError> {
        let primary = self.primary()?;
        if let Some(url) = primary.store.public_url(key) {
            return Ok(ObjectUrl { url, expires_at: None });
        }
        let expires_at = OffsetDateTime::now_utc() + self.signed_url_ttl;
        let signed = asked(&primary.reads, primary.store.signed_url(key, self.signed_url_ttl)).await?;
        let no_url = || StorageError::certain(StoreKind::Supabase, Kind::Refused, "it gave no address");
        Ok(ObjectUrl { url: signed.ok_or_else(no_url)?, expires_at: Some(expires_at) })
    }
}

enum Over {
    Patience,
    Abandoned,
}

/// Ends when the source was abandoned, or when the client that waits has waited long enough after the last byte.
async fn out_of_patience(source: &SpoolReader, patience: Duration, waiting: Waiting<'_>) -> Over {
    match (source.completed().await, waiting) {
        (Err(_), _) => Over::Abandoned,
        (Ok(_), Waiting::Client(deadline)) => {
            let until = deadline.0.get_or_init(|| tokio::time::Instant::now() + patience);
            tokio::time::sleep_until(*until).await;
            Over::Patience
        }
        (Ok(_), Waiting::Nobody(_)) => std::future::pending().await,
    }
}
