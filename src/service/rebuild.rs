//! Filling a catalogue that is new or was lost from what the stores hold, and taking in files that operators drop
//! into `recordings/`. Both go through everything there is, so both hold a page or a session at a time, and ask the
//! catalogue about that. Files that were taken in too early are followed until the cloud has them.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use time::OffsetDateTime;

use crate::domain::merge::{self, Sources, StoredObject, merge};
use crate::domain::{ObjectKey, Recording, SessionId, StoreKind, StoreSet};
use crate::service::{ServiceError, Services};
use crate::storage::tiered::PrimaryError;
use crate::storage::{ListScope, StorageError, chain};

/// The fact that the bucket was taken in.
const TAKEN_IN: &str = "bucket_taken_in";

/// A file that changed more recently may still be being copied here.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

/// A directory that changed more recently may change again within the same tick of its clock.
pub(super) const TICK: Duration = Duration::from_secs(3);

/// How long it is believed that a directory which looks as it did holds what it did. Links and rights of single files
/// change without it.
pub(super) const BELIEVED_FOR: Duration = Duration::from_secs(3600);

/// Names that the catalogue is asked about at a time.
pub(super) const BATCH: usize = 1000;

/// Recordings taken in from the bucket at a time: what is lost of the work when the cloud goes away.
const TAKE_IN: usize = 100;

/// Objects that are asked for at once.
const AT_ONCE: usize = 8;

/// Whether a file that was written to at `modified_at` has settled. A time that is still to come was set by somebody and says
/// nothing; should it change all the same, it is followed.
pub(super) fn has_settled(modified_at: OffsetDateTime, now: OffsetDateTime) -> bool {
    modified_at <= now - SETTLED_AFTER || modified_at > now
}

/// Sessions on the local disk of which every file was known, with when their directories had changed.
#[derive(Default)]
pub struct Seen {
    since: Option<OffsetDateTime>,
    sessions: HashMap<SessionId, OffsetDateTime>,
    /// Where the look at files that are followed goes on.
    followed: Option<ObjectKey>,
}

impl Services {
    /// Gives every file on the local disk that the catalogue does not know a row and, with a cloud, a sync job.
    /// Returns how many were new. Safe to drop and to repeat.
    pub async fn adopt_local(&self) -> Result<u64, ServiceError> {
        self.adopt_changed(&mut Seen::default()).await
    }

    /// As [`adopt_local`](Self::adopt_local), leaving out sessions that did not change since they were `seen`.
    pub async fn adopt_changed(&self, seen: &mut Seen) -> Result<u64, ServiceError> {
        let now = OffsetDateTime::now_utc();
        if seen.since.is_none_or(|since| now - since > BELIEVED_FOR) {
            *seen = Seen { since: Some(now), followed: seen.followed.take(), ..Seen::default() };
        }
        self.follow_files(seen).await?;
        let mut adopted = 0;
        let sessions = self.stores.fallback().sessions().await?;
        seen.sessions.retain(|session, _| sessions.contains(session));
        for session in sessions {
            let (changed_at, files) = match self.look_into(&session, seen).await {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(session.id = %session, error = %chain(&error), "its files cannot be taken in");
                    continue;
                }
            };
            let (new, all_known) = self.adopt_files(files, now).await?;
            adopted += new;
            match changed_at.filter(|at| all_known && *at < now - TICK) {
                Some(at) => seen.sessions.insert(session, at),
                None => seen.sessions.remove(&session),
            };
        }
        Ok(adopted)
    }

    /// Corrects the rows of files that changed since they were taken in: a recorder may pause, and a slow copy rest. That
    /// does not change their directories. A batch at each look, for without a cloud they stay so for ever.
    async fn follow_files(&self, seen: &mut Seen) -> Result<(), ServiceError> {
        let rows = self.catalog.following(seen.followed.as_ref(), BATCH).await?;
        seen.followed = rows.last().filter(|_| rows.len() == BATCH).map(|row| row.key.clone());
        for mut row in rows {
            match self.stores.fallback().head(&row.key).await {
                Ok(Some(file)) => self.follow_file(&mut row, &file).await?,
                // That it is missing is told by the listings.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(object.key = %row.key, error = %chain(&error), "its file cannot be looked at");
                }
            }
        }
        Ok(())
    }

    /// Makes the row say what its file is now, if it follows it.
    pub(super) async fn follow_file(
        &self,
        row: &mut Recording,
        file: &StoredObject,
    ) -> Result<(), ServiceError> {
        if merge::follow(row, file) && self.catalog.follow(row).await? {
            tracing::info!(object.key = %row.key, size_bytes = row.size_bytes, "a file changed after it was taken in");
        }
        Ok(())
    }

    /// The files of a session and when it had changed; `None` if that is as it was seen.
    async fn look_into(
        &self,
        session: &SessionId,
        seen: &Seen,
    ) -> Result<Option<(Option<OffsetDateTime>, Vec<StoredObject>)>, StorageError> {
        let fallback = self.stores.fallback();
        // Asked before the files: what comes between is a change.
        let changed_at = fallback.changed_at(session).await?;
        if changed_at.is_some() && seen.sessions.get(session) == changed_at.as_ref() {
            return Ok(None);
        }
        Ok(Some((changed_at, fallback.list(&ListScope::Session(session.clone())).await?)))
    }

    /// Takes in those that are settled and not known. Also says whether all are known now, or deleted.
    async fn adopt_files(
        &self,
        files: Vec<StoredObject>,
        now: OffsetDateTime,
    ) -> Result<(u64, bool), ServiceError> {
        let (mut adopted, mut all_known) = (0, true);
        for batch in files.chunks(BATCH) {
            let names = self.catalog.names(&keys(batch)).await?;
            let unknown = batch.iter().filter(|file| names.lack(&file.key));
            let (local, fresh): (Vec<_>, Vec<_>) =
                unknown.cloned().partition(|file| has_settled(file.modified_at, now));
            all_known &= fresh.is_empty() && names.reserved.is_empty();
            let rows = merge(Sources { deleted: names.deleted, local, ..Sources::default() });
            adopted += self.adopt(rows.into_iter().map(|row| row.recording).collect()).await?;
        }
        Ok((adopted, all_known))
    }

    /// Takes in what the bucket holds, once in a catalogue's life: a lost one comes back so. `false` if it is to be
    /// tried again. Safe to drop and to repeat.
    pub async fn adopt_cloud_once(&self) -> Result<bool, ServiceError> {
        if !self.stores.has_primary() || self.catalog.fact(TAKEN_IN).await?.is_some() {
            return Ok(true);
        }
        let done = self.adopt_cloud().await?.is_some();
        if done {
            self.catalog.set_fact(TAKEN_IN, &self.rules.bucket).await?;
        }
        Ok(done)
    }

    /// Gives every object in the bucket that the catalogue does not know a row, with what the gateway once left with
    /// it. `None` if a store could not be asked about all of them; what was taken in until then stays. Safe to drop
    /// and to repeat.
    pub async fn adopt_cloud(&self) -> Result<Option<u64>, ServiceError> {
        let (mut cursor, mut adopted, mut all_asked) = (None, 0, true);
        loop {
            let page = self.stores.primary_page(&ListScope::Everything, cursor.as_deref()).await;
            let Ok(page) = page else { return Ok(None) };
            for batch in page.items.chunks(TAKE_IN) {
                let (new, asked) = self.adopt_objects(batch).await?;
                adopted += new;
                match asked {
                    Ok(all_here) => all_asked &= all_here,
                    // There is no use in going on.
                    Err(PrimaryError::LeftAlone { .. } | PrimaryError::NotConfigured) => return Ok(None),
                    Err(PrimaryError::Failed(_)) => all_asked = false,
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all_asked.then_some(adopted));
            }
        }
    }

    /// Takes in those that a gateway sent and that are not known. Also says whether this disk could be asked for all of them,
    /// or why the cloud could not.
    async fn adopt_objects(
        &self,
        objects: &[StoredObject],
    ) -> Result<(u64, Result<bool, PrimaryError>), ServiceError> {
        let names = self.catalog.names(&keys(objects)).await?;
        let unknown: Vec<ObjectKey> = keys(objects).into_iter().filter(|key| names.lack(key)).collect();
        // A list does not tell what travels with an object; the object itself does. What carries no upload id was put
        // there by others, who may take it away again: it is listed without a row.
        let mut heads = futures_util::stream::iter(unknown)
            .map(|key| async move { self.stores.head_primary(&key).await })
            .buffer_unordered(AT_ONCE);
        let (mut supabase, mut local, mut asked, mut all_here) = (Vec::new(), Vec::new(), Ok(()), true);
        while let Some(found) = heads.next().await {
            match found {
                Ok(found) => supabase.extend(found.filter(|object| object.upload_id.is_some())),
                // That the cloud is left alone is the last word.
                Err(error) => asked = Err(error),
            }
        }
        for object in &supabase {
            match self.stores.fallback().head(&object.key).await {
                Ok(file) => local.extend(file),
                // One directory that cannot be read keeps nothing in the bucket from being known.
                Err(error) => {
                    tracing::warn!(object.key = %object.key, error = %chain(&error), "whether this disk has a copy cannot be seen");
                    all_here = false;
                }
            }
        }
        let sources =
            Sources { deleted: names.deleted, supabase: Some(supabase), local, ..Sources::default() };
        let in_cloud = merge(sources).into_iter().map(|row| row.recording).filter(|row| row.stores.supabase);
        Ok((self.adopt(in_cloud.collect()).await?, asked.map(|()| all_here)))
    }

    /// Deletes objects that a gateway sent and that landed after their recording was deleted. A name that was deleted
    /// is never given out again, so one with an upload id can be nothing else; what others put there since is
    /// theirs. Safe to drop and to repeat.
    pub async fn delete_late_pushes(&self) -> Result<(), ServiceError> {
        if !self.catalog.has_tombstones().await? {
            return Ok(());
        }
        let mut cursor = None;
        loop {
            let page = self.stores.primary_page(&ListScope::Everything, cursor.as_deref()).await;
            let Ok(page) = page else { return Ok(()) };
            for key in self.catalog.names(&keys(&page.items)).await?.deleted.keys {
                if let Ok(Some(found)) = self.stores.head_primary(&key).await
                    && found.upload_id.is_some()
                {
                    let cloud = StoreSet::only(StoreKind::Supabase);
                    self.catalog.entomb(&[key], cloud, &self.origin).await?;
                    self.bell.send_replace(());
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                return Ok(());
            }
        }
    }

    async fn adopt(&self, mut unknown: Vec<Recording>) -> Result<u64, ServiceError> {
        if unknown.is_empty() {
            return Ok(0);
        }
        // The catalogue takes a session at a time; the oldest go to the cloud first.
        unknown.sort_by(|a, b| {
            (&a.key.session, a.uploaded_at, &a.key).cmp(&(&b.key.session, b.uploaded_at, &b.key))
        });
        let adopted = self.catalog.adopt(&unknown, self.stores.has_primary(), &self.origin).await?;
        if adopted > 0 {
            tracing::info!(adopted, "recordings that the catalogue did not know were taken in");
            self.bell.send_replace(());
        }
        Ok(adopted)
    }
}

pub(super) fn keys(objects: &[StoredObject]) -> Vec<ObjectKey> {
    objects.iter().map(|object| object.key.clone()).collect()
}
