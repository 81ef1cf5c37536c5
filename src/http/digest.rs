//! Digests in request and response headers: `Content-Digest` and `Repr-Digest` (RFC 9530).
//!
//! Apart because these headers are dictionaries of structured fields (RFC 9651) with a syntax of their own. SHA-256 is the one
//! algorithm that is computed here anyway; a digest in another one could not be checked and must not be waved through.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// RFC 9651 section 4.2.7: missing padding and stray bits at the end are no error.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why a digest header cannot be used; each message says what its sender should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestFieldError {
    /// There are digests, but none that is computed here.
    #[error("Send the digest as sha-256; no other algorithm is checked.")]
    Unsupported,
    /// It is not a dictionary of byte sequences, or the SHA-256 is not 32 bytes.
    #[error("Write the digest as sha-256=:BASE64:, with the base64 of the 32 bytes between the colons.")]
    Malformed,
}

/// The SHA-256 in the value of `Content-Digest` or `Repr-Digest`; `None` if the header names no digest at all.
///
/// Several header lines are joined with `, ` before. Digests in other algorithms beside it are passed over.
pub fn parse_sha256(header: &str) -> Result<Option<[u8; 32]>, DigestFieldError> {
    let mut rest = header.trim_matches(' ');
    let (mut sha256, mut others) = (None, false);
    while !rest.is_empty() {
        let (key, after) = key(rest).ok_or(DigestFieldError::Malformed)?;
        let value = after.strip_prefix('=').ok_or(DigestFieldError::Malformed)?;
        let (digest, after) = byte_sequence(value).ok_or(DigestFieldError::Malformed)?;
        rest = skip_params(after).ok_or(DigestFieldError::Malformed)?;
        match key {
            // The last one of a name counts (RFC 9651 section 4.2.2).
            "sha-256" => sha256 = Some(digest.try_into().map_err(|_| DigestFieldError::Malformed)?),
            _ => others = true,
        }
        rest = rest.trim_start_matches([' ', '\t']);
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').ok_or(DigestFieldError::Malformed)?.trim_start_matches([' ', '\t']);
            if rest.is_empty() {
                return Err(DigestFieldError::Malformed);
            }
        }
    }
    match (sha256, others) {
        (None, true) => Err(DigestFieldError::Unsupported),
        (sha256, _) => Ok(sha256),
    }
}

/// The value of `Repr-Digest` or `Content-Digest` for an answer.
pub fn format_sha256(digest: &[u8; 32]) -> String {
    format!("sha-256=:{}:", BASE64.encode(digest))
}

fn key(text: &str) -> Option<(&str, &str)> {
    let in_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c);
    let (key, rest) = text.split_at(text.find(|c| !in_key(c)).unwrap_or(text.len()));
    key.starts_with(|c: char| c.is_ascii_lowercase() || c == '*').then_some((key, rest))
}

fn byte_sequence(text: &str) -> Option<(Vec<u8>, &str)> {
    let (encoded, rest) = text.strip_prefix(':')?.split_once(':')?;
    Some((BASE64.decode(encoded).ok()?, rest))
}

/// Passes over `;key` and `;key=value`, which digests have no use for. Values are numbers, tokens, booleans, strings or bytes.
fn skip_params(mut text: &str) -> Option<&str> {
    while let Some(after) = text.strip_prefix(';') {
        let (_, after) = key(after.trim_start_matches(' '))?;
        text = match after.strip_prefix('=') {
            Some(value) if value.starts_with(':') => byte_sequence(value)?.1,
            Some(value) if value.starts_with('"') => string_end(&value[1..])?,
            Some(value) => {
                let in_item = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/?@".contains(c);
                let end = value.find(|c| !in_item(c)).unwrap_or(value.len());
                (end > 0).then_some(&value[end..])?
            }
            None => after,
        };
    }
    Some(text)
}

/// What follows a string whose opening quote was passed.
fn string_end(text: &str) -> Option<&str> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (escaped, c) {
            (true, '"' | '\\') => escaped = false,
            (true, _) => return None,
            (false, '\\') => escaped = true,
            (false, '"') => return Some(&text[at + 1..]),
            (false, ' '..='~') => {}
            (false, _) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9530 appendix B: the digest of `{"hello": "world"}` and a line feed.
    const HELLO: &str = "RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=";

    fn hello() -> [u8; 32] {
        BASE64.decode(HELLO).unwrap().try_into().unwrap()
    }

    #[test]
    fn sha_256_is_found_among_others() {
        let unpadded = HELLO.trim_end_matches('=');
        for header in [
            format!("sha-256=:{HELLO}:"),
            format!("  sha-256=:{unpadded}:  "),
            format!("sha-512=:YWJj:, sha-256=:{HELLO}:"),
            format!("sha-256=:{HELLO}:\t,\tunixsum=:AA==:"),
            format!("md5=:YQ==:;a;b=1.5;c=\"x\\\"y;,\";d=:YQ==:;e=?1;  f=*t/k,sha-256=:{HELLO}:;last"),
            format!("sha-256=:{}:, sha-256=:{HELLO}:", BASE64.encode([0; 32])),
        ] {
            assert_eq!(parse_sha256(&header), Ok(Some(hello())), "{header}");
        }
        assert_eq!(parse_sha256(""), Ok(None));
        assert_eq!(parse_sha256("  "), Ok(None));
    }

    #[test]
    fn what_cannot_be_checked_is_refused() {
        for header in ["sha-512=:YWJj:", "md5=:YQ==:, unixsum=:AA==:", "sha-2567=::"] {
            assert_eq!(parse_sha256(header), Err(DigestFieldError::Unsupported), "{header}");
        }
        for header in [
            HELLO.to_owned(),
            format!("sha-256={HELLO}"),
            format!("sha-256=\"{HELLO}\""),
            format!("SHA-256=:{HELLO}:"),
            format!("sha-256 =:{HELLO}:"),
            format!("sha-256=:{HELLO}"),
            format!("sha-256=:{HELLO}:,"),
            format!("sha-256=:{HELLO}: sha-512=:YWJj:"),
            format!("sha-256=:{HELLO}:;"),
            format!("sha-256=:{HELLO}:;a="),
            format!("sha-256=:{HELLO}:;a=\"open"),
            format!("sha-256=:{HELLO}:;a=\"\\x\""),
            format!("sha-256=:{HELLO}:, md5"),
            "sha-256=:YWJj:".to_owned(),
            "sha-256=::".to_owned(),
            "sha-256=:****:".to_owned(),
            "sha-256".to_owned(),
            ",".to_owned(),
            "é=:YQ==:".to_owned(),
        ] {
            assert_eq!(parse_sha256(&header), Err(DigestFieldError::Malformed), "{header}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(format_sha256(&hello()), format!("sha-256=:{HELLO}:"));
        assert_eq!(parse_sha256(&format_sha256(&[0xff; 32])), Ok(Some([0xff; 32])));
    }
}
