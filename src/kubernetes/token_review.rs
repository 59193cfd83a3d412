//! Authentication of warmers: a TokenReview by the API server yields the user of a bearer token and
//! the node that the token is bound to. Independent of streams.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::request::one_line;
use imagewarm_core::image::quoted::{MESSAGE_MAX, Quoted, printable, quoted};

/// The required audience of a warmer's token.
pub const AUDIENCE: &str = "imagewarm";

/// Key in `user.extra` of a TokenReview that names the node of a pod-bound token.
const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";
/// Maximum lifetime of a cached verdict, whatever the token's own expiry.
const CACHE_LIFETIME: Duration = Duration::from_secs(300);
/// Concurrent TokenReviews, so that a thousand warmers that reconnect at once do not crowd out
/// other requests to the API server.
const IN_FLIGHT: usize = 16;
/// Maximum number of waiting and running reviews; beyond it, a warmer is rejected and retries
/// later.
const MAX_PENDING: usize = 8192;
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of the warmers' authentication.
#[derive(clap::Args, Clone, Debug)]
pub struct TokenReviewArgs {
    /// User name of the warmers' ServiceAccount. A token of any other account is rejected
    #[arg(
        long,
        env = "IMAGEWARM_WARMER_SERVICE_ACCOUNT",
        default_value = "system:serviceaccount:imagewarm-system:imagewarmer",
        value_name = "NAME"
    )]
    pub warmer_service_account: String,
}

/// A verified warmer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmerIdentity {
    /// The node that the token is bound to.
    pub node: String,
    /// When the token itself expires, if it states so.
    pub expires: Option<SystemTime>,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The call carries no token.
    #[error("no token: send the metadata `authorization: Bearer TOKEN`")]
    Missing,
    /// The token was issued for another audience.
    #[error("the token is not issued for the audience `{AUDIENCE}`")]
    WrongAudience,
    /// The API server does not accept the token.
    #[error("the token is not valid: {0}")]
    Invalid(String),
    /// The token is valid, but belongs to another account.
    #[error("the token belongs to {found}: it must belong to `{expected}`")]
    OtherAccount {
        /// User name of the token.
        found: Quoted,
        /// Required user name.
        expected: String,
    },
    /// The token is the warmer's, but is not bound to a Pod on a node.
    #[error("the token is not bound to a node: it must be one projected into the warmer's Pod")]
    NotBound,
    /// The API server did not review the token; retry.
    #[error("the API server could not review the token: {0}")]
    Unavailable(String),
}

impl TokenError {
    /// The reason, for logs and metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            TokenError::Missing => "NoToken",
            TokenError::WrongAudience => "WrongAudience",
            TokenError::Invalid(_) => "InvalidToken",
            TokenError::OtherAccount { .. } => "OtherAccount",
            TokenError::NotBound => "NotBoundToNode",
            TokenError::Unavailable(_) => "Unavailable",
        }
    }
}

/// Authenticates bearer tokens.
pub trait TokenReviewer: Send + Sync + 'static {
    /// The warmer that this bearer token (without `Bearer `) belongs to.
    fn review<'a>(
        &'a self,
        token: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<WarmerIdentity, TokenError>> + Send + 'a>>;
}

type Verdict = Result<WarmerIdentity, TokenError>;

struct Entry {
    verdict: Shared<BoxFuture<'static, Verdict>>,
    valid_until: SystemTime,
}

/// Reviews tokens with the API server: one request at a time for each token; verdicts are cached.
pub struct ApiServerReviewer {
    client: Client,
    service_account: Arc<str>,
    in_flight: Arc<Semaphore>,
    /// By the SHA-256 of the token.
    cache: Mutex<HashMap<[u8; 32], Entry>>,
}

impl ApiServerReviewer {
    /// A reviewer that sends requests through `client`.
    pub fn new(client: Client, args: &TokenReviewArgs) -> Self {
        ApiServerReviewer {
            client,
            service_account: args.warmer_service_account.as_str().into(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            cache: Mutex::default(),
        }
    }

    /// The running or cached review, or a new one.
    fn entry(
        &self,
        key: [u8; 32],
        token: &str,
    ) -> Result<Shared<BoxFuture<'static, Verdict>>, TokenError> {
        let now = SystemTime::now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = cache.get(&key).filter(|entry| entry.valid_until > now) {
            return Ok(entry.verdict.clone());
        }
        cache.retain(|_, entry| entry.valid_until > now);
        if cache.len() >= MAX_PENDING {
            return Err(TokenError::Unavailable("too many tokens are being reviewed".into()));
        }
        let review = create_review(
            self.client.clone(),
            self.in_flight.clone(),
            token.to_owned(),
            self.service_account.clone(),
        );
        let verdict = review.boxed().shared();
        // Unless it fails (see `review`), a verdict is cached until the token itself expires.
        let expires = expiry(token).unwrap_or(now + CACHE_LIFETIME);
        let valid_until = expires.min(now + CACHE_LIFETIME);
        cache.insert(key, Entry { verdict: verdict.clone(), valid_until });
        Ok(verdict)
    }
}

impl TokenReviewer for ApiServerReviewer {
    fn review<'a>(&'a self, token: &'a str) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(async move {
            let token = token.trim();
            if token.is_empty() {
                return Err(TokenError::Missing);
            }
            let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
            let review = self.entry(key, token)?;
            let verdict = review.clone().await;
            if verdict.is_err() {
                // The cause may be corrected at any time, and failures must not fill the memory.
                let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
                if cache.get(&key).is_some_and(|entry| entry.verdict.ptr_eq(&review)) {
                    cache.remove(&key);
                }
            }
            verdict
        })
    }
}

async fn create_review(
    client: Client,
    in_flight: Arc<Semaphore>,
    token: String,
    service_account: Arc<str>,
) -> Verdict {
    let unavailable = |error: String| TokenError::Unavailable(error);
    let _permit =
        in_flight.acquire_owned().await.map_err(|error| unavailable(error.to_string()))?;
    let expires = expiry(&token);
    let review = TokenReview {
        spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.into()]), token: Some(token) },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(client);
    let parameters = PostParams::default();
    let answer = tokio::time::timeout(REVIEW_TIMEOUT, api.create(&parameters, &review))
        .await
        .map_err(|_| unavailable("the request timed out".into()))?
        .map_err(|error| unavailable(one_line(&error)))?;
    let node = node_of(&answer.status.unwrap_or_default(), &service_account)?;
    Ok(WarmerIdentity { node, expires })
}

/// The node in the status of a TokenReview.
fn node_of(status: &TokenReviewStatus, service_account: &str) -> Result<String, TokenError> {
    if status.authenticated != Some(true) {
        let error = status.error.clone().unwrap_or_default();
        // kube-apiserver has no typed field for this; all its authenticators use the word
        // "audience".
        if error.contains("audience") {
            return Err(TokenError::WrongAudience);
        }
        let error = if error.is_empty() { "not authenticated".into() } else { error };
        return Err(TokenError::Invalid(printable(&error, MESSAGE_MAX)));
    }
    // A server without support for audiences authenticates the token and returns no audience.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(TokenError::WrongAudience);
    }
    let user = status.user.clone().unwrap_or_default();
    let found = user.username.unwrap_or_default();
    if found != service_account {
        return Err(TokenError::OtherAccount {
            found: quoted(&found),
            expected: service_account.into(),
        });
    }
    let extra: BTreeMap<String, Vec<String>> = user.extra.unwrap_or_default();
    match extra.get(NODE_NAME_EXTRA).map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Ok(node.clone()),
        _ => Err(TokenError::NotBound),
    }
}

/// The `exp` claim. It only shortens the validity, so reading it requires no signature check.
fn expiry(token: &str) -> Option<SystemTime> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let seconds = claims.get("exp")?.as_u64()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:imagewarm-system:imagewarmer";

    fn good() -> TokenReviewStatus {
        TokenReviewStatus {
            audiences: Some(vec![AUDIENCE.into()]),
            authenticated: Some(true),
            error: None,
            user: Some(UserInfo {
                username: Some(ACCOUNT.into()),
                extra: Some([(NODE_NAME_EXTRA.to_owned(), vec!["node-a".to_owned()])].into()),
                ..UserInfo::default()
            }),
        }
    }

    #[test]
    fn a_bound_token_of_the_warmer_names_its_node() {
        assert_eq!(node_of(&good(), ACCOUNT), Ok("node-a".into()));
    }

    #[test]
    fn every_other_token_is_rejected_with_its_reason() {
        type Change = fn(&mut TokenReviewStatus);
        let table: [(&str, Change, &str); 7] = [
            ("unknown", |s| s.authenticated = None, "InvalidToken"),
            ("empty answer", |s| *s = TokenReviewStatus::default(), "InvalidToken"),
            (
                "audience",
                |s| {
                    s.authenticated = Some(false);
                    s.error = Some("token audiences [\"api\"] is invalid for the target".into());
                },
                "WrongAudience",
            ),
            ("audience-unaware server", |s| s.audiences = None, "WrongAudience"),
            (
                "other account",
                |s| s.user.as_mut().unwrap().username = Some("system:node:a".into()),
                "OtherAccount",
            ),
            ("unbound", |s| s.user.as_mut().unwrap().extra = None, "NotBoundToNode"),
            (
                "empty node",
                |s| {
                    s.user.as_mut().unwrap().extra =
                        Some([(NODE_NAME_EXTRA.to_owned(), vec![])].into());
                },
                "NotBoundToNode",
            ),
        ];
        for (name, change, reason) in table {
            let mut status = good();
            change(&mut status);
            let verdict = node_of(&status, ACCOUNT);
            assert_eq!(verdict.unwrap_err().reason(), reason, "{name}");
        }
    }

    #[test]
    fn expiry_is_read_from_the_claims() {
        let claims = URL_SAFE_NO_PAD.encode(br#"{"exp":1700000000,"aud":["imagewarm"]}"#);
        let expected = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(expiry(&format!("e30.{claims}.sig")), Some(expected));
        assert_eq!(expiry("opaque"), None);
        assert_eq!(expiry("a.%%%.c"), None);
    }
}
