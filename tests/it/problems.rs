//! Every failure of every route is a problem document that names itself, and every answer carries its id and the
//! headers that keep a browser from being misled.

use crate::support::gateway::Gateway;
use crate::support::media::webm;
use crate::support::raw_client::{Answer, RawClient, bare, exchange};

const ROUTES: [(&str, &[&str]); 16] = [
    ("/", &["GET"]),
    ("/healthz", &["GET"]),
    ("/readyz", &["GET"]),
    ("/metrics", &["GET"]),
    ("/version", &["GET"]),
    ("/config.json", &["GET"]),
    ("/openapi.json", &["GET"]),
    ("/assets/page.css", &["GET"]),
    ("/recordings", &["GET"]),
    ("/recordings/upload/s", &["POST"]),
    ("/recordings/s", &["GET", "DELETE"]),
    ("/recordings/s/list", &["GET", "DELETE"]),
    ("/recordings/s/download", &["GET", "DELETE"]),
    ("/recordings/s/a.webm", &["GET", "DELETE"]),
    ("/recordings/s/a.webm/download", &["GET"]),
    ("/recordings/s/a.webm/content", &["GET"]),
];

fn assert_problem(answer: &Answer, what: &str) {
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
    let problem = answer.json();
    let text = |name: &str| {
        let value = problem[name].as_str().unwrap_or_else(|| panic!("{what}: no {name} in {problem}"));
        assert!(!value.is_empty(), "{what}: {name}");
        value.to_owned()
    };
    assert_eq!(problem["status"], answer.status, "{what}");
    assert_eq!(text("type"), format!("urn:recording-gateway:problem:{}", text("code")), "{what}");
    assert!(
        text("code").bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit()),
        "{what}"
    );
    assert!(text("detail").ends_with('.'), "{what}: a sentence: {}", text("detail"));
    text("title");
    assert_eq!(Some(text("request_id").as_str()), answer.header("x-request-id"), "{what}");
    assert_safe(answer, what);
}

fn assert_safe(answer: &Answer, what: &str) {
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{what}");
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{what}");
    let policy = answer.header("content-security-policy").unwrap_or_else(|| panic!("{what}: no policy"));
    assert!(
        policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
        "{what}: {policy}"
    );
    assert!(answer.header("x-request-id").is_some_and(|id| !id.is_empty()), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_method_is_a_problem_that_names_the_right_ones() {
    let gateway = Gateway::local().await;
    for (path, allowed) in ROUTES {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"] {
            if allowed.contains(&method) {
                continue;
            }
            let what = format!("{method} {path}");
            let request = format!("{method} {path} HTTP/1.1\r\nHost: g\r\nContent-Length: 4\r\n\r\nbody");
            let answer = exchange(&gateway.url, request).await;
            assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"), "{what}");
            assert_problem(&answer, &what);
            let mut named: Vec<_> =
                answer.header("allow").unwrap_or_default().split(',').map(str::trim).collect();
            named.retain(|name| *name != "HEAD");
            named.sort_unstable();
            let mut allowed = allowed.to_vec();
            allowed.sort_unstable();
            assert_eq!(named, allowed, "{what}");
        }
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_input_is_a_problem() {
    let gateway = Gateway::local().await;
    assert_eq!(gateway.upload("s", webm(100, 1)).await.0, 200);
    let cases = [
        ("GET", "/nowhere", 404, "route_not_found"),
        ("POST", "/nowhere", 404, "route_not_found"),
        ("GET", "/recordings/", 404, "route_not_found"),
        ("GET", "/recordings/s/", 404, "route_not_found"),
        ("GET", "/recordings/s/a/b/c", 404, "route_not_found"),
        ("GET", "//", 404, "route_not_found"),
        ("GET", "/assets/none.js", 404, "route_not_found"),
        ("GET", "/assets/..%2fpage%2fmod.rs", 404, "route_not_found"),
        ("GET", "/recordings?limit=0", 422, "limit_invalid"),
        ("GET", "/recordings?limit=1001", 422, "limit_invalid"),
        ("GET", "/recordings?limit=many", 422, "limit_invalid"),
        ("GET", "/recordings?cursor=nonsense", 422, "cursor_invalid"),
        ("GET", "/recordings/s/list?limit=-1", 422, "limit_invalid"),
        ("GET", "/recordings/s/list?cursor=%00", 422, "cursor_invalid"),
        ("GET", "/recordings/s/list?limit=%ff", 422, "limit_invalid"),
        ("GET", "/recordings?limit=1&limit=2", 400, "bad_request"),
        ("GET", "/recordings/%20", 422, "session_id_invalid"),
        ("DELETE", "/recordings/%20", 422, "session_id_invalid"),
        ("GET", "/recordings/upload", 422, "session_id_reserved"),
        ("GET", "/recordings/upload/list", 405, "method_not_allowed"),
        ("GET", "/recordings/%ff", 400, "bad_request"),
        ("GET", "/recordings/none", 404, "session_not_found"),
        ("DELETE", "/recordings/none", 404, "session_not_found"),
        ("GET", "/recordings/none/download", 404, "session_not_found"),
        ("GET", "/recordings/s/none.webm", 404, "recording_not_found"),
        ("DELETE", "/recordings/s/none.webm", 404, "recording_not_found"),
        ("GET", "/recordings/s/none.webm/download", 404, "recording_not_found"),
        ("GET", "/recordings/s/none.webm/content", 404, "recording_not_found"),
        ("GET", "/recordings/s/.hidden", 422, "filename_invalid"),
        ("DELETE", "/recordings/s/..%2fx", 422, "filename_invalid"),
        ("GET", "/recordings/s/none.webm/content?via=pigeon", 422, "via_invalid"),
    ];
    for (method, path, status, code) in cases {
        let what = format!("{method} {path}");
        let answer = exchange(&gateway.url, bare(method, path)).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}");
        assert_problem(&answer, &what);
        let request = format!("{method} {path} HTTP/1.1\r\nHost: g\r\nContent-Length: 4\r\n\r\nbody");
        assert_eq!(exchange(&gateway.url, request).await.status, status, "{what} with a body");
        if method == "GET" {
            let mut client = RawClient::connect(&gateway.url).await;
            client.send(bare("HEAD", path)).await;
            client.send(bare("GET", "/healthz")).await;
            assert_eq!(client.answer_to_head().await.status, status, "HEAD {path}");
            assert_eq!(client.answer().await.json()["status"], "ok", "HEAD {path} has no body");
        }
    }
    assert_eq!(gateway.get_json("/recordings/none/list").await["total_count"], 0, "an empty list is none");
    assert_eq!(gateway.names("s").await.len(), 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn good_answers_carry_the_safe_headers_too() {
    let gateway = Gateway::local().await;
    let (_, answer) = gateway.upload("s", webm(100, 1)).await;
    let recording = format!("/recordings/s/{}", answer["filename"].as_str().unwrap());
    let more =
        [recording.clone(), format!("{recording}/content"), format!("{recording}/download"), "/docs/".into()];
    let plain = ROUTES
        .iter()
        .map(|(path, _)| (*path).to_owned())
        .filter(|path| !path.contains("upload/s") && !path.contains("a.webm"));
    for path in plain.chain(more) {
        let answer = exchange(&gateway.url, bare("GET", &path)).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_safe(&answer, &path);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_request_id_is_kept_if_it_is_harmless() {
    let gateway = Gateway::local().await;
    let longest = "a".repeat(128);
    for id in ["abc-123", "0af7651916cd43dd:8448eb211c80319c.1_2", longest.as_str()] {
        for path in ["/healthz", "/nowhere"] {
            let answer = exchange(
                &gateway.url,
                format!("GET {path} HTTP/1.1\r\nHost: g\r\nX-Request-Id: {id}\r\n\r\n"),
            )
            .await;
            assert_eq!(answer.header("x-request-id"), Some(id), "{path}");
        }
    }
    let too_long = "a".repeat(129);
    for id in ["", "a b", "a\"b", "<script>", "a,b", "\u{fc}", "a;b", too_long.as_str()] {
        let answer =
            exchange(&gateway.url, format!("GET /nowhere HTTP/1.1\r\nHost: g\r\nX-Request-Id: {id}\r\n\r\n"))
                .await;
        let given = answer.header("x-request-id").unwrap();
        assert_eq!(given.len(), 36, "{id}: one of our own, not {given}");
        assert_problem(&answer, id);
    }
    gateway.stop().await;
}
