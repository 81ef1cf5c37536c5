//! Repairs: what can be done about a finding without losing anything. Each asks once more whether everything still is
//! as it was judged, changes one thing, and leaves one line in the audit.
//!
//! Never a deletion of bytes in here, but by the job of a deletion that somebody asked for.

use super::judge::{Case, Copy, Remedy, Verdict, Word};
use super::{Finding, Run, Stop, Treated};
use crate::catalog::{Action, Change, Changed, JobKind, JobRecord, Mend};
use crate::domain::merge::{Sources, StoredObject, merge};
use crate::domain::recording::micros;
use crate::domain::{ContentDigest, Durability, Recording, SessionId, StoreKind, StoreSet};

impl Run {
    /// Does what is to be done about a verdict, if anything is to be done at all.
    pub(super) async fn treat(&self, case: &Case, verdict: &Verdict) -> Result<Treated, Stop> {
        let left = |why: &str| Ok(Treated::Left(why.to_owned()));
        match &verdict.remedy {
            Remedy::None(why) => return left(why),
            Remedy::Forget if !self.options.forget_lost => {
                return left("it is lost; --forget-lost removes its row");
            }
            Remedy::Forget => {}
            _ if !self.options.repair => return Ok(Treated::Found),
            _ => {}
        }
        if !self.is_still_so(case).await? {
            return left("it changed meanwhile; verify again");
        }
        let done = match (&verdict.remedy, &case.row) {
            (Remedy::Adopt, _) => self.adopt_unknown(case).await?,
            (Remedy::DeleteAgain(stores), _) => self.delete_again(case, *stores).await?,
            (Remedy::Correct { stores, good, sync }, Some(row)) => {
                self.correct(case, row, verdict, (*stores, *good, *sync)).await?
            }
            (Remedy::SetAside, Some(row)) => self.set_aside(case, row, verdict).await?,
            (Remedy::QueueSync, Some(row)) => {
                let queued = "a job brings it to the cloud";
                self.mend(row, verdict, row.stores, row.durability, true).await?.then(|| queued.to_owned())
            }
            (Remedy::Forget, Some(row)) => {
                let forgotten = self.services.catalog.forget(row, &self.services.origin).await?;
                // A file of its name that was no copy of it is one that nobody knows now.
                self.services.known_files.forget(&row.key.session);
                forgotten.then(|| "its row was removed".to_owned())
            }
            _ => None,
        };
        match done {
            Some(done) => {
                tracing::info!(object.key = %case.key, word = verdict.word.as_str(), done, "repaired");
                self.services.bell.send_replace(());
                Ok(Treated::Repaired(done))
            }
            None => left("no copy could be shown to be good; verify again with every copy read"),
        }
    }

    /// Row, stores, row: the last look before something is changed.
    async fn is_still_so(&self, case: &Case) -> Result<bool, Stop> {
        let listing = self.services.stores.look(&case.key).await;
        let same = |now: Option<&StoredObject>, then: &Copy| match then {
            Copy::NotAsked => true,
            Copy::Absent => now.is_none(),
            Copy::There(seen) => now == Some(&seen.object),
        };
        let local = listing.fallback?;
        let cloud_is_same = match &listing.primary {
            Ok(objects) => same(objects.first(), &case.cloud),
            Err(_) => case.cloud == Copy::NotAsked || !case.has_cloud,
        };
        let view_is_same = self.known(&case.key).await?.row == case.row;
        let is_spooled = case.row.as_ref().is_some_and(|row| self.services.spool.has(&row.upload_id));
        Ok(cloud_is_same && same(local.first(), &case.local) && view_is_same && is_spooled == case.spooled)
    }

    async fn adopt_unknown(&self, case: &Case) -> Result<Option<String>, Stop> {
        let object = |copy: &Copy| copy.seen().map(|seen| seen.object.clone());
        let sources = Sources {
            supabase: Some(object(&case.cloud).into_iter().collect()),
            local: object(&case.local).into_iter().collect(),
            ..Sources::default()
        };
        let rows: Vec<Recording> = merge(sources).into_iter().map(|listed| listed.recording).collect();
        let sync = self.services.stores.has_primary();
        let adopted = self.services.catalog.adopt(&rows, sync, &self.services.origin).await?;
        Ok((adopted > 0).then(|| "it has a row now".to_owned()))
    }

    async fn delete_again(&self, case: &Case, stores: StoreSet) -> Result<Option<String>, Stop> {
        let services = &self.services;
        services.catalog.entomb(std::slice::from_ref(&case.key), stores, &services.origin).await?;
        let detail = Some("what lay under a deleted name is deleted again");
        services
            .catalog
            .note(Change { detail, ..Change::of(Action::Repaired, &case.key) }, &services.origin)
            .await?;
        Ok(Some("a job deletes it".into()))
    }

    async fn correct(
        &self,
        case: &Case,
        row: &Recording,
        verdict: &Verdict,
        (stores, good, sync): (StoreSet, StoreKind, bool),
    ) -> Result<Option<String>, Stop> {
        // A copy in the cloud was confirmed by its size and upload id when it was promised; that will do again, as
        // long as nothing else is given up for it. The file here goes to the cloud in place of another copy.
        let is_good = good == StoreKind::Supabase || self.is_good(case, row, good).await?;
        if !is_good {
            return Ok(None);
        }
        let durability = match (stores.supabase, row.durability) {
            (false, _) => Durability::Local,
            (true, durability) => durability.max(Durability::Cloud),
        };
        let corrected = self.mend(row, verdict, stores, durability, sync).await?;
        let names: Vec<_> = stores.iter().map(StoreKind::as_str).collect();
        let sent = if sync && !stores.supabase { "; a job brings it to the cloud" } else { "" };
        Ok(corrected.then(|| format!("the row says {}{sent}", names.join(" and "))))
    }

    /// First the row stops naming the file, then the file goes aside: a crash between leaves a file that no row names.
    async fn set_aside(
        &self,
        case: &Case,
        row: &Recording,
        verdict: &Verdict,
    ) -> Result<Option<String>, Stop> {
        if row.sha256.is_none() || !self.is_good(case, row, StoreKind::Supabase).await? {
            return Ok(None);
        }
        let cloud = StoreSet::only(StoreKind::Supabase);
        if !self.mend(row, verdict, cloud, Durability::CloudVerified, false).await? {
            return Ok(None);
        }
        let place = self.services.stores.fallback().set_aside(&case.key).await?;
        Ok(place.map(|place| format!("the row says supabase; the file is in {place}")))
    }

    /// Whether the copy has the row's digest; read now if it was not yet. Without a digest in the row its size is all
    /// there is.
    async fn is_good(&self, case: &Case, row: &Recording, store: StoreKind) -> Result<bool, Stop> {
        let Some(expected) = row.sha256 else { return Ok(true) };
        let copy = if store == StoreKind::Local { &case.local } else { &case.cloud };
        let digest: Option<ContentDigest> = match copy.seen().and_then(|seen| seen.digest) {
            Some(digest) => Some(digest),
            None => self.digest(&case.key, store).await?.ok().flatten(),
        };
        // Reading may have taken long.
        Ok(digest == Some(expected) && self.is_still_so(case).await?)
    }

    async fn mend(
        &self,
        before: &Recording,
        verdict: &Verdict,
        stores: StoreSet,
        durability: Durability,
        sync: bool,
    ) -> Result<bool, Stop> {
        let detail = format!("{}: {}", verdict.word.as_str(), verdict.detail);
        let mend = Mend { before, stores, durability, sync, found: verdict.found, detail: &detail };
        Ok(self.services.catalog.mend(mend, &self.services.origin).await?)
    }

    /// A job that waits for nothing: a sync is ended, a deletion is tried now, which ends it.
    pub(super) async fn examine_job(&self, job: &JobRecord) -> Result<Option<Finding>, Stop> {
        let (catalog, origin) = (&self.services.catalog, &self.services.origin);
        let Some(session) = job.kind.session() else { return Ok(None) };
        if !self.is_idle(&job.kind).await? {
            return Ok(None);
        }
        let name = job.kind.key().map(|key| key.filename.to_string());
        let treated = if !self.options.repair {
            Treated::Found
        } else {
            let changed = match &job.kind {
                JobKind::Sync(_) => catalog.cancel_job(&job.id, origin).await?,
                _ => catalog.retry_job(&job.id, micros(time::OffsetDateTime::now_utc())).await?,
            };
            if matches!(changed, Changed::Yes(_)) {
                let detail = Some("a job had nothing to do any more");
                let (action, filename) = (Action::Repaired, name.as_deref());
                let change = Change { action, session, filename, before: None, after: None, detail };
                catalog.note(change, origin).await?;
                self.services.bell.send_replace(());
                Treated::Repaired("the job ends".into())
            } else {
                Treated::Left("the job ended meanwhile".into())
            }
        };
        Ok(Some(Finding {
            word: Word::Orphaned,
            what: "job",
            session: Some(session.clone()),
            name,
            store: None,
            detail: format!("a job ({}) has nothing to do any more", job.kind.name()),
            lost: false,
            expected: None,
            found: None,
            treated,
        }))
    }

    pub(super) async fn empty_directory(&self, session: &SessionId) -> Result<Finding, Stop> {
        let treated = if !self.options.repair {
            Treated::Found
        } else if self.services.stores.fallback().empty_session(session, self.settled(), true).await? {
            let detail = Some("an empty directory was removed");
            let action = Action::Repaired;
            let change = Change { action, session, filename: None, before: None, after: None, detail };
            self.services.catalog.note(change, &self.services.origin).await?;
            Treated::Repaired("the directory was removed".into())
        } else {
            Treated::Left("it changed meanwhile".into())
        };
        Ok(Finding {
            word: Word::Orphaned,
            what: "directory",
            session: Some(session.clone()),
            name: None,
            store: Some(StoreKind::Local),
            detail: "a session's directory is empty".into(),
            lost: false,
            expected: None,
            found: None,
            treated,
        })
    }
}
