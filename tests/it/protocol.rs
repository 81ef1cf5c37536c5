//! HTTP itself, badly spoken: smuggling, endless heads, refusals before and while a body comes, old clients.

use std::time::{Duration, Instant};

use crate::support::gateway::Gateway;
use crate::support::media::webm;
use crate::support::raw_client::{
    FORM_TYPE, RawClient, RawForm, bare, chunked, exchange, upload, upload_head,
};
use crate::support::traces::assert_nothing_left;

/// A request hidden behind another; if it is carried out, the recording it names is gone.
const HIDDEN: &str = "DELETE /recordings/victim HTTP/1.1\r\nHost: gateway\r\n\r\n";

/// What two servers in a row could read differently: refused, or read in the one way the standard allows and the
/// connection closed, so that nothing behind it is taken for a request.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_can_be_smuggled_behind_another() {
    let gateway = Gateway::local().await;
    assert_eq!(gateway.upload("victim", webm(100, 1)).await.0, 200);
    let form = RawForm::new().file(webm(300, 2)).end();
    let in_chunks = chunked(&form, 100);
    let known = format!("Content-Length: {}\r\n", form.len());
    let both_orders = [
        format!("{known}Transfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\n{known}"),
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n".to_owned(),
    ];
    // RFC 9112 section 6.3: the chunks count, the length is void, and the connection ends with the answer.
    for lines in both_orders {
        let mut client = RawClient::connect(&gateway.url).await;
        let request = [upload_head("both", &lines).as_bytes(), &in_chunks, HIDDEN.as_bytes()].concat();
        client.send(request).await;
        assert_eq!(client.answer().await.status, 200, "{lines}");
        assert_eq!(client.closed().await, b"", "{lines}: nothing behind it was answered");
    }
    let refused = [
        format!("Content-Length: {}\r\nContent-Length: {}\r\n", form.len(), form.len() + 1),
        format!("Content-Length: {0}, {0}\r\n", form.len()),
        "Transfer-Encoding: chunked, gzip\r\n".to_owned(),
        "Transfer-Encoding: gzip\r\n".to_owned(),
        "Transfer-Encoding: xchunked\r\n".to_owned(),
        format!("{known}X-Folded: a\r\n b\r\n"),
        format!("{known}Transfer-Encoding : chunked\r\n"),
        format!("{known}X\0: a\r\n"),
        format!("{known}X: a\0b\r\n"),
        format!("{known}: no name\r\n"),
    ];
    for lines in refused {
        let mut client = RawClient::connect(&gateway.url).await;
        let request = [upload_head("refused", &lines).as_bytes(), &form, HIDDEN.as_bytes()].concat();
        let _ = client.try_send(request).await;
        if let Some(answer) = client.answer_if_any().await {
            assert_eq!(answer.status, 400, "{lines}");
        }
        assert_eq!(client.closed().await, b"", "{lines}: nothing behind it was answered");
    }
    // Chunks that are none.
    let bad_chunks: [&[u8]; 6] = [
        b"zz\r\nabc\r\n0\r\n\r\n",
        b"-1\r\nabc\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcX\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    ];
    let long_extension = [b"3;".as_slice(), &vec![b'x'; 1 << 20], b"\r\nabc\r\n0\r\n\r\n"].concat();
    for chunks in bad_chunks.into_iter().chain([long_extension.as_slice()]) {
        let mut client = RawClient::connect(&gateway.url).await;
        let head = upload_head("refused", "Transfer-Encoding: chunked\r\n");
        let _ = client.try_send([head.as_bytes(), chunks, HIDDEN.as_bytes()].concat()).await;
        if let Some(answer) = client.answer_if_any().await {
            assert_eq!(answer.status, 400, "{:?}", String::from_utf8_lossy(&chunks[..chunks.len().min(30)]));
        }
        assert_eq!(client.closed().await, b"");
    }
    assert_eq!(gateway.names("victim").await.len(), 1, "no hidden request was carried out");
    assert_eq!(gateway.names("refused").await.len(), 0);
    gateway.stop().await;
}

/// A connection among many reads less at once, and nobody notices.
#[tokio::test(flavor = "multi_thread")]
async fn among_many_connections_heads_and_bodies_are_what_they_are_among_few() {
    let gateway = Gateway::local().await;
    let mut open = Vec::new();
    for _ in 0..80 {
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(bare("GET", "/healthz")).await;
        assert_eq!(client.answer().await.status, 200);
        open.push(client);
    }
    let with_head = |bytes: usize| {
        let line = format!("X-Long: {}\r\n", "a".repeat(bytes));
        format!("GET /healthz HTTP/1.1\r\nHost: g\r\n{line}\r\n")
    };
    assert_eq!(exchange(&gateway.url, with_head(60 << 10)).await.status, 200);
    let refused = exchange(&gateway.url, with_head(70 << 10)).await;
    assert_eq!((refused.status, refused.code().as_str()), (431, "headers_too_large"));
    let data = webm(3_000_001, 7);
    let stored = exchange(&gateway.url, upload("among-many", &RawForm::new().file(&data).end())).await;
    assert_eq!(stored.json()["sha256"], crate::support::media::sha256(&data));
    drop(open);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_end_is_refused() {
    let gateway = Gateway::start(&[("server.header_timeout", "400ms")]).await;
    // More than 64 KiB of it, in one line or in many.
    let one = format!("X-Long: {}\r\n", "a".repeat(1 << 20));
    let many = (0..5000).fold(String::new(), |lines, n| format!("{lines}X-{n}: {n}\r\n"));
    let just_over = format!("X-Long: {}\r\n", "a".repeat(80 << 10));
    for lines in [one, many, just_over] {
        let mut client = RawClient::connect(&gateway.url).await;
        let _ = client.try_send(format!("GET /healthz HTTP/1.1\r\nHost: g\r\n{lines}\r\n")).await;
        if let Some(answer) = client.answer_if_any().await {
            assert_eq!(answer.status, 431);
        }
        client.closed().await;
    }
    let mut client = RawClient::connect(&gateway.url).await;
    let path = "a".repeat(100 << 10);
    let _ = client.try_send(bare("GET", &format!("/{path}"))).await;
    if let Some(answer) = client.answer_if_any().await {
        assert!([404, 414, 431].contains(&answer.status), "{}", answer.status);
    }
    // Slow: a silent connection, half a head, a head that trickles.
    let started = Instant::now();
    for begin in ["", "P", "PRI * HTTP/2.0\r\n", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nHost: g\r\nX"] {
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(begin).await;
        client.closed().await;
    }
    let mut client = RawClient::connect(&gateway.url).await;
    client.send("GET /healthz HTTP/1.1\r\n").await;
    let trickled = async {
        while client.try_send("X: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), trickled).await.expect("a head that trickles is ended");
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_refused_is_refused_before_the_body_is_asked_for() {
    let gateway = Gateway::start(&[("uploads.max_bytes", "1MiB")]).await;
    let cases = [
        ("s", "Content-Type: text/plain\r\n", "100", (415, "form_required")),
        ("s", "Content-Type: multipart/form-data\r\n", "100", (400, "form_invalid")),
        ("s", FORM, "2000000", (413, "recording_too_large")),
        ("a%2Fb", FORM, "100", (422, "session_id_invalid")),
        ("upload", FORM, "100", (422, "session_id_reserved")),
        ("s", FORM_GZIP, "100", (415, "content_encoding_unsupported")),
        ("s", FORM_BAD_DIGEST, "100", (400, "digest_field_invalid")),
        ("s", FORM_BAD_KEY, "100", (400, "idempotency_key_invalid")),
    ];
    for (session, lines, length, expected) in cases {
        let mut client = RawClient::connect(&gateway.url).await;
        client
            .send(format!(
                "POST /recordings/upload/{session} HTTP/1.1\r\nHost: g\r\n{lines}Content-Length: {length}\r\n\
                 Expect: 100-continue\r\n\r\n"
            ))
            .await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), expected);
        assert!(!answer.continued, "{expected:?}: the body was asked for");
        assert_eq!(client.closed().await, b"", "{expected:?}: nor is it asked for afterwards");
    }
    for (method, path, status) in
        [("POST", "/nowhere", 404), ("PUT", "/healthz", 405), ("POST", "/recordings/s/list", 405)]
    {
        let mut client = RawClient::connect(&gateway.url).await;
        client
            .send(format!(
                "{method} {path} HTTP/1.1\r\nHost: g\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            ))
            .await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.continued), (status, false), "{method} {path}");
    }
    assert_nothing_left(&gateway, None).await;
    // And what is taken is asked for.
    let body = RawForm::new().file(webm(100, 1)).end();
    let mut client = RawClient::connect(&gateway.url).await;
    client
        .send(upload_head("s", &format!("Content-Length: {}\r\nExpect: 100-continue\r\n", body.len())))
        .await;
    client.send(&body).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.continued), (200, true));
    gateway.stop().await;
}

const FORM: &str = "Content-Type: multipart/form-data; boundary=b\r\n";
const FORM_GZIP: &str = "Content-Type: multipart/form-data; boundary=b\r\nContent-Encoding: gzip\r\n";
const FORM_BAD_DIGEST: &str =
    "Content-Type: multipart/form-data; boundary=b\r\nRepr-Digest: sha-256=:AAAA:\r\n";
const FORM_BAD_KEY: &str = "Content-Type: multipart/form-data; boundary=b\r\nIdempotency-Key: a b\r\n";

/// Browsers read the answer only when they have sent everything.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_refusal_can_be_read_after_everything_was_sent() {
    let gateway = Gateway::start(&[("uploads.max_bytes", "100KiB")]).await;
    let file = webm(20 << 20, 1);
    let html = [b"<!DOCTYPE html>".as_slice(), &file].concat();
    let cases = [
        ("s", RawForm::new().file(&file).end(), 413),
        ("s", RawForm::new().file_as("a.webm", "video/webm", &html[..90 << 10]).text("x", &file).end(), 413),
        ("upload", RawForm::new().file(&file).end(), 422),
        ("s", RawForm::new().part("nonsense", &file).end(), 413),
    ];
    for (session, body, status) in cases {
        for request in [
            upload(session, &body),
            [upload_head(session, "Transfer-Encoding: chunked\r\n").as_bytes(), &chunked(&body, 100_000)]
                .concat(),
        ] {
            let is_chunked = request.windows(7).take(400).any(|w| w == b"chunked");
            let mut client = RawClient::connect(&gateway.url).await;
            client.send(&request).await;
            let answer = client.answer().await;
            // Without a length only the bytes tell what is wrong.
            let expected = match (body.len() > file.len() + 400, body.starts_with(b"------") && is_chunked) {
                (true, true) => vec![413, 415],
                _ if is_chunked => vec![status, 400],
                _ => vec![status],
            };
            assert!(expected.contains(&answer.status), "{session} {}: {expected:?}", answer.status);
            assert!(!answer.code().is_empty());
            // The connection is in order: the next request on it is answered.
            client.send(bare("GET", "/healthz")).await;
            assert_eq!(client.answer().await.status, 200);
        }
    }
    // The same where there is nothing that would read a body.
    for (method, path, status) in [("POST", "/nowhere", 404), ("POST", "/healthz", 405), ("PUT", "/", 405)] {
        let mut client = RawClient::connect(&gateway.url).await;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n\r\n", file.len());
        client.send([head.as_bytes(), &file].concat()).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(!answer.code().is_empty());
    }
    assert_nothing_left(&gateway, None).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_clients_and_several_requests_on_a_connection() {
    let gateway = Gateway::local().await;
    let body = RawForm::new().file(webm(300, 1)).end();
    let head = format!(
        "POST /recordings/upload/old HTTP/1.0\r\nContent-Type: {FORM_TYPE}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut client = RawClient::connect(&gateway.url).await;
    client.send([head.as_bytes(), &body].concat()).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200, "{:?}", answer.json());
    client.closed().await;
    // A list is answered without chunks, which HTTP/1.0 does not know.
    let mut client = RawClient::connect(&gateway.url).await;
    client.send("GET /recordings/old/list HTTP/1.0\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.json()["total_count"], 1);
    client.closed().await;

    // One after the other, and all at once.
    let mut client = RawClient::connect(&gateway.url).await;
    for _ in 0..3 {
        client.send(upload("kept", &body)).await;
        assert_eq!(client.answer().await.status, 200);
    }
    let request = upload("kept", &body);
    client
        .send([request.as_slice(), &request, bare("GET", "/recordings/kept/list").as_bytes()].concat())
        .await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(client.answer().await.json()["total_count"], 5);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_get_without_the_body() {
    let gateway = Gateway::local().await;
    let (_, answer) = gateway.upload("s", webm(5000, 1)).await;
    let name = answer["filename"].as_str().unwrap();
    let recording = format!("/recordings/s/{name}");
    let paths = [
        "/".to_owned(),
        "/healthz".into(),
        "/readyz".into(),
        "/metrics".into(),
        "/version".into(),
        "/config.json".into(),
        "/openapi.json".into(),
        "/docs/".into(),
        "/assets/page.css".into(),
        "/recordings".into(),
        "/recordings/s".into(),
        "/recordings/s/list".into(),
        "/recordings/s/download".into(),
        recording.clone(),
        format!("{recording}/download"),
        format!("{recording}/content"),
        // Refusals too.
        "/nowhere".into(),
        "/recordings/none".into(),
        "/recordings/s/none.webm/content".into(),
        "/recordings/%20".into(),
    ];
    for path in &paths {
        let get = exchange(&gateway.url, bare("GET", path)).await;
        let mut client = RawClient::connect(&gateway.url).await;
        client.send(bare("HEAD", path)).await;
        let head = client.answer_to_head().await;
        assert_eq!(head.status, get.status, "{path}");
        for name in [
            "content-type",
            "etag",
            "last-modified",
            "accept-ranges",
            "content-disposition",
            "content-security-policy",
        ] {
            assert_eq!(head.header(name), get.header(name), "{path}: {name}");
        }
        // These figures differ from one request to the next.
        if !["/metrics", "/readyz"].contains(&path.as_str()) && get.status < 400 {
            assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        }
        // No body came: the next answer on this connection is read where it begins.
        client.send(bare("GET", "/version")).await;
        assert_eq!(client.answer().await.json()["name"], "recording-gateway", "{path}");
    }
    gateway.stop().await;
}
