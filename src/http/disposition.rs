//! The `Content-Disposition` of downloads (RFC 6266, RFC 8187), and what a browser may show in place.
//!
//! Apart because a file name chosen by a stranger goes into a header here. Only characters that cannot end the header, the
//! quotes or the reader's trust get through; nothing here decides where a file is stored.

use std::fmt::Write;

use axum::http::HeaderValue;

/// The longest name that is sent, in characters; what follows is cut, the extension stays.
const NAME_CHARS: usize = 150;

/// Whether the browser shows the content or saves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Shown in place.
    Inline,
    /// Saved as a file.
    Attachment,
}

/// The header for a file of this name.
///
/// Old clients get an ASCII name, all others the true one by `filename*` where the two differ. Control characters, and
/// characters that turn the reading direction to disguise an extension, are dropped; slashes become `_`.
pub fn content_disposition(disposition: Disposition, filename: &str) -> HeaderValue {
    let name = presentable(filename);
    // Percent signs and backslashes in quotes are read differently from browser to browser (RFC 6266 appendix D).
    let plain = |c: char| c.is_ascii() && !matches!(c, '"' | '\\' | '%');
    let ascii: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    let kind = match disposition {
        Disposition::Inline => "inline",
        Disposition::Attachment => "attachment",
    };
    let mut header = format!("{kind}; filename=\"{ascii}\"");
    if ascii != name {
        header.push_str("; filename*=UTF-8''");
        for &byte in name.as_bytes() {
            if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
                header.push(char::from(byte));
            } else {
                write!(header, "%{byte:02X}").expect("writing to a string does not fail");
            }
        }
    }
    HeaderValue::from_str(&header).expect("only visible ASCII characters and spaces were written")
}

/// Whether content of this type may be shown in place; everything else is saved, so that it cannot run on this origin.
pub fn inline_allowed(content_type: &str) -> bool {
    const ALLOWED: [&str; 16] = [
        "audio/aac",
        "audio/flac",
        "audio/mp4",
        "audio/mpeg",
        "audio/ogg",
        "audio/wav",
        "audio/webm",
        "audio/x-flac",
        "audio/x-m4a",
        "audio/x-matroska",
        "audio/x-wav",
        "video/mp4",
        "video/ogg",
        "video/quicktime",
        "video/webm",
        "video/x-matroska",
    ];
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    ALLOWED.iter().any(|allowed| allowed.eq_ignore_ascii_case(essence))
}

fn presentable(filename: &str) -> String {
    let turns_direction = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let kept = filename.chars().filter(|c| !c.is_control() && !turns_direction(*c));
    let name: String = kept.map(|c| if matches!(c, '/' | '\\') { '_' } else { c }).collect();
    let name = name.trim_matches([' ', '.']);
    if name.is_empty() {
        return "download".to_owned();
    }
    let chars = name.chars().count();
    if chars <= NAME_CHARS {
        return name.to_owned();
    }
    let ext = name.rfind('.').map_or("", |dot| &name[dot..]);
    let ext = if ext.len() <= 11 { ext } else { "" };
    let stem = NAME_CHARS - ext.chars().count();
    name.chars().take(stem).chain(ext.chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(filename: &str) -> String {
        content_disposition(Disposition::Attachment, filename).to_str().unwrap().to_owned()
    }

    #[test]
    fn plain_names_need_one_parameter() {
        assert_eq!(attachment("talk 1.webm"), "attachment; filename=\"talk 1.webm\"");
        let inline = content_disposition(Disposition::Inline, "a;b='c'.webm");
        assert_eq!(inline, "inline; filename=\"a;b='c'.webm\"");
    }

    #[test]
    fn other_names_are_sent_twice() {
        assert_eq!(
            attachment("naïve €.webm"),
            "attachment; filename=\"na_ve _.webm\"; filename*=UTF-8''na%C3%AFve%20%E2%82%AC.webm"
        );
        assert_eq!(
            attachment("100%25 \"x\"'*().mp4"),
            "attachment; filename=\"100_25 _x_'*().mp4\"; filename*=UTF-8''100%2525%20%22x%22%27%2A%28%29.mp4"
        );
    }

    #[test]
    fn nothing_gets_out_of_the_header_or_the_folder() {
        assert_eq!(attachment("a\r\nSet-Cookie: x\0\t.webm"), "attachment; filename=\"aSet-Cookie: x.webm\"");
        assert_eq!(attachment("..\\../etc/passwd"), "attachment; filename=\"_.._etc_passwd\"");
        assert_eq!(attachment("cod\u{202e}mbew.exe"), "attachment; filename=\"codmbew.exe\"");
        for empty in ["", ".", "..", "\n", " . "] {
            assert_eq!(attachment(empty), "attachment; filename=\"download\"");
        }
    }

    #[test]
    fn long_names_keep_their_extension() {
        let header = attachment(&format!("{}.webm", "ü".repeat(5000)));
        assert!(header.len() < 1200, "{}", header.len());
        assert!(header.ends_with("%C3%BC.webm"));
        assert_eq!(attachment(&"n".repeat(5000)).len(), "attachment; filename=\"\"".len() + NAME_CHARS);
        let no_ext = attachment(&format!("a.{}", "n".repeat(5000)));
        assert_eq!(no_ext.len(), "attachment; filename=\"\"".len() + NAME_CHARS);
    }

    #[test]
    fn only_players_content_is_shown_in_place() {
        for shown in
            ["video/webm", "Audio/WebM; codecs=opus", "audio/mpeg", "video/quicktime", "video/x-matroska"]
        {
            assert!(inline_allowed(shown), "{shown}");
        }
        for saved in
            ["text/html", "image/svg+xml", "application/pdf", "video/webmx", "application/octet-stream", ""]
        {
            assert!(!inline_allowed(saved), "{saved}");
        }
    }
}
