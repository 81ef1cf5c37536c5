//! The cloud's settings: where it is, the key, and how patient to be with it.
//!
//! Apart from the other sections because addresses and keys have rules of their own. Never a request in here.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::Url;

use super::reader::Reader;
use super::sections::web_address;
use super::value::SHORTEST;
use super::{Secret, Source};

/// The longest pause of the breaker; `breaker_pause` doubles up to it.
pub const BREAKER_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Section `supabase`. `url` and `key` are both there or both absent.
#[derive(Debug, Clone, PartialEq)]
pub struct SupabaseConfig {
    /// Project address as given; [`SupabaseConfig::storage_base`] is what requests start with.
    pub url: Option<Url>,
    /// The key requests are sent with.
    pub key: Option<Secret>,
    /// Bucket that recordings go to.
    pub bucket: String,
    /// Make the bucket at start when it does not exist.
    pub create_bucket: bool,
    /// A bucket made by `create_bucket` is public.
    pub public: bool,
    /// How long an upload may wait for the cloud after its last byte.
    pub patience: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a connection may go without moving a byte.
    pub idle_timeout: Duration,
    /// How long a listing or a question about one object may take.
    pub list_timeout: Duration,
    /// Failures in a row that open the breaker.
    pub breaker_failures: u32,
    /// Its first pause; doubles up to [`BREAKER_PAUSE_MAX`].
    pub breaker_pause: Duration,
    /// Size in bytes from which a recording that is synced goes up by the resumable endpoint.
    pub resumable_from: u64,
    /// How long a signed URL stays valid.
    pub signed_url_ttl: Duration,
}

impl SupabaseConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        Self {
            url: r.optional("supabase.url", project_address),
            key: r.optional("supabase.key", service_key),
            bucket: r.text("supabase.bucket", bucket_name),
            create_bucket: r.switch("supabase.create_bucket"),
            public: r.switch("supabase.public"),
            patience: r.duration("supabase.patience"),
            connect_timeout: r.some_duration("supabase.connect_timeout"),
            idle_timeout: r.some_duration("supabase.idle_timeout"),
            list_timeout: r.some_duration("supabase.list_timeout"),
            breaker_failures: r.whole("supabase.breaker_failures", 1..=1000),
            breaker_pause: r.duration_within("supabase.breaker_pause", SHORTEST..=BREAKER_PAUSE_MAX),
            resumable_from: r.size("supabase.resumable_from", 1),
            signed_url_ttl: r
                .duration_within("supabase.signed_url_ttl", Duration::from_secs(1)..=Duration::MAX),
        }
    }

    /// The address of the storage interface, like `https://abc.supabase.co/storage/v1`, without a slash at its end.
    /// `None` when there is no cloud.
    pub fn storage_base(&self) -> Option<Url> {
        let mut base = self.url.clone()?;
        let path = base.path().trim_end_matches('/');
        let path = if path.ends_with("/storage/v1") { path.to_owned() } else { format!("{path}/storage/v1") };
        base.set_path(&path);
        Some(base)
    }
}

fn project_address(text: &str) -> Result<Url, String> {
    let url = web_address(text)?;
    if url.path().starts_with("/dashboard/") {
        return Err("is the dashboard's address; the project's is under Project Settings > API".into());
    }
    Ok(url)
}

fn service_key(text: &str) -> Result<Secret, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(Secret::new(text))
    } else {
        Err("has characters that no key has (spaces, line breaks, accents); copy it again".into())
    }
}

fn bucket_name(name: String) -> Result<String, String> {
    if name.is_empty() || name.chars().count() > 100 {
        Err("must have 1 to 100 characters".into())
    } else if name.chars().any(|c| c == '/' || c.is_control()) {
        Err("must be the bucket's name alone, without slashes".into())
    } else {
        Ok(name)
    }
}

/// Why a key will probably not do, if it is the public one that belongs into web pages.
pub(super) fn public_key_warning(key: &Secret, source: &Source) -> Option<String> {
    let named = match source {
        Source::DotEnv(name) | Source::Environment(name) => name.ends_with("ANON_KEY"),
        _ => false,
    };
    let public =
        named || key.expose().starts_with("sb_publishable_") || jwt_role(key).as_deref() == Some("anon");
    public.then(|| {
        format!(
            "supabase.key ({source}) is a public (anon) key: the bucket's policies decide what it may do, and \
             without policies every upload is refused and kept locally. Set SUPABASE_SERVICE_ROLE_KEY to the \
             service role key."
        )
    })
}

/// The `role` claim of a JSON web token; the signature is the server's business.
fn jwt_role(key: &Secret) -> Option<String> {
    let payload = key.expose().split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims.get("role")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_storage_base_is_the_same_however_the_address_is_written() {
        for (given, base) in [
            ("https://abc.supabase.co", "https://abc.supabase.co/storage/v1"),
            ("https://abc.supabase.co/", "https://abc.supabase.co/storage/v1"),
            ("https://abc.supabase.co/storage/v1", "https://abc.supabase.co/storage/v1"),
            ("https://abc.supabase.co/storage/v1/", "https://abc.supabase.co/storage/v1"),
            ("http://127.0.0.1:54321", "http://127.0.0.1:54321/storage/v1"),
            ("https://example.org/supabase/", "https://example.org/supabase/storage/v1"),
        ] {
            let mut config = Config::default().supabase;
            config.url = Some(project_address(given).unwrap());
            assert_eq!(config.storage_base().unwrap().as_str(), base, "{given}");
        }
        assert_eq!(Config::default().supabase.storage_base(), None);
    }

    #[test]
    fn addresses_that_cannot_be_the_project() {
        for bad in [
            "abc.supabase.co",
            "ftp://abc",
            "postgres://u:p@h/db",
            "https://user:pw@abc",
            "https://a/?x=1",
            "https://",
        ] {
            assert!(project_address(bad).is_err(), "{bad}");
        }
        assert!(
            project_address("https://supabase.com/dashboard/project/abc").unwrap_err().contains("dashboard")
        );
    }

    #[test]
    fn the_public_key_is_recognised() {
        let plain = Source::Environment("SUPABASE_SERVICE_ROLE_KEY".into());
        let jwt = |claims: &str| Secret::new(format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims)));
        assert!(public_key_warning(&jwt(r#"{"role":"anon"}"#), &plain).is_some());
        assert!(public_key_warning(&Secret::new("sb_publishable_abc"), &plain).is_some());
        assert!(public_key_warning(&jwt(r#"{"role":"service_role"}"#), &plain).is_none());
        assert!(public_key_warning(&Secret::new("sb_secret_abc"), &plain).is_none());
        let named = Source::DotEnv("NEXT_PUBLIC_SUPABASE_ANON_KEY".into());
        assert!(public_key_warning(&Secret::new("sb_secret_abc"), &named).is_some());
    }
}
