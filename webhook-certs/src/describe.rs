//! The fields of a certificate, for display.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The fields that an operator needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The subject.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// The DNS names for which it is valid.
    pub names: Vec<String>,
    /// The start of its validity.
    pub not_before: Timestamp,
    /// Its expiry.
    pub not_after: Timestamp,
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
}

impl Description {
    /// Parses the first certificate of a PEM text.
    pub fn of_pem(pem: &str) -> Option<Self> {
        Self::of_der(&CertificateDer::from_pem_slice(pem.as_bytes()).ok()?)
    }

    /// Parses one certificate.
    pub fn of_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let names = alternative.iter().flat_map(|names| &names.value.general_names);
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let validity = certificate.validity();
        Some(Description {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            names: names.collect(),
            not_before: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
            not_after: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
            serial: certificate.raw_serial_as_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::issue::{Bundle, Lifetimes};

    #[test]
    fn names_issuer_and_times_are_described() {
        let now: Timestamp = "2026-11-23T02:30:00Z".parse().unwrap();
        let names = ["hook.ns.svc".to_owned(), "localhost".to_owned()];
        let bundle = Bundle::issue(&names, Lifetimes::default(), now).unwrap();
        let (ca, leaf) = (&bundle.ca_cert_pem, &bundle.cert_pem);
        let (ca, leaf) = (Description::of_pem(ca).unwrap(), Description::of_pem(leaf).unwrap());
        assert_eq!(leaf.subject, "CN=webhook server");
        assert_eq!(leaf.issuer, ca.subject);
        assert_eq!(leaf.names, names);
        assert_eq!(leaf.not_after, now + Lifetimes::default().serving);
        assert_eq!(ca.not_before, now - crate::issue::CLOCK_SKEW);
        assert_eq!(Description::of_pem("nonsense"), None);
    }
}
