//! What is looked at as it is typed: names, times and words that a gateway would only refuse later, and could not say which
//! argument they were in. The rules are the domain's; here they are only put to use.

use clap::builder::PossibleValuesParser;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use crate::domain::{Filename, NameError, RecordingType, SessionId};
use crate::http::{Action, JOB_KINDS, JobState};

pub(super) fn session(text: &str) -> Result<String, NameError> {
    SessionId::parse(text).map(|session| session.to_string())
}

pub(super) fn filename(text: &str) -> Result<String, NameError> {
    Filename::parse(text).map(|filename| filename.to_string())
}

pub(super) fn recording_type(text: &str) -> Result<String, NameError> {
    RecordingType::parse(text).map(|kind| kind.as_str().to_owned())
}

/// A time; kept as it was typed.
pub(super) fn moment(text: &str) -> Result<String, &'static str> {
    match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("a time is written like 2024-12-01T14:30:22Z"),
    }
}

/// The address of a gateway.
pub(super) fn address(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or("an address is written like http://127.0.0.1:8000")
}

/// How a job can be.
pub(super) fn job_state() -> PossibleValuesParser {
    JobState::ALL.map(JobState::as_str).into()
}

/// What a job can do.
pub(super) fn job_kind() -> PossibleValuesParser {
    JOB_KINDS.into()
}

/// What can have been done.
pub(super) fn action() -> PossibleValuesParser {
    Action::ALL.map(Action::as_str).into()
}
