//! Sending the files of a plan: a few sessions at once, the files of one session one after the other and oldest first, so
//! that the newest of a session stays its newest.
//!
//! A file is never sent before the session's listing was asked for it, and never again after a failure without asking
//! anew: what a broken connection left behind is not guessed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use reqwest::Method;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::known::{Found, Known, Wanted, read_back};
use super::patience::{Patience, Trouble, Waited};
use super::plan::{Plan, Planned};
use super::report::{Entry, Outcome};
use crate::cli::client::{ClientError, Gateway};
use crate::cli::form::{UploadForm, blocks};
use crate::http::digest::format_sha256;

/// Read from a file at once for its digest.
const BLOCK_BYTES: usize = 256 * 1024;
/// How often a file is sent whose bytes arrive damaged.
const DAMAGED_TRIES: u32 = 3;

/// What sending needs.
pub(super) struct Loader<'a> {
    pub gateway: &'a Gateway,
    /// The directory that is migrated.
    pub root: &'a Path,
    pub recording_type: &'a str,
    /// Sessions at once.
    pub jobs: usize,
    pub patience: Patience,
    /// The job that the recordings' syncs are to be parts of, as long as the gateway knows it.
    pub job: RefCell<Option<String>>,
}

/// What came of it.
pub(super) struct Loaded {
    /// One for each file of the plan, in its order.
    pub entries: Vec<Entry>,
    /// Every session that was looked at.
    pub sessions: Vec<(String, Known)>,
    /// Why everything was given up, if it was.
    pub away: Option<String>,
}

/// A session on its way.
struct Session {
    id: String,
    waiting: VecDeque<usize>,
    /// Names and sizes of its files.
    siblings: HashMap<String, u64>,
    known: RefCell<Option<Known>>,
}

/// Which file is next: the oldest whose session has none on its way.
struct Queue {
    sessions: Vec<Session>,
    /// The next file of each session that waits, and the session.
    idle: BTreeSet<(usize, usize)>,
}

impl Queue {
    fn of(plan: &Plan) -> Self {
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut sessions: Vec<Session> = Vec::new();
        for (index, file) in plan.files.iter().enumerate() {
            let place = *places.entry(&file.session).or_insert_with(|| {
                sessions.push(Session {
                    id: file.session.clone(),
                    waiting: VecDeque::new(),
                    siblings: HashMap::new(),
                    known: RefCell::default(),
                });
                sessions.len() - 1
            });
            sessions[place].waiting.push_back(index);
            sessions[place].siblings.insert(file.original.clone(), file.size);
        }
        let mut queue = Self { sessions, idle: BTreeSet::new() };
        (0..queue.sessions.len()).for_each(|session| queue.rest(session));
        queue
    }

    fn next(&mut self) -> Option<(usize, usize)> {
        let (file, session) = self.idle.pop_first()?;
        self.sessions[session].waiting.pop_front();
        Some((file, session))
    }

    /// The session has no file on its way any more.
    fn rest(&mut self, session: usize) {
        if let Some(file) = self.sessions[session].waiting.front() {
            self.idle.insert((*file, session));
        }
    }
}

/// A file whose bytes were read once.
struct Source {
    facts: Metadata,
    digest: [u8; 32],
    sha256: String,
}

impl Loader<'_> {
    /// Sends what is to be sent. `abandon` ends at once, leaving what is being sent; `tell` gets each file's line.
    pub async fn run(
        &self,
        plan: &Plan,
        abandon: &CancellationToken,
        mut tell: impl FnMut(&Entry) -> anyhow::Result<()>,
    ) -> anyhow::Result<Loaded> {
        let queue = RefCell::new(Queue::of(plan));
        let mut entries: Vec<Option<Entry>> = vec![None; plan.files.len()];
        let away = Cell::new(None);
        let mut running = FuturesUnordered::new();
        let (mut done, total) = (0, plan.files.len());
        self.patience.bar.set_message(format!("{done}/{total} files"));
        loop {
            while running.len() < self.jobs && !self.patience.stop.is_cancelled() {
                let Some((file, session)) = queue.borrow_mut().next() else { break };
                let (id, siblings, known) = {
                    let state = &mut queue.borrow_mut().sessions[session];
                    (state.id.clone(), std::mem::take(&mut state.siblings), state.known.take())
                };
                running.push(async move {
                    let mut known = known;
                    let ended = self.one(&plan.files[file], &id, &siblings, &mut known).await;
                    (file, session, siblings, known, ended)
                });
            }
            let next = tokio::select! {
                biased;
                () = abandon.cancelled() => None,
                next = running.next() => next,
            };
            let Some((file, session, siblings, known, ended)) = next else { break };
            {
                let mut queue = queue.borrow_mut();
                queue.sessions[session].siblings = siblings;
                queue.sessions[session].known.replace(known);
                queue.rest(session);
            }
            let entry = match ended {
                Ok(entry) => entry,
                Err(Trouble::Stopped) => continue,
                Err(Trouble::File(reason)) => Entry::of(&plan.files[file], Outcome::Failed, Some(reason)),
                Err(Trouble::Away(reason)) => {
                    self.patience.stop.cancel();
                    away.set(Some(reason.clone()));
                    Entry::of(&plan.files[file], Outcome::Failed, Some(reason))
                }
            };
            done += 1;
            self.patience.bar.set_message(format!("{done}/{total} files"));
            tell(&entry)?;
            entries[file] = Some(entry);
        }
        drop(running);
        let not_sent = || Some("stopped before it was sent; the same command goes on".to_owned());
        let entries = entries
            .into_iter()
            .zip(&plan.files)
            .map(|(entry, file)| entry.unwrap_or_else(|| Entry::of(file, Outcome::LeftOut, not_sent())));
        let sessions = queue.into_inner().sessions.into_iter();
        Ok(Loaded {
            entries: entries.collect(),
            sessions: sessions
                .filter_map(|session| Some((session.id, session.known.into_inner()?)))
                .collect(),
            away: away.take(),
        })
    }

    async fn one(
        &self,
        file: &Planned,
        session: &str,
        siblings: &HashMap<String, u64>,
        known: &mut Option<Known>,
    ) -> Result<Entry, Trouble> {
        let path = self.root.join(&file.relative);
        let source = self.read(&path).await?;
        let size = source.facts.len();
        let known = match known {
            Some(known) => known,
            None => known.insert(self.patience.ask(async || Known::list(self.gateway, session).await).await?),
        };
        let wanted = Wanted { size, sha256: &source.sha256, original: &file.original, siblings };
        let ended = |outcome, filename: String, reason: Option<String>| Entry {
            filename: Some(filename),
            size: Some(size),
            sha256: Some(source.sha256.clone()),
            ..Entry::of(file, outcome, reason)
        };
        if let Some(filename) = self.find(session, known, &wanted).await? {
            self.patience.bar.inc(size);
            let reason = known.noted_digest(&filename).map(|_| "compared by reading it back".to_owned());
            return Ok(ended(Outcome::Skipped, filename, reason));
        }
        let (mut waited, mut damaged) = (Waited::default(), 0);
        loop {
            let error = match self.send(file, &path, &source).await {
                Ok(answer) => {
                    let filename = answer["filename"].as_str().unwrap_or_default().to_owned();
                    known.claim(&filename);
                    let same = answer["sha256"] == source.sha256.as_str()
                        && answer["file_size"].as_u64() == Some(size);
                    let mut entry = ended(Outcome::Loaded, filename, None);
                    if !same {
                        entry.differs("the gateway stored other bytes than were sent".into());
                    }
                    return Ok(entry);
                }
                Err(error) => error,
            };
            if has_changed(&path, &source.facts) {
                return Err(Trouble::File(
                    "changed while it was being sent; the same command sends it again".into(),
                ));
            }
            if code(&error) == Some("load_unknown") && self.job.take().is_some() {
                // Forgotten meanwhile: their syncs need no parent.
                continue;
            }
            if is_damage(&error) && damaged < DAMAGED_TRIES {
                damaged += 1;
                continue;
            }
            self.patience.pause(&mut waited, &error).await?;
            self.patience.ask(async || known.refresh(self.gateway, session).await).await?;
            if let Some(filename) = self.find(session, known, &wanted).await? {
                self.patience.bar.inc(size);
                return Ok(ended(
                    Outcome::Loaded,
                    filename,
                    Some("found there after the connection broke".into()),
                ));
            }
        }
    }

    /// The recording of the session that has the wanted bytes. What the gateway has not read yet is read back.
    async fn find(
        &self,
        session: &str,
        known: &mut Known,
        wanted: &Wanted<'_>,
    ) -> Result<Option<String>, Trouble> {
        loop {
            let filename = match known.find(wanted) {
                Found::Same(filename) => return Ok(Some(filename)),
                Found::Nothing => return Ok(None),
                Found::Unread(filename) => filename,
            };
            let digest =
                self.patience.ask(async || match read_back(self.gateway, session, &filename).await {
                    Err(error) if is_gone(&error) => Ok(None),
                    digest => digest.map(Some),
                });
            match digest.await {
                Ok(Some(digest)) => known.note_digest(filename, digest),
                Ok(None) => known.drop_row(&filename),
                Err(Trouble::File(why)) => {
                    let reason = format!("{filename} has the same size there and cannot be compared: {why}");
                    return Err(Trouble::File(reason));
                }
                Err(trouble) => return Err(trouble),
            }
        }
    }

    async fn read(&self, path: &Path) -> Result<Source, Trouble> {
        let (path, stop) = (path.to_owned(), self.patience.stop.clone());
        let read = tokio::task::spawn_blocking(move || digest_of(&path, &stop)).await;
        match read.map_err(anyhow::Error::from).flatten() {
            Ok(Some(source)) => Ok(source),
            Ok(None) => Err(Trouble::Stopped),
            Err(error) => Err(Trouble::File(format!("{error:#}"))),
        }
    }

    async fn send(&self, file: &Planned, path: &Path, source: &Source) -> anyhow::Result<Value> {
        let url = self.gateway.address(&["upload", &file.session])?;
        let size = source.facts.len();
        let reader = tokio::fs::File::open(path).await.context("cannot be opened")?.take(size);
        let sent = Arc::new(AtomicU64::new(0));
        let (counter, bar) = (sent.clone(), self.patience.bar.clone());
        let bytes = blocks(reader).inspect(move |block| {
            if let Ok(block) = block {
                counter.fetch_add(block.len() as u64, Ordering::Relaxed);
                bar.inc(block.len() as u64);
            }
        });
        let request = self
            .gateway
            .request(Method::POST, url)
            .header("Repr-Digest", format_sha256(&source.digest))
            .header("Idempotency-Key", self.idempotency_key(file, source));
        let request = match &*self.job.borrow() {
            Some(job) => request.header("Gateway-Job", job),
            None => request,
        };
        let form = UploadForm::new(self.recording_type, &file.original);
        let answer = self.gateway.send(form.fill(request, bytes, Some(size))).await;
        if answer.is_err() {
            self.patience.bar.dec(sent.load(Ordering::Relaxed));
        }
        Ok(answer?)
    }

    /// The same for the same bytes under the same path into the same session, in every run: a repeat of an upload that
    /// the gateway finished without anybody hearing of it gets its answer and makes no second copy.
    fn idempotency_key(&self, file: &Planned, source: &Source) -> String {
        let mut key = Sha256::new();
        let path = file.relative.as_os_str().as_encoded_bytes();
        for part in [file.session.as_bytes(), path, self.recording_type.as_bytes(), &source.digest] {
            key.update((part.len() as u64).to_be_bytes());
            key.update(part);
        }
        format!("migrate-{}", hex::encode(key.finalize()))
    }
}

/// Reads the file for its digest; `None` if it is to stop.
fn digest_of(path: &Path, stop: &CancellationToken) -> anyhow::Result<Option<Source>> {
    let mut file = File::open(path).context("cannot be opened")?;
    let facts = file.metadata().context("cannot be read")?;
    anyhow::ensure!(facts.is_file(), "is no regular file any more");
    let (mut digest, mut block, mut size) = (Sha256::new(), vec![0; BLOCK_BYTES], 0);
    loop {
        if stop.is_cancelled() {
            return Ok(None);
        }
        match file.read(&mut block).context("cannot be read")? {
            0 => break,
            read => {
                digest.update(&block[..read]);
                size += read as u64;
            }
        }
    }
    anyhow::ensure!(size == facts.len(), "changed while it was being read; the same command sends it again");
    let digest: [u8; 32] = digest.finalize().into();
    Ok(Some(Source { facts, sha256: hex::encode(digest), digest }))
}

fn has_changed(path: &Path, before: &Metadata) -> bool {
    let same = |now: Metadata| now.len() == before.len() && now.modified().ok() == before.modified().ok();
    !std::fs::metadata(path).is_ok_and(same)
}

fn code(error: &anyhow::Error) -> Option<&str> {
    match error.downcast_ref::<ClientError>()? {
        ClientError::Problem { code, .. } => code.as_deref(),
        _ => None,
    }
}

fn is_damage(error: &anyhow::Error) -> bool {
    code(error) == Some("digest_mismatch")
}

fn is_gone(error: &anyhow::Error) -> bool {
    code(error) == Some("recording_not_found")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::SystemTime;

    use super::*;

    fn plan(paths: &[&str]) -> Plan {
        let planned = |path: &&str| Planned {
            relative: PathBuf::from(path),
            session: path.split('/').next().unwrap().to_owned(),
            original: (*path).to_owned(),
            size: 1,
            modified: SystemTime::UNIX_EPOCH,
            content_type: "video/webm".to_owned(),
        };
        Plan { files: paths.iter().map(planned).collect(), left_out: Vec::new() }
    }

    #[test]
    fn a_session_has_one_file_on_its_way_and_the_oldest_goes_first() {
        let mut queue = Queue::of(&plan(&["a/0", "a/1", "b/2", "a/3", "c/4", "b/5"]));
        assert_eq!(queue.next(), Some((0, 0)));
        assert_eq!(queue.next(), Some((2, 1)), "a is busy");
        assert_eq!(queue.next(), Some((4, 2)));
        assert_eq!(queue.next(), None, "all are busy");
        queue.rest(1);
        queue.rest(0);
        assert_eq!(queue.next(), Some((1, 0)), "older than b's next");
        queue.rest(0);
        assert_eq!(queue.next(), Some((3, 0)));
        queue.rest(2);
        assert_eq!(queue.next(), Some((5, 1)));
        queue.rest(0);
        queue.rest(1);
        assert_eq!(queue.next(), None);
    }
}
