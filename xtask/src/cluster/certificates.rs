//! A throw-away certificate authority for the development cluster's own parts.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// A self-signed authority with its key.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// For whom a certificate is.
pub(super) struct Identity {
    common_name: String,
    organization: Option<String>,
    names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
}

/// Certificate and private key, both PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Identity {
    /// A server with these DNS names and addresses.
    pub(super) fn server(names: &[&str]) -> Self {
        Self {
            common_name: names.first().copied().unwrap_or_default().to_owned(),
            organization: None,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            usage: ExtendedKeyUsagePurpose::ServerAuth,
        }
    }

    /// A client of the API server: user name and, if any, group.
    pub(super) fn client(user: &str, group: Option<&str>) -> Self {
        Self {
            common_name: user.to_owned(),
            organization: group.map(str::to_owned),
            names: Vec::new(),
            usage: ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    pub(super) fn issue(&self, identity: Identity) -> Result<Pair> {
        let mut params = CertificateParams::new(identity.names)?;
        params.distinguished_name.push(DnType::CommonName, identity.common_name);
        if let Some(organization) = identity.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.extended_key_usages = vec![identity.usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(super) fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    pub(super) fn private_key_pem(&self) -> String {
        self.0.key().serialize_pem()
    }

    pub(super) fn public_key_pem(&self) -> String {
        self.0.key().public_key_pem()
    }
}
