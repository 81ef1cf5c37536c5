//! The list of sessions. It is held to a page: the catalogue counts its rows, and only what it does not know is looked
//! at in the stores, of the sessions on the page and of those that only a store has.
//!
//! Order: a session that has rows stands where its newest row puts it, any other where its newest object does. What
//! is hidden for now is read before the stores are, as for every listing; tombstones stay and are asked for afterwards.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt, TryStreamExt};

pub use crate::catalog::SessionTotals;
use crate::catalog::SessionsSeen;
use crate::domain::merge::{Deleted, Sources, StoredObject, merge};
use crate::domain::page::{PageRequest, Position};
use crate::domain::{ObjectKey, SessionId, StoreKind};
use crate::service::rebuild::{BATCH, keys};
use crate::service::{ServiceError, Services};
use crate::storage::tiered::PrimaryError;
use crate::storage::{ListScope, chain};

/// A bucket that ends within so many pages of its list is read whole; of a larger one the sessions that matter are
/// asked for one by one.
const WHOLE: usize = 8;

/// Objects on a page of the bucket's list.
const ON_A_PAGE: u64 = 1000;

/// Recordings from which on it is worth remembering which files of a session are known. Many short ones would drive the
/// long ones out.
const LONG: u64 = 1000;

/// Sessions that are looked at at once.
const AT_ONCE: usize = 8;

/// One page of sessions.
#[derive(Debug)]
pub struct SessionsPage {
    /// The page, the session with the newest recording first.
    pub rows: Vec<SessionTotals>,
    /// Sessions in all.
    pub total: u64,
    /// Where the next page begins.
    pub next_cursor: Option<String>,
    /// Stores that could not be asked.
    pub unavailable: Vec<StoreKind>,
}

/// What the bucket told.
enum Bucket {
    /// What it holds without a row, by session: all of it.
    Whole(HashMap<SessionId, Vec<StoredObject>>),
    /// It is too large for that: the sessions in it that have no row. Each has to be asked for.
    Sessions(Vec<SessionId>),
    /// It could not be asked, or there is none.
    Unasked,
}

impl SessionTotals {
    fn empty(session: SessionId) -> Self {
        Self { session, count: 0, bytes: 0, newest_us: i64::MIN }
    }

    fn position(&self) -> Position {
        Position { time_us: self.newest_us, name: self.session.to_string() }
    }
}

impl Services {
    /// A page of the sessions. Safe to drop.
    pub async fn list_sessions(&self, page: &PageRequest) -> Result<SessionsPage, ServiceError> {
        let seen = self.catalog.sessions_page(page.after.as_ref(), page.limit + 1).await?;
        let bucket = self.bucket(&seen).await;
        let cloud = Cloud::default();
        let bucket = cloud.or_unasked(bucket, Bucket::Unasked)?;
        let look = Look { services: self, hidden: &seen.hidden, bucket: &bucket, cloud: &cloud };

        let with_rows: HashSet<SessionId> = seen.rows.iter().map(|row| row.session.clone()).collect();
        let mut without_rows = self.sessions_without_rows(&bucket).await?;
        without_rows.retain(|session, _| !with_rows.contains(session));
        let empty = without_rows.into_iter().map(|(s, in_cloud)| (SessionTotals::empty(s), in_cloud));
        let mut found = look.complete_all(empty.collect()).await?;
        found.retain(|summary| summary.count > 0);
        let total = seen.sessions + found.len() as u64;

        let mut rows: Vec<SessionTotals> = found.into_iter().chain(seen.rows).collect();
        rows.sort_by_cached_key(|row| Reverse(row.position()));
        let (rows, next_cursor) = page.cut(rows, SessionTotals::position);
        let (known, found): (Vec<_>, Vec<_>) =
            rows.into_iter().enumerate().partition(|(_, row)| with_rows.contains(&row.session));
        let (places, known): (Vec<_>, Vec<_>) = known.into_iter().unzip();
        let known = look.complete_all(known.into_iter().map(|row| (row, true)).collect()).await?;
        let rows: BTreeMap<usize, SessionTotals> = places.into_iter().zip(known).chain(found).collect();
        Ok(SessionsPage {
            rows: rows.into_values().collect(),
            total,
            next_cursor,
            unavailable: cloud.unavailable(),
        })
    }

    async fn bucket(&self, seen: &SessionsSeen) -> Result<Bucket, ServiceError> {
        if seen.recordings <= WHOLE as u64 * ON_A_PAGE
            && let Some(strangers) = self.whole_bucket(&seen.hidden).await?
        {
            return Ok(Bucket::Whole(strangers));
        }
        let (mut cursor, mut unknown) = (None, Vec::new());
        loop {
            let page =
                self.stores.primary_session_page(cursor.as_deref()).await.map_err(ServiceError::Cloud)?;
            let recorded = self.catalog.recorded_sessions(&page.items).await?;
            unknown.extend(page.items.into_iter().filter(|session| !recorded.contains(session)));
            cursor = page.next;
            if cursor.is_none() {
                return Ok(Bucket::Sessions(unknown));
            }
        }
    }

    /// `None` if the bucket is larger than that.
    async fn whole_bucket(
        &self,
        hidden: &Deleted,
    ) -> Result<Option<HashMap<SessionId, Vec<StoredObject>>>, ServiceError> {
        let (mut cursor, mut found) = (None, HashMap::<_, Vec<_>>::new());
        for _ in 0..WHOLE {
            let page = self.stores.primary_page(&ListScope::Everything, cursor.as_deref()).await;
            let page = page.map_err(ServiceError::Cloud)?;
            for object in self.strangers(page.items, hidden).await? {
                found.entry(object.key.session.clone()).or_default().push(object);
            }
            cursor = page.next;
            if cursor.is_none() {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Sessions that only a store has, and whether that is the cloud.
    async fn sessions_without_rows(
        &self,
        bucket: &Bucket,
    ) -> Result<BTreeMap<SessionId, bool>, ServiceError> {
        let here = self.stores.fallback().sessions().await?;
        let mut sessions: BTreeMap<SessionId, bool> = here.into_iter().map(|s| (s, false)).collect();
        match bucket {
            Bucket::Whole(strangers) => sessions.extend(strangers.keys().map(|s| (s.clone(), true))),
            Bucket::Sessions(unknown) => sessions.extend(unknown.iter().map(|s| (s.clone(), true))),
            Bucket::Unasked => {}
        }
        let ids: Vec<SessionId> = sessions.keys().cloned().collect();
        for session in self.catalog.recorded_sessions(&ids).await? {
            sessions.remove(&session);
        }
        Ok(sessions)
    }

    /// Those of the objects that have no row and are not hidden.
    async fn strangers(
        &self,
        objects: Vec<StoredObject>,
        hidden: &Deleted,
    ) -> Result<Vec<StoredObject>, ServiceError> {
        let mut strangers = Vec::new();
        for batch in objects.chunks(BATCH) {
            let names = self.catalog.names(&keys(batch)).await?;
            let is_one = |key: &ObjectKey| names.lack(key) && !hidden.keys.contains(key);
            strangers.extend(batch.iter().filter(|object| is_one(&object.key)).cloned());
        }
        Ok(strangers)
    }
}

/// Whether the cloud could be asked whenever it was.
#[derive(Default)]
struct Cloud {
    failed: AtomicBool,
}

impl Cloud {
    /// What was found there, or a note that it could not be asked and what is taken instead.
    fn or_unasked<T>(&self, found: Result<T, ServiceError>, unasked: T) -> Result<T, ServiceError> {
        match found {
            Err(ServiceError::Cloud(PrimaryError::NotConfigured)) => Ok(unasked),
            Err(ServiceError::Cloud(error)) => {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    tracing::info!(error = %chain(&error), "answering without the cloud");
                }
                Ok(unasked)
            }
            found => found,
        }
    }

    fn unavailable(&self) -> Vec<StoreKind> {
        if self.failed.load(Ordering::Relaxed) { vec![StoreKind::Supabase] } else { Vec::new() }
    }
}

/// A look at what sessions have besides their rows.
struct Look<'a> {
    services: &'a Services,
    hidden: &'a Deleted,
    bucket: &'a Bucket,
    cloud: &'a Cloud,
}

impl Look<'_> {
    /// Adds to each what has no row, in their order. The flag says whether the cloud may have something of it.
    async fn complete_all(
        &self,
        sessions: Vec<(SessionTotals, bool)>,
    ) -> Result<Vec<SessionTotals>, ServiceError> {
        let looks = sessions.into_iter().map(|(summary, in_cloud)| self.complete(summary, in_cloud));
        futures_util::stream::iter(looks).buffered(AT_ONCE).try_collect().await
    }

    async fn complete(
        &self,
        mut summary: SessionTotals,
        in_cloud: bool,
    ) -> Result<SessionTotals, ServiceError> {
        let supabase = match self.bucket {
            Bucket::Whole(strangers) => strangers.get(&summary.session).cloned().unwrap_or_default(),
            Bucket::Sessions(_) if in_cloud => {
                self.cloud.or_unasked(self.in_cloud(&summary.session).await, Vec::new())?
            }
            Bucket::Sessions(_) | Bucket::Unasked => Vec::new(),
        };
        let all_known = summary.count >= LONG
            && matches!(self.services.files_are_known(&summary.session).await, Ok(true));
        let local = match all_known {
            true => Vec::new(),
            false => self.services.strangers(self.files(&summary.session).await?, self.hidden).await?,
        };
        if supabase.is_empty() && local.is_empty() {
            return Ok(summary);
        }
        let at = self.hidden.sessions.get_key_value(&summary.session);
        let sessions = at.map(|(session, at)| (session.clone(), *at)).into_iter().collect();
        let deleted = Deleted { sessions, ..Deleted::default() };
        for row in merge(Sources { supabase: Some(supabase), local, deleted, ..Sources::default() }) {
            summary.count += 1;
            summary.bytes += row.recording.size_bytes;
            summary.newest_us = summary.newest_us.max(row.position().time_us);
        }
        Ok(summary)
    }

    async fn in_cloud(&self, session: &SessionId) -> Result<Vec<StoredObject>, ServiceError> {
        let (scope, mut cursor, mut found) = (ListScope::Session(session.clone()), None, Vec::new());
        loop {
            let page = self.services.stores.primary_page(&scope, cursor.as_deref()).await;
            let page = page.map_err(ServiceError::Cloud)?;
            found.extend(self.services.strangers(page.items, self.hidden).await?);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(found);
            }
        }
    }

    async fn files(&self, session: &SessionId) -> Result<Vec<StoredObject>, ServiceError> {
        let files = self.services.stores.fallback().list(&ListScope::Session(session.clone())).await;
        match files {
            Err(error) if error.is_about_rights() => {
                tracing::warn!(session.id = %session, "left out of the list: this user may not read it");
                Ok(Vec::new())
            }
            files => Ok(files?),
        }
    }
}
