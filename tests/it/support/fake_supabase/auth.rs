//! Who asks: HS256 tokens made and checked, roles and what policies let them do.
//!
//! Apart because both the REST routes and the signed URLs check tokens. Nothing about HTTP answers beyond the
//! refusal for a bad token may be here.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::refusal::{Refusal, access_denied, database};

const SECRET: &[u8] = b"the shared secret of the fake project, at least 32 characters";

/// The bearer of a token.
#[derive(Clone, Debug)]
pub struct Who {
    pub role: String,
    /// The `sub` claim, kept as `owner_id` of what this bearer uploads.
    pub subject: Option<String>,
}

impl Who {
    pub fn nobody() -> Self {
        Who { role: "anon".to_owned(), subject: None }
    }

    pub fn service() -> Self {
        Who { role: "service_role".to_owned(), subject: None }
    }

    pub fn is_service(&self) -> bool {
        self.role == "service_role"
    }
}

/// What a policy may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Select,
    Insert,
    Update,
    Delete,
}

/// A row-level policy on objects: without any, only the service role may do anything but read public buckets.
#[derive(Clone, Debug)]
pub struct Policy {
    pub role: String,
    pub bucket: String,
    /// Keys it covers begin with this.
    pub key_prefix: String,
    pub rights: Vec<Right>,
}

impl Policy {
    pub fn covers(&self, who: &Who, right: Right, bucket: &str, key: &str) -> bool {
        self.role == who.role
            && self.bucket == bucket
            && key.starts_with(&self.key_prefix)
            && self.rights.contains(&right)
    }
}

/// Seconds since the epoch.
pub fn now_unix() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// A token with these claims, signed with the project's secret.
pub fn sign(claims: &Value) -> String {
    sign_with(SECRET, claims)
}

/// A token of the right form whose signature is of another secret.
pub fn sign_wrongly(claims: &Value) -> String {
    sign_with(b"another secret", claims)
}

fn sign_with(secret: &[u8], claims: &Value) -> String {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "typ": "JWT"}).to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(hmac_sha256(secret, signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// Claims for a role, ending `lifetime` seconds from now (in the past when negative).
pub fn role_claims(role: &str, subject: Option<&str>, lifetime: i64) -> Value {
    let now = now_unix();
    let mut claims =
        json!({"iss": "supabase", "role": role, "iat": now.min(now + lifetime), "exp": now + lifetime});
    if let Some(subject) = subject {
        claims["sub"] = json!(subject);
    }
    claims
}

/// The claims of a valid token, else the server's words for what is wrong with it.
pub fn verify(token: &str) -> Result<Value, &'static str> {
    const NOT_A_TOKEN: &str = "Invalid Compact JWS";
    let (signed, signature) = token.rsplit_once('.').ok_or(NOT_A_TOKEN)?;
    let (_, payload) = signed.split_once('.').filter(|(_, p)| !p.contains('.')).ok_or(NOT_A_TOKEN)?;
    let expected = URL_SAFE_NO_PAD.encode(hmac_sha256(SECRET, signed.as_bytes()));
    if expected != signature {
        return Err("signature verification failed");
    }
    let claims = URL_SAFE_NO_PAD.decode(payload).map_err(|_| NOT_A_TOKEN)?;
    let claims: Value = serde_json::from_slice(&claims).map_err(|_| NOT_A_TOKEN)?;
    if claims["exp"].as_i64().is_some_and(|exp| exp <= now_unix()) {
        return Err("\"exp\" claim timestamp check failed");
    }
    Ok(claims)
}

/// The bearer named by an Authorization header; the word Bearer may be missing or in any case.
pub fn bearer(authorization: &str) -> Result<Who, Refusal> {
    let token = match authorization.split_once(' ') {
        Some((word, token)) if word.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => authorization,
    };
    let claims = verify(token).map_err(access_denied)?;
    let role = claims["role"].as_str().unwrap_or("anon").to_owned();
    Ok(Who { role, subject: claims["sub"].as_str().map(str::to_owned) })
}

/// Refuses a role that the database does not know.
pub fn known(who: Who) -> Result<Who, Refusal> {
    match who.role.as_str() {
        "service_role" | "anon" | "authenticated" => Ok(who),
        _ => Err(database("22023")),
    }
}

/// HMAC (RFC 2104) over SHA-256, whose block is 64 bytes.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().to_vec()
}
