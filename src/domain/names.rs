//! Names: sessions, file names, object keys. Parse, don't validate: a value of one of these types is safe to use as
//! a path below the local store and (where [`Filename::is_portable`] says so) as a key in the bucket. Clones of the
//! names in a key share their text: lists pass each through many hands.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use time::OffsetDateTime;

/// Why a text is no name. The sentence tells the person what to send instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a session id.
    #[error("a session id is 1 to 128 characters of A-Z a-z 0-9 . _ - and does not start with a dot")]
    Session,
    /// The one session id that would collide with a route.
    #[error("\"upload\" is reserved and cannot be a session id; choose another one")]
    ReservedSession,
    /// Not a recording type.
    #[error("recording_type is 1 to 32 characters of a-z 0-9 _ -")]
    RecordingType,
    /// Not a file name.
    #[error(
        "a file name is 1 to 255 bytes, does not start with a dot and has no slash, backslash or control character"
    )]
    Filename,
}

/// Groups the recordings of one talk: 1 to 128 characters of `A-Z a-z 0-9 . _ -`, not starting with a dot, not
/// `upload`. Case matters: `Talk` and `talk` are two sessions, in the bucket and on disk.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Checks the rules above.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > 128 || text.starts_with('.') || !text.bytes().all(legal) {
            return Err(NameError::Session);
        }
        if text == "upload" {
            return Err(NameError::ReservedSession);
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which gateway: kept beside its recordings, so it is the same after a restart and on another address. Any text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GatewayId(pub String);

impl GatewayId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of recording it is; the first part of its file name. 1 to 32 of `a-z 0-9 _ -`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RecordingType(String);

impl RecordingType {
    /// Checks the rule above.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if text.is_empty() || text.len() > 32 || !text.bytes().all(legal) {
            return Err(NameError::RecordingType);
        }
        Ok(Self(text.to_owned()))
    }

    /// The type as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RecordingType {
    fn default() -> Self {
        Self("session".to_owned())
    }
}

/// One file's name inside its session: one path component, never a path. Names that the gateway makes use only
/// `A-Z a-z 0-9 . _ -`; names that an operator or another client chose may hold more.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Filename(Arc<str>);

impl Filename {
    /// Takes any single visible path component: 1 to 255 bytes, no leading dot, no slash, backslash, control
    /// character or direction override.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let deceptive = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let illegal = |c: char| c == '/' || c == '\\' || c.is_control() || deceptive(c);
        if text.is_empty() || text.len() > 255 || text.starts_with('.') || text.chars().any(illegal) {
            return Err(NameError::Filename);
        }
        Ok(Self(text.into()))
    }

    /// Whether every backend takes it as it is (contract, section 4 and advice 1).
    pub fn is_portable(&self) -> bool {
        self.0.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The one way to name an object in a store: `session_id/filename`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectKey {
    /// The session it belongs to.
    pub session: SessionId,
    /// Its name there.
    pub filename: Filename,
}

impl ObjectKey {
    /// Puts the two parts together.
    pub fn new(session: SessionId, filename: Filename) -> Self {
        Self { session, filename }
    }

    /// Reads `session_id/filename`; `None` if it is not exactly two legal parts (objects that others put deeper in
    /// the bucket are not recordings).
    pub fn parse(text: &str) -> Option<Self> {
        let (session, filename) = text.split_once('/')?;
        Some(Self { session: SessionId::parse(session).ok()?, filename: Filename::parse(filename).ok()? })
    }
}

/// A recording's name before it is known which number it gets: `{type}_recording_{session}_{date}_{time}[_{node}]`
/// and the extension. The second one in the same second gets `_2` before the dot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NameStem {
    stem: String,
    ext: String,
}

impl NameStem {
    /// Builds the stem; `node` (empty for none) tells gateways apart that share a bucket but no catalogue. `ext` is
    /// expected to be 1 to 10 of `a-z 0-9`.
    pub fn new(kind: &RecordingType, session: &SessionId, at: OffsetDateTime, node: &str, ext: &str) -> Self {
        let at = at.to_offset(time::UtcOffset::UTC);
        let mut stem = format!(
            "{}_recording_{}_{:04}{:02}{:02}_{:02}{:02}{:02}",
            kind.as_str(),
            session.as_str(),
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        );
        if !node.is_empty() {
            stem.push('_');
            stem.push_str(node);
        }
        Self { stem, ext: ext.to_owned() }
    }

    /// Whether this is one of its names.
    pub fn begins(&self, filename: &Filename) -> bool {
        let number = filename.0.strip_prefix(&self.stem).and_then(|rest| rest.strip_suffix(&self.ext));
        number.is_some_and(|number| {
            number == "." || number.strip_prefix('_').and_then(|n| n.strip_suffix('.')).is_some_and(is_number)
        })
    }

    /// The n-th name of this stem, counted from 1.
    pub fn nth(&self, n: u32) -> Filename {
        let name = match n {
            0 | 1 => format!("{}.{}", self.stem, self.ext),
            n => format!("{}_{n}.{}", self.stem, self.ext),
        };
        Filename(name.into())
    }
}

fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|n| n > 1)
}

macro_rules! shown_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
shown_as_text!(SessionId, RecordingType, Filename);

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [self.session.as_str(), "/", self.filename.as_str()] {
            f.write_str(part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn sessions() {
        for good in ["a", "session_123", "A.b-C", &"x".repeat(128), "uploads", "Upload"] {
            assert!(SessionId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".hidden", "..", "a/b", "a b", "ü", "a*", "a%2e", "a\0", &"x".repeat(129)] {
            assert_eq!(SessionId::parse(bad), Err(NameError::Session), "{bad}");
        }
        assert_eq!(SessionId::parse("upload"), Err(NameError::ReservedSession));
    }

    #[test]
    fn filenames_are_one_visible_component() {
        for good in ["a.webm", "interview März.webm", "a b.mp4", "CON"] {
            assert!(Filename::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".spool", "a/b", "a\\b", "a\nb", "a\0b", "a\u{202e}b", &"x".repeat(256)] {
            assert_eq!(Filename::parse(bad), Err(NameError::Filename), "{bad:?}");
        }
        assert!(Filename::parse("a_b-c.1.webm").unwrap().is_portable());
        assert!(!Filename::parse("a b.webm").unwrap().is_portable());
    }

    #[test]
    fn the_documented_name() {
        let session = SessionId::parse("session_123").unwrap();
        let at = datetime!(2024-12-01 15:30:22 +1);
        let stem = NameStem::new(&RecordingType::default(), &session, at, "", "webm");
        assert_eq!(stem.nth(1).as_str(), "session_recording_session_123_20241201_143022.webm");
        assert_eq!(stem.nth(3).as_str(), "session_recording_session_123_20241201_143022_3.webm");
        let stem = NameStem::new(&RecordingType::parse("scene").unwrap(), &session, at, "east-1", "mp4");
        assert_eq!(stem.nth(2).as_str(), "scene_recording_session_123_20241201_143022_east-1_2.mp4");
    }

    #[test]
    fn keys_have_exactly_two_parts() {
        assert_eq!(ObjectKey::parse("s/a.webm").unwrap().to_string(), "s/a.webm");
        for bad in ["a.webm", "s/", "/a", "s/a/b", ".catalog/x", "s/.x", "upload/x"] {
            assert!(ObjectKey::parse(bad).is_none(), "{bad}");
        }
    }
}
