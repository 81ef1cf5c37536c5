//! Turns the recordings' words for request bodies ("raw 16 bytes", a list of parts) back into bytes.
//!
//! Apart because it knows only the recordings' language. The contents are those whose MD5 the recordings show.

use serde_json::Value;

/// A body as it goes on the wire.
#[derive(Clone, Debug)]
pub enum Body {
    None,
    /// With Content-Length.
    Plain(Vec<u8>),
    Chunked(Vec<u8>),
    /// Content-Length says so much, so much is sent, then the connection is closed; `None` is chunked.
    Cut(Option<u64>, Vec<u8>),
    /// Content-Length says so much, nothing is sent, the answer is awaited.
    Withheld,
}

const BOUNDARY: &str = "----storageclientboundary7MA4YWxk";
/// The Content-Type of every form here.
pub const FORM_TYPE: &str = "multipart/form-data; boundary=----storageclientboundary7MA4YWxk";
const FILE: &[u8] = b"hello webm bytes";

/// The bytes behind "raw N bytes" where a test looks at them later; other sizes are filled with x.
fn raw(size: usize) -> Vec<u8> {
    match size {
        8 => b"key test".to_vec(),
        10 => b"0123456789".to_vec(),
        14 => b"js-client-data".to_vec(),
        16 => FILE.to_vec(),
        4 => b"0123".to_vec(),
        5 => b"01234".to_vec(),
        6 => b"456789".to_vec(),
        2 => b"xy".to_vec(),
        size => vec![b'x'; size],
    }
}

fn first_number(text: &str) -> Option<usize> {
    text.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
}

/// The body of a case.
pub fn body(case: &str, words: &Value) -> Body {
    if let Some(json) = words.get("json") {
        return Body::Plain(json.to_string().into_bytes());
    }
    if let Some(parts) = words.get("multipart") {
        return Body::Plain(multipart(parts.as_array().expect("a list of parts")));
    }
    match case {
        "finish the second" => return Body::Plain(b"BBBBBBBBBB".to_vec()),
        "PATCH that also declares Upload-Length" => return Body::Plain(b"567".to_vec()),
        "PATCH of that upload with x-upsert" => return Body::Plain(b"new".to_vec()),
        "move onto an existing key with x-upsert" => {
            let way = r#"{"bucketId":"private-recordings","sourceKey":"mv/b.webm","destinationKey":"mv/taken.webm"}"#;
            return Body::Plain(way.as_bytes().to_vec());
        }
        "upload raw, chunked transfer encoding" => return Body::Chunked(vec![b'a'; 10_000]),
        _ => {}
    }
    match words.as_str().expect("words") {
        "none" => Body::None,
        "raw, Content-Length: 0" => Body::Plain(Vec::new()),
        "raw JSON bytes" => Body::Plain(b"{\"a\": 1}".to_vec()),
        "raw" => Body::Plain(b"a=1&b=2".to_vec()),
        "malformed JSON" => Body::Plain(b"{\"name\": ".to_vec()),
        "JSON text sent as text/plain" => Body::Plain(b"{\"name\": \"text\"}".to_vec()),
        "JSON with 1001 paths" => Body::Plain(numbered("paths", 1001, r#", "expiresIn": 60"#)),
        "JSON with 1250 prefixes" => Body::Plain(numbered("prefixes", 1250, "")),
        "JSON of about 1.1 MB" => Body::Plain(numbered("prefixes", 48_000, "")),
        "Content-Length: 600000000, body withheld" => Body::Withheld,
        "multipart body, header lacks boundary" => Body::Plain(multipart(&["file part".into()])),
        "multipart, truncated in the first part header" => {
            Body::Plain(format!("--{BOUNDARY}\r\nContent-Disposition: form-da").into_bytes())
        }
        "multipart, truncated inside file data but Content-Length consistent" => {
            let mut whole = multipart(&["file part of 5000 bytes".into()]);
            whole.truncate(3000);
            Body::Plain(whole)
        }
        "multipart of 8 MB, connection closed after 3 MB" => {
            let mut whole = multipart(&["file part of 8000000 bytes".into()]);
            let length = whole.len() as u64;
            whole.truncate(3_000_000);
            Body::Cut(Some(length), whole)
        }
        "chunked, 3 MB then connection closed without the 0-chunk" => Body::Cut(None, vec![b'x'; 3_000_000]),
        _ if case == "mime type refused, multipart" => {
            Body::Plain(multipart(&["file part image/png".into()]))
        }
        _ if case.ends_with(", multipart") => Body::Plain(multipart(&["file part of 1500000 bytes".into()])),
        "30 MB and, separately, 1.5 MB followed by GET /status on the same connection" => {
            Body::Plain(vec![b'x'; 1_500_000])
        }
        "the rest" => Body::Plain(vec![b'x'; 2_000_000]),
        words if words.contains("closed after") => {
            let (declared, sent) = words.split_once(", ").expect("two parts");
            let declared = first_number(declared).expect("a length") as u64;
            Body::Cut(Some(declared), vec![b'x'; first_number(sent).expect("a length")])
        }
        words if words.to_lowercase().contains("chunked") => {
            Body::Chunked(raw(first_number(words).expect("a length")))
        }
        words => Body::Plain(raw(first_number(words).unwrap_or_else(|| panic!("unknown body {words}")))),
    }
}

fn numbered(name: &str, count: usize, rest: &str) -> Vec<u8> {
    let keys: Vec<String> = (0..count).map(|n| format!("\"many/obj-{n:05}.webm\"")).collect();
    format!("{{\"{name}\": [{}]{rest}}}", keys.join(",")).into_bytes()
}

fn multipart(parts: &[Value]) -> Vec<u8> {
    let mut form = Vec::new();
    for part in parts {
        let (words, value) = match part {
            Value::Array(pair) => (pair[0].as_str().unwrap_or_default(), pair[1].as_str()),
            part => (part.as_str().unwrap_or_default(), None),
        };
        form.extend_from_slice(format!("--{BOUNDARY}\r\nContent-Disposition: form-data; ").as_bytes());
        if words.starts_with("file part") {
            let kind = match words {
                words if words.contains("without Content-Type") => "",
                words if words.contains("image/png") => "Content-Type: image/png\r\n",
                _ => "Content-Type: video/webm\r\n",
            };
            form.extend_from_slice(format!("name=\"\"; filename=\"chunk.webm\"\r\n{kind}\r\n").as_bytes());
            match words {
                "file part" => form.push(b'x'),
                "file part 2" => form.extend_from_slice(b"the second file"),
                words if words.contains("14 bytes") => form.extend_from_slice(&raw(14)),
                words if words.starts_with("file part of ") => {
                    form.extend_from_slice(&vec![b'x'; first_number(words).expect("a size")]);
                }
                _ => form.extend_from_slice(FILE),
            }
        } else {
            let (name, value) = field(words, value);
            form.extend_from_slice(format!("name=\"{name}\"\r\n\r\n{value}").as_bytes());
        }
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    form
}

/// The name and value of a text field; a value not told is the one the next recording shows.
fn field(words: &str, value: Option<&str>) -> (String, String) {
    let rest = words.strip_prefix("field ").expect("a field");
    let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
    let value = match value {
        Some(value) => value.to_owned(),
        None if rest.contains("KB JSON") => format!("{{\"k\":\"{}\"}}", "x".repeat(200_000)),
        None if rest.contains("MB JSON") => format!("{{\"k\":\"{}\"}}", "x".repeat(1_200_000)),
        None => match rest.split_once(" = ") {
            Some((_, value)) => value.to_owned(),
            None if name == "metadata" => "{\"late\":1}".to_owned(),
            None if name == "contentType" => "audio/webm".to_owned(),
            None => first_number(rest).unwrap_or(3600).to_string(),
        },
    };
    (name, value)
}
