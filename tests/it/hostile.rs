//! Forms that are broken, endless or lie: each gets a problem that says what to do, and leaves nothing; names and types
//! that clients choose stay data.

use crate::support::fake_supabase::{DEFAULT_BUCKET, FakeSupabase};
use crate::support::gateway::Gateway;
use crate::support::media::webm;
use crate::support::raw_client::{
    Answer, BOUNDARY, FORM_TYPE, RawClient, RawForm, bare, chunked, exchange, upload, upload_head,
};
use crate::support::traces::assert_nothing_left;

/// Sends a form under a content type; a refusal may come while it is still being sent.
async fn send_form(gateway: &Gateway, content_type: &str, body: &[u8]) -> Answer {
    let mut client = RawClient::connect(&gateway.url).await;
    let head = format!(
        "POST /recordings/upload/hostile HTTP/1.1\r\nHost: gateway\r\nContent-Type: {content_type}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    client.send([head.as_bytes(), body].concat()).await;
    client.answer().await
}

/// What it is, its content type, its body, and the status and code it deserves.
type Case = (&'static str, String, Vec<u8>, (u16, &'static str));

fn with_boundary(body: &[u8], boundary: &str) -> Vec<u8> {
    String::from_utf8(body.to_vec()).unwrap().replace(BOUNDARY, boundary).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_and_endless_forms_are_refused_and_leave_nothing() {
    let gateway = Gateway::local().await;
    let file = b"some bytes";
    let good = RawForm::new().file(file).end();
    let fields =
        |n: usize, name: &str| (0..n).fold(RawForm::new(), |form, _| form.text(name, "")).file(file).end();
    let header_line = |bytes: usize| {
        format!("Content-Disposition: form-data; name=\"recording\"\r\nX-Long: {}", "a".repeat(bytes))
    };
    let header_lines = (0..200).fold(String::new(), |lines, n| format!("{lines}X-{n}: a\r\n"));
    let disposition = "Content-Disposition: form-data; name=\"recording\"";
    let with_type = |boundary: &str| format!("multipart/form-data; boundary={boundary}");
    let junk_behind = [good.clone(), vec![b'x'; 100_000]].concat();
    let lf_only = good.iter().copied().filter(|byte| *byte != b'\r').collect::<Vec<_>>();
    let invalid = (400, "form_invalid");
    let cases: Vec<Case> = vec![
        ("no form", "application/json".into(), b"{}".to_vec(), (415, "form_required")),
        ("no content type", String::new(), good.clone(), (415, "form_required")),
        (
            "a form of the other kind",
            "application/x-www-form-urlencoded".into(),
            b"a=b".to_vec(),
            (415, "form_required"),
        ),
        ("no boundary", "multipart/form-data".into(), good.clone(), invalid),
        ("an empty boundary", with_type(""), good.clone(), invalid),
        ("an empty quoted boundary", with_type("\"\""), good.clone(), invalid),
        ("a boundary of 71", with_type(&"b".repeat(71)), with_boundary(&good, &"b".repeat(71)), invalid),
        ("an odd boundary", with_type("\"a{b\""), with_boundary(&good, "a{b"), invalid),
        ("two boundaries", format!("{FORM_TYPE}; boundary=other"), good.clone(), invalid),
        ("another boundary", with_type("other"), good.clone(), invalid),
        ("an empty body", FORM_TYPE.into(), Vec::new(), invalid),
        ("no closing boundary", FORM_TYPE.into(), RawForm::new().file(file).unfinished(), invalid),
        ("junk behind the end", FORM_TYPE.into(), junk_behind, invalid),
        ("junk before the start", FORM_TYPE.into(), [vec![b'x'; 100_000], good.clone()].concat(), invalid),
        (
            "junk behind a boundary",
            FORM_TYPE.into(),
            with_boundary(&good, &format!("{BOUNDARY}junk")),
            invalid,
        ),
        ("bare line ends", FORM_TYPE.into(), lf_only, invalid),
        (
            "100,000 empty parts",
            FORM_TYPE.into(),
            format!("--{BOUNDARY}\r\n\r\n\r\n").repeat(100_000).into_bytes(),
            invalid,
        ),
        ("10,000 fields", FORM_TYPE.into(), fields(10_000, "other"), invalid),
        ("10,000 types", FORM_TYPE.into(), fields(10_000, "recording_type"), invalid),
        ("1 MB of headers", FORM_TYPE.into(), RawForm::new().part(header_line(1 << 20), file).end(), invalid),
        (
            "200 headers",
            FORM_TYPE.into(),
            RawForm::new().part(format!("{header_lines}{disposition}"), file).end(),
            invalid,
        ),
        (
            "a folded header",
            FORM_TYPE.into(),
            RawForm::new().part(format!("{disposition};\r\n filename=a"), file).end(),
            invalid,
        ),
        (
            "no disposition",
            FORM_TYPE.into(),
            RawForm::new().part("Content-Type: video/webm", file).end(),
            invalid,
        ),
        (
            "no name",
            FORM_TYPE.into(),
            RawForm::new().part("Content-Disposition: form-data", file).end(),
            invalid,
        ),
        (
            "a name that is not UTF-8",
            FORM_TYPE.into(),
            RawForm::new().part(b"Content-Disposition: form-data; name=\"\xff\"", file).end(),
            invalid,
        ),
        (
            "NUL in a file name",
            FORM_TYPE.into(),
            RawForm::new().file_as(b"a\0b.webm", "video/webm", file).end(),
            invalid,
        ),
        (
            "base64",
            FORM_TYPE.into(),
            RawForm::new().part(format!("{disposition}\r\nContent-Transfer-Encoding: base64"), "AAAA").end(),
            invalid,
        ),
        (
            "no file",
            FORM_TYPE.into(),
            RawForm::new().text("recording_type", "a").end(),
            (422, "recording_missing"),
        ),
        ("no part at all", FORM_TYPE.into(), RawForm::new().end(), (422, "recording_missing")),
        (
            "a field of another name",
            FORM_TYPE.into(),
            RawForm::new().text("file", "x").end(),
            (422, "recording_missing"),
        ),
        (
            "a field without a name",
            FORM_TYPE.into(),
            RawForm::new().text("", "x").end(),
            (422, "recording_missing"),
        ),
        ("two files", FORM_TYPE.into(), RawForm::new().file(file).file(file).end(), (400, "recording_twice")),
        ("an empty file", FORM_TYPE.into(), RawForm::new().file("").end(), (422, "recording_empty")),
        (
            "another field of 2 MB",
            FORM_TYPE.into(),
            RawForm::new().text("notes", vec![b'x'; 2 << 20]).file(file).end(),
            (413, "form_field_too_large"),
        ),
        (
            "a type of 2 MB",
            FORM_TYPE.into(),
            RawForm::new().text("recording_type", vec![b'x'; 2 << 20]).file(file).end(),
            (422, "recording_type_invalid"),
        ),
        (
            "a wrong type",
            FORM_TYPE.into(),
            RawForm::new().text("recording_type", "../up").file(file).end(),
            (422, "recording_type_invalid"),
        ),
        (
            "a wrong type behind the file",
            FORM_TYPE.into(),
            RawForm::new().file(webm(2_000_000, 1)).text("recording_type", "A B").end(),
            (422, "recording_type_invalid"),
        ),
        (
            "a type that is not UTF-8",
            FORM_TYPE.into(),
            RawForm::new().text("recording_type", b"\xff").file(file).end(),
            (422, "recording_type_invalid"),
        ),
    ];
    for (what, content_type, body, expected) in &cases {
        let answer = send_form(&gateway, content_type, body).await;
        assert_eq!((answer.status, answer.code().as_str()), *expected, "{what}: {:?}", answer.json());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
    }
    assert_nothing_left(&gateway, None).await;

    let kinds = [
        ("recording_type", "x".repeat(32)),
        ("recording_type", String::new()),
        ("notes", "a".repeat(1 << 20)),
    ];
    let oddities = [
        ("a boundary of 70", with_type(&"b".repeat(70)), with_boundary(&good, &"b".repeat(70))),
        ("a quoted boundary", with_type("\"a (b)?\""), with_boundary(&good, "a (b)?")),
        (
            "a short preamble and epilogue",
            FORM_TYPE.into(),
            [b"hello\r\n".to_vec(), good.clone(), b"bye".to_vec()].concat(),
        ),
        ("no line end behind the end", FORM_TYPE.into(), good[..good.len() - 2].to_vec()),
        (
            "a boundary in the data",
            FORM_TYPE.into(),
            RawForm::new().file(format!("\r\n--{}\r\n--", &BOUNDARY[..20])).end(),
        ),
    ];
    let oddities = oddities.into_iter().chain(kinds.map(|(name, value)| {
        ("a field", FORM_TYPE.to_owned(), RawForm::new().text(name, value).file(file).end())
    }));
    for (what, content_type, body) in oddities {
        let answer = send_form(&gateway, &content_type, &body).await;
        assert_eq!(answer.status, 200, "{what}: {:?}", answer.json());
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encoded_bodies_are_not_decoded() {
    let gateway = Gateway::local().await;
    let body = RawForm::new().file(webm(1000, 1)).end();
    for encoding in ["gzip", "br", "deflate, gzip", "GZIP"] {
        let head =
            upload_head("s", &format!("Content-Encoding: {encoding}\r\nContent-Length: {}\r\n", body.len()));
        let answer = exchange(&gateway.url, [head.as_bytes(), &body].concat()).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (415, "content_encoding_unsupported"),
            "{encoding}"
        );
    }
    assert_nothing_left(&gateway, None).await;
    gateway.stop().await;
}

/// What a client calls its file, as written between the quotes of the header, and what is kept of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_file_name_is_data_and_never_a_path() {
    let cloud = FakeSupabase::start().await;
    let long = format!("{}.webm", "x".repeat(4995));
    let longest = format!("{}.webm", "x".repeat(15_000));
    let names: Vec<(&[u8], Option<&str>)> = vec![
        (b"", None),
        (b".", Some(".")),
        (b"..", Some("..")),
        (b"....", Some("....")),
        (b"../../etc/passwd", Some("../../etc/passwd")),
        (b"..\\..\\boot.ini", Some("..\\..\\boot.ini")),
        (b"%2e%2e%2f%2e%2e%2fup.webm", Some("%2e%2e%2f%2e%2e%2fup.webm")),
        (b"%252e%252e%252fup", Some("%252e%252e%252fup")),
        (b"/etc/cron.d/evil", Some("/etc/cron.d/evil")),
        (b"C:\\fakepath\\a.webm", Some("C:\\fakepath\\a.webm")),
        (b"a/b:c*d?.webm", Some("a/b:c*d?.webm")),
        (b"CON", Some("CON")),
        (b"trailing. ", Some("trailing. ")),
        (b"line%0D%0Abreak.webm", Some("line\r\nbreak.webm")),
        (b"quote%22s.webm", Some("quote\"s.webm")),
        ("evil\u{202e}mbew.exe".as_bytes(), Some("evil\u{202e}mbew.exe")),
        ("Gespräch März 🎤.webm".as_bytes(), Some("Gespräch März 🎤.webm")),
        ("Gespra\u{308}ch.webm".as_bytes(), Some("Gespra\u{308}ch.webm")),
        (b"broken\xff\xfe.webm", Some("broken\u{fffd}\u{fffd}.webm")),
        (b"<script>alert(1)</script>.webm", Some("<script>alert(1)</script>.webm")),
        (b"session_recording.webm.html", Some("session_recording.webm.html")),
        (b"no extension", Some("no extension")),
        (b"a.webm\"; filename*=UTF-8''b%2F..%2Fc.webm; x=\"", Some("b/../c.webm")),
        (b"a.webm\"; filename*=UTF-8''nul%00.webm; x=\"", Some("a.webm")),
        (long.as_bytes(), Some(long.as_str())),
        (longest.as_bytes(), Some(longest.as_str())),
    ];
    for gateway in [Gateway::local().await, Gateway::with_cloud(&cloud).await] {
        let has_cloud = gateway.services.stores.has_primary();
        for (name, kept) in &names {
            let shown = String::from_utf8_lossy(&name[..name.len().min(60)]).into_owned();
            let bytes = webm(500, 3);
            let body = RawForm::new().file_as(name, "video/webm", &bytes).end();
            let answer = exchange(&gateway.url, upload("names", &body)).await;
            assert_eq!(answer.status, 200, "{shown}: {:?}", answer.json());
            let answer = answer.json();
            assert_eq!(answer["original_filename"].as_str(), *kept, "{shown}");
            let stored = answer["filename"].as_str().unwrap();
            assert!(stored.starts_with("session_recording_names_") && stored.ends_with(".webm"), "{stored}");
            assert!(stored.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{stored}");
            assert_eq!(
                answer["storage_type"],
                if has_cloud { "supabase" } else { "local" },
                "{shown}: {answer}"
            );
            let info = gateway.get_json(&format!("/recordings/names/{stored}")).await;
            assert_eq!(info["original_filename"].as_str(), *kept, "{shown}");
            assert_eq!(gateway.bytes(&format!("names/{stored}")).await, bytes);
        }
        if has_cloud {
            assert_eq!(cloud.keys(DEFAULT_BUCKET).len(), names.len());
        } else {
            let files = std::fs::read_dir(gateway.recordings_dir().join("names")).unwrap();
            assert_eq!(files.count(), names.len(), "every file is in the session's directory");
        }
        let dir = gateway.stop().await;
        let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(entries.collect::<Vec<_>>(), ["recordings"], "nothing was written beside it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_ids_are_names_and_never_paths() {
    let gateway = Gateway::local().await;
    let body = RawForm::new().file(webm(100, 1)).end();
    let (longest, too_long) = ("x".repeat(128), "x".repeat(129));
    let bad = [
        "a%2Fb",
        "..%2f..%2fetc",
        "%2e%2e",
        "..",
        ".hidden",
        ".spool",
        ".catalog",
        "a%00b",
        "a%0Ab",
        "*",
        "a%20b",
        "%E2%80%AE",
        "a%5Cb",
        "a%252Fb",
        "a;b",
        "a%3Fb",
        "~",
        too_long.as_str(),
    ];
    for session in bad {
        let answer = exchange(&gateway.url, upload(session, &body)).await;
        assert_eq!((answer.status, answer.code().as_str()), (422, "session_id_invalid"), "{session}");
        for path in ["", "/list", "/download", "/a.webm", "/a.webm/content"] {
            let answer = exchange(&gateway.url, bare("GET", &format!("/recordings/{session}{path}"))).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (422, "session_id_invalid"),
                "{session}{path}"
            );
        }
    }
    let answer = exchange(&gateway.url, upload("upload", &body)).await;
    assert_eq!((answer.status, answer.code().as_str()), (422, "session_id_reserved"));
    let answer = exchange(&gateway.url, upload("", &body)).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "route_not_found"));
    let answer = exchange(&gateway.url, upload("a/b", &body)).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "route_not_found"));
    let answer = exchange(&gateway.url, upload("%ff", &body)).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"));
    assert_nothing_left(&gateway, None).await;

    for session in ["Talk", "talk", "uploads", "%41", "-", "a..b", longest.as_str()] {
        let answer = exchange(&gateway.url, upload(session, &body)).await;
        assert_eq!(answer.status, 200, "{session}: {:?}", answer.json());
    }
    for session in ["Talk", "talk", "A"] {
        assert_eq!(gateway.names(session).await.len(), 1, "{session} is a session of its own");
    }
    let bad_names = ["..", "%2e%2e%2f%2e%2e%2fx", ".catalog", "a%00", "a%5cb", "a%0ab", "a%E2%80%AEb"];
    for name in bad_names {
        for path in ["", "/content", "/download"] {
            let answer = exchange(&gateway.url, bare("GET", &format!("/recordings/talk/{name}{path}"))).await;
            assert_eq!((answer.status, answer.code().as_str()), (422, "filename_invalid"), "{name}{path}");
        }
    }
    gateway.stop().await;
}

fn wav() -> Vec<u8> {
    let mut bytes =
        b"RIFF\x24\x08\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\0\x08\0\0"
            .to_vec();
    bytes.resize(2092, 7);
    bytes
}

fn ogg() -> Vec<u8> {
    let mut bytes = b"OggS\0\x02\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01\x13OpusHead\x01\x01\x38\x01\x80\xbb\0\0\0\0\0".to_vec();
    bytes.resize(500, 3);
    bytes
}

fn mp4() -> Vec<u8> {
    let mut bytes = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41\0\0\0\x08free\0\0\x01\0mdat".to_vec();
    bytes.resize(500, 9);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_recording_is_refused_whatever_it_calls_itself() {
    let gateway = Gateway::local().await;
    let padded = |head: &[u8]| [head, &vec![b' '; 5000]].concat();
    let elf = [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 3000]].concat();
    let fakes: [(&str, Vec<u8>); 9] = [
        ("html", padded(b"<!DOCTYPE html><html><script>alert(1)</script></html>")),
        ("html behind a comment", padded(b"<!-- x --><html><body>hello</body></html>")),
        ("svg", padded(b"<svg xmlns=\"http://www.w3.org/2000/svg\"><script>alert(1)</script></svg>")),
        ("xml", padded(b"<?xml version=\"1.0\"?><svg xmlns=\"http://www.w3.org/2000/svg\"/>")),
        ("pdf", padded(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3")),
        ("elf", elf),
        ("zip", padded(b"PK\x03\x04\x14\0\0\0\x08\0")),
        ("png", padded(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")),
        ("script", padded(b"#!/bin/sh\nrm -rf /\n")),
    ];
    for (what, bytes) in &fakes {
        for content_type in ["video/webm", "audio/ogg", "application/octet-stream"] {
            let body = RawForm::new().file_as("talk.webm", content_type, bytes).end();
            let answer = exchange(&gateway.url, upload("fakes", &body)).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (415, "recording_type_not_allowed"),
                "{what} as {content_type}: {:?}",
                answer.json()
            );
        }
    }
    for (name, content_type) in
        [("notes.txt", "text/plain"), ("a.html", "text/html"), ("talk", "application/octet-stream")]
    {
        let body = RawForm::new().file_as(name, content_type, "hello, this is text").end();
        let answer = exchange(&gateway.url, upload("fakes", &body)).await;
        assert_eq!((answer.status, answer.code().as_str()), (415, "recording_type_not_allowed"), "{name}");
    }
    assert_nothing_left(&gateway, None).await;

    // Declared wrongly or not at all: the bytes decide.
    let media: [(&str, &str, Vec<u8>, &str, &str); 8] = [
        ("a.webm", "audio/webm;codecs=opus", webm(700, 1), "audio/webm", "webm"),
        ("a.webm", "video/webm", webm(700, 1), "video/webm", "webm"),
        ("a.html", "text/html", webm(700, 1), "video/webm", "webm"),
        ("blob", "", mp4(), "video/mp4", "mp4"),
        ("a.webm", "video/webm", mp4(), "video/mp4", "mp4"),
        ("a.ogg", "audio/ogg", ogg(), "audio/ogg", "ogg"),
        ("a.wav", "audio/wav", wav(), "audio/wav", "wav"),
        ("a.exe", "application/x-msdownload", wav(), "audio/wav", "wav"),
    ];
    for (name, declared, bytes, content_type, ext) in &media {
        let body = RawForm::new().file_as(name, declared, bytes).end();
        let answer = exchange(&gateway.url, upload("media", &body)).await;
        assert_eq!(answer.status, 200, "{name} as {declared}: {:?}", answer.json());
        let answer = answer.json();
        assert_eq!(answer["content_type"], *content_type, "{name} as {declared}");
        assert!(answer["filename"].as_str().unwrap().ends_with(&format!(".{ext}")), "{answer}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_any_size_make_the_same_recording() {
    let gateway = Gateway::local().await;
    let file = webm(3000, 8);
    let body = RawForm::new().file(&file).text("recording_type", "scene").end();
    for size in [1, 2, 7, 57, 1024, 1 << 20] {
        let head = upload_head("frames", "Transfer-Encoding: chunked\r\n");
        let answer = exchange(&gateway.url, [head.as_bytes(), &chunked(&body, size)].concat()).await;
        assert_eq!(answer.status, 200, "{:?}", answer.json());
        assert_eq!(gateway.bytes(answer.json()["file_path"].as_str().unwrap()).await, file);
    }
    gateway.stop().await;
}
