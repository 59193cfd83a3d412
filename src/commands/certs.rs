//! `imagewarm certs`: the certificates in the Secret, whether the webhook configurations trust
//! them, and with --connect the certificates that replicas serve. Private keys are not printed.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use imagewarm_webhook_certs::Description;
use imagewarm_webhook_certs::rotate::{State, certificates};
use imagewarm_webhook_certs::secret::from_secret;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::kubernetes::request::{RequestError, request};
use crate::kubernetes::webhook_configurations::{
    self, PublishError, ReplicaPaths, Role, WebhookConfigurations,
};
use imagewarm_core::api::names::Namespace;
use imagewarm_core::settings::{duration, host_and_port};

/// Timeout of one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Show certificates, their expiry and those that replicas serve; exit with 1 on any fault
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct CertsArgs {
    /// Namespace of the controller
    #[arg(short, long, value_name = "NAMESPACE", default_value = "imagewarm-system")]
    pub namespace: Namespace,

    /// Also check the certificate served at this address; may be repeated
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub connect: Vec<String>,

    /// The controller's setting, from which the time of the next CA is computed
    #[arg(long, env = "IMAGEWARM_CA_RENEW_BEFORE", value_name = "DURATION",
          default_value = "4320h", value_parser = duration)]
    pub ca_renew_before: Duration,

    /// The controller's setting, from which the time of the next renewal is computed
    #[arg(long, env = "IMAGEWARM_SERVING_RENEW_BEFORE", value_name = "DURATION",
          default_value = "720h", value_parser = duration)]
    pub serving_renew_before: Duration,
}

/// Why the certificates cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertsError {
    /// The Secret cannot be read.
    #[error("cannot read Secret {path}")]
    Secret {
        /// Namespace and name.
        path: String,
        /// The cause.
        source: RequestError,
    },
    /// The webhook configurations cannot be read.
    #[error("cannot compare the CA with the webhook configurations")]
    Configurations(#[from] PublishError),
    /// TLS cannot be set up.
    #[error("cannot prepare a TLS connection")]
    Tls(#[from] rustls::Error),
    /// The output is closed or full.
    #[error("cannot write the certificates")]
    Output(#[from] io::Error),
}

/// Prints all certificates; returns whether there is no fault. `secret` and `configuration` are
/// names of objects.
pub(crate) async fn run(
    args: &CertsArgs,
    (secret, configuration): (&str, &str),
    client: Client,
    now: Timestamp,
    out: &mut dyn Write,
) -> Result<bool, CertsError> {
    let path = format!("{}/{secret}", args.namespace);
    let api: Api<Secret> = Api::namespaced(client.clone(), &args.namespace);
    let found = request(TIMEOUT, api.get_opt(secret)).await;
    let found = found.map_err(|source| CertsError::Secret { path: path.clone(), source })?;
    let mut faults = Vec::new();
    let mut stored = None;
    match found.as_ref().map(from_secret) {
        None => faults.push(format!("there is no Secret {path}")),
        Some(Err(fault)) => faults.push(format!("Secret {path}: {fault}")),
        Some(Ok(state)) => {
            stored = write_state(args, out, &state)?;
            if let Err(fault) = state.bundle.check(&[], now) {
                faults.push(format!("Secret {path}: {fault}"));
            }
            let names = WebhookConfigurations {
                mutating: configuration.to_owned(),
                validating: configuration.to_owned(),
            };
            let (ca_pem, paths) = (&state.bundle.ca_cert_pem, &mut ReplicaPaths::default());
            let states =
                webhook_configurations::sync(&client, &names, ca_pem, Role::Reads, paths, 0)
                    .await?;
            match states.check() {
                Ok(()) => writeln!(out, "caBundle: both webhook configurations hold all CAs")?,
                Err(fault) => faults.push(fault),
            }
        }
    }
    for address in &args.connect {
        match served_at(address).await? {
            Ok(der) => {
                let Some(served) = Description::of_der(&der) else {
                    faults.push(format!("{address} serves an invalid certificate"));
                    continue;
                };
                write_certificate(out, &format!("served by {address}"), &served)?;
                if served.not_after < now {
                    faults.push(format!(
                        "{address} serves a certificate that expired at {}",
                        served.not_after
                    ));
                } else if stored.as_ref().is_some_and(|stored| *stored != served) {
                    faults.push(format!("{address} does not serve the certificate in the Secret"));
                }
            }
            Err(error) => faults.push(format!("{address}: {error}")),
        }
    }
    for fault in &faults {
        writeln!(out, "WRONG: {fault}")?;
    }
    out.flush()?;
    Ok(faults.is_empty())
}

/// The certificate that a server presents, without verification: it is printed, not trusted.
async fn served_at(address: &str) -> Result<Result<Vec<u8>, io::Error>, CertsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    let shake = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("imagewarm").map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let presented = stream.get_ref().1.peer_certificates().and_then(|all| all.first());
        presented
            .map(|one| one.to_vec())
            .ok_or_else(|| io::Error::other("it presents no certificate"))
    };
    let timed_out =
        |_| Err(io::Error::other(format!("no response within {} s", TIMEOUT.as_secs())));
    Ok(tokio::time::timeout(TIMEOUT, shake).await.unwrap_or_else(timed_out))
}

/// Prints the certificates in the Secret; returns the serving certificate.
fn write_state(
    args: &CertsArgs,
    out: &mut dyn Write,
    state: &State,
) -> io::Result<Option<Description>> {
    let before = |end: Timestamp, early: Duration| {
        SignedDuration::try_from(early).ok().and_then(|early| end.checked_sub(early).ok())
    };
    let next = state.next_certificate();
    for (at, pem) in certificates(&state.bundle.ca_cert_pem).into_iter().enumerate() {
        let Some(ca) = Description::of_pem(pem) else { continue };
        let role = if at == 0 {
            "CA"
        } else if Some(pem) == next {
            "next CA"
        } else {
            "old CA"
        };
        write_certificate(out, role, &ca)?;
        if let (0, None, Some(rotation)) = (at, &next, before(ca.not_after, args.ca_renew_before)) {
            writeln!(out, "  next rotation: {rotation}")?;
        }
    }
    if let Some(next) = &state.next {
        writeln!(out, "rotation: the next CA was issued at {} and is being published", next.since)?;
    }
    if let Some(at) = state.retire_at {
        writeln!(out, "rotation: old CAs retire at {at}")?;
    }
    let serving = Description::of_pem(&state.bundle.cert_pem);
    if let Some(serving) = &serving {
        write_certificate(out, "serving certificate", serving)?;
        if let Some(renewal) = before(serving.not_after, args.serving_renew_before) {
            writeln!(out, "  next renewal:  {renewal}")?;
        }
    }
    Ok(serving)
}

fn write_certificate(out: &mut dyn Write, role: &str, one: &Description) -> io::Result<()> {
    writeln!(out, "{role}: {} ({})", one.subject, one.serial)?;
    writeln!(out, "  issuer:        {}", one.issuer)?;
    if !one.names.is_empty() {
        writeln!(out, "  names:         {}", one.names.join(", "))?;
    }
    writeln!(out, "  not before:    {}", one.not_before)?;
    writeln!(out, "  not after:     {}", one.not_after)
}

/// Accepts every certificate: no data is sent to the server or read from it.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
