//! What became of each file: one JSON object a file, and the totals. The same lines go to the report file and to
//! scripts.
//!
//! It is written for people and programs to read; nothing of a migration is ever decided by an earlier report.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use super::plan::{LeftOut, Plan, Planned};

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It would be loaded (dry run).
    Planned,
    /// The gateway took it.
    Loaded,
    /// The gateway had the same bytes in the session already.
    Skipped,
    /// It was not tried.
    LeftOut,
    /// The gateway or this machine refused it.
    Failed,
    /// At the end the gateway's listing said something else.
    Different,
}

/// One file's line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Entry {
    /// Below the directory that was migrated.
    pub path: String,
    /// Null for what was left out of the plan.
    pub session: Option<String>,
    /// The name the gateway gave.
    pub filename: Option<String>,
    /// Bytes; null where nobody looked.
    pub size: Option<u64>,
    /// Null in a dry run.
    pub content_type: Option<String>,
    /// Hex; null if it was not read.
    pub sha256: Option<String>,
    pub outcome: Outcome,
    pub reason: Option<String>,
    /// Whether a person has to do something about it.
    #[serde(skip)]
    pub to_decide: bool,
}

impl Entry {
    /// A file of the plan to which nothing happened yet.
    pub fn of(file: &Planned, outcome: Outcome, reason: Option<String>) -> Self {
        Self {
            path: file.relative.to_string_lossy().into_owned(),
            session: Some(file.session.clone()),
            filename: None,
            size: Some(file.size),
            content_type: Some(file.content_type.clone()),
            sha256: None,
            outcome,
            reason,
            to_decide: matches!(outcome, Outcome::LeftOut | Outcome::Failed),
        }
    }

    pub fn differs(&mut self, reason: String) {
        (self.outcome, self.reason, self.to_decide) = (Outcome::Different, Some(reason), true);
    }
}

impl From<&LeftOut> for Entry {
    fn from(out: &LeftOut) -> Self {
        Self {
            path: out.relative.to_string_lossy().into_owned(),
            session: None,
            filename: None,
            size: out.size,
            content_type: None,
            sha256: None,
            outcome: Outcome::LeftOut,
            reason: Some(out.reason.clone()),
            to_decide: out.to_decide,
        }
    }
}

/// The last line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Totals {
    /// Files that were to be loaded, and their bytes.
    pub files: u64,
    pub bytes: u64,
    /// Sessions they go to.
    pub sessions: u64,
    pub loaded: u64,
    pub loaded_bytes: u64,
    pub skipped: u64,
    pub left_out: u64,
    /// Those of them about which a person has to decide.
    pub to_decide: u64,
    pub failed: u64,
    pub different: u64,
    /// Files whose size and digest the gateway's listing showed at the end; null if it was not asked.
    pub compared: Option<u64>,
    /// Recordings that the listing of their sessions showed then.
    pub listed: Option<u64>,
    /// The gateway could not ask its cloud: what only that holds was not seen.
    pub degraded: bool,
    /// The job whose parts are the syncs of what was loaded.
    pub job: Option<String>,
}

impl Totals {
    pub fn of(plan: &Plan, entries: &[Entry]) -> Self {
        let mut totals = Self {
            files: plan.files.len() as u64,
            bytes: plan.bytes(),
            sessions: plan.sessions().len() as u64,
            ..Self::default()
        };
        for entry in entries {
            match entry.outcome {
                Outcome::Planned => {}
                Outcome::Loaded => {
                    totals.loaded += 1;
                    totals.loaded_bytes += entry.size.unwrap_or_default();
                }
                Outcome::Skipped => totals.skipped += 1,
                Outcome::LeftOut => totals.left_out += 1,
                Outcome::Failed => totals.failed += 1,
                Outcome::Different => totals.different += 1,
            }
            totals.to_decide += u64::from(entry.to_decide && entry.outcome == Outcome::LeftOut);
        }
        totals
    }

    /// Whether everything is as it should be.
    pub fn fine(&self) -> bool {
        self.failed + self.different + self.to_decide == 0
    }
}

#[derive(Serialize)]
pub(super) struct LastLine<'a> {
    pub totals: &'a Totals,
}

/// The report file. It is empty until the run has ended.
pub(super) struct Report {
    pub path: PathBuf,
    file: File,
}

impl Report {
    /// Makes the file now, so that a place that cannot be written is known before the work. A named one is replaced;
    /// without a name it gets one of this moment.
    pub fn create(named: Option<&Path>) -> io::Result<Self> {
        if let Some(path) = named {
            return Ok(Self { file: File::create(path)?, path: path.to_owned() });
        }
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let now = OffsetDateTime::now_utc().format(format).map_err(io::Error::other)?;
        let mut path = PathBuf::from(format!("migrate-report-{now}.jsonl"));
        for n in 2.. {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    path = PathBuf::from(format!("migrate-report-{now}_{n}.jsonl"));
                }
                made => return Ok(Self { file: made?, path }),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Writes all of it and flushes it to the disk.
    pub fn write(&self, entries: &[Entry], totals: &Totals) -> io::Result<()> {
        let mut out = BufWriter::new(&self.file);
        for entry in entries {
            writeln!(out, "{}", serde_json::to_string(entry)?)?;
        }
        writeln!(out, "{}", serde_json::to_string(&LastLine { totals })?)?;
        out.flush()?;
        drop(out);
        self.file.sync_all()
    }
}
