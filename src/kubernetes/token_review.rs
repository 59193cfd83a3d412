//! Authentication of warmers: a TokenReview by the API server yields the user of a bearer token and
//! the node that the token is bound to. Independent of streams.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::request::request;
use crate::clock::unix_ms;
use imagewarm_core::api::names::{NodeName, Uid};
use imagewarm_core::image::quoted::{MESSAGE_MAX, Quoted, printable, quoted};

/// The required audience of a warmer's token.
pub(crate) const AUDIENCE: &str = "imagewarm";

/// Key in `user.extra` of a TokenReview that names the node of a pod-bound token.
const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";
/// Key that holds the uid of that node.
const NODE_UID_EXTRA: &str = "authentication.kubernetes.io/node-uid";
/// How long an accepted token is cached at most, whatever its own expiry.
const CACHE_LIFETIME: Duration = Duration::from_secs(300);
/// Concurrent TokenReviews, so that a thousand warmers that reconnect at once do not crowd out
/// other requests to the API server.
const IN_FLIGHT: usize = 64;
/// Maximum number of waiting and running reviews; beyond it, a warmer is rejected and retries
/// later.
const MAX_PENDING: usize = 8192;
/// Maximum number of accepted tokens that are cached, some 200 bytes each.
const MAX_ACCEPTED: usize = 65_536;
/// Timeout of one review, from when it is sent.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of the warmers' authentication.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct TokenReviewArgs {
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
pub(crate) struct WarmerIdentity {
    /// The node that the token is bound to.
    pub node: NodeName,
    /// Its uid, from Kubernetes 1.30 on: a Node of the same name may have taken its place.
    pub node_uid: Option<Uid>,
    /// When the token itself expires, if it states so.
    pub expires: Option<Instant>,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
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
    pub(crate) const fn reason(&self) -> &'static str {
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
pub(crate) trait TokenReviewer: Send + Sync + 'static {
    /// The warmer that this bearer token (without `Bearer `) belongs to.
    fn review<'a>(
        &'a self,
        token: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<WarmerIdentity, TokenError>> + Send + 'a>>;
}

type Verdict = Result<WarmerIdentity, TokenError>;
/// The verdict of a review that runs in a task of its own.
type Pending = Shared<BoxFuture<'static, Verdict>>;

/// The tokens that are known, by their SHA-256.
#[derive(Default)]
struct Cache {
    /// Reviews that wait or run; at most [`MAX_PENDING`].
    pending: HashMap<[u8; 32], Pending>,
    /// Accepted tokens, and until when they are; at most [`MAX_ACCEPTED`].
    accepted: HashMap<[u8; 32], (WarmerIdentity, Instant)>,
}

/// What the cache has for a token.
enum Cached {
    Accepted(WarmerIdentity),
    Pending(Pending),
}

/// Reviews tokens with the API server: one request at a time for each token; accepted tokens are
/// cached. A review does not depend on its caller: when the caller goes away, the review ends
/// within its timeout, and others are not held up.
pub(crate) struct ApiServerReviewer {
    client: Client,
    service_account: Arc<str>,
    in_flight: Arc<Semaphore>,
    cache: Arc<Mutex<Cache>>,
}

impl ApiServerReviewer {
    /// A reviewer that sends requests through `client`.
    pub(crate) fn new(client: Client, args: &TokenReviewArgs) -> Self {
        ApiServerReviewer {
            client,
            service_account: args.warmer_service_account.as_str().into(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            cache: Arc::default(),
        }
    }

    /// The cached verdict, the running review, or a new one.
    fn cached_or_begun(&self, key: [u8; 32], token: &str) -> Result<Cached, TokenError> {
        let now = Instant::now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((identity, until)) = cache.accepted.get(&key)
            && *until > now
        {
            return Ok(Cached::Accepted(identity.clone()));
        }
        if let Some(pending) = cache.pending.get(&key) {
            return Ok(Cached::Pending(pending.clone()));
        }
        if cache.pending.len() >= MAX_PENDING {
            return Err(unavailable("too many tokens are being reviewed"));
        }
        let review = Review {
            client: self.client.clone(),
            in_flight: self.in_flight.clone(),
            service_account: self.service_account.clone(),
            cache: self.cache.clone(),
            key,
        };
        let task = tokio::spawn(review.run(token.to_owned()));
        let pending = task.map(|ended| ended.unwrap_or_else(|error| Err(unavailable(error))));
        let pending = pending.boxed().shared();
        cache.pending.insert(key, pending.clone());
        Ok(Cached::Pending(pending))
    }
}

impl TokenReviewer for ApiServerReviewer {
    fn review<'a>(&'a self, token: &'a str) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(async move {
            let token = token.trim();
            if token.is_empty() {
                return Err(TokenError::Missing);
            }
            match self.cached_or_begun(Sha256::digest(token.as_bytes()).into(), token)? {
                Cached::Accepted(identity) => Ok(identity),
                Cached::Pending(pending) => pending.await,
            }
        })
    }
}

fn unavailable(error: impl ToString) -> TokenError {
    TokenError::Unavailable(error.to_string())
}

/// One review.
struct Review {
    client: Client,
    in_flight: Arc<Semaphore>,
    service_account: Arc<str>,
    cache: Arc<Mutex<Cache>>,
    key: [u8; 32],
}

impl Review {
    async fn run(self, token: String) -> Verdict {
        let verdict = self.verdict(token).await;
        let now = Instant::now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.pending.remove(&self.key);
        // The cause of a refusal may be corrected at any time, and refusals must not fill the
        // memory.
        if let Ok(identity) = &verdict {
            if cache.accepted.len() >= MAX_ACCEPTED {
                cache.accepted.retain(|_, (_, until)| *until > now);
            }
            if cache.accepted.len() < MAX_ACCEPTED {
                let until = now + CACHE_LIFETIME;
                let until = identity.expires.map_or(until, |expires| expires.min(until));
                cache.accepted.insert(self.key, (identity.clone(), until));
            }
        }
        verdict
    }

    async fn verdict(&self, token: String) -> Verdict {
        let _permit = self.in_flight.acquire().await.map_err(unavailable)?;
        let expires = expires_in(&token).map(|left| Instant::now() + left);
        let review = TokenReview {
            spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.into()]), token: Some(token) },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = request(REVIEW_TIMEOUT, api.create(&PostParams::default(), &review)).await;
        let status = answer.map_err(unavailable)?.status.unwrap_or_default();
        let (node, node_uid) = node_of(&status, &self.service_account)?;
        Ok(WarmerIdentity { node, node_uid, expires })
    }
}

/// Name and uid of the node in the status of a TokenReview.
fn node_of(
    status: &TokenReviewStatus,
    service_account: &str,
) -> Result<(NodeName, Option<Uid>), TokenError> {
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
    let only = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let node = only(NODE_NAME_EXTRA).ok_or(TokenError::NotBound)?;
    Ok((node.into(), only(NODE_UID_EXTRA).map(Uid::from)))
}

/// How long the token remains valid, by its `exp` claim and the wall clock. It only shortens the
/// validity, so reading it requires no signature check.
fn expires_in(token: &str) -> Option<Duration> {
    let expires = Duration::from_secs(expiry(token)?);
    let now = u64::try_from(unix_ms()).unwrap_or(0);
    // Beyond all clocks: as good as no expiry.
    const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    Some(expires.saturating_sub(Duration::from_millis(now)).min(LONGEST))
}

/// The `exp` claim, in seconds since 1970.
fn expiry(token: &str) -> Option<u64> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims.get("exp")?.as_u64()
}

#[cfg(test)]
mod tests;
