//! Verification: catalogue, bucket and local disk against each other, one session after the other, and on request the
//! repairs that cannot lose anything.
//!
//! Invariants: nothing is said of a name that changed while it was looked at; a store that could not be asked never
//! makes a loss; what is younger than a minute, reserved or in the spool is left alone; before a repair everything is
//! asked once more, and the row is changed only if it still is what it was.

mod judge;
mod look;
mod mend;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use time::OffsetDateTime;
use tokio::sync::mpsc;

pub use self::judge::Word;
use self::judge::{Remedy, Verdict};
use super::{ServiceError, Services};
use crate::catalog::{CatalogError, JobKind, JobState};
use crate::domain::merge::StoredObject;
use crate::domain::{ContentDigest, ObjectKey, Recording, SessionId, StoreKind};
use crate::storage::tiered::PrimaryError;
use crate::storage::{ListScope, StorageError, chain};

/// Names looked at at once.
const AT_ONCE: usize = 4;
/// Shortest time between two progress lines.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What to verify, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyOptions {
    /// Only this session; otherwise everything.
    pub session: Option<SessionId>,
    /// Read every copy and compare its SHA-256. Otherwise only sizes, upload ids and the digests that travel with
    /// objects; bytes are read only where those leave a doubt.
    pub read: bool,
    /// Do what can be done without losing anything.
    pub repair: bool,
    /// Forget recordings whose bytes no store has.
    pub forget_lost: bool,
    /// What is younger is left alone: it may still be on its way.
    pub settled_after: Duration,
    /// Whoever reads nothing for so long does not listen any more.
    pub patience: Duration,
}

impl Default for VerifyOptions {
    /// Everything, by what is known, without changing anything.
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        let (settled_after, patience) = (minute, minute);
        Self { session: None, read: false, repair: false, forget_lost: false, settled_after, patience }
    }
}

/// What became of a finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Treated {
    /// Only told; a repair would do something about it.
    Found,
    /// It was put right, so.
    Repaired(String),
    /// It stays, for this reason.
    Left(String),
}

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What kind.
    pub word: Word,
    /// `recording`, `object`, `file`, `job`, `directory` or `spool`.
    pub what: &'static str,
    /// Its session, unless it belongs to none.
    pub session: Option<SessionId>,
    /// Its name in the session, or in the spool.
    pub name: Option<String>,
    /// The store it is about.
    pub store: Option<StoreKind>,
    /// What is wrong.
    /// What is wrong.
    pub detail: String,
    /// No store has its bytes.
    pub lost: bool,
    /// The digest that the row has.
    pub expected: Option<ContentDigest>,
    /// The digest that was read.
    pub found: Option<ContentDigest>,
    /// What became of it.
    pub treated: Treated,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    /// Sessions done.
    pub sessions: u64,
    /// Sessions there are.
    pub sessions_total: u64,
    /// Recordings looked at.
    pub recordings: u64,
    /// Bytes read for digests.
    pub bytes_read: u64,
}

/// What came of it all.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Summary {
    /// How far it came.
    pub progress: Progress,
    /// Findings by their word, in the order of [`Word::ALL`].
    pub found: [u64; 4],
    /// Findings that were put right.
    pub repaired: u64,
    /// Recordings that no store has and that were not forgotten.
    pub lost: u64,
    /// Copies that could not be looked at from here: on other gateways' disks, or in a cloud that did not answer.
    pub not_checkable: u64,
    /// Names that changed whenever they were looked at.
    pub in_motion: u64,
    /// Why the cloud could not be asked everything, if so.
    pub cloud_unavailable: Option<String>,
}

impl Summary {
    /// Differences that remain.
    pub fn remaining(&self) -> u64 {
        self.found.iter().sum::<u64>() - self.repaired
    }
}

/// Told while it works.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// How far it is.
    Progress(Progress),
    /// A difference.
    Finding(Box<Finding>),
    /// The end.
    Summary(Box<Summary>),
    /// It could not go on; what was told before holds.
    Failed(String),
}

impl Services {
    /// Starts a verification. It ends when it is done, when nobody reads its events any more, or when the gateway
    /// stops; a repair that has begun is finished.
    ///
    /// # Errors
    /// [`ServiceError::VerifyRunning`] while there is another one.
    pub fn verify(&self, options: VerifyOptions) -> Result<mpsc::Receiver<Event>, ServiceError> {
        let permit = self.verifying.clone().try_acquire_owned().map_err(|_| ServiceError::VerifyRunning)?;
        let (events, told) = mpsc::channel(16);
        let run =
            Run { services: self.clone(), options, events, state: Mutex::default(), read: AtomicU64::new(0) };
        self.tasks.spawn(async move {
            let last = match run.everything().await {
                Ok(()) => Some(Event::Summary(Box::new(run.summary()))),
                Err(Stop::NobodyListens) => None,
                Err(Stop::Failed(error)) => {
                    tracing::warn!(error = %chain(&error), "a verification could not go on");
                    Some(Event::Failed(chain(&error)))
                }
            };
            // The next one may start as soon as this one's end is known.
            drop(permit);
            if let Some(last) = last {
                let _ = run.send(last).await;
            }
        });
        Ok(told)
    }
}

/// Why it does not go on.
#[derive(Debug)]
enum Stop {
    /// Whoever asked has gone, or the gateway stops.
    NobodyListens,
    Failed(ServiceError),
}

impl From<ServiceError> for Stop {
    fn from(error: ServiceError) -> Self {
        Self::Failed(error)
    }
}

impl From<CatalogError> for Stop {
    fn from(error: CatalogError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<StorageError> for Stop {
    fn from(error: StorageError) -> Self {
        Self::Failed(error.into())
    }
}

#[derive(Default)]
struct RunState {
    summary: Summary,
    told_at: Option<Instant>,
}

/// One verification.
struct Run {
    services: Services,
    options: VerifyOptions,
    events: mpsc::Sender<Event>,
    state: Mutex<RunState>,
    read: AtomicU64,
}

impl Run {
    fn state(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn summary(&self) -> Summary {
        let mut summary = self.state().summary.clone();
        summary.progress.bytes_read = self.read.load(Ordering::Relaxed);
        summary
    }

    /// Whether anybody still wants to know.
    fn go_on(&self) -> Result<(), Stop> {
        let over = self.events.is_closed() || self.services.tasks.stopping().is_cancelled();
        if over { Err(Stop::NobodyListens) } else { Ok(()) }
    }

    async fn tell(&self, event: Event) -> Result<(), Stop> {
        self.send(event).await?;
        self.go_on()
    }

    async fn send(&self, event: Event) -> Result<(), Stop> {
        let told = self.events.send_timeout(event, self.options.patience).await;
        told.map_err(|_| Stop::NobodyListens)
    }

    /// Tells how far it is, now and then.
    async fn tell_progress(&self) -> Result<(), Stop> {
        self.go_on()?;
        let is_due = {
            let mut state = self.state();
            let is_due = state.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
            if is_due {
                state.told_at = Some(Instant::now());
            }
            is_due
        };
        if is_due { self.tell(Event::Progress(self.summary().progress)).await } else { Ok(()) }
    }

    async fn report(&self, finding: Finding) -> Result<(), Stop> {
        {
            let summary = &mut self.state().summary;
            let word = Word::ALL.iter().position(|word| *word == finding.word).unwrap_or_default();
            summary.found[word] += 1;
            match &finding.treated {
                Treated::Repaired(_) => summary.repaired += 1,
                _ => summary.lost += u64::from(finding.lost),
            }
        }
        self.tell(Event::Finding(Box::new(finding))).await
    }

    /// Notes that the cloud did not answer.
    fn without_cloud(&self, error: &PrimaryError) {
        if !matches!(error, PrimaryError::NotConfigured) {
            self.state().summary.cloud_unavailable = Some(chain(error));
        }
    }

    fn settled(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() - self.options.settled_after
    }

    async fn everything(&self) -> Result<(), Stop> {
        let sessions = match &self.options.session {
            Some(session) => BTreeSet::from([session.clone()]),
            None => self.sessions().await?,
        };
        self.state().summary.progress.sessions_total = sessions.len() as u64;
        for session in sessions {
            self.session(&session).await?;
            self.state().summary.progress.sessions += 1;
            self.tell_progress().await?;
        }
        if self.options.session.is_none() {
            self.spool().await?;
        }
        Ok(())
    }

    /// Their names alone; what is in them is held one session at a time.
    async fn sessions(&self) -> Result<BTreeSet<SessionId>, Stop> {
        let mut sessions = self.services.stores.fallback().sessions().await?;
        match self.services.stores.primary_sessions().await {
            Ok(found) => sessions.extend(found),
            Err(error) => self.without_cloud(&error),
        }
        sessions.extend(self.services.catalog.sessions().await?);
        Ok(sessions)
    }

    async fn session(&self, session: &SessionId) -> Result<(), Stop> {
        let (scope, catalog) = (ListScope::Session(session.clone()), &self.services.catalog);
        let view = catalog.view(&scope).await?;
        let listing = self.services.stores.list(&scope).await;
        let by_key = |objects: Vec<StoredObject>| -> HashMap<ObjectKey, StoredObject> {
            objects.into_iter().map(|object| (object.key.clone(), object)).collect()
        };
        let local = by_key(listing.fallback?);
        let cloud = match listing.primary {
            Ok(objects) => Some(by_key(objects)),
            Err(error) => {
                self.without_cloud(&error);
                None
            }
        };
        // Once more: what an upload had reserved before the listing has its row by now, or is reserved still.
        let later = catalog.view(&scope).await?;
        let reserved: HashSet<&ObjectKey> = view.reserved.iter().chain(&later.reserved).collect();
        let jobs = catalog.open_jobs(session, None).await?;
        let syncs: HashSet<&ObjectKey> = jobs.iter().filter_map(|job| job.kind.key()).collect();
        let rows: HashMap<&ObjectKey, &Recording> =
            view.recordings.iter().map(|row| (&row.key, row)).collect();

        let listed = cloud.iter().flatten().map(|(key, _)| key).chain(local.keys());
        let keys: BTreeSet<&ObjectKey> = rows.keys().copied().chain(listed).collect();
        let (has_cloud, read) = (self.services.stores.has_primary(), self.options.read);
        // What needs no question of its own: only here, of the right size, with a job where there is a cloud.
        let is_plain = |key: &ObjectKey| {
            let Some(row) = rows.get(key) else { return false };
            let here = local.get(key).is_some_and(|file| file.size_bytes == row.size_bytes);
            let only_here = row.stores.local && !row.stores.supabase && row.held_by.is_none();
            let not_there = cloud.as_ref().map_or(!has_cloud, |cloud| !cloud.contains_key(key));
            let cared_for = !has_cloud || row.parked_reason.is_some() || syncs.contains(key);
            !read && here && only_here && not_there && cared_for
        };
        let (plain, others): (Vec<_>, Vec<_>) =
            keys.into_iter().filter(|key| !reserved.contains(key)).partition(|key| is_plain(key));
        self.state().summary.progress.recordings += plain.len() as u64;
        let keys: Vec<ObjectKey> = others.into_iter().cloned().collect();
        let mut examined = futures_util::stream::iter(keys)
            .map(|key| async move {
                let examined = self.examine(&key).await;
                self.state().summary.progress.recordings += 1;
                examined
            })
            .buffer_unordered(AT_ONCE);
        while let Some(examined) = examined.next().await {
            for finding in examined? {
                self.report(finding).await?;
            }
            self.tell_progress().await?;
        }
        for job in
            jobs.iter().filter(|job| job.state == JobState::Waiting && job.created_at <= self.settled())
        {
            if let Some(finding) = self.examine_job(job).await? {
                self.report(finding).await?;
            }
        }
        if local.is_empty()
            && self.services.stores.fallback().empty_session(session, self.settled(), false).await?
        {
            let finding = self.empty_directory(session).await?;
            self.report(finding).await?;
        }
        Ok(())
    }

    /// Files in the spool that nobody will come back for. The next start decides about them.
    async fn spool(&self) -> Result<(), Stop> {
        let (spool, quiet) = (self.services.spool.clone(), self.options.settled_after);
        let forsaken = tokio::task::spawn_blocking(move || spool.forsaken(quiet)).await;
        for leftover in forsaken.map_err(|_| ServiceError::Unexpected)?.map_err(ServiceError::from)? {
            let row = match &leftover.upload_id {
                Some(id) => self.services.catalog.get_by_upload(id).await?,
                None => None,
            };
            let detail = match &row {
                Some(row) => format!("bytes of {} that were kept from their place", row.key),
                None => "what an upload left that came to nothing".to_owned(),
            };
            self.report(Finding {
                word: Word::Orphaned,
                what: "spool",
                session: row.map(|row| row.key.session),
                name: Some(leftover.name()),
                store: None,
                detail,
                lost: false,
                expected: None,
                found: None,
                treated: Treated::Left("the next start of the gateway puts it in place or removes it".into()),
            })
            .await?;
        }
        Ok(())
    }

    fn finding(
        &self,
        key: &ObjectKey,
        row: Option<&Recording>,
        verdict: Verdict,
        treated: Treated,
    ) -> Finding {
        let what = match (row, verdict.store) {
            (Some(_), _) => "recording",
            (None, Some(StoreKind::Local)) => "file",
            (None, _) => "object",
        };
        Finding {
            word: verdict.word,
            what,
            session: Some(key.session.clone()),
            name: Some(key.filename.to_string()),
            store: verdict.store,
            detail: verdict.detail,
            lost: verdict.remedy == Remedy::Forget,
            expected: row.and_then(|row| row.sha256),
            found: verdict.found,
            treated,
        }
    }

    /// Whether a job that waits has nothing to be done about any more.
    async fn is_idle(&self, kind: &JobKind) -> Result<bool, Stop> {
        let catalog = &self.services.catalog;
        Ok(match kind {
            JobKind::Sync(key) => catalog.get(key).await?.is_none(),
            JobKind::Delete(key) => !catalog.tombstone(key).await?.is_some_and(|t| t.pending.supabase),
            JobKind::DeleteLocal(key) => !catalog.tombstone(key).await?.is_some_and(|t| t.pending.local),
            JobKind::DeleteSession(session) => catalog.session_tombstone(session).await?.is_none(),
            JobKind::SyncAll | JobKind::SyncSession(_) | JobKind::Migration => false,
        })
    }
}
