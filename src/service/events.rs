//! What happens, told to whoever listens at this moment: uploads, syncs, jobs, deletions of this gateway.
//!
//! Events are hints that something changed, told after the change; nothing is decided by them and none is kept. Telling
//! never waits: a listener that is too slow loses events and is told to look anew. Without a listener an event costs a
//! number. Nothing here may be told for each chunk of an upload, and nothing that is not in answers already.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use super::upload::Receipt;
use super::{ServiceError, Services};
use crate::catalog::{JobKind, JobRecord, JobState};
use crate::domain::recording::micros;
use crate::domain::{Filename, ObjectKey, SessionId, StoreSet};
use crate::storage::chain;

/// Events a listener may be behind before it loses some.
const BACKLOG: usize = 1024;
/// Listeners at once: each holds a connection.
const MOST_LISTENERS: usize = 256;
/// How often an upload on its way, and a parent whose parts end, are told of at most.
const PACE: Duration = Duration::from_secs(1);
/// The clock is asked once for so many bytes of an upload.
const LOOK_EVERY_BYTES: u64 = 256 << 10;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// To an upload.
    Upload {
        /// Names the upload until it has a name.
        upload_id: String,
        /// Its session.
        session: SessionId,
        /// How far it is.
        step: UploadStep,
    },
    /// To the sync of a recording.
    Sync {
        /// The recording.
        key: ObjectKey,
        /// Its job.
        job_id: String,
        /// How that is.
        state: JobState,
        /// Tries so far.
        attempts: i64,
        /// Why the last try failed, or why it is parked.
        error: Option<String>,
    },
    /// To a job; as it is now.
    Job(JobRecord),
    /// To the gateway: the cloud or the room on the disk is otherwise than before.
    Health,
    /// To a recording or a session that was deleted.
    Deletion {
        /// The session.
        session: SessionId,
        /// The recording; `None` for the whole session.
        filename: Option<Filename>,
        /// Stores that have not confirmed it yet.
        pending: StoreSet,
    },
}

/// What people see of the gateway's health without asking for figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// Whether the cloud can be used.
    pub cloud: bool,
    /// Whether new uploads are refused for want of room.
    pub short: bool,
}

/// How far an upload is.
#[derive(Clone, Debug)]
pub enum UploadStep {
    /// It was let in.
    Begun,
    /// Its bytes come.
    Receiving {
        /// So many came so far.
        received_bytes: u64,
    },
    /// It is a recording.
    Kept(Box<Receipt>),
    /// It came to nothing.
    Failed {
        /// One clause.
        reason: String,
    },
}

impl Event {
    fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Upload { session, .. } | Self::Deletion { session, .. } => Some(session),
            Self::Sync { key, .. } => Some(&key.session),
            Self::Job(job) => job.kind.session(),
            Self::Health => None,
        }
    }
}

/// What a listener hears.
#[derive(Clone, Debug)]
pub enum Heard {
    /// Where it stands now: what comes after this id follows.
    At(String),
    /// It missed something: whatever it shows has to be loaded again.
    Reset(String),
    /// An event with its id.
    Told(String, Arc<Event>),
}

/// The events of this process. Clones share them.
#[derive(Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

struct Shared {
    /// Ids of another process are no ids of this one.
    process: i64,
    /// The last number given out. Held while an event is sent, so that they are heard in the order of their numbers.
    last: Mutex<u64>,
    sender: broadcast::Sender<(u64, Arc<Event>)>,
    places: Arc<Semaphore>,
    /// How the gateway was when it was looked at last.
    health: Mutex<Option<Health>>,
    /// Parents that are going to be told of.
    soon: Mutex<HashSet<String>>,
}

impl Default for Events {
    fn default() -> Self {
        let shared = Shared {
            process: micros(OffsetDateTime::now_utc()),
            last: Mutex::new(0),
            sender: broadcast::Sender::new(BACKLOG),
            places: Arc::new(Semaphore::new(MOST_LISTENERS)),
            health: Mutex::new(None),
            soon: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }
}

impl Events {
    /// Tells it. Also when nobody listens it takes a number, so that somebody who comes back knows that they missed it.
    pub(super) fn tell(&self, event: impl FnOnce() -> Event) {
        let mut last = locked(&self.shared.last);
        *last += 1;
        if self.is_heard() {
            // Nobody left meanwhile to hear it: no loss.
            let _ = self.shared.sender.send((*last, Arc::new(event())));
        }
    }

    fn is_heard(&self) -> bool {
        self.shared.sender.receiver_count() > 0
    }

    fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.shared.process)
    }

    fn last_id(&self) -> String {
        self.id(*locked(&self.shared.last))
    }

    /// Tells it if the gateway is otherwise than it was when this was last called.
    pub fn look_at(&self, health: Health) {
        let before = locked(&self.shared.health).replace(health);
        if before.is_some_and(|before| before != health) {
            self.tell(|| Event::Health);
        }
    }

    /// An upload begins.
    pub(super) fn of_upload(&self, session: &SessionId, upload_id: &str) -> UploadEvents {
        let (session, upload_id) = (session.clone(), upload_id.to_owned());
        let events = UploadEvents {
            events: self.clone(),
            session,
            upload_id,
            told: Instant::now(),
            look_at: LOOK_EVERY_BYTES,
            ended: false,
        };
        events.tell(UploadStep::Begun);
        events
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells of one upload. Dropped before it is a recording, it came to nothing.
pub(super) struct UploadEvents {
    events: Events,
    session: SessionId,
    upload_id: String,
    told: Instant,
    look_at: u64,
    ended: bool,
}

impl UploadEvents {
    fn tell(&self, step: UploadStep) {
        self.events.tell(|| Event::Upload {
            upload_id: self.upload_id.clone(),
            session: self.session.clone(),
            step,
        });
    }

    /// So many bytes came so far. Called for each chunk, so it compares a number and no more.
    pub(super) fn received(&mut self, received_bytes: u64) {
        if received_bytes < self.look_at {
            return;
        }
        self.look_at = received_bytes + LOOK_EVERY_BYTES;
        if self.told.elapsed() >= PACE {
            self.told = Instant::now();
            self.tell(UploadStep::Receiving { received_bytes });
        }
    }

    pub(super) fn ended(mut self, receipt: &Result<Receipt, ServiceError>) {
        self.ended = true;
        self.tell(match receipt {
            Ok(receipt) => UploadStep::Kept(Box::new(receipt.clone())),
            // Without what lies below: that is for the log.
            Err(error) => UploadStep::Failed { reason: error.to_string() },
        });
    }
}

impl Drop for UploadEvents {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(UploadStep::Failed { reason: "it was broken off or refused".to_owned() });
        }
    }
}

/// Somebody who listens.
pub struct Listener {
    events: Events,
    receiver: broadcast::Receiver<(u64, Arc<Event>)>,
    session: Option<SessionId>,
    first: Option<Heard>,
    stopping: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    /// The next event; `None` when the process stops. Safe to drop.
    pub async fn next(&mut self) -> Option<Heard> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let received = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                received = self.receiver.recv() => received,
            };
            match received {
                Ok((number, event)) if self.wants(&event) => {
                    return Some(Heard::Told(self.events.id(number), event));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    // What is still in store is old: whoever loads anew has it.
                    self.receiver = self.receiver.resubscribe();
                    return Some(Heard::Reset(self.events.last_id()));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn wants(&self, event: &Event) -> bool {
        self.session.is_none() || self.session.as_ref() == event.session()
    }
}

impl Services {
    /// Listens to what happens from now on, in one session or all. Whoever listened before says the last id they
    /// heard, and hears [`Heard::Reset`] if something happened since.
    ///
    /// # Errors
    /// [`ServiceError::TooManyListeners`].
    pub fn listen(
        &self,
        session: Option<SessionId>,
        last_heard: Option<&str>,
    ) -> Result<Listener, ServiceError> {
        let places = self.events.shared.places.clone();
        let place = places.try_acquire_owned().map_err(|_| ServiceError::TooManyListeners)?;
        // In this order: what happens between is heard and makes a reset, instead of neither.
        let receiver = self.events.shared.sender.subscribe();
        let last = self.events.last_id();
        let missed = last_heard.is_some_and(|heard| heard != last);
        Ok(Listener {
            events: self.events.clone(),
            receiver,
            session,
            first: Some(if missed { Heard::Reset(last) } else { Heard::At(last) }),
            stopping: self.tasks.stopping().clone(),
            _place: place,
        })
    }

    /// Tells how a job is now, and within a second how its parent is. Safe to drop.
    pub async fn tell_job(&self, id: &str) {
        if !self.events.is_heard() {
            // Only the number counts: nobody hears it, unless they come in this very moment.
            let mut last = locked(&self.events.shared.last);
            *last += 1;
            return;
        }
        let job = match self.catalog.get_job(id).await {
            Ok(Some(job)) => job,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(job.id = id, error = %chain(&error), "a job's state could not be told");
                return;
            }
        };
        if let JobKind::Sync(key) = &job.kind {
            self.events.tell(|| Event::Sync {
                key: key.clone(),
                job_id: job.id.clone(),
                state: job.state,
                attempts: job.attempts,
                error: job.last_error.clone(),
            });
        }
        if let Some(parent) = &job.parent_id {
            self.tell_parent_soon(parent.clone());
        }
        self.events.tell(|| Event::Job(job));
    }

    /// A parent with thousands of parts is counted once a second, not once a part.
    fn tell_parent_soon(&self, id: String) {
        if !locked(&self.events.shared.soon).insert(id.clone()) {
            return;
        }
        let services = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(PACE) => {}
                () = services.tasks.stopping().cancelled() => return,
            }
            locked(&services.events.shared.soon).remove(&id);
            match services.catalog.get_job(&id).await {
                Ok(Some(parent)) => services.events.tell(|| Event::Job(parent)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(job.id = id, error = %chain(&error), "a job's state could not be told");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(name: &str) -> SessionId {
        SessionId::parse(name).unwrap()
    }

    fn deletion(name: &str) -> Event {
        Event::Deletion { session: session(name), filename: None, pending: StoreSet::default() }
    }

    fn listener(events: &Events, of: Option<&str>) -> Listener {
        Listener {
            events: events.clone(),
            receiver: events.shared.sender.subscribe(),
            session: of.map(session),
            first: None,
            stopping: CancellationToken::new(),
            _place: events.shared.places.clone().try_acquire_owned().unwrap(),
        }
    }

    #[tokio::test]
    async fn who_is_too_slow_is_told_to_look_anew_and_goes_on() {
        let events = Events::default();
        let mut slow = listener(&events, None);
        for _ in 0..=BACKLOG {
            events.tell(|| deletion("s"));
        }
        let Some(Heard::Reset(id)) = slow.next().await else { panic!("it lost events without a word") };
        assert_eq!(id, events.last_id());
        events.tell(|| deletion("t"));
        let Some(Heard::Told(id, _)) = slow.next().await else { panic!("it hears nothing after the reset") };
        assert_eq!(id, events.last_id());
    }

    #[tokio::test]
    async fn only_the_session_that_was_asked_for_is_heard() {
        let events = Events::default();
        let mut one = listener(&events, Some("b"));
        events.tell(|| deletion("a"));
        events.tell(|| deletion("b"));
        let Some(Heard::Told(_, event)) = one.next().await else { panic!("nothing is heard") };
        assert_eq!(event.session(), Some(&session("b")));
    }

    #[tokio::test]
    async fn the_stop_ends_listening_at_once() {
        let mut one = listener(&Events::default(), None);
        one.stopping.cancel();
        assert!(one.next().await.is_none());
    }

    #[tokio::test]
    async fn what_happens_unheard_still_takes_a_number() {
        let events = Events::default();
        let before = events.last_id();
        events.tell(|| unreachable!("nobody listens"));
        assert_ne!(events.last_id(), before);
    }
}
