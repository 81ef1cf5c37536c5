//! What a form says about itself: the boundary in the request's content type and the headers of each part.
//!
//! Apart from the reader because these are pure rules over a few bytes, with the tolerance that real clients need. Nothing
//! here may touch part data, and a client's file name stays data: it never becomes a path here.

use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode;

use super::FormError;

/// What the headers of one part say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartHead {
    /// The field's name; may be empty, some clients send that.
    pub name: String,
    /// The client's name for the file, decoded, otherwise as it came: data, never a path. Broken UTF-8 is replaced.
    pub filename: Option<String>,
    /// The declared content type as it came, parameters included; `None` also if it is not plain ASCII.
    pub content_type: Option<String>,
    /// All headers of the part.
    pub headers: HeaderMap,
}

impl PartHead {
    pub(super) fn parse(headers: HeaderMap) -> Result<Self, FormError> {
        let mut dispositions = headers.get_all(CONTENT_DISPOSITION).iter();
        let disposition = dispositions.next().ok_or(FormError::DispositionMissing)?;
        if dispositions.next().is_some() {
            return Err(FormError::DispositionMissing);
        }
        // RFC 7578 section 4.7 retired it; storing base64 as if it were the recording would be a silent loss.
        if let Some(encoding) = headers.get("content-transfer-encoding") {
            let identity = ["7bit", "8bit", "binary"];
            if !identity.iter().any(|known| encoding.as_bytes().eq_ignore_ascii_case(known.as_bytes())) {
                return Err(FormError::TransferEncoded);
            }
        }
        let (kind, params) =
            value_with_params(disposition.as_bytes()).ok_or(FormError::MalformedDisposition)?;
        if !kind.eq_ignore_ascii_case(b"form-data") {
            return Err(FormError::MalformedDisposition);
        }
        let find = |wanted: &str| params.iter().find(|(key, _)| key == wanted).map(|(_, value)| value);
        let name = find("name").ok_or(FormError::DispositionMissing)?;
        let name = String::from_utf8(browser_unescaped(name)).map_err(|_| FormError::NameNotUtf8)?;
        // RFC 7578 section 4.2 forbids `filename*` in forms, some clients send it all the same.
        let filename = find("filename*").and_then(|value| extended_value(value)).or_else(|| {
            find("filename").map(|value| String::from_utf8_lossy(&browser_unescaped(value)).into_owned())
        });
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Self { name, filename, content_type, headers })
    }
}

/// The boundary that a request's `Content-Type` names, which must be `multipart/form-data`.
///
/// A token or a quoted string of 1 to 70 `bchars`, not ending in a space (RFC 2046 section 5.1.1).
pub fn boundary(content_type: &str) -> Result<String, FormError> {
    let kind = content_type.split(';').next().unwrap_or_default().trim_matches([' ', '\t']);
    if !kind.eq_ignore_ascii_case("multipart/form-data") {
        return Err(FormError::NotAForm);
    }
    let (_, params) = value_with_params(content_type.as_bytes()).ok_or(FormError::BoundaryInvalid)?;
    let found = params.into_iter().find(|(key, _)| key == "boundary");
    let (_, value) = found.ok_or(FormError::BoundaryMissing)?;
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
    if !(1..=70).contains(&value.len()) || !value.iter().all(allowed) || value.ends_with(b" ") {
        return Err(FormError::BoundaryInvalid);
    }
    String::from_utf8(value).map_err(|_| FormError::BoundaryInvalid)
}

/// One header line with its line end, taken apart.
pub(super) fn header_line(line: &[u8]) -> Result<(HeaderName, HeaderValue), FormError> {
    let line = line.strip_suffix(b"\r\n").ok_or(FormError::MalformedHeader)?;
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(FormError::FoldedHeader);
    }
    let colon = memchr::memchr(b':', line).ok_or(FormError::MalformedHeader)?;
    let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| FormError::MalformedHeader)?;
    let value = trim(&line[colon + 1..]);
    let value = HeaderValue::from_bytes(value).map_err(|_| FormError::MalformedHeader)?;
    Ok((name, value))
}

type Params = Vec<(String, Vec<u8>)>;

/// `value; key=token; key="quoted"`: the value and the parameters with lower-case keys. `None` if it is malformed or a
/// parameter comes twice, since two readers could then choose differently.
fn value_with_params(input: &[u8]) -> Option<(&[u8], Params)> {
    let end = memchr::memchr(b';', input).unwrap_or(input.len());
    let (value, mut rest) = (trim(&input[..end]), &input[end..]);
    let mut params = Params::new();
    while let Some(after) = rest.strip_prefix(b";") {
        rest = trim_start(after);
        if rest.is_empty() || rest.starts_with(b";") {
            continue;
        }
        let equals = memchr::memchr(b'=', rest)?;
        let key = std::str::from_utf8(&rest[..equals]).ok().filter(|key| is_token(key.as_bytes()))?;
        let key = key.to_ascii_lowercase();
        rest = &rest[equals + 1..];
        let param = match rest.strip_prefix(b"\"") {
            Some(quoted) => {
                let (param, used) = quoted_string(quoted)?;
                rest = &quoted[used..];
                param
            }
            None => {
                let end = rest.iter().position(|byte| matches!(byte, b';' | b' ' | b'\t'));
                let (param, after) = rest.split_at(end.unwrap_or(rest.len()));
                // No token, but sent all the same: raw UTF-8 in unquoted file names, any character in `filename*`.
                let lenient = |byte: u8| byte >= 0x80 || (key.ends_with('*') && byte.is_ascii_graphic());
                if param.is_empty() || !param.iter().all(|&byte| is_token(&[byte]) || lenient(byte)) {
                    return None;
                }
                rest = after;
                param.to_vec()
            }
        };
        if params.iter().any(|(known, _)| *known == key) {
            return None;
        }
        params.push((key, param));
        rest = trim_start(rest);
    }
    rest.is_empty().then_some((value, params))
}

/// What stands between the quotes, and how many bytes it took with the closing one.
///
/// curl before 7.81 escapes `"` and `\` with a backslash; browsers send backslashes as they are. So a backslash escapes only
/// these two, and one before the last quote of the header is a character of its own: the name ended in it.
fn quoted_string(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut value = Vec::new();
    let mut at = 0;
    loop {
        match (input.get(at)?, input.get(at + 1)) {
            (b'"', _) => return Some((value, at + 1)),
            (b'\\', Some(b'"')) if trim(&input[at + 2..]).is_empty() => {
                value.push(b'\\');
                return Some((value, at + 2));
            }
            (b'\\', Some(&escaped @ (b'"' | b'\\'))) => {
                value.push(escaped);
                at += 2;
            }
            (&byte, _) => {
                value.push(byte);
                at += 1;
            }
        }
    }
}

/// Undoes what browsers do to names in forms: `%22`, `%0D` and `%0A` only (WHATWG HTML, multipart/form-data encoding).
fn browser_unescaped(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match rest.get(..3) {
            Some(b"%22") => Some(b'"'),
            Some(b"%0D" | b"%0d") => Some(b'\r'),
            Some(b"%0A" | b"%0a") => Some(b'\n'),
            _ => None,
        };
        out.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &rest[3..] } else { after };
    }
    out
}

/// The text of an `ext-value` (RFC 8187 section 3.2.1) in UTF-8 or ISO 8859-1; `None` if it is not valid or has a NUL.
fn extended_value(value: &[u8]) -> Option<String> {
    let mut fields = value.splitn(3, |&byte| byte == b'\'');
    let (charset, _language, encoded) = (fields.next()?, fields.next()?, fields.next()?);
    let attr_char = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte);
    let mut at = 0;
    while let Some(&byte) = encoded.get(at) {
        let escape = byte == b'%'
            && encoded.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        match (escape, attr_char(byte)) {
            (true, _) => at += 3,
            (false, true) => at += 1,
            (false, false) => return None,
        }
    }
    let decoded = percent_decode(encoded);
    let text = if charset.eq_ignore_ascii_case(b"utf-8") {
        decoded.decode_utf8().ok()?.into_owned()
    } else if charset.eq_ignore_ascii_case(b"iso-8859-1") {
        decoded.map(char::from).collect()
    } else {
        return None;
    };
    (!text.contains('\0')).then_some(text)
}

fn is_token(bytes: &[u8]) -> bool {
    let tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(tchar)
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(bytes.len());
    &bytes[start..]
}

fn trim(bytes: &[u8]) -> &[u8] {
    let bytes = trim_start(bytes);
    let end = bytes.iter().rposition(|byte| !matches!(byte, b' ' | b'\t')).map_or(0, |last| last + 1);
    &bytes[..end]
}
