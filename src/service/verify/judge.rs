//! What is wrong with one name, given everything that is known of it: row, tombstone, copies, jobs. Data in, findings
//! out; what they are compared by and what may be done about it is decided here and nowhere else.
//!
//! Never any I/O: a judgement can be made again from the same facts.

use time::OffsetDateTime;

use crate::catalog::{JobKind, Tombstone};
use crate::domain::merge::StoredObject;
use crate::domain::{ContentDigest, ObjectKey, Recording, StoreKind, StoreSet};

/// What kind of difference; the words are stable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Word {
    /// A store that the row names has no copy, or none has.
    Missing,
    /// A copy is not what the row says.
    Different,
    /// Nothing that the catalogue knows of.
    Unknown,
    /// Left over: of something deleted, broken off or done.
    Orphaned,
}

impl Word {
    /// Every word there is.
    pub const ALL: [Self; 4] = [Self::Missing, Self::Different, Self::Unknown, Self::Orphaned];

    /// The word used in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Different => "different",
            Self::Unknown => "unknown",
            Self::Orphaned => "orphaned",
        }
    }
}

/// What can be done about a finding without losing anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Remedy {
    /// Nothing, for this reason.
    None(String),
    /// Give it a row.
    Adopt,
    /// Say in the row that its copies are in `stores`, once the copy in `good` was found to be one; `sync` sends it.
    Correct { stores: StoreSet, good: StoreKind, sync: bool },
    /// Say in the row that its copy is in the cloud, once that was read back, and put the file here aside.
    SetAside,
    /// Ask the stores again to delete it.
    DeleteAgain(StoreSet),
    /// Leave a job that brings it to the cloud.
    QueueSync,
    /// The row may be forgotten if somebody says so.
    Forget,
}

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Verdict {
    pub word: Word,
    /// Where; `None` for nowhere or everywhere.
    pub store: Option<StoreKind>,
    pub detail: String,
    /// The digest of the copy, if it was read.
    pub found: Option<ContentDigest>,
    pub remedy: Remedy,
}

/// A copy in one store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Copy {
    /// The store could not be asked.
    NotAsked,
    /// It has none.
    Absent,
    /// It has one.
    There(Box<Seen>),
}

/// A copy that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub object: StoredObject,
    /// Of its bytes, if they were read.
    pub digest: Option<ContentDigest>,
    /// Why they could not be read.
    pub unreadable: Option<String>,
}

impl Copy {
    pub(super) fn seen(&self) -> Option<&Seen> {
        match self {
            Self::There(seen) => Some(seen.as_ref()),
            _ => None,
        }
    }
}

/// Everything known of one name.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub key: ObjectKey,
    pub row: Option<Recording>,
    pub tombstone: Option<Tombstone>,
    /// When the session was deleted whose cloud part is still to be named.
    pub session_deleted: Option<OffsetDateTime>,
    /// What is to be done with it.
    pub jobs: Vec<JobKind>,
    pub cloud: Copy,
    pub local: Copy,
    /// The upload's own file is in the spool.
    pub spooled: bool,
    /// Whether there is a cloud at all.
    pub has_cloud: bool,
    /// What is younger may still be on its way.
    pub settled: OffsetDateTime,
    /// When it was looked at. A file that is younger than that had its time set by somebody.
    pub now: OffsetDateTime,
}

impl Case {
    fn is_young(&self, seen: &Seen) -> bool {
        let at = seen.object.modified_at;
        self.settled < at && at <= self.now
    }
}

/// What was found.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Judged {
    pub verdicts: Vec<Verdict>,
    /// Copies that cannot be looked at from here now.
    pub not_checkable: u64,
}

/// How a copy compares with its row.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Compared {
    NotAsked,
    Absent,
    Good,
    Bad(String),
}

/// Whether a cloud copy is not known to be the row's until its bytes are read: another upload's id, or none.
pub(super) fn is_doubtful(row: &Recording, object: &StoredObject) -> bool {
    let same_digest = row.sha256.is_some() && object.sha256 == row.sha256;
    let same_upload = row.upload_id.is_empty() || object.upload_id.as_ref() == Some(&row.upload_id);
    row.sha256.is_some() && !same_digest && !same_upload && object.size_bytes == row.size_bytes
}

fn compare(row: &Recording, copy: &Copy) -> Compared {
    let seen = match copy {
        Copy::NotAsked => return Compared::NotAsked,
        Copy::Absent => return Compared::Absent,
        Copy::There(seen) => seen,
    };
    let object = &seen.object;
    if object.size_bytes != row.size_bytes {
        return Compared::Bad(format!("has {} bytes instead of {}", object.size_bytes, row.size_bytes));
    }
    if let Some(why) = &seen.unreadable {
        return Compared::Bad(format!("cannot be read: {why}"));
    }
    let Some(expected) = row.sha256 else { return Compared::Good };
    match (seen.digest, object.sha256) {
        (Some(digest), _) if digest == expected => Compared::Good,
        (Some(_), _) => Compared::Bad("has other bytes".into()),
        (None, Some(claimed)) if claimed != expected => Compared::Bad("was sent as other bytes".into()),
        (None, _) => Compared::Good,
    }
}

/// Says what is wrong.
pub(super) fn judge(case: &Case) -> Judged {
    match &case.row {
        Some(row) => with_row(case, row),
        None => Judged { verdicts: without_row(case), not_checkable: 0 },
    }
}

fn with_row(case: &Case, row: &Recording) -> Judged {
    use StoreKind::{Local, Supabase};
    let (cloud, local) = (compare(row, &case.cloud), compare(row, &case.local));
    let elsewhere = row.held_by.is_some();
    let (names_cloud, names_local) = (row.stores.supabase, row.stores.local && !elsewhere);
    let is_young = |copy: &Copy| copy.seen().is_some_and(|seen| case.is_young(seen));
    let digest = |copy: &Copy| copy.seen().and_then(|seen| seen.digest);
    let mut judged = Judged { not_checkable: u64::from(elsewhere), ..Judged::default() };
    let mut say = |word, store: Option<StoreKind>, detail: String, remedy| {
        let found = store.and_then(|store| digest(if store == Local { &case.local } else { &case.cloud }));
        judged.verdicts.push(Verdict { word, store, detail, found, remedy });
    };
    let here = |sync| Remedy::Correct { stores: StoreSet::only(Local), good: Local, sync };
    let there = || Remedy::Correct { stores: StoreSet::only(Supabase), good: Supabase, sync: false };
    let is_syncing = case.jobs.iter().any(|job| matches!(job, JobKind::Sync(_)));
    let is_cared_for = is_syncing || !case.has_cloud || row.parked_reason.is_some();
    let (cloud_unknown, cloud_good) = (cloud == Compared::NotAsked, cloud == Compared::Good);
    let local_good = local == Compared::Good;

    if names_local && local == Compared::Absent && (row.uploaded_at > case.settled || case.spooled) {
        // Its row comes before its file.
        if case.spooled && row.uploaded_at <= case.settled {
            let why = "its bytes are in the spool; the next start of the gateway puts them in place";
            say(Word::Missing, Some(Local), "the file is not in its place".into(), Remedy::None(why.into()));
        }
        return judged;
    }
    // Nobody has it whom somebody could ask.
    let nowhere = local == Compared::Absent && !elsewhere && cloud == Compared::Absent;
    if nowhere {
        say(Word::Missing, None, "no store has its bytes".into(), Remedy::Forget);
        return judged;
    }
    match &cloud {
        Compared::Absent if names_cloud => {
            let remedy = match local_good {
                true => here(true),
                false if elsewhere => Remedy::None("another gateway has a copy; verify there".into()),
                false => Remedy::None("no good copy is left here".into()),
            };
            say(Word::Missing, Some(Supabase), "the bucket has no object of this name".into(), remedy);
        }
        Compared::Bad(why) if names_cloud => {
            let remedy = match local_good {
                true => here(true),
                false => Remedy::None("no good copy is left here".into()),
            };
            say(Word::Different, Some(Supabase), format!("the object {why}"), remedy);
        }
        Compared::Bad(why) if !is_young(&case.cloud) => {
            let remedy = Remedy::None("the recording was never there; its sync decides".into());
            say(Word::Different, Some(Supabase), format!("the object of this name {why}"), remedy);
        }
        _ => {}
    }
    match &local {
        // A sync that is at its end: first the file goes, then the row says so.
        Compared::Absent if names_local && names_cloud && is_syncing => {}
        Compared::Absent if names_local && !cloud_unknown => {
            let remedy = match cloud_good {
                true => there(),
                false => Remedy::None("no good copy is left".into()),
            };
            say(Word::Missing, Some(Local), "the file is not there".into(), remedy);
        }
        Compared::Absent if names_local => judged.not_checkable += 1,
        Compared::Bad(_) if is_young(&case.local) => {}
        Compared::Bad(why) => {
            let unreadable = case.local.seen().is_some_and(|seen| seen.unreadable.is_some());
            let remedy = match cloud_good {
                true if unreadable => Remedy::None("look at the disk".into()),
                true => Remedy::SetAside,
                false if cloud_unknown && case.has_cloud => {
                    Remedy::None("the cloud cannot be asked now whether it has a good copy".into())
                }
                false => Remedy::None("no good copy is left".into()),
            };
            say(Word::Different, Some(Local), format!("the file {why}"), remedy);
        }
        Compared::Good if !names_local && !elsewhere && cloud_good && !is_young(&case.local) => {
            let stores = StoreSet { supabase: true, local: true };
            let remedy = Remedy::Correct { stores, good: Local, sync: true };
            say(Word::Unknown, Some(Local), "the row does not name this copy".into(), remedy);
        }
        Compared::Good if names_local && !names_cloud && !is_cared_for => {
            let detail = "it is only here, and no job brings it to the cloud";
            say(Word::Orphaned, Some(Local), detail.into(), Remedy::QueueSync);
        }
        _ => {}
    }
    if cloud_unknown && names_cloud {
        judged.not_checkable += 1;
    }
    judged
}

fn without_row(case: &Case) -> Vec<Verdict> {
    use StoreKind::{Local, Supabase};
    let mut cloud = case.cloud.seen().filter(|seen| !case.is_young(seen));
    let local = case.local.seen().filter(|seen| !case.is_young(seen));
    if case.session_deleted.is_some_and(|at| cloud.is_some_and(|seen| seen.object.modified_at <= at)) {
        // The deletion of its session gets to it.
        cloud = None;
    }
    let verdict = |word, store, detail: &str, remedy| {
        let seen = if store == Some(Local) { local } else { cloud };
        let found = seen.and_then(|seen| seen.digest);
        Verdict { word, store, detail: detail.to_owned(), found, remedy }
    };
    let mut verdicts = Vec::new();
    let Some(tombstone) = &case.tombstone else {
        let store = match (&cloud, &local) {
            (None, None) => return verdicts,
            (Some(_), None) => Some(Supabase),
            (None, Some(_)) => Some(Local),
            (Some(_), Some(_)) => None,
        };
        let detail = "the catalogue knows nothing of it";
        return vec![verdict(Word::Unknown, store, detail, Remedy::Adopt)];
    };
    let works = |kind: fn(&JobKind) -> bool| case.jobs.iter().any(kind);
    if let Some(seen) = cloud
        && !(tombstone.pending.supabase && works(|job| matches!(job, JobKind::Delete(_))))
    {
        let remedy = match seen.object.upload_id {
            Some(_) => Remedy::DeleteAgain(StoreSet::only(Supabase)),
            // A name that was deleted is never given out again, so a gateway did not send it.
            None => Remedy::None("somebody else put it there under a deleted name".into()),
        };
        verdicts.push(verdict(Word::Orphaned, Some(Supabase), "an object under a deleted name", remedy));
    }
    let under_way = tombstone.pending.local && works(|job| matches!(job, JobKind::DeleteLocal(_)));
    if local.is_some() && !under_way {
        let remedy = Remedy::DeleteAgain(StoreSet::only(Local));
        verdicts.push(verdict(Word::Orphaned, Some(Local), "a file under a deleted name", remedy));
    }
    verdicts
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
