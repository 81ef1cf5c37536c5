//! A world of one bucket and one or more gateways, in which steps are taken; after each the memory is asked.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use recording_gateway::catalog::Work;
use recording_gateway::domain::recording::micros;
use recording_gateway::domain::{NameStem, ObjectKey, RecordingType, SessionId};
use recording_gateway::service::upload::{FileHead, Receipt, UploadOptions};
use recording_gateway::service::work::Tried;
use recording_gateway::service::{ServiceError, Services};
use recording_gateway::storage::ListScope;
use time::OffsetDateTime;
use url::Url;

use super::cloud::{Bucket, Weather};
use super::memory::{Keyed, Known, Maybe, Memory, Stranger, read};
use super::operations::{Action, Step, Upload};
use super::process::Process;
use crate::support::aged;
use crate::support::media::webm;

/// After this every job is due.
const LONG: Duration = Duration::from_secs(86_400);
const SMALL: usize = 300;
/// Enough to be sent to the cloud before its end.
const LARGE: usize = (512 << 10) + 5000;

pub struct World {
    processes: Vec<Process>,
    bucket: Arc<Bucket>,
    memory: Memory,
    /// Makes the bytes of every upload its own.
    count: u64,
    turn: usize,
    _root: tempfile::TempDir,
}

/// A place where a flush costs nothing.
fn root() -> tempfile::TempDir {
    let fast = PathBuf::from("/dev/shm");
    let made = tempfile::Builder::new().prefix("model-").tempdir_in(fast);
    made.or_else(|_| tempfile::tempdir()).unwrap()
}

fn session(n: u8) -> SessionId {
    SessionId::parse(&format!("s{n}")).unwrap()
}

/// A whole upload as a handler makes it.
async fn send(services: Services, upload: Upload, bytes: Bytes, ends: bool) -> Result<Receipt, ServiceError> {
    let options = UploadOptions {
        request_bytes: Some(bytes.len() as u64 + 400),
        idempotency_key: upload.key.map(|key| format!("key-{key}")),
        respond_async: upload.early,
        ..UploadOptions::default()
    };
    let mut incoming = services.begin_upload(session(upload.session), options).await?;
    let kind = RecordingType::parse("scene").unwrap();
    if !upload.type_late {
        incoming.recording_type(kind.clone());
    }
    let head = FileHead { declared_type: Some("video/webm".into()), ..FileHead::default() };
    incoming.begin_file(head)?;
    for frame in bytes.chunks(1 << 18) {
        incoming.push(frame).await?;
        tokio::task::yield_now().await;
    }
    if !ends {
        return Err(ServiceError::Unexpected);
    }
    if upload.type_late {
        incoming.recording_type(kind);
    }
    incoming.finish().await
}

/// One job as the runner does it, of those that are due after `ahead`. Whether one was tried.
async fn job(services: Services, ahead: Duration) -> bool {
    let now = micros(OffsetDateTime::now_utc() + ahead);
    let Ok(Some(job)) = services.claim_job(now, 3_600_000_000, Work::All).await else { return false };
    let (tried, _) = match services.try_job(&job).await {
        Tried::Done | Tried::Parked => (true, services.catalog.complete_job(&job).await),
        Tried::NotNow => (false, services.catalog.release_job(&job).await),
        Tried::Again(setback) => (true, services.catalog.postpone_job(&job, now + 1, &setback.reason).await),
    };
    tried
}

impl World {
    pub fn new(gateways: u8, database: Option<Url>) -> Self {
        let root = root();
        let bucket = Bucket::new();
        let process =
            |n| Process::first(root.path().join(format!("g{n}-0")), bucket.clone(), database.clone());
        let processes = (0..gateways).map(process).collect();
        Self { processes, bucket, memory: Memory::default(), count: 0, turn: 0, _root: root }
    }

    /// Takes the steps, then lets everything come to rest.
    pub fn live(&mut self, steps: &[Step]) {
        for step in steps {
            self.take(*step);
            self.bucket.step(false);
            self.turn += 1;
            self.memory.check(&self.processes, &self.bucket, Some(self.turn));
        }
        // A name that could not be given back, and what else the catalogue refused to note, is for the next start.
        if steps.iter().any(|step| step.fault.is_some()) {
            for at in 0..self.processes.len() {
                self.replace(at, Process::restart);
            }
        }
        self.drain();
        self.memory.check(&self.processes, &self.bucket, None);
        self.memory.check_drained(&self.processes, &self.bucket);
    }

    fn replace(&mut self, at: usize, with: impl FnOnce(Process) -> Process) {
        let process = self.processes.remove(at);
        self.processes.insert(at, with(process));
    }

    /// Does `work` on the gateway of the step; `None` if it was cut off before its end. Afterwards the gateway runs.
    fn perform<T, F: Future<Output = T>>(
        &mut self,
        step: Step,
        work: impl FnOnce(Services) -> F,
    ) -> Option<T> {
        let at = usize::from(step.gateway) % self.processes.len();
        let process = &self.processes[at];
        if step.fault.is_some() {
            process.catalog_fault(step.fault);
        }
        let work = work(process.services.clone());
        let done = match step.cut {
            Some(points) => process.run_until_cut(i64::from(points), work),
            None => Some(process.run(work)),
        };
        if step.cut.is_some() {
            self.bucket.set_gate(None);
            self.replace(at, Process::crash);
        }
        if step.fault.is_some() {
            self.processes[at].catalog_fault(None);
        }
        done
    }

    fn new_bytes(&mut self, large: bool) -> Bytes {
        self.count += 1;
        let len = if large { LARGE } else { SMALL } + self.count as usize;
        let mut bytes = webm(SMALL, self.count);
        bytes.resize(len, self.count as u8);
        bytes.into()
    }

    fn take(&mut self, step: Step) {
        match step.action {
            Action::Upload(upload) => {
                let bytes = self.bytes_for(upload);
                let done = self.perform(step, |services| send(services, upload, bytes.clone(), true));
                self.uploaded(step, upload, bytes, done);
            }
            Action::UploadTwo(first, second) => {
                let (one, two) = (self.bytes_for(first), self.new_bytes(second.large));
                let (a, b) = (one.clone(), two.clone());
                let done = self.perform(step, |services| async move {
                    let second = send(services.clone(), second, b, true);
                    tokio::join!(send(services, first, a, true), second)
                });
                let (done_one, done_two) = done.map_or((None, None), |(a, b)| (Some(a), Some(b)));
                self.uploaded(step, first, one, done_one);
                self.uploaded(step, second, two, done_two);
            }
            Action::BreakOff(upload) => {
                let bytes = self.new_bytes(upload.large);
                let upload = Upload { key: None, ..upload };
                let done = self.perform(step, |services| send(services, upload, bytes.clone(), false));
                assert!(!matches!(done, Some(Ok(_))), "broken off and acknowledged");
                let refused = step.fault.is_none() && step.cut.is_none();
                self.memory.maybes.push(Maybe { bytes, refused, key: None });
            }
            Action::Delete(target) => {
                if let Some(key) = self.target(target) {
                    if self.is_unseen(step, &key) {
                        self.memory.unseen.insert(key.clone());
                    }
                    let done = self.perform(step, |services| {
                        let key = key.clone();
                        async move { services.delete_recording(&key).await.map(|_| ()) }
                    });
                    self.deleted(step, key, done);
                }
            }
            Action::DeleteSession(n) => self.delete_session(step, session(n)),
            Action::List => self.list(step),
            Action::Read(target) => {
                let Some(key) = self.target(target) else { return };
                let done = self.perform(step, |services| {
                    let key = key.clone();
                    async move { read(&services, &key).await }
                });
                if let (Some(Ok(bytes)), Some(known)) = (done, self.memory.known.get(&key)) {
                    assert!(
                        known.live || self.memory.strangers.contains_key(&key),
                        "deleted and read: {key}"
                    );
                    assert!(
                        bytes == known.bytes || self.memory.strangers.contains_key(&key),
                        "other bytes: {key}"
                    );
                }
            }
            Action::Job => {
                self.lists_may_lie();
                self.perform(step, |services| job(services, Duration::ZERO));
            }
            Action::DeleteDuringJob { target, stored } => self.delete_during_job(step, target, stored),
            Action::SyncNow => {
                self.perform(step, |services| async move { drop(services.sync_now(None, true).await) });
            }
            Action::Settle => {
                self.perform(step, |services| async move { drop(services.settle_abandoned().await) });
            }
            Action::AdoptCloud => {
                self.perform(step, |services| async move { drop(services.adopt_cloud().await) });
            }
            Action::AdoptLocal => {
                self.perform(step, |services| async move { drop(services.adopt_local().await) });
            }
            Action::LatePushes => {
                self.perform(step, |services| async move { drop(services.delete_late_pushes().await) });
            }
            Action::Drop { session } => self.drop_file(step, session),
            Action::Stranger { session: n, likely } => self.stranger(n, likely),
            Action::Weather(weather) => self.bucket.set_weather(weather),
            Action::NextPut(fault) => self.bucket.next_put(Some(fault)),
            Action::NextDelete(fault) => self.bucket.next_delete(Some(fault)),
            Action::NoPlace => self.bucket.no_place.store(true, Ordering::SeqCst),
            Action::Restart => {
                let at = usize::from(step.gateway) % self.processes.len();
                self.replace(at, Process::restart);
            }
        }
    }

    /// New ones, or those of the request that had this key.
    fn bytes_for(&mut self, upload: Upload) -> Bytes {
        let earlier = self.keyed(upload).filter(|_| upload.same).map(|keyed| keyed.bytes.clone());
        earlier.unwrap_or_else(|| self.new_bytes(upload.large))
    }

    fn keyed(&self, upload: Upload) -> Option<&Keyed> {
        let name = format!("key-{}", upload.key?);
        self.memory.keyed.iter().find(|keyed| keyed.session == session(upload.session) && keyed.name == name)
    }

    fn uploaded(
        &mut self,
        step: Step,
        upload: Upload,
        bytes: Bytes,
        done: Option<Result<Receipt, ServiceError>>,
    ) {
        let earlier = self.keyed(upload).map(|keyed| (keyed.bytes.clone(), keyed.answer.clone()));
        match done {
            Some(Ok(receipt)) => {
                assert_eq!(receipt.file_size, bytes.len() as u64);
                let key = ObjectKey::parse(&receipt.file_path).expect("the path is a key");
                match earlier {
                    Some((first, Some(answer))) => {
                        assert!(first == bytes, "another payload under a used key was taken");
                        assert_eq!(answer, key, "a repeat got another answer");
                        return;
                    }
                    // It was cut off before: this is its recording, and the only one.
                    Some((first, None)) if first == bytes => {
                        for maybe in self.memory.maybes.extract_if(.., |maybe| maybe.bytes == bytes) {
                            let same = maybe.key.as_ref().is_none_or(|seen| *seen == key);
                            assert!(same, "a repeat is there twice: {:?} and {key}", maybe.key);
                        }
                        if self.memory.known.get(&key).is_none_or(|known| known.live) {
                            self.memory.acknowledged(key.clone(), bytes);
                        }
                    }
                    _ => self.memory.acknowledged(key.clone(), bytes.clone()),
                }
                self.remember_keyed(upload, None, Some(key));
            }
            Some(Err(ServiceError::RequestRunning | ServiceError::RequestDiffers)) => {
                assert!(earlier.is_some() || upload.key.is_some());
            }
            failed => {
                let refused = failed.is_some() && step.fault.is_none() && step.cut.is_none();
                if let Some(Err(error)) = &failed
                    && refused
                    && !matches!(error, ServiceError::Disk(_))
                {
                    panic!("an upload without a fault here was refused: {error:?}");
                }
                if let Some((first, Some(_))) = &earlier
                    && *first == bytes
                {
                    return;
                }
                match self.memory.maybes.iter_mut().find(|maybe| maybe.bytes == bytes) {
                    // Refused before, and sent again.
                    Some(maybe) => maybe.refused &= refused,
                    None => self.memory.maybes.push(Maybe { bytes: bytes.clone(), refused, key: None }),
                }
                if earlier.is_none_or(|(_, answer)| answer.is_none()) {
                    self.remember_keyed(upload, Some(bytes), None);
                }
            }
        }
    }

    fn remember_keyed(&mut self, upload: Upload, bytes: Option<Bytes>, answer: Option<ObjectKey>) {
        let Some(key) = upload.key else { return };
        let (session, name) = (session(upload.session), format!("key-{key}"));
        let known = |answer: &ObjectKey| self.memory.known.get(answer).map(|known| known.bytes.clone());
        let Some(bytes) = bytes.or_else(|| answer.as_ref().and_then(known)) else { return };
        self.memory.keyed.retain(|keyed| keyed.session != session || keyed.name != name);
        self.memory.keyed.push(Keyed { session, name, bytes, answer });
    }

    fn target(&self, n: u16) -> Option<ObjectKey> {
        let keys: Vec<_> = self.memory.known.keys().chain(self.memory.strangers.keys()).collect();
        keys.get(usize::from(n) % keys.len().max(1)).map(|key| (*key).clone())
    }

    fn lists_lie(&self) -> bool {
        matches!(self.bucket.weather(), Weather::StaleLists | Weather::HidingLists)
    }

    /// What the background deletes of a session it finds by a list.
    fn lists_may_lie(&mut self) {
        if self.lists_lie() {
            for stranger in self.memory.strangers.values_mut().filter(|stranger| !stranger.live) {
                stranger.unclear = true;
            }
        }
    }

    fn entombed(&self, key: &ObjectKey) -> bool {
        let process = &self.processes[0];
        process.run(process.services.catalog.tombstone(key)).unwrap().is_some()
    }

    /// Whether it is only on the disk of another gateway, which did not take it in yet.
    fn is_unseen(&self, step: Step, key: &ObjectKey) -> bool {
        let at = usize::from(step.gateway) % self.processes.len();
        let process = &self.processes[at];
        let dropped_at = self.memory.known.get(key).and_then(|known| known.dropped_at);
        dropped_at.is_some_and(|home| home != at)
            && process.run(process.services.catalog.get(key)).unwrap().is_none()
    }

    fn deleted(&mut self, step: Step, key: ObjectKey, done: Option<Result<(), ServiceError>>) {
        let live = self.memory.known.get(&key).is_some_and(|known| known.live);
        match done {
            Some(Ok(())) => {
                assert!(self.entombed(&key), "deleted without a tombstone: {key}");
                self.memory.deleted(&key);
            }
            Some(Err(ServiceError::NotFound)) => {
                let elsewhere = self.memory.known.get(&key).is_some_and(|k| k.dropped_at.is_some());
                assert!(!live || elsewhere, "acknowledged and not found: {key}");
            }
            Some(Err(_)) | None => {
                assert!(
                    done.is_none() || step.fault.is_some() || !live,
                    "a deletion failed without a fault here: {key}: {done:?}"
                );
                if self.entombed(&key) {
                    self.memory.deleted(&key);
                }
            }
        }
    }

    fn delete_session(&mut self, step: Step, session: SessionId) {
        let home = usize::from(step.gateway) % self.processes.len();
        let target = session.clone();
        let lies = self.lists_lie();
        let done = self.perform(step, |services| async move { services.delete_session(&target).await });
        let sure = matches!(done, Some(Ok(_)));
        let in_session = |key: &&ObjectKey| key.session == session;
        let keys: Vec<_> = self.memory.known.keys().filter(in_session).cloned().collect();
        for key in keys {
            let known = &self.memory.known[&key];
            if !known.live {
                continue;
            }
            let elsewhere = known.dropped_at.is_some_and(|at| at != home);
            match (self.entombed(&key), sure) {
                (true, _) => self.memory.deleted(&key),
                (false, true) => assert!(elsewhere, "its session was deleted: {key}"),
                (false, false) => {}
            }
            let empty = matches!(done, Some(Err(ServiceError::EmptySession)));
            assert!(!empty || elsewhere, "the session is not empty: {key}");
        }
        let seen: Vec<_> = self.memory.maybes.iter().filter_map(|maybe| maybe.key.clone()).collect();
        for key in seen.into_iter().filter(|key| key.session == session) {
            if self.entombed(&key) {
                self.memory.deleted(&key);
            }
        }
        for (key, stranger) in &mut self.memory.strangers {
            if key.session == session {
                stranger.live &= !sure;
                stranger.unclear |= lies || (!sure && !matches!(done, Some(Err(ServiceError::EmptySession))));
            }
        }
    }

    fn list(&mut self, step: Step) {
        let at = usize::from(step.gateway) % self.processes.len();
        let done = self.perform(step, |services| async move {
            let merged = services.merged(&ListScope::Everything).await;
            merged.map(|merged| merged.rows.into_iter().map(|row| row.recording.key).collect::<Vec<_>>())
        });
        let Some(Ok(listed)) = done else {
            assert!(done.is_none() || step.fault.is_some(), "a listing failed without a fault here");
            return;
        };
        for (key, known) in &self.memory.known {
            let shown = listed.contains(key);
            let elsewhere = known.dropped_at.is_some_and(|home| home != at);
            assert!(!known.live || shown || elsewhere, "not listed in bad weather: {key}");
            let stranger = self.memory.strangers.contains_key(key);
            assert!(known.live || !shown || stranger, "deleted and listed in bad weather: {key}");
        }
    }

    fn delete_during_job(&mut self, step: Step, target: u16, stored: bool) {
        self.lists_may_lie();
        let syncs: Vec<_> = {
            // What waits for the cloud is what a job may be sending.
            let here = |key: &&ObjectKey| self.bucket.bytes(key).is_none();
            self.memory
                .known
                .iter()
                .filter(|(_, k)| k.live)
                .map(|(key, _)| key)
                .filter(here)
                .cloned()
                .collect()
        };
        let Some(key) = syncs.get(usize::from(target) % syncs.len().max(1)).cloned() else { return };
        self.bucket.set_gate(Some(stored));
        let (bucket, doomed) = (self.bucket.clone(), key.clone());
        let done = self.perform(step, |services| async move {
            let mut sending = Box::pin(job(services.clone(), Duration::ZERO));
            let deletion = async {
                bucket.at_gate.notified().await;
                let deleted = services.delete_recording(&doomed).await.map(|_| ());
                bucket.through.notify_one();
                deleted
            };
            let mut deletion = Box::pin(deletion);
            tokio::select! {
                _ = &mut sending => None,
                deleted = &mut deletion => {
                    sending.await;
                    Some(deleted)
                }
            }
        });
        self.bucket.set_gate(None);
        match done {
            Some(None) => {}
            Some(Some(deleted)) => self.deleted(step, key, Some(deleted)),
            None => self.deleted(step, key, None),
        }
    }

    fn drop_file(&mut self, step: Step, n: u8) {
        let at = usize::from(step.gateway) % self.processes.len();
        let bytes = self.new_bytes(false);
        let name = format!("dropped-{}.webm", self.count);
        let dir = self.processes[at].dir.join(session(n).as_str());
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join(&name);
        std::fs::write(&file, &bytes).unwrap();
        aged(&file);
        let key = ObjectKey::parse(&format!("{}/{name}", session(n))).unwrap();
        self.memory.known.insert(key, Known { bytes, live: true, dropped_at: Some(at) });
    }

    fn stranger(&mut self, n: u8, likely: Option<u8>) {
        let (session, bytes) = (session(n), self.new_bytes(false));
        let filename = match likely {
            Some(nth) => {
                let kind = RecordingType::parse("scene").unwrap();
                NameStem::new(&kind, &session, OffsetDateTime::now_utc(), "", "webm").nth(nth.into())
            }
            None => {
                recording_gateway::domain::Filename::parse(&format!("foreign-{}.webm", self.count)).unwrap()
            }
        };
        let key = ObjectKey::new(session, filename);
        if self.memory.is_new(&key) && self.bucket.put_stranger(&key, bytes.clone()) {
            self.memory.strangers.insert(key, Stranger { bytes, live: true, unclear: false });
        }
    }

    /// The cloud is fine again, and time goes by.
    fn drain(&mut self) {
        self.bucket.next_put(None);
        self.bucket.next_delete(None);
        self.bucket.no_place.store(false, Ordering::SeqCst);
        self.bucket.set_weather(Weather::Fine);
        self.bucket.step(true);
        for _ in 0..4 {
            let mut left = 0;
            for process in &self.processes {
                let services = process.services.clone();
                left += process.run(async move {
                    services.settle_abandoned().await.unwrap();
                    services.adopt_cloud_once().await.unwrap();
                    services.delete_late_pushes().await.unwrap();
                    services.adopt_local().await.unwrap();
                    let mut tried = 0;
                    while tried < 60 && job(services.clone(), LONG).await {
                        tried += 1;
                    }
                    services.catalog.counts().await.unwrap().jobs
                });
            }
            if left == 0 {
                return;
            }
        }
    }
}
