//! The kubelet's credential provider plugins, to the letter of
//! `k8s.io/kubernetes/pkg/credentialprovider/plugin`: the configuration, which images a provider has
//! credentials for, when its plugin is called and how long its answer holds, and what an answer may be.
//! Calling a plugin is the part of `runtime::credential_provider`.

mod calls;
mod config;
mod failure;
mod fields;
mod go_duration;
mod lookup;
mod response;

pub use calls::{Answer, CallId, Calls, Decision, Ended};
pub use config::{CredentialProvider, ExecEnvVar, parse_config};
pub use failure::{CallResult, LONGEST_RESPONSE, ProviderFailure};
pub use fields::FieldError;
pub use lookup::NodeCredentials;
pub use response::{ApiVersion, CacheKeyType, Response, parse_response};
