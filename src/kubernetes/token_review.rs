//! Which node a warmer speaks for: asks the API server (TokenReview) whom a token belongs to, and
//! reads the node that the token is bound to. Knows nothing of streams.

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

/// The audience that a warmer's token must be made for.
pub const AUDIENCE: &str = "imagewarm";

/// Key in `user.extra` of a TokenReview that names the node of a pod-bound token.
const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";
/// A verdict is never believed for longer, whatever the token says of itself.
const LONGEST_CACHE: Duration = Duration::from_secs(300);
/// TokenReviews in flight, so that a thousand warmers that come back at once do not crowd out the
/// API server's other work.
const IN_FLIGHT: usize = 16;
/// Waiting and running reviews together; beyond this the warmer is told to come back later.
const MOST_PENDING: usize = 8192;
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
    /// When the token itself expires, where it says so.
    pub expires: Option<SystemTime>,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The call carries no token.
    #[error("no token: send the metadata `authorization: Bearer TOKEN`")]
    Missing,
    /// The token is made for somebody else.
    #[error("the token is not made for the audience `{AUDIENCE}`")]
    WrongAudience,
    /// The API server does not accept the token.
    #[error("the token is not valid: {0}")]
    Invalid(String),
    /// The token is good, but not the warmer's.
    #[error("the token belongs to {found}, but the warmer's account is `{expected}`")]
    OtherAccount {
        /// Whose token it is.
        found: Quoted,
        /// Whose token it should be.
        expected: String,
    },
    /// The token is the warmer's, but was not made for a Pod that runs on a node.
    #[error("the token is not bound to a node: it must be one projected into the warmer's Pod")]
    NotBound,
    /// Nobody could be asked; try again.
    #[error("the API server could not review the token: {0}")]
    Unavailable(String),
}

impl TokenError {
    /// One word for logs and metrics.
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

/// Who says which node a token stands for.
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
    believed_until: SystemTime,
}

/// Asks the API server; one question at a time for each token, answers kept for a while.
pub struct ApiServerReviewer {
    client: Client,
    service_account: Arc<str>,
    in_flight: Arc<Semaphore>,
    known: Mutex<HashMap<[u8; 32], Entry>>,
}

impl ApiServerReviewer {
    /// A reviewer that asks through `client`.
    pub fn new(client: Client, args: &TokenReviewArgs) -> Self {
        ApiServerReviewer {
            client,
            service_account: args.warmer_service_account.as_str().into(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            known: Mutex::default(),
        }
    }

    /// The running or remembered answer, or a new question.
    fn entry(
        &self,
        key: [u8; 32],
        token: &str,
    ) -> Result<Shared<BoxFuture<'static, Verdict>>, TokenError> {
        let now = SystemTime::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = known.get(&key).filter(|entry| entry.believed_until > now) {
            return Ok(entry.verdict.clone());
        }
        known.retain(|_, entry| entry.believed_until > now);
        if known.len() >= MOST_PENDING {
            return Err(TokenError::Unavailable("too many tokens are being reviewed".into()));
        }
        let ask = ask(
            self.client.clone(),
            self.in_flight.clone(),
            token.to_owned(),
            self.service_account.clone(),
        );
        let verdict = ask.boxed().shared();
        // Unless refused or unanswered (see `review`), remembered until the token itself ends.
        let expires = expiry(token).unwrap_or(now + LONGEST_CACHE);
        let believed_until = expires.min(now + LONGEST_CACHE);
        known.insert(key, Entry { verdict: verdict.clone(), believed_until });
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
            let question = self.entry(key, token)?;
            let verdict = question.clone().await;
            if verdict.is_err() {
                // A refusal may be mended at any moment (and must not fill the memory).
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.get(&key).is_some_and(|entry| entry.verdict.ptr_eq(&question)) {
                    known.remove(&key);
                }
            }
            verdict
        })
    }
}

async fn ask(
    client: Client,
    in_flight: Arc<Semaphore>,
    token: String,
    service_account: Arc<str>,
) -> Verdict {
    let unavailable = |error: String| TokenError::Unavailable(error);
    let _place = in_flight.acquire_owned().await.map_err(|error| unavailable(error.to_string()))?;
    let expires = expiry(&token);
    let review = TokenReview {
        spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.into()]), token: Some(token) },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(client);
    let parameters = PostParams::default();
    let answer = tokio::time::timeout(REVIEW_TIMEOUT, api.create(&parameters, &review))
        .await
        .map_err(|_| unavailable("no answer in time".into()))?
        .map_err(|error| unavailable(one_line(&error)))?;
    let node = node_of(&answer.status.unwrap_or_default(), &service_account)?;
    Ok(WarmerIdentity { node, expires })
}

/// Reads the node out of the API server's answer.
fn node_of(status: &TokenReviewStatus, service_account: &str) -> Result<String, TokenError> {
    if status.authenticated != Some(true) {
        let error = status.error.clone().unwrap_or_default();
        // kube-apiserver has no typed field for this; its authenticators all speak of "audience".
        if error.contains("audience") {
            return Err(TokenError::WrongAudience);
        }
        let error = if error.is_empty() { "not authenticated".into() } else { error };
        return Err(TokenError::Invalid(printable(&error, MESSAGE_MAX)));
    }
    // A server that knows nothing of audiences answers "authenticated" without naming one.
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

/// The `exp` claim. Only ever shortens trust, so it may be read without checking the signature.
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
    fn everything_else_is_refused_for_its_own_reason() {
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
