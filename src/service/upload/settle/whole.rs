//! Complete uploads that have no row yet because the cloud is waited for. What a start needs to know of one lies beside
//! its bytes in the spool, so that a crash in these seconds does not cost a recording that had arrived whole.
//!
//! Invariant: the note goes before the row is written. What had a row is the catalogue's matter alone, and a recording
//! that was deleted does not come back from here. It is for kills alone, where what was removed is removed: a power cut
//! may bring note and bytes of a recording back that was answered and deleted since, so a note counts until the machine
//! starts anew. What only waited was promised to nobody.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use tempfile::TempPath;

use super::Complete;
use crate::catalog::{Begun, RequestKey};
use crate::domain::{NameStem, SessionId};
use crate::service::sync::Digests;
use crate::service::upload::Leftovers;
use crate::service::{ServiceError, Services};
use crate::spool::{Leftover, SpoolError, SpoolReader};
use crate::storage::tiered::PrimaryError;
use crate::storage::{ObjectMeta, chain};

#[derive(Serialize, Deserialize)]
struct Note {
    session: String,
    stem: NameStem,
    size_bytes: u64,
    sha256: String,
    content_type: String,
    original_filename: Option<String>,
    request: Option<RequestKey>,
    fingerprint: String,
    parent_job: Option<String>,
    /// See [`BOOT`].
    boot: Option<String>,
}

/// Which start of the machine this is (random(4)); `None` where it is not told, and then every note counts.
static BOOT: LazyLock<Option<String>> = LazyLock::new(|| {
    Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
});

impl Note {
    fn is_of_an_earlier_boot(&self) -> bool {
        self.boot.as_ref().zip(BOOT.as_ref()).is_some_and(|(then, now)| then != now)
    }
}

impl Complete {
    /// Lays down what the upload is until the returned path is dropped. `None` if that failed, which costs something only
    /// if the process is killed now.
    pub(super) fn note(&self) -> Option<TempPath> {
        let note = Note {
            session: self.session.to_string(),
            stem: self.stem.clone(),
            size_bytes: self.size_bytes,
            sha256: self.meta.sha256?.to_string(),
            content_type: self.meta.content_type.clone(),
            original_filename: self.meta.original_filename.clone(),
            request: self.leftovers.request.clone(),
            fingerprint: self.fingerprint.clone(),
            parent_job: self.parent_job.clone(),
            boot: BOOT.clone(),
        };
        let text = serde_json::to_vec(&note).ok()?;
        match self.services.spool.note(&self.meta.upload_id, &text) {
            Ok(path) => Some(path),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "a kill would cost an upload that waits for the cloud");
                None
            }
        }
    }
}

impl Services {
    /// Makes a recording of a spool file that has no row, if it is a complete upload. `false` if it is not. What fails on
    /// the way stays in the spool for the next start.
    pub(in crate::service) async fn keep_whole(&self, leftover: &Leftover) -> Result<bool, ServiceError> {
        let Some(upload_id) = leftover.upload_id.clone() else { return Ok(false) };
        let Some(text) = leftover.note()? else { return Ok(false) };
        let Ok(note) = serde_json::from_slice::<Note>(&text) else { return Ok(false) };
        let Ok(session) = SessionId::parse(&note.session) else { return Ok(false) };
        if leftover.size_bytes != note.size_bytes {
            return Ok(false);
        }
        if note.is_of_an_earlier_boot() {
            tracing::warn!(
                session.id = %session, spool.file = leftover.name(),
                "an upload that had not been answered when the machine went down is removed; its client has to send it again"
            );
            return Ok(false);
        }
        let source = leftover.open(self.spool.blocks().clone())?;
        let Some(complete) = self.noted(note, session, upload_id.clone(), source.clone()).await? else {
            return Ok(false);
        };
        // A kill up to here costs nothing: the next start finds both as they were. From here on the row counts.
        complete.source.make_safe().await?;
        leftover.remove_note()?;
        let kept = match complete.keep_after_a_crash().await {
            // At this very moment.
            Err(ServiceError::RequestRunning) => Ok(false),
            kept => kept.map(|()| true),
        };
        if kept.is_err() {
            source.leave();
            self.spool.note(&upload_id, &text)?.keep().map_err(|kept| SpoolError::from(kept.error))?;
        }
        kept
    }

    /// The upload as it was when the note was written; `None` if it is not that, or somebody sent it again.
    async fn noted(
        &self,
        note: Note,
        session: SessionId,
        upload_id: String,
        source: SpoolReader,
    ) -> Result<Option<Complete>, ServiceError> {
        let sha256 = Digests::of(&source, false).await?.sha256;
        if sha256.to_string() != note.sha256 {
            return Ok(None);
        }
        let mut names = Vec::new();
        let mut waits = false;
        for abandoned in self.catalog.abandoned().await? {
            waits |= note.request.is_some() && abandoned.request == note.request;
            if abandoned.upload_id == upload_id && note.stem.begins(&abandoned.key.filename) {
                names.push(abandoned.key);
            }
        }
        if let Some(request) = &note.request {
            match self.catalog.begin_request(request).await? {
                Begun::First => {}
                Begun::Running if waits => {}
                // Somebody sent it again, elsewhere.
                Begun::Running | Begun::Answered(_) => return Ok(None),
            }
        }
        let mut leftovers = Leftovers::none(self);
        leftovers.request = note.request;
        // Its object may be in the bucket: if this fails, or ends under another name, that belongs to nobody.
        leftovers.object = names.pop();
        leftovers.names.extend(leftovers.object.clone());
        Ok(Some(Complete {
            services: self.clone(),
            session,
            stem: note.stem,
            source,
            size_bytes: note.size_bytes,
            meta: ObjectMeta {
                upload_id,
                content_type: note.content_type,
                sha256: Some(sha256),
                original_filename: note.original_filename,
            },
            leg: None,
            respond_async: false,
            parent_job: note.parent_job,
            fingerprint: note.fingerprint,
            leftovers,
            request: None,
        }))
    }
}

impl Complete {
    async fn keep_after_a_crash(mut self) -> Result<(), ServiceError> {
        let why = if self.services.stores.has_primary() {
            PrimaryError::LeftAlone { cause: "the gateway ended before the cloud had confirmed it".into() }
        } else {
            PrimaryError::NotConfigured
        };
        let name = self.leftovers.object.clone();
        self.keep_here(name, why).await.map(|_| ())
    }
}
