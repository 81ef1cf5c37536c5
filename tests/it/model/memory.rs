//! What was promised, as the simplest thing that could keep it: a map. And the questions that are asked of every
//! gateway after every step.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::StreamExt;
use recording_gateway::domain::merge::Listed;
use recording_gateway::domain::page::{PageRequest, Position};
use recording_gateway::domain::{ObjectKey, SessionId, StoreKind};
use recording_gateway::service::{ServiceError, Services};
use recording_gateway::storage::ListScope;

use super::cloud::Bucket;
use super::process::Process;

/// A recording that was acknowledged, or a file that was dropped into a gateway's directory.
pub struct Known {
    pub bytes: Bytes,
    pub live: bool,
    /// The gateway in whose directory it was dropped.
    pub dropped_at: Option<usize>,
}

/// What others put into the bucket.
pub struct Stranger {
    pub bytes: Bytes,
    pub live: bool,
    /// A list lied when it was to be deleted: it may be there or not.
    pub unclear: bool,
}

/// An upload without a success: it is there whole and once, or not at all.
pub struct Maybe {
    pub bytes: Bytes,
    /// It was answered with an error and nothing stood in the way of cleaning up: it is not there.
    pub refused: bool,
    /// Where it was seen.
    pub key: Option<ObjectKey>,
}

/// A request with an idempotency key.
pub struct Keyed {
    pub session: SessionId,
    pub name: String,
    pub bytes: Bytes,
    /// What it was answered.
    pub answer: Option<ObjectKey>,
}

#[derive(Default)]
pub struct Memory {
    pub known: BTreeMap<ObjectKey, Known>,
    pub strangers: BTreeMap<ObjectKey, Stranger>,
    pub maybes: Vec<Maybe>,
    pub keyed: Vec<Keyed>,
    /// Dropped in at one gateway and deleted through another that never heard of it, while the cloud could not say:
    /// hidden everywhere, told by `verify`, and removed only on request, for somebody may have put it there since.
    pub unseen: BTreeSet<ObjectKey>,
}

/// The bytes as a client gets them.
pub async fn read(services: &Services, key: &ObjectKey) -> Result<Bytes, ServiceError> {
    let (found, store) = services.locate(key).await?;
    let mut opened = services.open(&found.recording, store, None, false).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = opened.bytes.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| ServiceError::Disk(error.into()))?);
    }
    Ok(bytes.into())
}

impl Memory {
    pub fn is_new(&self, key: &ObjectKey) -> bool {
        !self.known.contains_key(key) && !self.strangers.contains_key(key)
    }

    /// It was acknowledged.
    pub fn acknowledged(&mut self, key: ObjectKey, bytes: Bytes) {
        assert!(!self.known.contains_key(&key), "the name was used before: {key}");
        for maybe in self.maybes.iter().filter(|maybe| maybe.key.as_ref() == Some(&key)) {
            assert!(maybe.bytes == bytes, "the name is another upload's: {key}");
        }
        self.known.insert(key, Known { bytes, live: true, dropped_at: None });
    }

    pub fn deleted(&mut self, key: &ObjectKey) {
        if let Some(known) = self.known.get_mut(key) {
            known.live = false;
        }
        if let Some(stranger) = self.strangers.get_mut(key) {
            stranger.live = false;
        }
        // Seen, and deleted: from now on it must stay away.
        for maybe in self.maybes.extract_if(.., |maybe| maybe.key.as_ref() == Some(key)) {
            self.known.insert(key.clone(), Known { bytes: maybe.bytes, live: false, dropped_at: None });
        }
    }

    /// After each step: every acknowledged recording is somewhere byte for byte and is listed and can be read, and
    /// nothing that was deleted is. `turn` chooses which one is read; `None` reads them all.
    pub fn check(&mut self, processes: &[Process], bucket: &Bucket, turn: Option<usize>) {
        for (key, known) in self.known.iter().filter(|(_, known)| known.live) {
            let in_bucket = bucket.bytes(key).is_some_and(|bytes| bytes == known.bytes);
            let on_disk = |process: &Process| {
                std::fs::read(process.dir.join(key.to_string())).is_ok_and(|bytes| bytes == known.bytes)
            };
            assert!(in_bucket || processes.iter().any(on_disk), "lost: {key} is nowhere");
        }
        for (key, stranger) in self.strangers.iter().filter(|(_, s)| s.live && !s.unclear) {
            assert!(
                bucket.bytes(key).is_some_and(|b| b == stranger.bytes),
                "a stranger's {key} is not as it was"
            );
        }
        bucket.calm(true);
        for (at, process) in processes.iter().enumerate() {
            process.run(self.check_one(at, &process.services, turn));
            if turn.is_none_or(|turn| turn % 3 == 0) {
                process.run(check_pages(&process.alone));
            }
        }
        bucket.calm(false);
    }

    async fn check_one(&mut self, at: usize, services: &Services, turn: Option<usize>) {
        let merged = services.merged(&ListScope::Everything).await.unwrap();
        assert!(merged.unavailable.is_empty(), "the cloud is fine and is not asked");
        let listed: BTreeMap<ObjectKey, Listed> =
            merged.rows.into_iter().map(|row| (row.recording.key.clone(), row)).collect();
        // It costs as much as everything else here.
        if turn.is_none_or(|turn| turn % 3 == 0) {
            check_sessions(services, &listed).await;
        }
        for (key, known) in &self.known {
            match listed.get(key) {
                Some(row) if known.live => assert!(!row.missing, "listed as missing: {key}"),
                Some(_) if self.strangers.get(key).is_some_and(|s| s.live || s.unclear) => {}
                Some(_) => panic!("deleted and listed: {key}"),
                None if known.live => {
                    let elsewhere = known.dropped_at.is_some_and(|home| home != at)
                        && services.catalog.get(key).await.unwrap().is_none();
                    assert!(elsewhere, "not listed: {key}");
                }
                None => {}
            }
        }
        for (key, stranger) in &self.strangers {
            if self.known.contains_key(key) || stranger.unclear {
                continue;
            }
            match (stranger.live, listed.contains_key(key)) {
                (true, false) => {
                    // Its name is kept for an upload of which it is not known whether it arrived.
                    let view = services.catalog.view(&ListScope::Everything).await.unwrap();
                    // Or it was given to an upload that was refused, and what that may have left there is deleted.
                    let refused = services.catalog.tombstone(key).await.unwrap().is_some();
                    assert!(
                        view.reserved.contains(key) || refused,
                        "a stranger's object is not listed: {key}"
                    );
                }
                (false, true) => panic!("a stranger's object was deleted and is listed: {key}"),
                _ => {}
            }
        }
        for (key, row) in listed.iter().filter(|(key, _)| self.is_new(key)).collect::<Vec<_>>() {
            // What another gateway's disk has is asked of that one.
            if row.recording.held_by.is_none() || row.recording.stores.supabase {
                self.recognise(services, key.clone()).await;
            }
        }
        let live: Vec<_> = self.known.iter().filter(|(_, known)| known.live).collect();
        let dead: Vec<_> = self.known.iter().filter(|(_, known)| !known.live).collect();
        let chosen = |len: usize| match turn {
            _ if len == 0 => 0..0,
            Some(turn) => turn % len..turn % len + 1,
            None => 0..len,
        };
        for (key, known) in &live[chosen(live.len())] {
            let elsewhere = match listed.get(*key) {
                // Another gateway's disk has it.
                Some(row) => {
                    row.recording.held_by.is_some() && !row.recording.stores.holds(StoreKind::Supabase)
                }
                None => true,
            };
            if !elsewhere {
                let bytes =
                    read(services, key).await.unwrap_or_else(|e| panic!("cannot be read: {key}: {e:?}"));
                assert!(bytes == known.bytes, "other bytes: {key}");
            }
        }
        for (key, _) in &dead[chosen(dead.len())] {
            if !self.strangers.contains_key(*key) {
                let found = services.locate(key).await;
                assert!(matches!(found, Err(ServiceError::NotFound)), "deleted and found: {key}: {found:?}");
            }
        }
    }

    /// Something is listed that was never acknowledged: an upload that was cut off, whole.
    async fn recognise(&mut self, services: &Services, key: ObjectKey) {
        let bytes =
            read(services, &key).await.unwrap_or_else(|e| panic!("listed, not readable: {key}: {e:?}"));
        let maybe = self.maybes.iter_mut().find(|maybe| maybe.bytes == bytes);
        let maybe = maybe.unwrap_or_else(|| panic!("nobody sent what is listed as {key}"));
        assert!(!maybe.refused, "answered with an error and there: {key}");
        match &maybe.key {
            None => maybe.key = Some(key),
            Some(before) => assert_eq!(*before, key, "one upload under two names"),
        }
    }

    /// At the end, the cloud fine and everything done: the bucket is the model, exactly once, and nothing is left.
    pub fn check_drained(&mut self, processes: &[Process], bucket: &Bucket) {
        let mut seen: Vec<Bytes> = Vec::new();
        for (key, bytes) in bucket.objects() {
            let promised = self.known.get(&key).is_some_and(|known| known.live && known.bytes == bytes);
            let cut_off = self.maybes.iter().any(|m| m.key.as_ref() == Some(&key) && m.bytes == bytes);
            let others = self.strangers.get(&key).is_some_and(|s| s.bytes == bytes && (s.live || s.unclear));
            // Its session was deleted while the bucket could not be listed, and a new recording has the name since.
            let behind = self.strangers.get(&key).is_some_and(|stranger| stranger.bytes == bytes)
                && self.known.get(&key).is_some_and(|known| known.live);
            assert!(
                promised || cut_off || others || behind,
                "left in the bucket: {key}, {} bytes",
                bytes.len()
            );
            assert!(!seen.contains(&bytes), "doubled in the bucket: {key}");
            seen.push(bytes);
        }
        for (key, known) in self.known.iter().filter(|(_, known)| known.live) {
            // The bucket has another's object of this name: it stays parked here, and is served.
            let parked =
                self.strangers.get(key).is_some_and(|s| bucket.bytes(key).as_ref() == Some(&s.bytes));
            let there = bucket.bytes(key).is_some_and(|bytes| bytes == known.bytes);
            assert!(there || parked, "not in the bucket at the end: {key}");
        }
        for process in processes {
            let counts = process.run(process.services.catalog.counts()).unwrap();
            assert_eq!(counts.jobs, 0, "jobs are left");
            let view = process.run(process.services.catalog.view(&ListScope::Everything)).unwrap();
            assert!(view.reserved.is_empty(), "names are left: {:?}", view.reserved);
            assert_eq!(process.services.room.figures().unwrap().promised, 0, "room is left promised");
            let spooled: Vec<_> = std::fs::read_dir(process.dir.join(".spool")).unwrap().collect();
            assert!(spooled.is_empty(), "left in the spool: {spooled:?}");
            for file in process.files() {
                let key =
                    ObjectKey::parse(file.strip_prefix(&process.dir).unwrap().to_str().unwrap()).unwrap();
                let is_live = self.known.get(&key).is_some_and(|known| known.live);
                let bytes = std::fs::read(&file).unwrap();
                let cut_off = self.maybes.iter().any(|maybe| !maybe.refused && maybe.bytes == bytes);
                let parked = self.strangers.contains_key(&key) && (is_live || cut_off);
                let unseen = self.unseen.contains(&key);
                let row = process.run(process.services.catalog.get(&key)).unwrap();
                let in_bucket = bucket.bytes(&key).map(|there| there == bytes);
                assert!(parked || unseen, "left on the disk: {key}, in the bucket {in_bucket:?}, {row:?}");
            }
        }
    }
}

/// The list of sessions, in pages of two, says what the list of everything adds up to.
async fn check_sessions(services: &Services, listed: &BTreeMap<ObjectKey, Listed>) {
    let mut expected: BTreeMap<&SessionId, (u64, u64)> = BTreeMap::new();
    for (key, row) in listed {
        let (count, bytes) = expected.entry(&key.session).or_default();
        (*count, *bytes) = (*count + 1, *bytes + row.recording.size_bytes);
    }
    let (mut found, mut page) = (BTreeMap::new(), PageRequest { limit: 2, after: None });
    loop {
        let answer = services.list_sessions(&page).await.unwrap();
        assert_eq!(answer.total as usize, expected.len(), "sessions in all");
        for row in answer.rows {
            assert!(found.insert(row.session, (row.count, row.bytes)).is_none(), "a session twice");
        }
        let Some(cursor) = answer.next_cursor else { break };
        page.after = Some(Position::from_cursor(&cursor).unwrap());
    }
    let expected: BTreeMap<SessionId, (u64, u64)> =
        expected.into_iter().map(|(session, totals)| (session.clone(), totals)).collect();
    assert_eq!(found, expected, "the sessions and what is in them");
}

/// The list of each session, in pages of two, is what the list of everything has of it. Without the cloud, for that is when
/// pages are not cut out of it.
async fn check_pages(services: &Services) {
    let mut expected: BTreeMap<SessionId, Vec<Listed>> = BTreeMap::new();
    for row in services.merged(&ListScope::Everything).await.unwrap().rows {
        expected.entry(row.recording.key.session.clone()).or_default().push(row);
    }
    for (session, expected) in expected {
        let (mut found, mut page) = (Vec::new(), PageRequest { limit: 2, after: None });
        loop {
            let answer = services.list_recordings(&session, &page).await.unwrap();
            assert_eq!(answer.total, expected.len(), "recordings in {session}");
            found.extend(answer.rows);
            let Some(cursor) = answer.next_cursor else { break };
            page.after = Some(Position::from_cursor(&cursor).unwrap());
        }
        assert_eq!(found, expected, "the pages of {session}");
    }
}
