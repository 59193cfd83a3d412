//! Metrics of the certificates: expiry, and faults by reason.

use imagewarm_webhook_certs::{BundleError, MountedError, Served};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use imagewarm_core::labels;

use super::metrics::LabelValue;

labels! {
    /// Certificates whose expiry is measured.
    enum Kind {
        /// The CA's certificate.
        #[allow(clippy::upper_case_acronyms)] // the label's value is the variant's name
        CA,
        /// The certificate that admission and dispatch serve.
        Serving,
    }

    /// What is wrong with certificates in the Secret or the folder.
    pub enum CertificateFault {
        /// A file is absent or cannot be read.
        Unreadable,
        /// A part is absent or cannot be decoded.
        Corrupted,
        /// A certificate has expired.
        Expired,
        /// A certificate is not valid yet; the clock may be wrong.
        NotYetValid,
        /// A key does not belong to its certificate.
        KeyMismatch,
        /// Another CA issued the serving certificate, or it is not for server authentication.
        Foreign,
        /// The serving certificate lacks one of the Services' names.
        WrongNames,
    }
}

impl From<&BundleError> for CertificateFault {
    fn from(error: &BundleError) -> Self {
        match error {
            BundleError::Corrupted { .. } => CertificateFault::Corrupted,
            BundleError::Expired { .. } => CertificateFault::Expired,
            BundleError::NotYetValid { .. } => CertificateFault::NotYetValid,
            BundleError::KeyMismatch { .. } => CertificateFault::KeyMismatch,
            BundleError::Foreign(_) => CertificateFault::Foreign,
            BundleError::WrongNames { .. } => CertificateFault::WrongNames,
        }
    }
}

impl From<&MountedError> for CertificateFault {
    fn from(error: &MountedError) -> Self {
        match error {
            MountedError::File { .. } => CertificateFault::Unreadable,
            MountedError::Bad { source, .. } => source.into(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: LabelValue<Kind>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: LabelValue<CertificateFault>,
}

/// Metrics of the certificates. Clones share their values.
#[derive(Clone)]
pub struct CertificateMetrics {
    expiry: Family<KindLabels, Gauge>,
    faults: Family<ReasonLabels, Counter>,
}

impl CertificateMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = CertificateMetrics { expiry: Family::default(), faults: Family::default() };
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the certificate in use expires, in seconds since 1970; 0 while there is none",
            metrics.expiry.clone(),
        );
        registry.register(
            "certificate_faults",
            "Bad certificates found in the Secret or the folder, by reason",
            metrics.faults.clone(),
        );
        for &kind in Kind::ALL {
            metrics.expiry.get_or_create(&KindLabels { kind: LabelValue(kind) }).set(0);
        }
        metrics
    }

    /// Sets the expiry of the certificates that are served.
    pub fn served(&self, served: &Served) {
        let ends = [(Kind::CA, served.ca_not_after), (Kind::Serving, served.not_after)];
        for (kind, end) in ends {
            self.expiry.get_or_create(&KindLabels { kind: LabelValue(kind) }).set(end.as_second());
        }
    }

    /// Counts bad certificates.
    pub fn fault(&self, fault: CertificateFault) {
        self.faults.get_or_create(&ReasonLabels { reason: LabelValue(fault) }).inc();
    }
}

#[cfg(test)]
mod tests {
    use imagewarm_webhook_certs::Part;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_fault_is_labelled_as_its_error_is_logged() {
        let (part, at) = (Part::CaCertificate, Timestamp::UNIX_EPOCH);
        let errors = [
            BundleError::Corrupted { part, detail: "no PEM".into() },
            BundleError::Expired { part, at },
            BundleError::NotYetValid { part, at },
            BundleError::KeyMismatch { part },
            BundleError::Foreign("unknown issuer".into()),
            BundleError::WrongNames { missing: "imagewarm-webhook".into() },
        ];
        for error in errors {
            assert_eq!(CertificateFault::from(&error).as_str(), error.reason());
        }
        let error =
            MountedError::File { path: "tls.crt".into(), source: std::io::Error::other("") };
        assert_eq!(CertificateFault::from(&error).as_str(), error.reason());
    }
}
