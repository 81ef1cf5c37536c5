//! What the local disk cannot add to the catalogue: files that have a row, or a tombstone that hides them. Once a name has
//! either, it has one from then on (the two exceptions call `KnownFiles::forget`), so only names that were not seen yet are
//! asked about; and while a directory looks as it did when all of it was known, it is not even read.
//!
//! Never in here: what the files are. Whoever lists one looks at it, for it may change or go without its directory.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use time::OffsetDateTime;

use super::rebuild::{BATCH, BELIEVED_FOR, TICK};
use crate::domain::{ObjectKey, SessionId};
use crate::service::{ServiceError, Services};

/// Names remembered at most, eight bytes each. Sessions that were not listed for longest go first.
const REMEMBERED: usize = 500_000;
/// What a session costs beside its names, in names.
const SESSION: usize = 16;

/// Files of which the catalogue knows, by session. Clones share it.
#[derive(Clone, Default)]
pub struct KnownFiles(Arc<Mutex<Remembered>>);

#[derive(Default)]
struct Remembered {
    hasher: RandomState,
    sessions: HashMap<SessionId, Known>,
    /// Counts questions.
    turn: u64,
}

struct Known {
    /// Names by their hash, sorted.
    names: Vec<u64>,
    /// When the directory had changed, if all that is in it is known.
    all_since: Option<OffsetDateTime>,
    begun: Instant,
    asked: u64,
}

impl KnownFiles {
    /// Its names may have neither row nor tombstone any more.
    pub(super) fn forget(&self, session: &SessionId) {
        self.lock().sessions.remove(session);
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything is known of a directory that changed at that time last.
    fn knows_all(&self, session: &SessionId, changed_at: OffsetDateTime, now: Instant) -> bool {
        let mut remembered = self.lock();
        remembered.turn += 1;
        let turn = remembered.turn;
        let Some(known) = remembered.sessions.get_mut(session) else { return false };
        if now.saturating_duration_since(known.begun) > BELIEVED_FOR {
            remembered.sessions.remove(session);
            return false;
        }
        known.asked = turn;
        known.all_since == Some(changed_at)
    }

    /// Those of which nothing is known, and the hashes of the others.
    fn unknown(&self, session: &SessionId, keys: Vec<ObjectKey>) -> (Vec<ObjectKey>, Vec<u64>) {
        let remembered = self.lock();
        let Some(known) = remembered.sessions.get(session) else { return (keys, Vec::new()) };
        let (mut unknown, mut hashes) = (Vec::new(), Vec::with_capacity(keys.len()));
        for key in keys {
            let hash = remembered.hash(&key);
            match known.names.binary_search(&hash) {
                Ok(_) => hashes.push(hash),
                Err(_) => unknown.push(key),
            }
        }
        (unknown, hashes)
    }

    /// Remembers these names and no others.
    fn learn(
        &self,
        session: &SessionId,
        mut names: Vec<u64>,
        learnt: &[ObjectKey],
        all_since: Option<OffsetDateTime>,
    ) {
        let mut remembered = self.lock();
        names.extend(learnt.iter().map(|key| remembered.hash(key)));
        names.sort_unstable();
        names.shrink_to_fit();
        let begun = remembered.sessions.remove(session).map_or_else(Instant::now, |known| known.begun);
        if remembered.make_room(names.len() + SESSION) {
            let asked = remembered.turn;
            remembered.sessions.insert(session.clone(), Known { names, all_since, begun, asked });
        }
    }
}

impl Remembered {
    /// By a key of this process: nobody can make two names meet.
    fn hash(&self, key: &ObjectKey) -> u64 {
        self.hasher.hash_one(key.filename.as_str())
    }

    /// `false` if there cannot be room for so much.
    fn make_room(&mut self, wanted: usize) -> bool {
        let cost = |known: &Known| known.names.len() + SESSION;
        let mut remembered: usize = self.sessions.values().map(cost).sum();
        while wanted <= REMEMBERED && remembered + wanted > REMEMBERED {
            let Some(oldest) = self.sessions.iter().min_by_key(|(_, known)| known.asked) else { break };
            let oldest = oldest.0.clone();
            remembered -= self.sessions.remove(&oldest).as_ref().map_or(0, cost);
        }
        wanted <= REMEMBERED
    }
}

impl Services {
    /// Whether every file of the session on this disk has a row or a tombstone: then rows that are read from now on tell of
    /// all that were there when this was asked. Safe to drop.
    pub(super) async fn files_are_known(&self, session: &SessionId) -> Result<bool, ServiceError> {
        let (fallback, now) = (self.stores.fallback(), OffsetDateTime::now_utc());
        // Asked before the names: what comes between is a change.
        let changed_at = fallback.changed_at(session).await?;
        if changed_at.is_some_and(|at| self.known_files.knows_all(session, at, Instant::now())) {
            return Ok(true);
        }
        let there = fallback.names(session).await?;
        if there.len() > REMEMBERED {
            return Ok(false);
        }
        let (unknown, names) = self.known_files.unknown(session, there);
        let (mut learnt, mut all_known) = (Vec::new(), true);
        for batch in unknown.chunks(BATCH) {
            let told = self.catalog.names(batch).await?;
            let is_known = |key: &&ObjectKey| !told.lack(key) && !told.reserved.contains(*key);
            learnt.extend(batch.iter().filter(is_known).cloned());
            all_known &= batch.iter().all(|key| is_known(&key));
        }
        if changed_at.is_some() {
            let settled = changed_at.filter(|at| all_known && *at < now - TICK);
            self.known_files.learn(session, names, &learnt, settled);
        }
        Ok(all_known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(n: usize) -> SessionId {
        SessionId::parse(&format!("s{n}")).unwrap()
    }

    fn keys(session: &SessionId, names: std::ops::Range<usize>) -> Vec<ObjectKey> {
        names.map(|n| ObjectKey::parse(&format!("{session}/{n}.webm")).unwrap()).collect()
    }

    #[test]
    fn what_was_learnt_is_not_asked_about_again() {
        let (files, s) = (KnownFiles::default(), session(1));
        let (then, now) = (OffsetDateTime::now_utc(), Instant::now());
        assert!(!files.knows_all(&s, then, now));
        let (unknown, names) = files.unknown(&s, keys(&s, 0..10));
        assert_eq!((unknown.len(), names.len()), (10, 0));
        files.learn(&s, names, &unknown[..8], None);
        assert!(!files.knows_all(&s, then, now), "not all was known");
        let (unknown, names) = files.unknown(&s, keys(&s, 3..10));
        assert_eq!(unknown, keys(&s, 8..10));
        files.learn(&s, names, &unknown, Some(then));
        assert!(files.knows_all(&s, then, now));
        assert!(!files.knows_all(&s, then + TICK, now), "it changed");
        assert_eq!(files.unknown(&s, keys(&s, 0..10)).0, keys(&s, 0..3), "what went is forgotten");
        assert!(!files.knows_all(&s, then, now + BELIEVED_FOR * 2), "it is not believed for ever");
        assert_eq!(files.unknown(&s, keys(&s, 0..10)).0.len(), 10);
        files.learn(&s, Vec::new(), &unknown, Some(then));
        files.forget(&s);
        assert!(!files.knows_all(&s, then, now));
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let (files, then, now) = (KnownFiles::default(), OffsetDateTime::now_utc(), Instant::now());
        let each = REMEMBERED / 4;
        for n in 0..3 {
            files.learn(&session(n), vec![7; each], &[], Some(then));
        }
        assert!(files.knows_all(&session(0), then, now), "there is room for three");
        files.learn(&session(3), vec![7; each], &[], Some(then));
        let known: Vec<bool> = (0..4).map(|n| files.knows_all(&session(n), then, now)).collect();
        assert_eq!(known.iter().filter(|known| **known).count(), 3);
        assert!(known[0] && known[3], "what was listed lately stays: {known:?}");
        files.learn(&session(4), vec![7; REMEMBERED], &[], Some(then));
        assert!(!files.knows_all(&session(4), then, now) && files.knows_all(&session(0), then, now));
    }
}
