//! Which kind of recording some bytes are: content types, file name extensions, and the rule that decides both.
//!
//! Apart because three sources disagree about every file (its bytes, the client's declaration, the client's file name) and one
//! place has to decide. Reading signatures is in `media/sniff.rs`. No I/O here, and nothing that parses beyond the first bytes.

mod sniff;
#[cfg(test)]
mod tests;

pub use sniff::{SNIFF_BYTES, sniff};

/// The file format around the media, as far as its first bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // format names
pub enum Container {
    Webm,
    Matroska,
    Mp4,
    QuickTime,
    ThreeGp,
    Ogg,
    Wav,
    Mp3,
    Flac,
    Aac,
    Avi,
    /// Another audio or video format.
    OtherMedia,
    /// Recognised, and neither audio nor video: a web page, an archive, a program, an image.
    NotMedia,
}

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sniffed {
    /// The format.
    pub container: Container,
    /// Its content type, without parameters.
    pub content_type: &'static str,
    /// Its usual file name extension, without the dot.
    pub ext: &'static str,
}

impl Sniffed {
    /// Whether this is audio or video.
    pub fn is_media(&self) -> bool {
        self.container != Container::NotMedia
    }
}

/// The content type and extension a recording is stored under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaGuess {
    /// Lower case, without parameters.
    pub content_type: String,
    /// 1 to 10 of `a-z 0-9`, without the dot.
    pub ext: String,
}

/// Content types that are in use for recordings, with their container and extension.
const TYPES: &[(&str, Container, &str)] = &[
    ("video/webm", Container::Webm, "webm"),
    ("audio/webm", Container::Webm, "webm"),
    ("video/x-matroska", Container::Matroska, "mkv"),
    ("video/matroska", Container::Matroska, "mkv"),
    ("audio/x-matroska", Container::Matroska, "mka"),
    ("audio/matroska", Container::Matroska, "mka"),
    ("video/mp4", Container::Mp4, "mp4"),
    ("video/x-m4v", Container::Mp4, "m4v"),
    ("audio/mp4", Container::Mp4, "m4a"),
    ("audio/x-m4a", Container::Mp4, "m4a"),
    ("audio/m4a", Container::Mp4, "m4a"),
    ("video/quicktime", Container::QuickTime, "mov"),
    ("video/3gpp", Container::ThreeGp, "3gp"),
    ("audio/3gpp", Container::ThreeGp, "3gp"),
    ("video/3gpp2", Container::ThreeGp, "3g2"),
    ("audio/3gpp2", Container::ThreeGp, "3g2"),
    ("audio/ogg", Container::Ogg, "ogg"),
    ("video/ogg", Container::Ogg, "ogv"),
    ("audio/opus", Container::Ogg, "opus"),
    ("audio/vorbis", Container::Ogg, "ogg"),
    ("application/ogg", Container::Ogg, "ogg"),
    ("audio/wav", Container::Wav, "wav"),
    ("audio/x-wav", Container::Wav, "wav"),
    ("audio/wave", Container::Wav, "wav"),
    ("audio/vnd.wave", Container::Wav, "wav"),
    ("audio/mpeg", Container::Mp3, "mp3"),
    ("audio/mp3", Container::Mp3, "mp3"),
    ("audio/flac", Container::Flac, "flac"),
    ("audio/x-flac", Container::Flac, "flac"),
    ("audio/aac", Container::Aac, "aac"),
    ("audio/aacp", Container::Aac, "aac"),
    ("audio/x-aac", Container::Aac, "aac"),
    ("video/x-msvideo", Container::Avi, "avi"),
    ("video/vnd.avi", Container::Avi, "avi"),
    ("video/avi", Container::Avi, "avi"),
    ("audio/aiff", Container::OtherMedia, "aiff"),
    ("audio/x-aiff", Container::OtherMedia, "aiff"),
    ("audio/amr", Container::OtherMedia, "amr"),
    ("audio/x-caf", Container::OtherMedia, "caf"),
    ("video/mp2t", Container::OtherMedia, "ts"),
    ("video/mpeg", Container::OtherMedia, "mpg"),
    ("video/x-flv", Container::OtherMedia, "flv"),
    ("video/x-ms-wmv", Container::OtherMedia, "wmv"),
];

/// Extensions whose content type is not simply the first of [`TYPES`] with that extension.
const MORE_EXTS: &[(&str, &str)] = &[
    ("weba", "audio/webm"),
    ("oga", "audio/ogg"),
    ("opus", "audio/ogg"),
    ("mpeg", "video/mpeg"),
    ("m4b", "audio/mp4"),
    ("qt", "video/quicktime"),
    ("3gpp", "video/3gpp"),
    ("wave", "audio/wav"),
    ("aif", "audio/aiff"),
];

/// The extension for a content type of audio or video, parameters allowed.
pub fn ext_for(content_type: &str) -> Option<&'static str> {
    let essence = content_type_essence(content_type)?;
    TYPES.iter().find(|(known, ..)| *known == essence).map(|(_, _, ext)| *ext)
}

/// The content type for an extension of audio or video, in either case and without the dot.
pub fn type_for_ext(ext: &str) -> Option<&'static str> {
    let more = MORE_EXTS.iter().map(|(known, content_type)| (*known, *content_type));
    let usual = TYPES.iter().map(|(content_type, _, known)| (*known, *content_type));
    more.chain(usual).find(|(known, _)| known.eq_ignore_ascii_case(ext)).map(|(_, content_type)| content_type)
}

/// `type/subtype` in lower case, without parameters; `None` unless both are restricted names (RFC 6838 section 4.2).
///
/// Supabase compares a bucket's allowed types with the whole header, so `video/webm;codecs=vp9` must go without the rest.
pub fn content_type_essence(content_type: &str) -> Option<String> {
    let essence = content_type.split(';').next()?.trim_matches([' ', '\t']);
    let (kind, subtype) = essence.split_once('/')?;
    let valid = |name: &str| {
        let mut bytes = name.bytes();
        name.len() <= 127
            && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    (valid(kind) && valid(subtype)).then(|| essence.to_ascii_lowercase())
}

/// Decides content type and extension from the bytes, the client's declaration and the client's file name, in this order.
///
/// The head of a WebM, MP4 or Ogg file often does not tell whether there is video in it, while the recorder that declared
/// `audio/webm` knew. So a declared audio or video type of the *same container* stands; one of another container does not.
pub fn decide(sniffed: Option<Sniffed>, declared: Option<&str>, client_filename: Option<&str>) -> MediaGuess {
    let declared = declared.and_then(content_type_essence).filter(|essence| {
        !matches!(
            essence.as_str(),
            "application/octet-stream" | "binary/octet-stream" | "application/unknown"
        )
    });
    if let Some(sniffed) = sniffed {
        let same = declared.filter(|essence| !essence.starts_with("application/")).and_then(|essence| {
            let known = TYPES.iter().find(|(known, ..)| *known == essence);
            known.filter(|(_, container, _)| {
                *container == sniffed.container && *container != Container::OtherMedia
            })
        });
        let (content_type, ext) = match same {
            Some((content_type, _, ext)) => (*content_type, *ext),
            None => (sniffed.content_type, sniffed.ext),
        };
        return MediaGuess { content_type: content_type.to_owned(), ext: ext.to_owned() };
    }
    let client_ext = client_filename.and_then(extension);
    let content_type = declared
        .or_else(|| client_ext.as_deref().and_then(type_for_ext).map(str::to_owned))
        .unwrap_or_else(|| "application/octet-stream".to_owned());
    let ext = client_ext.unwrap_or_else(|| ext_for(&content_type).unwrap_or("bin").to_owned());
    MediaGuess { content_type, ext }
}

/// What stands behind the last dot of a client's file name, in lower case, if it is 1 to 10 of `a-z 0-9`.
fn extension(filename: &str) -> Option<String> {
    let (_, ext) = filename.rsplit_once('.')?;
    let ext = ext.to_ascii_lowercase();
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    ((1..=10).contains(&ext.len()) && ext.bytes().all(allowed)).then_some(ext)
}

/// Which content types may be stored: `audio/*`, `video/webm`, `*/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeRules(Vec<TypeRule>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum TypeRule {
    Any,
    /// `audio/` of `audio/*`.
    Prefix(String),
    Exact(String),
}

/// A rule that is neither a content type nor a wildcard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Write the allowed type {0:?} as type/subtype, type/* or */*.")]
pub struct InvalidTypeRule(pub String);

impl TypeRules {
    /// Reads the rules of a setting; an empty list allows nothing.
    pub fn parse(rules: &[String]) -> Result<Self, InvalidTypeRule> {
        let parse_one = |rule: &String| {
            let trimmed = rule.trim();
            let parsed = match trimmed.strip_suffix("/*") {
                Some("*") => Some(TypeRule::Any),
                Some(kind) => {
                    let probe = content_type_essence(&format!("{kind}/x"));
                    probe.filter(|_| !kind.contains(['/', ';'])).map(|mut prefix| {
                        prefix.pop();
                        TypeRule::Prefix(prefix)
                    })
                }
                None if trimmed.contains(';') => None,
                None => content_type_essence(trimmed).map(TypeRule::Exact),
            };
            parsed.ok_or_else(|| InvalidTypeRule(rule.clone()))
        };
        rules.iter().map(parse_one).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a content type may be stored, whatever its parameters and case. What is no content type may not.
    pub fn allows(&self, content_type: &str) -> bool {
        let Some(essence) = content_type_essence(content_type) else { return false };
        self.0.iter().any(|rule| match rule {
            TypeRule::Any => true,
            TypeRule::Prefix(prefix) => essence.starts_with(prefix),
            TypeRule::Exact(exact) => essence == *exact,
        })
    }
}
