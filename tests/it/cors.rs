//! Pages on other origins: let in by name, kept out otherwise.

use crate::support::gateway::Gateway;
use crate::support::media::webm;

async fn preflight(gateway: &Gateway, origin: &str) -> Option<String> {
    let request = gateway.request("OPTIONS", "/recordings/upload/s").header("origin", origin);
    let request = request.header("access-control-request-method", "POST");
    let response = request.header("access-control-request-headers", "idempotency-key").send().await.unwrap();
    assert!(response.status().is_success(), "{}", response.status());
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let allowed = header("access-control-allow-origin")?;
    assert_eq!(header("access-control-allow-headers").as_deref(), Some("idempotency-key"));
    assert!(header("access-control-allow-methods").unwrap().contains("DELETE"));
    Some(allowed)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_named_origins_may_call() {
    let gateway = Gateway::start(&[("server.allowed_origins", "https://app.example.org")]).await;
    let app = "https://app.example.org";
    assert_eq!(preflight(&gateway, app).await.as_deref(), Some(app));
    assert_eq!(preflight(&gateway, "https://evil.example.org").await, None);

    gateway.upload("s", webm(1000, 1)).await;
    let answer = gateway.request("GET", "/recordings/s").header("origin", app).send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], app);
    let exposed = answer.headers()["access-control-expose-headers"].to_str().unwrap();
    assert!(exposed.contains("x-request-id"), "{exposed}");
    let problem = gateway.request("GET", "/recordings/none").header("origin", app).send().await.unwrap();
    assert_eq!(problem.headers()["access-control-allow-origin"], app, "a page can read problems too");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_may_by_default_and_everybody_if_so_said() {
    let gateway = Gateway::local().await;
    let request = gateway.request("OPTIONS", "/recordings").header("origin", "https://app.example.org");
    let response = request.header("access-control-request-method", "GET").send().await.unwrap();
    assert_eq!(response.status(), 405);
    assert!(!response.headers().contains_key("access-control-allow-origin"));
    let gateway = Gateway::start(&[("server.allowed_origins", "*")]).await;
    assert_eq!(preflight(&gateway, "https://app.example.org").await.as_deref(), Some("*"));
}
